//! Requests that are signed for AWS: a program in a sandbox signs with a placeholder as its key, and the proxy signs anew with
//! the real one, which never leaves it.
//!
//! Pure: [`take`] reads what a request was signed for and takes the signature out, [`judge`] says whether the keys may sign it,
//! [`sign`] makes signatures. [`outgoing`] reads what is to be signed and signs it.

use http::{HeaderMap, HeaderName, header};

use super::{
    endpoints::{Meaning, decoded},
    judge::{Asked, Candidate, Denial},
};
use crate::config::BindingPlacement;

pub mod outgoing;
pub mod sign;

/// Stands for the body in a signature.
pub(super) const CONTENT_SHA256: HeaderName = HeaderName::from_static("x-amz-content-sha256");
/// Which operation is called.
const TARGET: HeaderName = HeaderName::from_static("x-amz-target");
/// When a request was signed.
pub(super) const DATE: HeaderName = HeaderName::from_static("x-amz-date");

/// What a request was signed for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The keys, by their place in the list of candidates.
    pub number: usize,
    /// The region.
    pub region: String,
    /// The service.
    pub service: String,
    /// What stands for the body; its SHA-256, which is still to be made, if absent.
    pub payload: Option<String>,
}

/// Why keys do not sign a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The placeholder is somewhere else than in a signature.
    #[error(
        "its placeholder is good only as the access key id of an {} signature in the header authorization",
        sign::ALGORITHM
    )]
    NotSigned,
    /// The signature is in the query.
    #[error("presigned URLs are not signed anew: sign in the header authorization")]
    Presigned,
    /// Each chunk of the body is signed, with the placeholder.
    #[error(
        "the chunks of its body are signed one by one, which is not done anew: send its SHA-256, UNSIGNED-PAYLOAD or STREAMING-UNSIGNED-PAYLOAD-TRAILER as x-amz-content-sha256"
    )]
    SignedChunks,
    /// Something else stands for the body.
    #[error("x-amz-content-sha256 is not the SHA-256 of a body, and no word for an unsigned one")]
    Payload,
    /// More than one operation.
    #[error("it names more than one operation in x-amz-target")]
    Target,
    /// Another service.
    #[error("it signs for the services {0} only")]
    Service(String),
    /// Another region.
    #[error("it signs for the regions {0} only")]
    Region(String),
}

/// Takes a signature that was made with the placeholder of AWS keys out of the headers. Signatures of anybody else stay there,
/// as the foreign credentials that they are.
///
/// # Errors
/// [`Denial::Signing`], for a body that cannot be signed anew.
pub fn take(headers: &mut HeaderMap, candidates: &[Candidate<'_>]) -> Result<Option<Claim>, Denial> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return Ok(None) };
    let Some((key, region, service)) = value.to_str().ok().and_then(credential) else { return Ok(None) };
    let keys = |candidate: &Candidate<'_>| {
        candidate.placeholder == key && matches!(candidate.binding.placement, BindingPlacement::Aws(_))
    };
    let Some(number) = candidates.iter().position(keys) else { return Ok(None) };
    let problem = |problem| Denial::Signing { credential: candidates[number].binding.label(), problem };
    let payload = payload(headers).map_err(problem)?;
    let claim = Claim { number, region: region.to_owned(), service: service.to_owned(), payload };
    for name in [header::AUTHORIZATION, header::DATE, DATE] {
        headers.remove(name);
    }
    Ok(Some(claim))
}

/// The key, the region and the service of a signature.
fn credential(value: &str) -> Option<(&str, &str, &str)> {
    let parameters = value.strip_prefix(sign::ALGORITHM)?.strip_prefix(' ')?;
    let mut credentials = parameters.split(',').filter_map(|part| part.trim().strip_prefix("Credential="));
    let (Some(credential), None) = (credentials.next(), credentials.next()) else { return None };
    let parts: Vec<&str> = credential.split('/').collect();
    let [key, _date, region, service, "aws4_request"] = parts.as_slice() else { return None };
    let plain = |text: &str| {
        (1..=64).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    (plain(region) && plain(service)).then_some((*key, *region, *service))
}

fn payload(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut values = headers.get_all(CONTENT_SHA256).iter();
    let value = match (values.next(), values.next()) {
        (None, _) => return Ok(None),
        (Some(value), None) => value.to_str().map_err(|_| Problem::Payload)?,
        (Some(_), Some(_)) => return Err(Problem::Payload),
    };
    let hash = value.len() == 64 && value.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    match value {
        "UNSIGNED-PAYLOAD" | "STREAMING-UNSIGNED-PAYLOAD-TRAILER" => Ok(Some(value.to_owned())),
        _ if hash => Ok(Some(value.to_owned())),
        _ if value.starts_with("STREAMING-") => Err(Problem::SignedChunks),
        _ => Err(Problem::Payload),
    }
}

/// Whether the keys of a claim may sign a request.
///
/// # Errors
/// [`Denial`] names the rule that refuses it.
pub fn judge(asked: &Asked<'_>, claim: &Claim, candidate: &Candidate<'_>) -> Result<(), Denial> {
    let credential = candidate.binding.label();
    let BindingPlacement::Aws(keys) = &candidate.binding.placement else {
        return Err(Denial::Signing { credential, problem: Problem::NotSigned });
    };
    asked.admits(candidate)?;
    let outside = |allowed: &[String], name: &String| !allowed.is_empty() && !allowed.contains(name);
    let problem = if asked.headers.get_all(TARGET).iter().count() > 1 {
        Some(Problem::Target)
    } else if outside(&keys.services, &claim.service) {
        Some(Problem::Service(keys.services.join(", ")))
    } else if outside(&keys.regions, &claim.region) {
        Some(Problem::Region(keys.regions.join(", ")))
    } else {
        None
    };
    match (problem, minted(asked, &claim.service)) {
        (Some(problem), _) => Err(Denial::Signing { credential, problem }),
        (None, Some(what)) => Err(Denial::Mints { credential, what }),
        (None, None) => Ok(()),
    }
}

/// Calls whose answers are keys or tokens, whatever their path. A signature is good for its service only, so that the scope says
/// which one is called.
fn minted(asked: &Asked<'_>, service: &str) -> Option<&'static str> {
    let host = asked.host.as_str();
    let meaning = Meaning::of(asked.path);
    match service {
        _ if host.starts_with("sts.") || host.starts_with("sts-fips.") => Some("a security token service"),
        "sts" => Some("a security token service"),
        "iam" | "sso" | "sso-oauth" | "signin" | "rolesanywhere" | "cognito-identity" | "cognito-idp" => {
            Some("a service that hands out keys or tokens")
        }
        "redshift" | "redshift-serverless" => Some("a service that hands out passwords of databases"),
        // docs.aws.amazon.com/codeartifact/latest/APIReference/API_GetAuthorizationToken.html
        "codeartifact" if meaning.matches("**/authorization-token") => Some("it makes tokens for registries"),
        // docs.aws.amazon.com/AmazonS3/latest/API/API_CreateSession.html, and API_control_GetDataAccess.html
        _ if service.starts_with("s3") && (asks(asked, "session") || meaning.matches("**/dataaccess")) => {
            Some("it makes keys for a bucket")
        }
        _ if operations(asked, &meaning).any(|operation| MINTING.contains(&operation.as_str())) => {
            Some("it makes tokens")
        }
        _ => None,
    }
}

/// Operations that make tokens, of any service: docs.aws.amazon.com/AmazonECR/latest/APIReference/API_GetAuthorizationToken.html,
/// docs.aws.amazon.com/STS/latest/APIReference/API_GetSessionToken.html.
const MINTING: &[&str] = &["getauthorizationtoken", "getcredentials", "getsessiontoken", "getfederationtoken"];

/// The operations that a request may be for: as a header, a parameter, or a path says
/// (smithy.io/2.0/additional-specs/protocols/smithy-rpc-v2.html).
fn operations(asked: &Asked<'_>, meaning: &Meaning) -> impl Iterator<Item = String> {
    let targets =
        asked.headers.get_all(TARGET).iter().map(|target| String::from_utf8_lossy(target.as_bytes()).into_owned());
    let actions = parameters(asked).filter(|(name, _)| name == "action").map(|(_, value)| value);
    let mut path = meaning.segments().rev();
    let path = path.next().zip(path.next()).filter(|(_, before)| *before == "operation");
    let path = path.map(|(operation, _)| operation.to_owned());
    let all: Vec<String> = targets.chain(actions).chain(path).collect();
    all.into_iter().map(|name| name.rsplit('.').next().unwrap_or_default().trim().to_ascii_lowercase())
}

fn asks(asked: &Asked<'_>, name: &str) -> bool {
    parameters(asked).any(|(asked, _)| asked == name)
}

/// The parameters of the query, decoded, with their names in lower case.
fn parameters<'a>(asked: &Asked<'a>) -> impl Iterator<Item = (String, String)> + use<'a> {
    let text = |text: &str| String::from_utf8_lossy(&decoded(text.replace('+', " ").as_bytes())).trim().to_owned();
    let parts = asked.query.into_iter().flat_map(|query| query.split(['&', ';']));
    parts
        .map(move |part| part.split_once('=').unwrap_or((part, "")))
        .map(move |(name, value)| (text(name).to_ascii_lowercase(), text(value)))
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
