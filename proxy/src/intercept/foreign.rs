//! Recognises credentials that are not from a vault: an attacker's own key would carry data out under a host that is allowed.
//! By name and by shape, so best effort. Pure.

use http::HeaderName;

use super::placeholder::{find, percent_decode};

/// Parts of names that say "credential".
const WORDS: &[&str] = &[
    "auth",
    "authorization",
    "authentication",
    "token",
    "secret",
    "password",
    "passwd",
    "pwd",
    "passphrase",
    "credential",
    "credentials",
    "apikey",
    "appkey",
    "accesskey",
    "privatekey",
    "signature",
    "sig",
    "jwt",
    "bearer",
];
/// Parts of names that say so in cookies and parameters; headers have them for other things (`mcp-session-id`).
const SESSIONS: &[&str] = &["session", "sessionid", "sess", "sessid", "phpsessid", "jsessionid", "sid", "ssid"];
/// What makes a `key` one.
const OF_KEYS: &[&str] = &[
    "api",
    "access",
    "auth",
    "private",
    "subscription",
    "account",
    "functions",
    "app",
    "application",
    "client",
    "service",
    "secret",
    "master",
    "admin",
];
/// Names that have such words and are none.
const HARMLESS: &[&str] =
    &["csrf", "xsrf", "npm", "idempotency", "websocket", "continuation", "page", "next", "nexttoken"];
/// How tokens of well-known makers begin.
const SHAPES: &[&str] = &[
    "ghp_",
    "gho_",
    "ghu_",
    "ghs_",
    "ghr_",
    "github_pat_",
    "glpat-",
    "gldt-",
    "glrt-",
    "npm_",
    "pypi-",
    "sk-",
    "sk_live_",
    "xoxb-",
    "xoxp-",
    "akia",
    "asia",
    "eyj",
    "dop_v1_",
    "hf_",
    "ya29.",
    "aiza",
    "hvs.",
];
/// A run of characters so long that it is no user name.
const LONG: usize = 40;

fn words_of(name: &str) -> Vec<String> {
    // `privateToken` and `private-token` are the same name.
    let mut spread = String::with_capacity(name.len() + 4);
    for (at, character) in name.char_indices() {
        if at > 0 && character.is_ascii_uppercase() && name.as_bytes()[at - 1].is_ascii_lowercase() {
            spread.push('-');
        }
        spread.push(character.to_ascii_lowercase());
    }
    spread.split(|character: char| !character.is_ascii_alphanumeric()).map(ToOwned::to_owned).collect()
}

/// Whether a name says "credential", by the usual words or by some more.
fn is_credential_name(name: &str, more: &[&str]) -> bool {
    let words = words_of(name);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let has = |list: &[&str]| words.iter().any(|word| list.contains(word));
    let key = words.windows(2).any(|pair| pair[1] == "key" && OF_KEYS.contains(&pair[0]));
    let token = words.iter().any(|word| word.ends_with("token"));
    !has(HARMLESS) && (key || token || has(WORDS) || has(more))
}

/// Whether a header is one in which credentials are sent. Cookies are judged one by one.
#[must_use]
pub fn is_credential_header(name: &HeaderName) -> bool {
    is_credential_name(name.as_str(), &[])
}

/// The first cookie of a `cookie` header that is named like a credential, and whose value is no placeholder.
#[must_use]
pub fn credential_cookie(value: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(value);
    let cookies = text.split([';', ',']).map(|cookie| cookie.split_once('=').unwrap_or((cookie, "")));
    first(cookies.filter(|(_, value)| is_own(value)).map(|(name, _)| name.trim()))
}

/// Whether a value is more than a placeholder.
fn is_own(value: &str) -> bool {
    find(value.as_bytes()).is_empty()
}

/// The first parameter of a query that is named like a credential, and whose value is no placeholder.
#[must_use]
pub fn credential_parameter(query: &str) -> Option<String> {
    let decoded = |text: &str| String::from_utf8_lossy(&percent_decode(text.as_bytes())).into_owned();
    let parameters: Vec<(String, String)> = query
        .split(['&', ';'])
        .filter_map(|parameter| parameter.split_once('='))
        .filter(|(_, value)| !value.is_empty() && is_own(value))
        .map(|(name, value)| (decoded(name), decoded(value)))
        .collect();
    // `key` alone says nothing, unless its value does.
    let key = parameters.iter().find(|(name, value)| name == "key" && looks_like_credential(value.as_bytes()));
    let named = first(parameters.iter().map(|(name, _)| name.as_str()));
    named.or_else(|| key.map(|(name, _)| name.clone()))
}

fn first<'a>(mut names: impl Iterator<Item = &'a str>) -> Option<String> {
    // Shown to the program that sent it, and not without bound.
    names.find(|name| is_credential_name(name, SESSIONS)).map(|name| name.chars().take(64).collect())
}

/// A text without its placeholders.
#[must_use]
pub fn without_placeholders(text: &[u8]) -> Vec<u8> {
    let mut rest = Vec::with_capacity(text.len());
    let mut at = 0;
    for found in find(text) {
        rest.extend_from_slice(&text[at..found.range.start]);
        at = found.range.end;
    }
    rest.extend_from_slice(&text[at..]);
    rest
}

/// Whether what stands beside a placeholder looks like a credential itself.
#[must_use]
pub fn looks_like_credential(text: &[u8]) -> bool {
    let lower = text.to_ascii_lowercase();
    lower.split(|byte| !(byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b'+' | b'/'))).any(|run| {
        run.len() >= LONG || (run.len() >= 16 && SHAPES.iter().any(|shape| run.starts_with(shape.as_bytes())))
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("authorization", true)]
    #[case("proxy-authorization", true)]
    #[case("x-api-key", true)]
    #[case("api-key", true)]
    #[case("apikey", true)]
    #[case("private-token", true)]
    #[case("job-token", true)]
    #[case("x-auth-token", true)]
    #[case("x-amz-security-token", true)]
    #[case("x-goog-api-key", true)]
    #[case("dd-application-key", true)]
    #[case("ocp-apim-subscription-key", true)]
    #[case("x-csrf-token", false)]
    #[case("npm-session", false)]
    #[case("mcp-session-id", false)]
    #[case("npm-auth-type", false)]
    #[case("sec-websocket-key", false)]
    #[case("idempotency-key", false)]
    #[case("x-amz-content-sha256", false)]
    #[case("git-protocol", false)]
    #[case("user-agent", false)]
    #[case("accept", false)]
    fn headers(#[case] name: HeaderName, #[case] expected: bool) {
        assert_eq!(is_credential_header(&name), expected);
    }

    #[rstest]
    #[case("theme=dark", None)]
    #[case("theme=dark; user_session=x", Some("user_session"))]
    #[case("PHPSESSID=1", Some("PHPSESSID"))]
    #[case("sid=1", Some("sid"))]
    #[case("accessToken=1", Some("accessToken"))]
    fn cookies(#[case] value: &str, #[case] expected: Option<&str>) {
        assert_eq!(credential_cookie(value.as_bytes()).as_deref(), expected);
    }

    #[rstest]
    #[case("q=token", None)]
    #[case("access_token=x", Some("access_token"))]
    #[case("access%5Ftoken=x", Some("access_token"))]
    #[case("a=b&X-Amz-Signature=x", Some("X-Amz-Signature"))]
    #[case("a=b;api_key=x", Some("api_key"))]
    #[case("access_token=lhp_E85lv-r9mTODgSjNknpv6sYoG4HvyRaA3gKloTDAnJQ", None)]
    #[case("page_token=x", None)]
    #[case("nextToken=x", None)]
    #[case("next-token=x", None)]
    #[case("key=name", None)]
    #[case("key=AIza0123456789abcdef", Some("key"))]
    #[case("session=x", Some("session"))]
    #[case("access_token=", None)]
    fn parameters(#[case] query: &str, #[case] expected: Option<&str>) {
        assert_eq!(credential_parameter(query).as_deref(), expected);
    }

    #[rstest]
    #[case("x-access-token:", false)]
    #[case("someone@example.com:", false)]
    #[case("Bearer ", false)]
    #[case("ghp_0123456789abcdef0123456789abcdef0123:", true)]
    #[case("AKIA0123456789ABCDEF:", true)]
    #[case("0123456789abcdef0123456789abcdef01234567:", true)]
    fn what_stands_beside(#[case] text: &str, #[case] expected: bool) {
        assert_eq!(looks_like_credential(text.as_bytes()), expected);
    }
}
