//! Changing a session.

use axum::Json;
use axum::extract::State;
use longhand_crds::{AgentSession, LocalRef};
use longhand_protocol::SessionId;
use longhand_protocol::event::{EventBody, NewEvent};
use longhand_protocol::fields::Fields;
use longhand_protocol::harness::AgentSnapshot;
use longhand_protocol::wire::{Session, SessionAgent};
use serde_json::{Map, Value};

use super::fields::patch_metadata;
use super::session_fields::{Said, budget, metadata, said, title, vault_ids};
use super::vault_use::check_vaults;
use super::{session_agent, session_for, view};
use crate::allowance::go_on;
use crate::api::error::{ApiError, Result};
use crate::api::extract::{Caller, JsonOf, PathOf};
use crate::api::query::Params;
use crate::app::App;
use crate::auth::Access;
use crate::sessions;

/// `POST sessions/{session}`.
pub async fn update(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    params: Params,
    JsonOf(body): JsonOf<Value>,
) -> Result<Json<Session>> {
    params.end()?;
    let state = session_for(&app, &identity, &path, Access::UpdateSession).await?;
    if state.archived_at.is_some() {
        return Err(ApiError::bad_request(format!("session {} is archived and cannot be changed", state.meta.id)));
    }
    let resource = sessions::resource_of(&app, &state.meta).await?;
    let old = resource.ok_or_else(|| ApiError::not_found(format!("session {} is being deleted", state.meta.id)))?;
    let mut fields = Fields::of("", body)?;
    let mut new = old.clone();
    if let Some(ids) = vault_ids(&mut fields)? {
        let vaults = check_vaults(&app, &identity, &state.meta.namespace, &ids).await?;
        new.spec.vault_refs = vaults.into_iter().map(|vault| LocalRef { name: vault.name }).collect();
    }
    let agent = match fields.optional("agent") {
        None => None,
        Some(update) => session_agent::updated(&state.meta.agent, update)?,
    };
    change(&mut new, fields)?;
    if let Some(agent) = agent {
        change_agent(&app, &state.meta.id, agent).await?;
    }
    if new.spec != old.spec {
        app.quota.check_change(&state)?;
        let event = updated(&old, &new);
        new = app.sessions.replace(&new).await.map_err(|error| ApiError::from(error).of_change())?;
        if let Some(body) = event {
            app.store.append_unfenced(&state.meta.id, vec![NewEvent::new(body)]).await?;
        }
    }
    let state = app.store.state(&state.meta.id).await?;
    go_on(&app, &new, &state).await?;
    view::shown(&app, state, Some(new)).await.map(Json)
}

/// Gives the session another agent, unless it is at work, and has the log say so.
async fn change_agent(app: &App, session: &SessionId, agent: AgentSnapshot) -> Result<()> {
    let shown = serde_json::to_value(SessionAgent::from(&agent))
        .map_err(|error| ApiError::internal(format!("the agent cannot be written: {error}")))?;
    let event = NewEvent::new(EventBody::SessionUpdated { agent: Some(shown), metadata: None, title: None });
    app.store.change_agent(session, agent, event).await.map_err(|error| ApiError::from(error).of_change())?;
    Ok(())
}

/// Makes the changes that need nothing but the request.
fn change(session: &mut AgentSession, mut fields: Fields) -> Result<()> {
    let spec = &mut session.spec;
    match said(&mut fields, "title", title)? {
        Said::Nothing => {}
        Said::Null => spec.title = None,
        Said::Value(title) => spec.title = title,
    }
    patch_metadata(&mut spec.metadata, &metadata(&mut fields)?)?;
    match said(&mut fields, "budget", budget)? {
        Said::Nothing => {}
        Said::Null => spec.budget = None,
        Said::Value(_) if spec.budget.is_none() => {
            let problem = "can be changed or removed, and not added: the session was made without one";
            return Err(fields.wrong("budget", problem).into());
        }
        Said::Value(budget) => spec.budget = budget,
    }
    Ok(fields.end()?)
}

/// What the log says of a change; nothing of what only later turns see.
fn updated(old: &AgentSession, new: &AgentSession) -> Option<EventBody> {
    let title = new.spec.title.clone().filter(|_| new.spec.title != old.spec.title);
    let metadata = (new.spec.metadata != old.spec.metadata && !new.spec.metadata.is_empty()).then(|| {
        let pairs = new.spec.metadata.iter();
        pairs.map(|(key, value)| (key.clone(), Value::String(value.clone()))).collect::<Map<String, Value>>()
    });
    let changed = new.spec.title != old.spec.title || new.spec.metadata != old.spec.metadata;
    changed.then_some(EventBody::SessionUpdated { agent: None, metadata, title })
}

#[cfg(test)]
mod tests {
    use longhand_crds::AgentSession;
    use longhand_protocol::event::EventBody;
    use longhand_protocol::fields::Fields;
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::{change, updated};

    fn session() -> AgentSession {
        serde_json::from_value(json!({
            "metadata": {"name": "one"},
            "spec": {"agentRef": {"name": "helper"}, "title": "old", "metadata": {"k": "v"}},
        }))
        .unwrap()
    }

    fn changed(body: Value) -> Result<AgentSession, String> {
        let mut session = session();
        change(&mut session, Fields::of("", body).unwrap()).map_err(|error| error.to_string())?;
        Ok(session)
    }

    #[rstest]
    #[case(json!({}), None)]
    #[case(json!({"title": "old"}), None)]
    #[case(json!({"title": "new"}), Some(json!({"type": "session.updated", "title": "new"})))]
    #[case(json!({"title": null}), Some(json!({"type": "session.updated"})))]
    #[case(json!({"metadata": {"a": "b"}}), Some(json!({"type": "session.updated", "metadata": {"a": "b", "k": "v"}})))]
    #[case(json!({"metadata": {"k": null}}), Some(json!({"type": "session.updated"})))]
    fn the_log_says_what_changed(#[case] body: Value, #[case] event: Option<Value>) {
        let said: Option<EventBody> = updated(&session(), &changed(body).unwrap());
        assert_eq!(said.map(|body| serde_json::to_value(body).unwrap()), event);
    }

    #[test]
    fn a_budget_is_not_added() {
        let limit =
            |amount: &str| json!({"budget": {"type": "limit", "max_list_cost": {"amount": amount, "currency": "USD"}}});
        assert!(changed(limit("5")).unwrap_err().contains("`budget`"));
        let mut session = session();
        session.spec.budget = serde_json::from_value(json!({"amount": "1", "currency": "USD"})).unwrap();
        change(&mut session, Fields::of("", limit("5")).unwrap()).unwrap();
        assert_eq!(session.spec.budget.as_ref().unwrap().amount, "5");
        change(&mut session, Fields::of("", json!({"budget": null})).unwrap()).unwrap();
        assert_eq!(session.spec.budget, None);
    }

    #[test]
    fn what_cannot_be_changed_is_named() {
        assert!(changed(json!({"environment_id": "e"})).unwrap_err().contains("`environment_id`"));
    }
}
