use longhand_protocol::EventId;
use longhand_protocol::event::{Event, EventBody, Permission, Record};
use rstest::rstest;
use serde_json::{Value, json};

use super::{Ask, EXCERPT, OUTPUT, Search, TYPES, excerpt};

fn ask(input: &Value) -> Ask {
    Ask::read(input).unwrap()
}

fn record(seq: u64, body: EventBody) -> Record {
    let event = Event { id: format!("sevt_{seq}").parse().unwrap(), body, processed_at: None };
    Record { seq, epoch: 1, prev_hash: String::new(), event }
}

fn message(seq: u64, text: &str) -> Record {
    record(seq, EventBody::UserMessage { content: vec![json!({"type": "text", "text": text})] })
}

fn result(seq: u64, call: u64, text: &str) -> Record {
    let tool_use_id: EventId = format!("sevt_{call}").parse().unwrap();
    let content = Some(vec![json!({"type": "text", "text": text}), json!({"type": "image"})]);
    record(seq, EventBody::AgentToolResult { tool_use_id, content, is_error: None })
}

fn tool(seq: u64, name: &str) -> Record {
    let (name, input) = (name.to_owned(), json!({"query": "needle"}));
    record(seq, EventBody::AgentToolUse { name, input, evaluated_permission: Permission::Allow, sandbox: None })
}

/// What is found in these records, the newest first.
fn found(ask: &Ask, log: &[Record]) -> Vec<u64> {
    let mut search = Search::new(ask);
    for record in log.iter().rev() {
        if search.is_full() {
            break;
        }
        search.take(record);
    }
    search.entries.iter().map(|entry| entry.seq).collect()
}

#[test]
fn all_of_it_may_be_left_out() {
    let all = ask(&json!({}));
    assert_eq!((all.types, all.after, all.before, all.limit), (TYPES.map(ToOwned::to_owned).to_vec(), 0, None, 20));
    let some = ask(&json!({"query": "ÄB", "types": ["user.*"], "after": 3, "before": 9, "limit": 100}));
    assert_eq!((some.query.as_deref(), some.after, some.before, some.limit), (Some("äb"), 3, Some(9), 100));
}

#[rstest]
#[case(json!([]))]
#[case(json!({"query": 1}))]
#[case(json!({"limit": 101}))]
#[case(json!({"after": -1}))]
#[case(json!({"before": 0}))]
#[case(json!({"types": [1]}))]
#[case(json!({"regex": "a"}))]
fn what_makes_no_sense_is_refused(#[case] input: Value) {
    assert!(Ask::read(&input).is_err());
}

#[rstest]
#[case::text(json!({"query": "NEEDLE"}), &[5, 2, 1])]
#[case::everything(json!({}), &[5, 3, 2, 1])]
#[case::the_newest(json!({"limit": 2}), &[5, 3])]
fn the_newest_come_first_and_searches_do_not_find_themselves(#[case] input: Value, #[case] expected: &[u64]) {
    let log = [
        message(1, "a needle"),
        tool(2, "bash"),
        message(3, "hay"),
        record(4, EventBody::AgentThinking {}),
        result(5, 2, "Needle!"),
        tool(6, "recall"),
        result(7, 6, "#1 user.message: a needle"),
    ];
    let limit = input["limit"].is_number();
    let mut ask = ask(&input);
    // The result of a search is taken for an entry until the search is seen.
    ask.limit += usize::from(limit);
    let mut seqs = found(&ask, &log);
    seqs.truncate(if limit { ask.limit - 1 } else { usize::MAX });
    assert_eq!(seqs, expected);
}

#[test]
fn an_output_is_bounded_and_says_where_to_go_on() {
    let ask = ask(&json!({"limit": 100}));
    let mut search = Search::new(&ask);
    (0..100).rev().for_each(|seq| search.take(&message(seq + 1, &"ä".repeat(10_000))));
    let text = search.show(true);
    assert!(text.len() <= OUTPUT + 2 * EXCERPT, "{}", text.len());
    let (_, from) = text.rsplit_once("\"before\": ").unwrap();
    let from: u64 = from.trim_end_matches(['}', '.']).parse().unwrap();
    assert!(text.contains(&format!("#{from} ")) && !text.contains(&format!("#{} ", from - 1)), "{from}");
}

#[test]
fn one_entry_is_shown_in_full() {
    let ask = ask(&json!({"after": 4, "before": 6}));
    let mut search = Search::new(&ask);
    search.take(&message(5, &"word ".repeat(5_000)));
    let text = search.show(true);
    assert!(text.contains(&"word ".repeat(5_000)) && text.ends_with("There is no more."));
    assert_eq!(Search::new(&ask).show(true), "Nothing was found.");
    assert!(Search { at: Some(7), ..Search::new(&ask) }.show(false).ends_with("\"before\": 7."));
}

#[rstest]
#[case(0)]
#[case(4_999)]
#[case(9_999)]
fn an_excerpt_is_around_the_match(#[case] at: usize) {
    let mut text = "é".repeat(5_000);
    let at = text.floor_char_boundary(at);
    text.insert_str(at, "needle");
    let part = excerpt(&text, at, 100);
    assert!(part.contains("needle") && part.len() < 200, "{part}");
}
