//! Each change relies on exactly what its guards name, and a refusal says the first thing that is wrong.

use jiff::Timestamp;
use longhand_protocol::event::{EventBody, NewEvent, Permission};
use longhand_protocol::harness::{AgentSnapshot, Model};
use longhand_protocol::internal::Wake;
use longhand_protocol::{EventId, SessionId};
use rstest::rstest;

use super::{Append, Author, Claim, Create, Deliver, Dispatch, Effect, Enqueue, Place, Plan, StoredHead, Undispatch};
use crate::etcd::keys::Keys;
use crate::etcd::recent::Seen;
use crate::etcd::view::{Kv, Look, View};
use crate::etcd::write::{Change, Guard, Write};
use crate::limits;
use crate::store::{
    CallState, Claimant, FinishFrom, Incarnation, Owner, Result, Retention, SessionMeta, StoreError, Takeover,
};

const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// What is stored, and at which revision it was.
#[derive(Clone)]
struct World {
    keys: Keys,
    id: SessionId,
    stored: Vec<Kv>,
}

fn event(id: &str, body: EventBody) -> NewEvent {
    NewEvent { id: id.parse().unwrap(), body }
}

fn running(id: &str) -> NewEvent {
    event(id, EventBody::SessionStatusRunning {})
}

fn call(id: &str) -> NewEvent {
    let input = serde_json::Value::Null;
    let body =
        EventBody::AgentToolUse { name: "bash".into(), input, evaluated_permission: Permission::Allow, sandbox: None };
    event(id, body)
}

fn meta(id: &SessionId) -> SessionMeta {
    let model = Model { id: "m".into(), max_tokens: 1, api_version: "v".into(), ..Model::default() };
    SessionMeta {
        id: id.clone(),
        namespace: "n".into(),
        name: "a".into(),
        uid: "u".into(),
        agent: AgentSnapshot { name: "a".into(), version: 1, model, ..AgentSnapshot::default() },
        sandboxes: vec![],
        harness_idle_seconds: 1,
        delivered_inputs: 0,
        created_at: Timestamp::UNIX_EPOCH,
        thread_id: None,
        parent: None,
        retention: Retention::default(),
    }
}

fn sandbox() -> Incarnation {
    Incarnation { sandbox: "box".into(), pod_uid: "pod".into(), attempt: "first".into() }
}

impl World {
    fn empty() -> Self {
        Self { keys: Keys::new("/p"), id: "sesn_1".parse().unwrap(), stored: vec![] }
    }

    /// Epoch 1, two records of which the second opens `sevt_call`, and `sevt_queued` in the inbox.
    fn new() -> Self {
        let mut world = Self::empty();
        let (place, meta) = (world.place(), meta(&world.id));
        let create = Create { place, meta: &meta };
        let write = written(create.plan(&View::default()).unwrap());
        world.apply(&write);
        let woken = "sevt_woken".parse().unwrap();
        let claimant = Claimant { pod_uid: "pod".into(), pod_name: "pod".into() };
        let claim =
            Claim { place: world.place(), claimant: &claimant, takeover: Takeover::IfFree, lease: 7, woken: &woken };
        let write = written(claim.plan(&world.view(&claim.looks()), Timestamp::UNIX_EPOCH).unwrap());
        world.apply(&write);
        let events = [call("sevt_call")];
        let write = world.append(&[], &events, Effect::Nothing).unwrap();
        world.apply(&write);
        let events = [event("sevt_queued", EventBody::UserInterrupt { session_thread_id: None })];
        let write = world.enqueue(&events).unwrap();
        world.apply(&write);
        world
    }

    fn place(&self) -> Place<'_> {
        Place { keys: &self.keys, id: &self.id, trace: TRACE.parse().ok() }
    }

    fn view(&self, looks: &[Look]) -> View {
        let mut view = View::default();
        for look in looks {
            let found: Vec<Kv> = match look {
                Look::Key(key) => self.stored.iter().filter(|kv| kv.key == *key).cloned().collect(),
                Look::Prefix(prefix) | Look::Count(prefix) => {
                    self.stored.iter().filter(|kv| kv.key.starts_with(prefix)).cloned().collect()
                }
                Look::Range(..) | Look::Last(..) => unreachable!("no plan looks at a range"),
            };
            let count = found.len();
            view.answer(look, if matches!(look, Look::Count(_)) { vec![] } else { found }, count);
        }
        view
    }

    fn apply(&mut self, write: &Write) {
        let revision = self.stored.iter().map(|kv| kv.mod_revision).max().unwrap_or(0) + 1;
        for change in &write.changes {
            let (key, value, lease) = match change {
                Change::Delete(key) => {
                    self.stored.retain(|kv| kv.key != *key);
                    continue;
                }
                Change::DeleteRange(from, to) => {
                    self.stored.retain(|kv| kv.key < *from || kv.key >= *to);
                    continue;
                }
                Change::Put(key, value) => (key, value, 0),
                Change::PutLeased(key, value, lease) => (key, value, *lease),
            };
            let made = self.stored.iter().find(|kv| kv.key == *key).map_or(revision, |kv| kv.create_revision);
            self.stored.retain(|kv| kv.key != *key);
            let (key, value) = (key.clone(), value.clone());
            self.stored.push(Kv { key, value, create_revision: made, mod_revision: revision, lease });
        }
    }

    fn kv(&self, key: &str) -> &Kv {
        self.stored.iter().find(|kv| kv.key == key).unwrap()
    }

    fn head(&self) -> Guard {
        self.holds(&self.keys.head(&self.id))
    }

    fn holds(&self, key: &str) -> Guard {
        Guard::Holds(key.to_owned(), self.kv(key).value.clone())
    }

    fn unchanged(&self, key: &str) -> Guard {
        Guard::Unchanged(key.to_owned(), self.kv(key).mod_revision)
    }

    fn epoch(&self) -> Guard {
        Guard::Holds(self.keys.epoch(&self.id), b"1".to_vec())
    }

    fn new_event(&self, event: &str) -> Guard {
        Guard::Absent(self.keys.idem(&self.id, &event.parse().unwrap()))
    }

    fn wake_revision(&self) -> i64 {
        self.kv(&self.keys.wake(&self.id)).mod_revision
    }

    fn append(&self, promoted: &[EventId], events: &[NewEvent], effect: Effect<'_>) -> Result<Write> {
        let head = self.place().head(&self.view(&self.place().head_looks())).unwrap().seq;
        self.append_as(Author::Brain { epoch: 1, expected_head: head }, promoted, events, effect)
    }

    fn append_as(
        &self,
        author: Author,
        promoted: &[EventId],
        events: &[NewEvent],
        effect: Effect<'_>,
    ) -> Result<Write> {
        let append = Append { place: self.place(), author, promoted, events, effect };
        append.plan(&self.view(&append.looks()), Timestamp::UNIX_EPOCH).map(written)
    }

    fn enqueue(&self, events: &[NewEvent]) -> Result<Write> {
        let enqueue = Enqueue { place: self.place(), events, limit: 2 };
        enqueue.plan(&self.view(&enqueue.looks())).map(written)
    }
}

fn written<T: std::fmt::Debug>(plan: Plan<T>) -> Write {
    match plan {
        Plan::Write(write, _) => write,
        other => panic!("nothing is written: {other:?}"),
    }
}

#[test]
fn a_session_is_made_where_there_is_none() {
    let world = World::empty();
    let meta = meta(&world.id);
    let create = Create { place: world.place(), meta: &meta };
    let write = written(create.plan(&View::default()).unwrap());
    let keys = &world.keys;
    let absent = [keys.meta(&world.id), keys.deleting(&world.id), keys.importing(&world.id)].map(Guard::Absent);
    assert_eq!(write.guards, absent);
}

#[test]
fn an_append_relies_on_the_head_and_on_new_identifiers_that_are_remembered() {
    let world = World::new();
    let write = world.append(&[], &[running("sevt_1"), call("sevt_2")], Effect::Nothing).unwrap();
    assert_eq!(write.guards, [world.head(), world.new_event("sevt_2")]);
    let (keys, id) = (&world.keys, &world.id);
    let put = |write: &Write| -> Vec<String> { write.keys().skip(write.guards.len()).map(str::to_owned).collect() };
    let remembered = keys.idem(id, &"sevt_2".parse().unwrap());
    let opened = keys.call(id, &"sevt_2".parse().unwrap());
    assert_eq!(put(&write), [keys.log(id, 3), keys.log(id, 4), remembered, opened, keys.summary(id), keys.head(id)]);
    let message = event("sevt_1", EventBody::AgentMessage { content: vec![] });
    let write = world.append(&[], &[message], Effect::Nothing).unwrap();
    assert_eq!(
        (write.guards.as_slice(), put(&write)),
        ([world.head()].as_slice(), vec![keys.log(id, 3), keys.head(id)])
    );
    let write = world.append_as(Author::Service, &[], &[running("sevt_1")], Effect::Nothing).unwrap();
    assert_eq!(write.guards, [world.head(), world.new_event("sevt_1")]);
}

#[test]
fn a_promotion_relies_on_the_queued_event_too() {
    let world = World::new();
    let queued: EventId = "sevt_queued".parse().unwrap();
    let write = world.append(std::slice::from_ref(&queued), &[running("sevt_1")], Effect::Nothing).unwrap();
    let inbox = world.keys.inbox(&world.id, &queued);
    assert_eq!(write.guards, [world.head(), Guard::Present(inbox.clone())]);
    assert!(write.changes.contains(&Change::Delete(inbox)));
    let remembered = world.keys.idem(&world.id, &queued);
    assert!(write.changes.contains(&Change::Put(remembered, b"3".to_vec())), "its client may ask again");
}

#[test]
fn idle_relies_on_the_wake_key_and_an_empty_inbox() {
    let mut world = World::new();
    let write = world.append(&["sevt_queued".parse().unwrap()], &[], Effect::Nothing).unwrap();
    world.apply(&write);
    let effect = Effect::Idle { wake_revision: world.wake_revision() };
    let write = world.append(&[], &[running("sevt_1")], effect).unwrap();
    let wake = world.keys.wake(&world.id);
    let empty = Guard::NoneUnder(world.keys.inboxes(&world.id));
    assert_eq!(write.guards, [world.head(), world.unchanged(&wake), empty]);
    for gone in [wake, world.keys.owner(&world.id)] {
        assert!(write.changes.contains(&Change::Delete(gone)));
    }
}

#[test]
fn a_result_relies_on_the_call() {
    let world = World::new();
    let call: EventId = "sevt_call".parse().unwrap();
    let effect = Effect::Finish { call: &call, from: &FinishFrom::Open };
    let write = world.append_as(Author::Service, &[], &[running("sevt_1")], effect).unwrap();
    let open = world.keys.call(&world.id, &call);
    assert_eq!(write.guards, [world.head(), world.new_event("sevt_1"), world.holds(&open)]);
    let key = world.keys.wake(&world.id);
    let wake = write.changes.iter().find_map(|change| match change {
        Change::Put(put, value) if *put == key => Some(serde_json::from_slice::<Wake>(value).unwrap()),
        _ => None,
    });
    let (namespace, name, uid) = ("n".into(), "a".into(), "u".into());
    assert_eq!(wake, Some(Wake { namespace, name, uid, traceparent: TRACE.parse().ok() }));
    assert!(write.changes.contains(&Change::Put(world.keys.done(&world.id, &call), b"3".to_vec())));
}

#[test]
fn a_claim_relies_on_the_head() {
    let world = World::new();
    let (claimant, woken) = (Claimant { pod_uid: "two".into(), pod_name: "two".into() }, "sevt_w".parse().unwrap());
    let claim = |takeover| Claim { place: world.place(), claimant: &claimant, takeover, lease: 9, woken: &woken };
    let view = world.view(&claim(Takeover::Always).looks());
    let write = written(claim(Takeover::Always).plan(&view, Timestamp::UNIX_EPOCH).unwrap());
    assert_eq!(write.guards, [world.head()]);
    let owner = write.changes.iter().find_map(|change| match change {
        Change::PutLeased(_, value, 9) => Some(serde_json::from_slice::<Owner>(value).unwrap()),
        _ => None,
    });
    assert_eq!(owner, Some(Owner { claimant: claimant.clone(), epoch: 2 }));
    let refused = claim(Takeover::IfFree).plan(&view, Timestamp::UNIX_EPOCH);
    assert!(matches!(refused, Err(StoreError::Owned { pod_uid }) if pod_uid == "pod"));
}

#[test]
fn a_dispatch_relies_on_the_epoch_and_the_call() {
    let mut world = World::new();
    let (call, to) = ("sevt_call".parse().unwrap(), sandbox());
    let (live, open) = (Guard::Present(world.keys.head(&world.id)), world.keys.call(&world.id, &call));
    let dispatch = Dispatch { place: world.place(), epoch: 1, call: &call, to: &to };
    let write = written(dispatch.plan(&world.view(&dispatch.looks())).unwrap());
    assert_eq!(write.guards, [live.clone(), world.holds(&open), world.epoch()]);
    // What is assumed of a call that nobody has begun gives the same.
    assert_eq!(written(dispatch.plan(&dispatch.assume().unwrap()).unwrap()), write);
    assert!(Dispatch { epoch: 0, ..dispatch }.assume().is_none());
    world.apply(&write);
    let undispatch = Undispatch { place: world.place(), call: &call, from: &to };
    let write = written(undispatch.plan(&world.view(&undispatch.looks())).unwrap());
    assert_eq!(write.guards, [live, world.holds(&open)]);
}

#[test]
fn an_enqueue_relies_on_a_live_session_and_new_identifiers() {
    let world = World::new();
    let (keys, id) = (&world.keys, &world.id);
    let write = world.enqueue(&[running("sevt_1")]).unwrap();
    let guards = [
        Guard::Present(keys.meta(id)),
        Guard::Absent(keys.ended(id)),
        Guard::Absent(keys.inbox(id, &"sevt_1".parse().unwrap())),
        world.new_event("sevt_1"),
    ];
    assert_eq!(write.guards, guards);
    let events = [running("sevt_1")];
    let deliver = Deliver { place: world.place(), from: 0, events: &events, limit: 2 };
    let write = written(deliver.plan(&world.view(&deliver.looks())).unwrap());
    assert_eq!(write.guards[0], world.unchanged(&keys.meta(id)));
    assert_eq!(write.guards[1..], guards[1..]);
}

#[rstest]
#[case::one(vec![running("sevt_1")], 1)]
#[case::many(vec![running("sevt_1"); 95], 60)]
#[case::large(vec![large(800_000), large(800_000)], 1)]
#[case::too_large(vec![large(1_600_000)], 1)]
#[case::none(vec![], 0)]
fn inputs_are_split(#[case] events: Vec<NewEvent>, #[case] fitting: usize) {
    assert_eq!(Deliver::fitting(&events).unwrap(), fitting);
}

fn large(bytes: usize) -> NewEvent {
    event("sevt_large", EventBody::UserMessage { content: vec!["x".repeat(bytes).into()] })
}

/// As many operations as etcd takes, whatever the mixture of events.
#[rstest]
#[case(0, 60, 0)]
#[case(0, 0, 40)]
#[case(40, 0, 0)]
#[case(10, 15, 20)]
fn the_largest_transaction_is_one_that_etcd_takes(#[case] promoted: usize, #[case] plain: usize, #[case] calls: usize) {
    let mut world = World::new();
    let queued: Vec<NewEvent> = (0..promoted).map(|number| running(&format!("sevt_q{number}"))).collect();
    for event in &queued {
        let enqueue = Enqueue { place: world.place(), events: std::slice::from_ref(event), limit: 1_000 };
        let write = written(enqueue.plan(&world.view(&enqueue.looks())).unwrap());
        world.apply(&write);
    }
    let promoted: Vec<EventId> = queued.into_iter().map(|event| event.id).collect();
    let plain = (0..plain).map(|number| running(&format!("sevt_p{number}")));
    let events: Vec<NewEvent> = plain.chain((0..calls).map(|number| call(&format!("sevt_c{number}")))).collect();
    limits::check_append(&promoted, &events).unwrap();
    let finished = "sevt_call".parse().unwrap();
    let from = FinishFrom::Open;
    let author = Author::Brain { epoch: 1, expected_head: 2 };
    let append = Append {
        place: world.place(),
        author,
        promoted: &promoted,
        events: &events,
        effect: Effect::Finish { call: &finished, from: &from },
    };
    let looks = append.looks();
    let write = written(append.plan(&world.view(&looks), Timestamp::UNIX_EPOCH).unwrap());
    for operations in [looks.len(), write.guards.len(), write.changes.len()] {
        assert!(operations <= 128, "{operations}");
    }
}

/// Of several reasons the first is given.
#[rstest]
#[case::fenced(9, 9, &["sevt_none"], &["sevt_call"], -1, "epoch 9 is fenced off")]
#[case::duplicate(1, 9, &["sevt_none"], &["sevt_call"], -1, "event sevt_call is in the log already")]
#[case::known_by_the_head_alone(1, 9, &["sevt_none"], &["sevt_woken"], -1, "the log's head is 2")]
#[case::head(1, 9, &["sevt_none"], &["sevt_1"], -1, "the log's head is 2")]
#[case::queued(1, 2, &["sevt_none"], &["sevt_1"], -1, "event sevt_none is not queued")]
#[case::wake(1, 2, &["sevt_queued"], &["sevt_1"], -1, "the session's wake key has changed")]
fn the_first_reason_is_given(
    #[case] epoch: u64,
    #[case] expected_head: u64,
    #[case] promoted: &[&str],
    #[case] events: &[&str],
    #[case] wake_revision: i64,
    #[case] reason: &str,
) {
    let world = World::new();
    let promoted: Vec<EventId> = promoted.iter().map(|id| id.parse().unwrap()).collect();
    let body = |id: &str| if id == "sevt_call" { call(id) } else { running(id) };
    let events: Vec<NewEvent> = events.iter().map(|id| body(id)).collect();
    let author = Author::Brain { epoch, expected_head };
    let error = world.append_as(author, &promoted, &events, Effect::Idle { wake_revision }).unwrap_err();
    assert!(error.to_string().contains(reason), "{error}");
}

#[test]
fn a_repeated_append_reads_its_records_and_gives_them() {
    let world = World::new();
    let events = [call("sevt_call")];
    let (place, author) = (world.place(), Author::Brain { epoch: 1, expected_head: 1 });
    let append = Append { place, author, promoted: &[], events: &events, effect: Effect::Nothing };
    let mut view = world.view(&append.looks());
    let Plan::Read(looks) = append.plan(&view, Timestamp::UNIX_EPOCH).unwrap() else { panic!("it reads nothing") };
    assert_eq!(looks, [Look::Key(world.keys.log(&world.id, 2))]);
    view.absorb(world.view(&looks));
    let Plan::Done(extended) = append.plan(&view, Timestamp::UNIX_EPOCH).unwrap() else { panic!("it is not found") };
    assert_eq!((extended.appended.head, extended.appended.records.len()), (2, 1));

    let mut torn = world.view(&append.looks());
    torn.answer(&looks[0], vec![], 0);
    let error = append.plan(&torn, Timestamp::UNIX_EPOCH).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { key, .. } if key == world.keys.log(&world.id, 2)));
}

#[test]
fn what_is_assumed_is_what_an_up_to_date_brain_finds() {
    let world = World::new();
    let (place, events) = (world.place(), [running("sevt_1")]);
    let author = |epoch| Author::Brain { epoch, expected_head: 2 };
    let value = |key: &str| world.kv(key).value.clone();
    let head = StoredHead { head: value(&world.keys.head(&world.id)), summary: value(&world.keys.summary(&world.id)) };
    let append = |author, effect| Append { place, author, promoted: &[], events: &events, effect };
    let known = append(author(1), Effect::Nothing);
    let meta = world.kv(&world.keys.meta(&world.id)).value.clone();
    let seen = || Seen { head: head.clone(), meta: Some(meta.clone()), ..Seen::default() };
    let assumed = known.assume(seen()).unwrap();
    let planned = |view: &View| written(known.plan(view, Timestamp::UNIX_EPOCH).unwrap());
    assert_eq!(planned(&assumed), planned(&world.view(&known.looks())));

    let call = "sevt_call".parse().unwrap();
    let finish = Effect::Finish { call: &call, from: &FinishFrom::Open };
    for unknown in [
        append(author(0), Effect::Nothing),
        append(Author::Service, Effect::Nothing),
        append(author(1), Effect::Idle { wake_revision: 0 }),
        append(author(1), finish),
        Append { promoted: &["sevt_unseen".parse().unwrap()], ..append(author(1), Effect::Nothing) },
    ] {
        assert!(unknown.assume(seen()).is_none());
    }
    let result = append(Author::Service, finish);
    assert!(result.assume(Seen { meta: None, ..seen() }).is_none());
    assert!(result.assume(seen()).is_some());
}

#[rstest]
#[case(FinishFrom::Dispatched(sandbox()), CallState::Dispatched { incarnation: sandbox() })]
#[case(FinishFrom::Open, CallState::Open)]
fn a_result_says_which_state_it_relies_on(#[case] from: FinishFrom, #[case] state: CallState) {
    assert_eq!(super::call::wanted(&from), state);
}
