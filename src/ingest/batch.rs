//! A batch: deliveries that are stored together. Deliveries come in, and events and dead letters to
//! store go out.

use std::sync::Arc;

use super::dead_letters;
use crate::amqp::BrokerError;
use crate::amqp::consumer::{Acknowledger, Consumer};
use crate::amqp::delivery::Delivery;
use crate::model::event::{self, Event, Limits, Message, Rejection};
use crate::model::feed::Feed;
use crate::store::append::{Fate, Pending};
use crate::telemetry::metrics::Metrics;

/// Most events in a batch. Larger transactions are hardly cheaper for each event, and twice as many
/// events are prefetched.
pub(super) const EVENTS_MAX: usize = 128;
/// Bytes of bodies after which a batch takes no more events.
const BYTES_MAX: usize = 1024 * 1024;

/// A consumer that counts its deliveries as received.
#[derive(Debug)]
pub(super) struct CountedConsumer {
    consumer: Consumer,
    metrics: Arc<Metrics>,
}

impl CountedConsumer {
    pub(super) fn new(consumer: Consumer, metrics: Arc<Metrics>) -> Self {
        Self { consumer, metrics }
    }

    /// Waits for the next delivery. If this future is dropped in a `select!`, no delivery is lost.
    pub(super) async fn next(&mut self) -> Result<Delivery, BrokerError> {
        let delivery = self.consumer.next().await?;
        self.metrics.events_received.inc();
        Ok(delivery)
    }

    /// Returns the next delivery if it has arrived already.
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

/// Deliveries in the order of their arrival.
#[derive(Debug)]
pub(super) struct Batch {
    deliveries: Vec<Delivery>,
}

impl Batch {
    /// Adds the deliveries that have arrived to the first one, and waits for no others.
    ///
    /// # Errors
    /// The consumer ended. The deliveries are counted as abandoned, and RabbitMQ delivers them
    /// again.
    pub(super) fn collect(
        first: Delivery,
        consumer: &mut CountedConsumer,
    ) -> Result<Self, BrokerError> {
        let mut bytes = first.body().len();
        let mut deliveries = vec![first];
        while deliveries.len() < EVENTS_MAX
            && bytes < BYTES_MAX
            && let Some(delivery) = consumer.next_ready()
        {
            match delivery {
                Ok(delivery) => {
                    bytes += delivery.body().len();
                    deliveries.push(delivery);
                }
                Err(error) => {
                    consumer
                        .metrics
                        .events_abandoned
                        .inc_by(deliveries.len() as u64);
                    return Err(error);
                }
            }
        }
        Ok(Self { deliveries })
    }

    /// Parses each delivery: an event becomes a notification, all else a dead letter.
    pub(super) fn parse(self, limits: Limits, broadcast_feed: &Feed) -> Vec<Pending<Delivery>> {
        let pending = |delivery: Delivery| {
            let fate = match parse_event(&delivery.message(), limits, broadcast_feed) {
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

/// Parses an event and checks its audience.
///
/// # Errors
/// The message is not a valid event, or its recipient is not allowed for its type.
pub(super) fn parse_event(
    message: &Message<'_>,
    limits: Limits,
    broadcast_feed: &Feed,
) -> Result<Event, Rejection> {
    let event = event::parse(message, limits)?;
    event.check_audience(broadcast_feed)?;
    Ok(event)
}
