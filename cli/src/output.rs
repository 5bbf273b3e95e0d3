//! Standard output: each line is written at once, and a reader that has gone is an error, not a panic.

use std::io::Write as _;

use serde::Serialize;

use crate::error::{Error, Result};

/// Writes a line.
///
/// # Errors
/// When standard output is closed or full.
pub fn line(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush()).map_err(Error::Output)
}

/// Writes a value as one line of JSON.
///
/// # Errors
/// When standard output is closed or full.
pub fn json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string(value).map_err(|error| Error::Output(error.into()))?;
    line(&text)
}
