//! Storing a batch: gapless numbers, one notification an event.

use std::collections::BTreeMap;

use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{Postgres, Row};
use time::OffsetDateTime;

use super::pools::Pool;
use super::{StoreError, epoch};
use crate::event::{Event, Import, Step};
use crate::feed::{Epoch, Seq};
use crate::notification::Progress;

/// An event that is stored, as [`append`] says.
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

/// An append that did not happen, with the batch given back.
#[derive(Debug)]
pub struct NotAppended {
    /// What to store another way.
    pub events: Vec<Event>,
    /// Why.
    pub error: StoreError,
}

/// Stores the events in one transaction, numbers the new ones in the order given, and says which were stored before.
///
/// An event without a `time` gets `received_at`. Locks the batch's feeds in name order (`feeds_pkey`).
pub async fn append(pool: &Pool, events: Vec<Event>, received_at: OffsetDateTime) -> Result<Vec<Placed>, NotAppended> {
    let places = match append_new(pool, &events, received_at).await {
        Ok(None) => append_any(pool, &events, received_at).await,
        Ok(Some(places)) => Ok(places),
        Err(error) => Err(error),
    };
    match places {
        Ok((epoch, places)) => {
            let placed = |(event, Place { seq, duplicate, progress })| {
                let epoch = epoch.clone();
                Placed { event, seq, duplicate, progress, epoch }
            };
            Ok(events.into_iter().zip(places).map(placed).collect())
        }
        Err(error) => Err(NotAppended { events, error }),
    }
}

/// What the database says of an event.
struct Place {
    seq: Seq,
    duplicate: bool,
    progress: Option<Progress>,
}

/// Stores them if none was stored before, which `notifications_source_event_id_feed_key` finds out; see `append_batch` in
/// `migrations/`.
async fn append_new(
    pool: &Pool,
    events: &[Event],
    received_at: OffsetDateTime,
) -> Result<Option<(Epoch, Vec<Place>)>, StoreError> {
    // Of each feed how many events, and how many of these are news.
    let mut added = BTreeMap::<&str, (i64, i64)>::new();
    let mut places = Vec::with_capacity(events.len());
    for event in events {
        let (added, news) = added.entry(recipient(event)).or_default();
        *added += 1;
        *news += i64::from(!event.import.as_ref().is_some_and(Import::is_progress));
        places.push(*added);
    }
    let before_last =
        |(event, place): (&Event, &i64)| added.get(recipient(event)).map_or(0, |(added, _)| added - place);
    let before_last: Vec<i64> = events.iter().zip(&places).map(before_last).collect();
    let query = sqlx::query(
        "select (select e.epoch from epochs e) as epoch, last_seqs, steps_done, steps_failed, steps_total from append_batch(
             $1::text[], $2::bigint[], $3::bigint[], $4::text[], $5::bigint[], $6::text[], $7::text[], $8::text[],
             $9::timestamptz[], $10::text[], $11::text[], $12::timestamptz[], $13::timestamptz, $14::bigint[],
             $15::text[], $16::bigint[], $17::bigint[], $18::bigint[], $19::text[])",
    )
    .bind(added.keys().copied().collect::<Vec<_>>())
    .bind(added.values().map(|(added, _)| *added).collect::<Vec<_>>())
    .bind(added.values().map(|(_, news)| *news).collect::<Vec<_>>())
    .bind(events.iter().map(recipient).collect::<Vec<_>>())
    .bind(&before_last);
    let rows = super::rows(pool, bind_content(query, events, received_at)).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let Some(last_seqs) = row.try_get::<Option<Vec<i64>>, _>("last_seqs")? else { return Ok(None) };
    if last_seqs.len() != added.len() {
        return Err(StoreError::Schema(format!(
            "append_batch gave {} numbers for {} feeds",
            last_seqs.len(),
            added.len()
        )));
    }
    let last_seqs: BTreeMap<&str, i64> = added.into_keys().zip(last_seqs).collect();
    let mut steps = steps(row)?.into_iter();
    let place = |(event, before_last): (&Event, i64)| {
        let last_seq = last_seqs.get(recipient(event)).copied().unwrap_or_default();
        let progress = event.import.as_ref().and_then(|_| steps.next());
        Ok(Place { seq: super::seq(last_seq - before_last)?, duplicate: false, progress })
    };
    let places = events.iter().zip(before_last).map(place).collect::<Result<_, StoreError>>()?;
    Ok(Some((epoch::parse(row.try_get("epoch")?)?, places)))
}

/// How far each import was after each of the batch's steps, in their order.
fn steps(row: &PgRow) -> Result<Vec<Progress>, sqlx::Error> {
    let column = |name| row.try_get::<Option<Vec<i64>>, _>(name).map(Option::unwrap_or_default);
    let totals: Option<Vec<Option<i64>>> = row.try_get("steps_total")?;
    let counts = column("steps_done")?.into_iter().zip(column("steps_failed")?);
    let progress = |((done, failed), total)| Progress { done, failed, total };
    Ok(counts.zip(totals.unwrap_or_default()).map(progress).collect())
}

/// Stores those that were not stored before; see `append_notifications` in `migrations/`.
async fn append_any(
    pool: &Pool,
    events: &[Event],
    received_at: OffsetDateTime,
) -> Result<(Epoch, Vec<Place>), StoreError> {
    let query = sqlx::query(
        "select (select e.epoch from epochs e) as epoch, seq, duplicate, import_done, import_failed, import_total
         from append_notifications(
             $1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::text[], $7::text[], $8::timestamptz[],
             $9::timestamptz, $10::bigint[], $11::text[], $12::bigint[], $13::bigint[], $14::bigint[], $15::text[])",
    )
    .bind(events.iter().map(recipient).collect::<Vec<_>>());
    let rows = super::rows(pool, bind_content(query, events, received_at)).await?;
    if rows.len() != events.len() {
        let (rows, events) = (rows.len(), events.len());
        return Err(StoreError::Schema(format!("append_notifications gave {rows} rows for {events} events")));
    }
    let place = |row: &PgRow| {
        let (seq, duplicate) = (super::seq(row.try_get("seq")?)?, row.try_get("duplicate")?);
        Ok(Place { seq, duplicate, progress: super::progress(row)? })
    };
    let epoch = rows.first().ok_or(sqlx::Error::RowNotFound)?.try_get("epoch")?;
    Ok((epoch::parse(epoch)?, rows.iter().map(place).collect::<Result<_, StoreError>>()?))
}

/// What is stored of each event, beside its feed; and, of those that tell of an import, what they add to it.
fn bind_content<'a>(
    query: Query<'a, Postgres, PgArguments>,
    events: &'a [Event],
    received_at: OffsetDateTime,
) -> Query<'a, Postgres, PgArguments> {
    let column = |of: fn(&Event) -> &str| events.iter().map(of).collect::<Vec<_>>();
    // Postgres counts from 1.
    let steps: Vec<(i64, &Import)> =
        (1..).zip(events).filter_map(|(place, event)| Some((place, event.import.as_ref()?))).collect();
    let column_of_steps = |of: fn(Step) -> i64| steps.iter().map(|(_, import)| of(import.step)).collect::<Vec<_>>();
    query
        .bind(column(|event| &event.source))
        .bind(column(|event| &event.id))
        .bind(column(|event| &event.event_type))
        .bind(events.iter().map(|event| event.time.unwrap_or(received_at)).collect::<Vec<_>>())
        .bind(events.iter().map(|event| event.data.as_ref().map(|data| data.get())).collect::<Vec<_>>())
        .bind(events.iter().map(|event| event.collapse_key.as_deref()).collect::<Vec<_>>())
        .bind(events.iter().map(|event| event.expires_at).collect::<Vec<_>>())
        .bind(received_at)
        .bind(steps.iter().map(|(place, _)| *place).collect::<Vec<_>>())
        .bind(steps.iter().map(|(_, import)| import.id.as_str()).collect::<Vec<_>>())
        .bind(column_of_steps(|step| i64::from(matches!(step, Step::Imported | Step::Failed))))
        .bind(column_of_steps(|step| i64::from(step == Step::Failed)))
        .bind(steps.iter().map(|(_, import)| total(import.step)).collect::<Vec<_>>())
        .bind(steps.iter().map(|(_, import)| status(import.step)).collect::<Vec<_>>())
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
