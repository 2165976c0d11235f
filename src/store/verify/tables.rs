//! The rows that are not of one feed, and each row of the tables with their indexes.

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _};

use super::Problem;

/// Blocks of a table that one step reads: 16 MiB.
pub(super) const BLOCKS_PER_STEP: usize = 2_000;
/// Most rows that a step reports.
const ROWS_MAX: i64 = 20;

/// Each statement returns problems. The position of dead letters is read only if our user may read
/// the sequence.
const CHECKS: [&str; 4] = [
    "select null as feed, 'epoch' as check_name, format('there should be one epoch, but %s are stored', count(*)) as found
     from epochs having count(*) <> 1",
    "select feed, 'held' as check_name, format('%s events wait for the feed, but it is not held', count(*)) as found
     from dead_letters d
     where feed is not null and not exists (select from held_feeds h where h.feed = d.feed)
     group by feed order by feed",
    "select null as feed, 'held' as check_name,
            format('the newest dead letter has the position %s, but the next would get %s', d.position, s.last_value + 1) as found
     from (select max(position) as position from dead_letters) d
     cross join pg_sequences s
     where format('%I.%I', s.schemaname, s.sequencename)::regclass
           = pg_get_serial_sequence('dead_letters', 'position')::regclass
       and d.position > s.last_value",
    "select null as feed, 'indexes' as check_name,
            format('the index %s is not valid, so Postgres does not use it', i.indexrelid::regclass) as found
     from pg_index i
     join pg_class c on c.oid = i.indrelid
     where c.relnamespace = (select relnamespace from pg_class where oid = 'feeds'::regclass)
       and not (i.indisvalid and i.indisready and i.indislive)",
];

/// Returns the problems of rows that are not of one feed.
pub(super) async fn problems(connection: &mut PgConnection) -> Result<Vec<Problem>, sqlx::Error> {
    let mut transaction = connection.begin_with("begin read only").await?;
    let mut problems = Vec::new();
    for check in CHECKS {
        let query = sqlx::query_as(check).persistent(false);
        problems.extend(query.fetch_all(&mut *transaction).await?);
    }
    transaction.rollback().await?;
    Ok(problems)
}

/// A table, and the conditions that find a row `t` by each unique index.
pub(super) struct Table {
    pub(super) name: &'static str,
    /// The row, for people.
    row: &'static str,
    /// The name of an index, and the condition for a row `i` that it finds.
    indexes: &'static [(&'static str, &'static str)],
    /// The broken invariant of a wrong row, its condition, and the contradiction for people.
    wrong: &'static [(&'static str, &'static str, &'static str)],
}

/// The tables whose loss a merchant would notice.
pub(super) const INDEXED: [Table; 3] = [
    Table {
        name: "feeds",
        row: "'the feed'",
        indexes: &[("feeds_pkey", "i.feed = t.feed")],
        wrong: &[],
    },
    Table {
        name: "notifications",
        row: "format('notification %s', t.seq)",
        indexes: &[
            ("notifications_pkey", "i.feed = t.feed and i.seq = t.seq"),
            ("notifications_identity_key", "i.identity = t.identity"),
        ],
        wrong: &[(
            "identities",
            "t.identity <> event_identity(t.feed, t.source, t.event_id)",
            "has an identity that is not the one of its event, so this event could be stored again",
        )],
    },
    Table {
        name: "cursors",
        row: "format('the cursor of %s on device \"%s\"', t.subscriber, t.device)",
        indexes: &[(
            "cursors_pkey",
            "i.feed = t.feed and i.subscriber = t.subscriber and i.device = t.device",
        )],
        wrong: &[],
    },
];

impl Table {
    /// The number of its blocks.
    pub(super) async fn blocks(&self, connection: &mut PgConnection) -> Result<i64, sqlx::Error> {
        let query = "select pg_relation_size($1::regclass) / current_setting('block_size')::bigint";
        let query = sqlx::query_scalar(query).bind(self.name).persistent(false);
        query.fetch_one(connection).await
    }

    /// Looks up the rows of some blocks in each index, and searches them for wrong ones. Returns their
    /// number and the problems.
    pub(super) async fn check(
        &self,
        connection: &mut PgConnection,
        first: i64,
    ) -> Result<(i64, Vec<Problem>), sqlx::Error> {
        let mut transaction = connection.begin_with("begin read only").await?;
        // So that a lookup uses the index, and not the table itself.
        sqlx::raw_sql("set local enable_seqscan = off; set local enable_bitmapscan = off")
            .execute(&mut *transaction)
            .await?;
        let blocks = "t.ctid >= format('(%s,0)', $1::bigint)::tid and t.ctid < format('(%s,0)', $2::bigint)::tid";
        let end = first + BLOCKS_PER_STEP as i64;
        let Self {
            name,
            row,
            indexes,
            wrong,
        } = self;
        // Every part is a constant of this file.
        let query = format!("select count(*) from {name} t where {blocks}");
        let query = sqlx::query_scalar(AssertSqlSafe(query)).persistent(false);
        let rows = query
            .bind(first)
            .bind(end)
            .fetch_one(&mut *transaction)
            .await?;
        let lookup = |(index, condition): &(&str, &str)| {
            format!(
                "select t.feed, 'indexes' as check_name,
                        format('%s is a row of {name}, but {index} finds %s rows', {row}, found.rows) as found
                 from {name} t
                 cross join lateral (select count(*) as rows from {name} i where {condition}) found
                 where {blocks} and found.rows <> 1
                 limit {ROWS_MAX}"
            )
        };
        let search = |(check, condition, found): &(&str, &str, &str)| {
            format!(
                "select t.feed, '{check}' as check_name, format('%s {found}', {row}) as found
                 from {name} t
                 where {blocks} and {condition}
                 limit {ROWS_MAX}"
            )
        };
        let queries = indexes.iter().map(lookup);
        let mut problems = Vec::new();
        for query in queries.chain(wrong.iter().map(search)) {
            let query = sqlx::query_as(AssertSqlSafe(query)).persistent(false);
            problems.extend(
                query
                    .bind(first)
                    .bind(end)
                    .fetch_all(&mut *transaction)
                    .await?,
            );
        }
        transaction.rollback().await?;
        Ok((rows, problems))
    }
}
