//! One run against one store.

use std::sync::Arc;

use futures::TryStreamExt as _;
use futures::stream::{self, StreamExt as _};
use longhand_protocol::event::{EventBody, NewEvent, Record, Usage};
use longhand_protocol::wire::Order;
use longhand_protocol::{EventId, SessionId};
use longhand_session_log::store::{Claimant, Exported, FinishFrom, Parent, Query, Takeover};
use longhand_session_log::{SessionStore, StoreError};

use super::acts::{Act, Answerer, Damage, Op, SESSIONS, Shape, TYPES, Time, What, Which};
use super::show::{appended, lines, show, state};
use crate::archive::everything;
use crate::conformance::calls::sandbox;
use crate::conformance::exports::proved;
use crate::conformance::{Fixture, PATIENCE, TTL, idle_event, message, meta, pod, running, tool_result, tool_use};

/// More than what is stored as it is.
const LARGE: usize = 70_000;

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

/// What those who use a session know of it.
struct Known {
    id: SessionId,
    /// It is there.
    live: bool,
    brains: [Brain; 2],
    calls: Vec<EventId>,
    last: Option<Request>,
    /// The last model request that was begun.
    span: Option<EventId>,
}

impl Known {
    fn pick_call(&self, number: usize) -> EventId {
        let unknown = || "sevt_unknown".parse().unwrap();
        self.calls.get(number % self.calls.len().max(1)).cloned().unwrap_or_else(unknown)
    }
}

struct Run<'a> {
    fixture: &'a dyn Fixture,
    /// Two replicas, which take turns.
    stores: [Arc<dyn SessionStore>; 2],
    turn: usize,
    sessions: Vec<Known>,
    ids: u64,
    answers: Vec<String>,
}

/// Every answer of the store, and then everything that can be known of the sessions.
pub(super) async fn run(fixture: &dyn Fixture, ops: &[Op]) -> Vec<String> {
    let known = |number| Known {
        id: format!("sesn_{number}").parse().unwrap(),
        live: false,
        brains: Default::default(),
        calls: Vec::new(),
        last: None,
        span: None,
    };
    let stores = [fixture.store(), fixture.replica().await];
    let sessions = (0..SESSIONS).map(known).collect();
    let mut run = Run { fixture, stores, turn: 0, sessions, ids: 0, answers: Vec::new() };
    run.step(&Op::Create(0)).await;
    run.step(&Op::On(Which::Any(0), Act::Claim { brain: 0, takeover: false })).await;
    for op in ops {
        run.step(op).await;
    }
    run.end().await
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

    fn store(&self) -> Arc<dyn SessionStore> {
        Arc::clone(&self.stores[self.turn % 2])
    }

    async fn step(&mut self, op: &Op) {
        self.turn += 1;
        let answer = match op.clone() {
            Op::On(on, act) => self.act(self.pick(on), &act).await,
            Op::Create(number) => {
                let meta = meta(&self.sessions[number].id);
                let made = self.store().create(meta).await;
                self.sessions[number].live |= made.is_ok();
                show(made, |()| "made".to_owned())
            }
            Op::Fork { of, to, at } => self.fork(self.pick(of), to, at).await,
            Op::Import { of, to, damage } => self.import(self.pick(of), to, damage).await,
        };
        self.answers.push(answer);
    }

    /// The first one if there is none.
    fn pick(&self, which: Which) -> usize {
        let live: Vec<usize> = (0..SESSIONS).filter(|number| self.sessions[*number].live).collect();
        match which {
            Which::Live(number) => live.get(number % live.len().max(1)).copied().unwrap_or(0),
            Which::Any(number) => number,
        }
    }

    /// A sequence number up to one beyond the end.
    async fn place(&self, id: &SessionId, number: u64) -> u64 {
        let head = self.store().state(id).await.map_or(0, |state| state.head);
        number % (head + 2)
    }

    async fn act(&mut self, on: usize, act: &Act) -> String {
        let (store, id) = (self.store(), self.sessions[on].id.clone());
        match act.clone() {
            Act::LoseClaim => self.fixture.expire_claim(&id).await,
            Act::Crash { brain } => self.sessions[on].brains[brain] = Brain::default(),
            Act::MoveOut { all } => self.fixture.move_out(&id, all).await,
            Act::Claim { brain, takeover } => return self.claim(on, brain, takeover).await,
            Act::Renew { brain } => {
                let renewed = store.renew(&id, self.sessions[on].brains[brain].epoch).await;
                return show(renewed, |()| "renewed".to_owned());
            }
            Act::Look { brain } => return self.look(on, brain).await,
            Act::Call { call } => {
                let call = self.sessions[on].pick_call(call);
                return show(store.call(&id, &call).await, |state| format!("{state:?}"));
            }
            Act::Archive => {
                let archived = store.archive(&id).await;
                if let Ok(archived_at) = &archived {
                    assert_eq!(store.state(&id).await.unwrap().archived_at, Some(*archived_at));
                }
                return show(archived, |_| "archived".to_owned());
            }
            Act::Leap => return show(store.leap(&id).await, |epoch| format!("leapt to {epoch}")),
            Act::Delete => {
                let deleted = store.delete(&id).await;
                self.sessions[on].live &= deleted.is_err();
                return show(deleted, |()| "deleted".to_owned());
            }
            Act::State => return show(store.state(&id).await, state),
            Act::Slice(shape) => return self.slice(&id, &shape).await,
            Act::Position { event } => {
                let event: EventId = format!("sevt_{:06}", event % (self.ids + 2)).parse().unwrap();
                return show(store.position(&id, &event).await, |seq| format!("{seq:?}"));
            }
            Act::Tail { after } => return self.tail(&id, after).await,
            Act::Export => {
                if let Err(error) = store.state(&id).await {
                    return format!("{error:?}");
                }
                let (end, records) = proved(&*store, &id).await;
                return format!("{} {} {:?} {}", end.epoch, end.head, end.archived_at.is_some(), records.len());
            }
            act => {
                if let Act::Append { brain, fresh: true, .. }
                | Act::Promote { brain, fresh: true, .. }
                | Act::Idle { brain, fresh: true } = &act
                {
                    self.look(on, *brain).await;
                }
                let Some(request) = self.request(on, &act) else { return "nothing to repeat".to_owned() };
                self.sessions[on].last = Some(request.clone());
                return make(&*store, &id, request).await;
            }
        }
        "done".to_owned()
    }

    /// A change as its caller makes it.
    fn request(&mut self, on: usize, act: &Act) -> Option<Request> {
        Some(match *act {
            Act::Enqueue { count, large } => {
                let text = if large { "q".repeat(LARGE) } else { "queued".to_owned() };
                Request::Enqueue(self.named_all(vec![message(&text); count]))
            }
            Act::Deliver { from } => Request::Deliver(from, self.named_all(vec![message("input"); 2])),
            Act::Append { brain, calls, what, .. } => {
                let events = [vec![self.what(on, what)], self.tool_uses(calls, what)].concat();
                let events = self.named_all(events);
                let known = &mut self.sessions[on];
                known.calls.extend(events[1..].iter().map(|event| event.id.clone()));
                if matches!(events[0].body, EventBody::SpanModelRequestStart {}) {
                    known.span = Some(events[0].id.clone());
                }
                Request::Append(known.brains[brain].epoch, known.brains[brain].head, events)
            }
            Act::Promote { brain, count, .. } => {
                let then = self.named_all(vec![running()]);
                let Brain { epoch, head, inbox, .. } = self.sessions[on].brains[brain].clone();
                Request::Promote(epoch, head, inbox.into_iter().take(count).collect(), then)
            }
            Act::Idle { brain, .. } => {
                let events = self.named_all(vec![idle_event()]);
                let Brain { epoch, head, wake, .. } = self.sessions[on].brains[brain];
                Request::Idle(epoch, head, wake, events)
            }
            Act::Audit { what } => {
                let event = self.what(on, what);
                Request::Audit(self.named_all(vec![event, message("audit")]))
            }
            Act::Dispatch { brain, call, to } => {
                Request::Dispatch(self.sessions[on].brains[brain].epoch, self.sessions[on].pick_call(call), to)
            }
            Act::Undispatch { call, from } => Request::Undispatch(self.sessions[on].pick_call(call), from),
            Act::Finish { call, from, by } => {
                let call = self.sessions[on].pick_call(call);
                let from = from.map_or(FinishFrom::Open, |from| FinishFrom::Dispatched(sandbox(&from.to_string())));
                let result = match by {
                    Answerer::Sandbox => tool_result(&call, "done"),
                    Answerer::Verbose => tool_result(&call, &"r".repeat(LARGE)),
                    Answerer::Worker => NewEvent::new(EventBody::UserToolResult {
                        tool_use_id: call.clone(),
                        content: None,
                        is_error: None,
                    }),
                };
                Request::Finish(call, from, self.named_all(vec![message("before"), result]))
            }
            _ => return self.sessions[on].last.clone(),
        })
    }

    fn what(&self, on: usize, what: What) -> NewEvent {
        let usage = |tokens| Usage { input_tokens: tokens, ..Usage::default() };
        let body = match (what, &self.sessions[on].span) {
            (What::Running, _) => return running(),
            (What::Large, _) => return message(&"x".repeat(LARGE)),
            (What::Rescheduled, _) => EventBody::SessionStatusRescheduled {},
            (What::Terminated, _) => EventBody::SessionStatusTerminated {},
            (What::Usage, _) => EventBody::SessionUsage { usage: usage(self.ids).into() },
            (What::Span, None) => EventBody::SpanModelRequestStart {},
            (What::Span, Some(start)) => EventBody::SpanModelRequestEnd {
                model_request_start_id: start.clone(),
                is_error: false,
                model_usage: Usage::default(),
            },
        };
        NewEvent::new(body)
    }

    /// With a large event go large inputs.
    fn tool_uses(&self, calls: usize, what: What) -> Vec<NewEvent> {
        let mut events = vec![tool_use(); calls];
        if let What::Large = what {
            for event in &mut events {
                if let EventBody::AgentToolUse { input, .. } = &mut event.body {
                    *input = serde_json::json!({"command": "i".repeat(LARGE)});
                }
            }
        }
        events
    }

    async fn claim(&mut self, on: usize, brain: usize, takeover: bool) -> String {
        let claimant: Claimant = pod(&brain.to_string());
        let takeover = if takeover { Takeover::Always } else { Takeover::IfFree };
        let claimed = self.store().claim(&self.sessions[on].id, &claimant, takeover, TTL).await;
        let brain = &mut self.sessions[on].brains[brain];
        if let Ok((epoch, record)) = &claimed {
            brain.epoch = *epoch;
            brain.head = record.seq;
        }
        show(claimed, |(epoch, record)| format!("{epoch} {:?}", lines(&[record])))
    }

    async fn look(&mut self, on: usize, brain: usize) -> String {
        let (store, id) = (self.store(), self.sessions[on].id.clone());
        let looked = async { Ok((store.inbox(&id).await?, store.state(&id).await?)) };
        let looked = looked.await;
        if let Ok((inbox, state)) = &looked {
            let brain = &mut self.sessions[on].brains[brain];
            brain.head = state.head;
            brain.wake = inbox.wake_revision.unwrap_or(0);
            brain.inbox = inbox.items.iter().map(|item| item.event.id.clone()).collect();
        }
        show(looked, |(inbox, found)| {
            let ids: Vec<_> = inbox.items.iter().map(|item| &item.event.id).collect();
            format!("{ids:?} {} {}", inbox.wake_revision.is_some(), state(found))
        })
    }

    async fn fork(&mut self, of: usize, to: usize, at: u64) -> String {
        let (from, id) = (self.sessions[of].id.clone(), self.sessions[to].id.clone());
        let at = self.place(&from, at).await;
        let forked = self.store().fork(meta(&id), &Parent { session: from, seq: at }).await;
        self.inherit(of, to, forked.is_ok());
        show(forked, |()| "forked".to_owned())
    }

    fn inherit(&mut self, of: usize, to: usize, done: bool) {
        let (calls, span) = (self.sessions[of].calls.clone(), self.sessions[of].span.clone());
        let known = &mut self.sessions[to];
        (known.calls, known.span, known.live) = (calls, span, known.live || done);
    }

    /// What an import that failed has left is taken away, as the sweep does.
    async fn import(&mut self, of: usize, to: usize, damage: Damage) -> String {
        let (store, from, id) = (self.store(), self.sessions[of].id.clone(), self.sessions[to].id.clone());
        let export = match store.export(&from).await {
            Ok(export) => export,
            Err(error) => return format!("{error:?}"),
        };
        let mut records: Vec<Exported> = export.records.try_collect().await.unwrap();
        let mut end = export.end;
        match damage {
            Damage::None => {}
            Damage::Cut => drop(records.pop()),
            Damage::Swapped if records.len() > 1 => records.swap(0, 1),
            Damage::Changed => {
                if let Some(last) = records.last_mut() {
                    let at = last.bytes.len() / 2;
                    last.bytes[at] ^= 1;
                }
            }
            Damage::Swapped | Damage::OtherEnd => end.hash = "0".repeat(64),
        }
        let records = stream::iter(records).map(Ok).boxed();
        let meta = longhand_session_log::store::SessionMeta { id: id.clone(), ..export.meta };
        let imported = store.import(meta, &end, records).await;
        if let Err(StoreError::BadImport(_)) = &imported {
            self.stores[(self.turn + 1) % 2].delete(&id).await.unwrap();
        }
        self.inherit(of, to, imported.is_ok());
        show(imported, |()| "imported".to_owned())
    }

    async fn tail(&self, id: &SessionId, after: u64) -> String {
        let store = self.store();
        let head = match store.state(id).await {
            Ok(state) => state.head,
            Err(error) => return format!("{error:?}"),
        };
        let after = after % (head + 2);
        let tail = store.tail(id, after).await.unwrap();
        let count = usize::try_from(head.saturating_sub(after)).unwrap();
        let records = tokio::time::timeout(PATIENCE, tail.take(count).try_collect::<Vec<Record>>()).await;
        format!("{:?}", lines(&records.expect("a tail comes to the head").unwrap()))
    }

    /// Page by page; it is also what is left of the whole log.
    async fn slice(&self, id: &SessionId, shape: &Shape) -> String {
        let store = self.store();
        let all = match store.state(id).await {
            Ok(_) => everything(&*store, id).await,
            Err(error) => return format!("{error:?}"),
        };
        let time = |time: &Time| {
            let record = all.get(usize::try_from(time.0).unwrap() % all.len().max(1))?;
            Some(record.event.processed_at.unwrap() + jiff::SignedDuration::from_millis(time.1))
        };
        let place = |number: u64| number % (u64::try_from(all.len()).unwrap() + 2);
        let (query, timed) = match shape.clone() {
            Shape::Last { limit } => (Query::last(limit), false),
            Shape::Around { seq, radius } => (Query::around(place(seq), radius), false),
            Shape::Any { after, before, desc, limit, types, times } => {
                let (after, before) = (place(after), before.map(place));
                let order = if desc { Order::Desc } else { Order::Asc };
                let types = TYPES[types].iter().map(|kind| (*kind).to_owned()).collect();
                let [since, until] = times.each_ref().map(|given| given.as_ref().and_then(time));
                let timed = since.is_some() || until.is_some();
                (Query { after, before, order, limit, types, since, until }, timed)
            }
        };
        let wanted = |record: &&Record| {
            let at = record.event.processed_at.unwrap();
            record.seq > query.after
                && query.before.is_none_or(|before| record.seq < before)
                && query.since.is_none_or(|since| at >= since)
                && query.until.is_none_or(|until| at < until)
                && query.admits_type(record.event.body.kind())
        };
        let mut expected: Vec<Record> = all.iter().filter(wanted).cloned().collect();
        if query.order == Order::Desc {
            expected.reverse();
        }
        let first = store.slice(id, &query).await.unwrap().records;
        assert_eq!(first, expected[..query.limit.min(expected.len())], "{query:?}");
        if query.limit > 0 {
            assert_eq!(pages(&*store, id, &query).await, expected, "{query:?}");
        }
        // Which records a time divides differs from run to run.
        if timed { "as it should be".to_owned() } else { format!("{:?}", lines(&first)) }
    }

    /// Everything that can be known of the sessions but times and revisions; then they are deleted.
    async fn end(mut self) -> Vec<String> {
        let (store, other) = (self.store(), Arc::clone(&self.stores[(self.turn + 1) % 2]));
        for known in &self.sessions {
            let id = &known.id;
            let found = match store.state(id).await {
                Ok(found) => found,
                Err(error) => {
                    self.answers.push(format!("{error:?}"));
                    continue;
                }
            };
            let woken = found.wake_revision.is_some();
            self.answers.push(state(found));
            let inbox = store.inbox(id).await.unwrap().items;
            self.answers.push(format!("{:?}", inbox.iter().map(|item| &item.event).collect::<Vec<_>>().len()));
            self.answers.push(format!("{:?}", inbox.iter().map(|item| &item.event.id).collect::<Vec<_>>()));
            self.answers.push(format!("{:?}", store.open_calls(id).await.unwrap()));
            self.answers.extend(lines(&everything(&*other, id).await));
            let ended = proved(&*other, id).await.0.archived_at.is_some();
            assert!(woken || ended || inbox.is_empty(), "events are queued and nobody is woken");
        }
        // A fork goes before what it forks.
        while let Some(mut last) = store.list(None, 1_000).await.unwrap().pop().map(|meta| meta.id) {
            while let Some(fork) = store.state(&last).await.unwrap().fork {
                last = fork;
            }
            store.delete(&last).await.unwrap();
        }
        self.answers
    }
}

async fn pages(store: &dyn SessionStore, id: &SessionId, query: &Query) -> Vec<Record> {
    let (mut records, mut next) = (Vec::new(), Some(query.clone()));
    while let Some(query) = next {
        let slice = store.slice(id, &query).await.unwrap();
        assert!(slice.records.len() <= query.limit);
        next = slice.next.map(|next| query.clone().from(next));
        records.extend(slice.records);
    }
    records
}

async fn make(store: &dyn SessionStore, id: &SessionId, request: Request) -> String {
    match request {
        Request::Enqueue(events) => show(store.enqueue(id, events).await, |items| {
            format!(
                "{:?}",
                items.iter().map(|item| (&item.event.id, item.event.processed_at.is_some())).collect::<Vec<_>>()
            )
        }),
        Request::Deliver(from, events) => show(store.deliver_inputs(id, from, events).await, |count| count.to_string()),
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
