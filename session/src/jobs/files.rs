//! Files that clients have uploaded: they count for their namespace, and go with it.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use longhand_session_log::StoreError;
use longhand_session_log::files::Files;
use longhand_session_log::store::Holdings;

use crate::metrics;
use crate::resources::Resources;

/// Files, and who knows which namespaces there are.
pub(crate) struct FileJobs<R> {
    files: Files,
    resources: R,
}

impl<R: Resources> FileJobs<R> {
    pub(crate) const fn new(files: Files, resources: R) -> Self {
        Self { files, resources }
    }

    /// Adds files and their bytes to what namespaces hold.
    pub(super) async fn count_in(
        &self,
        counted: &mut BTreeMap<String, Holdings>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        for (home, held) in self.files.held().await? {
            let before = counted.get(&home.namespace).copied().unwrap_or_default();
            let (files, bytes) = (held.files, held.bytes);
            let held = Holdings { sessions: 0, bytes, files, counted_at: Some(now) };
            counted.insert(home.namespace, before.plus(held));
        }
        Ok(())
    }

    /// Removes files that are over, and those of namespaces that are gone; returns how many. A namespace that another has
    /// taken the name of is gone.
    pub(super) async fn sweep(&self) -> Result<u64, StoreError> {
        let mut gone = BTreeSet::new();
        for (home, held) in self.files.held().await? {
            let namespace = &home.namespace;
            match self.resources.namespace_uid(namespace).await {
                Ok(now) if now.as_ref() == Some(&home.uid) => {}
                Ok(_) => {
                    tracing::info!(namespace, files = held.files, "the files of a namespace that is gone are removed");
                    gone.insert(home);
                }
                Err(error) => {
                    tracing::warn!(namespace, %error, "the files of a namespace stay for now");
                    metrics::log_job_failed("files");
                }
            }
        }
        self.files.sweep(Timestamp::now(), &gone).await
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use futures::stream;
    use jiff::Timestamp;
    use longhand_session_log::files::{Files, Home, NewFile};

    use super::FileJobs;
    use crate::testing::cluster::FakeCluster;

    fn home(namespace: &str, uid: &str) -> Home {
        Home { namespace: namespace.to_owned(), uid: uid.to_owned() }
    }

    #[tokio::test]
    async fn files_count_for_their_namespace_and_go_with_it() {
        let files = Files::in_memory();
        let put = async |namespace: &str, uid: &str, content: &'static [u8]| {
            let [filename, mime_type] = ["a", "text/plain"].map(ToOwned::to_owned);
            let content = stream::iter([Ok::<_, String>(content.into())]);
            let slot = files.begin_upload(&home(namespace, uid)).unwrap();
            files.put(slot, NewFile { filename, mime_type, expires_in: None }, content).await.unwrap()
        };
        let kept = put("team-a", "uid-team-a", b"four").await;
        let (of_another, of_none) = (put("team-a", "uid-before", b"two").await, put("gone", "uid-gone", b"x").await);
        let (cluster, _seen) = FakeCluster::new();
        cluster.remove_namespace("gone");
        let jobs = FileJobs::new(files.clone(), cluster);
        let mut counted = BTreeMap::new();
        jobs.count_in(&mut counted, Timestamp::UNIX_EPOCH).await.unwrap();
        assert_eq!((counted["team-a"].bytes, counted["team-a"].sessions, counted["gone"].bytes), (7, 0, 1));
        assert_eq!((counted["team-a"].files, counted["gone"].files), (2, 1));
        assert_eq!(jobs.sweep().await.unwrap(), 2);
        assert_eq!(files.get(&home("team-a", "uid-team-a"), &kept.id).await.unwrap(), Some(kept));
        assert_eq!(files.get(&home("team-a", "uid-before"), &of_another.id).await.unwrap(), None);
        assert_eq!(files.get(&home("gone", "uid-gone"), &of_none.id).await.unwrap(), None);
    }
}
