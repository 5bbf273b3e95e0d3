//! Git LFS: the answer of its batch endpoint names, for each object, a URL and headers with a credential made for it. The proxy
//! keeps the credential and gives the sandbox a handle, which is good for that URL alone and only through this proxy.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use rand::RngCore;
use serde_json::Value;
use zeroize::Zeroizing;

use super::foreign::is_credential_header;
use crate::{
    policy::{Host, Scheme},
    secret::Secret,
};

/// The largest answer that is read as a whole: LFS asks for 100 objects at a time.
pub const MAX_ANSWER: usize = 4 * 1024 * 1024;
/// What every handle begins with.
const PREFIX: &str = "lhs_";
/// How long a handle is good for, whatever the server says.
const LIFETIME: Duration = Duration::from_secs(3600);
const MAX_HANDLES: usize = 4096;

/// Whether a request asks the batch endpoint.
#[must_use]
pub fn is_batch(method: &Method, path: &str) -> bool {
    method == Method::POST && path.ends_with("/info/lfs/objects/batch")
}

/// Why an answer cannot be passed on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// Not the JSON that is expected.
    #[error("the answer of the Git LFS batch endpoint is no JSON object of at most {MAX_ANSWER} bytes")]
    Answer,
    /// A URL that cannot be kept to.
    #[error("the answer of the Git LFS batch endpoint has a link that is no URL")]
    Link,
    /// A host at which a handle would not be understood.
    #[error(
        "the answer of the Git LFS batch endpoint has a credential for {0}, to which no credential of the session is bound"
    )]
    Elsewhere(String),
    /// Too many handles in use.
    #[error("more than {MAX_HANDLES} Git LFS objects are in transfer")]
    Full,
}

/// A URL in parts that can be compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its scheme.
    pub scheme: Scheme,
    /// Its host.
    pub host: Host,
    /// Its port.
    pub port: u16,
    /// Its path and query.
    pub path: String,
}

impl Link {
    /// Reads an absolute URL.
    #[must_use]
    pub fn parse(url: &str) -> Option<Self> {
        let uri: Uri = url.parse().ok()?;
        let scheme = match uri.scheme_str()? {
            "https" => Scheme::Https,
            "http" => Scheme::Http,
            _ => return None,
        };
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'))?;
        Some(Self {
            scheme,
            host: Host::parse(authority.host()).ok()?,
            port: authority.port_u16().unwrap_or_else(|| scheme.default_port()),
            path: uri.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
        })
    }
}

/// The credentials that were kept.
#[derive(Debug, Default)]
pub struct Sealed {
    kept: Mutex<HashMap<String, Kept>>,
}

#[derive(Debug)]
struct Kept {
    link: Link,
    header: HeaderName,
    value: Secret,
    until: Instant,
}

/// A handle that is not good for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotForThis;

impl Sealed {
    /// Replaces every credential in the answer of a batch endpoint by a handle.
    ///
    /// # Errors
    /// [`SealError`], when one could not be kept.
    pub fn seal(
        &self,
        answer: &[u8],
        bound: impl Fn(&Link) -> bool,
        now: Instant,
    ) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let mut answer: Value = serde_json::from_slice(answer).map_err(|_| SealError::Answer)?;
        let top = answer.as_object_mut().ok_or(SealError::Answer)?;
        let objects = top.get_mut("objects").and_then(Value::as_array_mut).into_iter().flatten();
        let actions = objects.filter_map(|object| object.get_mut("actions")?.as_object_mut());
        for action in actions.flat_map(|actions| actions.values_mut()) {
            self.seal_action(action, &bound, now)?;
        }
        serde_json::to_vec(&answer).map(Zeroizing::new).map_err(|_| SealError::Answer)
    }

    fn seal_action(&self, action: &mut Value, bound: &impl Fn(&Link) -> bool, now: Instant) -> Result<(), SealError> {
        let href = action.get("href").and_then(Value::as_str).unwrap_or_default().to_owned();
        let Some(headers) = action.get_mut("header").and_then(Value::as_object_mut) else { return Ok(()) };
        for (name, value) in headers {
            let parsed = HeaderName::from_bytes(name.as_bytes()).map_err(|_| SealError::Answer)?;
            let text = value.as_str().ok_or(SealError::Answer)?;
            // A signature of this one request is no credential.
            if !is_credential_header(&parsed) || text.starts_with("AWS4-HMAC-SHA256 ") {
                continue;
            }
            let link = Link::parse(&href).ok_or(SealError::Link)?;
            if !bound(&link) {
                return Err(SealError::Elsewhere(link.host.to_string()));
            }
            let secret = Secret::new(text.as_bytes()).map_err(|_| SealError::Answer)?;
            *value =
                Value::String(self.keep(Kept { link, header: parsed, value: secret, until: now + LIFETIME }, now)?);
        }
        Ok(())
    }

    fn keep(&self, kept: Kept, now: Instant) -> Result<String, SealError> {
        let mut random = [0; 32];
        rand::rng().fill_bytes(&mut random);
        let handle = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(random));
        let mut all = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MAX_HANDLES {
            all.retain(|_, kept| kept.until > now);
        }
        if all.len() >= MAX_HANDLES {
            return Err(SealError::Full);
        }
        all.insert(handle.clone(), kept);
        Ok(handle)
    }

    /// Takes the handles out of a request's headers, and gives the headers that belong in their places.
    ///
    /// # Errors
    /// [`NotForThis`], for a handle that is unknown, has expired, or was given for another URL or header.
    pub fn open(
        &self,
        headers: &mut HeaderMap,
        link: &Link,
        now: Instant,
    ) -> Result<Vec<(HeaderName, HeaderValue)>, NotForThis> {
        let handles: Vec<(HeaderName, String)> = headers
            .iter()
            .filter_map(|(name, value)| Some((name.clone(), value.to_str().ok()?.trim().to_owned())))
            .filter(|(_, value)| value.starts_with(PREFIX))
            .collect();
        let all = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let mut opened = Vec::with_capacity(handles.len());
        for (name, handle) in handles {
            let fits = |kept: &&Kept| kept.link == *link && kept.header == name && kept.until > now;
            let kept = all.get(&handle).filter(fits).ok_or(NotForThis)?;
            if headers.get_all(&name).iter().count() > 1 {
                return Err(NotForThis);
            }
            headers.remove(&name);
            opened.push((name, kept.value.header("").map_err(|_| NotForThis)?));
        }
        Ok(opened)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const HREF: &str = "https://git.example/a.git/info/lfs/objects/1?x=1";

    fn answer(href: &str, authorization: &str) -> Vec<u8> {
        json!({"transfer": "basic", "objects": [
            {"oid": "1", "size": 3, "actions": {"download": {"href": href, "header": {"Authorization": authorization, "Accept": "x"}}}},
            {"oid": "2", "error": {"code": 404}},
        ]}).to_string().into_bytes()
    }

    fn sent(handle: &str) -> HeaderMap {
        HeaderMap::from_iter([(http::header::AUTHORIZATION, handle.parse().unwrap())])
    }

    #[test]
    fn a_handle_is_good_for_its_url_and_for_an_hour() {
        let sealed = Sealed::default();
        let now = Instant::now();
        let clean = sealed.seal(&answer(HREF, "Bearer minted-token"), |_| true, now).unwrap();
        let clean: Value = serde_json::from_slice(&clean).unwrap();
        let headers = &clean["objects"][0]["actions"]["download"]["header"];
        let handle = headers["Authorization"].as_str().unwrap();
        assert!(handle.starts_with("lhs_") && headers["Accept"] == "x" && !clean.to_string().contains("minted"));

        let open = |handle: &str, href: &str, at| {
            let mut headers = sent(handle);
            sealed.open(&mut headers, &Link::parse(href).unwrap(), at).map(|opened| (headers.len(), opened))
        };
        let (left, opened) = open(handle, HREF, now).unwrap();
        assert_eq!((left, opened[0].1.as_bytes()), (0, &b"Bearer minted-token"[..]));
        assert!(opened[0].1.is_sensitive());
        for other in [
            "https://git.example/a.git/info/lfs/objects/2?x=1",
            "https://evil.example/a.git/info/lfs/objects/1?x=1",
            "http://git.example/a.git/info/lfs/objects/1?x=1",
        ] {
            assert_eq!(open(handle, other, now).unwrap_err(), NotForThis);
        }
        assert_eq!(open(handle, HREF, now + LIFETIME).unwrap_err(), NotForThis);
        assert_eq!(open("lhs_unknown", HREF, now).unwrap_err(), NotForThis);
        assert_eq!(open("Bearer x", HREF, now).unwrap().0, 1);
    }

    #[test]
    fn what_cannot_be_kept_is_refused() {
        let sealed = Sealed::default();
        let seal = |answer: &[u8]| sealed.seal(answer, |link| link.host.as_str() == "git.example", Instant::now());
        assert_eq!(seal(b"[]").unwrap_err(), SealError::Answer);
        assert_eq!(seal(b"<html>").unwrap_err(), SealError::Answer);
        assert_eq!(seal(&answer("/relative", "Bearer x")).unwrap_err(), SealError::Link);
        assert!(matches!(seal(&answer("https://lfs.example/1", "Bearer x")), Err(SealError::Elsewhere(_))));
        assert!(seal(&answer("https://s3.example/1", "AWS4-HMAC-SHA256 Credential=x")).is_ok());
        assert!(seal(br#"{"message":"no"}"#).is_ok());
        for _ in 0..MAX_HANDLES {
            seal(&answer(HREF, "Bearer x")).unwrap();
        }
        assert_eq!(seal(&answer(HREF, "Bearer x")).unwrap_err(), SealError::Full);
    }
}
