//! How large sessions and namespaces may become.
//!
//! A session's limits are kept by its log, to the event (see [`longhand_session_log::caps`]). A namespace's are kept by
//! count: one replica counts all sessions from time to time, and every replica adds the sessions that it has made since.
//! So a namespace may exceed its limits by what is made and written between two counts.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use longhand_protocol::internal::{LimitNotice, LimitOf, Limited};
use longhand_session_log::caps::{Caps, Near};
use longhand_session_log::files::Files;
use longhand_session_log::store::{Holdings, SessionState};
use longhand_session_log::{SessionStore, StoreError};
use tokio::time::Instant;

use crate::api::error::{ApiError, Result};

/// For how long a count that was read is good enough.
const READ_AGAIN: Duration = Duration::from_secs(10);
const NAMESPACES: usize = 4_096;
/// Who is told that uploads which are under way may fill the namespace asks again.
const SETTLED: Duration = Duration::from_secs(5);

/// The limits, as flags say them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::Args)]
pub struct SizeLimits {
    /// The most events that one session's log holds; 0 is no limit.
    #[arg(long, env = "SESSION_MAX_EVENTS", default_value_t = 1_000_000)]
    pub session_max_events: u64,
    /// The most bytes that one session's log holds, in etcd and the object store together; 0 is no limit.
    #[arg(long, env = "SESSION_MAX_BYTES", default_value_t = 1 << 30)]
    pub session_max_bytes: u64,
    /// The most sessions of a namespace, those that have ended too; 0 is no limit.
    #[arg(long, env = "NAMESPACE_MAX_SESSIONS", default_value_t = 100_000)]
    pub namespace_max_sessions: u64,
    /// The most bytes that the logs and files of a namespace hold together; 0 is no limit.
    #[arg(long, env = "NAMESPACE_MAX_BYTES", default_value_t = 100 << 30)]
    pub namespace_max_bytes: u64,
    /// The most files of a namespace; 0 is no limit.
    #[arg(long, env = "NAMESPACE_MAX_FILES", default_value_t = 10_000)]
    pub namespace_max_files: u64,
    /// From which share of these limits on it is said that they come near, in percent; 0 is never.
    #[arg(long, env = "LIMIT_WARNING_PERCENT", default_value_t = 80, value_parser = clap::value_parser!(u64).range(..=100))]
    pub limit_warning_percent: u64,
}

impl SizeLimits {
    /// No limits.
    pub const NONE: Self = Self {
        session_max_events: 0,
        session_max_bytes: 0,
        namespace_max_sessions: 0,
        namespace_max_bytes: 0,
        namespace_max_files: 0,
        limit_warning_percent: 0,
    };

    /// Those of one session's log.
    #[must_use]
    pub const fn caps(&self) -> Caps {
        Caps {
            events: self.session_max_events,
            bytes: self.session_max_bytes,
            warning_percent: self.limit_warning_percent,
        }
    }

    const fn bound_namespaces(&self) -> bool {
        self.namespace_max_sessions > 0 || self.namespace_max_bytes > 0
    }

    /// The limits that a namespace that holds so much comes near to, or has reached.
    pub(crate) fn near(&self, held: Holdings) -> impl Iterator<Item = LimitNotice> + use<> {
        let percent = u128::from(self.limit_warning_percent);
        let all = [
            (Limited::Sessions, held.sessions, self.namespace_max_sessions),
            (Limited::Bytes, held.bytes, self.namespace_max_bytes),
            (Limited::Files, held.files, self.namespace_max_files),
        ];
        all.into_iter().filter_map(move |(what, held, limit)| {
            let reached = held >= limit;
            let near = percent > 0 && u128::from(held) * 100 >= u128::from(limit) * percent;
            (limit > 0 && (reached || near)).then_some(LimitNotice { of: LimitOf::Namespace, what, limit, reached })
        })
    }
}

/// What is known of what a namespace holds.
#[derive(Clone, Copy, Debug)]
struct Known {
    counted: Holdings,
    read_at: Instant,
    /// Sessions that this replica has made since it was counted.
    made: u64,
    /// Bytes of files that it has taken since.
    grown: u64,
}

/// What namespaces hold, as far as this replica knows, and may hold.
#[derive(Debug)]
pub struct Quota {
    limits: SizeLimits,
    known: Mutex<HashMap<String, Known>>,
    reserved: Reserved,
}

/// Bytes of files that are being uploaded at this replica, of each namespace.
type Reserved = Arc<Mutex<HashMap<String, u64>>>;

fn locked(reserved: &Reserved) -> MutexGuard<'_, HashMap<String, u64>> {
    reserved.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Room that is kept for an upload, until this is dropped.
#[derive(Debug)]
pub(crate) struct Room {
    reserved: Reserved,
    namespace: String,
    bytes: u64,
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut reserved = locked(&self.reserved);
        if let Some(of) = reserved.get_mut(&self.namespace) {
            *of = of.saturating_sub(self.bytes);
            if *of == 0 {
                reserved.remove(&self.namespace);
            }
        }
    }
}

impl Quota {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(limits: SizeLimits) -> Self {
        Self { limits, known: Mutex::default(), reserved: Reserved::default() }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a namespace holds, and what this replica has added.
    async fn held(&self, store: &dyn SessionStore, namespace: &str) -> Result<Holdings> {
        let known = self.known().get(namespace).copied();
        let known = match known.filter(|known| known.read_at.elapsed() < READ_AGAIN) {
            Some(known) => known,
            None => self.learn(namespace, store.holdings(namespace).await?),
        };
        let Known { counted, made, grown, .. } = known;
        let (sessions, bytes) = (counted.sessions.saturating_add(made), counted.bytes.saturating_add(grown));
        Ok(Holdings { sessions, bytes, ..counted })
    }

    fn learn(&self, namespace: &str, counted: Holdings) -> Known {
        let mut all = self.known();
        if all.len() >= NAMESPACES && !all.contains_key(namespace) {
            all.clear();
        }
        // What was made before it was counted was counted.
        let before = all.get(namespace).filter(|before| before.counted.counted_at == counted.counted_at);
        let (made, grown) = before.map_or((0, 0), |before| (before.made, before.grown));
        let known = Known { counted, read_at: Instant::now(), made, grown };
        all.insert(namespace.to_owned(), known);
        known
    }

    /// One more session was made.
    pub(crate) fn made(&self, namespace: &str) {
        if let Some(known) = self.known().get_mut(namespace) {
            known.made = known.made.saturating_add(1);
        }
    }

    /// A file of so many bytes was taken.
    pub(crate) fn grown(&self, namespace: &str, bytes: u64) {
        if let Some(known) = self.known().get_mut(namespace) {
            known.grown = known.grown.saturating_add(bytes);
        }
    }

    async fn reached(&self, store: &dyn SessionStore, namespace: &str, of: &[Limited]) -> Result<Option<LimitNotice>> {
        if !self.limits.bound_namespaces() {
            return Ok(None);
        }
        let near = self.limits.near(self.held(store, namespace).await?);
        Ok(near.filter(|near| near.reached && of.contains(&near.what)).min_by_key(|near| near.what))
    }

    /// Whether one more session may be made.
    ///
    /// # Errors
    /// 400 when the namespace holds as much as it may; those of the store.
    pub(crate) async fn check_session(&self, store: &dyn SessionStore, namespace: &str) -> Result<()> {
        refuse(namespace, self.reached(store, namespace, &[Limited::Sessions, Limited::Bytes]).await?)
    }

    /// Whether the session may be changed, which its log takes down.
    ///
    /// # Errors
    /// 400 when its log is full.
    pub(crate) fn check_change(&self, state: &SessionState) -> Result<()> {
        match self.limits.caps().near(state.size).filter(Near::is_reached) {
            None => Ok(()),
            Some(Near { what, limit, .. }) => {
                Err(StoreError::LimitReached { session: state.meta.id.clone(), what, limit }.into())
            }
        }
    }

    /// Whether more may be written to the sessions of the namespace, or uploaded to it.
    ///
    /// # Errors
    /// 400 when the namespace holds as much as it may; those of the store.
    pub(crate) async fn check_bytes(&self, store: &dyn SessionStore, namespace: &str) -> Result<()> {
        refuse(namespace, self.reached(store, namespace, &[Limited::Bytes]).await?)
    }

    /// Room for an upload of at most so many bytes. Those that are under way count as large as they may become, so that a
    /// namespace exceeds its limit by one of them at most at each replica.
    ///
    /// # Errors
    /// 400 when the namespace holds as much as it may, 429 when it may do so after the uploads that are under way; those of the
    /// store.
    pub(crate) async fn reserve(&self, store: &dyn SessionStore, namespace: &str, bytes: u64) -> Result<Room> {
        self.check_bytes(store, namespace).await?;
        let limit = self.limits.namespace_max_bytes;
        let held = if limit > 0 { self.held(store, namespace).await?.bytes } else { 0 };
        let mut reserved = locked(&self.reserved);
        let under_way = reserved.get(namespace).copied().unwrap_or_default();
        if limit > 0 && held.saturating_add(under_way) >= limit {
            return Err(ApiError::too_many(
                format!(
                    "the sessions and files of namespace {namespace} may hold {limit} bytes, which the files that are being \
                     uploaded to it may come to"
                ),
                SETTLED,
            ));
        }
        reserved.insert(namespace.to_owned(), under_way.saturating_add(bytes));
        Ok(Room { reserved: Arc::clone(&self.reserved), namespace: namespace.to_owned(), bytes })
    }

    /// Whether one more file may be uploaded to the namespace. They are counted now, so that a namespace exceeds its limit by the
    /// uploads that are under way at most.
    ///
    /// # Errors
    /// 400 when the namespace has as many as it may; those of the store.
    pub(crate) async fn check_files(&self, files: &Files, namespace: &str) -> Result<()> {
        let limit = self.limits.namespace_max_files;
        let reached = limit > 0 && files.count(namespace).await? >= limit;
        let notice = LimitNotice { of: LimitOf::Namespace, what: Limited::Files, limit, reached };
        refuse(namespace, reached.then_some(notice))
    }

    /// Whether the namespace holds as many bytes as it may.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn is_full(&self, store: &dyn SessionStore, namespace: &str) -> Result<bool> {
        Ok(self.reached(store, namespace, &[Limited::Bytes]).await?.is_some())
    }

    /// The limit that most concerns a session: one that is reached before one that comes near, its own before its
    /// namespace's.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn notice(&self, store: &dyn SessionStore, state: &SessionState) -> Result<Option<LimitNotice>> {
        let own = self.limits.caps().near(state.size).map(|near| LimitNotice {
            of: LimitOf::Session,
            what: near.what.into(),
            limit: near.limit,
            reached: near.is_reached(),
        });
        let mut notices: Vec<LimitNotice> = own.into_iter().collect();
        if self.limits.bound_namespaces() {
            let near = self.limits.near(self.held(store, &state.meta.namespace).await?);
            // How many files there are keeps no session from anything.
            notices.extend(near.filter(|near| near.what != Limited::Files));
        }
        // The first of those that matter the same.
        notices.sort_by_key(|notice| !notice.reached);
        Ok(notices.into_iter().next())
    }
}

fn refuse(namespace: &str, reached: Option<LimitNotice>) -> Result<()> {
    let Some(LimitNotice { what, limit, .. }) = reached else { return Ok(()) };
    let message = match what {
        Limited::Sessions => format!("namespace {namespace} has {limit} sessions, as many as it may: delete some"),
        Limited::Files => format!("namespace {namespace} has {limit} files, as many as it may: delete some"),
        Limited::Bytes | Limited::Events => {
            format!(
                "the sessions and files of namespace {namespace} hold {limit} bytes, as many as they may: delete some"
            )
        }
    };
    Err(ApiError::limit_reached(LimitOf::Namespace, what, limit, message))
}

#[cfg(test)]
mod tests {
    use longhand_protocol::internal::{LimitOf, Limited};
    use longhand_session_log::SessionStore as _;
    use longhand_session_log::memory::MemoryStore;
    use longhand_session_log::store::{Holdings, Size};
    use rstest::rstest;
    use tokio::time::advance;

    use super::{Quota, READ_AGAIN, SizeLimits};
    use crate::testing::meta;

    const LIMITS: SizeLimits = SizeLimits {
        session_max_events: 10,
        session_max_bytes: 0,
        namespace_max_sessions: 4,
        namespace_max_bytes: 1_000,
        namespace_max_files: 8,
        limit_warning_percent: 75,
    };

    #[rstest]
    #[case(2, 749, 5, &[])]
    #[case(3, 0, 0, &[(Limited::Sessions, false)])]
    #[case(0, 750, 0, &[(Limited::Bytes, false)])]
    #[case(0, 0, 6, &[(Limited::Files, false)])]
    #[case(4, 1_000, 8, &[(Limited::Sessions, true), (Limited::Bytes, true), (Limited::Files, true)])]
    fn limits_are_near_and_reached(
        #[case] sessions: u64,
        #[case] bytes: u64,
        #[case] files: u64,
        #[case] expected: &[(Limited, bool)],
    ) {
        let held = Holdings { sessions, bytes, files, counted_at: None };
        assert_eq!(LIMITS.near(held).map(|near| (near.what, near.reached)).collect::<Vec<_>>(), expected);
        assert_eq!(SizeLimits::NONE.near(held).count(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn uploads_under_way_count_as_large_as_they_may_become() {
        let (store, quota) = (MemoryStore::default(), Quota::new(LIMITS));
        let one = quota.reserve(&store, "ns", 600).await.unwrap();
        let two = quota.reserve(&store, "ns", 600).await.unwrap();
        let refused = quota.reserve(&store, "ns", 1).await.unwrap_err();
        assert!(refused.status() == 429 && refused.to_string().contains("being uploaded"), "{refused}");
        assert!(quota.reserve(&store, "other", 1_000).await.is_ok());
        // What was uploaded is less, and what broke off is nothing.
        quota.grown("ns", 10);
        drop((one, two));
        let room = quota.reserve(&store, "ns", 989).await.unwrap();
        assert!(quota.reserve(&store, "ns", 1).await.is_ok());
        drop(room);
        assert!(quota.reserved.lock().unwrap().is_empty());
        quota.grown("ns", 990);
        assert_eq!(quota.reserve(&store, "ns", 1).await.unwrap_err().status(), 400);
    }

    #[tokio::test(start_paused = true)]
    async fn what_this_replica_makes_counts_at_once() {
        let (store, quota) = (MemoryStore::default(), Quota::new(LIMITS));
        for name in ["a", "b", "c"] {
            quota.check_session(&store, "ns").await.unwrap();
            store.create(meta("ns", name, name)).await.unwrap();
            quota.made("ns");
        }
        quota.check_session(&store, "ns").await.unwrap();
        quota.made("ns");
        let refused = quota.check_session(&store, "ns").await.unwrap_err();
        assert_eq!(refused.status(), 400);
        assert!(refused.to_string().contains("namespace ns has 4 sessions"), "{refused}");
        quota.check_bytes(&store, "ns").await.unwrap();
        quota.check_session(&store, "other").await.unwrap();
        quota.grown("ns", 999);
        quota.check_bytes(&store, "ns").await.unwrap();
        quota.grown("ns", 1);
        let refused = quota.check_bytes(&store, "ns").await.unwrap_err();
        assert!(refused.to_string().contains("sessions and files of namespace ns hold 1000 bytes"), "{refused}");
        // The count knows better: the fourth was never made.
        advance(READ_AGAIN).await;
        quota.check_session(&store, "ns").await.unwrap();
    }

    #[tokio::test]
    async fn no_limit_asks_for_no_count() {
        let quota = Quota::new(SizeLimits { session_max_events: 1, ..SizeLimits::NONE });
        quota.check_session(&MemoryStore::default(), "ns").await.unwrap();
        quota.made("ns");
        assert!(quota.known().is_empty());
    }

    #[rstest]
    #[case(1, 1, None)]
    #[case(8, 1, Some((LimitOf::Session, Limited::Events, false)))]
    #[case(8, 3, Some((LimitOf::Session, Limited::Events, false)))]
    #[case(8, 4, Some((LimitOf::Namespace, Limited::Sessions, true)))]
    #[case(10, 4, Some((LimitOf::Session, Limited::Events, true)))]
    #[case(1, 3, Some((LimitOf::Namespace, Limited::Sessions, false)))]
    #[tokio::test]
    async fn what_matters_most_is_told(
        #[case] events: u64,
        #[case] sessions: usize,
        #[case] expected: Option<(LimitOf, Limited, bool)>,
    ) {
        let store = MemoryStore::default();
        for number in 0..sessions {
            store.create(meta("ns", &number.to_string(), &number.to_string())).await.unwrap();
        }
        let mut state = store.state(&meta("ns", "0", "0").id).await.unwrap();
        state.size = Size { events, bytes: 0 };
        let notice = Quota::new(LIMITS).notice(&store, &state).await.unwrap();
        assert_eq!(notice.map(|notice| (notice.of, notice.what, notice.reached)), expected);
    }
}
