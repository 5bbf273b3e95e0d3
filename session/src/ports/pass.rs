//! What opens a port over HTTP: short-lived JWTs, signed with the service's own key, each good for one port of one sandbox and for
//! whom it was made. RBAC is asked again whenever one is used.

use std::collections::BTreeMap;

use longhand_sandbox::token::{KeyError, SignError, Signer};
use serde::{Deserialize, Serialize};

use crate::auth::{Identity, Signed};
use crate::execute::sandboxes::SandboxKey;

/// Not that of sandboxes and workers, which the same key signs for.
const AUDIENCE: &str = "longhand-port";
const LEEWAY_SECONDS: u64 = 5;
/// What is in a link is in histories and logs, too.
const LINK_SECONDS: u64 = 60;
const VISIT_SECONDS: u64 = 3_600;

/// What a pass is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// To be exchanged for a visit at once.
    Link,
    /// To be shown with each request.
    Visit,
}

impl Kind {
    const fn seconds(self) -> u64 {
        match self {
            Self::Link => LINK_SECONDS,
            Self::Visit => VISIT_SECONDS,
        }
    }
}

/// Who may reach what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pass {
    /// Who.
    pub identity: Identity,
    /// Into which sandbox.
    pub sandbox: SandboxKey,
    /// To which port.
    pub port: u16,
}

#[derive(Serialize, Deserialize)]
struct Claims {
    aud: String,
    kind: Kind,
    namespace: String,
    sandbox: String,
    port: u16,
    sub: String,
    #[serde(default)]
    uid: String,
    #[serde(default)]
    groups: Vec<String>,
    #[serde(default)]
    extra: BTreeMap<String, Vec<String>>,
    iat: u64,
    exp: u64,
}

/// Makes and reads passes.
pub struct Passes(Signed);

impl Passes {
    /// With the service's key.
    ///
    /// # Errors
    /// [`KeyError::Public`] if the signer has none, which its tests exclude.
    pub fn new(signer: Signer) -> Result<Self, KeyError> {
        Signed::new(signer, AUDIENCE, LEEWAY_SECONDS).map(Self)
    }

    /// A pass, and when it is over, in seconds since 1970.
    ///
    /// # Errors
    /// [`SignError`] if it cannot be signed.
    pub fn issue(&self, kind: Kind, pass: &Pass) -> Result<(String, u64), SignError> {
        let Pass { identity, sandbox, port } = pass.clone();
        let Identity { username, uid, groups, extra, worker: _ } = identity;
        let SandboxKey { namespace, name } = sandbox;
        let iat = jsonwebtoken::get_current_timestamp();
        let exp = iat + kind.seconds();
        let aud = AUDIENCE.to_owned();
        let claims = Claims { aud, kind, namespace, sandbox: name, port, sub: username, uid, groups, extra, iat, exp };
        Ok((self.0.encode(&claims)?, exp))
    }

    /// What a pass of this kind says; `None` if it is not one, or over.
    #[must_use]
    pub fn read(&self, kind: Kind, pass: &str) -> Option<Pass> {
        let claims = self.0.decode::<Claims>(pass)?;
        let Claims { kind: found, namespace, sandbox: name, port, sub: username, uid, groups, extra, .. } = claims;
        let identity = Identity { username, uid, groups, extra, worker: None };
        (found == kind).then_some(Pass { identity, sandbox: SandboxKey { namespace, name }, port })
    }
}

#[cfg(test)]
mod tests {
    use super::{Kind, Pass, Passes, SandboxKey, Signer};
    use crate::auth::{Identity, WorkerTokens};

    fn pass() -> Pass {
        let identity = Identity {
            username: "system:serviceaccount:team-a:alice".to_owned(),
            groups: vec!["system:serviceaccounts".to_owned()],
            extra: [("k".to_owned(), vec!["v".to_owned()])].into(),
            ..Identity::default()
        };
        let sandbox = SandboxKey { namespace: "team-a".to_owned(), name: "bench".to_owned() };
        Pass { identity, sandbox, port: 8080 }
    }

    #[test]
    fn a_pass_says_who_may_reach_what() {
        let passes = Passes::new(Signer::generate().unwrap().0).unwrap();
        for (kind, other) in [(Kind::Link, Kind::Visit), (Kind::Visit, Kind::Link)] {
            let (text, _) = passes.issue(kind, &pass()).unwrap();
            assert_eq!(passes.read(kind, &text), Some(pass()));
            assert_eq!(passes.read(other, &text), None);
        }
    }

    #[test]
    fn no_other_token_is_one() {
        let (signer, _) = Signer::generate().unwrap();
        let passes = Passes::new(signer.clone()).unwrap();
        let (other, _) = Passes::new(Signer::generate().unwrap().0).unwrap().issue(Kind::Visit, &pass()).unwrap();
        let (own, _) = passes.issue(Kind::Visit, &pass()).unwrap();
        for text in [other.as_str(), &signer.sign("pod").unwrap(), "", "a.b.c"] {
            assert_eq!(passes.read(Kind::Visit, text), None);
        }
        assert!(WorkerTokens::new(signer).unwrap().read(&own).is_none(), "it is no worker's either");
    }
}
