//! The running parts of the service.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use tokio::task::{Id, JoinSet};

/// Most time for one step of the stop, such as ending a batch or writing acks. The drain time comes on top.
pub(super) const STOP_STEP_TIMEOUT: Duration = Duration::from_secs(10);

/// A part of the service. It may have several tasks, or none in this role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Canary,
    CursorReader,
    CursorWriter,
    DatabaseProbe,
    BrokerProbe,
    DeadLetters,
    Epoch,
    Events,
    Fanout,
    Heartbeat,
    HeldFeeds,
    Housekeeping,
    Ingest,
    Keys,
    Marks,
    OperationsPort,
    Presence,
    PublicPort,
    Receipts,
    Replay,
    Retention,
    Rounds,
    Sweep,
    Traces,
    Urls,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Canary => "canary",
            Self::CursorReader => "cursor reader",
            Self::CursorWriter => "cursor writer",
            Self::DatabaseProbe => "database probe",
            Self::BrokerProbe => "broker probe",
            Self::DeadLetters => "dead letters",
            Self::Epoch => "epoch",
            Self::Events => "events",
            Self::Fanout => "fan-out",
            Self::Heartbeat => "heartbeat",
            Self::HeldFeeds => "held feeds",
            Self::Housekeeping => "housekeeping",
            Self::Ingest => "ingest",
            Self::Keys => "keys",
            Self::Marks => "marks",
            Self::OperationsPort => "operations port",
            Self::Presence => "presence",
            Self::PublicPort => "public port",
            Self::Receipts => "receipts",
            Self::Replay => "replay",
            Self::Retention => "retention",
            Self::Rounds => "rounds",
            Self::Sweep => "sweep",
            Self::Traces => "traces",
            Self::Urls => "URLs",
        })
    }
}

/// The tasks of all parts, which run until their part is stopped.
#[derive(Debug, Default)]
pub(super) struct Parts {
    tasks: JoinSet<()>,
    parts: HashMap<Id, Part>,
}

impl Parts {
    /// Starts one task of a part.
    pub(super) fn spawn(&mut self, part: Part, task: impl Future<Output = ()> + Send + 'static) {
        let task = self.tasks.spawn(task);
        self.parts.insert(task.id(), part);
    }

    /// Waits until a task ends, and returns its part and the panic, if it panicked. No task should end by itself.
    pub(super) async fn first_ended(&mut self) -> String {
        let name = |id| self.parts.get(&id).map(Part::to_string).unwrap_or_default();
        match self.tasks.join_next_with_id().await {
            Some(Ok((id, ()))) => name(id),
            Some(Err(error)) => format!("{}: {error}", name(error.id())),
            None => "no part runs".into(),
        }
    }

    /// Waits until all tasks of a stopped part have ended, also if one of them panicked. Other tasks that end meanwhile were
    /// stopped before.
    pub(super) async fn ended(&mut self, part: Part) {
        let ending = async {
            while self.parts.values().any(|running| *running == part)
                && let Some(ended) = self.tasks.join_next_with_id().await
            {
                let id = ended.map_or_else(|panicked| panicked.id(), |(id, ())| id);
                self.parts.remove(&id);
            }
        };
        if tokio::time::timeout(STOP_STEP_TIMEOUT, ending)
            .await
            .is_err()
        {
            tracing::warn!(%part, "a part did not end in time and is dropped");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_part_has_ended_when_all_its_tasks_have_ended() {
        let (mut parts, ended) = (Parts::default(), Arc::<AtomicUsize>::default());
        for yields in [0, 100] {
            let ended = ended.clone();
            parts.spawn(Part::Ingest, async move {
                for _ in 0..yields {
                    tokio::task::yield_now().await;
                }
                ended.fetch_add(1, Ordering::Relaxed);
            });
        }
        parts.ended(Part::PublicPort).await;
        parts.ended(Part::Ingest).await;
        assert_eq!(ended.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn a_part_with_a_panic_has_ended_when_its_other_tasks_have() {
        let (mut parts, ended) = (Parts::default(), Arc::<AtomicUsize>::default());
        parts.spawn(Part::Ingest, async { panic!("expected in this test") });
        let other = ended.clone();
        parts.spawn(Part::Ingest, async move {
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            other.fetch_add(1, Ordering::Relaxed);
        });
        parts.spawn(Part::OperationsPort, std::future::pending());
        parts.ended(Part::Ingest).await;
        assert_eq!(ended.load(Ordering::Relaxed), 1);
    }
}
