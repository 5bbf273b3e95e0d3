//! Only the newest brain may write, and no message is lost between two of them.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use longhand_crds::AgentSession;
use longhand_e2e::cluster::{Fixture, SessionOptions, eventually, in_namespace, wait_for};
use longhand_protocol::NewEvent;
use longhand_protocol::client::Error;
use longhand_protocol::event::EventBody;
use longhand_protocol::harness::{AppendRequest, Conflict};
use rand::Rng as _;

use longhand_e2e::cluster::log::{assert_sound, kinds, messages};

const SCRIPT: &str = r#"
rules:
  - when: {user_contains: slowly}
    then: {text: "I am thinking about it.", first_token_delay_ms: 8000}
  - then: {text: "{{last_user}}"}
"#;

const ROUNDS: usize = 200;

#[tokio::test]
async fn a_zombie_is_refused_and_a_moved_head_is_told_apart() {
    in_namespace("zombie", |namespace| async move {
        let fixture = Fixture::install(&namespace, SCRIPT, 60).await?;
        let options = SessionOptions { harness_idle_seconds: 60, ..SessionOptions::saying(&["think slowly"]) };
        let session = fixture.session("zombie", &options).await?;
        let started = |event: &longhand_protocol::Event| matches!(event.body, EventBody::SpanModelRequestStart {});
        fixture.service.follow(&session, 0, Duration::from_secs(60), started).await?;
        let pod = wait_for(
            namespace.api::<AgentSession>(),
            "zombie",
            "status.harness.podName is set",
            Duration::from_secs(10),
            |session| session?.status.as_ref()?.harness.as_ref()?.pod_name.clone(),
        )
        .await?;
        let pod = namespace.api::<Pod>().get(&pod).await?;
        let brain = fixture.service.harness_as(&namespace, &pod, &session).await?;
        // The first use of the key is on record before the request goes on, and moves the head.
        eventually("the model is asked", Duration::from_secs(10), || async {
            Ok((!fixture.model.recorded().await?.requests.is_empty()).then_some(()))
        })
        .await?;
        let before = fixture.service.log(&session).await?;
        let thought = |epoch, expected_head| AppendRequest {
            epoch,
            expected_head,
            events: vec![NewEvent::new(EventBody::AgentThinking {})],
        };

        let fenced = brain.append(&thought(0, before.len() as u64)).await;
        assert!(matches!(fenced, Err(Error::Conflict(Conflict::Fenced { epoch: 1 }))), "{fenced:?}");
        let moved = brain.append(&thought(1, 1)).await;
        let head = before.len() as u64;
        assert!(matches!(moved, Err(Error::Conflict(Conflict::HeadMoved { head: now })) if now == head), "{moved:?}");
        assert_eq!(fixture.service.log(&session).await?, before, "a refused append changed the log");

        // An event of the same epoch that the brain does not know of moves the head under it; it reads on and answers.
        brain.append(&thought(1, head)).await?;
        fixture.service.until_idle(&session, head, Duration::from_secs(60)).await?;
        let log = fixture.service.log(&session).await?;
        assert_sound(&log);
        assert_eq!(messages(&log), ["I am thinking about it."]);
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_message_at_the_moment_of_going_idle_is_answered() {
    in_namespace("going-idle", |namespace| async move {
        let fixture = Fixture::install(&namespace, SCRIPT, 60).await?;
        let options = SessionOptions { sandbox: false, harness_idle_seconds: 60, ..SessionOptions::default() };
        let session = fixture.session("chat", &options).await?;
        let mut seen = 0;
        for round in 0..ROUNDS {
            fixture.service.send(&session, &format!("message {round}")).await?;
            let answered = |event: &longhand_protocol::Event| {
                matches!(&event.body, EventBody::AgentMessage { .. })
                    && longhand_e2e::cluster::log::text(&event.body) == format!("message {round}")
            };
            let events = fixture.service.follow_numbered(&session, seen, Duration::from_secs(60), answered).await?;
            seen = events.last().and_then(|(seq, _)| *seq).ok_or("an event without a number")?;
            // Between the answer and idle there are a few milliseconds; the next message comes at any of them.
            let pause = Duration::from_micros(rand::rng().random_range(0..12_000));
            tokio::time::sleep(pause).await;
        }
        fixture.service.until_idle(&session, seen, Duration::from_secs(30)).await?;
        let log = fixture.service.log(&session).await?;
        assert_sound(&log);
        let expected: Vec<_> = (0..ROUNDS).map(|round| format!("message {round}")).collect();
        assert_eq!(messages(&log), expected, "{:?}", kinds(&log));
        Ok(())
    })
    .await;
}
