//! What people say of notifications, from the session that heard it to everyone who reads the feed.
//!
//! Requests wait in [`Queues`]. One write is under way at a time, of what waits meanwhile; beside
//! it one of requests whose feed another transaction has locked, or that failed, so that these hold
//! up no other. What became true is told to all sessions of its feed, the one that heard it
//! included; what was true before, only to that one. Like notifications, what a session misses it
//! reads.

mod queues;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::queues::Queues;
use crate::fanout::hub::Inbox;
use crate::fanout::publisher::HintPublisher;
use crate::fanout::{Fanout, Hints};
use crate::model::feed::{Epoch, Feed};
use crate::model::frame_text::FrameText;
use crate::model::mark::{Mark, Targets, state};
use crate::model::protocol::{ErrorCode, ServerFrame};
use crate::retry::Backoff;
use crate::store::StoreError;
use crate::store::epoch::known::Epochs;
use crate::store::marks::{Locks, MarkRequest, MarkResult, write};
use crate::store::pools::Pool;
use crate::telemetry::labels::Retried;
use crate::telemetry::metrics::Metrics;

/// Most answers written by one statement.
const MARKS_PER_WRITE_MAX: usize = 64;
/// Most answers between the sessions and the queues, which take them at once.
const MARKS_ARRIVING_MAX: usize = 1_024;
/// How long until an answer that failed is tried again; the feeds of the others are written
/// meanwhile.
const RETRY_AFTER: Duration = Duration::from_millis(200);
/// How long an answer is tried before its client is told to say it again.
const GIVE_UP_AFTER: Duration = Duration::from_secs(10);
/// Why a request is refused if too many wait.
const BUSY: &str = "too many requests wait: send it again";
/// Most writes whose changes wait to be told to other replicas; past that these find them by their
/// sweep.
const UNTOLD_MAX: usize = 64;
/// Why something that a session said is not stored after the epoch has changed.
const EPOCH_OVER: &str = "the database was restored: look at the notifications again";

/// Where sessions bring what they heard.
#[derive(Debug, Clone)]
pub struct Marks {
    requests: mpsc::Sender<Request>,
}

/// The part that writes it, to be run.
#[derive(Debug)]
pub struct MarkWriter {
    requests: mpsc::Receiver<Request>,
    pool: Pool,
    fanout: Arc<Fanout>,
    epochs: Arc<Epochs>,
    metrics: Arc<Metrics>,
}

/// One person's answer, and who waits for what comes of it.
#[derive(Debug)]
struct Request {
    answer: MarkRequest,
    /// The epoch of its numbers.
    epoch: Epoch,
    asked_by: Arc<Inbox>,
    replies: Vec<FrameText>,
    /// A part of it is stored, and it goes on.
    goes_on: bool,
    /// It is written apart from others, and not before this.
    retry_at: Option<Instant>,
    failing_since: Option<Instant>,
    /// It failed by itself, so no other request is written with it.
    is_alone: bool,
}

impl Request {
    fn new(answer: MarkRequest, epoch: Epoch, asked_by: Arc<Inbox>) -> Self {
        Self {
            answer,
            epoch,
            asked_by,
            replies: Vec::new(),
            goes_on: false,
            retry_at: None,
            failing_since: None,
            is_alone: false,
        }
    }

    fn is_through(&self) -> bool {
        matches!(self.answer.mark, Mark::Read(Targets::Through(_)))
    }

    fn is_overdue(&self) -> bool {
        self.failing_since
            .is_some_and(|since| since.elapsed() >= GIVE_UP_AFTER)
    }

    /// How many notifications it names.
    fn numbers(&self) -> usize {
        match &self.answer.mark {
            Mark::Read(Targets::Seqs(seqs)) | Mark::Handled(seqs) => seqs.len(),
            Mark::Read(Targets::Through(_)) => 0,
        }
    }

    /// The session hears no more of it.
    fn close(self) {
        self.asked_by.put_reply(self.replies);
    }

    fn refuse(mut self, code: ErrorCode, message: &str) {
        let feed = Some(self.answer.feed.as_str());
        self.replies.push(
            ServerFrame::Error {
                code,
                message,
                feed,
            }
            .to_json()
            .into(),
        );
        self.close();
    }
}

impl Marks {
    /// Nothing runs yet.
    pub fn new(
        pool: Pool,
        fanout: Arc<Fanout>,
        epochs: Arc<Epochs>,
        metrics: Arc<Metrics>,
    ) -> (Self, MarkWriter) {
        let (sender, requests) = mpsc::channel(MARKS_ARRIVING_MAX);
        (
            Self { requests: sender },
            MarkWriter {
                requests,
                pool,
                fanout,
                epochs,
                metrics,
            },
        )
    }

    /// Takes what a session heard. Every answer gets one reply in its inbox, which may be empty:
    /// then the change says it all.
    pub fn submit(&self, answer: MarkRequest, epoch: Epoch, asked_by: Arc<Inbox>) {
        if let Err(refused) = self
            .requests
            .try_send(Request::new(answer, epoch, asked_by))
        {
            refused.into_inner().refuse(ErrorCode::Busy, BUSY);
        }
    }
}

impl MarkWriter {
    /// Writes answers until told to stop, then what was said before. Tells the other replicas over
    /// `others`.
    pub async fn run(mut self, others: HintPublisher, stop: CancellationToken) {
        let (told, untold) = mpsc::channel(UNTOLD_MAX);
        tokio::join!(self.write_all(told, stop), tell_others(untold, others));
    }

    async fn write_all(&mut self, told: mpsc::Sender<Hints>, stop: CancellationToken) {
        let (mut queues, mut writes) = (Queues::default(), JoinSet::new());
        let (mut is_writing, mut is_writing_apart, mut is_open) = (false, false, true);
        let mut arrived = Vec::with_capacity(MARKS_PER_WRITE_MAX);
        loop {
            let now = Instant::now();
            if !is_writing && let Some(requests) = queues.take(now) {
                is_writing = true;
                writes.spawn(self.writing(requests, Locks::Skip));
            }
            if !is_writing_apart && let Some(requests) = queues.take_apart(now) {
                is_writing_apart = true;
                writes.spawn(self.writing(requests, Locks::Wait));
            }
            if !is_open && queues.is_empty() && writes.is_empty() {
                return;
            }
            let retry_at = queues.next_retry().filter(|_| !is_writing_apart);
            let input = tokio::select! {
                received = self.requests.recv_many(&mut arrived, MARKS_PER_WRITE_MAX), if is_open => Input::Arrived(received),
                Some(written) = writes.join_next() => Input::Written(written),
                () = at(retry_at) => Input::Retry,
                () = stop.cancelled(), if !self.requests.is_closed() => Input::Stop,
            };
            match input {
                Input::Arrived(received) => {
                    is_open = received > 0;
                    for refused in arrived.drain(..).filter_map(|request| queues.push(request)) {
                        refused.refuse(ErrorCode::Busy, BUSY);
                    }
                }
                Input::Written(Ok(written)) => {
                    match written.locks {
                        Locks::Skip => is_writing = false,
                        Locks::Wait => is_writing_apart = false,
                    }
                    let changed = self.settle(written, &mut queues);
                    if !changed.states.is_empty() {
                        // Full where RabbitMQ is slow: the other replicas look for themselves.
                        let _ = told.try_send(changed);
                    }
                }
                Input::Written(Err(error)) => std::panic::resume_unwind(error.into_panic()),
                Input::Retry => {}
                Input::Stop => self.requests.close(),
            }
        }
    }

    fn writing(
        &self,
        requests: Vec<Request>,
        locks: Locks,
    ) -> impl Future<Output = Written> + use<> {
        write_turn(
            self.pool.clone(),
            self.epochs.clone(),
            self.metrics.clone(),
            requests,
            locks,
        )
    }

    /// Tells this replica's sessions, and gives back what to tell the others; returns to the queues
    /// what is to go on.
    fn settle(&self, written: Written, queues: &mut Queues) -> Hints {
        let mut hints = Hints {
            epoch: written.epoch,
            ..Hints::default()
        };
        let (mut closed, mut again, now) = (Vec::new(), Vec::new(), Instant::now());
        queues.ended(&written.feeds);
        for (mut request, outcomes) in written.requests {
            let outcomes = match outcomes {
                Ok(outcomes) => outcomes,
                Err(failure)
                    if matches!(failure, Failure::Locked | Failure::TryAgain)
                        && !request.is_overdue() =>
                {
                    request.failing_since.get_or_insert(now);
                    request.is_alone |= failure == Failure::TryAgain;
                    request.retry_at = Some(now + RETRY_AFTER);
                    again.push(request);
                    continue;
                }
                Err(Failure::EpochOver) => {
                    request.refuse(ErrorCode::NotTaken, EPOCH_OVER);
                    continue;
                }
                Err(_) => {
                    request.refuse(ErrorCode::NotTaken, "it could not be stored: say it again");
                    continue;
                }
            };
            (request.retry_at, request.failing_since, request.is_alone) = (None, None, false);
            let (feed, mut goes_on, mut is_locked) = (&request.answer.feed, false, false);
            for outcome in outcomes {
                match outcome {
                    MarkResult::Marked(change) => hints.states.push(Arc::new(change)),
                    MarkResult::Already {
                        targets,
                        marked,
                        counts,
                    } => request
                        .replies
                        .push(state(feed, None, &targets, &marked, counts)),
                    MarkResult::Unknown(seqs) => {
                        request.replies.push(unknown(feed.as_str(), &seqs))
                    }
                    MarkResult::More => goes_on = true,
                    MarkResult::Locked => is_locked = true,
                }
            }
            if is_locked {
                request.retry_at = Some(now);
                again.push(request);
            } else if goes_on {
                queues.go_on(request);
            } else {
                closed.push(request);
            }
        }
        queues.put_back(again);
        self.metrics.changes.inc_by(hints.states.len() as u64);
        self.fanout.publish_locally(&hints);
        closed.into_iter().for_each(Request::close);
        hints
    }
}

/// What the writer waits for.
enum Input {
    Arrived(usize),
    Written(Result<Written, tokio::task::JoinError>),
    Retry,
    Stop,
}

/// A write that has ended.
struct Written {
    locks: Locks,
    epoch: Option<Epoch>,
    feeds: Vec<Feed>,
    /// In the order in which they were taken.
    requests: Vec<(Request, Result<Vec<MarkResult>, Failure>)>,
}

/// Why a request is not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failure {
    /// Its feed was locked for too long.
    Locked,
    /// It fails, but others do not.
    TryAgain,
    /// Its numbers may be those of other notifications now; its session is about to end.
    EpochOver,
    /// It will fail again, or has been tried for long enough.
    Final,
}

/// Writes requests together; where they fail together, in halves, so that one of them fails alone.
async fn write_turn(
    pool: Pool,
    epochs: Arc<Epochs>,
    metrics: Arc<Metrics>,
    requests: Vec<Request>,
    locks: Locks,
) -> Written {
    let feeds = requests
        .iter()
        .map(|request| request.answer.feed.clone())
        .collect();
    let epoch = epochs.current();
    let (requests, over): (Vec<_>, Vec<_>) = requests
        .into_iter()
        .partition(|request| Some(&request.epoch) == epoch.as_ref());
    let over = over
        .into_iter()
        .map(|request| (request, Err(Failure::EpochOver)));
    let mut written = Written {
        locks,
        epoch: epoch.clone(),
        feeds,
        requests: over.collect(),
    };
    let Some(epoch) = epoch.filter(|_| !requests.is_empty()) else {
        return written;
    };
    let mut parts = vec![requests];
    while let Some(mut part) = parts.pop() {
        let answers: Vec<MarkRequest> = part.iter().map(|request| request.answer.clone()).collect();
        match write_when_possible(&pool, &metrics, &epoch, &answers, locks).await {
            Ok(outcomes) => {
                let mut outcomes_of: Vec<Vec<MarkResult>> =
                    part.iter().map(|_| Vec::new()).collect();
                for (place, outcome) in outcomes {
                    outcomes_of
                        .get_mut(place)
                        .into_iter()
                        .for_each(|of| of.push(outcome.clone()));
                }
                written
                    .requests
                    .extend(part.into_iter().zip(outcomes_of.into_iter().map(Ok)));
            }
            Err(StoreError::EpochOver(_)) => {
                epochs.ask();
                written.requests.extend(
                    part.into_iter()
                        .map(|request| (request, Err(Failure::EpochOver))),
                );
            }
            Err(error)
                if part.len() > 1 && error.may_concern_one_value() && !error.is_lock_timeout() =>
            {
                parts.push(part.split_off(part.len() / 2));
                parts.push(part);
            }
            Err(error) => {
                let failure = match &error {
                    _ if error.is_lock_timeout() && locks == Locks::Wait => Failure::Locked,
                    StoreError::Refused(_) => Failure::Final,
                    _ if error.may_concern_one_value() => Failure::TryAgain,
                    _ => Failure::Final,
                };
                let answers = part.len();
                if failure == Failure::Final || part.iter().any(Request::is_overdue) {
                    tracing::error!(%error, answers, "what people said could not be stored; they are told");
                } else {
                    metrics.retries.inc(Retried::Marks);
                    tracing::warn!(%error, answers, "what people said could not be stored; trying again");
                }
                written
                    .requests
                    .extend(part.into_iter().map(|request| (request, Err(failure))));
            }
        }
    }
    written
}

/// Writing twice does no harm: where the first try was not answered, its change is found by the
/// sweep.
async fn write_when_possible(
    pool: &Pool,
    metrics: &Metrics,
    epoch: &Epoch,
    answers: &[MarkRequest],
    locks: Locks,
) -> Result<Vec<(usize, MarkResult)>, StoreError> {
    let (begun, mut backoff) = (Instant::now(), Backoff::default());
    loop {
        match write(pool, epoch, answers, locks).await {
            Ok(outcomes) => return Ok(outcomes),
            Err(error @ StoreError::EpochOver(_)) => return Err(error),
            Err(error) if error.may_concern_one_value() || begun.elapsed() >= GIVE_UP_AFTER => {
                return Err(error);
            }
            Err(error) => {
                let wait = backoff.next_wait();
                metrics.retries.inc(Retried::Marks);
                tracing::warn!(%error, answers = answers.len(), wait_ms = wait.as_millis(), "what people said could not be stored; trying again");
                tokio::time::sleep(wait).await;
            }
        }
    }
}

/// Never, if there is nothing to retry.
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

/// Apart from the writing, which must not wait for RabbitMQ.
async fn tell_others(mut untold: mpsc::Receiver<Hints>, mut others: HintPublisher) {
    let (mut waiting, mut refused_before) = (Vec::new(), false);
    while untold.recv_many(&mut waiting, UNTOLD_MAX).await > 0 {
        let told = others
            .publish_hints(&waiting.iter().collect::<Vec<_>>())
            .await;
        // Once, until it takes them again: clients set the pace.
        if let Err(error) = &told
            && !refused_before
        {
            tracing::warn!(%error, "RabbitMQ takes no hints; other replicas find what people said by their sweep");
        }
        refused_before = told.is_err();
        waiting.clear();
    }
    others.close().await;
}

fn unknown(feed: &str, seqs: &[i64]) -> FrameText {
    let numbers: Vec<String> = seqs.iter().map(i64::to_string).collect();
    let message = format!("the feed has no notification {}", numbers.join(", "));
    ServerFrame::Error {
        code: ErrorCode::UnknownSeq,
        message: &message,
        feed: Some(feed),
    }
    .to_json()
    .into()
}
