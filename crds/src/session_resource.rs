//! What a session's sandboxes shall find in their file system.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::vault::SecretRef;

/// A repository or a file of a session, which its workspaces are given.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("has(self.githubRepository) != has(self.file)").message("a resource is either a githubRepository or a file"),
)]
#[serde(rename_all = "camelCase")]
pub struct SessionResource {
    /// Its name in the session.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"))]
    pub name: String,
    /// Its identifier in the wire API; one that is derived from the session's UID and its name if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 8, max = 64), regex(pattern = "^sesrsc_[A-Za-z0-9]+$"))]
    pub id: Option<String>,
    /// Where it shall be, in full: in the workspace.
    #[schemars(length(min = 2, max = 1_024), regex(pattern = "^/"))]
    pub mount_path: String,
    /// A repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub github_repository: Option<GithubRepository>,
    /// A file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<FileResource>,
    /// When it was added; when the session was made, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<Time>,
    /// When it was last changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updated_at: Option<Time>,
}

/// A repository.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("!has(self.branch) || !has(self.commit)").message("a checkout is a branch or a commit"),
)]
#[serde(rename_all = "camelCase")]
pub struct GithubRepository {
    /// Its URL.
    #[schemars(length(min = 1, max = 2_048), regex(pattern = "^https://"))]
    pub url: String,
    /// The branch to check out; the repository's own if neither this nor a commit is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub branch: Option<String>,
    /// The commit to check out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub commit: Option<String>,
    /// The token that it is fetched with. Only the credential proxy sees it; who names it must be allowed to get the Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_ref: Option<SecretRef>,
}

/// A file that was uploaded to the session's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FileResource {
    /// Its identifier.
    #[schemars(length(min = 1, max = 253))]
    #[serde(rename = "fileID")]
    pub file_id: String,
}
