//! A request with a key is carried out once, whoever is asked and whoever dies.

use std::sync::Arc;

use futures::future::join_all;
use jiff::{SignedDuration, Timestamp};
use longhand_session_log::etcd::{EtcdOptions, EtcdStore};
use longhand_session_log::requests::{Answer, Begun, KEPT, MemoryRequests, Requests};

use crate::etcd::etcd_with;
use crate::support::Server;
use crate::support::cut::Cut;

fn answer(body: &str) -> Answer {
    Answer { status: 200, body: body.to_owned() }
}

fn first(begun: Begun) -> String {
    match begun {
        Begun::Go { seed, first: true } => seed,
        other => panic!("{other:?}"),
    }
}

fn now() -> Timestamp {
    "2026-01-02T03:04:05Z".parse().unwrap()
}

/// Two replicas over the same data.
async fn each() -> Vec<(&'static str, Arc<dyn Requests>, Arc<dyn Requests>)> {
    let memory = MemoryRequests::default();
    let etcd = etcd_with(None).await;
    let (one, two) = (etcd.inner().requests(), etcd.another().await.requests());
    vec![("memory", Arc::new(memory.clone()), Arc::new(memory)), ("etcd", Arc::new(one), Arc::new(two))]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_answer_is_the_answer_on_every_replica() {
    for (store, one, two) in each().await {
        let seed = first(one.begin("a", "d", now()).await.unwrap());
        let again = Begun::Go { seed: seed.clone(), first: false };
        assert_eq!(two.begin("a", "d", now()).await.unwrap(), again, "{store}");
        assert_eq!(two.begin("a", "other", now()).await.unwrap(), Begun::Other, "{store}");
        assert_ne!(first(two.begin("b", "d", now()).await.unwrap()), seed);

        assert_eq!(two.answer("a", &seed, answer("1")).await.unwrap(), answer("1"));
        assert_eq!(one.answer("a", &seed, answer("2")).await.unwrap(), answer("1"), "{store}");
        assert_eq!(one.begin("a", "d", now()).await.unwrap(), Begun::Answered(answer("1")), "{store}");
        assert_eq!(one.begin("a", "other", now()).await.unwrap(), Begun::Other, "{store}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_made_nothing_is_forgotten() {
    for (store, one, two) in each().await {
        let seed = first(one.begin("a", "d", now()).await.unwrap());
        two.forget("a", "another seed").await.unwrap();
        assert!(matches!(one.begin("a", "d", now()).await.unwrap(), Begun::Go { first: false, .. }), "{store}");
        two.forget("a", &seed).await.unwrap();
        two.forget("a", &seed).await.unwrap();
        let next = first(one.begin("a", "corrected", now()).await.unwrap());
        assert_ne!(next, seed);
        // Who still carries the old one out has no say any more.
        assert_eq!(two.answer("a", &seed, answer("old")).await.unwrap(), answer("old"));
        assert_eq!(
            one.begin("a", "corrected", now()).await.unwrap(),
            Begun::Go { seed: next, first: false },
            "{store}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_as_good_as_new_after_a_day() {
    let second = SignedDuration::from_secs(1);
    for (store, one, two) in each().await {
        let seed = first(one.begin("a", "d", now()).await.unwrap());
        one.answer("a", &seed, answer("1")).await.unwrap();
        assert_eq!(two.begin("a", "d", now() + KEPT - second).await.unwrap(), Begun::Answered(answer("1")), "{store}");
        let next = first(two.begin("a", "other", now() + KEPT).await.unwrap());
        assert_ne!(next, seed);
        assert_eq!(one.answer("a", &seed, answer("late")).await.unwrap(), answer("late"));
        let again = two.begin("a", "other", now() + KEPT).await.unwrap();
        assert_eq!(again, Begun::Go { seed: next, first: false }, "{store}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_over_is_swept_and_nothing_else() {
    let etcd = etcd_with(None).await;
    let requests = etcd.inner().requests();
    let memory = MemoryRequests::default();
    for number in 0..300 {
        // Every third is young.
        let since = if number % 3 == 0 { now() + KEPT } else { now() };
        for store in [&requests as &dyn Requests, &memory] {
            let seed = first(store.begin(&format!("{number:03}"), "d", since).await.unwrap());
            if number % 2 == 0 {
                store.answer(&format!("{number:03}"), &seed, answer("1")).await.unwrap();
            }
        }
    }
    let later = now() + KEPT + SignedDuration::from_hours(1);
    assert_eq!(memory.sweep(later).await.unwrap(), 200);
    assert_eq!(requests.sweep(later).await.unwrap(), 200);
    assert_eq!((etcd.count("request/").await, etcd.count("answer/").await), (100, 50));
    assert_eq!(requests.sweep(later).await.unwrap(), 0);
    assert_eq!(requests.sweep(later + KEPT).await.unwrap(), 100);
    assert_eq!((etcd.count("request/").await, etcd.count("answer/").await), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_many_is_the_first() {
    for (store, one, two) in each().await {
        let begun = (0..16).map(|number| if number % 2 == 0 { &one } else { &two });
        let begun = join_all(begun.map(|requests| requests.begin("a", "d", now()))).await;
        let firsts = begun.iter().filter(|begun| matches!(begun, Ok(Begun::Go { first: true, .. }))).count();
        assert_eq!(firsts, 1, "{store}: {begun:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_outlive_etcd_and_lost_answers() {
    let mut server = Server::start(true).await;
    let cut = Cut::to(server.address()).await;
    let store = EtcdStore::connect(&[cut.endpoint()], EtcdOptions::default()).await.unwrap();
    store.ping().await.unwrap();
    let requests = store.requests();
    cut.lose_next_answer();
    let begun = requests.begin("a", "d", now()).await.unwrap();
    assert!(cut.has_lost());
    let seed = first(begun);
    requests.answer("a", &seed, answer("1")).await.unwrap();
    server.restart().await;
    let direct = EtcdStore::connect(&[server.endpoint()], EtcdOptions::default()).await.unwrap().requests();
    assert_eq!(direct.begin("a", "d", now()).await.unwrap(), Begun::Answered(answer("1")));
    assert_eq!(direct.begin("a", "other", now()).await.unwrap(), Begun::Other);
}
