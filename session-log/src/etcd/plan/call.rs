//! Tool calls: who runs them.

use longhand_protocol::EventId;

use super::{Place, Plan};
use crate::etcd::view::{Kv, Look, View};
use crate::etcd::write::{Guard, Write};
use crate::record::encode;
use crate::store::{CallState, FinishFrom, Incarnation, Result, StoreError};

/// The state that a result has to find.
pub(crate) fn wanted(from: &FinishFrom) -> CallState {
    match from {
        FinishFrom::Open => CallState::Open,
        FinishFrom::Dispatched(incarnation) => CallState::Dispatched { incarnation: incarnation.clone() },
    }
}

/// The call's state, from `call/{id}` or `done/{id}`.
pub(crate) fn state_of(place: &Place<'_>, view: &View, call: &EventId) -> Result<CallState> {
    let Place { keys, id, .. } = *place;
    if view.get(&keys.head(id)).is_none() {
        return Err(place.not_found());
    }
    if let Some(open) = view.get(&keys.call(id, call)) {
        return open.decode();
    }
    match view.get(&keys.done(id, call)) {
        Some(done) => Ok(CallState::Finished { seq: done.decode()? }),
        None => Err(StoreError::UnknownCall(call.clone())),
    }
}

/// A wish to give a call to a sandbox.
pub(crate) struct Dispatch<'a> {
    pub(crate) place: Place<'a>,
    pub(crate) epoch: u64,
    pub(crate) call: &'a EventId,
    pub(crate) to: &'a Incarnation,
}

impl Dispatch<'_> {
    pub(crate) fn looks(&self) -> Vec<Look> {
        let Place { keys, id, .. } = self.place;
        [keys.head(id), keys.epoch(id), keys.call(id, self.call), keys.done(id, self.call)].map(Look::Key).to_vec()
    }

    /// What is found of a call that nobody has begun, by the brain that owns the session: the transaction compares it.
    pub(crate) fn assume(&self) -> Option<View> {
        let Place { keys, id, .. } = self.place;
        let mut view = View::assumed();
        let found = |key, value| Kv { key, value, ..Kv::default() };
        view.insert(found(keys.head(id), Vec::new()));
        view.insert(found(keys.epoch(id), self.epoch.to_string().into_bytes()));
        view.insert(found(keys.call(id, self.call), encode(&CallState::Open).ok()?));
        (self.epoch > 0).then_some(view)
    }

    pub(crate) fn plan(&self, view: &View) -> Result<Plan<()>> {
        let Place { keys, id, .. } = self.place;
        self.place.check_epoch(view, self.epoch)?;
        let next = CallState::Dispatched { incarnation: self.to.clone() };
        let mut plan = move_call(&self.place, view, self.call, &CallState::Open, &next)?;
        if let Plan::Write(write, ()) = &mut plan {
            write.guard(Guard::Holds(keys.epoch(id), self.epoch.to_string().into_bytes()));
        }
        Ok(plan)
    }
}

/// A wish to take a call back.
pub(crate) struct Undispatch<'a> {
    pub(crate) place: Place<'a>,
    pub(crate) call: &'a EventId,
    pub(crate) from: &'a Incarnation,
}

impl Undispatch<'_> {
    pub(crate) fn looks(&self) -> Vec<Look> {
        let Place { keys, id, .. } = self.place;
        [keys.head(id), keys.call(id, self.call), keys.done(id, self.call)].map(Look::Key).to_vec()
    }

    pub(crate) fn plan(&self, view: &View) -> Result<Plan<()>> {
        let from = CallState::Dispatched { incarnation: self.from.clone() };
        move_call(&self.place, view, self.call, &from, &CallState::Open)
    }
}

fn move_call(place: &Place<'_>, view: &View, call: &EventId, from: &CallState, to: &CallState) -> Result<Plan<()>> {
    let state = state_of(place, view, call)?;
    if state == *to {
        return Ok(Plan::Done(()));
    }
    let found = view.get(&place.keys.call(place.id, call)).filter(|_| state == *from);
    let Some(found) = found else { return Err(StoreError::CallState { call: call.clone(), state }) };
    let mut write = Write::default();
    write.guard(Guard::Present(place.keys.head(place.id)));
    // One open call is like another, and each attempt has a name of its own: the state says all that counts.
    write.guard(Guard::Holds(found.key.clone(), found.value.clone())).put(found.key.clone(), encode(to)?);
    Ok(Plan::Write(write, ()))
}
