//! Reads what is to be signed: the keys from their files and the body, if nothing stands for it; and signs it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::{CONTENT_SHA256, Claim, DATE, sign};
use crate::{
    body::Relayed,
    egress::Bound,
    intercept::{
        bodies::{BoxError, Shown, Watched},
        judge::Denial,
        refused::Refused,
        upstream::Outgoing,
    },
    linger::Lingering,
    secret::Secret,
};

/// The largest body that is read to be hashed: as much as a Lambda function takes. Larger ones say their hash themselves.
pub const MAX_HASHED_BODY: usize = 6 * 1024 * 1024;
/// How many of them are in memory at the same time.
pub const HASHED_BODIES: usize = 6;
/// How long a body waits until fewer are.
const TURN_TIMEOUT: Duration = Duration::from_secs(60);
const SECURITY_TOKEN: HeaderName = HeaderName::from_static("x-amz-security-token");

/// A body, and that it is one of a few.
struct Held {
    body: Bytes,
    _turn: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.body
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
    turns: &Arc<Semaphore>,
) -> Result<(Outgoing, String), Refused> {
    let watched = Watched::new(body, shown.clone());
    if let Some(payload) = &claim.payload {
        return Ok((watched.boxed_unsync(), payload.clone()));
    }
    let turn = timeout(TURN_TIMEOUT, turns.clone().acquire_owned()).await;
    let turn = turn.map_err(|_| Refused::Body)?.map_err(|_| Refused::Body)?;
    let whole = match Limited::new(watched, MAX_HASHED_BODY).collect().await {
        Ok(whole) => whole.to_bytes(),
        Err(_) if shown.is_set() => return Err(Denial::Unresolved { place: "body" }.into()),
        Err(error) if error.is::<LengthLimitError>() => return Err(Refused::BodyTooLarge { limit: MAX_HASHED_BODY }),
        Err(_) => return Err(Refused::Body),
    };
    let payload = sign::hex(&Sha256::digest(&whole));
    let held = Bytes::from_owner(Held { body: whole, _turn: turn });
    let body = Full::new(held).map_err(|never| -> BoxError { match never {} });
    Ok((body.boxed_unsync(), payload))
}

/// Signs a request as it goes out, with the time of now.
///
/// # Errors
/// [`Refused::Unavailable`], when a key is not there.
pub fn sign(
    claim: &Claim,
    bound: &Bound,
    secret: &Secret,
    (method, uri): (&Method, &Uri),
    headers: &mut HeaderMap,
    payload: &str,
) -> Result<(), Refused> {
    let unavailable = |condition| Refused::Unavailable { credential: bound.binding.label(), condition };
    let unfit = |_| Refused::Malformed("a header is none with its credential");
    let now = Instant::now();
    let Some(keys) = &bound.aws else { return Err(Refused::Malformed("it is not signed with AWS keys")) };
    let id = keys.access_key_id.current(now).map_err(unavailable)?;
    let time = Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
    headers.insert(DATE, HeaderValue::try_from(&time).map_err(unfit)?);
    headers.insert(CONTENT_SHA256, HeaderValue::try_from(payload).map_err(unfit)?);
    if let Some(token) = &keys.session_token {
        headers.insert(SECURITY_TOKEN, token.current(now).map_err(unavailable)?.header("").map_err(unfit)?);
    }
    let host = uri.authority().map(http::uri::Authority::as_str).unwrap_or_default();
    let outgoing = sign::Outgoing { method, host, path: uri.path(), query: uri.query(), headers, payload };
    let scope = sign::Scope { time: &time, region: &claim.region, service: &claim.service };
    let names = sign::signed_names(headers);
    let authorization = sign::authorization(&outgoing, &names, scope, &id, secret).map_err(unfit)?;
    headers.insert(http::header::AUTHORIZATION, authorization);
    Ok(())
}
