//! Compares the rows of a database with the invariants of ARCHITECTURE.md, for `shopbell verify`.
//! Writes nothing, and works while replicas run.
//!
//! Every statement reads a bounded number of rows and has a timeout. The feeds of a page are read in
//! one snapshot, in which their rows must agree. A large feed is a page alone.

mod compare;
mod feeds;
mod pace;
mod places;
mod steps;
mod tables;

use std::collections::BTreeMap;

use serde::Serialize;
use sqlx::FromRow;
use sqlx::postgres::{PgConnectOptions, PgConnection};

use self::feeds::{FEEDS_MAX, Page};
use self::pace::Pace;
use self::places::{Kind, PLACES, Walk};
use self::steps::{Names, Problems};
use super::{StoreError, close, connect};
use crate::model::feed::Feed;

/// Name of the connection in Postgres.
const APPLICATION: &str = "shopbell verify";

/// A row, or a group of rows, that contradicts an invariant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, FromRow)]
pub struct Problem {
    /// The broken invariant: `numbers`, `counts`, `cursors`, `marks`, `imports`, `held`, `epoch`,
    /// `indexes`, `identities`, `settled`, or `readable` if Postgres could not read rows.
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
    /// Notifications that were read.
    pub notifications: i64,
    /// Cursors, and those of evicted devices.
    pub cursors: i64,
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

/// An error of the verification.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The database has no row of the feed.
    #[error("there is no feed {0}: it has no notification, and no subscriber has connected to it")]
    NoFeed(Feed),
    /// The database cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Verifies the database in steps. Calls `report` with some problems of each step, and with the verdict
/// so far after each step.
///
/// Each step is a read-only transaction. Locks nothing; walks the primary keys.
pub async fn verify(
    options: &PgConnectOptions,
    scope: &Scope,
    mut report: impl FnMut(&Verdict, Option<Problem>),
) -> Result<Verdict, VerifyError> {
    let mut verification = Verification {
        connection: connect(options, APPLICATION).await?,
        verdict: Verdict::default(),
        report: &mut report,
    };
    match scope {
        Scope::All => {
            verification.tables().await?;
            verification.feeds(&Names::all()).await?;
            verification.places(&Names::all(), u64::MAX).await?;
            verification.indexes().await?;
        }
        Scope::Feed(feed) => {
            if !feeds::exists(&mut verification.connection, feed.as_str()).await? {
                return Err(VerifyError::NoFeed(feed.clone()));
            }
            let names = Names::of(feed.as_str());
            verification.feeds(&names).await?;
            verification.places(&names, u64::MAX).await?;
        }
        Scope::Sample => {
            verification.tables().await?;
            for feed in feeds::sample(&mut verification.connection).await? {
                let names = Names::of(&feed);
                verification.feeds(&names).await?;
                verification.places(&names, 1).await?;
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
        match tables::problems(&mut self.connection).await {
            Ok(problems) => self.take(problems),
            Err(error) => self.take_unreadable("the catalog", error)?,
        }
        Ok(())
    }

    /// The feeds of a range, with the rows without a feed. If a row of a page cannot be read, its feeds
    /// are verified alone, until one with this row is left.
    async fn feeds(&mut self, names: &Names) -> Result<(), StoreError> {
        let mut names = names.clone();
        let mut pace = Pace::new(FEEDS_MAX);
        loop {
            let Self {
                connection,
                verdict,
                report,
            } = self;
            let before = verdict.notifications;
            let mut progress = |notifications| {
                verdict.notifications = before + notifications;
                report(verdict, None);
            };
            let read = Page::read(connection, &names, pace.size(), &mut progress).await;
            self.verdict.notifications = before;
            let next = match read {
                Ok(page) => {
                    pace.grow();
                    self.verdict.feeds += page.feeds;
                    self.verdict.notifications += page.notifications;
                    self.take(page.problems);
                    page.next
                }
                Err(error) if pace.shrink(&error) => continue,
                Err(error) => {
                    let feed = feeds::first(&mut self.connection, &names.first).await;
                    let feed = feed.ok().flatten().unwrap_or_else(|| names.first.clone());
                    self.take_unreadable(&format!("feed {feed}"), error)?;
                    let next = feeds::first(&mut self.connection, &Names::after(&feed)).await;
                    next.ok().flatten().filter(|next| names.contain(next))
                }
            };
            match next {
                Some(next) => names.first = next,
                None => return Ok(()),
            }
        }
    }

    /// The cursors and imports of a range, in so many steps at most.
    async fn places(&mut self, names: &Names, steps_max: u64) -> Result<(), StoreError> {
        for places in &PLACES {
            let mut walk = Walk::new(places, names);
            let (mut steps, mut may_have_more) = (0, true);
            while may_have_more && steps < steps_max {
                steps += 1;
                match walk.step(&mut self.connection).await {
                    Ok(step) => {
                        may_have_more = step.may_have_more;
                        if places.kind == Kind::Cursor {
                            self.verdict.cursors += step.rows;
                        }
                        self.take(step.problems);
                    }
                    Err(error) => {
                        self.take_unreadable(&walk.place(), error)?;
                        may_have_more = walk.skip_feed(&mut self.connection).await?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Every row of the tables, in each of their indexes.
    async fn indexes(&mut self) -> Result<(), StoreError> {
        for table in tables::INDEXED {
            let blocks = table.blocks(&mut self.connection).await?;
            let mut pace = Pace::new(tables::BLOCKS_PER_STEP);
            let mut first = 0;
            while first < blocks {
                let end = first + pace.size();
                match table.check(&mut self.connection, (first, end)).await {
                    Ok((rows, problems)) => {
                        pace.grow();
                        self.verdict.indexed_rows += rows;
                        self.take(problems);
                    }
                    Err(error) if pace.shrink(&error) => continue,
                    Err(error) => {
                        let place = format!("block {first} of {}", table.name);
                        self.take_unreadable(&place, error)?;
                    }
                }
                first = end;
            }
        }
        Ok(())
    }

    /// Adds rows that cannot be read, not even alone, as a problem. The next step follows. Other
    /// errors end the verification.
    fn take_unreadable(&mut self, place: &str, error: StoreError) -> Result<(), StoreError> {
        if !error.may_pass_in_parts() {
            return Err(error);
        }
        let mut problems = Problems::default();
        problems.add(Problem {
            check: "readable".into(),
            feed: None,
            found: format!("{place}: {error}"),
        });
        self.take(problems);
        Ok(())
    }

    /// Adds the problems of a step.
    fn take(&mut self, problems: Problems) {
        for (check, count) in problems.counts {
            *self.verdict.problems.entry(check).or_default() += count;
        }
        for problem in problems.listed {
            (self.report)(&self.verdict, Some(problem));
        }
        (self.report)(&self.verdict, None);
    }
}
