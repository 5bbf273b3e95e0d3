//! What takes more than one step is ended at each of them: at every request to etcd and to the object store, before it is
//! carried out and after. Nothing is lost, whoever comes next finishes it, and nothing is left for ever.
//!
//! The process that ends is a store of its own, whose connection is cut for good; what it was doing is dropped.

use futures::stream::{self, BoxStream};
use futures::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use longhand_protocol::event::{NewEvent, Record};
use longhand_protocol::{EventId, SessionId};
use longhand_session_log::archive::Reach;
use longhand_session_log::etcd::EtcdStore;
use longhand_session_log::store::{End, Exported, Parent, Result};
use longhand_session_log::{SessionStore, StoreError};
use rstest::rstest;

use crate::archive::{DAY, SMALL, archive_all, everything, later, memory};
use crate::conformance::exports::proved;
use crate::conformance::{assert_err, message, messages, meta, session};
use crate::etcd::{Etcd, etcd_with};
use crate::support::cut::{Cut, Lost};
use crate::support::faulty::{Faulty, Last};

/// More than what is stored as it is.
const LARGE: usize = 70_000;
/// Nothing here takes so many steps.
const MOST: usize = 60;

/// Where a process ends.
#[derive(Clone, Copy, Debug)]
enum Place {
    Etcd(Lost),
    Objects(Last),
}

const PLACES: [Place; 4] =
    [Place::Etcd(Lost::Request), Place::Etcd(Lost::Answer), Place::Objects(Last::Lost), Place::Objects(Last::Done)];

/// An etcd and objects that other processes use too.
struct World {
    etcd: Etcd,
    faulty: Faulty,
}

impl World {
    async fn new() -> Self {
        let (faulty, objects) = memory();
        Self { etcd: etcd_with(Some(objects)).await, faulty }
    }

    /// Lets a process do `work` until it ends after so many steps; whether it has come to the end of the work.
    async fn end(&self, place: Place, steps: usize, work: impl AsyncFnOnce(EtcdStore) -> Result<()>) -> bool {
        let cut = Cut::to(self.etcd.address()).await;
        let store = self.etcd.at(cut.endpoint()).await;
        // It is connected, and knows where its objects are.
        store.ping().await.unwrap();
        store.collect(DAY, Timestamp::UNIX_EPOCH).await.unwrap();
        match place {
            Place::Etcd(lost) => cut.end_after(steps, lost),
            Place::Objects(last) => self.faulty.end_after(steps, last),
        }
        let done = tokio::select! {
            biased;
            () = cut.ended() => None,
            () = self.faulty.ended() => None,
            done = work(store) => Some(done),
        };
        let ended = cut.has_ended() | self.faulty.heal();
        match done {
            Some(Ok(())) => true,
            // It may see its connection go before we see it end.
            Some(Err(error)) => {
                assert!(ended, "{error}");
                false
            }
            None => false,
        }
    }

    /// Every place and step at which `work` can end, until it does not end any more. `check` is told what was made
    /// `before`.
    async fn at_each_step<B>(
        &self,
        before: impl AsyncFn() -> B,
        work: impl AsyncFn(EtcdStore, &B) -> Result<()>,
        check: impl AsyncFn(EtcdStore, B, bool),
    ) {
        let mut ended = 0;
        for place in PLACES {
            for steps in 0.. {
                assert!(steps < MOST, "{place:?} is never without an end");
                let made = before().await;
                let done = self.end(place, steps, async |store| work(store, &made).await).await;
                check(self.etcd.another().await, made, done).await;
                self.remove_all().await;
                assert_eq!(self.etcd.leftovers().await, Vec::<String>::new(), "{place:?} after {steps}");
                if done {
                    break;
                }
                ended += 1;
            }
        }
        assert!(ended > PLACES.len(), "it ended {ended} times only");
    }

    async fn remove_all(&self) {
        let store = self.etcd.inner();
        while let Some(meta) = store.list(None, 1_000).await.unwrap().pop() {
            let fork = store.state(&meta.id).await.ok().and_then(|state| state.fork);
            store.delete(fork.as_ref().unwrap_or(&meta.id)).await.unwrap();
        }
    }

    async fn short_log(&self) -> SessionId {
        let store = self.etcd.inner();
        let id = session(&store).await;
        store.append_unfenced(&id, messages(&[id.as_str(); 20])).await.unwrap();
        id
    }

    async fn file(&self, id: &SessionId) -> File {
        let store = self.etcd.inner();
        let (end, _) = proved(&store, id).await;
        (id.clone(), end, store.export(id).await.unwrap().records.try_collect().await.unwrap())
    }

    /// Deletes the session, and leaves a part of an import of it.
    async fn break_off(&self, file: &File) {
        let store = self.etcd.inner();
        store.delete(&file.0).await.unwrap();
        let cut_short = stream::iter(file.2[..25].to_vec()).map(Ok);
        let broken = stream::iter([Err(StoreError::BadImport("it was broken off".to_owned()))]);
        let outcome = store.import(meta(&file.0), &file.1, cut_short.chain(broken).boxed()).await;
        assert_err!(outcome, StoreError::BadImport(_));
    }

    /// A log with a small segment, two contents elsewhere, and events that are still in etcd.
    async fn log(&self) -> (SessionId, Vec<Record>) {
        let store = self.etcd.inner();
        let id = session(&store).await;
        store.append_unfenced(&id, messages(&["a", &"large ".repeat(LARGE / 6)])).await.unwrap();
        archive_all(&store, &id, Reach::All).await;
        store.append_unfenced(&id, messages(&["y"; 30])).await.unwrap();
        store.append_unfenced(&id, vec![message(&id.as_str().repeat(LARGE / 20))]).await.unwrap();
        let records = everything(&store, &id).await;
        (id, records)
    }
}

/// A segment is made in place of a small one, and the next one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archiver_may_end_anywhere() {
    let world = World::new().await;
    let work = async |store: EtcdStore, (id, _): &(SessionId, Vec<Record>)| {
        while store.archive_segment(id, &SMALL, Reach::All).await?.is_some() {}
        Ok(())
    };
    let check = async |store: EtcdStore, (id, before): (SessionId, Vec<Record>), _| {
        assert_eq!(everything(&store, &id).await, before);
        archive_all(&store, &id, Reach::All).await;
        assert_eq!(world.etcd.count(&format!("log/{id}/")).await, 0);
        assert_eq!(everything(&store, &id).await, before);
        store.collect(DAY, later()).await.unwrap();
        assert_eq!(everything(&world.etcd.another().await, &id).await, before);
    };
    world.at_each_step(async || world.log().await, work, check).await;
}

/// The part that a fork has of its own begins in the middle of a log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archiver_of_a_fork_may_end_anywhere() {
    let world = World::new().await;
    let before = async || {
        let (parent, _) = world.log().await;
        let store = world.etcd.inner();
        let id = store.fork_id(&parent);
        store.fork(meta(&id), &Parent { session: parent, seq: 20 }).await.unwrap();
        store.append_unfenced(&id, messages(&["z"; 30])).await.unwrap();
        let records = everything(&store, &id).await;
        (id, records)
    };
    let work = async |store: EtcdStore, (id, _): &(SessionId, Vec<Record>)| {
        while store.archive_segment(id, &SMALL, Reach::All).await?.is_some() {}
        Ok(())
    };
    let check = async |store: EtcdStore, (id, before): (SessionId, Vec<Record>), _| {
        assert_eq!(everything(&store, &id).await, before);
        archive_all(&store, &id, Reach::All).await;
        store.collect(DAY, later()).await.unwrap();
        assert_eq!(everything(&world.etcd.another().await, &id).await, before);
    };
    world.at_each_step(before, work, check).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_forgets_may_end_anywhere() {
    let world = World::new().await;
    let before = async || {
        let (id, records) = world.log().await;
        archive_all(&world.etcd.inner(), &id, Reach::All).await;
        (id, records)
    };
    let work = async |store: EtcdStore, (id, _): &(SessionId, Vec<Record>)| {
        while store.forget(id, DAY, later()).await? > 0 {}
        Ok(())
    };
    let check = async |store: EtcdStore, (id, before): (SessionId, Vec<Record>), _| {
        while store.forget(&id, DAY, later()).await.unwrap() > 0 {}
        assert_eq!(world.etcd.count(&format!("s/{id}/idem/")).await, 0);
        for record in [&before[0], &before[20]] {
            assert_eq!(store.position(&id, &record.event.id).await.unwrap(), Some(record.seq));
        }
        assert_eq!(everything(&store, &id).await, before);
    };
    world.at_each_step(before, work, check).await;
}

/// There is what a deleted session had, what an event had that was refused, and what is in use.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_may_end_anywhere() {
    let world = World::new().await;
    let before = async || {
        let store = world.etcd.inner();
        let ((id, records), (gone, _)) = (world.log().await, world.log().await);
        archive_all(&store, &gone, Reach::All).await;
        store.delete(&gone).await.unwrap();
        let refused = NewEvent { id: records[0].event.id.clone(), ..message(&"refused".repeat(LARGE / 7)) };
        assert_err!(store.append_unfenced(&id, vec![refused]).await, StoreError::Duplicate(_));
        (id, records)
    };
    let work = async |store: EtcdStore, _: &(SessionId, Vec<Record>)| store.collect(DAY, later()).await.map(drop);
    let check = async |store: EtcdStore, (id, before): (SessionId, Vec<Record>), _| {
        assert_eq!(everything(&store, &id).await, before);
        store.collect(DAY, later()).await.unwrap();
        assert_eq!(world.etcd.count("doomed/").await, 0);
        assert_eq!(everything(&world.etcd.another().await, &id).await, before);
    };
    world.at_each_step(before, work, check).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_may_end_anywhere() {
    let world = World::new().await;
    let work = async |store: EtcdStore, (id, _): &(SessionId, Vec<Record>)| store.delete(id).await;
    let check = async |store: EtcdStore, (id, before): (SessionId, Vec<Record>), done: bool| {
        match store.state(&id).await {
            Ok(_) => {
                assert!(!done);
                assert_eq!(everything(&store, &id).await, before);
            }
            Err(StoreError::NotFound(_)) => {}
            Err(error) => panic!("{error}"),
        }
        let seen = store.list(None, 10).await.unwrap().iter().any(|meta| meta.id == id);
        assert!(seen || world.etcd.count(&format!("s/{id}/")).await == 0, "a sweep sees what is left");
        store.delete(&id).await.unwrap();
    };
    world.at_each_step(async || world.log().await, work, check).await;
}

/// The event is there or it is not, and its content as well; who asks again gets one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_appends_a_large_event_may_end_anywhere() {
    let world = World::new().await;
    let before = async || {
        let event = NewEvent { id: EventId::generate(), ..message(&"large".repeat(LARGE / 5)) };
        (session(&world.etcd.inner()).await, event)
    };
    let work = async |store: EtcdStore, (id, event): &(SessionId, NewEvent)| {
        store.append_unfenced(id, vec![event.clone()]).await.map(drop)
    };
    let check = async |store: EtcdStore, (id, event): (SessionId, NewEvent), done: bool| {
        let records = everything(&store, &id).await;
        assert!(records.iter().all(|record| record.event.body == event.body));
        assert!(records.len() == 1 || (!done && records.is_empty()));
        store.collect(DAY, later()).await.unwrap();
        let again = world.etcd.another().await;
        assert_eq!(everything(&again, &id).await, records);
        assert_eq!(again.append_unfenced(&id, vec![event.clone()]).await.unwrap().head, 1);
        again.collect(DAY, later()).await.unwrap();
        assert_eq!(everything(&world.etcd.another().await, &id).await[0].event.body, event.body);
    };
    world.at_each_step(before, work, check).await;
}

type File = (SessionId, End, Vec<Exported>);

fn records(file: &File) -> BoxStream<'static, Result<Exported>> {
    stream::iter(file.2.clone()).map(Ok).boxed()
}

/// The session is there as a whole or not at all; the import can be done again, and what is left of it taken away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_may_end_anywhere() {
    let world = World::new().await;
    let before = async || {
        let store = world.etcd.inner();
        let file = world.file(&world.log().await.0).await;
        store.delete(&file.0).await.unwrap();
        store.collect(DAY, later()).await.unwrap();
        file
    };
    let work = async |store: EtcdStore, file: &File| store.import(meta(&file.0), &file.1, records(file)).await;
    let check = async |store: EtcdStore, file: File, done: bool| {
        let id = &file.0;
        store.collect(DAY, later()).await.unwrap();
        let there = match store.state(id).await {
            Ok(_) => true,
            Err(StoreError::NotFound(_)) => false,
            Err(error) => panic!("{error}"),
        };
        assert!(there || !done);
        if !there {
            store.import(meta(id), &file.1, records(&file)).await.unwrap();
        }
        assert_eq!(proved(&store, id).await.1, file.2);
        store.collect(DAY, later()).await.unwrap();
        assert_eq!(proved(&world.etcd.another().await, id).await.1, file.2);
    };
    world.at_each_step(before, work, check).await;
}

/// What is done by one that stands still for long.
#[derive(Clone, Copy, Debug)]
enum Late {
    Delete,
    Import,
    Archive,
    Forget,
}

impl Late {
    async fn work(self, store: EtcdStore, file: File) -> Result<()> {
        let id = &file.0;
        match self {
            Self::Delete => store.delete(id).await,
            Self::Import => store.import(meta(id), &file.1, records(&file)).await,
            Self::Archive => store.archive_segment(id, &SMALL, Reach::All).await.map(drop),
            Self::Forget => store.forget(id, DAY, later()).await.map(drop),
        }
    }
}

/// One that stood still, at any step, takes nothing from the session that was made meanwhile under the same identifier.
#[rstest]
#[case(Late::Delete)]
#[case(Late::Import)]
#[case(Late::Archive)]
#[case(Late::Forget)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_wakes_up_late_takes_nothing_away(#[case] late: Late) {
    let world = World::new().await;
    let store = world.etcd.inner();
    for steps in 0.. {
        assert!(steps < MOST, "it never ends");
        let (id, other) = match late {
            // Nothing of either is archived yet, so that the manifest says nothing of which it is.
            Late::Archive => (world.short_log().await, world.short_log().await),
            _ => (world.log().await.0, world.log().await.0),
        };
        let old = world.file(&id).await;
        let (_, end, events) = world.file(&other).await;
        let new: File = (id.clone(), end, events);
        match late {
            Late::Forget => drop(archive_all(&store, &id, Reach::All).await),
            Late::Import => world.break_off(&old).await,
            Late::Delete | Late::Archive => {}
        }
        let cut = Cut::to(world.etcd.address()).await;
        let slow = world.etcd.at(cut.endpoint()).await;
        slow.collect(DAY, Timestamp::UNIX_EPOCH).await.unwrap();
        cut.hold_after(steps);
        let mut working = tokio::spawn(late.work(slow, old));
        let held = tokio::select! {
            () = cut.holds() => true,
            done = &mut working => done.unwrap().map(|()| false).unwrap(),
        };
        if held {
            store.delete(&id).await.unwrap();
            store.import(meta(&id), &new.1, records(&new)).await.unwrap();
            if let Late::Forget = late {
                archive_all(&store, &id, Reach::All).await;
            }
            cut.release();
            let outcome = working.await.unwrap();
            // A deletion that had not begun is one of the new session.
            let deleted = matches!(late, Late::Delete) && outcome.is_ok() && store.state(&id).await.is_err();
            if deleted {
                assert_eq!(world.etcd.count(&format!("meta/{id}")).await, 0, "as a whole: after {steps}");
            } else {
                let found = proved(&world.etcd.another().await, &id).await.1;
                assert_eq!(found, new.2, "after {steps}: {outcome:?}");
            }
        }
        world.remove_all().await;
        assert_eq!(world.etcd.leftovers().await, Vec::<String>::new(), "after {steps}");
        if !held {
            break;
        }
    }
}
