//! Notifications that no subscriber has acked.

use sqlx::FromRow;

use super::StoreError;
use super::pool::Pool;
use crate::model::feed::Feed;

/// Undelivered notifications of some feeds together.
#[derive(Debug, Clone, Copy, Default, PartialEq, FromRow)]
pub struct Undelivered {
    /// Notifications without an ack.
    pub count: i64,
    /// Age of the oldest of them that has not expired, in seconds by the clock of the database.
    pub oldest_seconds: f64,
    /// Feeds with one that is older than [`LATE`].
    pub late_feeds: i64,
}

/// A merchant who is connected expects an order earlier.
const LATE: &str = "1 minute";
/// Most numbers of a feed that are read to find one that has not expired.
const NUMBERS_READ_MAX: i64 = 1_000;
/// Most cursors of a feed that are read for its highest ack. If a feed has more, its `acked_seq` counts
/// too, which follows the acks usually after about 20 s.
const CURSORS_READ_MAX: i64 = 1_000;

impl Undelivered {
    /// Adds the figures of other feeds.
    pub fn and(self, other: Self) -> Self {
        Self {
            count: self.count + other.count,
            oldest_seconds: self.oldest_seconds.max(other.oldest_seconds),
            late_feeds: self.late_feeds + other.late_feeds,
        }
    }
}

/// Reads the undelivered notifications of these feeds.
///
/// Locks nothing. Uses `feeds_pkey`, and for each feed whose `acked_seq` is behind, `cursors_pkey` and
/// `notifications_pkey`.
pub async fn read(pool: &Pool, feeds: &[Feed]) -> Result<Undelivered, StoreError> {
    // The age is not negative, even if the clock of the database was set back.
    let query = sqlx::query(
        "select coalesce(sum(f.last_seq - h.through), 0)::bigint as count,
                greatest(coalesce(extract(epoch from now() - min(n.created_at)), 0), 0)::double precision as oldest_seconds,
                count(*) filter (where n.created_at < now() - $2::interval) as late_feeds
         from unnest($1::text[]) as w (feed)
         join feeds f on f.feed = w.feed and greatest(f.acked_seq, f.trimmed_seq) < f.last_seq
         join lateral (
             select greatest(f.acked_seq, f.trimmed_seq, max(k.acked_seq)) as through
             from (select c.acked_seq from cursors c where c.feed = f.feed limit $4) k) h on h.through < f.last_seq
         left join lateral (
             select p.created_at from notifications p
             where p.feed = f.feed and p.seq > h.through and p.seq <= h.through + $3
               and (p.expires_at is null or p.expires_at > now())
             order by p.seq
             limit 1) n on true",
    )
    .bind(feeds.iter().map(Feed::as_str).collect::<Vec<_>>())
    .bind(LATE)
    .bind(NUMBERS_READ_MAX)
    .bind(CURSORS_READ_MAX);
    super::fetch_one(pool, query).await
}
