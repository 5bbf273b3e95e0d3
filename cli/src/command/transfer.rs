//! `longhand export`, `verify` and `import`: a session as a file that proves itself.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use futures::{Stream, StreamExt as _};
use longhand_protocol::export::{LONGEST_LINE, Reader, Verified};
use tokio::fs::File;
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio_util::io::ReaderStream;

use crate::args::Target;
use crate::cluster::Cluster;
use crate::error::{Error, Result};
use crate::service::Service;
use crate::{output, session};

/// Writes the file as it comes, and proves it on the way. A file has its name when it is whole, and not before: a
/// broken export takes no older one away.
pub(super) async fn export(cluster: &Cluster, target: &Target, name: &str, to: Option<PathBuf>) -> Result<ExitCode> {
    let session = session::find(cluster, name).await?;
    let mut service = Service::connect(cluster, target).await?;
    let client = service.client().await?;
    let parts = client.export_session(&session).await.map_err(|error| service.explain(error))?;
    let parts = parts.map(|part| part.map_err(|error| service.explain(error)));
    let verified = match to.filter(|path| !is_standard(path)) {
        Some(path) => save(&path, parts).await?,
        None => {
            let path = Path::new("-");
            let failed = |source| Error::Write { path: path.to_owned(), source };
            copy(path, parts, &mut standard(std::io::stdout()).map_err(failed)?).await?
        }
    };
    eprintln!("{}", summary(&verified));
    Ok(ExitCode::SUCCESS)
}

/// Writes an export to a file.
async fn save<P: AsRef<[u8]>>(path: &Path, parts: impl Stream<Item = Result<P>> + Unpin) -> Result<Verified> {
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".part");
    let unfinished = PathBuf::from(unfinished);
    let failed = |source| Error::Write { path: path.to_owned(), source };
    let mut out = File::create(&unfinished).await.map_err(failed)?;
    let saved = async {
        let verified = copy(path, parts, &mut out).await?;
        out.sync_all().await.map_err(failed)?;
        tokio::fs::rename(&unfinished, path).await.map_err(failed)?;
        Ok(verified)
    };
    let saved = saved.await;
    if saved.is_err() {
        // The failure is what counts; what is left over does not have the file's name.
        let _ = tokio::fs::remove_file(&unfinished).await;
    }
    saved
}

/// Writes an export as it comes, of which at most a line is held.
async fn copy<P: AsRef<[u8]>>(
    path: &Path,
    mut parts: impl Stream<Item = Result<P>> + Unpin,
    out: &mut (impl AsyncWrite + Unpin),
) -> Result<Verified> {
    let failed = |source| Error::Write { path: path.to_owned(), source };
    let broken = |broken| Error::BrokenExport { path: path.to_owned(), broken };
    let (mut reader, mut line) = (Reader::default(), Vec::new());
    while let Some(part) = parts.next().await {
        let part = part?;
        out.write_all(part.as_ref()).await.map_err(failed)?;
        for piece in part.as_ref().split_inclusive(|byte| *byte == b'\n') {
            line.extend_from_slice(piece);
            if line.ends_with(b"\n") || line.len() > LONGEST_LINE {
                reader.line(&line).map_err(broken)?;
                line.clear();
            }
        }
    }
    out.flush().await.map_err(failed)?;
    reader.finish().map_err(broken)
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
pub(super) fn standard(stream: impl AsFd) -> std::io::Result<File> {
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

    use futures::{Stream, StreamExt as _, stream};
    use longhand_protocol::export::{FORMAT, Header, LONGEST_LINE, VERSION, Writer, sha256_hex};
    use rstest::rstest;
    use serde_json::json;

    use super::{Error, Result, copy, prove, save, summary};

    const EVENTS: u64 = 3;

    fn file() -> Vec<u8> {
        let (mut records, mut hash) = (Vec::new(), String::new());
        for seq in 1..=EVENTS {
            let record = json!({"seq": seq, "epoch": 0, "prev_hash": hash, "event": {"text": format!("no. {seq}")}});
            let record = record.to_string().into_bytes();
            hash = sha256_hex(&record);
            records.push(record);
        }
        let header = Header {
            format: FORMAT.to_owned(),
            version: VERSION,
            session: json!({"id": "sesn_1"}),
            epoch: 0,
            head: EVENTS,
            hash,
            archived_at: None,
            spec: None,
        };
        let mut writer = Writer::default();
        let mut file = writer.header(header).unwrap();
        for (seq, record) in (1..).zip(records) {
            file.extend(writer.event(seq, record, &[]).unwrap());
        }
        file.extend(writer.end().unwrap());
        file
    }

    fn replaced(from: &str, to: &str) -> Vec<u8> {
        let text = String::from_utf8(file()).unwrap();
        assert!(text.contains(from), "{text}");
        text.replacen(from, to, 1).into_bytes()
    }

    fn lines(order: &[usize]) -> Vec<u8> {
        let file = file();
        let lines: Vec<&[u8]> = file.split_inclusive(|byte| *byte == b'\n').collect();
        order.iter().map(|line| lines[*line]).collect::<Vec<_>>().concat()
    }

    #[tokio::test]
    async fn a_whole_file_is_proved() {
        let verified = prove(Path::new("a"), &file()[..]).await.unwrap();
        assert_eq!(verified.events, EVENTS);
        assert!(summary(&verified).contains("sesn_1: 3 events"));
    }

    #[rstest]
    #[case::empty(vec![], "line 1: the file is empty")]
    #[case::another(b"{}\n".to_vec(), "line 1: it is not the header")]
    #[case::changed(replaced("no. 2", "no. 4"), "line 4: event 2 is not what event 3 was appended to")]
    #[case::cut(file()[..file().len() - 40].to_vec(), "line 5: the file ends after event 3")]
    #[case::cut_in_an_event(lines(&[0, 1]), "line 3: the file ends after event 1")]
    #[case::removed(lines(&[0, 1, 3, 4]), "line 3: event 2 is missing: event 3 stands in its place")]
    #[case::reordered(lines(&[0, 2, 1, 3, 4]), "line 2: event 1 is missing")]
    #[case::twice(lines(&[0, 1, 2, 3, 4, 4]), "line 6: it follows the last line")]
    #[case::garbage(replaced("{\"event\"", "{\"evnt\""), "line 2: it cannot be read")]
    #[case::header(replaced("sesn_1", "sesn_2"), "line 5: the file was changed")]
    #[tokio::test]
    async fn what_is_wrong_is_said_with_its_line(#[case] file: Vec<u8>, #[case] reason: &str) {
        let error = prove(Path::new("some/file"), &file[..]).await.unwrap_err().to_string();
        assert!(error.starts_with("some/file is not a whole export: "), "{error}");
        assert!(error.contains(reason), "{error}");
    }

    fn parts(file: &[u8], size: usize) -> impl Stream<Item = Result<Vec<u8>>> + Unpin {
        stream::iter(file.chunks(size).map(|part| Ok(part.to_vec())).collect::<Vec<_>>())
    }

    #[rstest]
    #[case(1)]
    #[case(37)]
    #[case(1_000_000)]
    #[tokio::test]
    async fn an_export_is_saved_as_it_comes(#[case] size: usize) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.ndjson");
        assert_eq!(save(&path, parts(&file(), size)).await.unwrap().events, EVENTS);
        assert_eq!(std::fs::read(&path).unwrap(), file());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn a_broken_export_leaves_the_file_that_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.ndjson");
        std::fs::write(&path, "older").unwrap();
        let whole = file();
        let cut = parts(&whole[..whole.len() - 40], 100);
        let error = save(&path, cut).await.unwrap_err();
        assert!(matches!(error, Error::BrokenExport { .. }), "{error}");
        let gone = parts(&whole[..200], 100)
            .chain(stream::iter([Err(Error::Output(std::io::Error::other("the service went away")))]));
        let error = save(&path, gone).await.unwrap_err().to_string();
        assert!(error.contains("went away"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"older");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    /// More than one line is never held, whatever comes.
    #[tokio::test]
    async fn a_line_without_an_end_is_refused() {
        let header = lines(&[0]);
        let endless = stream::iter([Ok(header)]).chain(stream::repeat_with(|| Ok(vec![b'x'; 1024 * 1024])));
        let error = copy(Path::new("a"), Box::pin(endless), &mut tokio::io::sink()).await.unwrap_err().to_string();
        assert!(error.contains(&format!("line 2: it cannot be read: it is longer than {LONGEST_LINE}")), "{error}");
    }
}
