//! Marks: a person's read or handle of notifications.

use std::time::Duration;

use sqlx::FromRow;
use time::OffsetDateTime;

use super::StoreError;
use super::pool::Pool;
use crate::model::feed::{Epoch, Feed, Subscriber, Version};
use crate::model::mark::{Counts, Mark, Marked, StateFrame, Targets};

/// Most numbers that one write reads up to a `through`. Ingest waits for the feeds meanwhile, so the
/// rest of the mark is written later.
const ROWS_PER_WRITE_MAX: i64 = 1_000;
/// Longest wait of a write for the lock of a feed. An append holds it for milliseconds.
const LOCK_WAIT: Duration = Duration::from_millis(250);
/// Most marks of a feed that are kept. A device that missed more fetches the history again.
pub const MARKS_KEPT_MAX: i64 = 1_000;

/// A mark to store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MarkRequest {
    /// The feed of the notifications.
    pub feed: Feed,
    /// The subscriber that marks them.
    pub subscriber: Subscriber,
    /// The mark.
    pub mark: Mark,
}

/// A result of a request, which may have several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MarkResult {
    /// Marked now; the frame is for all sessions of the feed.
    Marked(StateFrame),
    /// Marked before.
    Already {
        /// The notifications.
        targets: Targets,
        /// Time and person.
        marked: Marked,
        /// The counts of the feed.
        counts: Counts,
    },
    /// The feed does not have these numbers.
    Unknown(Vec<i64>),
    /// Only the first part is stored: the request is to be repeated.
    More,
    /// Nothing is stored, because another transaction has locked the feed.
    Locked,
}

/// How a write treats a feed that another transaction has locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Locks {
    /// It leaves out that feed.
    Skip,
    /// It waits for [`LOCK_WAIT`], then fails.
    Wait,
}

/// `marks.kind`.
#[derive(Clone, Copy)]
enum Kind {
    Read,
    Handled,
    Overdue,
}

/// The columns of a mark.
#[derive(FromRow)]
struct MarkColumns {
    seqs: Option<Vec<i64>>,
    through: Option<i64>,
    marked_at: Option<OffsetDateTime>,
    marked_by: Option<String>,
    unread: i64,
    unhandled: i64,
    last_seq: i64,
}

impl MarkColumns {
    fn targets(&mut self) -> Result<Targets, sqlx::Error> {
        Ok(match self.through {
            Some(through) => Targets::Through(super::seq(through)?),
            None => Targets::Seqs(self.seqs.take().unwrap_or_default()),
        })
    }

    fn marked(&mut self, kind: Kind) -> Marked {
        match (kind, self.marked_at) {
            (Kind::Handled, Some(at)) => Marked::Handled {
                at,
                by: self.marked_by.take(),
            },
            (Kind::Overdue, Some(at)) => Marked::Overdue(at),
            (_, at) => Marked::Read(at),
        }
    }

    fn counts(&self) -> Result<Counts, sqlx::Error> {
        Ok(Counts {
            unread: self.unread,
            unhandled: self.unhandled,
            last: super::seq(self.last_seq)?,
        })
    }

    fn state(mut self, feed: Feed, version: i64, kind: Kind) -> Result<StateFrame, sqlx::Error> {
        let version = super::version(version)?;
        let (targets, marked) = (self.targets()?, self.marked(kind));
        Ok(StateFrame::new(
            feed,
            version,
            &targets,
            &marked,
            self.counts()?,
        ))
    }
}

/// A row of `mark_notifications`.
#[derive(FromRow)]
struct ResultRow {
    ordinal: i64,
    result: String,
    version: Option<i64>,
    #[sqlx(flatten)]
    columns: MarkColumns,
}

impl ResultRow {
    fn stored(mut self, request: &MarkRequest) -> Result<MarkResult, sqlx::Error> {
        let kind = match request.mark {
            Mark::Read(_) => Kind::Read,
            Mark::Handled(_) => Kind::Handled,
        };
        Ok(match self.result.as_str() {
            "marked" => {
                let version = self.version.unwrap_or_default();
                let feed = request.feed.clone();
                MarkResult::Marked(self.columns.state(feed, version, kind)?)
            }
            "already" => MarkResult::Already {
                targets: self.columns.targets()?,
                marked: self.columns.marked(kind),
                counts: self.columns.counts()?,
            },
            "unknown" => MarkResult::Unknown(self.columns.seqs.unwrap_or_default()),
            "locked" => MarkResult::Locked,
            _ => MarkResult::More,
        })
    }
}

/// Stores marks in one transaction, in the order given; returns each result with the index of its
/// request. A repeated mark has no effect.
///
/// Locks the feeds in C order, then the notifications; uses `feeds_pkey`, `notifications_pkey` and
/// `marks_pkey`. Fails with [`StoreError::EpochOver`] if `given_in` is not the present epoch, because
/// then the numbers may be those of other notifications.
pub async fn write(
    pool: &Pool,
    given_in: &Epoch,
    requests: &[MarkRequest],
    locks: Locks,
) -> Result<Vec<(usize, MarkResult)>, StoreError> {
    let kind = |request: &MarkRequest| match request.mark {
        Mark::Read(_) => "read",
        Mark::Handled(_) => "handled",
    };
    let through = |request: &MarkRequest| match &request.mark {
        Mark::Read(Targets::Through(through)) => Some(through.get()),
        _ => None,
    };
    let seqs = |request: &MarkRequest| match &request.mark {
        Mark::Read(Targets::Seqs(seqs)) | Mark::Handled(seqs) => Some(array_literal(seqs)),
        Mark::Read(Targets::Through(_)) => None,
    };
    let lock_wait = match locks {
        Locks::Skip => None,
        Locks::Wait => i32::try_from(LOCK_WAIT.as_millis()).ok(),
    };
    let query = sqlx::query(
        "select ordinal, result, version, seqs, through, marked_at, marked_by, unread, unhandled, last_seq
         from mark_notifications($1::text[], $2::text[], $3::bigint[], $4::text[], $5::text[],
                                 case when require_epoch($9) then $6 end, $7, $8)",
    )
    .bind(column(requests, |request| request.feed.as_str()))
    .bind(column(requests, kind))
    .bind(column(requests, through))
    .bind(column(requests, seqs))
    .bind(column(requests, |request| request.subscriber.as_str()))
    .bind(ROWS_PER_WRITE_MAX)
    .bind(MARKS_KEPT_MAX)
    .bind(lock_wait)
    .bind(given_in.as_str());
    let mut results = Vec::with_capacity(requests.len());
    for row in super::fetch::<ResultRow>(pool, query).await? {
        if let Some((index, request)) = super::at(requests, row.ordinal) {
            results.push((index, row.stored(request)?));
        }
    }
    Ok(results)
}

/// A row of [`read_after`].
#[derive(FromRow)]
struct StoredRow {
    ordinal: i64,
    version: i64,
    kind: String,
    #[sqlx(flatten)]
    columns: MarkColumns,
}

/// Reads the marks of each feed after its version, in order, `limit` of each feed at most; returns
/// each with the index of its feed.
///
/// Locks nothing; uses `marks_pkey`.
pub async fn read_after(
    pool: &Pool,
    places: &[(Feed, Version)],
    limit: i64,
) -> Result<Vec<(usize, StateFrame)>, StoreError> {
    let query = sqlx::query(
        // A mark of no notification is the removal of some, which has counts and no time.
        "select r.ordinal, m.version, m.kind, m.seqs, m.through, case when m.seqs = '{}' then null else m.marked_at end as marked_at,
                m.marked_by, m.unread, m.unhandled, m.last_seq
         from unnest($1::text[], $2::bigint[]) with ordinality as r (feed, after, ordinal)
         cross join lateral (
             select * from marks m where m.feed = r.feed and m.version > r.after order by m.version limit $3) m
         order by r.ordinal, m.version",
    )
    .bind(column(places, |(feed, _)| feed.as_str()))
    .bind(column(places, |(_, after)| after.get()))
    .bind(limit);
    let mut states = Vec::new();
    for row in super::fetch::<StoredRow>(pool, query).await? {
        if let Some((index, (feed, _))) = super::at(places, row.ordinal) {
            let kind = match row.kind.as_str() {
                "handled" => Kind::Handled,
                "overdue" => Kind::Overdue,
                _ => Kind::Read,
            };
            let state = row.columns.state(feed.clone(), row.version, kind)?;
            states.push((index, state));
        }
    }
    Ok(states)
}

fn column<'a, T, U>(items: &'a [T], of: impl Fn(&'a T) -> U) -> Vec<U> {
    items.iter().map(of).collect()
}

/// An array in the text form of Postgres, because its binary form has no arrays of different
/// lengths in an array.
fn array_literal(numbers: &[i64]) -> String {
    let numbers: Vec<String> = numbers.iter().map(i64::to_string).collect();
    format!("{{{}}}", numbers.join(","))
}
