//! The metrics of replays.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

use super::named::Named;

/// The pages that are read for sessions with a gap.
#[derive(Debug)]
pub struct ReplayMetrics {
    /// Pages read for sessions with a gap.
    pub pages: Counter,
    /// Queries that read pages; one query may read several.
    pub queries: Counter,
    /// Bytes of the pages in memory, and those reserved for pages that are being read.
    pub bytes: Gauge,
    /// `SHOPBELL_MAX_PAGE_BYTES`.
    pub bytes_max: Gauge,
    /// Requests for a page that waited because the memory for pages was in use.
    pub waits: Counter,
}

impl ReplayMetrics {
    pub(super) fn new(named: &mut Named<'_>) -> Self {
        Self {
            pages: named.counter("pages_read", "Pages read for sessions with a gap"),
            queries: named.counter("page_queries", "Queries that read pages"),
            bytes: named.gauge(
                "page_bytes",
                "Bytes of the pages that are read or being read and not yet written to their sessions",
            ),
            bytes_max: named.gauge(
                "page_bytes_max",
                "SHOPBELL_MAX_PAGE_BYTES: bytes of pages at which further replays wait",
            ),
            waits: named.counter(
                "page_waits",
                "Requests for a page that waited because the memory for pages was in use",
            ),
        }
    }
}
