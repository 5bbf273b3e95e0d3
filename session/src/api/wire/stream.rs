//! Events as they happen, by SSE.

use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::State;
use axum::response::sse::{Event as Frame, KeepAlive, KeepAliveStream, Sse};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use http::HeaderMap;
use tokio::time::{Instant, interval_at};

use super::event_query::TypeFilter;
use super::feed::Feed;
use super::session_for;
use crate::api::error::{ApiError, Result};
use crate::api::extract::{Caller, PathOf};
use crate::api::query::Params;
use crate::app::App;
use crate::auth::{Access, Identity};

/// The one type that is previewed.
const PREVIEWED: &str = "agent.message";

struct StreamQuery {
    types: TypeFilter,
    previews: bool,
    after_seq: Option<u64>,
}

impl StreamQuery {
    fn parse(mut params: Params, headers: &HeaderMap) -> Result<Self> {
        let deltas = params.list("event_deltas");
        let known = |kind: &str| matches!(kind, PREVIEWED | "agent.thinking");
        if let Some(kind) = deltas.iter().flat_map(|deltas| deltas.split(',')).find(|kind| !known(kind)) {
            return Err(ApiError::bad_request(format!(
                "`event_deltas[]` has no previews of `{kind}`; it may be agent.message or agent.thinking"
            )));
        }
        let previews = deltas.iter().flat_map(|deltas| deltas.split(',')).any(|kind| kind == PREVIEWED);
        let types = TypeFilter::new(params.list("types"))?;
        let asked: Option<u64> = params.number("after_seq")?;
        params.end()?;
        // A browser that connects again repeats the URL, so that the header, if there is one, is the later word.
        let after_seq = asked.max(last_event_id(headers)?);
        Ok(Self { types, previews, after_seq })
    }
}

fn last_event_id(headers: &HeaderMap) -> Result<Option<u64>> {
    let Some(value) = headers.get("last-event-id") else { return Ok(None) };
    let text = value.to_str().unwrap_or_default().trim();
    if text.is_empty() {
        return Ok(None);
    }
    let id = text.parse().map_err(|_| ApiError::bad_request("`Last-Event-ID` is not an `id` of this stream"))?;
    Ok(Some(id))
}

/// The frames of a stream.
pub type Frames = Sse<KeepAliveStream<BoxStream<'static, Result<Frame, Infallible>>>>;

/// `GET events/stream`.
pub async fn stream(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    params: Params,
    headers: HeaderMap,
) -> Result<Frames> {
    open(app, identity, &path, params, &headers).await
}

/// Opens a stream of the session that the path names.
pub(super) async fn open(
    app: App,
    identity: Arc<Identity>,
    path: &PathOf,
    params: Params,
    headers: &HeaderMap,
) -> Result<Frames> {
    let query = StreamQuery::parse(params, headers)?;
    // Before anything is read: what happens from here on is seen.
    let session = path.session()?;
    let previews = query.previews.then(|| app.previews.subscribe(session));
    let state = session_for(&app, &identity, path, Access::ReadEvents).await?;
    let slot = app.streams.open(&state.meta.namespace)?;
    let after = query.after_seq.unwrap_or(state.head);
    if after > state.head {
        return Err(ApiError::bad_request(format!("the log ends with {}, before {after}", state.head)));
    }
    let tail = app.store.tail(session, after).await?;
    let recheck = interval_at(Instant::now() + app.waits.recheck, app.waits.recheck);
    let heartbeat = KeepAlive::new().interval(app.waits.heartbeat);
    let feed = Feed::new(app, identity, state.meta, query.types, tail, previews, recheck, slot);
    Ok(Sse::new(feed.into_stream().boxed()).keep_alive(heartbeat))
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;
    use rstest::rstest;

    use super::StreamQuery;
    use crate::api::query::Params;

    fn parse(query: &[(&str, &str)], last: Option<&'static str>) -> Result<(bool, Option<u64>), String> {
        let params = Params::new(query.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect());
        let mut headers = HeaderMap::new();
        if let Some(last) = last {
            headers.insert("last-event-id", last.parse().unwrap());
        }
        let parsed = StreamQuery::parse(params, &headers).map_err(|error| error.to_string())?;
        Ok((parsed.previews, parsed.after_seq))
    }

    #[rstest]
    #[case(&[], None, Ok((false, None)))]
    #[case(&[("event_deltas[]", "agent.message")], None, Ok((true, None)))]
    #[case(&[("event_deltas[]", "agent.thinking")], None, Ok((false, None)))]
    #[case(&[("event_deltas", "agent.thinking,agent.message")], None, Ok((true, None)))]
    #[case(&[("event_deltas[]", "agent.tool_use")], None, Err("agent.tool_use"))]
    #[case(&[("after_seq", "3")], None, Ok((false, Some(3))))]
    #[case(&[("after_seq", "3")], Some("5"), Ok((false, Some(5))))]
    #[case(&[("after_seq", "3")], Some(""), Ok((false, Some(3))))]
    #[case(&[], Some("x"), Err("Last-Event-ID"))]
    #[case(&[("limit", "3")], None, Err("`limit`"))]
    fn a_stream_is_asked_for(
        #[case] query: &[(&str, &str)],
        #[case] last: Option<&'static str>,
        #[case] expected: Result<(bool, Option<u64>), &str>,
    ) {
        match (parse(query, last), expected) {
            (Ok(parsed), Ok(expected)) => assert_eq!(parsed, expected),
            (Err(message), Err(part)) => assert!(message.contains(part), "{message}"),
            (other, _) => panic!("{other:?}"),
        }
    }
}
