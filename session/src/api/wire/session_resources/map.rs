//! Resources of a session, as clients write them and as they are shown. Pure.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use longhand_crds::AgentSession;
use longhand_crds::session_resource::{FileResource, GithubRepository, SessionResource};
use longhand_crds::vault::{Scheme, SecretRef};
use longhand_crds::wire_id::{derived_id, prefix};
use longhand_protocol::secret::SecretValue;
use longhand_protocol::wire::resources::{Checkout, ResourceKind, SessionResource as Shown, WrittenResource};

use crate::api::error::{ApiError, Result};
use crate::api::wire::vaults::origin;
use crate::resources::named::created_at;

/// The key of a repository's token in its Secret.
pub(super) const TOKEN: &str = "token";
const LONGEST_PATH: usize = 1_024;
const LONGEST_BRANCH: usize = 255;

/// A resource that a client wrote, and the token for the Secret that it names.
pub(in crate::api::wire) struct Draft {
    /// The resource.
    pub resource: SessionResource,
    /// The token.
    pub token: Option<SecretValue>,
}

/// Reads what a client wrote. `secret` is the name of the Secret that a token will be in.
pub(super) fn draft(written: WrittenResource, id: String, secret: String, now: Timestamp) -> Result<Draft> {
    let name: String = id.to_ascii_lowercase().replace('_', "-").chars().take(63).collect();
    let resource = |mount_path, github_repository, file| SessionResource {
        name,
        id: Some(id),
        mount_path,
        github_repository,
        file,
        created_at: Some(Time(now)),
        updated_at: Some(Time(now)),
    };
    check_fields(&written)?;
    let WrittenResource { kind, mount_path, file_id, url, checkout, authorization_token: token, .. } = written;
    match kind {
        ResourceKind::MemoryStore => Err(ApiError::bad_request(
            "`type`: memory_store is not served: a session has github_repository and file resources",
        )),
        ResourceKind::File => {
            let file_id = file_id.ok_or_else(|| missing("file_id"))?;
            if file_id.is_empty() || file_id.len() > 253 || !crate::api::extract::is_reference(&file_id) {
                return Err(ApiError::bad_request("`file_id` is not the identifier of a file"));
            }
            let path = path(mount_path.unwrap_or_else(|| format!("/mnt/session/uploads/{file_id}")))?;
            Ok(Draft { resource: resource(path, None, Some(FileResource { file_id })), token: None })
        }
        ResourceKind::GithubRepository => {
            let url = url.ok_or_else(|| missing("url"))?;
            let wrong = || ApiError::bad_request("`url` is not the https:// URL of a repository");
            let (scheme, ..) = origin("url", &url).map_err(|_| wrong())?;
            let repository = url.trim_end_matches('/').trim_end_matches(".git").rsplit('/').next().unwrap_or_default();
            if scheme != Scheme::Https || repository.is_empty() {
                return Err(wrong());
            }
            let path = path(mount_path.unwrap_or_else(|| format!("/workspace/{repository}")))?;
            let (branch, commit) = checked_out(checkout)?;
            let token_ref = token.is_some().then(|| SecretRef { name: secret, key: TOKEN.to_owned() });
            let repository = GithubRepository { url, branch, commit, token_ref };
            Ok(Draft { resource: resource(path, Some(repository), None), token })
        }
    }
}

fn check_fields(written: &WrittenResource) -> Result<()> {
    let repository = [
        ("url", written.url.is_some()),
        ("checkout", written.checkout.is_some()),
        ("authorization_token", written.authorization_token.is_some()),
    ];
    let foreign = match written.kind {
        ResourceKind::MemoryStore => None,
        ResourceKind::File => repository.into_iter().find(|(_, given)| *given).map(|(field, _)| field),
        ResourceKind::GithubRepository => written.file_id.is_some().then_some("file_id"),
    };
    let of_memory = written.memory_store_id.is_some() || written.access.is_some() || written.instructions.is_some();
    let of_memory = (of_memory && written.kind != ResourceKind::MemoryStore).then_some("memory_store_id");
    match foreign.or(of_memory) {
        Some(field) => Err(ApiError::bad_request(format!("`{field}` does not belong to this `type`"))),
        None => Ok(()),
    }
}

fn missing(field: &str) -> ApiError {
    ApiError::bad_request(format!("`{field}` is missing"))
}

fn path(path: String) -> Result<String> {
    let plain = |part: &str| part != "." && part != ".." && !part.contains('\0');
    if path.len() >= 2 && path.len() <= LONGEST_PATH && path.starts_with('/') && path.split('/').all(plain) {
        return Ok(path);
    }
    Err(ApiError::bad_request("`mount_path` is not a full path without `.` and `..`"))
}

fn checked_out(checkout: Option<Checkout>) -> Result<(Option<String>, Option<String>)> {
    match checkout {
        None => Ok((None, None)),
        Some(Checkout::Branch { name }) if (1..=LONGEST_BRANCH).contains(&name.len()) && !name.starts_with('-') => {
            Ok((Some(name), None))
        }
        Some(Checkout::Branch { .. }) => Err(ApiError::bad_request("`checkout.name` is not the name of a branch")),
        Some(Checkout::Commit { sha })
            if matches!(sha.len(), 40 | 64) && sha.bytes().all(|byte| byte.is_ascii_hexdigit()) =>
        {
            Ok((None, Some(sha)))
        }
        Some(Checkout::Commit { .. }) => Err(ApiError::bad_request("`checkout.sha` is not the full hash of a commit")),
    }
}

/// The identifier of a resource of this session.
pub(super) fn resource_id(session: &AgentSession, resource: &SessionResource) -> String {
    resource.id.clone().unwrap_or_else(|| {
        let uid = session.metadata.uid.as_deref().unwrap_or_default();
        derived_id(prefix::RESOURCE, &format!("{uid}/{}", resource.name))
    })
}

/// The resource, without its token.
pub(super) fn shown(session: &AgentSession, resource: &SessionResource) -> Result<Shown> {
    let id = resource_id(session, resource);
    let time = |time: &Option<Time>| time.as_ref().map(|time| time.0);
    let created_at =
        time(&resource.created_at).or_else(|| created_at(&session.metadata)).unwrap_or(Timestamp::UNIX_EPOCH);
    let updated_at = time(&resource.updated_at).unwrap_or(created_at);
    let mount_path = resource.mount_path.clone();
    match (&resource.github_repository, &resource.file) {
        (Some(repository), None) => {
            let branch = repository.branch.clone().map(|name| Checkout::Branch { name });
            let checkout = branch.or_else(|| repository.commit.clone().map(|sha| Checkout::Commit { sha }));
            let url = repository.url.clone();
            Ok(Shown::GithubRepository { id, url, checkout, mount_path, created_at, updated_at })
        }
        (None, Some(file)) => Ok(Shown::File { id, file_id: file.file_id.clone(), mount_path, created_at, updated_at }),
        _ => Err(ApiError::internal(format!("the resource {} is neither a repository nor a file", resource.name))),
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use longhand_crds::AgentSession;
    use longhand_protocol::wire::resources::WrittenResource;
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::{draft, shown};

    fn session() -> AgentSession {
        serde_json::from_value(json!({"metadata": {"uid": "u1"}, "spec": {"agentRef": {"name": "a"}}})).unwrap()
    }

    fn through(written: &Value) -> Result<(Value, Value, Option<Vec<u8>>), String> {
        let written: WrittenResource = serde_json::from_value(written.clone()).unwrap();
        let now: Timestamp = "2026-06-01T00:00:00Z".parse().unwrap();
        let draft =
            draft(written, "sesrsc_Ab1".to_owned(), "secret-1".to_owned(), now).map_err(|error| error.to_string())?;
        let shown = serde_json::to_value(shown(&session(), &draft.resource).unwrap()).unwrap();
        let token = draft.token.map(|token| token.expose().to_vec());
        Ok((shown, serde_json::to_value(&draft.resource).unwrap(), token))
    }

    #[test]
    fn a_repository_keeps_its_token_apart() {
        let (shown, kept, token) = through(&json!({"type": "github_repository", "url": "https://github.com/o/r.git",
            "authorization_token": "ghp-canary", "checkout": {"type": "branch", "name": "main"}}))
        .unwrap();
        assert_eq!(
            shown,
            json!({"type": "github_repository", "id": "sesrsc_Ab1", "url": "https://github.com/o/r.git",
            "checkout": {"type": "branch", "name": "main"}, "mount_path": "/workspace/r",
            "created_at": "2026-06-01T00:00:00Z", "updated_at": "2026-06-01T00:00:00Z"})
        );
        assert_eq!(token.as_deref(), Some(&b"ghp-canary"[..]));
        assert_eq!(kept["githubRepository"]["tokenRef"], json!({"name": "secret-1", "key": "token"}));
        assert_eq!(kept["name"], "sesrsc-ab1");
        assert!(!kept.to_string().contains("canary"));
    }

    #[test]
    fn a_file_has_its_place() {
        let (shown, _, token) = through(&json!({"type": "file", "file_id": "file_1"})).unwrap();
        assert_eq!(
            (&shown["file_id"], &shown["mount_path"]),
            (&json!("file_1"), &json!("/mnt/session/uploads/file_1"))
        );
        assert_eq!(token, None);
    }

    #[rstest]
    #[case(json!({"type": "memory_store", "memory_store_id": "m"}), "memory_store")]
    #[case(json!({"type": "file"}), "file_id")]
    #[case(json!({"type": "file", "file_id": "a/b"}), "file_id")]
    #[case(json!({"type": "file", "file_id": "f", "authorization_token": "canary"}), "authorization_token")]
    #[case(json!({"type": "file", "file_id": "f", "mount_path": "/a/../etc"}), "mount_path")]
    #[case(json!({"type": "file", "file_id": "f", "mount_path": "a"}), "mount_path")]
    #[case(json!({"type": "github_repository"}), "url")]
    #[case(json!({"type": "github_repository", "url": "http://github.com/o/r"}), "url")]
    #[case(json!({"type": "github_repository", "url": "https://canary@github.com/o/r"}), "url")]
    #[case(json!({"type": "github_repository", "url": "https://g/o/r", "checkout": {"type": "commit", "sha": "main"}}), "checkout.sha")]
    #[case(json!({"type": "github_repository", "url": "https://g/o/r", "checkout": {"type": "branch", "name": "--x"}}), "checkout.name")]
    fn what_is_wrong_is_named(#[case] written: Value, #[case] field: &str) {
        let error = through(&written).unwrap_err();
        assert!(error.contains(field) && !error.contains("canary"), "{error}");
    }
}
