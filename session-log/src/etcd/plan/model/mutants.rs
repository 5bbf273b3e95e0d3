//! What each guard is there for: an etcd that ignores it breaks a law.

use std::collections::BTreeSet;

use rstest::rstest;

use super::etcd::{Guarded, Part};
use super::laws::Law;
use super::scopes::{Name, run, scope, show};
use super::wish::Kind;

/// Each guard, where its absence shows, and as what.
const NEEDED: [(Kind, Part, Name, Law); 33] = [
    (Kind::Create, Part::Meta, Name::Lives, Law::WrongLife),
    (Kind::Create, Part::Deleting, Name::Births, Law::WrongLife),
    (Kind::Create, Part::Importing, Name::Imports, Law::WrongLife),
    (Kind::Fork, Part::Meta, Name::Shares, Law::Resurrected),
    (Kind::ImportBegin, Part::Meta, Name::Imports, Law::WrongLife),
    (Kind::ImportBegin, Part::Deleting, Name::Imports, Law::WrongLife),
    (Kind::ImportFinish, Part::Importing, Name::Imports, Law::WrongLife),
    (Kind::Close, Part::Meta, Name::Lives, Law::WrongLife),
    (Kind::Close, Part::Forks, Name::Shares, Law::Orphaned),
    (Kind::Close, Part::Importing, Name::Imports, Law::WrongLife),
    (Kind::Archive, Part::Head, Name::Ends, Law::Rewritten),
    (Kind::Leap, Part::Head, Name::Removals, Law::Resurrected),
    (Kind::Enqueue, Part::Meta, Name::Lives, Law::Resurrected),
    (Kind::Enqueue, Part::Ended, Name::Inputs, Law::AfterTheEnd),
    (Kind::Enqueue, Part::Inbox, Name::Lives, Law::Rewritten),
    (Kind::Enqueue, Part::Idem, Name::Late, Law::Duplicated),
    (Kind::Deliver, Part::Meta, Name::Inputs, Law::Miscounted),
    (Kind::Deliver, Part::Ended, Name::Inputs, Law::AfterTheEnd),
    (Kind::Claim, Part::Head, Name::Zombie, Law::Rewritten),
    (Kind::Promote, Part::Head, Name::Reckless, Law::Rewritten),
    (Kind::Append, Part::Head, Name::Reckless, Law::Rewritten),
    (Kind::Append, Part::Idem, Name::Retries, Law::Rewritten),
    (Kind::Idle, Part::Head, Name::Reckless, Law::Rewritten),
    (Kind::Idle, Part::Inbox, Name::Reckless, Law::IdleOverQueue),
    (Kind::Idle, Part::Wake, Name::Reckless, Law::IdleTwice),
    (Kind::Audit, Part::Head, Name::Asked, Law::Rewritten),
    (Kind::Finish, Part::Head, Name::Asked, Law::Rewritten),
    (Kind::Finish, Part::Call, Name::Results, Law::RanAfterAll),
    (Kind::Dispatch, Part::Epoch, Name::Asked, Law::Zombie),
    (Kind::Dispatch, Part::Head, Name::Removals, Law::Resurrected),
    (Kind::Dispatch, Part::Call, Name::Results, Law::LateResult),
    (Kind::Undispatch, Part::Head, Name::Removals, Law::Resurrected),
    (Kind::Undispatch, Part::Call, Name::Calls, Law::LateResult),
];

/// Guards that another guard of the same transaction implies, so that nothing changes without them.
const IMPLIED: [(Kind, Part, Part); 6] = [
    // Whatever takes an event out of the inbox moves the head.
    (Kind::Promote, Part::Inbox, Part::Head),
    // No brain of the model calls an event of its own as one is called that is queued: `tests/store` has one.
    (Kind::Promote, Part::Idem, Part::Head),
    // Whatever puts an event into the log moves the head, and these look before they write.
    (Kind::Audit, Part::Idem, Part::Head),
    (Kind::Finish, Part::Idem, Part::Head),
    // Each delivery changes `meta`.
    (Kind::Deliver, Part::Inbox, Part::Meta),
    (Kind::Deliver, Part::Idem, Part::Meta),
];

#[test]
fn an_etcd_that_ignores_a_guard_breaks_a_law() {
    let mut wrong = Vec::new();
    for (kind, part, name, law) in NEEDED {
        let found = run(&scope(name, &[(kind, part)], 0));
        if found.violation.as_ref().is_none_or(|(broken, _)| *broken != law) {
            wrong.push(format!("without {part:?}, {kind:?} should end in {law:?}: {}", show(&found)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The same law is broken without the guard that implies it, and none without the one that is implied.
#[rstest]
#[case(Name::Zombie)]
#[case(Name::Asked)]
#[case(Name::Results)]
#[case(Name::Reckless)]
#[case(Name::Inputs)]
fn a_guard_that_is_implied_changes_nothing(#[case] name: Name) {
    let seen = run_and_see(name);
    let implied: Vec<Guarded> = IMPLIED.iter().map(|(kind, part, _)| (*kind, *part)).collect();
    let here: Vec<Guarded> = implied.into_iter().filter(|guard| seen.contains(guard)).collect();
    assert!(!here.is_empty(), "this scope says nothing about them");
    let found = run(&scope(name, &here, 0));
    assert!(found.violation.is_none(), "{}", show(&found));
    for (kind, _, by) in IMPLIED {
        assert!(NEEDED.iter().any(|(other, part, ..)| (*other, *part) == (kind, by)), "{kind:?} {by:?} is not needed");
    }
}

fn run_and_see(name: Name) -> BTreeSet<Guarded> {
    let scope = scope(name, &[], 0);
    run(&scope);
    scope.seen.into_inner()
}

/// A guard that nobody has asked about yet fails this.
#[test]
fn every_guard_is_accounted_for() {
    let small = [Name::Lives, Name::Births, Name::Removals, Name::Results, Name::Asked, Name::Inputs, Name::Late];
    let more = [Name::Ends, Name::Zombie, Name::Reckless, Name::Retries, Name::Shares, Name::Imports];
    let seen: BTreeSet<Guarded> = small.into_iter().chain(more).flat_map(run_and_see).collect();
    let needed = NEEDED.iter().map(|(kind, part, ..)| (*kind, *part));
    let known: BTreeSet<Guarded> = needed.chain(IMPLIED.iter().map(|(kind, part, _)| (*kind, *part))).collect();
    let differing: Vec<&Guarded> = seen.symmetric_difference(&known).collect();
    assert!(differing.is_empty(), "{differing:?}");
}
