//! The output of a command: its beginning and its end in memory, all of it in a file when it is too long to show.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};

use tokio::fs::File;
use tokio::io::AsyncWriteExt as _;

use super::scratch::Scratch;

const HEAD: usize = 50 * 1024;
const TAIL: usize = 50 * 1024;
const MAX_FILE: usize = 16 * 1024 * 1024;

/// The first and the last bytes of a stream. Pure.
#[derive(Debug, Default)]
struct Window {
    head: Vec<u8>,
    tail: VecDeque<u8>,
    total: u64,
}

impl Window {
    fn push(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        let (head, rest) = bytes.split_at(bytes.len().min(HEAD - self.head.len()));
        self.head.extend_from_slice(head);
        let rest = &rest[rest.len().saturating_sub(TAIL)..];
        let excess = (self.tail.len() + rest.len()).saturating_sub(TAIL);
        self.tail.drain(..excess);
        self.tail.extend(rest);
    }

    fn left_out(&self) -> u64 {
        self.total - (self.head.len() + self.tail.len()) as u64
    }
}

/// The whole output, as far as it is kept.
#[derive(Debug)]
struct Log {
    file: File,
    path: PathBuf,
    room: usize,
}

impl Log {
    async fn create(path: PathBuf) -> io::Result<Self> {
        Ok(Self { file: new_file(&path).await?, path, room: MAX_FILE })
    }

    async fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let bytes = &bytes[..bytes.len().min(self.room)];
        self.file.write_all(bytes).await?;
        self.room -= bytes.len();
        Ok(())
    }
}

async fn new_file(path: &Path) -> io::Result<File> {
    File::options().write(true).create_new(true).mode(0o600).open(path).await
}

#[derive(Debug)]
enum Kept {
    NotYet,
    In(Log),
    Failed(io::Error),
}

/// Collects the output of one command.
#[derive(Debug)]
pub(super) struct Capture<'a> {
    scratch: &'a Scratch,
    window: Window,
    kept: Kept,
}

/// What the model sees of an output.
#[derive(Debug)]
pub(super) struct Shown {
    pub(super) text: String,
    pub(super) truncated: bool,
}

impl<'a> Capture<'a> {
    pub(super) fn new(scratch: &'a Scratch) -> Self {
        Self { scratch, window: Window::default(), kept: Kept::NotYet }
    }

    pub(super) async fn push(&mut self, bytes: &[u8]) {
        if self.window.total + bytes.len() as u64 > (HEAD + TAIL) as u64 {
            self.keep().await;
        }
        self.window.push(bytes);
        self.append(bytes).await;
    }

    /// Starts the file, with all that there is so far; nothing has been left out before.
    async fn keep(&mut self) {
        if !matches!(self.kept, Kept::NotYet) {
            return;
        }
        self.kept = match Log::create(self.scratch.output().await).await {
            Ok(log) => Kept::In(log),
            Err(error) => Kept::Failed(error),
        };
        self.window.tail.make_contiguous();
        let Window { head, tail, .. } = &self.window;
        let sofar = [head.as_slice(), tail.as_slices().0].concat();
        self.append(&sofar).await;
    }

    async fn append(&mut self, bytes: &[u8]) {
        if let Kept::In(log) = &mut self.kept
            && let Err(error) = log.append(bytes).await
        {
            self.kept = Kept::Failed(error);
        }
    }

    /// The end of the output as the model sees it.
    pub(super) async fn finish(mut self) -> Shown {
        if let Kept::In(log) = &mut self.kept
            && let Err(error) = log.file.flush().await
        {
            self.kept = Kept::Failed(error);
        }
        self.show()
    }

    /// Goes on as a file after the model has got its answer: what is shown now, and where the rest goes.
    pub(super) async fn continue_in_file(mut self) -> (Shown, Option<Sink>) {
        self.keep().await;
        let shown = self.show();
        let sink = match self.kept {
            Kept::In(log) => Some(Sink { log, end: End::Stop }),
            Kept::NotYet | Kept::Failed(_) => None,
        };
        (shown, sink)
    }

    fn show(&self) -> Shown {
        let left_out = self.window.left_out();
        let tail: Vec<u8> = self.window.tail.iter().copied().collect();
        if left_out == 0 {
            let whole = [self.window.head.as_slice(), &tail].concat();
            return Shown { text: String::from_utf8_lossy(&whole).into_owned(), truncated: false };
        }
        let place = match &self.kept {
            Kept::In(log) if log.room == 0 => {
                format!("the first {} MiB of the output are in {}", MAX_FILE / 1024 / 1024, log.path.display())
            }
            Kept::In(log) => format!("the whole output is in {}", log.path.display()),
            Kept::NotYet => "they were not kept".to_owned(),
            Kept::Failed(error) => format!("they could not be kept: {error}"),
        };
        let text = format!(
            "{}\n[... {left_out} bytes left out; {place} ...]\n{}",
            String::from_utf8_lossy(without_cut_end(&self.window.head)),
            String::from_utf8_lossy(without_cut_start(&tail)),
        );
        Shown { text, truncated: true }
    }
}

/// What happens when a file is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The beginning is kept.
    Stop,
    /// The newest is kept: what there is becomes the `.old` file, and a new one begins.
    Rotate,
    /// Nothing more can be written.
    Failed,
}

/// Where the output of background processes goes: a file of at most 16 MiB, or two of 8 MiB.
#[derive(Debug)]
pub(super) struct Sink {
    log: Log,
    end: End,
}

impl Sink {
    /// A new file that keeps the newest output, for what may write for days.
    pub(super) async fn rotating(path: PathBuf) -> io::Result<Self> {
        let log = Log { room: MAX_FILE / 2, ..Log::create(path).await? };
        Ok(Self { log, end: End::Rotate })
    }

    pub(super) fn path(&self) -> &Path {
        &self.log.path
    }

    /// Takes what came, as far as there is room. A file that cannot be written is given up, not its writer.
    pub(super) async fn push(&mut self, bytes: &[u8]) {
        if self.end == End::Failed {
            return;
        }
        if let Err(error) = self.write(bytes).await {
            tracing::warn!(path = %self.log.path.display(), %error, "the output of a background process is not kept");
            self.end = End::Failed;
        }
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.end == End::Rotate && self.log.room < bytes.len() {
            tokio::fs::rename(&self.log.path, older(&self.log.path)).await?;
            self.log.file = new_file(&self.log.path).await?;
            self.log.room = MAX_FILE / 2;
        }
        self.log.append(bytes).await?;
        self.log.file.flush().await
    }
}

/// Where the output before the newest is, if there is so much.
pub(super) fn older(path: &Path) -> PathBuf {
    path.with_extension("old")
}

// A character that the cut went through would show as a replacement character.
fn without_cut_end(bytes: &[u8]) -> &[u8] {
    let longest = bytes.len().saturating_sub(3);
    let lead = (longest..bytes.len()).rev().find(|index| bytes[*index] & 0xC0 != 0x80);
    match lead {
        Some(index) if std::str::from_utf8(&bytes[index..]).is_err_and(|error| error.error_len().is_none()) => {
            &bytes[..index]
        }
        _ => bytes,
    }
}

fn without_cut_start(bytes: &[u8]) -> &[u8] {
    let continued = bytes.iter().take(3).take_while(|byte| *byte & 0xC0 == 0x80).count();
    &bytes[continued..]
}

#[cfg(test)]
#[path = "capture_tests.rs"]
mod tests;
