//! What the tests share.

use jiff::Timestamp;
use longhand_crds::session_id;
use longhand_protocol::harness::{AgentSnapshot, Model};
use longhand_session_log::store::SessionMeta;

pub(crate) fn meta(namespace: &str, name: &str, uid: &str) -> SessionMeta {
    SessionMeta {
        id: session_id(uid),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        uid: uid.to_owned(),
        agent: AgentSnapshot {
            name: "helper".to_owned(),
            version: "v1".to_owned(),
            model: Model { id: "m".to_owned(), max_tokens: 100, api_version: "2023-06-01".to_owned() },
            system: None,
            tools: Vec::new(),
        },
        sandboxes: vec!["default".to_owned()],
        harness_idle_seconds: 30,
        delivered_inputs: 0,
        created_at: Timestamp::now(),
    }
}
