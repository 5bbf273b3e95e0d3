//! `longhand cp`: files and folders into a sandbox, and out of it.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use futures::{StreamExt as _, TryStreamExt as _};
use longhand_protocol::client::WireClient;
use longhand_protocol::client::sandboxes::{FileDownload, Parts, SandboxOf};
use tokio::fs::File;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio_util::io::ReaderStream;

use crate::args::Target;
use crate::cluster::Cluster;
use crate::error::{Error, Result};
use crate::sandbox::blocking::{consumed, written};
use crate::sandbox::folder;
use crate::sandbox::place::Side;
use crate::service::Service;

/// The status of a path that is no file.
const NO_FILE: u16 = 422;

pub(super) async fn run(
    cluster: &Cluster,
    target: &Target,
    from: Side,
    to: Side,
    standalone: bool,
) -> Result<ExitCode> {
    match (from, to) {
        (Side::Local(local), Side::Remote { place, path }) => {
            // Before anything is asked for.
            let source = Source::open(&local).await?;
            let (sandbox, service, client) = place.reach(cluster, target, standalone).await?;
            let done = source.send(&client, &sandbox, &inside(&path, &local)).await;
            eprintln!("{}", done.map_err(|error| service.explain(error))?);
        }
        (Side::Remote { place, path }, Side::Local(local)) => {
            let (sandbox, service, client) = place.reach(cluster, target, standalone).await?;
            let fetched = fetch(&client, &sandbox, &path).await.map_err(|error| service.explain(error))?;
            let local = if is_standard(&local) { local } else { below(local, &path).await };
            match fetched {
                Fetched::File(file) => save(&service, &local, file).await?,
                Fetched::Folder(archive) => {
                    let below = local.clone();
                    let archive = archive.map_err(io::Error::other).boxed();
                    let unpacked = consumed(archive, move |from| folder::unpack(&below, from)).await;
                    let unpacked = unpacked.map_err(|source| Error::Write { path: local, source })?;
                    eprintln!("{} files", unpacked.files);
                    if unpacked.skipped > 0 {
                        eprintln!("{} links and special files were left out", unpacked.skipped);
                    }
                }
            }
        }
        (Side::Local(_), Side::Local(_)) => return Err(Error::Sides("neither side is in a sandbox")),
        (Side::Remote { .. }, Side::Remote { .. }) => return Err(Error::Sides("only one side can be in a sandbox")),
    }
    Ok(ExitCode::SUCCESS)
}

/// What is copied into a sandbox.
enum Source {
    File { file: File, mode: Option<u32> },
    Folder(PathBuf),
}

impl Source {
    async fn open(path: &Path) -> Result<Self> {
        let failed = |source| Error::Read { path: path.to_owned(), source };
        if is_standard(path) {
            return Ok(Self::File { file: super::transfer::standard(io::stdin()).map_err(failed)?, mode: None });
        }
        let file = File::open(path).await.map_err(failed)?;
        let metadata = file.metadata().await.map_err(failed)?;
        if metadata.is_dir() {
            return Ok(Self::Folder(path.to_owned()));
        }
        Ok(Self::File { file, mode: Some(metadata.permissions().mode() & 0o777) })
    }

    async fn send(
        self,
        client: &WireClient,
        sandbox: &SandboxOf,
        path: &str,
    ) -> Result<String, longhand_protocol::client::Error> {
        match self {
            Self::File { file, mode } => {
                let stored = client.upload_file(sandbox, path, mode, ReaderStream::new(file)).await?;
                Ok(format!("{} bytes", stored.bytes))
            }
            Self::Folder(local) => {
                let archive = written(move |to| folder::pack(&local, to));
                let unpacked = client.upload_folder(sandbox, path, archive).await?;
                Ok(format!("{} files, {} bytes", unpacked.files, unpacked.bytes))
            }
        }
    }
}

enum Fetched {
    File(FileDownload),
    Folder(Parts),
}

/// A file, or else the folder of that name.
async fn fetch(
    client: &WireClient,
    sandbox: &SandboxOf,
    path: &str,
) -> Result<Fetched, longhand_protocol::client::Error> {
    match client.download_file(sandbox, path).await {
        Ok(file) => Ok(Fetched::File(file)),
        Err(error) if error.status().is_some_and(|status| status.as_u16() == NO_FILE) => {
            match client.download_folder(sandbox, path).await {
                Ok(archive) => Ok(Fetched::Folder(archive)),
                // It is no folder either: the first answer says what it is.
                Err(_) => Err(error),
            }
        }
        Err(error) => Err(error),
    }
}

/// A file has its name when it is whole, and not before.
async fn save(service: &Service, path: &Path, file: FileDownload) -> Result<()> {
    let failed = |source| Error::Write { path: path.to_owned(), source };
    let FileDownload { mode, mut parts } = file;
    if is_standard(path) {
        let mut out = super::transfer::standard(io::stdout()).map_err(Error::Output)?;
        return match copy(service, &mut parts, &mut out).await? {
            Ok(_) => Ok(()),
            Err(error) => Err(Error::Output(error)),
        };
    }
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".part");
    let unfinished = PathBuf::from(unfinished);
    let saved = async {
        let mut out = File::create(&unfinished).await.map_err(failed)?;
        let bytes = copy(service, &mut parts, &mut out).await?.map_err(failed)?;
        if let Some(mode) = mode {
            let mode = std::fs::Permissions::from_mode(mode & 0o777);
            out.set_permissions(mode).await.map_err(failed)?;
        }
        out.sync_all().await.map_err(failed)?;
        tokio::fs::rename(&unfinished, path).await.map_err(failed)?;
        Ok(bytes)
    };
    let saved: Result<u64> = saved.await;
    if saved.is_err() {
        // The failure is what counts; what is left over does not have the file's name.
        let _ = tokio::fs::remove_file(&unfinished).await;
    }
    eprintln!("{} bytes", saved?);
    Ok(())
}

async fn copy(service: &Service, parts: &mut Parts, out: &mut (impl AsyncWrite + Unpin)) -> Result<io::Result<u64>> {
    let mut bytes = 0;
    while let Some(part) = parts.next().await {
        let part = part.map_err(|error| service.explain(error))?;
        if let Err(error) = out.write_all(&part).await {
            return Ok(Err(error));
        }
        bytes += part.len() as u64;
    }
    Ok(out.flush().await.map(|()| bytes))
}

fn is_standard(path: &Path) -> bool {
    path == Path::new("-")
}

/// A path that ends with a slash, or is the workspace, is a folder that the copy goes into.
fn inside(path: &str, local: &Path) -> String {
    let name = local.file_name().map(|name| name.to_string_lossy().into_owned());
    match name {
        Some(name) if !is_standard(local) && (path.ends_with('/') || path == ".") => {
            format!("{}/{name}", path.trim_end_matches('/'))
        }
        _ => path.to_owned(),
    }
}

/// The same for a folder of this machine.
async fn below(local: PathBuf, path: &str) -> PathBuf {
    let is_folder = tokio::fs::metadata(&local).await.is_ok_and(|metadata| metadata.is_dir());
    match Path::new(path).file_name() {
        Some(name) if is_folder => local.join(name),
        _ => local,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rstest::rstest;

    use super::{below, inside};

    #[rstest]
    #[case("x", "a/b", "x")]
    #[case("x/", "a/b", "x/b")]
    #[case("/", "b", "/b")]
    #[case(".", "a/b/", "./b")]
    #[case("x/", "-", "x/")]
    #[case("x/", "..", "x/")]
    fn a_copy_goes_into_a_folder(#[case] path: &str, #[case] local: &str, #[case] expected: &str) {
        assert_eq!(inside(path, Path::new(local)), expected);
    }

    #[tokio::test]
    async fn so_it_does_on_this_machine() {
        let dir = tempfile::tempdir().unwrap();
        let here = || dir.path().to_path_buf();
        assert_eq!(below(here(), "a/b").await, dir.path().join("b"));
        assert_eq!(below(here(), "..").await, here());
        assert_eq!(below(here().join("new"), "a/b").await, dir.path().join("new"));
    }
}
