//! First lists: an empty store must not be taken for an empty cluster.

use std::time::Duration;

use futures::future::try_join_all;
use kube::runtime::watcher::Event;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::error::Error;

/// A first list takes no longer than this, or something is wrong. Less than a term's farewell: a reconcile that waits must
/// not keep a replica from ending.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);

/// What stores have to hold before anything is decided by them: what there was when their watches began.
///
/// Any number may wait. `Store::wait_until_ready` of kube-runtime 5.0 wakes only who asked last, so that it is left to the
/// controller whose store it is.
#[derive(Clone, Debug, Default)]
pub struct FirstLists(Vec<watch::Receiver<bool>>);

/// Says that a first list is whole.
#[derive(Debug)]
pub(crate) struct Listing(watch::Sender<bool>);

impl FirstLists {
    /// One more to wait for.
    pub(crate) fn begin(&mut self) -> Listing {
        let (listing, whole) = watch::channel(false);
        self.0.push(whole);
        Listing(listing)
    }

    /// Returns when every list is whole.
    ///
    /// # Errors
    /// [`Error::NotSynced`] when it takes too long, or a watch has ended before.
    pub async fn whole(&self) -> Result<(), Error> {
        let each = self.0.iter().map(|list| {
            let mut list = list.clone();
            async move { list.wait_for(|whole| *whole).await.map(drop) }
        });
        match timeout(DEADLINE, try_join_all(each)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Error::NotSynced(DEADLINE)),
        }
    }
}

impl Listing {
    /// Looks at an event that the store has taken in.
    pub(crate) fn saw<K>(&self, event: &Event<K>) {
        if matches!(event, Event::InitDone) {
            self.0.send_replace(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::{StreamExt as _, stream};
    use k8s_openapi::api::core::v1::Pod;
    use kube::runtime::reflector;
    use kube::runtime::watcher::Event;
    use tokio::time::Instant;

    use super::{DEADLINE, FirstLists};
    use crate::drive::touched;

    #[tokio::test(start_paused = true)]
    async fn everybody_who_waits_is_woken_by_the_last_list() {
        let mut lists = FirstLists::default();
        let (one, another) = (lists.begin(), lists.begin());
        let waiters: Vec<_> = (0..20)
            .map(|_| {
                let lists = lists.clone();
                tokio::spawn(async move { lists.whole().await })
            })
            .collect();
        tokio::task::yield_now().await;
        let begun = Instant::now();
        one.saw(&Event::<Pod>::InitDone);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(waiters.iter().all(|waiter| !waiter.is_finished()), "one list is not yet whole");
        another.saw(&Event::<Pod>::InitDone);
        for waiter in waiters {
            waiter.await.unwrap().unwrap();
        }
        assert_eq!(begun.elapsed(), Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_that_does_not_come_is_an_error_in_time() {
        let mut lists = FirstLists::default();
        let listing = lists.begin();
        listing.saw(&Event::<Pod>::Init);
        let begun = Instant::now();
        assert!(lists.whole().await.is_err());
        assert_eq!(begun.elapsed(), DEADLINE);
        drop(listing);
        assert!(lists.whole().await.is_err());
        assert_eq!(begun.elapsed(), DEADLINE, "nobody waits for a watch that has ended");
    }

    #[tokio::test]
    async fn a_list_is_whole_when_the_store_has_it() {
        let (store, writer) = reflector::store::<Pod>();
        let mut lists = FirstLists::default();
        let pod: Pod =
            serde_json::from_value(serde_json::json!({ "metadata": { "name": "p", "namespace": "team" } })).unwrap();
        let events = [Event::Init, Event::InitApply(pod), Event::InitDone].map(Ok);
        let stream = touched(stream::iter(events).chain(stream::pending()), writer, lists.begin());
        let follow = tokio::spawn(stream.for_each(|_| async {}));
        lists.whole().await.unwrap();
        assert_eq!(store.len(), 1);
        follow.abort();
    }
}
