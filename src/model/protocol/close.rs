//! The closes of the server: code, word, reason, and whether the client may reconnect.

use serde::Serialize;

/// Longest close reason, in bytes: a control frame without the code (RFC 6455 §5.5).
const REASON_BYTES_MAX: usize = 123;

/// The reason for which the server closes a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Close {
    /// 1000: the reply to the close of the client.
    Answered,
    /// 1002: the framing is not WebSocket (RFC 6455 §7.4.1).
    BrokenFraming,
    /// 1007: a text message that is not UTF-8.
    NotUtf8,
    /// 1009: a frame is larger than `SHOPBELL_MAX_FRAME_BYTES`.
    TooBig,
    /// 1011: a fault of this replica.
    Internal,
    /// 1012: this replica stops.
    GoingAway {
        /// Wait before the client reconnects, in milliseconds.
        retry_after_ms: u64,
    },
    /// 4401: the token expired. The client gets a new one and reconnects.
    TokenExpired,
    /// 4402: the `nbf` of the token is in the future.
    TokenNotYetValid {
        /// Wait before the client reconnects, in milliseconds.
        retry_after_ms: u64,
    },
    /// 4402: no key of this replica signed the token. The client gets a new one and reconnects.
    TokenKeyUnknown {
        /// Wait before the client reconnects, in milliseconds.
        retry_after_ms: u64,
    },
    /// 4408: the client sent nothing, or read nothing, for too long.
    Silent,
    /// 4409: the session reached its greatest age.
    TooOld,
    /// 4410: the epoch changed. After the reconnect the session begins at the cursor.
    EpochChanged {
        /// Wait before the client reconnects, in milliseconds.
        retry_after_ms: u64,
    },
    /// 4429: the client sent too many frames.
    TooManyFrames {
        /// Wait before the client reconnects, in milliseconds.
        retry_after_ms: u64,
    },
    /// 4429: this replica, the subscriber or the address has too many sessions.
    TooManySessions {
        /// Wait before the client reconnects, in milliseconds.
        retry_after_ms: u64,
    },
    /// 4429: the address of the client or the subscriber sent too many requests.
    TooManyRequests {
        /// Wait before the client reconnects, in milliseconds.
        retry_after_ms: u64,
    },
    /// 1013: this replica cannot open a session now.
    NotReady {
        /// Wait before the client reconnects, in milliseconds.
        retry_after_ms: u64,
    },
    /// 4500: a message is not a frame of the protocol.
    NotTheProtocol,
    /// 4500: a parameter of the handshake that can never be accepted.
    BadRequest,
    /// 4501: form, audience, subject … of the token.
    TokenRefused,
    /// 4503: the token names no feed that may be read.
    NoFeed,
    /// 4503: the handshake names a feed that the token does not name.
    ForeignFeed,
}

impl Close {
    /// Every close, with a wait of 0 if it has one.
    pub const ALL: [Self; 21] = [
        Self::Answered,
        Self::BrokenFraming,
        Self::NotUtf8,
        Self::TooBig,
        Self::Internal,
        Self::GoingAway { retry_after_ms: 0 },
        Self::NotReady { retry_after_ms: 0 },
        Self::TokenExpired,
        Self::TokenNotYetValid { retry_after_ms: 0 },
        Self::TokenKeyUnknown { retry_after_ms: 0 },
        Self::Silent,
        Self::TooOld,
        Self::EpochChanged { retry_after_ms: 0 },
        Self::TooManyFrames { retry_after_ms: 0 },
        Self::TooManySessions { retry_after_ms: 0 },
        Self::TooManyRequests { retry_after_ms: 0 },
        Self::NotTheProtocol,
        Self::BadRequest,
        Self::TokenRefused,
        Self::NoFeed,
        Self::ForeignFeed,
    ];

    /// The close code of the contract.
    pub fn code(self) -> u16 {
        match self {
            Self::Answered => 1000,
            Self::BrokenFraming => 1002,
            Self::NotUtf8 => 1007,
            Self::TooBig => 1009,
            Self::Internal => 1011,
            Self::GoingAway { .. } => 1012,
            Self::TokenExpired => 4401,
            Self::TokenNotYetValid { .. } | Self::TokenKeyUnknown { .. } => 4402,
            Self::Silent => 4408,
            Self::TooOld => 4409,
            Self::NotReady { .. } => 1013,
            Self::EpochChanged { .. } => 4410,
            Self::TooManyFrames { .. }
            | Self::TooManySessions { .. }
            | Self::TooManyRequests { .. } => 4429,
            Self::NotTheProtocol | Self::BadRequest => 4500,
            Self::TokenRefused => 4501,
            Self::NoFeed | Self::ForeignFeed => 4503,
        }
    }

    /// The name of the close in its reason and in metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::BrokenFraming => "broken_framing",
            Self::NotUtf8 => "not_utf8",
            Self::TooBig => "too_big",
            Self::Internal => "internal",
            Self::GoingAway { .. } => "going_away",
            Self::TokenExpired => "token_expired",
            Self::TokenNotYetValid { .. } => "token_not_valid_yet",
            Self::TokenKeyUnknown { .. } => "token_key_unknown",
            Self::Silent => "silent",
            Self::TooOld => "too_old",
            Self::EpochChanged { .. } => "epoch_changed",
            Self::TooManyFrames { .. } => "too_many_frames",
            Self::TooManySessions { .. } => "too_many_sessions",
            Self::TooManyRequests { .. } => "too_many_requests",
            Self::NotReady { .. } => "not_ready",
            Self::NotTheProtocol => "not_the_protocol",
            Self::BadRequest => "bad_request",
            Self::TokenRefused => "token_refused",
            Self::NoFeed => "no_feed",
            Self::ForeignFeed => "foreign_feed",
        }
    }

    /// Whether the client may connect again with the same or a new token.
    ///
    /// The code decides: 4000 to 4499 and some codes of RFC 6455 §7.4.1 mean yes.
    pub fn may_reconnect(self) -> bool {
        matches!(self.code(), 1011..=1013 | 4000..=4499)
    }

    /// The wait before the client reconnects, in milliseconds, if the server asks for one.
    pub fn retry_after_ms(self) -> Option<u64> {
        match self {
            Self::GoingAway { retry_after_ms }
            | Self::TokenNotYetValid { retry_after_ms }
            | Self::TokenKeyUnknown { retry_after_ms }
            | Self::EpochChanged { retry_after_ms }
            | Self::TooManyFrames { retry_after_ms }
            | Self::TooManySessions { retry_after_ms }
            | Self::TooManyRequests { retry_after_ms }
            | Self::NotReady { retry_after_ms } => Some(retry_after_ms),
            Self::TokenExpired | Self::TooOld => Some(0),
            _ => None,
        }
    }

    /// The close reason: JSON of at most 123 bytes (RFC 6455 §5.5).
    pub fn reason(self) -> String {
        self.reason_with("")
    }

    /// The close reason with a `message` for people, which is cut if it is too long.
    pub fn reason_with(self, message: &str) -> String {
        if self == Self::Answered {
            return String::new();
        }
        // Serialising two strings and a number cannot fail.
        let json = |message| {
            serde_json::to_string(&Reason {
                code: self.word(),
                retry_after_ms: self.retry_after_ms(),
                message,
            })
        };
        let ends = message
            .char_indices()
            .map(|(at, character)| at + character.len_utf8())
            .rev();
        let messages = ends.map(|end| Some(&message[..end])).chain([None]);
        messages
            .filter_map(|message| json(message).ok())
            .find(|reason| reason.len() <= REASON_BYTES_MAX)
            .unwrap_or_default()
    }
}

#[derive(Serialize)]
struct Reason<'a> {
    code: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_close_has_a_word_of_its_own() {
        let words: BTreeSet<_> = Close::ALL.map(Close::word).into();
        assert_eq!(words.len(), Close::ALL.len());
    }

    #[test]
    fn a_client_reconnects_unless_it_is_at_fault() {
        let may_not: Vec<_> = Close::ALL
            .into_iter()
            .filter(|close| !close.may_reconnect())
            .collect();
        assert_eq!(
            may_not,
            [
                Close::Answered,
                Close::BrokenFraming,
                Close::NotUtf8,
                Close::TooBig,
                Close::NotTheProtocol,
                Close::BadRequest,
                Close::TokenRefused,
                Close::NoFeed,
                Close::ForeignFeed,
            ]
        );
        assert!(may_not.iter().all(|close| close.retry_after_ms().is_none()));
    }

    #[test]
    fn a_close_reason_is_json_and_fits_a_control_frame() {
        let retry_after_ms = u64::MAX;
        for close in [
            Close::TokenNotYetValid { retry_after_ms },
            Close::TooManySessions { retry_after_ms },
            Close::NotTheProtocol,
        ] {
            for message in ["", "short", &"\"ü".repeat(100)] {
                let reason = close.reason_with(message);
                assert!(reason.len() <= REASON_BYTES_MAX, "{reason}");
                let reason: serde_json::Value = serde_json::from_str(&reason).unwrap();
                assert_eq!(reason["code"], close.word());
                assert_eq!(
                    reason.get("message").is_some(),
                    !message.is_empty(),
                    "{reason}"
                );
            }
        }
    }
}
