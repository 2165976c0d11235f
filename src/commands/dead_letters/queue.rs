//! Reads the dead letters that are in the queue of RabbitMQ when the command begins.

use anyhow::Context;

use super::super::{BROKER_TIMEOUT, within};
use crate::amqp::Broker;
use crate::amqp::dead_letter::queue::{DeadLetterQueue, Queued};

/// A reader that ends at the last dead letter that the queue had at the first read.
pub(in crate::commands) struct QueueReader {
    queue: DeadLetterQueue,
    /// Dead letters still to read; unknown before the first read.
    left: Option<u32>,
}

impl QueueReader {
    pub(in crate::commands) async fn open(broker: &Broker) -> anyhow::Result<Self> {
        let opening = DeadLetterQueue::open(broker);
        let queue = within(BROKER_TIMEOUT, "opening the dead-letter queue", opening)
            .await
            .context("could not connect to RabbitMQ at AMQP_URL (is it running, are user, password and vhost correct?)")?;
        Ok(Self { queue, left: None })
    }

    pub(in crate::commands) async fn next(&mut self) -> anyhow::Result<Option<Queued>> {
        if self.left == Some(0) {
            return Ok(None);
        }
        let reading = self.queue.next();
        let queued = within(BROKER_TIMEOUT, "reading the dead-letter queue", reading).await?;
        self.left = match (&queued, self.left) {
            (None, _) => Some(0),
            (Some(first), None) => Some(first.behind),
            (Some(_), Some(left)) => Some(left - 1),
        };
        Ok(queued)
    }

    pub(in crate::commands) async fn find(&mut self, id: &str) -> anyhow::Result<Queued> {
        while let Some(queued) = self.next().await? {
            if queued.dead_letter.id == id {
                return Ok(queued);
            }
        }
        anyhow::bail!("there is no dead letter {id} (`shopbell dead-letters list` lists all)")
    }

    pub(in crate::commands) async fn remove(&self, queued: &Queued) -> anyhow::Result<()> {
        let removing = self.queue.remove(queued);
        within(
            BROKER_TIMEOUT,
            "removing a dead letter from the queue",
            removing,
        )
        .await
    }

    /// Closes the connection. Dead letters that were not removed go back to the queue.
    pub(in crate::commands) async fn close(self) {
        self.queue.close().await;
    }
}
