//! What people say of notifications, from the session that heard it to everyone who reads the feed.
//!
//! Whatever was said while the last write ran is the next one. What became true is told to all sessions of its feed, the one
//! that heard it included; what was true before, only to that one. Like notifications, what a session misses it reads.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Utf8Bytes;
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::change::state;
use crate::epoch::Epochs;
use crate::fanout::{Fanout, HintPublisher, Hints};
use crate::feed::Epoch;
use crate::hub::Inbox;
use crate::protocol::{ErrorCode, ServerFrame};
use crate::store::StoreError;
use crate::store::answers::{Answer, Outcome, write};
use crate::store::pools::Pool;
use crate::telemetry::metrics::Metrics;

/// Most answers written by one statement.
const ANSWERS_PER_WRITE_MAX: usize = 64;
/// Most answers waiting to be written, of all sessions; past that they are refused as busy.
const ANSWERS_WAITING_MAX: usize = 4_096;
/// How long an answer is tried before its client is told to say it again.
const GIVE_UP_AFTER: Duration = Duration::from_secs(10);
/// Most writes whose changes wait to be told to other replicas; past that these find them by their sweep.
const UNTOLD_MAX: usize = 64;
/// Why something that a session said is not stored after the epoch has changed.
const EPOCH_OVER: &str = "the database was restored: look at the notifications again";

/// Where sessions bring what they heard.
#[derive(Debug, Clone)]
pub struct Answers {
    requests: mpsc::Sender<Request>,
}

/// The part that writes it, to be run.
#[derive(Debug)]
pub struct AnswerWriter {
    requests: mpsc::Receiver<Request>,
    pool: Pool,
    fanout: Arc<Fanout>,
    epochs: Arc<Epochs>,
    metrics: Arc<Metrics>,
}

/// One person's answer, and who waits for what comes of it.
#[derive(Debug)]
struct Request {
    answer: Answer,
    /// The epoch of its numbers.
    epoch: Epoch,
    asked_by: Arc<Inbox>,
    replies: Vec<Utf8Bytes>,
}

impl Request {
    /// The session hears no more of it.
    fn close(self) {
        self.asked_by.put_reply(self.replies);
    }

    fn refuse(mut self, code: ErrorCode, message: &str) {
        let feed = Some(self.answer.feed.as_str());
        self.replies.push(ServerFrame::Error { code, message, feed }.to_json().into());
        self.close();
    }
}

impl Answers {
    /// Nothing runs yet.
    pub fn new(pool: Pool, fanout: Arc<Fanout>, epochs: Arc<Epochs>, metrics: Arc<Metrics>) -> (Self, AnswerWriter) {
        let (sender, requests) = mpsc::channel(ANSWERS_WAITING_MAX);
        (Self { requests: sender }, AnswerWriter { requests, pool, fanout, epochs, metrics })
    }

    /// Takes what a session heard. Every answer gets one reply in its inbox, which may be empty: then the change says it all.
    pub fn say(&self, answer: Answer, epoch: Epoch, asked_by: Arc<Inbox>) {
        let request = Request { answer, epoch, asked_by, replies: Vec::new() };
        if let Err(refused) = self.requests.try_send(request) {
            refused.into_inner().refuse(ErrorCode::Busy, "too much is being said at once: say it again");
        }
    }
}

impl AnswerWriter {
    /// Writes answers until told to stop, then what was said before. Tells the other replicas over `others`.
    pub async fn run(mut self, others: HintPublisher, stop: CancellationToken) {
        let (told, untold) = mpsc::channel(UNTOLD_MAX);
        tokio::join!(self.write_all(told, stop), tell_others(untold, others));
    }

    async fn write_all(&mut self, told: mpsc::Sender<Hints>, stop: CancellationToken) {
        let mut waiting = Vec::with_capacity(ANSWERS_PER_WRITE_MAX);
        loop {
            tokio::select! {
                received = self.requests.recv_many(&mut waiting, ANSWERS_PER_WRITE_MAX) => {
                    if received == 0 {
                        return;
                    }
                }
                () = stop.cancelled(), if !self.requests.is_closed() => self.requests.close(),
            }
            // What takes several writes goes on before anything else is waited for.
            while !waiting.is_empty() {
                let changed = self.write(&mut waiting).await;
                if !changed.changed.is_empty() {
                    // Full where RabbitMQ is slow: the other replicas look for themselves.
                    let _ = told.try_send(changed);
                }
                while waiting.len() < ANSWERS_PER_WRITE_MAX
                    && let Ok(request) = self.requests.try_recv()
                {
                    waiting.push(request);
                }
            }
        }
    }

    /// Writes once; leaves what is to go on. Tells this replica's sessions, and gives back what to tell the others.
    async fn write(&self, waiting: &mut Vec<Request>) -> Hints {
        // What is said of another epoch's numbers may be about other notifications now; its session is about to end.
        let current = self.epochs.current();
        let of_another = waiting.extract_if(.., |request| Some(&request.epoch) != current.as_ref());
        of_another.for_each(|request| request.refuse(ErrorCode::NotTaken, EPOCH_OVER));
        let Some(epoch) = waiting.first().map(|request| request.epoch.clone()) else { return Hints::default() };
        let answers: Vec<Answer> = waiting.iter().map(|request| request.answer.clone()).collect();
        let outcomes = match self.write_when_possible(&epoch, &answers).await {
            Ok(outcomes) => outcomes,
            Err(StoreError::EpochOver(_)) => {
                self.epochs.ask();
                waiting.drain(..).for_each(|request| request.refuse(ErrorCode::NotTaken, EPOCH_OVER));
                return Hints::default();
            }
            Err(error) => {
                tracing::error!(%error, answers = answers.len(), "what people said could not be stored; they are told");
                let message = "it could not be stored: say it again";
                waiting.drain(..).for_each(|request| request.refuse(ErrorCode::NotTaken, message));
                return Hints::default();
            }
        };
        let mut hints = Hints { epoch: Some(epoch), ..Hints::default() };
        let mut goes_on = vec![false; waiting.len()];
        for (place, outcome) in outcomes {
            let Some(request) = waiting.get_mut(place) else { continue };
            let feed = &request.answer.feed;
            match outcome {
                Outcome::Changed(change) => hints.changed.push(Arc::new(change)),
                Outcome::Was { which, fact, counts } => request.replies.push(state(feed, None, &which, &fact, counts)),
                Outcome::Unknown(seqs) => request.replies.push(unknown(feed.as_str(), &seqs)),
                Outcome::More => goes_on[place] = true,
            }
        }
        self.metrics.changes.inc_by(hints.changed.len() as u64);
        self.fanout.announce(&hints);
        let requests = std::mem::take(waiting).into_iter().zip(goes_on);
        for (request, goes_on) in requests {
            match goes_on {
                true => waiting.push(request),
                false => request.close(),
            }
        }
        hints
    }

    /// Writing twice does no harm: where the first try was not answered, its change is found by the sweep.
    async fn write_when_possible(
        &self,
        epoch: &Epoch,
        answers: &[Answer],
    ) -> Result<Vec<(usize, Outcome)>, StoreError> {
        let (begun, mut backoff) = (Instant::now(), Backoff::default());
        loop {
            match write(&self.pool, epoch, answers).await {
                Ok(outcomes) => return Ok(outcomes),
                Err(error @ (StoreError::Refused(_) | StoreError::EpochOver(_))) => return Err(error),
                Err(error) if begun.elapsed() >= GIVE_UP_AFTER => return Err(error),
                Err(error) => {
                    let wait = backoff.next_wait();
                    self.metrics.retries.inc("answers");
                    tracing::warn!(%error, answers = answers.len(), wait_ms = wait.as_millis(), "what people said could not be stored; trying again");
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }
}

/// Apart from the writing, which must not wait for RabbitMQ.
async fn tell_others(mut untold: mpsc::Receiver<Hints>, mut others: HintPublisher) {
    let (mut waiting, mut refused_before) = (Vec::new(), false);
    while untold.recv_many(&mut waiting, UNTOLD_MAX).await > 0 {
        let told = others.tell(&waiting.iter().collect::<Vec<_>>()).await;
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

fn unknown(feed: &str, seqs: &[i64]) -> Utf8Bytes {
    let numbers: Vec<String> = seqs.iter().map(i64::to_string).collect();
    let message = format!("the feed has no notification {}", numbers.join(", "));
    ServerFrame::Error { code: ErrorCode::UnknownSeq, message: &message, feed: Some(feed) }.to_json().into()
}
