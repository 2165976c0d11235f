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
    MAX_SESSIONS_PER_SUBSCRIBER, OPS_LISTEN, RETENTION_DAYS, Role, SWEEP_SECONDS, WINDOW,
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
        let ingest = self.read_ingest(broadcast_feed.clone());
        let gateway = self.read_gateway(role, broadcast_feed);
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

    fn read_ingest(&mut self, broadcast_feed: Option<Feed>) -> Option<IngestConfig> {
        let event_bytes_max = self.number(&MAX_EVENT_BYTES);
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
mod tests {
    use super::super::settings::{EVENT_BYTES_MAX_DEFAULT, Kind};
    use super::super::{Origin, SETTINGS};
    use super::*;

    const GOOD: [(&str, &str); 3] = [
        ("DATABASE_URL", "postgres://u:hidden@h/d"),
        ("AMQP_URL", "amqp://u:hidden@h"),
        (
            "SHOPBELL_JWT_HS256_SECRET",
            "0123456789abcdef0123456789abcdef",
        ),
    ];

    fn environment(variables: &[(&str, &str)]) -> Environment {
        Environment::of(
            variables
                .iter()
                .map(|(name, value)| ((*name).into(), (*value).into()))
                .collect(),
        )
    }

    #[test]
    fn three_variables_are_enough() {
        let config = environment(&GOOD).serve(None).unwrap();
        let gateway = config.roles.gateway().unwrap();
        assert_eq!(
            (gateway.session.window, gateway.session.heartbeat.as_secs()),
            (256, 25)
        );
        assert_eq!(
            (gateway.listen.to_string(), config.ops_listen.to_string()),
            ("0.0.0.0:8080".into(), "0.0.0.0:9090".into())
        );
        let amqp = config.amqp;
        assert_eq!(
            (amqp.prefix.as_str(), amqp.partitions, amqp.declare),
            ("shopbell", 1, true)
        );
        assert_eq!(
            config.roles.ingest().unwrap().event_bytes_max,
            EVENT_BYTES_MAX_DEFAULT
        );
    }

    #[test]
    fn a_role_reads_only_the_keys_that_it_needs() {
        let unused_secret = ("SHOPBELL_JWT_HS256_SECRET", "short");
        let ingest = environment(&[GOOD[0], GOOD[1], unused_secret])
            .serve(Some(Role::Ingest))
            .unwrap();
        assert!(matches!(ingest.roles, RoleConfig::Ingest(_)));
        let gateway = environment(&GOOD).serve(Some(Role::Gateway)).unwrap();
        assert!(matches!(gateway.roles, RoleConfig::Gateway(_)));
        let refused = environment(&GOOD[..2])
            .serve(Some(Role::Gateway))
            .unwrap_err();
        assert!(
            refused.to_string().contains("SHOPBELL_JWT_HS256_SECRET"),
            "{refused}"
        );
    }

    #[test]
    fn one_message_names_every_bad_value_and_no_secret() {
        let bad = [
            ("DATABASE_URL", "mysql://hidden"),
            ("AMQP_URL", "http://hidden"),
            ("SHOPBELL_JWT_HS256_SECRET", "hidden"),
            ("SHOPBELL_WINDOW", "0"),
            ("SHOPBELL_LISTEN", "nowhere"),
            ("SHOPBELL_ALLOWED_ORIGINS", "*"),
            ("SHOPBELL_BROADCAST_FEED", "a b"),
            ("SHOPBELL_AMQP_DECLARE", "maybe"),
            ("SHOPBELL_INGEST_PARTITIONS", "65"),
        ];
        let message = environment(&bad).serve(None).unwrap_err().to_string();
        for (name, _) in bad {
            assert!(message.contains(name), "{name} is not named in: {message}");
        }
        assert!(!message.contains("hidden"), "{message}");
        let missing = environment(&[]).serve(None).unwrap_err();
        assert_eq!(missing.to_string().lines().count(), 1 + 3, "{missing}");
    }

    fn explained(variables: &[(&str, &str)], role: Option<Role>) -> Vec<EffectiveSetting> {
        environment(variables).explain(role).unwrap().1
    }

    fn of<'a>(settings: &'a [EffectiveSetting], variable: &str) -> Option<(&'a str, Origin)> {
        let setting = settings
            .iter()
            .find(|setting| setting.variable == variable)?;
        Some((setting.value.as_deref().unwrap_or_default(), setting.origin))
    }

    #[test]
    fn each_setting_is_explained_with_its_value_and_origin() {
        let mut given = GOOD.to_vec();
        given.extend([
            ("SHOPBELL_WINDOW", " 7 "),
            (
                "SHOPBELL_ALLOWED_ORIGINS",
                "https://a.example , https://b.example",
            ),
        ]);
        let settings = explained(&given, None);
        let of = |variable| of(&settings, variable).unwrap();
        assert_eq!(of("SHOPBELL_WINDOW"), ("7", Origin::Set));
        assert_eq!(of("SHOPBELL_CANARY_SECONDS"), ("30", Origin::Default));
        assert_eq!(
            of("SHOPBELL_ALLOWED_ORIGINS"),
            ("https://a.example,https://b.example", Origin::Set)
        );
        assert_eq!(of("SHOPBELL_JWT_ISSUER"), ("", Origin::Default));
        assert_eq!(of("SHOPBELL_JWT_HS256_SECRET"), ("(secret)", Origin::Set));
        let shown = format!("{settings:?}");
        assert!(
            !shown.contains("hidden") && !shown.contains(GOOD[2].1),
            "{shown}"
        );
        let variables: Vec<_> = settings.iter().map(|one| one.variable.as_str()).collect();
        assert_eq!(variables, SETTINGS.map(|setting| setting.variable));
    }

    #[test]
    fn a_url_is_shown_without_its_secrets() {
        let urls = [
            (
                "DATABASE_URL",
                "postgres://me:hidden@db.example/shop?sslmode=verify-full&application_name=hidden",
            ),
            (
                "AMQP_URL",
                "amqps://me:hidden@mq.example/%2f?heartbeat=5&auth=hidden#hidden",
            ),
            GOOD[2],
        ];
        let settings = explained(&urls, None);
        let shown = |variable| of(&settings, variable).unwrap().0;
        assert_eq!(
            shown("DATABASE_URL"),
            "postgres://me@db.example:5432/shop?sslmode=verify-full"
        );
        assert_eq!(shown("AMQP_URL"), "amqps://me@mq.example/%2f");
    }

    #[test]
    fn settings_of_the_other_role_are_not_shown() {
        let settings = explained(&GOOD, Some(Role::Ingest));
        assert!(
            of(&settings, "SHOPBELL_WINDOW").is_none()
                && of(&settings, "SHOPBELL_JWT_HS256_SECRET").is_none()
        );
        assert!(of(&settings, "SHOPBELL_MAX_EVENT_BYTES").is_some());
        let settings = explained(&GOOD, Some(Role::Gateway));
        assert!(
            of(&settings, "SHOPBELL_WINDOW").is_some()
                && of(&settings, "SHOPBELL_MAX_EVENT_BYTES").is_none()
        );
    }

    #[test]
    fn an_unknown_variable_is_an_error_of_explain_only() {
        let mut given = GOOD.to_vec();
        given.extend([
            ("SHOPBELL_WINDOWS", "7"),
            ("SHOPBELL_TOKEN", "hidden"),
            ("SHOPBELL_DRAIN_SECONDS", "soon"),
        ]);
        let refused = environment(&given).explain(None).unwrap_err();
        assert_eq!(refused.to_string().lines().count(), 1 + 2, "{refused}");
        assert!(
            refused
                .to_string()
                .contains("SHOPBELL_WINDOWS is not known"),
            "{refused}"
        );
        given.pop();
        assert!(environment(&given).serve(None).is_ok());
    }

    #[test]
    fn zero_seconds_disable_the_canary() {
        let canary = |given: &[_]| {
            environment(given)
                .serve(None)
                .unwrap()
                .roles
                .gateway()
                .unwrap()
                .canary
        };
        assert_eq!(canary(&GOOD), Some(Duration::from_secs(30)));
        assert_eq!(
            canary(&[&GOOD[..], &[("SHOPBELL_CANARY_SECONDS", "0")]].concat()),
            None
        );
    }

    #[test]
    fn each_number_has_the_range_of_the_table() {
        let mut checked = 0;
        for setting in SETTINGS {
            let Kind::Number { min, max, .. } = setting.kind else {
                continue;
            };
            let accepts = |value: u64| {
                let value = value.to_string();
                let given = [&GOOD[..], &[(setting.variable, &value)]].concat();
                environment(&given).serve(None).is_ok()
            };
            assert!(accepts(min) && accepts(max), "{}", setting.variable);
            assert!(!accepts(max + 1), "{}", setting.variable);
            assert!(min == 0 || !accepts(min - 1), "{}", setting.variable);
            checked += 1;
        }
        assert!(checked > 10);
    }

    #[test]
    fn a_secret_has_at_least_32_bytes() {
        let accepts = |bytes| {
            let secret = "s".repeat(bytes);
            let given = [GOOD[0], GOOD[1], ("SHOPBELL_JWT_HS256_SECRET", &secret)];
            environment(&given).serve(None).is_ok()
        };
        assert!(accepts(32));
        assert!(!accepts(31));
    }
}
