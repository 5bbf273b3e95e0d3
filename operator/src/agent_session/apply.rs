//! The only writer of harness pods.

use jiff::Timestamp;
use kube::{Resource as _, ResourceExt as _};
use longhand_crds::agent_session::{AgentSessionStatus, HarnessStatus};
use longhand_crds::session_id;
use longhand_process::trace::only_in;
use tracing::{Instrument as _, info_span};

use super::Sessions;
use super::harness_pod;
use super::observe::Observed;
use super::plan::{NewPod, Plan};
use super::status::{limit_news, with_harness};
use crate::error::Error;
use crate::events::Happened;
use crate::pods::{self, Made};
use crate::sandbox::ground;
use crate::{metrics, status};

/// Does what the plan says; `harness` follows what is done, also when something fails.
pub(super) async fn apply(
    observed: &Observed,
    plan: &Plan,
    harness: &mut HarnessStatus,
    sessions: &Sessions,
) -> Result<(), Error> {
    let Plan { remove, forget, make, harness: _, lost, view: _, requeue: _ } = plan;
    let namespace = observed.session.namespace().unwrap_or_default();
    // The new pod first: somebody waits for it, and those that go have nothing to do with it.
    if let Some(new) = make {
        let woken_by = sessions.wakes.traceparent(&session_id(&observed.session.metadata));
        let span = only_in(woken_by, || info_span!("start harness", %namespace, pod = new.name));
        make_pod(observed, new, lost.is_some(), harness, sessions).instrument(span).await?;
    }
    for (name, uid) in remove {
        pods::delete(&sessions.context.client, &namespace, name, uid).await?;
    }
    for (name, uid) in forget {
        pods::forget(&sessions.context.client, &namespace, name, uid).await?;
    }
    Ok(())
}

async fn make_pod(
    observed: &Observed,
    new: &NewPod,
    replaces: bool,
    harness: &mut HarnessStatus,
    sessions: &Sessions,
) -> Result<(), Error> {
    let Ok(references) = &observed.references else { return Ok(()) };
    let session = &observed.session;
    let (namespace, owner) = (session.namespace().unwrap_or_default(), session.uid().unwrap_or_default());
    let context = &sessions.context;
    let verify_key = match &references.egress {
        Some(_) => Some(ground::verify_key(context).await?),
        None => None,
    };
    let pod = harness_pod::build(context, session, references, verify_key.as_deref(), &new.name);
    let pod = match pods::create(&context.client, &namespace, &pod, &owner).await? {
        Made::Ours(pod) => pod,
        Made::Foreign => return Err(Error::NameTaken { namespace, name: new.name.clone() }),
    };
    metrics::pod_created("harness");
    // A pod that replaces another says nothing of how long a wake takes.
    if let Some(since) = observed.wake_since.filter(|_| observed.pods.is_empty() && !replaces) {
        metrics::stage(metrics::Stage::WakeToPod, pods::elapsed(since, Timestamp::now()));
    }
    harness.generation = new.generation;
    (harness.pod_name, harness.pod_uid) = (Some(new.name.clone()), pod.metadata.uid);
    let named = with_harness(observed, harness.clone());
    status::write(&context.client, &**session, session.status.as_ref(), &named).await?;
    Ok(())
}

/// Tells what was done, and what the status says now that it did not say before.
pub(super) async fn tell(
    observed: &Observed,
    plan: &Plan,
    harness: &HarnessStatus,
    status: &AgentSessionStatus,
    sessions: &Sessions,
) {
    let (events, regarding) = (&sessions.context.events, observed.session.object_ref(&()));
    let before = observed.session.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    if let Some(note) = limit_news(before, &status.conditions) {
        events.publish(Happened::LimitNear, &regarding, &note).await;
    }
    if let Some(cause) = &plan.lost {
        metrics::pod_lost("harness");
        let before = observed.session.status.as_ref().and_then(|status| status.harness.as_ref());
        let name = before.and_then(|before| before.pod_name.as_deref()).unwrap_or("of the session");
        let note = format!("harness pod {name} is lost: {}: {}", cause.reason, cause.message);
        events.publish(Happened::HarnessLost, &regarding, &note).await;
    }
    let named = observed.session.status.as_ref().and_then(|status| status.harness.as_ref());
    if harness.warm && named.is_none_or(|named| named.pod_uid != harness.pod_uid) {
        metrics::harness_start("ready");
    }
    if let (Some(_), Some(name)) = (&plan.make, &harness.pod_name) {
        metrics::harness_start("made");
        events.publish(Happened::HarnessStarted, &regarding, &format!("made pod {name}")).await;
    }
}
