//! The forms in which a value may come back from an upstream that echoes it. Pure. What is looked for is a fixed list: a
//! server that transforms a value in a way that is not on it (compresses, encrypts or splits it) is not caught.

use base64::{
    Engine,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use zeroize::Zeroizing;

/// A form of a value, as bytes that are zeroised.
pub type Form = Zeroizing<Vec<u8>>;

const LOWER: &[u8; 16] = b"0123456789abcdef";
const UPPER: &[u8; 16] = b"0123456789ABCDEF";

/// Every form of a value that is looked for, without doubles: raw, Base64 (both alphabets, at each of the three offsets at which
/// it can begin inside a longer text), percent-encoded as the usual encoders do, hexadecimal, and as a JSON string.
#[must_use]
pub fn forms(value: &[u8]) -> Vec<Form> {
    let mut forms = vec![Zeroizing::new(value.to_vec())];
    for offset in 0..3 {
        forms.push(base64_core(&STANDARD_NO_PAD, value, offset));
        forms.push(base64_core(&URL_SAFE_NO_PAD, value, offset));
    }
    for digits in [LOWER, UPPER] {
        forms.push(each(value, |byte, out| hex(byte, digits, out)));
        // RFC 3986, a component as JavaScript encodes it, a whole URL, and every byte.
        for kept in ["-._~", "-._~!'()*", "-._~!'()*;/?:@&=+$,#", "/-._~"] {
            forms.push(percent(value, kept.as_bytes(), digits, b"%20"));
        }
        // A form.
        forms.push(percent(value, b"-._*", digits, b"+"));
        forms.push(each(value, |byte, out| {
            out.push(b'%');
            hex(byte, digits, out);
        }));
        // JSON: what must be escaped, what encoders escape for HTML or a slash, and every byte.
        for escaped in ["", "/", "<>&", "<>&'", "/<>&'"] {
            forms.push(json(value, escaped.as_bytes(), digits));
        }
        forms.push(each(value, |byte, out| unicode(byte, digits, out)));
    }
    forms.sort_by(|one, other| one.as_slice().cmp(other.as_slice()));
    forms.dedup();
    forms
}

/// The characters of a Base64 text that the value alone decides, when `offset` bytes (modulo 3) stand before it.
fn base64_core(engine: &impl Engine, value: &[u8], offset: usize) -> Form {
    let mut padded = Zeroizing::new(vec![0; offset]);
    padded.extend_from_slice(value);
    let encoded = Zeroizing::new(engine.encode(&*padded));
    let first = [0, 2, 3][offset];
    let last = padded.len() * 8 / 6;
    Zeroizing::new(encoded.as_bytes().get(first..last).unwrap_or_default().to_vec())
}

fn each(value: &[u8], mut encode: impl FnMut(u8, &mut Vec<u8>)) -> Form {
    // Six bytes are the longest form of one, so that no copy is left behind by growing.
    let mut out = Zeroizing::new(Vec::with_capacity(value.len() * 6));
    for byte in value {
        encode(*byte, &mut out);
    }
    out
}

fn hex(byte: u8, digits: &[u8; 16], out: &mut Vec<u8>) {
    out.extend([digits[usize::from(byte >> 4)], digits[usize::from(byte & 15)]]);
}

fn unicode(byte: u8, digits: &[u8; 16], out: &mut Vec<u8>) {
    out.extend_from_slice(b"\\u00");
    hex(byte, digits, out);
}

/// Percent-encodes everything but letters, digits and what is kept.
pub(super) fn percent(value: &[u8], kept: &[u8], digits: &[u8; 16], space: &[u8]) -> Form {
    each(value, |byte, out| {
        if byte.is_ascii_alphanumeric() || kept.contains(&byte) {
            out.push(byte);
        } else if byte == b' ' {
            out.extend_from_slice(space);
        } else {
            out.push(b'%');
            hex(byte, digits, out);
        }
    })
}

/// As a component of a URL.
#[must_use]
pub fn url_component(value: &[u8]) -> Form {
    percent(value, b"-._~", UPPER, b"%20")
}

/// As a part of a JSON string.
#[must_use]
pub fn json_string(value: &[u8]) -> Form {
    json(value, b"", LOWER)
}

fn json(value: &[u8], escaped: &[u8], digits: &[u8; 16]) -> Form {
    each(value, |byte, out| match byte {
        b'"' | b'\\' => out.extend([b'\\', byte]),
        b'/' if escaped.contains(&byte) => out.extend_from_slice(b"\\/"),
        byte if escaped.contains(&byte) => unicode(byte, digits, out),
        byte => out.push(byte),
    })
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    fn holds(value: &str, text: &str) -> bool {
        let text = text.as_bytes();
        forms(value.as_bytes()).iter().any(|form| text.windows(form.len()).any(|window| window == form.as_slice()))
    }

    #[test]
    fn each_usual_encoder_is_met() {
        let value = "s3cr/t+\"v\\l<ue> & '%x y=";
        for text in [
            value.to_owned(),
            serde_json::to_string(value).unwrap(),
            "s3cr\\/t+\\\"v\\\\l<ue> & '%x y=".to_owned(),
            "s3cr/t+\\\"v\\\\l\\u003cue\\u003e \\u0026 '%x y=".to_owned(),
            "s3cr%2Ft%2B%22v%5Cl%3Cue%3E%20%26%20%27%25x%20y%3D".to_owned(),
            "s3cr%2ft%2b%22v%5cl%3cue%3e%20%26%20%27%25x%20y%3d".to_owned(),
            "s3cr%2Ft%2B%22v%5Cl%3Cue%3E+%26+%27%25x+y%3D".to_owned(),
            value.bytes().map(|byte| format!("{byte:02x}")).collect(),
            value.bytes().map(|byte| format!("%{byte:02X}")).collect(),
            value.bytes().map(|byte| format!("\\u{byte:04x}")).collect(),
        ] {
            assert!(holds(value, &text), "{text}");
        }
    }

    #[test]
    fn base64_is_met_wherever_it_begins_and_ends() {
        let value = "ghp_0123456789abcdef";
        for before in 0..4 {
            for after in 0..4 {
                let text = [&"xyzw"[..before], value, &"klmn"[..after]].concat();
                assert!(holds(value, &STANDARD.encode(&text)), "{before} {after}");
                assert!(holds(value, &URL_SAFE_NO_PAD.encode(&text)), "{before} {after}");
            }
        }
    }

    #[test]
    fn a_plain_value_has_few_forms() {
        assert!(forms(b"ghp0123456789abcdef").len() <= 13, "{}", forms(b"ghp0123456789abcdef").len());
    }
}
