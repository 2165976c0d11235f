//! The receipts that publishers ask for: rows that are due, and their end.

use std::time::Duration;

use sqlx::FromRow;
use time::OffsetDateTime;

use super::StoreError;
use super::pool::Pool;
use crate::model::event::Fact;
use crate::model::feed::Feed;
use crate::model::receipt::{Known, Receipt};

/// If a replica dies after it has taken rows, others wait so long.
const LEASE: &str = "10 seconds";
/// Most rows that one statement deletes.
const DELETED_MAX: i64 = 1_000;

/// A taken row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// The notification with its facts.
    pub receipt: Receipt,
    /// The bits of the facts to publish.
    pub unpublished: i32,
    /// Whether it became overdue now, so that sessions of its feed get a `state`.
    pub is_escalated: bool,
}

/// The columns of `take_receipts`.
#[derive(FromRow)]
struct Row {
    feed: String,
    seq: i64,
    source: String,
    event_id: String,
    event_type: String,
    stored_at: OffsetDateTime,
    deliver_by: Option<OffsetDateTime>,
    handle_by: Option<OffsetDateTime>,
    delivered_at: Option<OffsetDateTime>,
    delivered_by: Option<String>,
    delivered_device: Option<String>,
    read_at: Option<OffsetDateTime>,
    read_by: Option<String>,
    handled_at: Option<OffsetDateTime>,
    handled_by: Option<String>,
    settled_at: Option<OffsetDateTime>,
    settled_by: Option<String>,
    expired_at: Option<OffsetDateTime>,
    undelivered_at: Option<OffsetDateTime>,
    overdue_at: Option<OffsetDateTime>,
    facts: i32,
    is_escalated: bool,
}

impl Row {
    fn taken(self) -> Result<Taken, sqlx::Error> {
        let feed = Feed::parse(&self.feed).map_err(|error| sqlx::Error::Decode(error.into()))?;
        // The device of a client without one is empty.
        let device = self.delivered_device.filter(|device| !device.is_empty());
        let facts = [
            (
                Fact::Delivered,
                self.delivered_at,
                self.delivered_by,
                device,
            ),
            (Fact::Read, self.read_at, self.read_by, None),
            (Fact::Handled, self.handled_at, self.handled_by, None),
            (Fact::Settled, self.settled_at, self.settled_by, None),
            (Fact::Expired, self.expired_at, None, None),
            (Fact::Undelivered, self.undelivered_at, None, None),
            (Fact::Overdue, self.overdue_at, None, None),
        ];
        let known = |(fact, at, by, device)| {
            Some(Known {
                fact,
                at: at?,
                by,
                device,
            })
        };
        Ok(Taken {
            receipt: Receipt {
                feed,
                seq: super::seq(self.seq)?,
                source: self.source,
                event_id: self.event_id,
                event_type: self.event_type,
                stored_at: self.stored_at,
                deliver_by: self.deliver_by,
                handle_by: self.handle_by,
                facts: facts.into_iter().filter_map(known).collect(),
            },
            unpublished: self.facts,
            is_escalated: self.is_escalated,
        })
    }
}

/// Takes rows that are due, `limit` at most, and records the deadlines that have passed. No other replica takes them for
/// [`LEASE`].
///
/// Locks feeds in C order, then rows, and leaves out locked ones; uses `receipts_due`, `receipts_pkey` and `feeds_pkey`.
pub async fn take(pool: &Pool, limit: i32) -> Result<Vec<Taken>, StoreError> {
    let query = sqlx::query(
        "select (t.receipt).*, t.facts, t.version is not null as is_escalated
         from take_receipts($1, $2::interval, $3) t",
    )
    .bind(limit)
    .bind(LEASE)
    .bind(super::marks::MARKS_KEPT_MAX);
    let rows: Vec<Row> = super::fetch(pool, query).await?;
    let taken: Result<_, sqlx::Error> = rows.into_iter().map(Row::taken).collect();
    Ok(taken?)
}

/// Ends the lease of taken rows, each with the bits of the facts that are published. A row with facts that are not is due at
/// once.
///
/// Locks the rows in C order; uses `receipts_pkey`.
pub async fn finish(pool: &Pool, taken: &[Taken], published: &[i32]) -> Result<(), StoreError> {
    let feed = |taken: &Taken| taken.receipt.feed.as_str().to_owned();
    let query = sqlx::query("select finish_receipts($1::text[], $2::bigint[], $3::integer[])")
        .bind(taken.iter().map(feed).collect::<Vec<_>>())
        .bind(
            taken
                .iter()
                .map(|taken| taken.receipt.seq.get())
                .collect::<Vec<_>>(),
        )
        .bind(published.to_vec());
    super::execute(pool, query).await
}

/// Returns the time since the row that is due for the longest time became due; zero if none is. Locks nothing; uses
/// `receipts_due`.
pub async fn lateness(pool: &Pool) -> Result<Duration, StoreError> {
    let query = sqlx::query(
        "select extract(epoch from greatest(now() - min(due_at), interval '0'))::float8 as seconds
         from receipts where due_at is not null",
    );
    let (seconds,): (Option<f64>,) = super::fetch_one(pool, query).await?;
    Ok(Duration::from_secs_f64(seconds.unwrap_or_default()))
}

/// Deletes one step of the rows whose notification retention has removed, if nothing is due; returns how many.
///
/// Locks the rows; reads all of `receipts` and uses `feeds_pkey`.
pub async fn delete_old(pool: &Pool) -> Result<u64, StoreError> {
    let query = sqlx::query(
        "delete from receipts r using (
             select o.feed, o.seq from receipts o join feeds f on f.feed = o.feed and o.seq <= f.trimmed_seq
             where o.due_at is null limit $1 for update of o skip locked) g
         where r.feed = g.feed and r.seq = g.seq
         returning r.feed",
    );
    Ok(super::rows(pool, query.bind(DELETED_MAX)).await?.len() as u64)
}
