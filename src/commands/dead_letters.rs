//! `shopbell dead-letters`: looks at events that could not be stored, brings them back, or drops them.
//!
//! A look never goes further than what lay in the queue when it began: a letter that comes back after its replay, or a
//! publisher that goes on making them, does not keep a command from its end.

use std::path::{Path, PathBuf};

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use super::terminal::{self, Format};
use super::{BROKER_TIMEOUT, broker, within};
use crate::amqp::Broker;
use crate::amqp::dead_letter::{DeadLetter, DeadLetters};
use crate::amqp::publisher::Publisher;

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
        which: Which,
        /// The mended body, instead of the one it came with.
        #[arg(long, value_name = "FILE", conflicts_with = "all")]
        body: Option<PathBuf>,
    },
    /// Remove for good.
    Drop {
        /// Which of them.
        #[command(flatten)]
        which: Which,
    },
}

/// One or all.
#[derive(Debug, clap::Args)]
pub struct Which {
    /// As `list` tells it.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    id: Option<String>,
    /// All that are there now.
    #[arg(long)]
    all: bool,
}

/// Does it.
pub async fn run(action: Action, format: Format) -> anyhow::Result<()> {
    let broker = broker()?;
    // Before the first letter is touched.
    let mended = match &action {
        Action::Replay { body: Some(path), .. } => Some(read(path)?),
        _ => None,
    };
    let mut queue = Queue::open(&broker).await?;
    match action {
        Action::List { limit } => list(&mut queue, limit, format).await?,
        Action::Show { id } => show(&queue.find(&id).await?, format)?,
        Action::Replay { which, .. } => {
            let publisher = within(BROKER_TIMEOUT, "opening a connection to publish", Publisher::open(&broker)).await?;
            let mut replay = Replay { broker: &broker, publisher, mended };
            take(&mut queue, which, Some(&mut replay), format).await?;
            replay.publisher.close().await;
        }
        Action::Drop { which } => take(&mut queue, which, None, format).await?,
    }
    queue.letters.close().await;
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("could not read the body from {}", path.display()))
}

/// What lay in the queue when it was opened.
struct Queue {
    letters: DeadLetters,
    /// How many of these were not looked at; unknown before the first look.
    left: Option<u32>,
}

impl Queue {
    async fn open(broker: &Broker) -> anyhow::Result<Self> {
        let letters = within(BROKER_TIMEOUT, "opening the dead-letter queue", DeadLetters::open(broker))
            .await
            .context("could not reach RabbitMQ at AMQP_URL (is it running, are user, password and vhost right?)")?;
        Ok(Self { letters, left: None })
    }

    async fn next(&mut self) -> anyhow::Result<Option<DeadLetter>> {
        if self.left == Some(0) {
            return Ok(None);
        }
        let letter = within(BROKER_TIMEOUT, "looking at the dead-letter queue", self.letters.next()).await?;
        self.left = match (&letter, self.left) {
            (None, _) => Some(0),
            (Some(first), None) => Some(first.behind),
            (Some(_), Some(left)) => Some(left - 1),
        };
        Ok(letter)
    }

    async fn find(&mut self, id: &str) -> anyhow::Result<DeadLetter> {
        while let Some(letter) = self.next().await? {
            if letter.id == id {
                return Ok(letter);
            }
        }
        anyhow::bail!("there is no dead letter {id} (`shopbell dead-letters list` tells what is there)")
    }

    async fn remove(&self, letter: &DeadLetter) -> anyhow::Result<()> {
        within(BROKER_TIMEOUT, "removing a dead letter", self.letters.remove(letter)).await
    }
}

async fn list(queue: &mut Queue, limit: u32, format: Format) -> anyhow::Result<()> {
    for _ in 0..limit {
        let was_looked_at = queue.left.is_some();
        let Some(letter) = queue.next().await? else {
            if !was_looked_at {
                terminal::talk("there are no dead letters");
            }
            break;
        };
        let facts = Facts::of(&letter);
        terminal::write_lines(&match format {
            Format::Text => terminal::text_line(&facts.to_string()),
            Format::Json => terminal::json_line(&facts)?,
        })?;
    }
    match queue.left {
        None | Some(0) => {}
        Some(left) => terminal::talk(&format!("{left} more are there: --limit tells how many to list")),
    }
    Ok(())
}

fn show(letter: &DeadLetter, format: Format) -> anyhow::Result<()> {
    let facts = Facts::of(letter);
    if format == Format::Json {
        return terminal::write_lines(&terminal::json_line(&Shown::of(facts, letter.body()))?);
    }
    terminal::talk(&facts.to_string());
    if terminal::is_stdout_terminal() {
        let body = String::from_utf8_lossy(letter.body());
        return body.lines().try_for_each(|line| terminal::write_lines(&terminal::text_line(line)));
    }
    terminal::write(letter.body())
}

/// What a replay needs.
struct Replay<'a> {
    broker: &'a Broker,
    publisher: Publisher,
    mended: Option<Vec<u8>>,
}

impl Replay<'_> {
    async fn publish(&mut self, letter: &DeadLetter) -> anyhow::Result<()> {
        let outgoing = letter.replay(&self.broker.names, self.mended.as_deref());
        let id = &letter.id;
        self.publisher
            .publish(&[outgoing])
            .await
            .with_context(|| format!("could not replay {id}: it stays a dead letter"))
    }
}

/// Removes one or all, after their replay where there is one.
async fn take(
    queue: &mut Queue,
    which: Which,
    mut replay: Option<&mut Replay<'_>>,
    format: Format,
) -> anyhow::Result<()> {
    let did = if replay.is_some() { "replayed" } else { "dropped" };
    let mut taken = 0_u64;
    loop {
        let letter = match &which.id {
            Some(id) => queue.find(id).await?,
            None => match queue.next().await? {
                Some(letter) => letter,
                None => break,
            },
        };
        if let Some(replay) = &mut replay {
            replay.publish(&letter).await.with_context(|| format!("{taken} were replayed"))?;
        }
        queue
            .remove(&letter)
            .await
            .with_context(|| format!("{taken} were {did} and removed; {} is perhaps still there", letter.id))?;
        taken += 1;
        let done = Taken { id: &letter.id, did };
        terminal::write_lines(&match format {
            Format::Text => terminal::text_line(&format!("{did} {}", letter.id)),
            Format::Json => terminal::json_line(&done)?,
        })?;
        if which.id.is_some() {
            break;
        }
    }
    if replay.is_some() && taken > 0 {
        terminal::talk("what still cannot be stored comes back as a dead letter with a new id");
    }
    Ok(())
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
    bytes: usize,
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
            bytes: letter.body().len(),
        }
    }
}

impl std::fmt::Display for Facts<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { id, reason, detail, exchange, routing_key, content_type, bytes } = self;
        let content_type = content_type.unwrap_or("no content type");
        write!(f, "{id}  {reason}: {detail}  ({exchange} {routing_key}, {content_type}, {bytes} bytes)")
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
    bytes: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
}

impl<'a> Shown<'a> {
    fn of(facts: Facts<'a>, body: &'a [u8]) -> Self {
        let Facts { id, reason, detail, exchange, routing_key, content_type, bytes } = facts;
        let text = std::str::from_utf8(body).ok();
        let body_base64 = text.is_none().then(|| STANDARD.encode(body));
        Self { id, reason, detail, exchange, routing_key, content_type, bytes, body: text, body_base64 }
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
        assert_eq!((&text["body"], text.get("body_base64")), (&"{}".into(), None));
        let bytes = shown(b"\xff\xfe");
        assert_eq!((bytes.get("body"), &bytes["body_base64"]), (None, &"//4=".into()));
    }
}
