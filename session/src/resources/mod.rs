//! What the service asks of the Kubernetes API, behind a trait.

mod cluster;
pub mod homes;
pub mod named;
pub mod objects;
pub mod plan;
pub mod pods;
pub(crate) mod quantity;
mod review;
pub mod revisions;
pub mod templates;
pub mod vaults;

use async_trait::async_trait;
use longhand_crds::sandbox::SessionRef;
use longhand_crds::{Agent, AgentSession, Sandbox};

pub use self::cluster::{Cluster, Published};

/// Why the API server did not do it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ResourceError {
    /// It refused the object, and would again.
    #[error("the API server refused {what}: {reason}")]
    Refused {
        /// Which object.
        what: String,
        /// What it said.
        reason: String,
    },
    /// The object is another one by now, or there is one of its name.
    #[error("{what} is in conflict: {reason}")]
    Conflict {
        /// Which object.
        what: String,
        /// What it said.
        reason: String,
    },
    /// It could not be reached, did not answer in time, or may not be asked.
    #[error("the API server did not serve {what}: {reason}")]
    Unavailable {
        /// Which object.
        what: String,
        /// What went wrong.
        reason: String,
    },
}

/// What the service asks of the Kubernetes API.
#[async_trait]
pub trait Resources: Send + Sync + 'static {
    /// The agent, as it is now.
    async fn agent(&self, namespace: &str, name: &str) -> Result<Option<Agent>, ResourceError>;

    /// The UID of a namespace, if there is one of this name.
    async fn namespace_uid(&self, namespace: &str) -> Result<Option<String>, ResourceError>;

    /// Whether there is such a template.
    async fn has_template(&self, namespace: &str, name: &str) -> Result<bool, ResourceError>;

    /// The session's resource, as it is now.
    async fn session(&self, namespace: &str, name: &str) -> Result<Option<AgentSession>, ResourceError>;

    /// Some sessions of a namespace, and where the next ones begin.
    async fn sessions(
        &self,
        namespace: &str,
        from: Option<String>,
    ) -> Result<(Vec<AgentSession>, Option<String>), ResourceError>;

    /// Makes a session's resource.
    async fn create_session(&self, namespace: &str, session: AgentSession) -> Result<AgentSession, ResourceError>;

    /// Removes a session's resource, if it is still the one with this UID.
    async fn delete_session(&self, namespace: &str, name: &str, uid: &str) -> Result<(), ResourceError>;

    /// The sandbox, as it is now.
    async fn sandbox(&self, namespace: &str, name: &str) -> Result<Option<Sandbox>, ResourceError>;

    /// Makes the sandbox unless there is one of this name, and returns the one that there is.
    async fn ensure_sandbox(&self, sandbox: Sandbox) -> Result<Sandbox, ResourceError>;

    /// Says that the sandbox shall run, if it is still the one with this UID.
    async fn wake_sandbox(&self, namespace: &str, name: &str, uid: &str) -> Result<(), ResourceError>;

    /// Says that this incarnation of a sandbox that rests is wanted all the same, if it is still the one with this UID.
    async fn retry_sandbox(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
        incarnation: i64,
    ) -> Result<(), ResourceError>;

    /// Says what the sandbox's workspace lacks, or that it lacks nothing any more, if it is still the one with this UID.
    async fn say_lacks(&self, namespace: &str, name: &str, uid: &str, lacks: Option<&str>)
    -> Result<(), ResourceError>;

    /// Says that the sandbox shall have no pod, if nothing at all has changed since it was read: who has woken it since wants it
    /// to run.
    async fn suspend_sandbox(&self, sandbox: &Sandbox) -> Result<(), ResourceError>;

    /// Says which session the sandbox goes to, if nothing at all has changed since it was read.
    async fn hand_off_sandbox(&self, sandbox: &Sandbox, to: &SessionRef) -> Result<(), ResourceError>;

    /// Says that the sandbox goes to no other session, if nothing at all has changed since it was read, and whether it shall have no
    /// pod.
    async fn take_back_sandbox(&self, sandbox: &Sandbox, suspend: bool) -> Result<(), ResourceError>;

    /// Says which pod the sandbox's workspace has been copied to, if nothing at all has changed since it was read.
    async fn copied_sandbox(&self, sandbox: &Sandbox, pod_uid: &str) -> Result<(), ResourceError>;

    /// Removes the sandbox, if nothing at all has changed since it was read. One that is gone is no error.
    async fn discard_sandbox(&self, sandbox: &Sandbox) -> Result<(), ResourceError>;

    /// Removes the sandbox, if it is still the one with this UID.
    async fn remove_sandbox(&self, namespace: &str, name: &str, uid: &str) -> Result<(), ResourceError>;
}
