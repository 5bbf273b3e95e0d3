use std::collections::BTreeSet;

use axum::body::Body;
use http::{Method, Request, StatusCode};
use serde_json::Value;
use tower::ServiceExt as _;

use super::document;
use crate::testing::World;

fn documented(document: &Value) -> BTreeSet<(String, String)> {
    let paths = document["paths"].as_object().unwrap().iter();
    paths
        .flat_map(|(path, methods)| {
            methods.as_object().unwrap().keys().map(move |method| (path.clone(), method.to_uppercase()))
        })
        .collect()
}

#[tokio::test]
async fn documented_paths_have_the_documented_methods_and_no_others() {
    let (world, document) = (World::new(), document());
    let documented = documented(&document);
    for path in document["paths"].as_object().unwrap().keys() {
        for method in [Method::GET, Method::POST, Method::PUT, Method::DELETE] {
            let uri = path.replace(['{', '}'], "");
            let request = Request::builder().method(&method).uri(uri).body(Body::empty()).unwrap();
            let status = world.app.clone().router().oneshot(request).await.unwrap().status();
            let served = !matches!(status, StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED);
            let expected = documented.contains(&(path.clone(), method.to_string()));
            assert_eq!(served, expected, "{method} {path} is answered with {status}");
        }
    }
}

/// The router does not tell its paths, so that they are read where they are written.
#[test]
fn every_path_of_the_public_api_is_documented() {
    let source = include_str!("../app.rs");
    let section = |begin: &str, end: &str| source.split_once(begin).unwrap().1.split_once(end).unwrap().0;
    let wire = [
        section("let wire = ", "let harness = "),
        section("fn files() -> Router<App> {", "\n}\n"),
        section("fn vaults() -> Router<App> {", "\n}\n"),
        section("fn sandboxes() -> Router<App> {", "\n}\n"),
        section("fn work() -> Router<App> {", "\n}\n"),
    ];
    let routes = wire.iter().flat_map(|section| section.split(".route(").skip(1));
    let written: BTreeSet<String> = routes.map(|route| format!("/v1{}", route.split('"').nth(1).unwrap())).collect();
    let paths = document()["paths"].as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    let missing: Vec<_> = written.difference(&paths).collect();
    assert!(missing.is_empty(), "say in openapi/operations.rs what these do: {missing:?}");
}

#[test]
fn every_reference_leads_somewhere() {
    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(fields) => {
                found.extend(fields.get("$ref").and_then(Value::as_str).map(ToOwned::to_owned));
                fields.values().for_each(|value| references(value, found));
            }
            Value::Array(values) => values.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }
    let document = document();
    let mut found = BTreeSet::new();
    references(&document, &mut found);
    assert!(!found.is_empty());
    for reference in found {
        let pointer = reference.strip_prefix('#').unwrap_or_else(|| panic!("{reference} leads outside"));
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
}
