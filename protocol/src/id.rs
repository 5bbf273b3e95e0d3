//! Identifiers: a prefix that names the kind of object and 24 characters of the base58 alphabet.

use std::borrow::Cow;
use std::fmt;

use jiff::Timestamp;
use rand::Rng as _;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

const ALPHABET: &[u8; 58] = b"123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";
/// Characters after the prefix: 24 of base58 are 140 bits.
const LENGTH: usize = 24;
/// Characters that a time in milliseconds takes until the year 6000.
const TIME_LENGTH: usize = 8;
/// The longest identifier that is accepted from a client, in bytes.
const MAX_LENGTH: usize = 64;

/// Why a string is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{value}` is not an identifier of the form {prefix}<letters and digits>")]
pub struct InvalidId {
    /// What was given, cut to 64 characters.
    pub value: String,
    /// The prefix that was expected.
    pub prefix: &'static str,
}

/// The body of an identifier, drawn from `bytes` (an even spread needs at least 24 random bytes).
fn encode(bytes: &[u8]) -> String {
    bytes.iter().take(LENGTH).map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()])).collect()
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The prefix of these identifiers.
            pub const PREFIX: &'static str = $prefix;

            /// A new random identifier.
            #[must_use]
            pub fn generate() -> Self {
                let mut bytes = [0_u8; LENGTH];
                rand::rng().fill(&mut bytes);
                Self(format!("{}{}", $prefix, encode(&bytes)))
            }

            /// The identifier that a digest of at least 24 bytes stands for; the same digest gives the same identifier.
            #[must_use]
            pub fn from_digest(digest: &[u8; 32]) -> Self {
                Self(format!("{}{}", $prefix, encode(digest)))
            }

            /// The identifier as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(value: String) -> Result<Self, InvalidId> {
                let valid = value.len() <= MAX_LENGTH
                    && value.strip_prefix($prefix).is_some_and(|rest| {
                        !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_alphanumeric())
                    });
                if valid {
                    Ok(Self(value))
                } else {
                    Err(InvalidId { value: value.chars().take(MAX_LENGTH).collect(), prefix: $prefix })
                }
            }
        }

        impl std::str::FromStr for $name {
            type Err = InvalidId;

            fn from_str(value: &str) -> Result<Self, InvalidId> {
                Self::try_from(value.to_owned())
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "maxLength": MAX_LENGTH, "pattern": concat!("^", $prefix, "[A-Za-z0-9]+$") })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }
    };
}

id!(
    /// A session.
    SessionId,
    "sesn_"
);
id!(
    /// An event of a session; also the key under which a retried append finds itself.
    EventId,
    "sevt_"
);

id!(
    /// A thread of a session.
    ThreadId,
    "sthr_"
);
id!(
    /// An outcome that a client defined.
    OutcomeId,
    "outc_"
);

id!(
    /// A file that was uploaded.
    FileId,
    "file_"
);

impl FileId {
    /// A new identifier: of two files, the one that was made a millisecond later has the greater one.
    #[must_use]
    pub fn generate_at(now: Timestamp) -> Self {
        let base = u64::try_from(ALPHABET.len()).unwrap_or(u64::MAX);
        let mut left = u64::try_from(now.as_millisecond()).unwrap_or(0);
        let mut digits = [0_u8; TIME_LENGTH];
        for digit in digits.iter_mut().rev() {
            *digit = u8::try_from(left % base).unwrap_or(0);
            left /= base;
        }
        let mut random = [0_u8; LENGTH];
        rand::rng().fill(&mut random);
        Self(format!("{}{}{}", Self::PREFIX, encode(&digits), &encode(&random)[TIME_LENGTH..]))
    }
}

impl OutcomeId {
    /// The outcome that this event defines.
    #[must_use]
    pub fn of(event: &EventId) -> Self {
        let rest = event.as_str().strip_prefix(EventId::PREFIX).unwrap_or_default();
        Self(format!("{}{rest}", Self::PREFIX))
    }
}

/// The identifier of a request, for logs and the `request-id` header.
#[must_use]
pub fn request_id() -> String {
    let mut bytes = [0_u8; LENGTH];
    rand::rng().fill(&mut bytes);
    format!("req_{}", encode(&bytes))
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::{EventId, FileId, SessionId};

    #[test]
    fn a_later_file_has_a_greater_identifier() {
        let at = |millis| FileId::generate_at(Timestamp::from_millisecond(millis).unwrap());
        let times = [0, 1, 57, 58, 1_790_000_000_000, 1_790_000_000_001, 1_790_000_003_364, 99_000_000_000_000];
        let ids = times.map(at);
        assert!(ids.is_sorted() && ids.iter().all(|id| id.as_str().parse::<FileId>().as_ref() == Ok(id)), "{ids:?}");
        assert_ne!(at(5), at(5));
    }

    #[test]
    fn generated_identifiers_are_valid_and_differ() {
        let (a, b) = (EventId::generate(), EventId::generate());
        assert_ne!(a, b);
        assert_eq!(a.as_str().parse::<EventId>().unwrap(), a);
    }

    #[rstest::rstest]
    #[case("")]
    #[case("sesn_")]
    #[case("sevt_abc")]
    #[case("sesn_a/b")]
    #[case("sesn_a b")]
    #[case("sesn_ä")]
    fn foreign_text_is_refused(#[case] text: &str) {
        assert!(text.parse::<SessionId>().is_err());
    }

    #[test]
    fn a_long_identifier_is_refused_and_cut_in_the_error() {
        let error = format!("sesn_{}", "a".repeat(1_000)).parse::<SessionId>().unwrap_err();
        assert_eq!(error.value.len(), 64);
    }

    #[test]
    fn a_digest_gives_one_identifier() {
        assert_eq!(SessionId::from_digest(&[7; 32]), SessionId::from_digest(&[7; 32]));
    }
}
