//! Metrics as text, in the format that the client accepts.

use std::fmt::Error;

use prometheus_client::encoding::{prometheus_text, text};
use prometheus_client::registry::Registry;

/// A text format for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exposition {
    /// The Prometheus text format 0.0.4, which every client reads.
    Text,
    /// OpenMetrics 1.0, which Prometheus prefers.
    OpenMetrics,
}

impl Exposition {
    /// The format for an `Accept` header.
    pub fn of_accept(accept: &str) -> Self {
        if accept.contains("application/openmetrics-text") {
            Self::OpenMetrics
        } else {
            Self::Text
        }
    }

    /// The content type of the format.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// Writes the current metrics.
    ///
    /// # Errors
    /// A metric cannot be encoded.
    pub fn render(self, registry: &Registry) -> Result<String, Error> {
        let mut metrics = String::new();
        match self {
            Self::Text => prometheus_text::encode(&mut metrics, registry)?,
            Self::OpenMetrics => text::encode(&mut metrics, registry)?,
        }
        Ok(metrics)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::telemetry::metrics::Metrics;

    #[test]
    fn the_text_format_describes_counters_by_their_sample_names() {
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        metrics.acks.inc();
        let plain = Exposition::Text.render(&registry).unwrap();
        assert!(
            plain.contains(
                "# HELP shopbell_acks_total Acks that moved a cursor.\n# TYPE shopbell_acks_total counter\nshopbell_acks_total 1\n"
            ),
            "{plain}"
        );
        assert!(
            plain.contains("# TYPE shopbell_build_info gauge\nshopbell_build_info{version="),
            "{plain}"
        );
        assert!(
            plain.contains("# TYPE shopbell_sessions gauge\nshopbell_sessions 0\n"),
            "{plain}"
        );
        assert!(!plain.contains("# EOF"));
        assert!(
            Exposition::OpenMetrics
                .render(&registry)
                .unwrap()
                .ends_with("# EOF\n")
        );
    }

    #[test]
    fn open_metrics_is_sent_to_clients_that_accept_it() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1";
        assert_eq!(Exposition::of_accept(prometheus), Exposition::OpenMetrics);
        assert_eq!(Exposition::of_accept("*/*"), Exposition::Text);
    }
}
