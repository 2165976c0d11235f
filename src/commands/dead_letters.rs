//! `shopbell dead-letters`: lists, shows, replays or drops events that could not be stored.
//!
//! Postgres stores dead letters, and the dead-letter queue of RabbitMQ has a copy of each published
//! one. Dead letters of RabbitMQ itself, or of an earlier version, are only in the queue. A command
//! handles only the dead letters that exist when it begins, so it ends even if a replayed one comes
//! back.

pub(super) mod queue;
mod removal;
mod summary;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;

use self::queue::QueueReader;
use self::removal::{Removal, Replay};
use self::summary::Summary;
use super::terminal::{self, Format};
use super::{BROKER_TIMEOUT, broker, read_body, within};
use crate::amqp::Broker;
use crate::amqp::publisher::Publisher;
use crate::config::Environment;
use crate::store::StoreError;
use crate::store::dead_letters::{self, Stored};
use crate::store::pool::Pool;
use crate::store::pools::Pools;

/// Bound on each statement.
const DATABASE_TIMEOUT: Duration = Duration::from_secs(15);

/// The action on dead letters.
#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// List the dead letters, oldest first
    List {
        /// Maximum number of dead letters
        #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
    },
    /// Print the body of a dead letter to stdout, and its other fields to stderr
    Show {
        /// Id of the dead letter, as `list` prints it
        id: String,
    },
    /// Publish dead letters again, and remove each when RabbitMQ has confirmed it
    Replay {
        /// The dead letters to replay.
        #[command(flatten)]
        selection: Selection,
        /// Publish the body in this file instead of the original body
        #[arg(long, value_name = "FILE", conflicts_with = "all")]
        body: Option<PathBuf>,
    },
    /// Remove dead letters for ever
    Drop {
        /// The dead letters to remove.
        #[command(flatten)]
        selection: Selection,
    },
}

/// One dead letter, or all.
#[derive(Debug, clap::Args)]
pub struct Selection {
    /// Id of the dead letter, as `list` prints it
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    id: Option<String>,
    /// All dead letters that exist now
    #[arg(long)]
    all: bool,
}

/// Runs the action.
pub async fn run(action: Action, format: Format) -> anyhow::Result<()> {
    let (broker, options) = (broker()?, Environment::of_process().database()?);
    // Read first, so that a bad path changes no dead letter.
    let new_body = match &action {
        Action::Replay {
            body: Some(path), ..
        } => Some(read(path)?),
        _ => None,
    };
    let dead_letters = DeadLetters {
        pool: Pools::lazy(&options, 1, &Arc::default()).upkeep,
        broker,
    };
    match action {
        Action::List { limit } => dead_letters.list(i64::from(limit), format).await,
        Action::Show { id } => dead_letters.show(&id, format).await,
        Action::Replay { selection, .. } => {
            let opening = Publisher::open(&dead_letters.broker);
            let publisher =
                within(BROKER_TIMEOUT, "opening a connection to publish", opening).await?;
            let names = dead_letters.broker.names.clone();
            let mut replay = Some(Replay::new(publisher, names, new_body));
            let result = dead_letters.remove(selection, &mut replay, format).await;
            if let Some(replay) = replay {
                replay.close().await;
            }
            result
        }
        Action::Drop { selection } => dead_letters.remove(selection, &mut None, format).await,
    }
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let body = File::open(path).map_err(Into::into).and_then(read_body);
    body.with_context(|| format!("could not read the body from {}", path.display()))
}

/// The dead letters in Postgres and in RabbitMQ.
struct DeadLetters {
    pool: Pool,
    broker: Broker,
}

impl DeadLetters {
    async fn list(&self, limit: i64, format: Format) -> anyhow::Result<()> {
        let (stored, newest) = query(dead_letters::extent(&self.pool)).await?;
        let (mut listed, mut after) = (0, 0);
        while listed < limit
            && let Some(Stored { position, letter }) =
                query(dead_letters::next(&self.pool, after, newest)).await?
        {
            after = position;
            listed += 1;
            Summary::of_stored(&letter).print(format)?;
        }
        if listed == limit && stored > limit {
            terminal::write_message(&format!(
                "{} more dead letters exist: raise --limit to list them",
                stored - limit
            ));
            return Ok(());
        }
        let mut queue = match QueueReader::open(&self.broker).await {
            Ok(queue) => queue,
            Err(error) => {
                terminal::write_message(&format!(
                    "dead letters that are only in RabbitMQ are not listed: {error:#}"
                ));
                return Ok(());
            }
        };
        while listed < limit
            && let Some(queued) = queue.next().await?
        {
            if !self.is_stored(&queued.dead_letter.id).await? {
                listed += 1;
                Summary::of_queued(&queued.dead_letter).print(format)?;
            }
        }
        queue.close().await;
        if listed == 0 {
            terminal::write_message("there are no dead letters");
        }
        Ok(())
    }

    async fn show(&self, id: &str, format: Format) -> anyhow::Result<()> {
        if let Some(Stored { letter, .. }) = query(dead_letters::find(&self.pool, id)).await? {
            return Summary::of_stored(&letter).print_with_body(&letter.body, format);
        }
        let mut queue = QueueReader::open(&self.broker).await?;
        let dead_letter = queue.find(id).await?.dead_letter;
        Summary::of_queued(&dead_letter).print_with_body(&dead_letter.body, format)?;
        queue.close().await;
        Ok(())
    }

    /// Removes one or all dead letters, and replays them first if `replay` is given.
    async fn remove(
        &self,
        selection: Selection,
        replay: &mut Option<Replay>,
        format: Format,
    ) -> anyhow::Result<()> {
        let mut removal = Removal::new(self, replay, format);
        match selection.id {
            Some(id) => removal.remove_one(&id).await?,
            None => removal.remove_all().await?,
        }
        if removal.has_replayed() {
            terminal::write_message(
                "an event that still cannot be stored comes back as a dead letter with a new id",
            );
        }
        Ok(())
    }

    async fn is_stored(&self, id: &str) -> anyhow::Result<bool> {
        query(dead_letters::exists(&self.pool, id)).await
    }
}

/// Bounds a statement, and names the database in its error.
async fn query<T>(statement: impl Future<Output = Result<T, StoreError>>) -> anyhow::Result<T> {
    let result = within(
        DATABASE_TIMEOUT,
        "reading or removing a stored dead letter",
        statement,
    );
    result
        .await
        .context("could not use the database at DATABASE_URL (is it running, is it migrated?)")
}
