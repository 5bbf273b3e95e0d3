//! Whose records a forked session's history is made of. Pure.

use std::ops::RangeInclusive;

use longhand_protocol::SessionId;
use serde::{Deserialize, Serialize};

use crate::store::{Parent, Result, StoreError};

/// So many logs a history may be made of.
const DEEPEST: usize = 64;

/// A part of a history that another session's log holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Ancestor {
    session: SessionId,
    /// The last record of the part, which begins behind the part before it.
    last: u64,
}

/// The parts of a history that other sessions' logs hold, oldest first; none for a session that is not a fork.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Lineage(Vec<Ancestor>);

impl Lineage {
    /// That of a session without a parent.
    pub(crate) fn none() -> Self {
        Self::default()
    }

    /// The last record that is another session's; 0 when there is none.
    pub(crate) fn inherited(&self) -> u64 {
        self.0.last().map_or(0, |ancestor| ancestor.last)
    }

    /// That of a fork, if this is its parent's.
    pub(crate) fn fork(&self, from: &Parent) -> Result<Self> {
        let mut ancestors = Vec::with_capacity(self.0.len() + 1);
        for ancestor in &self.0 {
            if ancestors.last().is_none_or(|before: &Ancestor| before.last < from.seq) {
                ancestors.push(Ancestor { last: ancestor.last.min(from.seq), ..ancestor.clone() });
            }
        }
        if from.seq > self.inherited() {
            ancestors.push(Ancestor { session: from.session.clone(), last: from.seq });
        }
        ancestors.retain(|ancestor| ancestor.last > 0);
        if ancestors.len() > DEEPEST {
            return Err(StoreError::TooLarge(format!(
                "its history would be made of the logs of {} sessions and may be of {DEEPEST}; fork an earlier one",
                ancestors.len()
            )));
        }
        Ok(Self(ancestors))
    }

    /// Which session's log holds which part of the range, in order.
    pub(crate) fn parts<'a>(
        &'a self,
        own: &'a SessionId,
        range: &RangeInclusive<u64>,
    ) -> Vec<(&'a SessionId, RangeInclusive<u64>)> {
        let ends = self.0.iter().map(|ancestor| (&ancestor.session, ancestor.last)).chain([(own, u64::MAX)]);
        let mut parts = Vec::new();
        let mut first = 1;
        for (session, last) in ends {
            let part = first.max(*range.start())..=last.min(*range.end());
            if !part.is_empty() {
                parts.push((session, part));
            }
            first = last.saturating_add(1);
        }
        parts
    }

    /// The ancestors, and which records of theirs belong to the history.
    pub(crate) fn ancestors(&self) -> impl Iterator<Item = (&SessionId, RangeInclusive<u64>)> {
        let firsts = std::iter::once(1).chain(self.0.iter().map(|ancestor| ancestor.last.saturating_add(1)));
        self.0.iter().zip(firsts).map(|(ancestor, first)| (&ancestor.session, first..=ancestor.last))
    }
}

#[cfg(test)]
mod tests {
    use longhand_protocol::SessionId;
    use proptest::prelude::{any, prop, prop_assert_eq, proptest};

    use super::{DEEPEST, Lineage};
    use crate::store::{Parent, StoreError};

    fn id(number: usize) -> SessionId {
        format!("sesn_{number}").parse().unwrap()
    }

    fn fork(of: &Lineage, session: usize, seq: u64) -> Lineage {
        of.fork(&Parent { session: id(session), seq }).unwrap()
    }

    #[test]
    fn a_fork_of_a_fork_has_parts_of_both() {
        let first = fork(&Lineage::none(), 1, 10);
        let second = fork(&first, 2, 15);
        let own = id(3);
        assert_eq!(second.parts(&own, &(8..=20)), [(&id(1), 8..=10), (&id(2), 11..=15), (&own, 16..=20)]);
        assert_eq!(second.parts(&own, &(16..=20)), [(&own, 16..=20)]);
        assert_eq!(fork(&second, 3, 10), first);
        assert_eq!(fork(&second, 3, 4).parts(&own, &(1..=5)), [(&id(1), 1..=4), (&own, 5..=5)]);
        assert_eq!(fork(&second, 3, 0), Lineage::none());
    }

    #[test]
    fn it_is_bounded() {
        let mut lineage = Lineage::none();
        for number in 0..DEEPEST {
            lineage = fork(&lineage, number, u64::try_from(number).unwrap() + 1);
        }
        let deeper = lineage.fork(&Parent { session: id(999), seq: 1_000 });
        assert!(matches!(deeper, Err(StoreError::TooLarge(_))));
        assert!(lineage.fork(&Parent { session: id(999), seq: 3 }).is_ok());
    }

    proptest! {
        /// Each session is what it inherits, and a record of its own for each number behind that.
        #[test]
        fn every_record_is_its_writers(forks in prop::collection::vec((any::<usize>(), 0..40_u64), 1..20)) {
            let mut lineages = vec![Lineage::none()];
            // Who wrote the record with each number, up to 40.
            let mut naive: Vec<Vec<usize>> = vec![vec![0; 40]];
            for (of, seq) in forks {
                let of = of % lineages.len();
                let number = lineages.len();
                lineages.push(fork(&lineages[of], of, seq));
                let kept = usize::try_from(seq).unwrap();
                let own = std::iter::repeat_n(number, 40 - kept);
                naive.push(naive[of][..kept].iter().copied().chain(own).collect());
            }
            for (number, (lineage, writers)) in lineages.iter().zip(&naive).enumerate() {
                let own = id(number);
                let parts = lineage.parts(&own, &(1..=40));
                let found: Vec<SessionId> = parts.into_iter().flat_map(|(id, range)| range.map(|_| id.clone())).collect();
                prop_assert_eq!(found, writers.iter().map(|writer| id(*writer)).collect::<Vec<_>>());
            }
        }
    }
}
