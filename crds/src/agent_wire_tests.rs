use longhand_protocol::wire::agents::{McpServer, Tool};
use longhand_protocol::wire::toolsets::ToolParam;
use proptest::prelude::*;
use rstest::rstest;
use serde_json::{Value, json};

use crate::agent::McpServerSpec;
use crate::toolset::ToolSpec;

/// From the wire into the resource, through the API server's JSON, and out again.
fn there_and_back(tool: &Value) -> Value {
    let given: ToolParam = serde_json::from_value(tool.clone()).unwrap();
    let stored = serde_json::to_value(ToolSpec::from(given)).unwrap();
    let read: ToolSpec = serde_json::from_value(stored).unwrap();
    serde_json::to_value(Tool::from(&read)).unwrap()
}

fn allow() -> Value {
    json!({"type": "always_allow"})
}

#[rstest]
#[case::agent_toolset(
    json!({"type": "agent_toolset_20260401"}),
    json!({"type": "agent_toolset_20260401", "default_config": {"enabled": true, "permission_policy": allow()}, "configs": []}),
)]
#[case::a_tool_that_is_off(
    json!({"type": "agent_toolset_20260401", "default_config": null, "configs": [{"name": "bash", "enabled": false}]}),
    json!({"type": "agent_toolset_20260401", "default_config": {"enabled": true, "permission_policy": allow()},
        "configs": [{"type": "bash", "name": "bash", "enabled": false, "permission_policy": allow()}]}),
)]
#[case::defaults_reach_what_is_left_open(
    json!({"type": "agent_toolset_20260401", "default_config": {"enabled": false, "permission_policy": {"type": "auto"}},
        "configs": [{"name": "read", "enabled": true}, {"name": "edit", "permission_policy": {"type": "always_ask"}}]}),
    json!({"type": "agent_toolset_20260401", "default_config": {"enabled": false, "permission_policy": {"type": "auto"}},
        "configs": [{"type": "read", "name": "read", "enabled": true, "permission_policy": {"type": "auto"}},
            {"type": "edit", "name": "edit", "enabled": false, "permission_policy": {"type": "always_ask"}}]}),
)]
#[case::a_server_s_tools_are_asked_about(
    json!({"type": "mcp_toolset", "mcp_server_name": "s", "configs": [{"name": "t", "permission_policy": allow()}]}),
    json!({"type": "mcp_toolset", "mcp_server_name": "s",
        "default_config": {"enabled": true, "permission_policy": {"type": "always_ask"}},
        "configs": [{"name": "t", "enabled": true, "permission_policy": allow()}]}),
)]
fn what_is_left_open_is_filled_in(#[case] given: Value, #[case] shown: Value) {
    assert_eq!(there_and_back(&given), shown);
}

fn policy() -> impl Strategy<Value = Value> {
    prop::sample::select(vec!["always_allow", "always_ask", "auto"]).prop_map(|kind| json!({"type": kind}))
}

fn filter() -> impl Strategy<Value = Value> {
    let tools = prop::collection::vec("[a-z]{1,5}", 1..3).prop_map(|names| {
        Value::Array(names.into_iter().map(|name| json!({"type": "tool_reference", "name": name})).collect())
    });
    prop_oneof![
        Just(Value::Null),
        Just(json!({"type": "all"})),
        Just(json!({"type": "none"})),
        tools.clone().prop_map(|tools| json!({"type": "only", "tools": tools})),
        tools.prop_map(|tools| json!({"type": "except", "tools": tools})),
    ]
}

/// A list, or null.
fn domains() -> impl Strategy<Value = Value> {
    prop::option::of(prop::collection::vec("[a-z]{1,8}\\.test", 1..3)).prop_map(|names| json!(names))
}

fn word() -> impl Strategy<Value = Value> {
    prop::option::of("[a-zA-Z ]{1,9}").prop_map(|word| json!(word))
}

fn builtin() -> impl Strategy<Value = Value> {
    let plain = prop::sample::select(vec!["bash", "edit", "glob", "grep", "read", "write"]);
    let web = (any::<bool>(), domains(), prop::option::of(1_u32..9_999), filter(), filter(), filter(), word(), word());
    (any::<bool>(), policy(), prop_oneof![plain.prop_map(Ok), web.prop_map(Err)]).prop_map(|(enabled, policy, tool)| {
        let base = |name: &str| json!({"type": name, "name": name, "enabled": enabled, "permission_policy": policy});
        match tool {
            Ok(name) => base(name),
            Err((true, domains, most, a, b, c, _, _)) => {
                let mut tool = base("web_fetch");
                tool["allowed_domains"] = domains;
                tool["blocked_domains"] = Value::Null;
                tool["max_content_tokens"] = json!(most);
                tool["url_sources"] = json!({"client_tool_results": a, "server_tool_results": b, "user_input": c});
                tool
            }
            Err((false, domains, _, _, _, _, city, region)) => {
                let mut tool = base("web_search");
                tool["allowed_domains"] = Value::Null;
                tool["blocked_domains"] = domains;
                tool["user_location"] = json!({
                    "type": "approximate", "city": city, "country": "CH", "region": region, "timezone": null,
                });
                tool
            }
        }
    })
}

/// A tool as an answer shows it, which a request may send as well.
fn tool() -> impl Strategy<Value = Value> {
    let default =
        || (any::<bool>(), policy()).prop_map(|(on, policy)| json!({"enabled": on, "permission_policy": policy}));
    let of_server = (any::<bool>(), policy(), "[a-z]{1,8}")
        .prop_map(|(on, policy, name)| json!({"name": name, "enabled": on, "permission_policy": policy}));
    prop_oneof![
        (default(), prop::collection::vec(builtin(), 0..4)).prop_map(|(default, configs)| {
            json!({"type": "agent_toolset_20260401", "default_config": default, "configs": configs})
        }),
        ("[a-z]{1,8}", default(), prop::collection::vec(of_server, 0..4)).prop_map(|(server, default, configs)| {
            json!({"type": "mcp_toolset", "mcp_server_name": server, "default_config": default, "configs": configs})
        }),
        ("[a-zA-Z0-9_-]{1,20}", ".{1,40}", prop::collection::btree_map("[a-z]{1,5}", any::<i32>(), 0..4)).prop_map(
            |(name, description, properties)| {
                json!({"type": "custom", "name": name, "description": description,
                    "input_schema": {"type": "object", "properties": properties, "$comment": "kept"}})
            }
        ),
    ]
}

proptest! {
    #[test]
    fn what_is_shown_is_what_was_sent(tool in tool()) {
        prop_assert_eq!(there_and_back(&tool), tool);
    }
}

#[test]
fn a_server_is_shown_as_it_was_sent() {
    let sent = json!({"type": "url", "name": "s", "url": "https://s.test/sse"});
    let server: McpServer = serde_json::from_value(sent.clone()).unwrap();
    assert_eq!(serde_json::to_value(McpServer::from(&McpServerSpec::from(server))).unwrap(), sent);
}
