//! Files that clients upload, as older SDKs have them (`files-api-2025-04-14`) and newer ones.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::FileId;
use crate::schema::DateTime;

/// A file, without its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FileMetadata {
    /// Its identifier.
    pub id: FileId,
    /// Always `file`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What its uploader calls it.
    pub filename: String,
    /// What its uploader says that it is.
    pub mime_type: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// When it was uploaded.
    #[schemars(with = "DateTime")]
    pub created_at: Timestamp,
    /// Whether its content is given to clients. It is: who may see a file may read it.
    pub downloadable: bool,
    /// When it is no longer there; never if null.
    #[schemars(with = "Option<DateTime>")]
    pub expires_at: Option<Timestamp>,
}

/// A page of files, the newest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FilePage {
    /// The files.
    pub data: Vec<FileMetadata>,
    /// Where the next page begins, for newer SDKs; null at the end.
    pub next_page: Option<String>,
    /// Whether there are more in the direction that was asked for.
    pub has_more: bool,
    /// The first one, which `before_id` takes.
    pub first_id: Option<FileId>,
    /// The last one, which `after_id` takes.
    pub last_id: Option<FileId>,
}

/// A file that is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FileDeleted {
    /// Its identifier.
    pub id: FileId,
    /// Always `file_deleted`.
    #[serde(rename = "type")]
    pub kind: String,
}
