//! What each namespace holds, and who is told when it is nearly as much as it may.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use longhand_protocol::internal::{LimitNotice, Limited};
use longhand_session_log::StoreError;
use longhand_session_log::etcd::ShardedStore;
use longhand_session_log::store::Holdings;

use crate::metrics;
use crate::quota::SizeLimits;
use crate::resources::Cluster;

/// Events about namespaces of one count; more are in the log of this replica only.
const MOST_EVENTS: usize = 16;

/// One more session of a namespace, with so many bytes.
pub(super) fn count_in(counted: &mut BTreeMap<String, Holdings>, namespace: &str, bytes: u64, now: Timestamp) {
    let held = counted.get(namespace).copied().unwrap_or_default();
    let one = Holdings { sessions: 1, bytes, files: 0, counted_at: Some(now) };
    counted.insert(namespace.to_owned(), held.plus(one));
}

/// A limit that a namespace comes near to.
type Near = (String, Limited, bool);

/// Those that matter, of what was counted.
fn near(limits: &SizeLimits, held: &BTreeMap<String, Holdings>) -> BTreeMap<Near, LimitNotice> {
    let of = |(namespace, held): (&String, &Holdings)| {
        let namespace = namespace.clone();
        limits.near(*held).map(move |near| ((namespace.clone(), near.what, near.reached), near)).collect::<Vec<_>>()
    };
    held.iter().flat_map(of).collect()
}

fn text(namespace: &str, near: &LimitNotice) -> String {
    let LimitNotice { what, limit, reached, .. } = near;
    let limit = match what {
        Limited::Sessions | Limited::Files => format!("{limit} {}", what.as_str()),
        Limited::Bytes | Limited::Events => format!("{limit} {} of logs and files", what.as_str()),
    };
    if *reached && *what == Limited::Files {
        format!(
            "namespace {namespace} has reached its limit of {limit}: it takes no more until some are deleted or the limit is raised"
        )
    } else if *reached {
        format!(
            "namespace {namespace} has reached its limit of {limit}: it takes nothing new until sessions are deleted or the \
             limit is raised"
        )
    } else {
        format!("namespace {namespace} comes near to its limit of {limit}")
    }
}

/// Tells of namespaces, each once for as long as it stays so.
pub(crate) struct Namespaces {
    store: ShardedStore,
    limits: SizeLimits,
    about: Option<(Cluster, (String, String))>,
    told: BTreeSet<Near>,
}

impl Namespaces {
    /// Nobody was told of anything yet. `about` is the Deployment whose Events tell it.
    pub(crate) fn new(store: ShardedStore, limits: SizeLimits, about: Option<(Cluster, (String, String))>) -> Self {
        Self { store, limits, about, told: BTreeSet::new() }
    }

    /// Tells what has changed since it last told, of what was last counted everywhere.
    pub(super) async fn tell(&mut self) -> Result<(), StoreError> {
        let mut held: BTreeMap<String, Holdings> = BTreeMap::new();
        for shard in self.store.shards() {
            for (namespace, part) in shard.all_holdings().await? {
                let whole = held.entry(namespace).or_default();
                *whole = whole.plus(part);
            }
        }
        let near = near(&self.limits, &held);
        for what in [Limited::Sessions, Limited::Bytes, Limited::Files] {
            for reached in [false, true] {
                let count = near.keys().filter(|(_, of, is_reached)| (*of, *is_reached) == (what, reached)).count();
                metrics::namespaces_near(what.as_str(), reached, count);
            }
        }
        let news = near.iter().filter(|(key, _)| !self.told.contains(*key));
        for (count, ((namespace, ..), notice)) in news.enumerate() {
            let text = text(namespace, notice);
            tracing::warn!(namespace, text);
            if let (Some((cluster, (home, deployment))), true) = (&self.about, count < MOST_EVENTS) {
                let reason = if notice.reached { "NamespaceLimitReached" } else { "NamespaceNearLimit" };
                if let Err(error) = cluster.tell(home, deployment, true, reason, &text).await {
                    tracing::warn!(%error, "the Deployment has no Event about a namespace's limit");
                }
            }
        }
        self.told = near.into_keys().collect();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use jiff::Timestamp;
    use longhand_protocol::internal::Limited;

    use super::{count_in, near, text};
    use crate::quota::SizeLimits;

    #[test]
    fn sessions_are_counted_by_namespace_and_full_ones_are_told() {
        let mut counted = BTreeMap::new();
        for (namespace, bytes) in [("a", 10), ("b", 400), ("a", 20), ("b", 500), ("c", 1)] {
            count_in(&mut counted, namespace, bytes, Timestamp::UNIX_EPOCH);
        }
        assert_eq!((counted["a"].sessions, counted["a"].bytes), (2, 30));
        let limits = SizeLimits {
            namespace_max_sessions: 2,
            namespace_max_bytes: 1_000,
            limit_warning_percent: 90,
            ..SizeLimits::NONE
        };
        let near = near(&limits, &counted);
        let keys: Vec<(&str, Limited, bool)> =
            near.keys().map(|(namespace, what, reached)| (namespace.as_str(), *what, *reached)).collect();
        assert_eq!(
            keys,
            [("a", Limited::Sessions, true), ("b", Limited::Bytes, false), ("b", Limited::Sessions, true)]
        );
        let texts: Vec<String> = near.iter().map(|((namespace, ..), near)| text(namespace, near)).collect();
        assert!(texts[0].starts_with("namespace a has reached its limit of 2 sessions"), "{texts:?}");
        assert!(texts[1].contains("near to its limit of 1000 bytes"), "{texts:?}");
    }
}
