//! Dead letters, from the commit of their batch until an operator has replayed or dropped them.

use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{Postgres, Row};

use super::StoreError;
use super::pools::Pool;
use crate::model::feed::Feed;

/// Most bytes of a body that are stored: RabbitMQ takes no larger message unless it is told to. No event is that large.
const BODY_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The same where Postgres refused the letter with all of it.
const BODY_BYTES_LEAST: usize = 64 * 1024;
/// A replica that dies while it publishes holds its letters up for so long.
const LEASE: &str = "1 minute";
/// Bodies that are published together have so many bytes at most, or are one.
const LEASED_BYTES_MAX: i64 = 4 * 1024 * 1024;
/// Published letters are kept up to so many bytes; the oldest beyond are in RabbitMQ's queue only.
const PUBLISHED_BYTES_MAX: i64 = 1024 * 1024 * 1024;
/// Most letters that are counted for a gauge.
const COUNTED_MAX: i64 = 100_000;

/// An event that is no notification, and the reason.
#[derive(Debug, Clone)]
pub struct Letter {
    /// What the commands name it by.
    pub id: String,
    /// A word of the contract.
    pub reason: String,
    /// What exactly is wrong, for people.
    pub detail: String,
    /// The exchange it was published to.
    pub exchange: String,
    /// The routing key it was published with.
    pub routing_key: String,
    /// The content type it came with.
    pub content_type: Option<String>,
    /// What else came with it, encoded.
    pub properties: Vec<u8>,
    /// The body, or its first bytes where it is too large to be stored.
    pub body: Vec<u8>,
    /// How many bytes the body had.
    pub bytes: i64,
    /// The damaged feed that it waits for: then it is not dead.
    pub feed: Option<Feed>,
}

impl Letter {
    /// The part of a body that is stored.
    pub fn body_of(body: &[u8]) -> Vec<u8> {
        body.get(..BODY_BYTES_MAX).unwrap_or(body).to_vec()
    }

    /// Without what Postgres may have refused, so that it is stored whatever it holds.
    pub fn least(mut self) -> Self {
        for text in [&mut self.detail, &mut self.exchange, &mut self.routing_key] {
            text.clear();
        }
        self.content_type = None;
        self.body.truncate(BODY_BYTES_LEAST);
        self
    }

    /// Whether nothing more can be left out of it.
    pub fn is_least(&self) -> bool {
        let texts = [&self.detail, &self.exchange, &self.routing_key];
        texts.iter().all(|text| text.is_empty())
            && self.content_type.is_none()
            && self.body.len() <= BODY_BYTES_LEAST
    }

    pub(super) fn bind<'a>(
        letters: &[&'a Self],
        query: Query<'a, Postgres, PgArguments>,
    ) -> Query<'a, Postgres, PgArguments> {
        let text = |of: fn(&Self) -> &str| {
            letters
                .iter()
                .map(|letter| printable(of(letter)))
                .collect::<Vec<_>>()
        };
        query
            .bind(text(|letter| &letter.id))
            .bind(text(|letter| &letter.reason))
            .bind(text(|letter| &letter.detail))
            .bind(text(|letter| &letter.exchange))
            .bind(text(|letter| &letter.routing_key))
            .bind(
                letters
                    .iter()
                    .map(|letter| letter.content_type.as_deref().map(printable))
                    .collect::<Vec<_>>(),
            )
            .bind(
                letters
                    .iter()
                    .map(|letter| letter.properties.as_slice())
                    .collect::<Vec<_>>(),
            )
            .bind(
                letters
                    .iter()
                    .map(|letter| letter.body.as_slice())
                    .collect::<Vec<_>>(),
            )
            .bind(
                letters
                    .iter()
                    .map(|letter| letter.bytes)
                    .collect::<Vec<_>>(),
            )
            .bind(
                letters
                    .iter()
                    .map(|letter| letter.feed.as_ref().map(Feed::as_str))
                    .collect::<Vec<_>>(),
            )
    }

    pub(super) fn read(row: &PgRow) -> Result<Self, StoreError> {
        let feed: Option<String> = row.try_get("feed")?;
        Ok(Self {
            id: row.try_get("id")?,
            reason: row.try_get("reason")?,
            detail: row.try_get("detail")?,
            exchange: row.try_get("exchange")?,
            routing_key: row.try_get("routing_key")?,
            content_type: row.try_get("content_type")?,
            properties: row.try_get("properties")?,
            body: row.try_get("body")?,
            bytes: row.try_get("bytes")?,
            feed: feed.and_then(|feed| Feed::parse(&feed).ok()),
        })
    }
}

/// Postgres' text holds no NUL, and people read no control characters.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_control() {
                char::REPLACEMENT_CHARACTER
            } else {
                c
            }
        })
        .collect()
}

/// How many there are, up to a bound.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    /// Dead letters that nobody has replayed or dropped.
    pub stored: i64,
    /// Of these, not yet in RabbitMQ's queue.
    pub unpublished: i64,
    /// Events that wait for a damaged feed.
    pub held: i64,
    /// Feeds that are held.
    pub feeds_held: i64,
}

/// Counts them. Walks `dead_letters_unpublished`, `dead_letters_held` and the table, which is small.
pub async fn count(pool: &Pool) -> Result<Counts, StoreError> {
    let query = sqlx::query(
        "select (select count(*) from (select from dead_letters where feed is null limit $1) s) as stored,
                (select count(*) from (select from dead_letters where feed is null and published_at is null limit $1) u)
                    as unpublished,
                (select count(*) from (select from dead_letters where feed is not null limit $1) h) as held,
                (select count(*) from held_feeds) as feeds_held",
    )
    .bind(COUNTED_MAX);
    let rows = super::rows(pool, query).await?;
    let Some(row) = rows.first() else {
        return Ok(Counts::default());
    };
    Ok(Counts {
        stored: row.try_get("stored")?,
        unpublished: row.try_get("unpublished")?,
        held: row.try_get("held")?,
        feeds_held: row.try_get("feeds_held")?,
    })
}

/// Takes up to `most` unpublished letters, oldest first, for this replica alone to publish: until they are
/// [`published`], [`postpone`]d, or the lease ends. Walks `dead_letters_unpublished`.
pub async fn lease(pool: &Pool, most: i64) -> Result<Vec<Letter>, StoreError> {
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
    .bind(most)
    .bind(LEASE)
    .bind(LEASED_BYTES_MAX);
    super::rows(pool, query)
        .await?
        .iter()
        .map(Letter::read)
        .collect()
}

/// Notes that RabbitMQ has confirmed these.
pub async fn published(pool: &Pool, ids: &[String]) -> Result<(), StoreError> {
    let query = sqlx::query(
        "update dead_letters set published_at = now(), leased_until = null where id = any ($1)",
    );
    super::rows(pool, query.bind(ids)).await.map(drop)
}

/// Gives these back, to be leased again after `seconds`.
pub async fn postpone(pool: &Pool, ids: &[String], seconds: i64) -> Result<(), StoreError> {
    let query = sqlx::query(
        "update dead_letters set leased_until = now() + make_interval(secs => $2) where id = any ($1)",
    );
    super::rows(pool, query.bind(ids).bind(seconds as f64))
        .await
        .map(drop)
}

/// A stored letter in its place in the order.
#[derive(Debug)]
pub struct Stored {
    /// Grows from letter to letter.
    pub position: i64,
    /// The letter.
    pub letter: Letter,
}

/// The next letter after a position, oldest first, up to a position where one is given. Walks `dead_letters_pkey`.
pub async fn next(pool: &Pool, after: i64, through: i64) -> Result<Option<Stored>, StoreError> {
    let query = sqlx::query(
        "select * from dead_letters where position > $1 and position <= $2 order by position limit 1",
    );
    let rows = super::rows(pool, query.bind(after).bind(through)).await?;
    let stored = |row: &PgRow| {
        Ok(Stored {
            position: row.try_get("position")?,
            letter: Letter::read(row)?,
        })
    };
    rows.first().map(stored).transpose()
}

/// The letter of this id. Walks `dead_letters_id_key`.
pub async fn find(pool: &Pool, id: &str) -> Result<Option<Stored>, StoreError> {
    let rows = super::rows(
        pool,
        sqlx::query("select * from dead_letters where id = $1").bind(id),
    )
    .await?;
    let stored = |row: &PgRow| {
        Ok(Stored {
            position: row.try_get("position")?,
            letter: Letter::read(row)?,
        })
    };
    rows.first().map(stored).transpose()
}

/// Whether there is a letter of this id. Walks `dead_letters_id_key`.
pub async fn exists(pool: &Pool, id: &str) -> Result<bool, StoreError> {
    Ok(!super::rows(
        pool,
        sqlx::query("select from dead_letters where id = $1").bind(id),
    )
    .await?
    .is_empty())
}

/// How many there are, and the position of the newest.
pub async fn extent(pool: &Pool) -> Result<(i64, i64), StoreError> {
    let query = sqlx::query(
        "select count(*) as letters, coalesce(max(position), 0) as newest from dead_letters",
    );
    let rows = super::rows(pool, query).await?;
    let Some(row) = rows.first() else {
        return Ok((0, 0));
    };
    Ok((row.try_get("letters")?, row.try_get("newest")?))
}

/// Removes a letter for good; returns whether it was there.
pub async fn remove(pool: &Pool, id: &str) -> Result<bool, StoreError> {
    let query = sqlx::query("delete from dead_letters where id = $1 returning id").bind(id);
    Ok(!super::rows(pool, query).await?.is_empty())
}

/// Removes the oldest published letters beyond the bytes that are kept; they stay in RabbitMQ's queue. Returns how many.
pub async fn trim(pool: &Pool) -> Result<usize, StoreError> {
    let query = sqlx::query(
        "delete from dead_letters d using (
             select position, sum(octet_length(body)) over (order by position desc) as bytes
             from dead_letters where published_at is not null) p
         where d.position = p.position and p.bytes > $1
         returning d.position",
    );
    Ok(super::rows(pool, query.bind(PUBLISHED_BYTES_MAX))
        .await?
        .len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_that_postgres_refuses_becomes_printable() {
        assert_eq!(printable("a\0b\u{1b}[31m ü"), "a\u{fffd}b\u{fffd}[31m ü");
    }
}
