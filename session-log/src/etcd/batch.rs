//! Group commit: writes of many sessions go to etcd as nested transactions of one.
//!
//! A batch is on its way in each of [`LANES`]; what comes in meanwhile is the next one, which goes as soon as one of them
//! is answered. Nobody waits for a timer: a write that finds a lane free goes at once. No session is in two lanes. Each
//! member keeps its own guards and its own answer, as if it had been sent alone.
//!
//! What happens to a whole batch happens to its members so that none pays for another: a batch that etcd refuses is
//! halved until the one that it will not take is found; of a batch whose answer is lost each member looks for itself
//! whether it was carried out. A caller that gives up leaves the queue; what is on its way then, it has to look up, as
//! before. The queue is bounded in number and in bytes; above it, callers are told at once to come back later.

mod commit;
mod queue;
#[cfg(test)]
mod tests;

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use etcd_client::KvClient;
use futures::stream::{FuturesUnordered, StreamExt as _};
use metrics::{counter, gauge, histogram};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use self::commit::Committer;
use self::queue::{Batch, Class, Cost, Queue, Waiting};
use super::client::Attempt;
use super::failure::{Failure, Trouble};
use super::keys::Keys;
use super::link::Link;
use super::write::{Change, Write};

/// When one who was turned away may come back: a full queue is gone by then.
pub(super) const RETRY_AFTER: Duration = Duration::from_secs(1);

/// How many writes may wait or be on their way.
const MAX_WAITING: usize = 8_192;
const KIB: usize = 1024;
/// How much they may hold together.
const MAX_WAITING_KIB: usize = 64 * KIB;

/// Batches on their way at a time: etcd carries one out while the answers to another are taken and give the next one.
const LANES: usize = 2;

type Answer = Result<Attempt, Failure>;

/// How a batch is carried out.
trait Commit: Send + Sync + 'static {
    /// Sends the batch; one answer a member, or what happened to all of them.
    fn commit(&self, class: Class, batch: &[Member]) -> impl Future<Output = Result<Vec<Answer>, Failure>> + Send;
}

/// A write on its way.
struct Member {
    write: Write,
    reply: oneshot::Sender<Answer>,
    sent: Arc<AtomicBool>,
    _room: [OwnedSemaphorePermit; 2],
}

impl Member {
    /// Whether somebody still waits for it, in which case it counts as sent from now on.
    fn begin(&self) -> bool {
        // Before the look at the caller: one that gives up afterwards sees that it may have been sent.
        self.sent.store(true, Ordering::SeqCst);
        !self.reply.is_closed()
    }

    fn answer(self, answer: Answer) {
        // Who has left does not need it.
        let _ = self.reply.send(answer);
    }
}

/// Takes writes, of any number of callers.
#[derive(Clone)]
pub(super) struct Batcher {
    sender: mpsc::UnboundedSender<Waiting<Member>>,
    number: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    keys: Keys,
    timeout: Duration,
}

impl Batcher {
    /// The task behind it ends with the last clone, after what waits then.
    pub(super) fn on(link: Link, kv: KvClient, keys: Keys, timeout: Duration) -> Self {
        let committer = Committer::new(link, kv, keys.service("space"));
        Self::start(committer, LANES, keys, timeout)
    }

    fn start(committer: impl Commit, lanes: usize, keys: Keys, timeout: Duration) -> Self {
        // Bounded by the permits that its members hold.
        let (sender, receiver) = mpsc::unbounded_channel();
        tokio::spawn(run(receiver, committer, lanes));
        Self {
            sender,
            number: Arc::new(Semaphore::new(MAX_WAITING)),
            bytes: Arc::new(Semaphore::new(MAX_WAITING_KIB)),
            keys,
            timeout,
        }
    }

    /// Carries a write out, if its guards hold. The time in the queue counts.
    pub(super) async fn submit(&self, write: Write) -> Answer {
        let deadline = Instant::now() + self.timeout;
        let cost = cost(&write);
        let Some(room) = self.room(cost) else {
            counter!("longhand_log_turned_away_total").increment(1);
            return Err(Failure::Trouble(Trouble::Busy));
        };
        let (reply, mut answer) = oneshot::channel();
        let sent = Arc::new(AtomicBool::new(false));
        let waiting = Waiting {
            groups: self.groups(&write),
            class: if frees(&write) { Class::Frees } else { Class::Takes },
            cost,
            item: Member { write, reply, sent: Arc::clone(&sent), _room: room },
        };
        let _queued = Queued::new();
        if self.sender.send(waiting).is_err() {
            return Err(Failure::unknown("the store is closed"));
        }
        if let Ok(answered) = timeout_at(deadline, &mut answer).await {
            return answered.unwrap_or_else(|_| Err(Failure::unknown("the store is closed")));
        }
        answer.close();
        match answer.try_recv() {
            Ok(answered) => answered,
            Err(_) if sent.load(Ordering::SeqCst) => {
                Err(Failure::unknown(format!("etcd did not answer within {:?}", self.timeout)))
            }
            Err(_) => Err(Failure::Trouble(Trouble::Busy)),
        }
    }

    fn room(&self, cost: Cost) -> Option<[OwnedSemaphorePermit; 2]> {
        let kib = u32::try_from(cost.bytes.div_ceil(KIB).min(MAX_WAITING_KIB)).unwrap_or(u32::MAX);
        let number = Arc::clone(&self.number).try_acquire_owned().ok()?;
        let bytes = Arc::clone(&self.bytes).try_acquire_many_owned(kib).ok()?;
        Some([number, bytes])
    }

    /// The sessions, or whatever else, whose keys the write compares or changes.
    fn groups(&self, write: &Write) -> Vec<u64> {
        let mut groups: Vec<u64> = write.keys().map(|key| hash(self.keys.group(key))).collect();
        groups.sort_unstable();
        groups.dedup();
        groups
    }
}

/// Counts a write for as long as its caller waits.
struct Queued;

impl Queued {
    fn new() -> Self {
        gauge!("longhand_log_waiting_writes").increment(1.0);
        Self
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        gauge!("longhand_log_waiting_writes").decrement(1.0);
    }
}

fn hash(group: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    group.hash(&mut hasher);
    hasher.finish()
}

fn cost(write: &Write) -> Cost {
    Cost { operations: write.guards.len().max(write.changes.len()), bytes: write.size() }
}

fn frees(write: &Write) -> bool {
    write.makes_room || write.changes.iter().all(|change| matches!(change, Change::Delete(_)))
}

async fn run(mut receiver: mpsc::UnboundedReceiver<Waiting<Member>>, committer: impl Commit, lanes: usize) {
    let mut queue = Queue::default();
    let mut on_their_way = FuturesUnordered::new();
    let mut is_open = true;
    while is_open || !on_their_way.is_empty() {
        tokio::select! {
            waiting = receiver.recv(), if is_open => match waiting {
                Some(waiting) => queue.push(waiting),
                None => is_open = false,
            },
            Some(groups) = on_their_way.next() => queue.release(groups),
        }
        // Those who were just answered go first: their next writes then share a batch.
        tokio::task::yield_now().await;
        while let Ok(waiting) = receiver.try_recv() {
            queue.push(waiting);
        }
        while on_their_way.len() < lanes
            && let Some(batch) = queue.take(lanes)
        {
            on_their_way.push(carry_out(batch, &committer));
        }
    }
}

/// Sends a batch; again in halves if it is refused as a whole. Returns whose it was.
async fn carry_out(batch: Batch<Member>, committer: &impl Commit) -> Vec<u64> {
    let Batch { class, groups, items } = batch;
    let mut parts = vec![items];
    while let Some(mut members) = parts.pop() {
        members.retain(Member::begin);
        if members.is_empty() {
            continue;
        }
        #[expect(clippy::cast_precision_loss, reason = "a batch has at most 1,024 members")]
        histogram!("longhand_log_batch_writes").record(members.len() as f64);
        let begun = Instant::now();
        let outcome = committer.commit(class, &members).await;
        let label = match &outcome {
            Ok(_) => "ok",
            Err(Failure::Refused(_)) => "refused",
            Err(Failure::Trouble(_)) => "trouble",
        };
        histogram!("longhand_log_commit_seconds", "outcome" => label).record(begun.elapsed().as_secs_f64());
        match outcome {
            Ok(answers) => {
                for (member, answer) in members.into_iter().zip(answers) {
                    member.answer(answer);
                }
            }
            Err(Failure::Trouble(trouble)) => {
                for member in members {
                    member.answer(Err(Failure::Trouble(trouble.clone())));
                }
            }
            Err(Failure::Refused(error)) => {
                let later = members.split_off(members.len().div_ceil(2));
                if later.is_empty() {
                    if let Some(only) = members.pop() {
                        only.answer(Err(Failure::Refused(error)));
                    }
                } else {
                    parts.extend([later, members]);
                }
            }
        }
    }
    groups
}
