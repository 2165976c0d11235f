//! The rows that are not of one feed, and each row of the tables with their indexes.

use sqlx::AssertSqlSafe;
use sqlx::postgres::PgConnection;

use super::steps::{Problems, begin, listing, step};
use crate::store::StoreError;

/// Most blocks of a table that one step reads: 16 MiB.
pub(super) const BLOCKS_PER_STEP: i64 = 2_000;

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
pub(super) async fn problems(connection: &mut PgConnection) -> Result<Problems, StoreError> {
    let mut transaction = begin(connection).await?;
    let mut problems = Problems::default();
    for check in CHECKS {
        let query = sqlx::query_as(AssertSqlSafe(listing(check))).persistent(false);
        problems.add_listed(step(query.fetch_all(&mut *transaction)).await?);
    }
    step(transaction.rollback()).await?;
    Ok(problems)
}

/// A table with its indexes.
pub(super) struct Table {
    pub(super) name: &'static str,
    /// The row, for people.
    row: &'static str,
    indexes: &'static [Index],
    /// The broken invariant of a wrong row, its condition, and the contradiction for people.
    wrong: &'static [(&'static str, &'static str, &'static str)],
}

/// An index, which finds each row of its table by its key.
struct Index {
    name: &'static str,
    /// The condition for a row `t` that it has.
    has: &'static str,
    /// The condition for a row `i` that it finds.
    finds: &'static str,
    /// An order in which only this index finds the rows, so that Postgres chooses it. Empty if no other
    /// index can find them.
    order: &'static str,
}

const fn unique(name: &'static str, finds: &'static str) -> Index {
    Index {
        name,
        has: "true",
        finds,
        order: "",
    }
}

/// The tables whose loss or damage a merchant would notice.
pub(super) const INDEXED: [Table; 7] = [
    Table {
        name: "feeds",
        row: "'the feed'",
        indexes: &[unique("feeds_pkey", "i.feed = t.feed")],
        wrong: &[],
    },
    Table {
        name: "notifications",
        row: "format('notification %s', t.seq)",
        indexes: &[
            unique("notifications_pkey", "i.feed = t.feed and i.seq = t.seq"),
            unique("notifications_identity_key", "i.identity = t.identity"),
            Index {
                name: "notifications_collapse",
                // With `is not null`, Postgres could find the rows `t` by this index too.
                has: "num_nulls(t.collapse_key) = 0",
                finds: "i.feed = t.feed and i.collapse_key is not null
                        and (i.collapse_key, i.seq) >= (t.collapse_key, t.seq)
                        and (i.collapse_key, i.seq) <= (t.collapse_key, t.seq)",
                order: "order by i.collapse_key, i.seq",
            },
            // Expressions keep Postgres from using the primary key.
            Index {
                name: "notifications_subject",
                has: "num_nulls(t.subject_key) = 0",
                finds: "i.subject_key = t.subject_key and i.feed || '' = t.feed and i.seq + 0 = t.seq",
                order: "",
            },
            Index {
                name: "notifications_order",
                has: "num_nulls(t.order_key) = 0",
                finds: "i.order_key = t.order_key and i.feed || '' = t.feed and i.seq + 0 = t.seq",
                order: "",
            },
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
        indexes: &[unique(
            "cursors_pkey",
            "i.feed = t.feed and i.subscriber = t.subscriber and i.device = t.device",
        )],
        wrong: &[],
    },
    Table {
        name: "evicted_cursors",
        row: "format('the evicted cursor of %s on device \"%s\"', t.subscriber, t.device)",
        indexes: &[unique(
            "evicted_cursors_pkey",
            "i.feed = t.feed and i.subscriber = t.subscriber and i.device = t.device",
        )],
        wrong: &[],
    },
    Table {
        name: "marks",
        row: "format('the mark with version %s', t.version)",
        indexes: &[unique(
            "marks_pkey",
            "i.feed = t.feed and i.version = t.version",
        )],
        wrong: &[],
    },
    Table {
        name: "imports",
        row: "format('the import %s', t.import_id)",
        indexes: &[unique(
            "imports_pkey",
            "i.feed = t.feed and i.import_id = t.import_id",
        )],
        wrong: &[],
    },
    Table {
        name: "settled_blocks",
        row: "format('the block %s, settled as %s,', t.block, t.kind)",
        indexes: &[unique(
            "settled_blocks_pkey",
            "i.feed = t.feed and i.kind = t.kind and i.block = t.block",
        )],
        wrong: &[
            (
                "settled",
                "t.block >= coalesce((select f.last_seq from feeds f where f.feed = t.feed), 0) / 1000",
                "ends above the newest number, so the history will not find new notifications",
            ),
            (
                "settled",
                // The bound keeps the numbers of a damaged block in their type.
                "exists (select from notifications n
                         where n.feed = t.feed and n.seq > least(t.block, 1000000000000000) * 1000
                           and n.seq <= least(t.block, 1000000000000000) * 1000 + 1000
                           and case t.kind when 'read' then n.read_at else n.handled_at end is null)",
                "has notifications without this mark, so the history does not find them",
            ),
        ],
    },
];

impl Table {
    /// The number of its blocks.
    pub(super) async fn blocks(&self, connection: &mut PgConnection) -> Result<i64, StoreError> {
        let query = "select pg_relation_size($1::regclass) / current_setting('block_size')::bigint";
        let query = sqlx::query_scalar(query).bind(self.name).persistent(false);
        step(query.fetch_one(connection)).await
    }

    /// Looks up the rows of some blocks in each index, and searches them for wrong ones. Returns their
    /// number and the problems.
    pub(super) async fn check(
        &self,
        connection: &mut PgConnection,
        (first, end): (i64, i64),
    ) -> Result<(i64, Problems), StoreError> {
        // In this transaction a lookup uses its index, and not the table itself or another index.
        let mut transaction = begin(connection).await?;
        let no_sort = sqlx::query("select set_config('enable_sort', 'off', true)");
        step(no_sort.persistent(false).execute(&mut *transaction)).await?;
        let blocks = "t.ctid >= format('(%s,0)', $1::bigint)::tid and t.ctid < format('(%s,0)', $2::bigint)::tid";
        let Self {
            name,
            row,
            indexes,
            wrong,
        } = self;
        // Every part is a constant of this file.
        let query = format!("select count(*) from {name} t where {blocks}");
        let query = sqlx::query_scalar(AssertSqlSafe(query)).persistent(false);
        let query = query.bind(first).bind(end);
        let rows = step(query.fetch_one(&mut *transaction)).await?;
        let search = |(check, condition, found): &(&str, &str, &str)| {
            format!(
                "select t.feed, '{check}' as check_name, format('%s {found}', {row}) as found
                 from {name} t
                 where {blocks} and {condition}"
            )
        };
        let queries = indexes.iter().map(|index| self.lookup(index, blocks));
        let mut problems = Problems::default();
        for query in queries.chain(wrong.iter().map(search)) {
            let query = sqlx::query_as(AssertSqlSafe(listing(&query))).persistent(false);
            let query = query.bind(first).bind(end);
            problems.add_listed(step(query.fetch_all(&mut *transaction)).await?);
        }
        step(transaction.rollback()).await?;
        Ok((rows, problems))
    }

    /// Returns the statement that looks up the rows of some blocks in an index.
    fn lookup(&self, index: &Index, blocks: &str) -> String {
        let Self { name, row, .. } = self;
        let Index {
            name: index,
            has,
            finds,
            order,
        } = index;
        format!(
            "select t.feed, 'indexes' as check_name,
                    format('%s is a row of {name}, but {index} finds %s', {row},
                           case found.rows when 0 then '0 rows' when 1 then 'another row' else 'several rows' end) as found
             from {name} t
             cross join lateral (
                 select count(*) as rows, coalesce(bool_or(r.place = t.ctid), false) as has_it
                 from (select i.ctid as place from {name} i where {finds} {order} limit 2) r) found
             where {blocks} and {has} and (found.rows <> 1 or not found.has_it)"
        )
    }
}
