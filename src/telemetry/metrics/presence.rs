//! The metrics of presence.

use prometheus_client::metrics::counter::Counter;

use super::named::Named;
use crate::telemetry::instruments::CounterBy;
use crate::telemetry::labels::RequestRefused;

/// The reasons for which a request for presence is refused.
const REASONS: [RequestRefused; 5] = [
    RequestRefused::BadRequest,
    RequestRefused::Token,
    RequestRefused::Feed,
    RequestRefused::TooFast,
    RequestRefused::NotReady,
];

/// Which devices have a session.
#[derive(Debug)]
pub struct PresenceMetrics {
    /// Devices written because their sessions began or ended, or because they reported a state.
    pub rows_written: Counter,
    /// Requests refused, by reason.
    pub refused: CounterBy<RequestRefused>,
}

impl PresenceMetrics {
    pub(super) fn new(named: &mut Named<'_>) -> Self {
        Self {
            rows_written: named.counter(
                "presence_rows_written",
                "Devices of feeds written to Postgres because their sessions began or ended, or because they reported a state",
            ),
            refused: named.counters(
                "presence_refused",
                "Requests for the presence of a feed refused, by reason",
                ("reason", &REASONS),
            ),
        }
    }
}
