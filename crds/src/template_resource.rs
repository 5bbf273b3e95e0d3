//! What the workspaces of a template's sandboxes hold from the start.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::patterns;

/// A repository, a file or an archive. A workspace is given it once; what is there already is left alone.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("[has(self.gitRepository), has(self.file), has(self.archive)].filter(given, given).size() == 1")
        .message("a resource is a gitRepository, a file or an archive"),
)]
#[serde(rename_all = "camelCase")]
pub struct TemplateResource {
    /// Its name in the template.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"))]
    pub name: String,
    /// Where it shall be, in full, below `workspace.mountPath`.
    #[schemars(length(min = 2, max = 512), regex(pattern = patterns::FOLDER))]
    pub mount_path: String,
    /// A git repository, with its history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub git_repository: Option<GitRepository>,
    /// A file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<InlineFile>,
    /// A tar archive, which is unpacked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive: Option<Archive>,
}

/// A git repository. It is fetched from within the sandbox, through `network`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GitRepository {
    /// Its URL.
    #[schemars(length(min = 8, max = 2_048), regex(pattern = "^https?://[^\\s@]+$"))]
    pub url: String,
    /// A branch, a tag or the full hash of a commit; the repository's own branch if absent.
    #[serde(default, rename = "ref", skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255), regex(pattern = "^[^-\\s]\\S*$"))]
    pub reference: Option<String>,
}

/// A file. Not for secrets: the model can read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InlineFile {
    /// All that is in it.
    #[schemars(length(max = 65_536))]
    pub content: String,
    /// Its mode.
    #[serde(default = "default_mode")]
    #[schemars(range(min = 0, max = 511))]
    pub mode: i32,
}

const fn default_mode() -> i32 {
    0o644
}

/// A tar archive, compressed or not. It is fetched from within the sandbox, through `network`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Archive {
    /// Its URL.
    #[schemars(length(min = 8, max = 2_048), regex(pattern = "^https?://[^\\s@]+$"))]
    pub url: String,
    /// Its SHA-256 in hexadecimal digits; another archive is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 64, max = 64), regex(pattern = "^[0-9a-fA-F]+$"))]
    pub sha256: Option<String>,
}
