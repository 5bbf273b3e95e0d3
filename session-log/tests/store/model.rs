//! Random interleavings of clients, two brains of which one may be a zombie, the service and lost claims, over several
//! sessions that are forked, ended, deleted, taken out and in again, with every change perhaps repeated and events moved
//! to the object store at any time: both stores answer the same and end with the same logs.

mod acts;
mod past;
mod run;
mod show;

use proptest::prelude::{ProptestConfig, prop, proptest};

use self::acts::{Op, op};
use crate::archive::memory as objects;
use crate::{etcd, memory};

/// What both stores answer, one after the other.
async fn both(ops: &[Op]) -> (Vec<String>, Vec<String>) {
    let (oracle, real) = (memory::fixture().await, etcd::etcd_with(Some(objects().1)).await);
    let (expected, actual) = (run::run(&oracle, ops).await, run::run(&real, ops).await);
    assert_eq!(real.leftovers().await, Vec::<String>::new(), "sessions that are deleted leave nothing");
    (expected, actual)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn both_stores_answer_the_same(ops in prop::collection::vec(op(), 1..64)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (expected, actual) = runtime.block_on(both(&ops));
        proptest::prop_assert_eq!(expected, actual);
    }
}
