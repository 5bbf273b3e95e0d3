//! Where a client's token comes from.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Error, Result};

/// The kubelet renews a projected token long before it expires, so a few seconds of the old one do no harm.
const REREAD_AFTER: Duration = Duration::from_secs(5);

/// A token, or a file that holds the current one.
#[derive(Clone)]
pub struct TokenSource(Arc<Source>);

enum Source {
    Fixed(String),
    File { path: PathBuf, cache: Mutex<Option<(Instant, String)>> },
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0 {
            Source::Fixed(_) => formatter.write_str("TokenSource::Fixed"),
            Source::File { path, .. } => formatter.debug_tuple("TokenSource::File").field(path).finish(),
        }
    }
}

impl TokenSource {
    /// A token that never changes.
    #[must_use]
    pub fn fixed(token: impl Into<String>) -> Self {
        Self(Arc::new(Source::Fixed(token.into())))
    }

    /// A file that is read again every few seconds, as the kubelet renews projected tokens.
    #[must_use]
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self(Arc::new(Source::File { path: path.into(), cache: Mutex::new(None) }))
    }

    /// The token as it is now.
    ///
    /// # Errors
    /// [`Error::Token`] when the file cannot be read and no token was read before.
    pub async fn get(&self) -> Result<String> {
        let (path, cache) = match &*self.0 {
            Source::Fixed(token) => return Ok(token.clone()),
            Source::File { path, cache } => (path, cache),
        };
        let cached = cache.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((read_at, token)) = &cached
            && read_at.elapsed() < REREAD_AFTER
        {
            return Ok(token.clone());
        }
        match tokio::fs::read_to_string(path).await {
            Ok(text) => {
                let token = text.trim().to_owned();
                *cache.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), token.clone()));
                Ok(token)
            }
            Err(source) => match cached {
                Some((_, token)) => {
                    tracing::warn!(path = %path.display(), error = %source, "cannot read the token again; the old one is used");
                    Ok(token)
                }
                None => Err(Error::Token { path: path.clone(), source }),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::TokenSource;

    #[tokio::test]
    async fn a_missing_file_is_named() {
        let error = TokenSource::file("/nonexistent/token").get().await.unwrap_err();
        assert!(error.to_string().contains("/nonexistent/token"), "{error}");
    }

    #[test]
    fn a_token_is_not_printed() {
        assert!(!format!("{:?}", TokenSource::fixed("hush")).contains("hush"));
    }
}
