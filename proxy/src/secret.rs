//! Secret values and the files that they come from. A value is never shown, compared in constant time, and zeroised when
//! the last copy that the proxy holds is dropped.

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::HeaderValue;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

const MAX_BYTES: u64 = 64 * 1024;
/// How old a value may be. The file is read again and not only looked at, since a write within one tick of the file
/// system's clock does not show in its times.
const FRESH: Duration = Duration::from_secs(1);

/// A secret value: text that fits in a header. It cannot be displayed or serialised.
pub struct Secret(Zeroizing<Vec<u8>>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl Secret {
    /// Takes a value that came over the network and is to be kept like one from a file.
    ///
    /// # Errors
    /// [`FileCondition`], when it is empty or does not fit in a header.
    pub(crate) fn new(value: &[u8]) -> Result<Self, FileCondition> {
        Self::from_file_content(Zeroizing::new(value.to_vec()))
    }

    #[cfg(test)]
    pub(crate) fn of(value: &str) -> Self {
        Self(Zeroizing::new(value.as_bytes().to_vec()))
    }

    /// The value, to be placed into a request or looked for in an answer; whoever copies it zeroises the copy.
    pub(crate) fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Takes the content of a file; line ends behind the value are not part of it.
    fn from_file_content(mut content: Zeroizing<Vec<u8>>) -> Result<Self, FileCondition> {
        let length = content.iter().rposition(|byte| !matches!(byte, b'\n' | b'\r')).map_or(0, |last| last + 1);
        content.truncate(length);
        if content.is_empty() {
            return Err(FileCondition::Empty);
        }
        if !content.iter().all(|byte| byte.is_ascii_graphic() || *byte == b' ') {
            return Err(FileCondition::NotPrintable);
        }
        Ok(Self(content))
    }

    /// Whether it equals a text, in a time that depends on the lengths only.
    #[must_use]
    pub fn matches(&self, other: &[u8]) -> bool {
        self.0.ct_eq(other).into()
    }

    /// Whether a text holds it.
    #[must_use]
    pub fn occurs_in(&self, text: &[u8]) -> bool {
        text.windows(self.0.len()).any(|window| window == self.0.as_slice())
    }

    /// The value of `authorization` in HTTP Basic with the secret as the password.
    ///
    /// # Errors
    /// Never: Base64 is fit for a header.
    pub fn basic(&self, username: &str) -> Result<HeaderValue, http::header::InvalidHeaderValue> {
        self.encoded(username).header("Basic ")
    }

    /// User name and password, in Base64.
    #[must_use]
    pub fn encoded(&self, username: &str) -> Self {
        let mut pair = Zeroizing::new(Vec::with_capacity(username.len() + 1 + self.0.len()));
        pair.extend_from_slice(username.as_bytes());
        pair.push(b':');
        pair.extend_from_slice(&self.0);
        Self(Zeroizing::new(STANDARD.encode(&*pair).into_bytes()))
    }

    /// A header's value with a prefix before the secret; marked sensitive, and zeroised when it is dropped.
    ///
    /// # Errors
    /// When the prefix is not fit for a header; the secret is.
    pub fn header(&self, prefix: &str) -> Result<HeaderValue, http::header::InvalidHeaderValue> {
        let mut value = Zeroizing::new(Vec::with_capacity(prefix.len() + self.0.len()));
        value.extend_from_slice(prefix.as_bytes());
        value.extend_from_slice(&self.0);
        let mut value = HeaderValue::from_maybe_shared(Bytes::from_owner(value))?;
        value.set_sensitive(true);
        Ok(value)
    }
}

/// Why a file gives no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FileCondition {
    /// There is none.
    #[error("the file does not exist")]
    Missing,
    /// It is a directory or something else.
    #[error("it is not a regular file")]
    NotAFile,
    /// It cannot be read.
    #[error("the file cannot be read: {0}")]
    Unreadable(io::ErrorKind),
    /// There is nothing in it.
    #[error("the file is empty")]
    Empty,
    /// It is too big for a credential.
    #[error("the file is larger than {MAX_BYTES} bytes")]
    TooLarge,
    /// It cannot be sent in a header.
    #[error("the file holds more than one line, or characters outside printable ASCII")]
    NotPrintable,
}

/// A file with a secret value, which may be replaced at any time.
#[derive(Debug)]
pub struct SecretFile {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    read_at: Option<Instant>,
    value: Result<Arc<Secret>, FileCondition>,
}

impl SecretFile {
    /// A file that is read when its value is first asked for.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path, state: Mutex::new(State { read_at: None, value: Err(FileCondition::Missing) }) }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The value as of a second ago at most. While the content is the same, so is the [`Arc`].
    ///
    /// # Errors
    /// [`FileCondition`]: an earlier value is not used when the file no longer gives one.
    pub fn current(&self, now: Instant) -> Result<Arc<Secret>, FileCondition> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.read_at.is_some_and(|read_at| now.saturating_duration_since(read_at) < FRESH) {
            return state.value.clone();
        }
        state.read(&self.path, now)
    }

    /// The value as it is at this moment.
    ///
    /// # Errors
    /// As [`Self::current`].
    pub fn newest(&self, now: Instant) -> Result<Arc<Secret>, FileCondition> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).read(&self.path, now)
    }
}

impl State {
    fn read(&mut self, path: &Path, now: Instant) -> Result<Arc<Secret>, FileCondition> {
        self.read_at = Some(now);
        self.value = match (read(path), &self.value) {
            (Ok(new), Ok(old)) if old.matches(&new.0) => Ok(old.clone()),
            (Ok(new), _) => Ok(Arc::new(new)),
            (Err(condition), _) => Err(condition),
        };
        self.value.clone()
    }
}

/// Files of mounted Secrets are in memory and small, so that reading one blocks no longer than a lock would.
fn read(path: &Path) -> Result<Secret, FileCondition> {
    let condition = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => FileCondition::Missing,
        kind => FileCondition::Unreadable(kind),
    };
    // Looked at first: opening a pipe would wait for a writer.
    let metadata = std::fs::metadata(path).map_err(condition)?;
    if !metadata.is_file() {
        return Err(FileCondition::NotAFile);
    }
    if metadata.len() > MAX_BYTES {
        return Err(FileCondition::TooLarge);
    }
    // Space for the largest file, so that no copy is left behind by growing.
    let capacity = usize::try_from(MAX_BYTES).unwrap_or_default() + 1;
    let mut content = Zeroizing::new(Vec::with_capacity(capacity));
    File::open(path).map_err(condition)?.take(MAX_BYTES + 1).read_to_end(&mut content).map_err(condition)?;
    if content.len() >= capacity {
        return Err(FileCondition::TooLarge);
    }
    let exact = Zeroizing::new(content.to_vec());
    Secret::from_file_content(exact)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn secret(value: &str) -> Secret {
        Secret::from_file_content(Zeroizing::new(value.as_bytes().to_vec())).unwrap()
    }

    #[rstest]
    #[case("sk-1", "sk-1")]
    #[case("sk-1\n", "sk-1")]
    #[case("sk-1\r\n\n", "sk-1")]
    #[case("two words ", "two words ")]
    fn line_ends_are_no_part_of_it(#[case] content: &str, #[case] value: &str) {
        assert!(secret(content).matches(value.as_bytes()));
    }

    #[rstest]
    #[case("", FileCondition::Empty)]
    #[case("\n", FileCondition::Empty)]
    #[case("a\nb", FileCondition::NotPrintable)]
    #[case("a\0b", FileCondition::NotPrintable)]
    #[case("schlüssel", FileCondition::NotPrintable)]
    fn what_cannot_be_sent_is_refused(#[case] content: &str, #[case] expected: FileCondition) {
        let error = Secret::from_file_content(Zeroizing::new(content.as_bytes().to_vec())).unwrap_err();
        assert_eq!(error, expected);
    }

    #[test]
    fn it_is_not_shown() {
        let secret = secret("sk-canary");
        assert_eq!(format!("{secret:?} {secret:#?}"), "[redacted] [redacted]");
        let header = secret.header("Bearer ").unwrap();
        assert_eq!(header.as_bytes(), b"Bearer sk-canary");
        assert!(!format!("{header:?}").contains("canary"));
    }

    #[rstest]
    #[case("Aladdin", "open sesame", "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==")]
    #[case("", "token", "Basic OnRva2Vu")]
    fn it_is_a_password(#[case] username: &str, #[case] password: &str, #[case] expected: &str) {
        let header = secret(password).basic(username).unwrap();
        assert!(header.is_sensitive() && header == expected);
    }

    #[rstest]
    #[case("", false)]
    #[case("abc", false)]
    #[case("sk-1", true)]
    #[case("xsk-1ysk-", true)]
    fn it_is_found(#[case] text: &str, #[case] expected: bool) {
        assert_eq!(secret("sk-1").occurs_in(text.as_bytes()), expected);
    }

    #[test]
    fn rotation_shows_after_a_second_and_removal_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let file = SecretFile::new(path.clone());
        let start = Instant::now();
        assert_eq!(file.current(start).unwrap_err(), FileCondition::Missing);

        std::fs::write(&path, "one\n").unwrap();
        assert_eq!(file.current(start + FRESH / 2).unwrap_err(), FileCondition::Missing);
        let first = file.current(start + FRESH).unwrap();
        assert!(first.matches(b"one"));
        assert!(Arc::ptr_eq(&first, &file.current(start + FRESH * 2).unwrap()));

        std::fs::write(&path, "two\n").unwrap();
        assert!(file.current(start + FRESH * 2).unwrap().matches(b"one"));
        assert!(file.current(start + FRESH * 3).unwrap().matches(b"two"));

        std::fs::remove_file(&path).unwrap();
        assert_eq!(file.current(start + FRESH * 4).unwrap_err(), FileCondition::Missing);
    }

    #[test]
    fn odd_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let condition = |path: &Path| SecretFile::new(path.to_owned()).current(Instant::now()).unwrap_err();
        assert_eq!(condition(dir.path()), FileCondition::NotAFile);
        let big = dir.path().join("big");
        std::fs::write(&big, vec![b'a'; 70_000]).unwrap();
        assert_eq!(condition(&big), FileCondition::TooLarge);
        assert_eq!(condition(&big.join("below")), FileCondition::Unreadable(io::ErrorKind::NotADirectory));
    }
}
