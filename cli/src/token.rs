//! Tokens for the session service: issued by the API server for a ServiceAccount, good for audience `longhand` only.

use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;
use kube::api::PostParams;

use crate::cluster::{self, Cluster};
use crate::error::{Error, Result};

const AUDIENCE: &str = "longhand";
const LIFETIME_SECONDS: i64 = 3_600;
/// A token is replaced when this share of its life has passed, in percent.
const STALE_PERCENT: i64 = 80;
/// The API server gives no token a shorter life than ten minutes.
const FRESH_SECONDS: i64 = 300;

/// A token and its time, by the clock of this machine alone.
pub struct Token {
    /// What is sent.
    pub value: String,
    issued_at: Timestamp,
    lifetime_seconds: i64,
}

impl Token {
    /// Whether it is time for another.
    #[must_use]
    pub fn is_stale(&self, now: Timestamp) -> bool {
        self.age(now).saturating_mul(100) >= self.lifetime_seconds.saturating_mul(STALE_PERCENT)
    }

    /// Whether it is so new that a refusal cannot be for its age.
    #[must_use]
    pub fn is_fresh(&self, now: Timestamp) -> bool {
        self.age(now) < FRESH_SECONDS
    }

    fn age(&self, now: Timestamp) -> i64 {
        now.as_second().saturating_sub(self.issued_at.as_second())
    }
}

/// Requests a token for the ServiceAccount `name` of the cluster's namespace.
///
/// # Errors
/// Says how to make the account when there is none, and what is missing when the user may not do this.
pub async fn request(cluster: &Cluster, name: &str) -> Result<Token> {
    let namespace = &cluster.namespace;
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client.clone(), namespace);
    let request = TokenRequest {
        spec: TokenRequestSpec {
            audiences: vec![AUDIENCE.to_owned()],
            expiration_seconds: Some(LIFETIME_SECONDS),
            bound_object_ref: None,
        },
        ..TokenRequest::default()
    };
    let issued_at = Timestamp::now();
    let answer = cluster::request(
        format!("request a token for ServiceAccount {namespace}/{name}"),
        accounts.create_token_request(name, &PostParams::default(), &request),
    )
    .await
    .map_err(|error| refusal(error, namespace, name))?;
    let lifetime_seconds = answer.spec.expiration_seconds.unwrap_or(LIFETIME_SECONDS);
    let value = answer.status.map(|status| status.token).filter(|token| !token.is_empty());
    Ok(Token { value: value.ok_or_else(|| Error::NoToken { name: name.to_owned() })?, issued_at, lifetime_seconds })
}

fn refusal(error: Error, namespace: &str, name: &str) -> Error {
    let (namespace, name) = (namespace.to_owned(), name.to_owned());
    match error {
        Error::Kube { source, doing } => match *source {
            kube::Error::Api(status) if status.is_not_found() => Error::NoServiceAccount { namespace, name },
            kube::Error::Api(status) if status.is_forbidden() => {
                Error::TokenDenied { namespace, name, message: status.message }
            }
            source => Error::Kube { source: Box::new(source), doing },
        },
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use kube::core::Status;
    use rstest::rstest;

    use super::{Token, refusal};
    use crate::error::Error;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[rstest]
    #[case(1_000, false, true)]
    #[case(1_299, false, true)]
    #[case(1_300, false, false)]
    #[case(3_879, false, false)]
    #[case(3_880, true, false)]
    #[case(9_999, true, false)]
    // The clock of this machine was set back.
    #[case(500, false, true)]
    fn a_token_is_renewed_before_it_expires(#[case] now: i64, #[case] stale: bool, #[case] fresh: bool) {
        let token = Token { value: "t".to_owned(), issued_at: at(1_000), lifetime_seconds: 3_600 };
        assert_eq!((token.is_stale(at(now)), token.is_fresh(at(now))), (stale, fresh));
    }

    fn api_error(code: u16, reason: &str) -> Error {
        let status = Status::failure("no", reason).with_code(code);
        Error::Kube { doing: "request".to_owned(), source: Box::new(kube::Error::Api(Box::new(status))) }
    }

    #[test]
    fn a_missing_account_says_how_to_make_one() {
        let text = refusal(api_error(404, "NotFound"), "team", "bot").to_string();
        assert!(text.contains("kubectl -n team create serviceaccount bot"), "{text}");
        assert!(text.contains("--serviceaccount=team:bot"), "{text}");
    }

    #[test]
    fn a_denial_says_what_it_takes() {
        let text = refusal(api_error(403, "Forbidden"), "team", "bot").to_string();
        assert!(text.contains("serviceaccounts/token"), "{text}");
    }
}
