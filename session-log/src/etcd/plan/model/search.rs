//! Every state that can be reached, breadth first: the history of the first violation is a shortest one.

use std::collections::{HashMap, VecDeque};
use std::fmt::Debug;

/// What is explored.
pub(super) trait Model {
    type State: Clone;
    type Action: Clone + Debug;
    type Law;

    fn start(&self) -> Self::State;
    fn actions(&self, state: &Self::State) -> Vec<Self::Action>;
    /// What comes of an action, or the law that it breaks.
    fn step(&self, state: &Self::State, action: &Self::Action) -> Result<Self::State, Self::Law>;
    /// The same for states of which the same can come.
    fn fingerprint(&self, state: &Self::State) -> u64;
}

/// What an exploration has found.
#[derive(Debug)]
pub(super) struct Explored<A, L> {
    pub(super) states: usize,
    pub(super) transitions: usize,
    pub(super) depth: usize,
    /// States in which nothing more can happen.
    pub(super) ends: usize,
    /// Whether there was nothing left to explore.
    pub(super) complete: bool,
    /// The law that was broken first, and how.
    pub(super) violation: Option<(L, Vec<A>)>,
}

/// Explores until a law is broken, everything is seen, or there are `limit` states.
pub(super) fn explore<M: Model>(model: &M, limit: usize) -> Explored<M::Action, M::Law> {
    let start = model.start();
    let mut found = Explored { states: 1, transitions: 0, depth: 0, ends: 0, complete: false, violation: None };
    let mut known = HashMap::from([(model.fingerprint(&start), 0_usize)]);
    // For each state: the one that it came from, by which action.
    let mut came: Vec<Option<(usize, M::Action)>> = vec![None];
    let mut queue = VecDeque::from([(0, 0, start)]);
    while let Some((number, depth, state)) = queue.pop_front() {
        found.depth = depth;
        let actions = model.actions(&state);
        found.ends += usize::from(actions.is_empty());
        for action in actions {
            found.transitions += 1;
            let next = match model.step(&state, &action) {
                Ok(next) => next,
                Err(law) => {
                    found.violation = Some((law, history(&came, number, action)));
                    return found;
                }
            };
            let count = known.len();
            if *known.entry(model.fingerprint(&next)).or_insert(count) == count {
                came.push(Some((number, action)));
                queue.push_back((count, depth + 1, next));
                found.states += 1;
            }
        }
        if found.states >= limit {
            return found;
        }
    }
    found.complete = true;
    found
}

fn history<A: Clone>(came: &[Option<(usize, A)>], mut number: usize, last: A) -> Vec<A> {
    let mut actions = vec![last];
    while let Some((before, action)) = &came[number] {
        actions.push(action.clone());
        number = *before;
    }
    actions.reverse();
    actions
}

/// Two counters up to 3 that must not both be at 2.
struct Counters;

impl Model for Counters {
    type State = (u8, u8);
    type Action = char;
    type Law = &'static str;

    fn start(&self) -> Self::State {
        (0, 0)
    }

    fn actions(&self, state: &Self::State) -> Vec<char> {
        [('a', state.0), ('b', state.1)].into_iter().filter(|(_, at)| *at < 3).map(|(name, _)| name).collect()
    }

    fn step(&self, state: &Self::State, action: &char) -> Result<Self::State, Self::Law> {
        let next = if *action == 'a' { (state.0 + 1, state.1) } else { (state.0, state.1 + 1) };
        if next == (2, 2) { Err("both are at 2") } else { Ok(next) }
    }

    fn fingerprint(&self, state: &Self::State) -> u64 {
        u64::from(state.0) * 16 + u64::from(state.1)
    }
}

#[test]
fn a_shortest_history_is_found() {
    let found = explore(&Counters, 1_000);
    let (law, history) = found.violation.unwrap();
    assert_eq!((law, history.len(), found.complete), ("both are at 2", 4, false));
    assert_eq!(explore(&Counters, 3).violation, None);
}
