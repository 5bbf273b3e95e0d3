//! Requests as programs send them, and what is nearly one.

use http::Request;
use rstest::rstest;

use super::*;

fn read_of(method: &str, uri: &str, headers: &[(&str, &str)]) -> Result<Ask, String> {
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    read(&request.body(()).unwrap().into_parts().0).map_err(|refusal| refusal.to_string())
}

fn tunnel(host: &str, port: u16) -> Ask {
    Ask::Tunnel { host: Host::parse(host).unwrap(), port }
}

fn plain(host: &str, port: u16) -> Ask {
    Ask::Plain { host: Host::parse(host).unwrap(), port }
}

#[rstest]
#[case("CONNECT", "api.example:443", &[], tunnel("api.example", 443))]
#[case("CONNECT", "API.example.:443", &[("host", "api.example:443")], tunnel("api.example", 443))]
#[case("CONNECT", "api.example:8443", &[("host", "api.example")], tunnel("api.example", 8443))]
#[case("CONNECT", "[2620:fe::fe]:443", &[("host", "[2620:fe:0::fe]:443")], tunnel("2620:fe::fe", 443))]
#[case("CONNECT", "9.9.9.9:443", &[], tunnel("9.9.9.9", 443))]
#[case("GET", "http://api.example/x?y", &[("host", "api.example")], plain("api.example", 80))]
#[case("POST", "http://api.example:8080", &[("host", "API.example:8080")], plain("api.example", 8080))]
#[case("GET", "/ca.pem", &[("host", "10.0.0.1:8084")], Ask::Certificate)]
fn what_is_asked_for(#[case] method: &str, #[case] uri: &str, #[case] headers: &[(&str, &str)], #[case] expected: Ask) {
    assert_eq!(read_of(method, uri, headers), Ok(expected));
}

#[rstest]
#[case("CONNECT", "api.example:443", &[("host", "evil.example:443")], "names another host")]
#[case("CONNECT", "api.example:443", &[("host", "api.example:8443")], "names another host")]
#[case("CONNECT", "api.example:443", &[("host", "api.example"), ("host", "api.example")], "more than one host")]
#[case("CONNECT", "api.example:443", &[("host", "a b")], "names another host")]
#[case("CONNECT", "api.example:443", &[("host", "")], "names another host")]
#[case("CONNECT", "api.example:443", &[("content-length", "3")], "no body")]
#[case("CONNECT", "api.example:443", &[("transfer-encoding", "chunked")], "no body")]
#[case("CONNECT", "api.example:0", &[], "port 0")]
#[case("CONNECT", "api.example", &[], "must name host:port")]
#[case("CONNECT", "user@api.example:443", &[], "user name")]
#[case("CONNECT", "/", &[], "must name host:port")]
#[case("CONNECT", "http://api.example:443/", &[], "must name host:port")]
#[case("CONNECT", "127.1:443", &[], "read as an address")]
#[case("CONNECT", "0x7f000001:443", &[], "read as an address")]
#[case("CONNECT", "2130706433:443", &[], "read as an address")]
#[case("CONNECT", "a..example:443", &[], "is not a host")]
#[case("GET", "http://api.example/", &[("host", "evil.example")], "names another host")]
#[case("GET", "http://user:pw@api.example/", &[], "user name")]
#[case("GET", "http://api.example:/", &[], "the port is none")]
#[case("GET", "https://api.example/", &[], "by CONNECT")]
#[case("GET", "ftp://api.example/", &[], "only http://")]
#[case("GET", "/", &[("host", "api.example")], "this is a proxy")]
#[case("POST", "/ca.pem", &[], "this is a proxy")]
#[case("GET", "/ca.pem?x", &[], "this is a proxy")]
#[case("GET", "http://api.example/", &[("content-length", "3"), ("transfer-encoding", "chunked")], "contradict")]
#[case("GET", "http://api.example/", &[("content-length", "3"), ("content-length", "3")], "contradict")]
fn what_is_refused(#[case] method: &str, #[case] uri: &str, #[case] headers: &[(&str, &str)], #[case] expected: &str) {
    let problem = read_of(method, uri, headers).unwrap_err();
    assert!(problem.contains(expected), "{problem}");
}

#[rstest]
#[case("http://api.example", "/")]
#[case("http://api.example/a%20b?c=d", "/a%20b?c=d")]
#[case("http://api.example?c", "/?c")]
fn a_request_is_forwarded_in_origin_form(#[case] uri: &str, #[case] expected: &str) {
    assert_eq!(origin_form(&uri.parse().unwrap()), expected);
}
