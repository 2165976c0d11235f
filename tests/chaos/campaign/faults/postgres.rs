//! A Postgres that works and does not let Shopbell work: locks, ended sessions, read-only.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use fastrand::Rng;
use futures_util::FutureExt as _;
use sqlx::{PgPool, Postgres, Transaction};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::campaign::nemesis::{End, Plan};
use crate::campaign::stage::{REPLICAS, Stage, name};

/// Interval of the loop that ends sessions.
const TERMINATE_INTERVAL: Duration = Duration::from_millis(250);
/// Postgres may still recover from the fault before.
const BEGIN_BOUND: Duration = Duration::from_secs(30);
/// Bound for the load to run into a lock.
const BLOCK_BOUND: Duration = Duration::from_secs(10);
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
            End::by(async move { lock.release().await })
        }
        .boxed(),
    }
}

/// All replicas are killed while appends wait for a lock. The appends end too, so that nothing of them is stored.
pub fn kill_behind_lock(stage: &Arc<Stage>, _: &mut Rng) -> Plan {
    const END_WAITING: &str =
        "select count(*) filter (where pg_terminate_backend(pid)) from pg_stat_activity
         where $1 = any (pg_blocking_pids(pid))";
    let stage = Arc::clone(stage);
    let mut hits: Vec<_> = (0..REPLICAS).map(name).collect();
    hits.push("postgres".to_owned());
    Plan {
        hits,
        target: "all replicas killed while appends wait for a lock".to_owned(),
        total: true,
        begin: async move {
            let lock = take(&stage, TABLE_LOCK).await;
            let deadline = Instant::now() + BLOCK_BOUND;
            while lock.blocked.load(Ordering::Relaxed) == 0 && Instant::now() < deadline {
                sleep(POLL).await;
            }
            for replica in 0..REPLICAS {
                stage.hold(replica);
                stage.replicas[replica].kill();
            }
            let ended = sqlx::query_scalar::<_, i64>(END_WAITING).bind(lock.holder);
            let ended = ended.fetch_one(&stage.pool).await.unwrap_or_default();
            lock.release().await;
            End::by(async move {
                (0..REPLICAS).for_each(|replica| stage.release(replica));
                ended.unsigned_abs()
            })
        }
        .boxed(),
    }
}

/// A write that changes nothing. Postgres refuses it while it is read-only.
const WRITE: &str = "delete from retention where false";

/// `pg_terminate_backend` of random sessions in a loop.
pub fn terminate_backends(stage: &Arc<Stage>, _: &mut Rng) -> Plan {
    const STATEMENT: &str = "select count(*) filter (where pg_terminate_backend(pid)) from pg_stat_activity
         where datname = current_database() and application_name like 'shopbell%' and random() < 0.5";
    let stage = Arc::clone(stage);
    Plan {
        hits: vec!["postgres".to_owned()],
        target: "half of the sessions, again and again".to_owned(),
        total: false,
        begin: async move {
            let ended = Arc::new(AtomicI64::new(0));
            let counted = Arc::clone(&ended);
            let terminating = tokio::spawn(async move {
                loop {
                    let ended = sqlx::query_scalar(STATEMENT).fetch_one(&stage.pool).await;
                    counted.fetch_add(ended.unwrap_or_default(), Ordering::Relaxed);
                    sleep(TERMINATE_INTERVAL).await;
                }
            });
            End::by(async move {
                terminating.abort();
                terminating.await.ok();
                ended.load(Ordering::Relaxed).unsigned_abs()
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
                let refused = sqlx::query(WRITE).execute(&stage.pool).await.is_err();
                configure(&stage, "alter system reset default_transaction_read_only").await;
                refused.into()
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

/// A lock, and the task that counts the sessions that wait for it.
pub struct Lock {
    transaction: Transaction<'static, Postgres>,
    /// The process of Postgres that holds it.
    holder: i32,
    watching: JoinHandle<()>,
    blocked: Arc<AtomicI64>,
}

impl Lock {
    /// At once, because a dropped transaction is rolled back a little later. Returns the most sessions
    /// that waited at a time.
    pub async fn release(self) -> u64 {
        self.watching.abort();
        // An error means that Postgres has ended the transaction already.
        self.transaction.rollback().await.ok();
        self.blocked.load(Ordering::Relaxed).unsigned_abs()
    }
}

/// Opens the transaction that holds the lock.
pub async fn take(stage: &Stage, statement: &'static str) -> Lock {
    let deadline = Instant::now() + BEGIN_BOUND;
    loop {
        let taken = async {
            let mut transaction = stage.pool.begin().await?;
            sqlx::query(statement).execute(&mut *transaction).await?;
            let holder: i32 = sqlx::query_scalar("select pg_backend_pid()")
                .fetch_one(&mut *transaction)
                .await?;
            Ok::<_, sqlx::Error>((transaction, holder))
        };
        match taken.await {
            Ok((transaction, holder)) => {
                let blocked = Arc::new(AtomicI64::new(0));
                let watching = watch(stage.pool.clone(), holder, Arc::clone(&blocked));
                return Lock {
                    transaction,
                    holder,
                    watching: tokio::spawn(watching),
                    blocked,
                };
            }
            Err(error) => assert!(Instant::now() < deadline, "{statement}: {error}"),
        }
        sleep(POLL).await;
    }
}

/// Counts the sessions that wait for `holder`. It never returns.
async fn watch(pool: PgPool, holder: i32, blocked: Arc<AtomicI64>) {
    const WAITING: &str =
        "select count(*) from pg_stat_activity where $1 = any (pg_blocking_pids(pid))";
    loop {
        let waiting = sqlx::query_scalar(WAITING).bind(holder).fetch_one(&pool);
        if let Ok(waiting) = waiting.await {
            blocked.fetch_max(waiting, Ordering::Relaxed);
        }
        sleep(POLL).await;
    }
}
