//! What every store promises, as tests that any store can be put through.

pub(crate) mod calls;
pub(crate) mod caps;
pub(crate) mod claims;
pub(crate) mod exports;
pub(crate) mod forks;
pub(crate) mod inbox;
pub(crate) mod log;
pub(crate) mod queries;
pub(crate) mod races;
pub(crate) mod sessions;
pub(crate) mod tails;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use longhand_protocol::event::{EventBody, NewEvent, Permission, StopReason};
use longhand_protocol::harness::{AgentSnapshot, Model};
use longhand_protocol::{EventId, SessionId};
use longhand_session_log::SessionStore;
use longhand_session_log::caps::Caps;
use longhand_session_log::store::{Claimant, Retention, SessionMeta, Takeover};
use serde_json::json;

/// How many events an inbox of a store under test holds.
pub(crate) const INBOX_LIMIT: usize = 100;
/// Nothing in these tests takes longer, unless it is broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
pub(crate) const TTL: Duration = Duration::from_secs(60);

/// A store under test, empty or shared with tests that use other sessions.
#[async_trait]
pub(crate) trait Fixture: Send + Sync {
    fn store(&self) -> Arc<dyn SessionStore>;
    /// Another replica's store over the same data.
    async fn replica(&self) -> Arc<dyn SessionStore>;
    /// What happens when a harness does not renew its claim.
    async fn expire_claim(&self, id: &SessionId);
    /// A store whose logs are bounded.
    async fn capped(&self, caps: Caps) -> Arc<dyn SessionStore>;
    /// Moves old events of the session, or all, to where they are kept for long, if there is such a place: nobody may
    /// notice.
    async fn move_out(&self, _id: &SessionId, _all: bool) {}
    /// Whether large events count against the bound of one transaction.
    fn bounds_bytes(&self) -> bool {
        true
    }
}

/// One `#[tokio::test]` a promise, each with a fixture of its own.
macro_rules! suite {
    ($fixture:ident) => {
        $crate::conformance::suite!($fixture,
            sessions: [a_session_is_made_once, unknown_sessions_are_not_found, sessions_are_listed_in_order,
                nothing_is_left_of_a_deleted_session, status_and_usage_follow_the_events,
                an_agent_changes_while_its_session_rests],
            inbox: [queued_events_keep_their_order, an_enqueue_may_be_repeated, an_identifier_stands_in_the_log_once,
                an_inbox_is_bounded,
                inputs_are_delivered_once, many_inputs_are_delivered, an_enqueue_is_bounded,
                waiting_ends_with_a_message_from_another_replica, waiting_ends_in_time,
                every_enqueue_rewrites_the_wake_key, an_inbox_says_what_its_work_belongs_to],
            claims: [a_claim_raises_the_epoch, a_living_owner_is_respected, an_expired_claim_is_free,
                a_claim_is_renewed_by_its_owner_only, a_claim_survives_nothing_but_itself],
            log: [records_are_dense_and_chained, a_zombie_changes_nothing, nobody_is_the_brain_of_epoch_0, a_moved_head_is_named,
                an_append_may_be_repeated, a_repetition_is_found_by_its_place, a_fork_has_repeated_nothing, a_different_append_is_not_a_repetition, a_transaction_is_bounded,
                promotion_moves_events_in_the_given_order, a_promotion_may_be_repeated,
                what_is_not_queued_is_not_promoted, idle_needs_the_wake_key_as_it_was,
                idle_gives_the_session_up_once, only_idle_and_delete_clear_the_wake_key, slices_are_what_was_asked_for],
            calls: [a_tool_use_opens_a_call, a_call_goes_to_one_sandbox, a_call_is_taken_back,
                a_call_is_finished_once, a_result_must_find_the_call_as_it_says, a_zombie_dispatches_nothing],
            queries: [slices_from_the_end_and_around, what_is_queued_has_no_position, slices_by_type, slices_by_time,
                an_acknowledged_event_is_in_the_next_slice, an_archived_session_is_over,
                a_session_that_ended_is_archived_without_another_word, a_leap_fences_every_epoch_that_was_given],
            forks: [a_fork_shares_history_and_goes_on, a_fork_is_asked_like_any_session, a_tail_of_a_fork_has_no_gap,
                forks_of_forks, a_history_is_kept_for_its_forks, a_fork_needs_what_it_forks,
                what_runs_is_cut_off_by_a_fork, a_fork_of_what_has_ended_lives,
                a_fork_and_a_deletion_exclude_each_other],
            exports: [an_export_is_the_log_up_to_its_head, an_import_is_the_same_log,
                a_broken_import_leaves_nothing_to_see, a_broken_import_is_taken_away, what_ran_is_closed_by_an_import,
                what_has_ended_stays_ended, a_fork_is_exported_whole],
            caps: [a_full_log_ends_its_turn_and_takes_nothing_new, a_reserve_is_for_what_was_begun, bytes_are_limited_too,
                a_full_log_says_first_what_comes_first, a_log_says_once_that_it_is_nearly_full,
                a_fork_of_a_full_log_has_room, an_import_counts_all_of_its_log],
            tails: [a_tail_follows_the_log, a_tail_ends_with_its_session, tails_have_no_gap_under_load],
            races: [no_wake_up_is_lost, one_of_many_sandboxes_gets_the_call, a_result_and_a_dispatch_exclude_each_other,
                many_writers_leave_no_gap, one_of_many_brains_owns_the_session, a_deletion_is_final]
        );
    };
    ($fixture:ident, $($module:ident: [$($case:ident),+]),+) => {
        $(mod $module {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                let fixture = super::$fixture().await;
                tokio::time::timeout(
                    $crate::conformance::PATIENCE * 4,
                    $crate::conformance::$module::$case(&fixture),
                ).await.expect("the test ends in time");
            })+
        })+
    };
}
pub(crate) use suite;

pub(crate) fn meta(id: &SessionId) -> SessionMeta {
    SessionMeta {
        id: id.clone(),
        namespace: "ns".into(),
        name: "name".into(),
        uid: "uid".into(),
        agent: AgentSnapshot {
            name: "agent".into(),
            version: 1,
            model: Model { id: "model".into(), max_tokens: 10, api_version: "2023-06-01".into(), ..Model::default() },
            ..AgentSnapshot::default()
        },
        sandboxes: vec!["default".into()],
        harness_idle_seconds: 5,
        delivered_inputs: 0,
        created_at: "2026-01-02T03:04:05Z".parse().unwrap(),
        thread_id: None,
        parent: None,
        retention: Retention::default(),
    }
}

/// A new session.
pub(crate) async fn session(store: &dyn SessionStore) -> SessionId {
    let id = SessionId::generate();
    store.create(meta(&id)).await.unwrap();
    id
}

pub(crate) fn message(text: &str) -> NewEvent {
    NewEvent::new(EventBody::UserMessage { content: vec![json!({"type": "text", "text": text})] })
}

pub(crate) fn messages(texts: &[&str]) -> Vec<NewEvent> {
    texts.iter().map(|text| message(text)).collect()
}

pub(crate) fn running() -> NewEvent {
    NewEvent::new(EventBody::SessionStatusRunning {})
}

pub(crate) fn idle_event() -> NewEvent {
    NewEvent::new(EventBody::SessionStatusIdle { stop_reason: StopReason::EndTurn })
}

pub(crate) fn tool_use() -> NewEvent {
    NewEvent::new(EventBody::AgentToolUse {
        name: "bash".into(),
        input: json!({"command": "true"}),
        evaluated_permission: Permission::Allow,
        sandbox: None,
    })
}

pub(crate) fn custom_tool_use() -> NewEvent {
    NewEvent::new(EventBody::AgentCustomToolUse { name: "look_up".into(), input: json!({}) })
}

pub(crate) fn tool_result(call: &EventId, text: &str) -> NewEvent {
    NewEvent::new(EventBody::AgentToolResult {
        tool_use_id: call.clone(),
        content: Some(vec![json!({"type": "text", "text": text})]),
        is_error: Some(false),
    })
}

pub(crate) fn pod(name: &str) -> Claimant {
    Claimant { pod_uid: format!("uid-{name}"), pod_name: name.into() }
}

/// Claims in any case; the epoch and the head.
pub(crate) async fn claim(store: &dyn SessionStore, id: &SessionId, name: &str) -> (u64, u64) {
    let (epoch, record) = store.claim(id, &pod(name), Takeover::Always, TTL).await.unwrap();
    (epoch, record.seq)
}

pub(crate) async fn kinds(store: &dyn SessionStore, id: &SessionId) -> Vec<String> {
    let records = store.read(id, 0, 1_000).await.unwrap().records;
    records.iter().map(|record| record.event.body.kind().to_owned()).collect()
}

/// Asserts the error's variant.
macro_rules! assert_err {
    ($result:expr, $pattern:pat $(if $guard:expr)?) => {
        match $result {
            Err($pattern) $(if $guard)? => {}
            other => panic!("expected {}, got {other:?}", stringify!($pattern)),
        }
    };
}
pub(crate) use assert_err;
