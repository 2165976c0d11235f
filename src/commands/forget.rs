//! `shopbell forget`: erases one feed, with everything that Shopbell has of its merchant.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::Serialize;

use super::dead_letters::queue::QueueReader;
use super::terminal::{self, Format};
use super::{UsageError, broker, within};
use crate::amqp::Broker;
use crate::amqp::dead_letter::DeadLetter;
use crate::config::Environment;
use crate::fanout::heartbeat::announce_changes;
use crate::model::event::is_addressed_to;
use crate::model::feed::Feed;
use crate::store::forgetting::{self, Holdings, ScanPlace};
use crate::store::pool::Pool;
use crate::store::pools::Pools;
use crate::store::{StoreError, dead_letters};

/// Bound on each statement.
const DATABASE_TIMEOUT: Duration = Duration::from_secs(15);
/// Most failed attempts of one step: another transaction may hold a lock.
const ATTEMPTS_MAX: u32 = 20;
/// Wait after a failed attempt.
const ATTEMPT_INTERVAL: Duration = Duration::from_millis(250);
/// Wait before the last count. A gateway may have an ack of a session that has ended, and makes the
/// deleted cursor again when it writes the ack, within about a second.
const LAST_ACKS_WAIT: Duration = Duration::from_secs(2);
/// Most ids of dead letters that one message lists.
const IDS_MAX: usize = 20;

/// The feed to erase.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The feed, which is the recipient of its events
    #[arg(value_parser = Feed::parse)]
    feed: Feed,
    /// Erase the data; without it, only print the counts
    #[arg(long)]
    yes: bool,
}

/// Prints the counts of the feed, and erases it with `--yes`.
pub async fn run(arguments: &Arguments, format: Format) -> anyhow::Result<()> {
    let Arguments { feed, yes } = arguments;
    let broadcast_feed = Environment::of_process().broadcast_feed()?;
    if *feed == broadcast_feed || feed.is_of_a_canary() {
        let text = format!("{feed} is not the feed of a merchant, so it cannot be erased");
        return Err(UsageError(text).into());
    }
    let forgetting = Forgetting {
        broker: broker()?,
        pool: Pools::lazy(
            &Environment::of_process().database()?,
            1,
            &Default::default(),
        )
        .upkeep,
        feed: feed.clone(),
        broadcast_feed,
    };
    let (before, others) = forgetting.holdings(false).await?;
    if !others.is_empty() {
        terminal::write_message(&stay(feed, &others));
    }
    if !yes {
        print(feed, &before, false, format)?;
        terminal::write_message("nothing was erased: repeat the command with --yes");
        return Ok(());
    }
    forgetting.erase().await?;
    if let Err(error) = announce_changes(&forgetting.broker).await {
        terminal::write_message(&format!(
            "open sessions get the new counts within SHOPBELL_SWEEP_SECONDS, because RabbitMQ takes no hint: {error}"
        ));
    }
    print(feed, &before, true, format)?;
    tokio::time::sleep(LAST_ACKS_WAIT).await;
    let (left, _) = forgetting.holdings(false).await?;
    if left != Found::default() {
        bail!(
            "{feed} has new data ({left}): publishers or sessions still use it. Stop them, and repeat the command"
        );
    }
    Ok(())
}

/// The data of the feed.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Found {
    #[serde(flatten)]
    stored: Holdings,
    /// Cursors in the broadcast feed of the other subscribers of the feed that read no other feed.
    staff_cursors: u64,
    /// Dead letters in Postgres that are addressed to the feed.
    dead_letters: u64,
    /// Dead letters in the queue of RabbitMQ that are addressed to the feed.
    queued_dead_letters: u64,
}

#[derive(Serialize)]
struct Output<'a> {
    feed: &'a Feed,
    erased: bool,
    #[serde(flatten)]
    found: &'a Found,
}

impl Found {
    fn counts(&self) -> [(&'static str, u64); 14] {
        let stored = &self.stored;
        [
            ("notifications", stored.notifications.unsigned_abs()),
            ("cursors", stored.cursors.unsigned_abs()),
            ("evicted cursors", stored.evicted_cursors.unsigned_abs()),
            ("cursors of staff in the broadcast feed", self.staff_cursors),
            ("marks", stored.marks.unsigned_abs()),
            ("imports", stored.imports.unsigned_abs()),
            ("rows of import items", stored.import_items.unsigned_abs()),
            ("receipts", stored.receipts.unsigned_abs()),
            ("early settlements", stored.early_settlements.unsigned_abs()),
            ("held events", stored.held_events.unsigned_abs()),
            ("traces", stored.traces.unsigned_abs()),
            ("devices online", stored.presences.unsigned_abs()),
            ("dead letters", self.dead_letters),
            ("dead letters in RabbitMQ", self.queued_dead_letters),
        ]
    }
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let counts = self.counts();
        let mut parts = counts.iter().filter(|(_, count)| *count > 0);
        if let Some((what, count)) = parts.next() {
            write!(f, "{count} {what}")?;
        }
        parts.try_for_each(|(what, count)| write!(f, ", {count} {what}"))
    }
}

fn print(feed: &Feed, found: &Found, erased: bool, format: Format) -> anyhow::Result<()> {
    terminal::write_lines(&match format {
        Format::Text => {
            let counts = found.counts();
            let lines = counts
                .iter()
                .map(|(what, count)| format!("{what}: {count}"));
            lines.map(|line| terminal::text_line(&line)).collect()
        }
        Format::Json => terminal::json_line(&Output {
            feed,
            erased,
            found,
        })?,
    })
}

/// Explains why these dead letters stay.
fn stay(feed: &Feed, others: &BTreeSet<String>) -> String {
    let mut ids: Vec<_> = others.iter().map(String::as_str).take(IDS_MAX).collect();
    if others.len() > IDS_MAX {
        ids.push("...");
    }
    format!(
        "{} dead letters contain the name {feed}, but are not addressed to it, so they stay ({}): `shopbell dead-letters show ID` prints one, `shopbell dead-letters drop ID` deletes it",
        others.len(),
        ids.join(", ")
    )
}

/// The dead letters that a search found.
#[derive(Debug, Default)]
struct Letters {
    /// Number of those that are addressed to the feed.
    own: u64,
    /// Ids of the others that contain its name.
    others: BTreeSet<String>,
}

/// The erasure of one feed.
struct Forgetting {
    broker: Broker,
    pool: Pool,
    feed: Feed,
    broadcast_feed: Feed,
}

impl Forgetting {
    /// Counts the data of the feed. With `removes`, removes its dead letters and the cursors of its staff
    /// meanwhile. Returns the ids of other dead letters that contain its name too.
    async fn holdings(&self, removes: bool) -> anyhow::Result<(Found, BTreeSet<String>)> {
        let stored = query(|| forgetting::count(&self.pool, &self.feed, &self.broadcast_feed));
        let stored = stored.await?;
        let staff_cursors = self.staff_cursors(removes).await?;
        let letters = self.stored_letters(removes).await?;
        let mut queued = self.queued_letters(removes).await?;
        let found = Found {
            stored,
            staff_cursors,
            dead_letters: letters.own,
            queued_dead_letters: queued.own,
        };
        queued.others.extend(letters.others);
        Ok((found, queued.others))
    }

    /// Erases everything up to the number that the feed has now.
    async fn erase(&self) -> anyhow::Result<()> {
        let (pool, feed) = (&self.pool, &self.feed);
        // Dead letters first, because a replayed one would be stored again. The cursors of the feed name
        // the staff, so they are deleted later.
        self.holdings(true).await?;
        if let Some(last) = query(|| forgetting::last_number(pool, feed)).await? {
            let mut removed = 0;
            loop {
                let step = query(|| forgetting::delete_notifications(pool, feed, last));
                let (count, is_cut) = step.await.with_context(|| {
                    format!("{removed} notifications are erased: repeat the command to continue")
                })?;
                removed += count;
                if !is_cut {
                    break;
                }
            }
            query(|| forgetting::clear_marks(pool, feed, last)).await?;
        }
        while query(|| forgetting::delete_rest(pool, feed, &self.broadcast_feed)).await? {}
        Ok(())
    }

    /// Counts the cursors in the broadcast feed of the other subscribers of the feed that read no other
    /// feed. With `removes`, deletes them meanwhile.
    async fn staff_cursors(&self, removes: bool) -> anyhow::Result<u64> {
        let (pool, broadcast_feed) = (&self.pool, &self.broadcast_feed);
        let (mut count, mut after) = (0, String::new());
        loop {
            let mut staff = query(|| forgetting::staff_after(pool, &self.feed, &after)).await?;
            let Some(last) = staff.last() else {
                return Ok(count);
            };
            after.clone_from(last);
            let (feeds, mut place) = ([&self.feed, broadcast_feed], ScanPlace::default());
            while let Some((readers, through)) =
                query(|| forgetting::readers_of_others(pool, &staff, feeds, &place)).await?
            {
                staff.retain(|subscriber| !readers.contains(subscriber));
                place = through;
            }
            count += query(|| forgetting::count_cursors_of(pool, broadcast_feed, &staff)).await?;
            while removes
                && query(|| forgetting::delete_cursors_of(pool, broadcast_feed, &staff)).await?
            {
            }
        }
    }

    /// Finds the dead letters in Postgres.
    async fn stored_letters(&self, removes: bool) -> anyhow::Result<Letters> {
        let (mut letters, mut after) = (Letters::default(), 0);
        while let Some((found, through)) =
            query(|| forgetting::letters_with(&self.pool, self.feed.as_str(), after)).await?
        {
            after = through;
            for stored in found {
                let stored = stored.letter;
                if stored.feed.is_some() {
                    continue;
                }
                let Ok(letter) = DeadLetter::decode(&stored.properties, stored.body) else {
                    letters.others.insert(stored.id);
                    continue;
                };
                if self.finds(&letter, stored.id.clone(), &mut letters) && removes {
                    query(|| dead_letters::remove(&self.pool, &stored.id)).await?;
                }
            }
        }
        Ok(letters)
    }

    /// Finds the dead letters in RabbitMQ's queue.
    async fn queued_letters(&self, removes: bool) -> anyhow::Result<Letters> {
        let mut queue = QueueReader::open(&self.broker).await?;
        let mut letters = Letters::default();
        while let Some(queued) = queue.next().await? {
            let letter = &queued.dead_letter;
            if self.finds(letter, letter.id.clone(), &mut letters) && removes {
                queue.remove(&queued).await?;
            }
        }
        queue.close().await;
        Ok(letters)
    }

    /// Counts a dead letter if it is addressed to the feed, and returns whether it is. Otherwise records
    /// its id if it contains the name.
    fn finds(&self, letter: &DeadLetter, id: String, letters: &mut Letters) -> bool {
        let message = letter.message();
        if is_addressed_to(&message, &self.feed) {
            letters.own += 1;
            return true;
        }
        let headers = message.headers.iter().filter_map(|(_, value)| value.text());
        let texts = headers.chain([&*letter.routing_key]).map(str::as_bytes);
        if texts
            .chain([message.body])
            .any(|text| names(text, &self.feed))
        {
            letters.others.insert(id);
        }
        false
    }
}

/// Returns whether bytes contain the name of a feed, and not only as a part of a longer name. JSON
/// may write `/` as `\/`.
fn names(bytes: &[u8], feed: &Feed) -> bool {
    let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || b"._~/-".contains(byte);
    let contains = |bytes: &[u8], name: &[u8]| {
        let places = bytes.windows(name.len()).enumerate();
        places
            .filter(|(_, window)| *window == name)
            .any(|(start, _)| {
                let before = start.checked_sub(1).and_then(|at| bytes.get(at));
                let after = bytes.get(start + name.len());
                !before.is_some_and(is_part) && !after.is_some_and(is_part)
            })
    };
    let escaped = feed.as_str().replace('/', "\\/");
    contains(bytes, feed.as_str().as_bytes()) || contains(bytes, escaped.as_bytes())
}

/// Repeats a statement that fails because of others, and names the database in its error.
async fn query<T, F>(statement: impl Fn() -> F) -> anyhow::Result<T>
where
    F: Future<Output = Result<T, StoreError>>,
{
    let mut attempts = 1;
    loop {
        let result = within(DATABASE_TIMEOUT, "erasing a feed", async {
            Ok::<_, StoreError>(statement().await)
        });
        match result.await? {
            Err(error) if error.may_concern_one_row() && attempts < ATTEMPTS_MAX => {
                attempts += 1;
                tokio::time::sleep(ATTEMPT_INTERVAL).await;
            }
            result => {
                return result.context(
                    "could not use the database at DATABASE_URL (is it running, is it migrated?)",
                );
            }
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_found_only_as_a_whole() {
        let is_named = |text: &str, feed: &str| names(text.as_bytes(), &Feed::parse(feed).unwrap());
        assert!(is_named(r#"{"recipient":"m-4"}"#, "m-4"));
        assert!(is_named("m-4", "m-4"));
        assert!(is_named(r#"{"recipient":"m-42","other":"m-4"}"#, "m-4"));
        assert!(is_named(r#"{"recipient":"shops\/4"}"#, "shops/4"));
        assert!(!is_named(r#"{"recipient":"m-42"}"#, "m-4"));
        assert!(!is_named(r#"{"recipient":"am-4"}"#, "m-4"));
        assert!(!is_named(r#"{"recipient":"m-4/eu"}"#, "m-4"));
    }
}
