use proptest::prelude::{any, prop_assert, proptest};
use rstest::rstest;
use serde_json::json;

use super::{
    Broken, BrokenChain, FORMAT, Flaw, Header, REFERENCE_FIELD, Reader, Reference, Step, VERSION, Verified, Writer,
    sha256_hex,
};

const EVENTS: u64 = 9;

/// A whole export as lines, of which event 4 has a content elsewhere.
fn lines() -> Vec<Vec<u8>> {
    lines_of("ä")
}

/// The same of another session, whose agent says this.
fn lines_of(text: &str) -> Vec<Vec<u8>> {
    let (mut hash, mut records) = (String::new(), Vec::new());
    for seq in 1..=EVENTS {
        let mut event =
            json!({"id": format!("sevt_{seq}"), "type": "agent.message", "content": [text], "processed_at": null});
        if seq == 4 {
            let reference = Reference { sha256: sha256_hex(b"content"), bytes: 7, tool_use_id: None };
            event[REFERENCE_FIELD] = json!(reference);
        }
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

/// The file that whoever changed its lines would write: the last one fits again.
fn sealed(lines: &[Vec<u8>]) -> Vec<u8> {
    let before = lines[..lines.len() - 1].concat();
    let end = json!({"end": {"events": lines.len() - 2, "sha256": sha256_hex(&before)}});
    [before, end.to_string().into_bytes(), b"\n".to_vec()].concat()
}

fn chain(broken: &Broken) -> &BrokenChain {
    match &broken.flaw {
        Flaw::Chain(chain) => chain,
        other => panic!("{other:?}"),
    }
}

fn at(seq: u64) -> usize {
    usize::try_from(seq).unwrap()
}

#[test]
fn a_whole_export_is_proved() {
    let verified = verify(&lines().concat()).unwrap();
    assert_eq!((verified.events, verified.header.head), (EVENTS, EVENTS));
    assert_eq!(verify(&sealed(&lines())).unwrap(), verified);
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
    assert_eq!(verify(b""), Err(Broken { line: 1, flaw: Flaw::Empty }));
}

#[test]
fn a_removed_line_is_named() {
    for seq in 1..=EVENTS {
        let mut lines = lines();
        lines.remove(at(seq));
        for file in [lines.concat(), sealed(&lines)] {
            let broken = verify(&file).unwrap_err();
            assert_eq!((chain(&broken).seq(), broken.line), (seq, seq + 1), "{broken}");
            let text = broken.to_string();
            assert!(text.starts_with(&format!("line {}: event {seq} is missing", seq + 1)), "{text}");
        }
    }
}

#[test]
fn swapped_lines_are_named() {
    for seq in 1..EVENTS {
        let mut lines = lines();
        lines.swap(at(seq), at(seq) + 1);
        let broken = verify(&sealed(&lines)).unwrap_err();
        assert_eq!(*chain(&broken), BrokenChain::Missing { expected: seq, found: seq + 1 });
        assert_eq!(broken.line, seq + 1);
    }
}

#[test]
fn a_changed_record_is_named() {
    for seq in 1..=EVENTS {
        let mut lines = lines();
        replace(&mut lines[at(seq)], "agent.message", "agent.massage");
        for file in [lines.concat(), sealed(&lines)] {
            let broken = verify(&file).unwrap_err();
            assert_eq!(chain(&broken).seq(), seq, "{broken}");
            // It shows when the next one is read.
            assert_eq!(broken.line, seq + 2);
            assert!(broken.to_string().contains(&format!("event {seq}")), "{broken}");
        }
    }
}

/// The events of two sessions in one file, whoever writes its last line.
#[test]
fn a_spliced_file_is_named() {
    let (one, other) = (lines(), lines_of("else"));
    for seq in 1..EVENTS {
        let spliced = [&one[..=at(seq)], &other[at(seq) + 1..]].concat();
        let broken = verify(&sealed(&spliced)).unwrap_err();
        assert_eq!((chain(&broken).seq(), broken.line), (seq, seq + 2), "{broken}");
    }
    let other_header = [&other[..1], &one[1..]].concat();
    assert_eq!(*chain(&verify(&sealed(&other_header)).unwrap_err()), BrokenChain::OtherEnd { seq: EVENTS });
}

#[test]
fn a_file_that_was_cut_off_is_named() {
    let whole = lines();
    for kept in 1..whole.len() {
        let (line, last) = (u64::try_from(kept).unwrap(), u64::try_from(kept).unwrap() - 1);
        let broken = verify(&whole[..kept].concat()).unwrap_err();
        assert_eq!(broken, Broken { line: line + 1, flaw: Flaw::NoEnd { last } });
        // In the middle of a line.
        let half = &whole[kept][..whole[kept].len() / 2];
        let broken = verify(&[&whole[..kept].concat(), half].concat()).unwrap_err();
        assert_eq!(broken, Broken { line: line + 1, flaw: Flaw::NoEnd { last } });
        // Also if it has got a last line that fits what is left.
        let mut shorter = whole[..kept].to_vec();
        shorter.push(whole[whole.len() - 1].clone());
        if last < EVENTS {
            let broken = verify(&sealed(&shorter)).unwrap_err();
            assert_eq!(*chain(&broken), BrokenChain::CutShort { last, head: EVENTS });
        }
    }
}

#[rstest]
#[case::another("Y29udGVudA==", "Y29udGVuZA==", "is another one")]
#[case::none(&format!(",\"payloads\":{{\"{}\":\"Y29udGVudA==\"}}", sha256_hex(b"content")), "", "is not there")]
#[case::garbage("Y29udGVudA==", "?", "not base64")]
#[case::more("\"payloads\":{", "\"payloads\":{\"0\":\"\",", "does not name")]
fn a_wrong_content_is_named(#[case] from: &str, #[case] to: &str, #[case] reason: &str) {
    let mut lines = lines();
    replace(&mut lines[4], from, to);
    let broken = verify(&sealed(&lines)).unwrap_err();
    assert!(matches!(broken, Broken { line: 5, flaw: Flaw::Payload { seq: 4, .. } }), "{broken:?}");
    assert!(broken.to_string().contains(reason), "{broken}");
}

#[rstest]
#[case::no_header(|lines: &mut Vec<Vec<u8>>| { lines.remove(0); }, 1, Flaw::NoHeader)]
#[case::twice(|lines: &mut Vec<Vec<u8>>| { let all = lines.clone(); lines.extend(all); }, EVENTS + 3, Flaw::Trailing)]
#[case::another_format(|lines: &mut Vec<Vec<u8>>| replace(&mut lines[0], FORMAT, "else"), 1, Flaw::NoHeader)]
#[case::later(|lines: &mut Vec<Vec<u8>>| replace(&mut lines[0], "\"version\":1", "\"version\":2"), 1, Flaw::Version { found: 2 })]
#[case::header(|lines: &mut Vec<Vec<u8>>| replace(&mut lines[0], "\"name\":\"a\"", "\"name\":\"b\""), EVENTS + 2, Flaw::Digest)]
#[case::number(|lines: &mut Vec<Vec<u8>>| replace(&mut lines[3], "{\"seq\":3", "{\"seq\":2"), 4, Flaw::Number { seq: 3, said: 2 })]
fn other_changes_are_named(#[case] change: fn(&mut Vec<Vec<u8>>), #[case] line: u64, #[case] flaw: Flaw) {
    let mut lines = lines();
    change(&mut lines);
    assert_eq!(verify(&lines.concat()), Err(Broken { line, flaw }));
}

#[test]
fn a_line_that_cannot_be_read_is_named() {
    for text in ["", "{", "nonsense", "{\"event\":{}}", "{\"other\":1}"] {
        let mut lines = lines();
        lines[6] = format!("{text}\n").into_bytes();
        let broken = verify(&lines.concat()).unwrap_err();
        assert!(matches!(broken, Broken { line: 7, flaw: Flaw::Line { .. } }), "{broken:?}");
        assert!(broken.to_string().contains("event 6 is due here"), "{broken}");
    }
}

fn replace(line: &mut Vec<u8>, from: &str, to: &str) {
    let text = String::from_utf8(line.clone()).unwrap();
    assert!(text.contains(from), "{text}");
    *line = text.replacen(from, to, 1).into_bytes();
}

/// A file of which one byte is another, and the line that it is in.
fn changed(at: usize, byte: u8) -> (Vec<u8>, u64) {
    let mut file = lines().concat();
    let line = 1 + file[..at].iter().filter(|byte| **byte == b'\n').count();
    file[at] = byte;
    (file, u64::try_from(line).unwrap())
}

/// Each byte once, and in the property below each byte as anything.
#[test]
fn a_changed_byte_is_noticed_wherever_it_is() {
    let file = lines().concat();
    for (at, byte) in file.iter().enumerate() {
        let (changed, line) = changed(at, byte ^ (1 << (at % 8)));
        let broken = verify(&changed).expect_err(&format!("byte {at}"));
        assert!(broken.line >= line, "byte {at} of line {line}: {broken}");
    }
}

proptest! {
    /// Whatever one byte of a file becomes, the file is not whole any more, and it is not said of a line before.
    #[test]
    fn a_changed_byte_is_noticed(at in any::<proptest::sample::Index>(), byte: u8) {
        let whole = lines().concat();
        let at = at.index(whole.len());
        let (changed, line) = changed(at, byte);
        match verify(&changed) {
            Ok(_) => prop_assert!(changed == whole, "byte {at} of line {line}"),
            Err(broken) => prop_assert!(changed != whole && broken.line >= line, "byte {at} of line {line}: {broken}"),
        }
    }

    #[test]
    fn nothing_panics(bytes: Vec<u8>, whole in any::<bool>(), at in any::<proptest::sample::Index>()) {
        let mut file = if whole { lines().concat() } else { Vec::new() };
        let at = at.index(file.len() + 1);
        file.splice(at..at, bytes);
        let _ = verify(&file);
    }
}
