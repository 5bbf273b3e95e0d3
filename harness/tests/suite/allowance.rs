//! What a session has used, what it costs, and what is done when that is all that it may use.

use longhand_harness::core::{Effect, Input, Next, Transcript};
use longhand_harness::model::Reply;
use longhand_protocol::event::{Event, EventBody, StopReason};
use longhand_protocol::harness::{FallbackModel, HarnessSession, Limits, Prices};
use longhand_protocol::wire::Money;
use longhand_protocol::{EventId, Record};
use rstest::rstest;
use serde_json::json;

use crate::support::brain::{Brain, START, body, idle};
use crate::support::session;

fn most(limits: Limits) -> HarnessSession {
    HarnessSession { limits, ..session() }
}

/// Two turns, of which the second waits for the model: 100 tokens, a tool call and a few seconds are used.
fn used(session: HarnessSession) -> Brain {
    let mut brain = Brain::new(session);
    brain.user("one");
    brain.push(EventBody::SessionStatusRunning {});
    brain.answer(60, "tool_use", Some("done"));
    brain.answer(40, "end_turn", None);
    brain.push(EventBody::SessionStatusIdle { stop_reason: StopReason::EndTurn });
    brain.user("two");
    brain.push(EventBody::SessionStatusRunning {});
    brain
}

/// The types of the events by which a turn ends, which are in the log then.
fn ended(brain: &mut Brain, next: Next) -> String {
    let Next::Do(Effect::Idle { events, .. }) = next else { panic!("{next:?}") };
    let kinds = events.iter().map(|event| event.body.kind()).collect::<Vec<_>>().join(" ");
    events.into_iter().for_each(|event| drop(brain.push(event.body)));
    kinds
}

#[rstest]
#[case::none(Limits::default(), false)]
#[case::turns(Limits { turns: Some(1), ..Limits::default() }, true)]
#[case::turns_left(Limits { turns: Some(2), ..Limits::default() }, false)]
#[case::calls(Limits { tool_calls: Some(1), ..Limits::default() }, true)]
#[case::calls_left(Limits { tool_calls: Some(2), ..Limits::default() }, false)]
#[case::tokens(Limits { tokens: Some(100), ..Limits::default() }, true)]
#[case::tokens_left(Limits { tokens: Some(101), ..Limits::default() }, false)]
#[case::time(Limits { active_seconds: Some(9), ..Limits::default() }, true)]
#[case::time_left(Limits { active_seconds: Some(10), ..Limits::default() }, false)]
fn at_a_limit_the_model_is_not_asked(#[case] limits: Limits, #[case] reached: bool) {
    let mut brain = used(most(limits));
    let next = brain.wake();
    if reached {
        assert_eq!(idle(&next).0, StopReason::BudgetReached);
        assert_eq!(ended(&mut brain, next), "x.session.limit_reached session.usage session.status_idle");
        assert!(matches!(&brain.log[brain.log.len() - 3].event.body,
            EventBody::SessionLimitReached { limits: reached, budget: None } if *reached == limits));
        brain.push(EventBody::SessionLimitRaised {});
        brain.push(EventBody::SessionStatusRunning {});
        brain.session.limits = Limits::default();
        let raised = brain.wake();
        assert_eq!(brain.appended(raised).0, START, "it goes on when the limit is raised");
    } else {
        assert_eq!(brain.appended(next).0, START);
    }
}

fn priced(budget: Option<&str>, currency: &str) -> HarnessSession {
    let mut session = session();
    let price = |price: &str| price.to_owned();
    session.agent.model.prices = Some(Prices {
        input: price("1000000"),
        output: price("0"),
        cache_read: price("0"),
        cache_write: price("0"),
        currency: "USD".to_owned(),
    });
    session.budget = budget.map(|amount| Money { amount: amount.to_owned(), currency: currency.to_owned() });
    session
}

#[rstest]
#[case::none(None, "USD", false)]
#[case::left(Some("100.5"), "USD", false)]
#[case::spent(Some("100"), "USD", true)]
#[case::another_currency(Some("1"), "EUR", false)]
fn a_budget_is_what_may_be_spent(#[case] budget: Option<&str>, #[case] currency: &str, #[case] reached: bool) {
    let mut brain = used(priced(budget, currency));
    let next = brain.wake();
    if reached {
        let (reason, cost) = idle(&next);
        assert_eq!(reason, StopReason::BudgetReached);
        assert_eq!(cost, Some(Money { amount: "100".to_owned(), currency: "USD".to_owned() }));
    } else {
        assert_eq!(brain.appended(next).0, START);
    }
}

#[test]
fn what_was_paid_keeps_the_prices_of_its_time() {
    let mut brain = Brain::new(priced(None, "USD"));
    brain.user("one");
    brain.push(EventBody::SessionStatusRunning {});
    brain.answer(100, "end_turn", None);
    let next = brain.wake();
    let Next::Do(Effect::Idle { events, .. }) = &next else { panic!("{next:?}") };
    events.iter().for_each(|event| drop(brain.push(event.body.clone())));
    brain.user("two");
    brain.push(EventBody::SessionStatusRunning {});
    brain.answer(7, "end_turn", None);
    brain.session.agent.model.prices.as_mut().unwrap().input = "2000000".to_owned();
    let next = brain.wake();
    assert_eq!(idle(&next).1.unwrap().amount, "114");
}

#[test]
fn calls_beyond_the_limit_are_not_made_and_the_model_is_told() {
    let mut brain = Brain::new(most(Limits { tool_calls: Some(1), ..Limits::default() }));
    brain.user("go");
    brain.push(EventBody::SessionStatusRunning {});
    let next = brain.wake();
    brain.appended(next);
    let call = |id: &str| json!({"type": "tool_use", "id": id, "name": "bash", "input": {}});
    let content = vec![call("a"), call("b"), call("c")];
    let reply = Reply { content, stop_reason: Some("tool_use".to_owned()), ..Reply::default() };
    let next = brain.input(Input::Model(Ok(reply)));
    let (kinds, next) = brain.appended(next);
    assert_eq!(kinds, "agent.tool_use x.model_response span.model_request_end");
    let Next::Do(Effect::Execute { calls }) = &next else { panic!("{next:?}") };
    let result = crate::support::service::result(&calls[0], "done").body;
    brain.push(result);
    let next = brain.wake();
    assert_eq!(idle(&next).0, StopReason::BudgetReached);
    brain.session.limits.tool_calls = Some(2);
    let next = brain.wake();
    let (_, next) = brain.appended(next);
    let results = body(&next).0["messages"][2]["content"].clone();
    assert_eq!(results[0]["content"][0]["text"], "done");
    for beyond in [&results[1], &results[2]] {
        assert!(beyond["content"][0]["text"].as_str().unwrap().contains("as many tool calls as it may"), "{beyond}");
    }
}

#[test]
fn a_turn_that_a_limit_has_stopped_is_the_same_when_it_goes_on() {
    let one_more = |turns| most(Limits { turns: Some(turns), ..Limits::default() });
    let mut brain = used(one_more(1));
    for _ in 0..3 {
        let next = brain.wake();
        assert_eq!(idle(&next).0, StopReason::BudgetReached);
        ended(&mut brain, next);
        brain.push(EventBody::SessionLimitRaised {});
        brain.push(EventBody::SessionStatusRunning {});
    }
    brain.session = one_more(2);
    let next = brain.wake();
    assert_eq!(brain.appended(next).0, START, "one more turn is the one that waits");
    brain.answer(1, "end_turn", None);
    brain.push(EventBody::SessionStatusIdle { stop_reason: StopReason::EndTurn });
    brain.user("three");
    brain.push(EventBody::SessionStatusRunning {});
    assert_eq!(idle(&brain.wake()).0, StopReason::BudgetReached);
}

/// Two models, of which a token of the first costs 1 and one of the second, unless it has no prices, 10.
fn with_fallback(budget: Option<&str>, prices: bool) -> HarnessSession {
    let mut session = priced(budget, "USD");
    let first = session.agent.model.prices.clone().unwrap();
    let prices = prices.then(|| Prices { input: "10000000".to_owned(), ..first });
    session.agent.model.fallbacks = vec![FallbackModel { id: "second".to_owned(), prices, ..FallbackModel::default() }];
    session
}

#[rstest]
#[case::of_its_own(true, "100", "170")]
#[case::as_the_first(false, "100", "107")]
fn a_token_costs_what_the_model_that_answered_costs(#[case] prices: bool, #[case] before: &str, #[case] after: &str) {
    let mut brain = used(with_fallback(None, prices));
    let cost = |brain: &Brain| brain.whole().used().list_cost(&brain.session).unwrap().amount;
    assert_eq!(cost(&brain), before);
    brain.push(EventBody::ModelFallback { model: "second".to_owned(), position: 1 });
    brain.answer(7, "end_turn", None);
    assert_eq!(cost(&brain), after);
    let next = brain.wake();
    assert_eq!(idle(&next).1.unwrap().amount, after);
    ended(&mut brain, next);
    assert_eq!(cost(&brain), after, "and keeps it when the turn is over");
    brain.user("three");
    brain.push(EventBody::SessionStatusRunning {});
    brain.answer(1, "end_turn", None);
    let third = format!("{}", after.parse::<u32>().unwrap() + 1);
    assert_eq!(cost(&brain), third, "the next turn is the first model's");
}

#[test]
fn a_budget_is_used_up_by_a_dear_fallback() {
    let mut brain = used(with_fallback(Some("165"), true));
    brain.push(EventBody::ModelFallback { model: "second".to_owned(), position: 1 });
    brain.answer(7, "tool_use", Some("done"));
    assert_eq!(idle(&brain.wake()).0, StopReason::BudgetReached);
    brain.session.budget = Some(Money { amount: "171".to_owned(), currency: "USD".to_owned() });
    let next = brain.wake();
    assert_eq!(brain.appended(next).0, START);
}

#[test]
fn what_has_no_price_yet_is_in_a_checkpoint() {
    let mut brain = used(with_fallback(None, true));
    brain.push(EventBody::ModelFallback { model: "second".to_owned(), position: 1 });
    brain.answer(7, "tool_use", Some("done"));
    let whole = brain.whole();
    let state = serde_json::to_value(&whole).unwrap();
    let event =
        Event { id: EventId::generate(), body: EventBody::ContextCheckpoint { version: 1, state }, processed_at: None };
    let record = Record { seq: whole.head() + 1, epoch: 1, prev_hash: String::new(), event };
    let restored = Transcript::restored(&record).unwrap();
    assert_eq!(restored.used(), whole.used());
}
