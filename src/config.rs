//! The environment, read to its end: every bad value is named in one message, and no secret is ever in it.
//!
//! A command asks for the parts it needs; each part is a small struct of plain values.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;

/// Shortest HS256 secret (RFC 7518 §3.2: as long as the hash).
const SECRET_BYTES_MIN: usize = 32;

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
        self.complaints.iter().try_for_each(|complaint| write!(f, "\n  {complaint}"))
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

/// Tokens.
#[derive(Debug, Clone)]
pub struct JwtConfig {
    /// `SHOPBELL_JWT_HS256_SECRET`.
    pub secret: Secret,
    /// `SHOPBELL_JWT_AUDIENCE`.
    pub audience: Option<String>,
    /// `SHOPBELL_JWT_ISSUER`.
    pub issuer: Option<String>,
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
    pub broadcast_feed: String,
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
}

/// The variables that are ours, as far as they were not taken, and what was wrong with those that were.
#[derive(Debug, Default)]
pub struct Environment {
    given: BTreeMap<String, String>,
    complaints: Vec<String>,
}

impl Environment {
    /// Reads the process's environment. An empty variable counts as unset.
    pub fn of_process() -> Self {
        let mut complaints = Vec::new();
        let mut ours = Vec::new();
        // Not `vars()`, which panics on a variable that is not Unicode, whosever it is.
        for (name, value) in std::env::vars_os() {
            let Ok(name) = name.into_string() else { continue };
            if !is_ours(&name) || value.is_empty() {
                continue;
            }
            match value.into_string() {
                Ok(value) => ours.push((name, value)),
                Err(_) => complaints.push(format!("{name} is not UTF-8")),
            }
        }
        Self { complaints, ..Self::of(ours) }
    }

    /// Reads these variables.
    pub fn of(variables: Vec<(String, String)>) -> Self {
        // A map of strings takes whatever strings there are: envy has nothing to refuse.
        let given = envy::from_iter::<_, BTreeMap<String, String>>(variables).unwrap_or_default();
        Self { given, complaints: Vec::new() }
    }

    /// Everything that `serve` needs in this role, or in all of them.
    pub fn serve(mut self, role: Option<Role>) -> Result<ServeConfig, ConfigError> {
        let database = self.read_database();
        let amqp = self.read_amqp();
        let ops_listen = self.read_ops_listen();
        let ingest = self.read_ingest();
        let gateway = self.read_gateway(role != Some(Role::Ingest));
        // The token of `tail`, which may well run in the same shell.
        self.take("SHOPBELL_TOKEN");
        for unknown in self.given.keys().filter(|name| name.starts_with("shopbell_")) {
            tracing::warn!(variable = unknown.to_uppercase(), "this variable is not known and has no effect");
        }
        let ingest = (role != Some(Role::Gateway)).then_some(ingest);
        let parts = database.zip(amqp).zip(gateway);
        self.finish(parts.map(|((database, amqp), gateway)| ServeConfig {
            database,
            amqp,
            ops_listen,
            ingest,
            gateway,
        }))
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

    /// Tokens alone.
    pub fn jwt(mut self) -> Result<JwtConfig, ConfigError> {
        let jwt = self.read_jwt();
        self.finish(jwt)
    }

    /// Where the operations port is.
    pub fn ops_listen(mut self) -> Result<SocketAddr, ConfigError> {
        let address = self.read_ops_listen();
        self.finish(Some(address))
    }

    fn finish<T>(self, value: Option<T>) -> Result<T, ConfigError> {
        match value {
            Some(value) if self.complaints.is_empty() => Ok(value),
            _ => Err(ConfigError { complaints: self.complaints }),
        }
    }

    fn read_database(&mut self) -> Option<PgConnectOptions> {
        let url = self.required_secret("DATABASE_URL")?;
        let is_postgres = ["postgres://", "postgresql://"].iter().any(|scheme| url.reveal().starts_with(scheme));
        let options = PgConnectOptions::from_str(url.reveal()).ok().filter(|_| is_postgres);
        if options.is_none() {
            self.complain("DATABASE_URL", "must be a URL like postgres://user:password@host:5432/database");
        }
        options
    }

    fn read_amqp(&mut self) -> Option<AmqpConfig> {
        let prefix = self.take("SHOPBELL_AMQP_PREFIX").unwrap_or_else(|| "shopbell".into());
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if !(1..=100).contains(&prefix.len()) || !prefix.chars().all(allowed) {
            self.complain("SHOPBELL_AMQP_PREFIX", "must be 1 to 100 of A-Z a-z 0-9 . _ -");
        }
        let partitions = self.number("SHOPBELL_INGEST_PARTITIONS", 1, 1..=PARTITIONS_MAX);
        let declare = self.parse("SHOPBELL_AMQP_DECLARE", true, "true or false");
        let url = self.required_secret("AMQP_URL")?;
        if !["amqp://", "amqps://"].iter().any(|scheme| url.reveal().starts_with(scheme)) {
            self.complain("AMQP_URL", "must be a URL like amqp://user:password@host:5672/vhost");
        }
        Some(AmqpConfig { url, prefix, partitions, declare })
    }

    fn read_ingest(&mut self) -> IngestConfig {
        let event_bytes_max = self.number("SHOPBELL_MAX_EVENT_BYTES", EVENT_BYTES_MAX_DEFAULT, 65_536..=16_777_216);
        IngestConfig { event_bytes_max }
    }

    /// The outer `None` is a complaint, the inner one a role without it. Its settings are read either way, because roles
    /// may share an environment; its secret is not.
    fn read_gateway(&mut self, is_wanted: bool) -> Option<Option<GatewayConfig>> {
        let listen =
            self.parse("SHOPBELL_LISTEN", SocketAddr::from(([0, 0, 0, 0], 8080)), "an address like 0.0.0.0:8080");
        let session = self.read_session();
        let dashboard = self.parse("SHOPBELL_DASHBOARD", false, "true or false");
        if !is_wanted {
            self.given.retain(|name, _| !name.starts_with("shopbell_jwt_"));
            return Some(None);
        }
        let jwt = self.read_jwt()?;
        Some(Some(GatewayConfig { listen, jwt, session, dashboard }))
    }

    fn read_jwt(&mut self) -> Option<JwtConfig> {
        let (audience, issuer) = (self.take("SHOPBELL_JWT_AUDIENCE"), self.take("SHOPBELL_JWT_ISSUER"));
        let secret = self.required_secret("SHOPBELL_JWT_HS256_SECRET")?;
        if secret.reveal().len() < SECRET_BYTES_MIN {
            self.complain("SHOPBELL_JWT_HS256_SECRET", "must have at least 32 bytes");
        }
        Some(JwtConfig { secret, audience, issuer })
    }

    fn read_session(&mut self) -> SessionConfig {
        let seconds = |number: usize| Duration::from_secs(number as u64);
        let broadcast_feed = self.take("SHOPBELL_BROADCAST_FEED").unwrap_or_else(|| "all".into());
        if let Err(error) = crate::feed::Feed::parse(&broadcast_feed) {
            self.complain("SHOPBELL_BROADCAST_FEED", &error.to_string());
        }
        SessionConfig {
            window: self.number("SHOPBELL_WINDOW", 256, 1..=65_536),
            heartbeat: seconds(self.number("SHOPBELL_HEARTBEAT_SECONDS", 25, 1..=3_600)),
            sessions_max: self.number("SHOPBELL_MAX_SESSIONS", 50_000, 1..=1_000_000),
            sessions_per_subscriber_max: self.number("SHOPBELL_MAX_SESSIONS_PER_SUBSCRIBER", 50, 1..=1_000_000),
            age_max: match self.number("SHOPBELL_MAX_SESSION_SECONDS", 0, 0..=31_536_000) {
                0 => None,
                age => Some(seconds(age)),
            },
            frame_bytes_max: self.number("SHOPBELL_MAX_FRAME_BYTES", 16_384, 1_024..=1_048_576),
            drain: seconds(self.number("SHOPBELL_DRAIN_SECONDS", 20, 0..=3_600)),
            allowed_origins: self.read_origins(),
            broadcast_feed,
        }
    }

    fn read_origins(&mut self) -> Vec<String> {
        let list = self.take("SHOPBELL_ALLOWED_ORIGINS").unwrap_or_default();
        let origins: Vec<String> = list.split(',').map(str::trim).filter(|o| !o.is_empty()).map(Into::into).collect();
        let is_origin = |origin: &String| {
            let host = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
            host.is_some_and(|host| !host.is_empty() && !host.contains(['/', '*', '@', '?', '#']))
        };
        if !origins.iter().all(is_origin) {
            self.complain(
                "SHOPBELL_ALLOWED_ORIGINS",
                "must be origins like https://shop.example, comma separated, without path or *",
            );
        }
        origins
    }

    fn read_ops_listen(&mut self) -> SocketAddr {
        self.parse("SHOPBELL_OPS_LISTEN", SocketAddr::from(([0, 0, 0, 0], 9090)), "an address like 0.0.0.0:9090")
    }

    /// A variable, or the content of the file that `NAME_FILE` names.
    fn required_secret(&mut self, name: &'static str) -> Option<Secret> {
        let direct = self.take(name);
        let file = self.take(&format!("{name}_FILE"));
        let value = match (direct, file) {
            (Some(_), Some(_)) => {
                self.complain(name, &format!("and {name}_FILE are both set: set one"));
                return None;
            }
            (Some(value), None) => value,
            (None, Some(path)) => match std::fs::read_to_string(&path) {
                Ok(content) => content.trim_end_matches(['\r', '\n']).to_owned(),
                Err(error) => {
                    self.complain(&format!("{name}_FILE"), &format!("names {path}, which cannot be read: {error}"));
                    return None;
                }
            },
            (None, None) => String::new(),
        };
        if value.is_empty() {
            self.complain(name, "is required");
            return None;
        }
        Some(Secret(value))
    }

    fn number<T: Copy + FromStr + PartialOrd + fmt::Display>(
        &mut self,
        name: &'static str,
        default: T,
        range: RangeInclusive<T>,
    ) -> T {
        let value = self.take(name).map(|text| text.trim().parse().ok().filter(|number| range.contains(number)));
        value.unwrap_or(Some(default)).unwrap_or_else(|| {
            self.complain(name, &format!("must be a whole number from {} to {}", range.start(), range.end()));
            default
        })
    }

    fn parse<T: FromStr>(&mut self, name: &'static str, default: T, expected: &str) -> T {
        let Some(text) = self.take(name) else { return default };
        text.trim().parse().unwrap_or_else(|_| {
            self.complain(name, &format!("must be {expected}"));
            default
        })
    }

    /// envy names variables in lower case.
    fn take(&mut self, name: &str) -> Option<String> {
        self.given.remove(&name.to_lowercase())
    }

    fn complain(&mut self, name: &str, problem: &str) {
        self.complaints.push(format!("{name} {problem}"));
    }
}

fn is_ours(name: &str) -> bool {
    name.starts_with("SHOPBELL_") || ["DATABASE_URL", "DATABASE_URL_FILE", "AMQP_URL", "AMQP_URL_FILE"].contains(&name)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    const GOOD: [(&str, &str); 3] = [
        ("DATABASE_URL", "postgres://u:hidden@h/d"),
        ("AMQP_URL", "amqp://u:hidden@h"),
        ("SHOPBELL_JWT_HS256_SECRET", "0123456789abcdef0123456789abcdef"),
    ];

    fn environment(variables: &[(&str, &str)]) -> Environment {
        Environment::of(variables.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect())
    }

    #[test]
    fn three_variables_are_enough() {
        let config = environment(&GOOD).serve(None).unwrap();
        let gateway = config.gateway.unwrap();
        assert_eq!((gateway.session.window, gateway.session.heartbeat.as_secs()), (256, 25));
        assert_eq!(
            (gateway.listen.to_string(), config.ops_listen.to_string()),
            ("0.0.0.0:8080".into(), "0.0.0.0:9090".into())
        );
        let amqp = config.amqp;
        assert_eq!((amqp.prefix.as_str(), amqp.partitions, amqp.declare), ("shopbell", 1, true));
        assert_eq!(config.ingest.unwrap().event_bytes_max, EVENT_BYTES_MAX_DEFAULT);
    }

    #[test]
    fn a_role_has_what_it_needs_and_no_more() {
        let unused_secret = ("SHOPBELL_JWT_HS256_SECRET", "short");
        let ingest = environment(&[GOOD[0], GOOD[1], unused_secret]).serve(Some(Role::Ingest)).unwrap();
        assert!(ingest.ingest.is_some() && ingest.gateway.is_none());
        let gateway = environment(&GOOD).serve(Some(Role::Gateway)).unwrap();
        assert!(gateway.ingest.is_none() && gateway.gateway.is_some());
        let refused = environment(&GOOD[..2]).serve(Some(Role::Gateway)).unwrap_err();
        assert!(refused.to_string().contains("SHOPBELL_JWT_HS256_SECRET"), "{refused}");
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
}
