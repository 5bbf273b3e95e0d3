//! The scopes, and that no law is broken in them.

use std::cell::RefCell;

use super::actors::{Brain, Phase, Replica, Role};
use super::etcd::Guarded;
use super::laws::Law;
use super::search::{Explored, explore};
use super::wish::{Says, Wish};
use super::world::{Action, Budget, Scope, World};

/// More states than any scope has; a larger one is explored so far.
const LIMIT: usize = 500_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Name {
    /// A client, and two harnesses of which one takes over at will; a lease runs out.
    Turns,
    /// The owner and one who takes over from it.
    Zombie,
    /// A harness that does what no good one does, and an event of the service's.
    Reckless,
    /// The same harness, which uses a tool.
    Retries,
    /// A call is open: two replicas, and a sandbox that refuses or is lost.
    Calls,
    /// A call is open: a replica, while the epoch is raised and the service appends something.
    Asked,
    /// The call's result comes while the harness waits, answers and goes idle.
    Results,
    /// Two replicas deliver the inputs, a client sends, and the session is archived.
    Inputs,
    /// A harness claims while the session is archived and its epoch raised.
    Ends,
    /// The session is removed and made again, while a client sends.
    Lives,
    /// Two replicas make the session, which is removed.
    Births,
    /// The session is removed while a call is dispatched and the epoch raised.
    Removals,
    /// The session is forked while it is removed.
    Shares,
    /// Two import the session while it is made and removed.
    Imports,
    /// A client's message is promoted, perhaps before the client knows that it is queued.
    Late,
}

fn brain(always: bool, reckless: bool) -> Role {
    Role::Brain(Brain { always, reckless, ..Brain::default() })
}

fn client(last: u8) -> Role {
    Role::Client { next: 1, last }
}

fn message() -> Wish {
    Wish::Enqueue { event: "m0".into() }
}

pub(super) fn scope(name: Name, ignored: &[Guarded], more: u8) -> Scope {
    let made = |tools| World::new(tools).done(&Wish::Create);
    let claim = Wish::Claim { brain: 0, always: true, woken: "w0".into() };
    let claimed = |tools| made(tools).done(&message()).done(&claim);
    let called = || {
        let promote = Wish::Promote { epoch: 1, head: 1, events: vec!["m0".into()] };
        let call = Wish::Append { epoch: 1, head: 2, event: "t1".into(), says: Says::ToolUse };
        claimed(true).done(&promote).done(&call)
    };
    let owner =
        |head, reckless| Role::Brain(Brain { always: true, reckless, epoch: 1, head, read: head, ..Brain::default() });
    let start = match name {
        Name::Turns => made(false).done(&message()).with(
            [client(1), brain(true, false), brain(false, false)],
            Budget { sends: more, claims: 2, crashes: 0, expiries: 1, losses: 0 },
        ),
        Name::Zombie => claimed(false).with(
            [owner(1, false), brain(true, false)],
            Budget { sends: 1 + more, claims: 1 + more, crashes: more, expiries: 0, losses: 0 },
        ),
        Name::Reckless => claimed(false).with(
            [owner(1, true), Role::Auditor { left: 1 }, client(more)],
            Budget { sends: 1, claims: more, crashes: 0, expiries: 0, losses: 0 },
        ),
        Name::Retries => claimed(true).with(
            [owner(1, true), Role::Auditor { left: 1 + more }],
            Budget { sends: 1, claims: 0, crashes: 0, expiries: 0, losses: 0 },
        ),
        Name::Calls => called().with(
            [
                Role::Asker { epoch: 1 },
                Role::Replica(Replica::default()),
                Role::Replica(Replica { phase: Phase::Free, tries: 1 - more }),
            ],
            Budget { sends: 1, claims: 0, crashes: more, expiries: 0, losses: 1 },
        ),
        Name::Asked => called().with(
            [
                Role::Asker { epoch: 1 },
                Role::Replica(Replica { phase: Phase::Free, tries: 1 }),
                Role::Leaper { left: 1 },
                Role::Auditor { left: 1 },
            ],
            Budget { sends: 1 + more, claims: 0, crashes: 0, expiries: 0, losses: 0 },
        ),
        Name::Results => called().with(
            [owner(3, false), Role::Replica(Replica::default()), Role::Leaper { left: more }],
            Budget { sends: 1, claims: more, crashes: 0, expiries: 0, losses: 0 },
        ),
        Name::Inputs => made(false).with(
            [
                Role::Deliverer { from: 0, last: 2, tries: 0 },
                Role::Deliverer { from: 0, last: 1 + u64::from(more), tries: 0 },
                client(1),
                Role::Archiver { left: 1 },
            ],
            Budget { sends: 1, claims: 0, crashes: 0, expiries: 0, losses: 0 },
        ),
        Name::Ends => made(false).done(&message()).with(
            [brain(false, false), Role::Archiver { left: 1 }, Role::Leaper { left: 1 }],
            Budget { sends: 1, claims: 1 + more, crashes: 0, expiries: 0, losses: 0 },
        ),
        Name::Lives => made(false).with(
            [client(1), Role::Remover { stage: 0 }, Role::Creator { left: 1 }, Role::Auditor { left: more }],
            Budget { sends: 1, claims: 0, crashes: 1, expiries: 0, losses: 0 },
        ),
        Name::Births => World::new(false).with(
            [Role::Creator { left: 1 }, Role::Creator { left: 1 }, Role::Remover { stage: 0 }],
            Budget { sends: more, claims: 0, crashes: 1, expiries: 0, losses: 0 },
        ),
        Name::Removals => called().with(
            [
                Role::Asker { epoch: 1 },
                Role::Replica(Replica { phase: Phase::Free, tries: 1 }),
                Role::Remover { stage: 0 },
                Role::Leaper { left: 1 },
            ],
            Budget { sends: more, claims: 0, crashes: 0, expiries: 0, losses: 0 },
        ),
        Name::Shares => made(false).with(
            [Role::Forker { left: 1 }, Role::Remover { stage: 0 }, Role::Creator { left: 1 }],
            Budget { sends: 1 + more, claims: 0, crashes: 1, expiries: 0, losses: 0 },
        ),
        Name::Imports => World::new(false).with(
            [
                Role::Importer { stage: 0 },
                Role::Importer { stage: 1 - more },
                Role::Creator { left: 1 },
                Role::Remover { stage: 0 },
            ],
            Budget { sends: 1, claims: 0, crashes: more, expiries: 0, losses: 0 },
        ),
        Name::Late => made(false).done(&claim).with(
            [client(1), owner(1, false)],
            Budget { sends: 1 + more, claims: more, crashes: 0, expiries: 0, losses: 0 },
        ),
    };
    Scope { start, ignored: ignored.to_vec(), seen: RefCell::default() }
}

pub(super) fn run(scope: &Scope) -> Explored<Action, Law> {
    explore(scope, LIMIT)
}

pub(super) fn show(found: &Explored<Action, Law>) -> String {
    let Some((law, history)) = &found.violation else { return "no law is broken".to_owned() };
    let steps: Vec<String> = history.iter().map(|action| format!("{action:?}")).collect();
    format!("{law:?} after\n  {}", steps.join("\n  "))
}

const ALL: [Name; 15] = [
    Name::Turns,
    Name::Zombie,
    Name::Reckless,
    Name::Retries,
    Name::Calls,
    Name::Asked,
    Name::Results,
    Name::Inputs,
    Name::Ends,
    Name::Lives,
    Name::Births,
    Name::Removals,
    Name::Shares,
    Name::Imports,
    Name::Late,
];

/// Explores, says how much there was, and asserts that no law is broken; whether that was all.
fn assert_lawful(name: Name, more: u8) -> bool {
    let begun = std::time::Instant::now();
    let found = run(&scope(name, &[], more));
    let (took, Explored { states, transitions, depth, ends, .. }) = (begun.elapsed(), &found);
    eprintln!("{name:?} {more}: {states} states, {transitions} transitions, depth {depth}, {ends} ends, {took:?}");
    assert!(found.violation.is_none(), "{name:?}: {}", show(&found));
    found.complete
}

#[test]
fn no_law_is_broken() {
    for name in ALL {
        assert!(assert_lawful(name, 0), "{name:?} has more than {LIMIT} states");
    }
}

/// One more of what may go wrong in each scope; as far as it gets.
#[test]
#[ignore = "takes many minutes; `cargo test -p longhand-session-log --lib larger -- --ignored --nocapture`"]
fn no_law_is_broken_in_larger_scopes() {
    for name in ALL {
        assert_lawful(name, 1);
    }
}
