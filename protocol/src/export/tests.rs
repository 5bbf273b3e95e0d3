use proptest::prelude::{any, prop_assert, proptest};
use rstest::rstest;
use serde_json::json;

use super::{Broken, BrokenChain, FORMAT, Header, Reader, Step, VERSION, Verified, Writer, sha256_hex};

const EVENTS: u64 = 9;

/// A whole export as lines, of which event 4 has a content elsewhere.
fn lines() -> Vec<Vec<u8>> {
    let (mut hash, mut records) = (String::new(), Vec::new());
    for seq in 1..=EVENTS {
        let event =
            json!({"id": format!("sevt_{seq}"), "type": "agent.message", "content": ["ä"], "processed_at": null});
        let record = serde_json::to_vec(&json!({"seq": seq, "epoch": 1, "prev_hash": hash, "event": event})).unwrap();
        hash = sha256_hex(&record);
        records.push(record);
    }
    let header = Header {
        format: FORMAT.to_owned(),
        version: VERSION,
        session: json!({"id": "sesn_1", "name": "a"}),
        epoch: 1,
        head: EVENTS,
        hash,
        archived_at: None,
        spec: Some(json!({"agentRef": {"name": "a"}})),
    };
    let mut writer = Writer::default();
    let mut lines = vec![writer.header(header).unwrap()];
    for (seq, record) in (1..).zip(records) {
        let payloads = if seq == 4 { vec![b"content".to_vec()] } else { vec![] };
        lines.push(writer.event(seq, record, &payloads).unwrap());
    }
    lines.push(writer.end().unwrap());
    lines
}

fn verify(bytes: &[u8]) -> Result<Verified, Broken> {
    let mut reader = Reader::default();
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        reader.line(line)?;
    }
    reader.finish()
}

/// The event that the message names.
fn named(broken: &Broken) -> String {
    broken.to_string()
}

#[test]
fn a_whole_export_is_proved() {
    let verified = verify(&lines().concat()).unwrap();
    assert_eq!((verified.events, verified.header.head), (EVENTS, EVENTS));
    let mut reader = Reader::default();
    let steps: Vec<Step> = lines().iter().map(|line| reader.line(line).unwrap()).collect();
    assert!(
        matches!(&steps[4], Step::Event { seq: 4, payloads, .. } if payloads[&sha256_hex(b"content")] == b"content")
    );
}

#[test]
fn an_empty_log_is_proved() {
    let header = Header {
        head: 0,
        hash: String::new(),
        ..serde_json::from_slice::<serde_json::Value>(&lines()[0])
            .and_then(|line| serde_json::from_value(line["header"].clone()))
            .unwrap()
    };
    let mut writer = Writer::default();
    let file = [writer.header(header).unwrap(), writer.end().unwrap()].concat();
    assert_eq!(verify(&file).unwrap().events, 0);
    assert_eq!(verify(b""), Err(Broken::Empty));
}

#[test]
fn a_removed_line_is_named() {
    for seq in 1..=EVENTS {
        let mut lines = lines();
        lines.remove(usize::try_from(seq).unwrap());
        let broken = verify(&lines.concat()).unwrap_err();
        assert!(matches!(&broken, Broken::Chain(chain) if chain.seq() == seq), "{broken:?}");
        assert!(named(&broken).contains(&format!("event {seq} is missing")), "{broken}");
    }
}

#[test]
fn swapped_lines_are_named() {
    for seq in 1..EVENTS {
        let mut lines = lines();
        let at = usize::try_from(seq).unwrap();
        lines.swap(at, at + 1);
        let broken = verify(&lines.concat()).unwrap_err();
        assert!(
            matches!(&broken, Broken::Chain(BrokenChain::Missing { expected, .. }) if *expected == seq),
            "{broken:?}"
        );
    }
}

#[test]
fn a_changed_record_is_named() {
    for seq in 1..=EVENTS {
        let mut lines = lines();
        let line = &mut lines[usize::try_from(seq).unwrap()];
        *line = String::from_utf8(line.clone()).unwrap().replace("agent.message", "agent.massage").into_bytes();
        let broken = verify(&lines.concat()).unwrap_err();
        assert!(matches!(&broken, Broken::Chain(chain) if chain.seq() == seq), "{broken:?}");
        assert!(named(&broken).contains(&format!("event {seq}")), "{broken}");
    }
}

#[test]
fn a_file_that_was_cut_off_is_named() {
    let whole = lines();
    for kept in 1..whole.len() {
        let broken = verify(&whole[..kept].concat()).unwrap_err();
        assert_eq!(broken, Broken::NoEnd { last: u64::try_from(kept).unwrap() - 1 });
    }
    // Also if it has got a last line that fits what is left.
    let mut writer = Writer::default();
    let header: serde_json::Value = serde_json::from_slice(&whole[0]).unwrap();
    let mut file = writer.header(serde_json::from_value(header["header"].clone()).unwrap()).unwrap();
    file.extend(writer.end().unwrap());
    assert_eq!(verify(&file), Err(BrokenChain::CutShort { last: 0, head: EVENTS }.into()));
}

#[test]
fn a_wrong_content_is_named() {
    let mut lines = lines();
    lines[4] = String::from_utf8(lines[4].clone()).unwrap().replace("Y29udGVudA==", "Y29udGVuZA==").into_bytes();
    let broken = verify(&lines.concat()).unwrap_err();
    assert!(matches!(broken, Broken::Payload { seq: 4, .. }), "{broken:?}");
}

#[rstest]
#[case::no_header(|lines: &mut Vec<Vec<u8>>| { lines.remove(0); }, Broken::NoHeader)]
#[case::twice(|lines: &mut Vec<Vec<u8>>| { let all = lines.clone(); lines.extend(all); }, Broken::Trailing { line: EVENTS + 3 })]
#[case::another_format(|lines: &mut Vec<Vec<u8>>| replace(&mut lines[0], FORMAT, "else"), Broken::NoHeader)]
#[case::later(|lines: &mut Vec<Vec<u8>>| replace(&mut lines[0], "\"version\":1", "\"version\":2"), Broken::Version { found: 2 })]
#[case::header(|lines: &mut Vec<Vec<u8>>| replace(&mut lines[0], "\"name\":\"a\"", "\"name\":\"b\""), Broken::Digest)]
#[case::number(|lines: &mut Vec<Vec<u8>>| replace(&mut lines[3], "{\"seq\":3", "{\"seq\":2"), Broken::Number { seq: 3, said: 2 })]
fn other_changes_are_named(#[case] change: fn(&mut Vec<Vec<u8>>), #[case] expected: Broken) {
    let mut lines = lines();
    change(&mut lines);
    assert_eq!(verify(&lines.concat()), Err(expected));
}

fn replace(line: &mut Vec<u8>, from: &str, to: &str) {
    *line = String::from_utf8(line.clone()).unwrap().replacen(from, to, 1).into_bytes();
}

proptest! {
    /// Whatever bit of a file is flipped, it is not whole any more.
    #[test]
    fn a_flipped_bit_is_noticed(at in any::<proptest::sample::Index>(), bit in 0..8_u8) {
        let mut file = lines().concat();
        let at = at.index(file.len());
        file[at] ^= 1 << bit;
        prop_assert!(verify(&file).is_err(), "byte {at}");
    }

    #[test]
    fn nothing_panics(bytes: Vec<u8>, whole in any::<bool>(), at in any::<proptest::sample::Index>()) {
        let mut file = if whole { lines().concat() } else { Vec::new() };
        let at = at.index(file.len() + 1);
        file.splice(at..at, bytes);
        let _ = verify(&file);
    }
}
