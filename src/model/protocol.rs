//! The wire of `shopbell.v1`: what clients say, what the server says, and why it closes. No I/O.
//!
//! Every frame is one JSON object in a text message, told apart by `type`; unknown fields are ignored on both sides. The
//! `notification` frame is rendered in [`crate::model::notification`], because `data` is raw JSON, which serde cannot carry in a
//! tagged enum (serde-rs/json issue 545).

mod client;

use serde::Serialize;

pub use self::client::ClientFrame;
use crate::model::feed::{Device, Epoch, Feed, Seq, Subscriber, Version};

/// The WebSocket subprotocol this server speaks.
pub const SUBPROTOCOL: &str = "shopbell.v1";
/// A browser, which can set no header, sends its token as a second subprotocol with this prefix.
pub const BEARER_SUBPROTOCOL_PREFIX: &str = "bearer.";
/// Longest close reason (RFC 6455 §5.5): a control frame without the code.
const REASON_BYTES_MAX: usize = 123;

/// What the server sends, apart from notifications.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ServerFrame<'a> {
    /// The first frame of a session.
    Welcome {
        /// The session's id, for support.
        session: &'a str,
        /// Who reads.
        subscriber: &'a Subscriber,
        /// With which device; empty where unnamed.
        device: &'a Device,
        /// Most notifications sent and not acknowledged at any time.
        window: usize,
        /// How often a `heartbeat` comes, in seconds.
        heartbeat_seconds: u64,
        /// Seconds until the token expires.
        token_expires_in: i64,
        /// What is read, and from where.
        feeds: &'a [WelcomeFeed],
    },
    /// Numbers that will not come, so that a client can prove that it missed nothing.
    Skipped {
        /// The feed.
        feed: &'a Feed,
        /// The first number skipped.
        from: Seq,
        /// The last number skipped.
        through: Seq,
        /// Why.
        reason: SkipReason,
    },
    /// Everything stored when the session connected has been sent; what follows is live.
    CaughtUp {
        /// The feed.
        feed: &'a Feed,
        /// The last number sent or skipped.
        seq: Seq,
    },
    /// Someone read or handled these; also the answer to the one who did. Made in [`crate::model::mark`].
    State {
        /// The feed.
        feed: &'a Feed,
        /// Which …
        #[serde(skip_serializing_if = "Option::is_none")]
        seqs: Option<&'a [i64]>,
        /// … or all up to this one.
        #[serde(skip_serializing_if = "Option::is_none")]
        through: Option<Seq>,
        /// When they were read (RFC 3339).
        #[serde(skip_serializing_if = "Option::is_none")]
        read_at: Option<String>,
        /// When they were handled (RFC 3339) …
        #[serde(skip_serializing_if = "Option::is_none")]
        handled_at: Option<String>,
        /// … and by which subscriber.
        #[serde(skip_serializing_if = "Option::is_none")]
        handled_by: Option<&'a str>,
        /// Notifications that nobody has read …
        unread: i64,
        /// … and that nobody has handled …
        unhandled: i64,
        /// … of those up to here.
        last: Seq,
        /// Its number among the feed's changes; none where it answers this client alone, with what was true before.
        #[serde(skip_serializing_if = "Option::is_none")]
        version: Option<Version>,
    },
    /// Comes every `heartbeat_seconds`, so that a page can tell a dead connection from a quiet one.
    Heartbeat {
        /// The last number sent or skipped in each feed.
        sent: std::collections::BTreeMap<&'a Feed, Seq>,
    },
    /// This replica is leaving; the close follows.
    Goaway {
        /// How long to wait before reconnecting, in milliseconds.
        retry_after_ms: u64,
    },
    /// The answer to `ping`.
    Pong,
    /// The client did something wrong; the session goes on.
    Error {
        /// What, for programs.
        code: ErrorCode,
        /// What, for people.
        message: &'a str,
        /// The feed that it was about.
        #[serde(skip_serializing_if = "Option::is_none")]
        feed: Option<&'a str>,
    },
}

impl ServerFrame<'_> {
    /// The frame as it goes over the wire.
    pub fn to_json(&self) -> String {
        // Serialising to a string fails only for non-string map keys or a failing `Serialize`: there are none here.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// One feed in `welcome`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WelcomeFeed {
    /// The feed.
    pub feed: Feed,
    /// Where this session starts: everything after this number is sent.
    pub cursor: Seq,
    /// The newest number stored.
    pub last: Seq,
    /// Notifications that nobody has read.
    pub unread: i64,
    /// Notifications that nobody has handled.
    pub unhandled: i64,
    /// The feed's newest change.
    pub version: Version,
    /// Identity of the numbering: numbers that were kept with another one may be those of other notifications now.
    pub epoch: Epoch,
    /// Read by everyone, so nobody's to read or handle for all.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub shared: bool,
}

/// Why a number will not come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SkipReason {
    /// A newer notification of the same `collapse_key` says it better.
    Collapsed,
    /// Its `expirytime` passed.
    Expired,
    /// Retention removed it.
    Trimmed,
    /// The database should have it and does not.
    Lost,
}

/// What a client did wrong without ending the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// An ack of a number that this session was not sent.
    AckNotSent,
    /// A feed that this session does not read.
    UnknownFeed,
    /// A frame type that this server does not know.
    UnknownType,
    /// The token of an `auth` was refused; the old one still counts.
    TokenRefused,
    /// A `read` or `handle` in the broadcast feed, which the token does not name.
    ReadOnly,
    /// A `read` or `handle` of a number that the feed does not have.
    UnknownSeq,
    /// A `read` or `handle` of more numbers than one frame may name.
    TooManySeqs,
    /// A `read` or `handle` while too many of this session wait for the database.
    Busy,
    /// A `read` or `handle` that could not be stored: nothing was changed, as far as is known; say it again.
    NotTaken,
}

/// Why the server closes a session: the code, and whether the client may come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Close {
    /// The client closed; its close is answered in kind.
    Answered,
    /// 1002: not WebSocket (RFC 6455 §7.4.1).
    BrokenFraming,
    /// 1007: a text message that is not UTF-8.
    NotUtf8,
    /// 1009: a frame above `SHOPBELL_MAX_FRAME_BYTES`.
    TooBig,
    /// 1011: a fault of this replica.
    Internal,
    /// 1012: this replica is going away.
    GoingAway {
        /// How long to wait before reconnecting, in milliseconds.
        retry_after_ms: u64,
    },
    /// 4401: get a new token, then reconnect.
    TokenExpired,
    /// 4402: the token is not valid yet; reconnect.
    TokenNotYetValid {
        /// How long to wait before reconnecting, in milliseconds.
        retry_after_ms: u64,
    },
    /// 4402: this replica has no key that signed the token; get a new token, then reconnect.
    TokenKeyUnknown {
        /// How long to wait before reconnecting, in milliseconds.
        retry_after_ms: u64,
    },
    /// 4408: nothing heard, or nothing read, for too long.
    Silent,
    /// 4409: reached its greatest age; reconnect now.
    TooOld,
    /// 4410: the numbers of this session are of an epoch that is over; reconnect, and begin at the cursor.
    EpochChanged {
        /// How long to wait before reconnecting, in milliseconds.
        retry_after_ms: u64,
    },
    /// 4429: too many frames; reconnect with back-off.
    TooManyFrames {
        /// How long to wait before reconnecting, in milliseconds.
        retry_after_ms: u64,
    },
    /// 4429: as many sessions as this replica, or the subscriber, may have; reconnect with back-off.
    TooManySessions {
        /// How long to wait before reconnecting, in milliseconds.
        retry_after_ms: u64,
    },
    /// 1013: this replica cannot open a session now.
    NotReady {
        /// How long to wait before reconnecting, in milliseconds.
        retry_after_ms: u64,
    },
    /// 4500: not the protocol: a bug of the client.
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
    /// The close code of the contract: 4000–4499, 1011, 1012 and 1013 mean reconnect, the others do not.
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
            Self::TooManyFrames { .. } | Self::TooManySessions { .. } => 4429,
            Self::NotTheProtocol | Self::BadRequest => 4500,
            Self::TokenRefused => 4501,
            Self::NoFeed | Self::ForeignFeed => 4503,
        }
    }

    /// What it is called in a close reason, and where closes are counted.
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
            Self::NotReady { .. } => "not_ready",
            Self::NotTheProtocol => "not_the_protocol",
            Self::BadRequest => "bad_request",
            Self::TokenRefused => "token_refused",
            Self::NoFeed => "no_feed",
            Self::ForeignFeed => "foreign_feed",
        }
    }

    /// The close reason: JSON of at most 123 bytes (RFC 6455 §5.5), with `retry_after_ms` if the server asks for a wait.
    pub fn reason(self) -> String {
        self.reason_with("")
    }

    /// The same with a `message` for people, cut to what fits.
    pub fn reason_with(self, message: &str) -> String {
        let retry_after_ms = match self {
            Self::Answered => return String::new(),
            Self::GoingAway { retry_after_ms }
            | Self::TokenNotYetValid { retry_after_ms }
            | Self::TokenKeyUnknown { retry_after_ms }
            | Self::EpochChanged { retry_after_ms }
            | Self::TooManyFrames { retry_after_ms }
            | Self::TooManySessions { retry_after_ms }
            | Self::NotReady { retry_after_ms } => Some(retry_after_ms),
            Self::TokenExpired | Self::TooOld => Some(0),
            _ => None,
        };
        // Serialising two strings and a number cannot fail.
        let json = |message| {
            serde_json::to_string(&Reason {
                code: self.word(),
                retry_after_ms,
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

    #[test]
    fn server_frames_are_what_the_contract_says() {
        let feed = Feed::parse("m").unwrap();
        let skipped = ServerFrame::Skipped {
            feed: &feed,
            from: Seq::ZERO.next(),
            through: Seq::new(3).unwrap(),
            reason: SkipReason::Collapsed,
        };
        assert_eq!(
            skipped.to_json(),
            r#"{"type":"skipped","feed":"m","from":1,"through":3,"reason":"collapsed"}"#
        );
        let heartbeat = ServerFrame::Heartbeat {
            sent: [(&feed, Seq::ZERO)].into(),
        };
        assert_eq!(
            heartbeat.to_json(),
            r#"{"type":"heartbeat","sent":{"m":0}}"#
        );
        assert_eq!(ServerFrame::Pong.to_json(), r#"{"type":"pong"}"#);
        let error = ServerFrame::Error {
            code: ErrorCode::AckNotSent,
            message: "x",
            feed: None,
        };
        assert_eq!(
            error.to_json(),
            r#"{"type":"error","code":"ack_not_sent","message":"x"}"#
        );
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
