//! Removes dead letters from Postgres and RabbitMQ, and replays them first if asked to.

use std::collections::HashMap;

use anyhow::Context;
use serde::Serialize;

use super::queue::QueueReader;
use super::{DeadLetters, query};
use crate::amqp::BrokerError;
use crate::amqp::dead_letter::DeadLetter;
use crate::amqp::dead_letter::queue::Queued;
use crate::amqp::publisher::Publisher;
use crate::amqp::topology::Names;
use crate::commands::terminal::{self, Format};
use crate::store::dead_letters::{self, Stored};

/// A removal of one or all dead letters.
pub(super) struct Removal<'a> {
    dead_letters: &'a DeadLetters,
    replay: &'a mut Option<Replay>,
    format: Format,
    removed: u64,
}

impl<'a> Removal<'a> {
    pub(super) fn new(
        dead_letters: &'a DeadLetters,
        replay: &'a mut Option<Replay>,
        format: Format,
    ) -> Self {
        Self {
            dead_letters,
            replay,
            format,
            removed: 0,
        }
    }

    pub(super) fn has_replayed(&self) -> bool {
        self.replay.is_some() && self.removed > 0
    }

    pub(super) async fn remove_one(&mut self, id: &str) -> anyhow::Result<()> {
        let Some(stored) = query(dead_letters::find(&self.dead_letters.pool, id)).await? else {
            let mut queue = QueueReader::open(&self.dead_letters.broker).await?;
            let queued = queue.find(id).await?;
            self.remove_queued(&queue, &queued).await?;
            queue.close().await;
            return Ok(());
        };
        if let (Some(feed), true) = (&stored.letter.feed, self.replay.is_some()) {
            anyhow::bail!(
                "{id} waits for the feed {feed}, which is damaged: repair the feed, and {id} is stored"
            );
        }
        self.remove_stored(stored).await?;
        if let Err(error) = self.remove_copy(id).await {
            terminal::write_message(&format!(
                "the copy of {id} in the dead-letter queue may still exist: {error:#}"
            ));
        }
        Ok(())
    }

    /// Removes the copy of a stored dead letter from the queue, if there is one.
    async fn remove_copy(&self, id: &str) -> anyhow::Result<()> {
        let mut queue = QueueReader::open(&self.dead_letters.broker).await?;
        while let Some(queued) = queue.next().await? {
            if queued.dead_letter.id == id {
                queue.remove(&queued).await?;
                break;
            }
        }
        queue.close().await;
        Ok(())
    }

    /// Removes those that are only in the queue first, because they are older. Removes each stored
    /// one with its copy in the queue.
    pub(super) async fn remove_all(&mut self) -> anyhow::Result<()> {
        let (_, newest) = query(dead_letters::extent(&self.dead_letters.pool)).await?;
        let mut queue = QueueReader::open(&self.dead_letters.broker).await?;
        let mut copies = HashMap::new();
        while let Some(queued) = queue.next().await? {
            if self.dead_letters.is_stored(&queued.dead_letter.id).await? {
                copies.insert(queued.dead_letter.id.clone(), queued.without_body());
            } else {
                self.remove_queued(&queue, &queued).await?;
            }
        }
        let (mut after, mut held) = (0, 0);
        while let Some(stored) =
            query(dead_letters::next(&self.dead_letters.pool, after, newest)).await?
        {
            after = stored.position;
            if stored.letter.feed.is_some() {
                held += 1;
                continue;
            }
            let id = stored.letter.id.clone();
            self.remove_stored(stored).await?;
            if let Some(copy) = copies.get(&id) {
                queue.remove(copy).await?;
            }
        }
        queue.close().await;
        if held > 0 {
            terminal::write_message(&format!(
                "{held} events of damaged feeds were left: they are stored when their feed is repaired"
            ));
        }
        Ok(())
    }

    async fn remove_stored(&mut self, Stored { letter, .. }: Stored) -> anyhow::Result<()> {
        let id = letter.id;
        if let Some(replay) = self.replay {
            let letter = DeadLetter::decode(&letter.properties, letter.body);
            let letter =
                letter.with_context(|| format!("could not read {id}: it stays a dead letter"))?;
            replay
                .publish(&letter)
                .await
                .with_context(|| format!("{} dead letters were replayed before", self.removed))?;
        }
        let removed = query(dead_letters::remove(&self.dead_letters.pool, &id)).await;
        removed.with_context(|| self.failure(&id))?;
        self.print_removed(&id)
    }

    async fn remove_queued(&mut self, queue: &QueueReader, queued: &Queued) -> anyhow::Result<()> {
        let id = &queued.dead_letter.id;
        if let Some(replay) = self.replay {
            replay
                .publish(&queued.dead_letter)
                .await
                .with_context(|| format!("{} dead letters were replayed before", self.removed))?;
        }
        let removed = queue.remove(queued).await;
        removed.with_context(|| self.failure(id))?;
        self.print_removed(id)
    }

    /// The error text if a dead letter could not be removed.
    fn failure(&self, id: &str) -> String {
        format!(
            "{} dead letters were {} before; could not remove {id}, which may still exist",
            self.removed,
            self.past_action()
        )
    }

    fn past_action(&self) -> &'static str {
        if self.replay.is_some() {
            "replayed"
        } else {
            "dropped"
        }
    }

    fn print_removed(&mut self, id: &str) -> anyhow::Result<()> {
        self.removed += 1;
        let removed = Removed {
            id,
            did: self.past_action(),
        };
        terminal::write_lines(&match self.format {
            Format::Text => terminal::text_line(&format!("{} {id}", removed.did)),
            Format::Json => terminal::json_line(&removed)?,
        })
    }
}

#[derive(Serialize)]
struct Removed<'a> {
    id: &'a str,
    did: &'static str,
}

/// Publishes dead letters to ingest again.
pub(super) struct Replay {
    publisher: Publisher,
    names: Names,
    /// Published instead of the original body.
    new_body: Option<Vec<u8>>,
}

impl Replay {
    pub(super) fn new(publisher: Publisher, names: Names, new_body: Option<Vec<u8>>) -> Self {
        Self {
            publisher,
            names,
            new_body,
        }
    }

    async fn publish(&mut self, letter: &DeadLetter) -> anyhow::Result<()> {
        let id = &letter.id;
        if let (Some(bytes), None) = (letter.original_body_bytes(), &self.new_body) {
            anyhow::bail!(
                "only a part of the {bytes} bytes of {id} is stored: replay it with --body, or drop it"
            );
        }
        let outgoing = letter.to_replay(&self.names, self.new_body.as_deref());
        let published: Result<(), BrokerError> = self.publisher.publish(&[outgoing]).await;
        published.with_context(|| format!("could not replay {id}: it stays a dead letter"))
    }

    pub(super) async fn close(self) {
        self.publisher.close().await;
    }
}
