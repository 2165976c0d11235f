//! Dead letters, from the commit of their batch until an operator replays or deletes them.

use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::{FromRow, Postgres};

use super::StoreError;
use super::pool::Pool;
use crate::model::feed::Feed;

/// Most bytes of a body that are stored: the default maximum of RabbitMQ. No event is that large.
const BODY_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The same for a dead letter that Postgres has refused before.
const BODY_BYTES_LEAST: usize = 64 * 1024;
/// If a replica dies while it publishes, its dead letters wait so long for another replica.
const LEASE: &str = "1 minute";
/// Most bytes of the bodies that are leased together, unless the first body alone is larger.
const LEASED_BYTES_MAX: i64 = 4 * 1024 * 1024;
/// Most bytes of published dead letters that are kept; RabbitMQ's queue has the older ones.
const PUBLISHED_BYTES_MAX: i64 = 1024 * 1024 * 1024;
/// A published dead letter is kept so long: nobody replays an older one, and RabbitMQ's queue has it.
const PUBLISHED_KEPT: &str = "90 days";
/// Most rows that one statement deletes.
const DELETED_MAX: i64 = 1_000;
/// Most dead letters that are counted for a gauge.
const COUNTED_MAX: i64 = 100_000;

/// An event that is not a notification, and the reason.
#[derive(Debug, Clone, FromRow)]
pub struct StoredDeadLetter {
    /// Its name in commands.
    pub id: String,
    /// A word of the contract.
    pub reason: String,
    /// The exact error, for people.
    pub detail: String,
    /// The exchange it was published to.
    pub exchange: String,
    /// The routing key it was published with.
    pub routing_key: String,
    /// The content type it came with.
    pub content_type: Option<String>,
    /// Its AMQP properties, encoded.
    pub properties: Vec<u8>,
    /// The body, or its first bytes if it is too large.
    pub body: Vec<u8>,
    /// Size of the original body in bytes.
    pub bytes: i64,
    /// The held feed that it waits for; then it is not dead.
    #[sqlx(try_from = "HeldFeed")]
    pub feed: Option<Feed>,
}

/// The column `feed` of `dead_letters`.
#[derive(sqlx::Type)]
#[sqlx(transparent)]
struct HeldFeed(Option<String>);

impl From<HeldFeed> for Option<Feed> {
    fn from(HeldFeed(feed): HeldFeed) -> Self {
        Feed::parse(&feed?).ok()
    }
}

impl StoredDeadLetter {
    /// The part of a body that is stored.
    pub fn body_of(body: &[u8]) -> Vec<u8> {
        body.get(..BODY_BYTES_MAX).unwrap_or(body).to_vec()
    }

    /// Removes all that Postgres may have refused.
    pub fn least(mut self) -> Self {
        for text in [&mut self.detail, &mut self.exchange, &mut self.routing_key] {
            text.clear();
        }
        self.content_type = None;
        self.body.truncate(BODY_BYTES_LEAST);
        self
    }

    /// Whether [`least`](Self::least) would change nothing.
    pub fn is_least(&self) -> bool {
        let texts = [&self.detail, &self.exchange, &self.routing_key];
        texts.iter().all(|text| text.is_empty())
            && self.content_type.is_none()
            && self.body.len() <= BODY_BYTES_LEAST
    }

    /// Binds one array for each column, in the order of the fields.
    pub(super) fn bind<'a>(
        dead_letters: &[&'a Self],
        query: Query<'a, Postgres, PgArguments>,
    ) -> Query<'a, Postgres, PgArguments> {
        fn column<'a, T>(
            dead_letters: &[&'a StoredDeadLetter],
            of: impl Fn(&'a StoredDeadLetter) -> T,
        ) -> Vec<T> {
            dead_letters.iter().map(|one| of(one)).collect()
        }
        let content_type = |one: &'a Self| one.content_type.as_deref().map(printable);
        query
            .bind(column(dead_letters, |one| printable(&one.id)))
            .bind(column(dead_letters, |one| printable(&one.reason)))
            .bind(column(dead_letters, |one| printable(&one.detail)))
            .bind(column(dead_letters, |one| printable(&one.exchange)))
            .bind(column(dead_letters, |one| printable(&one.routing_key)))
            .bind(column(dead_letters, content_type))
            .bind(column(dead_letters, |one| one.properties.as_slice()))
            .bind(column(dead_letters, |one| one.body.as_slice()))
            .bind(column(dead_letters, |one| one.bytes))
            .bind(column(dead_letters, |one| {
                one.feed.as_ref().map(Feed::as_str)
            }))
    }
}

/// Replaces control characters: Postgres stores no NUL in a text, and the text is for people.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| match c.is_control() {
            true => char::REPLACEMENT_CHARACTER,
            false => c,
        })
        .collect()
}

/// Numbers of dead letters, each up to [`COUNTED_MAX`].
#[derive(Debug, Clone, Copy, Default, FromRow)]
pub struct Counts {
    /// Stored dead letters.
    pub stored: i64,
    /// Of these, not yet in RabbitMQ's queue.
    pub unpublished: i64,
    /// Events that wait for a held feed.
    pub held: i64,
    /// Held feeds.
    pub feeds_held: i64,
}

/// Counts dead letters and held feeds.
///
/// Locks nothing. Reads `dead_letters_unpublished`, `dead_letters_held` and the table, which is
/// small.
pub async fn count(pool: &Pool) -> Result<Counts, StoreError> {
    let query = sqlx::query(
        "select (select count(*) from (select from dead_letters where feed is null limit $1) s) as stored,
                (select count(*) from (select from dead_letters where feed is null and published_at is null limit $1) u)
                    as unpublished,
                (select count(*) from (select from dead_letters where feed is not null limit $1) h) as held,
                (select count(*) from held_feeds) as feeds_held",
    )
    .bind(COUNTED_MAX);
    super::fetch_one(pool, query).await
}

/// Leases unpublished dead letters to this replica, oldest first and `count_max` at most.
///
/// A lease ends with [`set_published`], with [`postpone`], or after [`LEASE`]. Locks the rows, and
/// skips locked ones; uses `dead_letters_unpublished`.
pub async fn lease(pool: &Pool, count_max: i64) -> Result<Vec<StoredDeadLetter>, StoreError> {
    let query = sqlx::query(
        "with next as materialized (
             select position, sum(octet_length(body)) over (order by position) - octet_length(body) as bytes_before
             from (select position, body from dead_letters
                   where published_at is null and feed is null and (leased_until is null or leased_until < now())
                   order by position
                   limit $1
                   for update skip locked) l
         ), leased as (
             update dead_letters d set leased_until = now() + $2::interval
             from next n where d.position = n.position and n.bytes_before < $3
             returning d.*)
         select * from leased order by position",
    )
    .bind(count_max)
    .bind(LEASE)
    .bind(LEASED_BYTES_MAX);
    super::fetch(pool, query).await
}

/// Records that RabbitMQ has confirmed these. Locks the rows; uses `dead_letters_id_key`.
pub async fn set_published(pool: &Pool, ids: &[String]) -> Result<(), StoreError> {
    let query = sqlx::query(
        "update dead_letters set published_at = now(), leased_until = null where id = any ($1)",
    );
    super::execute(pool, query.bind(ids)).await
}

/// Ends the leases of these after `seconds`. Locks the rows; uses `dead_letters_id_key`.
pub async fn postpone(pool: &Pool, ids: &[String], seconds: i64) -> Result<(), StoreError> {
    let query = sqlx::query(
        "update dead_letters set leased_until = now() + make_interval(secs => $2) where id = any ($1)",
    );
    super::execute(pool, query.bind(ids).bind(seconds as f64)).await
}

/// A stored dead letter and its position.
#[derive(Debug, FromRow)]
pub struct Stored {
    /// Grows from one to the next.
    pub position: i64,
    /// The dead letter.
    #[sqlx(flatten)]
    pub letter: StoredDeadLetter,
}

/// Reads the first dead letter after position `after`, up to `through`. Locks nothing; uses
/// `dead_letters_pkey`.
pub async fn next(pool: &Pool, after: i64, through: i64) -> Result<Option<Stored>, StoreError> {
    let query = sqlx::query(
        "select * from dead_letters where position > $1 and position <= $2 order by position limit 1",
    );
    let found = super::fetch(pool, query.bind(after).bind(through)).await;
    Ok(found?.pop())
}

/// Reads the dead letter with this id. Locks nothing; uses `dead_letters_id_key`.
pub async fn find(pool: &Pool, id: &str) -> Result<Option<Stored>, StoreError> {
    let query = sqlx::query("select * from dead_letters where id = $1").bind(id);
    Ok(super::fetch(pool, query).await?.pop())
}

/// Returns whether a dead letter has this id. Locks nothing; uses `dead_letters_id_key`.
pub async fn exists(pool: &Pool, id: &str) -> Result<bool, StoreError> {
    let query = sqlx::query("select from dead_letters where id = $1").bind(id);
    Ok(!super::rows(pool, query).await?.is_empty())
}

/// Returns the number of dead letters, and the position of the newest. Locks nothing; reads the
/// table.
pub async fn extent(pool: &Pool) -> Result<(i64, i64), StoreError> {
    let query = sqlx::query("select count(*), coalesce(max(position), 0) from dead_letters");
    super::fetch_one(pool, query).await
}

/// Deletes a dead letter; returns whether it existed. Locks its row; uses `dead_letters_id_key`.
pub async fn remove(pool: &Pool, id: &str) -> Result<bool, StoreError> {
    let query = sqlx::query("delete from dead_letters where id = $1 returning id").bind(id);
    Ok(!super::rows(pool, query).await?.is_empty())
}

/// Deletes the oldest published dead letters beyond [`PUBLISHED_BYTES_MAX`], and those older than
/// [`PUBLISHED_KEPT`]; returns how many. Locks the deleted rows; reads the table.
pub async fn trim(pool: &Pool) -> Result<usize, StoreError> {
    let query = sqlx::query(
        "delete from dead_letters d using (
             select position
             from (select position, published_at, sum(octet_length(body)) over (order by position desc) as bytes
                   from dead_letters where published_at is not null) p
             where bytes > $1 or published_at < now() - $2::interval
             order by position
             limit $3) old
         where d.position = old.position
         returning d.position",
    )
    .bind(PUBLISHED_BYTES_MAX)
    .bind(PUBLISHED_KEPT)
    .bind(DELETED_MAX);
    Ok(super::rows(pool, query).await?.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_replaced() {
        assert_eq!(printable("a\0b\u{1b}[31m ü"), "a\u{fffd}b\u{fffd}[31m ü");
    }

    #[test]
    fn a_body_is_cut_to_its_bound() {
        let body = vec![b'x'; BODY_BYTES_MAX + 1];
        for (bytes, stored) in [
            (BODY_BYTES_MAX, BODY_BYTES_MAX),
            (BODY_BYTES_MAX + 1, BODY_BYTES_MAX),
        ] {
            assert_eq!(StoredDeadLetter::body_of(&body[..bytes]).len(), stored);
        }
    }
}
