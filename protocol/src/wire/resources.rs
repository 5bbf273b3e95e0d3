//! Repositories and files of a session. A token that was written is never shown.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema::DateTime;
use crate::secret::SecretValue;

/// A repository or a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum SessionResource {
    /// A repository.
    GithubRepository {
        /// Its identifier, `sesrsc_...`.
        id: String,
        /// Its URL.
        url: String,
        /// What is checked out; the repository's own branch if null.
        checkout: Option<Checkout>,
        /// Where it shall be.
        mount_path: String,
        /// When it was added.
        #[schemars(with = "DateTime")]
        created_at: Timestamp,
        /// When it was last changed.
        #[schemars(with = "DateTime")]
        updated_at: Timestamp,
    },
    /// A file.
    File {
        /// Its identifier, `sesrsc_...`.
        id: String,
        /// The file.
        file_id: String,
        /// Where it shall be.
        mount_path: String,
        /// When it was added.
        #[schemars(with = "DateTime")]
        created_at: Timestamp,
        /// When it was last changed.
        #[schemars(with = "DateTime")]
        updated_at: Timestamp,
    },
}

/// What is checked out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Checkout {
    /// A branch.
    Branch {
        /// Its name.
        name: String,
    },
    /// A commit.
    Commit {
        /// Its hash.
        sha: String,
    },
}

/// The kinds of resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ResourceKind {
    /// See [`SessionResource::GithubRepository`].
    GithubRepository,
    /// See [`SessionResource::File`].
    File,
    /// Not served.
    MemoryStore,
}

/// What a client writes of a resource: the fields of every kind, in one type so that no copy of a token is kept.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WrittenResource {
    /// The kind.
    #[serde(rename = "type")]
    pub kind: ResourceKind,
    /// Where it shall be.
    #[serde(default)]
    pub mount_path: Option<String>,
    /// `file`: the file.
    #[serde(default)]
    pub file_id: Option<String>,
    /// `github_repository`: its URL.
    #[serde(default)]
    pub url: Option<String>,
    /// `github_repository`: what is checked out.
    #[serde(default)]
    pub checkout: Option<Checkout>,
    /// `github_repository`: the token that it is fetched with.
    #[serde(default)]
    pub authorization_token: Option<SecretValue>,
    /// `memory_store`: refused.
    #[serde(default)]
    pub memory_store_id: Option<String>,
    /// `memory_store`: refused.
    #[serde(default)]
    pub access: Option<String>,
    /// `memory_store`: refused.
    #[serde(default)]
    pub instructions: Option<String>,
}

/// `POST /v1/sessions/{id}/resources/{id}`.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateResource {
    /// Another token for a repository.
    pub authorization_token: SecretValue,
}
