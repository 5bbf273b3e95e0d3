//! What the jobs of the log are told.

use std::time::Duration;

use jiff::SignedDuration;
use longhand_session_log::store::Retention;

/// Where old events go, and when.
#[derive(Clone, Debug, clap::Args)]
pub struct JobsConfig {
    /// Where large payloads and old events go: file:///folder, s3://bucket/prefix, gs:// or az://. Credentials come from
    /// the environment. Without it everything stays in etcd.
    #[arg(long, env = "OBJECTS_URL")]
    pub objects_url: Option<String>,
    /// So long after its last event a session's events leave etcd, unless the session says otherwise, in seconds.
    #[arg(long, env = "ARCHIVE_AFTER_SECONDS", default_value_t = 86_400)]
    pub archive_after_seconds: u32,
    /// So long the log of a deleted session is kept, unless the session says otherwise, in seconds.
    #[arg(long, env = "DELETE_AFTER_SECONDS", default_value_t = 0)]
    pub delete_after_seconds: u32,
    /// Objects that nothing refers to are removed when they are older than this, in seconds.
    #[arg(long, env = "COLLECT_GRACE_SECONDS", default_value_t = 86_400)]
    pub collect_grace_seconds: u32,
    /// How often such objects are looked for, in seconds.
    #[arg(long, env = "COLLECT_INTERVAL_SECONDS", default_value_t = 3_600)]
    pub collect_interval_seconds: u32,
    /// How often sessions are looked at for events to move, and etcd for room, in seconds.
    #[arg(long, env = "MAINTENANCE_INTERVAL_SECONDS", default_value_t = 60)]
    pub maintenance_interval_seconds: u32,
    /// How much history etcd keeps, in seconds, for watches that reconnect; at most twice that.
    #[arg(long, env = "COMPACTION_INTERVAL_SECONDS", default_value_t = 600)]
    pub compaction_interval_seconds: u32,
    /// The Deployment that this replica belongs to: its Events say when etcd is full.
    #[arg(long, env = "DEPLOYMENT")]
    pub deployment: Option<String>,
}

impl JobsConfig {
    /// How long the logs of deleted sessions are kept.
    #[must_use]
    pub fn keep_deleted(&self) -> KeepDeleted {
        KeepDeleted(Duration::from_secs(self.delete_after_seconds.into()))
    }

    pub(crate) fn archive_after(&self) -> SignedDuration {
        SignedDuration::from_secs(self.archive_after_seconds.into())
    }

    pub(crate) fn maintenance(&self) -> Duration {
        at_least_a_second(self.maintenance_interval_seconds)
    }

    pub(crate) fn compaction(&self) -> Duration {
        at_least_a_second(self.compaction_interval_seconds)
    }

    pub(crate) fn collection(&self) -> Duration {
        at_least_a_second(self.collect_interval_seconds)
    }
}

fn at_least_a_second(seconds: u32) -> Duration {
    Duration::from_secs(u64::from(seconds.max(1)))
}

/// How long the logs of deleted sessions are kept that do not say so themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeepDeleted(pub Duration);

impl KeepDeleted {
    /// How long the log of a deleted session with this retention is kept; `None` if not at all.
    #[must_use]
    pub fn of(self, retention: &Retention) -> Option<SignedDuration> {
        let seconds = retention.delete_after_seconds.unwrap_or(self.0.as_secs());
        let kept = SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));
        (!kept.is_zero()).then_some(kept)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jiff::SignedDuration;
    use longhand_session_log::store::Retention;
    use rstest::rstest;

    use super::KeepDeleted;

    #[rstest]
    #[case(0, None, None)]
    #[case(0, Some(5), Some(5))]
    #[case(7, None, Some(7))]
    #[case(7, Some(0), None)]
    fn the_session_has_the_last_word(#[case] default: u64, #[case] own: Option<u64>, #[case] kept: Option<i64>) {
        let retention = Retention { delete_after_seconds: own, ..Retention::default() };
        let keep = KeepDeleted(Duration::from_secs(default));
        assert_eq!(keep.of(&retention), kept.map(SignedDuration::from_secs));
    }
}
