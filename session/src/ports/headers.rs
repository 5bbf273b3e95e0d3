//! What of a request goes on to a server in a sandbox, and what of its answer comes back. Pure.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Uri};

/// Shows a pass with a request.
pub(super) const PASS: &str = "x-longhand-port-token";
/// The parameter of a link.
pub(crate) const LINK: &str = "longhand-token";
/// Of hops, and not of what they carry.
const OF_ONE_HOP: [HeaderName; 6] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
];
/// What says who somebody is, here or elsewhere: no server in a sandbox learns it.
const OF_WHO: [&str; 5] = ["authorization", "cookie", "x-api-key", PASS, "keep-alive"];

/// Why a browser's request is not passed on.
pub(super) const FOREIGN: &str = "another site may only open a port, and not speak to it for its user";

/// The headers for the server.
pub(super) fn inwards(headers: &HeaderMap, host: &str, scheme: &'static str, port: u16) -> HeaderMap {
    let upgrade = headers.get(header::UPGRADE).cloned();
    let mut inner = without_hop(headers);
    OF_WHO.iter().for_each(|name| drop(inner.remove(*name)));
    inner.remove(header::UPGRADE);
    // Servers for development often answer only to names that they know.
    let local = HeaderValue::from_str(&format!("localhost:{port}"));
    local.into_iter().for_each(|local| drop(inner.insert(header::HOST, local)));
    if inner.contains_key(header::ORIGIN) {
        let origin = HeaderValue::from_str(&format!("http://localhost:{port}"));
        origin.into_iter().for_each(|origin| drop(inner.insert(header::ORIGIN, origin)));
    }
    HeaderValue::from_str(host).into_iter().for_each(|host| drop(inner.insert("x-forwarded-host", host)));
    inner.insert("x-forwarded-proto", HeaderValue::from_static(scheme));
    if let Some(upgrade) = upgrade {
        inner.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        inner.insert(header::UPGRADE, upgrade);
    }
    inner
}

/// The headers for the client.
pub(super) fn outwards(headers: &HeaderMap) -> HeaderMap {
    let upgrade = headers.get(header::UPGRADE).cloned();
    let mut outer = without_hop(headers);
    outer.remove(header::SET_COOKIE);
    outer.remove("keep-alive");
    if let Some(upgrade) = upgrade {
        outer.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        outer.insert(header::UPGRADE, upgrade);
    }
    outer
}

fn without_hop(headers: &HeaderMap) -> HeaderMap {
    let mut kept = headers.clone();
    let named = headers.get_all(header::CONNECTION).into_iter().filter_map(|value| value.to_str().ok());
    for name in named.flat_map(|value| value.split(',')).map(str::trim).filter(|name| !name.is_empty()) {
        kept.remove(name);
    }
    OF_ONE_HOP.iter().for_each(|name| drop(kept.remove(name)));
    kept
}

/// Whether a browser sends this because another origin told it to, other than by a link. Ports of one domain are one site, so
/// that `SameSite` alone does not keep a page of one sandbox from another.
pub(super) fn is_foreign(method: &Method, headers: &HeaderMap, origin: &str) -> bool {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if headers.get(header::ORIGIN).is_some_and(|found| found.as_bytes() != origin.as_bytes()) {
        return true;
    }
    let opens = matches!(*method, Method::GET | Method::HEAD) && text("sec-fetch-mode") == Some("navigate");
    matches!(text("sec-fetch-site"), Some("cross-site" | "same-site")) && !opens
}

/// The value of one cookie.
pub(super) fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let values = headers.get_all(header::COOKIE).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(';')).find_map(|pair| pair.trim().strip_prefix(name)?.strip_prefix('='))
}

/// The pass of a link, and where it leads without it.
pub(super) fn link(uri: &Uri) -> Option<(&str, String)> {
    let query = uri.query()?;
    let is_pass = |pair: &&str| pair.split_once('=').is_some_and(|(name, _)| name == LINK);
    let pass = query.split('&').find(is_pass)?.split_once('=')?.1;
    let rest: Vec<&str> = query.split('&').filter(|pair| !is_pass(pair)).collect();
    // A path that begins with two slashes would be another host.
    let path = format!("/{}", uri.path().trim_start_matches(['/', '\\']));
    Some((pass, if rest.is_empty() { path } else { format!("{path}?{}", rest.join("&")) }))
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderName, HeaderValue, Method};
    use rstest::rstest;

    use super::{cookie, inwards, is_foreign, link, outwards};

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    fn sorted(headers: &HeaderMap) -> Vec<String> {
        let mut all: Vec<String> =
            headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        all.sort();
        all
    }

    #[test]
    fn a_server_does_not_learn_who_asks() {
        let given = headers(&[
            ("host", "80-x.ports.test"),
            ("authorization", "Bearer a"),
            ("cookie", "a=b"),
            ("x-api-key", "k"),
            ("x-longhand-port-token", "t"),
            ("connection", "close, x-hop"),
            ("x-hop", "1"),
            ("transfer-encoding", "chunked"),
            ("origin", "https://80-x.ports.test"),
            ("accept", "*/*"),
        ]);
        let expected = [
            "accept: */*",
            "host: localhost:80",
            "origin: http://localhost:80",
            "x-forwarded-host: 80-x.ports.test",
            "x-forwarded-proto: https",
        ];
        assert_eq!(sorted(&inwards(&given, "80-x.ports.test", "https", 80)), expected);
    }

    #[test]
    fn an_upgrade_is_passed_on_and_a_cookie_is_not() {
        let given = headers(&[("connection", "Upgrade"), ("upgrade", "websocket"), ("sec-websocket-key", "k")]);
        let inner = inwards(&given, "h", "http", 80);
        assert!(
            inner["connection"] == "upgrade" && inner["upgrade"] == "websocket" && inner["sec-websocket-key"] == "k"
        );
        let mut answer = headers(&[("set-cookie", "a=b"), ("keep-alive", "timeout=5"), ("etag", "x")]);
        answer.append("set-cookie", HeaderValue::from_static("__Host-longhand-port=forged"));
        assert_eq!(sorted(&outwards(&answer)), ["etag: x"]);
    }

    const OWN: &str = "https://80-x.ports.test";

    #[rstest]
    #[case::a_program(Method::POST, &[], false)]
    #[case::itself(Method::POST, &[("origin", OWN), ("sec-fetch-site", "same-origin")], false)]
    #[case::typed(Method::GET, &[("sec-fetch-site", "none"), ("sec-fetch-mode", "navigate")], false)]
    #[case::a_link(Method::GET, &[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")], false)]
    #[case::a_form(Method::POST, &[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")], true)]
    #[case::another_sandbox(Method::GET, &[("sec-fetch-site", "same-site"), ("sec-fetch-mode", "no-cors")], true)]
    #[case::a_websocket_of_another(Method::GET, &[("origin", "https://81-x.ports.test")], true)]
    #[case::nowhere(Method::POST, &[("origin", "null")], true)]
    fn other_origins_may_only_open_it(
        #[case] method: Method,
        #[case] pairs: &[(&'static str, &'static str)],
        #[case] foreign: bool,
    ) {
        assert_eq!(is_foreign(&method, &headers(pairs), OWN), foreign);
    }

    #[test]
    fn one_cookie_is_found_among_others() {
        let given = headers(&[("cookie", "a=b; longhand-port=x.y.z; longhand-port2=n")]);
        assert_eq!(cookie(&given, "longhand-port"), Some("x.y.z"));
        assert_eq!(cookie(&given, "other"), None);
    }

    #[rstest]
    #[case("/?longhand-token=t", Some(("t", "/")))]
    #[case("/a/b?x=1&longhand-token=t&y=2", Some(("t", "/a/b?x=1&y=2")))]
    #[case("//evil.test/?longhand-token=t", Some(("t", "/evil.test/")))]
    #[case("/?longhand-tokens=t", None)]
    #[case("/", None)]
    fn a_link_leads_on_without_its_pass(#[case] uri: &str, #[case] expected: Option<(&str, &str)>) {
        let uri = uri.parse().unwrap();
        let found = link(&uri);
        assert_eq!(found.as_ref().map(|(pass, rest)| (*pass, rest.as_str())), expected);
    }
}
