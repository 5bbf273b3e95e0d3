//! Puts values in the place of placeholders, once the judge has allowed it. Pure.

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Uri, uri::PathAndQuery};
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

/// Why nothing is placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotPlaced {
    /// A placeholder that stands for no value that may be placed here.
    Unresolved,
    /// More than there is room for: a value may be much longer than what stands for it.
    TooLarge,
    /// A header would not be one with the value in it.
    Unfit,
}

/// What a request may grow by, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Growth(pub usize);

/// Places values into the headers.
///
/// # Errors
/// [`NotPlaced`].
pub fn into_headers(headers: &mut HeaderMap, placed: &[Placed<'_>], room: &mut Growth) -> Result<(), NotPlaced> {
    for (name, value) in headers.iter_mut() {
        let basic = basic(name, value);
        let text = basic.as_ref().map_or(value.as_bytes(), |decoded| decoded.as_slice());
        let filled = replaced(text, placed, room, |value| Zeroizing::new(value.to_vec()))?;
        let Some(filled) = filled else { continue };
        let whole = if basic.is_some() { encoded(&filled) } else { filled };
        *value = HeaderValue::from_maybe_shared(Bytes::from_owner(whole)).map_err(|_| NotPlaced::Unfit)?;
        value.set_sensitive(true);
    }
    Ok(())
}

fn encoded(pair: &[u8]) -> Zeroizing<Vec<u8>> {
    let encoded = Zeroizing::new(STANDARD.encode(pair));
    let mut whole = Zeroizing::new(Vec::with_capacity(6 + encoded.len()));
    whole.extend_from_slice(b"Basic ");
    whole.extend_from_slice(encoded.as_bytes());
    whole
}

/// Places values into a path and a query, which are zeroised when the last copy of them is dropped.
///
/// # Errors
/// [`NotPlaced`].
pub fn into_url(uri: &Uri, placed: &[Placed<'_>], room: &mut Growth) -> Result<PathAndQuery, NotPlaced> {
    let path = replaced(uri.path().as_bytes(), placed, room, url_component)?;
    let query = uri.query().map(|query| replaced(query.as_bytes(), placed, room, url_component)).transpose()?.flatten();
    if path.is_none() && query.is_none() {
        return uri.path_and_query().cloned().ok_or(NotPlaced::Unfit);
    }
    let path = path.as_ref().map_or(uri.path().as_bytes(), |path| path.as_slice());
    let query = query.as_ref().map(|query| query.as_slice()).or(uri.query().map(str::as_bytes));
    let mut whole = Zeroizing::new(Vec::with_capacity(path.len() + 1 + query.map_or(0, <[u8]>::len)));
    whole.extend_from_slice(path);
    if let Some(query) = query {
        whole.push(b'?');
        whole.extend_from_slice(query);
    }
    PathAndQuery::from_maybe_shared(Bytes::from_owner(whole)).map_err(|_| NotPlaced::Unfit)
}

/// Places values into a body, in the way that its type writes them: nothing, if it has no placeholder.
///
/// # Errors
/// [`NotPlaced::Unresolved`] and [`NotPlaced::TooLarge`].
pub fn into_body(
    body: &[u8],
    content_type: &str,
    placed: &[Placed<'_>],
    room: &mut Growth,
) -> Result<Option<Zeroizing<Vec<u8>>>, NotPlaced> {
    match media_type(content_type).as_str() {
        FORM => replaced(body, placed, room, url_component),
        kind if kind == "application/json" || kind.ends_with("+json") => replaced(body, placed, room, json_string),
        _ => replaced(body, placed, room, |value| Zeroizing::new(value.to_vec())),
    }
}

const FORM: &str = "application/x-www-form-urlencoded";

/// Whether a body is a form, which has parameters as a query has.
#[must_use]
pub fn is_form(content_type: &str) -> bool {
    media_type(content_type) == FORM
}

fn media_type(content_type: &str) -> String {
    content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

fn replaced(
    text: &[u8],
    placed: &[Placed<'_>],
    room: &mut Growth,
    encode: impl Fn(&[u8]) -> Zeroizing<Vec<u8>>,
) -> Result<Option<Zeroizing<Vec<u8>>>, NotPlaced> {
    let found = find(text);
    if found.is_empty() {
        return Ok(None);
    }
    // Each value once, however often it is asked for.
    let mut values: Vec<Option<Zeroizing<Vec<u8>>>> = placed.iter().map(|_| None).collect();
    let mut parts = Vec::with_capacity(found.len());
    let mut length = text.len();
    for found in &found {
        let place = &text[found.range.clone()];
        let number = placed.iter().position(|value| value.placeholder.as_bytes() == place);
        let number = number.ok_or(NotPlaced::Unresolved)?;
        let value = values[number].get_or_insert_with(|| encode(placed[number].secret.expose()));
        length = length - place.len() + value.len();
        parts.push(number);
    }
    room.0 = room.0.checked_sub(length.saturating_sub(text.len())).ok_or(NotPlaced::TooLarge)?;
    // Space for all of it, so that no copy is left behind by growing.
    let mut whole = Zeroizing::new(Vec::with_capacity(length));
    let mut at = 0;
    for (found, number) in found.iter().zip(parts) {
        whole.extend_from_slice(&text[at..found.range.start]);
        whole.extend_from_slice(values[number].as_deref().map(Vec::as_slice).unwrap_or_default());
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
    const ROOM: Growth = Growth(1024);

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
        into_headers(&mut headers, &[Placed { placeholder: ONE, secret: &secret }], &mut { ROOM }).unwrap();
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
        let into_body = |body: &[u8], placed: &[Placed<'_>]| into_body(body, kind, placed, &mut { ROOM });
        let filled = into_body(body.as_bytes(), &placed).unwrap().unwrap();
        assert_eq!(String::from_utf8_lossy(&filled), expected);
        assert_eq!(into_body(body.as_bytes(), &[]), Err(NotPlaced::Unresolved));
        assert_eq!(into_body(b"nothing", &placed), Ok(None));
    }

    #[test]
    fn urls_are_filled() {
        let secret = Secret::of("va\"l/ue +1");
        let placed = [Placed { placeholder: ONE, secret: &secret }];
        let filled = |uri: &str| into_url(&uri.parse().unwrap(), &placed, &mut { ROOM }).unwrap().to_string();
        assert_eq!(filled("/bot"), "/bot");
        assert_eq!(filled("/bot?"), "/bot?");
        assert_eq!(filled(&format!("/bot{ONE}/x?y")), "/botva%22l%2Fue%20%2B1/x?y");
        assert_eq!(filled(&format!("/x?key={ONE}&x")), "/x?key=va%22l%2Fue%20%2B1&x");
    }

    #[test]
    fn a_request_grows_so_far_and_no_further() {
        let secret = Secret::of(&"v".repeat(1_000));
        let placed = [Placed { placeholder: ONE, secret: &secret }];
        let more = 1_000 - ONE.len();
        let body = format!("{ONE} {ONE}");
        for (room, fits) in [(2 * more, true), (2 * more - 1, false)] {
            let room = || Growth(room);
            assert_eq!(into_body(body.as_bytes(), "", &placed, &mut room()).is_ok(), fits);
            let uri = format!("/{ONE}?{ONE}").parse().unwrap();
            assert_eq!(into_url(&uri, &placed, &mut room()).is_ok(), fits);
            let mut all = headers("x-one", ONE);
            all.append("x-two", ONE.parse().unwrap());
            assert_eq!(into_headers(&mut all, &placed, &mut room()).is_ok(), fits);
        }
    }
}
