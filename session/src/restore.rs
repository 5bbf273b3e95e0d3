//! After etcd was restored from a backup: nobody may be taken for the owner who was one after the backup was made.

use longhand_session_log::{SessionStore, StoreError};

/// Sessions that are listed at once.
const PAGE: usize = 500;

/// Raises the epoch of every session and drops its owner; says of how many. Repeating it does no harm.
///
/// # Errors
/// Those of the store. Sessions whose deletion or import was begun and not finished are passed over.
pub async fn raise_epochs(store: &dyn SessionStore) -> Result<u64, StoreError> {
    let (mut raised, mut after) = (0, None);
    loop {
        let page = store.list(after.as_ref(), PAGE).await?;
        for meta in &page {
            match store.leap(&meta.id).await {
                Ok(epoch) => {
                    raised += 1;
                    tracing::debug!(session = %meta.id, epoch, "epoch raised");
                }
                Err(StoreError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        match page.into_iter().next_back() {
            Some(last) => after = Some(last.id),
            None => return Ok(raised),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use longhand_session_log::memory::MemoryStore;
    use longhand_session_log::store::{Claimant, EPOCH_LEAP, Takeover};
    use longhand_session_log::{SessionStore as _, StoreError};

    use super::raise_epochs;
    use crate::testing::meta;

    #[tokio::test]
    async fn whoever_owned_a_session_owns_none() {
        let store = MemoryStore::default();
        let metas: Vec<_> = (0..3).map(|number| meta("team-a", "one", &format!("uid-{number}"))).collect();
        for meta in &metas {
            store.create(meta.clone()).await.unwrap();
        }
        let claimant = Claimant { pod_uid: "pod".into(), pod_name: "pod".into() };
        let (epoch, _) = store.claim(&metas[1].id, &claimant, Takeover::Always, Duration::from_secs(60)).await.unwrap();
        assert_eq!(raise_epochs(&store).await.unwrap(), 3);
        assert!(matches!(store.renew(&metas[1].id, epoch).await, Err(StoreError::Fenced { .. })));
        let state = store.state(&metas[1].id).await.unwrap();
        assert_eq!((state.epoch, state.owner), (epoch + EPOCH_LEAP, None));
        assert_eq!(store.state(&metas[0].id).await.unwrap().epoch, EPOCH_LEAP);
    }
}
