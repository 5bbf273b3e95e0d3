//! Calls of the API server, each with a deadline and an error that says what was asked for.

use std::time::Duration;

/// An answer that takes longer is of no use to a reconcile.
const DEADLINE: Duration = Duration::from_secs(10);

/// Why a call of the API server failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// It was refused, or could not be sent.
    #[error("cannot {what}: {}", explain(source))]
    Refused {
        /// Verb and object.
        what: String,
        /// What the API server, or the transport, says.
        source: Box<kube::Error>,
    },
    /// The deadline passed.
    #[error("cannot {what}: no answer within {after:?}")]
    Timeout {
        /// Verb and object.
        what: String,
        /// The deadline.
        after: Duration,
    },
}

/// The API server's own words where there are any: they are written for people.
fn explain(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if !status.message.is_empty() => status.message.clone(),
        other => other.to_string(),
    }
}

impl CallError {
    fn status(&self) -> Option<&kube::core::Status> {
        match self {
            Self::Refused { source, .. } => match &**source {
                kube::Error::Api(status) => Some(status),
                _ => None,
            },
            Self::Timeout { .. } => None,
        }
    }

    /// The object exists already.
    #[must_use]
    pub fn is_already_exists(&self) -> bool {
        self.status().is_some_and(kube::core::Status::is_already_exists)
    }

    /// There is no such object.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.status().is_some_and(kube::core::Status::is_not_found)
    }

    /// The object has changed since, or is another one of the same name.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        self.status().is_some_and(kube::core::Status::is_conflict)
    }

    /// One word for a condition.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self.status() {
            Some(status) if status.is_forbidden() && status.message.contains("exceeded quota") => "QuotaExceeded",
            Some(status) if status.is_forbidden() && status.message.contains("violates PodSecurity") => "PodSecurity",
            Some(status) if status.is_forbidden() && is_of_limit_range(&status.message) => "LimitRange",
            Some(status) if is_of_admission(&status.message) => "AdmissionDenied",
            Some(status) if status.is_forbidden() => "Forbidden",
            Some(status) if status.is_invalid() || status.code == 400 => "Invalid",
            Some(_) | None => "ApiServerUnavailable",
        }
    }

    /// Whether asking again in a moment is of no use, as somebody has to change something first.
    #[must_use]
    pub fn is_lasting(&self) -> bool {
        matches!(self.reason(), "AdmissionDenied" | "Invalid" | "LimitRange" | "PodSecurity")
    }
}

/// The API server tells its own refusals apart by their words alone.
fn is_of_limit_range(message: &str) -> bool {
    ["maximum ", "minimum "].iter().any(|bound| message.contains(bound))
        && [" usage per ", "limit to request ratio"].iter().any(|what| message.contains(what))
}

/// A webhook's refusal has whatever code the webhook gives it, and that of a policy is one of the object.
fn is_of_admission(message: &str) -> bool {
    ["admission webhook ", "ValidatingAdmissionPolicy "].iter().any(|who| message.contains(who))
        && ["denied the request", "denied request"].iter().any(|what| message.contains(what))
}

/// Waits for `call`, but not for long.
///
/// # Errors
/// [`CallError`], which names `what` was asked for.
pub async fn call<T>(what: impl Fn() -> String, call: impl Future<Output = kube::Result<T>>) -> Result<T, CallError> {
    match tokio::time::timeout(DEADLINE, call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(source)) => Err(CallError::Refused { what: what(), source: Box::new(source) }),
        Err(_) => Err(CallError::Timeout { what: what(), after: DEADLINE }),
    }
}

/// A call whose object may be gone, or be another one by now: then there is nothing left to do.
///
/// # Errors
/// [`CallError`], which names `what` was asked for.
pub async fn unless_gone<T>(
    what: impl Fn() -> String,
    pending: impl Future<Output = kube::Result<T>>,
) -> Result<Option<T>, CallError> {
    match call(what, pending).await {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_not_found() || error.is_conflict() => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;
    use rstest::rstest;

    use super::{call, unless_gone};

    fn refused(code: u16, reason: &str, message: &str) -> kube::Error {
        kube::Error::Api(Box::new(Status::failure(message, reason).with_code(code)))
    }

    #[rstest]
    #[case(403, "Forbidden", "pods \"a\" is forbidden: exceeded quota: q", "QuotaExceeded")]
    #[case(403, "Forbidden", "pods \"a\" is forbidden: violates PodSecurity \"restricted:latest\"", "PodSecurity")]
    #[case(
        403,
        "Forbidden",
        "pods \"a\" is forbidden: maximum cpu usage per Container is 1, but limit is 2",
        "LimitRange"
    )]
    #[case(403, "Forbidden", "pods is forbidden: User \"a\" cannot create resource", "Forbidden")]
    #[case(
        400,
        "BadRequest",
        "admission webhook \"images.example.com\" denied the request: no latest",
        "AdmissionDenied"
    )]
    #[case(
        422,
        "Invalid",
        "pods \"a\" is forbidden: ValidatingAdmissionPolicy 'images' with binding 'all' denied request: no latest",
        "AdmissionDenied"
    )]
    #[case(400, "BadRequest", "Pod in version \"v1\" cannot be handled", "Invalid")]
    #[case(422, "Invalid", "spec.x: Required value", "Invalid")]
    #[case(500, "InternalError", "etcdserver: no leader", "ApiServerUnavailable")]
    #[tokio::test]
    async fn a_refusal_has_a_reason(
        #[case] code: u16,
        #[case] reason: &str,
        #[case] message: &str,
        #[case] expected: &str,
    ) {
        let error = call(|| "create pod a/b".into(), async { Err::<(), _>(refused(code, reason, message)) });
        let error = error.await.unwrap_err();
        assert_eq!(error.reason(), expected);
        assert_eq!(error.is_lasting(), !["QuotaExceeded", "Forbidden", "ApiServerUnavailable"].contains(&expected));
        assert_eq!(error.to_string(), format!("cannot create pod a/b: {message}"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_without_an_answer_ends() {
        let error = call(|| "list pods".into(), std::future::pending::<kube::Result<()>>()).await.unwrap_err();
        assert_eq!(error.to_string(), "cannot list pods: no answer within 10s");
    }

    #[tokio::test]
    async fn what_is_gone_is_no_error() {
        let gone = unless_gone(|| "delete".into(), async { Err::<(), _>(refused(404, "NotFound", "")) });
        assert!(gone.await.unwrap().is_none());
    }
}
