use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt as _;
use object_store::memory::InMemory;

use super::{Objects, ObjectsError, Put};
use crate::record::hash;

fn memory() -> Objects {
    Objects::over(Arc::new(InMemory::new()), Duration::from_secs(5))
}

#[tokio::test]
async fn what_is_read_is_what_was_written() {
    let objects = memory();
    let (one, two) = (Bytes::from_static(b"one"), Bytes::from_static(b"two!"));
    assert_eq!(objects.put("a/b", one.clone()).await.unwrap(), Put::Created);
    assert_eq!(objects.put("a/b", two.clone()).await.unwrap(), Put::Existed);
    assert_eq!(objects.get("a/b", 3, &hash(&one)).await.unwrap(), one);
    assert!(matches!(objects.get("a/b", 3, &hash(&two)).await, Err(ObjectsError::Damaged { .. })));
    assert!(matches!(objects.get("a/b", 2, &hash(&one)).await, Err(ObjectsError::Damaged { .. })));
    assert!(matches!(objects.get("a/c", 3, &hash(&one)).await, Err(ObjectsError::NotFound { .. })));
}

#[tokio::test]
async fn a_prefix_ends_with_a_part_of_the_name() {
    let objects = memory();
    for name in ["a/1", "a/b/2", "ab/3"] {
        objects.put(name, Bytes::new()).await.unwrap();
    }
    let mut names: Vec<String> = objects.list("a").map_ok(|listed| listed.name).try_collect().await.unwrap();
    names.sort();
    assert_eq!(names, ["a/1", "a/b/2"]);
    objects.delete("a/1").await.unwrap();
    objects.delete("a/1").await.unwrap();
    assert_eq!(objects.list("a").try_collect::<Vec<_>>().await.unwrap().len(), 1);
}
