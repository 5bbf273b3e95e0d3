//! How much each caller may ask, and how many events each session and namespace takes.

use std::time::Duration;

use longhand_protocol::SessionId;

use crate::api::error::{ApiError, Result};
use crate::auth::Identity;
use crate::metrics;
use crate::rate::{Limiter, Rate};

const CALLERS: usize = 16_384;
const SESSIONS: usize = 16_384;
const NAMESPACES: usize = 4_096;

/// The rates, as flags say them.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Rates {
    /// Requests a second that one caller may make for long; 0 is no limit. A harness pod is a caller of its own.
    #[arg(long, env = "REQUESTS_PER_SECOND", default_value_t = 200)]
    pub requests_per_second: u32,
    /// Requests that one caller may make at once.
    #[arg(long, env = "REQUEST_BURST", default_value_t = 1_000)]
    pub request_burst: u32,
    /// Events a second that clients may send to one session for long; 0 is no limit.
    #[arg(long, env = "SESSION_EVENTS_PER_SECOND", default_value_t = 50)]
    pub session_events_per_second: u32,
    /// Events a second that clients may send to all sessions of a namespace for long; 0 is no limit.
    #[arg(long, env = "NAMESPACE_EVENTS_PER_SECOND", default_value_t = 1_000)]
    pub namespace_events_per_second: u32,
    /// Requests a second with an `Idempotency-Key` that one caller may make for long; 0 is no limit. Each is remembered for
    /// 24 h.
    #[arg(long, env = "IDEMPOTENCY_KEYS_PER_SECOND", default_value_t = 5)]
    pub idempotency_keys_per_second: u32,
    /// Event streams, transfers and ways into sandboxes of one namespace that one replica holds open at a time; 0 is as many as
    /// of all namespaces together, which are 2,048.
    #[arg(long, env = "NAMESPACE_OPEN_STREAMS", default_value_t = 512)]
    pub namespace_open_streams: u32,
}

/// Bursts of events are as long as this at the rate.
const EVENT_BURST_SECONDS: u32 = 10;
/// Bursts of requests that are remembered are as long as this at the rate.
const REMEMBERED_BURST_SECONDS: u32 = 600;

/// What is left for whom.
#[derive(Debug)]
pub struct Limits {
    callers: Limiter<String>,
    remembered: Limiter<String>,
    sessions: Limiter<SessionId>,
    namespaces: Limiter<String>,
}

impl Limits {
    /// Nobody has asked for anything yet.
    #[must_use]
    pub fn new(rates: Rates) -> Self {
        let rate = |per_second: u32, seconds: u32| Rate { per_second, burst: per_second.saturating_mul(seconds) };
        let events = |per_second: u32| rate(per_second, EVENT_BURST_SECONDS);
        let remembered = rate(rates.idempotency_keys_per_second, REMEMBERED_BURST_SECONDS);
        let requests = Rate { per_second: rates.requests_per_second, burst: rates.request_burst };
        Self {
            callers: Limiter::new(requests, CALLERS),
            remembered: Limiter::new(remembered, CALLERS),
            sessions: Limiter::new(events(rates.session_events_per_second), SESSIONS),
            namespaces: Limiter::new(events(rates.namespace_events_per_second), NAMESPACES),
        }
    }

    /// One more request of a caller.
    ///
    /// # Errors
    /// 429, with how long to wait.
    pub fn request(&self, identity: &Identity) -> Result<()> {
        let key = identity.pod().map_or_else(|| identity.username.clone(), |pod| pod.uid);
        self.callers.take(&key, 1).map_err(|wait| limited("caller", "you send too many requests", wait))
    }

    /// One more request of a caller that is remembered for its `Idempotency-Key`.
    ///
    /// # Errors
    /// 429, with how long to wait.
    pub fn remembered(&self, identity: &Identity) -> Result<()> {
        let taken = self.remembered.take(&identity.username, 1);
        taken.map_err(|wait| limited("remembered", "you send too many requests with an `Idempotency-Key`", wait))
    }

    /// More events of a client for a session.
    ///
    /// # Errors
    /// 429, with how long to wait.
    pub fn events(&self, namespace: &str, session: &SessionId, events: usize) -> Result<()> {
        let events = u32::try_from(events).unwrap_or(u32::MAX);
        let sent = self.sessions.take(session, events);
        sent.map_err(|wait| limited("session", "too many events are sent to this session", wait))?;
        let sent = self.namespaces.take(&namespace.to_owned(), events);
        sent.map_err(|wait| limited("namespace", "too many events are sent to the sessions of this namespace", wait))
    }
}

fn limited(of: &'static str, message: &str, wait: Duration) -> ApiError {
    metrics::rate_limited(of);
    ApiError::too_many(message, wait)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use longhand_protocol::SessionId;

    use super::{Limits, Rates};
    use crate::auth::Identity;

    const RATES: Rates = Rates {
        requests_per_second: 1,
        request_burst: 1,
        session_events_per_second: 1,
        namespace_events_per_second: 2,
        idempotency_keys_per_second: 1,
        namespace_open_streams: 0,
    };

    fn pod(uid: &str) -> Identity {
        let extra = |key: &str, value: &str| (format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]);
        Identity {
            username: "system:serviceaccount:team-a:default".to_owned(),
            extra: BTreeMap::from([extra("pod-name", "p"), extra("pod-uid", uid)]),
            ..Identity::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn harnesses_of_one_account_do_not_share_a_limit() {
        let limits = Limits::new(RATES);
        limits.request(&pod("a")).unwrap();
        limits.request(&pod("b")).unwrap();
        assert_eq!(limits.request(&pod("a")).unwrap_err().status(), 429);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_is_bounded_for_each_caller() {
        let limits = Limits::new(RATES);
        for _ in 0..600 {
            limits.remembered(&pod("a")).unwrap();
        }
        assert_eq!(limits.remembered(&pod("b")).unwrap_err().status(), 429, "pods of one account share what is kept");
        limits.remembered(&Identity { username: "alice".to_owned(), ..Identity::default() }).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_and_its_namespace_have_their_own() {
        let limits = Limits::new(RATES);
        let session = |id: &str| id.parse::<SessionId>().unwrap();
        limits.events("team-a", &session("sesn_1"), 10).unwrap();
        assert!(limits.events("team-a", &session("sesn_1"), 1).unwrap_err().to_string().contains("this session"));
        limits.events("team-a", &session("sesn_2"), 10).unwrap();
        assert!(limits.events("team-a", &session("sesn_3"), 1).unwrap_err().to_string().contains("this namespace"));
        limits.events("team-b", &session("sesn_4"), 1).unwrap();
    }
}
