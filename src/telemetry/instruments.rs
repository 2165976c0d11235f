//! Kinds of metrics that prometheus-client does not have: families by one label, ages, and counts of existing objects.

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use crate::telemetry::labels::LabelValue;

/// A gauge of seconds.
pub type Seconds = Gauge<f64, AtomicU64>;
/// The family of one label. Its name and values are constants of the program.
pub(super) type ByLabel<V, M> = Family<[(&'static str, V); 1], M>;

/// Counters by the value of one label.
#[derive(Debug, Clone)]
pub struct CounterBy<V: LabelValue> {
    pub(super) label: &'static str,
    pub(super) family: ByLabel<V, Counter>,
}

impl<V: LabelValue> CounterBy<V> {
    /// Creates the series at zero, because an alert on an increase needs a value before it.
    pub fn begin(&self, values: &[V]) {
        for value in values {
            drop(self.family.get_or_create(&[(self.label, *value)]));
        }
    }

    /// Adds one.
    pub fn inc(&self, value: V) {
        self.family.get_or_create(&[(self.label, value)]).inc();
    }
}

/// Gauges by the value of one label, all measured together.
#[derive(Debug, Clone)]
pub struct GaugeBy<V: LabelValue> {
    pub(super) label: &'static str,
    pub(super) family: ByLabel<V, Gauge>,
}

impl<V: LabelValue> GaugeBy<V> {
    /// Sets the value.
    pub fn set(&self, value: V, number: i64) {
        self.family
            .get_or_create(&[(self.label, value)])
            .set(number);
    }

    /// Adds one until the returned value is dropped.
    pub fn count(&self, value: V) -> Counted {
        Counted::in_gauge(&self.family.get_or_create(&[(self.label, value)]))
    }

    /// Sets the value, or removes the series if the value is unknown.
    pub fn set_or_remove(&self, value: V, number: Option<i64>) {
        match number {
            Some(number) => self.set(value, number),
            None => _ = self.family.remove(&[(self.label, value)]),
        }
    }

    /// Removes all series.
    pub fn clear(&self) {
        self.family.clear();
    }
}

/// Since when each connection of ingest holds deliveries that it has not stored. The age is computed when it is read, so
/// that it grows while ingest is stuck.
#[derive(Debug, Clone, Default)]
pub struct Holding(Arc<Mutex<Held>>);

#[derive(Debug, Default)]
struct Held {
    begun: u64,
    since: HashMap<u64, Instant>,
}

impl Holding {
    /// A connection holds deliveries from now until the returned value is dropped.
    pub fn begin(&self) -> HoldingBatch<'_> {
        let mut held = self.lock();
        held.begun += 1;
        let number = held.begun;
        held.since.insert(number, Instant::now());
        HoldingBatch {
            holding: self,
            number,
        }
    }

    /// The age of the oldest of them in seconds; 0 without one.
    pub fn oldest(&self) -> f64 {
        self.lock()
            .since
            .values()
            .map(|since| since.elapsed().as_secs_f64())
            .fold(0.0, f64::max)
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
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

/// The deliveries of a batch that are held.
#[derive(Debug)]
pub struct HoldingBatch<'a> {
    holding: &'a Holding,
    number: u64,
}

impl Drop for HoldingBatch<'_> {
    fn drop(&mut self) {
        self.holding.lock().since.remove(&self.number);
    }
}

/// The time since an instant, computed when it is read; 0 without one.
#[derive(Debug, Clone, Default)]
pub struct Age(Arc<Mutex<Option<Instant>>>);

impl Age {
    /// Begins again at zero.
    pub fn begin(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    fn seconds(&self) -> f64 {
        let since = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        since.map_or(0.0, |since| since.elapsed().as_secs_f64())
    }
}

impl EncodeMetric for Age {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        encoder.encode_gauge(&self.seconds())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }
}

/// One in a gauge, until it is dropped.
#[derive(Debug)]
pub struct Counted(Gauge);

impl Counted {
    /// Adds one to the gauge.
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
    fn the_age_is_that_of_the_oldest_batch() {
        let holding = Holding::default();
        assert_eq!(holding.oldest(), 0.0);
        let first = holding.begin();
        let after_first = Instant::now();
        let second = holding.begin();
        drop(first);
        assert!(
            holding.oldest() <= after_first.elapsed().as_secs_f64(),
            "the first is no longer held"
        );
        drop(second);
        assert_eq!(holding.oldest(), 0.0);
    }
}
