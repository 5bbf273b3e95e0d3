//! Whether an upstream took a credential when it last said so.

use std::sync::{Mutex, PoisonError};

use http::StatusCode;
use jiff::Timestamp;

/// What upstreams said of one credential, as far as it still counts: the last word only.
#[derive(Debug, Default)]
pub struct LastWord(Mutex<Option<Word>>);

/// What an answer says of the credential that the request had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Word {
    /// Whether the upstream did not take it.
    pub refused: bool,
    /// When it was said.
    pub at: Timestamp,
}

impl LastWord {
    /// Takes note of an answer to a request with the credential.
    pub fn note(&self, status: StatusCode) {
        self.note_at(status, Timestamp::now());
    }

    /// What was said last, if anything was.
    #[must_use]
    pub fn get(&self) -> Option<Word> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_at(&self, status: StatusCode, at: Timestamp) {
        let refused = match status {
            StatusCode::UNAUTHORIZED => true,
            // Another redirection than this may lead to where one logs in.
            StatusCode::SWITCHING_PROTOCOLS | StatusCode::NOT_MODIFIED => false,
            _ if status.is_success() => false,
            // 403 is often about what the credential may do; and what fails may not have looked at it.
            _ => return,
        };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Word { refused, at });
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use jiff::Timestamp;
    use rstest::rstest;

    use super::{LastWord, Word};

    #[rstest]
    #[case::never_used(&[], None)]
    #[case::taken(&[200], Some((false, 0)))]
    #[case::refused(&[200, 401], Some((true, 1)))]
    #[case::taken_since(&[401, 204], Some((false, 1)))]
    #[case::not_modified(&[401, 304], Some((false, 1)))]
    #[case::to_a_login(&[401, 302], Some((true, 0)))]
    #[case::websocket(&[401, 101], Some((false, 1)))]
    #[case::refused_again(&[401, 200, 401], Some((true, 2)))]
    #[case::only_scope(&[403], None)]
    #[case::nothing_of_the_credential(&[401, 403, 404, 429, 500, 503], Some((true, 0)))]
    #[case::failures_refuse_nothing(&[200, 400, 502], Some((false, 0)))]
    fn the_last_word_counts(#[case] answers: &[u16], #[case] expected: Option<(bool, i64)>) {
        let word = LastWord::default();
        for (second, status) in (0..).zip(answers) {
            word.note_at(StatusCode::from_u16(*status).unwrap(), Timestamp::from_second(second).unwrap());
        }
        let expected = expected.map(|(refused, at)| Word { refused, at: Timestamp::from_second(at).unwrap() });
        assert_eq!(word.get(), expected);
    }
}
