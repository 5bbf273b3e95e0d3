//! Where everything is.
//!
//! Under the store's prefix (`/longhand/` in production):
//!
//! | key | value |
//! |---|---|
//! | `meta/{session}` | the session's metadata; it exists as long as the session may be written to |
//! | `deleting/{session}` | the same, from the first to the last step of a deletion |
//! | `importing/{session}` | the same, and the mark of an import, from its first to its last step |
//! | `s/{session}/epoch` | the epoch of the last claim, a decimal number, for changes that leave the head as it is |
//! | `s/{session}/owner` | who claimed it, under a lease |
//! | `s/{session}/head` | the end of the log: epoch, number of the last record, bytes of all, time and hash of the last |
//! | `s/{session}/summary` | status, usage, and what else of the head seldom changes; never without the head |
//! | `s/{session}/lineage` | which part of a fork's history stands in which other log; it never changes |
//! | `s/{session}/forks/{fork}` | another session shares this one's history |
//! | `s/{session}/ended` | the session takes no new events of clients |
//! | `s/{session}/archived` | the manifest of the records that are in the object store, see [`crate::archive`] |
//! | `s/{session}/inbox/{event}` | a queued event and its place among those queued with it |
//! | `s/{session}/call/{event}` | the state of a tool call without a result |
//! | `s/{session}/done/{event}` | the sequence number of a tool call's result |
//! | `s/{session}/idem/{event}` | the sequence number of an event in the log, unless a brain says it of itself |
//! | `log/{session}/{seq:016x}` | a record; of all keys only these are watched by every replica, hence a prefix of their own |
//! | `payload/{namespace}/{sha256}/{session}` | the session holds a payload in the object store |
//! | `doomed/{namespace}/{sha256}` | a payload that nobody holds is being removed; nobody may begin to hold it |
//! | `file/{namespace}/{file}` | a file that was uploaded, whose content is in the object store, see [`crate::files`] |
//! | `wake/{session}` | work is open; the only prefix that the operator may read |
//! | `holdings/{namespace}` | what the sessions of a namespace held when they were last counted |
//! | `service/{name}` | what the replicas of the service share |
//! | `request/{name}`, `answer/{name}` | requests with an `Idempotency-Key`, see [`crate::requests`] |
//! | `work/...` | the queues of self-hosted environments, see [`crate::work`] |

use longhand_protocol::{EventId, FileId, SessionId};

/// Builds and reads keys.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    prefix: String,
}

impl Keys {
    pub(crate) fn new(prefix: &str) -> Self {
        Self { prefix: format!("{}/", prefix.trim_end_matches('/')) }
    }

    pub(crate) fn meta(&self, id: &SessionId) -> String {
        format!("{}{id}", self.metas())
    }

    pub(crate) fn metas(&self) -> String {
        format!("{}meta/", self.prefix)
    }

    pub(crate) fn deleting(&self, id: &SessionId) -> String {
        format!("{}{id}", self.deletings())
    }

    pub(crate) fn deletings(&self) -> String {
        format!("{}deleting/", self.prefix)
    }

    pub(crate) fn importing(&self, id: &SessionId) -> String {
        format!("{}{id}", self.importings())
    }

    pub(crate) fn importings(&self) -> String {
        format!("{}importing/", self.prefix)
    }

    /// The prefix of what belongs to a session besides its records.
    pub(crate) fn session(&self, id: &SessionId) -> String {
        format!("{}s/{id}/", self.prefix)
    }

    pub(crate) fn epoch(&self, id: &SessionId) -> String {
        format!("{}s/{id}/epoch", self.prefix)
    }

    pub(crate) fn owner(&self, id: &SessionId) -> String {
        format!("{}s/{id}/owner", self.prefix)
    }

    pub(crate) fn head(&self, id: &SessionId) -> String {
        format!("{}s/{id}/head", self.prefix)
    }

    pub(crate) fn summary(&self, id: &SessionId) -> String {
        format!("{}s/{id}/summary", self.prefix)
    }

    pub(crate) fn lineage(&self, id: &SessionId) -> String {
        format!("{}s/{id}/lineage", self.prefix)
    }

    pub(crate) fn fork(&self, id: &SessionId, fork: &SessionId) -> String {
        format!("{}{fork}", self.forks(id))
    }

    pub(crate) fn forks(&self, id: &SessionId) -> String {
        format!("{}s/{id}/forks/", self.prefix)
    }

    /// The end of the range of a session's forks.
    pub(crate) fn forks_end(&self, id: &SessionId) -> String {
        format!("{}s/{id}/forks0", self.prefix)
    }

    pub(crate) fn ended(&self, id: &SessionId) -> String {
        format!("{}s/{id}/ended", self.prefix)
    }

    pub(crate) fn log(&self, id: &SessionId, seq: u64) -> String {
        format!("{}{seq:016x}", self.logs(id))
    }

    /// The prefix of every session's records.
    pub(crate) fn records(&self) -> String {
        format!("{}log/", self.prefix)
    }

    pub(crate) fn logs(&self, id: &SessionId) -> String {
        format!("{}{id}/", self.records())
    }

    /// The end of the range of a session's records.
    pub(crate) fn log_end(&self, id: &SessionId) -> String {
        format!("{}{id}0", self.records())
    }

    pub(crate) fn inbox(&self, id: &SessionId, event: &EventId) -> String {
        format!("{}s/{id}/inbox/{event}", self.prefix)
    }

    pub(crate) fn inboxes(&self, id: &SessionId) -> String {
        format!("{}s/{id}/inbox/", self.prefix)
    }

    pub(crate) fn call(&self, id: &SessionId, call: &EventId) -> String {
        format!("{}s/{id}/call/{call}", self.prefix)
    }

    pub(crate) fn calls(&self, id: &SessionId) -> String {
        format!("{}s/{id}/call/", self.prefix)
    }

    pub(crate) fn done(&self, id: &SessionId, call: &EventId) -> String {
        format!("{}s/{id}/done/{call}", self.prefix)
    }

    pub(crate) fn idem(&self, id: &SessionId, event: &EventId) -> String {
        format!("{}s/{id}/idem/{event}", self.prefix)
    }

    pub(crate) fn archived(&self, id: &SessionId) -> String {
        format!("{}s/{id}/archived", self.prefix)
    }

    pub(crate) fn payloads(&self) -> String {
        format!("{}payload/", self.prefix)
    }

    /// The prefix of those who hold a payload.
    pub(crate) fn holders(&self, namespace: &str, sha256: &str) -> String {
        format!("{}{namespace}/{sha256}/", self.payloads())
    }

    pub(crate) fn holder(&self, namespace: &str, sha256: &str, id: &SessionId) -> String {
        format!("{}{id}", self.holders(namespace, sha256))
    }

    /// The namespace, hash and session of a key under [`Keys::payloads`].
    pub(crate) fn held<'a>(&self, key: &'a str) -> Option<(&'a str, &'a str, SessionId)> {
        let mut parts = key.strip_prefix(&self.payloads())?.split('/');
        let (namespace, sha256, id) = (parts.next()?, parts.next()?, parts.next()?);
        Some((namespace, sha256, id.parse().ok()?))
    }

    pub(crate) fn doomed_prefix(&self) -> String {
        format!("{}doomed/", self.prefix)
    }

    pub(crate) fn doomed(&self, namespace: &str, sha256: &str) -> String {
        format!("{}{namespace}/{sha256}", self.doomed_prefix())
    }

    pub(crate) fn file(&self, namespace: &str, id: &FileId) -> String {
        format!("{}{id}", self.files(namespace))
    }

    /// The prefix of a namespace's files.
    pub(crate) fn files(&self, namespace: &str) -> String {
        format!("{}{namespace}/", self.all_files())
    }

    pub(crate) fn all_files(&self) -> String {
        format!("{}file/", self.prefix)
    }

    pub(crate) fn wake(&self, id: &SessionId) -> String {
        format!("{}{id}", self.wakes())
    }

    pub(crate) fn wakes(&self) -> String {
        format!("{}wake/", self.prefix)
    }

    /// A key of the queues of self-hosted environments.
    pub(crate) fn work(&self, name: &str) -> String {
        format!("{}work/{name}", self.prefix)
    }

    /// A request with an `Idempotency-Key`.
    pub(crate) fn request(&self, name: &str) -> String {
        format!("{}{name}", self.requests())
    }

    pub(crate) fn requests(&self) -> String {
        format!("{}request/", self.prefix)
    }

    /// How such a request was answered.
    pub(crate) fn answer(&self, name: &str) -> String {
        format!("{}answer/{name}", self.prefix)
    }

    pub(crate) fn holding(&self, namespace: &str) -> String {
        format!("{}{namespace}", self.holdings())
    }

    /// The prefix of what namespaces hold.
    pub(crate) fn holdings(&self) -> String {
        format!("{}holdings/", self.prefix)
    }

    pub(crate) fn service(&self, name: &str) -> String {
        format!("{}service/{name}", self.prefix)
    }

    /// What a key belongs to: a session, or what else stands behind the first `/`. Keys of different groups never have to
    /// be compared with one another.
    pub(crate) fn group<'a>(&self, key: &'a str) -> &'a str {
        let rest = key.strip_prefix(&self.prefix).unwrap_or(key);
        rest.split('/').nth(1).unwrap_or(rest)
    }

    /// The session and the number of the record that a key stands for, if it stands for one.
    pub(crate) fn record(&self, key: &str) -> Option<(SessionId, u64)> {
        let (id, seq) = key.strip_prefix(&self.records())?.split_once('/')?;
        Some((id.parse().ok()?, u64::from_str_radix(seq, 16).ok()?))
    }

    /// The session that a key under [`Keys::deletings`] stands for.
    pub(crate) fn deleted(&self, key: &str) -> Option<SessionId> {
        key.strip_prefix(&self.deletings())?.parse().ok()
    }

    /// The session that a key under [`Keys::wakes`] stands for.
    pub(crate) fn woken(&self, key: &str) -> Option<SessionId> {
        key.strip_prefix(&self.wakes())?.parse().ok()
    }
}

/// What stands behind the last `/` of a key.
pub(crate) fn last_segment(key: &str) -> &str {
    key.rsplit('/').next().unwrap_or(key)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::{Keys, last_segment};

    #[test]
    fn keys_are_where_the_design_says() {
        let (keys, id, event) = (Keys::new("/longhand"), "sesn_1".parse().unwrap(), "sevt_2".parse().unwrap());
        assert_eq!(keys.log(&id, 255), "/longhand/log/sesn_1/00000000000000ff");
        assert_eq!(keys.idem(&id, &event), "/longhand/s/sesn_1/idem/sevt_2");
        assert_eq!(keys.wake(&id), "/longhand/wake/sesn_1");
        assert_eq!(keys.service("signing-key"), "/longhand/service/signing-key");
        assert!(keys.log(&id, u64::MAX) < keys.log_end(&id));
    }

    #[test]
    fn records_sort_by_their_number() {
        let (keys, id) = (Keys::new("/p/"), "sesn_1".parse().unwrap());
        assert!([1, 9, 10, 15, 16, 255, 256, u64::MAX].windows(2).all(|w| keys.log(&id, w[0]) < keys.log(&id, w[1])));
    }

    #[rstest]
    #[case("/p/log/sesn_1/0000000000000001", Some(1))]
    #[case("/p/log/sesn_1/head", None)]
    #[case("/p/log/nobody/0000000000000001", None)]
    #[case("/p/s/sesn_1/head", None)]
    #[case("/other/log/sesn_1/0000000000000001", None)]
    #[case("/p/log/", None)]
    fn records_are_told_from_other_keys(#[case] key: &str, #[case] seq: Option<u64>) {
        assert_eq!(Keys::new("/p/").record(key).map(|(_, seq)| seq), seq);
    }

    #[test]
    fn every_key_of_a_session_is_in_its_group() {
        let (keys, id, event) = (Keys::new("/p/"), "sesn_1".parse().unwrap(), "sevt_2".parse().unwrap());
        let all = [
            keys.meta(&id),
            keys.deleting(&id),
            keys.importing(&id),
            keys.forks(&id),
            keys.epoch(&id),
            keys.log(&id, 1),
            keys.inboxes(&id),
            keys.idem(&id, &event),
            keys.wake(&id),
        ];
        assert!(all.iter().all(|key| keys.group(key) == "sesn_1"), "{all:?}");
        assert_eq!(keys.group(&keys.service("signing-key")), "signing-key");
        assert_eq!(keys.group("other"), "other");
    }

    #[test]
    fn a_key_names_its_record_or_its_holder() {
        let keys = Keys::new("/p/");
        let id: longhand_protocol::SessionId = "sesn_1".parse().unwrap();
        assert_eq!(keys.record(&keys.log(&id, 300)), Some((id.clone(), 300)));
        assert_eq!(keys.record(&keys.head(&id)), None);
        assert_eq!(keys.held(&keys.holder("ns", "abc", &id)), Some(("ns", "abc", id)));
        assert_eq!(keys.held("/p/payload/ns/abc"), None);
    }

    #[test]
    fn a_wake_key_names_its_session() {
        let keys = Keys::new("/p/");
        let id: longhand_protocol::SessionId = "sesn_1".parse().unwrap();
        assert_eq!(keys.woken(&keys.wake(&id)).as_ref(), Some(&id));
        assert_eq!(keys.woken("/p/wake/other"), None);
        assert_eq!(keys.deleted(&keys.deleting(&id)), Some(id));
        assert_eq!(last_segment("/a/b/c"), "c");
    }
}
