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

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    const GOOD: [(&str, &str); 2] = [
        ("AMQP_URL", "amqp://u:hidden@mq.example/v"),
        (
            "SHOPBELL_OUTBOX_DATABASE_URL",
            "postgres://r:hidden@shop.example/shop",
        ),
    ];

    fn relay(more: &[(&str, &str)]) -> Result<RelayConfig, ConfigError> {
        let all = GOOD.iter().chain(more);
        let all = all.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Environment::of(all.collect()).relay()
    }

    #[test]
    fn a_relay_needs_its_two_urls_and_ignores_the_settings_of_serve() {
        let config = relay(&[
            ("SHOPBELL_WINDOW", "no number"),
            ("DATABASE_URL", "no URL"),
            ("SHOPBELL_OUTBOX_BATCH", "7"),
        ])
        .unwrap();
        assert_eq!(
            (config.outbox.get_host(), config.batch),
            ("shop.example", 7)
        );
        let missing = Environment::of(Vec::new()).relay().unwrap_err().to_string();
        for (variable, _) in GOOD {
            assert!(missing.contains(variable), "{missing}");
        }
        for bad in ["0", "10001"] {
            assert!(relay(&[("SHOPBELL_OUTBOX_BATCH", bad)]).is_err());
        }
    }
}
