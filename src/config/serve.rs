//! The configuration of `shopbell serve`, for both roles or for one.

use std::net::SocketAddr;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;

use super::amqp::AmqpConfig;
use super::clients::{ClientLimits, ProxyConfig};
use super::effective::EffectiveSetting;
use super::environment::Environment;
use super::error::ConfigError;
use super::jwt::{JWT_SETTINGS, JwtConfig};
use super::settings::{
    ALLOWED_ORIGINS, BROADCAST_FEED, CANARY_SECONDS, DASHBOARD, DRAIN_SECONDS, HEARTBEAT_SECONDS,
    LISTEN, MAX_EVENT_BYTES, MAX_FRAME_BYTES, MAX_PAGE_BYTES, MAX_SESSION_SECONDS, MAX_SESSIONS,
    MAX_SESSIONS_PER_SUBSCRIBER, OPS_LISTEN, OUTBOX_BATCH, OUTBOX_DATABASE_URL, RETENTION_DAYS,
    Role, SWEEP_SECONDS, WINDOW,
};
use super::url_files::UrlFiles;
use crate::model::feed::Feed;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The configuration of one replica.
#[derive(Debug, Clone)]
pub struct ServeConfig {
    /// `DATABASE_URL`.
    pub database: PgConnectOptions,
    /// RabbitMQ.
    pub amqp: AmqpConfig,
    /// The files of the URLs of both, which are read again.
    pub url_files: UrlFiles,
    /// `SHOPBELL_OPS_LISTEN`.
    pub ops_listen: SocketAddr,
    /// The roles of the replica.
    pub roles: RoleConfig,
}

/// The roles of one replica, with their settings.
#[derive(Debug, Clone)]
pub enum RoleConfig {
    /// Both roles.
    Both(IngestConfig, GatewayConfig),
    /// Ingest only.
    Ingest(IngestConfig),
    /// Gateway only.
    Gateway(GatewayConfig),
}

/// The settings of ingest.
#[derive(Debug, Clone)]
pub struct IngestConfig {
    /// `SHOPBELL_MAX_EVENT_BYTES`.
    pub event_bytes_max: usize,
    /// `SHOPBELL_BROADCAST_FEED`.
    pub broadcast_feed: Feed,
    /// `SHOPBELL_RETENTION_DAYS`; `None` if it is 0.
    pub retention: Option<Duration>,
}

/// The settings of the gateway.
#[derive(Debug, Clone)]
pub struct GatewayConfig {
    /// `SHOPBELL_LISTEN`.
    pub listen: SocketAddr,
    /// Tokens.
    pub jwt: JwtConfig,
    /// Sessions.
    pub session: SessionConfig,
    /// Proxies in front of the public port.
    pub proxies: ProxyConfig,
    /// Bounds of one client address and of one subscriber.
    pub limits: ClientLimits,
    /// `SHOPBELL_DASHBOARD`.
    pub dashboard: bool,
    /// `SHOPBELL_SWEEP_SECONDS`.
    pub sweep: Duration,
    /// `SHOPBELL_CANARY_SECONDS`; `None` if it is 0.
    pub canary: Option<Duration>,
    /// `SHOPBELL_MAX_EVENT_BYTES`.
    pub event_bytes_max: usize,
}

/// The settings of sessions.
#[derive(Debug, Clone)]
pub struct SessionConfig {
    /// `SHOPBELL_WINDOW`, in notifications.
    pub window: usize,
    /// `SHOPBELL_HEARTBEAT_SECONDS`.
    pub heartbeat: Duration,
    /// `SHOPBELL_MAX_SESSIONS`, of this replica.
    pub sessions_max: usize,
    /// `SHOPBELL_MAX_SESSIONS_PER_SUBSCRIBER`, of this replica.
    pub sessions_per_subscriber_max: usize,
    /// `SHOPBELL_MAX_SESSION_SECONDS`; `None` if it is 0.
    pub age_max: Option<Duration>,
    /// `SHOPBELL_MAX_FRAME_BYTES`.
    pub frame_bytes_max: usize,
    /// `SHOPBELL_MAX_PAGE_BYTES`, of this replica.
    pub page_bytes_max: usize,
    /// `SHOPBELL_DRAIN_SECONDS`.
    pub drain: Duration,
    /// `SHOPBELL_ALLOWED_ORIGINS`; empty for the same origin only.
    pub allowed_origins: Vec<String>,
    /// `SHOPBELL_BROADCAST_FEED`.
    pub broadcast_feed: Feed,
}

impl RoleConfig {
    /// The settings of ingest, if the replica has this role.
    pub fn ingest(&self) -> Option<&IngestConfig> {
        match self {
            Self::Both(ingest, _) | Self::Ingest(ingest) => Some(ingest),
            Self::Gateway(_) => None,
        }
    }

    /// The settings of the gateway, if the replica has this role.
    pub fn gateway(&self) -> Option<&GatewayConfig> {
        match self {
            Self::Both(_, gateway) | Self::Gateway(gateway) => Some(gateway),
            Self::Ingest(_) => None,
        }
    }

    /// The same, to be changed.
    pub fn gateway_mut(&mut self) -> Option<&mut GatewayConfig> {
        match self {
            Self::Both(_, gateway) | Self::Gateway(gateway) => Some(gateway),
            Self::Ingest(_) => None,
        }
    }
}

impl Environment {
    /// Reads the configuration of `serve` with this role, or with both. Logs a warning for each
    /// unknown variable.
    pub fn serve(mut self, role: Option<Role>) -> Result<ServeConfig, ConfigError> {
        let config = self.read_serve(role);
        for variable in self.unknown() {
            tracing::warn!(variable, "this variable is not known and has no effect");
        }
        self.finish(config)
    }

    /// Reads the same, and returns each effective setting too. An unknown variable is an error.
    pub fn explain(
        mut self,
        role: Option<Role>,
    ) -> Result<(ServeConfig, Vec<EffectiveSetting>), ConfigError> {
        let config = self.read_serve(role);
        for variable in self.unknown() {
            self.complain(&variable, "is not known and has no effect");
        }
        let config = self.finish(config)?;
        Ok((config, self.into_settings()))
    }

    /// Reads the broadcast feed only.
    pub fn broadcast_feed(mut self) -> Result<Feed, ConfigError> {
        let feed = self.feed(&BROADCAST_FEED);
        self.finish(feed)
    }

    /// Reads the address of the operations port only.
    pub fn ops_listen(mut self) -> Result<SocketAddr, ConfigError> {
        let address = self.address(&OPS_LISTEN);
        self.finish(address)
    }

    /// Both roles may share one environment. So the settings of the other role are checked too, and
    /// only its keys are ignored.
    fn read_serve(&mut self, role: Option<Role>) -> Option<ServeConfig> {
        self.set_role(role);
        let url_files = self.url_files();
        let database = self.read_database();
        let amqp = self.read_amqp();
        let ops_listen = self.address(&OPS_LISTEN);
        let broadcast_feed = self.feed(&BROADCAST_FEED);
        let event_bytes_max = self.number(&MAX_EVENT_BYTES);
        let ingest = self.read_ingest(broadcast_feed.clone(), event_bytes_max);
        let gateway = self.read_gateway(role, broadcast_feed, event_bytes_max);
        self.ignore(&OUTBOX_DATABASE_URL);
        let _ = self.number::<u32>(&OUTBOX_BATCH);
        let roles = match role {
            None => RoleConfig::Both(ingest?, gateway?),
            Some(Role::Ingest) => RoleConfig::Ingest(ingest?),
            Some(Role::Gateway) => RoleConfig::Gateway(gateway?),
        };
        Some(ServeConfig {
            database: database?,
            amqp: amqp?,
            url_files,
            ops_listen: ops_listen?,
            roles,
        })
    }

    fn read_ingest(
        &mut self,
        broadcast_feed: Option<Feed>,
        event_bytes_max: Option<usize>,
    ) -> Option<IngestConfig> {
        let retention_days = self.number::<u32>(&RETENTION_DAYS);
        Some(IngestConfig {
            event_bytes_max: event_bytes_max?,
            broadcast_feed: broadcast_feed?,
            retention: unless_zero(DAY * retention_days?),
        })
    }

    /// Returns `None` for ingest too, because ingest has no keys.
    fn read_gateway(
        &mut self,
        role: Option<Role>,
        broadcast_feed: Option<Feed>,
        event_bytes_max: Option<usize>,
    ) -> Option<GatewayConfig> {
        let listen = self.address(&LISTEN);
        let jwt = match role {
            None | Some(Role::Gateway) => self.read_jwt(),
            Some(Role::Ingest) => {
                JWT_SETTINGS.iter().for_each(|setting| self.ignore(setting));
                None
            }
        };
        let dashboard = self.flag(&DASHBOARD);
        let session = self.read_session(broadcast_feed);
        let limits = self.read_client_limits();
        let proxies = self.read_proxies();
        let sweep = self.seconds(&SWEEP_SECONDS);
        let canary = self.seconds(&CANARY_SECONDS);
        Some(GatewayConfig {
            listen: listen?,
            jwt: jwt?,
            session: session?,
            proxies: proxies?,
            limits: limits?,
            dashboard: dashboard?,
            sweep: sweep?,
            canary: unless_zero(canary?),
            event_bytes_max: event_bytes_max?,
        })
    }

    fn read_session(&mut self, broadcast_feed: Option<Feed>) -> Option<SessionConfig> {
        let allowed_origins = self.origins(&ALLOWED_ORIGINS);
        let window = self.number(&WINDOW);
        let heartbeat = self.seconds(&HEARTBEAT_SECONDS);
        let sessions_max = self.number(&MAX_SESSIONS);
        let sessions_per_subscriber_max = self.number(&MAX_SESSIONS_PER_SUBSCRIBER);
        let age_max = self.seconds(&MAX_SESSION_SECONDS);
        let frame_bytes_max = self.number(&MAX_FRAME_BYTES);
        let page_bytes_max = self.number(&MAX_PAGE_BYTES);
        let drain = self.seconds(&DRAIN_SECONDS);
        Some(SessionConfig {
            window: window?,
            heartbeat: heartbeat?,
            sessions_max: sessions_max?,
            sessions_per_subscriber_max: sessions_per_subscriber_max?,
            age_max: unless_zero(age_max?),
            frame_bytes_max: frame_bytes_max?,
            page_bytes_max: page_bytes_max?,
            drain: drain?,
            allowed_origins: allowed_origins.unwrap_or_default(),
            broadcast_feed: broadcast_feed?,
        })
    }
}

fn unless_zero(duration: Duration) -> Option<Duration> {
    (!duration.is_zero()).then_some(duration)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests;
