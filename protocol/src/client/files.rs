//! Files, for sessions to find in their workspaces.

use std::time::Duration;

use http::{Method, header};

use super::transport::{Call, decode, exchange};
use super::{Result, WireClient};
use crate::id::FileId;
use crate::wire::files::{FileDeleted, FileMetadata};

/// All of it is in memory already.
const UPLOAD: Duration = Duration::from_secs(600);

impl WireClient {
    fn file_path<'a>(&'a self, rest: &[&'a str]) -> Vec<&'a str> {
        let mut path = self.path(rest);
        if let Some(kind) = path.iter_mut().find(|part| **part == "sessions") {
            *kind = "files";
        }
        path
    }

    /// Uploads a file that is called `filename`, of letters, digits, dashes and dots.
    ///
    /// # Errors
    /// 400 for another name or when the namespace is full, 413 when it is too large.
    pub async fn create_file(&self, filename: &str, content: &[u8]) -> Result<FileMetadata> {
        let boundary = crate::id::request_id();
        let head =
            format!("--{boundary}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{filename}\"\r\n\r\n");
        let body = [head.as_bytes(), content, format!("\r\n--{boundary}--\r\n").as_bytes()].concat();
        let path = self.file_path(&[]);
        let call = Call::post(&path).deadline(UPLOAD);
        let kind = format!("multipart/form-data; boundary={boundary}");
        let request = self.transport.request(&call).await?.header(header::CONTENT_TYPE, kind).body(body);
        decode(&exchange(request, &call).await?, &call)
    }

    /// Deletes a file. Workspaces that have it keep it.
    ///
    /// # Errors
    /// 404 when there is no such file.
    pub async fn delete_file(&self, file: &FileId) -> Result<FileDeleted> {
        self.transport.send(Call::new(Method::DELETE, &self.file_path(&[file.as_str()]))).await
    }
}
