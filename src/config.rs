//! The configuration: environment variables in, plain structs of checked values out.
//!
//! All settings are read before any error is returned, so that one message names every bad value.
//! No message contains a secret. A command reads only the parts that it needs.

mod amqp;
mod clients;
mod database;
mod effective;
mod environment;
mod error;
mod files;
mod jwt;
mod key_files;
mod libraries;
mod markdown;
mod public_key;
mod relay;
mod secret;
mod secrets;
mod serve;
mod setting;
mod settings;
mod url_files;
mod values;

pub use self::amqp::AmqpConfig;
pub use self::clients::{ClientLimits, ProxyConfig, ProxyHeader};
pub use self::effective::{EffectiveSetting, Origin};
pub use self::environment::Environment;
pub use self::error::ConfigError;
pub use self::jwt::{JwksConfig, JwtConfig};
pub use self::key_files::{KeyFiles, Keys};
pub use self::markdown::table as markdown_table;
pub use self::public_key::{PublicAlgorithm, PublicKey};
pub use self::relay::RelayConfig;
pub use self::secret::Secret;
pub use self::serve::{GatewayConfig, IngestConfig, RoleConfig, ServeConfig, SessionConfig};
pub use self::settings::{EVENT_BYTES_MAX_DEFAULT, Role, SETTINGS, Setting};
pub use self::url_files::UrlFiles;
