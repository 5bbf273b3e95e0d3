//! The identifiers that the wire API shows for Kubernetes objects.
//!
//! An object that the wire API made carries its identifier as the label [`labels::ID`], so that one label selector
//! finds it. Any other object has one that is derived from its UID, so that kubectl and the wire API see the same things.

use kube::api::ObjectMeta;
use longhand_protocol::SessionId;
use sha2::{Digest as _, Sha256};

use crate::labels;

const ALPHABET: &[u8; 58] = b"123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";
/// Characters of a derived identifier after its prefix.
const DERIVED: usize = 24;
/// The most characters after a prefix: with one, a label value can hold it.
const LONGEST: usize = 57;

/// The prefixes of identifiers, each of one kind.
pub mod prefix {
    /// An `Agent`.
    pub const AGENT: &str = "agent_";
    /// A `SandboxTemplate`.
    pub const ENVIRONMENT: &str = "env_";
    /// An `AgentSession`.
    pub const SESSION: &str = "sesn_";
    /// A `Vault`.
    pub const VAULT: &str = "vlt_";
    /// A credential of a `Vault`.
    pub const CREDENTIAL: &str = "vcrd_";
    /// A resource of a session.
    pub const RESOURCE: &str = "sesrsc_";
    /// A thread of a session.
    pub const THREAD: &str = "sthr_";
    /// A piece of work of an environment.
    pub const WORK: &str = "work_";
}

/// The identifier of an object: its label [`labels::ID`] if that is one of this prefix, else one derived from its UID.
#[must_use]
pub fn wire_id(prefix: &str, meta: &ObjectMeta) -> String {
    match labelled(prefix, meta) {
        Some(id) => id.to_owned(),
        None => derived_id(prefix, meta.uid.as_deref().unwrap_or_default()),
    }
}

/// The session identifier of an `AgentSession` with this metadata.
#[must_use]
pub fn session_id(meta: &ObjectMeta) -> SessionId {
    let labelled = labelled(prefix::SESSION, meta).and_then(|id| id.parse().ok());
    labelled.unwrap_or_else(|| derived_session_id(meta.uid.as_deref().unwrap_or_default()))
}

/// The session identifier of an `AgentSession` with this UID and without a label.
#[must_use]
pub fn derived_session_id(uid: &str) -> SessionId {
    SessionId::from_digest(&Sha256::digest(uid.as_bytes()).into())
}

/// The identifier that `seed` stands for. Entries of an object are seeded by its UID, a slash and their name.
#[must_use]
pub fn derived_id(prefix: &str, seed: &str) -> String {
    let digest = Sha256::digest(seed.as_bytes());
    let letters = digest.iter().take(DERIVED).map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()]));
    prefix.chars().chain(letters).collect()
}

/// Whether `text` is an identifier of this prefix: it and 1 to 57 letters or digits.
#[must_use]
pub fn is_wire_id(prefix: &str, text: &str) -> bool {
    text.strip_prefix(prefix).is_some_and(|rest| {
        (1..=LONGEST).contains(&rest.len()) && rest.bytes().all(|byte| byte.is_ascii_alphanumeric())
    })
}

fn labelled<'a>(prefix: &str, meta: &'a ObjectMeta) -> Option<&'a str> {
    let id = meta.labels.as_ref()?.get(labels::ID)?;
    is_wire_id(prefix, id).then_some(id)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use kube::api::ObjectMeta;
    use rstest::rstest;

    use super::{derived_id, derived_session_id, is_wire_id, prefix, session_id, wire_id};
    use crate::labels;

    fn meta(label: Option<&str>) -> ObjectMeta {
        ObjectMeta {
            uid: Some("u1".to_owned()),
            labels: label.map(|label| BTreeMap::from([(labels::ID.to_owned(), label.to_owned())])),
            ..ObjectMeta::default()
        }
    }

    #[rstest]
    #[case::none(None)]
    #[case::of_another_kind(Some("agent_abc"))]
    #[case::empty(Some("env_"))]
    #[case::not_alphanumeric(Some("env_a-b"))]
    fn without_a_label_of_its_kind_an_object_is_known_by_its_uid(#[case] label: Option<&str>) {
        assert_eq!(wire_id(prefix::ENVIRONMENT, &meta(label)), derived_id(prefix::ENVIRONMENT, "u1"));
    }

    #[test]
    fn a_label_is_the_identifier() {
        assert_eq!(wire_id(prefix::AGENT, &meta(Some("agent_abc"))), "agent_abc");
        assert_eq!(session_id(&meta(Some("sesn_abc"))).as_str(), "sesn_abc");
    }

    #[test]
    fn a_session_is_known_by_its_uid_like_any_other_object() {
        assert_eq!(session_id(&meta(None)), derived_session_id("u1"));
        assert_eq!(session_id(&meta(None)).as_str(), wire_id(prefix::SESSION, &meta(None)));
    }

    #[rstest]
    #[case(&"a".repeat(57), true)]
    #[case(&"a".repeat(58), false)]
    fn an_identifier_fits_into_a_label(#[case] rest: &str, #[case] valid: bool) {
        assert_eq!(is_wire_id(prefix::RESOURCE, &format!("sesrsc_{rest}")), valid);
    }
}
