//! Which of the writes that wait go into the next batch.
//!
//! A batch holds at most one write of each group, which is a session: nested compares all see the state before the batch,
//! so two writes of one session would both pass a guard that only the first may pass, and etcd refuses a key that is put
//! twice. Whoever waits longest is always taken, so nobody starves; behind it, others go ahead of those that do not fit,
//! but never ahead of an earlier write of the same session.

use std::collections::{HashSet, VecDeque};

/// Etcd counts the longest lists of all levels together, and not how many transactions there are on each: so members in
/// groups, which are transactions of their own, are far more than members side by side.
const MAX_OPERATIONS: usize = 128;
/// Etcd does nothing else while it carries a batch out.
const MAX_MEMBERS: usize = 1_024;
/// A batch may be so large although another lane would share it: what it costs beside the round trip is little.
const SMALL_BATCH: usize = 16;
/// The rest of etcd's 1.5 MiB is for its own framing.
const MAX_BYTES: usize = 1_200_000;

/// What a write takes from a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cost {
    /// The longer of its lists of guards and changes.
    pub(super) operations: usize,
    /// Of all keys and values.
    pub(super) bytes: usize,
}

/// Whether etcd takes a write when it has no space left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// It needs space.
    Takes,
    /// It makes room, and must not wait behind, or fail with, those that need it.
    Frees,
}

/// A write that waits.
#[derive(Debug)]
pub(super) struct Waiting<T> {
    /// Whose keys it compares or changes, as hashes: two that collide only miss a batch.
    pub(super) groups: Vec<u64>,
    pub(super) class: Class,
    pub(super) cost: Cost,
    pub(super) item: T,
}

/// How many members stand side by side: `None` when no level is needed between them and the outermost transaction.
pub(super) fn group_size(members: usize, deepest: usize) -> Option<usize> {
    (members + deepest > MAX_OPERATIONS).then(|| (MAX_OPERATIONS.saturating_sub(deepest) / 2).max(1))
}

/// How many members etcd takes, if the deepest has so many operations.
fn capacity(deepest: usize) -> usize {
    let left = MAX_OPERATIONS.saturating_sub(deepest);
    left.max((left / 2) * (left - left / 2)).min(MAX_MEMBERS)
}

/// Writes that go together, all of one class.
#[derive(Debug)]
pub(super) struct Batch<T> {
    pub(super) class: Class,
    /// Whose keys they compare or change.
    pub(super) groups: Vec<u64>,
    pub(super) items: Vec<T>,
}

/// The writes that wait, in the order in which they came, and whose keys are on their way.
#[derive(Debug)]
pub(super) struct Queue<T> {
    waiting: VecDeque<Waiting<T>>,
    busy: HashSet<u64>,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), busy: HashSet::new() }
    }
}

impl<T> Queue<T> {
    pub(super) fn push(&mut self, waiting: Waiting<T>) {
        self.waiting.push_back(waiting);
    }

    /// The next batch of at most `1 / lanes` of everything that waits or is on its way, so that all lanes have about as
    /// much to carry, or of a few; `None` when nothing waits that may go, or less than what is on its way: each batch costs
    /// etcd a write to its disk, so they are better even. Its groups are busy until they are released.
    pub(super) fn take(&mut self, lanes: usize) -> Option<Batch<T>> {
        if self.waiting.len() < self.busy.len() {
            return None;
        }
        let is_free = |waiting: &Waiting<T>| waiting.groups.iter().all(|group| !self.busy.contains(group));
        let class = self.waiting.iter().find(|waiting| is_free(waiting))?.class;
        let most = (self.waiting.len() + self.busy.len()).div_ceil(lanes).max(SMALL_BATCH);
        let mut plan = Filling { most, closed: self.busy.clone(), ..Filling::default() };
        let (mut items, mut groups) = (Vec::new(), Vec::new());
        let mut left = VecDeque::new();
        while let Some(waiting) = self.waiting.pop_front() {
            if plan.takes(&waiting, class) {
                groups.extend(&waiting.groups);
                items.push(waiting.item);
            } else {
                left.push_back(waiting);
                if plan.is_full() {
                    break;
                }
            }
        }
        left.append(&mut self.waiting);
        self.waiting = left;
        self.busy.extend(&groups);
        Some(Batch { class, groups, items })
    }

    /// What was on its way is answered.
    pub(super) fn release(&mut self, groups: Vec<u64>) {
        for group in groups {
            self.busy.remove(&group);
        }
    }
}

/// A batch as it grows.
#[derive(Debug, Default)]
struct Filling {
    /// No more members than this.
    most: usize,
    members: usize,
    deepest: usize,
    bytes: usize,
    /// Groups that are busy, in the batch, or whose first write did not fit.
    closed: HashSet<u64>,
}

impl Filling {
    fn takes<T>(&mut self, waiting: &Waiting<T>, class: Class) -> bool {
        let fits = waiting.class == class
            && waiting.groups.iter().all(|group| !self.closed.contains(group))
            && self.has_room(waiting.cost);
        self.closed.extend(&waiting.groups);
        if fits {
            self.members += 1;
            self.deepest = self.deepest.max(waiting.cost.operations);
            self.bytes += waiting.cost.bytes;
        }
        fits
    }

    /// The first has room whatever it costs: it goes alone then, and etcd says what is wrong with it.
    fn has_room(&self, cost: Cost) -> bool {
        self.members == 0
            || (self.members < capacity(self.deepest.max(cost.operations)).min(self.most)
                && self.bytes.saturating_add(cost.bytes) <= MAX_BYTES)
    }

    /// Whether not even the smallest write would fit.
    fn is_full(&self) -> bool {
        !self.has_room(Cost { operations: 1, bytes: 1 })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Strategy, any, prop, proptest};
    use rstest::rstest;

    use super::{Class, Cost, MAX_BYTES, MAX_OPERATIONS, Queue, Waiting, group_size};

    fn waiting(groups: &[u64], class: Class, operations: usize, bytes: usize, item: usize) -> Waiting<usize> {
        Waiting { groups: groups.to_vec(), class, cost: Cost { operations, bytes }, item }
    }

    fn batches(all: Vec<Waiting<usize>>) -> Vec<Vec<usize>> {
        let mut queue = Queue::default();
        all.into_iter().for_each(|waiting| queue.push(waiting));
        std::iter::from_fn(|| {
            let batch = queue.take(1)?;
            queue.release(batch.groups);
            Some(batch.items)
        })
        .collect()
    }

    fn takes(group: u64, operations: usize, bytes: usize, item: usize) -> Waiting<usize> {
        waiting(&[group], Class::Takes, operations, bytes, item)
    }

    #[rstest]
    #[case::nothing(vec![], vec![])]
    #[case::different_sessions(vec![takes(1, 3, 9, 0), takes(2, 3, 9, 1)], vec![vec![0, 1]])]
    #[case::one_session(vec![takes(1, 3, 9, 0), takes(1, 3, 9, 1), takes(2, 3, 9, 2)], vec![vec![0, 2], vec![1]])]
    #[case::two_sessions_in_one_write(
        vec![takes(1, 3, 9, 0), waiting(&[2, 1], Class::Takes, 3, 9, 1), takes(2, 3, 9, 2), takes(3, 3, 9, 3)],
        vec![vec![0, 3], vec![1], vec![2]]
    )]
    #[case::classes(
        vec![takes(1, 3, 9, 0), waiting(&[2], Class::Frees, 3, 9, 1), takes(3, 3, 9, 2)],
        vec![vec![0, 2], vec![1]]
    )]
    #[case::a_deep_one_waits_its_turn(
        vec![takes(1, 3, 9, 0), takes(2, 126, 9, 1), takes(3, 127, 9, 2), takes(4, 3, 9, 3)],
        vec![vec![0, 1], vec![2], vec![3]]
    )]
    #[case::bytes(
        vec![takes(1, 3, MAX_BYTES - 10, 0), takes(2, 3, 11, 1), takes(3, 3, 10, 2), takes(2, 3, 1, 3)],
        vec![vec![0, 2], vec![1], vec![3]]
    )]
    #[case::too_large_goes_alone(
        vec![takes(1, 300, MAX_BYTES * 2, 0), takes(2, 3, 9, 1)],
        vec![vec![0], vec![1]]
    )]
    fn batches_are(#[case] all: Vec<Waiting<usize>>, #[case] expected: Vec<Vec<usize>>) {
        assert_eq!(batches(all), expected);
    }

    #[test]
    fn lanes_share_what_waits_and_no_session_is_in_two() {
        let mut queue = Queue::default();
        let take = |queue: &mut Queue<usize>| queue.take(2).map(|batch| (batch.items.len(), batch.groups));
        (0..100).for_each(|number| queue.push(takes(number, 3, 9, 0)));
        let (first, groups) = take(&mut queue).unwrap();
        queue.push(takes(0, 3, 9, 0));
        let (second, others) = take(&mut queue).unwrap();
        assert_eq!((first, second), (50, 50));
        assert!(groups.iter().all(|group| !others.contains(group)));
        assert!(take(&mut queue).is_none(), "its session is on its way");
        queue.release(others);
        assert!(take(&mut queue).is_none());
        queue.release(groups);
        assert_eq!(take(&mut queue), Some((1, vec![0])));
    }

    #[test]
    fn a_few_go_together_although_a_lane_is_free() {
        let mut queue = Queue::default();
        (0..17).for_each(|number| queue.push(takes(number, 3, 9, 0)));
        let first = queue.take(2).unwrap();
        assert_eq!(first.items.len(), 16);
        assert!(queue.take(2).is_none(), "so few wait for what is on its way");
        queue.release(first.groups);
        assert_eq!(queue.take(2).unwrap().items.len(), 1);
    }

    #[test]
    fn a_full_batch_is_as_large_as_etcd_takes() {
        let sizes = |operations| {
            let all = (0..2_000).map(|number| takes(number, operations, 9, 0)).collect();
            batches(all).iter().map(Vec::len).take(2).collect::<Vec<_>>()
        };
        assert_eq!(sizes(3), [1_024, 976]);
        assert_eq!(sizes(100), [196, 196]);
        assert_eq!(sizes(125), [3, 3]);
    }

    /// What etcd counts.
    fn levels(members: usize, deepest: usize) -> usize {
        group_size(members, deepest).map_or(members, |size| members.div_ceil(size) + size) + deepest
    }

    fn anything() -> impl Strategy<Value = (Vec<u64>, bool, usize, usize)> {
        let groups = prop::collection::vec(0_u64..6, 1..3);
        (groups, any::<bool>(), 1_usize..130, 1_usize..600_000)
    }

    proptest! {
        /// Everything goes, once; each batch fits, is of one class and has no group twice; no session's order changes;
        /// the one that waits longest is never passed over.
        #[test]
        fn every_batch_is_right(all in prop::collection::vec(anything(), 0..60)) {
            let mut queue = Queue::default();
            for (number, (groups, frees, operations, bytes)) in all.iter().enumerate() {
                let class = if *frees { Class::Frees } else { Class::Takes };
                queue.push(waiting(groups, class, *operations, *bytes, number));
            }
            let mut order = Vec::new();
            while let Some(batch) = queue.take(1) {
                queue.release(batch.groups);
                let first = (0..all.len()).find(|number| !order.contains(number));
                assert_eq!(batch.items.first().copied(), first);
                let mut groups: Vec<u64> = Vec::new();
                for number in &batch.items {
                    let mut own = all[*number].0.clone();
                    own.sort_unstable();
                    own.dedup();
                    groups.extend(own);
                    assert_eq!(all[*number].1, batch.class == Class::Frees);
                }
                let count = groups.len();
                groups.sort_unstable();
                groups.dedup();
                assert_eq!(groups.len(), count);
                if batch.items.len() > 1 {
                    let deepest = batch.items.iter().map(|number| all[*number].2).max().unwrap_or_default();
                    assert!(levels(batch.items.len(), deepest) <= MAX_OPERATIONS);
                    assert!(batch.items.iter().map(|number| all[*number].3).sum::<usize>() <= MAX_BYTES);
                }
                order.extend(batch.items);
            }
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..all.len()).collect::<Vec<_>>());
            for group in 0..6 {
                let of_group: Vec<usize> = order.iter().copied().filter(|number| all[*number].0.contains(&group)).collect();
                assert!(of_group.is_sorted());
            }
        }
    }
}
