//! The tools `read` and `write`, and what `edit` shares with them.

use std::fs::{File, Metadata, Permissions};
use std::io::{self, BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use rustix::fs::FileType;
use rustix::io::Errno;

use super::budget::{Budget, Within};
use super::input::{ReadInput, WriteInput};
use super::place::{Missing, Place};
use super::{ToolError, ToolResult, fail, resolve};
use crate::wire::ToolOutput;

const MAX_READ: usize = 256 * 1024;
// Text has no NUL byte; where binary files have one, it is nearly always near the start.
const SNIFFED: usize = 8 * 1024;

/// A failure of the file system, with the path and in words that a model can act on.
pub(super) fn io_error(action: &str, path: &Path, error: &io::Error) -> ToolError {
    let path = path.display();
    ToolError(match error.kind() {
        ErrorKind::NotFound => format!("{path} does not exist"),
        ErrorKind::PermissionDenied => format!("no permission to {action} {path}"),
        ErrorKind::NotADirectory => format!("cannot {action} {path}: a part of the path is not a directory"),
        ErrorKind::ReadOnlyFilesystem => format!("cannot {action} {path}: the file system is read-only"),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => format!("cannot {action} {path}: no space is left"),
        _ => format!("cannot {action} {path}: {error}"),
    })
}

/// Opens a regular file. Anything else could block for ever or never end.
pub(super) fn open_regular(place: &Place) -> Result<(File, Metadata), ToolError> {
    let path = &place.shown;
    let failed = |error: io::Error| io_error("read", path, &error);
    let is_socket = |error: &io::Error| error.raw_os_error() == Some(Errno::NXIO.raw_os_error());
    let file = match place.open() {
        Err(error) if is_socket(&error) => return fail(format!("{} is not a regular file", path.display())),
        other => other.map_err(failed)?,
    };
    let metadata = file.metadata().map_err(failed)?;
    if metadata.is_dir() {
        return fail(format!("{} is a directory; use glob or bash to list it", path.display()));
    }
    if !metadata.is_file() {
        return fail(format!("{} is not a regular file", path.display()));
    }
    Ok((file, metadata))
}

pub(super) fn is_binary(start: &[u8]) -> bool {
    start.iter().take(SNIFFED).any(|byte| *byte == 0)
}

/// The lines that are asked for, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    first: u64,
    last: Option<u64>,
}

impl Range {
    fn new(view_range: Option<[i64; 2]>) -> Result<Self, ToolError> {
        let Some([first, last]) = view_range else { return Ok(Self { first: 1, last: None }) };
        let wrong = || {
            ToolError(format!(
                "view_range [{first}, {last}] is wrong: give the first line (from 1) and the last, or -1"
            ))
        };
        let first = u64::try_from(first).ok().filter(|first| *first > 0).ok_or_else(wrong)?;
        let last = match last {
            -1 => None,
            last => Some(u64::try_from(last).ok().filter(|last| *last >= first).ok_or_else(wrong)?),
        };
        Ok(Self { first, last })
    }

    fn is_over(self, line: u64) -> bool {
        self.last.is_some_and(|last| line > last)
    }
}

/// What was found of a range.
#[derive(Debug, Default)]
struct Lines {
    bytes: Vec<u8>,
    /// The line that the reader stands in, from 1.
    line: u64,
    /// Whether that line has any bytes.
    started: bool,
    /// Whether the limit was reached before the range was over.
    cut: bool,
}

fn lines(mut reader: impl io::BufRead, range: Range) -> io::Result<Lines> {
    let mut found = Lines { line: 1, ..Lines::default() };
    loop {
        let chunk = reader.fill_buf()?;
        if chunk.is_empty() || range.is_over(found.line) {
            return Ok(found);
        }
        let end = chunk.iter().position(|byte| *byte == b'\n').map_or(chunk.len(), |at| at + 1);
        if found.line >= range.first {
            let room = MAX_READ - found.bytes.len();
            found.bytes.extend_from_slice(&chunk[..end.min(room)]);
            if end > room {
                found.cut = true;
                return Ok(found);
            }
        }
        found.started = chunk[end - 1] != b'\n';
        found.line += u64::from(!found.started);
        reader.consume(end);
    }
}

/// The tool `read`.
pub(super) fn read(workspace: &Path, input: &ReadInput, budget: &Budget) -> ToolResult {
    let path = resolve(workspace, &input.file_path)?;
    let range = Range::new(input.view_range)?;
    let (file, metadata) = open_regular(&Place::find(workspace, &path, Missing::Fail)?)?;
    let failed = |error: io::Error| read_error(&path, budget, &error);
    let mut reader = BufReader::with_capacity(64 * 1024, Within { budget, inner: file });
    if is_binary(reader.fill_buf().map_err(failed)?) {
        return fail(format!("{} is a binary file of {} bytes; look at it with bash", path.display(), metadata.len()));
    }
    let found = lines(reader, range).map_err(failed)?;
    let count = found.line - u64::from(!found.started);
    if found.bytes.is_empty() && !found.cut && range.first > 1 {
        return fail(format!("{} has only {count} lines; view_range starts at {}", path.display(), range.first));
    }
    let mut text = String::from_utf8_lossy(&found.bytes).into_owned();
    if found.cut {
        // A character that the cut went through.
        if text.ends_with('\u{FFFD}') {
            text.pop();
        }
        let notice = format!(
            "\n[... cut after {MAX_READ} bytes, in line {}, of a file of {} bytes; read on with view_range ...]",
            found.line,
            metadata.len()
        );
        text.push_str(&notice);
    }
    Ok(ToolOutput { content: text, is_error: false, truncated: found.cut })
}

/// The budget is the reason when it is spent.
pub(super) fn read_error(path: &Path, budget: &Budget, error: &io::Error) -> ToolError {
    budget.check().map_or_else(ToolError::from, |()| io_error("read", path, error))
}

/// The tool `write`.
pub(super) fn write(workspace: &Path, input: &WriteInput, budget: &Budget) -> ToolResult {
    let path = resolve(workspace, &input.file_path)?;
    let place = Place::find(workspace, &path, Missing::Make)?;
    budget.check()?;
    let existed = replace(&place, input.content.as_bytes())?;
    let done = if existed { "replaced" } else { "created" };
    Ok(ToolOutput::ok(format!("{done} {} ({} bytes)", path.display(), input.content.len())))
}

/// Puts `content` at a place in one step; readers see the old file or the new one. The mode of an old file stays. Says whether
/// there was a file.
pub(super) fn replace(place: &Place, content: &[u8]) -> Result<bool, ToolError> {
    let path = &place.shown;
    let failed = |error: io::Error| io_error("write", path, &error);
    let mode = match place.stat() {
        Ok(stat) => match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Some(stat.st_mode & 0o7777),
            FileType::Directory => return fail(format!("{} is a directory", path.display())),
            _ => return fail(format!("{} is not a regular file", path.display())),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(failed(error)),
    };
    let mut file = tempfile::Builder::new()
        .prefix(".longhand-")
        // As any program would make it: the umask takes away what it has to.
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(place.directory_path())
        .map_err(failed)?;
    file.write_all(content).map_err(failed)?;
    if let Some(mode) = mode {
        file.as_file().set_permissions(Permissions::from_mode(mode)).map_err(failed)?;
    }
    file.persist(place.directory_path().join(place.name())).map_err(|error| failed(error.error))?;
    Ok(mode.is_some())
}

/// The whole text of a file that is to be changed.
pub(super) fn read_text(place: &Place, limit: u64, budget: &Budget) -> Result<String, ToolError> {
    let (file, metadata) = open_regular(place)?;
    let path = &place.shown;
    let too_large = || ToolError(format!("{} is larger than {limit} bytes; change it with bash", path.display()));
    if metadata.len() > limit {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    let mut reader = Within { budget, inner: file.take(limit + 1) };
    reader.read_to_end(&mut bytes).map_err(|error| read_error(path, budget, &error))?;
    if bytes.len() as u64 > limit {
        return Err(too_large());
    }
    String::from_utf8(bytes)
        .map_err(|_| ToolError(format!("{} is not UTF-8 text; change it with bash", path.display())))
}

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
