//! The deliveries that are stored together.

use crate::amqp::BrokerError;
use crate::amqp::consumer::Consumer;
use crate::amqp::delivery::Delivery;
use crate::event::{self, Event, Limits, Rejection};
use crate::feed::Feed;

/// Most events in a batch: past that a bigger transaction is hardly cheaper an event, and twice as many are prefetched, each
/// of whatever size the broker allows.
pub(super) const EVENTS_MAX: usize = 128;
/// A batch takes no further event when its bodies have this many bytes.
const BYTES_MAX: usize = 1024 * 1024;

/// Deliveries in the order in which they came.
#[derive(Debug)]
pub(super) struct Batch {
    deliveries: Vec<Delivery>,
    /// The tag that acknowledges all of them.
    through: u64,
}

/// A batch, sorted.
#[derive(Debug)]
pub(super) struct Parsed {
    /// What can be stored, in order.
    pub(super) events: Vec<(Delivery, Event)>,
    /// What never can.
    pub(super) rejected: Vec<(Delivery, Rejection)>,
    /// The tag that acknowledges all of them.
    pub(super) through: u64,
}

impl Batch {
    /// Takes what has arrived; waits for nothing.
    pub(super) fn collect(first: Delivery, consumer: &mut Consumer) -> Result<Self, BrokerError> {
        let mut bytes = first.body().len();
        let mut batch = Self { through: first.tag(), deliveries: vec![first] };
        while batch.deliveries.len() < EVENTS_MAX
            && bytes < BYTES_MAX
            && let Some(delivery) = consumer.next_ready()
        {
            let delivery = delivery?;
            bytes += delivery.body().len();
            batch.through = delivery.tag();
            batch.deliveries.push(delivery);
        }
        Ok(batch)
    }

    /// Tells what can be stored from what never can.
    pub(super) fn parse(self, limits: Limits, broadcast_feed: &Feed) -> Parsed {
        let events = Vec::with_capacity(self.deliveries.len());
        let mut parsed = Parsed { events, rejected: Vec::new(), through: self.through };
        for delivery in self.deliveries {
            let checked = event::parse(&delivery.message(), limits)
                .and_then(|event| event.check_audience(broadcast_feed).map(|()| event));
            match checked {
                Ok(event) => parsed.events.push((delivery, event)),
                Err(rejection) => parsed.rejected.push((delivery, rejection)),
            }
        }
        parsed
    }
}
