//! One effect, done.

use std::time::Duration;

use futures::{StreamExt as _, stream};
use longhand_protocol::EventId;
use longhand_protocol::client::Backoff;
use longhand_protocol::harness::{
    AppendRequest, AppendResponse, EventsPage, ExecuteRequest, IdleRequest, PromoteRequest,
};
use serde_json::Value;
use tokio::time::Instant;
use tracing::{Instrument as _, Span, field, info_span};

use super::deltas::Previews;
use super::inbox::Watch;
use super::service::{CallError, End, Service, classify};
use crate::core::{Effect, Input, checkpoint};
use crate::mcp::Session;
use crate::model::{Failure, Models, Reply, Target};

/// Records of one page.
const PAGE: usize = 500;
/// Longer than any tool is allowed to run; the service and the sandbox have limits of their own.
const EXECUTE_DEADLINE: Duration = Duration::from_secs(3_600);
/// So many calls are asked for at once; the others wait.
const MAX_PARALLEL: usize = 16;
/// The turn of a client that has stopped it ends after this, whatever its tool calls do.
const STOP_DEADLINE: Duration = Duration::from_secs(5);
const FIRST_REST: Duration = Duration::from_secs(1);
const MAX_REST: Duration = Duration::from_secs(30);
/// A model API that asks for more patience than this is asked again all the same.
const MAX_ASKED_REST: Duration = Duration::from_secs(600);

/// Does what was decided; `wake` is the revision of the wake key at the last look.
pub(super) async fn perform(
    service: &Service,
    watch: &Watch,
    models: &Models,
    mcp: &mut Session,
    wake: Option<i64>,
    effect: Effect,
) -> Result<Input, End> {
    let (epoch, client) = (service.epoch, &service.client);
    match effect {
        Effect::Restore => {
            let found = service.settle(|| client.newest(checkpoint::KIND)).await;
            found.map(|record| Input::Checkpoint(record.map(Box::new))).or_else(input)
        }
        Effect::Read { after } => {
            let page = service.settle(|| client.events_and_inbox(after, PAGE)).await;
            let read = |EventsPage { records, head, inbox, .. }| match inbox {
                Some(inbox) => Input::Page { records, head, inbox },
                None => Input::Records { records, head },
            };
            page.map(read).or_else(input)
        }
        Effect::Look => service.settle(|| client.inbox()).await.map(Input::Inbox).or_else(input),
        Effect::Append { expected_head, events } => {
            let request = AppendRequest { epoch, expected_head, events };
            service.settle(|| client.append(&request)).await.map(records).or_else(input)
        }
        Effect::Promote { expected_head, inbox, then } => {
            let request = PromoteRequest { epoch, expected_head, inbox, then };
            service.settle(|| client.promote(&request)).await.map(records).or_else(input)
        }
        Effect::Idle { expected_head, wake_revision, events } => {
            let request = IdleRequest { epoch, expected_head, wake_revision, events };
            let released = service.settle(|| client.idle(&request)).await;
            released.map(|response| Input::Released { records: response.records }).or_else(input)
        }
        Effect::CallModel { target, body, message } => {
            let model = body.get("model").and_then(Value::as_str);
            let span = info_span!(
                "chat",
                otel.kind = "client",
                gen_ai.request.model = model,
                gen_ai.usage.input_tokens = field::Empty,
                gen_ai.usage.output_tokens = field::Empty,
                first_token_ms = field::Empty
            );
            let call = call_model(service, models, &target, &body, message).instrument(span);
            Ok(unless_interrupted(watch, wake, async { Input::Model(call.await) }).await)
        }
        Effect::Execute { calls } => {
            tokio::select! {
                inbox = watch.interrupt(wake.unwrap_or(0)) => Ok(Input::Interrupted(inbox)),
                abandoned = execute(service, &calls, EXECUTE_DEADLINE) => {
                    abandoned.map(|abandoned| Input::Executed { abandoned })
                }
            }
        }
        // The service stops a call of which the log says that it was interrupted.
        Effect::Stop { calls } => {
            let abandoned = execute(service, &calls, STOP_DEADLINE).await?;
            Ok(Input::Executed { abandoned })
        }
        Effect::Rest(rest) => {
            let mut backoff = Backoff::new(FIRST_REST, MAX_REST);
            let wait = (0..rest.failures.max(1)).fold(FIRST_REST, |_, _| backoff.step());
            let wait = wait.max(rest.at_least.unwrap_or_default().min(MAX_ASKED_REST));
            tracing::info!(failures = rest.failures, ?wait, "waiting before the next try");
            let rested = async {
                tokio::time::sleep(wait).await;
                Input::Rested
            };
            Ok(unless_interrupted(watch, wake, rested).await)
        }
        Effect::Discover { servers } => {
            let asked = async { Input::Discovered(mcp.discover(servers).await) };
            Ok(unless_interrupted(watch, wake, asked).await)
        }
        Effect::SendMcp { calls } => {
            mcp.send(calls);
            Ok(Input::Called { outcomes: Vec::new(), cancelled: Vec::new() })
        }
        Effect::AwaitMcp => {
            let ended = async { Input::Called { outcomes: mcp.ended().await, cancelled: Vec::new() } };
            Ok(unless_interrupted(watch, wake, ended).await)
        }
        Effect::CancelMcp { calls } => {
            let outcomes = mcp.cancel(&calls).await;
            Ok(Input::Called { outcomes, cancelled: calls })
        }
    }
}

fn records(response: AppendResponse) -> Input {
    Input::Records { records: response.records, head: response.head }
}

/// What a change that was not made means for the core.
fn input(error: CallError) -> Result<Input, End> {
    match error {
        CallError::Moved(moved) => Ok(Input::Moved(moved)),
        CallError::Refused(reason) => Ok(Input::Refused { reason }),
        CallError::End(end) => Err(end),
    }
}

async fn unless_interrupted(watch: &Watch, wake: Option<i64>, work: impl Future<Output = Input>) -> Input {
    tokio::select! {
        inbox = watch.interrupt(wake.unwrap_or(0)) => Input::Interrupted(inbox),
        input = work => input,
    }
}

async fn call_model(
    service: &Service,
    models: &Models,
    target: &Target,
    body: &Value,
    message: Option<EventId>,
) -> Result<Reply, Failure> {
    let previews = message.map(|message| Previews::of(service.clone(), message));
    let asked = Instant::now();
    let mut is_first = true;
    let show = |delta| {
        if std::mem::take(&mut is_first) {
            Span::current().record("first_token_ms", u64::try_from(asked.elapsed().as_millis()).unwrap_or(u64::MAX));
        }
        if let Some(previews) = &previews {
            previews.show(delta);
        }
    };
    let outcome = models.call(target, body, show).await;
    if let Some(previews) = previews {
        previews.finish().await;
    }
    if let Ok(reply) = &outcome {
        let span = Span::current();
        span.record("gen_ai.usage.input_tokens", reply.usage.input_tokens);
        span.record("gen_ai.usage.output_tokens", reply.usage.output_tokens);
    }
    match &outcome {
        Ok(reply) => tracing::info!(
            stop_reason = reply.stop_reason.as_deref(),
            input_tokens = reply.usage.input_tokens,
            output_tokens = reply.usage.output_tokens,
            "the model answered"
        ),
        Err(failure) => tracing::warn!(error = %failure, retryable = failure.retryable, "the model did not answer"),
    }
    outcome
}

/// Runs the calls, many at once; gives those for which there is no result in time.
async fn execute(service: &Service, calls: &[EventId], patience: Duration) -> Result<Vec<EventId>, End> {
    let deadline = Instant::now() + patience;
    let results = calls.iter().cloned().map(|call| async move {
        let request = ExecuteRequest { epoch: service.epoch, tool_use_id: call.clone() };
        let span = info_span!("execute", otel.kind = "client", call = %call);
        match service.client.execute(&request, deadline).instrument(span).await {
            Ok(_) => Ok(None),
            Err(error) => {
                if error.status().is_none_or(|status| status.as_u16() != 404)
                    && let CallError::End(end) = classify(service.epoch, &error)
                {
                    return Err(end);
                }
                tracing::error!(call = %call, %error, "a tool call has no result");
                Ok(Some(call))
            }
        }
    });
    let results: Vec<Result<_, End>> = stream::iter(results).buffered(MAX_PARALLEL).collect().await;
    let results: Result<Vec<_>, End> = results.into_iter().collect();
    Ok(results?.into_iter().flatten().collect())
}
