//! What a replica of the session service holds in memory with a thousand open streams.

use std::time::Duration;

use futures::StreamExt as _;
use longhand_protocol::SessionId;
use longhand_protocol::client::sse::{EventStream, StreamItem, StreamOptions};
use longhand_protocol::event::EventBody;
use tokio::task::JoinSet;

use crate::cluster::{Fixture, SessionOptions, TestResult};

/// Sessions that are watched.
const SESSIONS: usize = 10;
/// Streams on each of them.
const STREAMS_EACH: usize = 100;
const DEADLINE: Duration = Duration::from_secs(300);

/// Streams that are open for as long as this lives.
pub(super) struct Open {
    _streams: Vec<EventStream>,
}

/// Opens all streams, with previews, from the beginning of their sessions, and lets each of them carry a turn.
///
/// # Errors
/// When a session does not end its turn, or a stream does not bring it.
pub(super) async fn open(fixture: &Fixture) -> TestResult<Open> {
    let mut sessions = Vec::with_capacity(SESSIONS);
    for number in 0..SESSIONS {
        let options = SessionOptions { harness_idle_seconds: 600, ..SessionOptions::saying(&["go"]) };
        sessions.push(fixture.session(&format!("watched-{number}"), &options).await?);
    }
    let all = sessions.iter().flat_map(|session| std::iter::repeat_n(session, STREAMS_EACH));
    let streams = all.map(|session| stream(fixture, session)).collect();
    let streams = until_idle(streams).await?;
    for session in &sessions {
        fixture.service.send(session, "again").await?;
    }
    Ok(Open { _streams: until_idle(streams).await? })
}

fn stream(fixture: &Fixture, session: &SessionId) -> EventStream {
    let options = StreamOptions { after_seq: Some(0), previews: true, ..StreamOptions::default() };
    fixture.service.wire.stream_events(session, options)
}

/// The streams, when each has brought the end of a turn.
async fn until_idle(streams: Vec<EventStream>) -> TestResult<Vec<EventStream>> {
    let mut tasks: JoinSet<TestResult<EventStream>> = streams.into_iter().map(one_turn).collect();
    let all = async {
        let mut streams = Vec::with_capacity(tasks.len());
        while let Some(stream) = tasks.join_next().await {
            streams.push(stream??);
        }
        TestResult::Ok(streams)
    };
    tokio::time::timeout(DEADLINE, all).await.map_err(|_| format!("not all streams brought a turn in {DEADLINE:?}"))?
}

async fn one_turn(mut stream: EventStream) -> TestResult<EventStream> {
    while let Some(item) = stream.next().await {
        if let StreamItem::Event { event, .. } = item?
            && matches!(event.body, EventBody::SessionStatusIdle { .. })
        {
            return Ok(stream);
        }
    }
    Err("a stream has ended".into())
}
