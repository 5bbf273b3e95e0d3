//! Repositories, files and archives that a workspace is given before a tool runs in it.
//!
//! Each is made beside the place where it shall be, on the same volume, and moved there in one step; then it is marked as
//! given. So a workspace that is kept is given nothing twice, and one that was lost in the middle is begun again.

use std::fs;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::FileType;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::sync::MutexGuard;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::place::{Missing, Place};
use super::transfer::TransferError;
use super::{ToolError, Toolbox, fail, transfer};
use crate::provision::{Content, Failed, ProvisionRequest, Provisioned, Resource, Source};

/// What belongs to Longhand in a workspace.
const OWN: &str = ".longhand";
const GIVEN: &str = "provisioned";
const MAX_REASON_CHARS: usize = 400;
/// The largest archive that is fetched.
const MAX_ARCHIVE: &str = "4294967296";
/// Nobody else says how to log in, and nothing but HTTP is spoken.
const OF_GIT: [(&str, &str); 2] = [("GIT_TERMINAL_PROMPT", "0"), ("GIT_ALLOW_PROTOCOL", "http:https")];

/// What every file may be that was not made in the workspace.
const STORED_MODE: u32 = 0o644;

type Result<T> = std::result::Result<T, ToolError>;
type Stored = std::result::Result<bool, TransferError>;

/// What became of a resource.
enum Put {
    Made,
    /// It has been put in place before, or something else is there.
    Before,
    /// Its content is to be sent.
    Wanted,
}

impl Toolbox {
    /// Puts in place what is not there yet, one after the other, until one fails.
    pub(crate) async fn provision(&self, request: &ProvisionRequest, cancel: &CancellationToken) -> Provisioned {
        let limit = Duration::from_secs(request.deadline_seconds);
        let until = Instant::now() + limit;
        let mut provisioned = Provisioned::default();
        let Ok(_turn) = timeout_at(until, self.provisioning.lock()).await else {
            let name = request.resources.first().map(|resource| resource.name.clone()).unwrap_or_default();
            let reason = format!("others were being put in place for {} s", limit.as_secs());
            return Provisioned { failed: Some(Failed { name, reason }), ..provisioned };
        };
        // What is inside of another comes after it.
        let mut resources: Vec<&Resource> = request.resources.iter().collect();
        resources.sort_by(|one, other| one.path.cmp(&other.path));
        for resource in resources {
            match self.put(resource, until, cancel).await {
                Ok(Put::Made) => provisioned.made.push(resource.name.clone()),
                Ok(Put::Wanted) => provisioned.wanted.push(resource.name.clone()),
                Ok(Put::Before) => {}
                Err(error) => {
                    let reason = last_of(&error.0);
                    tracing::warn!(resource = resource.name, reason, "a resource could not be put in place");
                    provisioned.failed = Some(Failed { name: resource.name.clone(), reason });
                    break;
                }
            }
        }
        provisioned
    }

    /// Puts a stored file in place, whose content `from` is, unless it has been before; whether it was put there now. Blocking;
    /// [`Toolbox::provisioning`] has to be held.
    pub(crate) fn put_stored(workspace: Arc<Path>, content: &Content, from: &mut impl Read) -> Stored {
        let resource = content.resource();
        let Some(spot) = Spot::find(workspace, &resource)? else { return Ok(false) };
        let mut checked = Checked { from, left: content.bytes, sha256: &content.sha256, hash: Sha256::new() };
        transfer::store(&spot.workspace, &spot.path, Some(STORED_MODE), &mut checked)?;
        spot.mark()?;
        Ok(true)
    }

    /// One after the other: two that fill a workspace would find each other's halves.
    pub(crate) async fn provisioning(&self) -> MutexGuard<'_, ()> {
        self.provisioning.lock().await
    }

    async fn put(&self, resource: &Resource, until: Instant, cancel: &CancellationToken) -> Result<Put> {
        let (workspace, wanted) = (self.workspace(), resource.clone());
        let Some(spot) = on_disk(move || Spot::find(workspace, &wanted)).await? else { return Ok(Put::Before) };
        match resource.source.clone() {
            Source::File { content, mode } => return on_disk(move || spot.fill(&content, mode)).await,
            Source::Stored { .. } => return Ok(Put::Wanted),
            Source::Repository { .. } | Source::Archive { .. } => {}
        }
        let (spot, staging) = on_disk(move || spot.stage().map(|staging| (spot, staging))).await?;
        let made = match &resource.source {
            Source::Repository { url, reference, authorization } => {
                let of = (url.as_str(), reference.as_deref(), authorization.as_deref());
                self.clone_repository(of, staging.path(), until, cancel).await
            }
            Source::Archive { url, sha256 } => {
                self.fetch_archive((url, sha256.as_deref()), staging.path(), until, cancel).await
            }
            Source::File { .. } | Source::Stored { .. } => Ok(()),
        };
        // Either way a thread has something to move or to remove.
        on_disk(move || made.and_then(|()| spot.settle(&staging))).await
    }

    async fn clone_repository(
        &self,
        (url, reference, authorization): (&str, Option<&str>, Option<&str>),
        staging: &Path,
        until: Instant,
        cancel: &CancellationToken,
    ) -> Result<()> {
        check_url(url)?;
        if reference.is_some_and(|reference| reference.starts_with('-') || reference.contains(char::is_whitespace)) {
            return fail("its reference is not the name of a branch or tag, or the hash of a commit");
        }
        let commit = reference.filter(|reference| is_commit(reference));
        let content = content(staging);
        let git = |arguments: &[&str]| {
            let mut command = Command::new("git");
            command.args(arguments);
            command
        };
        let mut clone = git(&["clone", "--quiet"]);
        if let Some(authorization) = authorization {
            if url.contains('=') || authorization.contains(char::is_control) {
                return fail("its URL or token holds a character that git takes for another");
            }
            // Kept in the repository, so that it can be pulled and pushed.
            clone.arg("--config").arg(format!("http.{url}.extraHeader=Authorization: {authorization}"));
        }
        match (commit, reference) {
            (Some(_), _) => _ = clone.arg("--no-checkout"),
            (None, Some(reference)) => _ = clone.arg("--branch").arg(reference),
            (None, None) => {}
        }
        clone.arg("--").arg(url).arg(&content);
        self.bash.program(clone, &OF_GIT, until, cancel).await?;
        let Some(commit) = commit else { return Ok(()) };
        let inside = |arguments: &[&str]| {
            let mut command = git(&["-C"]);
            command.arg(&content).args(arguments);
            command
        };
        // It may be on no branch. Servers that do not give it by its hash have mostly given it before.
        let fetched = self.bash.program(inside(&["fetch", "--quiet", "origin", commit]), &OF_GIT, until, cancel).await;
        let checkout = inside(&["checkout", "--quiet", "--detach", commit]);
        let checked_out = self.bash.program(checkout, &OF_GIT, until, cancel).await;
        checked_out.map_err(|error| fetched.err().unwrap_or(error))
    }

    async fn fetch_archive(
        &self,
        (url, sha256): (&str, Option<&str>),
        staging: &Path,
        until: Instant,
        cancel: &CancellationToken,
    ) -> Result<()> {
        check_url(url)?;
        let archive = staging.join("archive");
        let mut fetch = Command::new("curl");
        fetch.args(["--fail", "--silent", "--show-error", "--location", "--proto", "=http,https"]);
        fetch.args(["--max-filesize", MAX_ARCHIVE, "--output"]).arg(&archive).arg("--").arg(url);
        self.bash.program(fetch, &[], until, cancel).await?;
        let (fetched, wanted) = (archive.clone(), sha256.map(str::to_ascii_lowercase));
        let content = content(staging);
        let to = content.clone();
        on_disk(move || {
            if let Some(wanted) = wanted {
                let found = digest(&fetched)?;
                if found != wanted {
                    return fail(format!("its SHA-256 is {found}, not {wanted}"));
                }
            }
            fs::create_dir(&to).map_err(|error| failed("make", &to, &error))
        })
        .await?;
        let mut unpack = Command::new("tar");
        unpack.arg("-xf").arg(&archive).arg("-C").arg(&content);
        self.bash.program(unpack, &[], until, cancel).await
    }
}

/// A place in the workspace where something shall be, and the mark that it has been.
struct Spot {
    workspace: Arc<Path>,
    place: Place,
    path: String,
    mark: PathBuf,
}

impl Spot {
    /// Nowhere, if the workspace has been given the resource before, or holds something else there.
    fn find(workspace: Arc<Path>, resource: &Resource) -> Result<Option<Self>> {
        let given = workspace.join(OWN).join(GIVEN);
        fs::create_dir_all(&given).map_err(|error| failed("make", &given, &error))?;
        let mark = given.join(resource.mark());
        if mark.exists() {
            return Ok(None);
        }
        let path = within(&workspace, &resource.path)?;
        let place = Place::find(&workspace, path, Missing::Make)?;
        let free = match place.stat() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => true,
            Err(error) => return Err(failed("look at", path, &error)),
            // A mount point of the image, or a folder that was made for this.
            Ok(stat) if FileType::from_raw_mode(stat.st_mode).is_dir() => {
                let entries = fs::read_dir(place.directory_path().join(place.name()));
                entries.map_err(|error| failed("look at", path, &error))?.next().is_none()
                    && !matches!(resource.source, Source::File { .. } | Source::Stored { .. })
            }
            Ok(_) => false,
        };
        let spot = Self { place, path: resource.path.clone(), mark, workspace };
        if free {
            return Ok(Some(spot));
        }
        tracing::info!(path = resource.path, "something is there already and is left alone");
        spot.mark()?;
        Ok(None)
    }

    fn fill(&self, content: &str, mode: u32) -> Result<Put> {
        let stored = transfer::store(&self.workspace, &self.path, Some(mode), &mut content.as_bytes());
        stored.map_err(|error| ToolError(error.to_string()))?;
        self.mark()
    }

    /// A new folder of our own on the same volume.
    fn stage(&self) -> Result<TempDir> {
        let own = self.workspace.join(OWN);
        tempfile::Builder::new().prefix("staging-").tempdir_in(&own).map_err(|error| failed("use", &own, &error))
    }

    fn settle(&self, staging: &TempDir) -> Result<Put> {
        let place = self.place.directory_path().join(self.place.name());
        fs::rename(content(staging.path()), place)
            .map_err(|error| failed("put something at", Path::new(&self.path), &error))?;
        self.mark()
    }

    fn mark(&self) -> Result<Put> {
        fs::write(&self.mark, &self.path).map_err(|error| failed("write", &self.mark, &error))?;
        Ok(Put::Made)
    }
}

/// A content that ends only if it is the one that was meant.
struct Checked<'a, R> {
    from: &'a mut R,
    left: u64,
    sha256: &'a str,
    hash: Sha256,
}

impl<R: Read> Read for Checked<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wrong = |reason: String| Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        let length = self.from.read(buffer)?;
        self.hash.update(&buffer[..length]);
        let Some(left) = self.left.checked_sub(length as u64) else {
            return wrong("there is too much of it".to_owned());
        };
        self.left = left;
        if length > 0 || buffer.is_empty() {
            return Ok(length);
        }
        if left > 0 {
            return wrong(format!("{left} bytes of it are missing"));
        }
        let found = hex(std::mem::take(&mut self.hash));
        if found == self.sha256 { Ok(0) } else { wrong(format!("its SHA-256 is {found}, not {}", self.sha256)) }
    }
}

/// Where in the staging folder the resource is made.
fn content(staging: &Path) -> PathBuf {
    staging.join("content")
}

fn failed(what: &str, path: &Path, error: &io::Error) -> ToolError {
    ToolError(format!("could not {what} {}: {error}", path.display()))
}

/// The path, which has to be one strictly inside of the workspace and may not be ours.
fn within<'a>(workspace: &Path, path: &'a str) -> Result<&'a Path> {
    let asked = Path::new(path);
    let plain = asked.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    let rest = asked.strip_prefix(workspace).ok().filter(|_| plain && !path.contains('\0'));
    match rest.and_then(|rest| rest.components().next()) {
        Some(first) if first.as_os_str() != OWN => Ok(asked),
        _ => fail(format!("{path} is not inside of the workspace, {}", workspace.display())),
    }
}

fn check_url(url: &str) -> Result<()> {
    let spoken = url.starts_with("https://") || url.starts_with("http://");
    if spoken && !url.contains(|char: char| char.is_whitespace() || char.is_control()) {
        return Ok(());
    }
    fail("its URL is not one that begins with https:// or http://")
}

fn is_commit(reference: &str) -> bool {
    matches!(reference.len(), 40 | 64) && reference.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn digest(file: &Path) -> Result<String> {
    let read = || {
        let mut hash = Sha256::new();
        io::copy(&mut fs::File::open(file)?, &mut hash)?;
        io::Result::Ok(hex(hash))
    };
    read().map_err(|error| failed("read", file, &error))
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What programs say last is why they failed.
fn last_of(reason: &str) -> String {
    let reason = reason.trim();
    let skip = reason.chars().count().saturating_sub(MAX_REASON_CHARS);
    reason.chars().skip(skip).collect()
}

async fn on_disk<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(_) => fail("it failed inside sandboxd"),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rstest::rstest;

    use super::{check_url, is_commit, last_of, within};

    #[rstest]
    #[case("/workspace/r", true)]
    #[case("/workspace/a/b", true)]
    #[case("/workspace", false)]
    #[case("/workspace/", false)]
    #[case("/workspace/../etc", false)]
    #[case("/workspace-2/r", false)]
    #[case("/etc/passwd", false)]
    #[case("r", false)]
    #[case("/workspace/.longhand/x", false)]
    fn a_resource_stays_in_the_workspace(#[case] path: &str, #[case] inside: bool) {
        assert_eq!(within(Path::new("/workspace"), path).is_ok(), inside);
    }

    #[test]
    fn only_http_is_spoken() {
        assert!(check_url("https://git.test/r").is_ok() && check_url("http://git.test/r").is_ok());
        for url in ["ssh://git.test/r", "/etc", "--upload-pack=x", "ext::sh -c x", "https://git.test/r s"] {
            assert!(check_url(url).is_err(), "{url}");
        }
    }

    #[test]
    fn only_a_full_hash_is_a_commit() {
        assert!(is_commit(&"0a".repeat(20)) && is_commit(&"0a".repeat(32)));
        assert!(!is_commit("main") && !is_commit(&"0a".repeat(19)) && !is_commit(&"xy".repeat(20)));
    }

    #[test]
    fn a_reason_is_bounded() {
        assert_eq!(last_of(&format!("{}fatal: no\n", "ü".repeat(1_000))).chars().count(), 400);
        assert!(last_of(&format!("{}fatal: no\n", "ü".repeat(1_000))).ends_with("fatal: no"));
    }
}
