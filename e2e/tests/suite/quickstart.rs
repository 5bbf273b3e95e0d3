//! The main job: a message, a tool call, a sandbox because of it, an answer.

use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::ListParams;
use longhand_crds::labels;
use longhand_e2e::cluster::{Fixture, SessionOptions, TestResult, in_namespace};
use longhand_protocol::client::sse::{StreamItem, StreamOptions};
use longhand_protocol::event::{Delta, DeltaContent, EventBody, Preview};

use longhand_e2e::cluster::log::{assert_sound, kinds, messages};

const SCRIPT: &str = r#"
rules:
  - when: {user_contains: count, turn: 0}
    then:
      text: I will run a program that counts them.
      tool_uses: [{name: bash, input: {command: "echo $((6 * 7))"}}]
      delay_per_token_ms: 20
  - when: {user_contains: count, turn: 1}
    then: {text: "The program says {{last_tool_result}}", delay_per_token_ms: 20}
  - then: {text: "Hello to you too, this is a longer answer in several words.", delay_per_token_ms: 20}
"#;

const USED: &str = "x.credential.used";

#[tokio::test]
async fn events_come_in_the_order_of_the_wire_api() {
    in_namespace("quickstart", |namespace| async move {
        let fixture = Fixture::install(&namespace, SCRIPT, 60).await?;
        let session = fixture.session("hello", &SessionOptions::saying(&["count, please"])).await?;
        fixture.service.until_idle(&session, 0, Duration::from_secs(90)).await?;
        let log = fixture.service.log(&session).await?;
        assert_sound(&log);
        // The proxy's own event is there before the model is asked for the first time; others come when they come.
        let used = kinds(&log)
            .iter()
            .position(|kind| *kind == USED)
            .ok_or("the use of the model's credential is not on record")?;
        assert!(!kinds(&log)[..used].contains(&"agent.message"), "{:?}", kinds(&log));
        let others: Vec<&str> = kinds(&log).into_iter().filter(|kind| *kind != USED).collect();
        assert_eq!(
            others,
            [
                "x.session.woken",
                "user.message",
                "session.status_running",
                "span.model_request_start",
                "agent.message",
                "agent.tool_use",
                "x.model_response",
                "span.model_request_end",
                "x.sandbox.provisioning",
                "x.sandbox.ready",
                "agent.tool_result",
                "span.model_request_start",
                "agent.message",
                "x.model_response",
                "span.model_request_end",
                "session.usage",
                "session.status_idle",
            ]
        );
        assert_eq!(messages(&log)[1].trim_end(), "The program says 42");
        brain_first(&fixture).await
    })
    .await;
}

/// The model was asked before the sandbox's pod existed. Times of the API server are whole seconds, and both clocks are
/// the node's; so the request must be in the pod's second at the latest.
async fn brain_first(fixture: &Fixture) -> TestResult {
    let asked = fixture.model.recorded().await?.requests.first().ok_or("the model was never asked")?.received_unix_ms;
    let pods = fixture.namespace.api::<Pod>();
    let sandboxes = pods.list(&ListParams::default().labels(&format!("{}={}", labels::ROLE, labels::SANDBOX))).await?;
    let [pod] = sandboxes.items.as_slice() else {
        return Err(format!("{} sandbox pods instead of one", sandboxes.items.len()).into());
    };
    let created = pod.creation_timestamp().ok_or("the pod has no creation time")?.0.as_second();
    assert!(asked < (created as f64 + 1.0) * 1_000.0, "the model was asked at {asked}, the pod made at {created}");
    Ok(())
}

#[tokio::test]
async fn the_streamed_tokens_equal_the_message_in_the_log() {
    in_namespace("tokens", |namespace| async move {
        let fixture = Fixture::install(&namespace, SCRIPT, 60).await?;
        let session =
            fixture.session("hello", &SessionOptions { harness_idle_seconds: 30, ..SessionOptions::default() }).await?;
        let options = StreamOptions { after_seq: Some(0), previews: true, ..StreamOptions::default() };
        let mut stream = fixture.service.wire.stream_events(&session, options);
        fixture.service.send(&session, "hello").await?;
        let mut streamed = String::new();
        let mut announced = None;
        let read = async {
            while let Some(item) = stream.next().await {
                match item? {
                    StreamItem::Preview(Preview::EventStart { event }) => announced = Some(event.id),
                    StreamItem::Preview(Preview::EventDelta {
                        event_id,
                        delta: Delta::ContentDelta { content, .. },
                    }) => {
                        assert_eq!(Some(&event_id), announced.as_ref(), "a delta of a message that was not announced");
                        let DeltaContent::Text { text } = content;
                        streamed.push_str(&text);
                    }
                    StreamItem::Event { event, .. } => {
                        if matches!(event.body, EventBody::AgentMessage { .. }) {
                            return TestResult::Ok((event.id.clone(), longhand_e2e::cluster::log::text(&event.body)));
                        }
                    }
                }
            }
            Err("the stream ended".into())
        };
        let (id, logged) = tokio::time::timeout(Duration::from_secs(60), read).await??;
        assert_eq!(Some(id), announced);
        assert_eq!(streamed, logged);
        assert!(!logged.is_empty());
        Ok(())
    })
    .await;
}
