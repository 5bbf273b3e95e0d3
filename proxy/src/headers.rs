//! What is taken out of requests and responses on their way. Pure.

use http::{HeaderMap, HeaderName, HeaderValue, header};

/// Headers about one connection and not about the message, and `expect`, which is answered here.
const HOP_BY_HOP: &[&str] = &[
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
    "expect",
];

/// Headers in which a client may send a credential of its own.
const CREDENTIALS: &[&str] = &["authorization", "x-api-key", "proxy-authorization", "cookie"];

/// Headers with which some servers replace the host, path, method or client that was judged.
const OVERRIDES: &[&str] = &[
    "host",
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
    "x-forwarded-prefix",
    "x-forwarded-server",
    "x-host",
    "x-real-ip",
    "x-original-host",
    "x-original-url",
    "x-rewrite-url",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
];

/// Headers of a response that would hand a credential to the client, or ask it for one.
const RESPONSE_CREDENTIALS: &[&str] = &["set-cookie", "proxy-authenticate"];

/// Whether a header frames or routes a message, so that a credential cannot be placed there.
#[must_use]
pub fn is_reserved(name: &HeaderName) -> bool {
    HOP_BY_HOP.contains(&name.as_str()) || OVERRIDES.contains(&name.as_str()) || *name == header::CONTENT_LENGTH
}

/// Whether a message says two things about its length.
#[must_use]
pub fn framing_conflict(headers: &HeaderMap) -> bool {
    let lengths = headers.get_all(header::CONTENT_LENGTH).iter().count();
    let encodings = headers.get_all(header::TRANSFER_ENCODING).iter().count();
    lengths + encodings > 1
}

/// Whether the body of a message cannot be looked into.
#[must_use]
pub fn is_encoded(headers: &HeaderMap) -> bool {
    headers.get_all(header::CONTENT_ENCODING).iter().any(|encoding| encoding != "identity")
}

/// Makes the headers of a request fit for the upstream: what concerns this connection, what was meant for the proxy and what
/// could change the destination is taken out. The credential is the only one that goes, if there is one; the answer is then asked
/// for as it is and as a whole, so that it can be searched.
pub fn prepare_request(headers: &mut HeaderMap, credential: Option<(HeaderName, HeaderValue)>) {
    remove_hop_by_hop(headers);
    for name in CREDENTIALS.iter().chain(OVERRIDES) {
        headers.remove(*name);
    }
    // The length is set again from the body that is sent.
    headers.remove(header::CONTENT_LENGTH);
    if let Some((placement, credential)) = credential {
        headers.insert(placement, credential);
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        headers.remove(header::RANGE);
        headers.remove(header::IF_RANGE);
    }
}

/// Makes the headers of a response fit for the client, but for values of credentials in them.
pub fn prepare_response(headers: &mut HeaderMap) {
    remove_hop_by_hop(headers);
    for name in RESPONSE_CREDENTIALS {
        headers.remove(*name);
    }
}

/// Makes the headers of a request of a sandbox fit for the upstream, but for the credentials, which were judged: what
/// concerns this connection and what could change the destination is taken out, and the answer is asked for as it is, since a
/// compressed one could not be looked into.
pub fn prepare_intercepted_request(headers: &mut HeaderMap) {
    let trailers = headers.get(header::TE).is_some_and(|te| te == "trailers");
    remove_hop_by_hop(headers);
    for name in OVERRIDES {
        headers.remove(*name);
    }
    headers.remove(header::CONTENT_LENGTH);
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

/// Makes the headers of an answer fit for a sandbox, but for values of credentials in them. `used` says that a credential was
/// placed into the request: a session that it began is not for the sandbox.
pub fn prepare_intercepted_response(headers: &mut HeaderMap, used: bool) {
    remove_hop_by_hop(headers);
    headers.remove(header::PROXY_AUTHENTICATE);
    // It would lead programs past the proxy, by QUIC.
    headers.remove(header::ALT_SVC);
    if used {
        headers.remove(header::SET_COOKIE);
    }
}

/// Takes out what concerns one connection only, also what its `connection` header names.
pub fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let nominated: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in &nominated {
        headers.remove(name);
    }
    for name in HOP_BY_HOP {
        headers.remove(*name);
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn map(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn only_the_placed_credential_goes_out() {
        let mut headers = map(&[
            ("authorization", "Bearer session"),
            ("x-api-key", "session"),
            ("x-api-key", "another"),
            ("x-goog-api-key", "attacker"),
            ("proxy-authorization", "Basic eDp5"),
            ("cookie", "a=b"),
            ("host", "127.0.0.1:8081"),
            ("content-length", "3"),
            ("connection", "close, X-Nominated"),
            ("x-nominated", "1"),
            ("te", "trailers"),
            ("upgrade", "websocket"),
            ("expect", "100-continue"),
            ("x-http-method-override", "DELETE"),
            ("x-original-url", "/admin"),
            ("x-forwarded-host", "evil.example"),
            ("anthropic-version", "2023-06-01"),
            ("accept-encoding", "gzip"),
            ("range", "bytes=1-2"),
            ("if-range", "x"),
        ]);
        let placement = HeaderName::from_static("x-goog-api-key");
        prepare_request(&mut headers, Some((placement, HeaderValue::from_static("real"))));
        let expected =
            [("anthropic-version", "2023-06-01"), ("x-goog-api-key", "real"), ("accept-encoding", "identity")];
        assert_eq!(headers, map(&expected));
    }

    #[test]
    fn a_client_cannot_nominate_the_placed_header_away() {
        let mut headers = map(&[("connection", "x-api-key, authorization")]);
        let placed = (HeaderName::from_static("x-api-key"), HeaderValue::from_static("real"));
        prepare_request(&mut headers, Some(placed));
        assert_eq!(headers, map(&[("x-api-key", "real"), ("accept-encoding", "identity")]));
    }

    #[test]
    fn without_a_credential_none_goes_out() {
        let mut headers =
            map(&[("authorization", "Bearer session"), ("x-api-key", "session"), ("mcp-session-id", "1")]);
        prepare_request(&mut headers, None);
        assert_eq!(headers, map(&[("mcp-session-id", "1")]));
    }

    #[test]
    fn what_is_of_one_connection_or_asks_for_a_credential_does_not_come_back() {
        let mut headers = map(&[
            ("set-cookie", "session=1"),
            ("connection", "keep-alive, x-hop"),
            ("x-hop", "1"),
            ("request-id", "req_1"),
            ("content-length", "5"),
        ]);
        prepare_response(&mut headers);
        assert_eq!(headers, map(&[("request-id", "req_1"), ("content-length", "5")]));
    }

    #[rstest]
    #[case(&[], false)]
    #[case(&[("content-encoding", "identity")], false)]
    #[case(&[("content-encoding", "gzip")], true)]
    #[case(&[("content-encoding", "identity"), ("content-encoding", "gzip")], true)]
    fn encodings(#[case] pairs: &[(&str, &str)], #[case] expected: bool) {
        assert_eq!(is_encoded(&map(pairs)), expected);
    }

    #[rstest]
    #[case(&[("content-length", "5")], false)]
    #[case(&[("transfer-encoding", "chunked")], false)]
    #[case(&[], false)]
    #[case(&[("content-length", "5"), ("transfer-encoding", "chunked")], true)]
    #[case(&[("content-length", "5"), ("content-length", "5")], true)]
    #[case(&[("transfer-encoding", "identity"), ("transfer-encoding", "chunked")], true)]
    fn framing(#[case] pairs: &[(&str, &str)], #[case] expected: bool) {
        assert_eq!(framing_conflict(&map(pairs)), expected);
    }
}
