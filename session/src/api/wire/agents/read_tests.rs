use longhand_crds::AgentSpec;
use rstest::rstest;
use serde_json::{Value, json};

use super::{created, updated};

fn create(fields: &Value) -> Result<AgentSpec, String> {
    let mut body = json!({"name": "n", "model": "m"});
    for (key, value) in fields.as_object().unwrap() {
        body[key] = value.clone();
    }
    let body = serde_json::from_value(body).map_err(|error| error.to_string())?;
    created(body).map_err(|error| error.to_string())
}

fn update(spec: AgentSpec, fields: Value) -> Result<AgentSpec, String> {
    let body = serde_json::from_value(fields).map_err(|error| error.to_string())?;
    updated(spec, body).map_err(|error| error.to_string())
}

fn custom(name: &str) -> Value {
    json!({"type": "custom", "name": name, "description": "d", "input_schema": {"type": "object"}})
}

fn server(name: &str) -> Value {
    json!({"type": "url", "name": name, "url": "https://s.test/sse"})
}

fn toolset_of(server: &str) -> Value {
    json!({"type": "mcp_toolset", "mcp_server_name": server})
}

fn many(count: usize, item: impl Fn(usize) -> Value) -> Value {
    Value::Array((0..count).map(item).collect())
}

#[expect(clippy::needless_pass_by_value, reason = "the cases read better")]
fn web(config: Value) -> Value {
    json!({"tools": [{"type": "agent_toolset_20260401", "configs": [config]}]})
}

#[rstest]
#[case(json!({}))]
#[case(json!({"description": null, "system": null, "tools": null, "mcp_servers": null, "metadata": null, "skills": null,
    "multiagent": null, "execution_identity": null}))]
#[case(json!({"skills": [], "execution_identity": {"type": "service_account"}}))]
#[case(json!({"system": "s".repeat(100_000), "name": "n".repeat(256)}))]
#[case(json!({"tools": many(256, |number| custom(&format!("t{number}")))}))]
#[case(json!({"tools": [{"type": "agent_toolset_20260401"}, toolset_of("s"), custom("t")], "mcp_servers": [server("s")]}))]
#[case(web(json!({"name": "web_fetch", "url_sources": {"user_input": "none", "client_tool_results": {"type": "only",
    "tools": [{"type": "tool_reference", "name": "t"}]}}})))]
fn what_is_within_the_limits_is_taken(#[case] fields: Value) {
    create(&fields).unwrap();
}

#[rstest]
#[case(json!({"name": ""}), "`name` is empty")]
#[case(json!({"name": "n".repeat(257)}), "`name` is longer than 256")]
#[case(json!({"model": ""}), "`model.id` is empty")]
#[case(json!({"model": {"id": "m", "inference_geo": ""}}), "`model.inference_geo` is empty")]
#[case(json!({"system": "s".repeat(100_001)}), "`system`")]
#[case(json!({"description": "d".repeat(4_097)}), "`description`")]
#[case(json!({"metadata": {"": "v"}}), "`metadata`")]
#[case(json!({"metadata": {"k": null}}), "expected a string")]
#[case(json!({"skills": [{"type": "anthropic", "skill_id": "xlsx", "version": "1"}]}), "`skills`")]
#[case(json!({"multiagent": {"type": "coordinator", "agents": []}}), "`multiagent`")]
#[case(json!({"execution_identity": {"type": "aws_role", "role_arn": "a"}}), "`execution_identity`")]
#[case(json!({"tools": many(257, |number| custom(&format!("t{number}")))}), "`tools` has 257 items")]
#[case(json!({"tools": [{"type": "agent_toolset_20260401"}, {"type": "agent_toolset_20260401"}]}), "twice")]
#[case(json!({"tools": [custom("a"), custom("a")]}), "`tools[1]`")]
#[case(json!({"tools": [custom("a b")]}), "`tools[0].name`")]
#[case(json!({"tools": [custom(&"a".repeat(129))]}), "`tools[0].name`")]
#[case(json!({"tools": [{"type": "custom", "name": "a", "description": "d", "input_schema": {}}]}), "input_schema.type")]
#[case(json!({"tools": [{"type": "custom", "name": "a", "input_schema": {"type": "object"}}]}), "`description`")]
#[case(json!({"tools": [toolset_of("s")]}), "no server `s`")]
#[case(json!({"tools": [toolset_of("s"), toolset_of("s")], "mcp_servers": [server("s")]}), "`tools[1]`")]
#[case(json!({"mcp_servers": [server("s")]}), "`s` is named by no tool")]
#[case(json!({"mcp_servers": [server("s"), server("s")], "tools": [toolset_of("s")]}), "`s` twice")]
#[case(json!({"mcp_servers": many(21, |number| server(&number.to_string()))}), "`mcp_servers` has 21")]
#[case(json!({"mcp_servers": [{"type": "url", "name": "s", "url": "ftp://s.test"}]}), "`mcp_servers[0].url`")]
#[case(json!({"mcp_servers": [{"type": "url", "name": "s", "url": "nonsense"}]}), "`mcp_servers[0].url`")]
#[case(web(json!({"name": "web_search", "allowed_domains": []})), "`tools[0].configs[0].allowed_domains` is empty")]
#[case(web(json!({"name": "web_search", "allowed_domains": ["a"], "blocked_domains": ["b"]})), "exclude")]
#[case(web(json!({"name": "web_fetch", "max_content_tokens": 0})), "`tools[0].configs[0].max_content_tokens`")]
#[case(web(json!({"name": "web_fetch", "url_sources": {"user_input": {"type": "only", "tools": []}}})), "user_input")]
#[case(json!({"tools": [{"type": "agent_toolset_20260401", "configs": [{"name": "bash"}, {"name": "bash"}]}]}), "`bash` twice")]
#[case(json!({"temperature": 1}), "`temperature`")]
fn what_is_not_is_named(#[case] fields: Value, #[case] part: &str) {
    let message = create(&fields).unwrap_err();
    assert!(message.contains(part), "{message}");
}

fn full() -> AgentSpec {
    let mut spec = create(&json!({
        "model": {"id": "m", "effort": "high", "speed": "fast", "inference_geo": "eu"}, "description": "d", "system": "s",
        "tools": [toolset_of("x"), custom("t")], "mcp_servers": [server("x")], "metadata": {"a": "1", "b": "2"},
    }))
    .unwrap();
    spec.model.base_url = Some("http://own.test".to_owned());
    spec.model.max_tokens = 7;
    spec
}

#[test]
fn what_an_update_leaves_out_is_kept() {
    assert_eq!(update(full(), json!({})).unwrap(), full());
    let renamed = update(full(), json!({"name": "other"})).unwrap();
    assert_eq!(renamed, AgentSpec { display_name: Some("other".to_owned()), ..full() });
}

#[test]
fn null_and_empty_clear() {
    for clear in [Value::Null, json!("")] {
        let spec = update(full(), json!({"description": clear, "system": clear})).unwrap();
        assert_eq!((spec.description, spec.system), (None, None));
    }
    for clear in [Value::Null, json!([])] {
        let spec = update(full(), json!({"tools": clear, "mcp_servers": clear})).unwrap();
        assert_eq!((spec.tools, spec.mcp_servers), (Vec::new(), Vec::new()));
    }
    let spec = update(full(), json!({"metadata": {"a": null, "c": "3"}})).unwrap();
    assert_eq!(serde_json::to_value(spec.metadata).unwrap(), json!({"b": "2", "c": "3"}));
}

#[rstest]
#[case(json!({"name": null}), "`name`")]
#[case(json!({"name": ""}), "`name`")]
#[case(json!({"model": null}), "`model`")]
#[case(json!({"metadata": null}), "`metadata`")]
#[case(json!({"tools": null}), "`x` is named by no tool")]
#[case(json!({"mcp_servers": []}), "no server `x`")]
#[case(json!({"skills": [{}]}), "`skills`")]
#[case(json!({"multiagent": {}}), "`multiagent`")]
fn what_cannot_be_cleared_is_named(#[case] fields: Value, #[case] part: &str) {
    let message = update(full(), fields).unwrap_err();
    assert!(message.contains(part), "{message}");
}

#[test]
fn a_model_is_replaced_but_for_its_effort_and_what_the_wire_does_not_know() {
    for model in [json!("other"), json!({"id": "other"})] {
        let spec = update(full(), json!({"model": model})).unwrap();
        let kept = full().model;
        assert_eq!((spec.model.id.as_str(), spec.model.effort), ("other", kept.effort));
        assert_eq!((spec.model.speed, spec.model.inference_geo), (None, None));
        assert_eq!((spec.model.base_url, spec.model.max_tokens), (kept.base_url, 7));
    }
}
