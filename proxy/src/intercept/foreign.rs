//! Recognises credentials that are not from a vault: an attacker's own key would carry data out under a host that is allowed.
//! By name and by shape, so best effort. Pure.

use http::{HeaderName, header};

use super::{
    endpoints::decoded,
    placeholder::find,
    shapes::{has_shape, looks_like_credential},
};

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
/// Those of them that a request may have that is authenticated otherwise, without what is between their words.
const SESSION_IDS: &[&str] = &["session", "sessionid"];
/// What a `key` is of that opens something, wherever in a name.
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
/// What a `key` at the end of a name is of that opens nothing: places in data, and names of things.
const OF_DATA: &[&str] = &[
    "after",
    "before",
    "cache",
    "component",
    "end",
    "environment",
    "epic",
    "event",
    "feature",
    "field",
    "flag",
    "foreign",
    "group",
    "hash",
    "host",
    "idempotency",
    "issue",
    "label",
    "last",
    "marker",
    "metric",
    "next",
    "object",
    "page",
    "partition",
    "primary",
    "profile",
    "project",
    "property",
    "public",
    "range",
    "routing",
    "row",
    "rule",
    "shard",
    "sort",
    "space",
    "start",
    "surrogate",
    "tag",
    "translation",
    "websocket",
];
/// Words that end with `key` and are none.
const NO_KEYS: &[&str] = &["monkey", "donkey", "turkey", "hockey", "jockey", "whiskey"];
/// Whole names that have such words and are no credentials, without what is between their words: places in a list that is
/// read page by page, proofs that a form is one's own, how npm logs in, and keys that encrypt an object and open no account
/// (docs.aws.amazon.com/AmazonS3/latest/userguide/ServerSideEncryptionCustomerKeys.html, and the same of Azure and Google).
const HARMLESS: &[&str] = &[
    "changetoken",
    "continuationtoken",
    "cursortoken",
    "listcontinuationtoken",
    "nextcontinuationtoken",
    "nextpagetoken",
    "nexttoken",
    "pagetoken",
    "paginationtoken",
    "previouspagetoken",
    "prevtoken",
    "prevpagetoken",
    "resumptiontoken",
    "skiptoken",
    "startingtoken",
    "synctoken",
    "xmscontinuation",
    "authenticitytoken",
    "csrftoken",
    "xcsrftoken",
    "xsrftoken",
    "xxsrftoken",
    "requestverificationtoken",
    "npmauthtype",
    "xamzserversideencryptioncustomerkey",
    "xamzcopysourceserversideencryptioncustomerkey",
    "xgoogencryptionkey",
    "xmsencryptionkey",
];
/// What browsers demand before the names of some cookies.
const COOKIE_PREFIXES: &[&str] = &["__Host-", "__Secure-", "__Http-", "__Host-Http-"];
/// How a value begins that says what it is: iana.org/assignments/http-authschemes.
const SCHEMES: &[&str] = &["basic ", "bearer ", "digest ", "dpop ", "hawk ", "negotiate ", "token ", "apikey "];

fn words_of(name: &str) -> Vec<String> {
    // `privateToken` and `private-token` are the same name.
    let mut spread = String::with_capacity(name.len() + 4);
    for (at, character) in name.char_indices() {
        if at > 0 && character.is_ascii_uppercase() && name.as_bytes()[at - 1].is_ascii_lowercase() {
            spread.push('-');
        }
        spread.push(character.to_ascii_lowercase());
    }
    let words = spread.split(|character: char| !character.is_ascii_alphanumeric());
    words.filter(|word| !word.is_empty()).map(ToOwned::to_owned).collect()
}

/// Whether a name says "credential", by the usual words or by some more.
fn is_credential_name(name: &str, more: &[&str]) -> bool {
    let words = words_of(name);
    if HARMLESS.contains(&words.concat().as_str()) {
        return false;
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let has = |list: &[&str]| words.iter().any(|word| list.contains(word));
    let of_account = words.windows(2).any(|pair| pair[1] == "key" && OF_KEYS.contains(&pair[0]));
    // Whatever is not known to be data is a maker's name: `x-rapidapi-key`.
    let of_somebody = match words.as_slice() {
        [.., of, "key"] => !OF_DATA.contains(of),
        [.., word] => *word != "key" && word.ends_with("key") && !NO_KEYS.contains(word),
        [] => false,
    };
    let token = words.iter().any(|word| word.ends_with("token"));
    of_account || of_somebody || token || has(WORDS) || has(more)
}

/// Whether a header carries a credential, by its name or by its value, which has no placeholder. Cookies are judged one by one.
#[must_use]
pub fn carries_credential(name: &HeaderName, value: &[u8]) -> bool {
    let scheme =
        |scheme: &&str| value.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme.as_bytes()));
    is_credential_header(name)
        || has_shape(value)
        || SCHEMES.iter().any(scheme)
        || *name == header::SEC_WEBSOCKET_PROTOCOL && is_credential_protocol(value)
}

/// Whether a header is one in which credentials are sent.
#[must_use]
pub fn is_credential_header(name: &HeaderName) -> bool {
    is_credential_name(name.as_str(), &[])
}

/// Whether one of the protocols of a WebSocket is a credential: browsers cannot send another header. Kubernetes' is
/// `base64url.bearer.authorization.k8s.io.<token>` (kubernetes/kubernetes#47740), others are like it.
fn is_credential_protocol(value: &[u8]) -> bool {
    let text = String::from_utf8_lossy(value);
    text.split(',').any(|protocol| is_credential_name(protocol, &[]) || looks_like_credential(protocol.as_bytes()))
}

/// The first cookie of a `cookie` header that is named like a credential, and whose value is no placeholder.
#[must_use]
pub fn credential_cookie(value: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(value);
    let cookies = text.split([';', ',']).map(|cookie| cookie.split_once('=').unwrap_or((cookie, "")));
    let plain = |name: &'_ str| -> String {
        let name = name.trim();
        let prefix = COOKIE_PREFIXES
            .iter()
            .rev()
            .find(|prefix| name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix)));
        name[prefix.map_or(0, |prefix| prefix.len())..].to_owned()
    };
    first(cookies.filter(|(_, value)| is_own(value)).map(|(name, _)| plain(name)))
}

/// Whether a value is more than a placeholder.
fn is_own(value: &str) -> bool {
    find(value.as_bytes()).is_empty()
}

/// The first parameter of a query or a form that is named like a credential or has the shape of one, and whose value is no
/// placeholder. Of a request that is `authorized` by a credential of the session, the name of a session is none.
#[must_use]
pub fn credential_parameter(query: &str, authorized: bool) -> Option<String> {
    let decoded = |text: &str| String::from_utf8_lossy(&decoded(text.as_bytes())).into_owned();
    let parameters: Vec<(String, String)> = query
        .split(['&', ';'])
        .map(|parameter| parameter.split_once('=').unwrap_or(("", parameter)))
        .filter(|(_, value)| !value.is_empty() && is_own(value))
        .map(|(name, value)| (decoded(name), decoded(value)))
        .collect();
    // `key` alone says nothing, unless its value does.
    let shown = |(name, value): &&(String, String)| {
        has_shape(value.as_bytes()) || name == "key" && looks_like_credential(value.as_bytes())
    };
    let is_session = |name: &str| authorized && SESSION_IDS.contains(&words_of(name).concat().as_str());
    let named = first(parameters.iter().filter(|(name, _)| !is_session(name)).map(|(name, _)| name.clone()));
    named.or_else(|| parameters.iter().find(shown).map(|(name, _)| short(name)))
}

fn first(mut names: impl Iterator<Item = String>) -> Option<String> {
    names.find(|name| is_credential_name(name, SESSIONS)).map(|name| short(&name))
}

/// Shown to the program that sent it, and not without bound.
fn short(name: &str) -> String {
    name.chars().take(64).collect()
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

#[cfg(test)]
#[path = "foreign_tests.rs"]
mod tests;
