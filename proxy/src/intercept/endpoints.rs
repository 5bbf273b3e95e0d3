//! Which endpoint a path means: what a server could take it for, however it is written. Pure.

use http::Method;

use super::placeholder::percent_decode;

/// How often a path is decoded: servers behind servers decode what was decoded already.
const DECODED: usize = 4;
/// What frameworks cut off the end of a path, as the format of the answer.
const FORMATS: &[&str] = &[".json", ".xml"];

/// Paths that match a pattern, for some methods.
#[derive(Debug, Clone, Copy)]
pub struct Endpoint {
    /// None: any method.
    pub methods: &'static [Method],
    /// In lower case. `*` is one segment, `*x` one that ends with `x`, `**` any number of segments.
    pub path: &'static str,
}

/// A path in the one form in which it is compared with known endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meaning {
    segments: Vec<String>,
}

impl Meaning {
    /// Reads a path as the most lenient server would: decoded, in lower case, without empty segments, parameters behind `;`,
    /// white space around segments, and a format at its end.
    #[must_use]
    pub fn of(path: &str) -> Self {
        let decoded = decoded(path.as_bytes());
        let text = String::from_utf8_lossy(&decoded).to_ascii_lowercase().replace('\\', "/");
        let plain = |segment: &str| segment.split(';').next().unwrap_or_default().trim().to_owned();
        let mut segments: Vec<String> = text.split('/').map(plain).filter(|segment| !segment.is_empty()).collect();
        if let Some(last) = segments.last_mut()
            && let Some(end) = FORMATS.iter().find_map(|format| last.strip_suffix(format)).map(str::len)
            && end > 0
        {
            last.truncate(end);
        }
        Self { segments }
    }

    /// Whether it may be that of an endpoint.
    #[must_use]
    pub fn is(&self, endpoint: &Endpoint, method: &Method) -> bool {
        (endpoint.methods.is_empty() || endpoint.methods.contains(method)) && self.matches(endpoint.path)
    }

    /// Whether a pattern covers it.
    #[must_use]
    pub fn matches(&self, pattern: &str) -> bool {
        covers(&pattern.split('/').collect::<Vec<_>>(), &self.segments)
    }

    /// Its segments.
    pub fn segments(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.segments.iter().map(String::as_str)
    }
}

/// Decodes what is percent-encoded, also what is so behind an encoding.
#[must_use]
pub fn decoded(text: &[u8]) -> Vec<u8> {
    let mut decoded = percent_decode(text);
    for _ in 1..DECODED {
        decoded = percent_decode(&decoded);
    }
    decoded
}

fn covers(pattern: &[&str], segments: &[String]) -> bool {
    match pattern.split_first() {
        None => segments.is_empty(),
        Some((&"**", rest)) => (0..=segments.len()).any(|skipped| covers(rest, &segments[skipped..])),
        Some((part, rest)) => segments.split_first().is_some_and(|(segment, tail)| {
            let same = match part.strip_prefix('*') {
                Some(end) => segment.ends_with(end),
                None => segment == part,
            };
            same && covers(rest, tail)
        }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("/a/b")]
    #[case("/A//b/")]
    #[case("/%61/%42")]
    #[case("/%2561/b")]
    #[case("/%252561/b")]
    #[case("/a%2fb")]
    #[case("/a\\b")]
    #[case("/a;x=1/b;y")]
    #[case("/a/b%20")]
    #[case("/a/b.json")]
    #[case("/a/b%2EJSON")]
    fn one_path_in_many_forms(#[case] path: &str) {
        assert_eq!(Meaning::of(path), Meaning::of("/a/b"));
    }

    #[rstest]
    #[case("a/*", "/a/b", true)]
    #[case("a/*", "/a", false)]
    #[case("a/*", "/a/b/c", false)]
    #[case("**/b", "/a/x/b", true)]
    #[case("**/b", "/b", true)]
    #[case("a/**", "/a", true)]
    #[case("**/*:sign", "/x/y:sign", true)]
    #[case("**/*:sign", "/x/y:design", false)]
    #[case(".json", "/.json", true)]
    fn patterns(#[case] pattern: &str, #[case] path: &str, #[case] expected: bool) {
        assert_eq!(Meaning::of(path).matches(pattern), expected);
    }

    proptest! {
        #[test]
        fn however_much_is_encoded_the_meaning_is_the_same(path in "(/[a-z]{1,6}){1,4}", which: u64, twice: bool) {
            let encode = |(at, byte): (usize, u8)| {
                let sign = if twice { "%25" } else { "%" };
                if which >> (at % 64) & 1 == 1 { format!("{sign}{byte:02X}") } else { char::from(byte).to_string() }
            };
            let encoded: String = path.bytes().enumerate().map(encode).collect();
            prop_assert_eq!(Meaning::of(&encoded), Meaning::of(&path));
        }

        #[test]
        fn nothing_makes_it_panic(path in "\\PC{0,60}") {
            let _ = Meaning::of(&path).matches("**/a/*/b");
        }
    }
}
