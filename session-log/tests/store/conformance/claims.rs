//! Who owns a session.

use longhand_protocol::event::EventBody;
use longhand_session_log::StoreError;
use longhand_session_log::store::Takeover;

use super::{Fixture, TTL, assert_err, claim, idle_event, message, pod, running, session};

pub(crate) async fn a_claim_raises_the_epoch(fixture: &dyn Fixture) {
    let store = fixture.store();
    let id = session(&*store).await;
    let (epoch, record) = store.claim(&id, &pod("a"), Takeover::IfFree, TTL).await.unwrap();
    assert_eq!((epoch, record.seq, record.epoch), (1, 1, 1));
    assert_eq!(record.event.body, EventBody::SessionWoken { epoch: 1, harness: "a".into() });
    let state = store.state(&id).await.unwrap();
    let owner = state.owner.unwrap();
    assert_eq!((state.epoch, state.head, owner.epoch, owner.claimant), (1, 1, 1, pod("a")));
    assert_eq!(claim(&*store, &id, "b").await, (2, 2));
    assert_eq!(store.read(&id, 0, 10).await.unwrap().records[0], record);
}

pub(crate) async fn a_living_owner_is_respected(fixture: &dyn Fixture) {
    let (store, other) = (fixture.store(), fixture.replica().await);
    let id = session(&*store).await;
    claim(&*store, &id, "a").await;
    let refused = other.claim(&id, &pod("b"), Takeover::IfFree, TTL).await;
    assert_err!(refused, StoreError::Owned { pod_uid } if pod_uid == "uid-a");
    assert_eq!(store.state(&id).await.unwrap().epoch, 1);
    assert_eq!(other.claim(&id, &pod("a"), Takeover::IfFree, TTL).await.unwrap().0, 2);
    assert_eq!(other.claim(&id, &pod("b"), Takeover::Always, TTL).await.unwrap().0, 3);
    assert_eq!(store.state(&id).await.unwrap().owner.unwrap().claimant, pod("b"));
}

pub(crate) async fn an_expired_claim_is_free(fixture: &dyn Fixture) {
    let store = fixture.store();
    let id = session(&*store).await;
    let (epoch, head) = claim(&*store, &id, "a").await;
    fixture.expire_claim(&id).await;
    assert_eq!(store.state(&id).await.unwrap().owner, None);
    let head = store.append(&id, epoch, head, vec![running()]).await.unwrap().head;
    assert_eq!(store.claim(&id, &pod("b"), Takeover::IfFree, TTL).await.unwrap().0, 2);
    assert_err!(store.append(&id, epoch, head + 1, vec![running()]).await, StoreError::Fenced { given: 1, current: 2 });
}

pub(crate) async fn a_claim_is_renewed_by_its_owner_only(fixture: &dyn Fixture) {
    let (store, other) = (fixture.store(), fixture.replica().await);
    let id = session(&*store).await;
    assert_err!(store.renew(&id, 1).await, StoreError::Fenced { given: 1, current: 0 });
    let (first, _) = claim(&*store, &id, "a").await;
    other.renew(&id, first).await.unwrap();
    store.renew(&id, first).await.unwrap();
    let (second, _) = claim(&*other, &id, "b").await;
    assert_err!(store.renew(&id, first).await, StoreError::Fenced { given: 1, current: 2 });
    store.renew(&id, second).await.unwrap();
}

pub(crate) async fn a_claim_survives_nothing_but_itself(fixture: &dyn Fixture) {
    let store = fixture.store();
    let id = session(&*store).await;
    let (epoch, _) = claim(&*store, &id, "a").await;
    fixture.expire_claim(&id).await;
    assert_err!(store.renew(&id, epoch).await, StoreError::ClaimLost { epoch: 1 });
    let queued = message("a");
    store.enqueue(&id, vec![queued.clone()]).await.unwrap();
    let (epoch, head) = claim(&*store, &id, "a").await;
    let head = store.promote(&id, epoch, head, &[queued.id], vec![]).await.unwrap().head;
    let wake = store.inbox(&id).await.unwrap().wake_revision.unwrap();
    store.idle(&id, epoch, head, wake, vec![idle_event()]).await.unwrap();
    assert_err!(store.renew(&id, epoch).await, StoreError::ClaimLost { epoch: 2 });
}
