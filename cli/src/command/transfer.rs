//! `longhand export`, `verify` and `import`: a session as a file that proves itself.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use futures::StreamExt as _;
use longhand_protocol::export::{LONGEST_LINE, Reader, Verified};
use tokio::fs::File;
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio_util::io::ReaderStream;

use crate::args::Target;
use crate::cluster::Cluster;
use crate::error::{Error, Result};
use crate::service::Service;
use crate::{output, session};

/// Writes the file as it comes, and proves it on the way: what was broken off does not look like an export.
pub(super) async fn export(cluster: &Cluster, target: &Target, name: &str, to: Option<PathBuf>) -> Result<ExitCode> {
    let session = session::find(cluster, name).await?;
    let mut service = Service::connect(cluster, target).await?;
    let client = service.client().await?;
    let mut parts = client.export_session(&session).await.map_err(|error| service.explain(error))?;
    let path = to.unwrap_or_else(|| PathBuf::from("-"));
    let failed = |source| Error::Write { path: path.clone(), source };
    let out = if is_standard(&path) { standard(std::io::stdout()) } else { File::create(&path).await };
    let mut out = out.map_err(failed)?;
    let (mut reader, mut line) = (Reader::default(), Vec::new());
    let broken = |broken| Error::BrokenExport { path: path.clone(), broken };
    while let Some(part) = parts.next().await {
        let part = part.map_err(|error| service.explain(error))?;
        out.write_all(&part).await.map_err(failed)?;
        for piece in part.split_inclusive(|byte| *byte == b'\n') {
            line.extend_from_slice(piece);
            if line.ends_with(b"\n") {
                reader.line(&line).map_err(broken)?;
                line.clear();
            }
        }
    }
    out.flush().await.map_err(failed)?;
    let verified = reader.finish().map_err(broken)?;
    eprintln!("{}", summary(&verified));
    Ok(ExitCode::SUCCESS)
}

/// Proves a file, with nothing but the file.
pub(super) async fn verify(path: &Path) -> Result<ExitCode> {
    let verified = prove(path, BufReader::new(open(path).await?)).await?;
    output::line(&summary(&verified))?;
    Ok(ExitCode::SUCCESS)
}

/// Makes the session of a file. A file is proved before anything is sent.
pub(super) async fn import(cluster: &Cluster, target: &Target, path: &Path) -> Result<ExitCode> {
    if !is_standard(path) {
        prove(path, BufReader::new(open(path).await?)).await?;
    }
    let mut service = Service::connect(cluster, target).await?;
    let client = service.client().await?;
    let file = ReaderStream::new(open(path).await?);
    let session = client.import_session(file).await.map_err(|error| service.explain(error))?;
    output::line(session.id.as_str())?;
    Ok(ExitCode::SUCCESS)
}

fn is_standard(path: &Path) -> bool {
    path == Path::new("-")
}

async fn open(path: &Path) -> Result<File> {
    let file = if is_standard(path) { standard(std::io::stdin()) } else { File::open(path).await };
    file.map_err(|source| Error::Read { path: path.to_owned(), source })
}

/// The program's own input or output, read and written as any file is.
fn standard(stream: impl AsFd) -> std::io::Result<File> {
    stream.as_fd().try_clone_to_owned().map(|file| File::from_std(file.into()))
}

async fn prove(path: &Path, mut file: impl AsyncBufRead + Unpin) -> Result<Verified> {
    let broken = |broken| Error::BrokenExport { path: path.to_owned(), broken };
    // One more than a line may have, so that a longer one is noticed and not held.
    let most = u64::try_from(LONGEST_LINE).unwrap_or(u64::MAX).saturating_add(1);
    let (mut reader, mut line) = (Reader::default(), Vec::new());
    loop {
        line.clear();
        let read = (&mut file).take(most).read_until(b'\n', &mut line).await;
        if read.map_err(|source| Error::Read { path: path.to_owned(), source })? == 0 {
            return reader.finish().map_err(broken);
        }
        reader.line(&line).map_err(broken)?;
    }
}

fn summary(Verified { header, events }: &Verified) -> String {
    let id = header.session.get("id").and_then(|id| id.as_str()).unwrap_or("a session");
    match *events {
        0 => format!("{id}: no events"),
        events => format!("{id}: {events} events are whole and in order; the last has the hash {}", header.hash),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use longhand_protocol::export::{FORMAT, Header, VERSION, Writer, sha256_hex};
    use serde_json::json;

    use super::prove;

    fn file() -> Vec<u8> {
        let record = br#"{"seq":1,"epoch":0,"prev_hash":"","event":{}}"#.to_vec();
        let header = Header {
            format: FORMAT.to_owned(),
            version: VERSION,
            session: json!({"id": "sesn_1"}),
            epoch: 0,
            head: 1,
            hash: sha256_hex(&record),
            archived_at: None,
            spec: None,
        };
        let mut writer = Writer::default();
        [writer.header(header).unwrap(), writer.event(1, record, &[]).unwrap(), writer.end().unwrap()].concat()
    }

    #[tokio::test]
    async fn a_file_is_proved_or_told_what_is_wrong_with_it() {
        let verified = prove(Path::new("a"), &file()[..]).await.unwrap();
        assert_eq!(verified.events, 1);
        assert!(super::summary(&verified).contains("sesn_1: 1 events"));
        let cut = file();
        let error = prove(Path::new("a"), &cut[..cut.len() - 40]).await.unwrap_err().to_string();
        assert!(error.contains('a') && error.contains("after event 1"), "{error}");
    }
}
