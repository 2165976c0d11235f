//! The frames of `shopbell.v1`, read and written by a client that follows only the contract.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// A frame from the server.
#[derive(Debug)]
pub enum Frame {
    /// The first frame of a session.
    Welcome(Welcome),
    /// An event with its number in a feed.
    Notification(Notification),
    /// Numbers that will not come.
    Skipped(Skipped),
    /// All notifications have been sent that were stored when the session connected.
    CaughtUp(CaughtUp),
    /// Marks of one or more notifications.
    State(State),
    /// The session is alive.
    Heartbeat(Heartbeat),
    /// The replica leaves.
    Goaway(Goaway),
    /// The reply to a ping.
    Pong,
    /// A request was refused. The session continues.
    Error(Refused),
}

/// `welcome`
#[derive(Debug, Clone, Deserialize)]
pub struct Welcome {
    pub session: String,
    pub subscriber: String,
    pub device: Option<String>,
    pub window: usize,
    pub heartbeat_seconds: u64,
    pub token_expires_in: i64,
    pub feeds: Vec<FeedState>,
}

/// The place of a session in a feed at its start.
#[derive(Debug, Clone, Deserialize)]
pub struct FeedState {
    pub feed: String,
    pub cursor: u64,
    pub last: u64,
    pub unread: u64,
    pub unhandled: u64,
    pub version: u64,
    #[serde(default)]
    pub shared: bool,
    /// Empty if the server is older than the epoch.
    #[serde(default)]
    pub epoch: String,
}

/// `notification`
#[derive(Debug, Clone, Deserialize)]
pub struct Notification {
    pub feed: String,
    pub seq: u64,
    pub id: String,
    pub source: String,
    pub event: String,
    pub time: String,
    pub data: Option<Box<RawValue>>,
    pub collapse_key: Option<String>,
    pub progress: Option<Progress>,
    pub read_at: Option<String>,
    pub handled_at: Option<String>,
    pub handled_by: Option<String>,
}

/// The progress of an import.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Progress {
    pub done: u64,
    pub failed: u64,
    pub total: Option<u64>,
}

/// `state`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub feed: String,
    pub seqs: Option<Vec<u64>>,
    pub through: Option<u64>,
    pub read_at: Option<String>,
    pub handled_at: Option<String>,
    pub handled_by: Option<String>,
    pub overdue_at: Option<String>,
    pub unread: u64,
    pub unhandled: u64,
    pub last: u64,
    pub version: Option<u64>,
}

/// `skipped`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Skipped {
    pub feed: String,
    pub from: u64,
    pub through: u64,
    pub reason: String,
}

/// `caught_up`
#[derive(Debug, Clone, Deserialize)]
pub struct CaughtUp {
    pub feed: String,
    pub seq: u64,
}

/// `heartbeat`
#[derive(Debug, Clone, Deserialize)]
pub struct Heartbeat {
    pub sent: BTreeMap<String, u64>,
}

/// `goaway`
#[derive(Debug, Clone, Deserialize)]
pub struct Goaway {
    pub retry_after_ms: u64,
}

/// `error`
#[derive(Debug, Clone, Deserialize)]
pub struct Refused {
    pub code: String,
    pub message: String,
    pub feed: Option<String>,
}

impl Frame {
    /// Reads the type first and then the rest, because raw JSON cannot be read inside a tagged enum
    /// (serde-rs/json 545).
    pub fn parse(text: &str) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct Tag {
            r#type: String,
        }
        let tag: Tag = serde_json::from_str(text)?;
        Ok(match tag.r#type.as_str() {
            "welcome" => Self::Welcome(serde_json::from_str(text)?),
            "notification" => Self::Notification(serde_json::from_str(text)?),
            "skipped" => Self::Skipped(serde_json::from_str(text)?),
            "caught_up" => Self::CaughtUp(serde_json::from_str(text)?),
            "state" => Self::State(serde_json::from_str(text)?),
            "heartbeat" => Self::Heartbeat(serde_json::from_str(text)?),
            "goaway" => Self::Goaway(serde_json::from_str(text)?),
            "pong" => Self::Pong,
            "error" => Self::Error(serde_json::from_str(text)?),
            unknown => {
                return Err(serde::de::Error::custom(format!(
                    "the contract has no frame {unknown:?}"
                )));
            }
        })
    }
}

impl Notification {
    /// The data, byte for byte.
    pub fn data(&self) -> &str {
        self.data.as_deref().map_or("", RawValue::get)
    }
}

/// A frame from the client.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Saying<'a> {
    /// Everything in `feed` up to `seq` has arrived.
    Ack { feed: &'a str, seq: u64 },
    /// Marks these notifications, or all up to one, as read.
    Read {
        feed: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        seqs: Option<&'a [u64]>,
        /// All up to this one.
        #[serde(skip_serializing_if = "Option::is_none")]
        through: Option<u64>,
    },
    /// Marks these notifications as handled.
    Handle { feed: &'a str, seqs: &'a [u64] },
    /// A new token.
    Auth { token: &'a str },
    /// Asks for a pong.
    Ping,
}
