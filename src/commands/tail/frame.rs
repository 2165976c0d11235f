//! The frames of the server, as a client reads them. Ignores unknown fields and types, as the
//! contract demands.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

/// A frame from the server.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Frame {
    Welcome(Welcome),
    /// Made by [`Frame::parse`], because serde cannot read raw JSON inside a tagged enum
    /// (serde-rs/json issue 545).
    #[serde(skip)]
    Notification(Notification),
    Skipped {
        feed: String,
        from: i64,
        through: i64,
        reason: String,
    },
    CaughtUp {
        feed: String,
        seq: i64,
    },
    Heartbeat {
        sent: BTreeMap<String, i64>,
    },
    Goaway {
        retry_after_ms: u64,
    },
    Error {
        code: String,
        message: String,
    },
    Pong,
    #[serde(other)]
    Unknown,
}

#[derive(Debug, Deserialize)]
pub(super) struct Welcome {
    pub(super) session: String,
    pub(super) subscriber: String,
    pub(super) window: usize,
    pub(super) heartbeat_seconds: u64,
    pub(super) feeds: Vec<WelcomeFeed>,
}

#[derive(Debug, Deserialize)]
pub(super) struct WelcomeFeed {
    pub(super) feed: String,
    pub(super) cursor: i64,
    pub(super) last: i64,
    pub(super) epoch: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Notification {
    pub(super) feed: String,
    pub(super) seq: i64,
    pub(super) event: String,
    pub(super) time: String,
    pub(super) data: Option<Box<RawValue>>,
    pub(super) progress: Option<Progress>,
}

/// The counts of an import up to this notification.
#[derive(Debug, Deserialize)]
pub(super) struct Progress {
    pub(super) done: u64,
    pub(super) failed: u64,
    /// Absent if no `import.started` was stored.
    pub(super) total: Option<u64>,
}

#[derive(Deserialize)]
struct Kind {
    #[serde(rename = "type")]
    kind: String,
}

impl Frame {
    /// Parses the text of a frame.
    pub(super) fn parse(text: &str) -> serde_json::Result<Self> {
        match serde_json::from_str::<Kind>(text)?.kind.as_str() {
            "notification" => serde_json::from_str(text).map(Self::Notification),
            _ => serde_json::from_str(text),
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::model::feed;
    use crate::model::notification::{self, NotificationFields};
    use crate::model::protocol::{ServerFrame, SkipReason};

    #[test]
    fn the_frames_of_the_service_are_parsed() {
        let (feed, seq) = (feed::Feed::parse("m").unwrap(), feed::Seq::new(3).unwrap());
        let parse = |frame: ServerFrame<'_>| Frame::parse(&frame.to_json()).unwrap();
        let skipped = ServerFrame::Skipped {
            feed: &feed,
            from: seq,
            through: seq,
            reason: SkipReason::Expired,
        };
        assert!(
            matches!(parse(skipped), Frame::Skipped { from: 3, through: 3, reason, .. } if reason == "expired")
        );
        assert!(matches!(
            parse(ServerFrame::CaughtUp { feed: &feed, seq }),
            Frame::CaughtUp { seq: 3, .. }
        ));
        let heartbeat = ServerFrame::Heartbeat {
            sent: [(&feed, seq)].into(),
        };
        assert!(matches!(parse(heartbeat), Frame::Heartbeat { sent } if sent["m"] == 3));
        assert!(matches!(
            parse(ServerFrame::Goaway { retry_after_ms: 7 }),
            Frame::Goaway { retry_after_ms: 7 }
        ));
        assert!(matches!(parse(ServerFrame::Pong), Frame::Pong));
        let feeds = [crate::model::protocol::WelcomeFeed {
            feed: feed.clone(),
            cursor: seq,
            last: seq,
            unread: 1,
            unhandled: 1,
            version: Default::default(),
            epoch: feed::Epoch::parse("e1").unwrap(),
            shared: false,
        }];
        let welcome = parse(ServerFrame::Welcome {
            session: "s",
            subscriber: &feed::Subscriber::parse("m").unwrap(),
            device: &feed::Device::default(),
            window: 256,
            heartbeat_seconds: 25,
            token_expires_in: 60,
            feeds: &feeds,
        });
        assert!(matches!(welcome, Frame::Welcome(welcome) if welcome.feeds[0].cursor == 3));
        assert!(matches!(
            Frame::parse(r#"{"type":"state","new":1}"#),
            Ok(Frame::Unknown)
        ));
        assert!(Frame::parse(r#"{"feed":"m"}"#).is_err());
    }

    #[test]
    fn the_data_of_a_notification_is_unchanged() {
        let data = r#"{"a":1e400,"b":"\ud800"}"#;
        let rendered = notification::Notification::render(&NotificationFields {
            feed: &feed::Feed::parse("m").unwrap(),
            seq: feed::Seq::new(3).unwrap(),
            id: "e-1",
            source: "/shop",
            event: "custom.thing",
            time: time::OffsetDateTime::UNIX_EPOCH,
            data: Some(data),
            collapse_key: None,
            progress: None,
            expires_at: None,
            read_at: None,
            handled_at: None,
            handled_by: None,
        });
        let Ok(Frame::Notification(notification)) = Frame::parse(&rendered.frame) else {
            panic!("{}", rendered.frame)
        };
        assert_eq!((notification.feed.as_str(), notification.seq), ("m", 3));
        assert_eq!(notification.data.unwrap().get(), data);
    }
}
