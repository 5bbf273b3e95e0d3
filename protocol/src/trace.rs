//! Where a piece of work stands in a trace, as W3C Trace Context writes it: <https://www.w3.org/TR/trace-context/>.
//!
//! Whoever sends a request says by [`HEADER`] what it belongs to. What outlives a request keeps it: a wake key, so that the
//! turn that it wakes belongs to the trace of who has sent the message, and a `Sandbox`.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

/// The header.
pub const HEADER: &str = "traceparent";
/// The length of the text of version 00.
const LENGTH: usize = 55;
const SAMPLED: u8 = 1;

/// A span of a trace, which others can be children of.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TraceParent {
    trace: u128,
    span: u64,
    sampled: bool,
}

/// A text that is no `traceparent`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a traceparent of W3C Trace Context: 00-<32 hex digits>-<16 hex digits>-<2 hex digits>")]
pub struct NotATraceParent;

impl TraceParent {
    /// This span of this trace; `None` if either is zero, which is none.
    #[must_use]
    pub const fn new(trace: u128, span: u64, sampled: bool) -> Option<Self> {
        if trace == 0 || span == 0 { None } else { Some(Self { trace, span, sampled }) }
    }

    /// The trace.
    #[must_use]
    pub const fn trace(&self) -> u128 {
        self.trace
    }

    /// The span in it.
    #[must_use]
    pub const fn span(&self) -> u64 {
        self.span
    }

    /// Whether the trace is recorded.
    #[must_use]
    pub const fn is_sampled(&self) -> bool {
        self.sampled
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, u8::from(self.sampled))
    }
}

impl fmt::Debug for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for TraceParent {
    type Err = NotATraceParent;

    fn from_str(text: &str) -> Result<Self, NotATraceParent> {
        let mut parts = text.splitn(5, '-');
        let mut digits = |length: usize| {
            let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
            parts.next().filter(|part| part.len() == length && part.bytes().all(hex)).ok_or(NotATraceParent)
        };
        let (version, trace, span, flags) = (digits(2)?, digits(32)?, digits(16)?, digits(2)?);
        // A version to come may say more; 00 has nothing after the flags, and ff is none.
        if version == "ff" || (version == "00" && text.len() != LENGTH) {
            return Err(NotATraceParent);
        }
        let trace = u128::from_str_radix(trace, 16).map_err(|_| NotATraceParent)?;
        let span = u64::from_str_radix(span, 16).map_err(|_| NotATraceParent)?;
        let flags = u8::from_str_radix(flags, 16).map_err(|_| NotATraceParent)?;
        Self::new(trace, span, flags & SAMPLED != 0).ok_or(NotATraceParent)
    }
}

impl TryFrom<String> for TraceParent {
    type Error = NotATraceParent;

    fn try_from(text: String) -> Result<Self, NotATraceParent> {
        text.parse()
    }
}

impl From<TraceParent> for String {
    fn from(parent: TraceParent) -> Self {
        parent.to_string()
    }
}

/// Knows the span that runs now.
pub type Source = fn() -> Option<TraceParent>;

/// Like the subscriber of `tracing`, there is one for a process.
static SOURCE: OnceLock<Source> = OnceLock::new();

/// Has [`current`] ask `source` from now on. Only the first call of a process has an effect.
pub fn set_source(source: Source) {
    _ = SOURCE.set(source);
}

/// The span that runs now, if this process traces.
#[must_use]
pub fn current() -> Option<TraceParent> {
    SOURCE.get().and_then(|source| source())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};
    use rstest::rstest;

    use super::{NotATraceParent, TraceParent};

    const TEXT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[rstest]
    #[case("")]
    #[case("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7")]
    #[case("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more")]
    #[case("ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")]
    #[case("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01")]
    #[case("00-00000000000000000000000000000000-00f067aa0ba902b7-01")]
    #[case("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01")]
    #[case("00-4bf92f3577b34da6a3ce929d0e0e473-600f067aa0ba902b7-01")]
    #[case("00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")]
    #[case("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-é1")]
    fn what_is_none_is_refused(#[case] text: &str) {
        assert_eq!(text.parse::<TraceParent>(), Err(NotATraceParent));
    }

    #[test]
    fn a_version_to_come_is_read_as_far_as_it_is_known() {
        let parent: TraceParent = TEXT.parse().unwrap();
        assert!(parent.is_sampled());
        assert_eq!(TEXT.replacen("00", "01", 1).parse(), Ok(parent));
        assert_eq!(format!("cc{}-what-else", &TEXT[2..]).parse(), Ok(parent));
        assert!(!TEXT.replace("-01", "-02").parse::<TraceParent>().unwrap().is_sampled());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(trace in 1_u128.., span in 1_u64.., sampled in any::<bool>()) {
            let parent = TraceParent::new(trace, span, sampled).unwrap();
            assert_eq!(parent.to_string().parse(), Ok(parent));
            assert_eq!(serde_json::from_str::<TraceParent>(&format!("\"{parent}\"")).unwrap(), parent);
        }
    }
}
