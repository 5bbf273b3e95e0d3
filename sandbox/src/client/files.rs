//! Files and folders of a sandbox, as streams of any length.

use std::error::Error as StdError;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, header};
use http_body_util::{BodyExt as _, Collected, Limited};
use hyper::body::{Body, Incoming};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::error::{Failure, error_body, retry_after};
use super::{MAX_RESPONSE_BYTES, SandboxClient, SandboxError, Target};
use crate::provision::{Content, Provisioned};
use crate::token::Scope;
use crate::wire::{MODE_HEADER, Stored, Unpacked, WORKSPACE_BYTES_HEADER};

/// How long a sandbox may send nothing of a file.
const STALL: Duration = Duration::from_secs(60);

/// A file that is on its way.
#[derive(Debug)]
pub struct Download {
    /// Its size in bytes.
    pub size: u64,
    /// Its mode, such as 0o644.
    pub mode: u32,
    /// What is in it.
    pub content: Reading,
}

/// A whole workspace that is on its way.
#[derive(Debug)]
pub struct Workspace {
    /// What a file system needs for it at the most, in bytes.
    pub bytes: u64,
    /// A tar archive of it.
    pub content: Reading,
}

/// The rest of a file or an archive.
#[derive(Debug)]
pub struct Reading {
    body: Incoming,
}

impl Reading {
    /// The next bytes; none at the end. An error if it breaks off before its end.
    ///
    /// # Errors
    /// [`SandboxError::Lost`] if the connection broke, [`SandboxError::Deadline`] if nothing came for a minute.
    pub async fn next(&mut self) -> Result<Option<Bytes>, SandboxError> {
        loop {
            let frame = timeout(STALL, self.body.frame()).await;
            let Some(frame) = frame.map_err(|_| SandboxError::Deadline { waited: STALL })? else { return Ok(None) };
            let frame = frame.map_err(|error| SandboxError::Lost { reason: error.to_string() })?;
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
    }

    /// The body itself, to be handed on.
    pub fn into_body(self) -> Incoming {
        self.body
    }
}

/// What a refusal means for a transfer: nothing was changed.
fn failed(failure: Failure) -> SandboxError {
    match failure {
        Failure::Broken(reason) => SandboxError::Lost { reason },
        other => other.into_error(None),
    }
}

impl SandboxClient {
    /// Reads a file. Relative paths start at the workspace.
    ///
    /// # Errors
    /// See [`SandboxError`]; a file that is not there is [`super::NotStarted::Rejected`] with status 404.
    pub async fn download(&self, target: &Target, path: &str) -> Result<Download, SandboxError> {
        let request = Request::builder().method(Method::GET).uri(uri("/v1/files", path, None));
        let response = self.streamed(target, request, http_body_util::Empty::<Bytes>::new()).await?;
        let (size, mode) = (number(&response, header::CONTENT_LENGTH.as_str(), 10), number(&response, MODE_HEADER, 8));
        let (Some(size), Some(Ok(mode))) = (size, mode.map(u32::try_from)) else {
            let reason = "the answer has no size or mode".to_owned();
            return Err(SandboxError::Protocol { status: response.status(), reason });
        };
        Ok(Download { size, mode, content: Reading { body: response.into_body() } })
    }

    /// Writes a file in one step, and makes the directories on the way. Without a mode, an old file's mode stays.
    ///
    /// # Errors
    /// See [`SandboxError`]. After an error there is the old file or, if only the answer was lost, the new one.
    pub async fn upload<B>(
        &self,
        target: &Target,
        path: &str,
        mode: Option<u32>,
        content: B,
    ) -> Result<Stored, SandboxError>
    where
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
    {
        let request = Request::builder().method(Method::PUT).uri(uri("/v1/files", path, mode));
        decoded(self.streamed(target, request, content).await?).await
    }

    /// Sends the content of a stored file that a workspace wants, as [`SandboxClient::provision`] has said.
    ///
    /// # Errors
    /// See [`SandboxError`]. After an error the file is not there or, if only the answer was lost, all of it is.
    pub async fn provide<B>(&self, target: &Target, file: &Content, content: B) -> Result<Provisioned, SandboxError>
    where
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
    {
        let Content { name, path, id, bytes, sha256 } = file;
        let [name, path, id] = [name, path, id].map(|value| escaped(value));
        let query = format!("name={name}&path={path}&id={id}&bytes={bytes}&sha256={sha256}");
        let request = Request::builder().method(Method::PUT).uri(format!("/v1/provision?{query}"));
        decoded(self.streamed(target, request, content).await?).await
    }

    /// Reads a folder as a tar archive, whose paths are relative to it.
    ///
    /// # Errors
    /// See [`SandboxClient::download`].
    pub async fn download_folder(&self, target: &Target, path: &str) -> Result<Reading, SandboxError> {
        let request = Request::builder().method(Method::GET).uri(uri("/v1/archive", path, None));
        let response = self.streamed(target, request, http_body_util::Empty::<Bytes>::new()).await?;
        Ok(Reading { body: response.into_body() })
    }

    /// Unpacks a tar archive into a folder, which is made if it is missing.
    ///
    /// # Errors
    /// See [`SandboxError`]. After an error, a part of the files may be in place, each of them whole.
    pub async fn upload_folder<B>(&self, target: &Target, path: &str, archive: B) -> Result<Unpacked, SandboxError>
    where
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
    {
        let request = Request::builder().method(Method::PUT).uri(uri("/v1/archive", path, None));
        decoded(self.streamed(target, request, archive).await?).await
    }

    /// Ends what still runs in a drained sandbox and reads all of its workspace, as often as is asked for.
    ///
    /// # Errors
    /// See [`SandboxError`]. [`super::NotStarted::Rejected`] has status 422 if there is something in it that cannot be sent, and 409 if the
    /// sandbox is not drained.
    pub async fn read_workspace(&self, target: &Target) -> Result<Workspace, SandboxError> {
        let request = Request::builder().method(Method::GET).uri("/v1/workspace");
        let response = self.streamed(target, request, http_body_util::Empty::<Bytes>::new()).await?;
        let Some(bytes) = number(&response, WORKSPACE_BYTES_HEADER, 10) else {
            let reason = "the answer has no size".to_owned();
            return Err(SandboxError::Protocol { status: response.status(), reason });
        };
        Ok(Workspace { bytes, content: Reading { body: response.into_body() } })
    }

    /// Replaces the workspace of a sandbox that has never been used by another one's. Once it has succeeded, doing it again succeeds
    /// at once and changes nothing; until then only one at a time is let do it.
    ///
    /// # Errors
    /// See [`SandboxError`]. After an error a part of it may be there, which the next attempt removes.
    pub async fn fill_workspace<B>(&self, target: &Target, archive: B) -> Result<Unpacked, SandboxError>
    where
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
    {
        let request = Request::builder().method(Method::PUT).uri("/v1/workspace");
        decoded(self.streamed(target, request, archive).await?).await
    }

    async fn streamed<B>(
        &self,
        target: &Target,
        request: http::request::Builder,
        body: B,
    ) -> Result<Response<Incoming>, SandboxError>
    where
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
    {
        let response = self.open(target, Scope::Tools, request, body).await.map_err(failed)?;
        if response.status().is_success() { Ok(response) } else { Err(failed(refusal(response).await)) }
    }
}

fn number(response: &Response<Incoming>, header: &str, radix: u32) -> Option<u64> {
    let value = response.headers().get(header)?.to_str().ok()?;
    u64::from_str_radix(value, radix).ok()
}

/// What a refused request says.
pub(super) async fn refusal(response: Response<Incoming>) -> Failure {
    let (parts, body) = response.into_parts();
    let body = timeout(STALL, Limited::new(body, MAX_RESPONSE_BYTES).collect()).await;
    let body = body.ok().and_then(Result::ok).map(Collected::to_bytes).unwrap_or_default();
    Failure::Refused { status: parts.status, retry_after: retry_after(&parts.headers), body: error_body(&body) }
}

async fn decoded<T: DeserializeOwned>(response: Response<Incoming>) -> Result<T, SandboxError> {
    let status = response.status();
    let body = timeout(STALL, Limited::new(response.into_body(), MAX_RESPONSE_BYTES).collect()).await;
    let body = body.map_err(|_| SandboxError::Deadline { waited: STALL })?;
    let body = body.map_err(|error| SandboxError::Lost { reason: error.to_string() })?.to_bytes();
    serde_json::from_slice(&body).map_err(|error| SandboxError::Protocol { status, reason: error.to_string() })
}

/// A path with a query whose values may hold anything.
pub(super) fn uri(path: &str, file: &str, mode: Option<u32>) -> String {
    let mode = mode.map(|mode| format!("&mode={mode:o}")).unwrap_or_default();
    format!("{path}?path={}{mode}", escaped(file))
}

pub(super) fn escaped(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => {
                escaped.push(char::from(byte));
            }
            other => escaped.push_str(&format!("%{other:02X}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::uri;

    #[test]
    fn any_path_fits_in_a_query() {
        assert_eq!(uri("/v1/files", "a b/ü&x=1?#", Some(0o644)), "/v1/files?path=a%20b/%C3%BC%26x%3D1%3F%23&mode=644");
        assert_eq!(uri("/v1/archive", ".", None), "/v1/archive?path=.");
    }
}
