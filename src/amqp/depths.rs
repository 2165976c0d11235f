//! How much waits in the queues, and who consumes them.

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use lapin::{Channel, Connection};

use super::{Broker, BrokerError, DECLARE_TIMEOUT, within};

/// What RabbitMQ says of a queue, or of several together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Depth {
    /// Messages that are ready, and with no consumer yet.
    pub messages: u32,
    /// Consumers, those that stand by among them.
    pub consumers: u32,
}

/// Looks at the queues of the contract over a connection of its own, which is opened again where it was lost.
pub struct Watcher {
    broker: Broker,
    incarnation: Option<(Connection, Channel)>,
}

impl std::fmt::Debug for Watcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watcher").field("broker", &self.broker).finish_non_exhaustive()
    }
}

impl Watcher {
    /// Connects when it is to look.
    pub fn new(broker: &Broker) -> Self {
        Self { broker: broker.clone(), incarnation: None }
    }

    /// Each queue by its name in the contract, all partitions of ingest together.
    pub async fn look(&mut self) -> Result<Vec<(&'static str, Depth)>, BrokerError> {
        // Taken out, so that an error on the way drops it.
        let incarnation = match self.incarnation.take() {
            Some(incarnation) => incarnation,
            None => self.broker.connect("watch").await?,
        };
        let depths = within(DECLARE_TIMEOUT, "looking at the queues", self.depths(&incarnation.1)).await?;
        self.incarnation = Some(incarnation);
        Ok(depths)
    }

    async fn depths(&self, channel: &Channel) -> Result<Vec<(&'static str, Depth)>, BrokerError> {
        let names = &self.broker.names;
        let mut ingest = Depth::default();
        for partition in 1..=self.broker.partitions {
            let Depth { messages, consumers } = depth(channel, names.partition(partition)).await?;
            ingest.messages = ingest.messages.saturating_add(messages);
            ingest.consumers = ingest.consumers.saturating_add(consumers);
        }
        Ok(vec![
            ("ingest", ingest),
            ("dead-letter", depth(channel, names.dead_letter()).await?),
            ("unroutable", depth(channel, names.unroutable()).await?),
        ])
    }
}

async fn depth(channel: &Channel, queue: String) -> Result<Depth, BrokerError> {
    let options = QueueDeclareOptions { passive: true, ..Default::default() };
    let queue = channel.queue_declare(queue.into(), options, FieldTable::default()).await?;
    Ok(Depth { messages: queue.message_count(), consumers: queue.consumer_count() })
}
