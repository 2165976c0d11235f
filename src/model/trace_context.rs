//! A position in a distributed trace, in the terms of W3C Trace Context and without a tracing
//! library.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

/// The bit of the flags that is set if the trace is recorded (W3C Trace Context §3.2.2.5).
const SAMPLED: u8 = 1;
/// Version 255 is invalid (W3C Trace Context §3.2.2.1).
const VERSION_MAX: u8 = 254;

/// A span that has ended and that later spans follow. Only sampled traces have one.
///
/// Its text is a `traceparent` of version 00 (W3C Trace Context §3.2.2). A clone shares the fields,
/// so that a notification without a trace stays small.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext(Arc<Fields>);

#[derive(Debug, PartialEq, Eq)]
struct Fields {
    trace_id: [u8; 16],
    span_id: [u8; 8],
    source: Source,
}

/// Where a [`TraceContext`] is from. It decides how later spans refer to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A delivery or a hint: later spans are its children.
    Received,
    /// The database. It may be days old, so later spans begin a trace that links to it.
    Stored,
    /// A span of this process, which ended at this time: later spans are its children.
    Ended(SystemTime),
}

impl TraceContext {
    /// Parses a `traceparent`. Returns `None` if it is invalid or not sampled.
    pub fn parse(traceparent: &str, source: Source) -> Option<Self> {
        let parts: Vec<_> = traceparent.trim().split_terminator('-').collect();
        let [version, trace_id, span_id, flags, ..] = parts[..] else {
            return None;
        };
        let version = u8::from_str_radix(version, 16).ok()?;
        // Later versions may append parts.
        if version > VERSION_MAX || (version == 0 && parts.len() != 4) {
            return None;
        }
        let has_capitals = |part: &str| part.bytes().any(|byte| byte.is_ascii_uppercase());
        if [trace_id, span_id, flags].into_iter().any(has_capitals) {
            return None;
        }
        let trace_id = u128::from_str_radix(trace_id, 16).ok()?;
        let span_id = u64::from_str_radix(span_id, 16).ok()?;
        let flags = u8::from_str_radix(flags, 16).ok()?;
        // Ids of zeros are invalid (W3C Trace Context §3.2.2.3).
        let is_followed = trace_id != 0 && span_id != 0 && flags & SAMPLED != 0;
        is_followed.then(|| Self::new(trace_id.to_be_bytes(), span_id.to_be_bytes(), source))
    }

    /// A position in a sampled trace.
    pub fn new(trace_id: [u8; 16], span_id: [u8; 8], source: Source) -> Self {
        Self(Arc::new(Fields {
            trace_id,
            span_id,
            source,
        }))
    }

    /// The id of the trace.
    pub fn trace_id(&self) -> [u8; 16] {
        self.0.trace_id
    }

    /// The id of the span.
    pub fn span_id(&self) -> [u8; 8] {
        self.0.span_id
    }

    /// Where it is from.
    pub fn source(&self) -> Source {
        self.0.source
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let trace_id = u128::from_be_bytes(self.0.trace_id);
        let span_id = u64::from_be_bytes(self.0.span_id);
        write!(f, "00-{trace_id:032x}-{span_id:016x}-{SAMPLED:02x}")
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    const SAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn parse(traceparent: &str) -> Option<TraceContext> {
        TraceContext::parse(traceparent, Source::Received)
    }

    #[test]
    fn a_sampled_traceparent_is_parsed_and_rendered() {
        let context = parse(SAMPLED).unwrap();
        assert_eq!(context.to_string(), SAMPLED);
        assert_eq!(context.trace_id()[..2], [0x0a, 0xf7]);
        assert_eq!(context.span_id()[..2], [0xb7, 0xad]);
        assert_eq!(context.source(), Source::Received);
    }

    #[test]
    fn unknown_flags_and_parts_of_later_versions_are_ignored() {
        let later = format!("{}-more", SAMPLED.replacen("00", "01", 1));
        for traceparent in [&SAMPLED.replace("-01", "-ff"), &later] {
            assert_eq!(parse(traceparent).unwrap().to_string(), SAMPLED);
        }
    }

    #[test]
    fn invalid_and_unsampled_traceparents_are_ignored() {
        for traceparent in [
            &SAMPLED.replace("-01", "-00"),
            &SAMPLED.replacen("00", "ff", 1),
            &SAMPLED.replacen("0af", "0AF", 1),
            &SAMPLED.replace("b7ad6b7169203331", "0000000000000000"),
            &format!("{SAMPLED}-more"),
            "00-0-0-01",
            "",
            "no traceparent at all",
        ] {
            assert_eq!(parse(traceparent), None, "{traceparent}");
        }
    }
}
