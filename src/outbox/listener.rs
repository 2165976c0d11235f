//! Wakes the relay when a transaction with a row commits. A lost notification only delays: the relay
//! polls too.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::database::{CHANNEL, session_options};

/// Pause after a failure.
const PAUSE: Duration = Duration::from_secs(1);

/// A task that listens, until this value is dropped.
pub(super) struct Listener {
    task: JoinHandle<()>,
    heard: Arc<Notify>,
}

impl Listener {
    /// Begins to listen on a connection of its own, because the other one carries statements.
    pub(super) fn start(options: &PgConnectOptions) -> Self {
        let heard = Arc::<Notify>::default();
        let task = tokio::spawn(listen(session_options(options), heard.clone()));
        Self { task, heard }
    }

    /// Waits for a notification since the last call.
    pub(super) async fn heard(&self) {
        self.heard.notified().await;
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn listen(options: PgConnectOptions, heard: Arc<Notify>) {
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .connect_lazy_with(options);
    loop {
        if let Ok(mut listener) = PgListener::connect_with(&pool).await
            && listener.listen(CHANNEL).await.is_ok()
        {
            // Rows that were committed before may wait.
            heard.notify_one();
            while listener.recv().await.is_ok() {
                heard.notify_one();
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}
