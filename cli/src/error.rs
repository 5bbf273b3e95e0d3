//! What can go wrong, and what to do about it.

use std::path::PathBuf;
use std::time::Duration;

use longhand_protocol::client;

/// The result of a step.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No kubeconfig, or none that can be used.
    #[error("cannot use the kubeconfig: {0}")]
    Kubeconfig(#[source] Box<kube::config::KubeconfigError>),
    /// The API server refused, or could not be reached.
    #[error("cannot {doing}: {}", explain(source))]
    Kube {
        /// What was tried.
        doing: String,
        /// What the API server or the connection says.
        source: Box<kube::Error>,
    },
    /// The API server did not answer.
    #[error("cannot {doing}: no answer within {after:?}")]
    Timeout {
        /// What was tried.
        doing: String,
        /// The deadline.
        after: Duration,
    },
    /// Longhand is not where it was looked for.
    #[error(
        "there is no Service {namespace}/{name}: if Longhand is installed elsewhere, name it by --service-namespace and --service"
    )]
    NoService {
        /// The namespace.
        namespace: String,
        /// The Service.
        name: String,
    },
    /// The session service has no pod that takes calls.
    #[error("no pod behind Service {namespace}/{name} is ready: see `kubectl -n {namespace} get pods`")]
    NoReadyPod {
        /// The namespace.
        namespace: String,
        /// The Service.
        name: String,
    },
    /// The Service's port leads nowhere.
    #[error("Service {namespace}/{name} has no port that pod {pod} offers")]
    NoPort {
        /// The namespace.
        namespace: String,
        /// The Service.
        name: String,
        /// The pod.
        pod: String,
    },
    /// The service speaks TLS, and nothing says by which authority it is known.
    #[error(
        "ConfigMap {namespace}/longhand-session-keys has no `ca.crt`, which says how the session service is known: it publishes \
         it when it starts, see `kubectl -n {namespace} get pods`"
    )]
    NoAuthority {
        /// The namespace.
        namespace: String,
    },
    /// The account that tokens are requested for does not exist.
    #[error(
        "there is no ServiceAccount {name} in namespace {namespace}. Make one that may use sessions there:\n  \
         kubectl -n {namespace} create serviceaccount {name}\n  \
         kubectl -n {namespace} create rolebinding {name} --clusterrole=longhand-edit --serviceaccount={namespace}:{name}\n\
         or name another by --service-account"
    )]
    NoServiceAccount {
        /// The namespace.
        namespace: String,
        /// The account.
        name: String,
    },
    /// The user may not request tokens.
    #[error(
        "you may not request a token for ServiceAccount {name} in namespace {namespace} (it takes `create` on \
         serviceaccounts/token): {message}"
    )]
    TokenDenied {
        /// The namespace.
        namespace: String,
        /// The account.
        name: String,
        /// What the API server says.
        message: String,
    },
    /// The API server issued something that is not a token.
    #[error("the API server issued no token for ServiceAccount {name}")]
    NoToken {
        /// The account.
        name: String,
    },
    /// A file cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not a whole export.
    #[error("{} is not a whole export: {broken}", path.display())]
    BrokenExport {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        broken: longhand_protocol::export::Broken,
    },
    /// No such session.
    #[error("there is no AgentSession {name} in namespace {namespace}: see `longhand get sessions -A`")]
    NoSession {
        /// The namespace.
        namespace: String,
        /// The session.
        name: String,
    },
    /// The session has not begun.
    #[error("session {name} has no log yet: {why}")]
    NotStarted {
        /// The session.
        name: String,
        /// Its condition.
        why: String,
    },
    /// The session service refused the account.
    #[error(
        "{source}\nServiceAccount {namespace}/{name} may not do this. To let it use the sessions of its namespace:\n  \
         kubectl -n {namespace} create rolebinding {name} --clusterrole=longhand-edit --serviceaccount={namespace}:{name}"
    )]
    Forbidden {
        /// The namespace.
        namespace: String,
        /// The account.
        name: String,
        /// What the session service says.
        source: Box<client::Error>,
    },
    /// The session service refused, or could not be reached.
    #[error(transparent)]
    Service(#[from] Box<client::Error>),
    /// A session that was followed was not idle in time.
    #[error("session {name} is not idle after {after:?}; go on with `longhand events {name} --follow`")]
    StillRunning {
        /// The session.
        name: String,
        /// How long it was followed.
        after: Duration,
    },
    /// No local port for the port-forward.
    #[error("cannot listen on 127.0.0.1: {0}")]
    Listen(#[source] std::io::Error),
    /// A file that cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file that is not what it should be.
    #[error("{}: {reason}", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A copy that is none.
    #[error("{0}: one of the two is written SESSION:PATH or SESSION/SANDBOX:PATH")]
    Sides(&'static str),
    /// The terminal of this machine.
    #[error("the terminal cannot be used: {0}")]
    Terminal(#[source] std::io::Error),
    /// A command in a sandbox.
    #[error(transparent)]
    Exec(#[from] crate::sandbox::terminal::TerminalError),
    /// Standard output is closed or full.
    #[error("cannot write: {0}")]
    Output(#[source] std::io::Error),
    /// The process cannot start.
    #[error("cannot start: {0}")]
    Runtime(#[source] std::io::Error),
}

impl Error {
    /// Whether the reader of standard output has gone, which is no failure (`longhand events x | head`).
    #[must_use]
    pub fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == std::io::ErrorKind::BrokenPipe)
    }
}

impl From<client::Error> for Error {
    fn from(error: client::Error) -> Self {
        Self::Service(Box::new(error))
    }
}

/// What the API server says, without the rest of its answer.
pub(crate) fn explain(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if !status.message.is_empty() => status.message.clone(),
        other => other.to_string(),
    }
}
