//! The last head that this replica knows of each session, so that a brain that is up to date appends in one round trip.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use longhand_protocol::SessionId;

/// A head is about 300 bytes.
const CAPACITY: usize = 8_192;

/// Heads as they are stored. One that is out of date costs a round trip and nothing else: the transaction compares it.
#[derive(Default)]
pub(super) struct Heads(Mutex<HashMap<SessionId, (u64, Vec<u8>)>>);

impl Heads {
    /// The stored head, if it is known and has this sequence number.
    pub(super) fn get(&self, id: &SessionId, seq: u64) -> Option<Vec<u8>> {
        let heads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        heads.get(id).filter(|(known, _)| *known == seq).map(|(_, bytes)| bytes.clone())
    }

    /// The last one that was stored here or seen, whatever is there by now.
    pub(super) fn latest(&self, id: &SessionId) -> Option<Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(id).map(|(_, bytes)| bytes.clone())
    }

    pub(super) fn put(&self, id: &SessionId, seq: u64, bytes: Vec<u8>) {
        let mut heads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if heads.len() >= CAPACITY && !heads.contains_key(id) {
            heads.clear();
        }
        heads.insert(id.clone(), (seq, bytes));
    }

    /// This one was read, perhaps before others that are known.
    pub(super) fn saw(&self, id: &SessionId, seq: u64, bytes: &[u8]) {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(id).map(|(seq, _)| *seq);
        if known.is_none_or(|known| known <= seq) {
            self.put(id, seq, bytes.to_vec());
        }
    }

    pub(super) fn forget(&self, id: &SessionId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}

#[cfg(test)]
mod tests {
    use super::{CAPACITY, Heads};

    #[test]
    fn only_the_head_that_is_asked_for_is_given() {
        let (heads, id) = (Heads::default(), "sesn_1".parse().unwrap());
        heads.put(&id, 3, b"head".to_vec());
        assert_eq!(heads.get(&id, 3), Some(b"head".to_vec()));
        assert_eq!(heads.get(&id, 4), None);
        heads.saw(&id, 2, b"older");
        assert_eq!(heads.latest(&id), Some(b"head".to_vec()));
        heads.saw(&id, 4, b"newer");
        assert_eq!((heads.latest(&id), heads.get(&id, 3)), (Some(b"newer".to_vec()), None));
        heads.forget(&id);
        assert_eq!(heads.get(&id, 3), None);
    }

    #[test]
    fn it_does_not_grow_without_bound() {
        let heads = Heads::default();
        for number in 0..=CAPACITY {
            heads.put(&format!("sesn_{number}").parse().unwrap(), 1, Vec::new());
        }
        assert!(heads.0.lock().unwrap().len() <= CAPACITY);
    }
}
