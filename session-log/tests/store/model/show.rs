//! What is compared: answers without what differs between runs.

use longhand_protocol::event::{EventBody, Record};
use longhand_session_log::StoreError;
use longhand_session_log::store::{Appended, SessionState};
use sha2::{Digest as _, Sha256};

/// A longer text is compared by its hash.
const LONG: usize = 1_000;

pub(super) fn show<T>(result: Result<T, StoreError>, ok: impl FnOnce(T) -> String) -> String {
    match result {
        Ok(value) => ok(value),
        // What exactly is wrong with a file is told by bytes that differ.
        Err(StoreError::BadImport(_)) => "BadImport".to_owned(),
        Err(error) => format!("{error:?}"),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "`show` gives away what it shows")]
pub(super) fn appended(appended: Appended) -> String {
    format!("{} {:?}", appended.head, lines(&appended.records))
}

pub(super) fn lines(records: &[Record]) -> Vec<String> {
    records.iter().map(line).collect()
}

/// A record without what differs between runs: times, hashes, and the identifiers that a store makes up.
pub(super) fn line(record: &Record) -> String {
    let id = match &record.event.body {
        EventBody::SessionWoken { .. } | EventBody::SessionStatusTerminated {} => "-",
        _ => record.event.id.as_str(),
    };
    let body = format!("{:?}", record.event.body);
    let body = if body.len() > LONG { format!("{:x}", Sha256::digest(&body)) } else { body };
    format!("{} {} {id} {body}", record.seq, record.epoch)
}

/// Everything but times and revisions.
pub(super) fn state(state: SessionState) -> String {
    let SessionState {
        meta,
        epoch,
        head,
        owner,
        wake_revision,
        status,
        usage,
        list_cost,
        active: _,
        updated_at,
        size,
        archived_at,
        fork,
    } = state;
    assert!(updated_at >= meta.created_at);
    let owner = owner.map(|owner| (owner.epoch, owner.claimant.pod_uid));
    let (woken, archived) = (wake_revision.is_some(), archived_at.is_some());
    // Bytes differ: of times, and of what stands in the object store of one of them.
    let (events, inputs, parent) = (size.events, meta.delivered_inputs, meta.parent);
    format!(
        "{epoch} {head} {owner:?} {woken} {status:?} {usage:?} {list_cost:?} {events} {archived} {fork:?} {inputs} {parent:?}"
    )
}
