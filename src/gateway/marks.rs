//! Marks: reads and handles of notifications, from the session that sends one to all sessions of
//! the feed.
//!
//! Sessions submit requests. The writer stores them in batches, one batch at a time. A second
//! batch, apart from the first, has requests that failed or whose feed is locked, so that they
//! delay no other request. A new mark goes to all sessions of its feed, on this replica and on the
//! others. A mark that existed before goes only to the session that submitted it. If a session
//! misses a mark, it reads the mark from Postgres.

mod publishing;
mod queues;
mod submission;
mod writing;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use self::publishing::publish_all;
use self::queues::Queues;
use self::submission::{BUSY, Submission};
use self::writing::{Failure, MarkBatch, Written};
use crate::fanout::hub::Inbox;
use crate::fanout::publisher::HintPublisher;
use crate::fanout::stream::Stream;
use crate::fanout::{Fanout, Hints};
use crate::model::feed::Epoch;
use crate::model::protocol::ErrorCode;
use crate::retry;
use crate::store::epoch::known::Epochs;
use crate::store::marks::{Locks, MarkRequest, MarkResult};
use crate::store::pool::Pool;
use crate::telemetry::metrics::Metrics;

/// Most requests in one transaction, because it locks their feeds, and no event is stored in a locked
/// feed.
const MARKS_PER_WRITE_MAX: usize = 64;
/// Most requests between the sessions and the queues, which take them at once.
const MARKS_ARRIVING_MAX: usize = 1_024;
/// Wait before a failed request is written again. The requests of other feeds are written
/// meanwhile.
const RETRY_AFTER: Duration = Duration::from_millis(200);
/// Most written batches whose marks wait for their publication to other replicas. If more wait, these
/// replicas find a gap in the numbers and read the marks.
const UNPUBLISHED_MAX: usize = 64;
/// Reply to a request of an earlier epoch.
const EPOCH_OVER: &str = "the database was restored: fetch the notifications again";

/// Takes the marks of sessions.
#[derive(Debug, Clone)]
pub struct Marks {
    submissions: mpsc::Sender<Submission>,
}

impl Marks {
    /// Makes the marks and their writer. The caller runs the writer.
    pub fn new(
        pool: Pool,
        fanout: Arc<Fanout>,
        stream: Arc<Stream>,
        epochs: Arc<Epochs>,
        metrics: Arc<Metrics>,
    ) -> (Self, MarkWriter) {
        let (sender, submissions) = mpsc::channel(MARKS_ARRIVING_MAX);
        let marks = Self {
            submissions: sender,
        };
        let writer = MarkWriter {
            submissions,
            queues: Queues::default(),
            writes: JoinSet::new(),
            is_writing: false,
            is_writing_apart: false,
            is_open: true,
            pool,
            fanout,
            stream,
            epochs,
            metrics,
        };
        (marks, writer)
    }

    /// Submits a request of a session of `epoch`. The inbox gets one list of replies, which is
    /// empty if all marks are new, because these reach the session like all others.
    pub fn submit(&self, request: MarkRequest, epoch: Epoch, inbox: Arc<Inbox>) {
        let submission = Submission::new(request, epoch, inbox);
        if let Err(refused) = self.submissions.try_send(submission) {
            refused.into_inner().refuse(ErrorCode::Busy, BUSY);
        }
    }
}

/// Writes marks and publishes them.
#[derive(Debug)]
pub struct MarkWriter {
    submissions: mpsc::Receiver<Submission>,
    queues: Queues,
    writes: JoinSet<Written>,
    is_writing: bool,
    /// Whether the write of failed requests is running.
    is_writing_apart: bool,
    is_open: bool,
    pool: Pool,
    fanout: Arc<Fanout>,
    /// The numbers of the hints.
    stream: Arc<Stream>,
    epochs: Arc<Epochs>,
    metrics: Arc<Metrics>,
}

enum Input {
    Submitted(usize),
    Written(Result<Written, JoinError>),
    Retry,
    Stop,
}

impl MarkWriter {
    /// Writes marks until `stop`, then those that were submitted before. Publishes them to other
    /// replicas through `publisher`.
    pub async fn run(mut self, publisher: HintPublisher, stop: CancellationToken) {
        let (written, unpublished) = mpsc::channel(UNPUBLISHED_MAX);
        tokio::join!(
            self.write_all(written, stop),
            publish_all(unpublished, publisher)
        );
    }

    async fn write_all(&mut self, unpublished: mpsc::Sender<Hints>, stop: CancellationToken) {
        let mut arrived = Vec::with_capacity(MARKS_PER_WRITE_MAX);
        loop {
            self.begin_writes(Instant::now());
            if !self.is_open && self.queues.is_empty() && self.writes.is_empty() {
                return;
            }
            let retry_at = self.queues.next_retry().filter(|_| !self.is_writing_apart);
            let input = tokio::select! {
                count = self.submissions.recv_many(&mut arrived, MARKS_PER_WRITE_MAX), if self.is_open => Input::Submitted(count),
                Some(written) = self.writes.join_next() => Input::Written(written),
                () = retry::until(retry_at) => Input::Retry,
                () = stop.cancelled(), if !self.submissions.is_closed() => Input::Stop,
            };
            match input {
                Input::Submitted(0) => self.is_open = false,
                Input::Submitted(_) => self.on_submitted(arrived.drain(..)),
                Input::Written(Ok(written)) => {
                    let hints = self.on_written(written);
                    if !hints.states.is_empty() && unpublished.try_send(hints).is_err() {
                        self.stream.skip();
                    }
                }
                Input::Written(Err(error)) => std::panic::resume_unwind(error.into_panic()),
                Input::Retry => {}
                Input::Stop => self.submissions.close(),
            }
        }
    }

    fn begin_writes(&mut self, now: Instant) {
        if !self.is_writing
            && let Some(requests) = self.queues.take(now)
        {
            self.is_writing = true;
            self.writes.spawn(self.batch(requests, Locks::Skip).write());
        }
        if !self.is_writing_apart
            && let Some(requests) = self.queues.take_apart(now)
        {
            self.is_writing_apart = true;
            self.writes.spawn(self.batch(requests, Locks::Wait).write());
        }
    }

    fn batch(&self, submissions: Vec<Submission>, locks: Locks) -> MarkBatch {
        MarkBatch {
            submissions,
            locks,
            pool: self.pool.clone(),
            epochs: self.epochs.clone(),
            metrics: self.metrics.clone(),
        }
    }

    fn on_submitted(&mut self, arrived: impl Iterator<Item = Submission>) {
        for refused in arrived.filter_map(|submission| self.queues.push(submission)) {
            refused.refuse(ErrorCode::Busy, BUSY);
        }
    }

    /// Publishes the new marks of a write to the sessions of this replica, and returns them for the
    /// other replicas. Sends the replies, and puts requests back that are to be written again.
    fn on_written(&mut self, written: Written) -> Hints {
        match written.locks {
            Locks::Skip => self.is_writing = false,
            Locks::Wait => self.is_writing_apart = false,
        }
        self.queues.end_write(&written.feeds);
        let mut hints = Hints {
            epoch: written.epoch,
            ..Hints::default()
        };
        let (mut done, mut again) = (Vec::new(), Vec::new());
        for (submission, results) in written.results {
            match results {
                Ok(results) => match self.on_results(submission, results, &mut hints) {
                    Step::Done(submission) => done.push(submission),
                    Step::Again(submission) => again.push(submission),
                    Step::Continue(submission) => self.queues.push_continued(submission),
                },
                Err(failure) => again.extend(on_failure(submission, failure)),
            }
        }
        self.queues.put_back(again);
        self.metrics.changes.inc_by(hints.states.len() as u64);
        self.fanout.publish_locally(&hints);
        if written.is_suspect {
            self.fanout.suspect_write(&self.stream);
        }
        // After the marks, so that a session gets its marks before it may submit more.
        done.into_iter().for_each(Submission::finish);
        hints
    }

    fn on_results(
        &self,
        mut submission: Submission,
        results: Vec<MarkResult>,
        hints: &mut Hints,
    ) -> Step {
        submission.reset_failures();
        let (mut is_continued, mut is_locked) = (false, false);
        for result in results {
            match result {
                MarkResult::Marked(state) => hints.states.push(Arc::new(state)),
                MarkResult::Already {
                    targets,
                    marked,
                    counts,
                } => submission.reply_state(&targets, &marked, counts),
                MarkResult::Unknown(seqs) => submission.reply_unknown(&seqs),
                MarkResult::More => is_continued = true,
                MarkResult::Locked => is_locked = true,
            }
        }
        if is_locked {
            submission.retry_at = Some(Instant::now());
            Step::Again(submission)
        } else if is_continued {
            Step::Continue(submission)
        } else {
            Step::Done(submission)
        }
    }
}

/// The next step of a submission that was written without an error.
enum Step {
    Done(Submission),
    /// It is written again, because its feed was locked.
    Again(Submission),
    /// Only its first part is stored.
    Continue(Submission),
}

/// Returns a failed submission that is to be written again. Refuses it otherwise.
fn on_failure(mut submission: Submission, failure: Failure) -> Option<Submission> {
    match failure {
        Failure::Locked | Failure::Alone if !submission.is_overdue() => {
            let now = Instant::now();
            submission.failing_since.get_or_insert(now);
            submission.is_alone |= failure == Failure::Alone;
            submission.retry_at = Some(now + RETRY_AFTER);
            return Some(submission);
        }
        Failure::EpochOver => submission.refuse(ErrorCode::NotTaken, EPOCH_OVER),
        Failure::Locked | Failure::Alone | Failure::Final => {
            submission.refuse(
                ErrorCode::NotTaken,
                "the mark could not be stored: send it again",
            );
        }
    }
    None
}
