//! The metrics of receipts.

use super::named::Named;
use crate::telemetry::instruments::{CounterBy, Seconds};

/// The receipts that publishers ask for.
#[derive(Debug)]
pub struct ReceiptMetrics {
    /// Receipts that RabbitMQ has confirmed, by fact.
    pub published: CounterBy<&'static str>,
    /// Time since the receipt that is due for the longest time became due, in seconds.
    pub late: Seconds,
}

impl ReceiptMetrics {
    pub(super) fn new(named: &mut Named<'_>) -> Self {
        Self {
            published: named.counters(
                "receipts_published",
                "Receipts confirmed by RabbitMQ, by fact",
                ("fact", &[]),
            ),
            late: named.metric(
                "receipts_late_seconds",
                "Time since the receipt that is due for the longest time became due, else 0, in seconds",
                Seconds::default(),
            ),
        }
    }
}
