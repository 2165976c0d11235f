//! The metrics of `POST /v1/events`.

use prometheus_client::metrics::histogram::Histogram;

use super::named::Named;
use crate::telemetry::instruments::CounterBy;
use crate::telemetry::labels::{EventVerdict, RequestRefused};

/// Seconds, from a confirm of RabbitMQ on a fast disk to its timeout.
const CONFIRM_BUCKETS: [f64; 12] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0,
];
/// The reasons for which a request of a publisher is refused.
const REASONS: [RequestRefused; 4] = [
    RequestRefused::BadRequest,
    RequestRefused::Token,
    RequestRefused::TooFast,
    RequestRefused::NotReady,
];

/// The events that publishers send by HTTP.
#[derive(Debug)]
pub struct PublishingMetrics {
    /// Events, by verdict.
    pub events: CounterBy<EventVerdict>,
    /// Requests without verdicts, by reason.
    pub refused: CounterBy<RequestRefused>,
    /// Time from a request to its confirm.
    pub confirm: Histogram,
}

impl PublishingMetrics {
    pub(super) fn new(named: &mut Named<'_>) -> Self {
        Self {
            events: named.counters(
                "http_events",
                "Events of POST /v1/events, by verdict",
                ("verdict", EventVerdict::ALL),
            ),
            refused: named.counters(
                "http_events_requests_refused",
                "Requests of POST /v1/events refused as a whole, by reason",
                ("reason", &REASONS),
            ),
            confirm: named.histogram(
                "http_events_confirm_seconds",
                "Time from a request of POST /v1/events to the confirm of its events by RabbitMQ, in seconds",
                &CONFIRM_BUCKETS,
            ),
        }
    }
}
