//! The registration of metrics by name.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};

use crate::telemetry::instruments::{CounterBy, GaugeBy};
use crate::telemetry::labels::LabelValue;

/// Registers metrics by name.
pub(super) struct Named<'a>(pub(super) &'a mut Registry);

impl Named<'_> {
    pub(super) fn metric<M: Metric + Clone>(&mut self, name: &str, help: &str, metric: M) -> M {
        self.0.register(name, help, metric.clone());
        metric
    }

    pub(super) fn counter(&mut self, name: &str, help: &str) -> Counter {
        self.metric(name, help, Counter::default())
    }

    pub(super) fn gauge(&mut self, name: &str, help: &str) -> Gauge {
        self.metric(name, help, Gauge::default())
    }

    pub(super) fn histogram(&mut self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        self.metric(name, help, Histogram::new(buckets.iter().copied()))
    }

    pub(super) fn counters<V: LabelValue>(
        &mut self,
        name: &str,
        help: &str,
        label: (&'static str, &[V]),
    ) -> CounterBy<V> {
        let counters = CounterBy {
            label: label.0,
            family: self.metric(name, help, Family::default()),
        };
        counters.begin(label.1);
        counters
    }

    pub(super) fn gauges<V: LabelValue>(
        &mut self,
        name: &str,
        help: &str,
        label: &'static str,
    ) -> GaugeBy<V> {
        GaugeBy {
            label,
            family: self.metric(name, help, Family::default()),
        }
    }
}
