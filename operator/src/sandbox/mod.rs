//! `Sandbox`: it has a pod behind the fence, which is taken from its template's pool or made; a lost pod is replaced, an idle one
//! reclaimed, and nothing is on its way, suspended or at its end for ever.

mod apply;
mod complaints;
mod fence;
pub(crate) mod ground;
mod handoff;
mod loss;
pub(crate) mod network_policy;
mod observe;
mod plan;
pub(crate) mod pod;
mod policy;
mod reservations;
mod rest;
mod security;
mod status;
mod take;
mod trace;
mod volume;
mod written;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, stream};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::runtime::controller::{Action, Controller};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::{PredicateConfig, WatchStreamExt as _, predicates, watcher};
use kube::{Resource as _, ResourceExt as _};
use longhand_crds::{Sandbox, SandboxTemplate, labels};
use tokio_util::sync::CancellationToken;

use self::apply::{Applied, Reclaimed};
use self::complaints::Complaints;
use self::fence::{EGRESS_FENCED, Fence, Sight, Subject};
use self::observe::Observed;
use self::plan::{Plan, View};
use self::reservations::Reservations;
use self::written::Written;
use crate::conditions::{FINISHED, Truth, find, merge};
use crate::context::{Context, Guarded, GuardedStore};
use crate::error::Error;
use crate::events::Happened;
use crate::lists::Lists;
use crate::owned_pods::{self, OwnedPods};
use crate::pods::{PodView, Stage};
use crate::{drive, metrics, pods};

/// What is remembered of those that are gone is forgotten this often.
const TIDIED: Duration = Duration::from_secs(60);

/// When a sandbox is looked at again that has just ended.
const SOON: Duration = Duration::from_millis(100);

/// What the reconcile of a sandbox looks at.
struct Sandboxes {
    context: Arc<Context>,
    templates: GuardedStore<SandboxTemplate>,
    pods: OwnedPods,
    claims: Store<PersistentVolumeClaim>,
    policies: Store<NetworkPolicy>,
    reservations: Reservations,
    written: Written,
    fence: Fence,
    complaints: Complaints,
}

/// Reconciles every `Sandbox` until `token` is cancelled.
pub async fn run(context: Arc<Context>, token: CancellationToken) {
    let everything = watcher::Config::default;
    let managed = format!("{}={}", labels::MANAGED_BY, labels::LONGHAND);
    let sandbox_pods = format!("{managed},{}={}", labels::ROLE, labels::SANDBOX);
    let mut lists = Lists::default();
    let (store, sandboxes) = drive::watch::<Guarded<Sandbox>>(&context, &everything(), &mut lists);
    let (templates, template_stream) = drive::watch::<Guarded<SandboxTemplate>>(&context, &everything(), &mut lists);
    let (pods, pod_stream) = owned_pods::watch(&context, &everything().labels(&sandbox_pods), &mut lists);
    let (claims, claim_stream) =
        drive::watch::<PersistentVolumeClaim>(&context, &everything().labels(&sandbox_pods), &mut lists);
    // Those of others too: what policies allow adds up.
    let (policies, policy_stream) = drive::watch::<NetworkPolicy>(&context, &everything(), &mut lists);
    let (of_template, of_namespace) = (store.clone(), store.clone());
    // The status of a template changes with each pod that is taken from its pool, which concerns no sandbox.
    let template_stream = template_stream.predicate_filter(predicates::generation, PredicateConfig::default());
    let by_template = template_stream.filter_map(async |template| template.ok()).flat_map(move |template| {
        let (namespace, name) = (template.namespace(), template.name_any());
        stream::iter(concerned(&of_template, namespace.as_deref(), |sandbox| sandbox.spec.template_ref.name == name))
    });
    let by_policy = policy_stream
        .filter_map(async |policy| policy.ok())
        .flat_map(move |policy| stream::iter(concerned(&of_namespace, policy.namespace().as_deref(), |_| true)));
    let controller = Controller::for_stream(sandboxes, store)
        .owns_stream(pod_stream)
        .owns_stream(claim_stream)
        .reconcile_on(by_template)
        .reconcile_on(by_policy);
    let reservations = Reservations::default();
    let fence = match fence::Network::new() {
        Ok(network) => Fence::new(Arc::new(network)),
        Err(error) => {
            tracing::error!(%error, "the client that asks sandboxes for their fence cannot be set up");
            return;
        }
    };
    let written = Written::default();
    let complaints = Complaints::default();
    let sandboxes =
        Arc::new(Sandboxes { context, templates, pods, claims, policies, reservations, written, fence, complaints });
    tokio::select! {
        () = drive::run(controller, lists, sandboxes.clone(), token, trace::reconcile) => {}
        () = tidy(&sandboxes) => {}
    }
}

/// Forgets what is remembered of sandboxes and pods that are gone, now and then; ends with whoever waits for it.
async fn tidy(sandboxes: &Sandboxes) {
    loop {
        tokio::time::sleep(TIDIED).await;
        let pods: HashSet<String> = sandboxes.pods.store().state().iter().filter_map(|pod| pod.uid()).collect();
        sandboxes.fence.tidy(|uid| pods.contains(uid));
        sandboxes.complaints.tidy(|uid| pods.contains(uid));
        sandboxes.written.tidy();
    }
}

fn concerned(
    sandboxes: &GuardedStore<Sandbox>,
    namespace: Option<&str>,
    which: impl Fn(&Sandbox) -> bool,
) -> Vec<ObjectRef<Guarded<Sandbox>>> {
    let found = sandboxes
        .state_filter(|sandbox| sandbox.namespace().as_deref() == namespace && sandbox.0.as_ref().is_ok_and(&which));
    found.iter().map(|sandbox| ObjectRef::from_obj(&**sandbox)).collect()
}

async fn reconcile(sandbox: Arc<Sandbox>, sandboxes: Arc<Sandboxes>) -> Result<Action, Error> {
    if sandbox.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let observed = observe::observe(sandboxes.written.latest(sandbox), &sandboxes).await?;
    proceed(&observed, &sandboxes, Timestamp::now()).await
}

/// Acts on what was observed. Whatever fails, the status is written.
async fn proceed(observed: &Observed, sandboxes: &Sandboxes, now: Timestamp) -> Result<Action, Error> {
    let mut plan = plan::plan(observed, now);
    explain(&mut plan, observed, sandboxes, now).await;
    let (client, sandbox) = (&sandboxes.context.client, &observed.sandbox);
    if let Some(why) = plan.expired {
        if !apply::remove_as_seen(sandbox, sandboxes).await? {
            return Ok(Action::requeue(SOON));
        }
        sandboxes.context.events.publish(Happened::SandboxReclaimed, &sandbox.object_ref(&()), why).await;
        return Ok(Action::await_change());
    }
    let mut written = sandbox.status.clone();
    let ended = written.as_ref().is_some_and(|status| find(&status.conditions, FINISHED).is_some());
    if let (View::Finished(_), Some(_), false) = (&plan.view, plan::awaits(observed), ended) {
        // Either it has ended or the workspace is in its pod: whoever writes first decides, and the pod goes after that.
        let status = status::status(observed, &plan, None, None, now);
        crate::status::write_as_seen(client, &**sandbox, &status).await?;
        sandboxes.written.note(sandbox, &status);
        tell(observed, &plan, None, now, sandboxes).await;
        return Ok(Action::requeue(SOON));
    }
    if let Some(loss) = &plan.loss {
        let lost = status::lost(observed, &plan, loss, now);
        crate::status::write(client, &**sandbox, written.as_ref(), &lost).await?;
        written = Some(lost);
    }
    let applied = apply::apply(observed, &plan, sandboxes).await;
    if let (Some(_), Some(Applied { pod: Some(pod), .. })) = (&plan.make, applied.as_ref().ok()) {
        sandboxes.reservations.has(&sandbox.uid().unwrap_or_default(), plan.incarnation, &pod.name);
    }
    let pod = applied.as_ref().ok().and_then(|applied| applied.pod.clone()).or_else(|| plan.pod.clone());
    let fence = match plan.handoff {
        true => Sight::default(),
        false => see_fence(observed, pod.as_ref(), sandboxes, now).await,
    };
    let mut status = status::status(observed, &plan, pod.as_ref(), applied.as_ref().err(), now);
    status.conditions = merge(&status.conditions, fence.seen.as_slice(), status.observed_generation, now);
    crate::status::write(client, &**sandbox, written.as_ref(), &status).await?;
    if written.as_ref() != Some(&status) {
        sandboxes.written.note(sandbox, &status);
    }
    tell(observed, &plan, applied.as_ref().ok(), now, sandboxes).await;
    tell_fence(sandbox, &fence, sandboxes).await;
    if let Err(error) = applied {
        return failed(error, &plan);
    }
    if plan.handoff {
        return handoff::go_on(observed, &plan, sandboxes, now).await;
    }
    sandboxes.fence.refresh(&fence).await;
    let requeue = plan.requeue.into_iter().chain(fence.again).min();
    let Some(drain) = &plan.drain else { return Ok(drive::action(requeue)) };
    match apply::reclaim(sandbox, drain, sandboxes).await? {
        Reclaimed::NotBefore(delay) => Ok(Action::requeue(requeue.map_or(delay, |other| other.min(delay)))),
        Reclaimed::Yes => {
            let idle = drain.idle_seconds;
            let (happened, done) = match drain.suspend {
                true => (Happened::SandboxSuspended, "suspended"),
                false => (Happened::SandboxReclaimed, "removed"),
            };
            let note = format!("{done} after {idle} s without a tool call");
            sandboxes.context.events.publish(happened, &sandbox.object_ref(&()), &note).await;
            Ok(Action::await_change())
        }
    }
}

/// A pod that starts for long and does not say why may be complained of elsewhere.
async fn explain(plan: &mut Plan, observed: &Observed, sandboxes: &Sandboxes, now: Timestamp) {
    let (View::Provisioning, Some(pod)) = (&plan.view, &plan.pod) else { return };
    let namespace = observed.sandbox.namespace().unwrap_or_default();
    let (cause, again) = sandboxes.complaints.of(&sandboxes.context.client, &namespace, pod, now).await;
    plan.requeue = plan.requeue.into_iter().chain(again).min();
    if let Some(cause) = cause {
        plan.view = View::Stuck(cause);
    }
}

/// Whether the pod is fenced in, and when to look again.
async fn see_fence(observed: &Observed, pod: Option<&PodView>, sandboxes: &Sandboxes, now: Timestamp) -> Sight {
    let sandbox = &observed.sandbox;
    let namespace = sandbox.namespace().unwrap_or_default();
    let status = sandbox.status.as_ref();
    let said = status.and_then(|status| find(&status.conditions, EGRESS_FENCED));
    let Some((view, Stage::Running { ready_since, .. })) = pod.map(|view| (view, &view.stage)) else {
        return Sight::without_pod(said);
    };
    let ready = ready_since.is_some();
    // One that has just started is not asked; one that stays as it is has something to say.
    if !ready && pods::elapsed(view.created, now) < fence::SOON {
        return Sight { again: Some(fence::SOON), ..Sight::default() };
    }
    // The store has it, since it runs.
    let Some(pod) = sandboxes.pods.store().get(&ObjectRef::new(&view.name).within(&namespace)) else {
        return Sight { again: Some(fence::SOON), ..Sight::default() };
    };
    let in_namespace = |policy: &NetworkPolicy| policy.metadata.namespace.as_ref() == Some(&namespace);
    let policies = sandboxes.policies.state_filter(in_namespace);
    let of_this_pod = status.is_some_and(|status| status.pod_uid.as_ref() == Some(&view.uid));
    let subject = Subject {
        pod: &pod,
        ready,
        policies: &policies,
        said,
        of_this_pod,
        awaited: ready && !(of_this_pod && status.is_some_and(|status| status.address.is_some())),
    };
    sandboxes.fence.see(&subject, &sandboxes.context.fencing).await
}

async fn tell_fence(sandbox: &Sandbox, fence: &Sight, sandboxes: &Sandboxes) {
    let before = sandbox.status.as_ref().and_then(|status| find(&status.conditions, EGRESS_FENCED));
    let known = before.is_some_and(|before| before.status == Truth::False.as_str());
    if let Some(seen) = fence.seen.as_ref().filter(|seen| seen.truth == Truth::False && !known) {
        metrics::not_fenced(seen.reason == fence::POLICY_OPENS);
        let note = format!("{}: {}", seen.reason, seen.message);
        sandboxes.context.events.publish(Happened::SandboxNotFenced, &sandbox.object_ref(&()), &note).await;
    }
}

/// An error is tried again, but not beyond the time at which something else is due.
fn failed(error: Error, plan: &Plan) -> Result<Action, Error> {
    match plan.requeue.filter(|due| *due < error.retry_after()) {
        Some(due) => {
            tracing::warn!(%error, "a sandbox could not be brought about");
            Ok(Action::requeue(due))
        }
        None => Err(error),
    }
}

async fn tell(observed: &Observed, plan: &Plan, applied: Option<&Applied>, now: Timestamp, sandboxes: &Sandboxes) {
    let (events, regarding) = (&sandboxes.context.events, observed.sandbox.object_ref(&()));
    let status = observed.sandbox.status.clone().unwrap_or_default();
    if let (View::Ready, Some(pod), None) = (&plan.view, &plan.pod, &status.ready_at) {
        metrics::stage(metrics::Stage::SandboxReady, pods::elapsed(pod.created, now));
    }
    if let Some(loss) = &plan.loss {
        metrics::pod_lost("sandbox");
        let note = format!("pod {} is lost: {}: {}", loss.pod_uid, loss.reason, loss.message);
        events.publish(Happened::SandboxLost, &regarding, &note).await;
    }
    if let (Some(name), Some(Applied { taken: false, .. })) = (&plan.make, applied) {
        events.publish(Happened::SandboxCreated, &regarding, &format!("made pod {name}")).await;
    }
    if let (View::Resting { why, .. }, Some(miss)) = (&plan.view, &plan.miss)
        && status.last_miss.as_ref() != Some(miss)
    {
        events.publish(Happened::SandboxUnavailable, &regarding, why).await;
    }
    if let View::Finished(cause) = &plan.view
        && find(&status.conditions, FINISHED).is_none()
    {
        let note = format!("{}: {}", cause.reason, cause.message);
        events.publish(Happened::SandboxFinished, &regarding, &note).await;
    }
}

#[cfg(test)]
#[path = "claim_tests.rs"]
mod claims;
#[cfg(test)]
mod handoff_tests;
#[cfg(test)]
#[path = "driver_tests.rs"]
mod tests;
