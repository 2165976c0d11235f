//! The frames of the server.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::model::feed::{Device, Epoch, Feed, Seq, Subscriber, Version};

/// The frames of the server, except `notification`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ServerFrame<'a> {
    /// The first frame of a session.
    Welcome {
        /// The id of the session, for support.
        session: &'a str,
        /// The subscriber of the token.
        subscriber: &'a Subscriber,
        /// The device; empty if it has no name.
        device: &'a Device,
        /// Most notifications that are sent without an ack.
        window: usize,
        /// Interval of `heartbeat`, in seconds.
        heartbeat_seconds: u64,
        /// Seconds until the token expires.
        token_expires_in: i64,
        /// The feeds of the session.
        feeds: &'a [WelcomeFeed],
    },
    /// Numbers that are not sent. So a client can check that it misses none.
    Skipped {
        /// The feed.
        feed: &'a Feed,
        /// The first number.
        from: Seq,
        /// The last number.
        through: Seq,
        /// The reason.
        reason: SkipReason,
    },
    /// All notifications that were stored when the session began are sent. Live notifications
    /// follow.
    CaughtUp {
        /// The feed.
        feed: &'a Feed,
        /// The last number sent or skipped.
        seq: Seq,
    },
    /// Notifications were read or handled. `model::mark` renders it.
    State {
        /// The feed.
        feed: &'a Feed,
        /// The numbers …
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
        /// When the time passed in which somebody should have handled them (RFC 3339).
        #[serde(skip_serializing_if = "Option::is_none")]
        overdue_at: Option<String>,
        /// Notifications that nobody has read …
        unread: i64,
        /// … and that nobody has handled …
        unhandled: i64,
        /// … of those up to here.
        last: Seq,
        /// Counts the marks of the feed. A frame without it replies to this client only.
        #[serde(skip_serializing_if = "Option::is_none")]
        version: Option<Version>,
    },
    /// Sent every `heartbeat_seconds`, so that a client detects a dead connection.
    Heartbeat {
        /// The last number sent or skipped in each feed.
        sent: BTreeMap<&'a Feed, Seq>,
    },
    /// The replica stops. The close follows.
    Goaway {
        /// Wait before the client reconnects, in milliseconds.
        retry_after_ms: u64,
    },
    /// The reply to `ping`.
    Pong,
    /// A frame of the client was rejected. The session goes on.
    Error {
        /// The problem, for programs.
        code: ErrorCode,
        /// The problem, for people.
        message: &'a str,
        /// The feed of the rejected frame.
        #[serde(skip_serializing_if = "Option::is_none")]
        feed: Option<&'a str>,
    },
}

impl ServerFrame<'_> {
    /// The frame as JSON.
    pub fn to_json(&self) -> String {
        // Fails only for map keys that are no strings, or for a failing `Serialize`. Neither
        // exists.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// One feed in `welcome`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WelcomeFeed {
    /// The feed.
    pub feed: Feed,
    /// The session sends every notification after this number.
    pub cursor: Seq,
    /// The newest number.
    pub last: Seq,
    /// Notifications that nobody has read.
    pub unread: i64,
    /// Notifications that nobody has handled.
    pub unhandled: i64,
    /// The number of the newest mark.
    pub version: Version,
    /// Identity of the numbering. A number of another epoch may name another notification.
    pub epoch: Epoch,
    /// Whether it is the broadcast feed and the token may not mark its notifications.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub shared: bool,
}

/// The reason for which a number is skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SkipReason {
    /// A newer notification has the same `collapse_key`.
    Collapsed,
    /// Its `expirytime` has passed.
    Expired,
    /// Reserved for a future retention, which will remove numbers.
    Trimmed,
    /// The database misses it.
    Lost,
}

/// The reason for which a frame of a client is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// An ack of a number that this session was not sent.
    AckNotSent,
    /// A feed that this session does not read.
    UnknownFeed,
    /// A frame type that this server does not know.
    UnknownType,
    /// The token of an `auth` is rejected. The session keeps its token.
    TokenRefused,
    /// A `read` or `handle` in the broadcast feed, which the token does not name.
    ReadOnly,
    /// A `read` or `handle` of a number that the feed does not have.
    UnknownSeq,
    /// A `read` or `handle` of more numbers than one frame may name.
    TooManySeqs,
    /// A `read` or `handle` while too many of this session wait for Postgres.
    Busy,
    /// A `read` or `handle` that could not be stored. The client may send it again.
    NotTaken,
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn server_frames_have_the_json_of_the_contract() {
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
}
