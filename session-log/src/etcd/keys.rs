//! Where everything is.
//!
//! Under the store's prefix (`/longhand/` in production):
//!
//! | key | value |
//! |---|---|
//! | `meta/{session}` | the session's metadata; it exists as long as the session may be written to |
//! | `deleting/{session}` | the same, from the first to the last step of a deletion |
//! | `s/{session}/epoch` | the epoch of the last claim, a decimal number |
//! | `s/{session}/owner` | who claimed it, under a lease |
//! | `s/{session}/head` | the end of the log, with the last record's hash, status and usage |
//! | `s/{session}/log/{seq:016x}` | a record |
//! | `s/{session}/inbox/{event}` | a queued event and its place among those queued with it |
//! | `s/{session}/call/{event}` | the state of a tool call without a result |
//! | `s/{session}/done/{event}` | the sequence number of a tool call's result |
//! | `s/{session}/idem/{event}` | the sequence number of an event in the log |
//! | `wake/{session}` | work is open; the only prefix that the operator may read |
//! | `service/{name}` | what the replicas of the service share |

use longhand_protocol::{EventId, SessionId};

/// Builds and reads keys.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    prefix: String,
}

/// What changed in a session, as far as those who wait for it care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// The end of the log; it goes only with the session.
    Head,
    /// A record.
    Log,
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

    /// The prefix of everything that belongs to any session's log.
    pub(crate) fn sessions(&self) -> String {
        format!("{}s/", self.prefix)
    }

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

    pub(crate) fn log(&self, id: &SessionId, seq: u64) -> String {
        format!("{}{seq:016x}", self.logs(id))
    }

    pub(crate) fn logs(&self, id: &SessionId) -> String {
        format!("{}s/{id}/log/", self.prefix)
    }

    /// The end of the range of a session's records.
    pub(crate) fn log_end(&self, id: &SessionId) -> String {
        format!("{}s/{id}/log0", self.prefix)
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

    pub(crate) fn wake(&self, id: &SessionId) -> String {
        format!("{}{id}", self.wakes())
    }

    pub(crate) fn wakes(&self) -> String {
        format!("{}wake/", self.prefix)
    }

    pub(crate) fn service(&self, name: &str) -> String {
        format!("{}service/{name}", self.prefix)
    }

    /// The session and the part of it that a key under [`Keys::sessions`] stands for, if it is one that is waited for.
    pub(crate) fn part(&self, key: &str) -> Option<(SessionId, Part)> {
        let (id, rest) = key.strip_prefix(&self.sessions())?.split_once('/')?;
        let part = match rest {
            "head" => Part::Head,
            _ if rest.starts_with("log/") => Part::Log,
            _ => return None,
        };
        Some((id.parse().ok()?, part))
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

    use super::{Keys, Part, last_segment};

    #[test]
    fn keys_are_where_the_design_says() {
        let (keys, id, event) = (Keys::new("/longhand"), "sesn_1".parse().unwrap(), "sevt_2".parse().unwrap());
        assert_eq!(keys.log(&id, 255), "/longhand/s/sesn_1/log/00000000000000ff");
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
    #[case("/p/s/sesn_1/head", Some(Part::Head))]
    #[case("/p/s/sesn_1/log/0000000000000001", Some(Part::Log))]
    #[case("/p/s/sesn_1/idem/sevt_1", None)]
    #[case("/p/s/nobody/head", None)]
    #[case("/other/s/sesn_1/head", None)]
    #[case("/p/s/", None)]
    fn keys_are_told_apart(#[case] key: &str, #[case] part: Option<Part>) {
        assert_eq!(Keys::new("/p/").part(key).map(|(_, part)| part), part);
    }

    #[test]
    fn a_wake_key_names_its_session() {
        let keys = Keys::new("/p/");
        let id = "sesn_1".parse().unwrap();
        assert_eq!(keys.woken(&keys.wake(&id)), Some(id));
        assert_eq!(keys.woken("/p/wake/other"), None);
        assert_eq!(last_segment("/a/b/c"), "c");
    }
}
