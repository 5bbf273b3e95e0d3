//! Takes values out of a stream, however it is cut into pieces. Pure.
//!
//! What is taken out is replaced by as many bytes, so that lengths, frames and ranges stay true. Only what could be the beginning
//! of a value is held back, which is never the end of a line or of an event.

use std::sync::Arc;

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};
use bytes::{Bytes, BytesMut};

use super::encodings::{Form, forms};

/// What stands in the place of a value, filled up to its length.
const REMOVED: &[u8] = b"[credential removed]";
/// What fills it up, and stands alone where it does not fit: a part of it could be the first letters of a value whose others
/// follow.
const FILL: u8 = b'*';
/// The shortest value that can be told from other text.
pub const MIN_VALUE: usize = 8;
/// The longest value that is looked for: its forms are kept in memory.
pub const MAX_VALUE: usize = 8 * 1024;

/// The letters of all forms up to which the fastest search is used: it takes half a kilobyte for each (a table of 128 classes of
/// bytes), and the process has 128 MiB.
const FAST: usize = 4 * 1024;

/// Why values cannot be looked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unscrubbable {
    /// A value that would be found by chance.
    #[error("a value shorter than {MIN_VALUE} characters could not be told from other text in a response")]
    TooShort,
    /// A value that is too long.
    #[error("a value longer than {MAX_VALUE} characters is not looked for in responses")]
    TooLong,
    /// More than the search can hold.
    #[error("there are too many values to look for")]
    TooMany,
}

/// Whether a value can be looked for.
///
/// # Errors
/// [`Unscrubbable`] says why not.
pub fn fits(value: &[u8]) -> Result<(), Unscrubbable> {
    match value.len() {
        0..MIN_VALUE => Err(Unscrubbable::TooShort),
        MIN_VALUE..=MAX_VALUE => Ok(()),
        _ => Err(Unscrubbable::TooLong),
    }
}

/// The values to look for; none by default.
#[derive(Clone, Default)]
pub struct Values {
    inner: Option<Arc<Search>>,
}

struct Search {
    automaton: AhoCorasick,
    forms: Vec<Form>,
    longest: usize,
    /// The bytes that a form begins with.
    first: [bool; 256],
}

impl Values {
    /// Looks for these values in each of their [`forms`].
    ///
    /// # Errors
    /// [`Unscrubbable`], for the first value that cannot be looked for.
    pub fn new<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, Unscrubbable> {
        let mut all: Vec<Form> = Vec::new();
        for value in values {
            fits(value)?;
            all.extend(forms(value));
        }
        if all.is_empty() {
            return Ok(Self { inner: None });
        }
        all.sort_by(|one, other| one.as_slice().cmp(other.as_slice()));
        all.dedup();
        let letters: usize = all.iter().map(|form| form.len()).sum();
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .kind((letters > FAST).then_some(AhoCorasickKind::ContiguousNFA))
            .build(all.iter().map(|form| form.as_slice()))
            .map_err(|_| Unscrubbable::TooMany)?;
        let mut first = [false; 256];
        for byte in all.iter().filter_map(|form| form.first()) {
            first[usize::from(*byte)] = true;
        }
        let longest = all.iter().map(|form| form.len()).max().unwrap_or_default();
        Ok(Self { inner: Some(Arc::new(Search { automaton, forms: all, longest, first })) })
    }

    /// Whether there is nothing to look for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.inner.is_none()
    }

    /// A whole text without the values, or nothing if it has none.
    #[must_use]
    pub fn scrub(&self, text: &[u8]) -> Option<Bytes> {
        let search = self.inner.as_ref()?;
        search.automaton.is_match(text).then(|| {
            let mut clean = BytesMut::from(text);
            let _ = search.replace(&mut clean, true);
            clean.freeze()
        })
    }

    /// Begins with a stream.
    #[must_use]
    pub fn stream(&self) -> Scrubber {
        Scrubber { values: self.clone(), held: BytesMut::new() }
    }
}

impl Search {
    /// Replaces in place what is surely a value, and says where what may become one begins.
    fn replace(&self, text: &mut [u8], last: bool) -> usize {
        let mut at = 0;
        loop {
            let open = if last { text.len() } else { self.open(text, at) };
            match self.automaton.find(&text[at..]) {
                Some(found) if at + found.start() < open => {
                    let place = &mut text[at + found.start()..at + found.end()];
                    place.fill(FILL);
                    if let Some(text) = place.get_mut(..REMOVED.len()) {
                        text.copy_from_slice(REMOVED);
                    }
                    at += found.end();
                }
                _ => return open,
            }
        }
    }

    /// The first place, not before `from`, from which the text to its end is the beginning of a form.
    fn open(&self, text: &[u8], from: usize) -> usize {
        let earliest = from.max(text.len().saturating_sub(self.longest - 1));
        (earliest..text.len())
            .find(|at| {
                self.first[usize::from(text[*at])]
                    && self.forms.iter().any(|form| form.len() > text.len() - at && form.starts_with(&text[*at..]))
            })
            .unwrap_or(text.len())
    }
}

/// A stream on its way. It holds less than the longest form of a value.
pub struct Scrubber {
    values: Values,
    held: BytesMut,
}

impl Scrubber {
    /// Takes a piece, and gives what can go on.
    pub fn feed(&mut self, piece: Bytes) -> Bytes {
        let Some(search) = &self.values.inner else { return piece };
        if self.held.is_empty() && !search.automaton.is_match(&piece) {
            let open = search.open(&piece, 0);
            self.held.extend_from_slice(&piece[open..]);
            return piece.slice(..open);
        }
        self.held.extend_from_slice(&piece);
        let open = search.replace(&mut self.held, false);
        self.held.split_to(open).freeze()
    }

    /// How many bytes are held back.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// What was held back, once nothing follows.
    pub fn finish(&mut self) -> Bytes {
        let mut rest = self.held.split();
        if let Some(search) = &self.values.inner {
            let _ = search.replace(&mut rest, true);
        }
        rest.freeze()
    }
}

#[cfg(test)]
mod tests {
    use base64::{Engine, engine::general_purpose::STANDARD};
    use proptest::prelude::*;

    use super::*;

    const VALUE: &str = "tok/en+0123456789";

    fn values(all: &[&str]) -> Values {
        Values::new(all.iter().map(|value| value.as_bytes())).unwrap()
    }

    fn run(values: &Values, pieces: &[&[u8]]) -> Vec<u8> {
        let mut scrubber = values.stream();
        let mut out = Vec::new();
        for piece in pieces {
            out.extend_from_slice(&scrubber.feed(Bytes::copy_from_slice(piece)));
            assert!(scrubber.held.len() < MAX_VALUE * 6);
        }
        out.extend_from_slice(&scrubber.finish());
        out
    }

    fn has(text: &[u8], value: &str) -> bool {
        forms(value.as_bytes()).iter().any(|form| text.windows(form.len()).any(|window| window == form.as_slice()))
    }

    #[test]
    fn the_search_for_the_longest_value_takes_little_memory() {
        let value: String = (0..MAX_VALUE).map(|at| char::from(b'!' + u8::try_from(at * 7 % 90).unwrap())).collect();
        let values = values(&[&value]);
        let used = values.inner.as_ref().unwrap().automaton.memory_usage();
        assert!(used < 8 * 1024 * 1024, "{used} bytes");
        assert!(!has(&run(&values, &[b"a", value.as_bytes()]), &value));
    }

    #[test]
    fn a_value_becomes_a_text_of_its_length() {
        let clean = run(&values(&[VALUE]), &[b"a", VALUE.as_bytes(), b"b"]);
        assert_eq!(clean, b"a*****************b");
        let long = "0123456789".repeat(3);
        assert_eq!(run(&values(&[&long]), &[long.as_bytes()]), b"[credential removed]**********");
    }

    #[test]
    fn the_end_of_an_event_is_not_held_back() {
        let mut scrubber = values(&[VALUE]).stream();
        let event = Bytes::from_static(b"data: {\"t\":\"tok\"}\n\n");
        assert_eq!(scrubber.feed(event.clone()), event);
        assert_eq!(scrubber.feed(Bytes::from_static(b"data: tok")), "data: ");
        assert_eq!(scrubber.feed(Bytes::from_static(b"ay\n\n")), "tokay\n\n");
    }

    #[test]
    fn what_stands_for_one_value_does_not_begin_another() {
        let clean = run(&values(&["aaaaaaab", VALUE]), &[b"aaaaaaab", &VALUE.as_bytes()[1..]]);
        assert_eq!(clean, b"********ok/en+0123456789");
    }

    #[test]
    fn the_end_of_a_stream_is_not_lost() {
        assert_eq!(run(&values(&[VALUE]), &[b"data tok/en+01234567"]), b"data tok/en+01234567");
    }

    #[test]
    fn values_that_cannot_be_told_are_refused() {
        assert_eq!(Values::new([&b"short"[..]]).err(), Some(Unscrubbable::TooShort));
        assert_eq!(Values::new([&[b'x'; MAX_VALUE + 1][..]]).err(), Some(Unscrubbable::TooLong));
        assert!(Values::new([]).unwrap().is_empty());
    }

    /// Texts of what is near a value, in every form.
    fn text() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            Just(VALUE.as_bytes().to_vec()),
            Just(b"aaaaaaab".to_vec()),
            (0..VALUE.len()).prop_map(|cut| VALUE.as_bytes()[..cut].to_vec()),
            (0..VALUE.len()).prop_map(|cut| VALUE.as_bytes()[cut..].to_vec()),
            "[a-z]{0,3}".prop_map(|user| STANDARD.encode(format!("{user}:{VALUE}")).into_bytes()),
            any::<prop::sample::Index>().prop_map(|form| {
                let forms = forms(VALUE.as_bytes());
                form.get(&forms).to_vec()
            }),
            "[a%/\\\\t]{0,6}".prop_map(String::into_bytes),
        ];
        prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn any_cut_gives_the_same_and_nothing_gets_through(
            text in text(),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let values = values(&[VALUE, "aaaaaaab"]);
            let whole = run(&values, &[&text]);
            let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
            places.sort_unstable();
            let mut pieces = Vec::new();
            let mut from = 0;
            for place in places {
                pieces.push(&text[from..place]);
                from = place;
            }
            pieces.push(&text[from..]);
            prop_assert_eq!(&run(&values, &pieces), &whole);
            prop_assert_eq!(whole.len(), text.len());
            prop_assert!(!has(&whole, VALUE) && !has(&whole, "aaaaaaab"));
            let one_by_one: Vec<&[u8]> = text.chunks(1).collect();
            prop_assert_eq!(&run(&values, &one_by_one), &whole);
        }
    }
}
