//! Compares the row of a feed with the numbers of its notifications and of its marks. Pure.

use sqlx::FromRow;

use super::Problem;
use crate::store::marks::MARKS_KEPT_MAX;

/// The row of a feed.
#[derive(Debug, Clone, Default, FromRow)]
pub(super) struct FeedRow {
    pub(super) feed: String,
    pub(super) last_seq: i64,
    pub(super) trimmed_seq: i64,
    pub(super) acked_seq: i64,
    pub(super) unread: i64,
    pub(super) unhandled: i64,
    pub(super) read_seq: i64,
    pub(super) version: i64,
    pub(super) early_settlements: i64,
    /// The rows of the feed in `early_settlements`.
    pub(super) settlements_found: i64,
}

/// The stored numbers of a feed: those of its notifications, or the versions of its marks.
#[derive(Debug, Clone, Default, PartialEq, Eq, FromRow)]
pub(super) struct Numbers {
    pub(super) rows: i64,
    pub(super) lowest: i64,
    pub(super) highest: i64,
    /// Rows whose number another row has too.
    pub(super) repeated: i64,
    /// Rows whose number retention should have removed.
    pub(super) below: i64,
    /// Rows above the newest number of the feed.
    pub(super) above: i64,
    /// The first number that is missing below a stored one.
    pub(super) first_gap: Option<i64>,
    pub(super) unread: i64,
    pub(super) unhandled: i64,
    /// The lowest unread number.
    pub(super) first_unread: Option<i64>,
}

impl Numbers {
    /// Adds the numbers that follow.
    pub(super) fn add(&mut self, next: Self) {
        if self.rows == 0 {
            *self = next;
            return;
        }
        self.rows += next.rows;
        self.highest = next.highest;
        self.repeated += next.repeated;
        self.below += next.below;
        self.above += next.above;
        self.first_gap = self.first_gap.or(next.first_gap);
        self.unread += next.unread;
        self.unhandled += next.unhandled;
        self.first_unread = self.first_unread.or(next.first_unread);
    }
}

/// The contradictions between a feed and its notifications.
pub(super) fn notifications(feed: &str, row: Option<&FeedRow>, stored: &Numbers) -> Vec<Problem> {
    let Some(row) = row else {
        let found = format!(
            "{} notifications are stored, but the feed has no row",
            stored.rows
        );
        return vec![problem(feed, "numbers", found)];
    };
    let mut found = numbers(row, stored);
    found.extend(counts(row, stored));
    if row.acked_seq > row.last_seq {
        let text = format!(
            "the highest ack is {}, but the newest number is {}",
            row.acked_seq, row.last_seq
        );
        found.push(("cursors", text));
    }
    found
        .into_iter()
        .map(|(check, found)| problem(feed, check, found))
        .collect()
}

fn numbers(row: &FeedRow, stored: &Numbers) -> Vec<(&'static str, String)> {
    let (last, trimmed) = (row.last_seq, row.trimmed_seq);
    let mut found = Vec::new();
    if stored.above > 0 {
        let rest = others(stored.above);
        found.push(format!(
            "the newest number should be {last}, but {} is stored{rest}",
            stored.highest
        ));
    }
    if stored.below > 0 {
        let rest = others(stored.below);
        found.push(format!(
            "numbers up to {trimmed} should be removed, but {} is stored{rest}",
            stored.lowest
        ));
    }
    if trimmed > last {
        found.push(format!(
            "numbers up to {trimmed} should be removed, but the newest number is {last}"
        ));
    }
    if stored.repeated > 0 {
        found.push(format!(
            "{} notifications have the number of another one",
            stored.repeated
        ));
    }
    let within = stored.rows - stored.repeated - stored.below - stored.above;
    let missing = last.saturating_sub(trimmed).saturating_sub(within);
    if missing > 0 {
        let after = stored.highest.max(trimmed).saturating_add(1);
        let gap = stored.first_gap.filter(|gap| *gap <= last);
        let first = gap.unwrap_or(after);
        let from = trimmed.saturating_add(1);
        found.push(format!(
            "{missing} notifications from {from} to {last} are missing, the first is {first}"
        ));
    }
    found.into_iter().map(|text| ("numbers", text)).collect()
}

/// The rest of a list of which one is printed.
fn others(count: i64) -> String {
    match count {
        1 => String::new(),
        _ => format!(", and {} more", count - 1),
    }
}

fn counts(row: &FeedRow, stored: &Numbers) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    if stored.unread != row.unread {
        found.push(format!(
            "the count of unread notifications is {}, but {} have no read mark",
            row.unread, stored.unread
        ));
    }
    if stored.unhandled != row.unhandled {
        found.push(format!(
            "the count of unhandled notifications is {}, but {} have no handle mark",
            row.unhandled, stored.unhandled
        ));
    }
    if row.settlements_found != row.early_settlements {
        found.push(format!(
            "the count of early settlements is {}, but {} are stored",
            row.early_settlements, row.settlements_found
        ));
    }
    if row.read_seq > row.last_seq {
        found.push(format!(
            "all up to {} should be read, but the newest number is {}",
            row.read_seq, row.last_seq
        ));
    }
    if let Some(unread) = stored.first_unread.filter(|unread| *unread <= row.read_seq) {
        found.push(format!(
            "all up to {} should be read, but {unread} is unread",
            row.read_seq
        ));
    }
    found.into_iter().map(|text| ("counts", text)).collect()
}

/// The contradictions between a feed and its marks.
pub(super) fn marks(feed: &str, row: Option<&FeedRow>, stored: &Numbers) -> Vec<Problem> {
    let version = row.map_or(0, |row| row.version);
    let newest = |stored: &str| {
        format!("the newest mark should have the version {version}, but {stored} is stored")
    };
    let mut found = Vec::new();
    if stored.rows == 0 {
        found.extend((version > 0).then(|| newest("none")));
        return found
            .into_iter()
            .map(|found| problem(feed, "marks", found))
            .collect();
    }
    let Numbers {
        rows,
        lowest,
        highest,
        ..
    } = *stored;
    if highest != version {
        found.push(newest(&highest.to_string()));
    }
    let oldest = version
        .saturating_sub(MARKS_KEPT_MAX)
        .saturating_add(1)
        .max(1);
    if lowest > oldest && highest >= version {
        found.push(format!(
            "the oldest mark should have the version {oldest}, but {lowest} is stored"
        ));
    }
    let wanted = highest.saturating_sub(lowest).saturating_add(1);
    if rows != wanted || stored.repeated > 0 {
        found.push(format!(
            "the marks from version {lowest} to {highest} should be {wanted} rows, but {rows} are stored"
        ));
    }
    found
        .into_iter()
        .map(|found| problem(feed, "marks", found))
        .collect()
}

fn problem(feed: &str, check: &str, found: String) -> Problem {
    Problem {
        check: check.into(),
        feed: Some(feed.into()),
        found,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(trimmed_seq: i64, last_seq: i64) -> FeedRow {
        FeedRow {
            last_seq,
            trimmed_seq,
            ..FeedRow::default()
        }
    }

    /// The numbers of a step, as its statement groups them.
    fn stored(row: &FeedRow, seqs: &[i64]) -> Numbers {
        let count =
            |wanted: &dyn Fn(i64) -> bool| seqs.iter().filter(|seq| wanted(**seq)).count() as i64;
        let gap = (1..20).find(|seq| *seq > row.trimmed_seq && !seqs.contains(seq));
        let highest = seqs.last().copied().unwrap_or_default();
        Numbers {
            rows: seqs.len() as i64,
            lowest: seqs.first().copied().unwrap_or_default(),
            highest,
            repeated: seqs.windows(2).filter(|pair| pair[0] == pair[1]).count() as i64,
            below: count(&|seq| seq <= row.trimmed_seq),
            above: count(&|seq| seq > row.last_seq),
            first_gap: gap.filter(|gap| *gap < highest),
            ..Numbers::default()
        }
    }

    #[track_caller]
    fn check(row: &FeedRow, seqs: &[i64], expected: &[&str]) {
        let found = notifications("f", Some(row), &stored(row, seqs));
        let found: Vec<_> = found.iter().map(|problem| &*problem.found).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_feed_without_a_gap_has_no_problem() {
        check(&row(0, 0), &[], &[]);
        check(&row(3, 3), &[], &[]);
        check(&row(3, 5), &[4, 5], &[]);
    }

    #[test]
    fn each_contradiction_of_the_numbers_is_found() {
        check(
            &row(0, 3),
            &[],
            &["3 notifications from 1 to 3 are missing, the first is 1"],
        );
        check(
            &row(0, 4),
            &[1, 2, 2],
            &[
                "1 notifications have the number of another one",
                "2 notifications from 1 to 4 are missing, the first is 3",
            ],
        );
        check(
            &row(2, 4),
            &[1, 2, 4, 5, 6],
            &[
                "the newest number should be 4, but 6 is stored, and 1 more",
                "numbers up to 2 should be removed, but 1 is stored, and 1 more",
                "1 notifications from 3 to 4 are missing, the first is 3",
            ],
        );
        check(
            &row(i64::MAX, 0),
            &[],
            &["numbers up to 9223372036854775807 should be removed, but the newest number is 0"],
        );
    }

    #[test]
    fn numbers_of_two_steps_are_one_list() {
        let whole = row(0, 9);
        let (mut first, second) = (
            stored(&whole, &[1, 2, 3]),
            Numbers {
                first_unread: Some(5),
                first_gap: Some(4),
                ..stored(&whole, &[5, 6])
            },
        );
        first.add(second);
        assert_eq!((first.rows, first.lowest, first.highest), (5, 1, 6));
        assert_eq!((first.first_gap, first.first_unread), (Some(4), Some(5)));
    }

    #[test]
    fn a_lost_mark_is_found_at_either_end() {
        let row = FeedRow {
            version: 1_500,
            ..FeedRow::default()
        };
        let kept = |lowest, highest| Numbers {
            rows: highest - lowest + 1,
            lowest,
            highest,
            ..Numbers::default()
        };
        let found = |numbers| marks("f", Some(&row), &numbers).len();
        assert_eq!(found(kept(501, 1_500)), 0);
        assert_eq!(found(kept(400, 1_500)), 0);
        assert_eq!(found(kept(502, 1_500)), 1);
        assert_eq!(found(kept(501, 1_499)), 1);
        assert_eq!(found(Numbers::default()), 1);
    }
}
