//! How the credentials of well-known makers look. Pure.

use memchr::memmem;

/// What follows a beginning.
#[derive(Debug, Clone, Copy)]
enum Rest {
    /// So many letters and digits, or more.
    Plain(usize),
    /// So many letters, digits, `-` and `_`, or more.
    Word(usize),
    /// The same, with a digit among them: the beginning is also that of usual words.
    Mixed(usize),
    /// Exactly so many upper-case letters and digits.
    Upper(usize),
    /// The other two parts of a JSON Web Token, without which it is any JSON in Base64, as a cursor in a list is.
    Token,
}

/// Beginnings, in their case. Most are in docs.github.com/code-security/secret-scanning/introduction/supported-secret-scanning-patterns.
const SHAPES: &[(&str, Rest)] = &[
    ("ghp_", Rest::Plain(16)),
    ("gho_", Rest::Plain(16)),
    ("ghu_", Rest::Plain(16)),
    ("ghs_", Rest::Plain(16)),
    ("ghr_", Rest::Plain(16)),
    ("github_pat_", Rest::Word(20)),
    ("glpat-", Rest::Word(16)),
    ("gldt-", Rest::Word(16)),
    ("glrt-", Rest::Word(16)),
    ("glptt-", Rest::Word(16)),
    ("glcbt-", Rest::Word(16)),
    ("glsoat-", Rest::Word(16)),
    ("npm_", Rest::Plain(20)),
    ("pypi-Ag", Rest::Word(30)),
    ("sk-", Rest::Mixed(20)),
    ("sk_live_", Rest::Plain(16)),
    ("rk_live_", Rest::Plain(16)),
    ("xoxb-", Rest::Word(16)),
    ("xoxp-", Rest::Word(16)),
    ("xoxa-", Rest::Word(16)),
    ("xoxs-", Rest::Word(16)),
    ("xapp-", Rest::Word(16)),
    ("AKIA", Rest::Upper(16)),
    ("ASIA", Rest::Upper(16)),
    ("eyJ", Rest::Token),
    ("dop_v1_", Rest::Plain(16)),
    ("hf_", Rest::Plain(20)),
    ("ya29.", Rest::Word(16)),
    ("AIza", Rest::Word(16)),
    ("hvs.", Rest::Word(16)),
    ("hvb.", Rest::Word(16)),
];
/// A run of characters so long that it is no user name.
const LONG: usize = 40;

/// Whether a text has something of such a shape, wherever in it.
#[must_use]
pub fn has_shape(text: &[u8]) -> bool {
    SHAPES.iter().any(|(beginning, rest)| {
        memmem::find_iter(text, beginning).any(|at| {
            let alone = at == 0 || !text[at - 1].is_ascii_alphanumeric();
            alone && rest.fits(&text[at + beginning.len()..])
        })
    })
}

impl Rest {
    fn fits(self, text: &[u8]) -> bool {
        let run = |fits: fn(&u8) -> bool| &text[..text.iter().position(|byte| !fits(byte)).unwrap_or(text.len())];
        match self {
            Self::Plain(length) => run(u8::is_ascii_alphanumeric).len() >= length,
            Self::Word(length) => run(is_word).len() >= length,
            Self::Mixed(length) => run(is_word).len() >= length && run(is_word).iter().any(u8::is_ascii_digit),
            Self::Upper(length) => {
                let run = run(u8::is_ascii_alphanumeric);
                run.len() == length && !run.iter().any(u8::is_ascii_lowercase)
            }
            Self::Token => {
                let mut parts = run(|byte| is_word(byte) || *byte == b'.').split(|byte| *byte == b'.');
                let (header, claims) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
                header.len() >= 8 && claims.len() >= 8 && parts.next().is_some()
            }
        }
    }
}

fn is_word(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')
}

/// Whether what stands beside a placeholder looks like a credential itself: nothing so long belongs there.
#[must_use]
pub fn looks_like_credential(text: &[u8]) -> bool {
    let part = |byte: &u8| is_word(byte) || matches!(byte, b'.' | b'+' | b'/');
    has_shape(text) || text.split(|byte| !part(byte)).any(|run| run.len() >= LONG)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("ghp_0123456789abcdef0123456789abcdef0123", true)]
    #[case("x ghp_0123456789abcdef", true)]
    #[case("a.ghp_0123456789abcdef", true)]
    #[case("github_pat_11ABCDEFG0123456789_abcdef", true)]
    #[case("glpat-0123456789abcdef0123", true)]
    #[case("AKIAIOSFODNN7EXAMPLE", true)]
    #[case("sk-ant-api03-abcdefghijklmnop", true)]
    #[case("xoxb-0123456789-0123456789", true)]
    #[case("eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl", true)]
    #[case("eyJhbGciOiJub25lIn0.eyJzdWIiOiIxMjM0In0.", true)]
    // A cursor, a region, a language, a word, a hash.
    #[case("eyJpZCI6MTIzNDU2Nzg5MCwib3JkZXIiOiJhc2MifQ==", false)]
    #[case("location=asia-northeast1-docker.pkg.dev", false)]
    #[case("sk-SK,sk;q=0.9", false)]
    #[case("sk-learn-without-any-number", false)]
    #[case("npm_config_registry_and_more", false)]
    #[case("hf_hub/0.23.0; python/3.10", false)]
    #[case("laghp_0123456789abcdef", false)]
    #[case("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", false)]
    fn shapes(#[case] text: &str, #[case] expected: bool) {
        assert_eq!(has_shape(text.as_bytes()), expected);
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
