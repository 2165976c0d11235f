//! Storing a batch: gapless numbers, one notification an event, and its dead letters, in one transaction.

mod blame;

use std::collections::BTreeMap;

use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{Postgres, Row};
use time::OffsetDateTime;

pub use self::blame::Blame;
use super::dead_letters::Letter;
use super::pools::Pool;
use super::{StoreError, epoch};
use crate::model::event::{Event, Import, Step};
use crate::model::feed::{Epoch, Feed, Seq};
use crate::model::notification::Progress;

/// Stores those events that were not stored before, beside what comes first in the statement; see `append_notifications` in
/// `migrations/`.
macro_rules! append_any_sql {
    ($first:literal) => {
        concat!(
            $first,
            " select (select e.epoch from epochs e) as epoch, seq, duplicate, import_done, import_failed, import_total
              from append_notifications(
                  $1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::text[], $7::text[],
                  $8::timestamptz[], $9::timestamptz, $10::bigint[], $11::text[], $12::bigint[], $13::bigint[],
                  $14::bigint[], $15::bigint[], $16::text[], $17::boolean)"
        )
    };
}

/// Something to commit, and its origin, which comes back with the proof.
#[derive(Debug)]
pub struct Pending<T> {
    /// For ingest the delivery.
    pub origin: T,
    /// How it is to be stored.
    pub fate: Fate,
}

/// How something is to be stored.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly all are events")]
pub enum Fate {
    /// As a notification.
    Notify(Event),
    /// As a dead letter, or as an event that waits for a damaged feed.
    Bury(Box<Letter>),
}

impl<T> Pending<T> {
    /// The feed that it is to be appended to.
    pub fn feed(&self) -> Option<&Feed> {
        self.event().map(|event| &event.recipient)
    }

    fn event(&self) -> Option<&Event> {
        match &self.fate {
            Fate::Notify(event) => Some(event),
            Fate::Bury(_) => None,
        }
    }

    fn letter(&self) -> Option<&Letter> {
        match &self.fate {
            Fate::Notify(_) => None,
            Fate::Bury(letter) => Some(letter),
        }
    }
}

/// An event that is stored, as [`append`] reports it.
#[derive(Debug)]
pub struct Placed {
    /// The event as it came; for a duplicate not necessarily what is stored.
    pub event: Event,
    /// Its number in its recipient's feed.
    pub seq: Seq,
    /// It was stored before, or earlier in the same batch.
    pub duplicate: bool,
    /// How far its import is now; for one that is new and tells of an import.
    pub progress: Option<Progress>,
    /// The epoch of its number, or an older one where it changed meanwhile.
    pub epoch: Epoch,
}

/// How something was stored.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly all are events")]
pub enum Outcome {
    /// As a notification.
    Notified(Placed),
    /// As a dead letter.
    Buried(Box<Letter>),
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
    /// What was committed, in the order given.
    pub fn outcomes(&self) -> impl Iterator<Item = &Outcome> {
        self.0.iter().map(|(_, outcome)| outcome)
    }

    /// Where it came from.
    pub fn origins(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|(origin, _)| origin)
    }

    /// The notifications among it.
    pub fn placed(&self) -> impl DoubleEndedIterator<Item = &Placed> + Clone {
        self.0
            .iter()
            .map(|(_, outcome)| outcome)
            .filter_map(|outcome| match outcome {
                Outcome::Notified(placed) => Some(placed),
                Outcome::Buried(_) => None,
            })
    }

    /// Proves what the other proves too.
    pub fn join(&mut self, mut other: Self) {
        self.0.append(&mut other.0);
    }
}

/// An append that did not happen, with the batch given back.
#[derive(Debug)]
pub struct NotAppended<T> {
    /// What to store another way.
    pub pending: Vec<Pending<T>>,
    /// What failed.
    pub error: StoreError,
}

impl<T> NotAppended<T> {
    /// What to do about it. A letter that is refused without everything that can be left out is not to blame.
    pub fn blame(&self) -> Blame {
        match self.pending.as_slice() {
            [
                Pending {
                    fate: Fate::Bury(letter),
                    ..
                },
            ] if letter.is_least() => Blame::Nothing,
            _ => Blame::of(&self.error),
        }
    }
}

/// Stores all of it in one transaction: numbers the new events in the order given, finds those that were stored before, and
/// stores the dead letters.
///
/// An event without a `time` gets `received_at`. Locks the batch's feeds in C order (`feeds_pkey`).
pub async fn append<T>(
    pool: &Pool,
    pending: Vec<Pending<T>>,
    received_at: OffsetDateTime,
) -> Result<Committed<T>, NotAppended<T>> {
    let places = {
        let events: Vec<&Event> = pending.iter().filter_map(Pending::event).collect();
        let letters: Vec<&Letter> = pending.iter().filter_map(Pending::letter).collect();
        place(pool, &events, &letters, received_at).await
    };
    match places {
        Ok(places) => {
            let mut places = places.into_iter();
            let commit = |Pending { origin, fate }| {
                let outcome = match fate {
                    Fate::Bury(letter) => Outcome::Buried(letter),
                    Fate::Notify(event) => {
                        let Place {
                            seq,
                            duplicate,
                            progress,
                            epoch,
                        } = places.next()?;
                        Outcome::Notified(Placed {
                            event,
                            seq,
                            duplicate,
                            progress,
                            epoch,
                        })
                    }
                };
                Some((origin, outcome))
            };
            Ok(Committed(pending.into_iter().filter_map(commit).collect()))
        }
        Err(error) => Err(NotAppended { pending, error }),
    }
}

/// Stores the events that waited for one damaged feed, in the order given, and takes away the letters that held them.
pub async fn release(
    pool: &Pool,
    events: Vec<Event>,
    letters: &[String],
    received_at: OffsetDateTime,
) -> Result<Vec<Placed>, StoreError> {
    let places = {
        let events: Vec<&Event> = events.iter().collect();
        let query = sqlx::query(append_any_sql!(
            "with released as (delete from dead_letters where id = any ($18::text[]))"
        ));
        let query = bind_any(query, &events, received_at, true).bind(letters);
        any_places(&super::rows(pool, query).await?, events.len())?
    };
    let placed = |(
        event,
        Place {
            seq,
            duplicate,
            progress,
            epoch,
        },
    )| Placed {
        event,
        seq,
        duplicate,
        progress,
        epoch,
    };
    Ok(events.into_iter().zip(places).map(placed).collect())
}

/// What the database returns of an event.
struct Place {
    seq: Seq,
    duplicate: bool,
    progress: Option<Progress>,
    epoch: Epoch,
}

/// Places the events, in their order, and stores the letters with them. A batch with letters takes the longer way, because its
/// letters must be stored by the statement that stores its events.
async fn place(
    pool: &Pool,
    events: &[&Event],
    letters: &[&Letter],
    received_at: OffsetDateTime,
) -> Result<Vec<Place>, StoreError> {
    if !letters.is_empty() {
        return append_with_letters(pool, events, letters, received_at).await;
    }
    match append_new(pool, events, received_at).await? {
        Some(places) => Ok(places),
        None => {
            let query = bind_any(sqlx::query(append_any_sql!("")), events, received_at, false);
            any_places(&super::rows(pool, query).await?, events.len())
        }
    }
}

/// Stores them if none was stored before, which `notifications_source_event_id_feed_key` finds out; see `append_new_notifications` in
/// `migrations/`.
async fn append_new(
    pool: &Pool,
    events: &[&Event],
    received_at: OffsetDateTime,
) -> Result<Option<Vec<Place>>, StoreError> {
    // Of each feed how many events, and how many of these are news.
    let mut added = BTreeMap::<&str, (i64, i64)>::new();
    let mut places = Vec::with_capacity(events.len());
    for event in events {
        let (added, news) = added.entry(recipient(event)).or_default();
        *added += 1;
        *news += i64::from(!event.import.as_ref().is_some_and(Import::is_progress));
        places.push(*added);
    }
    let before_last = |(event, place): (&&Event, &i64)| {
        added
            .get(recipient(event))
            .map_or(0, |(added, _)| added - place)
    };
    let before_last: Vec<i64> = events.iter().zip(&places).map(before_last).collect();
    let query = sqlx::query(
        "select (select e.epoch from epochs e) as epoch, last_seqs, steps_done, steps_failed, steps_total from append_new_notifications(
             $1::text[], $2::bigint[], $3::bigint[], $4::text[], $5::bigint[], $6::text[], $7::text[], $8::text[],
             $9::timestamptz[], $10::text[], $11::text[], $12::timestamptz[], $13::timestamptz, $14::bigint[],
             $15::text[], $16::bigint[], $17::bigint[], $18::bigint[], $19::bigint[], $20::text[], false)",
    )
    .bind(added.keys().copied().collect::<Vec<_>>())
    .bind(added.values().map(|(added, _)| *added).collect::<Vec<_>>())
    .bind(added.values().map(|(_, news)| *news).collect::<Vec<_>>())
    .bind(recipients(events))
    .bind(&before_last);
    let rows = super::rows(pool, bind_content(query, events, received_at)).await?;
    let Some(row) = rows.first() else {
        return Ok(None);
    };
    let Some(last_seqs) = row.try_get::<Option<Vec<i64>>, _>("last_seqs")? else {
        return Ok(None);
    };
    if last_seqs.len() != added.len() {
        return Err(StoreError::Schema(format!(
            "append_new_notifications gave {} numbers for {} feeds",
            last_seqs.len(),
            added.len()
        )));
    }
    let last_seqs: BTreeMap<&str, i64> = added.into_keys().zip(last_seqs).collect();
    let epoch = epoch::parse(row.try_get("epoch")?)?;
    let mut steps = steps(row)?.into_iter();
    let place = |(event, before_last): (&&Event, i64)| {
        let last_seq = last_seqs.get(recipient(event)).copied().unwrap_or_default();
        let progress = event.import.as_ref().and_then(|_| steps.next());
        let epoch = epoch.clone();
        Ok(Place {
            seq: super::seq(last_seq - before_last)?,
            duplicate: false,
            progress,
            epoch,
        })
    };
    events
        .iter()
        .zip(before_last)
        .map(place)
        .collect::<Result<_, StoreError>>()
        .map(Some)
}

/// How far each import was after each of the batch's steps, in their order.
fn steps(row: &PgRow) -> Result<Vec<Progress>, sqlx::Error> {
    let column = |name| {
        row.try_get::<Option<Vec<i64>>, _>(name)
            .map(Option::unwrap_or_default)
    };
    let totals: Option<Vec<Option<i64>>> = row.try_get("steps_total")?;
    let counts = column("steps_done")?
        .into_iter()
        .zip(column("steps_failed")?);
    let progress = |((done, failed), total)| Progress {
        done,
        failed,
        total,
    };
    Ok(counts
        .zip(totals.unwrap_or_default())
        .map(progress)
        .collect())
}

/// Stores the letters, and the events as in [`append_any_sql`].
async fn append_with_letters(
    pool: &Pool,
    events: &[&Event],
    letters: &[&Letter],
    received_at: OffsetDateTime,
) -> Result<Vec<Place>, StoreError> {
    let sql = append_any_sql!(
        "with letters as (
             select * from unnest($18::text[], $19::text[], $20::text[], $21::text[], $22::text[], $23::text[], $24::bytea[],
                                  $25::bytea[], $26::bigint[], $27::text[])
                 with ordinality
                 as l (id, reason, detail, exchange, routing_key, content_type, properties, body, bytes, feed, ordinal)
         ), held as (
             insert into held_feeds (feed, detail)
             select l.feed, min(l.detail) from letters l where l.feed is not null group by l.feed order by l.feed
             on conflict (feed) do update set detail = excluded.detail
         ), buried as (
             insert into dead_letters (id, reason, detail, exchange, routing_key, content_type, properties, body, bytes, feed,
                                       received_at)
             select l.id, l.reason, l.detail, l.exchange, l.routing_key, l.content_type, l.properties, l.body, l.bytes, l.feed,
                    $9::timestamptz
             from letters l order by l.ordinal
             on conflict (id) do nothing)"
    );
    let query = Letter::bind(
        letters,
        bind_any(sqlx::query(sql), events, received_at, false),
    );
    any_places(&super::rows(pool, query).await?, events.len())
}

fn bind_any<'a>(
    query: Query<'a, Postgres, PgArguments>,
    events: &'a [&'a Event],
    received_at: OffsetDateTime,
    held: bool,
) -> Query<'a, Postgres, PgArguments> {
    bind_content(query.bind(recipients(events)), events, received_at).bind(held)
}

fn any_places(rows: &[PgRow], events: usize) -> Result<Vec<Place>, StoreError> {
    if rows.len() != events {
        let rows = rows.len();
        return Err(StoreError::Schema(format!(
            "append_notifications gave {rows} rows for {events} events"
        )));
    }
    let place = |row: &PgRow| {
        let (seq, duplicate) = (super::seq(row.try_get("seq")?)?, row.try_get("duplicate")?);
        let epoch = epoch::parse(row.try_get("epoch")?)?;
        Ok(Place {
            seq,
            duplicate,
            progress: super::progress(row)?,
            epoch,
        })
    };
    rows.iter().map(place).collect()
}

/// What is stored of each event, beside its feed; and, of those that tell of an import, what they add to it.
fn bind_content<'a>(
    query: Query<'a, Postgres, PgArguments>,
    events: &'a [&'a Event],
    received_at: OffsetDateTime,
) -> Query<'a, Postgres, PgArguments> {
    let column = |of: fn(&Event) -> &str| events.iter().map(|event| of(event)).collect::<Vec<_>>();
    // Postgres counts from 1.
    let steps: Vec<(i64, &Import)> = (1..)
        .zip(events)
        .filter_map(|(place, event)| Some((place, event.import.as_ref()?)))
        .collect();
    let column_of_steps = |of: fn(Step) -> i64| {
        steps
            .iter()
            .map(|(_, import)| of(import.step))
            .collect::<Vec<_>>()
    };
    query
        .bind(column(|event| &event.source))
        .bind(column(|event| &event.id))
        .bind(column(|event| &event.event_type))
        .bind(
            events
                .iter()
                .map(|event| event.time.unwrap_or(received_at))
                .collect::<Vec<_>>(),
        )
        .bind(
            events
                .iter()
                .map(|event| event.data.as_ref().map(|data| data.get()))
                .collect::<Vec<_>>(),
        )
        .bind(
            events
                .iter()
                .map(|event| event.collapse_key.as_deref())
                .collect::<Vec<_>>(),
        )
        .bind(
            events
                .iter()
                .map(|event| event.expires_at)
                .collect::<Vec<_>>(),
        )
        .bind(received_at)
        .bind(steps.iter().map(|(place, _)| *place).collect::<Vec<_>>())
        .bind(
            steps
                .iter()
                .map(|(_, import)| import.id.as_str())
                .collect::<Vec<_>>(),
        )
        .bind(
            steps
                .iter()
                .map(|(_, import)| import.item)
                .collect::<Vec<_>>(),
        )
        .bind(column_of_steps(|step| {
            i64::from(matches!(step, Step::Imported | Step::Failed))
        }))
        .bind(column_of_steps(|step| i64::from(step == Step::Failed)))
        .bind(
            steps
                .iter()
                .map(|(_, import)| total(import.step))
                .collect::<Vec<_>>(),
        )
        .bind(
            steps
                .iter()
                .map(|(_, import)| status(import.step))
                .collect::<Vec<_>>(),
        )
}

fn total(step: Step) -> Option<i64> {
    match step {
        Step::Started { total } => Some(total),
        _ => None,
    }
}

fn status(step: Step) -> Option<&'static str> {
    match step {
        Step::Finished => Some("finished"),
        Step::Aborted => Some("aborted"),
        _ => None,
    }
}

fn recipient(event: &Event) -> &str {
    event.recipient.as_str()
}

fn recipients<'a>(events: &[&'a Event]) -> Vec<&'a str> {
    events.iter().map(|event| recipient(event)).collect()
}
