//! AWS Signature Version 4, in the header `authorization`. Pure.

use std::fmt::Write as _;

use bytes::Bytes;
use hmac::{Hmac, Mac as _};
use http::{HeaderMap, HeaderValue, Method, header::InvalidHeaderValue};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::{intercept::placeholder::percent_decode, secret::Secret};

/// What the header begins with.
pub const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// A request as it goes out.
#[derive(Debug, Clone, Copy)]
pub struct Outgoing<'a> {
    /// The method.
    pub method: &'a Method,
    /// The host, as the header says it.
    pub host: &'a str,
    /// The path, as it is sent.
    pub path: &'a str,
    /// The query, without `?`.
    pub query: Option<&'a str>,
    /// The other headers.
    pub headers: &'a HeaderMap,
    /// What stands for the body: its SHA-256, or a word such as `UNSIGNED-PAYLOAD`.
    pub payload: &'a str,
}

/// What a signature is good for.
#[derive(Debug, Clone, Copy)]
pub struct Scope<'a> {
    /// When it is made: `20130524T000000Z`.
    pub time: &'a str,
    /// The region.
    pub region: &'a str,
    /// The service.
    pub service: &'a str,
}

/// The headers that are signed besides `host`: whatever AWS gives a meaning to, in order. The others may change on the way.
#[must_use]
pub fn signed_names(headers: &HeaderMap) -> Vec<&str> {
    let means = |name: &&str| name.starts_with("x-amz-") || matches!(*name, "content-type" | "content-md5");
    let mut names: Vec<&str> = headers.keys().map(http::HeaderName::as_str).filter(means).collect();
    names.push("host");
    names.sort_unstable();
    names
}

/// The value of `authorization`; `names` are the headers that are signed, in order.
///
/// # Errors
/// When the access key id is not fit for a header.
pub fn authorization(
    outgoing: &Outgoing<'_>,
    names: &[&str],
    scope: Scope<'_>,
    id: &Secret,
    secret: &Secret,
) -> Result<HeaderValue, InvalidHeaderValue> {
    let Scope { time, region, service } = scope;
    let date = time.get(..8).unwrap_or(time);
    let place = format!("{date}/{region}/{service}/aws4_request");
    let request = hex(&Sha256::digest(canonical(outgoing, names, service)));
    let to_sign = format!("{ALGORITHM}\n{time}\n{place}\n{request}");
    let mut first = Zeroizing::new(Vec::with_capacity(4 + secret.expose().len()));
    first.extend_from_slice(b"AWS4");
    first.extend_from_slice(secret.expose());
    let mut key = mac(&first, date);
    for part in [region, service, "aws4_request"] {
        key = mac(&*key, part);
    }
    let signature = hex(&*mac(&*key, &to_sign));
    let mut value = Zeroizing::new(Vec::with_capacity(512));
    value.extend_from_slice(format!("{ALGORITHM} Credential=").as_bytes());
    value.extend_from_slice(id.expose());
    let rest = format!("/{place}, SignedHeaders={}, Signature={signature}", names.join(";"));
    value.extend_from_slice(rest.as_bytes());
    let mut value = HeaderValue::from_maybe_shared(Bytes::from_owner(value))?;
    value.set_sensitive(true);
    Ok(value)
}

/// A SHA-256 as signatures have it.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn mac(key: &[u8], text: &str) -> Zeroizing<[u8; 32]> {
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { unreachable!("HMAC takes keys of every length") };
    mac.update(text.as_bytes());
    Zeroizing::new(mac.finalize().into_bytes().into())
}

fn canonical(outgoing: &Outgoing<'_>, names: &[&str], service: &str) -> Vec<u8> {
    let Outgoing { method, host, path, query, headers, payload } = outgoing;
    let query = canonical_query(query.unwrap_or_default());
    let mut text = format!("{method}\n{}\n{query}\n", canonical_path(path, service)).into_bytes();
    for name in names {
        text.extend_from_slice(name.as_bytes());
        text.push(b':');
        if *name == "host" {
            text.extend_from_slice(host.as_bytes());
        }
        for (number, value) in headers.get_all(*name).iter().enumerate() {
            if number > 0 {
                text.push(b',');
            }
            let words = value.as_bytes().split(|byte| *byte == b' ').filter(|word| !word.is_empty());
            text.extend_from_slice(&words.collect::<Vec<_>>().join(&b' '));
        }
        text.push(b'\n');
    }
    text.extend_from_slice(format!("\n{}\n{payload}", names.join(";")).as_bytes());
    text
}

/// S3 takes a path as its client named the object; the others encode what is sent once more, without empty segments.
fn canonical_path(path: &str, service: &str) -> String {
    if service.starts_with("s3") {
        return encode(&percent_decode(path.as_bytes()), true);
    }
    let mut plain = String::with_capacity(path.len());
    for character in path.chars() {
        if !(character == '/' && plain.ends_with('/')) {
            plain.push(character);
        }
    }
    encode(plain.as_bytes(), true)
}

fn canonical_query(query: &str) -> String {
    let again = |text: &str| encode(&percent_decode(text.as_bytes()), false);
    let mut parameters: Vec<(String, String)> = query
        .split('&')
        .filter(|parameter| !parameter.is_empty())
        .map(|parameter| parameter.split_once('=').unwrap_or((parameter, "")))
        .map(|(name, value)| (again(name), again(value)))
        .collect();
    parameters.sort_unstable();
    parameters.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&")
}

fn encode(text: &[u8], slash: bool) -> String {
    text.iter().fold(String::with_capacity(text.len()), |mut encoded, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(char::from(*byte)),
            b'/' if slash => encoded.push('/'),
            byte => {
                let _ = write!(encoded, "%{byte:02X}");
            }
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderName;
    use rstest::rstest;

    use super::*;

    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn signature(
        (method, url): (&str, &str),
        headers: &[(&str, &str)],
        payload: &str,
        scope: Scope<'_>,
        (id, secret): (&str, &str),
    ) -> String {
        let (host, rest) = url.split_once('/').unwrap();
        let rest = format!("/{rest}");
        let (path, query) = rest.split_once('?').map_or((rest.as_str(), None), |(path, query)| (path, Some(query)));
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        let mut names: Vec<&str> = headers.iter().map(|(name, _)| *name).chain(["host"]).collect();
        names.sort_unstable();
        names.dedup();
        let method = method.parse().unwrap();
        let outgoing = Outgoing { method: &method, host, path, query, headers: &map, payload };
        let value = authorization(&outgoing, &names, scope, &Secret::of(id), &Secret::of(secret)).unwrap();
        value.to_str().unwrap().rsplit_once("Signature=").unwrap().1.to_owned()
    }

    /// From the test suite of Signature Version 4 that AWS publishes.
    #[rstest]
    #[case("GET", "/", &[], "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31")]
    #[case("GET", "/?Param2=value2&Param1=value1", &[], "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500")]
    #[case("POST", "/", &[], "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b")]
    #[case("POST", "/", &[("content-type", "application/x-www-form-urlencoded")], "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a")]
    fn the_test_suite(
        #[case] method: &str,
        #[case] path: &str,
        #[case] headers: &[(&str, &str)],
        #[case] expected: &str,
    ) {
        let mut headers = headers.to_vec();
        headers.push(("x-amz-date", "20150830T123600Z"));
        let form = headers.iter().any(|(name, _)| *name == "content-type");
        let payload = if form { hex(&Sha256::digest(b"Param1=value1")) } else { EMPTY.to_owned() };
        let url = format!("example.amazonaws.com{path}");
        let scope = Scope { time: "20150830T123600Z", region: "us-east-1", service: "service" };
        let keys = ("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY");
        assert_eq!(signature((method, &url), &headers, &payload, scope, keys), expected);
    }

    /// From the examples in the documentation of S3.
    #[rstest]
    #[case("GET", "/test.txt", &[("range", "bytes=0-9")], EMPTY, "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41")]
    #[case("PUT", "/test%24file.text", &[("date", "Fri, 24 May 2013 00:00:00 GMT"), ("x-amz-storage-class", "REDUCED_REDUNDANCY")],
        "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072", "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd")]
    #[case("GET", "/?lifecycle", &[], EMPTY, "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543")]
    #[case("GET", "/?max-keys=2&prefix=J", &[], EMPTY, "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7")]
    fn examples_of_s3(
        #[case] method: &str,
        #[case] path: &str,
        #[case] headers: &[(&str, &str)],
        #[case] payload: &str,
        #[case] expected: &str,
    ) {
        let mut headers = headers.to_vec();
        headers.extend([("x-amz-date", "20130524T000000Z"), ("x-amz-content-sha256", payload)]);
        let url = format!("examplebucket.s3.amazonaws.com{path}");
        let scope = Scope { time: "20130524T000000Z", region: "us-east-1", service: "s3" };
        let keys = ("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY");
        assert_eq!(signature((method, &url), &headers, payload, scope, keys), expected);
    }

    #[rstest]
    #[case("/a%20b/%C3%A4:c", "s3", "/a%20b/%C3%A4%3Ac")]
    #[case("/a//b/", "s3", "/a//b/")]
    #[case("/a%20b/x:y", "lambda", "/a%2520b/x%3Ay")]
    #[case("/a//b/", "lambda", "/a/b/")]
    fn paths(#[case] path: &str, #[case] service: &str, #[case] expected: &str) {
        assert_eq!(canonical_path(path, service), expected);
    }

    #[rstest]
    #[case("", "")]
    #[case("b&a=%2f&A=x y", "A=x%20y&a=%2F&b=")]
    #[case("a=2&a=1", "a=1&a=2")]
    fn queries(#[case] query: &str, #[case] expected: &str) {
        assert_eq!(canonical_query(query), expected);
    }

    #[test]
    fn what_has_a_meaning_is_signed_and_nothing_else() {
        let names = ["x-amz-target", "accept", "content-type", "user-agent", "amz-sdk-request"];
        let headers = names.map(|name| (HeaderName::from_static(name), HeaderValue::from_static("x")));
        assert_eq!(signed_names(&HeaderMap::from_iter(headers)), ["content-type", "host", "x-amz-target"]);
    }
}
