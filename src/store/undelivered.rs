//! Notifications that no subscriber has acked.

use sqlx::FromRow;

use super::StoreError;
use super::pool::Pool;
use crate::model::feed::Feed;

/// Undelivered notifications of some feeds together.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
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

/// The columns of a feed with undelivered notifications.
#[derive(FromRow)]
struct FeedColumns {
    ordinal: i64,
    count: i64,
    oldest_seconds: f64,
    is_late: bool,
}

/// Reads the undelivered notifications of these feeds. Returns their figures together, and the feeds
/// without any.
///
/// Locks nothing. Uses `feeds_pkey`, and for each feed whose `acked_seq` is behind, `cursors_pkey` and
/// `notifications_pkey`.
pub async fn read(pool: &Pool, feeds: &[Feed]) -> Result<(Undelivered, Vec<Feed>), StoreError> {
    // The age is not negative, even if the clock of the database was set back.
    let query = sqlx::query(
        "select w.ordinal, f.last_seq - h.through as count,
                greatest(coalesce(extract(epoch from now() - n.created_at), 0), 0)::double precision as oldest_seconds,
                coalesce(n.created_at < now() - $2::interval, false) as is_late
         from unnest($1::text[]) with ordinality as w (feed, ordinal)
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
    let mut all = Undelivered::default();
    let mut is_delivered = vec![true; feeds.len()];
    for row in &super::rows(pool, query).await? {
        let of_feed = FeedColumns::from_row(row)?;
        all = all.and(Undelivered {
            count: of_feed.count,
            oldest_seconds: of_feed.oldest_seconds,
            late_feeds: i64::from(of_feed.is_late),
        });
        if let Some((index, _)) = super::at(feeds, of_feed.ordinal) {
            is_delivered[index] = false;
        }
    }
    let delivered = feeds.iter().zip(is_delivered);
    let delivered = delivered.filter(|(_, is_delivered)| *is_delivered);
    Ok((all, delivered.map(|(feed, _)| feed.clone()).collect()))
}
