//! Checks the head of a request before anything is judged: one host, one length, one way to read it. Pure.

use http::{HeaderMap, Method, Uri, Version, header, request::Parts};

use longhand_protocol::egress::MAX_METHOD;

use super::refused::Refused;
use crate::{egress::Target, headers::framing_conflict, policy::Host};

/// How a request comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Through a tunnel whose TLS ends here.
    Tunnel,
    /// To the proxy, with the whole URL.
    Absolute,
}

/// Checks that a request is for its connection's target and says so in one way only.
///
/// # Errors
/// [`Refused::Malformed`] and [`Refused::OtherHost`].
pub fn check(parts: &Parts, target: &Target, form: Form) -> Result<(), Refused> {
    let Parts { headers, uri, version, method, .. } = parts;
    if method.as_str().len() > MAX_METHOD {
        return Err(Refused::Malformed("its method is too long"));
    }
    if framing_conflict(headers) {
        return Err(Refused::Malformed("it states its length more than once"));
    }
    let framed = headers.contains_key(header::TRANSFER_ENCODING);
    let chunked =
        headers.get(header::TRANSFER_ENCODING).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"chunked"));
    if framed && !chunked {
        return Err(Refused::Malformed("its transfer-encoding is not chunked"));
    }
    if !uri.path().starts_with('/') {
        return Err(Refused::Malformed("its target has no path"));
    }
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next().map(|host| host.to_str().unwrap_or_default());
    if hosts.next().is_some() {
        return Err(Refused::Malformed("it has more than one host header"));
    }
    let authority = uri.authority().map(http::uri::Authority::as_str);
    match (form, *version) {
        (Form::Tunnel, Version::HTTP_2) => {
            if uri.scheme_str() != Some(target.scheme.as_str()) || authority.is_none() {
                return Err(Refused::Malformed("its :scheme is not that of the connection, or it has no :authority"));
            }
        }
        (Form::Tunnel, _) => {
            if uri.scheme().is_some() || authority.is_some() {
                return Err(Refused::Malformed("its target is a whole URL inside of a tunnel"));
            }
            if host.is_none() {
                return Err(Refused::Malformed("it has no host header"));
            }
        }
        (Form::Absolute, _) => {
            if uri.scheme_str() != Some(target.scheme.as_str()) || authority.is_none() {
                return Err(Refused::Malformed("its target is no http:// URL"));
            }
        }
    }
    let same = |authority: &str| means(authority, target);
    if [authority, host].into_iter().flatten().all(same) {
        Ok(())
    } else {
        Err(Refused::OtherHost { connected: format!("{}:{}", target.host.in_authority(), target.port) })
    }
}

/// Whether an authority is that of a target, in whatever way it is written.
fn means(authority: &str, target: &Target) -> bool {
    let Ok(parsed) = authority.parse::<http::uri::Authority>() else { return false };
    let port = match (parsed.port_u16(), authority.ends_with(':'), parsed.port()) {
        (Some(port), ..) => port,
        (None, false, None) => target.scheme.default_port(),
        _ => return false,
    };
    !authority.contains('@') && port == target.port && Host::parse(parsed.host()).is_ok_and(|host| host == target.host)
}

/// Whether a request asks for a WebSocket, which only HTTP/1.1 does this way.
#[must_use]
pub fn asks_for_websocket(method: &Method, version: Version, headers: &HeaderMap) -> bool {
    let has = |name: header::HeaderName, word: &str| {
        let words =
            headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
        words.map(str::trim).any(|found| found.eq_ignore_ascii_case(word))
    };
    method == Method::GET
        && version == Version::HTTP_11
        && has(header::UPGRADE, "websocket")
        && has(header::CONNECTION, "upgrade")
}

/// The path and the query of a request.
#[must_use]
pub fn path_and_query(uri: &Uri) -> &str {
    uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str)
}

#[cfg(test)]
mod tests {
    use http::Request;
    use rstest::rstest;

    use super::*;
    use crate::{egress::target::Route, policy::Scheme};

    fn target(scheme: Scheme, host: &str, port: u16) -> Target {
        Target { scheme, host: Host::parse(host).unwrap(), port, route: Route::Proxied }
    }

    fn outcome(version: Version, uri: &str, headers: &[(&str, &str)], form: Form) -> &'static str {
        let mut request = Request::builder().version(version).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let scheme = if form == Form::Tunnel { Scheme::Https } else { Scheme::Http };
        match check(&parts, &target(scheme, "git.example", scheme.default_port()), form) {
            Ok(()) => "ok",
            Err(Refused::OtherHost { .. }) => "other",
            Err(Refused::Malformed(_)) => "malformed",
            Err(_) => "else",
        }
    }

    #[rstest]
    #[case("/", &[("host", "git.example")], "ok")]
    #[case("/", &[("host", "GIT.example.:443")], "ok")]
    #[case("/", &[("host", "git.example:444")], "other")]
    #[case("/", &[("host", "git.example:")], "other")]
    #[case("/", &[("host", "evil.example")], "other")]
    #[case("/", &[("host", "git.example@evil.example")], "other")]
    #[case("/", &[("host", "evil@git.example")], "other")]
    #[case("/", &[("host", "git.example, evil.example")], "other")]
    #[case("/", &[("host", "")], "other")]
    #[case("/", &[], "malformed")]
    #[case("/", &[("host", "git.example"), ("host", "git.example")], "malformed")]
    #[case("https://git.example/", &[("host", "git.example")], "malformed")]
    #[case("*", &[("host", "git.example")], "malformed")]
    #[case("/", &[("host", "git.example"), ("content-length", "1"), ("transfer-encoding", "chunked")], "malformed")]
    #[case("/", &[("host", "git.example"), ("content-length", "1"), ("content-length", "2")], "malformed")]
    #[case("/", &[("host", "git.example"), ("transfer-encoding", "gzip, chunked")], "malformed")]
    fn heads_in_a_tunnel(#[case] uri: &str, #[case] headers: &[(&str, &str)], #[case] expected: &str) {
        assert_eq!(outcome(Version::HTTP_11, uri, headers, Form::Tunnel), expected);
    }

    #[rstest]
    #[case("https://git.example/", &[], "ok")]
    #[case("https://git.example:443/", &[("host", "git.example")], "ok")]
    #[case("https://git.example/", &[("host", "evil.example")], "other")]
    #[case("https://evil.example/", &[], "other")]
    #[case("http://git.example/", &[], "malformed")]
    #[case("/", &[("host", "git.example")], "malformed")]
    fn heads_of_http2(#[case] uri: &str, #[case] headers: &[(&str, &str)], #[case] expected: &str) {
        assert_eq!(outcome(Version::HTTP_2, uri, headers, Form::Tunnel), expected);
    }

    #[rstest]
    #[case("http://git.example/a", &[("host", "git.example")], "ok")]
    #[case("http://git.example/a", &[("host", "evil.example")], "other")]
    #[case("http://evil.example/a", &[("host", "git.example")], "other")]
    #[case("https://git.example/a", &[("host", "git.example")], "malformed")]
    #[case("/a", &[("host", "git.example")], "malformed")]
    fn heads_with_a_whole_url(#[case] uri: &str, #[case] headers: &[(&str, &str)], #[case] expected: &str) {
        assert_eq!(outcome(Version::HTTP_11, uri, headers, Form::Absolute), expected);
    }
}
