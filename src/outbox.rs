//! The outbox in the shop's own Postgres, and the relay that publishes its rows to RabbitMQ.
//!
//! Rows come in, publishes go out. A row is removed only after RabbitMQ has confirmed it, so each is
//! published at least once, and Shopbell stores it once. [`relay`] is the loop, `database` has every
//! SQL statement, and `row` turns a row into an event. Nothing here uses Shopbell's own database.

mod database;
mod listener;
pub mod probe;
pub mod relay;
mod row;
pub mod state;

/// The schema of the outbox, which the shop runs in its database.
pub const SQL: &str = include_str!("../outbox/outbox.sql");
/// The roles of the outbox.
pub const PRIVILEGES: &str = include_str!("../outbox/privileges.sql");

use std::time::Duration;

/// A failure of the shop's Postgres or of the outbox in it. The relay connects again.
#[derive(Debug, thiserror::Error)]
pub enum OutboxError {
    /// Postgres is away or reports an error.
    #[error("the database of the outbox: {0}")]
    Database(#[from] sqlx::Error),
    /// TLS failed for this reason.
    #[error("the database of the outbox: {0}")]
    Tls(String),
    /// Postgres did not answer in time.
    #[error("the database of the outbox did not answer within {0:?}")]
    Silent(Duration),
    /// The server takes no writes.
    #[error(
        "the database of the outbox takes no writes; SHOPBELL_OUTBOX_DATABASE_URL must lead to the primary"
    )]
    ReadOnly,
    /// The outbox is missing, is older than this binary, or the role may not use it.
    #[error(
        "the outbox cannot be used: {0}; run the output of `shopbell relay --print-sql` and `--print-privileges` in the database of SHOPBELL_OUTBOX_DATABASE_URL"
    )]
    NotReady(String),
}
