//! The epoch that this replica knows, from the last row that the database returned.
//!
//! New connections and statements bring epochs in. Sessions, cursors and hints check if theirs is
//! still the present one. No I/O.

use std::collections::VecDeque;

use tokio::sync::{Notify, watch};

use crate::model::feed::Epoch;

/// Most earlier epochs that are kept, so that a late row is not mistaken for a new epoch. Each was
/// ended by a restore or a fail-over.
const RETIRED_MAX: usize = 64;

/// The known epochs, shared by all parts of a replica.
#[derive(Debug)]
pub struct Epochs {
    known: watch::Sender<Known>,
    /// A part asks for a read of the epoch.
    asked: Notify,
}

#[derive(Debug, Default)]
struct Known {
    current: Option<Epoch>,
    /// Flushed position of the log in `current`; a database whose log ends earlier went back.
    flushed: Option<i64>,
    retired: VecDeque<Epoch>,
    doubt: Option<Doubt>,
}

/// Evidence that the database has lost notifications of this epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doubt {
    /// The epoch to replace.
    pub epoch: Epoch,
    /// The evidence.
    pub reason: &'static str,
}

impl Default for Epochs {
    fn default() -> Self {
        Self {
            known: watch::Sender::new(Known::default()),
            asked: Notify::new(),
        }
    }
}

impl Epochs {
    /// Returns the present epoch; `None` before the first connection.
    pub fn current(&self) -> Option<Epoch> {
        self.known.borrow().current.clone()
    }

    /// Returns whether this is the present epoch.
    pub fn is_current(&self, epoch: &Epoch) -> bool {
        self.known.borrow().current.as_ref() == Some(epoch)
    }

    /// Returns the present epoch and the flushed position of its log.
    pub fn known(&self) -> (Option<Epoch>, Option<i64>) {
        let known = self.known.borrow();
        (known.current.clone(), known.flushed)
    }

    /// Takes an epoch that the database returned. Returns whether it is the present one now.
    ///
    /// An epoch that was replaced before comes from a late row, or from a database that went back
    /// once more. Then the epoch is read again.
    pub fn learn(&self, epoch: &Epoch) -> bool {
        if self.is_current(epoch) {
            return true;
        }
        let mut is_current = true;
        self.known.send_if_modified(|known| {
            if known.current.as_ref() == Some(epoch) {
                return false;
            }
            if known.retired.contains(epoch) {
                is_current = false;
                return false;
            }
            let replaced = known.current.replace(epoch.clone());
            if known.retired.len() == RETIRED_MAX {
                known.retired.pop_front();
            }
            known.retired.extend(replaced.clone());
            known.flushed = None;
            if let Some(replaced) = &replaced {
                tracing::warn!(%epoch, %replaced, "the epoch changed because the database went back in time; sessions are closed");
            }
            true
        });
        if !is_current {
            self.ask();
        }
        is_current
    }

    /// Records the flushed position of the log in this epoch.
    pub fn note_flushed(&self, epoch: &Epoch, flushed: Option<i64>) {
        self.known.send_if_modified(|known| {
            if known.current.as_ref() == Some(epoch) {
                known.flushed = known.flushed.max(flushed);
            }
            false
        });
    }

    /// Records that the database has lost notifications of this epoch, so that it is renewed.
    pub fn doubt(&self, epoch: &Epoch, reason: &'static str) {
        self.known.send_if_modified(|known| {
            known.doubt = Some(Doubt {
                epoch: epoch.clone(),
                reason,
            });
            false
        });
        self.ask();
    }

    /// Returns the doubt about the present epoch.
    pub fn doubted(&self) -> Option<Doubt> {
        let known = self.known.borrow();
        known
            .doubt
            .clone()
            .filter(|doubt| known.current.as_ref() == Some(&doubt.epoch))
    }

    /// Asks for a read of the epoch now.
    pub fn ask(&self) {
        self.asked.notify_one();
    }

    /// Returns when a read was requested.
    pub async fn asked(&self) {
        self.asked.notified().await;
    }

    /// Returns a receiver of the changes from now on.
    pub fn changes(&self) -> Changes {
        Changes(self.known.subscribe())
    }
}

/// Receives changes of the epoch; of several, only the last.
#[derive(Debug)]
pub struct Changes(watch::Receiver<Known>);

impl Changes {
    /// Returns when the epoch has changed.
    pub async fn next(&mut self) {
        // The sender lives as long as the replica.
        if self.0.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn epoch(text: &str) -> Epoch {
        Epoch::parse(text).unwrap()
    }

    #[test]
    fn a_late_row_does_not_bring_an_old_epoch_back() {
        let epochs = Epochs::default();
        assert_eq!(epochs.current(), None);
        assert!(epochs.learn(&epoch("a")) && epochs.learn(&epoch("b")));
        assert!(!epochs.learn(&epoch("a")), "it was replaced");
        assert!(epochs.is_current(&epoch("b")) && epochs.learn(&epoch("b")));
    }

    #[test]
    fn the_flushed_position_belongs_to_an_epoch() {
        let epochs = Epochs::default();
        epochs.learn(&epoch("a"));
        for flushed in [Some(7), Some(5), None] {
            epochs.note_flushed(&epoch("a"), flushed);
        }
        epochs.note_flushed(&epoch("b"), Some(9));
        assert_eq!(epochs.known(), (Some(epoch("a")), Some(7)));
        epochs.learn(&epoch("b"));
        assert_eq!(epochs.known(), (Some(epoch("b")), None));
    }

    #[test]
    fn only_the_present_epoch_is_in_doubt() {
        let epochs = Epochs::default();
        epochs.learn(&epoch("a"));
        epochs.doubt(&epoch("a"), "less");
        assert_eq!(
            epochs.doubted(),
            Some(Doubt {
                epoch: epoch("a"),
                reason: "less"
            })
        );
        epochs.learn(&epoch("b"));
        assert_eq!(epochs.doubted(), None, "it was replaced meanwhile");
    }
}
