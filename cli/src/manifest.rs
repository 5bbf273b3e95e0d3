//! A file of manifests: read, and applied by the API server.

use std::path::Path;

use kube::api::{DynamicObject, Patch, PatchParams};
use kube::discovery::{Scope, pinned_kind};
use kube::{Api, ResourceExt as _};
use serde::Deserialize as _;

use crate::cluster::{self, Cluster};
use crate::error::{Error, Result};

const FIELD_MANAGER: &str = "longhand";

/// Reads the documents of a YAML file; `-` is standard input.
///
/// # Errors
/// Names the document that is not a manifest.
pub fn read(path: &Path) -> Result<Vec<DynamicObject>> {
    let text =
        if path.as_os_str() == "-" { std::io::read_to_string(std::io::stdin()) } else { std::fs::read_to_string(path) };
    let text = text.map_err(|source| Error::Read { path: path.to_owned(), source })?;
    parse(&text).map_err(|reason| Error::Manifest { path: path.to_owned(), reason })
}

fn parse(text: &str) -> Result<Vec<DynamicObject>, String> {
    let mut objects = Vec::new();
    for (index, document) in serde_yaml::Deserializer::from_str(text).enumerate() {
        let number = index + 1;
        let value = serde_yaml::Value::deserialize(document).map_err(|error| format!("document {number}: {error}"))?;
        if value.is_null() {
            continue;
        }
        let object: DynamicObject =
            serde_yaml::from_value(value).map_err(|error| format!("document {number}: {error}"))?;
        if object.types.is_none() || object.metadata.name.is_none() {
            return Err(format!("document {number}: a manifest needs apiVersion, kind and metadata.name"));
        }
        objects.push(object);
    }
    Ok(objects)
}

/// The one `AgentSession` among the objects: its namespace, if it says so, and its name.
///
/// # Errors
/// When there is none, or more than one.
pub fn the_session(path: &Path, objects: &[DynamicObject]) -> Result<(Option<String>, String)> {
    let mut sessions = objects.iter().filter(|object| {
        object.types.as_ref().is_some_and(|types| {
            types.kind == "AgentSession" && types.api_version.split('/').next() == Some(longhand_crds::GROUP)
        })
    });
    let wrong = |reason: &str| Error::Manifest { path: path.to_owned(), reason: reason.to_owned() };
    let session = sessions.next().ok_or_else(|| wrong("it holds no AgentSession"))?;
    if sessions.next().is_some() {
        return Err(wrong(
            "it holds more than one AgentSession: use `kubectl apply`, then `longhand events NAME --follow`",
        ));
    }
    Ok((session.namespace(), session.name_any()))
}

/// Applies an object; what others own of it stays theirs, and a conflict is an error.
///
/// # Errors
/// What the API server says against it.
pub async fn apply(cluster: &Cluster, object: &DynamicObject) -> Result<String> {
    let types = object.types.clone().unwrap_or_default();
    let name = object.name_any();
    let what = format!("{} {name}", types.kind);
    let gvk = kube::core::GroupVersionKind::try_from(&types).map_err(|error| Error::Kube {
        doing: format!("apply {what}"),
        source: Box::new(kube::Error::Discovery(kube::error::DiscoveryError::InvalidGroupVersion(error.to_string()))),
    })?;
    let discovery = pinned_kind(&cluster.client, &gvk);
    let (resource, capabilities) = cluster::request(format!("find out what a {} is", types.kind), discovery).await?;
    let api: Api<DynamicObject> = match capabilities.scope {
        Scope::Cluster => Api::all_with(cluster.client.clone(), &resource),
        Scope::Namespaced => {
            let namespace = object.namespace().unwrap_or_else(|| cluster.namespace.clone());
            Api::namespaced_with(cluster.client.clone(), &namespace, &resource)
        }
    };
    let patch = Patch::Apply(object);
    cluster::request(format!("apply {what}"), api.patch(&name, &PatchParams::apply(FIELD_MANAGER), &patch)).await?;
    Ok(what)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rstest::rstest;

    use super::{parse, the_session};

    const SESSION: &str = "apiVersion: longhand.dev/v1alpha1\nkind: AgentSession\nmetadata: {name: s, namespace: n}\n";

    #[test]
    fn documents_are_read_in_order() {
        let objects =
            parse(&format!("---\n---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: n}}\n---\n{SESSION}"))
                .unwrap();
        let kinds: Vec<_> = objects.iter().map(|object| object.types.as_ref().unwrap().kind.as_str()).collect();
        assert_eq!(kinds, ["Namespace", "AgentSession"]);
        let session = the_session(Path::new("f"), &objects).unwrap();
        assert_eq!(session, (Some("n".to_owned()), "s".to_owned()));
    }

    #[rstest]
    #[case("a: [", "document 1")]
    #[case("just text", "document 1")]
    #[case("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n---\napiVersion: v1\nmetadata: {name: a}\n", "document 2")]
    #[case("apiVersion: v1\nkind: Pod\nmetadata: {}\n", "metadata.name")]
    fn what_is_no_manifest_is_named(#[case] text: &str, #[case] expected: &str) {
        let reason = parse(text).unwrap_err();
        assert!(reason.contains(expected), "{reason}");
    }

    #[rstest]
    #[case("apiVersion: other.dev/v1\nkind: AgentSession\nmetadata: {name: a}\n", "no AgentSession")]
    #[case(&format!("{SESSION}---\n{SESSION}"), "more than one")]
    fn one_session_is_followed(#[case] text: &str, #[case] expected: &str) {
        let error = the_session(Path::new("f"), &parse(text).unwrap()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn the_quickstart_is_one_session() {
        let objects = parse(include_str!("../../examples/quickstart.yaml")).unwrap();
        assert_eq!(the_session(Path::new("f"), &objects).unwrap().1, "hello");
    }
}
