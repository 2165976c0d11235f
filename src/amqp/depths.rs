//! How much waits in the queues, and who consumes them.

use std::time::Duration;

use lapin::Channel;
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;

use super::connection::{Connection, Frames};
use super::{Broker, BrokerError, topology, within};

/// A broker that needs longer to say what lies in a queue is as good as away.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);

/// What RabbitMQ says of a queue, or of several together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Depth {
    /// Messages that are ready, and with no consumer yet; of all of them.
    pub messages: u32,
    /// Consumers, those that stand by among them; the fewest that one of them has.
    pub consumers: u32,
}

/// Looks at the queues of the contract over a connection of its own, which is opened again where it was lost.
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
    /// Connects when it is to look.
    pub fn new(broker: &Broker) -> Self {
        Self {
            broker: broker.clone(),
            incarnation: None,
        }
    }

    /// Each queue by its name in the contract, all partitions of ingest together; `None` where it is not there.
    pub async fn look(&mut self) -> Result<Vec<(&'static str, Option<Depth>)>, BrokerError> {
        // Taken out, so that an error on the way drops it.
        let incarnation = match self.incarnation.take() {
            Some(incarnation) => incarnation,
            None => self.open().await?,
        };
        let (connection, channel) = incarnation;
        let mut channel = channel;
        let depths = within(
            LOOK_TIMEOUT,
            "looking at the queues",
            self.depths(&connection, &mut channel),
        )
        .await?;
        self.incarnation = Some((connection, channel));
        Ok(depths)
    }

    async fn open(&self) -> Result<(Connection, Channel), BrokerError> {
        let connection = Connection::open(&self.broker.uri, "watch", Frames::Small).await?;
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
            let mut together: Option<Depth> = None;
            for queue in queues {
                match depth(channel, queue).await {
                    Ok(depth) => {
                        together = Some(together.map_or(depth, |others| others.and(depth)))
                    }
                    // RabbitMQ has closed the channel over that.
                    Err(error) if topology::is_not_found(&error) => {
                        *channel = connection.channel().await?
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            depths.push((name, together));
        }
        Ok(depths)
    }
}

impl Depth {
    fn and(self, other: Self) -> Self {
        let messages = self.messages.saturating_add(other.messages);
        Self {
            messages,
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
