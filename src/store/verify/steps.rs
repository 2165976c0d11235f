//! A step: one statement with a bounded time, in a read-only transaction. And the problems of steps,
//! in bounded memory.

use std::collections::BTreeMap;
use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, FromRow, Postgres, Transaction};
use tokio::time::timeout;

use super::Problem;
use crate::store::StoreError;

/// Longest time of a step. A half-open connection never answers. Longer than the timeout in
/// [`SETTINGS`].
const STEP_TIMEOUT: Duration = Duration::from_secs(75);
/// Most problems of one check that are listed for a step. All are counted.
pub(super) const LISTED_MAX: i64 = 100;
/// The character after which the names begin that follow a feed at once in C order.
const NEXT: char = '\u{1}';

/// Bounds each statement, unless the server has a lower bound, and walks indexes in their order. The
/// statistics of a restored database may be those of an empty one.
const SETTINGS: &str = "
select set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true),
       case when current_setting('statement_timeout')::interval not between '1us' and '60s'
            then set_config('statement_timeout', '60s', true) end";

/// Begins a read-only transaction with one snapshot.
pub(super) async fn begin(
    connection: &mut PgConnection,
) -> Result<Transaction<'_, Postgres>, StoreError> {
    let begin = "begin isolation level repeatable read, read only";
    let mut transaction = step(connection.begin_with(begin)).await?;
    let settings = sqlx::query(SETTINGS).persistent(false);
    step(settings.execute(&mut *transaction)).await?;
    Ok(transaction)
}

/// Bounds a statement.
pub(super) async fn step<T>(
    work: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, StoreError> {
    match timeout(STEP_TIMEOUT, work).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(StoreError::Silent(STEP_TIMEOUT)),
    }
}

/// The feeds from one name to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Names {
    pub(super) first: String,
    /// The name before which the range ends; `None` if it has all names from the first.
    pub(super) before: Option<String>,
}

impl Names {
    pub(super) fn all() -> Self {
        Self {
            first: String::new(),
            before: None,
        }
    }

    /// One feed.
    pub(super) fn of(feed: &str) -> Self {
        Self {
            first: feed.to_owned(),
            before: Some(Self::after(feed)),
        }
    }

    /// The lowest name that a feed after this one can have.
    pub(super) fn after(feed: &str) -> String {
        format!("{feed}{NEXT}")
    }

    pub(super) fn contain(&self, feed: &str) -> bool {
        *self.first <= *feed && self.before.as_deref().is_none_or(|before| feed < before)
    }
}

/// Problems: some of each check, and the number of all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Problems {
    pub(super) listed: Vec<Problem>,
    pub(super) counts: BTreeMap<String, u64>,
}

/// A row of a statement that lists [`LISTED_MAX`] problems and counts all.
#[derive(Debug, FromRow)]
pub(super) struct Listed {
    #[sqlx(flatten)]
    problem: Problem,
    /// All problems of the statement.
    total: i64,
}

impl Problems {
    pub(super) fn add(&mut self, problem: Problem) {
        let count = self.counts.entry(problem.check.clone()).or_default();
        *count += 1;
        if *count <= LISTED_MAX.unsigned_abs() {
            self.listed.push(problem);
        }
    }

    /// Adds the rows of one statement, which all belong to one check.
    pub(super) fn add_listed(&mut self, rows: Vec<Listed>) {
        let Some(first) = rows.first() else { return };
        let count = self.counts.entry(first.problem.check.clone()).or_default();
        *count += first.total.unsigned_abs();
        self.listed.extend(rows.into_iter().map(|row| row.problem));
    }

    pub(super) fn merge(&mut self, other: Self) {
        self.listed.extend(other.listed);
        for (check, count) in other.counts {
            *self.counts.entry(check).or_default() += count;
        }
    }
}

/// A statement that lists the problems of another, and counts all of them.
pub(super) fn listing(statement: &str) -> String {
    format!("select p.*, count(*) over () as total from ({statement}) p limit {LISTED_MAX}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_names_begin_after_a_feed_and_before_all_others() {
        let next = Names::after("merchant-4");
        assert!("merchant-4" < &*next);
        assert!(
            ["merchant-4-", "merchant-42", "merchant-5"]
                .iter()
                .all(|name| *next < **name)
        );
        assert!(Names::of("merchant-4").contain("merchant-4"));
        assert!(!Names::of("merchant-4").contain("merchant-42"));
    }

    #[test]
    fn problems_are_counted_beyond_their_list() {
        let mut problems = Problems::default();
        for _ in 0..150 {
            problems.add(Problem {
                check: "counts".into(),
                feed: None,
                found: String::new(),
            });
        }
        assert_eq!(
            (problems.listed.len(), problems.counts["counts"]),
            (100, 150)
        );
    }
}
