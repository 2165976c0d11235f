//! The epoch that this replica knows: what the database answered last. Epochs come in from connections and answers; sessions,
//! cursors and hints ask whether theirs is still the present one. No I/O.

use std::collections::VecDeque;

use tokio::sync::{Notify, watch};

use crate::model::feed::Epoch;

/// Most earlier epochs that are remembered, to tell a late answer from a new epoch. Each took a restore or a fail-over.
const RETIRED_MAX: usize = 64;

/// Shared by all parts of a replica.
#[derive(Debug)]
pub struct Epochs {
    known: watch::Sender<Known>,
    /// The sweep is to ask the database now.
    asked: Notify,
}

#[derive(Debug, Default)]
struct Known {
    current: Option<Epoch>,
    /// How far the log of `current` was flushed: a database whose log ends earlier was set back.
    flushed: Option<i64>,
    retired: VecDeque<Epoch>,
    doubt: Option<Doubt>,
}

/// The database has less than it had in this epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doubt {
    /// The epoch to replace.
    pub epoch: Epoch,
    /// What was seen.
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
    /// The present epoch; `None` before the database answered for the first time.
    pub fn current(&self) -> Option<Epoch> {
        self.known.borrow().current.clone()
    }

    /// Whether this is the present epoch.
    pub fn is_current(&self, epoch: &Epoch) -> bool {
        self.known.borrow().current.as_ref() == Some(epoch)
    }

    /// The present epoch, and how far its log was flushed.
    pub fn known(&self) -> (Option<Epoch>, Option<i64>) {
        let known = self.known.borrow();
        (known.current.clone(), known.flushed)
    }

    /// Takes the epoch of an answer. Returns whether it is the present one now: an epoch that was replaced before comes from a
    /// late answer, or from a database that went back once more. Then the sweep asks the database.
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
                tracing::warn!(%epoch, %replaced, "the epoch changed: the database was restored or failed over; sessions begin again");
            }
            true
        });
        if !is_current {
            self.ask();
        }
        is_current
    }

    /// Notes how far the log is flushed in this epoch.
    pub fn note_flushed(&self, epoch: &Epoch, flushed: Option<i64>) {
        self.known.send_if_modified(|known| {
            if known.current.as_ref() == Some(epoch) {
                known.flushed = known.flushed.max(flushed);
            }
            false
        });
    }

    /// The database has less than it had in this epoch: the sweep has it renewed.
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

    /// What is doubted of the present epoch, until there is another one.
    pub fn doubted(&self) -> Option<Doubt> {
        let known = self.known.borrow();
        known
            .doubt
            .clone()
            .filter(|doubt| known.current.as_ref() == Some(&doubt.epoch))
    }

    /// Has the sweep ask the database now.
    pub fn ask(&self) {
        self.asked.notify_one();
    }

    /// Returns when the sweep is to ask.
    pub async fn asked(&self) {
        self.asked.notified().await;
    }

    /// Returns when another epoch is known than at the last call with the same receiver.
    pub fn changes(&self) -> Changes {
        Changes(self.known.subscribe())
    }
}

/// Sees every change of the epoch, or the last of several.
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
    fn a_late_answer_does_not_bring_an_old_epoch_back() {
        let epochs = Epochs::default();
        assert_eq!(epochs.current(), None);
        assert!(epochs.learn(&epoch("a")) && epochs.learn(&epoch("b")));
        assert!(!epochs.learn(&epoch("a")), "it was replaced");
        assert!(epochs.is_current(&epoch("b")) && epochs.learn(&epoch("b")));
    }

    #[test]
    fn how_far_the_log_is_flushed_belongs_to_an_epoch() {
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
    fn only_the_present_epoch_is_doubted() {
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
