//! The table of settings. It feeds the parser, `shopbell config` and `docs/configuration.md`.

pub(super) use super::setting::{Default, Kind, UsedBy};
pub use super::setting::{Role, Setting};

/// `SHOPBELL_MAX_EVENT_BYTES` if it is not set.
pub const EVENT_BYTES_MAX_DEFAULT: usize = 262_144;

/// A variable that commands read and `serve` ignores. It may be set in the same shell.
pub(super) const TOKEN_VARIABLE: &str = "SHOPBELL_TOKEN";

/// Every setting, in the order in which it is shown.
pub const SETTINGS: [&Setting; 41] = [
    &DATABASE_URL,
    &AMQP_URL,
    &AMQP_PREFIX,
    &AMQP_DECLARE,
    &INGEST_PARTITIONS,
    &AMQP_QUEUE_TYPE,
    &LEAN_HINTS_FROM,
    &OPS_LISTEN,
    &BROADCAST_FEED,
    &MAX_EVENT_BYTES,
    &RETENTION_DAYS,
    &LISTEN,
    &JWT_SECRET,
    &JWT_SECRET_PREVIOUS,
    &JWT_PUBLIC_KEY,
    &JWKS_URL,
    &JWKS_ALLOW_HTTP,
    &JWKS_REFRESH_SECONDS,
    &JWKS_STALE_SECONDS,
    &JWT_AUDIENCE,
    &JWT_ISSUER,
    &DASHBOARD,
    &ALLOWED_ORIGINS,
    &WINDOW,
    &HEARTBEAT_SECONDS,
    &MAX_SESSIONS,
    &MAX_SESSIONS_PER_SUBSCRIBER,
    &MAX_SESSION_SECONDS,
    &MAX_FRAME_BYTES,
    &MAX_PAGE_BYTES,
    &DRAIN_SECONDS,
    &SESSIONS_PER_ADDRESS,
    &REQUESTS_PER_ADDRESS,
    &REQUESTS_PER_SUBSCRIBER,
    &FAILED_TOKENS_PER_ADDRESS,
    &TRUSTED_PROXIES,
    &PROXY_HEADER,
    &SWEEP_SECONDS,
    &CANARY_SECONDS,
    &OUTBOX_DATABASE_URL,
    &OUTBOX_BATCH,
];

pub(super) const DATABASE_URL: Setting = Setting {
    variable: "DATABASE_URL",
    kind: Kind::PostgresUrl,
    default: Default::Required,
    used_by: UsedBy::Both,
    description: "Postgres 15 or newer, with a database in UTF8",
    page: Some("pooling.md"),
};

pub(super) const AMQP_URL: Setting = Setting {
    variable: "AMQP_URL",
    kind: Kind::AmqpUrl,
    default: Default::Required,
    used_by: UsedBy::Both,
    description: "RabbitMQ 3.10 or newer; `amqps` for TLS",
    page: None,
};

pub(super) const AMQP_PREFIX: Setting = Setting {
    variable: "SHOPBELL_AMQP_PREFIX",
    kind: Kind::Prefix,
    default: Default::Value("shopbell"),
    used_by: UsedBy::Both,
    description: "Prefix of the names of exchanges and queues",
    page: None,
};

pub(super) const AMQP_DECLARE: Setting = Setting {
    variable: "SHOPBELL_AMQP_DECLARE",
    kind: Kind::Flag,
    default: Default::Value("true"),
    used_by: UsedBy::Both,
    description: "Whether the service declares exchanges and queues, or only verifies them",
    page: None,
};

/// Each partition is a queue of RabbitMQ. A replica consumes all of them by few connections.
const PARTITIONS_MAX: u64 = 64;

pub(super) const INGEST_PARTITIONS: Setting = Setting {
    variable: "SHOPBELL_INGEST_PARTITIONS",
    kind: number(1, PARTITIONS_MAX, "queues"),
    default: Default::Value("1"),
    used_by: UsedBy::Both,
    description: "Number of ingest queues that events are spread over; read the page before you change it",
    page: Some("scaling.md"),
};

pub(super) const AMQP_QUEUE_TYPE: Setting = Setting {
    variable: "SHOPBELL_AMQP_QUEUE_TYPE",
    kind: Kind::Choice(&["quorum", "classic"]),
    default: Default::Value("quorum"),
    used_by: UsedBy::Both,
    description: "Type of the ingest queues; read the page before you choose `classic`",
    page: Some("scaling.md"),
};

pub(super) const LEAN_HINTS_FROM: Setting = Setting {
    variable: "SHOPBELL_LEAN_HINTS_FROM",
    kind: number(0, 10_000, "gateways"),
    default: Default::Value("16"),
    used_by: UsedBy::Both,
    description: "Gateways from which hints carry numbers without notifications; 0 sends whole notifications to any number",
    page: Some("scaling.md"),
};

pub(super) const OPS_LISTEN: Setting = Setting {
    variable: "SHOPBELL_OPS_LISTEN",
    kind: Kind::Address,
    default: Default::Value("0.0.0.0:9090"),
    used_by: UsedBy::Both,
    description: "Address of the operations port",
    page: Some("operations.md"),
};

pub(super) const BROADCAST_FEED: Setting = Setting {
    variable: "SHOPBELL_BROADCAST_FEED",
    kind: Kind::Feed,
    default: Default::Value("all"),
    used_by: UsedBy::Both,
    description: "The feed that everyone reads; choose a name that no merchant has as its id, and set the same for both roles",
    page: None,
};

pub(super) const MAX_EVENT_BYTES: Setting = Setting {
    variable: "SHOPBELL_MAX_EVENT_BYTES",
    kind: number(65_536, 16_777_216, "bytes"),
    default: Default::Value("262144"),
    used_by: UsedBy::Both,
    description: "Largest body of an event; a larger event is dead-lettered, and POST /v1/events refuses it",
    page: None,
};

pub(super) const RETENTION_DAYS: Setting = Setting {
    variable: "SHOPBELL_RETENTION_DAYS",
    kind: number(0, 3_650, "days"),
    default: Default::Value("30"),
    used_by: UsedBy::Only(Role::Ingest),
    description: "Days after which a notification is removed if all devices have acked it or it has expired; 0 keeps all",
    page: Some("retention.md"),
};

pub(super) const LISTEN: Setting = Setting {
    variable: "SHOPBELL_LISTEN",
    kind: Kind::Address,
    default: Default::Value("0.0.0.0:8080"),
    used_by: UsedBy::Only(Role::Gateway),
    description: "Address of the public port",
    page: None,
};

pub(super) const JWT_SECRET: Setting = Setting {
    variable: "SHOPBELL_JWT_HS256_SECRET",
    kind: Kind::Key,
    default: Default::Unset("no HS256"),
    used_by: UsedBy::Only(Role::Gateway),
    description: "Key that signs and checks tokens; this, public keys or a key set is required",
    page: Some("keys.md"),
};

pub(super) const JWT_SECRET_PREVIOUS: Setting = Setting {
    variable: "SHOPBELL_JWT_HS256_SECRET_PREVIOUS",
    kind: Kind::Key,
    default: Default::Unset("one key"),
    used_by: UsedBy::Only(Role::Gateway),
    description: "Second key that checks tokens, while the first one is replaced",
    page: Some("keys.md"),
};

pub(super) const JWT_PUBLIC_KEY: Setting = Setting {
    variable: "SHOPBELL_JWT_PUBLIC_KEY",
    kind: Kind::PublicKeys,
    default: Default::Unset("none"),
    used_by: UsedBy::Only(Role::Gateway),
    description: "Public keys that check tokens of RS256, ES256 and EdDSA",
    page: Some("keys.md"),
};

pub(super) const JWKS_URL: Setting = Setting {
    variable: "SHOPBELL_JWKS_URL",
    kind: Kind::KeySetUrl,
    default: Default::Unset("none"),
    used_by: UsedBy::Only(Role::Gateway),
    description: "Key set of the issuer of tokens, for RS256, ES256 and EdDSA",
    page: Some("keys.md"),
};

pub(super) const JWKS_ALLOW_HTTP: Setting = Setting {
    variable: "SHOPBELL_JWKS_ALLOW_HTTP",
    kind: Kind::Flag,
    default: Default::Value("false"),
    used_by: UsedBy::Only(Role::Gateway),
    description: "Whether the key set may come over HTTP from another machine; anybody in between can then replace the keys",
    page: None,
};

pub(super) const JWKS_REFRESH_SECONDS: Setting = Setting {
    variable: "SHOPBELL_JWKS_REFRESH_SECONDS",
    kind: number(1, 1_800, "seconds"),
    default: Default::Value("300"),
    used_by: UsedBy::Only(Role::Gateway),
    description: "Interval of fetching the key set",
    page: None,
};

pub(super) const JWKS_STALE_SECONDS: Setting = Setting {
    variable: "SHOPBELL_JWKS_STALE_SECONDS",
    kind: number(1, 2_592_000, "seconds"),
    default: Default::Value("86400"),
    used_by: UsedBy::Only(Role::Gateway),
    description: "Greatest age of the key set; while its URL fails, the last set stays in use until then. At least 10 seconds more than the interval",
    page: None,
};

pub(super) const JWT_AUDIENCE: Setting = Setting {
    variable: "SHOPBELL_JWT_AUDIENCE",
    kind: Kind::Text,
    default: Default::Unset("any"),
    used_by: UsedBy::Only(Role::Gateway),
    description: "If set, each token must have it as `aud`",
    page: None,
};

pub(super) const JWT_ISSUER: Setting = Setting {
    variable: "SHOPBELL_JWT_ISSUER",
    kind: Kind::Text,
    default: Default::Unset("any"),
    used_by: UsedBy::Only(Role::Gateway),
    description: "If set, each token must have it as `iss`",
    page: None,
};

pub(super) const ALLOWED_ORIGINS: Setting = Setting {
    variable: "SHOPBELL_ALLOWED_ORIGINS",
    kind: Kind::Origins,
    default: Default::Unset("same origin only"),
    used_by: UsedBy::Only(Role::Gateway),
    description: "Origins of the web pages that may connect; a default port may be left out",
    page: None,
};

pub(super) const DASHBOARD: Setting = Setting {
    variable: "SHOPBELL_DASHBOARD",
    kind: Kind::Flag,
    default: Default::Value("false"),
    used_by: UsedBy::Only(Role::Gateway),
    description: "Whether the dashboard is served at `/` of the public port",
    page: Some("../web/dashboard/README.md"),
};

pub(super) const WINDOW: Setting = Setting {
    variable: "SHOPBELL_WINDOW",
    kind: number(1, 65_536, "notifications"),
    default: Default::Value("256"),
    used_by: UsedBy::Only(Role::Gateway),
    description: "Most notifications that one session may have sent without an ack",
    page: Some("protocol.md"),
};

pub(super) const HEARTBEAT_SECONDS: Setting = Setting {
    variable: "SHOPBELL_HEARTBEAT_SECONDS",
    kind: number(1, 3_600, "seconds"),
    default: Default::Value("25"),
    used_by: UsedBy::Only(Role::Gateway),
    description: "Interval of heartbeats to each session",
    page: Some("protocol.md"),
};

pub(super) const MAX_SESSIONS: Setting = Setting {
    variable: "SHOPBELL_MAX_SESSIONS",
    kind: number(1, 1_000_000, "sessions"),
    default: Default::Value("50000"),
    used_by: UsedBy::Only(Role::Gateway),
    description: "Most sessions of one replica",
    page: None,
};

pub(super) const MAX_SESSIONS_PER_SUBSCRIBER: Setting = Setting {
    variable: "SHOPBELL_MAX_SESSIONS_PER_SUBSCRIBER",
    kind: number(1, 1_000_000, "sessions"),
    default: Default::Value("50"),
    used_by: UsedBy::Only(Role::Gateway),
    description: "Most sessions of one subscriber on one replica",
    page: None,
};

pub(super) const MAX_SESSION_SECONDS: Setting = Setting {
    variable: "SHOPBELL_MAX_SESSION_SECONDS",
    kind: number(0, 31_536_000, "seconds"),
    default: Default::Value("0"),
    used_by: UsedBy::Only(Role::Gateway),
    description: "Greatest age of a session, less up to a tenth; 0 sets no limit",
    page: None,
};

pub(super) const MAX_FRAME_BYTES: Setting = Setting {
    variable: "SHOPBELL_MAX_FRAME_BYTES",
    kind: number(1_024, 1_048_576, "bytes"),
    default: Default::Value("16384"),
    used_by: UsedBy::Only(Role::Gateway),
    description: "Largest frame that a client may send",
    page: None,
};

pub(super) const MAX_PAGE_BYTES: Setting = Setting {
    variable: "SHOPBELL_MAX_PAGE_BYTES",
    kind: number(1_048_576, 1_099_511_627_776, "bytes"),
    default: Default::Value("268435456"),
    used_by: UsedBy::Only(Role::Gateway),
    description: "Memory for notifications that were read for a replay and are not yet written, of all sessions of one replica; further replays wait. One event more for each page that is being read",
    page: Some("scaling.md"),
};

pub(super) const DRAIN_SECONDS: Setting = Setting {
    variable: "SHOPBELL_DRAIN_SECONDS",
    kind: number(0, 3_600, "seconds"),
    default: Default::Value("20"),
    used_by: UsedBy::Only(Role::Gateway),
    description: "Time over which a stopping replica closes its sessions",
    page: None,
};

/// Most origins in one list. Each handshake of a page is compared with all of them.
pub(super) const ORIGINS_MAX: usize = 256;
/// Longest text. Names of audiences and issuers are URLs at most.
pub(super) const TEXT_BYTES_MAX: usize = 1_024;
/// Most networks in one list. The published list of a large content delivery network has 22.
pub(super) const NETWORKS_MAX: usize = 256;

pub(super) const TRUSTED_PROXIES: Setting = Setting {
    variable: "SHOPBELL_TRUSTED_PROXIES",
    kind: Kind::Networks,
    default: Default::Unset("none"),
    used_by: UsedBy::Only(Role::Gateway),
    description: "Networks of your proxies, whose header names the address of the client",
    page: Some("limits.md"),
};

pub(super) const PROXY_HEADER: Setting = Setting {
    variable: "SHOPBELL_PROXY_HEADER",
    kind: Kind::Choice(&["x-forwarded-for", "forwarded"]),
    default: Default::Value("x-forwarded-for"),
    used_by: UsedBy::Only(Role::Gateway),
    description: "The header that your proxies write; the other one is ignored",
    page: Some("limits.md"),
};

pub(super) const SESSIONS_PER_ADDRESS: Setting = Setting {
    variable: "SHOPBELL_MAX_SESSIONS_PER_ADDRESS",
    kind: number(0, 1_000_000, "sessions"),
    default: Default::Value("5000"),
    used_by: UsedBy::Only(Role::Gateway),
    description: "Most sessions of one public address on one replica; 0 sets no limit",
    page: Some("limits.md"),
};

pub(super) const REQUESTS_PER_ADDRESS: Setting = Setting {
    variable: "SHOPBELL_MAX_REQUESTS_PER_ADDRESS",
    kind: number(0, 100_000, "requests a second"),
    default: Default::Value("100"),
    used_by: UsedBy::Only(Role::Gateway),
    description: "Most handshakes and history requests of one public address; 0 sets no limit",
    page: Some("limits.md"),
};

pub(super) const REQUESTS_PER_SUBSCRIBER: Setting = Setting {
    variable: "SHOPBELL_MAX_REQUESTS_PER_SUBSCRIBER",
    kind: number(0, 100_000, "requests a second"),
    default: Default::Value("100"),
    used_by: UsedBy::Only(Role::Gateway),
    description: "The same for one subscriber; 0 sets no limit",
    page: Some("limits.md"),
};

pub(super) const FAILED_TOKENS_PER_ADDRESS: Setting = Setting {
    variable: "SHOPBELL_MAX_FAILED_TOKENS_PER_ADDRESS",
    kind: number(0, 100_000, "tokens a second"),
    default: Default::Value("10"),
    used_by: UsedBy::Only(Role::Gateway),
    description: "Most refused tokens of one public address, before its requests are refused unchecked; 0 sets no limit",
    page: Some("limits.md"),
};

pub(super) const SWEEP_SECONDS: Setting = Setting {
    variable: "SHOPBELL_SWEEP_SECONDS",
    kind: number(1, 3_600, "seconds"),
    default: Default::Value("60"),
    used_by: UsedBy::Only(Role::Gateway),
    description: "Interval in which each feed with a session is read, in case a hint was lost without evidence",
    page: Some("scaling.md"),
};

pub(super) const CANARY_SECONDS: Setting = Setting {
    variable: "SHOPBELL_CANARY_SECONDS",
    kind: number(0, 3_600, "seconds"),
    default: Default::Value("30"),
    used_by: UsedBy::Only(Role::Gateway),
    description: "Interval of the end-to-end canary check; 0 disables it",
    page: None,
};

pub(super) const OUTBOX_DATABASE_URL: Setting = Setting {
    variable: "SHOPBELL_OUTBOX_DATABASE_URL",
    kind: Kind::PostgresUrl,
    default: Default::Required,
    used_by: UsedBy::Relay,
    description: "The shop's own Postgres 15 or newer, with the outbox; not through a pooler in transaction mode",
    page: Some("outbox.md"),
};

pub(super) const OUTBOX_BATCH: Setting = Setting {
    variable: "SHOPBELL_OUTBOX_BATCH",
    kind: number(1, 10_000, "rows"),
    default: Default::Value("1000"),
    used_by: UsedBy::Relay,
    description: "Most rows of the outbox that the relay reads and publishes together",
    page: None,
};

const fn number(min: u64, max: u64, unit: &'static str) -> Kind {
    Kind::Number { min, max, unit }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_variable_stands_in_the_table_once() {
        let variables: BTreeSet<_> = SETTINGS.iter().map(|setting| setting.variable).collect();
        assert_eq!(variables.len(), SETTINGS.len());
    }

    #[test]
    fn only_a_setting_with_a_default_that_is_no_secret_shows_it() {
        for setting in SETTINGS {
            let has_value = matches!(setting.default, Default::Value(_));
            assert!(
                !(setting.kind.is_secret() && has_value),
                "{}",
                setting.variable
            );
        }
    }

    #[test]
    fn a_description_is_one_line_of_a_table() {
        for setting in SETTINGS {
            let text = setting.description;
            assert!(
                !text.contains(['|', '\n']) && !text.ends_with('.'),
                "{text}"
            );
        }
    }
}
