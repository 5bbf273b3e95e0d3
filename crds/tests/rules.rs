//! What the API server refuses before a controller or a proxy ever sees it.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails the test")]

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use longhand_crds::{definitions, patterns};
use regex::Regex;
use rstest::rstest;
use serde_json::Value;

/// The schema of a field: its path, with `[]` for the items of a list.
fn schema(kind: &str, path: &str) -> Value {
    let of_kind = |definition: &CustomResourceDefinition| definition.spec.names.kind == kind;
    let definition = definitions().into_iter().find(of_kind).unwrap();
    let root = serde_json::to_value(&definition.spec.versions[0].schema.as_ref().unwrap().open_api_v3_schema).unwrap();
    path.split('.').fold(root, |at, part| {
        let (name, is_list) = part.strip_suffix("[]").map_or((part, false), |name| (name, true));
        let field = at["properties"][name].clone();
        assert!(field.is_object(), "{kind} has no {path}");
        if is_list { field["items"].clone() } else { field }
    })
}

const HOSTS: &str = "spec.credentials[].allow.hosts[]";
const PATHS: &str = "spec.credentials[].allow.pathPrefixes[]";
const KEY: &str = "spec.credentials[].secretRef.key";

#[rstest]
#[case::hosts("Vault", HOSTS, &["a", "api.anthropic.com", "model.team.svc", "10.0.0.7", "a--b.c", "*", "*.a", "*.a.b"], &["", ".a", "a.", "a..b", "-a", "a-.b", "a.-b", "A", "a_b", "*a", "a.*", "*.*.a", "**", "a:80", "a/b"])]
#[case::a_long_label("Vault", HOSTS, &["aaaaaaaaaabbbbbbbbbbccccccccccddddddddddeeeeeeeeeeffffffffff123"], &["aaaaaaaaaabbbbbbbbbbccccccccccddddddddddeeeeeeeeeeffffffffff1234"])]
#[case::path_prefixes("Vault", PATHS, &["/", "/v1", "/v1/messages", "/v1/", "/.well-known/x", "/a/...", "/..a", "/~me"], &["", "v1", "//", "/v1//messages", "/v1//", "/.", "/..", "/a/.", "/a/../b", "/./a", "/a b", "/a;b", "/%2e"])]
#[case::keys("Vault", KEY, &["token", ".token", "a..b", "_", "-"], &["", ".", "..", "..token", "a/b"])]
#[case::base_urls("Agent", "spec.model.baseURL", &["https://api.anthropic.com", "http://m:8080", "http://m:65535/", "https://M.example/a/b/"], &["ftp://m", "https://", "https://a..b", "https://-a", "https://a:0", "https://a:65536", "https://a:80:80", "https://a//b", "https://a/b//c", "https://a/../b", "https://a/b?c", "https://u@a"])]
#[case::api_versions("Agent", "spec.model.apiVersion", &["2023-06-01"], &["", "2023 06", "2023-06-01\n", "é"])]
#[case::prices("Agent", "spec.model.prices.input", &["0", "300", "0.25"], &["", ".5", "1.", "-1", "1e3", "1,5"])]
#[case::folders("SandboxTemplate", "spec.workspace.mountPath", &["/workspace", "/home/me/", "/.cache"], &["/", "//", "/a//b", "/a/../tmp", "/./tmp", "a", "/a:b"])]
#[case::repositories("SandboxTemplate", "spec.provision[].gitRepository.url", &["https://github.com/o/r.git", "http://git:8080/r"], &["git@github.com:o/r", "ssh://g/r", "https://me:pw@g/r", "https://g/r s", "https://"])]
#[case::references("SandboxTemplate", "spec.provision[].gitRepository.ref", &["main", "v1.2", "a/b"], &["", "-u", "a b", " "])]
#[case::places("SandboxTemplate", "spec.provision[].mountPath", &["/workspace/r", "/workspace/.env"], &["workspace/r", "/workspace/../etc", "/workspace//r"])]
fn text_is_judged_by_its_pattern(#[case] kind: &str, #[case] path: &str, #[case] good: &[&str], #[case] bad: &[&str]) {
    let pattern = schema(kind, path)["pattern"].as_str().map(|pattern| Regex::new(pattern).unwrap()).unwrap();
    for text in good {
        assert!(pattern.is_match(text), "{kind} {path} refuses {text:?}");
    }
    for text in bad {
        assert!(!pattern.is_match(text), "{kind} {path} takes {text:?}");
    }
}

/// The pattern inside a rule that refuses what it matches.
fn refused_by(rule: &str) -> Regex {
    let (_, rest) = rule.split_once(".matches('").unwrap();
    Regex::new(rest.strip_suffix("')").unwrap()).unwrap()
}

#[rstest]
#[case::headers("Vault", "spec.credentials[].placement", patterns::NO_RESERVED_HEADER, &["x-api-key", "Authorization", "X-Host-Key", "hosts", "private-token"], &["host", "Host", "content-length", "Transfer-Encoding", "connection", "te", "trailer", "upgrade", "keep-alive", "expect", "proxy-authorization", "Proxy-Connection", "x-forwarded-host", "x-original-url", "x-http-method-override"])]
#[case::folders("SandboxTemplate", "spec.workspace", patterns::NO_RESERVED_FOLDER, &["/workspace", "/tmpfiles", "/home/tmp"], &["/tmp", "/tmp/", "/proc/self", "/etc/ssl", "/dev", "/sys"])]
fn what_is_reserved_is_refused(
    #[case] kind: &str,
    #[case] path: &str,
    #[case] rule: &str,
    #[case] good: &[&str],
    #[case] bad: &[&str],
) {
    let rules = schema(kind, path)["x-kubernetes-validations"].as_array().cloned().unwrap_or_default();
    assert!(rules.iter().any(|found| found["rule"] == rule), "{kind} {path}: {rules:?}");
    let refused = refused_by(rule);
    for text in good {
        assert!(!refused.is_match(text), "{kind} {path} refuses {text:?}");
    }
    for text in bad {
        assert!(refused.is_match(text), "{kind} {path} takes {text:?}");
    }
}

/// Whether one of these rules asks about a quantity, of the field at `path` below the object that has them.
fn asks(schema: &Value, path: Option<&str>) -> bool {
    let rules = schema["x-kubernetes-validations"].as_array().into_iter().flatten();
    rules.into_iter().any(|rule| {
        rule["rule"].as_str().unwrap().contains("isQuantity(")
            && rule["fieldPath"].as_str() == path
            && rule["message"].is_string()
    })
}

/// The paths of all amounts below `schema` that are text without a rule, and how many amounts there are.
fn unruled_amounts(schema: &Value, path: &str, unruled: &mut Vec<String>) -> usize {
    let is_amount = |schema: &Value| schema["x-kubernetes-int-or-string"] == true;
    let mut amounts = 0;
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        if is_amount(field) {
            amounts += 1;
            if !asks(schema, Some(&format!(".{name}"))) {
                unruled.push(path.clone());
            }
        }
        amounts += unruled_amounts(field, &path, unruled);
    }
    if is_amount(&schema["additionalProperties"]) {
        amounts += 1;
        // What the API server expects of a rule is multiplied by how often it may be asked.
        let bounded = schema["maxProperties"].as_u64().is_some_and(|most| most <= 10);
        if !bounded || !asks(&schema["additionalProperties"], None) {
            unruled.push(format!("{path}[]"));
        }
    }
    amounts + if schema["items"].is_object() { unruled_amounts(&schema["items"], path, unruled) } else { 0 }
}

#[test]
fn every_amount_is_judged() {
    let mut unruled = Vec::new();
    let mut amounts = 0;
    for definition in definitions() {
        let schema = &definition.spec.versions[0].schema.as_ref().unwrap().open_api_v3_schema;
        amounts += unruled_amounts(&serde_json::to_value(schema).unwrap(), &definition.spec.names.kind, &mut unruled);
    }
    assert_eq!((amounts, unruled), (6, Vec::new()));
}

#[rstest]
#[case("SandboxTemplate", "spec.resources")]
#[case("Agent", "spec.harness.resources")]
fn a_request_is_not_above_its_limit(#[case] kind: &str, #[case] path: &str) {
    let rules = schema(kind, path)["x-kubernetes-validations"].as_array().cloned().unwrap_or_default();
    let compares = |rule: &Value| rule["rule"].as_str().unwrap().contains(".compareTo(");
    assert!(rules.iter().any(|rule| compares(rule) && rule["message"] == "a request is above its limit"), "{rules:?}");
}
