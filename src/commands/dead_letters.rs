//! `shopbell dead-letters`: shows events that could not be stored, replays them, or drops them.
//!
//! Postgres has them, and RabbitMQ's queue has a copy of each that was published. What only the queue has, because an earlier
//! version or RabbitMQ itself put it there, is taken from the queue. A command goes no further than what there was when it
//! began: a letter that comes back after its replay does not keep it from its end.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use super::terminal::{self, Format};
use super::{BROKER_TIMEOUT, broker, within};
use crate::amqp::dead_letter::DeadLetter;
use crate::amqp::dead_letter::queue::{DeadLetterQueue, Queued};
use crate::amqp::publisher::Publisher;
use crate::amqp::topology::Names;
use crate::amqp::{Broker, BrokerError};
use crate::config::Environment;
use crate::store::dead_letters::{self, Letter, Stored};
use crate::store::pool::Pool;
use crate::store::pools::Pools;

/// How long Postgres may take.
const DATABASE_TIMEOUT: Duration = Duration::from_secs(15);

/// What to do with them.
#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// Tell what is there, oldest first.
    List {
        /// So many at most.
        #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
    },
    /// Write one's body to stdout, and what is known of it to stderr.
    Show {
        /// As `list` tells it.
        id: String,
    },
    /// Publish again what could not be stored, and remove it when RabbitMQ has confirmed that.
    Replay {
        /// Which of them.
        #[command(flatten)]
        which: Selection,
        /// The mended body, instead of the one it came with.
        #[arg(long, value_name = "FILE", conflicts_with = "all")]
        body: Option<PathBuf>,
    },
    /// Remove for good.
    Drop {
        /// Which of them.
        #[command(flatten)]
        which: Selection,
    },
}

/// One or all.
#[derive(Debug, clap::Args)]
pub struct Selection {
    /// As `list` tells it.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    id: Option<String>,
    /// All that are there now.
    #[arg(long)]
    all: bool,
}

/// Does it.
pub async fn run(action: Action, format: Format) -> anyhow::Result<()> {
    let (broker, options) = (broker()?, Environment::of_process().database()?);
    // Before the first letter is touched.
    let mended = match &action {
        Action::Replay {
            body: Some(path), ..
        } => Some(read(path)?),
        _ => None,
    };
    let letters = Letters {
        pool: Pools::lazy(&options, 1, &Arc::default()).upkeep,
        broker,
    };
    match action {
        Action::List { limit } => letters.list(i64::from(limit), format).await,
        Action::Show { id } => letters.show(&id, format).await,
        Action::Replay { which, .. } => {
            let opening = Publisher::open(&letters.broker);
            let publisher =
                within(BROKER_TIMEOUT, "opening a connection to publish", opening).await?;
            let mut replay = Some(Replay {
                publisher,
                mended,
                names: letters.broker.names.clone(),
            });
            let taken = letters.take(which, &mut replay, format).await;
            if let Some(replay) = replay {
                replay.publisher.close().await;
            }
            taken
        }
        Action::Drop { which } => letters.take(which, &mut None, format).await,
    }
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("could not read the body from {}", path.display()))
}

/// Where dead letters are.
struct Letters {
    pool: Pool,
    broker: Broker,
}

impl Letters {
    async fn list(&self, limit: i64, format: Format) -> anyhow::Result<()> {
        let (stored, newest) = asked(dead_letters::extent(&self.pool)).await?;
        let (mut listed, mut after) = (0, 0);
        while listed < limit
            && let Some(Stored { position, letter }) =
                asked(dead_letters::next(&self.pool, after, newest)).await?
        {
            after = position;
            listed += 1;
            tell(&Facts::of_stored(&letter), format)?;
        }
        if listed == limit && stored > limit {
            terminal::write_message(&format!(
                "{} more are there: --limit tells how many to list",
                stored - limit
            ));
            return Ok(());
        }
        let mut queue = match Queue::open(&self.broker).await {
            Ok(queue) => queue,
            Err(error) => {
                terminal::write_message(&format!(
                    "what only RabbitMQ has is not listed: {error:#}"
                ));
                return Ok(());
            }
        };
        while listed < limit
            && let Some(queued) = queue.next().await?
        {
            if !self.stores(&queued.dead_letter.id).await? {
                listed += 1;
                tell(&Facts::of(&queued.dead_letter), format)?;
            }
        }
        queue.letters.close().await;
        if listed == 0 {
            terminal::write_message("there are no dead letters");
        }
        Ok(())
    }

    async fn show(&self, id: &str, format: Format) -> anyhow::Result<()> {
        if let Some(Stored { letter, .. }) = asked(dead_letters::find(&self.pool, id)).await? {
            return show(Facts::of_stored(&letter), &letter.body, format);
        }
        let mut queue = Queue::open(&self.broker).await?;
        let queued = queue.find(id).await?;
        show(
            Facts::of(&queued.dead_letter),
            &queued.dead_letter.body,
            format,
        )?;
        queue.letters.close().await;
        Ok(())
    }

    /// Removes one or all, after their replay where there is one.
    async fn take(
        &self,
        which: Selection,
        replay: &mut Option<Replay>,
        format: Format,
    ) -> anyhow::Result<()> {
        let mut taking = Taking {
            letters: self,
            replay,
            format,
            taken: 0,
        };
        match which.id {
            Some(id) => taking.one(&id).await?,
            None => taking.all().await?,
        }
        if taking.replay.is_some() && taking.taken > 0 {
            terminal::write_message(
                "what still cannot be stored comes back as a dead letter with a new id",
            );
        }
        Ok(())
    }

    async fn stores(&self, id: &str) -> anyhow::Result<bool> {
        asked(dead_letters::exists(&self.pool, id)).await
    }
}

/// Letters being taken.
struct Taking<'a> {
    letters: &'a Letters,
    replay: &'a mut Option<Replay>,
    format: Format,
    taken: u64,
}

impl Taking<'_> {
    async fn one(&mut self, id: &str) -> anyhow::Result<()> {
        match asked(dead_letters::find(&self.letters.pool, id)).await? {
            Some(stored) => {
                if let (Some(feed), true) = (&stored.letter.feed, self.replay.is_some()) {
                    anyhow::bail!(
                        "{id} waits for the feed {feed}, which is damaged: it is stored when the feed is repaired"
                    );
                }
                self.stored(stored).await?;
                let removing = async {
                    let mut queue = Queue::open(&self.letters.broker).await?;
                    while let Some(queued) = queue.next().await? {
                        if queued.dead_letter.id == id {
                            queue.remove(&queued).await?;
                            break;
                        }
                    }
                    queue.letters.close().await;
                    anyhow::Ok(())
                };
                if let Err(error) = removing.await {
                    terminal::write_message(&format!(
                        "its copy in RabbitMQ's queue is perhaps still there: {error:#}"
                    ));
                }
            }
            None => {
                let mut queue = Queue::open(&self.letters.broker).await?;
                let queued = queue.find(id).await?;
                self.queued(&queue, &queued).await?;
                queue.letters.close().await;
            }
        }
        Ok(())
    }

    /// First what only the queue has, which is older; then what is stored, and the copies of it.
    async fn all(&mut self) -> anyhow::Result<()> {
        let (_, newest) = asked(dead_letters::extent(&self.letters.pool)).await?;
        let mut queue = Queue::open(&self.letters.broker).await?;
        let mut copies = HashMap::new();
        while let Some(queued) = queue.next().await? {
            if self.letters.stores(&queued.dead_letter.id).await? {
                copies.insert(queued.dead_letter.id.clone(), queued.without_body());
            } else {
                self.queued(&queue, &queued).await?;
            }
        }
        let (mut after, mut held) = (0, 0);
        while let Some(stored) =
            asked(dead_letters::next(&self.letters.pool, after, newest)).await?
        {
            after = stored.position;
            if stored.letter.feed.is_some() {
                held += 1;
                continue;
            }
            let id = stored.letter.id.clone();
            self.stored(stored).await?;
            if let Some(copy) = copies.get(&id) {
                queue.remove(copy).await?;
            }
        }
        queue.letters.close().await;
        if held > 0 {
            terminal::write_message(&format!(
                "{held} wait for a damaged feed and were left: they are stored when it is repaired"
            ));
        }
        Ok(())
    }

    async fn stored(&mut self, Stored { letter, .. }: Stored) -> anyhow::Result<()> {
        let id = letter.id;
        if let Some(replay) = self.replay {
            let letter = DeadLetter::decode(&letter.properties, letter.body);
            let letter =
                letter.with_context(|| format!("could not read {id}: it stays a dead letter"))?;
            replay
                .publish(&letter)
                .await
                .with_context(|| format!("{} were replayed", self.taken))?;
        }
        let removed = asked(dead_letters::remove(&self.letters.pool, &id)).await;
        removed.with_context(|| {
            format!(
                "{} were {} and removed; {id} is perhaps still there",
                self.taken,
                self.did()
            )
        })?;
        self.tell(&id)
    }

    async fn queued(&mut self, queue: &Queue, queued: &Queued) -> anyhow::Result<()> {
        let id = &queued.dead_letter.id;
        if let Some(replay) = self.replay {
            replay
                .publish(&queued.dead_letter)
                .await
                .with_context(|| format!("{} were replayed", self.taken))?;
        }
        let removed = queue.remove(queued).await;
        removed.with_context(|| {
            format!(
                "{} were {} and removed; {id} is perhaps still there",
                self.taken,
                self.did()
            )
        })?;
        self.tell(id)
    }

    fn did(&self) -> &'static str {
        if self.replay.is_some() {
            "replayed"
        } else {
            "dropped"
        }
    }

    fn tell(&mut self, id: &str) -> anyhow::Result<()> {
        self.taken += 1;
        let done = Taken {
            id,
            did: self.did(),
        };
        terminal::write_lines(&match self.format {
            Format::Text => terminal::text_line(&format!("{} {id}", done.did)),
            Format::Json => terminal::json_line(&done)?,
        })
    }
}

async fn asked<T>(
    answer: impl Future<Output = Result<T, crate::store::StoreError>>,
) -> anyhow::Result<T> {
    let answer = within(
        DATABASE_TIMEOUT,
        "reading or removing a stored dead letter",
        answer,
    )
    .await;
    answer.context("could not ask the database at DATABASE_URL (is it running, is it migrated?)")
}

/// What lay in RabbitMQ's queue when it was opened.
struct Queue {
    letters: DeadLetterQueue,
    /// How many of these were not looked at; unknown before the first look.
    left: Option<u32>,
}

impl Queue {
    async fn open(broker: &Broker) -> anyhow::Result<Self> {
        let letters = within(BROKER_TIMEOUT, "opening the dead-letter queue", DeadLetterQueue::open(broker))
            .await
            .context("could not reach RabbitMQ at AMQP_URL (is it running, are user, password and vhost right?)")?;
        Ok(Self {
            letters,
            left: None,
        })
    }

    async fn next(&mut self) -> anyhow::Result<Option<Queued>> {
        if self.left == Some(0) {
            return Ok(None);
        }
        let queued = within(
            BROKER_TIMEOUT,
            "reading the dead-letter queue",
            self.letters.next(),
        )
        .await?;
        self.left = match (&queued, self.left) {
            (None, _) => Some(0),
            (Some(first), None) => Some(first.behind),
            (Some(_), Some(left)) => Some(left - 1),
        };
        Ok(queued)
    }

    async fn find(&mut self, id: &str) -> anyhow::Result<Queued> {
        while let Some(queued) = self.next().await? {
            if queued.dead_letter.id == id {
                return Ok(queued);
            }
        }
        anyhow::bail!(
            "there is no dead letter {id} (`shopbell dead-letters list` shows those that are there)"
        )
    }

    async fn remove(&self, queued: &Queued) -> anyhow::Result<()> {
        within(
            BROKER_TIMEOUT,
            "removing a dead letter from the queue",
            self.letters.remove(queued),
        )
        .await
    }
}

/// What a replay needs.
struct Replay {
    publisher: Publisher,
    names: Names,
    mended: Option<Vec<u8>>,
}

impl Replay {
    async fn publish(&mut self, letter: &DeadLetter) -> anyhow::Result<()> {
        let id = &letter.id;
        if let (Some(bytes), None) = (letter.original_body_bytes(), &self.mended) {
            anyhow::bail!(
                "only the first bytes of {id} are kept, of {bytes}: replay it with --body, or drop it"
            );
        }
        let outgoing = letter.to_replay(&self.names, self.mended.as_deref());
        let published: Result<(), BrokerError> = self.publisher.publish(&[outgoing]).await;
        published.with_context(|| format!("could not replay {id}: it stays a dead letter"))
    }
}

fn tell(facts: &Facts<'_>, format: Format) -> anyhow::Result<()> {
    terminal::write_lines(&match format {
        Format::Text => terminal::text_line(&facts.to_string()),
        Format::Json => terminal::json_line(facts)?,
    })
}

fn show(facts: Facts<'_>, body: &[u8], format: Format) -> anyhow::Result<()> {
    if format == Format::Json {
        return terminal::write_lines(&terminal::json_line(&Shown::of(facts, body))?);
    }
    terminal::write_message(&facts.to_string());
    if terminal::is_stdout_terminal() {
        let body = String::from_utf8_lossy(body);
        return body
            .lines()
            .try_for_each(|line| terminal::write_lines(&terminal::text_line(line)));
    }
    terminal::write(body)
}

#[derive(Serialize)]
struct Taken<'a> {
    id: &'a str,
    did: &'static str,
}

/// What is known of a dead letter.
#[derive(Serialize)]
struct Facts<'a> {
    id: &'a str,
    reason: &'a str,
    detail: &'a str,
    exchange: &'a str,
    routing_key: &'a str,
    content_type: Option<&'a str>,
    bytes: i64,
}

impl<'a> Facts<'a> {
    fn of(letter: &'a DeadLetter) -> Self {
        Self {
            id: &letter.id,
            reason: &letter.reason,
            detail: &letter.detail,
            exchange: &letter.exchange,
            routing_key: &letter.routing_key,
            content_type: letter.content_type(),
            bytes: i64::try_from(letter.body.len()).unwrap_or(i64::MAX),
        }
    }

    fn of_stored(letter: &'a Letter) -> Self {
        Self {
            id: &letter.id,
            reason: &letter.reason,
            detail: &letter.detail,
            exchange: &letter.exchange,
            routing_key: &letter.routing_key,
            content_type: letter.content_type.as_deref(),
            bytes: letter.bytes,
        }
    }
}

impl std::fmt::Display for Facts<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            id,
            reason,
            detail,
            exchange,
            routing_key,
            content_type,
            bytes,
        } = self;
        let content_type = content_type.unwrap_or("no content type");
        write!(
            f,
            "{id}  {reason}: {detail}  ({exchange} {routing_key}, {content_type}, {bytes} bytes)"
        )
    }
}

/// A dead letter with its body: as text where it is text.
#[derive(Serialize)]
struct Shown<'a> {
    id: &'a str,
    reason: &'a str,
    detail: &'a str,
    exchange: &'a str,
    routing_key: &'a str,
    content_type: Option<&'a str>,
    bytes: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
}

impl<'a> Shown<'a> {
    fn of(facts: Facts<'a>, body: &'a [u8]) -> Self {
        let Facts {
            id,
            reason,
            detail,
            exchange,
            routing_key,
            content_type,
            bytes,
        } = facts;
        let text = std::str::from_utf8(body).ok();
        let body_base64 = text.is_none().then(|| STANDARD.encode(body));
        Self {
            id,
            reason,
            detail,
            exchange,
            routing_key,
            content_type,
            bytes,
            body: text,
            body_base64,
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn facts() -> Facts<'static> {
        Facts {
            id: "0193",
            reason: "invalid_data",
            detail: "order.created: missing data",
            exchange: "shopbell.events",
            routing_key: "order.created",
            content_type: None,
            bytes: 2,
        }
    }

    #[test]
    fn a_letter_is_told_in_a_line() {
        let line = "0193  invalid_data: order.created: missing data  (shopbell.events order.created, no content type, 2 bytes)";
        assert_eq!(facts().to_string(), line);
    }

    #[test]
    fn a_body_is_shown_as_text_where_it_is_text() {
        let shown = |body| serde_json::to_value(Shown::of(facts(), body)).unwrap();
        let text = shown(b"{}");
        assert_eq!(
            (&text["body"], text.get("body_base64")),
            (&"{}".into(), None)
        );
        let bytes = shown(b"\xff\xfe");
        assert_eq!(
            (bytes.get("body"), &bytes["body_base64"]),
            (None, &"//4=".into())
        );
    }
}
