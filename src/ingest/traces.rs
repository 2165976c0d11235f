//! Stores the traces of notifications, so that later reads continue them. Ingest does not wait for
//! these writes. If a trace is lost, no event is lost or delayed.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::fanout::Hints;
use crate::model::feed::{Feed, Seq};
use crate::model::notification::Notification;
use crate::model::trace_context::TraceContext;
use crate::store;
use crate::store::pool::Pool;

/// Most batches that wait for the write of their traces. The traces of further batches are dropped.
const BATCHES_WAITING_MAX: usize = 16;

type Traced = Vec<(Feed, Seq, TraceContext)>;

/// Takes the traces of stored batches.
#[derive(Debug, Clone)]
pub struct TraceKeeper(mpsc::Sender<Traced>);

/// Writes the traces that a [`TraceKeeper`] took.
#[derive(Debug)]
pub struct TraceWriter {
    waiting: mpsc::Receiver<Traced>,
    pool: Pool,
}

impl TraceKeeper {
    /// Makes a keeper, and the writer to run.
    pub fn new(pool: Pool) -> (Self, TraceWriter) {
        let (sender, waiting) = mpsc::channel(BATCHES_WAITING_MAX);
        (Self(sender), TraceWriter { waiting, pool })
    }

    /// Passes the traces of new notifications to the writer. If too many batches wait, drops them.
    pub(super) fn keep(&self, hints: &Hints) {
        let traced = |stored: &Arc<Notification>| {
            Some((stored.feed.clone(), stored.seq, stored.trace.clone()?))
        };
        let traced: Traced = hints.stored.iter().filter_map(traced).collect();
        if !traced.is_empty() {
            let _ = self.0.try_send(traced);
        }
    }
}

impl TraceWriter {
    /// Writes until every keeper is dropped.
    pub async fn run(mut self) {
        while let Some(traced) = self.waiting.recv().await {
            if let Err(error) = store::traces::store(&self.pool, &traced).await {
                tracing::warn!(%error, traces = traced.len(), "traces could not be stored; later reads do not continue them");
            }
        }
    }
}
