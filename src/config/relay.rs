//! The configuration of `shopbell relay`.

use std::net::SocketAddr;

use sqlx::postgres::PgConnectOptions;

use super::amqp::AmqpConfig;
use super::environment::Environment;
use super::error::ConfigError;
use super::settings::{OPS_LISTEN, OUTBOX_BATCH, OUTBOX_DATABASE_URL, SETTINGS};

/// The configuration of one relay.
#[derive(Debug, Clone)]
pub struct RelayConfig {
    /// `SHOPBELL_OUTBOX_DATABASE_URL`.
    pub outbox: PgConnectOptions,
    /// RabbitMQ.
    pub amqp: AmqpConfig,
    /// `SHOPBELL_OPS_LISTEN`.
    pub ops_listen: SocketAddr,
    /// `SHOPBELL_OUTBOX_BATCH`, in rows.
    pub batch: u32,
}

impl Environment {
    /// Reads the configuration of `relay`. Ignores the other settings of `serve`, and logs a warning
    /// for each unknown variable.
    pub fn relay(mut self) -> Result<RelayConfig, ConfigError> {
        let outbox = self.read_postgres(&OUTBOX_DATABASE_URL);
        let amqp = self.read_amqp();
        let ops_listen = self.address(&OPS_LISTEN);
        let batch = self.number(&OUTBOX_BATCH);
        SETTINGS.iter().for_each(|setting| self.ignore(setting));
        for variable in self.unknown() {
            tracing::warn!(variable, "this variable is not known and has no effect");
        }
        let config = || {
            Some(RelayConfig {
                outbox: outbox?,
                amqp: amqp?,
                ops_listen: ops_listen?,
                batch: batch?,
            })
        };
        let config = config();
        self.finish(config)
    }
}
