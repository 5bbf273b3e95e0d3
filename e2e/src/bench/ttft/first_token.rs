//! One message, and the time until a client sees the first word of the answer.

use std::time::{Duration, Instant};

use futures::StreamExt as _;
use longhand_protocol::SessionId;
use longhand_protocol::client::sse::{StreamItem, StreamOptions};
use longhand_protocol::event::{EventBody, Preview};

use crate::cluster::{Fixture, TestResult};

const DEADLINE: Duration = Duration::from_secs(120);
/// For the stream to be open; not part of what is measured.
const CONNECTED: Duration = Duration::from_millis(300);

/// Milliseconds from the request `POST events` to the first `event_delta` at a client that streams, less the time that the
/// model itself took. Returns when the session is idle; `after` is the last event that was there before.
///
/// # Errors
/// When the session does not answer within two minutes.
pub(crate) async fn overhead(fixture: &Fixture, session: &SessionId, after: u64, text: &str) -> TestResult<f64> {
    let options = StreamOptions { after_seq: Some(after), previews: true, ..StreamOptions::default() };
    let mut stream = fixture.service.wire.stream_events(session, options);
    let read = async {
        let mut first = None;
        while let Some(item) = stream.next().await {
            match item? {
                StreamItem::Preview(Preview::EventDelta { .. }) => {
                    first.get_or_insert_with(Instant::now);
                }
                StreamItem::Event { event, .. } if matches!(event.body, EventBody::SessionStatusIdle { .. }) => break,
                StreamItem::Preview(_) | StreamItem::Event { .. } => {}
            }
        }
        TestResult::Ok(first)
    };
    let send = async {
        // Previews are not kept: the client is connected before there are any.
        tokio::time::sleep(CONNECTED).await;
        // The stream may have taken the only connection that there was: the message has one, too.
        fixture.service.wire.session(session).await?;
        let sent = Instant::now();
        fixture.service.send(session, text).await?;
        TestResult::Ok(sent)
    };
    let late = |_| format!("{session} did not answer within {DEADLINE:?}");
    let both = async { tokio::try_join!(read, send) };
    let (first, sent) = tokio::time::timeout(DEADLINE, both).await.map_err(late)??;
    let first = first.ok_or_else(|| format!("{session} went idle without a token"))?;
    Ok(first.duration_since(sent).as_secs_f64() * 1_000.0 - model_time(fixture, text).await?)
}

/// Milliseconds from the request that holds `text` to its first token, by the clock of the model.
async fn model_time(fixture: &Fixture, text: &str) -> TestResult<f64> {
    let recorded = fixture.model.recorded().await?;
    let asked = recorded
        .requests
        .iter()
        .rev()
        .find(|request| request.messages().last().is_some_and(|message| message.to_string().contains(text)));
    let asked = asked.ok_or_else(|| format!("the model was not asked `{text}`"))?;
    Ok(asked.first_token_unix_ms.ok_or("the model said nothing")? - asked.received_unix_ms)
}
