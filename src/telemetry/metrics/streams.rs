//! The metrics of sessions over plain HTTP.

use super::named::Named;
use crate::telemetry::instruments::{CounterBy, GaugeBy};
use crate::telemetry::labels::{HttpTransport, RequestRefused};

/// Sessions without a WebSocket.
#[derive(Debug)]
pub struct StreamMetrics {
    /// Open sessions, by transport.
    pub sessions: GaugeBy<HttpTransport>,
    /// Requests for streams and requests with frames, by reason.
    pub refused: CounterBy<RequestRefused>,
}

impl StreamMetrics {
    pub(super) fn new(named: &mut Named<'_>) -> Self {
        let sessions = named.gauges(
            "http_sessions",
            "Open sessions without a WebSocket, by transport; sessions has all",
            "transport",
        );
        for transport in HttpTransport::ALL {
            sessions.set(*transport, 0);
        }
        Self {
            sessions,
            refused: named.counters(
                "streams_refused",
                "Requests for streams and polls, and requests with frames, refused, by reason",
                ("reason", RequestRefused::ALL),
            ),
        }
    }
}
