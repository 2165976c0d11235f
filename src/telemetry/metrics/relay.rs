//! The metrics of `shopbell relay`, which has a registry of its own.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::named::Named;
use crate::telemetry::instruments::{CounterBy, Seconds};
use crate::telemetry::labels::RelayFailure;

/// The counters and gauges of one relay.
#[derive(Debug)]
pub struct RelayMetrics {
    /// Rows that are not published.
    pub rows: Gauge,
    /// The age of the oldest of them.
    pub oldest_age: Seconds,
    /// Rows that can never be published.
    pub set_aside: Gauge,
    /// Rows that RabbitMQ confirmed.
    pub published: Counter,
    /// Failures, by part.
    pub failures: CounterBy<RelayFailure>,
    /// 1 while this relay publishes.
    pub active: Gauge,
}

impl RelayMetrics {
    /// Registers every metric.
    pub fn new(registry: &mut Registry) -> Self {
        let mut named = Named(registry.sub_registry_with_prefix("shopbell"));
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        named.0.register("build", "Version of the binary", version);
        Self {
            rows: named.gauge(
                "outbox_rows",
                "Rows of the outbox that are not published; beyond 100000 an estimate",
            ),
            oldest_age: named.metric(
                "outbox_oldest_age_seconds",
                "Age of the oldest row of the outbox, in seconds",
                Seconds::default(),
            ),
            set_aside: named.gauge(
                "outbox_set_aside",
                "Rows of the outbox that can never be published and wait for an operator",
            ),
            published: named.counter(
                "relay_published",
                "Rows of the outbox that RabbitMQ confirmed",
            ),
            failures: named.counters(
                "relay_failures",
                "Failures of the relay, by part",
                ("part", RelayFailure::ALL),
            ),
            active: named.gauge(
                "relay_active",
                "1 while this relay publishes, 0 while it stands by or has no connection to the outbox",
            ),
        }
    }
}
