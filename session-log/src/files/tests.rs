use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, TryStreamExt as _};
use jiff::{SignedDuration, Timestamp};
use object_store::memory::InMemory;
use object_store::throttle::{ThrottleConfig, ThrottledStore};
use tokio::time::Instant;

use super::{
    Files, FilesError, Home, MemoryFiles, NewFile, READ_WAIT, READS, READS_OF_ONE, Span, StoredFile, UPLOADS,
    UPLOADS_OF_ONE,
};
use crate::objects::Objects;

const DEADLINE: Duration = Duration::from_secs(30);

fn home(namespace: &str, uid: &str) -> Home {
    Home { namespace: namespace.to_owned(), uid: uid.to_owned() }
}

async fn put(files: &Files, home: &Home, expires_in: Option<SignedDuration>) -> StoredFile {
    let new = NewFile { filename: "a".to_owned(), mime_type: "text/plain".to_owned(), expires_in };
    let content = stream::iter([Ok::<_, String>(Bytes::from_static(b"content"))]);
    files.put(files.begin_upload(home).unwrap(), new, content).await.unwrap()
}

#[test]
fn a_namespace_takes_a_part_of_the_uploads() {
    let files = Files::in_memory();
    let of = |number: usize| home(&format!("ns-{number}"), "u");
    let mut held: Vec<_> = (0..UPLOADS_OF_ONE).map(|_| files.begin_upload(&of(0)).unwrap()).collect();
    let refused = files.begin_upload(&of(0)).unwrap_err();
    assert!(
        matches!(&refused, FilesError::BusyNamespace { namespace, most: 4, .. } if namespace == "ns-0"),
        "{refused}"
    );
    held.extend((UPLOADS_OF_ONE..UPLOADS).map(|number| files.begin_upload(&of(number)).unwrap()));
    assert!(matches!(files.begin_upload(&of(99)).unwrap_err(), FilesError::Busy { most: 16, .. }));
    held.clear();
    assert!(files.begin_upload(&of(0)).is_ok());
}

#[tokio::test(start_paused = true)]
async fn few_contents_are_read_at_once() {
    let files = Files::in_memory();
    let mut reading = Vec::new();
    for number in 0..READS / READS_OF_ONE {
        let home = home(&format!("ns-{number}"), "u");
        let file = put(&files, &home, None).await;
        for _ in 0..READS_OF_ONE {
            reading.push(files.read(&home.namespace, &file).await.unwrap());
        }
        let begin = Instant::now();
        let refused = files.read(&home.namespace, &file).await.err();
        assert!(matches!(refused, Some(FilesError::BusyNamespace { .. })), "{refused:?}");
        assert_eq!(begin.elapsed(), READ_WAIT);
    }
    let other = home("other", "u");
    let file = put(&files, &other, None).await;
    assert!(matches!(files.read("other", &file).await.err(), Some(FilesError::Busy { .. })));
    let for_sandbox = files.read_for_sandbox("other", &file).await.unwrap();
    assert_eq!(for_sandbox.try_collect::<Vec<Bytes>>().await.unwrap().concat(), b"content");
    // Who waits goes on as soon as another is done.
    let done = reading.pop().unwrap();
    let (read, whole) = tokio::join!(files.read("other", &file), done.try_collect::<Vec<Bytes>>());
    assert_eq!(whole.unwrap().concat(), b"content");
    assert_eq!(read.unwrap().try_collect::<Vec<Bytes>>().await.unwrap().concat(), b"content");
}

#[tokio::test]
async fn a_namespace_that_is_made_again_has_no_file_of_the_one_before() {
    let files = Files::in_memory();
    let (before, now) = (home("ns", "before"), home("ns", "now"));
    let old = put(&files, &before, None).await;
    assert_eq!(files.get(&before, &old.id).await.unwrap().as_ref(), Some(&old));
    assert_eq!(files.get(&now, &old.id).await.unwrap(), None);
    assert_eq!(files.page(&now, &Span::default(), 1).await.unwrap(), (vec![], false));
    assert!(!files.delete(&now, &old.id).await.unwrap());
    assert_eq!(files.count("ns").await.unwrap(), 1);
    assert_eq!(files.sweep(Timestamp::now(), &BTreeSet::from([now])).await.unwrap(), 0);
    assert_eq!(files.sweep(Timestamp::now(), &BTreeSet::from([before])).await.unwrap(), 1);
    assert_eq!(files.count("ns").await.unwrap(), 0);
}

/// Nothing else of the log waits for as long as the object store does not answer, times the files.
#[tokio::test(start_paused = true)]
async fn an_object_store_that_is_away_holds_up_one_sweep_once() {
    let store = ThrottledStore::new(InMemory::new(), ThrottleConfig::default());
    store.config_mut(|config| config.wait_delete_per_call = DEADLINE * 1_000);
    let objects = Objects::over(Arc::new(store), DEADLINE);
    let files = Files::new(Arc::new(MemoryFiles::default()), Some(objects));
    let home = home("ns", "u");
    for _ in 0..600 {
        put(&files, &home, Some(SignedDuration::ZERO)).await;
    }
    let begin = Instant::now();
    assert_eq!(files.sweep(Timestamp::now(), &BTreeSet::new()).await.unwrap(), 600);
    assert!(begin.elapsed() < DEADLINE * 2, "{:?}", begin.elapsed());
    assert_eq!(files.count("ns").await.unwrap(), 0);
}
