use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use rstest::rstest;
use serde_json::{Value, json};

use super::{Background, Begun, Fingerprint, Journal, Limits, Past, Refused, Use, key};
use crate::wire::{CallId, ToolOutput};

const SMALL: Limits =
    Limits { running: 2, results: 2, result_bytes: 100, evicted: 3, terminals: 1, transfers: 2, tunnels: 2 };
const QUIET: Background = Background { commands: 0, last_end: None };

fn id(id: &str) -> CallId {
    CallId::new(id).unwrap()
}

fn print(name: &str) -> Fingerprint {
    Fingerprint::of(name, &Value::Null)
}

struct Fixture {
    journal: Journal<u32>,
    now: Instant,
    started: u32,
}

impl Fixture {
    fn new() -> Self {
        let now = Instant::now();
        Self { journal: Journal::new(SMALL, now), now, started: 0 }
    }

    fn begin(&mut self, call: &str) -> Result<Begun<u32>, Refused> {
        let started = &mut self.started;
        self.journal.begin(&id(call), print("bash"), false, || {
            *started += 1;
            *started
        })
    }

    fn finish(&mut self, call: &str, content: &str) -> Arc<ToolOutput> {
        let output = Arc::new(ToolOutput::ok(content));
        self.journal.finish(&id(call), &output, self.now);
        output
    }

    fn run(&mut self, call: &str, content: &str) -> Arc<ToolOutput> {
        assert!(matches!(self.begin(call), Ok(Begun::Started(_))));
        self.finish(call, content)
    }

    fn pass(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }
}

#[test]
fn a_call_starts_once() {
    let mut f = Fixture::new();
    assert_eq!(f.begin("a"), Ok(Begun::Started(1)));
    assert_eq!(f.begin("a"), Ok(Begun::Running(1)));
    let output = f.finish("a", "done");
    assert_eq!(f.begin("a"), Ok(Begun::Finished(output)));
    assert_eq!(f.started, 1);
}

#[test]
fn an_id_belongs_to_one_name_and_input() {
    let mut f = Fixture::new();
    f.begin("a").unwrap();
    assert_eq!(f.journal.begin(&id("a"), print("read"), false, || 9), Err(Refused::Mismatch));
    f.finish("a", "");
    assert_eq!(f.journal.begin(&id("a"), print("read"), true, || 9), Err(Refused::Mismatch));
}

#[test]
fn a_second_result_changes_nothing() {
    let mut f = Fixture::new();
    let first = f.run("a", "first");
    f.finish("a", "second");
    f.finish("never-begun", "third");
    assert_eq!(f.begin("a"), Ok(Begun::Finished(first)));
    assert_eq!(f.journal.activity(QUIET, f.now).running_calls, 0);
}

#[test]
fn attaching_never_starts() {
    let mut f = Fixture::new();
    assert_eq!(f.journal.begin(&id("a"), print("bash"), true, || 9), Err(Refused::Unknown));
    f.begin("a").unwrap();
    assert_eq!(f.journal.begin(&id("a"), print("bash"), true, || 9), Ok(Begun::Running(1)));
}

#[rstest]
#[case::by_count(["1", "2", "3"])]
#[case::by_size(["1", "", &"x".repeat(100)])]
fn old_results_go_but_are_never_run_again(#[case] results: [&str; 3]) {
    let mut f = Fixture::new();
    for (call, content) in ["a", "b", "c"].into_iter().zip(results) {
        f.run(call, content);
    }
    assert_eq!(f.begin("a"), Err(Refused::Evicted));
    assert!(matches!(f.begin("b"), Ok(Begun::Finished(_))));
    assert!(matches!(f.begin("c"), Ok(Begun::Finished(_))));
}

#[test]
fn a_result_larger_than_all_room_is_not_kept_and_not_rerun() {
    let mut f = Fixture::new();
    f.run("a", "small");
    f.run("b", &"x".repeat(101));
    assert_eq!(f.begin("a"), Err(Refused::Evicted));
    assert_eq!(f.begin("b"), Err(Refused::Evicted));
    f.run("c", "room again");
    assert!(matches!(f.begin("c"), Ok(Begun::Finished(_))));
}

#[test]
fn a_running_call_is_never_evicted() {
    let mut f = Fixture::new();
    f.begin("slow").unwrap();
    for call in ["a", "b", "c", "d"] {
        f.run(call, "x");
    }
    assert_eq!(f.begin("slow"), Ok(Begun::Running(1)));
}

#[test]
fn the_memory_of_ids_is_bounded() {
    let mut f = Fixture::new();
    for n in 0..6 {
        f.run(&format!("c{n}"), "x");
    }
    assert_eq!(f.journal.evicted.ids.len(), 3);
    assert_eq!(f.begin("c0"), Ok(Begun::Started(7)), "the oldest id is forgotten");
    assert_eq!(f.begin("c1"), Err(Refused::Evicted));
}

#[test]
fn too_many_calls_are_refused_but_known_ones_are_found() {
    let mut f = Fixture::new();
    f.begin("a").unwrap();
    f.begin("b").unwrap();
    assert_eq!(f.begin("c"), Err(Refused::Busy));
    assert_eq!(f.begin("a"), Ok(Begun::Running(1)));
    f.finish("a", "");
    assert_eq!(f.begin("c"), Ok(Begun::Started(3)));
}

#[test]
fn idle_counts_from_the_start_and_then_from_the_end_of_the_last_call() {
    let mut f = Fixture::new();
    f.pass(7);
    assert_eq!(f.journal.activity(QUIET, f.now).idle_seconds, 7);
    f.begin("a").unwrap();
    f.pass(5);
    let activity = f.journal.activity(QUIET, f.now);
    assert_eq!((activity.running_calls, activity.idle_seconds), (1, 0));
    f.finish("a", "");
    f.pass(3);
    assert_eq!(f.journal.activity(QUIET, f.now).idle_seconds, 3);
}

#[test]
fn draining_needs_idleness_and_is_for_good() {
    let mut f = Fixture::new();
    let known = f.run("known", "x");
    f.pass(9);
    assert!(!f.journal.drain(Duration::from_secs(10), None, f.now));
    f.begin("a").unwrap();
    f.pass(60);
    assert!(!f.journal.drain(Duration::ZERO, None, f.now), "a call runs");
    f.finish("a", "");
    f.pass(10);
    assert!(f.journal.drain(Duration::from_secs(10), None, f.now));
    assert!(f.journal.activity(QUIET, f.now).draining);
    assert!(f.journal.drain(Duration::from_secs(1000), None, f.now), "repeatable");
    assert_eq!(f.begin("new"), Err(Refused::Draining));
    assert_eq!(f.begin("known"), Ok(Begun::Finished(known)));
}

#[test]
fn a_terminating_process_takes_no_call_and_does_not_drain() {
    let mut f = Fixture::new();
    f.begin("a").unwrap();
    f.journal.terminate();
    assert_eq!(f.begin("b"), Err(Refused::Terminating));
    assert_eq!(f.begin("a"), Ok(Begun::Running(1)));
    f.finish("a", "");
    assert!(!f.journal.drain(Duration::ZERO, None, f.now));
}

#[rstest]
#[case(Use::Terminal, 1)]
#[case(Use::Transfer, 2)]
fn terminals_and_transfers_keep_it_busy_and_are_bounded(#[case] what: Use, #[case] limit: usize) {
    let mut f = Fixture::new();
    for _ in 0..limit {
        assert_eq!(f.journal.open(what), Ok(()));
    }
    assert_eq!(f.journal.open(what), Err(Refused::Busy));
    f.pass(60);
    let activity = f.journal.activity(QUIET, f.now);
    assert_eq!((activity.terminals + activity.transfers, activity.idle_seconds), (limit, 0));
    assert!(!f.journal.drain(Duration::ZERO, None, f.now));
    for _ in 0..limit {
        f.journal.close(what, f.now);
    }
    f.pass(5);
    assert_eq!(f.journal.activity(QUIET, f.now).idle_seconds, 5);
    assert!(!f.journal.drain(Duration::from_secs(6), None, f.now));
    assert!(f.journal.drain(Duration::from_secs(5), None, f.now));
    assert_eq!(f.journal.open(what), Err(Refused::Draining));
}

#[test]
fn what_runs_in_the_background_counts_if_it_is_said_to() {
    let mut f = Fixture::new();
    f.pass(60);
    let idle = Duration::from_secs(10);
    let running = Background { commands: 1, last_end: None };
    let just_ended = Background { commands: 0, last_end: Some(f.now - Duration::from_secs(9)) };
    assert_eq!(f.journal.activity(running, f.now).background, 1);
    assert!(!f.journal.drain(idle, Some(running), f.now));
    assert!(!f.journal.drain(idle, Some(just_ended), f.now));
    f.pass(1);
    assert!(f.journal.drain(idle, Some(just_ended), f.now));
    let mut other = Fixture::new();
    other.pass(60);
    assert!(other.journal.drain(idle, None, other.now), "it does not count otherwise");
}

#[test]
fn what_an_earlier_process_did_is_not_done_again() {
    let mut f = Fixture::new();
    let finished =
        |call: &str| Past::Finished { call_id: id(call), fingerprint: print("bash"), output: ToolOutput::ok(call) };
    f.journal.restore(vec![
        finished("a"),
        Past::Evicted { key: key(&id("gone")) },
        Past::Unknown { key: key(&id("cut")), fingerprint: print("bash") },
        finished("b"),
        finished("c"),
    ]);
    assert_eq!(f.begin("c"), Ok(Begun::Finished(Arc::new(ToolOutput::ok("c")))));
    assert_eq!(f.begin("a"), Err(Refused::Evicted), "the bounds are as ever");
    assert_eq!(f.begin("gone"), Err(Refused::Evicted));
    assert_eq!(f.begin("cut"), Err(Refused::OutcomeUnknown));
    assert_eq!(f.journal.begin(&id("cut"), print("bash"), true, || 9), Err(Refused::OutcomeUnknown));
    assert_eq!(f.journal.begin(&id("cut"), print("read"), false, || 9), Err(Refused::Mismatch));
    assert_eq!((f.started, f.journal.activity(QUIET, f.now).running_calls), (0, 0));
}

#[rstest]
#[case(json!({"a": 1, "b": {"c": 2, "d": 3}}), json!({"b": {"d": 3, "c": 2}, "a": 1}), true)]
#[case(json!({"a": 1}), json!({"a": "1"}), false)]
#[case(json!(["ab"]), json!(["a", "b"]), false)]
#[case(json!({"a": {}}), json!({"a": []}), false)]
#[case(json!([1, 2]), json!([2, 1]), false)]
#[case(json!({"a": null}), json!({}), false)]
fn inputs_compare_as_json(#[case] left: Value, #[case] right: Value, #[case] same: bool) {
    assert_eq!(Fingerprint::of("t", &left) == Fingerprint::of("t", &right), same);
    assert_ne!(Fingerprint::of("t", &left), Fingerprint::of("u", &left));
}

#[derive(Clone, Debug)]
enum Step {
    Begin(u8),
    Finish(u8, usize),
    Drain(u64),
    Pass(u64),
    Terminate,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (0..12u8).prop_map(Step::Begin),
        8 => (0..12u8, 0..60usize).prop_map(|(call, size)| Step::Finish(call, size)),
        1 => (0..5u64).prop_map(Step::Drain),
        2 => (0..5u64).prop_map(Step::Pass),
        1 => Just(Step::Terminate),
    ];
    prop::collection::vec(step, 0..80)
}

proptest! {
    #[test]
    fn nothing_runs_twice_and_the_bounds_hold(steps in steps()) {
        // Room for every id, so that no start may ever be repeated.
        let mut now = Instant::now();
        let mut journal = Journal::new(Limits { evicted: 12, ..SMALL }, now);
        let mut starts: HashMap<u8, u32> = HashMap::new();
        let mut closed = false;
        for step in steps {
            match step {
                Step::Begin(call) => {
                    let begun = journal.begin(&id(&format!("c{call}")), print("t"), false, || call);
                    if matches!(begun, Ok(Begun::Started(_))) {
                        prop_assert!(!closed);
                        *starts.entry(call).or_default() += 1;
                    }
                }
                Step::Finish(call, size) => {
                    journal.finish(&id(&format!("c{call}")), &Arc::new(ToolOutput::ok("x".repeat(size))), now);
                }
                Step::Drain(idle) => {
                    let drained = journal.drain(Duration::from_secs(idle), None, now);
                    prop_assert!(!drained || journal.running == 0);
                    closed |= drained;
                }
                Step::Pass(seconds) => now += Duration::from_secs(seconds),
                Step::Terminate => { journal.terminate(); closed = true; }
            }
            prop_assert!(starts.values().all(|count| *count == 1));
            prop_assert!(journal.running <= SMALL.running);
            prop_assert_eq!(journal.all_running().len(), journal.running);
            prop_assert!(journal.finished.len() <= SMALL.results && journal.finished_bytes <= SMALL.result_bytes);
            prop_assert_eq!(journal.calls.len(), journal.running + journal.finished.len());
        }
    }
}

#[test]
fn a_workspace_is_filled_once_and_by_one_at_a_time() {
    let mut fixture = Fixture::new();
    let now = fixture.now;
    assert_eq!(fixture.journal.fill(), Ok(true));
    assert_eq!(fixture.journal.fill(), Err(Refused::Busy));
    assert_eq!(fixture.journal.activity(QUIET, now).transfers, 1);
    assert!(!fixture.journal.drain(Duration::ZERO, None, now), "it is in use");
    fixture.journal.filled(false, now);
    assert_eq!(fixture.journal.fill(), Ok(true), "it is begun again");
    fixture.journal.filled(true, now);
    assert_eq!(fixture.journal.activity(QUIET, now).transfers, 0);
    fixture.begin("a").unwrap();
    assert_eq!(fixture.journal.fill(), Ok(false), "whoever asks once more does not undo what was done since");
}

#[test]
fn a_workspace_that_was_used_is_not_replaced() {
    let mut fixture = Fixture::new();
    fixture.begin("a").unwrap();
    assert_eq!(fixture.journal.fill(), Err(Refused::Used));
    let mut fixture = Fixture::new();
    fixture.journal.open(Use::Terminal).unwrap();
    fixture.journal.close(Use::Terminal, fixture.now);
    assert_eq!(fixture.journal.fill(), Err(Refused::Used));
    let mut fixture = Fixture::new();
    fixture.journal.restore(vec![Past::Evicted { key: 1 }]);
    assert_eq!(fixture.journal.fill(), Err(Refused::Used));
}

#[test]
fn what_was_drained_takes_calls_again_and_is_idle_from_then_on() {
    let mut fixture = Fixture::new();
    let later = fixture.now + Duration::from_secs(60);
    assert!(fixture.journal.drain(Duration::from_secs(60), None, later));
    fixture.journal.resume(later);
    assert!(fixture.begin("a").is_ok());
    let mut fixture = Fixture::new();
    let later = fixture.now + Duration::from_secs(60);
    assert!(fixture.journal.drain(Duration::from_secs(60), None, later));
    fixture.journal.resume(later);
    assert!(!fixture.journal.drain(Duration::from_secs(60), None, later + Duration::from_secs(59)));
    fixture.journal.terminate();
    fixture.journal.resume(later);
    assert_eq!(fixture.begin("b"), Err(Refused::Terminating), "what ends goes on ending");
}
