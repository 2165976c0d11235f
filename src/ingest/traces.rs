//! Keeps where traces go on for who reads later, beside the flow: no order waits for it.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::fanout::Hints;
use crate::model::feed::{Feed, Seq};
use crate::model::notification::Notification;
use crate::model::trace_context::TraceContext;
use crate::store;
use crate::store::pools::Pool;

/// Most batches that wait to be kept; what comes beyond is not kept.
const BATCHES_WAITING_MAX: usize = 16;

type Traced = Vec<(Feed, Seq, TraceContext)>;

/// Where ingest leaves them.
#[derive(Debug, Clone)]
pub struct TraceKeeper(mpsc::Sender<Traced>);

/// The part that keeps them, to be run.
#[derive(Debug)]
pub struct TraceWriter {
    waiting: mpsc::Receiver<Traced>,
    pool: Pool,
}

impl TraceKeeper {
    /// Nothing runs yet.
    pub fn new(pool: Pool) -> (Self, TraceWriter) {
        let (sender, waiting) = mpsc::channel(BATCHES_WAITING_MAX);
        (Self(sender), TraceWriter { waiting, pool })
    }

    /// Takes those that are traced.
    pub(super) fn keep(&self, hints: &Hints) {
        let traced = |stored: &Arc<Notification>| {
            Some((stored.feed.clone(), stored.seq, stored.trace.clone()?))
        };
        let traced: Traced = hints.stored.iter().filter_map(traced).collect();
        if !traced.is_empty() {
            // Full where the database is slow: then their traces end with who was there.
            let _ = self.0.try_send(traced);
        }
    }
}

impl TraceWriter {
    /// Writes until every keeper is gone.
    pub async fn run(mut self) {
        while let Some(traced) = self.waiting.recv().await {
            if let Err(error) = store::traces::store(&self.pool, &traced).await {
                tracing::warn!(%error, traces = traced.len(), "where traces go on could not be kept; they end for who reads later");
            }
        }
    }
}
