//! `shopbell verify`: compares the rows of a live or restored database with each other.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::Serialize;

use super::terminal::{self, Format};
use crate::config::Environment;
use crate::model::feed::Feed;
use crate::store::verify::{Problem, Scope, Verdict, VerifyError, verify};

/// Most problems of one kind that are printed. All are counted.
const PRINTED_MAX: u64 = 100;
/// Interval of the messages about progress.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);

/// The rows to verify.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Only this feed [default: all feeds and indexes]
    #[arg(value_parser = Feed::parse)]
    feed: Option<Feed>,
    /// Only a sample of feeds, in a few seconds
    #[arg(long, conflicts_with = "feed")]
    quick: bool,
}

/// Prints a line for each problem and one for the result. Fails if there is a problem.
pub async fn run(arguments: Arguments, format: Format) -> anyhow::Result<()> {
    let scope = match arguments {
        Arguments {
            feed: Some(feed), ..
        } => Scope::Feed(feed),
        Arguments { quick: true, .. } => Scope::Sample,
        Arguments { .. } => Scope::All,
    };
    let options = Environment::of_process().database()?;
    let mut printer = Printer::new(format);
    let mut printed = Ok(());
    let verified = verify(&options, &scope, |verdict, problem| {
        if printed.is_ok() {
            printed = printer.print(verdict, problem);
        }
    });
    let verdict = match verified.await {
        Err(VerifyError::Store(error)) => Err(error).context(
            "could not read the database at DATABASE_URL (is it running, is it migrated?)",
        )?,
        verified => verified?,
    };
    printed?;
    printer.print_rest(&verdict)?;
    terminal::write_lines(&match format {
        Format::Text => terminal::text_line(&summary(&verdict)),
        Format::Json => terminal::json_line(&Line::Verdict(&verdict))?,
    })?;
    let problems: u64 = verdict.problems.values().sum();
    anyhow::ensure!(
        problems == 0,
        "{problems} problems; docs/operations.md#verify-a-database names the causes and the remedies"
    );
    Ok(())
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Line<'a> {
    Problem(&'a Problem),
    /// Problems that are counted, but not printed.
    More {
        check: &'a str,
        problems: u64,
    },
    Verdict(&'a Verdict),
}

struct Printer {
    format: Format,
    printed: BTreeMap<String, u64>,
    last_progress: Instant,
}

impl Printer {
    fn new(format: Format) -> Self {
        Self {
            format,
            printed: BTreeMap::new(),
            last_progress: Instant::now(),
        }
    }

    fn print(&mut self, verdict: &Verdict, problem: Option<Problem>) -> anyhow::Result<()> {
        let Some(problem) = problem else {
            if self.last_progress.elapsed() >= PROGRESS_INTERVAL {
                self.last_progress = Instant::now();
                terminal::write_message(&progress(verdict));
            }
            return Ok(());
        };
        let printed = self.printed.entry(problem.check.clone()).or_default();
        *printed += 1;
        if *printed > PRINTED_MAX {
            return Ok(());
        }
        terminal::write_lines(&match self.format {
            Format::Text => terminal::text_line(&line(&problem)),
            Format::Json => terminal::json_line(&Line::Problem(&problem))?,
        })
    }

    /// Prints a line for each check that has found more problems than were printed.
    fn print_rest(&self, verdict: &Verdict) -> anyhow::Result<()> {
        for (check, count) in &verdict.problems {
            let printed = self.printed.get(check).copied().unwrap_or_default();
            let problems = count.saturating_sub(printed.min(PRINTED_MAX));
            if problems > 0 {
                terminal::write_lines(&match self.format {
                    Format::Text => terminal::text_line(&rest(check, problems)),
                    Format::Json => terminal::json_line(&Line::More { check, problems })?,
                })?;
            }
        }
        Ok(())
    }
}

fn rest(check: &str, problems: u64) -> String {
    format!("MORE     {check}: {problems} more problems are not printed")
}

fn line(problem: &Problem) -> String {
    let Problem { check, feed, found } = problem;
    let feed = feed.iter().map(|feed| format!("{feed}: "));
    format!("PROBLEM  {check}: {}{found}", feed.collect::<String>())
}

fn progress(verdict: &Verdict) -> String {
    let Verdict {
        feeds,
        notifications,
        cursors,
        indexed_rows,
        ..
    } = verdict;
    format!(
        "{feeds} feeds, {notifications} notifications, {cursors} cursors, {indexed_rows} rows in indexes so far"
    )
}

fn summary(verdict: &Verdict) -> String {
    let Verdict {
        feeds,
        notifications,
        cursors,
        indexed_rows,
        problems,
    } = verdict;
    let problems = match problems.is_empty() {
        true => "no problem".to_owned(),
        false => problems
            .iter()
            .map(|(check, count)| format!("{count} of {check}"))
            .collect::<Vec<_>>()
            .join(", "),
    };
    format!(
        "{feeds} feeds with {notifications} notifications and {cursors} cursors, {indexed_rows} rows in indexes: {problems}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_counts_the_problems_of_each_check() {
        let mut verdict = Verdict {
            feeds: 3,
            notifications: 12,
            cursors: 4,
            ..Verdict::default()
        };
        let clean = "3 feeds with 12 notifications and 4 cursors, 0 rows in indexes: no problem";
        assert_eq!(summary(&verdict), clean);
        verdict.problems = BTreeMap::from([("counts".into(), 2), ("numbers".into(), 1)]);
        let problems = "3 feeds with 12 notifications and 4 cursors, 0 rows in indexes: 2 of counts, 1 of numbers";
        assert_eq!(summary(&verdict), problems);
    }
}
