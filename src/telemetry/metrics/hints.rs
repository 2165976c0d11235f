//! The metrics of hints, and of the reads that make up for lost ones.

use prometheus_client::metrics::counter::Counter;

use super::named::Named;
use crate::telemetry::instruments::CounterBy;
use crate::telemetry::labels::Evidence;

/// The hints of the fan-out.
#[derive(Debug)]
pub struct HintMetrics {
    /// Hints published to other replicas.
    pub published: Counter,
    /// Their bytes, once for all replicas.
    pub bytes_published: Counter,
    /// Hints received from other replicas.
    pub received: Counter,
    /// Hints that RabbitMQ did not confirm in time.
    pub refused: Counter,
    /// Messages with hints that did not arrive.
    pub missed: Counter,
    /// Reads of the newest numbers of all feeds with a session, by evidence.
    pub rounds: CounterBy<Evidence>,
    /// Feeds whose newest numbers were read.
    pub feeds_read: Counter,
}

impl HintMetrics {
    pub(super) fn new(named: &mut Named<'_>) -> Self {
        Self {
            published: named.counter("hints_published", "Hints published to other replicas"),
            bytes_published: named.counter(
                "hint_bytes_published",
                "Bytes of hints published to other replicas, counted once for all of them",
            ),
            received: named.counter("hints_received", "Hints received from other replicas"),
            refused: named.counter(
                "hints_refused",
                "Hints that RabbitMQ did not confirm in time",
            ),
            missed: named.counter(
                "hint_messages_missed",
                "Messages with hints of other replicas that did not arrive, by their numbers",
            ),
            rounds: named.counters(
                "rounds",
                "Reads of the newest numbers of all feeds with a session, by the evidence of lost hints",
                ("evidence", Evidence::ALL),
            ),
            feeds_read: named.counter(
                "feeds_read",
                "Feeds whose newest numbers were read, by the sweep or because of evidence",
            ),
        }
    }
}
