//! The parts of the service that run, each by its name.

use std::collections::HashMap;
use std::time::Duration;

use tokio::task::{Id, JoinSet};

/// Beyond the drain time, for what a step of the stop needs at most: ending the batch, closing sessions, writing acks.
pub(super) const STOP_STEP_TIMEOUT: Duration = Duration::from_secs(10);

/// Parts that run until they are told to stop. A name may stand for several tasks, or for none.
#[derive(Debug, Default)]
pub(super) struct Parts {
    tasks: JoinSet<()>,
    names: HashMap<Id, &'static str>,
}

impl Parts {
    /// Runs one more.
    pub(super) fn spawn(
        &mut self,
        name: &'static str,
        part: impl Future<Output = ()> + Send + 'static,
    ) {
        let task = self.tasks.spawn(part);
        self.names.insert(task.id(), name);
    }

    /// Waits for the first to end, which none should by itself; gives its name, or how it panicked.
    pub(super) async fn first_ended(&mut self) -> String {
        let name = |id| self.names.get(&id).copied().unwrap_or_default();
        match self.tasks.join_next_with_id().await {
            Some(Ok((id, ()))) => name(id).into(),
            Some(Err(error)) => format!("{}: {error}", name(error.id())),
            None => "all of them".into(),
        }
    }

    /// Waits for every task of this name, also where one of them panicked. Others that end meanwhile were told to, before.
    pub(super) async fn ended(&mut self, part: &'static str) {
        let ending = async {
            while self.names.values().any(|name| *name == part)
                && let Some(ended) = self.tasks.join_next_with_id().await
            {
                let id = ended.map_or_else(|panicked| panicked.id(), |(id, ())| id);
                self.names.remove(&id);
            }
        };
        if tokio::time::timeout(STOP_STEP_TIMEOUT, ending)
            .await
            .is_err()
        {
            tracing::warn!(part, "this part did not end in time and is dropped");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_part_has_ended_when_all_its_tasks_have_and_at_once_where_it_has_none() {
        let (mut parts, ended) = (Parts::default(), Arc::<AtomicUsize>::default());
        for yields in [0, 100] {
            let ended = ended.clone();
            parts.spawn("ingest", async move {
                for _ in 0..yields {
                    tokio::task::yield_now().await;
                }
                ended.fetch_add(1, Ordering::Relaxed);
            });
        }
        parts.ended("public port").await;
        parts.ended("ingest").await;
        assert_eq!(ended.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn a_part_of_which_one_task_panicked_has_ended_when_the_others_have() {
        let (mut parts, ended) = (Parts::default(), Arc::<AtomicUsize>::default());
        parts.spawn("ingest", async { panic!("as it should in this test") });
        let other = ended.clone();
        parts.spawn("ingest", async move {
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            other.fetch_add(1, Ordering::Relaxed);
        });
        parts.spawn("operations port", std::future::pending());
        parts.ended("ingest").await;
        assert_eq!(ended.load(Ordering::Relaxed), 1);
    }
}
