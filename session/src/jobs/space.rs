//! How full etcd is, as every replica sees it, and who is told.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use longhand_session_log::etcd::{EtcdStore, Space};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::metrics;
use crate::resources::Cluster;

/// How often it is looked at.
const INTERVAL: Duration = Duration::from_secs(30);
/// A member's file that is smaller is left as it is.
pub(super) const LEAST_FRAGMENTED: u64 = 64 * 1024 * 1024;
/// From here on it is said that there is little room.
const LITTLE_ROOM_PERCENT: u64 = 80;

const NO_SPACE: &str =
    "etcd has no space left: new events are refused until its quota is raised or sessions are deleted";
const SPACE_AGAIN: &str = "etcd has space again: new events are taken";

/// Which of the etcd clusters have no room left, as far as this replica knows.
#[derive(Debug, Default)]
pub(crate) struct Alarm(Mutex<BTreeSet<usize>>);

impl Alarm {
    /// What an operator should know, if anything.
    pub(crate) fn text(&self) -> Option<&'static str> {
        let full = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (!full.is_empty()).then_some(NO_SPACE)
    }
}

/// The alarm of one etcd cluster.
#[derive(Clone, Debug)]
pub(crate) struct ShardAlarm {
    pub(crate) all: Arc<Alarm>,
    pub(crate) shard: usize,
}

impl ShardAlarm {
    /// Takes in how full the cluster is; whether its alarm has changed.
    pub(super) fn observe(&self, space: &Space) -> bool {
        metrics::log_space(self.shard, space);
        let mut full = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        if space.alarm { full.insert(self.shard) } else { full.remove(&self.shard) }
    }
}

/// Looks how full etcd is until `end`, and tells it to the Deployment of this namespace and name when that changes.
pub(crate) async fn watch(
    store: EtcdStore,
    alarm: ShardAlarm,
    about: Option<(Cluster, (String, String))>,
    end: CancellationToken,
) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut little = false;
    while end.run_until_cancelled(ticks.tick()).await.is_some() {
        let Some(looked) = end.run_until_cancelled(store.space()).await else { return };
        let space = match looked {
            Ok(space) => space,
            Err(error) => {
                tracing::debug!(%error, "etcd does not say how full it is");
                continue;
            }
        };
        let now_little = space.percent_of_quota().is_some_and(|percent| percent >= LITTLE_ROOM_PERCENT);
        if now_little && !little {
            tracing::warn!(percent = space.percent_of_quota(), "etcd has little space left");
        }
        little = now_little;
        if alarm.observe(&space) {
            let text = if space.alarm { NO_SPACE } else { SPACE_AGAIN };
            if space.alarm {
                tracing::error!(shard = alarm.shard, text);
            } else {
                tracing::info!(shard = alarm.shard, text);
            }
            if let Some((cluster, (namespace, deployment))) = &about {
                let reason = if space.alarm { "EtcdNoSpace" } else { "EtcdSpace" };
                let told = cluster.tell(namespace, deployment, space.alarm, reason, text).await;
                if let Err(error) = told {
                    tracing::warn!(%error, "the Deployment has no Event about etcd's space");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use longhand_session_log::etcd::Space;

    use super::{Alarm, ShardAlarm};

    #[test]
    fn the_alarm_is_on_while_any_cluster_is_full() {
        let all = Arc::new(Alarm::default());
        let [one, two] = [0, 1].map(|shard| ShardAlarm { all: Arc::clone(&all), shard });
        let (full, fine) = (Space { alarm: true, ..Space::default() }, Space::default());
        assert!(!one.observe(&fine) && all.text().is_none());
        assert!(one.observe(&full) && !one.observe(&full) && two.observe(&full));
        assert!(one.observe(&fine) && all.text().is_some());
        assert!(two.observe(&fine) && all.text().is_none());
    }
}
