//! The tokens of workers of self-hosted environments: short-lived JWTs, signed with the service's own key, each good for
//! one session as long as its worker has that session's work.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use longhand_protocol::SessionId;
use longhand_sandbox::token::{KeyError, SignError, Signer};
use longhand_session_log::work::{Queue, WorkItem};
use serde::{Deserialize, Serialize};
use serde_json::json;
use zeroize::Zeroizing;

use super::signed::Signed;

/// Not that of sandboxes, which are opened by the same key.
const AUDIENCE: &str = "longhand-worker";
/// A worker that is at work for longer takes its work anew.
const LIFETIME_SECONDS: u64 = 12 * 60 * 60;
const LEEWAY_SECONDS: u64 = 30;

/// A worker, as its token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Worker {
    /// The session that it may speak for.
    pub session: SessionId,
    /// Where its work is.
    pub queue: Queue,
    /// Its work.
    pub work: String,
    /// Which attempt at the work is its.
    pub attempt: u64,
}

#[derive(Serialize, Deserialize)]
struct Claims {
    aud: String,
    sub: SessionId,
    namespace: String,
    environment: String,
    work: String,
    attempt: u64,
    iat: u64,
    exp: u64,
}

/// Makes and reads the tokens of workers.
pub struct WorkerTokens(Signed);

impl WorkerTokens {
    /// With the service's key.
    ///
    /// # Errors
    /// [`KeyError::Public`] if the signer has none, which its tests exclude.
    pub fn new(signer: Signer) -> Result<Self, KeyError> {
        Signed::new(signer, AUDIENCE, LEEWAY_SECONDS).map(Self)
    }

    /// What a worker is given with a piece of work: base64url of JSON with its token.
    ///
    /// # Errors
    /// [`SignError`] if the token cannot be signed.
    pub fn secret(&self, queue: &Queue, item: &WorkItem) -> Result<String, SignError> {
        let now = jsonwebtoken::get_current_timestamp();
        let token = self.0.encode(&Claims {
            aud: AUDIENCE.to_owned(),
            sub: item.session.clone(),
            namespace: queue.namespace.clone(),
            environment: queue.environment.clone(),
            work: item.id.clone(),
            attempt: item.attempt,
            iat: now,
            exp: now + LIFETIME_SECONDS,
        })?;
        let json = Zeroizing::new(json!({ "sessions_token": token }).to_string());
        Ok(URL_SAFE_NO_PAD.encode(json.as_bytes()))
    }

    /// Whose token it is; `None` if it is not one of a worker.
    #[must_use]
    pub fn read(&self, token: &str) -> Option<Worker> {
        let Claims { sub, namespace, environment, work, attempt, .. } = self.0.decode::<Claims>(token)?;
        Some(Worker { session: sub, queue: Queue { namespace, environment }, work, attempt })
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use jiff::Timestamp;
    use longhand_protocol::SessionId;
    use longhand_sandbox::token::Signer;
    use longhand_session_log::work::{Queue, WorkItem};

    use super::WorkerTokens;

    fn queue() -> Queue {
        Queue { namespace: "team-a".to_owned(), environment: "mine".to_owned() }
    }

    fn token(secret: &str) -> String {
        let json: serde_json::Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(secret).unwrap()).unwrap();
        json["sessions_token"].as_str().unwrap().to_owned()
    }

    #[test]
    fn a_token_says_what_it_is_good_for() {
        let tokens = WorkerTokens::new(Signer::generate().unwrap().0).unwrap();
        let mut item = WorkItem::new(SessionId::generate(), Timestamp::now());
        item.take(None, Timestamp::now());
        let worker = tokens.read(&token(&tokens.secret(&queue(), &item).unwrap())).unwrap();
        assert_eq!((&worker.session, &worker.work, worker.attempt), (&item.session, &item.id, 1));
        assert_eq!(worker.queue, queue());
    }

    #[test]
    fn no_other_token_is_one() {
        let (signer, _) = Signer::generate().unwrap();
        let tokens = WorkerTokens::new(signer.clone()).unwrap();
        let others = WorkerTokens::new(Signer::generate().unwrap().0).unwrap();
        let item = WorkItem::new(SessionId::generate(), Timestamp::now());
        assert_eq!(tokens.read(&token(&others.secret(&queue(), &item).unwrap())), None);
        assert_eq!(tokens.read(&signer.sign("pod").unwrap()), None, "that opens a sandbox");
        for junk in ["", "a.b.c", "kubernetes"] {
            assert_eq!(tokens.read(junk), None);
        }
    }
}
