//! Puts values in the place of placeholders, once the judge has allowed it. Pure.

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header::InvalidHeaderValue};
use zeroize::Zeroizing;

use super::{
    encodings::{json_string, url_component},
    judge::basic,
    placeholder::find,
};
use crate::secret::Secret;

/// A value and what stands for it.
pub struct Placed<'a> {
    /// What stands for it.
    pub placeholder: &'a str,
    /// The value.
    pub secret: &'a Secret,
}

/// A placeholder that stands for no value that may be placed here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unresolved;

/// Places values into the headers.
///
/// # Errors
/// When a header would not be one with the value in it.
pub fn into_headers(headers: &mut HeaderMap, placed: &[Placed<'_>]) -> Result<(), InvalidHeaderValue> {
    for (name, value) in headers.iter_mut() {
        let changed = match basic(name, value) {
            Some(decoded) => match replaced(&decoded, placed, |value| Zeroizing::new(value.to_vec())) {
                Ok(Some(text)) => {
                    let encoded = Zeroizing::new(STANDARD.encode(&*text));
                    let mut whole = Zeroizing::new(Vec::with_capacity(6 + encoded.len()));
                    whole.extend_from_slice(b"Basic ");
                    whole.extend_from_slice(encoded.as_bytes());
                    Some(whole)
                }
                _ => None,
            },
            None => replaced(value.as_bytes(), placed, |value| Zeroizing::new(value.to_vec())).unwrap_or_default(),
        };
        if let Some(text) = changed {
            *value = HeaderValue::from_maybe_shared(Bytes::from_owner(text))?;
            value.set_sensitive(true);
        }
    }
    Ok(())
}

/// Places values into a path or a query.
#[must_use]
pub fn into_url(part: &str, placed: &[Placed<'_>]) -> Zeroizing<String> {
    let changed = replaced(part.as_bytes(), placed, url_component).ok().flatten();
    let text = changed.and_then(|text| std::str::from_utf8(&text).ok().map(|text| Zeroizing::new(text.to_owned())));
    text.unwrap_or_else(|| Zeroizing::new(part.to_owned()))
}

/// Places values into a body, in the way that its type writes them: nothing, if it has no placeholder.
///
/// # Errors
/// [`Unresolved`], for a placeholder of none of these.
pub fn into_body(
    body: &[u8],
    content_type: &str,
    placed: &[Placed<'_>],
) -> Result<Option<Zeroizing<Vec<u8>>>, Unresolved> {
    let kind = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match kind.as_str() {
        "application/x-www-form-urlencoded" => replaced(body, placed, url_component),
        kind if kind == "application/json" || kind.ends_with("+json") => replaced(body, placed, json_string),
        _ => replaced(body, placed, |value| Zeroizing::new(value.to_vec())),
    }
}

fn replaced(
    text: &[u8],
    placed: &[Placed<'_>],
    encode: impl Fn(&[u8]) -> Zeroizing<Vec<u8>>,
) -> Result<Option<Zeroizing<Vec<u8>>>, Unresolved> {
    let found = find(text);
    if found.is_empty() {
        return Ok(None);
    }
    let mut parts = Vec::with_capacity(found.len());
    for found in &found {
        let place = &text[found.range.clone()];
        let value = placed.iter().find(|value| value.placeholder.as_bytes() == place).ok_or(Unresolved)?;
        parts.push(encode(value.secret.expose()));
    }
    // Space for all of it, so that no copy is left behind by growing.
    let mut whole = Zeroizing::new(Vec::with_capacity(text.len() + parts.iter().map(|part| part.len()).sum::<usize>()));
    let mut at = 0;
    for (found, value) in found.iter().zip(&parts) {
        whole.extend_from_slice(&text[at..found.range.start]);
        whole.extend_from_slice(value);
        at = found.range.end;
    }
    whole.extend_from_slice(&text[at..]);
    Ok(Some(whole))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const ONE: &str = "lhp_E85lv-r9mTODgSjNknpv6sYoG4HvyRaA3gKloTDAnJQ";

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())])
    }

    #[rstest]
    #[case("authorization", format!("Bearer {ONE}"), "Bearer va\"l/ue +1")]
    #[case("private-token", ONE.to_owned(), "va\"l/ue +1")]
    #[case("authorization", format!("Basic {}", STANDARD.encode(format!("me:{ONE}"))), &format!("Basic {}", STANDARD.encode("me:va\"l/ue +1")))]
    #[case("authorization", format!("basic {}", STANDARD.encode(format!("{ONE}:"))), &format!("Basic {}", STANDARD.encode("va\"l/ue +1:")))]
    #[case("accept", "text/plain".to_owned(), "text/plain")]
    fn headers_are_filled(#[case] name: &'static str, #[case] value: String, #[case] expected: &str) {
        let secret = Secret::of("va\"l/ue +1");
        let mut headers = headers(name, &value);
        into_headers(&mut headers, &[Placed { placeholder: ONE, secret: &secret }]).unwrap();
        assert_eq!(headers[name], expected);
        assert_eq!(headers[name].is_sensitive(), value.as_bytes() != expected.as_bytes());
    }

    #[rstest]
    #[case("application/json", format!(r#"{{"t":"{ONE}"}}"#), r#"{"t":"va\"l/ue +1"}"#)]
    #[case("application/vnd.x+json; charset=utf-8", format!(r#"["{ONE}"]"#), r#"["va\"l/ue +1"]"#)]
    #[case("application/x-www-form-urlencoded", format!("a=b&t={ONE}"), "a=b&t=va%22l%2Fue%20%2B1")]
    #[case("text/plain", format!("{ONE} {ONE}"), "va\"l/ue +1 va\"l/ue +1")]
    fn bodies_are_filled_as_their_type_writes(#[case] kind: &str, #[case] body: String, #[case] expected: &str) {
        let secret = Secret::of("va\"l/ue +1");
        let placed = [Placed { placeholder: ONE, secret: &secret }];
        let filled = into_body(body.as_bytes(), kind, &placed).unwrap().unwrap();
        assert_eq!(String::from_utf8_lossy(&filled), expected);
        assert_eq!(into_body(body.as_bytes(), kind, &[]), Err(Unresolved));
        assert_eq!(into_body(b"nothing", kind, &placed), Ok(None));
    }

    #[test]
    fn urls_are_filled() {
        let secret = Secret::of("va\"l/ue +1");
        let placed = [Placed { placeholder: ONE, secret: &secret }];
        assert_eq!(&*into_url(&format!("/bot{}", ""), &placed), "/bot");
        assert_eq!(&*into_url(&format!("key={ONE}&x"), &placed), "key=va%22l%2Fue%20%2B1&x");
    }
}
