//! The write of one batch: submissions come in, the results or the failure of each go out.

use std::sync::Arc;
use std::time::Instant;

use super::submission::{GIVE_UP_AFTER, Submission};
use crate::model::feed::{Epoch, Feed};
use crate::retry::Retry;
use crate::store::StoreError;
use crate::store::damage::Halves;
use crate::store::epoch::known::Epochs;
use crate::store::marks::{Locks, MarkRequest, MarkResult, write};
use crate::store::pool::Pool;
use crate::telemetry::labels::Retried;
use crate::telemetry::metrics::Metrics;

pub(super) struct MarkBatch {
    pub(super) submissions: Vec<Submission>,
    pub(super) locks: Locks,
    pub(super) pool: Pool,
    pub(super) epochs: Arc<Epochs>,
    pub(super) metrics: Arc<Metrics>,
}

#[derive(Debug)]
pub(super) struct Written {
    pub(super) locks: Locks,
    pub(super) epoch: Option<Epoch>,
    pub(super) feeds: Vec<Feed>,
    /// Whether an attempt failed that may be stored all the same.
    pub(super) is_suspect: bool,
    /// The submissions in the order in which they were taken.
    pub(super) results: Vec<(Submission, Result<Vec<MarkResult>, Failure>)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// Its feed was locked for too long.
    Locked,
    /// It fails by itself. It may succeed later.
    Alone,
    /// Its numbers are of an earlier epoch. Its session is about to end.
    EpochOver,
    /// It cannot succeed, or it failed for too long.
    Final,
}

impl MarkBatch {
    /// Writes the submissions together. If the write fails because of one of them, writes halves
    /// until that one is alone.
    pub(super) async fn write(self) -> Written {
        let epoch = self.epochs.current();
        let mut written = Written {
            locks: self.locks,
            epoch: epoch.clone(),
            feeds: self
                .submissions
                .iter()
                .map(|submission| submission.request.feed.clone())
                .collect(),
            is_suspect: false,
            results: Vec::new(),
        };
        let (submissions, over): (Vec<_>, Vec<_>) = self
            .submissions
            .into_iter()
            .partition(|submission| Some(&submission.epoch) == epoch.as_ref());
        written.fail(over, Failure::EpochOver);
        let Some(epoch) = epoch else { return written };
        let target = Target {
            pool: &self.pool,
            metrics: &self.metrics,
            epoch: &epoch,
            locks: self.locks,
        };
        let mut parts = Halves::new(submissions, usize::MAX);
        while let Some(part) = parts.take() {
            if part.is_empty() {
                continue;
            }
            let requests: Vec<_> = part
                .iter()
                .map(|submission| submission.request.clone())
                .collect();
            let error = match target.write(&requests, &mut written.is_suspect).await {
                Ok(results) => {
                    written.succeed(part, results);
                    continue;
                }
                Err(error) => error,
            };
            if let StoreError::EpochOver(_) = error {
                self.epochs.ask();
                written.fail(part, Failure::EpochOver);
                continue;
            }
            let is_one_value = error.may_concern_one_value() && !error.is_lock_timeout();
            let part = match is_one_value {
                true => match parts.split(part) {
                    Ok(()) => continue,
                    Err(alone) => alone,
                },
                false => part,
            };
            let failure = target.failure(&part, &error);
            written.fail(part, failure);
        }
        written
    }
}

impl Written {
    /// Adds the results of a part. Each comes with the index of its submission.
    fn succeed(&mut self, part: Vec<Submission>, results: Vec<(usize, MarkResult)>) {
        let mut by_submission: Vec<Vec<MarkResult>> = part.iter().map(|_| Vec::new()).collect();
        for (index, result) in results {
            if let Some(own) = by_submission.get_mut(index) {
                own.push(result);
            }
        }
        let results = by_submission.into_iter().map(Ok);
        self.results.extend(part.into_iter().zip(results));
    }

    fn fail(&mut self, part: Vec<Submission>, failure: Failure) {
        let failed = part
            .into_iter()
            .map(|submission| (submission, Err(failure)));
        self.results.extend(failed);
    }
}

struct Target<'a> {
    pool: &'a Pool,
    metrics: &'a Metrics,
    epoch: &'a Epoch,
    locks: Locks,
}

impl Target<'_> {
    /// Writes requests. If the database is away, repeats the write for some seconds. A repeated
    /// write is safe. If only the reply of the first one was lost, no hint has its marks, so the write
    /// is suspect.
    async fn write(
        &self,
        requests: &[MarkRequest],
        is_suspect: &mut bool,
    ) -> Result<Vec<(usize, MarkResult)>, StoreError> {
        let begun = Instant::now();
        let mut retry = Retry::new(Retried::Marks, self.metrics);
        loop {
            match write(self.pool, self.epoch, requests, self.locks).await {
                Ok(results) => return Ok(results),
                Err(error @ StoreError::EpochOver(_)) => return Err(error),
                Err(error) if error.may_concern_one_value() => return Err(error),
                Err(error) => {
                    *is_suspect |= error.may_be_stored();
                    if begun.elapsed() >= GIVE_UP_AFTER {
                        return Err(error);
                    }
                    let wait = retry.failed("marks could not be stored", &error);
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }

    /// Classifies and logs the error of a part that is not halved.
    fn failure(&self, part: &[Submission], error: &StoreError) -> Failure {
        let failure = match error {
            _ if error.is_lock_timeout() && self.locks == Locks::Wait => Failure::Locked,
            StoreError::Refused(_) => Failure::Final,
            _ if error.may_concern_one_value() => Failure::Alone,
            _ => Failure::Final,
        };
        let marks = part.len();
        if failure == Failure::Final || part.iter().any(Submission::is_overdue) {
            tracing::error!(%error, marks, "marks could not be stored; their clients get an error");
        } else {
            self.metrics.retries.inc(Retried::Marks);
            tracing::warn!(%error, marks, "marks could not be stored; they are written again");
        }
        failure
    }
}
