//! The environment, read to its end: every bad value is named in one message, and no secret is ever in it.
//!
//! A command asks for the parts it needs; each part is a small struct of plain values.

mod database;
mod environment;
mod jwt;

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use url::Url;

pub use self::environment::{Environment, Origin, Setting};
pub use self::jwt::{JwtConfig, KeyFiles, Keys};
use crate::model::feed::Feed;

/// Most of `SHOPBELL_INGEST_PARTITIONS`: each costs every ingesting replica two connections to RabbitMQ and one to Postgres.
const PARTITIONS_MAX: u8 = 64;

/// `SHOPBELL_MAX_EVENT_BYTES` where it is not set.
pub const EVENT_BYTES_MAX_DEFAULT: usize = 262_144;

/// Everything wrong with the environment.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigError {
    complaints: Vec<String>,
}

impl std::error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the configuration is not usable:")?;
        self.complaints
            .iter()
            .try_for_each(|complaint| write!(f, "\n  {complaint}"))
    }
}

/// Text that must not be shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text, for the one who needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// RabbitMQ.
#[derive(Debug, Clone)]
pub struct AmqpConfig {
    /// `AMQP_URL`.
    pub url: Secret,
    /// `SHOPBELL_AMQP_PREFIX`.
    pub prefix: String,
    /// `SHOPBELL_INGEST_PARTITIONS`.
    pub partitions: u8,
    /// `SHOPBELL_AMQP_DECLARE`.
    pub declare: bool,
}

/// What a session may and must do.
#[derive(Debug, Clone)]
pub struct SessionConfig {
    /// `SHOPBELL_WINDOW`, in notifications.
    pub window: usize,
    /// `SHOPBELL_HEARTBEAT_SECONDS`.
    pub heartbeat: Duration,
    /// `SHOPBELL_MAX_SESSIONS`, on this replica.
    pub sessions_max: usize,
    /// `SHOPBELL_MAX_SESSIONS_PER_SUBSCRIBER`, on this replica.
    pub sessions_per_subscriber_max: usize,
    /// `SHOPBELL_MAX_SESSION_SECONDS`.
    pub age_max: Option<Duration>,
    /// `SHOPBELL_MAX_FRAME_BYTES`.
    pub frame_bytes_max: usize,
    /// `SHOPBELL_DRAIN_SECONDS`.
    pub drain: Duration,
    /// `SHOPBELL_ALLOWED_ORIGINS`; empty for same origin.
    pub allowed_origins: Vec<String>,
    /// `SHOPBELL_BROADCAST_FEED`.
    pub broadcast_feed: Feed,
}

/// A part of Shopbell that may run alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Role {
    /// Store what is published: no public port, no token's secret.
    Ingest,
    /// Serve clients: takes nothing from the ingest queues.
    Gateway,
}

/// What `shopbell serve` runs on.
#[derive(Debug, Clone)]
pub struct ServeConfig {
    /// `DATABASE_URL`.
    pub database: PgConnectOptions,
    /// RabbitMQ.
    pub amqp: AmqpConfig,
    /// `SHOPBELL_OPS_LISTEN`.
    pub ops_listen: SocketAddr,
    /// What ingest runs on; `None` where the role has none.
    pub ingest: Option<IngestConfig>,
    /// What the gateway runs on; `None` where the role has none.
    pub gateway: Option<GatewayConfig>,
}

/// What storing runs on.
#[derive(Debug, Clone)]
pub struct IngestConfig {
    /// `SHOPBELL_MAX_EVENT_BYTES`.
    pub event_bytes_max: usize,
    /// `SHOPBELL_BROADCAST_FEED`.
    pub broadcast_feed: Feed,
}

/// What serving clients runs on.
#[derive(Debug, Clone)]
pub struct GatewayConfig {
    /// `SHOPBELL_LISTEN`.
    pub listen: SocketAddr,
    /// Tokens.
    pub jwt: JwtConfig,
    /// Sessions.
    pub session: SessionConfig,
    /// `SHOPBELL_DASHBOARD`.
    pub dashboard: bool,
    /// `SHOPBELL_CANARY_SECONDS`.
    pub canary: Option<Duration>,
}

impl Environment {
    /// Everything that `serve` needs in this role, or in all of them.
    pub fn serve(mut self, role: Option<Role>) -> Result<ServeConfig, ConfigError> {
        let config = self.read_serve(role);
        for unknown in self.unknown() {
            tracing::warn!(
                variable = unknown,
                "this variable is not known and has no effect"
            );
        }
        self.finish(config)
    }

    /// The same, with each setting that it would run on. Here an unknown variable is an error: somebody asks.
    pub fn explain(
        mut self,
        role: Option<Role>,
    ) -> Result<(ServeConfig, Vec<Setting>), ConfigError> {
        let config = self.read_serve(role);
        for unknown in self.unknown().collect::<Vec<_>>() {
            self.complain(&unknown, "is not known and has no effect");
        }
        let config = self.finish(config)?;
        Ok((config, self.into_settings()))
    }

    /// Postgres alone.
    pub fn database(mut self) -> Result<PgConnectOptions, ConfigError> {
        let database = self.read_database();
        self.finish(database)
    }

    /// RabbitMQ alone.
    pub fn amqp(mut self) -> Result<AmqpConfig, ConfigError> {
        let amqp = self.read_amqp();
        self.finish(amqp)
    }

    /// The broadcast feed alone.
    pub fn broadcast_feed(mut self) -> Result<Feed, ConfigError> {
        let feed = self.read_broadcast_feed();
        self.finish(Some(feed))
    }

    /// Where the operations port is.
    pub fn ops_listen(mut self) -> Result<SocketAddr, ConfigError> {
        let address = self.read_ops_listen();
        self.finish(Some(address))
    }

    fn read_serve(&mut self, role: Option<Role>) -> Option<ServeConfig> {
        let database = self.read_database();
        let amqp = self.read_amqp();
        let ops_listen = self.read_ops_listen();
        let broadcast_feed = self.read_broadcast_feed();
        let ingest = self.read_ingest(role != Some(Role::Gateway), broadcast_feed.clone());
        let gateway = self.read_gateway(role != Some(Role::Ingest), broadcast_feed);
        // The token of `tail`, which may well run in the same shell.
        self.take("SHOPBELL_TOKEN");
        let ((database, amqp), gateway) = database.zip(amqp).zip(gateway)?;
        Some(ServeConfig {
            database,
            amqp,
            ops_listen,
            ingest,
            gateway,
        })
    }

    fn read_database(&mut self) -> Option<PgConnectOptions> {
        self.secret(
            "DATABASE_URL",
            |url| database::read(url.reveal()),
            |options| Some(database::shown(options)),
        )
    }

    fn read_amqp(&mut self) -> Option<AmqpConfig> {
        let read = |url: &Secret| {
            let parsed = Url::parse(url.reveal())
                .ok()
                .filter(|url| ["amqp", "amqps"].contains(&url.scheme()));
            let parsed = parsed.ok_or("must be a URL like amqp://user:password@host:5672/vhost")?;
            Ok((url.clone(), parsed))
        };
        let url = self.secret("AMQP_URL", read, |(_, url)| {
            Some(environment::without_secrets(url.clone()))
        });
        let prefix = self.text("SHOPBELL_AMQP_PREFIX", "shopbell", |prefix| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            let is_good = (1..=100).contains(&prefix.len()) && prefix.chars().all(allowed);
            if is_good {
                Ok(())
            } else {
                Err("must be 1 to 100 of A-Z a-z 0-9 . _ -".into())
            }
        });
        let partitions = self.number("SHOPBELL_INGEST_PARTITIONS", 1, 1..=PARTITIONS_MAX);
        let declare = self.parse("SHOPBELL_AMQP_DECLARE", true, "true or false");
        let (url, _) = url?;
        Some(AmqpConfig {
            url,
            prefix,
            partitions,
            declare,
        })
    }

    /// Read also where the role has none, because roles may share an environment; then none of it is used.
    fn read_ingest(&mut self, is_wanted: bool, broadcast_feed: Feed) -> Option<IngestConfig> {
        let used = self.settings.len();
        let event_bytes_max = self.number(
            "SHOPBELL_MAX_EVENT_BYTES",
            EVENT_BYTES_MAX_DEFAULT,
            65_536..=16_777_216,
        );
        if !is_wanted {
            self.settings.truncate(used);
            return None;
        }
        Some(IngestConfig {
            event_bytes_max,
            broadcast_feed,
        })
    }

    /// The outer `None` is a complaint, the inner one a role without it. Its settings are read either way; its secret is
    /// not.
    fn read_gateway(
        &mut self,
        is_wanted: bool,
        broadcast_feed: Feed,
    ) -> Option<Option<GatewayConfig>> {
        let used = self.settings.len();
        let listen = self.parse(
            "SHOPBELL_LISTEN",
            SocketAddr::from(([0, 0, 0, 0], 8080)),
            "an address like 0.0.0.0:8080",
        );
        let session = self.read_session(broadcast_feed);
        let dashboard = self.parse("SHOPBELL_DASHBOARD", false, "true or false");
        let canary = self.seconds_or_off("SHOPBELL_CANARY_SECONDS", 30, 3_600);
        if !is_wanted {
            self.settings.truncate(used);
            self.given
                .retain(|name, _| !name.starts_with("shopbell_jwt_"));
            return Some(None);
        }
        let jwt = self.read_jwt()?;
        Some(Some(GatewayConfig {
            listen,
            jwt,
            session,
            dashboard,
            canary,
        }))
    }

    fn read_session(&mut self, broadcast_feed: Feed) -> SessionConfig {
        SessionConfig {
            allowed_origins: self.read_origins(),
            broadcast_feed,
            window: self.number("SHOPBELL_WINDOW", 256, 1..=65_536),
            heartbeat: Duration::from_secs(self.number(
                "SHOPBELL_HEARTBEAT_SECONDS",
                25,
                1..=3_600,
            )),
            sessions_max: self.number("SHOPBELL_MAX_SESSIONS", 50_000, 1..=1_000_000),
            sessions_per_subscriber_max: self.number(
                "SHOPBELL_MAX_SESSIONS_PER_SUBSCRIBER",
                50,
                1..=1_000_000,
            ),
            age_max: self.seconds_or_off("SHOPBELL_MAX_SESSION_SECONDS", 0, 31_536_000),
            frame_bytes_max: self.number("SHOPBELL_MAX_FRAME_BYTES", 16_384, 1_024..=1_048_576),
            drain: Duration::from_secs(self.number("SHOPBELL_DRAIN_SECONDS", 20, 0..=3_600)),
        }
    }

    /// Both roles need it: one never stores an order in it, the other sends it to everyone.
    fn read_broadcast_feed(&mut self) -> Feed {
        let read = |name: &str| match Feed::parse(name) {
            Ok(feed) if feed.is_of_a_canary() => Err("must not begin with shopbell-canary/".into()),
            Ok(feed) => Ok(feed),
            Err(error) => Err(error.to_string()),
        };
        self.read(
            "SHOPBELL_BROADCAST_FEED",
            Feed::of_everyone(),
            read,
            |feed| Some(feed.to_string()),
        )
    }

    /// Each as browsers write it: in lower case, in ASCII, without a default port.
    fn read_origins(&mut self) -> Vec<String> {
        let read = |list: &str| {
            let origins = list
                .split(',')
                .map(str::trim)
                .filter(|origin| !origin.is_empty());
            let origins: Option<Vec<_>> = origins.map(serialized_origin).collect();
            let expected =
                "must be origins like https://shop.example, comma separated, without path or *";
            origins.ok_or_else(|| expected.into())
        };
        self.read("SHOPBELL_ALLOWED_ORIGINS", Vec::new(), read, |origins| {
            (!origins.is_empty()).then(|| origins.join(","))
        })
    }

    fn read_ops_listen(&mut self) -> SocketAddr {
        self.parse(
            "SHOPBELL_OPS_LISTEN",
            SocketAddr::from(([0, 0, 0, 0], 9090)),
            "an address like 0.0.0.0:9090",
        )
    }

    /// 0 turns it off.
    fn seconds_or_off(&mut self, name: &'static str, default: u64, max: u64) -> Option<Duration> {
        match self.number(name, default, 0..=max) {
            0 => None,
            seconds => Some(Duration::from_secs(seconds)),
        }
    }
}

/// An origin as browsers write it (RFC 6454 §6.2); `None` if no page can have it.
fn serialized_origin(origin: &str) -> Option<String> {
    let (scheme, host) = origin.split_once("://")?;
    let is_web = ["http", "https"]
        .iter()
        .any(|web| scheme.eq_ignore_ascii_case(web));
    let is_host = !host.is_empty() && !host.contains(['/', '\\', '*', '@', '?', '#', '%']);
    let url = (is_web && is_host)
        .then(|| Url::parse(origin).ok())
        .flatten()?;
    Some(url.origin().ascii_serialization())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
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
        let gateway = config.gateway.unwrap();
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
            config.ingest.unwrap().event_bytes_max,
            EVENT_BYTES_MAX_DEFAULT
        );
    }

    #[test]
    fn a_role_has_what_it_needs_and_no_more() {
        let unused_secret = ("SHOPBELL_JWT_HS256_SECRET", "short");
        let ingest = environment(&[GOOD[0], GOOD[1], unused_secret])
            .serve(Some(Role::Ingest))
            .unwrap();
        assert!(ingest.ingest.is_some() && ingest.gateway.is_none());
        let gateway = environment(&GOOD).serve(Some(Role::Gateway)).unwrap();
        assert!(gateway.ingest.is_none() && gateway.gateway.is_some());
        let refused = environment(&GOOD[..2])
            .serve(Some(Role::Gateway))
            .unwrap_err();
        assert!(
            refused.to_string().contains("SHOPBELL_JWT_HS256_SECRET"),
            "{refused}"
        );
    }

    #[test]
    fn every_bad_value_is_named_in_one_message_and_no_secret_is_shown() {
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
        assert_eq!(missing.complaints.len(), 3, "{missing}");
    }

    fn explained(variables: &[(&str, &str)], role: Option<Role>) -> Vec<Setting> {
        environment(variables).explain(role).unwrap().1
    }

    fn of<'a>(settings: &'a [Setting], variable: &str) -> Option<(&'a str, Origin)> {
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
        let told = format!("{settings:?}");
        assert!(
            !told.contains("hidden") && !told.contains(GOOD[2].1),
            "{told}"
        );
    }

    #[test]
    fn a_url_is_explained_without_what_is_secret_in_it() {
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
        let told = |variable| of(&settings, variable).unwrap().0;
        assert_eq!(
            told("DATABASE_URL"),
            "postgres://me@db.example:5432/shop?sslmode=verify-full"
        );
        assert_eq!(told("AMQP_URL"), "amqps://me@mq.example/%2f");
    }

    #[test]
    fn a_role_is_explained_without_the_other_s_settings() {
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
    fn an_unknown_variable_is_an_error_only_to_who_asks() {
        let mut given = GOOD.to_vec();
        given.extend([
            ("SHOPBELL_WINDOWS", "7"),
            ("SHOPBELL_TOKEN", "hidden"),
            ("SHOPBELL_DRAIN_SECONDS", "soon"),
        ]);
        let refused = environment(&given).explain(None).unwrap_err();
        assert_eq!(refused.complaints.len(), 2, "{refused}");
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
    fn allowed_origins_are_kept_as_browsers_write_them() {
        let origins = |list| {
            let given = [&GOOD[..], &[("SHOPBELL_ALLOWED_ORIGINS", list)]].concat();
            environment(&given)
                .serve(None)
                .map(|config| config.gateway.unwrap().session.allowed_origins)
        };
        let kept = [
            "https://shop.example",
            "http://shop.example:443",
            "https://xn--mnchen-3ya.example",
            "http://[::1]:8080",
        ];
        let list = "HTTPS://Shop.Example:443, http://shop.example:443,https://münchen.example,http://[0:0::1]:8080";
        assert_eq!(origins(list), Ok(kept.map(String::from).into()));
        for bad in [
            "shop.example",
            "https://shop.example/",
            "https://*.shop.example",
            "https://user@shop.example",
            "https://shop.example:99999",
            "https://shop example",
            "ftp://shop.example",
            "null",
            "https://",
        ] {
            assert!(origins(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_canary_sings_unless_it_is_turned_off() {
        let canary = |given: &[_]| {
            environment(given)
                .serve(None)
                .unwrap()
                .gateway
                .unwrap()
                .canary
        };
        assert_eq!(canary(&GOOD), Some(Duration::from_secs(30)));
        assert_eq!(
            canary(&[&GOOD[..], &[("SHOPBELL_CANARY_SECONDS", "0")]].concat()),
            None
        );
    }
}
