//! Files are there whole or not at all, for every replica, and nothing of one is left that is not.

use std::collections::BTreeSet;

use bytes::Bytes;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use jiff::{SignedDuration, Timestamp};
use longhand_protocol::FileId;
use longhand_session_log::StoreError;
use longhand_session_log::files::{FileIndex, Files, FilesError, Held, Home, NewFile, Span, StoredFile};
use longhand_session_log::objects::{DEADLINE, Objects};

use crate::conformance::assert_err;
use crate::etcd::{Etcd, etcd_with};
use crate::support::cut::Cut;
use crate::support::s3::S3;

const GRACE: SignedDuration = SignedDuration::from_hours(24);

fn folder() -> (Objects, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("file://{}/objects", dir.path().display());
    (Objects::open(&url, DEADLINE).unwrap(), dir)
}

fn named(filename: &str) -> NewFile {
    let [filename, mime_type] = [filename, "text/plain"].map(ToOwned::to_owned);
    NewFile { filename, mime_type, expires_in: None }
}

fn home(namespace: &str) -> Home {
    Home { namespace: namespace.to_owned(), uid: "uid-1".to_owned() }
}

/// In pieces that fit no part.
async fn put(files: &Files, namespace: &str, filename: &str, content: &[u8]) -> Result<StoredFile, FilesError<String>> {
    let pieces: Vec<Result<Bytes, String>> =
        content.chunks(999_983).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    let slot = match files.begin_upload(&home(namespace)) {
        Ok(slot) => slot,
        Err(FilesError::NoPlace) => return Err(FilesError::NoPlace),
        Err(error) => panic!("{error}"),
    };
    files.put(slot, named(filename), stream::iter(pieces)).await
}

async fn read(files: &Files, file: &StoredFile) -> Vec<u8> {
    let pieces: Vec<Bytes> = files.read("ns", file).await.unwrap().try_collect().await.unwrap();
    pieces.concat()
}

async fn objects_of(objects: &Objects) -> usize {
    objects.list("").try_collect::<Vec<_>>().await.unwrap().len()
}

async fn is_kept_until_it_is_deleted(objects: &Objects) {
    let etcd = etcd_with(Some(objects.clone())).await;
    let (one, two) = (etcd.inner().files(), etcd.another().await.files());
    let content: Vec<u8> = (0..12_000_000_u32).map(|index| u8::try_from(index % 251).unwrap()).collect();
    let file = put(&one, "ns", "large.bin", &content).await.unwrap();
    assert_eq!((file.bytes, file.filename.as_str(), file.mime_type.as_str()), (12_000_000, "large.bin", "text/plain"));
    assert_eq!(two.get(&home("ns"), &file.id).await.unwrap().as_ref(), Some(&file));
    assert!(read(&two, &file).await == content);
    let empty = put(&one, "ns", "empty", b"").await.unwrap();
    assert!(empty.id > file.id && read(&two, &empty).await.is_empty());
    // Another namespace has neither, and what is kept is not collected.
    assert_eq!(two.get(&home("other"), &file.id).await.unwrap(), None);
    assert!(!two.delete(&home("other"), &file.id).await.unwrap());
    let later = Timestamp::now() + SignedDuration::from_hours(25);
    let collected = etcd.inner().collect(GRACE, later).await.unwrap();
    assert_eq!((collected.files, collected.file_bytes, collected.removed), (2, 12_000_000, 0));
    assert!(two.delete(&home("ns"), &file.id).await.unwrap());
    assert!(!one.delete(&home("ns"), &file.id).await.unwrap());
    assert_eq!(one.get(&home("ns"), &file.id).await.unwrap(), None);
    assert_err!(one.read("ns", &file).await.map(drop), FilesError::Store(_));
    assert_eq!(etcd.inner().collect(GRACE, later).await.unwrap().files, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_in_a_folder_is_kept_until_it_is_deleted() {
    let (objects, _dir) = folder();
    is_kept_until_it_is_deleted(&objects).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_in_a_bucket_is_kept_until_it_is_deleted() {
    let server = S3::start().await;
    is_kept_until_it_is_deleted(&server.objects("files")).await;
}

/// The names of a page, and whether there are more.
async fn page(files: &Files, span: Span, limit: usize) -> (Vec<String>, bool) {
    let (page, more) = files.page(&home("ns"), &span, limit).await.unwrap();
    (page.into_iter().map(|file| file.filename).collect(), more)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_go_both_ways() {
    let (objects, _dir) = folder();
    let etcd = etcd_with(Some(objects)).await;
    for files in [etcd.inner().files(), Files::in_memory()] {
        let mut ids: Vec<FileId> = Vec::new();
        for number in 0..5 {
            // Two of the same millisecond have no order.
            while ids
                .last()
                .is_some_and(|last| last.as_str()[..13] == FileId::generate_at(Timestamp::now()).as_str()[..13])
            {
                tokio::task::yield_now().await;
            }
            ids.push(put(&files, "ns", &number.to_string(), b"x").await.unwrap().id);
        }
        put(&files, "nss", "another's", b"x").await.unwrap();
        let after = |number: usize| Span { after: Some(ids[number].clone()), before: None };
        let before = |number: usize| Span { before: Some(ids[number].clone()), after: None };
        let of = |names: &[&str], more| (names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>(), more);
        assert_eq!(page(&files, Span::default(), 2).await, of(&["4", "3"], true));
        assert_eq!(page(&files, Span::default(), 5).await, of(&["4", "3", "2", "1", "0"], false));
        assert_eq!(page(&files, after(3), 2).await, of(&["2", "1"], true));
        assert_eq!(page(&files, after(1), 2).await, of(&["0"], false));
        assert_eq!(page(&files, after(0), 2).await, of(&[], false));
        assert_eq!(page(&files, before(0), 2).await, of(&["2", "1"], true));
        assert_eq!(page(&files, before(2), 2).await, of(&["4", "3"], false));
        assert_eq!(page(&files, before(4), 2).await, of(&[], false));
        let between =
            |before: usize, after: usize| Span { before: Some(ids[before].clone()), after: Some(ids[after].clone()) };
        assert_eq!(page(&files, between(0, 4), 2).await, of(&["3", "2"], true));
        assert_eq!(page(&files, between(4, 0), 2).await, of(&[], false));

        let held = files.held().await.unwrap();
        let of = |namespace: &str| held[&home(namespace)];
        assert_eq!((held.len(), of("ns"), of("nss")), (2, Held { files: 5, bytes: 5 }, Held { files: 1, bytes: 1 }));
        // Another namespace of this name has none of them.
        let again = Home { uid: "uid-2".to_owned(), ..home("ns") };
        assert_eq!(files.get(&again, &ids[4]).await.unwrap(), None);
        assert_eq!(files.page(&again, &Span::default(), 2).await.unwrap(), (vec![], false));
        assert!(!files.delete(&again, &ids[4]).await.unwrap());
        assert_eq!(files.count("ns").await.unwrap(), 5);
        let sweep = async |gone| files.sweep(Timestamp::now(), &BTreeSet::from([gone])).await.unwrap();
        assert_eq!(sweep(again).await, 0);
        assert_eq!(sweep(home("ns")).await, 5);
        assert_eq!((files.held().await.unwrap().len(), files.count("ns").await.unwrap()), (1, 0));
    }
}

/// More entries than are read at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_file_counts() {
    let etcd = etcd_with(None).await;
    let store = etcd.inner();
    let add = |number: u64| {
        let store = store.clone();
        async move {
            let id = FileId::generate_at(Timestamp::now());
            let NewFile { filename, mime_type, .. } = named("a");
            let (sha256, created_at, namespace_uid) = (String::new(), Timestamp::now(), "uid-1".to_owned());
            let file =
                StoredFile { id, filename, mime_type, bytes: 10, sha256, created_at, namespace_uid, expires_at: None };
            store.add(if number.is_multiple_of(2) { "a" } else { "b" }, &file).await.unwrap();
        }
    };
    stream::iter((0..600).map(add)).buffer_unordered(32).collect::<()>().await;
    let files = store.files();
    let held: Vec<Held> = files.held().await.unwrap().into_values().collect();
    assert_eq!(held, [Held { files: 300, bytes: 3_000 }; 2]);
    assert_eq!(files.count("a").await.unwrap(), 300);
    assert_eq!(files.sweep(Timestamp::now(), &BTreeSet::from([home("a")])).await.unwrap(), 300);
    assert_eq!((files.count("a").await.unwrap(), files.count("b").await.unwrap()), (0, 300));
    assert_err!(put(&files, "a", "a", b"x").await, FilesError::NoPlace);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_over_is_gone() {
    let (objects, _dir) = folder();
    let etcd = etcd_with(Some(objects.clone())).await;
    for files in [etcd.inner().files(), Files::in_memory()] {
        let content = || stream::iter([Ok::<_, String>(Bytes::from_static(b"x"))]);
        let lasting = |span: SignedDuration| NewFile { expires_in: Some(span), ..named("a") };
        let slot = || files.begin_upload(&home("ns")).unwrap();
        let kept = files.put(slot(), lasting(SignedDuration::from_hours(1)), content()).await.unwrap();
        assert_eq!(kept.expires_at, Some(kept.created_at + SignedDuration::from_hours(1)));
        let over = files.put(slot(), lasting(SignedDuration::ZERO), content()).await.unwrap();
        assert_eq!(files.get(&home("ns"), &over.id).await.unwrap(), None);
        assert_eq!(files.sweep(Timestamp::now(), &BTreeSet::new()).await.unwrap(), 1);
        assert_eq!(files.sweep(Timestamp::now(), &BTreeSet::new()).await.unwrap(), 0);
        assert_eq!(files.page(&home("ns"), &Span::default(), 9).await.unwrap(), (vec![kept.clone()], false));
        assert_eq!(files.get(&home("ns"), &kept.id).await.unwrap(), Some(kept));
    }
    assert_eq!(objects_of(&objects).await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_crash_leaves_is_collected_when_it_is_old() {
    let (objects, _dir) = folder();
    let etcd: Etcd = etcd_with(Some(objects.clone())).await;
    let files = etcd.inner().files();
    let kept = put(&files, "ns", "kept", b"kept").await.unwrap();
    // As if the process had died after the content, and before the entry.
    let orphan = {
        let doomed = put(&files, "ns", "doomed", b"doomed").await.unwrap();
        assert!(etcd.inner().remove("ns", &doomed.id).await.unwrap());
        doomed
    };
    assert_eq!(objects_of(&objects).await, 2);
    assert_eq!(etcd.inner().collect(GRACE, Timestamp::now()).await.unwrap().removed, 0);
    // An upload may be between the two for an hour, whatever grace others have.
    let soon = Timestamp::now() + SignedDuration::from_mins(119);
    assert_eq!(etcd.inner().collect(SignedDuration::ZERO, soon).await.unwrap().removed, 0);
    let later = Timestamp::now() + SignedDuration::from_hours(25);
    assert_eq!(etcd.inner().collect(GRACE, later).await.unwrap().removed, 1);
    assert_eq!(read(&files, &kept).await, b"kept");
    assert_err!(files.read("ns", &orphan).await.map(drop), FilesError::Store(_));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_fails_keeps_nothing() {
    let (objects, _dir) = folder();
    let etcd = etcd_with(Some(objects.clone())).await;
    let files = etcd.inner().files();
    let broken = [Ok(Bytes::from(vec![7; 6_000_000])), Err("the client is gone")];
    let slot = files.begin_upload(&home("ns")).unwrap();
    assert_err!(files.put(slot, named("a"), stream::iter(broken)).await, FilesError::Upload("the client is gone"));
    assert_eq!((page(&files, Span::default(), 9).await.0.len(), objects_of(&objects).await), (0, 0));

    let cut = Cut::to(etcd.address()).await;
    let away = etcd.at(cut.endpoint()).await.files();
    away.held().await.unwrap();
    // An answer that is lost is found out.
    put(&away, "ns", "first", b"x").await.unwrap();
    cut.lose_next_answer();
    put(&away, "ns", "second", b"x").await.unwrap();
    assert!(cut.has_lost());
    cut.block(true);
    let outcome = put(&away, "ns", "third", b"x").await;
    assert_err!(outcome, FilesError::Store(StoreError::Unavailable(_)));
    assert_eq!(page(&files, Span::default(), 9).await.0, ["second", "first"]);
    assert_eq!(objects_of(&objects).await, 3);
    let later = Timestamp::now() + SignedDuration::from_hours(25);
    assert_eq!(etcd.inner().collect(GRACE, later).await.unwrap().removed, 1);
}
