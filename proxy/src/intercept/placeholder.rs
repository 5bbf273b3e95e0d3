//! Finds placeholders in parts of a request. Pure.

use std::ops::Range;

use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use longhand_protocol::egress::{PLACEHOLDER_LENGTH, PLACEHOLDER_PREFIX};
use memchr::memmem;
use zeroize::Zeroizing;

/// From how many characters behind the prefix on a text is taken for a placeholder, if a broken one: nobody writes so much
/// by chance.
const SUSPICIOUS: usize = 20;

/// Decodes what clients send, with or without padding.
pub(super) const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// What looks like a placeholder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Where, from the prefix to the last character that could belong to it.
    pub range: Range<usize>,
    /// Whether it has the length of one.
    pub whole: bool,
}

/// Everything in a text that looks like a placeholder.
#[must_use]
pub fn find(text: &[u8]) -> Vec<Found> {
    let prefix = PLACEHOLDER_PREFIX.as_bytes();
    let mut all = Vec::new();
    let mut at = 0;
    while let Some(start) = memmem::find(&text[at..], prefix) {
        let start = at + start;
        let tail = &text[start + prefix.len()..];
        let length = tail.iter().position(|byte| !is_token(*byte)).unwrap_or(tail.len());
        at = start + prefix.len() + length;
        if length >= SUSPICIOUS {
            all.push(Found { range: start..at, whole: length == PLACEHOLDER_LENGTH });
        }
    }
    all
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'
}

/// Whether a text has a placeholder behind an encoding, where it would not be replaced: percent-encoded, or in Base64.
#[must_use]
pub fn is_hidden_in(text: &[u8]) -> bool {
    let decoded = percent_decode(text);
    if decoded.len() != text.len() && find(&decoded).len() > find(text).len() {
        return true;
    }
    [text, &decoded].into_iter().any(in_base64)
}

fn in_base64(text: &[u8]) -> bool {
    let standard: Vec<u8> = text
        .iter()
        .map(|byte| match byte {
            b'-' => b'+',
            b'_' => b'/',
            other => *other,
        })
        .collect();
    standard
        .split(|byte| !(byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/')))
        .filter(|run| run.len() >= (PLACEHOLDER_PREFIX.len() + SUSPICIOUS) * 4 / 3)
        .any(|run| {
            (0..4).any(|offset| {
                let run = &run[offset..];
                // One character alone is no byte.
                let length = if run.len() % 4 == 1 { run.len() - 1 } else { run.len() };
                LENIENT.decode(&run[..length]).map(Zeroizing::new).is_ok_and(|decoded| !find(&decoded).is_empty())
            })
        })
}

/// Decodes what is percent-encoded, and leaves everything else.
#[must_use]
pub fn percent_decode(text: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, tail)) = rest.split_first() {
        let pair = (*first == b'%').then(|| tail.split_first_chunk::<2>()).flatten();
        let byte = pair.and_then(|(digits, after)| {
            let text = std::str::from_utf8(digits).ok().filter(|text| !text.starts_with('+'))?;
            Some((u8::from_str_radix(text, 16).ok()?, after))
        });
        match byte {
            Some((byte, after)) => {
                decoded.push(byte);
                rest = after;
            }
            None => {
                decoded.push(*first);
                rest = tail;
            }
        }
    }
    decoded
}

/// Looks for placeholders in a stream, however it is cut into pieces.
#[derive(Debug, Default)]
pub struct Scan {
    tail: Vec<u8>,
}

impl Scan {
    /// Whether the stream has shown a placeholder by now. What goes on before it is known to be one is too little of it to be
    /// of use to anybody.
    pub fn feed(&mut self, piece: &[u8]) -> bool {
        let keep = PLACEHOLDER_PREFIX.len() + SUSPICIOUS - 1;
        let head = &piece[..piece.len().min(keep)];
        self.tail.extend_from_slice(head);
        if !find(&self.tail).is_empty() || !find(piece).is_empty() {
            return true;
        }
        if piece.len() > keep {
            self.tail.clear();
            self.tail.extend_from_slice(&piece[piece.len() - keep..]);
        } else {
            self.tail.drain(..self.tail.len().saturating_sub(keep));
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    const ONE: &str = "lhp_E85lv-r9mTODgSjNknpv6sYoG4HvyRaA3gKloTDAnJQ";

    #[rstest]
    #[case("", &[])]
    #[case("lhp_", &[])]
    #[case("lhp_short", &[])]
    #[case("Bearer lhp_E85lv-r9mTODgSjNknpv6sYoG4HvyRaA3gKloTDAnJQ", &[(7..54, true)])]
    #[case("lhp_E85lv-r9mTODgSjNknpv6sYoG4HvyRaA3gKloTDAnJ", &[(0..46, false)])]
    #[case("lhp_E85lv-r9mTODgSjNknpv6sYoG4HvyRaA3gKloTDAnJQx", &[(0..48, false)])]
    fn what_is_found(#[case] text: &str, #[case] expected: &[(Range<usize>, bool)]) {
        let found: Vec<_> = find(text.as_bytes()).into_iter().map(|found| (found.range, found.whole)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn encodings_do_not_hide_it() {
        for before in ["", "x", "xy", "xyz"] {
            let text = format!("{before}{ONE}:more");
            for hidden in [
                STANDARD.encode(&text),
                URL_SAFE_NO_PAD.encode(&text),
                format!("a={}&b", STANDARD.encode(&text).replace('=', "%3D")),
                text.replace('_', "%5F"),
                text.replace("lhp", "%6c%68%70"),
            ] {
                assert!(is_hidden_in(hidden.as_bytes()), "{hidden}");
            }
        }
        assert!(!is_hidden_in(ONE.as_bytes()));
        assert!(!is_hidden_in(b"q=%20x&y=aGVsbG8gd29ybGQgaGVsbG8gd29ybGQgaGVsbG8gd29ybGQ"));
    }

    proptest! {
        #[test]
        fn a_stream_shows_it_however_it_is_cut(before in "[a-z_]{0,30}", after in " ?[a-z]{0,30}", size in 1_usize..40) {
            let text = format!("{before}{ONE}{after}");
            let mut scan = Scan::default();
            prop_assert!(text.as_bytes().chunks(size).any(|piece| scan.feed(piece)));
            let mut scan = Scan::default();
            prop_assert!(!before.as_bytes().chunks(size).any(|piece| scan.feed(piece)));
        }

        #[test]
        fn nothing_makes_it_panic(text: Vec<u8>) {
            for found in find(&text) {
                prop_assert!(found.range.end <= text.len());
            }
            let _ = is_hidden_in(&text);
        }
    }
}
