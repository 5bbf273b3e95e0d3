//! Harnesses that wait at this replica for a session.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use longhand_protocol::SessionId;
use tokio::sync::oneshot;

use super::pods::Pool;
use crate::metrics;

/// Harnesses that wait at this replica, by the agent whose sessions they may take.
#[derive(Debug, Default)]
pub(super) struct Polls {
    waiting: Mutex<HashMap<Pool, VecDeque<Poll>>>,
}

/// A pod waits.
#[derive(Debug)]
struct Poll {
    pod_uid: String,
    offer: oneshot::Sender<SessionId>,
}

impl Polls {
    /// Waits for a session. The pod's wait before this one, whose connection may be dead, ends.
    pub(super) fn wait(&self, pool: &Pool, pod_uid: &str) -> oneshot::Receiver<SessionId> {
        let (offer, offered) = oneshot::channel();
        let mut waiting = self.waiting();
        let polls = waiting.entry(pool.clone()).or_default();
        polls.retain(|poll| poll.pod_uid != pod_uid);
        polls.push_back(Poll { pod_uid: pod_uid.to_owned(), offer });
        tidy(&mut waiting);
        offered
    }

    /// Whether somebody waits for sessions of this agent.
    pub(super) fn any(&self, pool: &Pool) -> bool {
        self.waiting().get(pool).is_some_and(|polls| polls.iter().any(|poll| !poll.offer.is_closed()))
    }

    /// Whether somebody waits for sessions of this namespace.
    pub(super) fn any_in(&self, namespace: &str) -> bool {
        self.waiting().keys().any(|pool| pool.namespace == namespace)
    }

    /// Gives the session to the one that has waited longest; whether there was one.
    pub(super) fn offer(&self, pool: &Pool, session: &SessionId) -> bool {
        let mut waiting = self.waiting();
        let Some(polls) = waiting.get_mut(pool) else { return false };
        let mut given = false;
        while !given && let Some(poll) = polls.pop_front() {
            given = poll.offer.send(session.clone()).is_ok();
        }
        tidy(&mut waiting);
        given
    }

    /// Forgets who has hung up.
    pub(super) fn tidy(&self) {
        tidy(&mut self.waiting());
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<Pool, VecDeque<Poll>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn tidy(waiting: &mut HashMap<Pool, VecDeque<Poll>>) {
    waiting.values_mut().for_each(|polls| polls.retain(|poll| !poll.offer.is_closed()));
    waiting.retain(|_, polls| !polls.is_empty());
    metrics::parked(waiting.values().map(VecDeque::len).sum());
}

#[cfg(test)]
mod tests {
    use longhand_protocol::SessionId;

    use super::{Polls, Pool};

    fn pool(agent: &str) -> Pool {
        Pool { namespace: "team-a".to_owned(), agent: agent.to_owned() }
    }

    #[test]
    fn who_waited_longest_gets_it_and_who_hung_up_does_not() {
        let (polls, session) = (Polls::default(), "sesn_1".parse::<SessionId>().unwrap());
        let gone = polls.wait(&pool("a"), "p1");
        let mut first = polls.wait(&pool("a"), "p2");
        let mut second = polls.wait(&pool("a"), "p3");
        let mut other = polls.wait(&pool("b"), "p4");
        drop(gone);
        assert!(polls.any(&pool("a")) && polls.any_in("team-a") && !polls.any_in("team-b"));
        assert!(polls.offer(&pool("a"), &session));
        assert_eq!(first.try_recv().unwrap(), session);
        assert!(second.try_recv().is_err() && other.try_recv().is_err());
        assert!(polls.offer(&pool("a"), &session));
        assert_eq!(second.try_recv().unwrap(), session);
        assert!(!polls.offer(&pool("a"), &session) && !polls.any(&pool("a")));
        assert!(polls.any(&pool("b")));
    }

    #[test]
    fn a_pod_waits_once() {
        let (polls, session) = (Polls::default(), "sesn_1".parse::<SessionId>().unwrap());
        let mut old = polls.wait(&pool("a"), "p1");
        let mut new = polls.wait(&pool("a"), "p1");
        assert!(polls.offer(&pool("a"), &session));
        assert!(old.try_recv().is_err());
        assert_eq!(new.try_recv().unwrap(), session);
        assert!(!polls.offer(&pool("a"), &session));
    }
}
