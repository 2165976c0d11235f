//! Measures the queues of the contract: ready messages and consumers.

use std::time::Duration;

use lapin::Channel;
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;

use super::connection::{Connection, Frames};
use super::{Broker, BrokerError, topology, within};

/// Longest time to measure all queues. After it, RabbitMQ counts as down.
const MEASURE_TIMEOUT: Duration = Duration::from_secs(5);

/// The depth of a queue, or of several queues together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Depth {
    /// Messages that are ready and not delivered to a consumer. The sum of all queues.
    pub messages: u32,
    /// Consumers, with those that stand by. The lowest number of all queues.
    pub consumers: u32,
}

/// Measures the queues over a connection of its own. After a failure it opens a new one.
pub struct DepthProbe {
    broker: Broker,
    incarnation: Option<(Connection, Channel)>,
}

impl std::fmt::Debug for DepthProbe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DepthProbe")
            .field("broker", &self.broker)
            .finish_non_exhaustive()
    }
}

impl DepthProbe {
    /// Makes a probe that connects with its first measurement.
    pub fn new(broker: &Broker) -> Self {
        Self {
            broker: broker.clone(),
            incarnation: None,
        }
    }

    /// Returns the depth of each queue by its name in the contract. The partitions of ingest count
    /// as one queue. A queue that does not exist has no depth.
    ///
    /// # Errors
    /// RabbitMQ does not answer.
    pub async fn measure(&mut self) -> Result<Vec<(&'static str, Option<Depth>)>, BrokerError> {
        // Taken out, so that an error drops it.
        let (connection, mut channel) = match self.incarnation.take() {
            Some(incarnation) => incarnation,
            None => self.open().await?,
        };
        let depths = within(
            MEASURE_TIMEOUT,
            "measuring the queues",
            self.depths(&connection, &mut channel),
        )
        .await?;
        self.incarnation = Some((connection, channel));
        Ok(depths)
    }

    async fn open(&self) -> Result<(Connection, Channel), BrokerError> {
        let connection = Connection::open(&self.broker.address(), "watch", Frames::Small).await?;
        let channel = connection.channel().await?;
        Ok((connection, channel))
    }

    /// Closes the connection, if there is one.
    pub async fn close(self) {
        if let Some((connection, channel)) = self.incarnation {
            connection.close(&channel).await;
        }
    }

    async fn depths(
        &self,
        connection: &Connection,
        channel: &mut Channel,
    ) -> Result<Vec<(&'static str, Option<Depth>)>, BrokerError> {
        let names = &self.broker.names;
        let partitions = (1..=self.broker.partitions)
            .map(|number| names.partition(number))
            .collect();
        let queues = [
            ("ingest", partitions),
            ("dead-letter", vec![names.dead_letter()]),
            ("unroutable", vec![names.unroutable()]),
        ];
        let mut depths = Vec::with_capacity(queues.len());
        for (name, queues) in queues {
            let mut total: Option<Depth> = None;
            for queue in queues {
                match depth(channel, queue).await {
                    Ok(depth) => total = Some(total.map_or(depth, |others| others.plus(depth))),
                    // RabbitMQ closes the channel with this error.
                    Err(error) if topology::is_not_found(&error) => {
                        *channel = connection.channel().await?
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            depths.push((name, total));
        }
        Ok(depths)
    }
}

impl Depth {
    fn plus(self, other: Self) -> Self {
        Self {
            messages: self.messages.saturating_add(other.messages),
            consumers: self.consumers.min(other.consumers),
        }
    }
}

async fn depth(channel: &Channel, queue: String) -> Result<Depth, lapin::Error> {
    let options = QueueDeclareOptions {
        passive: true,
        ..Default::default()
    };
    let queue = channel
        .queue_declare(queue.into(), options, FieldTable::default())
        .await?;
    Ok(Depth {
        messages: queue.message_count(),
        consumers: queue.consumer_count(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_add_their_messages_and_keep_the_fewest_consumers() {
        let depth = |messages, consumers| Depth {
            messages,
            consumers,
        };
        assert_eq!(depth(2, 3).plus(depth(5, 1)), depth(7, 1));
        assert_eq!(depth(u32::MAX, 1).plus(depth(1, 2)), depth(u32::MAX, 1));
    }
}
