//! What a session may use, and sessions that have used it all and go on when they may use more.

use std::cmp::Ordering;

use longhand_crds::AgentSession;
use longhand_crds::agent_session::AgentSessionSpec;
use longhand_protocol::event::{EventBody, NewEvent, StopReason};
use longhand_protocol::harness::Limits;
use longhand_protocol::wire::Money;
use longhand_protocol::{EventId, Record, SessionId};
use longhand_session_log::StoreError;
use longhand_session_log::store::{Query, SessionState};
use sha2::{Digest as _, Sha256};

use crate::api::error::Result;
use crate::app::App;

/// `session.usage` is between them.
const APART: u64 = 2;

/// What a session may use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Allowance {
    pub(crate) limits: Limits,
    pub(crate) budget: Option<Money>,
}

impl Allowance {
    pub(crate) fn of(spec: &AgentSessionSpec) -> Self {
        Self {
            limits: spec.limits.as_ref().map(Into::into).unwrap_or_default(),
            budget: spec
                .budget
                .as_ref()
                .map(|budget| Money { amount: budget.amount.clone(), currency: budget.currency.clone() }),
        }
    }

    /// Whether this permits anything that `before` did not.
    fn exceeds(&self, before: &Self) -> bool {
        let fields = |limits: Limits| {
            let Limits { turns, tool_calls, tokens, active_seconds } = limits;
            [turns, tool_calls, tokens, active_seconds]
        };
        let mut pairs = fields(before.limits).into_iter().zip(fields(self.limits));
        let more = |old: u64, new: Option<u64>| new.is_none_or(|new| new > old);
        pairs.any(|(old, new)| old.is_some_and(|old| more(old, new)))
            || before.budget.as_ref().is_some_and(|old| self.budget.as_ref().is_none_or(|new| is_more(new, old)))
    }
}

/// Amounts are decimal numbers, as the kind asks; those of two currencies are not compared.
fn is_more(new: &Money, old: &Money) -> bool {
    let parts = |amount: &str| {
        let (whole, fraction) = amount.split_once('.').unwrap_or((amount, ""));
        (whole.trim_start_matches('0').to_owned(), fraction.trim_end_matches('0').to_owned())
    };
    let ((new_whole, new_fraction), (old_whole, old_fraction)) = (parts(&new.amount), parts(&old.amount));
    let whole = new_whole.len().cmp(&old_whole.len()).then_with(|| new_whole.cmp(&old_whole));
    new.currency != old.currency || whole.then_with(|| new_fraction.cmp(&old_fraction)) == Ordering::Greater
}

/// Wakes a session whose last turn has ended at a limit, if it may use more by now: once for each such end, however often this
/// is called. Says whether it did.
///
/// # Errors
/// Those of the store.
pub(crate) async fn go_on(app: &App, resource: &AgentSession, state: &SessionState) -> Result<bool> {
    if state.wake_revision.is_some() || state.archived_at.is_some() {
        return Ok(false);
    }
    let Some((event, before)) = reached(app, state).await? else { return Ok(false) };
    if !Allowance::of(&resource.spec).exceeds(&before) {
        return Ok(false);
    }
    let id = &state.meta.id;
    let digest = Sha256::digest(format!("limit raised/{id}/{event}").as_bytes());
    let raised = NewEvent { id: EventId::from_digest(&digest.into()), body: EventBody::SessionLimitRaised {} };
    match app.store.enqueue(id, vec![raised]).await {
        Ok(_) => {
            tracing::info!(session = %id, "a limit was raised: the session goes on");
            Ok(true)
        }
        // It holds as much as it may, so that it cannot go on.
        Err(StoreError::LimitReached { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// What the session might use when that ended its last turn, and the event that says so. What a fork shares with another
/// session did not end a turn of its own.
async fn reached(app: &App, state: &SessionState) -> Result<Option<(EventId, Allowance)>> {
    let id = &state.meta.id;
    let shared = state.meta.parent.as_ref().map_or(0, |parent| parent.seq);
    let Some(idle) = last(app, id, "session.status_idle", None).await? else { return Ok(None) };
    let stopped = matches!(&idle.event.body, EventBody::SessionStatusIdle { stop_reason: StopReason::BudgetReached });
    if !stopped || idle.seq <= shared {
        return Ok(None);
    }
    let said = last(app, id, "x.session.limit_reached", Some(idle.seq)).await?;
    Ok(said.filter(|said| idle.seq - said.seq <= APART).and_then(|said| match said.event.body {
        EventBody::SessionLimitReached { limits, budget } => Some((said.event.id, Allowance { limits, budget })),
        _ => None,
    }))
}

async fn last(app: &App, id: &SessionId, kind: &str, before: Option<u64>) -> Result<Option<Record>> {
    let query = Query { types: vec![kind.to_owned()], before, ..Query::last(1) };
    Ok(app.store.slice(id, &query).await?.records.into_iter().next())
}

#[cfg(test)]
mod tests {
    use longhand_protocol::harness::Limits;
    use longhand_protocol::wire::Money;
    use rstest::rstest;

    use super::Allowance;

    fn dollars(amount: &str) -> Allowance {
        let budget = Some(Money { amount: amount.to_owned(), currency: "USD".to_owned() });
        Allowance { budget, ..Allowance::default() }
    }

    fn turns(turns: Option<u64>, tokens: Option<u64>) -> Allowance {
        Allowance { limits: Limits { turns, tokens, ..Limits::default() }, budget: None }
    }

    #[rstest]
    #[case::same(turns(Some(1), Some(9)), turns(Some(1), Some(9)), false)]
    #[case::raised(turns(Some(1), Some(9)), turns(Some(2), Some(9)), true)]
    #[case::lowered(turns(Some(2), Some(9)), turns(Some(1), Some(9)), false)]
    #[case::one_of_two(turns(Some(2), Some(9)), turns(Some(1), Some(10)), true)]
    #[case::removed(turns(Some(1), Some(9)), turns(None, Some(9)), true)]
    #[case::added(turns(Some(1), None), turns(Some(1), Some(9)), false)]
    #[case::same_amount(dollars("10"), dollars("010.00"), false)]
    #[case::longer(dollars("9"), dollars("10"), true)]
    #[case::shorter(dollars("10"), dollars("9.9"), false)]
    #[case::a_little(dollars("1.5"), dollars("1.51"), true)]
    #[case::a_little_less(dollars("1.51"), dollars("1.5"), false)]
    #[case::no_budget_any_more(dollars("1"), Allowance::default(), true)]
    #[case::a_first_budget(Allowance::default(), dollars("1"), false)]
    fn more_is_permitted(#[case] before: Allowance, #[case] after: Allowance, #[case] more: bool) {
        assert_eq!(after.exceeds(&before), more);
    }
}
