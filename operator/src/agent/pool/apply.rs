//! The only writer of the pods of a pool.

use jiff::Timestamp;
use kube::{Resource as _, ResourceExt as _};
use longhand_crds::Agent;

use super::plan::Plan;
use super::{WARM_READY, starting};
use crate::agent_session::harness_pod;
use crate::agent_session::observe::References;
use crate::conditions::{Truth, find};
use crate::context::Context;
use crate::error::Error;
use crate::events::Happened;
use crate::metrics;
use crate::pods::{self, Made};

/// Does what the plan says; afterwards the plan says what was done, also when something fails.
pub(crate) async fn apply(
    plan: &mut Plan,
    agent: &Agent,
    references: Option<&References>,
    context: &Context,
) -> Result<(), Error> {
    let namespace = agent.namespace().unwrap_or_default();
    for (name, uid) in &plan.remove {
        pods::delete(&context.client, &namespace, name, uid).await?;
    }
    for (name, uid) in &plan.forget {
        pods::forget(&context.client, &namespace, name, uid).await?;
    }
    let Some(references) = references else { return Ok(()) };
    let (owner, numbers) = (agent.uid().unwrap_or_default(), std::mem::take(&mut plan.make));
    let last = plan.generation;
    for number in numbers {
        plan.generation = number.saturating_sub(1);
        let name = harness_pod::warm_name(&agent.name_any(), &owner, number);
        let pod = harness_pod::build_warm(context, references, &name);
        match pods::create(&context.client, &namespace, &pod, &owner).await? {
            Made::Ours(pod) => {
                metrics::pod_created("warm_harness");
                plan.pods.push(starting(&name, pod.metadata.uid.unwrap_or_default(), Timestamp::now()));
                plan.make.push(number);
            }
            // The next one has another name.
            Made::Foreign => {
                plan.generation = number;
                return Err(Error::NameTaken { namespace, name });
            }
        }
    }
    plan.generation = last;
    Ok(())
}

/// Tells what went wrong that the status did not say before.
pub(crate) async fn tell(plan: &Plan, agent: &Agent, context: &Context) {
    let regarding = agent.object_ref(&());
    for (name, cause) in &plan.lost {
        metrics::pod_lost("warm_harness");
        let note = format!("harness pod {name} is lost: {}: {}", cause.reason, cause.message);
        context.events.publish(Happened::WarmHarnessLost, &regarding, &note).await;
    }
    let before = agent.status.as_ref().and_then(|status| find(&status.conditions, WARM_READY));
    let now = &plan.condition;
    let news = before.is_none_or(|before| before.reason != now.reason);
    if now.truth == Truth::False && now.reason != "Starting" && news {
        context.events.publish(Happened::WarmBlocked, &regarding, &now.message).await;
    }
}
