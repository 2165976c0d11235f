//! The world's database: queries for the assertions of a story, and locks that delay Shopbell.

use std::time::Duration;

use sqlx::{Postgres, Transaction};

use super::super::{PATIENCE, eventually, holds};
use super::World;

impl World {
    /// The number of notifications in `feed`, and the highest `seq`.
    pub async fn stored(&self, feed: &str) -> (u64, u64) {
        let query = "select count(*), coalesce(max(seq), 0) from notifications where feed = $1";
        let (count, last): (i64, i64) = sqlx::query_as(query)
            .bind(feed)
            .fetch_one(&self.pool)
            .await
            .expect("the database answers");
        (count.unsigned_abs(), last.unsigned_abs())
    }

    /// The number of notifications in all feeds.
    pub async fn stored_in_all(&self) -> u64 {
        self.number("select count(*) from notifications").await
    }

    /// The highest `seq` of all feeds.
    pub async fn last_seq(&self) -> u64 {
        self.number("select coalesce(max(seq), 0) from notifications")
            .await
    }

    /// Changes the database, unknown to Shopbell.
    pub async fn change_database(&self, statements: &'static str) {
        sqlx::raw_sql(statements)
            .execute(&self.pool)
            .await
            .expect("the database accepts the statement");
    }

    /// The result of a query for one number.
    pub async fn number(&self, query: &'static str) -> u64 {
        let number = sqlx::query_scalar::<_, i64>(query)
            .fetch_one(&self.pool)
            .await;
        number.expect("the database answers").unsigned_abs()
    }

    /// Waits until all feeds together hold at least `least` notifications. The database may be away
    /// meanwhile.
    pub async fn stored_reaches(&self, least: u64, bound: Duration) {
        eventually(&format!("{least} are stored"), bound, async || {
            let query = sqlx::query_scalar::<_, i64>("select count(*) from notifications");
            let count = query
                .fetch_one(&self.pool)
                .await
                .map_err(|error| error.to_string())?;
            holds(count.unsigned_abs() >= least, count)
        })
        .await;
    }

    /// Waits until `feed` holds exactly `1..=count`.
    pub async fn expect_stored(&self, feed: &str, count: u64) {
        eventually(
            &format!("1..={count} are stored in {feed}"),
            PATIENCE,
            async || {
                let stored = self.stored(feed).await;
                holds(
                    stored == (count, count),
                    format!("(count, last) = {stored:?}"),
                )
            },
        )
        .await;
    }

    /// Waits until `subscriber`'s cursor in its own feed is at `seq` in the database.
    pub async fn expect_cursor(&self, subscriber: &str, device: &str, seq: u64) {
        let query =
            "select acked_seq from cursors where feed = $1 and subscriber = $1 and device = $2";
        eventually(
            &format!("the cursor of {subscriber} {device} stands at {seq}"),
            PATIENCE,
            async || {
                let query = sqlx::query_scalar::<_, i64>(query)
                    .bind(subscriber)
                    .bind(device);
                let acked = query
                    .fetch_optional(&self.pool)
                    .await
                    .expect("the database answers")
                    .unwrap_or(-1);
                holds(u64::try_from(acked) == Ok(seq), acked)
            },
        )
        .await;
    }

    /// Waits until `subscriber`'s cursor in `feed` is at `seq` in the database.
    pub async fn expect_acked(&self, feed: &str, subscriber: &str, device: &str, seq: u64) {
        let query =
            "select acked_seq from cursors where feed = $1 and subscriber = $2 and device = $3";
        eventually(
            &format!("{subscriber} {device} stands at {seq} in {feed}"),
            PATIENCE,
            async || {
                let query = sqlx::query_scalar::<_, i64>(query)
                    .bind(feed)
                    .bind(subscriber)
                    .bind(device);
                let acked = query
                    .fetch_optional(&self.pool)
                    .await
                    .expect("the database answers")
                    .unwrap_or(-1);
                holds(u64::try_from(acked) == Ok(seq), acked)
            },
        )
        .await;
    }

    /// The number of cursors that `subscriber` has in its own feed.
    pub async fn cursors(&self, subscriber: &str) -> i64 {
        let query =
            sqlx::query_scalar("select count(*) from cursors where feed = $1 and subscriber = $1");
        query
            .bind(subscriber)
            .fetch_one(&self.pool)
            .await
            .expect("the database answers")
    }

    /// The number of unread and of unhandled notifications of `feed`, counted from the rows.
    pub async fn unmarked(&self, feed: &str) -> (u64, u64) {
        let query = "select count(*) filter (where read_at is null), count(*) filter (where handled_at is null)
                     from notifications where feed = $1";
        let (unread, unhandled): (i64, i64) = sqlx::query_as(query)
            .bind(feed)
            .fetch_one(&self.pool)
            .await
            .expect("the database answers");
        (unread.unsigned_abs(), unhandled.unsigned_abs())
    }

    /// The row of an import: done, failed, total, status.
    pub async fn import(
        &self,
        feed: &str,
        import: &str,
    ) -> Option<(i64, i64, Option<i64>, String)> {
        let query =
            "select done, failed, total, status from imports where feed = $1 and import_id = $2";
        sqlx::query_as(query)
            .bind(feed)
            .bind(import)
            .fetch_optional(&self.pool)
            .await
            .expect("the database answers")
    }

    pub async fn execute(&self, statement: &'static str) {
        sqlx::query(statement)
            .execute(&self.pool)
            .await
            .expect("the database accepts the statement");
    }

    /// Blocks all other writes to `feeds` until the lock is dropped, like an operator's forgotten
    /// transaction.
    pub async fn lock_feeds(&self) -> Lock {
        self.lock("lock table feeds in exclusive mode").await
    }

    /// Blocks all other writes to the row of `merchant-42` in `feeds` until the lock is dropped.
    pub async fn lock_feed_of_merchant_42(&self) -> Lock {
        self.lock("select from feeds where feed = 'merchant-42' for update")
            .await
    }

    /// Blocks all reads of `notifications` until the lock is dropped.
    pub async fn lock_notifications(&self) -> Lock {
        self.lock("lock table notifications in access exclusive mode")
            .await
    }

    /// Blocks all reads and writes of `traces` until the lock is dropped.
    pub async fn lock_traces(&self) -> Lock {
        self.lock("lock table traces in access exclusive mode")
            .await
    }

    /// Blocks the insert of the first cursor of `merchant-42` until the lock is dropped.
    pub async fn lock_new_cursor_of_merchant_42(&self) -> Lock {
        let statement = "insert into cursors (feed, subscriber, device, acked_seq) values ('merchant-42', 'merchant-42', '', 0)";
        self.lock(statement).await
    }

    /// Runs a statement in a transaction that stays open until the lock is dropped.
    pub async fn lock(&self, statement: &'static str) -> Lock {
        let mut transaction = self.pool.begin().await.expect("the database answers");
        sqlx::query(statement)
            .execute(&mut *transaction)
            .await
            .expect("the database accepts the statement");
        Lock(transaction)
    }
}

/// An open transaction. It is rolled back when it is dropped.
pub struct Lock(Transaction<'static, Postgres>);

impl Lock {
    /// Keeps the changes of the transaction.
    pub async fn commit(self) {
        self.0.commit().await.expect("the database commits");
    }
}
