//! Reads what is to be signed: the keys from their files and the body, if nothing stands for it; and signs it.

use std::{sync::Arc, time::Instant};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use super::{CONTENT_SHA256, Claim, DATE, sign};
use crate::{
    body::Relayed,
    egress::Bound,
    intercept::{
        bodies::{BoxError, Shown, Watched},
        judge::Denial,
        refused::Refused,
        scrub::fits,
        upstream::Outgoing,
        values::HostValues,
        whole::Room,
    },
    linger::Lingering,
    secret::Secret,
};

/// The largest body that is read to be hashed: as much as a Lambda function takes. Larger ones say their hash themselves.
pub const MAX_HASHED_BODY: usize = 6 * 1024 * 1024;
const SECURITY_TOKEN: HeaderName = HeaderName::from_static("x-amz-security-token");

/// Access keys as they are in their files.
pub struct Keys {
    id: Arc<Secret>,
    secret: Arc<Secret>,
    token: Option<Arc<Secret>>,
}

impl Keys {
    /// Reads keys once, so that what is signed with is what is looked for in the answer.
    ///
    /// # Errors
    /// [`Refused`], when one is not there.
    pub fn read(values: &HostValues, bound: &Bound, secret: Arc<Secret>, now: Instant) -> Result<Self, Refused> {
        let unavailable = |condition| Refused::Unavailable { credential: bound.binding.label(), condition };
        let Some(files) = &bound.aws else { return Err(Refused::Malformed("it is not signed with AWS keys")) };
        let id = values.read(&files.access_key_id, now).map_err(unavailable)?;
        let token = files.session_token.as_ref().map(|file| values.read(file, now)).transpose().map_err(unavailable)?;
        if token.as_ref().is_some_and(|token| fits(token.expose()).is_err()) {
            return Err(Refused::Unscrubbable { credential: bound.binding.label() });
        }
        Ok(Self { id, secret, token })
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Secret>> {
        [&self.id, &self.secret].into_iter().chain(&self.token)
    }
}

/// The body as it goes out, and what stands for it in the signature.
///
/// # Errors
/// [`Refused`], when the body has to be read and is too large, has a placeholder, or ends early.
pub async fn body(
    body: Relayed<Lingering<Incoming>>,
    claim: &Claim,
    shown: Shown,
    room: &Room,
) -> Result<(Outgoing, String), Refused> {
    let watched = Watched::new(body, shown.clone());
    if let Some(payload) = &claim.payload {
        return Ok((watched.boxed_unsync(), payload.clone()));
    }
    let whole = room.read(watched, MAX_HASHED_BODY, 1).await.map_err(|problem| {
        if shown.is_set() {
            Denial::Unresolved { place: "body" }.into()
        } else {
            Refused::of_body(&problem, MAX_HASHED_BODY)
        }
    })?;
    let payload = sign::hex(&Sha256::digest(whole.bytes()));
    let body = Full::new(whole.into_bytes()).map_err(|never| -> BoxError { match never {} });
    Ok((body.boxed_unsync(), payload))
}

/// Signs a request as it goes out, with the time of now.
///
/// # Errors
/// [`Refused::Malformed`], when a header is none with what belongs in it.
pub fn sign(
    claim: &Claim,
    keys: &Keys,
    (method, uri): (&Method, &Uri),
    headers: &mut HeaderMap,
    payload: &str,
) -> Result<(), Refused> {
    let unfit = |_| Refused::Malformed("a header is none with its credential");
    let time = Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
    headers.insert(DATE, HeaderValue::try_from(&time).map_err(unfit)?);
    headers.insert(CONTENT_SHA256, HeaderValue::try_from(payload).map_err(unfit)?);
    if let Some(token) = &keys.token {
        headers.insert(SECURITY_TOKEN, token.header("").map_err(unfit)?);
    }
    let host = uri.authority().map(http::uri::Authority::as_str).unwrap_or_default();
    let outgoing = sign::Outgoing { method, host, path: uri.path(), query: uri.query(), headers, payload };
    let scope = sign::Scope { time: &time, region: &claim.region, service: &claim.service };
    let names = sign::signed_names(headers);
    let authorization = sign::authorization(&outgoing, &names, scope, &keys.id, &keys.secret).map_err(unfit)?;
    headers.insert(http::header::AUTHORIZATION, authorization);
    Ok(())
}
