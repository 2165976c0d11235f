//! Takes a connection from the pool of sqlx, in a task that goes on if its caller gives up.
//!
//! sqlx cancels a connection that is being opened with its caller. If all of them need longer than
//! callers wait, for example because many open at once, none would ever open.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use sqlx::Postgres;
use sqlx::pool::PoolConnection;
use sqlx::postgres::PgPool;
use tokio::task::JoinHandle;

type Acquired = Result<PoolConnection<Postgres>, sqlx::Error>;

/// Counts the tasks of one pool whose callers gave up.
#[derive(Debug, Clone, Default)]
pub(super) struct Openings(Arc<AtomicU32>);

impl Openings {
    /// Returns a free or a new connection. If there is none within `timeout`, a connection that is
    /// being opened is for a later caller.
    ///
    /// # Errors
    /// [`sqlx::Error::PoolTimedOut`], or the error of the connection.
    pub(super) async fn acquire(&self, connections: &PgPool, timeout: Duration) -> Acquired {
        let is_decided = Arc::new(AtomicBool::new(false));
        let running = Running {
            is_decided: is_decided.clone(),
            openings: self.clone(),
        };
        let pool = connections.clone();
        let mut opening = Opening {
            task: tokio::spawn(async move {
                let _running = running;
                pool.acquire().await
            }),
            is_decided,
            openings: self,
            left_max: connections.options().get_max_connections(),
        };
        match tokio::time::timeout(timeout, &mut opening.task).await {
            Ok(ended) => ended.unwrap_or(Err(sqlx::Error::PoolClosed)),
            Err(_) => Err(sqlx::Error::PoolTimedOut),
        }
    }
}

/// The side of the caller.
struct Opening<'a> {
    task: JoinHandle<Acquired>,
    /// Whether the task ended or was left by its caller; the earlier one of both decides.
    is_decided: Arc<AtomicBool>,
    openings: &'a Openings,
    left_max: u32,
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        let left = &self.openings.0;
        // More tasks than connections would only wait for the others.
        let is_one_too_many = left.fetch_add(1, Ordering::Relaxed) >= self.left_max;
        if is_one_too_many || self.is_decided.swap(true, Ordering::Relaxed) {
            left.fetch_sub(1, Ordering::Relaxed);
            self.task.abort();
        }
    }
}

/// The side of the task.
struct Running {
    is_decided: Arc<AtomicBool>,
    openings: Openings,
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.is_decided.swap(true, Ordering::Relaxed) {
            self.openings.0.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
