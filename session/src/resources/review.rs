//! TokenReview and SubjectAccessReview.

use async_trait::async_trait;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::{Api, PostParams};

use super::Cluster;
use super::cluster::call;
use crate::auth::{Access, Attributes, Identity, ReviewError, Reviewer, identity_of};

#[async_trait]
impl Reviewer for Cluster {
    async fn review_token(&self, token: &str, audience: &str) -> Result<Option<Identity>, ReviewError> {
        let review = TokenReview {
            spec: TokenReviewSpec { token: Some(token.to_owned()), audiences: Some(vec![audience.to_owned()]) },
            ..TokenReview::default()
        };
        let api = Api::<TokenReview>::all(self.client().clone());
        let answer = call("a TokenReview", api.create(&PostParams::default(), &review)).await;
        let answer = answer.map_err(|error| ReviewError { what: "token", reason: error.to_string() })?;
        Ok(answer.status.and_then(|status| identity_of(status, audience)))
    }

    async fn review_access(
        &self,
        identity: &Identity,
        access: Access<'_>,
        namespace: &str,
    ) -> Result<bool, ReviewError> {
        let Attributes { group, resource, subresource, verb, name } = access.attributes();
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(identity.username.clone()),
                uid: Some(identity.uid.clone()).filter(|uid| !uid.is_empty()),
                groups: Some(identity.groups.clone()),
                extra: Some(identity.extra.clone()),
                resource_attributes: Some(ResourceAttributes {
                    group: Some(group.to_owned()),
                    resource: Some(resource.to_owned()),
                    subresource: subresource.map(ToOwned::to_owned),
                    verb: Some(verb.to_owned()),
                    namespace: Some(namespace.to_owned()),
                    name: name.map(ToOwned::to_owned),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let api = Api::<SubjectAccessReview>::all(self.client().clone());
        let answer = call("a SubjectAccessReview", api.create(&PostParams::default(), &review)).await;
        let answer = answer.map_err(|error| ReviewError { what: "permission", reason: error.to_string() })?;
        Ok(answer.status.is_some_and(|status| status.allowed && status.denied != Some(true)))
    }
}
