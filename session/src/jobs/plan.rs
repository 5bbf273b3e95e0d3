//! Which events are to leave etcd.

use jiff::{SignedDuration, Timestamp};
use longhand_session_log::archive::{ArchivePolicy, Reach};
use longhand_session_log::etcd::Activity;

/// So long a repetition of an event that has left etcd is still recognised.
pub(super) const REMEMBERED: SignedDuration = SignedDuration::from_hours(24);

/// Which events of a session are to leave etcd now. `after` holds where the session says nothing itself.
pub(super) fn reach(
    activity: &Activity,
    policy: &ArchivePolicy,
    after: SignedDuration,
    now: Timestamp,
) -> Option<Reach> {
    if activity.hot_events == 0 {
        return None;
    }
    let own = activity.meta.retention.archive_after_seconds;
    let after = own.map_or(after, |seconds| SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX)));
    let is_idle = !activity.awake && now.duration_since(activity.updated_at) >= after;
    if activity.archived_at.is_some() || is_idle {
        return Some(Reach::All);
    }
    (activity.hot_events >= policy.hot_events.saturating_add(policy.segment_events)).then_some(Reach::Old)
}

/// Whether it is worth a look which of the session's events may be forgotten: the time between the last event and the
/// end of what is remembered is over, or the log is long.
pub(super) fn may_forget(activity: &Activity, now: Timestamp) -> bool {
    let quiet = now.duration_since(activity.updated_at);
    activity.hot_events > 0 || (REMEMBERED..REMEMBERED * 2).contains(&quiet)
}

#[cfg(test)]
mod tests {
    use jiff::{SignedDuration, Timestamp};
    use longhand_session_log::archive::{ArchivePolicy, Reach};
    use longhand_session_log::etcd::Activity;
    use longhand_session_log::store::Size;
    use rstest::rstest;

    use super::reach;
    use crate::testing::meta;

    const POLICY: ArchivePolicy = ArchivePolicy { hot_events: 10, segment_events: 5, segment_bytes: 100 };
    const HOUR: SignedDuration = SignedDuration::from_hours(1);

    fn quiet(seconds: i64, hot_events: u64) -> Activity {
        Activity {
            meta: meta("ns", "name", "uid"),
            hot_events,
            awake: false,
            archived_at: None,
            updated_at: Timestamp::UNIX_EPOCH - SignedDuration::from_secs(seconds),
            size: Size::default(),
        }
    }

    #[rstest]
    #[case::young(quiet(0, 14), None)]
    #[case::long(quiet(0, 15), Some(Reach::Old))]
    #[case::idle(quiet(3_600, 1), Some(Reach::All))]
    #[case::nothing_left(quiet(3_600, 0), None)]
    #[case::awake(Activity { awake: true, ..quiet(9_000, 14) }, None)]
    #[case::awake_and_long(Activity { awake: true, ..quiet(9_000, 15) }, Some(Reach::Old))]
    #[case::ended(Activity { archived_at: Some(Timestamp::UNIX_EPOCH), ..quiet(0, 1) }, Some(Reach::All))]
    fn events_leave_when_nobody_is_expected_to_read_them(#[case] activity: Activity, #[case] expected: Option<Reach>) {
        assert_eq!(reach(&activity, &POLICY, HOUR, Timestamp::UNIX_EPOCH), expected);
    }

    #[test]
    fn a_session_says_itself_when() {
        let mut activity = quiet(100, 1);
        activity.meta.retention.archive_after_seconds = Some(100);
        assert_eq!(reach(&activity, &POLICY, HOUR, Timestamp::UNIX_EPOCH), Some(Reach::All));
        activity.meta.retention.archive_after_seconds = Some(101);
        assert_eq!(reach(&activity, &POLICY, HOUR, Timestamp::UNIX_EPOCH), None);
    }
}
