//! A session in the shape of the public API, from its log and its resource. Pure.

use jiff::Timestamp;
use longhand_crds::AgentSession;
use longhand_protocol::harness::{AgentSnapshot, Tool};
use longhand_protocol::wire::{CacheCreation, Session, SessionStats, SessionUsage};
use longhand_session_log::store::SessionState;
use serde_json::{Value, json};

/// The session. Without its resource it has neither title nor metadata.
pub(super) fn session(state: SessionState, resource: Option<AgentSession>, now: Timestamp) -> Session {
    let spec = resource.map(|resource| resource.spec);
    let metadata = spec.as_ref().map(|spec| spec.metadata.clone()).unwrap_or_default();
    let usage = state.usage;
    Session {
        id: state.meta.id,
        kind: "session".to_owned(),
        agent: agent(&state.meta.agent),
        status: state.status,
        environment_id: spec
            .as_ref()
            .and_then(|spec| spec.sandboxes.first())
            .map(|first| first.template_ref.name.clone()),
        title: spec.and_then(|spec| spec.title),
        metadata: metadata.into_iter().map(|(key, value)| (key, Value::String(value))).collect(),
        resources: Vec::new(),
        vault_ids: Vec::new(),
        outcome_evaluations: Vec::new(),
        stats: SessionStats {
            active_seconds: None,
            duration_seconds: now.duration_since(state.meta.created_at).as_secs_f64().max(0.0),
        },
        usage: SessionUsage {
            input_tokens: usage.input_tokens,
            output_tokens: usage.output_tokens,
            cache_read_input_tokens: usage.cache_read_input_tokens,
            cache_creation: CacheCreation {
                ephemeral_5m_input_tokens: usage.cache_creation_input_tokens,
                ephemeral_1h_input_tokens: 0,
            },
        },
        budget: None,
        deployment_id: None,
        created_at: state.meta.created_at,
        updated_at: state.updated_at,
        archived_at: None,
    }
}

fn agent(snapshot: &AgentSnapshot) -> Value {
    json!({
        "id": snapshot.name,
        "type": "agent",
        "version": snapshot.version,
        "name": snapshot.name,
        "description": null,
        "model": { "id": snapshot.model.id, "effort": null, "speed": null, "inference_geo": null },
        "system": snapshot.system,
        "tools": snapshot.tools.iter().map(tool).collect::<Vec<_>>(),
        "mcp_servers": [],
        "skills": [],
        "multiagent": null,
        "execution_identity": { "type": "service_account" },
    })
}

fn tool(tool: &Tool) -> Value {
    let policy = json!({ "type": "always_allow" });
    match tool {
        // The set of the API has tools that ours has not: what is on is named, and nothing else is.
        Tool::AgentToolset { enabled } => json!({
            "type": "agent_toolset_20260401",
            "default_config": { "enabled": false, "permission_policy": policy },
            "configs": enabled
                .iter()
                .map(|tool| json!({ "name": tool.name(), "enabled": true, "permission_policy": policy }))
                .collect::<Vec<_>>(),
        }),
        Tool::Custom { name, description, input_schema } => {
            json!({ "type": "custom", "name": name, "description": description, "input_schema": input_schema })
        }
    }
}
