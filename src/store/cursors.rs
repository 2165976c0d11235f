//! Where subscribers stand.

use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{Postgres, Row};

use super::pools::Pool;
use super::{StoreError, epoch};
use crate::model::feed::{Device, Epoch, Feed, Seq, Subscriber, Version};

/// How many devices of one subscriber may have a cursor in one feed: far above what a person owns, and a bound on what
/// a client can make us store by inventing names.
const DEVICES_PER_SUBSCRIBER_MAX: i32 = 64;
/// How many evicted devices of one subscriber and feed have their place remembered: a subscriber that reconnects all of its
/// devices at once has no more than this on all replicas together, and a place is a small row.
const EVICTED_PER_SUBSCRIBER_MAX: i32 = 256;
/// Most announcements of the broadcast feed that a subscriber's first session is sent: as many as a person may look through.
const ANNOUNCEMENTS_MAX: i32 = 100;
/// How often a device that connects again and again is noted as seen: each note is a write, and eviction looks back further.
const SEEN_EVERY: &str = "1 hour";

/// Whose place in what.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CursorKey {
    /// The feed that is read.
    pub feed: Feed,
    /// Who reads it.
    pub subscriber: Subscriber,
    /// With which device.
    pub device: Device,
}

/// Where a subscriber stands in a feed, and what the feed holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The highest number acknowledged with this device.
    pub acked: Seq,
    /// The newest number of the feed.
    pub last: Seq,
    /// Notifications that nobody has read.
    pub unread: i64,
    /// Notifications that nobody has handled.
    pub unhandled: i64,
    /// The feed's newest change, or an older one where they came meanwhile.
    pub version: Version,
    /// The epoch of all of it, or an older one if it changed meanwhile.
    pub epoch: Epoch,
}

impl Standing {
    /// Whether the database has lost notifications of this feed. A canary's feed is forgotten on purpose.
    pub fn is_set_back(&self, feed: &Feed) -> bool {
        self.acked > self.last && !feed.is_of_a_canary()
    }
}

/// A cursor that exists, as [`read`] found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Where it stands; `None` if there is no cursor of that key. Its other numbers are those of the feed.
    pub acked: Option<Seq>,
    /// What the feed holds, and a place that the caller replaces.
    pub standing: Standing,
    /// It is worth a call of [`note_seen`].
    pub is_stale: bool,
}

/// Reads where each key stands, in the order given. One statement for many sessions, which takes no lock and writes nothing.
/// Walks the primary keys of `cursors` and `feeds`.
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
    let rows = super::rows(pool, bind_keys(query, keys).bind(SEEN_EVERY)).await?;
    let found = |row: &PgRow| {
        let acked = row
            .try_get::<Option<i64>, _>("acked_seq")?
            .map(super::seq)
            .transpose()?;
        let standing = Standing {
            acked: acked.unwrap_or_default(),
            last: super::seq(row.try_get("last_seq")?)?,
            unread: row.try_get("unread")?,
            unhandled: row.try_get("unhandled")?,
            version: super::version(row.try_get("version")?)?,
            epoch: epoch::parse(row.try_get("epoch")?)?,
        };
        Ok(Found {
            acked,
            standing,
            is_stale: row.try_get("is_stale")?,
        })
    };
    rows.iter()
        .map(found)
        .collect::<Result<_, sqlx::Error>>()
        .map_err(StoreError::from)
}

/// Cursors that [`make`] made.
#[derive(Debug, PartialEq, Eq)]
pub struct Made {
    /// Where each key stands, in the order given.
    pub places: Vec<Seq>,
    /// How many other devices were evicted for them.
    pub evicted: u64,
}

/// Makes the cursors that are missing; see `make_cursors` in `migrations/` for the place where each starts. Waits a quarter of a
/// second at most for a row that another transaction holds.
pub async fn make(pool: &Pool, keys: &[(CursorKey, bool)]) -> Result<Made, StoreError> {
    let query = sqlx::query(
        "select acked_seq, evicted from make_cursors($1::text[], $2::text[], $3::text[], $4::boolean[], $5, $6, $7)
         order by ordinal",
    )
    .bind(keys.iter().map(|(key, _)| key.feed.as_str()).collect::<Vec<_>>())
    .bind(keys.iter().map(|(key, _)| key.subscriber.as_str()).collect::<Vec<_>>())
    .bind(keys.iter().map(|(key, _)| key.device.as_str()).collect::<Vec<_>>())
    .bind(keys.iter().map(|(_, shared)| *shared).collect::<Vec<_>>())
    .bind(DEVICES_PER_SUBSCRIBER_MAX)
    .bind(EVICTED_PER_SUBSCRIBER_MAX)
    .bind(ANNOUNCEMENTS_MAX);
    let rows = super::rows(pool, query).await?;
    let place = |row: &PgRow| super::seq(row.try_get("acked_seq")?);
    let places = rows
        .iter()
        .map(place)
        .collect::<Result<Vec<_>, sqlx::Error>>()?;
    if places.len() != keys.len() {
        // More new devices of one subscriber than are remembered: the next try makes them again.
        return Err(StoreError::Away(sqlx::Error::RowNotFound));
    }
    let evicted = rows
        .first()
        .map(|row| row.try_get::<i64, _>("evicted"))
        .transpose()?
        .unwrap_or_default();
    Ok(Made {
        places,
        evicted: evicted.unsigned_abs(),
    })
}

/// Notes that these devices are connected, at most once in [`SEEN_EVERY`] each. Skips rows that are locked: an ack that moves
/// such a row notes the same.
pub async fn note_seen(pool: &Pool, keys: &[CursorKey]) -> Result<(), StoreError> {
    let query = sqlx::query(
        "with unnoted as (
             select c.feed, c.subscriber, c.device
             from unnest($1::text[], $2::text[], $3::text[]) as w (feed, subscriber, device)
             join cursors c on c.feed = w.feed and c.subscriber = w.subscriber and c.device = w.device
             where greatest(c.updated_at, c.seen_at) < now() - $4::interval
             for update of c skip locked)
         update cursors c set seen_at = now()
         from unnoted u
         where c.feed = u.feed and c.subscriber = u.subscriber and c.device = u.device",
    );
    super::rows(pool, bind_keys(query, keys).bind(SEEN_EVERY))
        .await
        .map(drop)
}

fn bind_keys<'q>(
    query: Query<'q, Postgres, PgArguments>,
    keys: &'q [CursorKey],
) -> Query<'q, Postgres, PgArguments> {
    query
        .bind(keys.iter().map(|key| key.feed.as_str()).collect::<Vec<_>>())
        .bind(
            keys.iter()
                .map(|key| key.subscriber.as_str())
                .collect::<Vec<_>>(),
        )
        .bind(
            keys.iter()
                .map(|key| key.device.as_str())
                .collect::<Vec<_>>(),
        )
}

/// Moves cursors forward, never back, if `given_in` is the present epoch. Each key at most once. Locks the feeds' rows in name
/// order, and waits a quarter of a second at most for each. Returns the present epoch, and how far its log is flushed. The commit
/// does not wait for the disk, because a lost ack only means a replay. Both settings hold for this transaction only, also behind
/// a pooler.
pub async fn advance(
    pool: &Pool,
    given_in: &Epoch,
    acks: &[(CursorKey, Seq)],
) -> Result<(Epoch, Option<i64>), StoreError> {
    let query = sqlx::query(
        // The function takes a value of the settings, so that Postgres sets them first.
        "select a.epoch, a.flushed
         from (select set_config('synchronous_commit', 'off', true) as commits, set_config('lock_timeout', '250ms', true) as waits) s,
              lateral advance_cursors(case when s.waits is not null then $1::text end, $2::text[], $3::text[], $4::text[], $5::bigint[]) a",
    )
    .bind(given_in.as_str())
    .bind(acks.iter().map(|(key, _)| key.feed.as_str()).collect::<Vec<_>>())
    .bind(acks.iter().map(|(key, _)| key.subscriber.as_str()).collect::<Vec<_>>())
    .bind(acks.iter().map(|(key, _)| key.device.as_str()).collect::<Vec<_>>())
    .bind(acks.iter().map(|(_, seq)| seq.get()).collect::<Vec<_>>());
    let rows = super::rows(pool, query).await?;
    let row = rows.first().ok_or(sqlx::Error::RowNotFound)?;
    Ok((
        epoch::parse(row.try_get("epoch")?)?,
        row.try_get("flushed")?,
    ))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_above_the_last_number_is_set_back_except_a_canarys() {
        let standing = |acked, last| Standing {
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
