//! Large events: the body goes to the object store, the log holds its hash.
//!
//! A body that is stored by reference has its type and one field, [`FIELD`]; it is an [`EventBody::Other`] whatever its
//! type, since every type that can be large lacks a field that it requires. [`pack`] makes sure of that, so that no
//! reader can take a reference for the event.

use bytes::Bytes;
use longhand_protocol::EventId;
use longhand_protocol::event::{EventBody, NewEvent};
use longhand_protocol::export::REFERENCE_FIELD as FIELD;
pub(crate) use longhand_protocol::export::Reference;
use serde_json::Map;

use crate::record::{encode, hash};
use crate::store::{Result, StoreError};

/// Bodies up to this size, as JSON, are stored as they are.
pub(crate) const INLINE_BYTES: usize = 64 * 1024;
/// The largest body.
pub(crate) const MAX_BYTES: usize = 32 * 1024 * 1024;

/// An event as it is stored, and what is stored apart from it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Packed {
    pub(crate) event: NewEvent,
    pub(crate) reference: Reference,
    pub(crate) payload: Bytes,
}

/// Takes the body out of an event that is large; `None` if it is stored as it is.
pub(crate) fn pack(event: &NewEvent) -> Result<Option<Packed>> {
    let payload = encode(&event.body)?;
    let named = matches!(&event.body, EventBody::Other { fields, .. } if fields.contains_key(FIELD));
    if payload.len() <= INLINE_BYTES && !named {
        return Ok(None);
    }
    if payload.len() > MAX_BYTES {
        let bytes = payload.len();
        return Err(StoreError::TooLarge(format!("event {} takes {bytes} bytes of {MAX_BYTES}", event.id)));
    }
    let tool_use_id = answered(&event.body).filter(|_| !named);
    let bytes = u64::try_from(payload.len()).unwrap_or(u64::MAX);
    let reference = Reference { sha256: hash(&payload), bytes, tool_use_id };
    let value = serde_json::to_value(&reference).map_err(|error| StoreError::TooLarge(error.to_string()))?;
    let fields = Map::from_iter([(FIELD.to_owned(), value)]);
    let body = EventBody::Other { kind: event.body.kind().to_owned(), fields };
    if serde_json::from_slice::<EventBody>(&encode(&body)?).ok().as_ref() != Some(&body) {
        let kind = body.kind();
        return Err(StoreError::TooLarge(format!(
            "an event of type {kind} cannot have more than {INLINE_BYTES} bytes"
        )));
    }
    Ok(Some(Packed { event: NewEvent { id: event.id.clone(), body }, reference, payload: payload.into() }))
}

/// What a stored body refers to, if it is stored by reference.
pub(crate) fn reference(body: &EventBody) -> Option<Reference> {
    let EventBody::Other { fields, .. } = body else { return None };
    fields.get(FIELD).and_then(Reference::read)
}

/// The tool call that an event answers, whether its body is here or elsewhere.
pub(crate) fn answered(body: &EventBody) -> Option<EventId> {
    match body {
        EventBody::AgentToolResult { tool_use_id: call, .. }
        | EventBody::UserToolResult { tool_use_id: call, .. }
        | EventBody::AgentMcpToolResult { mcp_tool_use_id: call, .. } => Some(call.clone()),
        body => reference(body)?.tool_use_id,
    }
}

/// The body that a payload, whose hash was checked, holds.
pub(crate) fn unpack(name: &str, payload: &[u8]) -> Result<EventBody> {
    serde_json::from_slice(payload)
        .map_err(|error| StoreError::Corrupt { key: name.to_owned(), reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use longhand_protocol::EventId;
    use longhand_protocol::event::{EventBody, NewEvent, Permission};
    use rstest::rstest;
    use serde_json::{Map, json};

    use super::{FIELD, INLINE_BYTES, MAX_BYTES, pack, reference, unpack};
    use crate::store::StoreError;

    fn text(bytes: usize) -> Vec<serde_json::Value> {
        vec![json!({"type": "text", "text": "x".repeat(bytes)})]
    }

    #[rstest]
    #[case(EventBody::UserMessage { content: text(INLINE_BYTES) })]
    #[case(EventBody::UserCustomToolResult { custom_tool_use_id: EventId::generate(), content: Some(text(INLINE_BYTES)), is_error: None })]
    #[case(EventBody::AgentMessage { content: text(INLINE_BYTES) })]
    #[case(EventBody::AgentToolUse { name: "write".into(), input: json!({"text": "x".repeat(INLINE_BYTES)}), evaluated_permission: Permission::Allow, sandbox: None })]
    #[case(EventBody::AgentToolResult { tool_use_id: EventId::generate(), content: Some(text(INLINE_BYTES)), is_error: Some(false) })]
    #[case(EventBody::ModelResponse { content: text(INLINE_BYTES), stop_reason: None, model: None, tool_events: vec![], limited: false })]
    #[case(EventBody::Other { kind: "x.other".into(), fields: json!({"a": "x".repeat(INLINE_BYTES)}).as_object().unwrap().clone() })]
    #[case(EventBody::Other { kind: "x.forged".into(), fields: json!({FIELD: {"sha256": "0", "bytes": 1}}).as_object().unwrap().clone() })]
    fn a_large_body_comes_back(#[case] body: EventBody) {
        let event = NewEvent::new(body);
        let packed = pack(&event).unwrap().unwrap();
        let stored = serde_json::to_vec(&packed.event).unwrap();
        assert!(stored.len() < 1_024);
        let stored: NewEvent = serde_json::from_slice(&stored).unwrap();
        assert_eq!((&stored.id, stored.body.kind()), (&event.id, event.body.kind()));
        assert_eq!(reference(&stored.body), Some(packed.reference));
        assert_eq!(unpack("name", &packed.payload).unwrap(), event.body);
    }

    #[test]
    fn a_result_says_which_call_it_answers() {
        let call = EventId::generate();
        let content = Some(text(INLINE_BYTES));
        let event = NewEvent::new(EventBody::AgentToolResult { tool_use_id: call.clone(), content, is_error: None });
        assert_eq!(pack(&event).unwrap().unwrap().reference.tool_use_id, Some(call));
    }

    #[test]
    fn small_bodies_stay_and_huge_ones_are_refused() {
        assert_eq!(pack(&NewEvent::new(EventBody::UserMessage { content: text(1_000) })).unwrap(), None);
        let huge = NewEvent::new(EventBody::UserMessage { content: text(MAX_BYTES) });
        assert!(matches!(pack(&huge), Err(StoreError::TooLarge(_))));
    }

    /// A type that is complete without its fields would be read as an empty event.
    #[test]
    fn a_type_that_a_reference_would_pass_for_is_refused() {
        let mut fields = Map::new();
        fields.insert("extra".into(), json!("x".repeat(INLINE_BYTES)));
        let event = NewEvent::new(EventBody::Other { kind: "agent.thinking".into(), fields });
        assert!(matches!(pack(&event), Err(StoreError::TooLarge(_))));
    }
}
