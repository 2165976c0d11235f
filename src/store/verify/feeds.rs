//! The rows of feeds: numbers, counts, cursors, marks and imports.

use std::fmt;

use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, FromRow};

use super::Problem;

/// Most feeds of a page.
const FEEDS_MAX: i64 = 500;
/// A page ends at the feed with which it has so many notifications. A larger feed is a page alone.
const NOTIFICATIONS_MAX: i64 = 50_000;
/// Feeds of a sample.
const SAMPLED_FEEDS: i64 = 100;
/// Most notifications of a feed in a sample, so that a sample takes little time.
const SAMPLED_NOTIFICATIONS: i64 = 10_000;
/// The character after which the names begin that follow a feed at once in C order.
const NEXT: char = '\u{1}';

/// The statements of a page. Each returns problems for the feeds from $1 through $2, or all from $1
/// if $2 is null. They leave out the feeds of canaries, which are deleted while acks for them may
/// still arrive.
const CHECKS: [&str; 4] = [NOTIFICATIONS, CURSORS, MARKS, IMPORTS];

/// A full join, because rows of a feed without a row in `feeds` are a problem too.
const NOTIFICATIONS: &str = "
with stored as (
    select n.feed, count(*) as stored, min(n.seq) as lowest, max(n.seq) as highest,
           count(*) filter (where n.read_at is null) as unread,
           count(*) filter (where n.handled_at is null) as unhandled
    from notifications n
    where n.feed >= $1 and ($2::text is null or n.feed <= $2)
    group by n.feed)
select feed, check_name, found
from (select * from feeds f where f.feed >= $1 and ($2::text is null or f.feed <= $2)) f
full join stored s using (feed)
cross join lateral (values
    ('numbers', case when f.last_seq is null
        then format('%s notifications are stored, but the feed has no row', s.stored) end),
    ('numbers', case when coalesce(s.highest, f.trimmed_seq) > f.last_seq
        then format('the newest number should be %s, but %s is stored', f.last_seq, s.highest) end),
    ('numbers', case when s.lowest <= f.trimmed_seq
        then format('numbers up to %s should be removed, but %s is stored', f.trimmed_seq, s.lowest) end),
    ('numbers', case when coalesce(s.stored, 0) < f.last_seq - f.trimmed_seq
        then format('%s notifications from %s to %s are missing%s', f.last_seq - f.trimmed_seq - coalesce(s.stored, 0),
                    f.trimmed_seq + 1, f.last_seq,
                    (select format(', the first is %s', g.seq)
                     from generate_series(f.trimmed_seq + 1, f.last_seq) g (seq)
                     where not exists (select from notifications n where n.feed = f.feed and n.seq = g.seq)
                     limit 1)) end),
    ('counts', case when coalesce(s.unread, 0) <> f.unread
        then format('the count of unread notifications is %s, but %s have no read mark', f.unread, coalesce(s.unread, 0)) end),
    ('counts', case when coalesce(s.unhandled, 0) <> f.unhandled
        then format('the count of unhandled notifications is %s, but %s have no handle mark', f.unhandled,
                    coalesce(s.unhandled, 0)) end),
    ('counts', case when f.read_seq > f.last_seq
        then format('all up to %s should be read, but the newest number is %s', f.read_seq, f.last_seq) end),
    ('counts', case when f.read_seq > f.trimmed_seq and f.unread > 0
        then (select format('all up to %s should be read, but %s is unread', f.read_seq, n.seq)
              from notifications n
              where n.feed = f.feed and n.seq <= f.read_seq and n.read_at is null
              limit 1) end),
    ('cursors', case when f.acked_seq > f.last_seq
        then format('the highest ack is %s, but the newest number is %s', f.acked_seq, f.last_seq) end)
) as p (check_name, found)
where found is not null and feed not like 'shopbell-canary/%'
order by feed";

/// An ack changes its cursor only, but an eviction raises the row of the feed too.
const CURSORS: &str = "
select c.feed, 'cursors' as check_name,
       format('the %s of %s on device \"%s\" is %s, but %s', c.kind, c.subscriber, c.device, c.acked_seq,
              case when c.acked_seq > coalesce(f.last_seq, 0)
                   then format('the newest number is %s', coalesce(f.last_seq, 0))
                   else format('the acks of the feed are recorded up to %s', f.acked_seq) end) as found
from (select 'cursor' as kind, feed, subscriber, device, acked_seq from cursors
      union all
      select 'evicted cursor', feed, subscriber, device, acked_seq from evicted_cursors) c
left join feeds f on f.feed = c.feed
where c.feed >= $1 and ($2::text is null or c.feed <= $2)
  and (c.acked_seq > coalesce(f.last_seq, 0) or c.kind = 'evicted cursor' and c.acked_seq > f.acked_seq)
  and c.feed not like 'shopbell-canary/%'
order by c.feed, c.subscriber, c.device";

const MARKS: &str = "
select m.feed, 'marks' as check_name,
       case when m.newest > coalesce(f.version, 0)
            then format('the newest mark should have the version %s, but %s is stored', coalesce(f.version, 0), m.newest)
            else format('the marks from version %s to %s should be %s rows, but %s are stored', m.oldest, m.newest,
                        m.newest - m.oldest + 1, m.stored) end as found
from (select k.feed, count(*) as stored, min(k.version) as oldest, max(k.version) as newest
      from marks k
      where k.feed >= $1 and ($2::text is null or k.feed <= $2)
      group by k.feed) m
left join feeds f on f.feed = m.feed
where m.newest > coalesce(f.version, 0) or m.newest - m.oldest + 1 <> m.stored
order by m.feed";

/// Items are deleted 30 days after the last event of their import.
const IMPORTS: &str = "
select i.feed, 'imports' as check_name,
       format('the import %s counts %s done and %s failed, but its items are %s and %s', i.import_id, i.done, i.failed,
              k.done, k.failed) as found
from imports i
cross join lateral (
    select coalesce(sum(bit_count(k.seen)), 0) as done, coalesce(sum(bit_count(k.failed)), 0) as failed
    from import_items k
    where k.feed = i.feed and k.import_id = i.import_id and k.run = i.run) k
where i.feed >= $1 and ($2::text is null or i.feed <= $2)
  and i.updated_at > now() - interval '29 days'
  and (i.done, i.failed) <> (k.done, k.failed)
order by i.feed, i.import_id";

/// The rows of the feeds from one name through another.
#[derive(Debug)]
pub(super) struct Page {
    first: String,
    /// `None` if the page has every feed from the first.
    last: Option<String>,
}

#[derive(FromRow)]
struct Size {
    feed: String,
    notifications: i64,
}

impl Page {
    /// One feed.
    pub(super) fn of(feed: &str) -> Self {
        Self {
            first: feed.to_owned(),
            last: Some(feed.to_owned()),
        }
    }

    /// The page that begins with the name `first`.
    pub(super) async fn from(
        connection: &mut PgConnection,
        first: &str,
    ) -> Result<Self, sqlx::Error> {
        let query = sqlx::query_as(
            "select feed, last_seq - trimmed_seq as notifications from feeds where feed >= $1 order by feed limit $2",
        );
        let query = query.bind(first).bind(FEEDS_MAX).persistent(false);
        let sizes: Vec<Size> = query.fetch_all(connection).await?;
        let is_end = (sizes.len() as i64) < FEEDS_MAX;
        let (mut total, mut last) = (0, None);
        for Size {
            feed,
            notifications,
        } in sizes
        {
            if last.is_some() && total + notifications > NOTIFICATIONS_MAX {
                let first = first.to_owned();
                return Ok(Self { first, last });
            }
            total += notifications;
            last = Some(feed);
        }
        Ok(Self {
            first: first.to_owned(),
            last: last.filter(|_| !is_end),
        })
    }

    /// The name with which the next page begins.
    pub(super) fn next(&self) -> Option<String> {
        self.last.as_ref().map(|last| format!("{last}{NEXT}"))
    }

    /// Returns the number of feeds, of their notifications, and the problems, all in one snapshot.
    pub(super) async fn check(
        &self,
        connection: &mut PgConnection,
    ) -> Result<(i64, i64, Vec<Problem>), sqlx::Error> {
        let mut snapshot = connection
            .begin_with("begin isolation level repeatable read, read only")
            .await?;
        let query = sqlx::query_as(
            "select count(*), coalesce(sum(last_seq - trimmed_seq), 0)::bigint
             from feeds where feed >= $1 and ($2::text is null or feed <= $2)",
        );
        let query = query.bind(&self.first).bind(&self.last).persistent(false);
        let (feeds, notifications) = query.fetch_one(&mut *snapshot).await?;
        let mut problems = Vec::new();
        for check in CHECKS {
            let query = sqlx::query_as(check).bind(&self.first).bind(&self.last);
            problems.extend(query.persistent(false).fetch_all(&mut *snapshot).await?);
        }
        snapshot.rollback().await?;
        Ok((feeds, notifications, problems))
    }
}

impl fmt::Display for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.last {
            Some(last) if *last == self.first => write!(f, "feed {last}"),
            Some(last) => write!(f, "feeds from \"{}\" to {last}", self.first.escape_debug()),
            None => write!(f, "feeds from \"{}\"", self.first.escape_debug()),
        }
    }
}

/// Chooses feeds at random. Reads a few pages of `feeds`.
pub(super) async fn sample(connection: &mut PgConnection) -> Result<Vec<String>, sqlx::Error> {
    // Of a new table, Postgres has no estimate.
    let query = "select greatest(reltuples, 0)::bigint from pg_class where oid = 'feeds'::regclass";
    let feeds: i64 = sqlx::query_scalar(query)
        .persistent(false)
        .fetch_one(&mut *connection)
        .await?;
    let percent = (100.0 * 2.0 * SAMPLED_FEEDS as f64 / feeds.max(1) as f64).min(100.0);
    let query = sqlx::query_scalar(
        "select feed from feeds tablesample system ($1) where last_seq - trimmed_seq <= $2 limit $3",
    );
    let query = query
        .bind(percent)
        .bind(SAMPLED_NOTIFICATIONS)
        .bind(SAMPLED_FEEDS);
    query.persistent(false).fetch_all(connection).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_begins_after_the_last_feed_and_before_all_others() {
        let next = Page::of("merchant-4").next();
        let Some(next) = next else {
            panic!("a page with an end has a next page")
        };
        assert!("merchant-4" < next.as_str());
        assert!(
            ["merchant-4-", "merchant-42", "merchant-5"]
                .iter()
                .all(|name| next.as_str() < *name)
        );
    }
}
