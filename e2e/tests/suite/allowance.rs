//! A session that a limit has stopped goes on when the limit is raised, once.

use std::time::Duration;

use longhand_e2e::cluster::log::{assert_sound, kinds, messages};
use longhand_e2e::cluster::{Fixture, SessionOptions, in_namespace, session_manifest};
use longhand_protocol::event::{Event, EventBody, StopReason};

const SCRIPT: &str = r#"
rules:
  - then: {text: "That is what I think."}
"#;
const TURN: Duration = Duration::from_secs(90);

fn stopped(event: &Event) -> bool {
    matches!(&event.body, EventBody::SessionStatusIdle { stop_reason: StopReason::BudgetReached })
}

#[tokio::test]
async fn a_raised_limit_wakes_the_session() {
    in_namespace("allowance", |namespace| async move {
        let fixture = Fixture::install(&namespace, SCRIPT, 60).await?;
        let options = SessionOptions { sandbox: false, ..SessionOptions::saying(&["one"]) };
        let limited = |turns: u32| format!("{}  limits: {{turns: {turns}}}\n", session_manifest("limited", &options));
        namespace.apply(&limited(1)).await?;
        let session = fixture.session_id("limited").await?;
        fixture.service.until_idle(&session, 0, TURN).await?;
        let first = fixture.service.log(&session).await?.len() as u64;
        fixture.service.send(&session, "two").await?;
        fixture.service.follow(&session, first, TURN, stopped).await?;
        let log = fixture.service.log(&session).await?;
        assert_eq!(messages(&log).len(), 1, "the second message waits: {:?}", kinds(&log));
        let second = log.len() as u64;

        namespace.apply(&limited(2)).await?;
        let seen = fixture.service.until_idle(&session, second, TURN).await?;
        assert!(!seen.iter().any(stopped), "it was raised enough");
        fixture.service.send(&session, "three").await?;
        fixture.service.follow(&session, second, TURN, stopped).await?;
        let log = fixture.service.log(&session).await?;
        assert_sound(&log);
        let count = |kind: &str| kinds(&log).iter().filter(|found| **found == kind).count();
        assert_eq!((messages(&log).len(), count("x.session.limit_raised")), (2, 1), "{:?}", kinds(&log));
        Ok(())
    })
    .await;
}
