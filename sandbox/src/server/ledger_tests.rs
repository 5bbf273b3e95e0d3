use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rstest::rstest;
use serde_json::json;

use super::{Ledger, Limits, Past, SLOT};
use crate::server::journal::{Fingerprint, key};
use crate::wire::{CallId, ToolOutput};

fn id(name: &str) -> CallId {
    CallId::new(name).unwrap()
}

fn print(name: &str) -> Fingerprint {
    Fingerprint::of(name, &json!({}))
}

fn open(dir: &Path) -> (Ledger, Vec<Past>) {
    Ledger::open(dir, "pod", Limits { calls: 8, results: 3, result_bytes: 1000 }).unwrap()
}

fn finished(name: &str) -> Past {
    Past::Finished { call_id: id(name), fingerprint: print(name), output: ToolOutput::ok(name) }
}

fn unknown(name: &str) -> Past {
    Past::Unknown { key: key(&id(name)), fingerprint: print(name) }
}

fn evicted(name: &str) -> Past {
    Past::Evicted { key: key(&id(name)) }
}

fn run(ledger: &mut Ledger, name: &str) {
    ledger.begin(&id(name), print(name)).unwrap();
    ledger.finish(&id(name), &ToolOutput::ok(name)).unwrap();
}

#[test]
fn a_successor_knows_what_has_finished_and_what_has_not() {
    let dir = tempfile::tempdir().unwrap();
    let (mut ledger, past) = open(dir.path());
    assert_eq!(past, []);
    run(&mut ledger, "a");
    ledger.begin(&id("b"), print("b")).unwrap();
    drop(ledger);
    for _ in 0..2 {
        let (_, past) = open(dir.path());
        assert_eq!(past, [finished("a"), unknown("b")]);
    }
    let (mut ledger, _) = open(dir.path());
    run(&mut ledger, "c");
    drop(ledger);
    assert_eq!(open(dir.path()).1, [finished("a"), unknown("b"), finished("c")]);
}

#[test]
fn another_pod_starts_anew() {
    let dir = tempfile::tempdir().unwrap();
    let (mut ledger, _) = open(dir.path());
    run(&mut ledger, "a");
    drop(ledger);
    let (_, past) = Ledger::open(dir.path(), "other", Limits::default()).unwrap();
    assert_eq!(past, []);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "its results are gone");
}

#[test]
fn two_processes_cannot_have_it() {
    let dir = tempfile::tempdir().unwrap();
    let _first = open(dir.path());
    assert!(Ledger::open(dir.path(), "pod", Limits::default()).is_err());
}

/// A crash at each byte of the entry, which is written before the call starts: either it is not there, and the call was not
/// started, or it is whole.
#[test]
fn a_torn_entry_is_none() {
    for length in 0..=SLOT {
        let dir = tempfile::tempdir().unwrap();
        let (mut ledger, _) = open(dir.path());
        run(&mut ledger, "a");
        ledger.begin(&id("b"), print("b")).unwrap();
        drop(ledger);
        let index = File::options().write(true).open(dir.path().join("index")).unwrap();
        index.write_all_at(&vec![0; SLOT - length], (2 * SLOT + length) as u64).unwrap();
        drop(index);
        // The state stands behind all that is needed; what follows it are zeros.
        let expected = if length > super::STATE_AT { vec![finished("a"), unknown("b")] } else { vec![finished("a")] };
        assert_eq!(open(dir.path()).1, expected, "cut after {length} bytes");
    }
}

#[test]
fn a_crash_between_result_and_state_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (mut ledger, _) = open(dir.path());
    run(&mut ledger, "a");
    drop(ledger);
    let index = File::options().write(true).open(dir.path().join("index")).unwrap();
    index.write_all_at(b"R", (SLOT + super::STATE_AT) as u64).unwrap();
    drop(index);
    assert_eq!(open(dir.path()).1, [finished("a")]);
}

#[rstest]
#[case::gone(None)]
#[case::cut(Some("{\"call_id\":\"a\",\"out"))]
fn a_result_that_cannot_be_read_is_not_kept(#[case] content: Option<&str>) {
    let dir = tempfile::tempdir().unwrap();
    let (mut ledger, _) = open(dir.path());
    run(&mut ledger, "a");
    let path = ledger.path(key(&id("a")));
    drop(ledger);
    match content {
        None => fs::remove_file(path).unwrap(),
        Some(content) => fs::write(path, content).unwrap(),
    }
    assert_eq!(open(dir.path()).1, [evicted("a")]);
}

#[test]
fn a_result_that_cannot_be_written_is_remembered_as_such() {
    let dir = tempfile::tempdir().unwrap();
    let (mut ledger, _) = open(dir.path());
    ledger.begin(&id("a"), print("a")).unwrap();
    // Nothing can be renamed to the name of a directory, whoever tries.
    fs::create_dir(ledger.path(key(&id("a")))).unwrap();
    assert!(ledger.finish(&id("a"), &ToolOutput::ok("a")).is_err());
    drop(ledger);
    assert_eq!(open(dir.path()).1, [evicted("a")]);
}

#[test]
fn calls_results_and_bytes_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let (mut ledger, _) = open(dir.path());
    ledger.begin(&id("running"), print("running")).unwrap();
    for n in 0..20 {
        run(&mut ledger, &format!("c{n}"));
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 4, "the index and three results");
    ledger.begin(&id("large"), print("large")).unwrap();
    ledger.finish(&id("large"), &ToolOutput::ok("x".repeat(900))).unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "the index and the large one");
    let size = fs::metadata(dir.path().join("index")).unwrap().len();
    assert_eq!(size, 9 * SLOT as u64);
    drop(ledger);
    let (_, past) = open(dir.path());
    assert_eq!(past.len(), 8);
    assert!(past.contains(&unknown("running")), "a running call is never pushed out");
    assert_eq!(past.iter().filter(|past| matches!(past, Past::Evicted { .. })).count(), 6);
}

#[rstest]
#[case(0xA5)]
// With a state that could be one.
#[case(b'R')]
fn junk_in_the_index_is_no_entry(#[case] byte: u8) {
    let dir = tempfile::tempdir().unwrap();
    let (mut ledger, _) = open(dir.path());
    run(&mut ledger, "a");
    drop(ledger);
    let index = File::options().write(true).open(dir.path().join("index")).unwrap();
    index.write_all_at(&[byte; 3 * SLOT], (2 * SLOT) as u64).unwrap();
    drop(index);
    assert_eq!(open(dir.path()).1, [finished("a")]);
}
