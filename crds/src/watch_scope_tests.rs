use futures::stream::{StreamExt as _, iter};
use k8s_openapi::api::core::v1::Pod;
use kube::core::DeserializeGuard;
use kube::runtime::reflector;
use kube::runtime::watcher::{Error, Event};
use kube::{Resource as _, ResourceExt as _};
use serde_json::json;

use super::{Merge, Remembered as _, WatchScope, merged};
use crate::Vault;

fn pod(namespace: &str, name: &str, version: &str) -> Pod {
    serde_json::from_value(json!({
        "metadata": { "namespace": namespace, "name": name, "resourceVersion": version, "labels": { "a": "b" } },
        "spec": { "containers": [] },
    }))
    .unwrap()
}

fn said(events: Vec<Event<Pod>>) -> Vec<String> {
    let name = |word: &str, pod: &Pod| {
        format!("{word} {}/{}@{}", pod.namespace().unwrap(), pod.name_any(), pod.resource_version().unwrap())
    };
    let word = |event| match event {
        Event::Init => "begin".to_owned(),
        Event::InitApply(pod) => name("list", &pod),
        Event::InitDone => "end".to_owned(),
        Event::Apply(pod) => name("apply", &pod),
        Event::Delete(pod) => name("delete", &pod),
    };
    events.into_iter().map(word).collect()
}

#[test]
fn no_namespace_is_every_namespace() {
    assert!(WatchScope::of([]).includes("team") && WatchScope::of([String::new()]).includes("team"));
    let two = WatchScope::of(["b".to_owned(), "a".to_owned(), "a".to_owned()]);
    assert!(two.includes("a") && two.includes("b") && !two.includes("team"));
}

#[test]
fn the_first_list_is_whole_when_that_of_every_namespace_is() {
    let mut merge = Merge::new(2);
    for event in
        [Event::Init, Event::InitApply(pod("a", "one", "1")), Event::InitApply(pod("a", "two", "2")), Event::InitDone]
    {
        assert!(merge.apply(0, event).is_empty());
    }
    // What happens before the other list has come is in it.
    assert!(merge.apply(0, Event::Apply(pod("a", "one", "5"))).is_empty());
    assert!(merge.apply(0, Event::Delete(pod("a", "two", "6"))).is_empty());
    assert!(merge.apply(1, Event::Init).is_empty());
    assert!(merge.apply(1, Event::InitApply(pod("b", "one", "3"))).is_empty());
    assert_eq!(said(merge.apply(1, Event::InitDone)), ["begin", "list a/one@5", "list b/one@3", "end"]);
    assert_eq!(said(merge.apply(1, Event::Apply(pod("b", "two", "7")))), ["apply b/two@7"]);
    assert_eq!(said(merge.apply(0, Event::Delete(pod("a", "one", "8")))), ["delete a/one@8"]);
}

#[test]
fn a_list_that_begins_again_before_the_first_is_whole_counts_once() {
    let mut merge = Merge::new(2);
    for name in ["old", "new"] {
        merge.apply(0, Event::Init);
        merge.apply(0, Event::InitApply(pod("a", name, "1")));
    }
    assert!(merge.apply(0, Event::InitDone).is_empty());
    merge.apply(1, Event::Init);
    assert_eq!(said(merge.apply(1, Event::InitDone)), ["begin", "list a/new@1", "end"]);
}

#[test]
fn what_a_new_list_of_one_namespace_lacks_is_gone_and_that_of_others_stays() {
    let mut merge = Merge::new(2);
    let (store, mut writer) = reflector::store();
    let lists = [
        (0, Event::Init),
        (0, Event::InitApply(pod("a", "one", "1"))),
        (0, Event::InitApply(pod("a", "two", "1"))),
        (0, Event::InitDone),
        (1, Event::Init),
        (1, Event::InitApply(pod("b", "one", "1"))),
        (1, Event::InitDone),
        (0, Event::Init),
        (0, Event::InitApply(pod("a", "one", "2"))),
    ];
    for (number, event) in lists {
        merge.apply(number, event).iter().for_each(|event| writer.apply_watcher_event(event));
    }
    assert_eq!(store.len(), 3, "until the list is whole");
    let gone = merge.apply(0, Event::InitDone);
    gone.iter().for_each(|event| writer.apply_watcher_event(event));
    let [Event::Delete(pod)] = &gone[..] else { panic!("{gone:?}") };
    assert_eq!((pod.name_any(), pod.labels().len(), &pod.spec), ("two".to_owned(), 1, &None));
    let mut left: Vec<_> =
        store.state().iter().map(|pod| (pod.namespace().unwrap(), pod.name_any(), pod.resource_version())).collect();
    left.sort();
    let version = |version: &str| Some(version.to_owned());
    assert_eq!(left, [("a".into(), "one".into(), version("2")), ("b".into(), "one".into(), version("1"))]);
}

#[tokio::test]
async fn a_watch_that_fails_is_told_of_and_the_others_go_on() {
    let list = |namespace: &'static str| {
        [Ok(Event::Init), Ok(Event::InitApply(pod(namespace, "one", "1"))), Ok(Event::InitDone)]
    };
    let failing = iter([Err(Error::NoResourceVersion)].into_iter().chain(list("a"))).boxed();
    let told: Vec<_> = merged(vec![failing, iter(list("b")).boxed()]).collect().await;
    assert_eq!(told.iter().filter(|event| event.is_err()).count(), 1);
    let events = told.into_iter().filter_map(Result::ok).collect();
    assert_eq!(said(events), ["begin", "list a/one@1", "list b/one@1", "end"]);
}

#[test]
fn an_object_that_cannot_be_read_is_remembered_too() {
    let broken: DeserializeGuard<Vault> = serde_json::from_value(json!({
        "apiVersion": "longhand.dev/v1alpha1", "kind": "Vault", "spec": 3,
        "metadata": { "namespace": "a", "name": "one", "annotations": { "long": "text" } },
    }))
    .unwrap();
    let reduced = broken.reduced();
    assert_eq!(
        (reduced.name_any(), reduced.namespace(), &reduced.meta().annotations),
        ("one".into(), Some("a".into()), &None)
    );
}
