//! Whether a workspace can hold a resource where it shall be.

use longhand_crds::SandboxTemplate;
use longhand_crds::session_resource::SessionResource;

use crate::api::error::{ApiError, Result};
use crate::app::App;

/// What `sandboxd` keeps for itself in a workspace.
const OWN: &str = ".longhand";

/// Where the reference puts files that a client says no place for, and what stands for the workspace here.
const OF_REFERENCE: &str = "/mnt/session";

/// Sees to it that resources are to be below the workspaces of sandboxes that are made from `templates`, since nothing else can
/// be written there: a repository has to say so, and a file that says another place is put there below the workspace.
///
/// # Errors
/// 400 naming the one that is not, or two that come to the same place; those of the API server.
pub(in crate::api::wire) async fn settle(
    app: &App,
    namespace: &str,
    templates: &[String],
    resources: &mut [&mut SessionResource],
) -> Result<()> {
    if resources.is_empty() {
        return Ok(());
    }
    let mut workspaces = Vec::new();
    for template in templates {
        let found: Option<SandboxTemplate> = app.environments.named(namespace, template).await?;
        let spec = found.map(|template| template.spec).filter(|spec| !spec.self_hosted);
        workspaces.extend(spec.map(|spec| spec.workspace.mount_path));
    }
    let Some(workspace) = workspaces.first() else { return Ok(()) };
    for resource in resources.iter_mut().filter(|resource| resource.file.is_some()) {
        if let Some(path) = moved(workspace, &resource.mount_path) {
            resource.mount_path = path;
        }
    }
    for (index, resource) in resources.iter().enumerate() {
        let path = &resource.mount_path;
        if let Some(workspace) = workspaces.iter().find(|workspace| !is_below(workspace, path)) {
            return Err(ApiError::bad_request(format!(
                "`mount_path`: {path} is not below the workspace of the session's sandbox, {workspace}"
            )));
        }
        if resources[..index].iter().any(|other| other.mount_path == *path) {
            return Err(ApiError::bad_request(format!("`mount_path`: two resources are at {path}")));
        }
    }
    Ok(())
}

/// The place below the workspace of a file that shall be elsewhere.
fn moved(workspace: &str, path: &str) -> Option<String> {
    let workspace = workspace.trim_end_matches('/');
    let inside = path.strip_prefix(workspace).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    if inside {
        return None;
    }
    let rest = path.strip_prefix(OF_REFERENCE).filter(|rest| rest.starts_with('/')).unwrap_or(path);
    Some(format!("{workspace}{rest}"))
}

fn is_below(workspace: &str, path: &str) -> bool {
    let rest = path.strip_prefix(workspace.trim_end_matches('/')).and_then(|rest| rest.strip_prefix('/'));
    let first = rest.and_then(|rest| rest.split('/').find(|part| !part.is_empty()));
    first.is_some_and(|first| first != OWN)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::{is_below, moved};

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
    #[rstest]
    #[case("/workspace/a", None)]
    #[case("/workspace", None)]
    #[case("/uploads/a.pdf", Some("/workspace/uploads/a.pdf"))]
    #[case("/workspace-2/a", Some("/workspace/workspace-2/a"))]
    #[case("/mnt/session/uploads/file_1", Some("/workspace/uploads/file_1"))]
    #[case("/mnt/sessions/a", Some("/workspace/mnt/sessions/a"))]
    fn a_file_comes_below_the_workspace(#[case] path: &str, #[case] to: Option<&str>) {
        assert_eq!(moved("/workspace", path).as_deref(), to);
        assert_eq!(moved("/workspace/", path).as_deref(), to);
    }
}
