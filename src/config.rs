//! The configuration: environment variables in, plain structs of checked values out.
//!
//! All settings are read before any error is returned, so that one message names every bad value.
//! No message contains a secret. A command reads only the parts that it needs.

mod amqp;
mod database;
mod environment;
mod jwt;
mod libraries;
mod markdown;
mod secret;
mod secrets;
mod serve;
mod settings;
mod values;

use std::fmt;

pub use self::amqp::AmqpConfig;
pub use self::environment::{EffectiveSetting, Environment, Origin};
pub use self::jwt::{JwtConfig, KeyFiles, Keys};
pub use self::markdown::table as markdown_table;
pub use self::secret::Secret;
pub use self::serve::{GatewayConfig, IngestConfig, RoleConfig, ServeConfig, SessionConfig};
pub use self::settings::{EVENT_BYTES_MAX_DEFAULT, Role, SETTINGS, Setting};

/// All problems of the configuration.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigError {
    complaints: Vec<String>,
}

impl std::error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the configuration cannot be used:")?;
        self.complaints
            .iter()
            .try_for_each(|complaint| write!(f, "\n  {complaint}"))
    }
}
