//! What the watches of a controller have listed: an empty store must not be taken for an empty cluster, nor an old one for what
//! there is.

use std::time::Duration;

use futures::future::try_join_all;
use futures::{Stream, stream};
use kube::runtime::watcher::Event;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::error::Error;

/// A first list takes no longer than this, or something is wrong.
const DEADLINE: Duration = Duration::from_secs(10);

/// The lists of the watches that a controller reads from.
///
/// Any number may wait for the first ones. `Store::wait_until_ready` of kube-runtime 5.0 wakes only who asked last, so that it is
/// left to the controller whose store it is.
#[derive(Clone, Debug, Default)]
pub struct Lists {
    whole: Vec<watch::Receiver<bool>>,
    again: watch::Sender<()>,
}

/// One watch, as far as lists go.
#[derive(Debug)]
pub(crate) struct Listing {
    whole: watch::Sender<bool>,
    again: watch::Sender<()>,
}

impl Lists {
    /// One more watch.
    pub(crate) fn begin(&mut self) -> Listing {
        let (whole, first) = watch::channel(false);
        self.whole.push(first);
        Listing { whole, again: self.again.clone() }
    }

    /// Waits for the first lists of `others` too.
    pub(crate) fn wait_for(&mut self, others: &Self) {
        self.whole.extend_from_slice(&others.whole);
    }

    /// Whether every first list is whole.
    pub(crate) fn are_whole(&self) -> bool {
        self.whole.iter().all(|whole| *whole.borrow())
    }

    /// Returns when every first list is whole.
    ///
    /// # Errors
    /// [`Error::NotSynced`] when it takes too long, or a watch has ended before.
    pub async fn whole(&self) -> Result<(), Error> {
        // Every reconcile asks, and all but the first need no timer.
        if self.are_whole() {
            return Ok(());
        }
        let each = self.whole.iter().map(|list| {
            let mut list = list.clone();
            async move { list.wait_for(|whole| *whole).await.map(drop) }
        });
        match timeout(DEADLINE, try_join_all(each)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Error::NotSynced(DEADLINE)),
        }
    }

    /// Says when a watch that had lost its place has listed what there is. Of what went meanwhile nothing else tells.
    pub(crate) fn again(&self) -> impl Stream<Item = ()> + Send + 'static + use<> {
        stream::unfold(self.again.subscribe(), async |mut again| again.changed().await.ok().map(|()| ((), again)))
    }
}

impl Listing {
    /// Looks at an event that the store has taken in.
    pub(crate) fn saw<K>(&self, event: &Event<K>) {
        if matches!(event, Event::InitDone) && self.whole.send_replace(true) {
            self.again.send_replace(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::{FutureExt as _, StreamExt as _};
    use k8s_openapi::api::core::v1::Pod;
    use kube::runtime::watcher::Event;
    use tokio::time::Instant;

    use super::{DEADLINE, Lists};

    #[tokio::test(start_paused = true)]
    async fn everybody_who_waits_is_woken_by_the_last_list() {
        let mut lists = Lists::default();
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
        let mut lists = Lists::default();
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
    async fn lists_that_follow_are_told_to_everybody_and_first_ones_are_not() {
        let mut lists = Lists::default();
        let (mut told, mut too) = (Box::pin(lists.again()), Box::pin(lists.clone().again()));
        let (one, another) = (lists.begin(), lists.begin());
        one.saw(&Event::<Pod>::InitDone);
        another.saw(&Event::<Pod>::InitDone);
        assert!(told.next().now_or_never().is_none(), "the first lists are no news");
        another.saw(&Event::<Pod>::Init);
        assert!(told.next().now_or_never().is_none(), "it is not whole");
        another.saw(&Event::<Pod>::InitDone);
        assert_eq!(told.next().now_or_never(), Some(Some(())));
        assert_eq!(too.next().now_or_never(), Some(Some(())));
        assert!(told.next().now_or_never().is_none());
    }
}
