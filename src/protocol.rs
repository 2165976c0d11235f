//! The wire of `shopbell.v1`: what clients say, what the server says, and why it closes. No I/O.
//!
//! Every frame is one JSON object in a text message, told apart by `type`; unknown fields are ignored on both sides. The
//! `notification` frame is rendered in [`crate::notification`], because `data` is raw JSON, which serde cannot carry in a
//! tagged enum (serde-rs/json issue 545).

use serde::{Deserialize, Serialize};

use crate::feed::{Device, Feed, Seq, Subscriber, Version};

/// The WebSocket subprotocol this server speaks.
pub const SUBPROTOCOL: &str = "shopbell.v1";
/// A browser, which can set no header, sends its token as a second subprotocol with this prefix.
pub const BEARER_SUBPROTOCOL_PREFIX: &str = "bearer.";

/// What a client may send.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ClientFrame {
    /// "I have everything in `feed` up to `seq`": cumulative.
    Ack {
        /// The feed.
        feed: String,
        /// The highest number the client has.
        seq: i64,
    },
    /// A person saw these: `seqs`, or all up to `through`.
    Read {
        /// The feed.
        feed: String,
        /// Which; none at all asks for the feed's counts only.
        seqs: Option<Vec<i64>>,
        /// Up to where.
        through: Option<i64>,
    },
    /// A person took these: the bell stops on every device.
    Handle {
        /// The feed.
        feed: String,
        /// Which.
        seqs: Vec<i64>,
    },
    /// A fresh token for the same subscriber.
    Auth {
        /// The JWT.
        token: String,
    },
    /// Answered with `pong` after everything the client said before was taken in.
    Ping,
    /// Of a type this server does not know: answered with an `error`, for a newer client to fall back.
    #[serde(other)]
    Unknown,
}

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
    /// Someone read or handled these; also the answer to the one who did. Made in [`crate::change`].
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
    /// 4429: too many frames; reconnect with back-off.
    TooManyFrames {
        /// How long to wait before reconnecting, in milliseconds.
        retry_after_ms: u64,
    },
    /// 4500: not the protocol: a bug of the client.
    NotTheProtocol,
    /// 4501: form, audience, subject … of the token.
    TokenRefused,
    /// 4503: the token names no feed that may be read.
    NoFeed,
}

impl Close {
    /// The close code of the contract: 4000–4499, 1011 and 1012 mean reconnect, the others do not.
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
            Self::TooManyFrames { .. } => 4429,
            Self::NotTheProtocol => 4500,
            Self::TokenRefused => 4501,
            Self::NoFeed => 4503,
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
            Self::TooManyFrames { .. } => "too_many_frames",
            Self::NotTheProtocol => "not_the_protocol",
            Self::TokenRefused => "token_refused",
            Self::NoFeed => "no_feed",
        }
    }

    /// The close reason: JSON of at most 123 bytes (RFC 6455 §5.5), with `retry_after_ms` where the server has a wish.
    pub fn reason(self) -> String {
        let retry_after_ms = match self {
            Self::Answered => return String::new(),
            Self::GoingAway { retry_after_ms }
            | Self::TokenNotYetValid { retry_after_ms }
            | Self::TokenKeyUnknown { retry_after_ms }
            | Self::TooManyFrames { retry_after_ms } => Some(retry_after_ms),
            Self::TokenExpired | Self::TooOld => Some(0),
            _ => None,
        };
        let code = self.word();
        match retry_after_ms {
            Some(ms) => format!(r#"{{"code":"{code}","retry_after_ms":{ms}}}"#),
            None => format!(r#"{{"code":"{code}"}}"#),
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn client_frames_are_told_apart_by_type_and_unknown_fields_are_ignored() {
        let parse = |text| serde_json::from_str::<ClientFrame>(text);
        assert_eq!(
            parse(r#"{"type":"ack","feed":"m","seq":3,"new":1}"#).unwrap(),
            ClientFrame::Ack { feed: "m".into(), seq: 3 }
        );
        assert_eq!(parse(r#"{"type":"ping"}"#).unwrap(), ClientFrame::Ping);
        assert_eq!(
            parse(r#"{"seqs":[1],"type":"read","feed":"m"}"#).unwrap(),
            ClientFrame::Read { feed: "m".into(), seqs: Some(vec![1]), through: None }
        );
        assert_eq!(parse(r#"{"type":"praise","feed":"m"}"#).unwrap(), ClientFrame::Unknown);
        assert!(parse(r#"{"feed":"m"}"#).is_err(), "a frame without a type is not the protocol");
        assert!(parse(r#"{"type":"ack","feed":"m","seq":1.5}"#).is_err());
        assert!(parse("[]").is_err());
    }

    #[test]
    fn server_frames_are_what_the_contract_says() {
        let feed = Feed::parse("m").unwrap();
        let skipped = ServerFrame::Skipped {
            feed: &feed,
            from: Seq::ZERO.next(),
            through: Seq::new(3).unwrap(),
            reason: SkipReason::Collapsed,
        };
        assert_eq!(skipped.to_json(), r#"{"type":"skipped","feed":"m","from":1,"through":3,"reason":"collapsed"}"#);
        let heartbeat = ServerFrame::Heartbeat { sent: [(&feed, Seq::ZERO)].into() };
        assert_eq!(heartbeat.to_json(), r#"{"type":"heartbeat","sent":{"m":0}}"#);
        assert_eq!(ServerFrame::Pong.to_json(), r#"{"type":"pong"}"#);
        let error = ServerFrame::Error { code: ErrorCode::AckNotSent, message: "x", feed: None };
        assert_eq!(error.to_json(), r#"{"type":"error","code":"ack_not_sent","message":"x"}"#);
    }

    #[test]
    fn a_close_reason_is_json_and_fits_a_control_frame() {
        let retry_after_ms = u64::MAX;
        for close in
            [Close::TokenNotYetValid { retry_after_ms }, Close::TooManyFrames { retry_after_ms }, Close::NotTheProtocol]
        {
            let reason = close.reason();
            assert!(reason.len() <= 123, "{reason}");
            assert!(serde_json::from_str::<serde_json::Value>(&reason).unwrap().get("code").is_some());
        }
    }
}
