//! Which part of a log a reader wants, by the numbers of its events.

use longhand_protocol::{EventId, SessionId};
use longhand_session_log::SessionStore;

use super::error::{ApiError, Result};
use super::query::Params;

const RADIUS: u64 = 10;
/// All of it is one page of the longest.
const LONGEST_RADIUS: u64 = 499;

/// What the parameters are called.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Names {
    after: &'static str,
    before: &'static str,
    around_seq: &'static str,
    around_id: &'static str,
}

impl Names {
    /// In the public API, among the parameters of others.
    pub(crate) const WIRE: Self =
        Self { after: "after_seq", before: "before_seq", around_seq: "around_seq", around_id: "around_id" };
    /// In the harness API, where everything is numbered.
    pub(crate) const HARNESS: Self =
        Self { after: "after", before: "before", around_seq: "around", around_id: "around_id" };
}

/// The middle of a part.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Middle {
    Seq(u64),
    Event(EventId),
}

/// A part of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    /// Above and below these numbers.
    Between(Span),
    /// So many events on either side of one, and that one.
    Around { middle: Middle, radius: u64 },
}

/// Which part of a log is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place(Part);

/// The numbers between which events are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// Above this one.
    pub(crate) after: u64,
    /// Below this one.
    pub(crate) before: Option<u64>,
}

impl Span {
    fn around(seq: u64, radius: u64) -> Self {
        let before = seq.saturating_add(radius).saturating_add(1);
        Self { after: seq.saturating_sub(radius).saturating_sub(1), before: Some(before) }
    }
}

impl Place {
    /// Takes the parameters.
    ///
    /// # Errors
    /// 400 naming one that is wrong, or two that do not go together.
    pub(crate) fn parse(params: &mut Params, names: Names) -> Result<Self> {
        let Names { after: after_name, before: before_name, around_seq, around_id } = names;
        let after: Option<u64> = params.number(after_name)?;
        let before: Option<u64> = params.number(before_name)?;
        let seq: Option<u64> = params.number(around_seq)?;
        let event = params
            .one(around_id)?
            .map(|id| id.parse::<EventId>().map_err(|error| ApiError::bad_request(format!("`{around_id}`: {error}"))));
        let event = event.transpose()?;
        let radius: Option<u64> = params.number("radius")?;
        let middle = match (seq, event) {
            (Some(_), Some(_)) => return Err(exclude(around_seq, around_id)),
            (Some(0), None) => {
                return Err(ApiError::bad_request(format!("`{around_seq}` is 0; the first event has the number 1")));
            }
            (Some(seq), None) => Some((around_seq, Middle::Seq(seq))),
            (None, Some(event)) => Some((around_id, Middle::Event(event))),
            (None, None) => None,
        };
        let Some((around, middle)) = middle else {
            if radius.is_some() {
                let message = format!("`radius` needs `{around_seq}` or `{around_id}`");
                return Err(ApiError::bad_request(message));
            }
            let after = after.unwrap_or(0);
            if before.is_some_and(|before| before.saturating_sub(1) <= after) {
                let message = format!("no event is above `{after_name}` and below `{before_name}`");
                return Err(ApiError::bad_request(message));
            }
            return Ok(Self(Part::Between(Span { after, before })));
        };
        for (bound, name) in [(after, after_name), (before, before_name)] {
            if bound.is_some() {
                return Err(exclude(around, name));
            }
        }
        let radius = radius.unwrap_or(RADIUS);
        if radius > LONGEST_RADIUS {
            let message = format!("`radius` is {radius}, and must be 0 to {LONGEST_RADIUS}");
            return Err(ApiError::bad_request(message));
        }
        Ok(Self(Part::Around { middle, radius }))
    }

    /// Where that is in this log.
    ///
    /// # Errors
    /// 400 when the log has no such event; those of the store.
    pub(crate) async fn find(&self, store: &dyn SessionStore, session: &SessionId) -> Result<Span> {
        let (seq, radius) = match &self.0 {
            Part::Between(span) => return Ok(*span),
            Part::Around { middle: Middle::Seq(seq), radius } => (*seq, *radius),
            Part::Around { middle: Middle::Event(event), radius } => match store.position(session, event).await? {
                Some(seq) => (seq, *radius),
                None => {
                    let message = format!("`around_id`: the log of {session} has no event {event}");
                    return Err(ApiError::bad_request(message));
                }
            },
        };
        Ok(Span::around(seq, radius))
    }

    /// Whether what comes later belongs to it.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.0, Part::Between(Span { before: None, .. }))
    }
}

fn exclude(one: &str, other: &str) -> ApiError {
    ApiError::bad_request(format!("`{one}` and `{other}` exclude each other"))
}

#[cfg(test)]
mod tests {
    use longhand_session_log::memory::MemoryStore;
    use longhand_session_log::store::Query;
    use rstest::rstest;

    use super::{Names, Place};
    use crate::api::error::Result;
    use crate::api::query::Params;

    fn parse(names: Names, query: &[(&str, &str)]) -> Result<Place> {
        let mut params = Params::new(query.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect());
        let place = Place::parse(&mut params, names)?;
        params.end().map(|()| place)
    }

    async fn bounds(place: &Place) -> (u64, Option<u64>) {
        let span = place.find(&MemoryStore::default(), &"sesn_1".parse().unwrap()).await.unwrap();
        (span.after, span.before)
    }

    #[rstest]
    #[case(&[], (0, None))]
    #[case(&[("after_seq", "3")], (3, None))]
    #[case(&[("before_seq", "3")], (0, Some(3)))]
    #[case(&[("after_seq", "3"), ("before_seq", "5")], (3, Some(5)))]
    #[case(&[("around_seq", "30")], (19, Some(41)))]
    #[case(&[("around_seq", "30"), ("radius", "0")], (29, Some(31)))]
    #[case(&[("around_seq", "2"), ("radius", "499")], (0, Some(502)))]
    #[tokio::test]
    async fn a_part_is_between_two_numbers(#[case] query: &[(&str, &str)], #[case] expected: (u64, Option<u64>)) {
        let place = parse(Names::WIRE, query).unwrap();
        assert_eq!(bounds(&place).await, expected);
        assert_eq!(place.is_open(), expected.1.is_none());
    }

    #[tokio::test]
    async fn around_is_what_the_store_means_by_it() {
        for (seq, radius) in [(1_u64, 0_usize), (1, 5), (7, 2), (300, 499)] {
            let (seq_text, radius_text) = (seq.to_string(), radius.to_string());
            let query = [("around", seq_text.as_str()), ("radius", radius_text.as_str())];
            let place = parse(Names::HARNESS, &query).unwrap();
            let Query { after, before, .. } = Query::around(seq, radius);
            assert_eq!(bounds(&place).await, (after, before));
        }
    }

    #[rstest]
    #[case(&[("after_seq", "-1")], "`after_seq`")]
    #[case(&[("before_seq", "x")], "`before_seq`")]
    #[case(&[("before_seq", "1")], "`after_seq` and below `before_seq`")]
    #[case(&[("before_seq", "0")], "`before_seq`")]
    #[case(&[("after_seq", "4"), ("before_seq", "5")], "`after_seq` and below `before_seq`")]
    #[case(&[("around_seq", "0")], "`around_seq`")]
    #[case(&[("around_id", "toolu_1")], "`around_id`")]
    #[case(&[("around_seq", "1"), ("around_id", "sevt_1")], "`around_seq` and `around_id`")]
    #[case(&[("around_seq", "1"), ("after_seq", "1")], "`around_seq` and `after_seq`")]
    #[case(&[("around_id", "sevt_1"), ("before_seq", "9")], "`around_id` and `before_seq`")]
    #[case(&[("radius", "3")], "`radius` needs")]
    #[case(&[("around_seq", "1"), ("radius", "500")], "0 to 499")]
    #[case(&[("around", "1")], "`around`")]
    fn what_does_not_go_together_is_named(#[case] query: &[(&str, &str)], #[case] part: &str) {
        let message = parse(Names::WIRE, query).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    }
}
