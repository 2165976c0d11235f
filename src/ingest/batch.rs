//! The deliveries that are stored together.

use std::sync::Arc;

use super::dead_letters;
use crate::amqp::BrokerError;
use crate::amqp::consumer::{Acknowledger, Consumer};
use crate::amqp::delivery::Delivery;
use crate::model::event::{self, Event, Limits, Message, Rejection};
use crate::model::feed::Feed;
use crate::store::append::{Fate, Pending};
use crate::telemetry::metrics::Metrics;

/// Most events in a batch: past that a bigger transaction is hardly cheaper an event, and twice as many are prefetched, each
/// of whatever size the broker allows.
pub(super) const EVENTS_MAX: usize = 128;
/// A batch takes no further event when its bodies have this many bytes.
const BYTES_MAX: usize = 1024 * 1024;

/// Where deliveries arrive, and are counted: whatever becomes of them is counted elsewhere, and must add up to the same.
#[derive(Debug)]
pub(super) struct Arrivals {
    consumer: Consumer,
    metrics: Arc<Metrics>,
}

impl Arrivals {
    pub(super) fn new(consumer: Consumer, metrics: Arc<Metrics>) -> Self {
        Self { consumer, metrics }
    }

    /// The next delivery. Losing this future in a `select!` loses no delivery.
    pub(super) async fn next(&mut self) -> Result<Delivery, BrokerError> {
        let delivery = self.consumer.next().await?;
        self.metrics.events_received.inc();
        Ok(delivery)
    }

    /// The next delivery if it has arrived already.
    fn next_ready(&mut self) -> Option<Result<Delivery, BrokerError>> {
        let next = self.consumer.next_ready();
        if let Some(Ok(_)) = next {
            self.metrics.events_received.inc();
        }
        next
    }

    pub(super) fn acknowledger(&self) -> Acknowledger {
        self.consumer.acknowledger()
    }

    pub(super) fn is_connected(&self) -> bool {
        self.consumer.is_connected()
    }

    pub(super) async fn close(self) {
        self.consumer.close().await;
    }
}

/// Deliveries in the order in which they came.
#[derive(Debug)]
pub(super) struct Batch {
    deliveries: Vec<Delivery>,
}

impl Batch {
    /// Takes what has arrived; waits for nothing.
    pub(super) fn collect(first: Delivery, arrivals: &mut Arrivals) -> Result<Self, BrokerError> {
        let mut bytes = first.body().len();
        let mut deliveries = vec![first];
        while deliveries.len() < EVENTS_MAX
            && bytes < BYTES_MAX
            && let Some(delivery) = arrivals.next_ready()
        {
            match delivery {
                Ok(delivery) => {
                    bytes += delivery.body().len();
                    deliveries.push(delivery);
                }
                Err(error) => {
                    arrivals
                        .metrics
                        .events_abandoned
                        .inc_by(deliveries.len() as u64);
                    return Err(error);
                }
            }
        }
        Ok(Self { deliveries })
    }

    /// Reads each delivery: an event is to be a notification, anything else a dead letter.
    pub(super) fn parse(self, limits: Limits, broadcast_feed: &Feed) -> Vec<Pending<Delivery>> {
        let pending = |delivery: Delivery| {
            let fate = match read(&delivery.message(), limits, broadcast_feed) {
                Ok(event) => Fate::Notify(event),
                Err(rejection) => {
                    Fate::DeadLetter(Box::new(dead_letters::rejected(&delivery, &rejection)))
                }
            };
            Pending {
                origin: delivery,
                fate,
            }
        };
        self.deliveries.into_iter().map(pending).collect()
    }
}

/// Reads an event that can be stored.
pub(super) fn read(
    message: &Message<'_>,
    limits: Limits,
    broadcast_feed: &Feed,
) -> Result<Event, Rejection> {
    let event = event::parse(message, limits)?;
    event.check_audience(broadcast_feed)?;
    Ok(event)
}
