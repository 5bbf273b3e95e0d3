//! A secret text that is looked for, also where it was encoded.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};

/// A text, and what it becomes in Base64 (wherever in the encoded data it begins), in hex and in a URL.
#[derive(Clone, Debug)]
pub struct Needle {
    forms: Vec<String>,
}

impl Needle {
    /// Looks for this text.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let hex: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        let url =
            text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") });
        let mut forms = vec![text.to_owned(), hex.to_uppercase(), hex, url.collect()];
        for before in 0..3_usize {
            let bytes = [&vec![0; before][..], text.as_bytes()].concat();
            // The first and the last letter may have bits of what is around the text.
            let (from, to) = ((before * 8).div_ceil(6), bytes.len() * 8 / 6);
            forms.extend([&STANDARD, &URL_SAFE].map(|engine| engine.encode(&bytes)[from..to].to_owned()));
        }
        forms.sort();
        forms.dedup();
        Self { forms }
    }

    /// Whether it is in these bytes.
    #[must_use]
    pub fn is_in(&self, bytes: impl AsRef<[u8]>) -> bool {
        self.forms.iter().any(|form| memchr::memmem::find(bytes.as_ref(), form.as_bytes()).is_some())
    }

    /// What finds it, for `grep -E`. It does not match itself.
    #[must_use]
    pub fn pattern(&self) -> String {
        let form = |form: &String| {
            form.chars()
                .map(|letter| {
                    if letter.is_ascii_alphanumeric() || letter == '-' {
                        letter.to_string()
                    } else {
                        format!("[{letter}]")
                    }
                })
                .collect::<String>()
        };
        let hidden = |form: String| {
            let (first, rest) = form.split_at(1);
            if first == "[" { form } else { format!("[{first}]{rest}") }
        };
        self.forms.iter().map(form).map(hidden).collect::<Vec<_>>().join("|")
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    use super::Needle;

    const TEXT: &str = "sk-e2e-0123456789abcdef?";

    fn grep(pattern: &str, text: &str) -> bool {
        let mut grep = Command::new("grep").args(["-qE", pattern]).stdin(Stdio::piped()).spawn().unwrap();
        grep.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        grep.wait().unwrap().success()
    }

    #[test]
    fn it_is_found_however_it_was_encoded() {
        let needle = Needle::new(TEXT);
        let mut texts = vec![format!("x{TEXT}y"), "736b2d6532652d303132333435363738396162636465663f".to_owned()];
        texts.push("736B2D6532652D303132333435363738396162636465663F".to_owned());
        texts.push("a=sk-e2e-0123456789abcdef%3F&b".to_owned());
        for before in ["", "a", "ab", "abc", "user:"] {
            texts.push(STANDARD.encode(format!("{before}{TEXT}")));
            texts.push(STANDARD.encode(format!("{before}{TEXT} and more")));
        }
        for text in texts {
            assert!(needle.is_in(&text), "{text}");
            assert!(grep(&needle.pattern(), &text), "{text}");
        }
        let other = TEXT.replace('0', "1");
        assert!(!needle.is_in(&other) && !needle.is_in(STANDARD.encode(other)));
        assert!(!needle.is_in(needle.pattern()) && !grep(&needle.pattern(), &needle.pattern()));
    }
}
