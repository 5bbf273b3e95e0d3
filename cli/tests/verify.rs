//! `longhand verify` as it is called: with a file and nothing else.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use longhand_protocol::export::{FORMAT, Header, VERSION, Writer, sha256_hex};
use serde_json::json;

fn file() -> Vec<u8> {
    let record = json!({"seq": 1, "epoch": 0, "prev_hash": "", "event": {"text": "hello"}}).to_string().into_bytes();
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

/// Nothing here knows a cluster.
fn verify(path: &str, input: &[u8]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_longhand"));
    command.args(["verify", path]).env("KUBECONFIG", "/there/is/none").env("HOME", "/there/is/none");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = command.spawn().unwrap();
    process.stdin.take().unwrap().write_all(input).unwrap();
    process.wait_with_output().unwrap()
}

fn written(dir: &Path, file: &[u8]) -> String {
    let path = dir.join("session.ndjson");
    std::fs::write(&path, file).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_whole_file_is_proved() {
    let dir = tempfile::tempdir().unwrap();
    for output in [verify(&written(dir.path(), &file()), b""), verify("-", &file())] {
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.starts_with("sesn_1: 1 events are whole and in order; the last has the hash "), "{text}");
    }
}

#[test]
fn a_changed_file_fails_and_says_where() {
    let dir = tempfile::tempdir().unwrap();
    let changed = String::from_utf8(file()).unwrap().replace("hello", "hullo").into_bytes();
    for output in [verify(&written(dir.path(), &changed), b""), verify("-", &changed)] {
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains("is not a whole export: line 3: event 1, the last, was changed"), "{text}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let output = verify("/there/is/none", b"");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("cannot read /there/is/none"));
}
