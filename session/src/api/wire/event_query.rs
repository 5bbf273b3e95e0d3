//! Which events a client wants, in which order, and where a page begins.

use longhand_protocol::EventId;
use longhand_protocol::event::EventBody;
use longhand_protocol::wire::Order;
use longhand_session_log::store::{Query, type_matches};
use serde::{Deserialize, Serialize};

use super::cursor;
use super::times::TimeRange;
use crate::api::error::{ApiError, Result};
use crate::api::place::{Names, Place, Span};
use crate::api::query::Params;

const PAGE: usize = 100;
const LONGEST_PAGE: usize = 1_000;
const MOST_TYPES: usize = 100;

/// Which types are wanted. `x.*` are our own, which strict clients must be spared: they are shown only if named, by
/// their type or as `x.*`. `*` is everything else, and `agent.*` all of a family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypeFilter(Vec<String>);

/// The parameters `types[]`.
pub(in crate::api) fn types(types: Vec<String>) -> Result<Vec<String>> {
    if types.len() > MOST_TYPES {
        return Err(ApiError::bad_request(format!("`types[]` is given more than {MOST_TYPES} times")));
    }
    Ok(types)
}

impl Default for TypeFilter {
    fn default() -> Self {
        Self(vec!["*".to_owned()])
    }
}

impl TypeFilter {
    /// Of the parameters `types[]`.
    pub fn new(given: Vec<String>) -> Result<Self> {
        let types = types(given)?;
        Ok(if types.is_empty() { Self::default() } else { Self(types) })
    }

    /// Whether the event is wanted.
    #[must_use]
    pub fn admits(&self, body: &EventBody) -> bool {
        self.0.iter().any(|wanted| type_matches(wanted, body.kind()))
    }
}

/// Where a page begins.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    /// Ascending: after this sequence number; descending: before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) seq: Option<u64>,
    /// The queued event that was shown last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) queued: Option<EventId>,
}

/// What `GET events` is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct EventQuery {
    pub(super) types: TypeFilter,
    pub(super) order: Order,
    pub(super) limit: usize,
    pub(super) place: Place,
    pub(super) include_seq: bool,
    pub(super) from: Position,
    pub(super) times: TimeRange,
}

impl EventQuery {
    pub(super) fn parse(mut params: Params) -> Result<Self> {
        let order = cursor::order(params.one("order")?.as_deref(), Order::Asc)?;
        let page = params.one("page")?;
        let times = TimeRange::parse(&mut params)?;
        let query = Self {
            types: TypeFilter::new(params.list("types"))?,
            order,
            limit: params.limit(PAGE, LONGEST_PAGE)?,
            place: Place::parse(&mut params, Names::WIRE)?,
            include_seq: params.flag("include_seq")?,
            from: page.map(|page| cursor::decode(&page, order)).transpose()?.unwrap_or_default(),
            times,
        };
        params.end()?;
        Ok(query)
    }

    /// What is asked of the store: at most `limit` records of `span` beyond `at`, which is where the page begins or goes on.
    pub(super) fn of_log(&self, span: Span, at: Option<u64>, limit: usize) -> Query {
        let Span { after, before } = span;
        let query = Query {
            after,
            before,
            order: self.order,
            limit,
            types: self.types.0.clone(),
            since: self.times.since,
            until: self.times.until,
        };
        match at {
            Some(at) => query.from(at),
            None => query,
        }
    }

    /// A queued event has neither a time nor a number yet: it comes after all that do.
    pub(super) fn wants_queued(&self) -> bool {
        self.times == TimeRange::default() && self.place.is_open()
    }
}

#[cfg(test)]
mod tests {
    use longhand_protocol::event::EventBody;
    use rstest::rstest;

    use super::TypeFilter;

    #[rstest]
    #[case(&[], "agent.message", true)]
    #[case(&[], "x.sandbox.ready", false)]
    #[case(&["x.*"], "x.sandbox.ready", true)]
    #[case(&["x.*"], "agent.message", false)]
    #[case(&["*"], "agent.message", true)]
    #[case(&["*"], "x.sandbox.ready", false)]
    #[case(&["*", "x.*"], "x.sandbox.ready", true)]
    #[case(&["x.sandbox.ready"], "x.sandbox.ready", true)]
    #[case(&["x.sandbox.ready"], "x.sandbox.lost", false)]
    #[case(&["agent.message", "user.message"], "user.message", true)]
    #[case(&["agent.message"], "agent.messages", false)]
    #[case(&["agent.*"], "agent.message", true)]
    #[case(&["agent.*"], "user.message", false)]
    fn our_own_types_are_shown_only_if_asked_for(#[case] types: &[&str], #[case] kind: &str, #[case] shown: bool) {
        let filter = TypeFilter::new(types.iter().map(|kind| (*kind).to_owned()).collect()).unwrap();
        let body = EventBody::Other { kind: kind.to_owned(), fields: serde_json::Map::new() };
        assert_eq!(filter.admits(&body), shown);
    }
}
