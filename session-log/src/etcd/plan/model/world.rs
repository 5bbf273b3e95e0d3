//! Etcd, those who act, what is on its way, and everything that can happen next.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use super::actors::{Phase, Role};
use super::etcd::{Etcd, Guarded, Part, guarded};
use super::laws::{Law, check, check_write};
use super::past::Past;
use super::search::Model;
use super::wish::{Outcome, Session, Step, Wish};
use crate::etcd::keys::last_segment;
use crate::etcd::plan::inbox;
use crate::etcd::recent::Seen;
use crate::etcd::view::{Look, View};
use crate::etcd::write::{Guard, Write};
use crate::store::StoreError;

/// How often what may go wrong does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Budget {
    /// Transactions whose answer is lost, and that arrive whenever they like.
    pub(super) sends: u8,
    pub(super) claims: u8,
    pub(super) crashes: u8,
    pub(super) expiries: u8,
    pub(super) losses: u8,
}

/// A transaction on its way, for the session's life that its sender saw.
#[derive(Clone)]
pub(super) struct Sent {
    pub(super) wish: Wish,
    pub(super) write: Write,
    pub(super) life: u8,
}

#[derive(Clone)]
struct Job {
    wish: Wish,
    /// What will be sent, and the outcome if it is carried out; nothing before it has looked (again).
    ready: Option<(Arc<Sent>, Outcome)>,
    in_doubt: bool,
}

#[derive(Clone)]
pub(super) struct Actor {
    pub(super) role: Role,
    job: Option<Job>,
}

impl From<Role> for Actor {
    fn from(role: Role) -> Self {
        Self { role, job: None }
    }
}

/// Everything.
#[derive(Clone)]
pub(super) struct World {
    pub(super) session: Arc<Session>,
    pub(super) etcd: Etcd,
    pub(super) actors: Vec<Actor>,
    flights: Vec<Arc<Sent>>,
    pub(super) left: Budget,
    pub(super) past: Past,
    pub(super) tools: bool,
}

/// What happens.
#[derive(Clone, Debug)]
pub(super) enum Action {
    /// Somebody wishes for something, and looks or assumes what it relies on.
    Start(usize, Wish),
    /// The transaction is carried out or refused, and its sender sees which.
    Commit(usize),
    /// The transaction is on its way; its sender will not see the answer.
    Send(usize),
    /// The sender of what is on its way looks again.
    Look(usize),
    /// It does not, and is told that the store is unavailable.
    GiveUp(usize),
    /// What was on its way arrives.
    Arrive(usize),
    LookInbox(usize),
    ReadOn(usize),
    TakeHead(usize),
    Begin(usize),
    Refuse(usize),
    RemoveKeys(usize),
    RemoveMark(usize),
    Crash(usize),
    Expire,
    LoseSandbox,
}

/// A world to explore, and which guards its etcd ignores.
pub(super) struct Scope {
    pub(super) start: World,
    pub(super) ignored: Vec<Guarded>,
    /// Every guard that a plan has relied on.
    pub(super) seen: RefCell<BTreeSet<Guarded>>,
}

impl World {
    pub(super) fn new(tools: bool) -> Self {
        let (etcd, left, past) = Default::default();
        Self { session: Arc::new(Session::new()), etcd, actors: vec![], flights: vec![], left, past, tools }
    }

    /// Carries a wish out at once, undisturbed.
    pub(super) fn done(mut self, wish: &Wish) -> Self {
        let view = self.etcd.look(&wish.looks(&self.session));
        let Ok(Step::Write(write, _)) = wish.plan(&self.session, &view) else { panic!("{wish:?} is not carried out") };
        self.land(&Sent { wish: wish.clone(), write, life: self.past.life }, &[]).unwrap();
        self
    }

    pub(super) fn with(mut self, roles: impl IntoIterator<Item = Role>, left: Budget) -> Self {
        (self.actors, self.left) = (roles.into_iter().map(Actor::from).collect(), left);
        self
    }

    pub(super) fn is_live(&self) -> bool {
        self.etcd.get(&self.session.keys.meta(&self.session.id)).is_some()
    }

    pub(super) fn is_importing(&self) -> bool {
        self.etcd.get(&self.session.keys.importing(&self.session.id)).is_some()
    }

    pub(super) fn is_awake(&self) -> bool {
        self.wake() > 0
    }

    pub(super) fn wake(&self) -> i64 {
        self.etcd.get(&self.session.keys.wake(&self.session.id)).map_or(0, |wake| wake.mod_revision)
    }

    pub(super) fn epoch(&self) -> Option<u64> {
        let stored = self.etcd.get(&self.session.keys.epoch(&self.session.id))?;
        stored.decode().ok()
    }

    /// The names of the queued events in order, as the real reader of the inbox gives them.
    pub(super) fn inbox(&self) -> Vec<String> {
        let Session { keys, id, .. } = &*self.session;
        if self.etcd.under(&keys.inboxes(id)).next().is_none() {
            return Vec::new();
        }
        let looks = [Look::Key(keys.meta(id)), Look::Key(keys.wake(id)), Look::Prefix(keys.inboxes(id))];
        let place = crate::etcd::plan::Place { keys, id, trace: None };
        let items = inbox(&place, &self.etcd.look(&looks)).map(|inbox| inbox.items).unwrap_or_default();
        items.iter().map(|item| item.event.id.as_str().trim_start_matches("sevt_").to_owned()).collect()
    }

    /// The epochs that brains believe to have.
    pub(super) fn epochs(&self) -> Vec<u64> {
        let mut epochs: Vec<u64> = self
            .actors
            .iter()
            .filter_map(|actor| match &actor.role {
                Role::Brain(brain) if brain.epoch > 0 => Some(brain.epoch),
                Role::Asker { epoch } => Some(*epoch),
                _ => None,
            })
            .collect();
        epochs.dedup();
        epochs
    }

    /// A transaction arrives: whether it is carried out.
    fn land(&mut self, sent: &Sent, ignored: &[Guarded]) -> Result<bool, Law> {
        let kind = sent.wish.kind();
        let holds = |guard: &Guard| ignored.contains(&(kind, guarded(guard))) || self.etcd.holds(guard);
        if !sent.write.guards.iter().all(holds) {
            return Ok(false);
        }
        let mut past = self.past.clone();
        check_write(self, &mut past, sent)?;
        self.etcd.apply(&sent.write.changes);
        self.past = past;
        check(self)?;
        Ok(true)
    }

    /// Plans by what was seen: it is over, or something is ready to be sent.
    fn consider(&mut self, number: usize, mut view: View, scope: &Scope) -> Result<(), Law> {
        let Some(job) = self.actors[number].job.clone() else { return Ok(()) };
        view.in_doubt = job.in_doubt;
        let answer = loop {
            match job.wish.plan(&self.session, &view) {
                Ok(Step::Done(outcome)) => break Ok(outcome),
                Ok(Step::Read(looks)) => view.absorb(self.etcd.look(&looks)),
                Ok(Step::Write(write, outcome)) => {
                    let guards = write.guards.iter().map(|guard| (job.wish.kind(), guarded(guard)));
                    // It is made as this session is, which others ask about.
                    let guards = guards.filter(|(_, part)| *part != Part::Fork);
                    scope.seen.borrow_mut().extend(guards);
                    let sent = Arc::new(Sent { wish: job.wish.clone(), write, life: self.past.life });
                    self.actors[number].job = Some(Job { ready: Some((sent, outcome)), ..job });
                    return Ok(());
                }
                Err(error) => break Err(error),
            }
        };
        self.answer(number, &job.wish, &answer)
    }

    fn answer(&mut self, number: usize, wish: &Wish, answer: &Result<Outcome, StoreError>) -> Result<(), Law> {
        self.actors[number].job = None;
        if let Ok(outcome) = answer {
            match wish {
                Wish::Enqueue { event } | Wish::Append { event, .. } | Wish::Idle { event, .. } => {
                    self.past.acknowledged.insert(event.clone());
                }
                Wish::Audit { event } | Wish::Finish { event, .. } => {
                    self.past.acknowledged.insert(event.clone());
                }
                _ => {}
            }
            if let Outcome::Claimed { epoch, .. } = outcome
                && *self.past.owners.entry(*epoch).or_insert(number) != number
            {
                return Err(Law::TwoOwners);
            }
        }
        self.actors[number].role.answered(wish, answer)?;
        check(self)
    }

    fn start(&mut self, number: usize, wish: &Wish, scope: &Scope) -> Result<(), Law> {
        if let Wish::Claim { .. } = wish {
            Budget::take(&mut self.left.claims);
        }
        let job = Job { wish: wish.clone(), ready: None, in_doubt: false };
        self.actors[number].job = Some(job);
        let rests = self.etcd.get(&self.session.keys.wake(&self.session.id)).is_none();
        let assumed = wish.assume(&self.session, rests, |seq| self.seen(seq));
        let view = assumed.unwrap_or_else(|| self.etcd.look(&wish.looks(&self.session)));
        self.consider(number, view, scope)
    }

    /// What a replica may have seen: the head of this number, or the last one, and what is queued.
    fn seen(&self, seq: Option<u64>) -> Option<Seen> {
        let (keys, id, heads) = (&self.session.keys, &self.session.id, &self.past.heads);
        let head = seq.map_or_else(|| heads.values().next_back(), |seq| heads.get(&seq))?;
        let inboxes = keys.inboxes(id);
        let queued = self.etcd.under(&inboxes);
        let queued = queued.map(|kv| (last_segment(&kv.key).parse().unwrap(), kv.value.clone())).collect();
        let meta = self.etcd.get(&keys.meta(id)).map(|kv| kv.value.clone());
        Some(Seen { head: (**head).clone(), meta, queued })
    }

    fn commit(&mut self, number: usize, scope: &Scope) -> Result<(), Law> {
        let Some((sent, outcome)) = self.actors[number].job.as_ref().and_then(|job| job.ready.clone()) else {
            return Ok(());
        };
        if self.land(&sent, &scope.ignored)? {
            return self.answer(number, &sent.wish, &Ok(outcome));
        }
        self.consider(number, self.etcd.look(&sent.wish.looks(&self.session)), scope)
    }

    fn act(&mut self, action: &Action, scope: &Scope) -> Result<(), Law> {
        let (keys, id) = (self.session.keys.clone(), self.session.id.clone());
        match action {
            Action::Start(number, wish) => self.start(*number, wish, scope)?,
            Action::Commit(number) => self.commit(*number, scope)?,
            Action::Send(number) => {
                Budget::take(&mut self.left.sends);
                if let Some(job) = &mut self.actors[*number].job {
                    self.flights.extend(job.ready.take().map(|(sent, _)| sent));
                    job.in_doubt = true;
                }
            }
            Action::Look(number) => {
                let looks = self.actors[*number].job.as_ref().map(|job| job.wish.looks(&self.session));
                self.consider(*number, self.etcd.look(&looks.unwrap_or_default()), scope)?;
            }
            Action::GiveUp(number) => {
                self.actors[*number].job = None;
                self.actors[*number].role.gave_up();
            }
            Action::Arrive(number) => {
                let sent = self.flights.remove(*number);
                self.land(&sent, &scope.ignored)?;
            }
            Action::LookInbox(number) => {
                let (wake, queued) = (self.wake(), self.inbox());
                if let Role::Brain(brain) = &mut self.actors[*number].role {
                    (brain.wake, brain.inbox, brain.looked) = (wake, queued, true);
                }
            }
            Action::ReadOn(number) => self.read_on(*number),
            Action::TakeHead(number) => {
                if let Role::Brain(brain) = &mut self.actors[*number].role {
                    (brain.head, brain.behind) = (self.past.head(), false);
                }
            }
            Action::Begin(number) | Action::Refuse(number) => {
                if let Role::Replica(replica) = &mut self.actors[*number].role
                    && let Phase::Given(at) = replica.phase
                {
                    if let Action::Begin(_) = action {
                        self.past.began.insert(at.0);
                        replica.phase = Phase::Runs(at);
                    } else {
                        self.past.draining.insert(at.0);
                        self.past.pod = self.past.pod.max(at.0 + 1);
                        replica.phase = Phase::Refused(at);
                    }
                }
            }
            Action::RemoveKeys(number) => {
                if self.is_live() {
                    return Err(Law::WrongLife);
                }
                self.etcd.remove_under(&keys.logs(&id));
                self.etcd.remove_under(&keys.session(&id));
                self.actors[*number].role = Role::Remover { stage: 2 };
            }
            Action::RemoveMark(number) => {
                self.etcd.remove(&keys.deleting(&id));
                self.actors[*number].role = Role::Remover { stage: 3 };
            }
            Action::Crash(number) => {
                Budget::take(&mut self.left.crashes);
                self.actors[*number].job = None;
                self.actors[*number].role.crash();
            }
            Action::Expire => {
                Budget::take(&mut self.left.expiries);
                self.etcd.remove(&keys.owner(&id));
            }
            Action::LoseSandbox => {
                Budget::take(&mut self.left.losses);
                self.past.lost.insert(self.past.pod);
                self.past.pod += 1;
            }
        }
        check(self)
    }

    fn read_on(&mut self, number: usize) {
        let head = self.past.head();
        let idle = self.past.reading(head).idle;
        if let Role::Brain(brain) = &mut self.actors[number].role {
            let over = idle == Some(brain.epoch) && !brain.reckless;
            (brain.head, brain.read, brain.behind) = (head, head, false);
            if over {
                brain.epoch = 0;
            }
        }
    }
}

impl Model for Scope {
    type State = World;
    type Action = Action;
    type Law = Law;

    fn start(&self) -> World {
        self.start.clone()
    }

    fn actions(&self, world: &World) -> Vec<Action> {
        let mut actions = Vec::new();
        for (number, actor) in world.actors.iter().enumerate() {
            match &actor.job {
                None => actor.role.options(number, world, &mut actions),
                Some(Job { ready: Some(_), .. }) => {
                    actions.push(Action::Commit(number));
                    if world.left.sends > 0 {
                        actions.push(Action::Send(number));
                    }
                }
                Some(Job { ready: None, .. }) => actions.extend([Action::Look(number), Action::GiveUp(number)]),
            }
            if world.left.crashes > 0 && actor.role.clone().crash() {
                actions.push(Action::Crash(number));
            }
        }
        actions.extend((0..world.flights.len()).map(Action::Arrive));
        if world.left.expiries > 0 && world.etcd.get(&world.session.keys.owner(&world.session.id)).is_some() {
            actions.push(Action::Expire);
        }
        if world.left.losses > 0 {
            actions.push(Action::LoseSandbox);
        }
        actions
    }

    fn step(&self, world: &World, action: &Action) -> Result<World, Law> {
        let mut next = world.clone();
        next.act(action, self)?;
        Ok(next)
    }

    /// Of revisions only the order counts, so only the order is part of it.
    fn fingerprint(&self, world: &World) -> u64 {
        let mut revisions: Vec<i64> = vec![0];
        revisions.extend(world.etcd.kvs().iter().flat_map(|kv| [kv.create_revision, kv.mod_revision]));
        let jobs = || world.actors.iter().filter_map(|actor| actor.job.as_ref());
        let writes = || jobs().filter_map(|job| job.ready.as_ref().map(|(sent, _)| sent)).chain(&world.flights);
        for guard in writes().flat_map(|sent| &sent.write.guards) {
            if let Guard::Unchanged(_, revision) = guard {
                revisions.push(*revision);
            }
        }
        for actor in &world.actors {
            if let Role::Brain(brain) = &actor.role {
                revisions.push(brain.wake);
            }
            if let Some(Job { wish: Wish::Idle { wake, .. }, .. }) = &actor.job {
                revisions.push(*wake);
            }
        }
        revisions.sort_unstable();
        revisions.dedup();
        let rank = |revision: i64| revisions.partition_point(|known| *known < revision);

        let mut hasher = DefaultHasher::new();
        for kv in world.etcd.kvs() {
            (&kv.key, &kv.value, rank(kv.create_revision), rank(kv.mod_revision), kv.lease).hash(&mut hasher);
        }
        for actor in &world.actors {
            match &actor.role {
                Role::Brain(brain) => {
                    (rank(brain.wake), &brain.inbox, brain.looked, brain.behind).hash(&mut hasher);
                    (brain.epoch, brain.head, brain.read).hash(&mut hasher);
                }
                role => role.hash(&mut hasher),
            }
            match &actor.job {
                None => 0_u8.hash(&mut hasher),
                Some(Job { ready: None, wish, .. }) => {
                    1_u8.hash(&mut hasher);
                    hash_wish(wish, &rank, &mut hasher);
                }
                Some(Job { ready: Some((sent, _)), in_doubt, .. }) => {
                    (2_u8, in_doubt).hash(&mut hasher);
                    hash_sent(sent, &rank, &mut hasher);
                }
            }
        }
        let mut flights: Vec<u64> = world
            .flights
            .iter()
            .map(|sent| {
                let mut hasher = DefaultHasher::new();
                hash_sent(sent, &rank, &mut hasher);
                hasher.finish()
            })
            .collect();
        flights.sort_unstable();
        let past = &world.past;
        (flights, world.left, &past.acknowledged, &past.owners, past.life, past.ended).hash(&mut hasher);
        (past.pod, &past.lost, &past.draining, &past.began).hash(&mut hasher);
        hasher.finish()
    }
}

fn hash_wish(wish: &Wish, rank: &impl Fn(i64) -> usize, hasher: &mut DefaultHasher) {
    match wish {
        Wish::Idle { epoch, head, wake, event } => (epoch, head, rank(*wake), event).hash(hasher),
        wish => wish.hash(hasher),
    }
}

fn hash_sent(sent: &Sent, rank: &impl Fn(i64) -> usize, hasher: &mut DefaultHasher) {
    hash_wish(&sent.wish, rank, hasher);
    sent.life.hash(hasher);
    for guard in &sent.write.guards {
        match guard {
            Guard::Unchanged(key, revision) => (key, rank(*revision)).hash(hasher),
            Guard::Holds(key, value) => (key, value).hash(hasher),
            Guard::Absent(key) | Guard::Present(key) | Guard::NoneUnder(key) => key.hash(hasher),
        }
    }
    format!("{:?}", sent.write.changes.len()).hash(hasher);
}
