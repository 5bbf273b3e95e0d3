//! The batcher without etcd: who goes together, and what one member's fate does to the others.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::{Answer, Batcher, Class, Commit, Failure, MAX_WAITING, Member, Trouble};
use crate::etcd::client::Attempt;
use crate::etcd::keys::Keys;
use crate::etcd::write::{Guard, Write};
use crate::store::StoreError;

/// An etcd that answers when it is let to, and as it is told.
#[derive(Clone)]
struct Fake {
    /// The sessions of each batch, in order.
    batches: Arc<Mutex<Vec<Vec<String>>>>,
    answers: Arc<Semaphore>,
    arrived: Arc<Semaphore>,
    fate: fn(&[String]) -> Result<(), Failure>,
}

impl Fake {
    fn new(fate: fn(&[String]) -> Result<(), Failure>) -> Self {
        let (answers, arrived) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        Self { batches: Arc::default(), answers, arrived, fate }
    }

    fn batches(&self) -> Vec<Vec<String>> {
        self.batches.lock().unwrap().clone()
    }

    /// Returns when another batch is at etcd.
    async fn arrival(&self) {
        self.arrived.acquire().await.unwrap().forget();
    }
}

impl Commit for Fake {
    async fn commit(&self, _: Class, batch: &[Member]) -> Result<Vec<Answer>, Failure> {
        let names: Vec<String> = batch.iter().map(|member| member.write.keys().next().unwrap().to_owned()).collect();
        self.batches.lock().unwrap().push(names.clone());
        self.arrived.add_permits(1);
        self.answers.acquire().await.unwrap().forget();
        (self.fate)(&names)?;
        Ok(names.iter().map(|_| Ok(Attempt::Done(Vec::new()))).collect())
    }
}

const TIMEOUT: Duration = Duration::from_secs(5);

fn batcher(fake: &Fake) -> Batcher {
    Batcher::start(fake.clone(), 1, Keys::new("/"), TIMEOUT)
}

fn write(session: &str) -> Write {
    let mut write = Write::default();
    write.guard(Guard::Absent(session.to_owned())).put(session.to_owned(), "value");
    write
}

fn submit(batcher: &Batcher, session: &str) -> JoinHandle<Answer> {
    let (batcher, write) = (batcher.clone(), write(session));
    tokio::spawn(async move { batcher.submit(write).await })
}

/// Lets everything run that can.
async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn what_comes_in_meanwhile_goes_together() {
    let fake = Fake::new(|_| Ok(()));
    let batcher = batcher(&fake);
    let first = submit(&batcher, "a");
    fake.arrival().await;
    let rest = ["b", "c", "a", "c"].map(|session| submit(&batcher, session));
    settle().await;
    assert_eq!(fake.batches(), [["a"]]);
    fake.answers.add_permits(3);
    assert!(first.await.unwrap().is_ok());
    for one in rest {
        assert!(one.await.unwrap().is_ok());
    }
    assert_eq!(fake.batches(), [vec!["a"], vec!["b", "c", "a"], vec!["c"]]);
}

#[tokio::test]
async fn a_second_lane_waits_for_no_first_one_but_for_its_sessions() {
    let fake = Fake::new(|_| Ok(()));
    let batcher = Batcher::start(fake.clone(), 2, Keys::new("/"), TIMEOUT);
    let first = submit(&batcher, "a");
    fake.arrival().await;
    let rest = ["a", "b"].map(|session| submit(&batcher, session));
    fake.arrival().await;
    settle().await;
    assert_eq!(fake.batches(), [["a"], ["b"]]);
    fake.answers.add_permits(3);
    for one in std::iter::once(first).chain(rest) {
        assert!(one.await.unwrap().is_ok());
    }
    assert_eq!(fake.batches(), [["a"], ["b"], ["a"]]);
}

#[tokio::test]
async fn a_refused_member_is_found_and_fails_alone() {
    let poisoned = |names: &[String]| {
        let refused = names.iter().any(|name| name == "5");
        if refused { Err(Failure::Refused(StoreError::TooLarge("it".into()))) } else { Ok(()) }
    };
    let fake = Fake::new(poisoned);
    let batcher = batcher(&fake);
    let first = submit(&batcher, "first");
    fake.arrival().await;
    let rest: Vec<_> = (0..9).map(|number| submit(&batcher, &number.to_string())).collect();
    settle().await;
    fake.answers.add_permits(100);
    first.await.unwrap().unwrap();
    for (number, one) in rest.into_iter().enumerate() {
        let answer = one.await.unwrap();
        assert_eq!(
            matches!(answer, Err(Failure::Refused(StoreError::TooLarge(_)))),
            number == 5,
            "{number}: {answer:?}"
        );
        assert_eq!(answer.is_ok(), number != 5);
    }
    let sent: usize = fake.batches().iter().filter(|batch| batch.contains(&"8".to_owned())).map(Vec::len).count();
    assert!(sent <= 4, "halves, not one by one: {:?}", fake.batches());
}

#[tokio::test]
async fn each_member_of_a_lost_batch_is_in_doubt() {
    let fake = Fake::new(|_| Err(Failure::unknown("lost")));
    let batcher = batcher(&fake);
    let first = submit(&batcher, "a");
    fake.arrival().await;
    let rest = ["b", "c"].map(|session| submit(&batcher, session));
    settle().await;
    fake.answers.add_permits(2);
    for one in std::iter::once(first).chain(rest) {
        let answer = one.await.unwrap();
        assert!(matches!(answer, Err(Failure::Trouble(Trouble::Unknown(_)))), "{answer:?}");
    }
    assert_eq!(fake.batches().len(), 2);
}

#[tokio::test]
async fn who_gives_up_leaves_the_queue() {
    let fake = Fake::new(|_| Ok(()));
    let batcher = batcher(&fake);
    let first = submit(&batcher, "a");
    fake.arrival().await;
    let (given_up, kept) = (submit(&batcher, "b"), submit(&batcher, "c"));
    settle().await;
    given_up.abort();
    assert!(given_up.await.is_err());
    first.abort();
    assert!(first.await.is_err());
    fake.answers.add_permits(2);
    assert!(kept.await.unwrap().is_ok());
    assert_eq!(fake.batches(), [["a"], ["c"]]);
    assert_eq!(batcher.number.available_permits(), MAX_WAITING);
}

#[tokio::test(start_paused = true)]
async fn time_in_the_queue_counts_and_what_was_not_sent_is_known_not_to_be() {
    let fake = Fake::new(|_| Ok(()));
    let batcher = batcher(&fake);
    let first = submit(&batcher, "a");
    fake.arrival().await;
    let second = submit(&batcher, "b");
    let answer = first.await.unwrap();
    assert!(matches!(answer, Err(Failure::Trouble(Trouble::Unknown(_)))), "{answer:?}");
    let answer = second.await.unwrap();
    assert!(matches!(answer, Err(Failure::Trouble(Trouble::Busy))), "{answer:?}");
    let third = submit(&batcher, "c");
    fake.answers.add_permits(2);
    assert!(third.await.unwrap().is_ok());
    assert_eq!(fake.batches(), [["a"], ["c"]]);
}

#[tokio::test]
async fn a_full_queue_turns_away_at_once() {
    let fake = Fake::new(|_| Ok(()));
    let batcher = batcher(&fake);
    let mut large = write("large");
    large.put("large/value".to_owned(), vec![0; 64 * 1024 * 1024]);
    let first = tokio::spawn({
        let batcher = batcher.clone();
        async move { batcher.submit(large).await }
    });
    fake.arrival().await;
    let answer = batcher.submit(write("b")).await;
    assert!(matches!(answer, Err(Failure::Trouble(Trouble::Busy))), "{answer:?}");
    fake.answers.add_permits(2);
    assert!(first.await.unwrap().is_ok());
    assert!(batcher.submit(write("b")).await.is_ok());
}

#[tokio::test]
async fn what_waits_is_written_when_the_store_is_dropped() {
    let fake = Fake::new(|_| Ok(()));
    let batcher = batcher(&fake);
    let all = ["a", "b", "b"].map(|session| submit(&batcher, session));
    fake.arrival().await;
    settle().await;
    drop(batcher);
    fake.answers.add_permits(10);
    for one in all {
        assert!(one.await.unwrap().is_ok());
    }
    assert_eq!(fake.batches().concat().len(), 3);
}
