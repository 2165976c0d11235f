//! The metrics of one replica, for Prometheus: every name, its help and its buckets. No feed, subscriber or event type is ever
//! in a label, so that their number is bounded.

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry};

/// From a hint that is sent at once to a merchant who waits for minutes, in seconds.
const LATENCY_BUCKETS: [f64; 14] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 15.0, 60.0,
];
/// From a commit on a fast disk to the timeout of a statement, in seconds.
const APPEND_BUCKETS: [f64; 12] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 10.0,
];
/// From one event to as many as a batch takes.
const BATCH_BUCKETS: [f64; 8] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0];

/// A gauge of seconds.
pub type Seconds = Gauge<f64, AtomicU64>;
/// A label and its value, both constants of the program.
type Label = [(&'static str, &'static str); 1];

/// Counters that differ in one label, whose values are constants too.
#[derive(Debug, Clone)]
pub struct CounterBy {
    label: &'static str,
    family: Family<Label, Counter>,
}

impl CounterBy {
    /// Begins these at zero: an alert on an increase needs the zero before it.
    pub fn begin(&self, values: &[&'static str]) {
        for value in values {
            drop(self.family.get_or_create(&[(self.label, value)]));
        }
    }

    /// Counts one more.
    pub fn inc(&self, value: &'static str) {
        self.family.get_or_create(&[(self.label, value)]).inc();
    }
}

/// Work that Postgres or RabbitMQ did not do and that is tried again.
const RETRIED: [&str; 11] = [
    "append",
    "cursors",
    "acks",
    "pages",
    "sweep",
    "answers",
    "ingest",
    "fanout",
    "watch",
    "dead_letters",
    "held_feeds",
];
/// Why a handshake was refused.
const HANDSHAKES_REFUSED: [&str; 6] = [
    "bad_request",
    "origin",
    "token",
    "feed",
    "too_many",
    "not_ready",
];
/// Why a connection that was no session was ended: its head did not come, it was idle, its answer was not read, or it made room.
const CONNECTIONS_DROPPED: [&str; 4] = ["head", "idle", "stalled", "crowded"];
/// What a canary has to do.
const CANARY_STEPS: [&str; 4] = ["connect", "publish", "deliver", "ack"];

/// The counters of one replica. They balance: received = stored + duplicate + dead-lettered + abandoned.
#[derive(Debug)]
pub struct Metrics {
    /// Deliveries that arrived at ingest.
    pub events_received: Counter,
    /// Of these, stored as a new notification.
    pub events_stored: Counter,
    /// Of these, stored before.
    pub events_duplicate: Counter,
    /// Of these, dead-lettered, by reason.
    pub events_dead_lettered: CounterBy,
    /// Of these, given back to RabbitMQ, which delivers them again.
    pub events_abandoned: Counter,
    /// Stored dead letters that wait for an operator (`stored`), of these not yet published (`unpublished`), and events that wait
    /// for a damaged feed (`held`).
    pub dead_letters: GaugeBy,
    /// Feeds that take no events because they are damaged.
    pub feeds_held: Gauge,
    /// Feeds whose counters were behind their rows and were repaired.
    pub feeds_repaired: Counter,
    /// Deliveries in a batch.
    pub batch_events: Histogram,
    /// One append, whether it succeeded or not.
    pub append: Histogram,
    /// How long ingest has held what it has not stored.
    pub holding: Holding,
    /// Work to be tried again, by part.
    pub retries: CounterBy,
    /// Open sessions.
    pub sessions: Gauge,
    /// Most sessions that are let in.
    pub sessions_max: Gauge,
    /// Sessions whose window is full.
    pub sessions_behind: Gauge,
    /// Sessions whose client has acknowledged nothing for a minute while notifications wait for it.
    pub sessions_late: Gauge,
    /// Sessions that were opened.
    pub sessions_opened: Counter,
    /// Sessions that ended, by the reason of the close.
    pub sessions_closed: CounterBy,
    /// Handshakes that were refused, by reason.
    pub handshakes_refused: CounterBy,
    /// Devices whose cursor was removed because their subscriber has too many.
    pub devices_evicted: Counter,
    /// Connections to the public port that are not sessions.
    pub connections: ConnectionMetrics,
    /// Notifications sent to sessions.
    pub notifications_sent: Counter,
    /// Acks that moved a cursor.
    pub acks: Counter,
    /// Reads and handles that changed something.
    pub changes: Counter,
    /// From publish to the socket, of who was connected by then.
    pub publish_to_delivery: Histogram,
    /// From publish to the client's ack, of who was connected by then.
    pub publish_to_ack: Histogram,
    /// Hints published for other replicas.
    pub hints_published: Counter,
    /// Hints received from other replicas.
    pub hints_received: Counter,
    /// Hints that the broker did not take in time.
    pub hints_refused: Counter,
    /// Pages read for sessions that were behind.
    pub pages_read: Counter,
    /// Queries that read them.
    pub page_queries: Counter,
    /// Reads of a feed that failed because what is stored of it cannot be read.
    pub damaged_reads: Counter,
    /// Numbers without a row that retention did not remove.
    pub notifications_lost: Counter,
    /// How often the epoch changed.
    pub epoch_changes: Counter,
    /// Whether the database answers, takes writes and has its schema.
    pub database_up: Gauge,
    /// Notifications of the feeds that have a session here which nobody has acknowledged.
    pub undelivered: Gauge,
    /// How long ago the oldest of them was stored.
    pub oldest_undelivered: Seconds,
    /// Feeds with a session here whose oldest undelivered notification was stored more than a minute ago.
    pub late_feeds: Gauge,
    /// Whether RabbitMQ answers.
    pub broker_up: Gauge,
    /// Messages ready in RabbitMQ, and consumers of them, by queue; empty where it does not answer.
    pub queue_messages: GaugeBy,
    /// See [`Metrics::queue_messages`].
    pub queue_consumers: GaugeBy,
    /// Whether each part of this replica works.
    pub part_up: GaugeBy,
    /// Whether this replica is leaving.
    pub draining: Gauge,
    /// Canaries sent.
    pub canary_runs: Counter,
    /// Canaries that did not come back, by what did not succeed.
    pub canary_failures: CounterBy,
    /// From a canary's publish to its ack.
    pub canary: Histogram,
}

/// The connections of one port that are not sessions.
#[derive(Debug, Clone)]
pub struct ConnectionMetrics {
    /// Open now.
    pub open: Gauge,
    /// The most that may be open.
    pub max: Gauge,
    /// Ended before the client ended them, by reason.
    pub dropped: CounterBy,
}

impl Default for ConnectionMetrics {
    /// Of a port that nobody watches.
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

/// Gauges that differ in one label, all of one moment.
#[derive(Debug, Clone)]
pub struct GaugeBy {
    label: &'static str,
    family: Family<Label, Gauge>,
}

impl GaugeBy {
    /// What is so now.
    pub fn set(&self, value: &'static str, number: i64) {
        self.family
            .get_or_create(&[(self.label, value)])
            .set(number);
    }

    /// What is so now, or that it is not known.
    pub fn tell(&self, value: &'static str, number: Option<i64>) {
        match number {
            Some(number) => self.set(value, number),
            None => _ = self.family.remove(&[(self.label, value)]),
        }
    }

    /// Nothing is known.
    pub fn clear(&self) {
        self.family.clear();
    }
}

impl Default for Metrics {
    /// Of a registry that nobody reads.
    fn default() -> Self {
        Self::new(&mut Registry::default())
    }
}

impl Metrics {
    /// Registers all of them.
    pub fn new(registry: &mut Registry) -> Self {
        let mut named = Named(registry.sub_registry_with_prefix("shopbell"));
        let holding = Holding::default();
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        named.0.register("build", "The version that runs", version);
        named.metric(
            "oldest_delivery_held_seconds",
            "How long ingest has held the oldest delivery that it has not stored",
            holding.clone(),
        );
        Self {
            events_received: named.counter("events_received", "Deliveries that arrived at ingest"),
            events_stored: named.counter("events_stored", "Events stored as a new notification"),
            events_duplicate: named.counter("events_duplicate", "Events that were stored before"),
            events_dead_lettered: named.counters(
                "events_dead_lettered",
                "Events stored as a dead letter, by reason",
                ("reason", &[]),
            ),
            events_abandoned: named
                .counter("events_abandoned", "Deliveries given back to RabbitMQ, which delivers them again"),
            dead_letters: named.gauges(
                "dead_letters",
                "Dead letters in Postgres: stored; of these unpublished; events held for a damaged feed",
                "state",
            ),
            feeds_held: named.gauge("feeds_held", "Feeds that take no events because their rows contradict each other"),
            feeds_repaired: named
                .counter("feeds_repaired", "Feeds whose counters were behind their rows and were repaired"),
            batch_events: named.histogram("batch_events", "Deliveries taken in together", &BATCH_BUCKETS),
            append: named.histogram("append_seconds", "Storing a batch in one transaction", &APPEND_BUCKETS),
            holding,
            retries: named.counters(
                "retries",
                "Work that Postgres or RabbitMQ did not do and that is tried again",
                ("part", &RETRIED),
            ),
            sessions: named.gauge("sessions", "Open sessions"),
            sessions_max: named.gauge("sessions_max", "Most sessions that are let in"),
            sessions_behind: named.gauge("sessions_behind", "Sessions whose client acknowledges nothing: window full"),
            sessions_late: named.gauge(
                "sessions_late",
                "Sessions whose client acknowledges nothing for a minute while notifications wait for it",
            ),
            sessions_opened: named.counter("sessions_opened", "Sessions that were opened"),
            sessions_closed: named.counters("sessions_closed", "Sessions that ended, by reason", ("reason", &[])),
            handshakes_refused: named.counters(
                "handshakes_refused",
                "Handshakes that were refused, by reason",
                ("reason", &HANDSHAKES_REFUSED),
            ),
            devices_evicted: named.counter(
                "devices_evicted",
                "Devices that were evicted from a feed because their subscriber has more than 64 in it",
            ),
            connections: ConnectionMetrics {
                open: named.gauge("connections", "Open connections to the public port that are not sessions"),
                max: named.gauge("connections_max", "Most connections to the public port that are not sessions"),
                dropped: named.counters(
                    "connections_dropped",
                    "Connections to the public port that were not sessions and were ended, by reason",
                    ("reason", &CONNECTIONS_DROPPED),
                ),
            },
            notifications_sent: named.counter("notifications_sent", "Notifications sent to sessions"),
            acks: named.counter("acks", "Acks that moved a cursor"),
            changes: named.counter("changes", "Reads and handles that changed something"),
            publish_to_delivery: named.histogram(
                "publish_to_delivery_seconds",
                "From the event's time to the socket of a merchant who was connected by then",
                &LATENCY_BUCKETS,
            ),
            publish_to_ack: named.histogram(
                "publish_to_ack_seconds",
                "From the event's time to the ack of a merchant who was connected by then",
                &LATENCY_BUCKETS,
            ),
            hints_published: named.counter("hints_published", "Fan-out hints published for other replicas"),
            hints_received: named.counter("hints_received", "Fan-out hints received from other replicas"),
            hints_refused: named.counter("hints_refused", "Fan-out hints that RabbitMQ did not take in time"),
            pages_read: named.counter("pages_read", "Pages read for sessions that were behind"),
            page_queries: named.counter("page_queries", "Queries that read pages"),
            damaged_reads: named.counter("damaged_reads", "Reads of a feed that failed because its rows are damaged"),
            notifications_lost: named.counter(
                "notifications_lost",
                "Notifications that are missing in the database, counted each time that a page misses them",
            ),
            epoch_changes: named
                .counter("epoch_changes", "How often the epoch changed: the database was restored or failed over"),
            database_up: named.gauge("database_up", "Whether the database answers, takes writes and has its schema"),
            undelivered: named.gauge(
                "undelivered_notifications",
                "Notifications of feeds with a session here that nobody has acknowledged",
            ),
            oldest_undelivered: named.metric(
                "oldest_undelivered_age_seconds",
                "How long ago the oldest undelivered notification of a feed with a session here was stored",
                Seconds::default(),
            ),
            late_feeds: named.gauge(
                "late_feeds",
                "Feeds with a session here of which a notification is undelivered for more than a minute",
            ),
            broker_up: named.gauge("broker_up", "Whether RabbitMQ answers"),
            queue_messages: named.gauges("queue_messages", "Messages ready in RabbitMQ, by queue", "queue"),
            queue_consumers: named.gauges(
                "queue_consumers",
                "Consumers in RabbitMQ, by queue; of its partitions the fewest",
                "queue",
            ),
            part_up: named.gauges("part_up", "Whether a part of this replica works", "part"),
            draining: named.gauge("draining", "Whether this replica is leaving"),
            canary_runs: named.counter("canary_runs", "Canaries sent through everything"),
            canary_failures: named.counters(
                "canary_failures",
                "Canaries that did not come back, by what did not succeed",
                ("step", &CANARY_STEPS),
            ),
            canary: named.histogram(
                "canary_publish_to_ack_seconds",
                "From a canary's publish until its ack was taken",
                &LATENCY_BUCKETS,
            ),
        }
    }
}

/// Registers metrics by name.
struct Named<'a>(&'a mut Registry);

impl Named<'_> {
    fn metric<M: Metric + Clone>(&mut self, name: &str, help: &str, metric: M) -> M {
        self.0.register(name, help, metric.clone());
        metric
    }

    fn counter(&mut self, name: &str, help: &str) -> Counter {
        self.metric(name, help, Counter::default())
    }

    fn gauge(&mut self, name: &str, help: &str) -> Gauge {
        self.metric(name, help, Gauge::default())
    }

    fn histogram(&mut self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        self.metric(name, help, Histogram::new(buckets.iter().copied()))
    }

    fn counters(
        &mut self,
        name: &str,
        help: &str,
        label: (&'static str, &[&'static str]),
    ) -> CounterBy {
        let counters = CounterBy {
            label: label.0,
            family: self.metric(name, help, Family::default()),
        };
        counters.begin(label.1);
        counters
    }

    fn gauges(&mut self, name: &str, help: &str, label: &'static str) -> GaugeBy {
        GaugeBy {
            label,
            family: self.metric(name, help, Family::default()),
        }
    }
}

/// What ingest holds and has not stored: since when, by partition. Looked at when it is asked for, so that it grows while
/// nothing moves.
#[derive(Debug, Clone, Default)]
pub struct Holding(Arc<Mutex<HashMap<u8, Instant>>>);

impl Holding {
    /// A partition holds something from now on, until the answer is dropped.
    pub fn begin(&self, partition: u8) -> Held<'_> {
        self.lock().insert(partition, Instant::now());
        Held {
            holding: self,
            partition,
        }
    }

    /// How long the oldest of it has been held, in seconds.
    pub fn oldest(&self) -> f64 {
        self.lock()
            .values()
            .map(|since| since.elapsed().as_secs_f64())
            .fold(0.0, f64::max)
    }

    /// Held for one look or change.
    fn lock(&self) -> MutexGuard<'_, HashMap<u8, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EncodeMetric for Holding {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        encoder.encode_gauge(&self.oldest())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }
}

/// Something that is held.
#[derive(Debug)]
pub struct Held<'a> {
    holding: &'a Holding,
    partition: u8,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.holding.lock().remove(&self.partition);
    }
}

/// Counts one more in a gauge for as long as it is asked to.
#[derive(Debug)]
pub struct Counted(Gauge);

impl Counted {
    /// From now until it is dropped.
    pub fn in_gauge(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_as_old_as_the_oldest_of_it() {
        let holding = Holding::default();
        assert_eq!(holding.oldest(), 0.0);
        let first = holding.begin(1);
        let after_first = Instant::now();
        let second = holding.begin(2);
        drop(first);
        assert!(
            holding.oldest() <= after_first.elapsed().as_secs_f64(),
            "the first is no longer held"
        );
        drop(second);
        assert_eq!(holding.oldest(), 0.0);
    }
}
