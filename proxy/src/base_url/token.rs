//! The session token: what the harness proves itself with.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use http::{HeaderMap, header};

use crate::{
    error::Refusal,
    secret::{FileCondition, Secret, SecretFile},
};

/// How long a token is accepted after another took its place in the file: the harness reads the same file, and not at the
/// same moment.
const GRACE: Duration = Duration::from_secs(60);

/// The token in its file, and the one before it.
#[derive(Debug)]
pub struct SessionToken {
    file: SecretFile,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    current: Option<Arc<Secret>>,
    previous: Option<(Arc<Secret>, Instant)>,
}

impl SessionToken {
    /// A token that is read when it is first needed.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { file: SecretFile::new(path), seen: Mutex::default() }
    }

    /// Whether tokens can be checked at all.
    ///
    /// # Errors
    /// The condition of the file.
    pub fn usable(&self, now: Instant) -> Result<(), FileCondition> {
        self.file.current(now).map(drop)
    }

    /// Checks every credential that a request presents, and returns the token that it matched. One that is no session token
    /// is refused even beside one that is: it was meant for somebody else.
    ///
    /// # Errors
    /// [`Refusal`]: no token, a wrong one, or no file to check it against.
    pub fn verify(&self, headers: &HeaderMap, now: Instant) -> Result<Arc<Secret>, Refusal> {
        match self.judge(headers, self.file.current(now), now) {
            // The kubelet may have renewed the file since it was read, and the client may have seen that first.
            Err(Refusal::WrongToken) => self.judge(headers, self.file.newest(now), now),
            judged => judged,
        }
    }

    fn judge(
        &self,
        headers: &HeaderMap,
        current: Result<Arc<Secret>, FileCondition>,
        now: Instant,
    ) -> Result<Arc<Secret>, Refusal> {
        let accepted = self.accepted(
            current.map_err(|condition| Refusal::TokenUnavailable {
                path: self.file.path().display().to_string(),
                condition,
            })?,
            now,
        );
        let keys = headers.get_all("x-api-key").iter().map(|value| Some(value.as_bytes()));
        let bearers = headers.get_all(header::AUTHORIZATION).iter().map(|value| bearer(value.as_bytes()));
        let mut matched = None;
        for presented in keys.chain(bearers) {
            let presented = presented.ok_or(Refusal::WrongToken)?;
            let token = accepted.iter().find(|token| token.matches(presented)).ok_or(Refusal::WrongToken)?;
            matched = Some(token.clone());
        }
        matched.ok_or(Refusal::NoToken)
    }

    fn accepted(&self, current: Arc<Secret>, now: Instant) -> Vec<Arc<Secret>> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match &seen.current {
            Some(old) if Arc::ptr_eq(old, &current) => {}
            old => {
                seen.previous = old.clone().map(|old| (old, now + GRACE));
                seen.current = Some(current.clone());
            }
        }
        seen.previous.take_if(|(_, until)| now >= *until);
        std::iter::once(current).chain(seen.previous.iter().map(|(token, _)| token.clone())).collect()
    }
}

fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(token)
}

#[cfg(test)]
mod tests {
    use http::HeaderName;
    use rstest::rstest;

    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        headers
    }

    fn decision(result: &Result<Arc<Secret>, Refusal>) -> &'static str {
        match result {
            Ok(_) => "ok",
            Err(Refusal::NoToken) => "none",
            Err(Refusal::WrongToken) => "wrong",
            Err(Refusal::TokenUnavailable { .. }) => "unavailable",
            Err(_) => "other",
        }
    }

    #[rstest]
    #[case(&[("x-api-key", "token")], "ok")]
    #[case(&[("authorization", "Bearer token")], "ok")]
    #[case(&[("authorization", "bearer token")], "ok")]
    #[case(&[("authorization", "Bearer token"), ("x-api-key", "token")], "ok")]
    #[case(&[], "none")]
    #[case(&[("cookie", "token")], "none")]
    #[case(&[("x-api-key", "toke")], "wrong")]
    #[case(&[("x-api-key", "tokenx")], "wrong")]
    #[case(&[("x-api-key", "")], "wrong")]
    #[case(&[("authorization", "token")], "wrong")]
    #[case(&[("authorization", "Basic token")], "wrong")]
    #[case(&[("authorization", "Bearer")], "wrong")]
    #[case(&[("authorization", "Bearer token"), ("x-api-key", "attacker")], "wrong")]
    #[case(&[("x-api-key", "token"), ("x-api-key", "attacker")], "wrong")]
    fn who_may_ask(#[case] sent: &[(&str, &str)], #[case] expected: &str) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "token\n").unwrap();
        assert_eq!(decision(&SessionToken::new(path).verify(&headers(sent), Instant::now())), expected);
    }

    #[test]
    fn a_client_may_see_the_new_token_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "one").unwrap();
        let token = SessionToken::new(path.clone());
        let now = Instant::now();
        let ask = |value: &str| decision(&token.verify(&headers(&[("x-api-key", value)]), now));
        assert_eq!(ask("one"), "ok");
        std::fs::write(&path, "two").unwrap();
        assert_eq!((ask("two"), ask("one"), ask("three")), ("ok", "ok", "wrong"));
    }

    #[test]
    fn a_rotated_token_is_accepted_for_a_minute() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let token = SessionToken::new(path.clone());
        let start = Instant::now();
        let ask = |value: &str, seconds: u64| {
            decision(&token.verify(&headers(&[("x-api-key", value)]), start + Duration::from_secs(seconds)))
        };
        assert_eq!(ask("one", 0), "unavailable");
        std::fs::write(&path, "one").unwrap();
        assert_eq!(ask("one", 2), "ok");
        std::fs::write(&path, "two").unwrap();
        assert_eq!((ask("two", 4), ask("one", 4), ask("one", 63)), ("ok", "ok", "ok"));
        assert_eq!((ask("one", 64), ask("two", 64)), ("wrong", "ok"));
        std::fs::write(&path, "three").unwrap();
        assert_eq!((ask("three", 66), ask("two", 66), ask("one", 66)), ("ok", "ok", "wrong"));
        std::fs::remove_file(&path).unwrap();
        assert_eq!((ask("three", 68), ask("two", 68)), ("unavailable", "unavailable"));
    }
}
