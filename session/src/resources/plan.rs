//! The objects that the service makes, from what it knows. Pure.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Resource as _;
use kube::api::ObjectMeta;
use longhand_crds::agent_session::{AgentRef, Budget, SessionSandbox};
use longhand_crds::sandbox::{DesiredState, SessionRef};
use longhand_crds::session_resource::SessionResource;
use longhand_crds::{AgentSession, AgentSessionSpec, LocalRef, Sandbox, SandboxSpec, labels};
use longhand_protocol::SessionId;
use sha2::{Digest as _, Sha256};

/// The sandbox's name in a session that the wire API made.
pub const DEFAULT_SANDBOX: &str = "default";

/// A pod's name is that of its sandbox and a number, and has to be a label.
const LONGEST_SANDBOX_NAME: usize = 56;

/// What a client of the wire API asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// The agent.
    pub agent: AgentRef,
    /// The template of its sandbox.
    pub template: Option<String>,
    /// The vaults that it may use.
    pub vaults: Vec<String>,
    /// A name for people.
    pub title: Option<String>,
    /// Pairs.
    pub metadata: BTreeMap<String, String>,
    /// What it may spend.
    pub budget: Option<Budget>,
    /// Repositories and files.
    pub resources: Vec<SessionResource>,
}

/// The resource of a session of the wire API. The API server gives it a name.
///
/// # Errors
/// When the kind's defaults cannot be read, which its tests exclude.
pub fn agent_session(wanted: Wanted, id: &SessionId) -> Result<AgentSession, serde_json::Error> {
    let defaults: AgentSessionSpec = serde_json::from_value(serde_json::json!({ "agentRef": wanted.agent }))?;
    let sandbox =
        |name| SessionSandbox { name: DEFAULT_SANDBOX.to_owned(), template_ref: LocalRef { name }, network: None };
    Ok(AgentSession {
        metadata: ObjectMeta {
            generate_name: Some("sesn-".to_owned()),
            labels: Some(BTreeMap::from([
                (labels::MANAGED_BY.to_owned(), labels::LONGHAND.to_owned()),
                (labels::ID.to_owned(), id.to_string()),
            ])),
            ..ObjectMeta::default()
        },
        spec: AgentSessionSpec {
            retention: None,
            sandboxes: wanted.template.map(sandbox).into_iter().collect(),
            vault_refs: wanted.vaults.into_iter().map(|name| LocalRef { name }).collect(),
            title: wanted.title,
            metadata: wanted.metadata,
            limits: None,
            budget: wanted.budget,
            resources: wanted.resources,
            ..defaults
        },
        status: None,
    })
}

/// The name of a session's sandbox: readable, and unlike that of any other session.
#[must_use]
pub fn sandbox_name(session: &str, session_uid: &str, sandbox: &str) -> String {
    let digest = Sha256::digest(session_uid.as_bytes());
    let suffix: String = digest.iter().take(3).map(|byte| format!("{byte:02x}")).collect();
    let room = LONGEST_SANDBOX_NAME.saturating_sub(sandbox.len() + suffix.len() + 2);
    let session: String = session.replace('.', "-").chars().take(room).collect();
    format!("{}-{sandbox}-{suffix}", session.trim_end_matches('-'))
}

/// The `Sandbox` of a session, which goes when the session goes; `None` if the session has none of this name.
#[must_use]
pub fn sandbox(session: &AgentSession, name: &str) -> Option<Sandbox> {
    let wanted = session.spec.sandboxes.iter().find(|sandbox| sandbox.name == name)?;
    let (session_name, uid) = (session.metadata.name.clone()?, session.metadata.uid.clone()?);
    let owner = OwnerReference {
        api_version: AgentSession::api_version(&()).into_owned(),
        kind: AgentSession::kind(&()).into_owned(),
        name: session_name.clone(),
        uid: uid.clone(),
        controller: Some(true),
        block_owner_deletion: None,
    };
    Some(Sandbox {
        metadata: ObjectMeta {
            name: Some(sandbox_name(&session_name, &uid, name)),
            namespace: session.metadata.namespace.clone(),
            labels: Some(BTreeMap::from([
                (labels::MANAGED_BY.to_owned(), labels::LONGHAND.to_owned()),
                (labels::SESSION_UID.to_owned(), uid.clone()),
            ])),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: SandboxSpec {
            template_ref: wanted.template_ref.clone(),
            session_ref: Some(SessionRef { name: session_name, uid, sandbox: name.to_owned() }),
            desired_state: DesiredState::Running,
            handoff_to: None,
            workspace_from: None,
        },
        status: None,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use longhand_crds::agent_session::AgentRef;
    use longhand_crds::{AgentSession, session_id};
    use longhand_protocol::SessionId;
    use rstest::rstest;

    use super::{Wanted, agent_session, sandbox, sandbox_name};

    fn wanted(template: Option<&str>) -> Wanted {
        Wanted {
            agent: AgentRef { name: "helper".to_owned(), version: None, overrides: None },
            template: template.map(ToOwned::to_owned),
            vaults: vec!["models".to_owned()],
            title: None,
            metadata: BTreeMap::new(),
            budget: None,
            resources: Vec::new(),
        }
    }

    fn session() -> AgentSession {
        let mut session = agent_session(wanted(Some("tools")), &SessionId::generate()).unwrap();
        session.metadata.name = Some("sesn-abc".to_owned());
        session.metadata.namespace = Some("team-a".to_owned());
        session.metadata.uid = Some("u1".to_owned());
        session
    }

    #[test]
    fn a_session_without_a_template_has_no_sandbox() {
        let id = SessionId::generate();
        let session = agent_session(wanted(None), &id).unwrap();
        assert_eq!(session_id(&session.metadata), id);
        assert_eq!(session.spec.vault_refs[0].name, "models");
        assert_eq!(session.spec.agent_ref.name, "helper");
        assert!(session.spec.sandboxes.is_empty());
        assert!(session.metadata.name.is_none());
    }

    #[test]
    fn a_sandbox_belongs_to_its_session() {
        let made = sandbox(&session(), "default").unwrap();
        let owner = &made.metadata.owner_references.unwrap()[0];
        assert_eq!((owner.kind.as_str(), owner.uid.as_str(), owner.controller), ("AgentSession", "u1", Some(true)));
        assert_eq!(made.metadata.namespace.as_deref(), Some("team-a"));
        assert_eq!(made.spec.template_ref.name, "tools");
        assert_eq!(made.spec.session_ref.unwrap().sandbox, "default");
        assert!(sandbox(&session(), "other").is_none());
    }

    #[rstest]
    #[case("s", "default")]
    #[case(&"s".repeat(253), "default")]
    #[case(&"s.".repeat(100), "a-sandbox-of-20-char")]
    fn a_sandbox_name_is_a_label_with_room_for_a_number(#[case] session: &str, #[case] name: &str) {
        let made = sandbox_name(session, "u1", name);
        assert!(made.len() <= 56, "{made}");
        assert!(crate::api::extract::is_name(&made, 63) && !made.contains('.'), "{made}");
        assert_ne!(made, sandbox_name(session, "u2", name));
        assert_eq!(made, sandbox_name(session, "u1", name));
    }
}
