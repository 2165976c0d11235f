//! Storing a batch: gapless numbers, one notification an event.

use sqlx::Row;
use sqlx::postgres::{PgPool, PgRow};
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
/// An event without a `time` gets `received_at`. Locks the batch's feeds in name order (`feeds_pkey`), finds duplicates by
/// `notifications_source_event_id_feed_key`; see `append_notifications` in `migrations/`.
pub async fn append(
    pool: &PgPool,
    events: Vec<Event>,
    received_at: OffsetDateTime,
) -> Result<Vec<Placed>, NotAppended> {
    let rows = {
        let column = |of: fn(&Event) -> &str| events.iter().map(of).collect::<Vec<_>>();
        let query = sqlx::query(
            "select seq, duplicate from append_notifications(
                 $1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::text[], $7::text[], $8::timestamptz[])",
        )
        .bind(column(|event| event.recipient.as_str()))
        .bind(column(|event| &event.source))
        .bind(column(|event| &event.id))
        .bind(column(|event| &event.event_type))
        .bind(events.iter().map(|event| event.time.unwrap_or(received_at)).collect::<Vec<_>>())
        .bind(events.iter().map(|event| event.data.as_ref().map(|data| data.get())).collect::<Vec<_>>())
        .bind(events.iter().map(|event| event.collapse_key.as_deref()).collect::<Vec<_>>())
        .bind(events.iter().map(|event| event.expires_at).collect::<Vec<_>>())
;
        super::rows(pool, query).await
    };
    match rows.and_then(|rows| numbers(&rows, events.len())) {
        Ok(numbers) => Ok(events
            .into_iter()
            .zip(numbers)
            .map(|(event, (seq, duplicate))| Placed { event, seq, duplicate })
            .collect()),
        Err(error) => Err(NotAppended { events, error }),
    }
}

/// The number of each event, and whether it was stored before.
fn numbers(rows: &[PgRow], events: usize) -> Result<Vec<(Seq, bool)>, StoreError> {
    if rows.len() != events {
        return Err(StoreError::Schema(format!("append_notifications gave {} rows for {events} events", rows.len())));
    }
    let number = |row: &PgRow| Ok((super::seq(row.try_get("seq")?)?, row.try_get("duplicate")?));
    rows.iter().map(number).collect()
}
