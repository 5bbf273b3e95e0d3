//! Brains are killed, at every step of a session and at random instants. Only brains: what the log, the tools and the
//! clients see must be what they see when nobody dies. Apart from the suite, for it takes minutes.

mod story;

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::api::DeleteParams;
use longhand_e2e::cluster::log::assert_sound;
use longhand_e2e::cluster::{Fixture, SessionOptions, TestResult, in_namespace};
use longhand_protocol::SessionId;
use longhand_protocol::client::sse::{StreamItem, StreamOptions};
use longhand_protocol::event::{Event, EventBody};
use rand::Rng as _;

use self::story::{TURNS, script, told};

const DEADLINE: Duration = Duration::from_secs(600);
/// How many brains die at random instants; `make test` is content with a part of what the benchmark page names.
const KILLS_VARIABLE: &str = "E2E_KILLS";
const DEFAULT_KILLS: usize = 24;
/// So many sessions at a time; each has one brain.
const AT_ONCE: usize = 3;
/// A brain that is to die lives for less than this after its claim.
const LONGEST_LIFE: Duration = Duration::from_millis(2_500);

/// Kills a brain's pod with no grace. One that is gone already has died by itself.
async fn kill(fixture: &Fixture, pod: &str) -> TestResult {
    match fixture.namespace.api::<Pod>().delete(pod, &DeleteParams::default().grace_period(0)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Reads a session's events, our own too, until it is idle; `seen` is told of each.
async fn follow<F>(fixture: &Fixture, session: &SessionId, mut seen: impl FnMut(Event) -> F) -> TestResult
where
    F: Future<Output = TestResult>,
{
    let types = vec!["*".to_owned(), "x.*".to_owned()];
    let options = StreamOptions { after_seq: Some(0), types, ..StreamOptions::default() };
    let mut stream = fixture.service.wire.stream_events(session, options);
    let read = async {
        while let Some(item) = stream.next().await {
            let StreamItem::Event { event, .. } = item? else { continue };
            let idle = matches!(event.body, EventBody::SessionStatusIdle { .. });
            seen(*event).await?;
            if idle {
                return Ok(());
            }
        }
        Err("the stream ended before the session was idle".into())
    };
    tokio::time::timeout(DEADLINE, read).await.map_err(|_| format!("{session} is not idle within {DEADLINE:?}"))?
}

async fn begin(fixture: &Fixture, name: &str) -> TestResult<SessionId> {
    fixture.session(name, &SessionOptions::saying(&["tell it"])).await
}

/// What the session's clients have seen, after the log was found to be sound.
async fn outcome(fixture: &Fixture, session: &SessionId) -> TestResult<Vec<String>> {
    let log = fixture.service.log(session).await?;
    assert_sound(&log);
    Ok(told(&log))
}

/// What it looks like when nobody dies.
async fn undisturbed(fixture: &Fixture) -> TestResult<Vec<String>> {
    let session = begin(fixture, "undisturbed").await?;
    follow(fixture, &session, |_| async { Ok(()) }).await?;
    let told = outcome(fixture, &session).await?;
    assert_eq!(told.len(), 1 + 3 * TURNS + 2, "{told:?}");
    Ok(told)
}

/// The step that an event completes, counted by the tool calls before it; a repetition after a death is the same step.
fn step(event: &EventBody, calls: usize) -> Option<(usize, &'static str)> {
    match event {
        EventBody::UserMessage { .. } => Some((0, "the message is taken up")),
        EventBody::SpanModelRequestStart {} => Some((calls, "the model is asked")),
        EventBody::AgentToolUse { .. } => Some((calls, "the answer is on record")),
        EventBody::AgentToolResult { .. } => Some((calls, "the result is on record")),
        _ => None,
    }
}

#[tokio::test]
async fn at_every_step() {
    in_namespace("killed-at-every-step", |namespace| async move {
        let fixture = Fixture::install(&namespace, &script(), 300).await?;
        let expected = undisturbed(&fixture).await?;
        let session = begin(&fixture, "steps").await?;
        let (mut brain, mut calls, mut killed, mut owed) = (None, 0, HashSet::new(), false);
        follow(&fixture, &session, |event| {
            if let EventBody::SessionWoken { harness, .. } = &event.body {
                brain = Some(harness.clone());
            }
            // A result may come while no brain lives: the next one dies of it.
            owed |= step(&event.body, calls).is_some_and(|step| killed.insert(step));
            let dies = if owed { brain.take() } else { None };
            owed &= dies.is_none();
            calls += usize::from(matches!(event.body, EventBody::AgentToolUse { .. }));
            let fixture = &fixture;
            async move {
                match dies {
                    Some(pod) => kill(fixture, &pod).await,
                    None => Ok(()),
                }
            }
        })
        .await?;
        // The message, three steps of each turn, and the request for the last words.
        assert_eq!(killed.len(), 1 + 3 * TURNS + 1, "{killed:?}");
        assert_eq!(outcome(&fixture, &session).await?, expected);
        Ok(())
    })
    .await;
}

/// Kills brains of one session after another until `left` is used up.
async fn disturbed(
    fixture: &Fixture,
    lane: usize,
    left: &AtomicUsize,
    killed: &AtomicUsize,
    expected: &[String],
) -> TestResult {
    for number in 0.. {
        if left.load(Ordering::Relaxed) == 0 {
            break;
        }
        let session = begin(fixture, &format!("random-{lane}-{number}")).await?;
        let mut doomed = tokio::task::JoinSet::new();
        follow(fixture, &session, |event| {
            let takes_one = |left: usize| left.checked_sub(1);
            if let EventBody::SessionWoken { harness, .. } = event.body
                && left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, takes_one).is_ok()
            {
                let life = rand::rng().random_range(Duration::ZERO..LONGEST_LIFE);
                let pods = fixture.namespace.api::<Pod>();
                doomed.spawn(async move {
                    tokio::time::sleep(life).await;
                    // One that has gone by itself was not killed.
                    pods.delete(&harness, &DeleteParams::default().grace_period(0)).await.is_ok()
                });
            }
            async { Ok(()) }
        })
        .await?;
        killed.fetch_add(doomed.join_all().await.into_iter().filter(|killed| *killed).count(), Ordering::Relaxed);
        assert_eq!(outcome(fixture, &session).await?, expected, "{session}");
    }
    Ok(())
}

#[tokio::test]
async fn at_random_instants() {
    let kills = std::env::var(KILLS_VARIABLE).ok().map_or(DEFAULT_KILLS, |kills| kills.parse().expect(KILLS_VARIABLE));
    in_namespace("killed-at-random", |namespace| async move {
        let fixture = Fixture::install(&namespace, &script(), 300).await?;
        let expected = undisturbed(&fixture).await?;
        let (left, killed) = (AtomicUsize::new(kills), AtomicUsize::new(0));
        let lanes = (0..AT_ONCE).map(|lane| disturbed(&fixture, lane, &left, &killed, &expected));
        futures::future::try_join_all(lanes).await?;
        let killed = killed.into_inner();
        assert!(killed * 10 >= kills * 8, "{killed} of {kills} were there to be killed");
        Ok(())
    })
    .await;
}
