//! Processes that die: replicas by SIGKILL, and the leader of an etcd of three, under load.
//!
//! A replica is this test program again, told by its environment to serve appends on its standard input.

mod replica;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use longhand_protocol::event::Record;
use longhand_protocol::{EventId, SessionId};
use longhand_session_log::SessionStore as _;
use longhand_session_log::etcd::{EtcdOptions, EtcdStore};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use self::replica::{Answer, Append, Replicas};
use crate::conformance::{claim, session};
use crate::support::Server;

const SESSIONS: usize = 100;
const EVENTS: usize = 10;
/// One in so many callers does not ask again when it hears nothing.
const HASTY: usize = 5;
const PATIENCE: Duration = Duration::from_secs(240);

async fn connect(endpoints: &[String]) -> EtcdStore {
    let options = EtcdOptions { timeout: Duration::from_secs(10), ..EtcdOptions::default() };
    EtcdStore::connect(endpoints, options).await.unwrap()
}

/// What became of the events of one session, in the order in which they were sent.
struct Sent {
    id: SessionId,
    first: u64,
    acknowledged: Vec<(EventId, u64)>,
    unknown: Vec<EventId>,
}

/// Sends ten events, each after the one before; every other session is written to by a brain.
async fn caller(
    number: usize,
    (id, epoch, first): (SessionId, u64, u64),
    replicas: &Replicas,
    done: &watch::Sender<usize>,
) -> Sent {
    let mut sent = Sent { id: id.clone(), first, acknowledged: vec![], unknown: vec![] };
    let mut head = first;
    for count in 0..EVENTS {
        let event = EventId::generate();
        loop {
            let append = Append { session: id.clone(), epoch, head, event: event.clone() };
            match replicas.append(number + count, append).await {
                Answer::Done(seq) => {
                    sent.acknowledged.push((event, seq));
                    head = seq;
                    break;
                }
                Answer::Moved(moved) => head = moved,
                Answer::Unknown if number.is_multiple_of(HASTY) => {
                    sent.unknown.push(event);
                    break;
                }
                Answer::Unknown => {}
                Answer::Wrong(reason) => panic!("{reason}"),
            }
        }
        done.send_modify(|done| *done += 1);
    }
    sent
}

async fn leader(members: &[Server]) -> usize {
    loop {
        for (number, member) in members.iter().enumerate() {
            let Ok(client) = etcd_client::Client::connect([member.endpoint()], None).await else { continue };
            let status = timeout(Duration::from_secs(2), client.maintenance_client().status()).await;
            if let Ok(Ok(status)) = status
                && status.header().is_some_and(|header| header.member_id() == status.leader())
            {
                return number;
            }
        }
        tokio::task::yield_now().await;
    }
}

/// Compacts to what is there now. While leaders change it may be refused, or done and not answered: it is asked for again.
async fn compact(endpoint: String) {
    loop {
        let Ok(client) = etcd_client::Client::connect([&endpoint], None).await else { continue };
        let Ok(newest) = client.kv_client().get("any", None).await else { continue };
        let revision = newest.header().unwrap().revision();
        match client.kv_client().compact(revision, None).await {
            Ok(_) => return,
            // Nothing was written since a try that was done and not answered.
            Err(etcd_client::Error::GRpcStatus(status)) if status.code() == tonic::Code::OutOfRange => return,
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

/// What is stored under a prefix, by the last part of the key.
async fn stored(store: &mut etcd_client::KvClient, prefix: String) -> Vec<(String, Vec<u8>)> {
    let answer = store.get(prefix.clone(), Some(etcd_client::GetOptions::new().with_prefix())).await.unwrap();
    let part = |kv: &etcd_client::KeyValue| (kv.key_str().unwrap()[prefix.len()..].to_owned(), kv.value().to_vec());
    answer.kvs().iter().map(part).collect()
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Every acknowledged event is there once, at its number, and the chain holds; of the others all is there or nothing.
async fn verify(kv: &mut etcd_client::KvClient, sent: &Sent) -> Vec<Record> {
    let place = format!("/longhand/s/{}", sent.id);
    let log = stored(kv, format!("/longhand/log/{}/", sent.id)).await;
    let idem: HashMap<String, Vec<u8>> = stored(kv, format!("{place}/idem/")).await.into_iter().collect();
    let records: Vec<Record> = log.iter().map(|(_, bytes)| serde_json::from_slice(bytes).unwrap()).collect();
    let mut before = String::new();
    for (number, (record, (key, bytes))) in records.iter().zip(&log).enumerate() {
        assert_eq!((record.seq, key), (number as u64 + 1, &format!("{:016x}", number + 1)));
        assert_eq!(record.prev_hash, before, "the chain holds");
        before = hash(bytes);
        let seq = idem.get(record.event.id.as_str()).map(|seq| String::from_utf8(seq.clone()).unwrap());
        // A brain's own messages are known by their place; a claim is the first record of its session.
        let remembered = record.epoch == 0 || record.seq == 1;
        assert_eq!(seq, remembered.then(|| record.seq.to_string()), "its identifier is there");
    }
    let remembered = records.iter().filter(|record| idem.contains_key(record.event.id.as_str())).count();
    assert_eq!(idem.len(), remembered, "no identifier without its record");
    let distinct: HashSet<&str> = records.iter().map(|record| record.event.id.as_str()).collect();
    assert_eq!(distinct.len(), records.len(), "nothing is there twice");
    let head = stored(kv, format!("{place}/head")).await.remove(0).1;
    let head = String::from_utf8(head).unwrap();
    let parts: Vec<&str> = head.split(' ').collect();
    assert_eq!((parts[1], parts[4]), (records.len().to_string().as_str(), before.as_str()), "{head}");
    for (event, seq) in &sent.acknowledged {
        assert_eq!(&records[usize::try_from(*seq).unwrap() - 1].event.id, event);
    }
    assert!(sent.acknowledged.is_sorted_by_key(|(_, seq)| *seq), "they are in the order in which they were sent");
    let landed = sent.unknown.iter().filter(|event| distinct.contains(event.as_str())).count();
    let first = usize::try_from(sent.first).unwrap();
    assert_eq!(records.len(), first + sent.acknowledged.len() + landed, "nothing is there that nobody sent");
    records
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_replicas_and_leaders_are_killed() {
    let mut members = Server::cluster().await;
    let endpoints = members.each_ref().map(Server::endpoint);
    let store = connect(&endpoints).await;
    let mut sessions = Vec::new();
    for number in 0..SESSIONS {
        let id = session(&store).await;
        let (epoch, head) = if number % 2 == 0 { claim(&store, &id, "brain").await } else { (0, 0) };
        sessions.push((id, epoch, head));
    }
    let mut tails = JoinSet::new();
    for (id, _, first) in sessions.iter().filter(|(_, epoch, _)| *epoch > 0).take(SESSIONS / 2).cloned() {
        tails.spawn(follow(store.clone(), id, first));
    }

    let replicas = Arc::new(Replicas::start(3, &endpoints));
    let (done, mut progress) = watch::channel(0);
    let mut callers = JoinSet::new();
    for (number, session) in sessions.iter().cloned().enumerate() {
        let (replicas, done) = (Arc::clone(&replicas), done.clone());
        callers.spawn(async move { caller(number, session, &replicas, &done).await });
    }
    let trouble = async {
        for round in 1..=4 {
            progress.wait_for(|done| *done >= round * SESSIONS * EVENTS / 6).await.unwrap();
            replicas.kill(round);
            let lost = leader(&members).await;
            members[lost].kill();
            let left = (lost + 1) % members.len();
            leader(&members).await;
            compact(members[left].endpoint()).await;
            members[lost].restart().await;
        }
    };
    timeout(PATIENCE, trouble).await.expect("etcd finds a new leader in time");
    let all = timeout(PATIENCE, callers.join_all()).await.expect("every caller ends in time");

    let client = etcd_client::Client::connect([endpoints[0].clone()], None).await.unwrap();
    let (mut logs, mut acknowledged) = (HashMap::new(), 0);
    for sent in &all {
        logs.insert(sent.id.clone(), verify(&mut client.kv_client(), sent).await);
        acknowledged += sent.acknowledged.len();
    }
    let unknown: usize = all.iter().map(|sent| sent.unknown.len()).sum();
    assert_eq!(acknowledged + unknown, SESSIONS * EVENTS);
    assert!(acknowledged > SESSIONS * EVENTS / 2, "{acknowledged} of {}", SESSIONS * EVENTS);
    // An event of its own ends each tail.
    for id in logs.keys() {
        store.append_unfenced(id, vec![crate::conformance::running()]).await.unwrap();
    }
    while let Some(followed) = timeout(PATIENCE, tails.join_next()).await.expect("every tail ends in time") {
        let (id, records) = followed.unwrap();
        let expected: Vec<&Record> = logs[&id].iter().filter(|record| record.seq >= records[0].seq).collect();
        assert_eq!(records.iter().collect::<Vec<_>>(), expected, "a tail has no gap");
    }
}

/// Everything after `first` up to the event that says that it is over.
async fn follow(store: EtcdStore, id: SessionId, first: u64) -> (SessionId, Vec<Record>) {
    let mut tail = store.tail(&id, first).await.unwrap();
    let mut records = Vec::new();
    loop {
        let record = tail.next().await.unwrap().unwrap();
        if record.event.body == crate::conformance::running().body {
            return (id, records);
        }
        records.push(record);
    }
}
