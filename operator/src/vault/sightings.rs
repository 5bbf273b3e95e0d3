//! What credential proxies see of credentials, on its way from the sessions that they serve to the vaults.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use jiff::{SignedDuration, Timestamp};
use kube::runtime::reflector::ObjectRef;
use longhand_crds::Vault;

use crate::context::Guarded;

/// So many vaults are known; then the one that was not looked at for longest is forgotten.
const MAX_VAULTS: usize = 4_096;
/// So many places of a vault: twice as many as it has credentials, as some pods still mount what it named before.
const MAX_PLACES: usize = 64;
/// A proxy's words are longer than this in no case that is known.
const MAX_DETAIL: usize = 512;
/// What nobody has seen for so long says nothing.
const GOOD_FOR: SignedDuration = SignedDuration::from_hours(24);

/// The vaults that something new was seen of.
pub type News = UnboundedReceiver<ObjectRef<Guarded<Vault>>>;

/// Where a value is: a key of a Secret, as a credential of a vault named it when the pod was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) credential: String,
    pub(crate) secret: String,
    pub(crate) key: String,
}

/// How a value is, as far as a proxy sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// There is no such Secret, or no such key in it.
    Missing,
    /// It cannot be used, for this reason.
    Unusable(String),
    /// The upstream answered 401 to it.
    Refused,
    /// Nothing is wrong with it.
    Usable,
}

/// What a proxy says of a credential of a vault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) vault: String,
    pub(crate) place: Place,
    pub(crate) state: State,
    /// When the upstream took it or did not, if it was asked.
    pub(crate) answered_at: Option<Timestamp>,
}

/// What is known of a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sighting {
    pub(crate) place: Place,
    pub(crate) state: State,
    answered_at: Option<Timestamp>,
    /// The session whose proxy saw it first.
    pub(crate) session: String,
    /// When it was last seen.
    at: Timestamp,
}

/// By namespace and name.
type Vaults = BTreeMap<(String, String), Vec<Sighting>>;

/// What is known of each vault.
pub struct Sightings {
    vaults: Mutex<Vaults>,
    tell: UnboundedSender<ObjectRef<Guarded<Vault>>>,
}

impl State {
    /// Whether there is a value that an upstream may have answered to.
    const fn is_answered(&self) -> bool {
        matches!(self, Self::Refused | Self::Usable)
    }
}

impl Seen {
    /// Whether an upstream's older answer is outdone by a newer one: sessions tell in any order.
    fn is_older_than(&self, state: &State, answered_at: Option<Timestamp>) -> bool {
        self.state.is_answered() && state.is_answered() && self.answered_at < answered_at
    }
}

impl Sightings {
    /// None yet, and where it is told what is new.
    #[must_use]
    pub fn new() -> (Self, News) {
        let (tell, news) = unbounded();
        (Self { vaults: Mutex::default(), tell }, news)
    }

    /// Takes note of what the proxy of a session says.
    pub(crate) fn note(&self, namespace: &str, session: &str, report: Vec<Seen>, now: Timestamp) {
        let mut vaults = self.lock();
        for seen in worst(report) {
            let name = (namespace.to_owned(), seen.vault.clone());
            if !vaults.contains_key(&name) {
                make_room(&mut vaults, now);
            }
            if note_one(vaults.entry(name).or_default(), session, &seen, now) {
                // An error says that the controller of vaults has ended.
                let _ = self.tell.unbounded_send(ObjectRef::new(&seen.vault).within(namespace));
            }
        }
    }

    /// What is known of a vault.
    pub(crate) fn of(&self, namespace: &str, vault: &str, now: Timestamp) -> Vec<Sighting> {
        let vaults = self.lock();
        let known = vaults.get(&(namespace.to_owned(), vault.to_owned())).into_iter().flatten();
        known.filter(|sighting| is_good(sighting, now)).cloned().collect()
    }

    /// Forgets a vault that is gone.
    pub(crate) fn forget(&self, namespace: &str, vault: &str) {
        self.lock().remove(&(namespace.to_owned(), vault.to_owned()));
    }

    fn lock(&self) -> MutexGuard<'_, Vaults> {
        self.vaults.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_good(sighting: &Sighting, now: Timestamp) -> bool {
    now.duration_since(sighting.at) < GOOD_FOR
}

/// One for each place: a pod may mount it more than once, and what is wrong with one of the mounts counts.
fn worst(report: Vec<Seen>) -> Vec<Seen> {
    let mut all: Vec<Seen> = Vec::new();
    for seen in report {
        match all.iter_mut().find(|known| (&known.vault, &known.place) == (&seen.vault, &seen.place)) {
            Some(known) if known.state.is_answered() && !seen.is_older_than(&known.state, known.answered_at) => {
                *known = seen;
            }
            Some(_) => {}
            None => all.push(seen),
        }
    }
    all
}

fn make_room(vaults: &mut Vaults, now: Timestamp) {
    vaults.retain(|_, known| {
        known.retain(|sighting| is_good(sighting, now));
        !known.is_empty()
    });
    if vaults.len() >= MAX_VAULTS {
        let last_seen = |known: &Vec<Sighting>| known.iter().map(|sighting| sighting.at).max();
        let oldest = vaults.iter().min_by_key(|(_, known)| last_seen(known)).map(|(name, _)| name.clone());
        if let Some(oldest) = oldest {
            vaults.remove(&oldest);
        }
    }
}

/// Whether it is news.
fn note_one(known: &mut Vec<Sighting>, session: &str, seen: &Seen, now: Timestamp) -> bool {
    let state = match &seen.state {
        State::Unusable(detail) => State::Unusable(detail.chars().take(MAX_DETAIL).collect()),
        other => other.clone(),
    };
    if let Some(before) = known.iter_mut().find(|before| before.place == seen.place) {
        if seen.is_older_than(&before.state, before.answered_at) {
            return false;
        }
        (before.answered_at, before.at) = (seen.answered_at, now);
        let is_news = before.state != state;
        if is_news {
            (before.state, before.session) = (state, session.to_owned());
        }
        return is_news;
    }
    if known.len() >= MAX_PLACES {
        known.sort_by_key(|sighting| sighting.at);
        known.remove(0);
    }
    known.push(Sighting {
        place: seen.place.clone(),
        state,
        answered_at: seen.answered_at,
        session: session.to_owned(),
        at: now,
    });
    true
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt as _, StreamExt as _};
    use jiff::{SignedDuration, Timestamp};
    use rstest::rstest;

    use super::{GOOD_FOR, MAX_DETAIL, MAX_PLACES, MAX_VAULTS, News, Place, Seen, Sightings, State};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn seen(state: State, answered_at: Option<i64>) -> Seen {
        seen_in("models", "model-key", state, answered_at)
    }

    fn seen_in(vault: &str, secret: &str, state: State, answered_at: Option<i64>) -> Seen {
        let place = Place { credential: "api-key".into(), secret: secret.into(), key: "token".into() };
        Seen { vault: vault.into(), place, state, answered_at: answered_at.map(at) }
    }

    fn news(news: &mut News) -> usize {
        std::iter::from_fn(|| news.next().now_or_never().flatten()).count()
    }

    /// The state and who saw it, and how often the vault was woken.
    fn after(reports: Vec<(&str, Vec<Seen>)>) -> (State, String, usize) {
        let (sightings, mut told) = Sightings::new();
        for (second, (session, report)) in (100..).zip(reports) {
            sightings.note("team", session, report, at(second));
        }
        let [known] = sightings.of("team", "models", at(200)).try_into().unwrap();
        (known.state, known.session, news(&mut told))
    }

    #[rstest]
    #[case::the_same_is_no_news(
        vec![("a", vec![seen(State::Missing, None)]), ("b", vec![seen(State::Missing, None)])],
        (State::Missing, "a", 1)
    )]
    #[case::it_heals(
        vec![("a", vec![seen(State::Missing, None)]), ("b", vec![seen(State::Usable, None)])],
        (State::Usable, "b", 2)
    )]
    #[case::another_session_has_not_used_it_since(
        vec![("a", vec![seen(State::Refused, Some(7))]), ("b", vec![seen(State::Usable, None)])],
        (State::Refused, "a", 1)
    )]
    #[case::another_session_was_taken_before(
        vec![("a", vec![seen(State::Refused, Some(7))]), ("b", vec![seen(State::Usable, Some(6))])],
        (State::Refused, "a", 1)
    )]
    #[case::another_session_was_taken_since(
        vec![("a", vec![seen(State::Refused, Some(7))]), ("b", vec![seen(State::Usable, Some(8))]),
             ("a", vec![seen(State::Refused, Some(7))])],
        (State::Usable, "b", 2)
    )]
    #[case::gone_after_it_was_used(
        vec![("a", vec![seen(State::Usable, Some(7))]), ("b", vec![seen(State::Missing, None)])],
        (State::Missing, "b", 2)
    )]
    #[case::one_of_two_mounts_is_behind(
        vec![("a", vec![seen(State::Missing, None), seen(State::Usable, None)]),
             ("a", vec![seen(State::Usable, None), seen(State::Missing, None)])],
        (State::Missing, "a", 1)
    )]
    #[case::one_of_two_routes_was_refused(
        vec![("a", vec![seen(State::Refused, Some(1)), seen(State::Usable, None)])],
        (State::Refused, "a", 1)
    )]
    fn what_was_seen_last_counts(#[case] reports: Vec<(&str, Vec<Seen>)>, #[case] expected: (State, &str, usize)) {
        let (state, session, told) = after(reports);
        assert_eq!((state, session.as_str(), told), expected);
    }

    #[test]
    fn a_secret_that_was_named_before_is_another_place() {
        let (sightings, _news) = Sightings::new();
        let report =
            vec![seen_in("models", "old", State::Missing, None), seen_in("models", "new", State::Usable, None)];
        sightings.note("team", "a", report, at(1));
        assert_eq!(sightings.of("team", "models", at(1)).len(), 2);
        assert_eq!(sightings.of("other", "models", at(1)), []);
    }

    #[test]
    fn it_goes_with_its_vault_and_with_time() {
        let (sightings, mut told) = Sightings::new();
        let note = |second| sightings.note("team", "a", vec![seen(State::Missing, None)], at(second));
        note(0);
        let end = at(0).checked_add(GOOD_FOR).unwrap();
        let before = end.checked_sub(SignedDuration::from_secs(1)).unwrap();
        assert_eq!(sightings.of("team", "models", before).len(), 1);
        assert_eq!(sightings.of("team", "models", end), []);
        sightings.note("team", "b", vec![seen_in("other", "s", State::Usable, None)], end);
        assert_eq!(sightings.lock().len(), 1, "what is too old is thrown away");
        assert_eq!(news(&mut told), 2);
        sightings.forget("team", "other");
        assert!(sightings.lock().is_empty());
    }

    #[test]
    fn it_is_bounded() {
        let (sightings, _news) = Sightings::new();
        for number in 0..=MAX_VAULTS {
            let vault = format!("v{number}");
            let second = i64::try_from(number).unwrap();
            sightings.note("team", "a", vec![seen_in(&vault, "s", State::Usable, None)], at(second));
        }
        assert_eq!(sightings.lock().len(), MAX_VAULTS);
        assert_eq!(sightings.of("team", "v0", at(1)), [], "the oldest goes");
        for number in 0..=MAX_PLACES {
            let secret = format!("s{number}");
            let report = vec![seen_in("v9", &secret, State::Unusable("é".repeat(MAX_DETAIL + 1)), None)];
            sightings.note("team", "a", report, at(5_000));
        }
        let known = sightings.of("team", "v9", at(5_000));
        assert_eq!(known.len(), MAX_PLACES);
        assert_eq!(known[0].state, State::Unusable("é".repeat(MAX_DETAIL)));
    }
}
