//! Why a credential cannot be used.

use crate::{intercept::scrub::Unscrubbable, oauth, secret::FileCondition};

/// Why a credential cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// Its file gives no value.
    #[error("{0}")]
    File(FileCondition),
    /// It has expired, and is not renewed.
    #[error("{0}")]
    Token(oauth::Problem),
    /// Its value could not be taken out of answers.
    #[error("{0}")]
    Length(Unscrubbable),
}

impl Unusable {
    /// Whether there is no file at all.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        let (Self::File(condition) | Self::Token(oauth::Problem::File { condition, .. })) = self else { return false };
        *condition == FileCondition::Missing
    }
}
