//! Reasons for which an event can never be stored.

use std::fmt;

/// The reason and the detail of a dead letter (`x-shopbell-reason`, `x-shopbell-detail`).
///
/// The detail appears in headers, logs and HTTP responses. So it is short, and consists of our own
/// words, names of the contract and numbers. It never repeats text of the publisher.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {detail}")]
pub struct Rejection {
    /// The reason of the contract.
    pub reason: Reason,
    /// The exact problem, for the developers of the publisher.
    pub detail: String,
}

impl Rejection {
    pub(super) fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self {
            reason,
            detail: detail.into(),
        }
    }
}

/// The reasons of the AMQP contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// Not JSON.
    MalformedJson,
    /// An attribute of CloudEvents is missing, of the wrong type or out of bounds.
    InvalidEnvelope,
    /// `recipient` is missing or names no feed.
    InvalidRecipient,
    /// The data breaks the schema of the event's type.
    InvalidData,
    /// The body or the headers are too large.
    TooLarge,
    /// The JSON is nested too deeply.
    TooDeep,
    /// The body is not UTF-8.
    InvalidUtf8,
    /// `specversion` is not 1.0.
    UnsupportedVersion,
    /// Neither a structured nor a binary CloudEvent in JSON.
    UnsupportedContentType,
}

impl Reason {
    /// Every reason. A metric has a time series for each.
    pub const ALL: [Self; 9] = [
        Self::MalformedJson,
        Self::InvalidEnvelope,
        Self::InvalidRecipient,
        Self::InvalidData,
        Self::TooLarge,
        Self::TooDeep,
        Self::InvalidUtf8,
        Self::UnsupportedVersion,
        Self::UnsupportedContentType,
    ];

    /// The contract's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MalformedJson => "malformed_json",
            Self::InvalidEnvelope => "invalid_envelope",
            Self::InvalidRecipient => "invalid_recipient",
            Self::InvalidData => "invalid_data",
            Self::TooLarge => "too_large",
            Self::TooDeep => "too_deep",
            Self::InvalidUtf8 => "invalid_utf8",
            Self::UnsupportedVersion => "unsupported_version",
            Self::UnsupportedContentType => "unsupported_content_type",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_reason_has_a_word_of_its_own() {
        let words: BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(words.len(), Reason::ALL.len());
    }

    #[test]
    fn a_rejection_reads_reason_then_detail() {
        let rejection = Rejection::new(Reason::TooDeep, "more than 128 levels");
        assert_eq!(rejection.to_string(), "too_deep: more than 128 levels");
    }
}
