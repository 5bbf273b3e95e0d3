//! What a workspace shall hold before a tool runs in it, as `sandboxd` is told.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Body of `POST /v1/provision`. It may be repeated at will: what a workspace has been given once it is not given again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProvisionRequest {
    /// How long all of it may take, in seconds.
    pub deadline_seconds: u64,
    /// What it shall hold.
    pub resources: Vec<Resource>,
}

/// A repository, a file or an archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resource {
    /// What it is called when it cannot be had.
    pub name: String,
    /// Where it shall be: a full path in the workspace. What is there already is left alone.
    pub path: String,
    /// Where it comes from.
    pub source: Source,
}

/// Where a resource comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Source {
    /// A git repository over HTTP, with its history.
    Repository {
        /// Its URL.
        url: String,
        /// A branch, a tag or the full hash of a commit; the repository's own branch if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reference: Option<String>,
        /// The header `Authorization` of requests to it, also of later ones. It is no secret: whatever runs here can read it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        authorization: Option<String>,
    },
    /// A file.
    File {
        /// All that is in it.
        content: String,
        /// Its mode, such as 0o644.
        mode: u32,
    },
    /// A file that whoever asks has: if it is wanted, it comes by [`Content`].
    Stored {
        /// What it is called there. Another one is another resource.
        id: String,
    },
    /// A tar archive over HTTP, which is unpacked.
    Archive {
        /// Its URL.
        url: String,
        /// What it has to be, in hexadecimal digits.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sha256: Option<String>,
    },
}

impl Resource {
    /// What tells it from others in a workspace. Another `authorization` does not make it another one.
    #[must_use]
    pub fn mark(&self) -> String {
        let of_file;
        let (kind, from, which) = match &self.source {
            Source::Repository { url, reference, .. } => ("repository", url, reference.as_deref().unwrap_or_default()),
            Source::File { content, mode } => {
                of_file = format!("{mode:o}");
                ("file", content, of_file.as_str())
            }
            Source::Stored { id } => ("stored", id, ""),
            Source::Archive { url, sha256 } => ("archive", url, sha256.as_deref().unwrap_or_default()),
        };
        let mut hash = Sha256::new();
        for part in [&self.name, &self.path, kind, from, which] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part.as_bytes());
        }
        hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Answer of `POST /v1/provision`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provisioned {
    /// Names of what was put in place now.
    pub made: Vec<String>,
    /// Names of stored files that are not there yet, and of which the content is to be sent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wanted: Vec<String>,
    /// What could not be, and was the last that was tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<Failed>,
}

/// Query of `PUT /v1/provision`, whose body is the content of a stored file. It is put in place whole or not at all, unless it
/// has been before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// See [`Resource::name`].
    pub name: String,
    /// See [`Resource::path`].
    pub path: String,
    /// See [`Source::Stored`].
    pub id: String,
    /// How many bytes it has.
    pub bytes: u64,
    /// What it has to be, in hexadecimal digits.
    pub sha256: String,
}

impl Content {
    /// What it is the content of.
    #[must_use]
    pub fn resource(&self) -> Resource {
        let source = Source::Stored { id: self.id.clone() };
        Resource { name: self.name.clone(), path: self.path.clone(), source }
    }
}

/// What could not be put in place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// The resource.
    pub name: String,
    /// Why not, for a person.
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::{Resource, Source};

    fn repository(reference: Option<&str>, authorization: Option<&str>) -> Resource {
        let owned = |text: Option<&str>| text.map(ToOwned::to_owned);
        let source = Source::Repository {
            url: "https://git.test/r".to_owned(),
            reference: owned(reference),
            authorization: owned(authorization),
        };
        Resource { name: "r".to_owned(), path: "/workspace/r".to_owned(), source }
    }

    #[test]
    fn another_token_makes_no_other_resource() {
        let mark = repository(None, None).mark();
        assert_eq!(mark, repository(None, Some("Basic x")).mark());
        assert_ne!(mark, repository(Some("main"), None).mark());
        assert_ne!(mark, Resource { path: "/workspace/s".to_owned(), ..repository(None, None) }.mark());
    }
}
