//! The erasure of one feed, for `shopbell forget`, in steps that appends, acks and marks can pass.
//!
//! The row in `feeds` stays with its last number, because a client may have a place in the feed. So
//! no number is used again, and the removed ones are skipped as `trimmed`.

use serde::Serialize;
use sqlx::FromRow;

use super::StoreError;
use super::dead_letters::Stored;
use super::pool::Pool;
use crate::model::feed::Feed;

/// Most rows that one statement deletes.
const ROWS_PER_STEP_MAX: i64 = 1_000;
/// Most bytes of data that one statement deletes, as in retention.
const BYTES_PER_STEP_MAX: i64 = 8 * 1024 * 1024;
/// Subscribers of a feed whose other cursors one scan searches.
const STAFF_PER_SCAN: i64 = 1_000;
/// Cursors that one statement of this scan reads.
const CURSORS_PER_STEP: i64 = 10_000;
/// Dead letters that one statement searches for a name.
const LETTERS_PER_STEP: i64 = 200;
/// Most bytes of these, unless the first alone is larger.
const LETTER_BYTES_PER_STEP: i64 = 4 * 1024 * 1024;
/// Begins an escape in JSON, which may be a part of a name.
const ESCAPE: &str = "\\u";

/// The rows that Shopbell has of a feed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, FromRow)]
pub struct Holdings {
    /// Stored notifications.
    pub notifications: i64,
    /// Cursors of the feed, and those of its subscriber in the broadcast feed.
    pub cursors: i64,
    /// The same of evicted devices.
    pub evicted_cursors: i64,
    /// Read and handle marks.
    pub marks: i64,
    /// Imports.
    pub imports: i64,
    /// Rows with the counted items of imports.
    pub import_items: i64,
    /// Receipts that publishers asked for.
    pub receipts: i64,
    /// Settlements that wait for their notification.
    pub early_settlements: i64,
    /// Events that wait for the feed, because it is held.
    pub held_events: i64,
    /// Stored traces.
    pub traces: i64,
    /// Devices with a session, or whose gateway was killed.
    pub presences: i64,
}

/// Counts the rows of a feed. Locks nothing; uses an index of each table that begins with the feed.
pub async fn count(
    pool: &Pool,
    feed: &Feed,
    broadcast_feed: &Feed,
) -> Result<Holdings, StoreError> {
    // A mark of no notification has only counts.
    let query = sqlx::query(
        "select coalesce((select f.last_seq - f.trimmed_seq from feeds f where f.feed = $1), 0) as notifications,
                (select count(*) from cursors c where c.feed = $1)
                + (select count(*) from cursors c where c.feed = $2 and c.subscriber = $1) as cursors,
                (select count(*) from evicted_cursors c where c.feed = $1)
                + (select count(*) from evicted_cursors c where c.feed = $2 and c.subscriber = $1) as evicted_cursors,
                (select count(*) from marks m where m.feed = $1 and m.seqs is distinct from '{}') as marks,
                (select count(*) from imports i where i.feed = $1) as imports,
                (select count(*) from import_items i where i.feed = $1) as import_items,
                (select count(*) from receipts r where r.feed = $1) as receipts,
                (select count(*) from early_settlements s where s.feed = $1) as early_settlements,
                (select count(*) from dead_letters d where d.feed = $1) as held_events,
                (select count(*) from traces t where t.feed = $1) as traces,
                (select count(*) from presences p where p.feed = $1) as presences",
    );
    let query = query.bind(feed.as_str()).bind(broadcast_feed.as_str());
    super::fetch_one(pool, query).await
}

/// Returns the last number of a feed; `None` if the feed has no row. Locks nothing; uses
/// `feeds_pkey`.
pub async fn last_number(pool: &Pool, feed: &Feed) -> Result<Option<i64>, StoreError> {
    let query = sqlx::query("select last_seq from feeds where feed = $1").bind(feed.as_str());
    let row: Option<(i64,)> = super::fetch(pool, query).await?.pop();
    Ok(row.map(|(last,)| last))
}

/// Deletes one step of the notifications up to a number; returns how many, and whether more may
/// exist. Locks the feed, then the notifications; see `trim_feeds` in `migrations/`.
pub async fn delete_notifications(
    pool: &Pool,
    feed: &Feed,
    through: i64,
) -> Result<(u64, bool), StoreError> {
    let query = sqlx::query(
        "select removed, is_cut from trim_feeds(array[$1], array[$2], 'infinity', $3, $4, $5, true)",
    )
    .bind(feed.as_str())
    .bind(through)
    .bind(ROWS_PER_STEP_MAX)
    .bind(BYTES_PER_STEP_MAX)
    .bind(super::marks::MARKS_KEPT_MAX);
    let (removed, is_cut): (i64, bool) = super::fetch_one(pool, query).await?;
    Ok((removed.unsigned_abs(), is_cut))
}

/// Moves all counters of a feed to a number whose notifications are deleted, and clears its marks.
/// They stay as marks of no notification, because versions have no gap. The new one brings the counts
/// to sessions. Locks the feed, then the marks; uses `feeds_pkey` and `marks_pkey`.
pub async fn clear_marks(pool: &Pool, feed: &Feed, through: i64) -> Result<(), StoreError> {
    let query = sqlx::query(
        "with emptied as (
             update feeds
             set trimmed_seq = greatest(trimmed_seq, $2), read_seq = greatest(read_seq, $2),
                 acked_seq = greatest(acked_seq, $2), version = version + 1
             where feed = $1
             returning *
         ), counted as (
             insert into marks (feed, version, kind, seqs, marked_at, marked_by, unread, unhandled, last_seq)
             select feed, version, 'read', '{}', now(), '', unread, unhandled, last_seq from emptied
         )
         update marks m set kind = 'read', seqs = '{}', through = null, marked_by = ''
         from emptied f where m.feed = f.feed",
    );
    super::execute(pool, query.bind(feed.as_str()).bind(through)).await
}

/// The statements that delete a step of the rows of feed `$1`, at most `$2` rows. The highest ack of a
/// feed does not go back with its cursors.
const OF_FEED: [&str; 9] = [
    "with gone as (
         delete from cursors c using (
             select feed, subscriber, device from cursors where feed = $1
             order by feed, subscriber, device limit $2 for update) o
         where (c.feed, c.subscriber, c.device) = (o.feed, o.subscriber, o.device) returning c.feed, c.acked_seq),
     raised as (
         update feeds f set acked_seq = least(g.acked_seq, f.last_seq)
         from (select max(acked_seq) as acked_seq from gone) g where f.feed = $1 and f.acked_seq < least(g.acked_seq, f.last_seq))
     select feed from gone",
    "delete from evicted_cursors c using (
         select feed, subscriber, device from evicted_cursors where feed = $1
         order by feed, subscriber, device limit $2 for update) o
     where (c.feed, c.subscriber, c.device) = (o.feed, o.subscriber, o.device) returning c.feed",
    // Appends write imports under the lock of the feed, so these lock it first.
    // Imports go before their items, because `verify` compares the totals with the items.
    "with locked as materialized (select feed from feeds where feed = $1 for update),
     old as (select i.feed, i.import_id from locked l join imports i on i.feed = l.feed limit $2)
     delete from imports k using old o where (k.feed, k.import_id) = (o.feed, o.import_id) returning k.feed",
    "with locked as materialized (select feed from feeds where feed = $1 for update),
     old as (
         select i.feed, i.import_id, i.run, i.chunk from locked l join import_items i on i.feed = l.feed limit $2)
     delete from import_items k using old o
     where (k.feed, k.import_id, k.run, k.chunk) = (o.feed, o.import_id, o.run, o.chunk) returning k.feed",
    "with locked as materialized (select feed from feeds where feed = $1 for update),
     gone as (
         delete from early_settlements s using (
             select w.subject_key from locked l join early_settlements w on w.feed = l.feed limit $2) o
         where s.subject_key = o.subject_key returning s.feed),
     counted as (
         update feeds set early_settlements = early_settlements - (select count(*) from gone) where feed = $1)
     select feed from gone",
    "delete from receipts r using (select feed, seq from receipts where feed = $1 order by seq limit $2 for update) o
     where (r.feed, r.seq) = (o.feed, o.seq) returning r.feed",
    "delete from dead_letters d using (
         select position from dead_letters where feed = $1 order by position limit $2) o
     where d.position = o.position returning d.feed",
    "delete from traces t using (select feed, seq from traces where feed = $1 order by seq limit $2) o
     where (t.feed, t.seq) = (o.feed, o.seq) returning t.feed",
    "delete from presences p using (
         select feed, subscriber, device, gateway_id from presences where feed = $1
         order by feed, subscriber, device, gateway_id limit $2 for update) o
     where (p.feed, p.subscriber, p.device, p.gateway_id) = (o.feed, o.subscriber, o.device, o.gateway_id) returning p.feed",
];

/// The statements that delete a step of the cursors of subscribers `$1` in the broadcast feed `$3`, at
/// most `$2` rows.
const OF_SUBSCRIBERS: [&str; 2] = [
    "with gone as (
         delete from cursors c using (
             select feed, subscriber, device from cursors where feed = $3 and subscriber = any($1)
             order by feed, subscriber, device limit $2 for update) o
         where (c.feed, c.subscriber, c.device) = (o.feed, o.subscriber, o.device) returning c.feed, c.acked_seq),
     raised as (
         update feeds f set acked_seq = least(g.acked_seq, f.last_seq)
         from (select max(acked_seq) as acked_seq from gone) g where f.feed = $3 and f.acked_seq < least(g.acked_seq, f.last_seq))
     select feed from gone",
    "delete from evicted_cursors c using (
         select feed, subscriber, device from evicted_cursors where feed = $3 and subscriber = any($1)
         order by feed, subscriber, device limit $2 for update) o
     where (c.feed, c.subscriber, c.device) = (o.feed, o.subscriber, o.device) returning c.feed",
];

/// Deletes one step of the cursors, imports, receipts, early settlements, held events, traces and presence of a feed, and of the cursors of
/// its subscriber in the broadcast feed. Returns whether more may exist.
///
/// Locks the deleted rows, at most [`ROWS_PER_STEP_MAX`] of a table, and the feed for imports; uses an
/// index of each table that begins with the feed.
pub async fn delete_rest(
    pool: &Pool,
    feed: &Feed,
    broadcast_feed: &Feed,
) -> Result<bool, StoreError> {
    let mut deleted = 0;
    for deletion in OF_FEED {
        let query = sqlx::query(deletion).bind(feed.as_str());
        let rows = super::rows(pool, query.bind(ROWS_PER_STEP_MAX)).await?;
        deleted += rows.len();
    }
    let of_subscriber =
        delete_cursors_of(pool, broadcast_feed, &[feed.as_str().to_owned()]).await?;
    let query = sqlx::query("delete from settled_blocks where feed = $1").bind(feed.as_str());
    super::execute(pool, query).await?;
    Ok(deleted > 0 || of_subscriber)
}

/// Reads the next subscribers of a feed after a name, in C order. Leaves out the one with the name of
/// the feed. Locks nothing; uses `cursors_pkey` and `evicted_cursors_pkey`.
pub async fn staff_after(pool: &Pool, feed: &Feed, after: &str) -> Result<Vec<String>, StoreError> {
    let query = sqlx::query(
        "select subscriber from (
             (select distinct subscriber from cursors
              where feed = $1 and subscriber > $2 and subscriber <> $1 order by subscriber limit $3)
             union
             (select distinct subscriber from evicted_cursors
              where feed = $1 and subscriber > $2 and subscriber <> $1 order by subscriber limit $3)) s
         order by subscriber limit $3",
    )
    .bind(feed.as_str())
    .bind(after)
    .bind(STAFF_PER_SCAN);
    let rows: Vec<(String,)> = super::fetch(pool, query).await?;
    Ok(rows.into_iter().map(|(subscriber,)| subscriber).collect())
}

/// The key of the cursor after which a scan continues. The default is before all cursors.
#[derive(Debug, Clone, Default, FromRow)]
pub struct ScanPlace {
    feed: String,
    subscriber: String,
    device: String,
}

/// The columns of [`readers_of_others`].
#[derive(FromRow)]
struct ScanColumns {
    #[sqlx(flatten)]
    place: ScanPlace,
    readers: Vec<String>,
}

/// Searches the next cursors after a place for those of `subscribers` in other feeds than these.
/// Returns their subscribers and the last place, or `None` at the end.
///
/// Locks nothing; walks `cursors_pkey`, because no index begins with the subscriber.
pub async fn readers_of_others(
    pool: &Pool,
    subscribers: &[String],
    feeds: [&Feed; 2],
    after: &ScanPlace,
) -> Result<Option<(Vec<String>, ScanPlace)>, StoreError> {
    let query = sqlx::query(
        "with step as materialized (
             select feed, subscriber, device from cursors where (feed, subscriber, device) > ($1, $2, $3)
             order by feed, subscriber, device limit $4)
         select feed, subscriber, device,
                array(select distinct s.subscriber
                      from step s join unnest($5::text[]) n (subscriber) on n.subscriber = s.subscriber
                      where s.feed <> all($6)) as readers
         from step order by feed desc, subscriber desc, device desc limit 1",
    )
    .bind(&after.feed)
    .bind(&after.subscriber)
    .bind(&after.device)
    .bind(CURSORS_PER_STEP)
    .bind(subscribers)
    .bind(feeds.map(|feed| feed.as_str().to_owned()));
    let row: Option<ScanColumns> = super::fetch(pool, query).await?.pop();
    Ok(row.map(|row| (row.readers, row.place)))
}

/// Counts the cursors of subscribers in a feed, also those of evicted devices. Locks nothing; uses
/// `cursors_pkey` and `evicted_cursors_pkey`.
pub async fn count_cursors_of(
    pool: &Pool,
    feed: &Feed,
    subscribers: &[String],
) -> Result<u64, StoreError> {
    let query = sqlx::query(
        "select (select count(*) from cursors where feed = $1 and subscriber = any($2))
                + (select count(*) from evicted_cursors where feed = $1 and subscriber = any($2))",
    );
    let query = query.bind(feed.as_str()).bind(subscribers);
    let (count,): (i64,) = super::fetch_one(pool, query).await?;
    Ok(count.unsigned_abs())
}

/// Deletes one step of the cursors of subscribers in a feed, also those of evicted devices. Returns
/// whether more may exist. Locks the deleted rows, at most [`ROWS_PER_STEP_MAX`] of a table; uses
/// `cursors_pkey` and `evicted_cursors_pkey`.
pub async fn delete_cursors_of(
    pool: &Pool,
    feed: &Feed,
    subscribers: &[String],
) -> Result<bool, StoreError> {
    let mut deleted = 0;
    for deletion in OF_SUBSCRIBERS {
        let query = sqlx::query(deletion).bind(subscribers);
        let query = query.bind(ROWS_PER_STEP_MAX).bind(feed.as_str());
        deleted += super::rows(pool, query).await?.len();
    }
    Ok(deleted > 0)
}

/// The columns of [`letters_with`]. A step without a match has one row, for its end.
#[derive(FromRow)]
struct StepColumns {
    through: Option<i64>,
    id: Option<String>,
}

/// Searches the next dead letters after a position for the bytes of a name; returns the matches and
/// the last position, or `None` at the end. JSON may write `/` as `\/`, and any character with `\u`, so
/// a match may be another name. Locks nothing; uses `dead_letters_pkey`.
pub async fn letters_with(
    pool: &Pool,
    name: &str,
    after: i64,
) -> Result<Option<(Vec<Stored>, i64)>, StoreError> {
    let query = sqlx::query(
        "with next as (
             select position, sum(octet_length(body)) over (order by position) - octet_length(body) as bytes_before
             from (select position, body from dead_letters where position > $2 order by position limit $3) n
         ), step as materialized (
             select d.* from next n join dead_letters d on d.position = n.position where n.bytes_before < $4)
         select e.through, s.*
         from (select max(position) as through from step) e
         left join step s on position(convert_to($1, 'UTF8') in s.body) > 0
             or position(convert_to(replace($1, '/', '\\/'), 'UTF8') in s.body) > 0
             or position(convert_to($5, 'UTF8') in s.body) > 0
             or position(convert_to($1, 'UTF8') in s.properties) > 0
             or strpos(s.routing_key, $1) > 0 or strpos(s.detail, $1) > 0",
    )
    .bind(name)
    .bind(after)
    .bind(LETTERS_PER_STEP)
    .bind(LETTER_BYTES_PER_STEP)
    .bind(ESCAPE);
    let rows = super::rows(pool, query).await?;
    let (mut found, mut through) = (Vec::new(), None);
    for row in &rows {
        let step = StepColumns::from_row(row)?;
        through = step.through;
        if step.id.is_some() {
            found.push(Stored::from_row(row)?);
        }
    }
    Ok(through.map(|through| (found, through)))
}
