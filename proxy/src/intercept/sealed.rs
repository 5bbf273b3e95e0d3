//! Git LFS: its API names, for each object, a URL and headers with a credential made for it. The proxy keeps the credential and
//! gives the sandbox a handle, which is good for that URL and its method alone, and only through this proxy.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};
use rand::RngCore;
use serde_json::{Map, Value};
use zeroize::{Zeroize, Zeroizing};

use super::{
    endpoints::{Endpoint, Meaning},
    foreign::carries_credential,
};
use crate::{
    policy::{Host, Scheme},
    secret::Secret,
};

/// The largest answer that is read as a whole: LFS asks for 100 objects at a time.
pub const MAX_ANSWER: usize = 1024 * 1024;
/// How often an answer is in memory while it is looked through: as it came, in parts, and as it goes on.
pub const COPIES: usize = 4;
/// What every handle begins with.
const PREFIX: &str = "lhs_";
/// How long a handle is good for, whatever the server says.
const LIFETIME: Duration = Duration::from_secs(3600);
const MAX_HANDLES: usize = 4096;
/// The type of what LFS asks for and answers with.
const MEDIA_TYPE: &str = "application/vnd.git-lfs+json";

const GET: &[Method] = &[Method::GET];
const PUT: &[Method] = &[Method::PUT];
const POST: &[Method] = &[Method::POST];
const RESUME: &[Method] = &[Method::HEAD, Method::PATCH];

/// The batch endpoint, and the one before it: github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md, and
/// docs/api/v1/http-v1-legacy.md of earlier versions.
const ENDPOINTS: &[Endpoint] = &[
    Endpoint { methods: POST, path: "**/info/lfs/objects/batch" },
    Endpoint { methods: POST, path: "**/info/lfs/objects" },
];

/// Whether what a request is answered with may hand out credentials of Git LFS: by its path, or by the type that it asks for.
#[must_use]
pub fn is_asked(method: &Method, path: &str, headers: &HeaderMap) -> bool {
    let meaning = Meaning::of(path);
    ENDPOINTS.iter().any(|endpoint| meaning.is(endpoint, method))
        || names(headers, &header::ACCEPT, MEDIA_TYPE)
        || names(headers, &header::CONTENT_TYPE, MEDIA_TYPE)
}

/// Whether an answer has to be sealed: it says that it is of LFS, or it was asked for and is not a mere refusal in HTML.
#[must_use]
pub fn is_due(asked: bool, succeeded: bool, headers: &HeaderMap) -> bool {
    let of_lfs = || names(headers, &header::CONTENT_TYPE, MEDIA_TYPE);
    let json = || names(headers, &header::CONTENT_TYPE, "json");
    of_lfs() || asked && (succeeded || json())
}

fn names(headers: &HeaderMap, name: &HeaderName, kind: &str) -> bool {
    let mut values = headers.get_all(name).iter();
    values.any(|value| String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase().contains(kind))
}

/// Why an answer cannot be passed on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// Not the JSON that is expected.
    #[error("the answer of Git LFS is no JSON object of at most {MAX_ANSWER} bytes")]
    Answer,
    /// A URL that cannot be kept to.
    #[error("the answer of Git LFS has a link that is no URL, or one with a password")]
    Link,
    /// A link that is used in a way that is not known.
    #[error("the answer of Git LFS has a credential for something else than to download, upload or verify an object")]
    Action,
    /// A request for which a handle would not be taken.
    #[error("the answer of Git LFS has a credential to {method} at {host}, which no credential of the session allows")]
    Elsewhere {
        /// What would be done.
        method: Method,
        /// Where.
        host: String,
    },
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

    /// Its path, without the query.
    #[must_use]
    pub fn path_only(&self) -> &str {
        self.path.split('?').next().unwrap_or_default()
    }
}

/// How an action is carried out: docs/api/basic-transfers.md of git-lfs, and tq/tus_upload.go for uploads that are resumed.
fn methods(action: &str, resumable: bool) -> Option<&'static [Method]> {
    match action {
        "download" | "self" => Some(GET),
        "upload" if resumable => Some(RESUME),
        "upload" => Some(PUT),
        "verify" => Some(POST),
        _ => None,
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
    methods: &'static [Method],
    header: HeaderName,
    value: Secret,
    /// The credential that it was made for, by its name.
    credential: Arc<str>,
    until: Instant,
}

/// A handle that is not good for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotForThis;

/// An answer in parts, whose texts are zeroised.
struct Parts(Value);

impl Drop for Parts {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

fn wipe(value: &mut Value) {
    match value {
        Value::String(text) => text.zeroize(),
        Value::Array(items) => items.iter_mut().for_each(wipe),
        Value::Object(members) => members.values_mut().for_each(wipe),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// What is sealed, and how.
struct Sealing<'a, B> {
    sealed: &'a Sealed,
    /// What the answer was asked for with, by its name.
    credential: &'a Arc<str>,
    bound: B,
    resumable: bool,
    now: Instant,
}

impl Sealed {
    /// Replaces every credential in an answer of LFS, which was asked for with `credential`, by a handle, if `bound` says that a credential of the session may be used
    /// for what the handle would be used for.
    ///
    /// # Errors
    /// [`SealError`], when one could not be kept.
    pub fn seal(
        &self,
        answer: &[u8],
        credential: &Arc<str>,
        bound: impl Fn(&Link, &Method) -> bool,
        now: Instant,
    ) -> Result<Zeroizing<Vec<u8>>, SealError> {
        if answer.iter().all(u8::is_ascii_whitespace) {
            return Ok(Zeroizing::default());
        }
        let mut answer = Parts(serde_json::from_slice(answer).map_err(|_| SealError::Answer)?);
        let top = answer.0.as_object_mut().ok_or(SealError::Answer)?;
        let resumable = top.get("transfer").is_some_and(|transfer| transfer == "tus");
        Sealing { sealed: self, credential, bound, resumable, now }.members(top)?;
        serde_json::to_vec(&answer.0).map(Zeroizing::new).map_err(|_| SealError::Answer)
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

    /// Takes the handles out of a request's headers, and gives the headers that belong in their places, each with the name of the
    /// credential that it was made for.
    ///
    /// # Errors
    /// [`NotForThis`], for a handle that is unknown, has expired, or was given for another URL, method or header.
    pub fn open(
        &self,
        headers: &mut HeaderMap,
        method: &Method,
        link: &Link,
        now: Instant,
    ) -> Result<Vec<(HeaderName, HeaderValue, Arc<str>)>, NotForThis> {
        let handles: Vec<(HeaderName, String)> = headers
            .iter()
            .filter_map(|(name, value)| Some((name.clone(), value.to_str().ok()?.trim().to_owned())))
            .filter(|(_, value)| value.starts_with(PREFIX))
            .collect();
        let all = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let mut opened = Vec::with_capacity(handles.len());
        for (name, handle) in handles {
            let fits = |kept: &&Kept| {
                kept.link == *link && kept.methods.contains(method) && kept.header == name && kept.until > now
            };
            let kept = all.get(&handle).filter(fits).ok_or(NotForThis)?;
            if headers.get_all(&name).iter().count() > 1 {
                return Err(NotForThis);
            }
            headers.remove(&name);
            opened.push((name, kept.value.header("").map_err(|_| NotForThis)?, kept.credential.clone()));
        }
        Ok(opened)
    }
}

impl<B: Fn(&Link, &Method) -> bool> Sealing<'_, B> {
    /// Wherever an action is: below `actions`, or below `_links` in what was before the batch endpoint.
    fn members(&self, members: &mut Map<String, Value>) -> Result<(), SealError> {
        members.iter_mut().try_for_each(|(name, value)| self.value(name, value))
    }

    fn value(&self, name: &str, value: &mut Value) -> Result<(), SealError> {
        match value {
            Value::Array(items) => items.iter_mut().try_for_each(|item| self.value(name, item)),
            Value::Object(members) => {
                self.action(name, members)?;
                self.members(members)
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Ok(()),
        }
    }

    fn action(&self, name: &str, action: &mut Map<String, Value>) -> Result<(), SealError> {
        let href = action.get("href").and_then(Value::as_str).unwrap_or_default().to_owned();
        let link = Link::parse(&href);
        let with_password =
            || href.parse::<Uri>().is_ok_and(|uri| uri.authority().is_some_and(|at| at.as_str().contains('@')));
        if link.is_none() && with_password() {
            return Err(SealError::Link);
        }
        let Some(headers) = action.get_mut("header") else { return Ok(()) };
        if headers.is_null() {
            return Ok(());
        }
        for (header, value) in headers.as_object_mut().ok_or(SealError::Answer)? {
            let parsed = HeaderName::from_bytes(header.as_bytes()).map_err(|_| SealError::Answer)?;
            let Value::String(text) = value else { return Err(SealError::Answer) };
            // A signature of this one request is no credential.
            if !carries_credential(&parsed, text.as_bytes()) || text.starts_with("AWS4-HMAC-SHA256 ") {
                continue;
            }
            let link = link.clone().ok_or(SealError::Link)?;
            let methods = methods(name, self.resumable).ok_or(SealError::Action)?;
            if let Some(method) = methods.iter().find(|method| !(self.bound)(&link, method)) {
                return Err(SealError::Elsewhere { method: method.clone(), host: link.host.to_string() });
            }
            let secret = Secret::new(text.as_bytes()).map_err(|_| SealError::Answer)?;
            let (credential, until) = (self.credential.clone(), self.now + LIFETIME);
            let kept = Kept { link, methods, header: parsed, value: secret, credential, until };
            let handle = self.sealed.keep(kept, self.now)?;
            std::mem::replace(text, handle).zeroize();
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "sealed_tests.rs"]
mod tests;
