//! The in-memory store keeps the contract.

use std::sync::Arc;

use async_trait::async_trait;
use longhand_protocol::SessionId;
use longhand_session_log::SessionStore;
use longhand_session_log::caps::Caps;
use longhand_session_log::memory::MemoryStore;

use crate::conformance::{Fixture, INBOX_LIMIT};

pub(crate) struct Memory(MemoryStore);

#[async_trait]
impl Fixture for Memory {
    fn store(&self) -> Arc<dyn SessionStore> {
        Arc::new(self.0.clone())
    }

    async fn replica(&self) -> Arc<dyn SessionStore> {
        self.store()
    }

    async fn capped(&self, caps: Caps) -> Arc<dyn SessionStore> {
        Arc::new(MemoryStore::bounded(INBOX_LIMIT, caps))
    }

    async fn expire_claim(&self, id: &SessionId) {
        self.0.expire_claim(id);
    }
}

pub(crate) async fn fixture() -> Memory {
    bounded(Caps::default())
}

pub(crate) fn bounded(caps: Caps) -> Memory {
    Memory(MemoryStore::bounded(INBOX_LIMIT, caps))
}

crate::conformance::suite!(fixture);

#[test]
fn what_is_shared_is_set_once() {
    let store = MemoryStore::default();
    assert_eq!(store.get_or_create("key", b"one"), b"one");
    assert_eq!(store.get_or_create("key", b"two"), b"one");
}
