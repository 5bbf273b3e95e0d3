//! What is on record, and when.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use longhand_protocol::client::{HarnessClient, TokenSource};
use longhand_protocol::egress::{CredentialEvent, CredentialEvents, CredentialOutcome, MAX_EVENTS};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Audit, Subject, Unrecorded, ledger::Ledger};
use crate::egress::testing::Recorder;
use crate::testing::{Wire, within};

struct World {
    audit: Audit,
    service: Arc<Recorder>,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl World {
    fn start() -> Self {
        let (audit, service, shutdown) = (Audit::default(), Arc::new(Recorder::default()), CancellationToken::new());
        let (running, to, until) = (audit.clone(), service.clone(), shutdown.clone());
        let task = tokio::spawn(async move { running.run(&to, until).await });
        Self { audit, service, shutdown, task }
    }
}

fn request(host: &str, path: &str) -> Subject {
    Subject::request("default".into(), host, 443, "GET", path)
}

#[tokio::test(start_paused = true)]
async fn the_first_use_at_a_host_is_on_record_before_it_happens() {
    let world = World::start();
    world.audit.used("team/github", &request("a.example", "/1")).await.unwrap();
    assert_eq!(world.service.events().len(), 1);
    // Another host, another credential: each is a first use.
    world.audit.used("team/github", &request("b.example", "/1")).await.unwrap();
    world.audit.used("team/gitlab", &request("a.example", "/1")).await.unwrap();
    assert_eq!(world.service.events().len(), 3);

    // Later ones follow, equal ones counted together.
    let started = Instant::now();
    for path in ["/2", "/3", "/2"] {
        world.audit.used("team/github", &request("a.example", path)).await.unwrap();
    }
    assert_eq!((world.service.events().len(), started.elapsed()), (3, Duration::ZERO));
    let events = world.service.at_least(5).await;
    assert!(started.elapsed() <= Duration::from_secs(1), "{:?}", started.elapsed());
    let counts: Vec<u64> = events[3..].iter().map(|event| event.count).collect();
    assert_eq!(counts, [2, 1]);
    let first = &events[0];
    assert_eq!((first.outcome, first.credential.as_deref()), (CredentialOutcome::Used, Some("team/github")));
    assert_eq!((first.host.as_str(), first.port, first.method.as_str()), ("a.example", 443, "GET"));
    assert_eq!(first.path_sha256, Some(longhand_protocol::egress::path_sha256("/1")));
}

#[tokio::test(start_paused = true)]
async fn a_use_that_is_not_on_record_does_not_happen() {
    let world = World::start();
    for retryable in [true, false] {
        world.service.fail(Some(retryable));
        let used = world.audit.used("team/github", &request("a.example", "/")).await;
        assert_eq!(used, Err(Unrecorded));
    }
    // It is no first use afterwards, and what did not happen is not put on record later.
    world.service.fail(None);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(world.service.events(), []);
    world.audit.used("team/github", &request("a.example", "/")).await.unwrap();
    assert_eq!(world.service.events().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_short_outage_delays_what_follows_and_a_long_one_stops_it() {
    let world = World::start();
    let subject = request("a.example", "/");
    world.audit.used("team/github", &subject).await.unwrap();
    world.service.fail(Some(true));
    world.audit.used("team/github", &subject).await.unwrap();
    tokio::time::sleep(Duration::from_secs(20)).await;
    world.audit.used("team/github", &subject).await.unwrap();
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(world.audit.used("team/github", &subject).await, Err(Unrecorded));
    assert_eq!(world.service.events().len(), 1);

    world.service.fail(None);
    let events = world.service.at_least(2).await;
    assert_eq!(events[1].count, 2);
    world.audit.used("team/github", &subject).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn refusals_are_on_record_within_a_second_and_cannot_fill_the_log() {
    let world = World::start();
    let started = Instant::now();
    for number in 0..10_000 {
        let host = format!("h{}.example", number % 1_000);
        world.audit.denied(None, &Subject::tunnel("default".into(), &host, 443), "no");
    }
    world.service.at_least(65).await;
    assert!(started.elapsed() <= Duration::from_secs(1), "{:?}", started.elapsed());
    world.shutdown.cancel();
    world.task.await.unwrap();
    let events = world.service.events();
    assert_eq!(events.len(), 65);
    assert_eq!(events.iter().map(|event| event.count).sum::<u64>(), 10_000);
    assert_eq!((events[0].host.as_str(), events[0].count), ("h0.example", 10));
    let rest = events.last().unwrap();
    assert_eq!((rest.host.as_str(), rest.port, rest.credential.as_deref()), ("*", 0, None));
}

#[tokio::test(start_paused = true)]
async fn listed_refusals_come_back_one_a_second() {
    let world = World::start();
    let listed = |events: Vec<CredentialEvent>| events.iter().filter(|event| &*event.host != "*").count();
    for number in 0..70 {
        world.audit.denied(None, &Subject::tunnel("default".into(), &format!("a{number}.example"), 443), "no");
    }
    world.service.at_least(65).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    for number in 0..70 {
        world.audit.denied(None, &Subject::tunnel("default".into(), &format!("b{number}.example"), 443), "no");
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let listed = listed(world.service.events());
    assert!((66..=69).contains(&listed), "{listed}");
}

#[tokio::test(start_paused = true)]
async fn a_first_use_waits_while_the_service_is_away_for_a_moment() {
    let world = World::start();
    world.service.fail(Some(true));
    let (audit, service) = (world.audit.clone(), world.service.clone());
    let gives_up = async {
        let subject = request("a.example", "/");
        let used = tokio::time::timeout(Duration::from_secs(2), world.audit.used("team/gitlab", &subject)).await;
        assert!(used.is_err());
    };
    let back = async {
        tokio::time::sleep(Duration::from_secs(4)).await;
        service.fail(None);
    };
    let subject = request("a.example", "/");
    let (used, (), ()) = tokio::join!(audit.used("team/github", &subject), gives_up, back);
    assert_eq!(used, Ok(()));
    let events = world.service.events();
    let uses: Vec<_> = events.iter().map(|event| (event.credential.as_deref(), event.count)).collect();
    assert_eq!(uses, [(Some("team/github"), 1)], "who gave up did not use it");
}

#[tokio::test(start_paused = true)]
async fn what_sandboxes_do_leaves_the_harness_its_share() {
    let mut ledger = Ledger::default();
    let (at, now) = (Timestamp::now(), Instant::now());
    let harness = Subject::request("".into(), "model.example", 443, "POST", "/v1/messages");
    let mut number = 0;
    while ledger.used("team/github", &request(&format!("h{number}.example"), "/"), at, false).is_ok() {
        number += 1;
    }
    for number in 0..100 {
        ledger.denied(None, &request(&format!("d{number}.example"), "/"), "no", at, now);
    }
    assert!(ledger.used("models/key", &harness, at, true).is_ok());
    ledger.denied(Some("models/key"), &harness, "its own reason", at, now);
    let mut events = Vec::new();
    while !ledger.is_empty(now) {
        let batch = ledger.take(now);
        events.extend(batch.events());
        ledger.succeeded(batch);
    }
    let of_harness: Vec<_> = events.iter().filter(|event| event.sandbox.is_empty()).collect();
    assert_eq!(of_harness.len(), 2);
    assert_eq!(of_harness[1].reason.as_deref(), Some("its own reason"));
}

#[tokio::test(start_paused = true)]
async fn an_event_that_is_refused_takes_no_other_with_it() {
    let world = World::start();
    world.audit.used("team/github", &request("a.example", "/")).await.unwrap();
    world.service.refuse(Some(|event| event.host.starts_with("bad")));
    world.audit.used("team/github", &request("a.example", "/2")).await.unwrap();
    for host in ["one.example", "bad.example", "two.example", "bad.example", "bad-too.example", "three.example"] {
        world.audit.denied(None, &request(host, "/"), "no");
    }
    // A first use that is refused does not happen, so that there is nothing to put on record.
    assert_eq!(world.audit.used("team/github", &request("bad.example", "/")).await, Err(Unrecorded));
    let events = world.service.at_least(6).await;
    let hosts: Vec<&str> = events.iter().map(|event| &*event.host).collect();
    assert_eq!(hosts, ["a.example", "a.example", "one.example", "two.example", "three.example", "*"]);
    let lost = &events[5];
    assert_eq!((lost.count, lost.outcome, &lost.credential), (3, CredentialOutcome::Denied, &None));
    assert!(lost.reason.as_ref().unwrap().contains("could not be put on record"), "{lost:?}");
}

#[tokio::test(start_paused = true)]
async fn what_the_service_refuses_for_long_is_on_record_as_a_number_later() {
    let world = World::start();
    world.service.refuse(Some(|_| true));
    for number in 0..50 {
        world.audit.denied(None, &request(&format!("h{number}.example"), "/"), "no");
    }
    tokio::time::sleep(Duration::from_secs(600)).await;
    // 50 alone, 7 that begin with all, and then less and less often.
    assert!(world.service.asked() < 50 + 8 + 30, "{}", world.service.asked());
    assert_eq!(world.service.events(), []);
    world.service.refuse(None);
    tokio::time::sleep(Duration::from_secs(70)).await;
    let events = world.service.events();
    assert_eq!((events.len(), events[0].count, &*events[0].host), (1, 50, "*"));
    // Once.
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(world.service.events().len(), 1);
}

#[test]
fn refusals_in_an_outage_have_a_bound_and_are_counted() {
    let mut ledger = Ledger::default();
    let started = Instant::now();
    for second in 0..5_000 {
        let now = started + Duration::from_secs(second);
        let subject = request(&format!("h{second}.example"), "/");
        ledger.denied(None, &subject, "no", Timestamp::now(), now);
        let batch = ledger.take(now);
        ledger.failed(batch, now);
    }
    let (mut events, now) = (Vec::new(), Instant::now());
    while !ledger.is_empty(now) {
        let batch = ledger.take(now);
        events.extend(batch.events());
        ledger.succeeded(batch);
    }
    assert!(events.len() <= 1_025, "{}", events.len());
    assert_eq!(events.iter().map(|event| event.count).sum::<u64>(), 5_000);
}

#[tokio::test(start_paused = true)]
async fn no_event_is_longer_than_the_service_takes() {
    let world = World::start();
    let (long, sandbox) = ("ä".repeat(1_000), "s".repeat(100));
    world.audit.denied(Some(&long), &Subject::request(sandbox.as_str().into(), &long, 1, &long, &long), &long);
    let events = world.service.at_least(1).await;
    assert!(events[0].reason.as_ref().is_some_and(|reason| reason.ends_with("ä…")), "{events:?}");
    assert_eq!((events[0].method.len(), events[0].host.len()), (63, 253));
}

#[tokio::test(start_paused = true)]
async fn what_is_left_is_sent_at_the_end() {
    let world = World::start();
    for host in 0..MAX_EVENTS + 10 {
        let subject = request(&format!("h{host}.example"), "/");
        let audit = world.audit.clone();
        tokio::spawn(async move { audit.used("team/github", &subject).await });
    }
    tokio::task::yield_now().await;
    world.audit.denied(Some("team/github"), &request("a.example", "/x"), "no");
    world.shutdown.cancel();
    world.task.await.unwrap();
    let events = world.service.events();
    assert_eq!(events.len(), MAX_EVENTS + 11);
    let denied = events.iter().find(|event| event.outcome == CredentialOutcome::Denied).unwrap();
    assert_eq!((denied.credential.as_deref(), denied.reason.as_deref()), (Some("team/github"), Some("no")));
}

#[tokio::test(start_paused = true)]
async fn many_paths_are_counted_together() {
    let world = World::start();
    world.audit.used("team/github", &request("a.example", "/")).await.unwrap();
    for path in 0..5_000 {
        world.audit.used("team/github", &request("a.example", &format!("/{path}"))).await.unwrap();
    }
    world.shutdown.cancel();
    world.task.await.unwrap();
    let events = world.service.events();
    assert_eq!(events.iter().map(|event| event.count).sum::<u64>(), 5_001);
    assert_eq!(events.last().unwrap().path_sha256, None);
    assert!(events.len() <= 130, "{}", events.len());
}

#[tokio::test]
async fn a_report_is_a_call_of_the_harness_api_with_the_proxys_token() {
    drop(rustls::crypto::ring::default_provider().install_default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let client = HarnessClient::new(url, "sesn_one".parse().unwrap(), TokenSource::fixed("proxy-token")).unwrap();
    let audit = Audit::default();
    audit.denied(None, &Subject::tunnel("default".into(), "evil.test", 443), "no");
    let shutdown = CancellationToken::new();
    shutdown.cancel();
    let task = tokio::spawn(async move { audit.run(&client, shutdown).await });
    let mut service = Wire::new(within(listener.accept()).await.unwrap().0);
    let message = service.message().await;
    assert!(message.starts_with("POST /harness/v1/sessions/sesn_one/credential_events HTTP/1.1\r\n"), "{message}");
    assert!(message.contains("authorization: Bearer proxy-token\r\n"), "{message}");
    let body: CredentialEvents = serde_json::from_str(message.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!((body.events.len(), body.events[0].host.as_str()), (1, "evil.test"));
    service.send("HTTP/1.1 204 No Content\r\n\r\n").await;
    within(task).await.unwrap();
}
