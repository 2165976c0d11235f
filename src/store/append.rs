//! Storing a batch: gapless numbers, one notification an event.

use std::collections::BTreeMap;

use sqlx::postgres::{PgArguments, PgPool, PgRow};
use sqlx::query::Query;
use sqlx::{Postgres, Row};
use time::OffsetDateTime;

use super::StoreError;
use crate::event::Event;
use crate::feed::Seq;

/// An event that is stored, as [`append`] says.
#[derive(Debug)]
pub struct Placed {
    /// The event as it came; for a duplicate not necessarily what is stored.
    pub event: Event,
    /// Its number in its recipient's feed.
    pub seq: Seq,
    /// It was stored before, or earlier in the same batch.
    pub duplicate: bool,
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
pub async fn append(
    pool: &PgPool,
    events: Vec<Event>,
    received_at: OffsetDateTime,
) -> Result<Vec<Placed>, NotAppended> {
    let numbers = match append_new(pool, &events, received_at).await {
        Ok(None) => append_any(pool, &events, received_at).await,
        Ok(Some(numbers)) => Ok(numbers),
        Err(error) => Err(error),
    };
    match numbers {
        Ok(numbers) => Ok(events
            .into_iter()
            .zip(numbers)
            .map(|(event, (seq, duplicate))| Placed { event, seq, duplicate })
            .collect()),
        Err(error) => Err(NotAppended { events, error }),
    }
}

/// The number of each event, and whether it was stored before.
type Numbers = Vec<(Seq, bool)>;

/// Stores them if none was stored before, which `notifications_source_event_id_feed_key` finds out; see `append_batch` in
/// `migrations/`.
async fn append_new(
    pool: &PgPool,
    events: &[Event],
    received_at: OffsetDateTime,
) -> Result<Option<Numbers>, StoreError> {
    let mut added = BTreeMap::<&str, i64>::new();
    let place_in_feed = |event| {
        let added = added.entry(recipient(event)).or_default();
        *added += 1;
        *added
    };
    let places: Vec<i64> = events.iter().map(place_in_feed).collect();
    let before_last = |(event, place): (&Event, &i64)| added.get(recipient(event)).map_or(0, |added| added - place);
    let before_last: Vec<i64> = events.iter().zip(&places).map(before_last).collect();
    let query = sqlx::query(
        "select append_batch($1::text[], $2::bigint[], $3::text[], $4::bigint[], $5::text[], $6::text[], $7::text[],
                             $8::timestamptz[], $9::text[], $10::text[], $11::timestamptz[]) as last_seqs",
    )
    .bind(added.keys().copied().collect::<Vec<_>>())
    .bind(added.values().copied().collect::<Vec<_>>())
    .bind(events.iter().map(recipient).collect::<Vec<_>>())
    .bind(&before_last);
    let rows = super::rows(pool, bind_content(query, events, received_at)).await?;
    let last_seqs: Option<Vec<i64>> = rows.first().map(|row| row.try_get("last_seqs")).transpose()?.flatten();
    let Some(last_seqs) = last_seqs else { return Ok(None) };
    if last_seqs.len() != added.len() {
        return Err(StoreError::Schema(format!(
            "append_batch gave {} numbers for {} feeds",
            last_seqs.len(),
            added.len()
        )));
    }
    let last_seqs: BTreeMap<&str, i64> = added.into_keys().zip(last_seqs).collect();
    let number = |(event, before_last)| {
        let last_seq = last_seqs.get(recipient(event)).copied().unwrap_or_default();
        Ok((super::seq(last_seq - before_last)?, false))
    };
    events.iter().zip(before_last).map(number).collect::<Result<_, StoreError>>().map(Some)
}

/// Stores those that were not stored before; see `append_notifications` in `migrations/`.
async fn append_any(pool: &PgPool, events: &[Event], received_at: OffsetDateTime) -> Result<Numbers, StoreError> {
    let query = sqlx::query(
        "select seq, duplicate from append_notifications(
             $1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::text[], $7::text[], $8::timestamptz[])",
    )
    .bind(events.iter().map(recipient).collect::<Vec<_>>());
    let rows = super::rows(pool, bind_content(query, events, received_at)).await?;
    if rows.len() != events.len() {
        let (rows, events) = (rows.len(), events.len());
        return Err(StoreError::Schema(format!("append_notifications gave {rows} rows for {events} events")));
    }
    let number = |row: &PgRow| Ok((super::seq(row.try_get("seq")?)?, row.try_get("duplicate")?));
    rows.iter().map(number).collect()
}

/// What is stored of each event, beside its feed.
fn bind_content<'a>(
    query: Query<'a, Postgres, PgArguments>,
    events: &'a [Event],
    received_at: OffsetDateTime,
) -> Query<'a, Postgres, PgArguments> {
    let column = |of: fn(&Event) -> &str| events.iter().map(of).collect::<Vec<_>>();
    query
        .bind(column(|event| &event.source))
        .bind(column(|event| &event.id))
        .bind(column(|event| &event.event_type))
        .bind(events.iter().map(|event| event.time.unwrap_or(received_at)).collect::<Vec<_>>())
        .bind(events.iter().map(|event| event.data.as_ref().map(|data| data.get())).collect::<Vec<_>>())
        .bind(events.iter().map(|event| event.collapse_key.as_deref()).collect::<Vec<_>>())
        .bind(events.iter().map(|event| event.expires_at).collect::<Vec<_>>())
}

fn recipient(event: &Event) -> &str {
    event.recipient.as_str()
}
