//! Which namespaces there are, as files know them: by name and UID.

use std::sync::Arc;
use std::time::Duration;

use longhand_session_log::files::Home;

use super::{ResourceError, Resources};
use crate::cache::TtlCache;

/// A namespace is looked up again after this long.
const FRESH: Duration = Duration::from_secs(5);
const KNOWN: usize = 4_096;

/// Namespaces that were looked up.
pub struct Homes {
    resources: Arc<dyn Resources>,
    known: TtlCache<String, Home>,
}

impl Homes {
    /// None was looked up yet.
    #[must_use]
    pub fn new(resources: Arc<dyn Resources>) -> Self {
        Self { resources, known: TtlCache::new(KNOWN) }
    }

    /// The namespace of this name, as it is or was a few seconds ago.
    ///
    /// # Errors
    /// [`ResourceError::Unavailable`] if the Kubernetes API does not say.
    pub async fn of(&self, namespace: &str) -> Result<Option<Home>, ResourceError> {
        match self.known.get(&namespace.to_owned()) {
            Some(home) => Ok(Some(home)),
            None => self.now(namespace).await,
        }
    }

    /// The namespace of this name, as it is.
    ///
    /// # Errors
    /// [`ResourceError::Unavailable`] if the Kubernetes API does not say.
    pub async fn now(&self, namespace: &str) -> Result<Option<Home>, ResourceError> {
        let namespace = namespace.to_owned();
        let Some(uid) = self.resources.namespace_uid(&namespace).await? else {
            self.known.remove(&namespace);
            return Ok(None);
        };
        let home = Home { namespace, uid };
        self.known.put(home.namespace.clone(), home.clone(), FRESH);
        Ok(Some(home))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::time::advance;

    use super::{FRESH, Homes};
    use crate::testing::cluster::FakeCluster;

    #[tokio::test(start_paused = true)]
    async fn a_namespace_that_was_made_again_is_known_soon() {
        let (cluster, _seen) = FakeCluster::new();
        let cluster = Arc::new(cluster);
        let homes = Homes::new(cluster.clone());
        let before = homes.of("a").await.unwrap().unwrap();
        cluster.make_namespace_again("a");
        assert_eq!(homes.of("a").await.unwrap().as_ref(), Some(&before));
        advance(FRESH).await;
        let after = homes.of("a").await.unwrap().unwrap();
        assert!(after.namespace == "a" && after.uid != before.uid);
        cluster.remove_namespace("a");
        assert_eq!(homes.now("a").await.unwrap(), None);
        assert_eq!(homes.of("a").await.unwrap(), None);
    }
}
