//! The statements that append. Their functions are in `migrations/0012_settlements.sql`.
//!
//! A batch that is new takes one statement without a function. It costs about what the same inserts cost
//! alone.

use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::{FromRow, Postgres};
use time::OffsetDateTime;

use super::StoredAt;
use super::blame::Blame;
use super::columns::{
    bind_asked, bind_event, bind_events, bind_settlements, bind_steps, feed, feeds,
};
use super::numbering::{Numbering, assign};
use crate::model::event::{Event, Import};
use crate::model::notification::Progress;
use crate::store::dead_letters::StoredDeadLetter;
use crate::store::marks::MARKS_KEPT_MAX;
use crate::store::pool::Pool;
use crate::store::{ProgressColumns, StoreError, epoch, fetch, fetch_one, seq, version};

/// `append_notifications`, after the given common table expressions.
macro_rules! append_any {
    ($with:literal) => {
        concat!(
            $with,
            " select (select e.epoch from epochs e) as epoch, seq, duplicate, import_done, import_failed, import_total,
                     settled, version
              from append_notifications(
                  $1::text[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::timestamptz[], $7::text[], $8::text[],
                  $9::timestamptz[], $10::uuid[], $11::uuid[], $12::timestamptz, $13::bigint[], $14::text[], $15::bigint[],
                  $16::bigint[], $17::bigint[], $18::bigint[], $19::text[], $20::bigint[], $21::integer[], $22::timestamptz[],
                  $23::timestamptz[], $24::bigint[], $25::uuid[], $26::text[], $27::bigint, $28::boolean)"
        )
    };
}

/// The row of [`APPEND_ONE`], [`APPEND_NEW`] or [`APPEND_NEW_IMPORTS`].
#[derive(FromRow)]
struct NewRow {
    epoch: String,
    last_seqs: Option<Vec<i64>>,
    #[sqlx(default)]
    steps_done: Option<Vec<i64>>,
    #[sqlx(default)]
    steps_failed: Option<Vec<i64>>,
    #[sqlx(default)]
    steps_total: Option<Vec<Option<i64>>>,
}

impl NewRow {
    /// The progress of each import event, in their order.
    fn progress(&mut self) -> Vec<Progress> {
        let done = self.steps_done.take().unwrap_or_default();
        let failed = self.steps_failed.take().unwrap_or_default();
        let total = self.steps_total.take().unwrap_or_default();
        let progress = |((done, failed), total)| Progress {
            done,
            failed,
            total,
        };
        done.into_iter()
            .zip(failed)
            .zip(total)
            .map(progress)
            .collect()
    }
}

/// A row of `append_notifications`.
#[derive(FromRow)]
struct AnyRow {
    epoch: String,
    seq: i64,
    duplicate: bool,
    #[sqlx(flatten)]
    progress: ProgressColumns,
    settled: bool,
    version: Option<i64>,
}

impl AnyRow {
    fn stored_at(self) -> Result<StoredAt, sqlx::Error> {
        Ok(StoredAt {
            seq: seq(self.seq)?,
            duplicate: self.duplicate,
            progress: self.progress.progress(),
            is_settled: self.settled,
            settled_version: self.version.map(version).transpose()?,
            epoch: epoch::parse(&self.epoch)?,
        })
    }
}

/// Stores one event that is no import event if it was not stored before. Most batches are one event
/// unless the service is busy. [`APPEND_NEW`] would need a third more processor time for it.
const APPEND_ONE: &str = "
    with counted as (
        insert into feeds as f (feed, last_seq, unread, unhandled)
        select $1::text, 1, 1, 1
        where not exists (select from held_feeds h where h.feed = $1::text)
          and not exists (select from notifications n where n.identity = $2::uuid)
          and not exists (select from early_settlements s where s.feed = $1::text)
        on conflict (feed) do update
            set last_seq = f.last_seq + 1, unread = f.unread + 1, unhandled = f.unhandled + 1
        returning f.last_seq, f.early_settlements
    ), inserted as (
        insert into notifications (feed, seq, identity, source, event_id, event_type, time, data, collapse_key, expires_at,
                                   subject_key, order_key)
        select $1::text,
               case when c.early_settlements > 0 then 0
                    when c.last_seq = 1 and (select true from notifications n where n.feed = $1::text order by n.seq limit 1)
                    then 0 else c.last_seq end,
               $2::uuid, $3::text, $4::text, $5::text, $6::timestamptz, $7::text, $8::text, $9::timestamptz, $10::uuid,
               $11::uuid
        from counted c
    )
    select (select e.epoch from epochs e) as epoch, (select array[c.last_seq] from counted c) as last_seqs";

/// Does the same for several events.
///
/// If an event is stored, a feed is held, or a settlement waits for an event, `counted` is empty, so nothing is
/// stored. The number is 0, which no notification may have, in two cases. Another transaction has stored such a
/// settlement meanwhile, or a feed with notifications would get the number 1, because its row was missing. Otherwise
/// the feed would use numbers again that retention has removed.
macro_rules! append_new {
    ($asked:literal) => {
        concat!(
            "
    with counted as (
        insert into feeds as f (feed, last_seq, unread, unhandled)
        select g.feed, g.added, g.added, g.added
        from unnest($1::text[], $2::bigint[]) as g (feed, added)
        where not exists (select from held_feeds h where h.feed = any ($1::text[]))
          and not exists (select from notifications n where n.identity = any ($5::uuid[]))
          and not exists (select from early_settlements s where s.feed = any ($1::text[]))
        order by g.feed collate \"C\"
        on conflict (feed) do update
            set last_seq = f.last_seq + excluded.last_seq,
                unread = f.unread + excluded.unread,
                unhandled = f.unhandled + excluded.unhandled
        returning f.feed, f.last_seq, f.early_settlements
    ), inserted as (
        insert into notifications (feed, seq, identity, source, event_id, event_type, time, data, collapse_key, expires_at,
                                   subject_key, order_key)
        select e.feed,
               case when c.early_settlements > 0 then 0
                    when s.seq = 1 and (select true from notifications n where n.feed = e.feed order by n.seq limit 1)
                    then 0 else s.seq end,
               e.identity, e.source, e.event_id, e.event_type, e.time, e.data, e.collapse_key, e.expires_at,
               e.subject_key, e.order_key
        from unnest($3::text[], $4::bigint[], $5::uuid[], $6::text[], $7::text[], $8::text[], $9::timestamptz[],
                    $10::text[], $11::text[], $12::timestamptz[], $13::uuid[], $14::uuid[])
            as e (feed, later_in_batch, identity, source, event_id, event_type, time, data, collapse_key, expires_at,
                  subject_key, order_key)
        join counted c on c.feed = e.feed
        cross join lateral (select c.last_seq - e.later_in_batch as seq) s
    )",
            $asked,
            "
    select (select e.epoch from epochs e) as epoch,
           (select array_agg(c.last_seq order by c.feed) from counted c) as last_seqs"
        )
    };
}

/// Appends several events that ask for nothing.
const APPEND_NEW: &str = append_new!("");

/// Appends several events of which some ask for receipts.
const APPEND_NEW_ASKING: &str = append_new!(
    ", asked as (
        insert into receipts (feed, seq, source, event_id, event_type, stored_at, wanted, deliver_by, handle_by, expires_at,
                              due_at)
        select e.feed, c.last_seq - e.later_in_batch, e.source, e.event_id, e.event_type, $15::timestamptz, a.wanted,
               a.deliver_by, a.handle_by, e.expires_at,
               least(a.deliver_by, a.handle_by, case when a.wanted & 16 <> 0 then e.expires_at end)
        from unnest($3::text[], $4::bigint[], $6::text[], $7::text[], $8::text[], $12::timestamptz[]) with ordinality
            as e (feed, later_in_batch, source, event_id, event_type, expires_at, event)
        join unnest($16::bigint[], $17::integer[], $18::timestamptz[], $19::timestamptz[])
            as a (event, wanted, deliver_by, handle_by) on a.event = e.event
        join counted c on c.feed = e.feed
    )"
);

/// Does the same for events of which some are import events.
const APPEND_NEW_IMPORTS: &str = "
    select (select e.epoch from epochs e) as epoch, last_seqs, steps_done, steps_failed, steps_total
    from append_new_notifications(
        $1::text[], $2::bigint[], $3::bigint[], $4::text[], $5::bigint[], $6::uuid[], $7::text[], $8::text[], $9::text[],
        $10::timestamptz[], $11::text[], $12::text[], $13::timestamptz[], $14::uuid[], $15::uuid[], $16::timestamptz,
        $17::bigint[], $18::text[], $19::bigint[], $20::bigint[], $21::bigint[], $22::bigint[], $23::text[], $24::bigint[],
        $25::integer[], $26::timestamptz[], $27::timestamptz[])";

/// Appends a batch if none of its events was stored before or settles others. Stores nothing and returns
/// `None` if one was or does, if a feed is held or has early settlements, or if the rows of a feed contradict
/// each other.
///
/// Locks the feeds in C order, because an upsert locks its rows in the order given. Uses `feeds_pkey`,
/// `held_feeds_pkey` and `notifications_identity_key`, which also rejects an event that another
/// transaction stores at the same time.
pub(super) async fn append_new(
    pool: &Pool,
    events: &[&Event],
    received_at: OffsetDateTime,
) -> Result<Option<Vec<StoredAt>>, StoreError> {
    if events.iter().any(|event| event.settles.is_some()) {
        return Ok(None);
    }
    let is_news = |event: &Event| !event.import.as_ref().is_some_and(Import::is_progress);
    let numbering = Numbering::new(events.iter().map(|event| (feed(event), is_news(event))));
    let has_imports = events.iter().any(|event| event.import.is_some());
    let is_asking = events.iter().any(|event| event.asked.is_some());
    let query = match events {
        [event] if !has_imports && !is_asking => {
            bind_event(sqlx::query(APPEND_ONE), event, received_at)
        }
        _ if !has_imports => {
            let statement = if is_asking {
                APPEND_NEW_ASKING
            } else {
                APPEND_NEW
            };
            let query = sqlx::query(statement)
                .bind(numbering.feeds())
                .bind(numbering.added())
                .bind(feeds(events))
                .bind(numbering.later_in_batch());
            let query = bind_events(query, events, received_at);
            match is_asking {
                true => bind_asked(query.bind(received_at), events, received_at),
                false => query,
            }
        }
        _ => {
            let query = sqlx::query(APPEND_NEW_IMPORTS)
                .bind(numbering.feeds())
                .bind(numbering.added())
                .bind(numbering.news())
                .bind(feeds(events))
                .bind(numbering.later_in_batch());
            bind_all(query, events, received_at)
        }
    };
    let mut row: NewRow = match fetch_one(pool, query).await {
        Err(error) if Blame::is_of_the_numbering(&error) => return Ok(None),
        row => row?,
    };
    let Some(last_seqs) = row.last_seqs.take() else {
        return Ok(None);
    };
    let seqs = numbering.seqs(events.iter().map(|event| feed(event)), &last_seqs);
    let seqs = seqs.map_err(|feeds| {
        let numbers = last_seqs.len();
        StoreError::Schema(format!(
            "a new batch got {numbers} numbers for {feeds} feeds"
        ))
    })?;
    let is_import = events.iter().map(|event| event.import.is_some());
    let progress = assign(is_import, row.progress());
    let epoch = epoch::parse(&row.epoch)?;
    let stored = |(number, progress)| {
        Ok(StoredAt {
            seq: seq(number)?,
            duplicate: false,
            progress,
            is_settled: false,
            settled_version: None,
            epoch: epoch.clone(),
        })
    };
    let stored_at: Result<_, StoreError> = seqs.into_iter().zip(progress).map(stored).collect();
    stored_at.map(Some)
}

/// Appends a batch of which some events may be stored already or settle others.
///
/// Locks the feeds in C order; uses `feeds_pkey` and `notifications_identity_key`.
pub(super) async fn append_any(
    pool: &Pool,
    events: &[&Event],
    received_at: OffsetDateTime,
) -> Result<Vec<StoredAt>, StoreError> {
    let query = sqlx::query(append_any!("")).bind(feeds(events));
    let query = bind_any(query, events, received_at, false);
    all_stored_at(fetch(pool, query).await?, events)
}

/// Appends the waiting events of a held feed, and deletes their rows.
///
/// Locks the feed and these rows; uses `feeds_pkey`, `notifications_identity_key` and
/// `dead_letters_id_key`.
pub(super) async fn release(
    pool: &Pool,
    events: &[&Event],
    dead_letters: &[String],
    received_at: OffsetDateTime,
) -> Result<Vec<StoredAt>, StoreError> {
    let query = sqlx::query(append_any!(
        "with released as (delete from dead_letters where id = any ($29::text[]))"
    ));
    let query = query.bind(feeds(events));
    let query = bind_any(query, events, received_at, true).bind(dead_letters);
    all_stored_at(fetch(pool, query).await?, events)
}

/// Appends a batch of which some events may be stored already, and stores dead letters. If
/// one has a feed, it holds that feed.
///
/// Locks the feeds in C order, and the new rows of `held_feeds` and `dead_letters`; uses
/// `feeds_pkey` and `notifications_identity_key`.
pub(super) async fn append_with_dead_letters(
    pool: &Pool,
    events: &[&Event],
    dead_letters: &[&StoredDeadLetter],
    received_at: OffsetDateTime,
) -> Result<Vec<StoredAt>, StoreError> {
    let query = sqlx::query(append_any!(
        "with letters as (
             select * from unnest($29::text[], $30::text[], $31::text[], $32::text[], $33::text[], $34::text[], $35::bytea[],
                                  $36::bytea[], $37::bigint[], $38::text[])
                 with ordinality
                 as l (id, reason, detail, exchange, routing_key, content_type, properties, body, bytes, feed, ordinal)
         ), held as (
             insert into held_feeds (feed, detail)
             select l.feed, min(l.detail) from letters l where l.feed is not null group by l.feed order by l.feed
             on conflict (feed) do update set detail = excluded.detail
         ), stored as (
             insert into dead_letters (id, reason, detail, exchange, routing_key, content_type, properties, body, bytes, feed,
                                       received_at)
             select l.id, l.reason, l.detail, l.exchange, l.routing_key, l.content_type, l.properties, l.body, l.bytes, l.feed,
                    $12::timestamptz
             from letters l order by l.ordinal
             on conflict (id) do nothing)"
    ));
    let query = query.bind(feeds(events));
    let query = bind_any(query, events, received_at, false);
    all_stored_at(
        fetch(pool, StoredDeadLetter::bind(dead_letters, query)).await?,
        events,
    )
}

/// Binds the columns of the append functions after those of the feeds.
fn bind_all<'a>(
    query: Query<'a, Postgres, PgArguments>,
    events: &[&'a Event],
    received_at: OffsetDateTime,
) -> Query<'a, Postgres, PgArguments> {
    let query = bind_steps(bind_events(query, events, received_at), events, received_at);
    bind_asked(query, events, received_at)
}

/// Binds the columns of `append_notifications` after those of the feeds.
fn bind_any<'a>(
    query: Query<'a, Postgres, PgArguments>,
    events: &[&'a Event],
    received_at: OffsetDateTime,
    is_held: bool,
) -> Query<'a, Postgres, PgArguments> {
    bind_settlements(bind_all(query, events, received_at), events)
        .bind(MARKS_KEPT_MAX)
        .bind(is_held)
}

fn all_stored_at(rows: Vec<AnyRow>, events: &[&Event]) -> Result<Vec<StoredAt>, StoreError> {
    if rows.len() != events.len() {
        let (rows, events) = (rows.len(), events.len());
        return Err(StoreError::Schema(format!(
            "append_notifications returned {rows} rows for {events} events"
        )));
    }
    let stored_at: Result<_, sqlx::Error> = rows.into_iter().map(AnyRow::stored_at).collect();
    Ok(stored_at?)
}
