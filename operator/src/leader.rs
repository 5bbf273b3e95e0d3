//! Which replica leads: a Lease, judged without comparing clocks.
//!
//! A holder is dead when its lease has not changed for a whole duration *as this replica saw it*, so that the clocks of
//! nodes need not agree.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::calls::{CallError, call};
use crate::health::Health;

/// How long a lease holds without a renewal.
const DURATION: Duration = Duration::from_secs(15);
/// How often the holder renews it.
const RENEW: Duration = Duration::from_secs(5);
/// How often the others look at it.
const RETRY: Duration = Duration::from_secs(2);
/// The holder gives up this long before the others may take over.
const GIVE_UP: Duration = Duration::from_secs(10);

/// A lease that cannot be released runs out by itself; the process must not be kept by it.
const RELEASE: Duration = Duration::from_secs(5);

/// What to do about a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decision {
    /// Nobody has made it yet.
    Create,
    /// It is ours, or nobody's, or its holder is dead.
    Take,
    /// Its holder lives.
    Wait,
}

/// `unchanged` is for how long this replica has seen the lease as it is.
fn decide(lease: Option<&LeaseSpec>, me: &str, unchanged: Duration) -> Decision {
    let Some(lease) = lease else { return Decision::Create };
    let holder = lease.holder_identity.as_deref().unwrap_or_default();
    let held_for = lease
        .lease_duration_seconds
        .and_then(|seconds| u64::try_from(seconds).ok())
        .map_or(DURATION, Duration::from_secs);
    if holder.is_empty() || holder == me || unchanged >= held_for { Decision::Take } else { Decision::Wait }
}

/// The lease as `me` holds it from `now` on.
fn held(old: Option<&LeaseSpec>, me: &str, now: Timestamp) -> LeaseSpec {
    let mine = old.filter(|old| old.holder_identity.as_deref() == Some(me));
    let transitions = old.and_then(|old| old.lease_transitions).unwrap_or(0);
    LeaseSpec {
        holder_identity: Some(me.to_owned()),
        lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
        acquire_time: mine.and_then(|old| old.acquire_time.clone()).or(Some(MicroTime(now))),
        renew_time: Some(MicroTime(now)),
        lease_transitions: Some(if mine.is_some() { transitions } else { transitions.saturating_add(1) }),
        ..LeaseSpec::default()
    }
}

/// One replica's view of the lease.
pub struct Elector {
    api: Api<Lease>,
    name: String,
    identity: String,
    health: Health,
    /// The lease's version when it last changed, and when this replica saw that.
    seen: Option<(String, Instant)>,
    /// When the last write that took or renewed the lease was begun: the others count from no earlier moment.
    renewed: Instant,
}

impl Elector {
    /// An elector for the lease `name` in `namespace`.
    #[must_use]
    pub fn new(client: Client, namespace: &str, name: &str, identity: &str, health: Health) -> Self {
        let api = Api::namespaced(client, namespace);
        Self { api, name: name.to_owned(), identity: identity.to_owned(), health, seen: None, renewed: Instant::now() }
    }

    /// Returns when this replica leads; `None` when `token` was cancelled first.
    pub async fn acquire(&mut self, token: &CancellationToken) -> Option<()> {
        loop {
            match token.run_until_cancelled(self.attempt()).await? {
                Ok(true) => return Some(()),
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, "cannot look at the lease"),
            }
            token.run_until_cancelled(tokio::time::sleep(RETRY)).await?;
        }
    }

    /// Renews the lease; returns when it is lost, or `token` is cancelled.
    pub async fn hold(&mut self, token: &CancellationToken) {
        let mut pause = RENEW.saturating_sub(self.renewed.elapsed());
        while token.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
            // A call that hangs must not outlast the lease.
            let left = GIVE_UP.saturating_sub(self.renewed.elapsed());
            let attempt = token.run_until_cancelled(tokio::time::timeout(left, self.attempt()));
            match attempt.await {
                Some(Ok(Ok(true))) => pause = RENEW,
                Some(Ok(Ok(false))) => return tracing::warn!("another replica holds the lease"),
                Some(Ok(Err(error))) => {
                    tracing::warn!(%error, "cannot renew the lease");
                    pause = RETRY;
                }
                Some(Err(_)) => {}
                None => return,
            }
            if self.renewed.elapsed() >= GIVE_UP {
                return tracing::warn!("the lease could not be renewed in time");
            }
        }
    }

    /// Gives the lease up, so that another replica need not wait until it runs out.
    pub async fn release(&self) {
        match tokio::time::timeout(RELEASE, self.try_release()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "cannot release the lease"),
            Err(_) => tracing::warn!("cannot release the lease in time"),
        }
    }

    async fn try_release(&self) -> Result<(), CallError> {
        let Some(mut lease) = self.read().await? else { return Ok(()) };
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() != Some(self.identity.as_str()) {
            return Ok(());
        }
        spec.holder_identity = None;
        spec.renew_time = Some(MicroTime(Timestamp::now()));
        self.replace(&lease).await.map(|_| ())
    }

    async fn read(&self) -> Result<Option<Lease>, CallError> {
        call(|| format!("get lease {}", self.name), self.api.get_opt(&self.name)).await
    }

    async fn replace(&self, lease: &Lease) -> Result<Lease, CallError> {
        call(|| format!("update lease {}", self.name), self.api.replace(&self.name, &PostParams::default(), lease))
            .await
    }

    /// Whether this replica holds the lease now.
    async fn attempt(&mut self) -> Result<bool, CallError> {
        let lease = self.read().await;
        self.health.set_ready(lease.is_ok());
        let lease = lease?;
        let spec = lease.as_ref().and_then(|lease| lease.spec.as_ref());
        let unchanged = lease.as_ref().map_or(Duration::ZERO, |lease| self.unchanged(lease));
        let spec = match decide(spec, &self.identity, unchanged) {
            Decision::Wait => return Ok(false),
            Decision::Create | Decision::Take => held(spec, &self.identity, Timestamp::now()),
        };
        let begun = Instant::now();
        let written = match lease {
            Some(lease) => self.replace(&Lease { spec: Some(spec), ..lease }).await,
            None => {
                let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
                let lease = Lease { metadata, spec: Some(spec) };
                call(|| format!("create lease {}", self.name), self.api.create(&PostParams::default(), &lease)).await
            }
        };
        match written {
            Ok(_) => {
                self.renewed = begun;
                Ok(true)
            }
            // Another replica was faster.
            Err(error) if error.is_conflict() || error.is_already_exists() => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn unchanged(&mut self, lease: &Lease) -> Duration {
        let version = lease.metadata.resource_version.as_deref().unwrap_or_default();
        match &self.seen {
            Some((seen, since)) if seen == version => since.elapsed(),
            _ => {
                self.seen = Some((version.to_owned(), Instant::now()));
                Duration::ZERO
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::{Request, Response, StatusCode};
    use jiff::Timestamp;
    use k8s_openapi::api::coordination::v1::LeaseSpec;
    use kube::Client;
    use kube::client::Body;
    use rstest::rstest;
    use serde_json::json;
    use tokio::time::Instant;
    use tokio_util::sync::CancellationToken;

    use super::{DURATION, Decision, Elector, decide, held};
    use crate::health::Health;

    fn lease(holder: &str) -> LeaseSpec {
        LeaseSpec {
            holder_identity: (!holder.is_empty()).then(|| holder.to_owned()),
            lease_duration_seconds: Some(15),
            lease_transitions: Some(3),
            ..LeaseSpec::default()
        }
    }

    #[rstest]
    #[case::nobody_made_it(None, 0, Decision::Create)]
    #[case::released(Some(lease("")), 0, Decision::Take)]
    #[case::mine(Some(lease("me")), 0, Decision::Take)]
    #[case::just_seen(Some(lease("other")), 0, Decision::Wait)]
    #[case::alive(Some(lease("other")), 14, Decision::Wait)]
    #[case::dead(Some(lease("other")), 15, Decision::Take)]
    #[case::no_duration(Some(LeaseSpec { lease_duration_seconds: None, ..lease("other") }), 14, Decision::Wait)]
    #[case::nonsense(Some(LeaseSpec { lease_duration_seconds: Some(-1), ..lease("other") }), 15, Decision::Take)]
    fn a_lease_is_taken_only_from_nobody_or_the_dead(
        #[case] lease: Option<LeaseSpec>,
        #[case] unchanged: u64,
        #[case] expected: Decision,
    ) {
        assert_eq!(decide(lease.as_ref(), "me", Duration::from_secs(unchanged)), expected);
    }

    #[test]
    fn taking_over_is_counted_and_renewing_is_not() {
        let (first, second) = (Timestamp::from_second(1).unwrap(), Timestamp::from_second(2).unwrap());
        let taken = held(Some(&lease("other")), "me", first);
        assert_eq!((taken.lease_transitions, taken.holder_identity.as_deref()), (Some(4), Some("me")));
        let renewed = held(Some(&taken), "me", second);
        assert_eq!(renewed.lease_transitions, Some(4));
        assert_eq!(renewed.acquire_time.unwrap().0, first);
        assert_eq!(renewed.renew_time.unwrap().0, second);
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_gives_up_before_another_may_take_over_however_slow_the_answer_was() {
        let (service, mut server) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
        let mut elector = Elector::new(Client::new(service, "default"), "system", "lease", "me", Health::default());
        let answers = tokio::spawn(async move {
            let body = |value: serde_json::Value| Body::from(serde_json::to_vec(&value).unwrap());
            let missing =
                json!({ "kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404, "message": "" });
            let (_, answer) = server.next_request().await.unwrap();
            answer.send_response(Response::builder().status(StatusCode::NOT_FOUND).body(body(missing)).unwrap());
            let (_, answer) = server.next_request().await.unwrap();
            // The lease was written at once, and the answer took its time.
            tokio::time::sleep(Duration::from_secs(9)).await;
            answer.send_response(Response::new(body(json!({ "metadata": { "name": "lease" } }))));
            // After that the API server is away.
            let mut unanswered = Vec::new();
            while let Some(request) = server.next_request().await {
                unanswered.push(request);
            }
        });
        let (token, written) = (CancellationToken::new(), Instant::now());
        elector.acquire(&token).await.unwrap();
        elector.hold(&token).await;
        assert!(written.elapsed() < DURATION, "{:?}", written.elapsed());
        drop(elector);
        answers.await.unwrap();
    }
}
