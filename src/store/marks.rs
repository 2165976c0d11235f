//! What people say of notifications: read, handled.

use std::time::Duration;

use sqlx::Row;
use sqlx::postgres::PgRow;
use time::OffsetDateTime;

use super::StoreError;
use super::pools::Pool;
use crate::model::feed::{Epoch, Feed, Subscriber, Version};
use crate::model::mark::{Counts, Mark, Marked, StateFrame, Targets};

/// Most numbers that the "read all up to here" of one call look at together while their feeds are locked; where there are more
/// they go on afterwards, so that ingest never waits long.
const ROWS_PER_WRITE_MAX: i64 = 1_000;
/// How long a write waits for the lock of a feed. An append holds it for some milliseconds.
const LOCK_WAIT: Duration = Duration::from_millis(250);
/// Most changes kept of a feed: who was away for longer fetches history again.
pub const CHANGES_KEPT_MAX: i64 = 1_000;

/// What someone said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MarkRequest {
    /// Of which feed.
    pub feed: Feed,
    /// Who.
    pub subscriber: Subscriber,
    /// What is to be true.
    pub said: Mark,
}

/// What came of it; what one person said may have several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It became true now, for everyone.
    Changed(StateFrame),
    /// It was true before.
    Was {
        /// Of these.
        which: Targets,
        /// Since when, and by whom.
        fact: Marked,
        /// The feed's counts.
        counts: Counts,
    },
    /// The feed does not have these numbers.
    Unknown(Vec<i64>),
    /// It is true as far as was looked; the rest is to be said again.
    More,
    /// Nothing of it is stored: another transaction has locked the feed.
    Locked,
}

/// What a write does about a feed that another transaction has locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Locks {
    /// It leaves that feed out.
    Skip,
    /// It waits for [`LOCK_WAIT`], then fails.
    Wait,
}

/// Makes it so in one transaction, in the order given; gives each outcome with the place of what was said. Saying it again does
/// no harm. Locks the feeds' rows in name order; walks `notifications_pkey`. Fails with [`StoreError::EpochOver`] if `said_in`
/// is not the present epoch, because then the numbers may be those of other notifications.
pub async fn write(
    pool: &Pool,
    said_in: &Epoch,
    answers: &[MarkRequest],
    locks: Locks,
) -> Result<Vec<(usize, Outcome)>, StoreError> {
    let kind = |answer: &MarkRequest| match answer.said {
        Mark::Read(_) => "read",
        Mark::Handled(_) => "handled",
    };
    let through = |answer: &MarkRequest| match &answer.said {
        Mark::Read(Targets::Through(through)) => Some(through.get()),
        _ => None,
    };
    let seqs = |answer: &MarkRequest| match &answer.said {
        Mark::Read(Targets::Seqs(seqs)) | Mark::Handled(seqs) => Some(array_literal(seqs)),
        Mark::Read(Targets::Through(_)) => None,
    };
    let query = sqlx::query(
        "select ordinal, result, version, seqs, through, marked_at, marked_by, unread, unhandled, last_seq
         from mark_notifications($1::text[], $2::text[], $3::bigint[], $4::text[], $5::text[],
                                   case when require_epoch($9) then $6 end, $7, $8)",
    )
    .bind(answers.iter().map(|answer| answer.feed.as_str()).collect::<Vec<_>>())
    .bind(answers.iter().map(kind).collect::<Vec<_>>())
    .bind(answers.iter().map(through).collect::<Vec<_>>())
    .bind(answers.iter().map(seqs).collect::<Vec<_>>())
    .bind(answers.iter().map(|answer| answer.subscriber.as_str()).collect::<Vec<_>>())
    .bind(ROWS_PER_WRITE_MAX)
    .bind(CHANGES_KEPT_MAX)
    .bind(match locks {
        Locks::Skip => None,
        Locks::Wait => i32::try_from(LOCK_WAIT.as_millis()).ok(),
    })
    .bind(said_in.as_str());
    let mut outcomes = Vec::with_capacity(answers.len());
    for row in &super::rows(pool, query).await? {
        let place = usize::try_from(row.try_get::<i64, _>("ordinal")? - 1).unwrap_or(usize::MAX);
        if let Some(answer) = answers.get(place) {
            outcomes.push((place, outcome(answer, row)?));
        }
    }
    Ok(outcomes)
}

fn outcome(answer: &MarkRequest, row: &PgRow) -> Result<Outcome, sqlx::Error> {
    let is_read = matches!(answer.said, Mark::Read(_));
    Ok(match row.try_get("result")? {
        "marked" => {
            let version = super::version(row.try_get("version")?)?;
            Outcome::Changed(StateFrame::new(
                answer.feed.clone(),
                version,
                &which(row)?,
                &fact(is_read, row)?,
                counts(row)?,
            ))
        }
        "already" => Outcome::Was {
            which: which(row)?,
            fact: fact(is_read, row)?,
            counts: counts(row)?,
        },
        "unknown" => Outcome::Unknown(row.try_get("seqs")?),
        "locked" => Outcome::Locked,
        _ => Outcome::More,
    })
}

/// The changes of each feed after its version, in order, no more than `limit` of each. Walks `marks_pkey`.
pub async fn changes_after(
    pool: &Pool,
    places: &[(Feed, Version)],
    limit: i64,
) -> Result<Vec<(usize, StateFrame)>, StoreError> {
    let query = sqlx::query(
        "select r.ordinal, c.version, c.kind, c.seqs, c.through, c.marked_at, c.marked_by, c.unread, c.unhandled, c.last_seq
         from unnest($1::text[], $2::bigint[]) with ordinality as r (feed, after, ordinal)
         cross join lateral (
             select * from marks c where c.feed = r.feed and c.version > r.after order by c.version limit $3) c
         order by r.ordinal, c.version",
    )
    .bind(places.iter().map(|(feed, _)| feed.as_str()).collect::<Vec<_>>())
    .bind(places.iter().map(|(_, after)| after.get()).collect::<Vec<_>>())
    .bind(limit);
    let mut changes = Vec::new();
    for row in &super::rows(pool, query).await? {
        let place = usize::try_from(row.try_get::<i64, _>("ordinal")? - 1).unwrap_or(usize::MAX);
        if let Some((feed, _)) = places.get(place) {
            let version = super::version(row.try_get("version")?)?;
            let is_read = row.try_get::<&str, _>("kind")? == "read";
            let change = StateFrame::new(
                feed.clone(),
                version,
                &which(row)?,
                &fact(is_read, row)?,
                counts(row)?,
            );
            changes.push((place, change));
        }
    }
    Ok(changes)
}

fn which(row: &PgRow) -> Result<Targets, sqlx::Error> {
    Ok(match row.try_get::<Option<i64>, _>("through")? {
        Some(through) => Targets::Through(super::seq(through)?),
        None => Targets::Seqs(
            row.try_get::<Option<Vec<i64>>, _>("seqs")?
                .unwrap_or_default(),
        ),
    })
}

fn fact(is_read: bool, row: &PgRow) -> Result<Marked, sqlx::Error> {
    let at: Option<OffsetDateTime> = row.try_get("marked_at")?;
    Ok(match (is_read, at) {
        (false, Some(at)) => Marked::Handled {
            at,
            by: row.try_get("marked_by")?,
        },
        (_, at) => Marked::Read(at),
    })
}

fn counts(row: &PgRow) -> Result<Counts, sqlx::Error> {
    let (unread, unhandled) = (row.try_get("unread")?, row.try_get("unhandled")?);
    Ok(Counts {
        unread,
        unhandled,
        last: super::seq(row.try_get::<i64, _>("last_seq")?)?,
    })
}

/// As Postgres writes an array; its binary form has no arrays of arrays of different lengths.
fn array_literal(numbers: &[i64]) -> String {
    let numbers: Vec<String> = numbers.iter().map(i64::to_string).collect();
    format!("{{{}}}", numbers.join(","))
}
