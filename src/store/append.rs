//! Stores a batch in one transaction: numbers without a gap, one notification for each event, and
//! the dead letters.
//!
//! Events come in with their origins. [`Committed`] goes out with the same origins, as the proof
//! that allows an acknowledgement.

mod blame;
mod columns;
mod identity;
mod numbering;
mod statements;

use time::OffsetDateTime;

pub use self::blame::Blame;
use super::StoreError;
use super::dead_letters::StoredDeadLetter;
use super::pool::Pool;
use crate::model::event::Event;
use crate::model::feed::{Epoch, Feed, Seq, Version};
use crate::model::notification::Progress;

/// An item to store, and its origin, which returns with the proof.
#[derive(Debug)]
pub struct Pending<T> {
    /// For ingest the delivery.
    pub origin: T,
    /// How it is stored.
    pub fate: Fate,
}

/// How an item is stored.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly all are events")]
pub enum Fate {
    /// As a notification.
    Notify(Event),
    /// As a dead letter.
    DeadLetter(Box<StoredDeadLetter>),
    /// As an event that waits for its held feed, in the table of dead letters.
    Hold(Box<StoredDeadLetter>),
}

impl<T> Pending<T> {
    /// The feed of an event.
    pub fn feed(&self) -> Option<&Feed> {
        self.event().map(|event| &event.recipient)
    }

    fn event(&self) -> Option<&Event> {
        match &self.fate {
            Fate::Notify(event) => Some(event),
            Fate::DeadLetter(_) | Fate::Hold(_) => None,
        }
    }

    fn dead_letter(&self) -> Option<&StoredDeadLetter> {
        match &self.fate {
            Fate::Notify(_) => None,
            Fate::DeadLetter(dead_letter) | Fate::Hold(dead_letter) => Some(dead_letter),
        }
    }
}

/// A stored event.
#[derive(Debug)]
pub struct Placed {
    /// The event as it came. If it is a duplicate, the stored one may differ.
    pub event: Event,
    /// Its number in the feed of its recipient.
    pub seq: Seq,
    /// It was stored before, or earlier in the same batch.
    pub duplicate: bool,
    /// Progress of its import after it; only for a new import event.
    pub progress: Option<Progress>,
    /// An earlier settlement settled it when it was stored.
    pub is_settled: bool,
    /// The version of its feed after the batch, if the batch settled notifications of the feed.
    pub settled_version: Option<Version>,
    /// The epoch of its number, or an older one if it changed meanwhile.
    pub epoch: Epoch,
}

/// How an item was stored.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly all are events")]
pub enum Outcome {
    /// As a notification.
    Notified(Placed),
    /// As a dead letter.
    DeadLettered(Box<StoredDeadLetter>),
    /// As an event that waits for its held feed.
    Held(Box<StoredDeadLetter>),
}

/// Proof that these origins are committed: only [`append`] makes one that is not empty.
#[derive(Debug)]
pub struct Committed<T>(Vec<(T, Outcome)>);

impl<T> Default for Committed<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Committed<T> {
    /// The outcomes, in the order given.
    pub fn outcomes(&self) -> impl DoubleEndedIterator<Item = &Outcome> + Clone {
        self.0.iter().map(|(_, outcome)| outcome)
    }

    /// The origins, in the order given.
    pub fn origins(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|(origin, _)| origin)
    }

    /// The notifications, in the order given.
    pub fn placed(&self) -> impl DoubleEndedIterator<Item = &Placed> + Clone {
        self.outcomes().filter_map(|outcome| match outcome {
            Outcome::Notified(placed) => Some(placed),
            Outcome::DeadLettered(_) | Outcome::Held(_) => None,
        })
    }

    /// Adds another proof to this one.
    pub fn join(&mut self, mut other: Self) {
        self.0.append(&mut other.0);
    }
}

/// An append that failed, with its batch.
#[derive(Debug)]
pub struct NotAppended<T> {
    /// The batch, to store in another way.
    pub pending: Vec<Pending<T>>,
    /// The error.
    pub error: StoreError,
}

impl<T> NotAppended<T> {
    /// The cause of the error. It is never a dead letter without all that can be removed.
    pub fn blame(&self) -> Blame {
        match self.pending.as_slice() {
            [
                Pending {
                    fate: Fate::DeadLetter(dead_letter) | Fate::Hold(dead_letter),
                    ..
                },
            ] if dead_letter.is_least() => Blame::Nothing,
            _ => Blame::of(&self.error),
        }
    }
}

/// Stores a batch in one transaction: numbers the new events in the order given, finds duplicates,
/// and stores the dead letters. An event without a `time` gets `received_at`.
///
/// One round trip, or two if an event is a duplicate or its feed has early settlements. Locks existing feeds in C order. If new feeds
/// meet existing ones, Postgres may end one batch (40P01), and ingest repeats it. Uses `feeds_pkey`,
/// `held_feeds_pkey`, and `notifications_identity_key` for duplicates.
pub async fn append<T>(
    pool: &Pool,
    pending: Vec<Pending<T>>,
    received_at: OffsetDateTime,
) -> Result<Committed<T>, NotAppended<T>> {
    let stored = {
        let events: Vec<&Event> = pending.iter().filter_map(Pending::event).collect();
        let dead_letters: Vec<&StoredDeadLetter> =
            pending.iter().filter_map(Pending::dead_letter).collect();
        store(pool, &events, &dead_letters, received_at).await
    };
    let mut stored_at = match stored {
        Ok(stored_at) => stored_at.into_iter(),
        Err(error) => return Err(NotAppended { pending, error }),
    };
    let commit = |Pending { origin, fate }| {
        let outcome = match fate {
            Fate::Notify(event) => Outcome::Notified(stored_at.next()?.of(event)),
            Fate::DeadLetter(dead_letter) => Outcome::DeadLettered(dead_letter),
            Fate::Hold(waiting) => Outcome::Held(waiting),
        };
        Some((origin, outcome))
    };
    Ok(Committed(pending.into_iter().filter_map(commit).collect()))
}

/// Stores events that waited for one held feed, in the order given, and deletes the rows that
/// held them.
///
/// Locks the feed and these rows; uses `feeds_pkey` and `dead_letters_id_key`.
pub async fn release(
    pool: &Pool,
    events: Vec<Event>,
    dead_letters: &[String],
    received_at: OffsetDateTime,
) -> Result<Vec<Placed>, StoreError> {
    let stored_at = {
        let events: Vec<&Event> = events.iter().collect();
        statements::release(pool, &events, dead_letters, received_at).await?
    };
    let placed = |(event, stored_at): (Event, StoredAt)| stored_at.of(event);
    Ok(events.into_iter().zip(stored_at).map(placed).collect())
}

/// The number of an event, as the database returned it.
struct StoredAt {
    seq: Seq,
    duplicate: bool,
    progress: Option<Progress>,
    is_settled: bool,
    settled_version: Option<Version>,
    epoch: Epoch,
}

impl StoredAt {
    fn of(self, event: Event) -> Placed {
        Placed {
            event,
            seq: self.seq,
            duplicate: self.duplicate,
            progress: self.progress,
            is_settled: self.is_settled,
            settled_version: self.settled_version,
            epoch: self.epoch,
        }
    }
}

/// Stores events and dead letters, and returns the number of each event. A batch with dead letters
/// takes the slower statement, because one statement must store both.
async fn store(
    pool: &Pool,
    events: &[&Event],
    dead_letters: &[&StoredDeadLetter],
    received_at: OffsetDateTime,
) -> Result<Vec<StoredAt>, StoreError> {
    if !dead_letters.is_empty() {
        return statements::append_with_dead_letters(pool, events, dead_letters, received_at).await;
    }
    match statements::append_new(pool, events, received_at).await? {
        Some(stored_at) => Ok(stored_at),
        None => statements::append_any(pool, events, received_at).await,
    }
}
