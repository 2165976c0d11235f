//! Reads the dead-letter queue of RabbitMQ, and removes dead letters from it.

use std::time::Duration;

use lapin::Channel;
use lapin::options::{BasicAckOptions, BasicGetOptions};

use super::DeadLetter;
use crate::amqp::connection::{Connection, Frames};
use crate::amqp::{Broker, BrokerError, within};

/// Longest wait for an answer of RabbitMQ.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// A dead letter in RabbitMQ's queue.
#[derive(Debug)]
pub struct Queued {
    /// The dead letter.
    pub dead_letter: DeadLetter,
    /// The number of dead letters behind it in the queue.
    pub behind: u32,
    tag: u64,
}

impl Queued {
    /// Drops the body, for a dead letter that will only be removed.
    pub fn without_body(mut self) -> Self {
        self.dead_letter.body = Vec::new();
        self
    }
}

/// A reader of the dead-letter queue. When it closes, the dead letters that it read and did not
/// remove go back to the queue.
pub struct DeadLetterQueue {
    connection: Connection,
    channel: Channel,
    queue: String,
    /// The number of dead letters read.
    read: usize,
}

impl std::fmt::Debug for DeadLetterQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeadLetterQueue")
            .field("read", &self.read)
            .finish_non_exhaustive()
    }
}

impl DeadLetterQueue {
    /// Connects.
    ///
    /// # Errors
    /// RabbitMQ does not answer, or rejects a part of the topology.
    pub async fn open(broker: &Broker) -> Result<Self, BrokerError> {
        let (connection, channel, _) = broker.open("dead-letters", Frames::Large).await?;
        Ok(Self {
            connection,
            channel,
            queue: broker.names.dead_letter(),
            read: 0,
        })
    }

    /// Reads the next dead letter, the oldest first. Returns `None` at the end of the queue.
    ///
    /// # Errors
    /// RabbitMQ does not answer.
    pub async fn next(&mut self) -> Result<Option<Queued>, BrokerError> {
        let getting = async {
            Ok(self
                .channel
                .basic_get(self.queue.as_str().into(), BasicGetOptions::default())
                .await?)
        };
        let got = within(ANSWER_TIMEOUT, "getting a dead letter", getting).await?;
        self.read += 1;
        let queued = |got: lapin::message::BasicGetMessage| {
            let lapin::message::Delivery {
                delivery_tag,
                properties,
                data,
                routing_key,
                ..
            } = got.delivery;
            let mut dead_letter = DeadLetter::read(properties, data, Some(routing_key.as_str()));
            if dead_letter.id.is_empty() {
                dead_letter.id = format!("position-{}", self.read);
            }
            Queued {
                dead_letter,
                behind: got.message_count,
                tag: delivery_tag,
            }
        };
        Ok(got.map(queued))
    }

    /// Removes a dead letter from the queue.
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn remove(&self, queued: &Queued) -> Result<(), BrokerError> {
        let options = BasicAckOptions { multiple: false };
        let removing = async { Ok(self.channel.basic_ack(queued.tag, options).await?) };
        within(ANSWER_TIMEOUT, "removing a dead letter", removing).await
    }

    /// Closes the connection. The dead letters that were not removed go back to the queue.
    pub async fn close(self) {
        self.connection.close(&self.channel).await;
    }
}
