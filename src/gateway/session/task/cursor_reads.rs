//! The reads of the cursors of a session whose client acks by requests.

use std::pin::Pin;
use std::time::Duration;

use super::Task;
use crate::model::feed::Seq;

/// Longest read. If the database is away, the session reads again later.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

impl Task {
    /// Begins to read the cursors after a wait.
    pub(super) fn read_cursors(&mut self, after: Duration) {
        let keys = |open: &crate::model::protocol::WelcomeFeed| {
            (self.cursor_key(open.feed.clone()), open.shared)
        };
        let keys = self.opened.feeds.iter().map(keys).collect();
        let (shared, epoch) = (self.shared.clone(), self.opened.epoch.clone());
        self.cursors = Some(Box::pin(async move {
            tokio::time::sleep(after).await;
            let read = tokio::time::timeout(READ_TIMEOUT, shared.cursors.open(keys)).await;
            let standings = read.ok().and_then(Result::ok).unwrap_or_default();
            if standings.iter().any(|standing| standing.epoch != epoch) {
                return Vec::new();
            }
            standings.iter().map(|standing| standing.acked).collect()
        }));
    }
}

/// Returns the cursors that are being read. If none are, it never returns.
pub(super) async fn next(
    cursors: &mut Option<Pin<Box<dyn Future<Output = Vec<Seq>> + Send>>>,
) -> Vec<Seq> {
    match cursors {
        Some(reading) => {
            let acked = reading.await;
            *cursors = None;
            acked
        }
        None => std::future::pending().await,
    }
}
