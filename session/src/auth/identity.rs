//! Who a token is.

use std::collections::BTreeMap;

use k8s_openapi::api::authentication::v1::TokenReviewStatus;

use super::Worker;

const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";

/// A user of the cluster, as the API server knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The name, such as `system:serviceaccount:team-a:longhand-cli`.
    pub username: String,
    /// The UID, if it has one.
    pub uid: String,
    /// Its groups.
    pub groups: Vec<String>,
    /// What else the authenticator says.
    pub extra: BTreeMap<String, Vec<String>>,
    /// What it may speak for, if it is a worker of a self-hosted environment and no user of the cluster.
    pub worker: Option<Worker>,
}

/// The pod that a token is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

impl Identity {
    /// A worker of a self-hosted environment.
    #[must_use]
    pub fn of_worker(worker: Worker) -> Self {
        let username = format!("system:longhand:worker:{}", worker.work);
        Self { username, worker: Some(worker), ..Self::default() }
    }

    /// Namespace and name, if it is a ServiceAccount.
    #[must_use]
    pub fn service_account(&self) -> Option<(&str, &str)> {
        self.username.strip_prefix("system:serviceaccount:")?.split_once(':')
    }

    /// The pod, if the token is bound to one.
    #[must_use]
    pub fn pod(&self) -> Option<Pod> {
        let one = |key: &str| match self.extra.get(key).map(Vec::as_slice) {
            Some([value]) if !value.is_empty() => Some(value.clone()),
            _ => None,
        };
        let (namespace, _) = self.service_account()?;
        Some(Pod { namespace: namespace.to_owned(), name: one(POD_NAME)?, uid: one(POD_UID)? })
    }
}

/// The identity that a review found; `None` if the token is not valid for the audience that is wanted.
#[must_use]
pub fn identity_of(status: TokenReviewStatus, wanted: &str) -> Option<Identity> {
    // An authenticator that knows no audiences says nothing about ours.
    let ours = status.audiences.iter().flatten().any(|audience| audience == wanted);
    let user = status.user.filter(|_| ours && status.authenticated == Some(true))?;
    Some(Identity {
        username: user.username.filter(|name| !name.is_empty())?,
        uid: user.uid.unwrap_or_default(),
        groups: user.groups.unwrap_or_default(),
        extra: user.extra.unwrap_or_default(),
        worker: None,
    })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::authentication::v1::TokenReviewStatus;
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::{Pod, identity_of};

    fn status(changes: &Value) -> TokenReviewStatus {
        let mut status = json!({
            "authenticated": true,
            "audiences": ["longhand"],
            "user": {
                "username": "system:serviceaccount:team-a:default",
                "uid": "u1",
                "groups": ["system:serviceaccounts"],
                "extra": {
                    "authentication.kubernetes.io/pod-name": ["p"],
                    "authentication.kubernetes.io/pod-uid": ["p1"],
                },
            },
        });
        for (key, value) in changes.as_object().unwrap() {
            status[key] = value.clone();
        }
        serde_json::from_value(status).unwrap()
    }

    #[test]
    fn a_bound_token_names_its_pod() {
        let identity = identity_of(status(&json!({})), "longhand").unwrap();
        assert_eq!(identity.service_account(), Some(("team-a", "default")));
        let pod = Pod { namespace: "team-a".to_owned(), name: "p".to_owned(), uid: "p1".to_owned() };
        assert_eq!(identity.pod(), Some(pod));
    }

    #[rstest]
    #[case::refused(json!({"authenticated": false}))]
    #[case::silent(json!({"authenticated": null}))]
    #[case::other_audience(json!({"audiences": ["https://kubernetes.default.svc"]}))]
    #[case::no_audience(json!({"audiences": null}))]
    #[case::nobody(json!({"user": {"username": ""}}))]
    fn anything_else_is_nobody(#[case] changes: Value) {
        assert_eq!(identity_of(status(&changes), "longhand"), None);
        assert_eq!(identity_of(status(&json!({})), "longhand-proxy"), None);
    }

    #[rstest]
    #[case(json!({"user": {"username": "jane"}}))]
    #[case(json!({"user": {"username": "system:serviceaccount:team-a:default"}}))]
    #[case(json!({"user": {"username": "jane", "extra": {
        "authentication.kubernetes.io/pod-name": ["p"], "authentication.kubernetes.io/pod-uid": ["p1"]}}}))]
    fn not_every_identity_is_a_pod(#[case] changes: Value) {
        assert_eq!(identity_of(status(&changes), "longhand").unwrap().pod(), None);
    }
}
