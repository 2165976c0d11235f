//! The deliveries of one channel in the order of their tags, also if several queues are consumed.
//!
//! An acknowledgement of a tag covers all lower tags of the channel (AMQP 0-9-1, `basic.ack` with
//! `multiple`). So a delivery must never come out before one with a lower tag. The library has one stream
//! for each queue, and the streams do not wake in the order of the tags.

use std::collections::BTreeMap;
use std::pin::Pin;

use futures_util::stream::{SelectAll, Stream, StreamExt, once};

use crate::amqp::BrokerError;
use crate::amqp::delivery::Delivery;

/// AMQP numbers the deliveries of a channel from 1, without a gap.
const FIRST_TAG: u64 = 1;

type One = Pin<Box<dyn Stream<Item = Result<Delivery, BrokerError>> + Send + Sync>>;

/// The deliveries of all consumers of a channel.
pub(super) struct Deliveries {
    streams: SelectAll<One>,
    order: InOrder<Delivery>,
}

impl Deliveries {
    /// Without any queue.
    pub(super) fn new() -> Self {
        Self {
            streams: SelectAll::new(),
            order: InOrder::new(),
        }
    }

    /// Adds a queue.
    pub(super) fn add(&mut self, consumer: lapin::Consumer, queue: String) {
        let deliveries = consumer.map(|delivery| Ok(Delivery { inner: delivery? }));
        let end = once(std::future::ready(Err(BrokerError::ConsumerEnded(queue))));
        self.streams.push(Box::pin(deliveries.chain(end)));
    }

    /// Waits for the next delivery. If this future is dropped in a `select!`, no delivery is lost.
    ///
    /// # Errors
    /// A consumer or the connection ended.
    pub(super) async fn next(&mut self) -> Result<Delivery, BrokerError> {
        loop {
            if let Some(delivery) = self.order.next() {
                return Ok(delivery);
            }
            let Some(delivery) = self.streams.next().await else {
                return Err(BrokerError::ConsumersEnded);
            };
            let delivery = delivery?;
            self.order.add(delivery.tag(), delivery);
        }
    }
}

/// Puts the items of a channel into the order of their tags. The prefetch bounds those that wait.
#[derive(Debug)]
struct InOrder<T> {
    next_tag: u64,
    /// Those that came before an item with a lower tag.
    early: BTreeMap<u64, T>,
}

impl<T> InOrder<T> {
    fn new() -> Self {
        Self {
            next_tag: FIRST_TAG,
            early: BTreeMap::new(),
        }
    }

    fn add(&mut self, tag: u64, item: T) {
        self.early.insert(tag, item);
    }

    fn next(&mut self) -> Option<T> {
        let next = self.early.remove(&self.next_tag)?;
        self.next_tag += 1;
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_come_out_in_the_order_of_their_tags() {
        let mut order = InOrder::new();
        assert_eq!(order.next(), None);
        for tag in [3, 1] {
            order.add(tag, tag);
        }
        assert_eq!(order.next(), Some(1));
        assert_eq!(order.next(), None, "the item with tag 2 has not come");
        order.add(2, 2);
        order.add(4, 4);
        let rest: Vec<u64> = std::iter::from_fn(|| order.next()).collect();
        assert_eq!(rest, [2, 3, 4]);
    }
}
