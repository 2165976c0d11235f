//! The evidence that hints were lost, from the parts that find it to the one that reads the newest
//! numbers.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

use crate::telemetry::labels::Evidence;

/// Evidence that waits.
#[derive(Debug, Default)]
pub struct Found {
    waiting: Mutex<BTreeSet<Evidence>>,
    wake: Notify,
}

impl Found {
    /// Adds evidence.
    pub fn add(&self, evidence: Evidence) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.insert(evidence);
        drop(waiting);
        self.wake.notify_one();
    }

    /// Waits for evidence, and takes all of it.
    pub async fn take(&self) -> BTreeSet<Evidence> {
        loop {
            self.wake.notified().await;
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            let found = std::mem::take(&mut *waiting);
            drop(waiting);
            if !found.is_empty() {
                return found;
            }
        }
    }
}
