//! Whether a workspace can hold a resource where it shall be.

use longhand_crds::SandboxTemplate;
use longhand_crds::session_resource::SessionResource;

use crate::api::error::{ApiError, Result};
use crate::app::App;

/// What `sandboxd` keeps for itself in a workspace.
const OWN: &str = ".longhand";

/// Checks that repositories are to be below the workspaces of sandboxes that are made from `templates`. What is not put into a
/// workspace may be said to be anywhere.
///
/// # Errors
/// 400 naming the one that is not; those of the API server.
pub(in crate::api::wire) async fn check(
    app: &App,
    namespace: &str,
    templates: &[String],
    resources: &[&SessionResource],
) -> Result<()> {
    let resources = resources.iter().filter(|resource| resource.github_repository.is_some());
    let paths: Vec<&str> = resources.map(|resource| resource.mount_path.as_str()).collect();
    if paths.is_empty() {
        return Ok(());
    }
    for template in templates {
        let found: Option<SandboxTemplate> = app.environments.named(namespace, template).await?;
        let Some(spec) = found.map(|template| template.spec).filter(|spec| !spec.self_hosted) else { continue };
        let workspace = spec.workspace.mount_path;
        if let Some(path) = paths.iter().find(|path| !is_below(&workspace, path)) {
            return Err(ApiError::bad_request(format!(
                "`mount_path`: {path} is not below the workspace of the session's sandbox, {workspace}"
            )));
        }
    }
    Ok(())
}

fn is_below(workspace: &str, path: &str) -> bool {
    let rest = path.strip_prefix(workspace.trim_end_matches('/')).and_then(|rest| rest.strip_prefix('/'));
    let first = rest.and_then(|rest| rest.split('/').find(|part| !part.is_empty()));
    first.is_some_and(|first| first != OWN)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::is_below;

    #[rstest]
    #[case("/workspace", "/workspace/r", true)]
    #[case("/workspace/", "/workspace/a/r", true)]
    #[case("/workspace", "/workspace", false)]
    #[case("/workspace", "/workspace//", false)]
    #[case("/workspace", "/workspace-2/r", false)]
    #[case("/workspace", "/mnt/r", false)]
    #[case("/workspace", "/workspace/.longhand", false)]
    #[case("/workspace", "/workspace//.longhand/r", false)]
    #[case("/workspace", "/workspace/.longhand2", true)]
    fn a_repository_is_below_the_workspace(#[case] workspace: &str, #[case] path: &str, #[case] below: bool) {
        assert_eq!(is_below(workspace, path), below);
    }
}
