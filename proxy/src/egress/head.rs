//! What a request asks of the proxy, by its head alone. Pure, and strict: a host that is said twice has to be the same.

use http::{HeaderMap, Method, Uri, header, request::Parts, uri::Authority};

use longhand_protocol::egress::MAX_METHOD;

use super::refusal::Refusal;
use crate::{
    headers::framing_conflict,
    policy::{Host, Scheme},
};

/// Where `sandboxd` finds the certificate of the interception's authority.
pub const CA_PATH: &str = "/ca.pem";

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// The authority's certificate.
    Certificate,
    /// A tunnel (`CONNECT host:port`).
    Tunnel {
        /// To which host.
        host: Host,
        /// To which port.
        port: u16,
    },
    /// A request in absolute form (`GET http://host/path`).
    Plain {
        /// To which host.
        host: Host,
        /// To which port.
        port: u16,
    },
}

/// Reads the head of a request.
///
/// # Errors
/// [`Refusal`] says what is wrong with it.
pub fn read(parts: &Parts) -> Result<Ask, Refusal> {
    if framing_conflict(&parts.headers) {
        return Err(Refusal::Malformed("content-length and transfer-encoding contradict each other"));
    }
    if parts.method.as_str().len() > MAX_METHOD {
        return Err(Refusal::Malformed("its method is too long"));
    }
    let uri = &parts.uri;
    match (uri.scheme_str(), uri.authority()) {
        (None, Some(authority)) if parts.method == Method::CONNECT => {
            let (host, port) = host_and_port(authority)?;
            let port = port.ok_or(Refusal::Malformed("CONNECT must name host:port"))?;
            if parts.headers.contains_key(header::CONTENT_LENGTH)
                || parts.headers.contains_key(header::TRANSFER_ENCODING)
            {
                return Err(Refusal::Malformed("a CONNECT has no body"));
            }
            same_host(&parts.headers, &host, port)?;
            Ok(Ask::Tunnel { host, port })
        }
        _ if parts.method == Method::CONNECT => Err(Refusal::Malformed("CONNECT must name host:port")),
        (Some("http"), Some(authority)) => {
            let (host, port) = host_and_port(authority)?;
            let port = port.unwrap_or(Scheme::Http.default_port());
            same_host(&parts.headers, &host, port)?;
            Ok(Ask::Plain { host, port })
        }
        (Some("https"), _) => Err(Refusal::Malformed("https:// is reached by CONNECT")),
        (Some(_), _) => Err(Refusal::Malformed("only http:// and CONNECT are served")),
        (None, _) if parts.method == Method::GET && *uri == *CA_PATH => Ok(Ask::Certificate),
        (None, _) => Err(Refusal::Malformed("this is a proxy: it needs CONNECT or a URL in absolute form")),
    }
}

/// The host and the port of an authority without user and password.
fn host_and_port(authority: &Authority) -> Result<(Host, Option<u16>), Refusal> {
    let text = authority.as_str();
    if text.contains('@') {
        return Err(Refusal::Malformed("the URL holds a user name: send credentials in a header"));
    }
    let host = Host::parse(authority.host())?;
    if host.is_disguised_address() {
        return Err(Refusal::Malformed("its host is a number that may be read as an address"));
    }
    match authority.port_u16() {
        Some(0) => Err(Refusal::Malformed("port 0 is none")),
        None if text.len() > authority.host().len() => Err(Refusal::Malformed("the port is none")),
        port => Ok((host, port)),
    }
}

/// A `Host` header must say the same as the target. Programs leave out the port that their scheme means anyway.
fn same_host(headers: &HeaderMap, host: &Host, port: u16) -> Result<(), Refusal> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let Some(said) = hosts.next() else { return Ok(()) };
    if hosts.next().is_some() {
        return Err(Refusal::Malformed("it has more than one host header"));
    }
    let other = Refusal::Malformed("its host header names another host than its target");
    let Ok(authority) = Authority::try_from(said.as_bytes()) else { return Err(other) };
    match host_and_port(&authority)? {
        (said, said_port) if said == *host && said_port.is_none_or(|said| said == port) => Ok(()),
        _ => Err(other),
    }
}

/// The path and query that a plain request is forwarded with.
#[must_use]
pub fn origin_form(uri: &Uri) -> Uri {
    let path = uri.path_and_query().cloned().unwrap_or_else(|| http::uri::PathAndQuery::from_static("/"));
    Uri::from(path)
}

#[cfg(test)]
#[path = "head_tests.rs"]
mod tests;
