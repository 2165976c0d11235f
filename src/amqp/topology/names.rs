//! The names of exchanges and queues under one prefix.

use std::fmt;

/// The names of exchanges and queues under one prefix.
#[derive(Debug, Clone)]
pub struct Names {
    prefix: String,
}

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident = $suffix:literal),* $(,)?) => {
        impl Names {
            $($(#[$doc])* pub fn $name(&self) -> String { format!(concat!("{}.", $suffix), self.prefix) })*
        }
    };
}
names! {
    /// The topic exchange for the events of publishers.
    events = "events",
    /// The fan-out exchange for the events of publishers. It costs RabbitMQ less than `events`.
    entry = "entry",
    /// The queue of ingest. If there are several partitions, it is the first.
    ingest = "ingest",
    /// The exchange that chooses the partition of an event by its recipient.
    partitions = "partitions",
    /// The exchange and the quorum queue of dead letters.
    dead_letter = "dead-letter",
    /// The exchange and the queue of events that were routed to no other queue.
    unroutable = "unroutable",
    /// The exchange of hints.
    fanout = "fanout",
    /// The queue by whose consumers RabbitMQ counts gateways.
    gateways = "gateways",
    /// The topic exchange of receipts, which Shopbell publishes.
    receipts = "receipts",
}

impl Names {
    /// Makes names that begin with `prefix`.
    pub fn new(prefix: &str) -> Self {
        Self {
            prefix: prefix.into(),
        }
    }

    /// The ingest queue of a partition. The first partition is 1.
    pub fn partition(&self, number: u8) -> String {
        match number {
            1 => self.ingest(),
            _ => format!("{}.{number}", self.ingest()),
        }
    }

    /// Makes the name of a fan-out queue. Each incarnation needs a new one, because RabbitMQ may
    /// still have the last queue.
    pub fn new_fanout_queue(&self) -> String {
        format!("{}.{}", self.fanout(), uuid::Uuid::new_v4().simple())
    }
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.*", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_partition_is_the_ingest_queue() {
        let names = Names::new("shop");
        assert_eq!(names.partition(1), "shop.ingest");
        assert_eq!(names.partition(2), "shop.ingest.2");
        assert_eq!(names.dead_letter(), "shop.dead-letter");
    }

    #[test]
    fn each_fanout_queue_has_a_name_of_its_own() {
        let names = Names::new("shop");
        let (one, other) = (names.new_fanout_queue(), names.new_fanout_queue());
        assert!(one.starts_with("shop.fanout."));
        assert_ne!(one, other);
    }
}
