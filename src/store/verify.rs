//! Compares the rows of a database with the invariants of ARCHITECTURE.md, for `shopbell verify`.
//! Writes nothing, and works while replicas run.
//!
//! Feeds are read in pages. Each page has one snapshot, in which the rows of its feeds must agree.

mod feeds;
mod tables;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use sqlx::FromRow;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use tokio::time::timeout;

use self::feeds::Page;
use super::{StoreError, close, connect};
use crate::model::feed::Feed;

/// Name of the connection in Postgres.
const APPLICATION: &str = "shopbell verify";
/// Longest time of one step. A feed is one step, even with millions of notifications.
const STEP_TIMEOUT: Duration = Duration::from_secs(300);

/// A row, or a group of rows, that contradicts an invariant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, FromRow)]
pub struct Problem {
    /// The broken invariant: `numbers`, `counts`, `cursors`, `marks`, `imports`, `held`, `epoch`,
    /// `indexes`, `identities`, or `readable` if Postgres could not read rows.
    #[sqlx(rename = "check_name")]
    pub check: String,
    /// The feed, if the problem concerns one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub feed: Option<String>,
    /// The contradiction, in words.
    pub found: String,
}

/// The rows that were compared, and the number of problems.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Feeds.
    pub feeds: i64,
    /// Notifications that these feeds should have.
    pub notifications: i64,
    /// Rows that were looked up in each index of their table.
    pub indexed_rows: i64,
    /// Problems of each broken invariant.
    pub problems: BTreeMap<String, u64>,
}

/// The feeds to verify.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// All feeds, all tables and their indexes.
    All,
    /// One feed.
    Feed(Feed),
    /// Some feeds at random, and the tables without their rows. Takes seconds.
    Sample,
}

/// Verifies the database in steps. Calls `report` with each problem, and with the verdict so far
/// after each step.
///
/// Each step is a read-only transaction. Locks nothing; uses `feeds_pkey`, `notifications_pkey` and
/// `cursors_pkey`.
pub async fn verify(
    options: &PgConnectOptions,
    scope: &Scope,
    mut report: impl FnMut(&Verdict, Option<Problem>),
) -> Result<Verdict, StoreError> {
    let mut verification = Verification {
        connection: connect(options, APPLICATION).await?,
        verdict: Verdict::default(),
        report: &mut report,
    };
    match scope {
        Scope::All => {
            verification.tables().await?;
            verification.feeds().await?;
            verification.indexes().await?;
        }
        Scope::Feed(feed) => verification.page(&Page::of(feed.as_str())).await?,
        Scope::Sample => {
            verification.tables().await?;
            for feed in step(feeds::sample(&mut verification.connection)).await? {
                verification.page(&Page::of(&feed)).await?;
            }
        }
    }
    let Verification {
        connection,
        verdict,
        ..
    } = verification;
    close(connection).await;
    Ok(verdict)
}

struct Verification<'a, F> {
    connection: PgConnection,
    verdict: Verdict,
    report: &'a mut F,
}

impl<F: FnMut(&Verdict, Option<Problem>)> Verification<'_, F> {
    /// The rows that are not of one feed.
    async fn tables(&mut self) -> Result<(), StoreError> {
        let checked = step(tables::problems(&mut self.connection)).await;
        self.take("the catalog", checked.map(|problems| (0, 0, problems)))
    }

    /// Every feed, and every row without a feed.
    async fn feeds(&mut self) -> Result<(), StoreError> {
        let mut next = Some(String::new());
        while let Some(first) = next {
            let page = step(Page::from(&mut self.connection, &first)).await?;
            self.page(&page).await?;
            next = page.next();
        }
        Ok(())
    }

    async fn page(&mut self, page: &Page) -> Result<(), StoreError> {
        let checked = step(page.check(&mut self.connection)).await;
        self.take(&page.to_string(), checked)
    }

    /// Every row of the tables, in each of their indexes.
    async fn indexes(&mut self) -> Result<(), StoreError> {
        for table in tables::INDEXED {
            let blocks = step(table.blocks(&mut self.connection)).await?;
            for first in (0..blocks).step_by(tables::BLOCKS_PER_STEP) {
                let checked = step(table.check(&mut self.connection, first)).await;
                let place = format!("block {first} and later of {}", table.name);
                let checked = checked.map(|(rows, problems)| {
                    self.verdict.indexed_rows += rows;
                    (0, 0, problems)
                });
                self.take(&place, checked)?;
            }
        }
        Ok(())
    }

    /// Adds the result of a step. Rows that Postgres cannot read are a problem, and the next step
    /// follows. Other errors end the verification.
    fn take(
        &mut self,
        place: &str,
        checked: Result<(i64, i64, Vec<Problem>), StoreError>,
    ) -> Result<(), StoreError> {
        let (feeds, notifications, problems) = match checked {
            Ok(checked) => checked,
            Err(error) if error.blames_rows() => {
                let problem = Problem {
                    check: "readable".into(),
                    feed: None,
                    found: format!("{place}: {error}"),
                };
                (0, 0, vec![problem])
            }
            Err(error) => return Err(error),
        };
        self.verdict.feeds += feeds;
        self.verdict.notifications += notifications;
        for problem in problems {
            *self
                .verdict
                .problems
                .entry(problem.check.clone())
                .or_default() += 1;
            (self.report)(&self.verdict, Some(problem));
        }
        (self.report)(&self.verdict, None);
        Ok(())
    }
}

/// Bounds a step, because a half-open connection would never answer.
async fn step<T>(work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, StoreError> {
    match timeout(STEP_TIMEOUT, work).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(StoreError::Silent(STEP_TIMEOUT)),
    }
}
