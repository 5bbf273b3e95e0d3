//! The sessions of a cluster of make-believe, by identifier or name, and to be changed.

use async_trait::async_trait;
use longhand_crds::{AgentSession, labels};

use super::cluster::FakeCluster;
use crate::resources::named::{Named, PageOf};
use crate::resources::objects::{Created, Objects};
use crate::resources::{ResourceError, Resources as _};

#[async_trait]
impl Named<AgentSession> for FakeCluster {
    async fn named(&self, namespace: &str, name: &str) -> Result<Option<AgentSession>, ResourceError> {
        self.session(namespace, name).await
    }

    async fn labelled(&self, namespace: &str, id: &str) -> Result<Vec<AgentSession>, ResourceError> {
        let carries = |session: &AgentSession| {
            session.metadata.labels.as_ref().and_then(|all| all.get(labels::ID)).is_some_and(|label| label == id)
        };
        Ok(self.sessions_in(namespace).into_iter().filter(carries).collect())
    }

    async fn page(&self, namespace: &str, from: Option<String>) -> Result<PageOf<AgentSession>, ResourceError> {
        self.sessions(namespace, from).await
    }
}

#[async_trait]
impl Objects<AgentSession> for FakeCluster {
    async fn create(&self, namespace: &str, session: &AgentSession) -> Result<Created<AgentSession>, ResourceError> {
        self.create_session(namespace, session.clone()).await.map(Created::New)
    }

    async fn replace(&self, session: &AgentSession) -> Result<AgentSession, ResourceError> {
        let (namespace, name) =
            (session.metadata.namespace.as_deref().unwrap(), session.metadata.name.as_deref().unwrap());
        self.change_session(namespace, name, |stored| *stored = session.clone());
        Ok(session.clone())
    }

    async fn delete(&self, namespace: &str, name: &str, uid: &str) -> Result<(), ResourceError> {
        self.delete_session(namespace, name, uid).await
    }
}
