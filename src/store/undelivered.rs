//! What has not reached anybody yet.

use sqlx::Row;

use super::StoreError;
use super::pools::Pool;
use crate::model::feed::Feed;

/// Of some feeds together.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Undelivered {
    /// Notifications that nobody has acknowledged.
    pub count: i64,
    /// How long ago the oldest of them was stored, in seconds, by the database's clock; of those that have not expired.
    pub oldest_seconds: f64,
    /// Feeds of which one was stored longer ago than [`LATE`].
    pub late_feeds: i64,
}

/// A merchant who is there and has not got an order after so long will ask.
const LATE: &str = "1 minute";

impl Undelivered {
    /// Of these feeds and those.
    pub fn and(self, other: Self) -> Self {
        Self {
            count: self.count + other.count,
            oldest_seconds: self.oldest_seconds.max(other.oldest_seconds),
            late_feeds: self.late_feeds + other.late_feeds,
        }
    }
}

/// Most numbers of a feed that are looked at for one that has not expired.
const LOOKED_AT_MAX: i64 = 1_000;

/// Looks at these feeds. Walks `feeds_pkey`, and `notifications_pkey` for each of them that is not acknowledged to its end.
pub async fn look(pool: &Pool, feeds: &[Feed]) -> Result<Undelivered, StoreError> {
    let query = sqlx::query(
        "select coalesce(sum(f.last_seq - f.acked_seq), 0)::bigint as count,
                coalesce(extract(epoch from now() - min(n.created_at)), 0)::double precision as oldest_seconds,
                count(*) filter (where n.created_at < now() - $2::interval) as late_feeds
         from unnest($1::text[]) as w (feed)
         join feeds f on f.feed = w.feed and f.acked_seq < f.last_seq
         left join lateral (
             select p.created_at from notifications p
             where p.feed = f.feed and p.seq > f.acked_seq and p.seq <= f.acked_seq + $3
               and (p.expires_at is null or p.expires_at > now())
             order by p.seq
             limit 1) n on true",
    )
    .bind(feeds.iter().map(Feed::as_str).collect::<Vec<_>>())
    .bind(LATE)
    .bind(LOOKED_AT_MAX);
    let rows = super::rows(pool, query).await?;
    let Some(row) = rows.first() else {
        return Ok(Undelivered::default());
    };
    // A clock that was set back makes nothing younger than new.
    let oldest_seconds = row.try_get::<f64, _>("oldest_seconds")?.max(0.0);
    Ok(Undelivered {
        count: row.try_get("count")?,
        oldest_seconds,
        late_feeds: row.try_get("late_feeds")?,
    })
}
