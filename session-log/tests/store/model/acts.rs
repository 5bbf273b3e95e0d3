//! What may happen, and how often.

use proptest::prelude::{Just, Strategy, any, prop, prop_oneof};

/// So many sessions there may be.
pub(super) const SESSIONS: usize = 5;

/// What somebody does. Numbers pick from what there is, wrapping around; sequence numbers may be one beyond the end.
#[derive(Clone, Debug)]
pub(super) enum Op {
    /// To one session.
    On(Which, Act),
    /// Makes a session of this number, perhaps again.
    Create(usize),
    /// Makes the session of number `to` begin with another's history.
    Fork { of: Which, to: usize, at: u64 },
    /// Takes a session out, and in again as the one of number `to`.
    Import { of: Which, to: usize, damage: Damage },
}

/// Which session is meant.
#[derive(Clone, Copy, Debug)]
pub(super) enum Which {
    /// One of those that there are.
    Live(usize),
    /// The one of this number, whether there is one or not.
    Any(usize),
}

/// What happens to one session.
#[derive(Clone, Debug)]
pub(super) enum Act {
    Enqueue {
        count: usize,
        large: bool,
    },
    Deliver {
        from: u64,
    },
    Claim {
        brain: usize,
        takeover: bool,
    },
    LoseClaim,
    Renew {
        brain: usize,
    },
    /// Reads the head and the inbox.
    Look {
        brain: usize,
    },
    /// A brain forgets everything, as when its process ends.
    Crash {
        brain: usize,
    },
    /// Where a brain is `fresh`, it has just looked.
    Append {
        brain: usize,
        fresh: bool,
        calls: usize,
        what: What,
    },
    Promote {
        brain: usize,
        fresh: bool,
        count: usize,
    },
    Idle {
        brain: usize,
        fresh: bool,
    },
    Audit {
        what: What,
    },
    Dispatch {
        brain: usize,
        call: usize,
        to: usize,
    },
    Undispatch {
        call: usize,
        from: usize,
    },
    Finish {
        call: usize,
        from: Option<usize>,
        by: Answerer,
    },
    Call {
        call: usize,
    },
    /// The last change again, with the same identifiers: the caller has not seen its answer.
    Repeat,
    Archive,
    Leap,
    Delete,
    State,
    Slice(Shape),
    Position {
        event: u64,
    },
    /// Follows the log from a record to its end.
    Tail {
        after: u64,
    },
    Export,
    /// Events leave for the object store, if there is one.
    MoveOut {
        all: bool,
    },
}

/// What is appended.
#[derive(Clone, Copy, Debug)]
pub(super) enum What {
    Running,
    Rescheduled,
    Terminated,
    Usage,
    Span,
    Large,
}

/// Who has run the tool.
#[derive(Clone, Copy, Debug)]
pub(super) enum Answerer {
    Sandbox,
    Worker,
    /// With a result that is too large for etcd.
    Verbose,
}

/// What becomes of a file between export and import.
#[derive(Clone, Copy, Debug)]
pub(super) enum Damage {
    None,
    Cut,
    Swapped,
    Changed,
    OtherEnd,
}

/// Which slice is asked for.
#[derive(Clone, Debug)]
pub(super) enum Shape {
    Last { limit: usize },
    Around { seq: u64, radius: usize },
    Any { after: u64, before: Option<u64>, desc: bool, limit: usize, types: usize, times: [Option<Time>; 2] },
}

/// The time of a record, and so many milliseconds.
pub(super) type Time = (u64, i64);

pub(super) fn op() -> impl Strategy<Value = Op> {
    let damage = prop_oneof![
        4 => Just(Damage::None),
        1 => Just(Damage::Cut),
        1 => Just(Damage::Swapped),
        1 => Just(Damage::Changed),
        1 => Just(Damage::OtherEnd),
    ];
    prop_oneof![
        40 => (which(), act()).prop_map(|(on, act)| Op::On(on, act)),
        1 => (0..SESSIONS).prop_map(Op::Create),
        3 => (which(), 0..SESSIONS, 0..60_u64).prop_map(|(of, to, at)| Op::Fork { of, to, at }),
        2 => (which(), 0..SESSIONS, damage).prop_map(|(of, to, damage)| Op::Import { of, to, damage }),
    ]
}

/// Most of it happens to one.
fn which() -> impl Strategy<Value = Which> {
    prop_oneof![
        8 => Just(Which::Live(0)),
        8 => (0..SESSIONS).prop_map(Which::Live),
        1 => (0..SESSIONS).prop_map(Which::Any),
    ]
}

fn act() -> impl Strategy<Value = Act> {
    let crash = brain().prop_map(|brain| Act::Crash { brain });
    prop_oneof![
        9 => clients(),
        36 => brains(),
        15 => calls(),
        12 => readers(),
        9 => keepers(),
        1 => crash,
        6 => Just(Act::Repeat),
    ]
}

/// One of the two does most of the work.
fn brain() -> impl Strategy<Value = usize> {
    prop_oneof![3 => Just(0), 1 => Just(1)]
}

fn clients() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => (1..4_usize, prop::bool::weighted(0.1)).prop_map(|(count, large)| Act::Enqueue { count, large }),
        1 => (0..4_u64).prop_map(|from| Act::Deliver { from }),
    ]
}

fn brains() -> impl Strategy<Value = Act> {
    let fresh = || prop::bool::weighted(0.7);
    prop_oneof![
        6 => (brain(), any::<bool>()).prop_map(|(brain, takeover)| Act::Claim { brain, takeover }),
        2 => Just(Act::LoseClaim),
        2 => brain().prop_map(|brain| Act::Renew { brain }),
        4 => brain().prop_map(|brain| Act::Look { brain }),
        10 => (brain(), fresh(), 0..3_usize, what())
            .prop_map(|(brain, fresh, calls, what)| Act::Append { brain, fresh, calls, what }),
        8 => (brain(), fresh(), 1..4_usize).prop_map(|(brain, fresh, count)| Act::Promote { brain, fresh, count }),
        6 => (brain(), fresh()).prop_map(|(brain, fresh)| Act::Idle { brain, fresh }),
    ]
}

fn calls() -> impl Strategy<Value = Act> {
    let (call, to) = (|| 0..3_usize, || 0..2_usize);
    let by = prop_oneof![Just(Answerer::Sandbox), Just(Answerer::Worker), Just(Answerer::Verbose)];
    prop_oneof![
        3 => (brain(), call(), to()).prop_map(|(brain, call, to)| Act::Dispatch { brain, call, to }),
        1 => (call(), to()).prop_map(|(call, from)| Act::Undispatch { call, from }),
        3 => (call(), prop::option::of(to()), by).prop_map(|(call, from, by)| Act::Finish { call, from, by }),
        1 => call().prop_map(|call| Act::Call { call }),
    ]
}

fn readers() -> impl Strategy<Value = Act> {
    prop_oneof![
        1 => Just(Act::State),
        5 => shape().prop_map(Act::Slice),
        1 => (0..1_000_u64).prop_map(|event| Act::Position { event }),
        1 => (0..60_u64).prop_map(|after| Act::Tail { after }),
        1 => Just(Act::Export),
    ]
}

/// The service, and its operator.
fn keepers() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => what().prop_map(|what| Act::Audit { what }),
        1 => Just(Act::Archive),
        1 => Just(Act::Leap),
        1 => Just(Act::Delete),
        4 => any::<bool>().prop_map(|all| Act::MoveOut { all }),
    ]
}

fn what() -> impl Strategy<Value = What> {
    prop_oneof![
        8 => Just(What::Running),
        2 => Just(What::Rescheduled),
        1 => Just(What::Terminated),
        3 => Just(What::Usage),
        3 => Just(What::Span),
        2 => Just(What::Large),
    ]
}

fn shape() -> impl Strategy<Value = Shape> {
    let time = || prop::option::of((0..30_u64, -1..2_i64));
    let limit = || 0..12_usize;
    let place = (0..60_u64, prop::option::of(0..60_u64), any::<bool>(), limit());
    prop_oneof![
        1 => limit().prop_map(|limit| Shape::Last { limit }),
        1 => (0..60_u64, 0..5_usize).prop_map(|(seq, radius)| Shape::Around { seq, radius }),
        3 => (place, 0..TYPES.len(), time(), time()).prop_map(|((after, before, desc, limit), types, since, until)| {
            Shape::Any { after, before, desc, limit, types, times: [since, until] }
        }),
    ]
}

/// Types that are asked for.
pub(super) const TYPES: [&[&str]; 7] = [
    &[],
    &["user.message"],
    &["session.*"],
    &["x.*"],
    &["*"],
    &["agent.tool_use", "agent.tool_result", "user.tool_result"],
    &["x.*", "*"],
];
