//! Ways into sandboxes: files and folders as streams, terminals and ports as connections.

use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use futures::stream::BoxStream;
use http::{HeaderMap, Method, StatusCode, header};
pub use reqwest::Upgraded;
use reqwest::{RequestBuilder, Response};
use serde::Deserialize;

use super::transport::{Call, api_error, decode, exchange, parts, transport_error};
use super::{Error, Result, WireClient};
use crate::id::SessionId;
use crate::wire::handoffs::{HandOff, SandboxHandoff};
use crate::wire::ports::PortLink;

/// A sandbox may have to be woken first.
const AWAKE: Duration = Duration::from_secs(240);
/// Each part of a download comes within this time after the one before.
const PATIENCE: Duration = Duration::from_secs(90);
/// An upload is as long as it is, but not longer than this.
const UPLOAD: Duration = Duration::from_secs(24 * 3_600);
const MODE: &str = "x-longhand-mode";

/// Which sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SandboxOf {
    /// One of a session, by its name in it.
    Session {
        /// The session.
        session: SessionId,
        /// The sandbox's name.
        sandbox: String,
    },
    /// Any, by the name of its object.
    Object {
        /// The `Sandbox`.
        name: String,
    },
}

/// The content of a file or an archive, in parts as they come.
pub type Parts = BoxStream<'static, Result<Bytes>>;

/// A file that is on its way.
pub struct FileDownload {
    /// Its mode, such as 0o644.
    pub mode: Option<u32>,
    /// What is in it. One that breaks off ends with an error.
    pub parts: Parts,
}

/// What became of a file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct FileStored {
    /// Its size.
    pub bytes: u64,
    /// Whether there was none before.
    pub created: bool,
}

/// What became of an archive.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct FolderUnpacked {
    /// Files and links.
    pub files: u64,
    /// The size of all files.
    pub bytes: u64,
    /// Entries that are no files, directories or links.
    pub skipped: u64,
}

/// What a terminal is opened with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terminal<'a> {
    /// What the shell runs; without it, the shell is interactive.
    pub command: Option<&'a str>,
    /// Whether there is a terminal, and not only pipes.
    pub tty: bool,
    /// Columns and rows.
    pub size: (u16, u16),
    /// What kind of terminal it is.
    pub term: &'a str,
    /// `Sec-WebSocket-Key`.
    pub key: &'a str,
}

/// A WebSocket whose handshake is over.
#[derive(Debug)]
pub struct OpenTerminal {
    /// `Sec-WebSocket-Accept`.
    pub accept: String,
    /// The connection.
    pub stream: Upgraded,
}

impl WireClient {
    fn in_sandbox<'a>(&'a self, of: &'a SandboxOf, rest: &[&'a str]) -> Vec<&'a str> {
        let own: &[&str] = match of {
            SandboxOf::Session { session, sandbox } => &[session.as_str(), "sandboxes", sandbox.as_str()],
            SandboxOf::Object { name } => &[name.as_str()],
        };
        let mut path = self.path(&[own, rest].concat());
        if matches!(of, SandboxOf::Object { .. })
            && let Some(kind) = path.iter_mut().find(|part| **part == "sessions")
        {
            *kind = "sandboxes";
        }
        path
    }

    /// Reads a file.
    ///
    /// # Errors
    /// 404 when there is no such sandbox or file, 422 when it is a folder.
    pub async fn download_file(&self, of: &SandboxOf, file: &str) -> Result<FileDownload> {
        let path = self.in_sandbox(of, &["files"]);
        let call = Call::get(&path).query("path", file);
        let response = self.answered(self.transport.request(&call).await?, &call).await?;
        let mode = response.headers().get(MODE).and_then(|mode| u32::from_str_radix(mode.to_str().ok()?, 8).ok());
        Ok(FileDownload { mode, parts: parts(response, call.name(), PATIENCE) })
    }

    /// Reads a folder as a tar archive, whose paths are relative to it.
    ///
    /// # Errors
    /// See [`WireClient::download_file`].
    pub async fn download_folder(&self, of: &SandboxOf, folder: &str) -> Result<Parts> {
        let path = self.in_sandbox(of, &["archive"]);
        let call = Call::get(&path).query("path", folder);
        let response = self.answered(self.transport.request(&call).await?, &call).await?;
        Ok(parts(response, call.name(), PATIENCE))
    }

    /// Writes a file in one step.
    ///
    /// # Errors
    /// 404 when there is no such sandbox, 507 when it is full.
    pub async fn upload_file(
        &self,
        of: &SandboxOf,
        file: &str,
        mode: Option<u32>,
        content: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    ) -> Result<FileStored> {
        let path = self.in_sandbox(of, &["files"]);
        let mode = mode.map(|mode| format!("{mode:o}"));
        let call = Call::new(Method::PUT, &path).query("path", file).maybe_query("mode", mode).deadline(UPLOAD);
        self.upload(call, content).await
    }

    /// Unpacks a tar archive into a folder, which is made if it is missing.
    ///
    /// # Errors
    /// See [`WireClient::upload_file`]. After an error, a part of the files may be in place, each of them whole.
    pub async fn upload_folder(
        &self,
        of: &SandboxOf,
        folder: &str,
        archive: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    ) -> Result<FolderUnpacked> {
        let path = self.in_sandbox(of, &["archive"]);
        self.upload(Call::new(Method::PUT, &path).query("path", folder).deadline(UPLOAD), archive).await
    }

    /// Opens a terminal.
    ///
    /// # Errors
    /// 404 when there is no such sandbox, 403 without rights on `sandboxes/exec`.
    pub async fn open_terminal(&self, of: &SandboxOf, terminal: &Terminal<'_>) -> Result<OpenTerminal> {
        let path = self.in_sandbox(of, &["terminal"]);
        let call = Call::get(&path)
            .maybe_query("command", terminal.command)
            .query("columns", terminal.size.0)
            .query("rows", terminal.size.1)
            .query("term", terminal.term)
            .query("tty", terminal.tty);
        let request = self.transport.request(&call).await?;
        let request = request
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_PROTOCOL, "v5.channel.k8s.io")
            .header(header::SEC_WEBSOCKET_KEY, terminal.key);
        let (headers, stream) = self.upgraded(request, "websocket", &call).await?;
        let accept = headers.get(header::SEC_WEBSOCKET_ACCEPT).and_then(|accept| accept.to_str().ok());
        Ok(OpenTerminal { accept: accept.unwrap_or_default().to_owned(), stream })
    }

    /// Opens a connection to a port of the sandbox's loopback.
    ///
    /// # Errors
    /// 404 when there is no such sandbox, 502 when nothing listens there, 403 without rights on `sandboxes/portforward`.
    pub async fn open_port(&self, of: &SandboxOf, port: u16) -> Result<Upgraded> {
        let number = port.to_string();
        let path = self.in_sandbox(of, &["ports", &number]);
        let call = Call::get(&path);
        let request = self.transport.request(&call).await?;
        self.upgraded(request, "tcp", &call).await.map(|(_, stream)| stream)
    }

    /// How a port is reached over HTTP.
    ///
    /// # Errors
    /// 404 when the service has no domain for ports, 403 without rights on `sandboxes/portforward`.
    pub async fn port_link(&self, of: &SandboxOf, port: u16) -> Result<PortLink> {
        let number = port.to_string();
        self.transport.send(Call::post(&self.in_sandbox(of, &["ports", &number]))).await
    }

    /// Hands a sandbox to another session.
    ///
    /// # Errors
    /// 404 when one of the sessions has no such sandbox, 403 without rights on both, 409 when it is in use, keeps no workspace, or the
    /// other session has one of that name.
    pub async fn hand_off(&self, session: &SessionId, sandbox: &str, request: &HandOff) -> Result<SandboxHandoff> {
        let path = self.path(&[session.as_str(), "sandboxes", sandbox, "handoff"]);
        self.transport.send_json(Call::post(&path), request).await
    }

    async fn upload<T: serde::de::DeserializeOwned>(
        &self,
        call: Call<'_>,
        content: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    ) -> Result<T> {
        let request = self.transport.request(&call).await?.body(reqwest::Body::wrap_stream(content));
        let body = exchange(request, &call).await?;
        decode(&body, &call)
    }

    async fn upgraded(&self, request: RequestBuilder, to: &str, call: &Call<'_>) -> Result<(HeaderMap, Upgraded)> {
        let request = request.header(header::CONNECTION, "upgrade").header(header::UPGRADE, to);
        let response = self.answered(request, call).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let reason = format!("{} in place of an upgrade", response.status());
            return Err(Error::Decode { call: call.name(), reason });
        }
        let headers = response.headers().clone();
        let stream = response.upgrade().await.map_err(|error| transport_error(error, call))?;
        Ok((headers, stream))
    }

    /// The answer to a request, whose body is still to come.
    async fn answered(&self, request: RequestBuilder, call: &Call<'_>) -> Result<Response> {
        let response = tokio::time::timeout(AWAKE, request.send()).await;
        let response = response.map_err(|_| Error::Timeout { call: call.name(), after: AWAKE })?;
        let response = response.map_err(|error| transport_error(error, call))?;
        let status = response.status();
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        Err(api_error(response, call).await)
    }
}
