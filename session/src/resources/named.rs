//! Objects that clients name: by the identifier of the wire API, or as Kubernetes does.

use std::fmt::Debug;

use async_trait::async_trait;
use k8s_openapi::NamespaceResourceScope;
use kube::api::{Api, ListParams, ObjectMeta};
use kube::{Client, Resource};
use longhand_crds::wire_id::is_wire_id;
use longhand_crds::{annotations, labels, wire_id};
use serde::de::DeserializeOwned;

use super::ResourceError;
use super::cluster::{Cluster, call};

const PAGE: u32 = 500;
/// Between this machine and the API server's.
const CLOCK_SKEW: jiff::SignedDuration = jiff::SignedDuration::from_secs(60);

/// Some objects of a namespace, and where the next ones begin.
pub type PageOf<K> = (Vec<K>, Option<String>);

/// The objects of one kind, as the API server has them.
#[async_trait]
pub trait Named<K>: Send + Sync + 'static {
    /// The one of this name.
    async fn named(&self, namespace: &str, name: &str) -> Result<Option<K>, ResourceError>;

    /// Those that carry this identifier as a label.
    async fn labelled(&self, namespace: &str, id: &str) -> Result<Vec<K>, ResourceError>;

    /// Some of them.
    async fn page(&self, namespace: &str, from: Option<String>) -> Result<PageOf<K>, ResourceError>;
}

#[async_trait]
impl<K> Named<K> for Cluster
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + Sync
        + 'static,
{
    async fn named(&self, namespace: &str, name: &str) -> Result<Option<K>, ResourceError> {
        let what = format!("{} {namespace}/{name}", K::kind(&()));
        call(&what, api::<K>(self.client(), namespace).get_opt(name)).await
    }

    async fn labelled(&self, namespace: &str, id: &str) -> Result<Vec<K>, ResourceError> {
        let params = ListParams::default().labels(&format!("{}={id}", labels::ID)).limit(PAGE);
        let what = format!("the {} of {namespace} with the identifier {id}", K::plural(&()));
        Ok(call(&what, api::<K>(self.client(), namespace).list(&params)).await?.items)
    }

    async fn page(&self, namespace: &str, from: Option<String>) -> Result<PageOf<K>, ResourceError> {
        let mut params = ListParams::default().limit(PAGE);
        params.continue_token = from;
        let what = format!("the {} of {namespace}", K::plural(&()));
        let list = call(&what, api::<K>(self.client(), namespace).list(&params)).await?;
        Ok((list.items, list.metadata.continue_.filter(|token| !token.is_empty())))
    }
}

fn api<K>(client: &Client, namespace: &str) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    Api::namespaced(client.clone(), namespace)
}

/// The object that `reference` names: an identifier with this prefix, or a name. Of two objects with one identifier it is
/// the older.
///
/// # Errors
/// Those of the API server.
pub async fn find<K: Resource>(
    objects: &(impl Named<K> + ?Sized),
    prefix: &str,
    namespace: &str,
    reference: &str,
) -> Result<Option<K>, ResourceError> {
    if !is_wire_id(prefix, reference) {
        // A name is never mistaken for an identifier: it has no underscore.
        return if reference.contains('_') { Ok(None) } else { objects.named(namespace, reference).await };
    }
    let labelled = objects.labelled(namespace, reference).await?;
    if let Some(oldest) = labelled.into_iter().min_by(|a, b| age(a.meta()).cmp(&age(b.meta()))) {
        return Ok(Some(oldest));
    }
    let mut from = None;
    loop {
        let (objects, next) = objects.page(namespace, from).await?;
        if let Some(found) = objects.into_iter().find(|object| wire_id(prefix, object.meta()) == reference) {
            return Ok(Some(found));
        }
        from = next;
        if from.is_none() {
            return Ok(None);
        }
    }
}

/// What objects are ordered by where the older one counts.
pub(crate) fn age(meta: &ObjectMeta) -> (Option<jiff::Timestamp>, Option<&str>) {
    (created_at(meta), meta.uid.as_deref())
}

/// When the object was made: as exactly as it says, unless that is far from what the API server says, as in a copy.
#[must_use]
pub fn created_at(meta: &ObjectMeta) -> Option<jiff::Timestamp> {
    let known = meta.creation_timestamp.as_ref()?.0;
    let said = meta.annotations.as_ref().and_then(|all| all.get(annotations::CREATED_AT)?.parse().ok());
    Some(said.filter(|said: &jiff::Timestamp| said.duration_since(known).abs() <= CLOCK_SKEW).unwrap_or(known))
}

/// Writes down when the object is made.
pub(crate) fn set_created_at(meta: &mut ObjectMeta, now: jiff::Timestamp) {
    meta.annotations.get_or_insert_default().insert(annotations::CREATED_AT.to_owned(), now.to_string());
}

/// When the object was last changed, other than in its status; since the API server keeps no such time, the latest of
/// those who manage its fields.
#[must_use]
pub fn updated_at(meta: &ObjectMeta) -> Option<jiff::Timestamp> {
    let managed = meta.managed_fields.iter().flatten().filter(|entry| entry.subresource.as_deref() != Some("status"));
    managed.filter_map(|entry| entry.time.as_ref().map(|time| time.0)).max().max(created_at(meta))
}

/// When the object was archived.
#[must_use]
pub fn archived_at(meta: &ObjectMeta) -> Option<jiff::Timestamp> {
    meta.annotations.as_ref()?.get(annotations::ARCHIVED_AT)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use kube::api::ObjectMeta;
    use rstest::rstest;
    use serde_json::json;

    use super::{archived_at, created_at, set_created_at, updated_at};

    fn meta(value: serde_json::Value) -> ObjectMeta {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn an_object_was_updated_when_its_fields_were() {
        let made = json!({"creationTimestamp": "2026-01-01T00:00:00Z", "managedFields": [
            {"time": "2026-01-03T00:00:00Z", "subresource": "status"}, {"time": "2026-01-02T00:00:00Z"}]});
        assert_eq!(updated_at(&meta(made)).unwrap().to_string(), "2026-01-02T00:00:00Z");
        let plain = json!({"creationTimestamp": "2026-01-01T00:00:00Z"});
        assert_eq!(updated_at(&meta(plain)).unwrap().to_string(), "2026-01-01T00:00:00Z");
    }

    #[rstest]
    #[case("2026-01-01T00:00:00.25Z", "2026-01-01T00:00:00.25Z")]
    #[case("2025-12-31T23:59:59.75Z", "2025-12-31T23:59:59.75Z")]
    #[case::of_a_copy("2025-12-31T00:00:00.25Z", "2026-01-01T00:00:00Z")]
    #[case::nonsense("now", "2026-01-01T00:00:00Z")]
    fn an_object_knows_better_when_it_was_made(#[case] said: &str, #[case] expected: &str) {
        let made =
            json!({"creationTimestamp": "2026-01-01T00:00:00Z", "annotations": {"longhand.dev/created-at": said}});
        assert_eq!(created_at(&meta(made)).unwrap().to_string(), expected);
        let mut unmade = ObjectMeta::default();
        set_created_at(&mut unmade, jiff::Timestamp::UNIX_EPOCH);
        assert_eq!(created_at(&unmade), None, "it is for the API server to say that it is made");
    }

    #[test]
    fn nonsense_in_the_annotation_is_not_a_time() {
        let at = |text: &str| archived_at(&meta(json!({"annotations": {"longhand.dev/archived-at": text}})));
        assert!(at("2026-01-01T00:00:00Z").is_some());
        assert_eq!(at("yes"), None);
        assert_eq!(archived_at(&ObjectMeta::default()), None);
    }
}
