//! Conditions: what is seen now, and since when.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// The API server takes 32 KiB; a person reads less.
const MAX_MESSAGE: usize = 1_024;

/// The condition that sums the others up.
pub const READY: &str = "Ready";
/// Whether there is no pod since none is wanted.
pub const SUSPENDED: &str = "Suspended";
/// Whether it has come to its end.
pub const FINISHED: &str = "Finished";
/// Whether what a session's workspace shall hold is there.
pub const RESOURCES_READY: &str = "ResourcesReady";
/// Whether as many pods wait as are wanted.
pub const WARM_READY: &str = "WarmReady";

/// The value of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truth {
    /// It holds.
    True,
    /// It does not.
    False,
    /// It is not known.
    Unknown,
}

impl Truth {
    /// The value on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// What is seen of one condition now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// The condition's type.
    pub kind: &'static str,
    /// Whether it holds.
    pub truth: Truth,
    /// One word in CamelCase.
    pub reason: String,
    /// A sentence for a person.
    pub message: String,
}

impl Observation {
    /// The condition holds.
    #[must_use]
    pub fn yes(kind: &'static str, reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self { kind, truth: Truth::True, reason: reason.into(), message: message.into() }
    }

    /// The condition does not hold.
    #[must_use]
    pub fn no(kind: &'static str, reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self { kind, truth: Truth::False, reason: reason.into(), message: message.into() }
    }

    /// It is not known whether the condition holds.
    #[must_use]
    pub fn unknown(kind: &'static str, reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self { kind, truth: Truth::Unknown, reason: reason.into(), message: message.into() }
    }

    /// The same observation as another condition.
    #[must_use]
    pub fn as_kind(&self, kind: &'static str) -> Self {
        Self { kind, ..self.clone() }
    }
}

/// The conditions after `seen`: those that did not flip keep their time, those that are not mentioned stay.
#[must_use]
pub fn merge(old: &[Condition], seen: &[Observation], generation: Option<i64>, now: Timestamp) -> Vec<Condition> {
    let mut conditions = old.to_vec();
    for observation in seen {
        let before = conditions.iter().position(|condition| condition.type_ == observation.kind);
        let since = before
            .and_then(|index| conditions.get(index))
            .filter(|condition| condition.status == observation.truth.as_str())
            .map_or(Time(now), |condition| condition.last_transition_time.clone());
        let condition = Condition {
            type_: observation.kind.to_owned(),
            status: observation.truth.as_str().to_owned(),
            reason: observation.reason.clone(),
            message: cut(&observation.message),
            last_transition_time: since,
            observed_generation: generation,
        };
        match before.and_then(|index| conditions.get_mut(index)) {
            Some(slot) => *slot = condition,
            None => conditions.push(condition),
        }
    }
    conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
    conditions
}

/// The condition of this type.
#[must_use]
pub fn find<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == kind)
}

/// Since when the condition has held, if it does.
#[must_use]
pub fn true_since(conditions: &[Condition], kind: &str) -> Option<Timestamp> {
    find(conditions, kind)
        .filter(|condition| condition.status == "True")
        .map(|condition| condition.last_transition_time.0)
}

/// Since when the condition has not held, if it does not.
#[must_use]
pub fn false_since(conditions: &[Condition], kind: &str) -> Option<Timestamp> {
    find(conditions, kind)
        .filter(|condition| condition.status == "False")
        .map(|condition| condition.last_transition_time.0)
}

/// Reasons of the API are one word; a pod's may be anything.
#[must_use]
pub fn word(reason: &str) -> String {
    let word: String = reason.chars().filter(char::is_ascii_alphanumeric).take(128).collect();
    if word.chars().next().is_some_and(|first| first.is_ascii_alphabetic()) { word } else { format!("Reason{word}") }
}

fn cut(message: &str) -> String {
    if message.len() <= MAX_MESSAGE {
        return message.to_owned();
    }
    let mut end = MAX_MESSAGE - 3;
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}...", &message[..end])
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use rstest::rstest;

    use super::{Observation, find, merge, true_since};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[rstest]
    #[case::same(Observation::yes("Ready", "Idle", "b"), at(1))]
    #[case::flipped(Observation::no("Ready", "Lost", "b"), at(9))]
    #[case::unknown(Observation::unknown("Ready", "Idle", "b"), at(9))]
    fn the_time_moves_only_when_the_status_flips(#[case] seen: Observation, #[case] since: Timestamp) {
        let old = merge(&[], &[Observation::yes("Ready", "Running", "a")], Some(1), at(1));
        let new = merge(&old, &[seen], Some(2), at(9));
        assert_eq!(new.len(), 1);
        assert_eq!(new[0].last_transition_time.0, since);
        assert_eq!((new[0].message.as_str(), new[0].observed_generation), ("b", Some(2)));
    }

    #[test]
    fn what_is_not_mentioned_stays() {
        let old = merge(&[], &[Observation::yes("Z", "Z", ""), Observation::no("A", "A", "")], None, at(1));
        let new = merge(&old, &[Observation::yes("M", "M", "")], None, at(2));
        assert_eq!(new.iter().map(|condition| condition.type_.as_str()).collect::<Vec<_>>(), ["A", "M", "Z"]);
        assert_eq!(true_since(&new, "Z"), Some(at(1)));
        assert_eq!(true_since(&new, "A"), None);
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let new = merge(&[], &[Observation::no("A", "A", "ä".repeat(1_000))], None, at(1));
        let message = &find(&new, "A").unwrap().message;
        assert!(message.len() <= 1_024 && message.ends_with("ä..."), "{}", message.len());
    }
}
