//! `created_at[gt]`, `created_at[gte]`, `created_at[lt]` and `created_at[lte]`.

use jiff::{SignedDuration, Timestamp};

use crate::api::error::{ApiError, Result};
use crate::api::query::Params;

/// A span of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::api) struct TimeRange {
    /// The first moment in it.
    pub(in crate::api) since: Option<Timestamp>,
    /// The first moment after it.
    pub(in crate::api) until: Option<Timestamp>,
}

impl TimeRange {
    pub(in crate::api) fn parse(params: &mut Params) -> Result<Self> {
        let mut take = |bound: &str| {
            let key = format!("created_at[{bound}]");
            let Some(text) = params.one(&key)? else { return Ok(None) };
            let time = text.parse::<Timestamp>();
            time.map(Some).map_err(|_| ApiError::bad_request(format!("`{key}` is not an RFC 3339 time: `{text}`")))
        };
        let (after, since) = (take("gt")?, take("gte")?);
        let (until, last) = (take("lt")?, take("lte")?);
        let next = |time: Timestamp| time.saturating_add(SignedDuration::from_nanos(1)).unwrap_or(Timestamp::MAX);
        Ok(Self {
            since: after.map(next).max(since),
            until: match (until, last.map(next)) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            },
        })
    }

    pub(super) fn contains(&self, time: Timestamp) -> bool {
        self.since.is_none_or(|since| time >= since) && self.until.is_none_or(|until| time < until)
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use rstest::rstest;

    use super::TimeRange;
    use crate::api::error::Result;
    use crate::api::query::Params;

    fn parse(query: &[(&str, &str)]) -> Result<TimeRange> {
        let pairs = query.iter().map(|(bound, time)| (format!("created_at[{bound}]"), (*time).to_owned())).collect();
        let mut params = Params::new(pairs);
        let range = TimeRange::parse(&mut params)?;
        params.end().map(|()| range)
    }

    #[rstest]
    #[case(&[], [true, true, true])]
    #[case(&[("gt", "2026-01-02T00:00:00Z")], [false, false, true])]
    #[case(&[("gte", "2026-01-02T00:00:00Z")], [false, true, true])]
    #[case(&[("lt", "2026-01-02T00:00:00Z")], [true, false, false])]
    #[case(&[("lte", "2026-01-02T00:00:00.000000+00:00")], [true, true, false])]
    #[case(&[("gt", "2026-01-01T00:00:00Z"), ("gte", "2026-01-03T00:00:00Z")], [false, false, true])]
    #[case(&[("lt", "2026-01-03T00:00:00Z"), ("lte", "2026-01-01T00:00:00Z")], [true, false, false])]
    fn bounds_are_kept(#[case] query: &[(&str, &str)], #[case] expected: [bool; 3]) {
        let range = parse(query).unwrap();
        for (day, expected) in (1..).zip(expected) {
            let time: Timestamp = format!("2026-01-0{day}T00:00:00Z").parse().unwrap();
            assert_eq!(range.contains(time), expected, "{time}");
        }
    }

    #[rstest]
    #[case(&[("gt", "yesterday")], "`created_at[gt]`")]
    #[case(&[("ge", "2026-01-02T00:00:00Z")], "`created_at[ge]`")]
    fn nonsense_is_named(#[case] query: &[(&str, &str)], #[case] part: &str) {
        let message = parse(query).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    }
}
