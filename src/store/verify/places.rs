//! The walks over cursors and imports. Each step has its own snapshot. An ack never exceeds the last
//! number in its own snapshot, so an older one cannot contradict it. An import event changes both
//! compared rows in one transaction.

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, FromRow};

use super::feeds::{self, ROWS_PER_STEP};
use super::pace::Pace;
use super::steps::{Names, Problems, begin, listing, step};
use crate::store::StoreError;

/// Most imports that one statement compares with their items.
const IMPORTS_PER_STEP: i64 = 500;

/// A table that is read in the order of its key, in steps.
#[derive(Debug)]
pub(super) struct Places {
    /// For people.
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    table: &'static str,
    /// The columns of its primary key. The statement needs three, so a constant may stand for one.
    key: [&'static str; 3],
    rows_per_step: i64,
    /// Returns problems of the rows `c` of a step.
    problems: &'static str,
}

/// The row that a problem concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Cursor,
    Import,
}

/// An ack changes its cursor only.
const CURSORS: &str = "
select c.feed, 'cursors' as check_name,
       format('the cursor of %s on device \"%s\" is %s, but the newest number is %s', c.subscriber, c.device, c.acked_seq,
              coalesce(f.last_seq, 0)) as found
from read c
left join feeds f on f.feed = c.feed
where c.acked_seq > coalesce(f.last_seq, 0) and c.feed not like 'shopbell-canary/%'";

/// An eviction raises the row of the feed too.
const EVICTED_CURSORS: &str = "
select c.feed, 'cursors' as check_name,
       format('the evicted cursor of %s on device \"%s\" is %s, but %s', c.subscriber, c.device, c.acked_seq,
              case when c.acked_seq > coalesce(f.last_seq, 0)
                   then format('the newest number is %s', coalesce(f.last_seq, 0))
                   else format('the acks of the feed are recorded up to %s', f.acked_seq) end) as found
from read c
left join feeds f on f.feed = c.feed
where (c.acked_seq > coalesce(f.last_seq, 0) or c.acked_seq > f.acked_seq) and c.feed not like 'shopbell-canary/%'";

/// Items are deleted 30 days after the last event of their import.
const IMPORTS: &str = "
select c.feed, 'imports' as check_name,
       format('the import %s counts %s done and %s failed, but its items are %s and %s', c.import_id, c.done, c.failed,
              k.done, k.failed) as found
from read c
cross join lateral (
    select coalesce(sum(bit_count(k.seen)), 0) as done, coalesce(sum(bit_count(k.failed)), 0) as failed
    from import_items k
    where k.feed = c.feed and k.import_id = c.import_id and k.run = c.run) k
where c.updated_at > now() - interval '29 days' and (c.done, c.failed) <> (k.done, k.failed)";

pub(super) const PLACES: [Places; 3] = [
    Places {
        name: "cursor",
        kind: Kind::Cursor,
        table: "cursors",
        key: ["c.feed", "c.subscriber", "c.device"],
        rows_per_step: ROWS_PER_STEP,
        problems: CURSORS,
    },
    Places {
        name: "evicted cursor",
        kind: Kind::Cursor,
        table: "evicted_cursors",
        key: ["c.feed", "c.subscriber", "c.device"],
        rows_per_step: ROWS_PER_STEP,
        problems: EVICTED_CURSORS,
    },
    Places {
        name: "import",
        kind: Kind::Import,
        table: "imports",
        key: ["c.feed", "c.import_id", "''::text"],
        rows_per_step: IMPORTS_PER_STEP,
        problems: IMPORTS,
    },
];

/// The key of the last row of a step, and the number of its rows.
#[derive(Debug, Clone, FromRow)]
struct Last {
    feed: String,
    second: String,
    third: String,
    rows: i64,
}

/// A walk over the rows of some feeds.
pub(super) struct Walk<'a> {
    places: &'a Places,
    names: Names,
    pace: Pace,
    last: Last,
}

/// The result of a step.
#[derive(Debug, Default)]
pub(super) struct Step {
    pub(super) rows: i64,
    pub(super) problems: Problems,
    pub(super) may_have_more: bool,
}

impl<'a> Walk<'a> {
    pub(super) fn new(places: &'a Places, names: &Names) -> Self {
        Self {
            places,
            names: names.clone(),
            pace: Pace::new(places.rows_per_step),
            last: Last {
                feed: names.first.clone(),
                second: String::new(),
                third: String::new(),
                rows: 0,
            },
        }
    }

    /// The place of the next step, for people.
    pub(super) fn place(&self) -> String {
        format!(
            "the {}s after \"{}\" of feed {}",
            self.places.name,
            self.last.second.escape_debug(),
            self.last.feed
        )
    }

    /// Reads the next rows. After an error, a smaller step follows if it may succeed.
    pub(super) async fn step(&mut self, connection: &mut PgConnection) -> Result<Step, StoreError> {
        match self.read(connection).await {
            Ok(step) => {
                self.pace.grow();
                Ok(step)
            }
            Err(error) if self.pace.shrink(&error) => Ok(Step {
                may_have_more: true,
                ..Step::default()
            }),
            Err(error) => Err(error),
        }
    }

    /// Continues with the next feed after a row that cannot be read. Returns whether there is one.
    pub(super) async fn skip_feed(
        &mut self,
        connection: &mut PgConnection,
    ) -> Result<bool, StoreError> {
        let next = feeds::first(connection, &Names::after(&self.last.feed)).await?;
        let Some(next) = next.filter(|feed| self.names.contain(feed)) else {
            return Ok(false);
        };
        self.last = Last {
            feed: next,
            second: String::new(),
            third: String::new(),
            rows: 0,
        };
        Ok(true)
    }

    async fn read(&mut self, connection: &mut PgConnection) -> Result<Step, StoreError> {
        let Places {
            table,
            key: [first, second, third],
            problems,
            ..
        } = self.places;
        // Every part is a constant of this file. No key has an empty part in second place, so the
        // first step begins with the first row of the feed.
        let read = format!(
            "with read as (
                 select c.*, {third} as third from {table} c
                 where ({first}, {second}, {third}) > ($1, $2, $3) and ($4::text is null or {first} < $4)
                 order by {first}, {second}, {third}
                 limit $5)"
        );
        let mut snapshot = begin(connection).await?;
        let last = format!(
            "{read} select {first}, {second} as second, c.third, count(*) over () as rows from read c
             order by {first} desc, {second} desc, c.third desc limit 1"
        );
        let query = self.bind(sqlx::query_as(AssertSqlSafe(last)));
        let last: Option<Last> = step(query.fetch_optional(&mut *snapshot)).await?;
        let Some(last) = last else {
            step(snapshot.rollback()).await?;
            return Ok(Step::default());
        };
        let listing = format!("{read} {}", listing(problems));
        let mut found = Problems::default();
        let query = self.bind(sqlx::query_as(AssertSqlSafe(listing)));
        found.add_listed(step(query.fetch_all(&mut *snapshot)).await?);
        step(snapshot.rollback()).await?;
        let result = Step {
            rows: last.rows,
            problems: found,
            may_have_more: last.rows >= self.pace.size(),
        };
        self.last = last;
        Ok(result)
    }

    fn bind<'q, O>(
        &self,
        query: sqlx::query::QueryAs<'q, sqlx::Postgres, O, sqlx::postgres::PgArguments>,
    ) -> sqlx::query::QueryAs<'q, sqlx::Postgres, O, sqlx::postgres::PgArguments> {
        let Last {
            feed,
            second,
            third,
            ..
        } = self.last.clone();
        query
            .bind(feed)
            .bind(second)
            .bind(third)
            .bind(self.names.before.clone())
            .bind(self.pace.size())
            .persistent(false)
    }
}
