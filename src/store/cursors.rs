//! Cursors: the highest acked number of each subscriber and device in a feed.

use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::{FromRow, Postgres};

use super::pool::Pool;
use super::{StoreError, epoch};
use crate::model::feed::{Device, Epoch, Feed, Seq, Subscriber, Version};

/// Most cursors of one subscriber in one feed: more than a person has devices, and a bound on the
/// rows that a client can create with invented names.
const DEVICES_PER_SUBSCRIBER_MAX: i32 = 64;
/// Most evicted devices of one subscriber and feed whose place is kept. Fewer of them reconnect at
/// once on all replicas together, and such a row is small.
const EVICTED_PER_SUBSCRIBER_MAX: i32 = 256;
/// Most announcements of the broadcast feed that the first session of a subscriber receives: as many
/// as a person reads.
pub(super) const ANNOUNCEMENTS_MAX: i32 = 100;
/// Shortest interval between two writes of `seen_at` of a device: eviction needs no better precision.
const SEEN_EVERY: &str = "1 hour";

/// The key of a cursor.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CursorKey {
    /// The feed that is read.
    pub feed: Feed,
    /// Its reader.
    pub subscriber: Subscriber,
    /// The device of the reader.
    pub device: Device,
}

/// A cursor and the counters of its feed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeedStanding {
    /// Highest number that this device has acked.
    pub acked: Seq,
    /// Number of the newest notification of the feed.
    pub last: Seq,
    /// Notifications without a read mark.
    pub unread: i64,
    /// Notifications without a handle mark.
    pub unhandled: i64,
    /// Number of the newest mark of the feed, or an older one.
    pub version: Version,
    /// The epoch of these numbers, or an older one if it changed meanwhile.
    pub epoch: Epoch,
}

impl FeedStanding {
    /// Returns whether the database has lost notifications of this feed. The feed of a canary is
    /// deleted on purpose.
    pub fn is_set_back(&self, feed: &Feed) -> bool {
        self.acked > self.last && !feed.is_of_a_canary()
    }
}

/// A cursor as [`read`] found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Highest acked number; `None` if this key has no cursor.
    pub acked: Option<Seq>,
    /// The counters of the feed. Without a cursor, `acked` is 0 and the caller replaces it.
    pub standing: FeedStanding,
    /// The caller calls [`note_seen`].
    pub is_stale: bool,
}

/// The columns of [`read`].
#[derive(FromRow)]
struct FoundRow {
    acked_seq: Option<i64>,
    last_seq: i64,
    unread: i64,
    unhandled: i64,
    version: i64,
    epoch: String,
    is_stale: bool,
}

impl FoundRow {
    fn found(self) -> Result<Found, sqlx::Error> {
        let acked = self.acked_seq.map(super::seq).transpose()?;
        let standing = FeedStanding {
            acked: acked.unwrap_or_default(),
            last: super::seq(self.last_seq)?,
            unread: self.unread,
            unhandled: self.unhandled,
            version: super::version(self.version)?,
            epoch: epoch::parse(&self.epoch)?,
        };
        Ok(Found {
            acked,
            standing,
            is_stale: self.is_stale,
        })
    }
}

/// Reads the place of each key, in the order given: one statement for many sessions.
///
/// Locks nothing; uses `cursors_pkey` and `feeds_pkey`.
pub async fn read(pool: &Pool, keys: &[CursorKey]) -> Result<Vec<Found>, StoreError> {
    let query = sqlx::query(
        "select c.acked_seq, coalesce(f.last_seq, 0) as last_seq, coalesce(f.unread, 0) as unread,
                coalesce(f.unhandled, 0) as unhandled, coalesce(f.version, 0) as version,
                (select e.epoch from epochs e) as epoch,
                coalesce(greatest(c.updated_at, c.seen_at) < now() - $4::interval, false) as is_stale
         from unnest($1::text[], $2::text[], $3::text[]) with ordinality as w (feed, subscriber, device, ordinal)
         left join cursors c on c.feed = w.feed and c.subscriber = w.subscriber and c.device = w.device
         left join feeds f on f.feed = w.feed
         order by w.ordinal",
    );
    let rows: Vec<FoundRow> = super::fetch(pool, bind_keys(query, keys).bind(SEEN_EVERY)).await?;
    let found: Result<_, sqlx::Error> = rows.into_iter().map(FoundRow::found).collect();
    Ok(found?)
}

/// Cursors that [`make`] made.
#[derive(Debug, PartialEq, Eq)]
pub struct Made {
    /// The place of each key, in the order given.
    pub places: Vec<Seq>,
    /// Number of other devices that were evicted for them.
    pub evicted: u64,
}

/// Makes the missing cursors of these keys. The flag of a key is set if everyone reads its feed.
/// `make_cursors` in `migrations/` documents where a cursor starts.
///
/// Locks the new and the evicted cursors, and waits 250 ms at most for each; uses `cursors_pkey`,
/// `evicted_cursors_pkey` and `feeds_pkey`.
pub async fn make(pool: &Pool, keys: &[(CursorKey, bool)]) -> Result<Made, StoreError> {
    let (named, shared): (Vec<_>, Vec<_>) = keys.iter().map(|(key, shared)| (key, *shared)).unzip();
    let query = sqlx::query(
        "select acked_seq, evicted from make_cursors($1::text[], $2::text[], $3::text[], $4::boolean[], $5, $6, $7)
         order by ordinal",
    );
    let query = bind_keys(query, named)
        .bind(shared)
        .bind(DEVICES_PER_SUBSCRIBER_MAX)
        .bind(EVICTED_PER_SUBSCRIBER_MAX)
        .bind(ANNOUNCEMENTS_MAX);
    let rows: Vec<(i64, i64)> = super::fetch(pool, query).await?;
    if rows.len() != keys.len() {
        // One subscriber has more new devices than places are kept: the next try makes them again.
        return Err(StoreError::Away(sqlx::Error::RowNotFound));
    }
    let evicted = rows.first().map_or(0, |(_, evicted)| *evicted);
    let places: Result<_, sqlx::Error> = rows.iter().map(|(acked, _)| super::seq(*acked)).collect();
    Ok(Made {
        places: places?,
        evicted: evicted.unsigned_abs(),
    })
}

/// Records that these devices are connected, at most once in [`SEEN_EVERY`] for each.
///
/// Locks the rows that it updates, and skips locked ones, because an ack updates the same; uses
/// `cursors_pkey`.
pub async fn note_seen(pool: &Pool, keys: &[CursorKey]) -> Result<(), StoreError> {
    let query = sqlx::query(
        "with stale as (
             select c.feed, c.subscriber, c.device
             from unnest($1::text[], $2::text[], $3::text[]) as w (feed, subscriber, device)
             join cursors c on c.feed = w.feed and c.subscriber = w.subscriber and c.device = w.device
             where greatest(c.updated_at, c.seen_at) < now() - $4::interval
             for update of c skip locked)
         update cursors c set seen_at = now()
         from stale s
         where c.feed = s.feed and c.subscriber = s.subscriber and c.device = s.device",
    );
    super::execute(pool, bind_keys(query, keys).bind(SEEN_EVERY)).await
}

/// The result of [`advance`].
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct Advanced {
    /// The acks are of the present epoch, so they were stored.
    pub is_stored: bool,
    /// An ack was above the last number of its feed, so the database has lost that notification. It
    /// was not stored. The feeds of canaries do not count, because they are deleted on purpose.
    pub is_beyond: bool,
    /// The flushed position of the log, which is beyond all that was acked.
    pub flushed: Option<i64>,
}

/// Stores acks that clients sent in epoch `given_in`, each key at most once. A cursor never moves
/// back.
///
/// Stores nothing in another epoch, or if the fingerprint is not that of the epoch, as after
/// `pg_restore --clean` on a live connection, or after a fail-over behind a pooler. A cursor that was
/// deleted meanwhile is made again.
///
/// Locks the cursors in C order, because an upsert locks its rows in the order given, and waits
/// 250 ms at most for each, then the receipts of notifications that are delivered now; uses `cursors_pkey`, `feeds_pkey`
/// and `receipts_undelivered`. The commit does not wait for the disk, because a lost ack only causes a replay. Both settings hold for this transaction only, also
/// behind a pooler.
pub async fn advance(
    pool: &Pool,
    given_in: &Epoch,
    acks: &[(CursorKey, Seq)],
) -> Result<Advanced, StoreError> {
    let (keys, seqs): (Vec<_>, Vec<_>) = acks.iter().map(|(key, seq)| (key, seq.get())).unzip();
    let query = sqlx::query(
        // `present` takes a value of the settings, so that Postgres applies them before it locks.
        "with settings as materialized (
             select set_config('synchronous_commit', 'off', true) as commits, set_config('lock_timeout', '250ms', true) as waits
         ), present as materialized (
             select from settings s where s.waits is not null and is_present_epoch($5)
         ), acks as materialized (
             select a.feed, a.subscriber, a.device, a.seq, f.last_seq
             from present p
             cross join unnest($1::text[], $2::text[], $3::text[], $4::bigint[]) as a (feed, subscriber, device, seq)
             join feeds f on f.feed = a.feed
         ), moved as (
             insert into cursors as c (feed, subscriber, device, acked_seq)
             select a.feed, a.subscriber, a.device, a.seq from acks a
             where a.seq <= a.last_seq
             order by a.feed collate \"C\", a.subscriber collate \"C\", a.device collate \"C\"
             on conflict (feed, subscriber, device) do update
                 set acked_seq = excluded.acked_seq, updated_at = now()
                 where c.acked_seq < excluded.acked_seq
         ), delivered as (
             update receipts r
             set delivered_at = now(), delivered_by = a.subscriber, delivered_device = a.device, due_at = now()
             from acks a
             where a.seq <= a.last_seq and r.feed = a.feed and r.seq <= a.seq and r.delivered_at is null
         )
         select exists (select from present) as is_stored,
                exists (select from acks a where a.seq > a.last_seq and a.feed not like 'shopbell-canary/%') as is_beyond,
                flushed_position() as flushed",
    );
    let query = bind_keys(query, keys).bind(seqs).bind(given_in.as_str());
    super::fetch_one(pool, query).await
}

/// Raises the highest acks of feeds to acks that were stored in epoch `given_in`. Does nothing in
/// another epoch, or with another fingerprint. Returns the feeds whose rows were locked, so that the
/// caller raises them later.
///
/// Locks the feeds, and leaves out locked ones; uses `feeds_pkey`. The commit does not wait for the
/// disk, because the cursors have the same acks.
pub async fn raise(
    pool: &Pool,
    given_in: &Epoch,
    highest: &[(Feed, Seq)],
) -> Result<Vec<Feed>, StoreError> {
    let (feeds, seqs): (Vec<_>, Vec<_>) = highest
        .iter()
        .map(|(feed, seq)| (feed.as_str(), seq.get()))
        .unzip();
    let query = sqlx::query(
        "with settings as materialized (select set_config('synchronous_commit', 'off', true) as commits),
         lower as materialized (
             select f.feed, least(h.seq, f.last_seq) as acked_seq
             from settings s
             cross join unnest($1::text[], $2::bigint[]) as h (feed, seq)
             join feeds f on f.feed = h.feed and f.acked_seq < least(h.seq, f.last_seq)
             where s.commits is not null and is_present_epoch($3)),
         free as materialized (
             select f.feed, l.acked_seq
             from lower l join feeds f on f.feed = l.feed and f.acked_seq < l.acked_seq
             order by f.feed
             for no key update of f skip locked),
         raised as (update feeds f set acked_seq = l.acked_seq from free l where f.feed = l.feed)
         select l.feed from lower l where not exists (select from free r where r.feed = l.feed)",
    );
    let query = query.bind(feeds).bind(seqs).bind(given_in.as_str());
    let left: Vec<(String,)> = super::fetch(pool, query).await?;
    Ok(left
        .iter()
        .filter_map(|(feed,)| Feed::parse(feed).ok())
        .collect())
}

/// Binds the keys as `$1` to `$3`.
fn bind_keys<'q>(
    query: Query<'q, Postgres, PgArguments>,
    keys: impl IntoIterator<Item = &'q CursorKey>,
) -> Query<'q, Postgres, PgArguments> {
    let (mut feeds, mut subscribers, mut devices) = (Vec::new(), Vec::new(), Vec::new());
    for key in keys {
        feeds.push(key.feed.as_str());
        subscribers.push(key.subscriber.as_str());
        devices.push(key.device.as_str());
    }
    query.bind(feeds).bind(subscribers).bind(devices)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_above_the_last_number_is_set_back_except_a_canarys() {
        let standing = |acked, last| FeedStanding {
            acked: Seq::new(acked).unwrap(),
            last: Seq::new(last).unwrap(),
            unread: 0,
            unhandled: 0,
            version: Version::default(),
            epoch: Epoch::parse("e1").unwrap(),
        };
        let (feed, canary) = (
            Feed::parse("m").unwrap(),
            Feed::parse("shopbell-canary/1").unwrap(),
        );
        assert!(standing(2, 1).is_set_back(&feed));
        assert!(!standing(1, 1).is_set_back(&feed));
        assert!(!standing(2, 1).is_set_back(&canary));
    }
}
