//! Retention: the walk over all feeds, and the removal of old notifications from the beginning of
//! each feed.
//!
//! A notification is removed if it is old enough, and every cursor has passed it or it has expired.
//! The place of an evicted device counts for the same time after the eviction.

use std::time::Duration;

use sqlx::FromRow;
use sqlx::postgres::PgRow;
use time::OffsetDateTime;

use super::cursors::ANNOUNCEMENTS_MAX;
use super::marks::MARKS_KEPT_MAX;
use super::pool::Pool;
use super::{StoreError, epoch};
use crate::model::feed::{Epoch, Feed, Seq};

/// Feeds of one part of a walk: few enough for one short statement.
const FEEDS_PER_PART: i64 = 1_000;
/// A replica that is killed blocks the walk for so long.
const LEASE: &str = "1 minute";
/// Time between two walks. A removable notification stays so much longer at most, and idle feeds are
/// read once in this time.
const WALK_EVERY: &str = "1 hour";
/// Most cursors of a feed that one statement reads. Only the broadcast feed has more.
const CURSORS_PER_READ: i64 = 10_000;
/// Most rows that one statement removes. Appends to the same feeds wait meanwhile.
const ROWS_PER_STEP_MAX: i64 = 1_000;
/// Most bytes of data that one statement removes, because large data is stored in many rows of its
/// own.
const BYTES_PER_STEP_MAX: i64 = 8 * 1024 * 1024;

/// The state of the walk.
#[derive(Debug, Clone, Copy, Default, PartialEq, FromRow)]
pub struct WalkState {
    /// Time since the begin of the walk that has not ended; 0 between walks.
    pub late_seconds: f64,
    /// Feeds of the last walk whose oldest due notification must stay.
    pub held_back: i64,
}

/// A part of the walk that this replica leases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// It begins after this feed.
    after: String,
    /// Its last feed. `None` at the end of the walk.
    through: Option<String>,
    /// The end of the lease, by which the lease is recognised.
    leased_until: OffsetDateTime,
}

impl Part {
    /// Its last feed, which is the only one if [`halve`] returns nothing.
    pub fn last(&self) -> &str {
        self.through.as_deref().unwrap_or_default()
    }

    /// Returns whether it has no feed, because all were processed.
    pub fn is_end(&self) -> bool {
        self.through.is_none()
    }
}

/// A feed whose oldest notification is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DueFeed {
    /// The feed.
    pub feed: Feed,
    /// Every cursor has passed the notifications up to here.
    pub floor: Seq,
    /// Some of its due notifications are removable now.
    pub is_removable: bool,
}

/// The due feeds of a part.
#[derive(Debug)]
pub struct Due {
    /// The epoch of the floors.
    pub epoch: Epoch,
    /// In C order.
    pub feeds: Vec<DueFeed>,
}

/// A result of [`trim`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trimmed {
    /// The feed.
    pub feed: Feed,
    /// Number of removed notifications.
    pub removed: u64,
    /// A limit ended the step, so the feed may have more.
    pub is_cut: bool,
}

/// How a step treats a feed that another transaction has locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Locks {
    /// It leaves out that feed.
    Skip,
    /// It waits for 250 ms, then fails.
    Wait,
}

/// The columns of [`lease`].
#[derive(FromRow)]
struct LeaseRow {
    after_feed: Option<String>,
    through: Option<String>,
    leased_until: Option<OffsetDateTime>,
    #[sqlx(flatten)]
    state: WalkState,
}

/// Leases the next part of the walk if one is due and no other replica has leased it. The walk begins
/// with the lease of its first part, because no replica may have run retention before.
///
/// Locks the row of `retention`; uses `feeds_pkey`.
pub async fn lease(pool: &Pool) -> Result<(Option<Part>, WalkState), StoreError> {
    let query = sqlx::query(
        "with taken as (
             update retention
             set leased_until = now() + $1::interval,
                 begins_at = case when after_feed = '' and leased_until is null then now() else begins_at end
             where begins_at <= now() and (leased_until is null or leased_until < now())
             returning after_feed, begins_at, leased_until)
         select (select after_feed from taken) as after_feed, (select leased_until from taken) as leased_until,
                (select max(w.feed)
                 from (select f.feed from feeds f
                       where f.feed > (select after_feed from taken) order by f.feed limit $2) w) as through,
                greatest(extract(epoch from now() - coalesce((select begins_at from taken), r.begins_at)), 0)::double precision as late_seconds,
                r.held_back_last as held_back
         from retention r",
    )
    .bind(LEASE)
    .bind(FEEDS_PER_PART);
    let row: LeaseRow = super::fetch_one(pool, query).await?;
    let through = row.through;
    let taken = row.after_feed.zip(row.leased_until);
    let part = taken.map(|(after, leased_until)| Part {
        after,
        through,
        leased_until,
    });
    Ok((part, row.state))
}

/// Extends the lease of a part. Returns false if the lease has ended and another replica has leased the
/// part. Locks the row of `retention`.
pub async fn extend(pool: &Pool, part: &mut Part) -> Result<bool, StoreError> {
    let query = sqlx::query(
        "update retention set leased_until = now() + $3::interval
         where after_feed = $1 and leased_until = $2
         returning leased_until",
    )
    .bind(&part.after)
    .bind(part.leased_until)
    .bind(LEASE);
    let Some((leased_until,)) = super::fetch(pool, query).await?.pop() else {
        return Ok(false);
    };
    part.leased_until = leased_until;
    Ok(true)
}

/// Ends a part of which `held_back` feeds could not be trimmed, so that the next part can be leased.
/// After the last part, the next walk begins later. Locks the row of `retention`.
pub async fn finish(pool: &Pool, part: &Part, held_back: usize) -> Result<(), StoreError> {
    // Another replica has continued if the lease has ended meanwhile.
    let query = sqlx::query(
        "update retention
         set after_feed = coalesce($2, ''), leased_until = null,
             begins_at = case when $2 is null then now() + $3::interval else begins_at end,
             held_back_last = case when $2 is null then held_back else held_back_last end,
             held_back = case when $2 is null then 0 else held_back + $4 end
         where after_feed = $1 and leased_until = $5",
    )
    .bind(&part.after)
    .bind(&part.through)
    .bind(WALK_EVERY)
    .bind(i64::try_from(held_back).unwrap_or(i64::MAX))
    .bind(part.leased_until);
    super::execute(pool, query).await
}

/// Halves a part that could not be read. Returns nothing if it has one feed. Locks nothing; uses
/// `feeds_pkey`.
pub async fn halve(pool: &Pool, part: &Part) -> Result<Option<[Part; 2]>, StoreError> {
    let query = sqlx::query("select feed from feeds where feed > $1 and feed <= $2 order by feed");
    let query = query.bind(&part.after).bind(&part.through);
    let mut feeds: Vec<(String,)> = super::fetch(pool, query).await?;
    feeds.truncate(feeds.len() / 2);
    let half = |(middle,): (String,)| {
        let first = Part {
            after: part.after.clone(),
            through: Some(middle.clone()),
            leased_until: part.leased_until,
        };
        let second = Part {
            after: middle,
            through: part.through.clone(),
            leased_until: part.leased_until,
        };
        [first, second]
    };
    Ok(feeds.pop().map(half))
}

/// Makes `make_cursors` record the lowest place of new cursors anew, because the cursors are read next.
/// A locked feed keeps its record. Locks the changed feeds, and skips locked ones; uses `feeds_pkey`.
async fn reset_made(pool: &Pool, part: &Part) -> Result<(), StoreError> {
    let query = sqlx::query(
        "with made as (
             select feed from feeds where feed > $1 and feed <= $2 and made_seq is not null
             for no key update skip locked)
         update feeds f set made_seq = null from made m where f.feed = m.feed",
    );
    super::execute(pool, query.bind(&part.after).bind(&part.through)).await
}

/// The columns of [`due`]. A part without due feeds has one row, for the epoch.
#[derive(FromRow)]
struct DueColumns<'r> {
    epoch: &'r str,
    feed: Option<&'r str>,
    seq: Option<i64>,
    expired: Option<bool>,
    floor: Option<i64>,
    cursors: Option<i64>,
}

/// Reads the feeds of a part whose oldest notification was stored more than `kept` ago. The floor of a
/// feed without cursors is the highest ack of those that were deleted. In the broadcast feed, the floor
/// is below the announcements that new subscribers get.
///
/// Cursors that are made meanwhile are recorded in the feed, and [`trim`] counts them. So the parts of a
/// floor need not be of one moment.
///
/// Locks the feeds with such a record for a moment; uses `feeds_pkey`, `notifications_pkey` for each
/// feed, `cursors_pkey` and `evicted_cursors_pkey` for each due feed.
pub async fn due(
    pool: &Pool,
    part: &Part,
    kept: Duration,
    broadcast_feed: &Feed,
) -> Result<Due, StoreError> {
    reset_made(pool, part).await?;
    let query = sqlx::query(
        "select e.epoch, d.*
         from (select epoch from epochs) e
         left join (
             select f.feed, o.seq, coalesce(o.expires_at <= now(), false) as expired,
                    coalesce(least(c.floor, v.floor), f.acked_seq) as floor, c.cursors
             from feeds f
             cross join lateral (
                 select n.seq, n.created_at, n.expires_at from notifications n
                 where n.feed = f.feed and n.seq > f.trimmed_seq
                 order by n.seq
                 limit 1) o
             cross join lateral (
                 select min(s.acked_seq) as floor, count(*) as cursors
                 from (select k.acked_seq from cursors k where k.feed = f.feed limit $4) s) c
             cross join lateral (
                 select min(x.acked_seq) as floor from evicted_cursors x
                 where x.feed = f.feed and x.evicted_at > now() - make_interval(secs => $3)) v
             where f.feed > $1 and f.feed <= $2 and f.trimmed_seq < f.last_seq
               and f.feed not like 'shopbell-canary/%' and o.created_at < now() - make_interval(secs => $3)
             order by f.feed) d on true",
    )
    .bind(&part.after)
    .bind(&part.through)
    .bind(kept.as_secs_f64())
    .bind(CURSORS_PER_READ);
    let rows = super::rows(pool, query).await?;
    let first = rows.first().ok_or(sqlx::Error::RowNotFound)?;
    let epoch = epoch::parse(DueColumns::from_row(first)?.epoch)?;
    let mut feeds = Vec::with_capacity(rows.len());
    for row in &rows {
        feeds.extend(due_feed(pool, row, kept, broadcast_feed).await?);
    }
    Ok(Due { epoch, feeds })
}

async fn due_feed(
    pool: &Pool,
    row: &PgRow,
    kept: Duration,
    broadcast_feed: &Feed,
) -> Result<Option<DueFeed>, StoreError> {
    let columns = DueColumns::from_row(row)?;
    let Some((feed, seq)) = columns.feed.zip(columns.seq) else {
        return Ok(None);
    };
    let Ok(feed) = Feed::parse(feed) else {
        return Ok(None);
    };
    let mut floor = columns.floor.unwrap_or_default();
    if columns.cursors >= Some(CURSORS_PER_READ) {
        floor = floor.min(floor_of_all(pool, &feed, seq).await?);
        // Evicted places last, because a device may be evicted before its cursor is read.
        floor = floor.min(floor_of_evicted(pool, &feed, kept).await?);
    }
    if feed == *broadcast_feed {
        floor = floor.min(floor_of_announcements(pool, &feed).await?);
    }
    Ok(Some(DueFeed {
        is_removable: columns.expired == Some(true) || seq <= floor,
        floor: super::seq(floor)?,
        feed,
    }))
}

/// Reads the lowest cursor of a feed with many, in steps. Stops at a cursor below `seq`, because then
/// nothing is removable. Locks nothing; uses `cursors_pkey`.
async fn floor_of_all(pool: &Pool, feed: &Feed, seq: i64) -> Result<i64, StoreError> {
    let (mut subscriber, mut device) = (String::new(), String::new());
    let mut floor = i64::MAX;
    loop {
        let query = sqlx::query(
            "select subscriber, device, min(acked_seq) over () as floor
             from (select c.subscriber, c.device, c.acked_seq from cursors c
                   where c.feed = $1 and (c.subscriber, c.device) > ($2, $3)
                   order by c.subscriber, c.device
                   limit $4) w
             order by subscriber desc, device desc
             limit 1",
        )
        .bind(feed.as_str())
        .bind(&subscriber)
        .bind(&device)
        .bind(CURSORS_PER_READ);
        let Some((last_subscriber, last_device, lowest)) =
            super::fetch::<(String, String, i64)>(pool, query)
                .await?
                .pop()
        else {
            return Ok(floor);
        };
        floor = floor.min(lowest);
        if floor < seq {
            return Ok(floor);
        }
        (subscriber, device) = (last_subscriber, last_device);
    }
}

/// Reads the lowest place of the devices of a feed that were evicted less than `kept` ago. Locks
/// nothing; uses `evicted_cursors_pkey`.
async fn floor_of_evicted(pool: &Pool, feed: &Feed, kept: Duration) -> Result<i64, StoreError> {
    let query = sqlx::query(
        "select min(acked_seq) from evicted_cursors
         where feed = $1 and evicted_at > now() - make_interval(secs => $2)",
    );
    let query = query.bind(feed.as_str()).bind(kept.as_secs_f64());
    let (lowest,): (Option<i64>,) = super::fetch_one(pool, query).await?;
    Ok(lowest.unwrap_or(i64::MAX))
}

/// Reads the number before the announcements that the first session of a subscriber gets, as in
/// `make_cursors` in `migrations/`. Locks nothing; uses `feeds_pkey` and `notifications_pkey`.
async fn floor_of_announcements(pool: &Pool, feed: &Feed) -> Result<i64, StoreError> {
    let query = sqlx::query(
        "select coalesce(min(n.seq) - 1, max(f.last_seq), 0)
         from feeds f
         left join lateral (
             select a.seq from notifications a
             where a.feed = f.feed and a.seq > f.last_seq - $2 * 10
               and (a.expires_at is null or a.expires_at > now())
             order by a.seq desc
             limit $2) n on true
         where f.feed = $1",
    )
    .bind(feed.as_str())
    .bind(ANNOUNCEMENTS_MAX);
    let (floor,) = super::fetch_one(pool, query).await?;
    Ok(floor)
}

/// The columns of [`trim`].
#[derive(FromRow)]
struct TrimmedRow {
    feed: String,
    removed: i64,
    is_cut: bool,
}

/// Removes one step of notifications from these feeds, which are in C order: those stored more than
/// `kept` ago that have expired, or are not above the floor. Cursors that were made after the floor was
/// read count too. A feed that is missing in the result was locked. Fails with
/// [`StoreError::EpochOver`] if `given_in` is not the present epoch, because then a cursor may be lower
/// than the floor.
///
/// Locks the feeds in C order, then the notifications; see `trim_feeds` in `migrations/`. The commit
/// waits for the disk, because sessions receive the new versions of the feeds.
pub async fn trim(
    pool: &Pool,
    given_in: &Epoch,
    feeds: &[(&Feed, Seq)],
    kept: Duration,
    locks: Locks,
) -> Result<Vec<Trimmed>, StoreError> {
    let (names, floors): (Vec<_>, Vec<_>) = feeds
        .iter()
        .map(|(feed, floor)| (feed.as_str(), floor.get()))
        .unzip();
    let query = sqlx::query(
        "select t.feed, t.removed, t.is_cut
         from trim_feeds(case when require_epoch($1) then $2::text[] end, $3::bigint[],
                         now() - make_interval(secs => $4), $5, $6, $7, $8) t",
    )
    .bind(given_in.as_str())
    .bind(names)
    .bind(floors)
    .bind(kept.as_secs_f64())
    .bind(ROWS_PER_STEP_MAX)
    .bind(BYTES_PER_STEP_MAX)
    .bind(MARKS_KEPT_MAX)
    .bind(locks == Locks::Wait);
    let rows: Vec<TrimmedRow> = super::fetch(pool, query).await?;
    let trimmed = |row: TrimmedRow| {
        Some(Trimmed {
            feed: Feed::parse(&row.feed).ok()?,
            removed: row.removed.unsigned_abs(),
            is_cut: row.is_cut,
        })
    };
    Ok(rows.into_iter().filter_map(trimmed).collect())
}
