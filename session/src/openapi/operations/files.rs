//! Files that clients upload.

use longhand_protocol::wire::files::{FileDeleted, FileMetadata, FilePage};
use serde_json::json;

use super::{Answer, Operation, Parameter, Takes, json_of, limit, page, text};
use crate::api::wire::sandboxes::transfer::FILE;

pub(super) fn files() -> Vec<Operation> {
    let (all, one, content) = ("/files", "/files/{file}", "/files/{file}/content");
    let upload = Operation::new("post", all, "uploadFile", "Upload a file", json_of::<FileMetadata>());
    vec![
        Operation::new("get", all, "listFiles", "List files, the newest first", json_of::<FilePage>()).query([
            page(),
            Parameter::new(
                "ids[]",
                "Only these",
                json!({ "type": "array", "maxItems": 100, "items": { "type": "string" } }),
            ),
            text("after_id", "Only files that come after this one"),
            text("before_id", "Only files that come before this one"),
            limit(1_000),
            text("scope_id", "Only files that this session has made, of which there are none"),
        ]),
        Operation { takes: Takes::File, ..upload },
        Operation::new("get", one, "getUploadedFile", "Show a file", json_of::<FileMetadata>()),
        Operation::new("delete", one, "deleteUploadedFile", "Delete a file", json_of::<FileDeleted>()),
        Operation::new("get", content, "downloadUploadedFile", "Read what is in a file", Answer::Text(FILE)),
    ]
}
