//! The frames and close codes of `shopbell.v1`, as docs/protocol.md documents them.
//!
//! Every frame is one JSON object in a text message, with its `type`. Both sides ignore unknown
//! fields. `notification` renders its frame itself, because `data` is raw JSON, which serde cannot
//! put into a tagged enum (serde-rs/json issue 545).

mod client;
mod close;
mod device_state;
mod server;

pub use self::client::ClientFrame;
pub use self::close::Close;
pub use self::device_state::{CanRing, DeviceState};
pub use self::server::{ErrorCode, ServerFrame, SkipReason, WelcomeFeed};

/// The WebSocket subprotocol of this server.
pub const SUBPROTOCOL: &str = "shopbell.v1";
/// A second subprotocol with this prefix carries the token of a browser, which cannot set a header.
pub const BEARER_SUBPROTOCOL_PREFIX: &str = "bearer.";
