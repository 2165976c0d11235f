//! The walk over feeds. A page is some feeds with the numbers of their notifications and marks, which
//! must agree in one snapshot.

use std::collections::BTreeMap;

use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, FromRow};

use super::compare::{self, FeedRow, Numbers};
use super::pace::Pace;
use super::steps::{Names, Problems, begin, step};
use crate::store::StoreError;

/// Most feeds of a page.
pub(super) const FEEDS_MAX: i64 = 500;
/// A page ends before the feed with which it has so many notifications. A larger feed is a page alone.
const NOTIFICATIONS_MAX: i64 = 50_000;
/// Most rows that one statement reads, so that it also ends in time on a slow disk.
pub(super) const ROWS_PER_STEP: i64 = 10_000;
/// Feeds of a sample.
const SAMPLED_FEEDS: i64 = 100;
/// Most notifications of a feed in a sample, so that a sample takes little time.
const SAMPLED_NOTIFICATIONS: i64 = 10_000;
/// Rows of these feeds are deleted while acks for them may still arrive.
const CANARIES: &str = "shopbell-canary/";

const FEEDS: &str = "
select feed, last_seq, trimmed_seq, acked_seq, unread, unhandled, read_seq, version, early_settlements,
       (select count(*) from early_settlements s where s.feed = feeds.feed) as settlements_found
from feeds where feed >= $1 and ($2::text is null or feed < $2)
order by feed limit $3";

/// The numbers of the next rows, grouped by feed. $1 and $2 are the last row of the step before. A
/// step contains all rows with its last number.
const NOTIFICATIONS: &str = "
with read as (
    select n.feed, n.seq, n.read_at is null as unread, n.handled_at is null as unhandled
    from notifications n
    where (n.feed, n.seq) > ($1, $2) and ($3::text is null or n.feed < $3)
    order by n.feed, n.seq
    fetch first ($4) rows with ties
), placed as (
    select r.*, coalesce(lag(r.seq) over (partition by r.feed order by r.seq), case when r.feed = $1 then $2 end) as previous
    from read r
)
select p.feed, count(*) as rows, min(p.seq) as lowest, max(p.seq) as highest,
       count(*) filter (where p.seq = p.previous) as repeated,
       count(*) filter (where p.seq <= f.trimmed_seq) as below,
       count(*) filter (where p.seq > f.last_seq) as above,
       min(greatest(p.previous, f.trimmed_seq) + 1) filter (where p.seq - 1 > greatest(p.previous, f.trimmed_seq)) as first_gap,
       count(*) filter (where p.unread) as unread, count(*) filter (where p.unhandled) as unhandled,
       min(p.seq) filter (where p.unread) as first_unread
from placed p
left join feeds f on f.feed = p.feed
group by p.feed
order by p.feed";

/// The same of marks.
const MARKS: &str = "
with read as (
    select k.feed, k.version
    from marks k
    where (k.feed, k.version) > ($1, $2) and ($3::text is null or k.feed < $3)
    order by k.feed, k.version
    fetch first ($4) rows with ties
), placed as (
    select r.*, lag(r.version) over (partition by r.feed order by r.version) as previous from read r
)
select p.feed, count(*) as rows, min(p.version) as lowest, max(p.version) as highest,
       count(*) filter (where p.version = p.previous) as repeated, 0::bigint as below, 0::bigint as above,
       null::bigint as first_gap, 0::bigint as unread, 0::bigint as unhandled, null::bigint as first_unread
from placed p
group by p.feed
order by p.feed";

/// A feed in a step.
#[derive(FromRow)]
struct Group {
    feed: String,
    #[sqlx(flatten)]
    numbers: Numbers,
}

/// The result of a page.
#[derive(Debug, Default)]
pub(super) struct Page {
    /// The rows of `feeds`.
    pub(super) feeds: i64,
    pub(super) notifications: i64,
    pub(super) problems: Problems,
    /// The name with which the next page begins, if there is one.
    pub(super) next: Option<String>,
}

impl Page {
    /// Reads the first feeds of a range, `feeds_max` at most. Calls `progress` with the number of
    /// notifications after each step.
    pub(super) async fn read(
        connection: &mut PgConnection,
        names: &Names,
        feeds_max: i64,
        progress: &mut impl FnMut(i64),
    ) -> Result<Self, StoreError> {
        let mut snapshot = begin(connection).await?;
        let mut page = Self::default();
        let query = sqlx::query_as(FEEDS)
            .bind(&names.first)
            .bind(&names.before)
            .bind(feeds_max + 1)
            .persistent(false);
        let mut rows: Vec<FeedRow> = step(query.fetch_all(&mut *snapshot)).await?;
        let mut names = names.clone();
        if rows.len() as i64 > feeds_max {
            names.before = rows.pop().map(|row| row.feed);
            page.next = names.before.clone();
        }
        let rows: BTreeMap<_, _> = rows
            .into_iter()
            .map(|row| (row.feed.clone(), row))
            .collect();

        let mut walk = Walk::new(&names, &rows, compare::notifications);
        while walk.step(&mut snapshot, NOTIFICATIONS).await? {
            progress(walk.read);
            if let Some(current) = walk.end_before(&names) {
                page.next = Some(current.clone());
                names.before = Some(current);
                break;
            }
        }
        let read = walk.finish(&names);
        page.notifications = read.0;
        page.problems.merge(read.1);

        let mut walk = Walk::new(&names, &rows, compare::marks);
        while walk.step(&mut snapshot, MARKS).await? {
            progress(page.notifications);
        }
        page.problems.merge(walk.finish(&names).1);
        page.feeds = rows.keys().filter(|feed| names.contain(feed)).count() as i64;
        step(snapshot.rollback()).await?;
        Ok(page)
    }
}

type Compare = fn(&str, Option<&FeedRow>, &Numbers) -> Vec<super::Problem>;

/// Reads a table with numbered rows in steps, and compares each feed when its last row was read.
struct Walk<'a> {
    rows: &'a BTreeMap<String, FeedRow>,
    compare: Compare,
    before: Option<String>,
    pace: Pace,
    /// The last row that was read, and the numbers of its feed so far.
    feed: String,
    number: i64,
    numbers: Numbers,
    /// Rows that were read, also of the last feed.
    read: i64,
    /// The feeds before this name were compared.
    compared: String,
    problems: Problems,
}

impl<'a> Walk<'a> {
    fn new(names: &Names, rows: &'a BTreeMap<String, FeedRow>, compare: Compare) -> Self {
        Self {
            rows,
            compare,
            before: names.before.clone(),
            pace: Pace::new(ROWS_PER_STEP),
            feed: names.first.clone(),
            number: i64::MIN,
            numbers: Numbers::default(),
            read: 0,
            compared: names.first.clone(),
            problems: Problems::default(),
        }
    }

    /// Reads the next rows. Returns whether there may be more.
    async fn step(
        &mut self,
        snapshot: &mut PgConnection,
        statement: &'static str,
    ) -> Result<bool, StoreError> {
        // An error ends only the savepoint, so that a smaller step can read the same snapshot.
        let mut savepoint = step(snapshot.begin()).await?;
        let query = sqlx::query_as(statement)
            .bind(&self.feed)
            .bind(self.number)
            .bind(&self.before)
            .bind(self.pace.size())
            .persistent(false);
        let groups: Result<Vec<Group>, _> = step(query.fetch_all(&mut *savepoint)).await;
        step(savepoint.rollback()).await?;
        match groups {
            Ok(groups) => {
                let read: i64 = groups.iter().map(|group| group.numbers.rows).sum();
                let may_have_more = read >= self.pace.size();
                self.pace.grow();
                groups.into_iter().for_each(|group| self.add(group));
                Ok(may_have_more)
            }
            Err(error) if self.pace.shrink(&error) => Ok(true),
            Err(error) => Err(error),
        }
    }

    fn add(&mut self, Group { feed, numbers }: Group) {
        if feed != self.feed {
            self.compare_before(&feed);
            self.feed = feed;
        }
        self.read += numbers.rows;
        self.number = numbers.highest;
        self.numbers.add(numbers);
    }

    /// Compares the feeds before this name.
    fn compare_before(&mut self, name: &str) {
        let numbers = std::mem::take(&mut self.numbers);
        if numbers.rows > 0 {
            self.compare_silent(&self.feed.clone());
            self.compare(&self.feed.clone(), &numbers);
            self.compared = Names::after(&self.feed);
        }
        self.compare_silent(name);
    }

    /// Compares the feeds before this name that have no stored number.
    fn compare_silent(&mut self, name: &str) {
        if *self.compared >= *name {
            return;
        }
        let rows = self.rows;
        for feed in rows
            .range(self.compared.clone()..name.to_owned())
            .map(|(feed, _)| feed)
        {
            self.compare(feed, &Numbers::default());
        }
        self.compared = name.to_owned();
    }

    fn compare(&mut self, feed: &str, numbers: &Numbers) {
        if feed.starts_with(CANARIES) {
            return;
        }
        let found = (self.compare)(feed, self.rows.get(feed), numbers);
        found
            .into_iter()
            .for_each(|problem| self.problems.add(problem));
    }

    /// The feed before which the page ends, because it is large enough.
    fn end_before(&self, names: &Names) -> Option<String> {
        let is_large = self.read >= NOTIFICATIONS_MAX && self.feed > names.first;
        is_large.then(|| self.feed.clone())
    }

    /// Compares the rest of the feeds. Returns the number of rows in them, and the problems.
    fn finish(mut self, names: &Names) -> (i64, Problems) {
        if names.contain(&self.feed) {
            let end = self.feed.clone();
            self.compare_before(&Names::after(&end));
        } else {
            self.read -= self.numbers.rows;
        }
        let rest: Vec<_> = self
            .rows
            .range(self.compared.clone()..)
            .map(|(feed, _)| feed)
            .filter(|feed| names.contain(feed))
            .collect();
        for feed in rest {
            self.compare(feed, &Numbers::default());
        }
        (self.read, self.problems)
    }
}

/// Returns whether a table has a row of this feed.
pub(super) async fn exists(connection: &mut PgConnection, feed: &str) -> Result<bool, StoreError> {
    let query = sqlx::query_scalar(
        "select exists (select from feeds where feed = $1) or exists (select from notifications where feed = $1)
             or exists (select from cursors where feed = $1) or exists (select from evicted_cursors where feed = $1)
             or exists (select from marks where feed = $1) or exists (select from imports where feed = $1)",
    );
    let mut transaction = begin(connection).await?;
    let query = query.bind(feed).persistent(false);
    let exists = step(query.fetch_one(&mut *transaction)).await?;
    step(transaction.rollback()).await?;
    Ok(exists)
}

/// The first feed from a name, in the table `feeds`.
pub(super) async fn first(
    connection: &mut PgConnection,
    name: &str,
) -> Result<Option<String>, StoreError> {
    let mut transaction = begin(connection).await?;
    let query = sqlx::query_scalar("select feed from feeds where feed >= $1 order by feed limit 1");
    let query = query.bind(name).persistent(false);
    let first = step(query.fetch_optional(&mut *transaction)).await?;
    step(transaction.rollback()).await?;
    Ok(first)
}

/// Chooses feeds at random. Reads a few pages of `feeds`.
pub(super) async fn sample(connection: &mut PgConnection) -> Result<Vec<String>, StoreError> {
    let mut transaction = begin(connection).await?;
    // Of a new table, Postgres has no estimate.
    let query = "select greatest(reltuples, 0)::bigint from pg_class where oid = 'feeds'::regclass";
    let query = sqlx::query_scalar(query).persistent(false);
    let feeds: i64 = step(query.fetch_one(&mut *transaction)).await?;
    let percent = (100.0 * 2.0 * SAMPLED_FEEDS as f64 / feeds.max(1) as f64).min(100.0);
    let query = sqlx::query_scalar(
        "select feed from feeds tablesample system ($1) where last_seq - trimmed_seq <= $2 limit $3",
    );
    let query = query
        .bind(percent)
        .bind(SAMPLED_NOTIFICATIONS)
        .bind(SAMPLED_FEEDS)
        .persistent(false);
    let sample = step(query.fetch_all(&mut *transaction)).await?;
    step(transaction.rollback()).await?;
    Ok(sample)
}
