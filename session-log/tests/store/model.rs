//! Random interleavings of clients, two brains of which one may be a zombie, the service and lost claims, over several
//! sessions that are forked, ended, deleted, taken out and in again, with every change perhaps repeated and events moved
//! to the object store at any time: both stores answer the same and end with the same logs.

mod acts;
mod past;
mod run;
mod show;

use longhand_session_log::caps::Caps;
use proptest::prelude::{ProptestConfig, any, prop, proptest};

use self::acts::{Op, op};
use crate::archive::memory as objects;
use crate::{etcd, memory};

/// So few that many runs reach it.
const CAPS: Caps = Caps { events: 12, bytes: 0, warning_percent: 75 };

/// What both stores answer, one after the other.
async fn both(ops: &[Op], caps: Caps) -> (Vec<String>, Vec<String>) {
    let (oracle, real) = (memory::bounded(caps), etcd::bounded(objects().1, caps).await);
    let (expected, actual) = (run::run(&oracle, ops).await, run::run(&real, ops).await);
    assert_eq!(real.leftovers().await, Vec::<String>::new(), "sessions that are deleted leave nothing");
    (expected, actual)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn both_stores_answer_the_same(ops in prop::collection::vec(op(), 1..64), capped in any::<bool>()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (expected, actual) = runtime.block_on(both(&ops, if capped { CAPS } else { Caps::default() }));
        proptest::prop_assert_eq!(expected, actual);
    }
}
