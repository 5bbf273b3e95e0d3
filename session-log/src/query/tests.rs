use jiff::Timestamp;
use longhand_protocol::event::{Event, EventBody};
use longhand_protocol::wire::Order;
use longhand_protocol::{EventId, Record};
use proptest::prelude::{Just, Strategy, any, prop, prop_assert, prop_assert_eq, prop_oneof, proptest};
use rstest::rstest;

use super::{PAGE, PASSED_OVER, Query, SLICE_BYTES, Scan, TimeSearch, type_matches};

const KINDS: [&str; 4] = ["user.message", "agent.message", "agent.tool_use", "x.session.woken"];

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn record(seq: u64, kind: &str, second: i64) -> Record {
    let body = EventBody::Other { kind: kind.to_owned(), fields: serde_json::Map::new() };
    let event = Event { id: EventId::generate(), body, processed_at: Some(at(second)) };
    Record { seq, epoch: 0, prev_hash: String::new(), event }
}

/// A log whose times never fall.
fn log() -> impl Strategy<Value = Vec<Record>> {
    prop::collection::vec((0..KINDS.len(), 0..3_i64), 0..400).prop_map(|entries| {
        let mut second = 0;
        let entries = entries.into_iter().zip(1..).map(|((kind, passed), seq)| {
            second += passed;
            record(seq, KINDS[kind], second)
        });
        entries.collect()
    })
}

fn query() -> impl Strategy<Value = Query> {
    let types = prop::collection::vec(
        prop_oneof![Just("*"), Just("x.*"), Just("agent.*"), Just("user.message"), Just("none.such")],
        0..3,
    );
    let time = || prop::option::of((0..500_i64).prop_map(at));
    (0..450_u64, prop::option::of(0..450_u64), any::<bool>(), 0..300_usize, types, time(), time()).prop_map(
        |(after, before, newest_first, limit, types, since, until)| Query {
            after: after.saturating_sub(50),
            before,
            order: if newest_first { Order::Desc } else { Order::Asc },
            limit,
            types: types.into_iter().map(str::to_owned).collect(),
            since,
            until,
        },
    )
}

/// One slice, as a store makes it.
fn scan(log: &[Record], query: &Query) -> crate::store::Slice {
    let head = log.last().map_or(0, |record| record.seq);
    let get = |seq: u64| &log[usize::try_from(seq - 1).unwrap()];
    let mut scan = Scan::new(query, head, query.range(head));
    while let Some(window) = scan.window() {
        assert!(window.end() - window.start() < PAGE);
        scan.take(window.map(|seq| (get(seq).clone(), 100)).collect());
    }
    scan.finish()
}

fn naive(log: &[Record], query: &Query) -> Vec<u64> {
    let placed = |seq: u64| seq > query.after && query.before.is_none_or(|before| seq < before);
    let mut seqs: Vec<u64> =
        log.iter().filter(|record| placed(record.seq) && query.admits(record)).map(|record| record.seq).collect();
    if query.order == Order::Desc {
        seqs.reverse();
    }
    seqs
}

proptest! {
    #[test]
    fn pages_add_up_to_what_was_asked_for(log in log(), query in query()) {
        let expected = naive(&log, &query);
        let first = scan(&log, &query);
        let seqs: Vec<u64> = first.records.iter().map(|record| record.seq).collect();
        prop_assert_eq!(&seqs[..], &expected[..expected.len().min(query.limit)]);

        let mut all = Vec::new();
        let (mut next, mut asked) = (Some(query.clone()), 0);
        while let Some(query) = next.take().filter(|query| query.limit > 0) {
            let slice = scan(&log, &query);
            all.extend(slice.records.iter().map(|record| record.seq));
            next = slice.next.map(|next| query.from(next));
            asked += 1;
            prop_assert!(asked <= log.len() + 1, "every page makes progress");
        }
        prop_assert!(query.limit == 0 || all == expected, "{:?} {:?}", all, expected);
    }

    #[test]
    fn a_time_is_found_in_few_steps(log in log(), second in 0..900_i64) {
        let mut search = TimeSearch::new(at(second), u64::try_from(log.len()).unwrap());
        let mut steps = 0;
        loop {
            let probes = search.probes();
            if probes.is_empty() {
                break;
            }
            for seq in probes {
                search.take(seq, log[usize::try_from(seq - 1).unwrap()].event.processed_at);
            }
            steps += 1;
            prop_assert!(steps < 8);
        }
        let expected = log.iter().find(|record| record.event.processed_at >= Some(at(second)));
        prop_assert_eq!(search.found(), expected.map_or(u64::try_from(log.len()).unwrap() + 1, |record| record.seq));
    }
}

#[test]
fn what_is_passed_over_is_bounded() {
    let log: Vec<Record> = (1..=20_000).map(|seq| record(seq, "agent.message", 1)).collect();
    let query = Query { types: vec!["user.message".into()], ..Query::after(0, 10) };
    let slice = scan(&log, &query);
    assert!(slice.records.is_empty());
    assert_eq!(slice.next, Some(u64::try_from(PASSED_OVER).unwrap()));
}

#[test]
fn what_is_read_is_bounded_in_bytes() {
    let query = Query::last(1_000);
    let mut scan = Scan::new(&query, 1_000, query.range(1_000));
    let window = scan.window().unwrap();
    assert_eq!(window, 873..=1_000);
    scan.take(window.map(|seq| (record(seq, "agent.message", 1), SLICE_BYTES)).collect());
    assert_eq!(scan.window(), None);
    let slice = scan.finish();
    assert_eq!((slice.records.len(), slice.next), (1, Some(1_000)));
}

#[rstest]
#[case(5, 2, 2, Some(8), 5)]
#[case(1, 2, 0, Some(4), 5)]
#[case(u64::MAX, 1, u64::MAX - 2, Some(u64::MAX), 3)]
fn around_an_event(
    #[case] seq: u64,
    #[case] radius: usize,
    #[case] after: u64,
    #[case] before: Option<u64>,
    #[case] limit: usize,
) {
    let query = Query::around(seq, radius);
    assert_eq!((query.after, query.before, query.limit), (after, before, limit));
}

#[rstest]
#[case("*", "agent.message", true)]
#[case("*", "x.session.woken", false)]
#[case("x.*", "x.session.woken", true)]
#[case("x.session.*", "x.session.woken", true)]
#[case("x.session.*", "x.sessions", false)]
#[case("agent*", "agent.message", false)]
#[case("agent.message", "agent.message", true)]
fn types_are_named_or_of_a_family(#[case] wanted: &str, #[case] kind: &str, #[case] admitted: bool) {
    assert_eq!(type_matches(wanted, kind), admitted);
}
