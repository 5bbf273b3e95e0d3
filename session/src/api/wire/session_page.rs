//! Which sessions a page holds, chosen in one pass over all of them. Pure.

use std::cmp::Ordering;

use longhand_protocol::wire::Order;
use serde::{Deserialize, Serialize};

/// What sessions are ordered by: when they were made, then their name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Key {
    pub(super) created: i64,
    pub(super) name: String,
}

/// Where a page is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum At {
    After(Key),
    Before(Key),
}

/// Keeps the items of one page while all go by.
pub(super) struct Selection<T> {
    order: Order,
    at: Option<At>,
    limit: usize,
    kept: Vec<(Key, T)>,
}

/// A page, and where its neighbours are.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Selected<T> {
    pub(super) items: Vec<T>,
    pub(super) next: Option<At>,
    pub(super) prev: Option<At>,
}

impl<T> Selection<T> {
    pub(super) fn new(order: Order, at: Option<At>, limit: usize) -> Self {
        Self { order, at, limit, kept: Vec::new() }
    }

    /// `a` compared with `b` in the order of the list.
    fn compare(&self, a: &Key, b: &Key) -> Ordering {
        match self.order {
            Order::Asc => a.cmp(b),
            Order::Desc => b.cmp(a),
        }
    }

    /// How far from the page's edge; `None` if on its other side.
    fn distance(&self, a: &Key, b: &Key) -> Ordering {
        match self.at {
            Some(At::Before(_)) => self.compare(b, a),
            _ => self.compare(a, b),
        }
    }

    pub(super) fn offer(&mut self, key: Key, item: T) {
        let wanted = match &self.at {
            None => true,
            Some(At::After(edge)) => self.compare(&key, edge).is_gt(),
            Some(At::Before(edge)) => self.compare(&key, edge).is_lt(),
        };
        if !wanted {
            return;
        }
        let place = self.kept.partition_point(|(kept, _)| self.distance(kept, &key).is_lt());
        self.kept.insert(place, (key, item));
        // One more than the page holds says whether there is another page.
        self.kept.truncate(self.limit + 1);
    }

    /// What was kept, nearest to the page's edge first: one more than the limit if there is more.
    pub(super) fn nearest(self) -> Vec<(Key, T)> {
        self.kept
    }

    pub(super) fn select(mut self) -> Selected<T> {
        let more = self.kept.len() > self.limit;
        self.kept.truncate(self.limit);
        let backwards = matches!(self.at, Some(At::Before(_)));
        if backwards {
            self.kept.reverse();
        }
        let (has_next, has_prev) = if backwards { (true, more) } else { (more, self.at.is_some()) };
        let next = self.kept.last().filter(|_| has_next).map(|(key, _)| At::After(key.clone()));
        let prev = self.kept.first().filter(|_| has_prev).map(|(key, _)| At::Before(key.clone()));
        Selected { items: self.kept.into_iter().map(|(_, item)| item).collect(), next, prev }
    }
}

#[cfg(test)]
mod tests {
    use longhand_protocol::wire::Order;
    use rstest::rstest;

    use super::{At, Key, Selected, Selection};

    fn page(order: Order, at: Option<At>) -> Selected<i64> {
        let mut selection = Selection::new(order, at, 2);
        // As the API server lists them: by name.
        for created in [3, 1, 5, 2, 4] {
            selection.offer(Key { created, name: format!("s{created}") }, created);
        }
        selection.select()
    }

    #[rstest]
    #[case(Order::Asc, [vec![1, 2], vec![3, 4], vec![5]])]
    #[case(Order::Desc, [vec![5, 4], vec![3, 2], vec![1]])]
    fn pages_follow_one_another_there_and_back(#[case] order: Order, #[case] expected: [Vec<i64>; 3]) {
        let mut at = None;
        let mut back = Vec::new();
        for (index, items) in expected.iter().enumerate() {
            let page = page(order, at);
            assert_eq!(page.items, *items);
            assert_eq!(page.next.is_some(), index + 1 < expected.len());
            assert_eq!(page.prev.is_some(), index > 0);
            back.push(page.prev);
            at = page.next;
        }
        let before_last = page(order, back.pop().unwrap());
        assert_eq!(before_last.items, expected[1]);
        assert!(before_last.next.is_some());
        let first = page(order, before_last.prev);
        assert_eq!(first.items, expected[0]);
        assert_eq!(first.prev, None);
    }
}
