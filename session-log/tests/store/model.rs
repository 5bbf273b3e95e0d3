//! Random interleavings of clients, two brains of which one may be a zombie, the service and lost claims, with every
//! change perhaps repeated: both stores answer the same and end with the same log.

use longhand_protocol::event::{EventBody, NewEvent, Record};
use longhand_protocol::{EventId, SessionId};
use longhand_session_log::caps::Caps;
use longhand_session_log::store::{Appended, Claimant, FinishFrom, Takeover};
use longhand_session_log::{SessionStore, StoreError};
use proptest::prelude::{ProptestConfig, Strategy, any, prop, prop_oneof, proptest};

use crate::conformance::calls::sandbox;
use crate::conformance::{Fixture, TTL, idle_event, message, meta, pod, running, tool_result, tool_use};
use crate::{etcd, memory};

/// What somebody does. Numbers pick from what there is, wrapping around.
#[derive(Clone, Debug)]
enum Op {
    Enqueue {
        count: usize,
    },
    Deliver {
        from: u64,
    },
    Claim {
        brain: usize,
        takeover: bool,
    },
    LoseClaim,
    Renew {
        brain: usize,
    },
    /// Reads the head and the inbox.
    Look {
        brain: usize,
    },
    Append {
        brain: usize,
        calls: usize,
    },
    Promote {
        brain: usize,
        count: usize,
    },
    Idle {
        brain: usize,
    },
    Audit,
    Dispatch {
        brain: usize,
        call: usize,
        to: usize,
    },
    Undispatch {
        call: usize,
        from: usize,
    },
    Finish {
        call: usize,
        from: Option<usize>,
    },
    /// The last change again, with the same identifiers: the caller has not seen its answer.
    Repeat,
}

fn op() -> impl Strategy<Value = Op> {
    let brain = 0..2_usize;
    prop_oneof![
        2 => (1..4_usize).prop_map(|count| Op::Enqueue { count }),
        1 => (0..4_u64).prop_map(|from| Op::Deliver { from }),
        2 => (brain.clone(), any::<bool>()).prop_map(|(brain, takeover)| Op::Claim { brain, takeover }),
        1 => prop::strategy::Just(Op::LoseClaim),
        1 => brain.clone().prop_map(|brain| Op::Renew { brain }),
        5 => brain.clone().prop_map(|brain| Op::Look { brain }),
        4 => (brain.clone(), 0..3_usize).prop_map(|(brain, calls)| Op::Append { brain, calls }),
        4 => (brain.clone(), 1..4_usize).prop_map(|(brain, count)| Op::Promote { brain, count }),
        3 => brain.clone().prop_map(|brain| Op::Idle { brain }),
        1 => prop::strategy::Just(Op::Audit),
        3 => (brain, 0..3_usize, 0..2_usize).prop_map(|(brain, call, to)| Op::Dispatch { brain, call, to }),
        1 => (0..3_usize, 0..2_usize).prop_map(|(call, from)| Op::Undispatch { call, from }),
        3 => (0..3_usize, prop::option::of(0..2_usize)).prop_map(|(call, from)| Op::Finish { call, from }),
        3 => prop::strategy::Just(Op::Repeat),
    ]
}

/// A change with everything that its caller knows, so that it can be made again.
#[derive(Clone)]
enum Request {
    Enqueue(Vec<NewEvent>),
    Deliver(u64, Vec<NewEvent>),
    Append(u64, u64, Vec<NewEvent>),
    Promote(u64, u64, Vec<EventId>, Vec<NewEvent>),
    Idle(u64, u64, i64, Vec<NewEvent>),
    Audit(Vec<NewEvent>),
    Dispatch(u64, EventId, usize),
    Undispatch(EventId, usize),
    Finish(EventId, FinishFrom, Vec<NewEvent>),
}

/// What a brain believes.
#[derive(Clone, Default)]
struct Brain {
    epoch: u64,
    head: u64,
    wake: i64,
    inbox: Vec<EventId>,
}

/// One run against one store.
struct Run<'a> {
    fixture: &'a dyn Fixture,
    store: &'a dyn SessionStore,
    id: SessionId,
    brains: [Brain; 2],
    calls: Vec<EventId>,
    last: Option<Request>,
    ids: u64,
    answers: Vec<String>,
}

impl Run<'_> {
    /// The same identifiers in every run.
    fn named(&mut self, event: NewEvent) -> NewEvent {
        self.ids += 1;
        NewEvent { id: format!("sevt_{:06}", self.ids).parse().unwrap(), body: event.body }
    }

    fn named_all(&mut self, events: Vec<NewEvent>) -> Vec<NewEvent> {
        events.into_iter().map(|event| self.named(event)).collect()
    }

    fn pick_call(&self, number: usize) -> EventId {
        let unknown = || "sevt_unknown".parse().unwrap();
        self.calls.get(number % self.calls.len().max(1)).cloned().unwrap_or_else(unknown)
    }

    async fn step(&mut self, op: &Op) {
        let request = match op.clone() {
            Op::Enqueue { count } => Request::Enqueue(self.named_all(vec![message("queued"); count])),
            Op::Deliver { from } => Request::Deliver(from, self.named_all(vec![message("input"); 2])),
            Op::Claim { brain, takeover } => return self.claim(brain, takeover).await,
            Op::LoseClaim => return self.fixture.expire_claim(&self.id).await,
            Op::Renew { brain } => {
                let renewed = self.store.renew(&self.id, self.brains[brain].epoch).await;
                return self.answers.push(show(renewed, |()| "renewed".to_owned()));
            }
            Op::Look { brain } => return self.look(brain).await,
            Op::Append { brain, calls } => {
                let events = [vec![running()], vec![tool_use(); calls]].concat();
                let events = self.named_all(events);
                self.calls.extend(events[1..].iter().map(|event| event.id.clone()));
                Request::Append(self.brains[brain].epoch, self.brains[brain].head, events)
            }
            Op::Promote { brain, count } => {
                let then = self.named_all(vec![running()]);
                let Brain { epoch, head, inbox, .. } = self.brains[brain].clone();
                Request::Promote(epoch, head, inbox.into_iter().take(count).collect(), then)
            }
            Op::Idle { brain } => {
                let events = self.named_all(vec![idle_event()]);
                let Brain { epoch, head, wake, .. } = self.brains[brain];
                Request::Idle(epoch, head, wake, events)
            }
            Op::Audit => Request::Audit(self.named_all(vec![message("audit")])),
            Op::Dispatch { brain, call, to } => Request::Dispatch(self.brains[brain].epoch, self.pick_call(call), to),
            Op::Undispatch { call, from } => Request::Undispatch(self.pick_call(call), from),
            Op::Finish { call, from } => {
                let call = self.pick_call(call);
                let from = from.map_or(FinishFrom::Open, |from| FinishFrom::Dispatched(sandbox(&from.to_string())));
                let events = self.named_all(vec![tool_result(&call, "done")]);
                Request::Finish(call, from, events)
            }
            Op::Repeat => match self.last.clone() {
                Some(request) => request,
                None => return,
            },
        };
        self.last = Some(request.clone());
        let answer = self.make(request).await;
        self.answers.push(answer);
    }

    async fn make(&self, request: Request) -> String {
        let (store, id) = (self.store, &self.id);
        match request {
            Request::Enqueue(events) => show(store.enqueue(id, events).await, |items| {
                format!(
                    "{:?}",
                    items.iter().map(|item| (&item.event.id, item.event.processed_at.is_some())).collect::<Vec<_>>()
                )
            }),
            Request::Deliver(from, events) => {
                show(store.deliver_inputs(id, from, events).await, |count| count.to_string())
            }
            Request::Append(epoch, head, events) => show(store.append(id, epoch, head, events).await, appended),
            Request::Promote(epoch, head, inbox, then) => {
                show(store.promote(id, epoch, head, &inbox, then).await, appended)
            }
            Request::Idle(epoch, head, wake, events) => show(store.idle(id, epoch, head, wake, events).await, appended),
            Request::Audit(events) => show(store.append_unfenced(id, events).await, appended),
            Request::Dispatch(epoch, call, to) => {
                show(store.dispatch(id, epoch, &call, &sandbox(&to.to_string())).await, |()| "given".to_owned())
            }
            Request::Undispatch(call, from) => {
                show(store.undispatch(id, &call, &sandbox(&from.to_string())).await, |()| "taken back".to_owned())
            }
            Request::Finish(call, from, events) => show(store.finish_call(id, &call, &from, events).await, appended),
        }
    }

    async fn claim(&mut self, brain: usize, takeover: bool) {
        let claimant: Claimant = pod(&brain.to_string());
        let takeover = if takeover { Takeover::Always } else { Takeover::IfFree };
        let claimed = self.store.claim(&self.id, &claimant, takeover, TTL).await;
        if let Ok((epoch, record)) = &claimed {
            self.brains[brain].epoch = *epoch;
            self.brains[brain].head = record.seq;
        }
        self.answers.push(show(claimed, |(epoch, record)| format!("{epoch} {}", line(&record))));
    }

    async fn look(&mut self, brain: usize) {
        let inbox = self.store.inbox(&self.id).await.unwrap();
        self.brains[brain].head = self.store.state(&self.id).await.unwrap().head;
        self.brains[brain].wake = inbox.wake_revision.unwrap_or(0);
        self.brains[brain].inbox = inbox.items.into_iter().map(|item| item.event.id).collect();
    }

    /// Everything that can be known of the session but times and revisions.
    async fn end(mut self) -> Vec<String> {
        let state = self.store.state(&self.id).await.unwrap();
        let owner = state.owner.map(|owner| (owner.epoch, owner.claimant.pod_uid));
        let woken = state.wake_revision.is_some();
        self.answers.push(format!("{} {} {owner:?} {woken} {:?}", state.epoch, state.head, state.status));
        self.answers.push(format!("inputs {}", state.meta.delivered_inputs));
        let inbox = self.store.inbox(&self.id).await.unwrap().items;
        assert!(woken || inbox.is_empty(), "events are queued and nobody is woken");
        self.answers.push(format!("{:?}", inbox.iter().map(|item| &item.event.id).collect::<Vec<_>>()));
        self.answers.push(format!("{:?}", self.store.open_calls(&self.id).await.unwrap()));
        let records = self.store.read(&self.id, 0, 10_000).await.unwrap().records;
        self.answers.extend(records.iter().map(line));
        self.store.delete(&self.id).await.unwrap();
        self.answers
    }
}

fn show<T>(result: Result<T, StoreError>, ok: impl FnOnce(T) -> String) -> String {
    result.map_or_else(
        |error| match error {
            // The session is another one in each run.
            StoreError::LimitReached { what, limit, .. } => format!("{limit} {what}"),
            error => format!("{error:?}"),
        },
        ok,
    )
}

#[expect(clippy::needless_pass_by_value, reason = "`show` gives away what it shows")]
fn appended(appended: Appended) -> String {
    let lines: Vec<String> = appended.records.iter().map(line).collect();
    format!("{} {lines:?}", appended.head)
}

/// A record without what differs between runs.
fn line(record: &Record) -> String {
    let id = match &record.event.body {
        EventBody::SessionWoken { .. } | EventBody::SessionNearLimit { .. } => "-",
        _ => record.event.id.as_str(),
    };
    format!("{} {} {id} {:?}", record.seq, record.epoch, record.event.body)
}

/// So few that many runs reach it.
const CAPS: Caps = Caps { events: 12, bytes: 0, warning_percent: 75 };

async fn run(fixture: &dyn Fixture, ops: &[Op]) -> Vec<String> {
    let store = fixture.store();
    let id = SessionId::generate();
    store.create(meta(&id)).await.unwrap();
    let (brains, calls, answers) = Default::default();
    let mut run = Run { fixture, store: &*store, id, brains, calls, last: None, ids: 0, answers };
    for op in ops {
        run.step(op).await;
    }
    run.end().await
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]
    #[test]
    fn both_stores_answer_the_same(ops in prop::collection::vec(op(), 1..48), capped in any::<bool>()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (expected, actual) = runtime.block_on(async {
            let caps = if capped { CAPS } else { Caps::default() };
            let (oracle, real) = (memory::bounded(caps), etcd::bounded(caps).await);
            (run(&oracle, &ops).await, run(&real, &ops).await)
        });
        proptest::prop_assert_eq!(expected, actual);
    }
}
