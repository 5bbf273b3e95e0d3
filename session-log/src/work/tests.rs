use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use longhand_protocol::SessionId;
use longhand_protocol::wire::work::WorkState;
use proptest::prelude::*;
use rstest::rstest;

use super::item::NO_HEARTBEAT;
use super::{MemoryWork, Queue, Refused, Work, WorkError, WorkItem};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + second).unwrap()
}

const RECLAIM: SignedDuration = SignedDuration::from_secs(5);

fn item() -> WorkItem {
    WorkItem::new(SessionId::generate(), at(0))
}

/// Taken and acknowledged by a worker.
fn starting() -> WorkItem {
    let mut item = item();
    item.take(Some("w"), at(1));
    item.acknowledge(Some(1), at(2)).unwrap();
    item
}

fn active() -> WorkItem {
    let mut item = starting();
    item.heartbeat(Some(NO_HEARTBEAT), None, Some(1), at(3)).unwrap();
    item
}

#[test]
fn work_goes_from_the_queue_to_its_end() {
    let mut item = item();
    assert!(item.id.starts_with("work_") && item.waits(at(0), RECLAIM));
    item.take(Some("w"), at(1));
    assert_eq!((item.state, item.attempt, item.waits(at(2), RECLAIM)), (WorkState::Queued, 1, false));
    item.acknowledge(None, at(2)).unwrap();
    assert_eq!((item.state, item.acknowledged_at), (WorkState::Starting, Some(at(2))));
    let beat = item.heartbeat(Some(NO_HEARTBEAT), Some(30), Some(1), at(3)).unwrap();
    assert_eq!((item.state, item.ttl_seconds, beat.extended), (WorkState::Active, 30, true));
    let echo = beat.last_heartbeat.unwrap().to_string();
    item.heartbeat(Some(&echo), None, Some(1), at(20)).unwrap();
    item.stop(false, None, at(21)).unwrap();
    assert_eq!(item.state, WorkState::Stopping);
    assert!(!item.heartbeat(Some("anything"), None, Some(1), at(22)).unwrap().extended, "its worker is to end");
    item.stop(true, Some(1), at(23)).unwrap();
    assert_eq!((item.state, item.stop_requested_at, item.stopped_at), (WorkState::Stopped, Some(at(21)), Some(at(23))));
    assert_eq!(item.stop(true, Some(1), at(24)), Err(Refused::State(WorkState::Stopped)));
}

#[rstest]
#[case::unacknowledged(5, true)]
#[case::just_taken(4, false)]
fn what_is_taken_and_not_acknowledged_waits_again(#[case] after: i64, #[case] waits: bool) {
    let mut item = item();
    item.take(None, at(0));
    assert_eq!(item.waits(at(after), RECLAIM), waits);
}

#[rstest]
#[case(63, false)]
#[case(64, true)]
fn a_worker_that_is_not_heard_of_loses_its_work(#[case] second: i64, #[case] lost: bool) {
    let mut item = active();
    assert_eq!(item.waits(at(second), RECLAIM), lost);
    assert_eq!(item.served_by(at(second)), (!lost).then_some(1));
    let echo = item.latest_heartbeat_at.unwrap().to_string();
    let mut taken = item.clone();
    taken.take(Some("other"), at(second));
    assert!(matches!(taken.heartbeat(Some(&echo), None, Some(1), at(second)), Err(Refused::Precondition(_))));
    assert!(item.heartbeat(Some(&echo), None, Some(1), at(second)).is_ok(), "nobody else has taken it");
}

#[rstest]
#[case::of_the_queue(item(), Some(NO_HEARTBEAT))]
#[case::a_second_first_one(active(), Some(NO_HEARTBEAT))]
#[case::an_unknown_one(active(), Some("2026-01-01T00:00:00Z"))]
#[case::one_of_none(starting(), Some("2026-01-01T00:00:00Z"))]
#[case::nonsense(active(), Some(""))]
fn a_heartbeat_that_expects_something_else_is_refused(#[case] mut item: WorkItem, #[case] expected: Option<&str>) {
    let before = item.clone();
    let Err(Refused::Precondition(state)) = item.heartbeat(expected, None, None, at(4)) else {
        panic!("it was taken");
    };
    assert_eq!((state.state, state.lease_extended), (before.state, false));
    assert_eq!(item, before);
}

#[test]
fn an_old_attempt_can_do_nothing() {
    let mut item = starting();
    item.take(None, at(100));
    item.acknowledge(Some(2), at(101)).unwrap();
    assert!(matches!(item.heartbeat(Some(NO_HEARTBEAT), None, Some(1), at(102)), Err(Refused::Precondition(_))));
    assert_eq!(item.acknowledge(Some(1), at(102)), Err(Refused::Lost));
    assert_eq!(item.stop(true, Some(1), at(102)), Err(Refused::Lost));
    assert!(item.admits(2) && !item.admits(1));
}

#[test]
fn what_is_asked_to_stop_ends_when_its_worker_is_not_heard_of() {
    let mut item = active();
    item.stop(false, None, at(4)).unwrap();
    assert!(!item.settle(at(63)));
    assert!(!item.waits(at(64), RECLAIM), "it is not given to another");
    assert!(item.settle(at(64)) && item.has_ended());
}

#[test]
fn pairs_are_bounded() {
    let patch = |key: &str, value: Option<&str>| [(key.to_owned(), value.map(ToOwned::to_owned))].into();
    let mut item = item();
    item.patch(&patch("a", Some("1"))).unwrap();
    item.patch(&patch("a", None)).unwrap();
    assert!(item.metadata.is_empty());
    assert_eq!(item.patch(&patch("", Some("1"))), Err(Refused::Metadata));
    assert_eq!(item.clone().patch(&patch("a", Some(&"v".repeat(513)))), Err(Refused::Metadata));
}

#[derive(Clone, Debug)]
enum Op {
    Take,
    Acknowledge(usize),
    Heartbeat(usize),
    Stop(usize, bool),
    Wait(i64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => Just(Op::Take),
        3 => (0..4_usize).prop_map(Op::Acknowledge),
        5 => (0..4_usize).prop_map(Op::Heartbeat),
        1 => ((0..4_usize), any::<bool>()).prop_map(|(worker, force)| Op::Stop(worker, force)),
        3 => (0..40_i64).prop_map(Op::Wait),
    ]
}

/// What a worker knows of the work that it took.
#[derive(Clone)]
struct Hold {
    attempt: u64,
    echo: String,
}

proptest! {
    /// Whatever workers do and however slow they are: only the latest attempt is ever told that it has the work, attempts
    /// only grow, an end is an end, and what is served has a lease.
    #[test]
    fn one_worker_has_the_work_at_a_time(ops in prop::collection::vec(op(), 0..80)) {
        let mut item = item();
        let mut now = at(0);
        let mut holds: Vec<Hold> = Vec::new();
        let mut ended = false;
        for op in ops {
            let before = item.attempt;
            match op {
                Op::Wait(seconds) => now += SignedDuration::from_secs(seconds),
                Op::Take if item.waits(now, RECLAIM) => {
                    item.take(None, now);
                    holds.push(Hold { attempt: item.attempt, echo: NO_HEARTBEAT.to_owned() });
                }
                Op::Take => {}
                Op::Acknowledge(who) => if let Some(hold) = pick(&mut holds, who) {
                    let taken = item.acknowledge(Some(hold.attempt), now);
                    prop_assert!(taken.is_err() || hold.attempt == item.attempt);
                },
                Op::Heartbeat(who) => if let Some(hold) = pick(&mut holds, who)
                    && let Ok(beat) = item.heartbeat(Some(&hold.echo), None, Some(hold.attempt), now)
                    && beat.extended
                {
                    prop_assert_eq!(hold.attempt, item.attempt);
                    let echo = beat.last_heartbeat.unwrap().to_string();
                    prop_assert_ne!(&echo, &hold.echo);
                    hold.echo = echo;
                },
                Op::Stop(who, force) => if let Some(hold) = pick(&mut holds, who) {
                    let stopped = item.stop(force, Some(hold.attempt), now);
                    prop_assert!(stopped.is_err() || hold.attempt == item.attempt);
                },
            }
            item.settle(now);
            prop_assert!(item.attempt >= before);
            prop_assert!(!ended || item.has_ended());
            ended = item.has_ended();
            prop_assert!(!ended || (item.stopped_at.is_some() && item.served_by(now).is_none()));
            let has_lease = matches!(item.state, WorkState::Starting | WorkState::Active | WorkState::Stopping);
            prop_assert_eq!(item.leased_until.is_some(), has_lease);
        }
    }
}

fn pick(holds: &mut [Hold], who: usize) -> Option<&mut Hold> {
    let count = holds.len();
    holds.get_mut(count.checked_sub(1 + who)?)
}

fn queue() -> Queue {
    Queue { namespace: "team-a".to_owned(), environment: "mine".to_owned() }
}

fn work() -> Work {
    Work::new(Arc::new(MemoryWork::default()))
}

#[tokio::test]
async fn a_session_has_one_piece_of_work_until_it_ends() {
    let (work, session) = (work(), SessionId::generate());
    let first = work.ensure(&queue(), &session).await.unwrap();
    assert_eq!(work.ensure(&queue(), &session).await.unwrap().id, first.id);
    work.change(&queue(), &first.id, |item, now| item.stop(true, None, now)).await.unwrap();
    let second = work.ensure(&queue(), &session).await.unwrap();
    assert_ne!(second.id, first.id);
    assert_eq!(work.latest(&queue(), &session).await.unwrap().unwrap().id, second.id);
    assert_eq!(work.list(&queue()).await.unwrap().len(), 2);
    let other = Queue { environment: "other".to_owned(), ..queue() };
    assert!(work.list(&other).await.unwrap().is_empty());
    assert!(matches!(work.get(&other, &first.id).await, Err(WorkError::NotFound(_))));
}

#[tokio::test]
async fn workers_take_different_pieces_and_the_oldest_first() {
    let work = work();
    let mut made = Vec::new();
    for _ in 0..3 {
        made.push(work.ensure(&queue(), &SessionId::generate()).await.unwrap().id);
    }
    let take = || async {
        let taken = work.take(&queue(), None, Duration::from_secs(60), Duration::ZERO).await.unwrap();
        taken.map(|item| item.id)
    };
    let (a, b, c, d) = tokio::join!(take(), take(), take(), take());
    let mut taken: Vec<String> = [a, b, c, d].into_iter().flatten().collect();
    taken.sort();
    made.sort();
    assert_eq!(taken, made);
}

#[tokio::test(start_paused = true)]
async fn who_waits_gets_what_is_queued_meanwhile() {
    let work = work();
    let waiting = work.clone();
    let queue = queue();
    let taker = {
        let queue = queue.clone();
        tokio::spawn(
            async move { waiting.take(&queue, Some("w"), Duration::from_secs(5), Duration::from_secs(1)).await },
        )
    };
    tokio::task::yield_now().await;
    let made = work.ensure(&queue, &SessionId::generate()).await.unwrap();
    assert_eq!(taker.await.unwrap().unwrap().unwrap().id, made.id);
    let none = work.take(&queue, None, Duration::from_secs(5), Duration::from_secs(1)).await.unwrap();
    assert_eq!(none, None);
}
