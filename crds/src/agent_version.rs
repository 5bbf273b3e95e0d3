//! Versions of an `Agent`: one ControllerRevision each, numbered from 1.
//!
//! The service records what the wire API writes, the operator what kubectl writes, and both may do so at once: a
//! revision's name carries its number, so that to create it is the atomic step. A revision notes the generation that it
//! was made from, so that neither takes what it has in a stale cache for a new change.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::Resource as _;
use kube::api::ObjectMeta;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::agent::{Agent, AgentSpec};
use crate::labels;

/// Which version a revision is.
const VERSION: &str = "longhand.dev/version";
/// The generation of the agent that it was made from.
const GENERATION: &str = "longhand.dev/agent-generation";
/// Of the spec, so that it need not be read to be compared.
const DIGEST: &str = "longhand.dev/digest";

/// A revision's name is the agent's, cut so that a number of 64 bits fits behind it.
const LONGEST_STEM: usize = 253 - "-v18446744073709551615".len();

/// What a revision's metadata says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// Which version it is.
    pub version: u64,
    /// The generation of the agent that it was made from.
    pub generation: i64,
    /// Of the spec.
    pub digest: String,
    /// When it was made.
    pub at: Timestamp,
}

impl Recorded {
    /// `None` if this is not the metadata of a version of this agent.
    #[must_use]
    pub fn of(meta: &ObjectMeta, agent_uid: &str) -> Option<Self> {
        let owners = meta.owner_references.iter().flatten();
        owners.filter(|owner| owner.uid == agent_uid).find(|owner| owner.kind == Agent::kind(&()))?;
        let annotations = meta.annotations.as_ref()?;
        Some(Self {
            version: annotations.get(VERSION)?.parse().ok()?,
            generation: annotations.get(GENERATION)?.parse().ok()?,
            digest: annotations.get(DIGEST)?.clone(),
            at: meta.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0),
        })
    }
}

/// What is to be done about an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing: this is the version that it is.
    Current(Recorded),
    /// It has changed: record it as this version, and begin anew if another was faster.
    Record(u64),
    /// A later generation of it is recorded already: read it again.
    Outdated,
}

/// What is to be done about an agent of which these versions are recorded.
#[must_use]
pub fn step(agent: &Agent, recorded: &[Recorded]) -> Step {
    let Some(latest) = recorded.iter().max_by_key(|recorded| recorded.version) else { return Step::Record(1) };
    if latest.digest == digest(&agent.spec) {
        Step::Current(latest.clone())
    } else if agent.metadata.generation.unwrap_or_default() > latest.generation {
        Step::Record(latest.version.saturating_add(1))
    } else {
        Step::Outdated
    }
}

/// The agent's spec as a revision, which goes when the agent goes.
///
/// # Errors
/// When the spec cannot be written as JSON, which its type excludes.
pub fn revision(agent: &Agent, version: u64) -> Result<ControllerRevision, serde_json::Error> {
    let (name, uid) = (agent.metadata.name.clone().unwrap_or_default(), agent.metadata.uid.clone().unwrap_or_default());
    let owner = OwnerReference {
        api_version: Agent::api_version(&()).into_owned(),
        kind: Agent::kind(&()).into_owned(),
        name: name.clone(),
        uid: uid.clone(),
        controller: Some(true),
        block_owner_deletion: None,
    };
    let annotations = [
        (VERSION, version.to_string()),
        (GENERATION, agent.metadata.generation.unwrap_or_default().to_string()),
        (DIGEST, digest(&agent.spec)),
    ];
    Ok(ControllerRevision {
        metadata: ObjectMeta {
            name: Some(revision_name(&name, version)),
            namespace: agent.metadata.namespace.clone(),
            labels: Some(BTreeMap::from([
                (labels::MANAGED_BY.to_owned(), labels::LONGHAND.to_owned()),
                (labels::AGENT_UID.to_owned(), uid),
            ])),
            annotations: Some(annotations.map(|(key, value)| (key.to_owned(), value)).into()),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        revision: i64::try_from(version).unwrap_or(i64::MAX),
        data: Some(RawExtension(serde_json::to_value(&agent.spec)?)),
    })
}

/// The name of a version's revision.
#[must_use]
pub fn revision_name(agent: &str, version: u64) -> String {
    if agent.len() <= LONGEST_STEM {
        return format!("{agent}-v{version}");
    }
    let hash = hex(&Sha256::digest(agent.as_bytes()), 4);
    let stem: String = agent.chars().take(LONGEST_STEM - hash.len() - 1).collect();
    format!("{}-{hash}-v{version}", stem.trim_end_matches(['-', '.']))
}

/// The spec that a revision holds.
///
/// # Errors
/// When it holds none.
pub fn spec_of(revision: ControllerRevision) -> Result<AgentSpec, serde_json::Error> {
    serde_json::from_value(revision.data.map_or(Value::Null, |data| data.0))
}

/// Of everything in the spec that changes what the agent does or how it is shown; how many pods wait for work does not.
fn digest(spec: &AgentSpec) -> String {
    let mut value = serde_json::to_value(spec).unwrap_or_default();
    if let Some(fields) = value.as_object_mut() {
        fields.remove("warm");
    }
    value.sort_all_objects();
    hex(&Sha256::digest(value.to_string().as_bytes()), 16)
}

fn hex(bytes: &[u8], length: usize) -> String {
    bytes.iter().take(length).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use kube::api::ObjectMeta;
    use proptest::prelude::*;
    use rstest::rstest;
    use serde_json::json;

    use super::{Recorded, Step, digest, revision, revision_name, spec_of, step};
    use crate::agent::Agent;

    fn agent(generation: i64, system: &str) -> Agent {
        serde_json::from_value(json!({
            "metadata": {"name": "a", "namespace": "n", "uid": "u1", "generation": generation},
            "spec": {"model": {"id": "m"}, "system": system},
        }))
        .unwrap()
    }

    fn recorded(agent: &Agent, version: u64) -> Recorded {
        Recorded::of(&revision(agent, version).unwrap().metadata, "u1").unwrap()
    }

    #[test]
    fn what_is_recorded_is_read_back() {
        let agent = agent(3, "be kind");
        let made = revision(&agent, 7).unwrap();
        assert_eq!((made.metadata.name.as_deref(), made.revision), (Some("a-v7"), 7));
        let read = recorded(&agent, 7);
        assert_eq!((read.version, read.generation), (7, 3));
        assert_eq!(spec_of(made.clone()).unwrap(), agent.spec);
        assert_eq!(Recorded::of(&made.metadata, "u2"), None, "of another agent of that name");
        assert_eq!(Recorded::of(&ObjectMeta::default(), "u1"), None);
    }

    #[rstest]
    #[case::new(agent(1, "x"), &[], Step::Record(1))]
    #[case::changed(agent(3, "x"), &[(agent(1, "a"), 1), (agent(2, "b"), 2)], Step::Record(3))]
    #[case::changed_back(agent(3, "a"), &[(agent(1, "a"), 1), (agent(2, "b"), 2)], Step::Record(3))]
    #[case::stale(agent(1, "a"), &[(agent(1, "a"), 1), (agent(2, "b"), 2)], Step::Outdated)]
    #[case::stale_and_unrecorded(agent(2, "b"), &[(agent(1, "a"), 1), (agent(3, "c"), 2)], Step::Outdated)]
    fn a_version_is_recorded_once(#[case] now: Agent, #[case] versions: &[(Agent, u64)], #[case] expected: Step) {
        let versions: Vec<Recorded> = versions.iter().map(|(agent, version)| recorded(agent, *version)).collect();
        assert_eq!(step(&now, &versions), expected);
    }

    #[test]
    fn equal_content_never_makes_a_new_version() {
        let first = recorded(&agent(1, "a"), 1);
        assert_eq!(step(&agent(1, "a"), std::slice::from_ref(&first)), Step::Current(first.clone()));
        assert_eq!(step(&agent(9, "a"), std::slice::from_ref(&first)), Step::Current(first.clone()));
    }

    #[test]
    fn scaling_makes_no_new_version() {
        let first = recorded(&agent(1, "a"), 1);
        let mut scaled = agent(2, "a");
        scaled.spec.warm = 7;
        assert_eq!(step(&scaled, std::slice::from_ref(&first)), Step::Current(first));
        // What is recorded by a build that knows of no pool is the same.
        let mut spec = serde_json::to_value(&agent(1, "a").spec).unwrap();
        spec.as_object_mut().unwrap().remove("warm");
        assert_eq!(digest(&serde_json::from_value(spec).unwrap()), digest(&scaled.spec));
    }

    #[test]
    fn the_order_of_keys_makes_no_difference() {
        let with = |schema: &str| {
            let mut agent = agent(1, "");
            let tool = format!(r#"{{"type":"custom","name":"t","description":"d","inputSchema":{schema}}}"#);
            agent.spec.tools = vec![serde_json::from_str(&tool).unwrap()];
            digest(&agent.spec)
        };
        assert_eq!(with(r#"{"type":"object","a":{"x":1,"y":2}}"#), with(r#"{"a":{"y":2,"x":1},"type":"object"}"#));
        assert_ne!(with(r#"{"type":"object","a":{"x":1,"y":2}}"#), with(r#"{"a":{"y":2,"x":3},"type":"object"}"#));
    }

    proptest! {
        #[test]
        fn names_are_valid_and_differ(name in "[a-z0-9]([a-z0-9.-]{0,250}[a-z0-9])?", version: u64) {
            let made = revision_name(&name, version);
            prop_assert!(made.len() <= 253, "{made}");
            let suffix = format!("-v{version}");
            prop_assert!(made.ends_with(&suffix));
            prop_assert_ne!(made, revision_name(&name, version.wrapping_add(1)));
        }

        /// Two writers with views of any age, and whatever order their attempts succeed in, number what they see without
        /// a gap, never record the same content twice in a row, and never go back.
        #[test]
        fn writers_with_stale_views_agree(
            contents in prop::collection::vec(0_u8..3, 1..8),
            views in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 1..40),
        ) {
            let mut log: Vec<Recorded> = Vec::new();
            for (view, seen) in views {
                let generation = view.index(contents.len());
                let agent = agent(i64::try_from(generation).unwrap() + 1, &contents[generation].to_string());
                let seen = &log[..seen.index(log.len() + 1)];
                if let Step::Record(version) = step(&agent, seen) {
                    // To create is the atomic step: a number that is taken is refused.
                    if usize::try_from(version).unwrap() == log.len() + 1 {
                        log.push(recorded(&agent, version));
                    }
                }
            }
            for (index, pair) in log.windows(2).enumerate() {
                prop_assert_eq!(pair[0].version, u64::try_from(index).unwrap() + 1);
                prop_assert!(pair[0].generation < pair[1].generation);
                prop_assert_ne!(&pair[0].digest, &pair[1].digest);
            }
        }
    }
}
