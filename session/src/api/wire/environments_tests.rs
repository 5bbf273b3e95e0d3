use longhand_crds::SandboxTemplateSpec;
use rstest::rstest;
use serde_json::{Value, json};

use super::{created, is_host, updated};

fn create(fields: &Value) -> Result<SandboxTemplateSpec, String> {
    let mut body = json!({"name": "n"});
    for (key, value) in fields.as_object().unwrap() {
        body[key] = value.clone();
    }
    let body = serde_json::from_value(body).map_err(|error| error.to_string())?;
    created(body).map_err(|error| error.to_string())
}

fn update(spec: SandboxTemplateSpec, fields: Value) -> SandboxTemplateSpec {
    updated(spec, serde_json::from_value(fields).unwrap()).unwrap()
}

fn config(spec: &SandboxTemplateSpec) -> Value {
    serde_json::to_value(spec.wire_config()).unwrap()
}

fn limited(fields: &Value, packages: &Value) -> Value {
    let mut networking = json!({"type": "limited"});
    for (key, value) in fields.as_object().unwrap() {
        networking[key] = value.clone();
    }
    json!({"config": {"type": "cloud", "networking": networking, "packages": packages}})
}

#[rstest]
#[case(json!({}))]
#[case(json!({"config": null, "description": null, "metadata": null, "scope": null}))]
#[case(json!({"config": {"type": "cloud"}, "scope": "organization"}))]
fn without_a_word_on_the_network_all_of_it_may_be_reached(#[case] fields: Value) {
    assert_eq!(config(&create(&fields).unwrap())["networking"], json!({"type": "unrestricted"}));
}

#[rstest]
#[case(json!({"name": ""}), "`name` is empty")]
#[case(json!({"name": null}), "expected a string")]
#[case(json!({"description": "d".repeat(4_097)}), "`description`")]
#[case(json!({"scope": "account"}), "`scope`")]
#[case(json!({"config": {"type": "moon"}}), "`moon`")]
#[case(limited(&json!({"allowed_hosts": ["a.test", "https://a.test"]}), &Value::Null), "`config.networking.allowed_hosts[1]`")]
#[case(limited(&json!({}), &json!({"pip": ["pandas"]})), "`config.packages`")]
#[case(limited(&json!({"allow_package_managers": true}), &json!({"pip": [""]})), "`config.packages.pip`")]
#[case(json!({"metadata": {"k": 1}}), "expected a string")]
#[case(json!({"image": "x"}), "`image`")]
fn what_is_wrong_is_named(#[case] fields: Value, #[case] part: &str) {
    let message = create(&fields).unwrap_err();
    assert!(message.contains(part), "{message}");
}

#[rstest]
#[case("api.example.com", true)]
#[case("*.example.com", true)]
#[case("*", true)]
#[case("A.test", false)]
#[case("localhost", true)]
#[case("10.0.0.1", true)]
#[case("", false)]
#[case("a.*.test", false)]
#[case("a..test", false)]
#[case("-a.test", false)]
#[case("a.test:443", false)]
#[case("a.test/x", false)]
#[case(&"a".repeat(64), false)]
fn a_host_is_a_name(#[case] host: &str, #[case] valid: bool) {
    assert_eq!(is_host(host), valid);
}

#[test]
fn an_update_keeps_what_it_leaves_out_and_all_that_the_wire_does_not_know() {
    let fields = limited(&json!({"allowed_hosts": ["a.test"], "allow_package_managers": true}), &json!({"pip": ["p"]}));
    let mut spec = create(&fields).unwrap();
    spec.description = Some("d".to_owned());
    spec.metadata = [("a", "1"), ("b", "2"), ("c", "3")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    (spec.image, spec.idle_seconds) = (Some("own".to_owned()), 7);
    assert_eq!(update(spec.clone(), json!({})), spec);
    assert_eq!(update(spec.clone(), json!({"name": null, "config": null, "metadata": {}, "scope": null})), spec);
    let changed = update(spec.clone(), json!({"description": null, "metadata": {"a": null, "b": "", "c": "4"}}));
    assert_eq!((changed.description, changed.metadata.len()), (None, 1));
    assert_eq!(changed.metadata["c"], "4");
    let empty = update(spec.clone(), json!({"description": ""}));
    assert_eq!(empty.description.as_deref(), Some(""));
    let hosted = update(spec, json!({"config": {"type": "self_hosted"}}));
    assert_eq!((config(&hosted), hosted.idle_seconds), (json!({"type": "self_hosted"}), 7));
    let back = update(hosted, json!({"config": {"type": "cloud"}}));
    assert_eq!(config(&back)["networking"], json!({"type": "unrestricted"}));
}
