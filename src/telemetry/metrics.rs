//! The metrics of one replica, for Prometheus: every name with its help and buckets. No label contains a feed, a subscriber or
//! an event type, so that the number of series is bounded.

mod hints;
mod named;
mod presence;
mod publishing;
mod receipts;
mod relay;
mod replay;
mod streams;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

pub use self::hints::HintMetrics;
use self::named::Named;
pub use self::presence::PresenceMetrics;
pub use self::publishing::PublishingMetrics;
pub use self::receipts::ReceiptMetrics;
pub use self::relay::RelayMetrics;
pub use self::replay::ReplayMetrics;
pub use self::streams::StreamMetrics;
use crate::telemetry::instruments::{Age, CounterBy, GaugeBy, Holding, Seconds};
use crate::telemetry::labels::{
    CanaryStep, ConnectionDropped, DeadLetterState, HealthPart, JwksFetch, RequestRefused, Retried,
    TokenRefused,
};

/// Seconds, from a hint that is sent at once to a wait of a minute.
const LATENCY_BUCKETS: [f64; 14] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 15.0, 60.0,
];
/// Seconds, from a commit on a fast disk to the timeout of a statement.
const APPEND_BUCKETS: [f64; 12] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 10.0,
];
/// Deliveries, from one to the most in a batch.
const BATCH_BUCKETS: [f64; 8] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0];

/// The reasons for which a request of the history is refused.
const OF_HISTORY: [RequestRefused; 5] = [
    RequestRefused::BadRequest,
    RequestRefused::Token,
    RequestRefused::Feed,
    RequestRefused::TooFast,
    RequestRefused::NotReady,
];

/// The counters of one replica. They balance: received = stored + duplicate + dead-lettered + abandoned.
#[derive(Debug)]
pub struct Metrics {
    /// Deliveries received by ingest.
    pub events_received: Counter,
    /// Received events stored as new notifications.
    pub events_stored: Counter,
    /// Received events that were already stored.
    pub events_duplicate: Counter,
    /// Received events stored as dead letters, by reason.
    pub events_dead_lettered: CounterBy<&'static str>,
    /// Received deliveries that RabbitMQ delivers again.
    pub events_abandoned: Counter,
    /// Feeds whose counters did not match their rows.
    pub feeds_repaired: Counter,
    /// Deliveries in a batch.
    pub batch_events: Histogram,
    /// Time of one append, successful or not.
    pub append: Histogram,
    /// Deliveries that ingest has not stored.
    pub holding: Holding,
    /// Failed work that is tried again, by part.
    pub retries: CounterBy<Retried>,
    /// Open sessions.
    pub sessions: Gauge,
    /// Limit of open sessions.
    pub sessions_max: Gauge,
    /// Sessions whose window is full.
    pub sessions_behind: Gauge,
    /// Sessions that wait for an ack for more than a minute.
    pub sessions_late: Gauge,
    /// Sessions opened.
    pub sessions_opened: Counter,
    /// Sessions closed, by the word of the close code.
    pub sessions_closed: CounterBy<&'static str>,
    /// Refused requests.
    pub refused: RefusedMetrics,
    /// Sessions without a WebSocket.
    pub streams: StreamMetrics,
    /// The events of `POST /v1/events`.
    pub publishing: PublishingMetrics,
    /// Tokens.
    pub tokens: TokenMetrics,
    /// The key set of the issuer.
    pub jwks: JwksMetrics,
    /// Devices whose cursor was removed because their subscriber has too many.
    pub devices_evicted: Counter,
    /// Connections to the public port that are not sessions.
    pub connections: ConnectionMetrics,
    /// Notifications sent to sessions.
    pub notifications_sent: Counter,
    /// Acks that moved a cursor.
    pub acks: Counter,
    /// Marks that changed a notification.
    pub changes: Counter,
    /// Time from publish to the socket, for sessions that were open then.
    pub publish_to_delivery: Histogram,
    /// Time from publish to the ack, for sessions that were open then.
    pub publish_to_ack: Histogram,
    /// The pages of replays.
    pub replay: ReplayMetrics,
    /// Reads of a feed that failed because its rows are damaged.
    pub damaged_reads: Counter,
    /// Missing rows that retention did not remove.
    pub notifications_lost: Counter,
    /// Changes of the epoch.
    pub epoch_changes: Counter,
    /// The values that probes measure.
    pub probed: ProbedMetrics,
    /// The hints of the fan-out.
    pub hints: HintMetrics,
    /// Presence.
    pub presence: PresenceMetrics,
    /// The receipts that publishers ask for.
    pub receipts: ReceiptMetrics,
    /// The removal of old notifications.
    pub retention: RetentionMetrics,
    /// The runs of the canary.
    pub canary: CanaryMetrics,
    /// 1 for each part that works.
    pub part_up: GaugeBy<HealthPart>,
    /// 1 while this replica drains.
    pub draining: Gauge,
}

/// Requests that clients are refused.
#[derive(Debug)]
pub struct RefusedMetrics {
    /// Handshakes, by reason.
    pub handshakes: CounterBy<RequestRefused>,
    /// Requests of the history, by reason.
    pub history: CounterBy<RequestRefused>,
}

impl RefusedMetrics {
    fn new(named: &mut Named<'_>) -> Self {
        Self {
            handshakes: named.counters(
                "handshakes_refused",
                "Handshakes refused, by reason",
                ("reason", RequestRefused::ALL),
            ),
            history: named.counters(
                "history_refused",
                "Requests of the history refused, by reason",
                ("reason", &OF_HISTORY),
            ),
        }
    }
}

/// The connections to one port that are not sessions.
#[derive(Debug, Clone)]
pub struct ConnectionMetrics {
    /// Open connections.
    pub open: Gauge,
    /// Limit of open connections.
    pub max: Gauge,
    /// Connections that the server ended, by reason.
    pub dropped: CounterBy<ConnectionDropped>,
}

impl ConnectionMetrics {
    fn new(named: &mut Named<'_>) -> Self {
        Self {
                open: named.gauge("connections", "Open connections to the public port that are not sessions"),
                max: named.gauge("connections_max", "Limit of connections to the public port that are not sessions"),
                dropped: named.counters(
                    "connections_dropped",
                    "Connections to the public port that the server ended before they became sessions, by reason",
                    ("reason", ConnectionDropped::ALL),
                ),
        }
    }
}

impl Default for ConnectionMetrics {
    /// Metrics that nothing reads.
    fn default() -> Self {
        let dropped = CounterBy {
            label: "reason",
            family: Family::default(),
        };
        Self {
            open: Gauge::default(),
            max: Gauge::default(),
            dropped,
        }
    }
}

impl Default for Metrics {
    /// Metrics that nothing reads.
    fn default() -> Self {
        Self::new(&mut Registry::default())
    }
}

impl Metrics {
    /// Registers every metric.
    pub fn new(registry: &mut Registry) -> Self {
        let mut named = Named(registry.sub_registry_with_prefix("shopbell"));
        let holding = Holding::default();
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        named.0.register("build", "Version of the binary", version);
        named.metric(
            "oldest_delivery_held_seconds",
            "Age of the oldest delivery that ingest has not stored yet, in seconds",
            holding.clone(),
        );
        Self {
            events_received: named.counter("events_received", "Deliveries received by ingest"),
            events_stored: named.counter("events_stored", "Events stored as new notifications"),
            events_duplicate: named.counter("events_duplicate", "Events that were already stored"),
            events_dead_lettered: named.counters(
                "events_dead_lettered",
                "Events stored as dead letters, by reason",
                ("reason", &[]),
            ),
            events_abandoned: named
                .counter("events_abandoned", "Deliveries that ingest returned to RabbitMQ, which delivers them again"),
            feeds_repaired: named
                .counter("feeds_repaired", "Feeds whose counters did not match their rows and were repaired"),
            batch_events: named.histogram("batch_events", "Deliveries in a batch", &BATCH_BUCKETS),
            append: named.histogram("append_seconds", "Time to store a batch in one transaction, in seconds", &APPEND_BUCKETS),
            holding,
            retries: named.counters(
                "retries",
                "Failed work of Postgres or RabbitMQ that is tried again, by part",
                ("part", Retried::ALL),
            ),
            sessions: named.gauge("sessions", "Open sessions"),
            sessions_max: named.gauge("sessions_max", "Limit of open sessions"),
            sessions_behind: named.gauge("sessions_behind", "Sessions whose window is full"),
            sessions_late: named.gauge(
                "sessions_late",
                "Sessions that wait for an ack for more than a minute",
            ),
            sessions_opened: named.counter("sessions_opened", "Sessions opened"),
            sessions_closed: named.counters("sessions_closed", "Sessions closed, by reason", ("reason", &[])),
            refused: RefusedMetrics::new(&mut named),
            streams: StreamMetrics::new(&mut named),
            publishing: PublishingMetrics::new(&mut named),
            tokens: TokenMetrics::new(&mut named),
            jwks: JwksMetrics::new(&mut named),
            devices_evicted: named.counter(
                "devices_evicted",
                "Devices removed because their subscriber had more than 64 in a feed",
            ),
            connections: ConnectionMetrics::new(&mut named),
            notifications_sent: named.counter("notifications_sent", "Notifications sent to sessions"),
            acks: named.counter("acks", "Acks that moved a cursor"),
            changes: named.counter("changes", "Marks that changed a notification"),
            publish_to_delivery: named.histogram(
                "publish_to_delivery_seconds",
                "Time from the event's time to the write to a session that was open then, in seconds",
                &LATENCY_BUCKETS,
            ),
            publish_to_ack: named.histogram(
                "publish_to_ack_seconds",
                "Time from the event's time to the ack of a session that was open then, in seconds",
                &LATENCY_BUCKETS,
            ),
            replay: ReplayMetrics::new(&mut named),
            damaged_reads: named.counter("damaged_reads", "Reads of a feed that failed because its rows are damaged"),
            notifications_lost: named.counter(
                "notifications_lost",
                "Notifications missing in Postgres, counted for each page that misses them",
            ),
            epoch_changes: named
                .counter("epoch_changes", "Changes of the epoch, after a restore or a fail-over of the database"),
            probed: ProbedMetrics::new(&mut named),
            hints: HintMetrics::new(&mut named),
            presence: PresenceMetrics::new(&mut named),
            receipts: ReceiptMetrics::new(&mut named),
            retention: RetentionMetrics::new(&mut named),
            canary: CanaryMetrics::new(&mut named),
            part_up: named.gauges("part_up", "1 if a part of this replica works, else 0", "part"),
            draining: named.gauge("draining", "1 while this replica drains, else 0"),
        }
    }
}

/// The values that probes measure.
#[derive(Debug)]
pub struct ProbedMetrics {
    /// Dead letters and held events in Postgres, by state.
    pub dead_letters: GaugeBy<DeadLetterState>,
    /// Feeds that store no events because they are damaged.
    pub feeds_held: Gauge,
    /// 1 if the database answers, accepts writes and has the expected schema.
    pub database_up: Gauge,
    /// Notifications without an ack, of feeds with a session here.
    pub undelivered: Gauge,
    /// Age of the oldest of them in seconds.
    pub oldest_undelivered: Seconds,
    /// Feeds with a session here and a notification without an ack for more than a minute.
    pub late_feeds: Gauge,
    /// 1 if RabbitMQ answers.
    pub broker_up: Gauge,
    /// Ready messages by queue; no series if RabbitMQ does not answer.
    pub queue_messages: GaugeBy<&'static str>,
    /// Consumers by queue; no series if RabbitMQ does not answer.
    pub queue_consumers: GaugeBy<&'static str>,
}

impl ProbedMetrics {
    fn new(named: &mut Named<'_>) -> Self {
        Self {
            dead_letters: named.gauges(
                "dead_letters",
                "Dead letters in Postgres (stored), those of them not yet published to RabbitMQ (unpublished), and events of damaged feeds (held)",
                "state",
            ),
            feeds_held: named.gauge("feeds_held", "Feeds that store no events because their rows contradict each other"),
            database_up: named.gauge("database_up", "1 if the database answers, accepts writes and has the expected schema, else 0"),
            undelivered: named.gauge(
                "undelivered_notifications",
                "Notifications without an ack, of feeds with a session on this replica",
            ),
            oldest_undelivered: named.metric(
                "oldest_undelivered_age_seconds",
                "Age of the oldest notification without an ack, of feeds with a session on this replica, in seconds",
                Seconds::default(),
            ),
            late_feeds: named.gauge(
                "late_feeds",
                "Feeds with a session on this replica and a notification without an ack for more than a minute",
            ),
            broker_up: named.gauge("broker_up", "1 if RabbitMQ answers, else 0"),
            queue_messages: named.gauges("queue_messages", "Ready messages in RabbitMQ, by queue", "queue"),
            queue_consumers: named.gauges(
                "queue_consumers",
                "Consumers in RabbitMQ, by queue; for partitions the lowest number",
                "queue",
            ),
        }
    }
}

/// The checks of tokens.
#[derive(Debug)]
pub struct TokenMetrics {
    /// Tokens refused, by reason.
    pub refused: CounterBy<TokenRefused>,
}

impl TokenMetrics {
    fn new(named: &mut Named<'_>) -> Self {
        Self {
            refused: named.counters(
                "tokens_refused",
                "Tokens refused in handshakes, sessions and requests for history, by reason",
                ("reason", TokenRefused::ALL),
            ),
        }
    }
}

/// The key set of the issuer.
#[derive(Debug)]
pub struct JwksMetrics {
    /// Fetches, by result.
    pub fetches: CounterBy<JwksFetch>,
    /// The time since the last good fetch, or since the start.
    pub age: Age,
    /// Usable keys.
    pub keys: Gauge,
}

impl JwksMetrics {
    fn new(named: &mut Named<'_>) -> Self {
        Self {
            fetches: named.counters(
                "jwks_fetches",
                "Fetches of the key set of the issuer, by result",
                ("result", JwksFetch::ALL),
            ),
            age: named.metric(
                "jwks_age_seconds",
                "Time since the last good fetch of the key set of the issuer, in seconds; 0 without SHOPBELL_JWKS_URL",
                Age::default(),
            ),
            keys: named.gauge("jwks_keys", "Usable keys of the key set of the issuer"),
        }
    }
}

/// The removal of old notifications.
#[derive(Debug)]
pub struct RetentionMetrics {
    /// Removed notifications.
    pub removed: Counter,
    /// Time since the begin of the walk over all feeds that has not ended.
    pub late: Seconds,
    /// Feeds of the last walk whose oldest due notification must stay.
    pub held_back: Gauge,
}

impl RetentionMetrics {
    fn new(named: &mut Named<'_>) -> Self {
        Self {
            removed: named.counter("notifications_removed", "Notifications removed by retention"),
            late: named.metric(
                "retention_late_seconds",
                "Time since the begin of retention's walk over all feeds if it has not ended, else 0, in seconds",
                Seconds::default(),
            ),
            held_back: named.gauge(
                "retention_feeds_held_back",
                "Feeds whose oldest due notification must stay, in the last walk",
            ),
        }
    }
}

/// The runs of the canary.
#[derive(Debug)]
pub struct CanaryMetrics {
    /// Canary events published.
    pub runs: Counter,
    /// Canary events that failed, by step.
    pub failures: CounterBy<CanaryStep>,
    /// Time from a canary's publish to its ack.
    pub time: Histogram,
}

impl CanaryMetrics {
    fn new(named: &mut Named<'_>) -> Self {
        Self {
            runs: named.counter("canary_runs", "Canary events published"),
            failures: named.counters(
                "canary_failures",
                "Canary events that failed, by step",
                ("step", CanaryStep::ALL),
            ),
            time: named.histogram(
                "canary_publish_to_ack_seconds",
                "Time from the publish of a canary event to its ack, in seconds",
                &LATENCY_BUCKETS,
            ),
        }
    }
}
