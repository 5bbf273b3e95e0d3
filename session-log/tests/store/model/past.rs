//! Interleavings on which the stores differed once.

use longhand_session_log::caps::Caps;
use rstest::rstest;

use super::acts::{Act, Answerer, Damage, Op, What, Which};

fn on(act: Act) -> Op {
    Op::On(Which::Live(0), act)
}

fn audit(what: What) -> Op {
    on(Act::Audit { what })
}

fn enqueue() -> Op {
    queue(1)
}

fn queue(count: usize) -> Op {
    on(Act::Enqueue { count, large: false })
}

fn take_in(damage: Damage) -> Op {
    Op::Import { of: Which::Live(0), to: 1, damage }
}

fn finish(by: Answerer) -> Op {
    on(Act::Finish { call: 0, from: None, by })
}

fn append(what: What) -> Op {
    on(Act::Append { brain: 0, fresh: true, calls: 1, what })
}

#[rstest]
#[case::a_fork_beyond_the_end_onto_one_that_is_there(&[
    Op::Create(1),
    Op::Fork { of: Which::Any(0), to: 1, at: 60 },
    Op::Fork { of: Which::Any(1), to: 1, at: 1 },
])]
#[case::what_has_ended_takes_nothing_whatever_is_said_of_it(&[
    audit(What::Terminated), audit(What::Running), enqueue(), on(Act::Archive), audit(What::Running), enqueue(),
])]
#[case::also_elsewhere(&[
    on(Act::Archive),
    take_in(Damage::None),
    Op::On(Which::Any(1), Act::Audit { what: What::Running }),
    Op::On(Which::Any(1), Act::Enqueue { count: 1, large: false }),
])]
#[case::the_result_of_a_worker_is_known_elsewhere(&[
    append(What::Running), finish(Answerer::Worker), take_in(Damage::None), Op::On(Which::Any(1), Act::Call { call: 0 }),
])]
#[case::a_large_call_is_closed_elsewhere(&[append(What::Large), take_in(Damage::None)])]
#[case::a_zombie_whose_replica_has_not_seen_a_leap(&[
    on(Act::Claim { brain: 1, takeover: true }), on(Act::Leap), append(What::Running),
])]
#[case::a_fork_of_a_fork_whose_parent_comes_last(&[
    Op::Create(4),
    Op::Fork { of: Which::Any(4), to: 1, at: 0 },
    Op::Fork { of: Which::Any(1), to: 2, at: 0 },
])]
#[tokio::test]
async fn both_stores_answer_the_same_again(#[case] ops: &[Op]) {
    let (expected, actual) = super::both(ops, Caps::default()).await;
    assert_eq!(expected, actual);
}

#[rstest]
#[case::a_replica_that_has_not_seen_what_another_has_queued(&[
    on(Act::Append { brain: 0, fresh: false, calls: 2, what: What::Running }),
    audit(What::Usage),
    on(Act::Claim { brain: 0, takeover: false }),
    on(Act::Promote { brain: 0, fresh: true, count: 1 }),
    queue(3),
    queue(2),
    queue(1),
    queue(1),
])]
#[tokio::test]
async fn both_stores_let_as_much_into_a_log_again(#[case] ops: &[Op]) {
    let (expected, actual) = super::both(ops, super::CAPS).await;
    assert_eq!(expected, actual);
}
