//! The stage for the stories: one [`World`] for each test, with its own database, its own prefix in
//! RabbitMQ and its own key. In it run the shipped binary, publishers, merchants and faults.
//!
//! Nothing here depends on the inside of Shopbell. All modules use AMQP, WebSocket, HTTP and SQL.

mod amqp_frames;
mod broker;
pub mod certificates;
mod collector;
mod command;
mod event;
mod eventually;
pub mod frames;
mod handshake;
pub mod http;
mod issuer;
mod log;
mod merchant;
mod monitor;
mod outbox;
mod pgbouncer;
pub mod process;
mod promtool;
mod proxy;
mod publisher;
pub mod raw_amqp;
pub mod raw_socket;
pub mod replica;
mod sdk;
mod seen;
mod signing_key;
mod stream;
mod tap;
mod template;
mod time_machine;
pub mod tls_server;
mod token;
mod url;
mod world;

pub use broker::{Broker, Letter};
pub use collector::{Collector, Span};
pub use command::{Done, run_any};
pub use event::{Event, Parcel};
pub use eventually::{eventually, holds};
pub use frames::{Frame, Notification, Progress};
pub use handshake::{Closed, Handshake};
pub use issuer::{Answer, Issuer};
pub use merchant::Merchant;
pub use monitor::Monitor;
pub use outbox::{Relay, Shop};
pub use pgbouncer::PgBouncer;
pub use promtool::promtool;
pub use proxy::Proxy;
pub use publisher::Publisher;
pub use replica::Replica;
pub use sdk::Sdk;
pub use signing_key::SigningKey;
pub use stream::StreamClient;
pub use tap::Tap;
pub use template::{APP, OWNER, PRIVILEGES, READER};
pub use token::Token;
pub use world::{Setup, World};

use std::time::Duration;

/// The bound for each wait. It is long enough for a loaded machine of two cores.
pub const PATIENCE: Duration = Duration::from_secs(30);
