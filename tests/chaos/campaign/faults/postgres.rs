//! A Postgres that works and does not let Shopbell work: locks, ended sessions, read-only.

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use futures_util::FutureExt as _;
use sqlx::{Postgres, Transaction};
use tokio::time::{Instant, sleep};

use crate::campaign::nemesis::{End, Plan};
use crate::campaign::stage::Stage;

/// Interval of the loop that ends sessions.
const TERMINATE_INTERVAL: Duration = Duration::from_millis(250);
/// Postgres may still recover from the fault before.
const BEGIN_BOUND: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(100);

/// The rows of the greatest feeds are locked, so that ingest waits.
pub const ROW_LOCKS: &str =
    "select from feeds where feed in ('merchant-1', 'merchant-2', 'merchant-3') for update";
/// No row of a feed can change.
pub const TABLE_LOCK: &str = "lock table feeds in exclusive mode";
/// Nobody reads notifications, so that every connection of every pool waits.
pub const POOL_EXHAUSTED: &str = "lock table notifications in access exclusive mode";
/// No cursor can be read or stored.
pub const CURSORS_LOCKED: &str = "lock table cursors in access exclusive mode";

/// A lock that a forgotten transaction holds.
pub fn lock(stage: &Arc<Stage>, statement: &'static str) -> Plan {
    let stage = Arc::clone(stage);
    Plan {
        hits: vec!["postgres".to_owned()],
        target: statement.to_owned(),
        total: false,
        begin: async move {
            let lock = take(&stage, statement).await;
            End::by(async move { release(lock).await })
        }
        .boxed(),
    }
}

/// `pg_terminate_backend` of random sessions in a loop.
pub fn terminate_backends(stage: &Arc<Stage>, _: &mut Rng) -> Plan {
    const STATEMENT: &str = "select pg_terminate_backend(pid) from pg_stat_activity
         where datname = current_database() and application_name like 'shopbell%' and random() < 0.5";
    let stage = Arc::clone(stage);
    Plan {
        hits: vec!["postgres".to_owned()],
        target: "half of the sessions, again and again".to_owned(),
        total: false,
        begin: async move {
            let terminating = tokio::spawn(async move {
                loop {
                    sqlx::query(STATEMENT).execute(&stage.pool).await.ok();
                    sleep(TERMINATE_INTERVAL).await;
                }
            });
            End::by(async move {
                terminating.abort();
                terminating.await.ok();
            })
        }
        .boxed(),
    }
}

/// Postgres accepts only reads, as a demoted primary does.
pub fn read_only(stage: &Arc<Stage>, _: &mut Rng) -> Plan {
    let stage = Arc::clone(stage);
    Plan {
        hits: vec!["postgres".to_owned()],
        target: "read-only".to_owned(),
        // No replica can work, so none may report that it is ready.
        total: true,
        begin: async move {
            configure(
                &stage,
                "alter system set default_transaction_read_only = on",
            )
            .await;
            End::by(async move {
                configure(&stage, "alter system reset default_transaction_read_only").await;
            })
        }
        .boxed(),
    }
}

async fn configure(stage: &Stage, statement: &'static str) {
    for statement in [statement, "select pg_reload_conf()"] {
        let deadline = Instant::now() + BEGIN_BOUND;
        while let Err(error) = sqlx::query(statement).execute(&stage.pool).await {
            assert!(Instant::now() < deadline, "{statement}: {error}");
            sleep(POLL).await;
        }
    }
}

/// At once, because a dropped transaction is rolled back a little later.
pub async fn release(lock: Transaction<'static, Postgres>) {
    // An error means that Postgres has ended the transaction already.
    lock.rollback().await.ok();
}

/// The open transaction that holds the lock.
pub async fn take(stage: &Stage, statement: &'static str) -> Transaction<'static, Postgres> {
    let deadline = Instant::now() + BEGIN_BOUND;
    loop {
        let taken = async {
            let mut transaction = stage.pool.begin().await?;
            sqlx::query(statement).execute(&mut *transaction).await?;
            Ok::<_, sqlx::Error>(transaction)
        };
        match taken.await {
            Ok(transaction) => return transaction,
            Err(error) => assert!(Instant::now() < deadline, "{statement}: {error}"),
        }
        sleep(POLL).await;
    }
}
