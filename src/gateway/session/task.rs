//! Moves bytes and hints in and out of a session's state machine. `select!` only chooses the input; the work comes after,
//! so nothing is dropped halfway.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::FutureExt;
use prometheus_client::metrics::histogram::Histogram;
use time::OffsetDateTime;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::framing::{Fault, Incoming};
use super::goodbye::{say_goodbye, takes_late_frames};
use super::late::Lateness;
use super::socket::{Ended, Socket};
use super::state::{Ends, Output, Rules, Session, Start};
use crate::fanout::hub::{Registration, Waiting};
use crate::gateway::auth::{Authenticator, LEEWAY};
use crate::gateway::cursors::{Cursors, SEEN_AFTER};
use crate::gateway::marks::Marks;
use crate::gateway::replay::Replay;
use crate::model::feed::{Device, Epoch, Feed, Subscriber};
use crate::model::notification::{Notification, Page};
use crate::model::protocol::{ClientFrame, Close, ServerFrame, WelcomeFeed};
use crate::store::cursors::CursorKey;
use crate::store::epoch::known::Epochs;
use crate::store::marks::MarkRequest;
use crate::telemetry::metrics::{Counted, Metrics};
use crate::telemetry::traces;

/// A client that takes less than this in that time reads nothing, or as good as: it is closed, and what it missed is
/// replayed. A large event has longer, by its size.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
const WRITE_BYTES_PER_SECOND_MIN: usize = 32 * 1024;
/// Frames are gathered up to this before they are written.
const WRITE_BYTES: usize = 64 * 1024;
/// A replica that leaves uses this part of its drain time to spread the closes; the rest is for the closes themselves.
const DRAIN_SPREAD: f64 = 0.8;
/// How it is called where a client went without a word, or its network did.
const GONE: &str = "gone";
/// Longest that a client of a leaving replica is told to wait, in milliseconds.
const GOAWAY_RETRY_MS_MAX: u64 = 2_000;

/// Longest that a client is told to wait when the epoch has changed, in milliseconds: all come back at once.
const EPOCH_RETRY_MS_MAX: u64 = 5_000;

/// What all sessions of a replica share.
#[derive(Debug)]
pub struct Shared {
    /// Checks the tokens of `auth` frames.
    pub authenticator: Authenticator,
    /// Where pages are asked for.
    pub replay: Replay,
    /// Where acks go.
    pub cursors: Arc<Cursors>,
    /// Where reads and handles go.
    pub answers: Marks,
    /// The epoch that the replica knows.
    pub epochs: Arc<Epochs>,
    /// The books.
    pub metrics: Arc<Metrics>,
    /// How sessions behave.
    pub rules: Rules,
    /// The greatest age of a connection, before jitter.
    pub age_max: Option<Duration>,
    /// How long a leaving replica spreads its closes.
    pub drain: Duration,
}

/// A session that was let in.
#[derive(Debug)]
pub struct Opened {
    /// Its id, for support.
    pub id: String,
    /// Who reads.
    pub subscriber: Subscriber,
    /// With which device.
    pub device: Device,
    /// The epoch of all its numbers.
    pub epoch: Epoch,
    /// Where it begins.
    pub starts: Vec<Start>,
    /// What `welcome` says of the feeds.
    pub feeds: Vec<WelcomeFeed>,
    /// Time until the token expires.
    pub token_remaining: Duration,
    /// It is ours, and measures by itself.
    pub is_canary: bool,
    /// Its place in the hub, taken before its cursors were read.
    pub registration: Registration,
}

/// What came.
enum Input {
    Frame(Result<Incoming, Ended>),
    Hints,
    Page(Result<Arc<Page>, oneshot::error::RecvError>),
    Tick,
    Drain,
}

/// How a session went on after an input.
enum Next {
    Go,
    Close(Close),
    Gone,
}

impl Next {
    /// Why it ended.
    fn word(&self) -> &'static str {
        match self {
            Self::Close(close) => close.word(),
            Self::Go | Self::Gone => GONE,
        }
    }
}

/// Begins counting how sessions end, at zero of each.
pub fn begin_counting(metrics: &Metrics) {
    let retry_after_ms = 0;
    let closes = [
        Close::Answered,
        Close::Internal,
        Close::GoingAway { retry_after_ms },
        Close::TokenExpired,
        Close::Silent,
        Close::TooOld,
        Close::EpochChanged { retry_after_ms },
        Close::TooManyFrames { retry_after_ms },
        Close::NotTheProtocol,
        Close::BrokenFraming,
        Close::NotUtf8,
        Close::TooBig,
    ];
    metrics.sessions_closed.begin(&closes.map(Close::word));
    metrics.sessions_closed.begin(&[GONE]);
}

/// Runs a session to its end.
pub async fn run<S>(
    mut socket: Socket<S>,
    mut opened: Opened,
    shared: Arc<Shared>,
    drain: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let now = Instant::now();
    let ends = Ends {
        token: now + opened.token_remaining + LEEWAY,
        age: shared.age_max.map(|age| now + jittered(age)),
        epoch_retry_ms: fastrand::u64(0..=EPOCH_RETRY_MS_MAX),
    };
    let session = Session::new(
        shared.rules,
        opened.epoch.clone(),
        std::mem::take(&mut opened.starts),
        ends,
        now,
    );
    let opened_at = OffsetDateTime::now_utc();
    let mut task = Task {
        session,
        opened,
        shared,
        page: None,
        opened_at,
        behind: None,
        lateness: Lateness::default(),
        late: None,
    };
    task.shared.metrics.sessions_opened.inc();

    let mut next = task.welcome(&mut socket).await;
    let mut timer = pin!(tokio::time::sleep_until(task.session.deadline().into()));
    let mut leave = pin!(leave(drain, task.shared.drain));
    while let Next::Go = next {
        let deadline = task.session.deadline().into();
        if timer.deadline() != deadline {
            timer.as_mut().reset(deadline);
        }
        let input = tokio::select! {
            // The socket first: acks that lie there already come before the verdict that nothing was heard. A client
            // cannot starve the rest by that, for its frames are counted.
            biased;
            frame = socket.next() => Input::Frame(frame),
            () = task.opened.registration.inbox().woken() => Input::Hints,
            page = next_page(&mut task.page) => Input::Page(page),
            () = &mut timer => Input::Tick,
            () = &mut leave => Input::Drain,
        };
        next = match task.take_in(input) {
            Next::Go => task.put_out(&mut socket).await,
            end => end,
        };
        task.count_full_windows();
    }
    task.shared.cursors.hurry();
    if now.elapsed() >= SEEN_AFTER {
        task.shared.cursors.seen(
            task.opened
                .feeds
                .iter()
                .map(|open| task.cursor_key(open.feed.clone()))
                .collect(),
        );
    }
    task.shared.metrics.sessions_closed.inc(next.word());
    if let Next::Close(close) = next {
        tracing::debug!(
            session = task.opened.id,
            code = close.code(),
            "the session is closed"
        );
        let takes_late = takes_late_frames(close);
        say_goodbye(socket, close, &close.reason(), |text| {
            if takes_late {
                task.take_late(text);
            }
        })
        .await;
        task.shared.cursors.hurry();
    }
}

struct Task {
    session: Session,
    opened: Opened,
    shared: Arc<Shared>,
    /// The page that was asked for.
    page: Option<oneshot::Receiver<Arc<Page>>>,
    /// When the merchant came: what was published before could not reach it earlier.
    opened_at: OffsetDateTime,
    /// Counted among the sessions that are behind.
    behind: Option<Counted>,
    lateness: Lateness,
    /// Counted among the sessions that are late.
    late: Option<Counted>,
}

impl Task {
    async fn welcome<S: AsyncRead + AsyncWrite + Unpin>(&mut self, socket: &mut Socket<S>) -> Next {
        let welcome = ServerFrame::Welcome {
            session: &self.opened.id,
            subscriber: &self.opened.subscriber,
            device: &self.opened.device,
            window: self.shared.rules.window,
            heartbeat_seconds: self.shared.rules.heartbeat.as_secs(),
            token_expires_in: i64::try_from(self.opened.token_remaining.as_secs())
                .unwrap_or(i64::MAX),
            feeds: &self.opened.feeds,
        };
        socket.put_text(welcome.to_json().into());
        self.put_out(socket).await
    }

    fn take_in(&mut self, input: Input) -> Next {
        match input {
            Input::Frame(frame) => return self.take_frame(frame),
            Input::Hints => {
                let Waiting {
                    hints,
                    states: changes,
                    newest,
                    replies,
                    epoch,
                    ..
                } = self.opened.registration.inbox().take();
                if let Some(epoch) = epoch
                    && epoch != self.opened.epoch
                {
                    self.session.on_epoch(&epoch);
                    return Next::Go;
                }
                for (feed, newest) in newest {
                    self.session.on_newest(&feed, newest);
                }
                self.session.on_hints(hints, OffsetDateTime::now_utc());
                self.session.on_changes(&changes);
                self.session.on_replies(replies);
            }
            Input::Page(Ok(page)) => self.session.on_page(&page, OffsetDateTime::now_utc()),
            // The pager is gone or has no room: a fault of this replica.
            Input::Page(Err(_)) => return Next::Close(Close::Internal),
            Input::Tick => self.session.on_tick(Instant::now()),
            Input::Drain => self
                .session
                .on_drain(fastrand::u64(0..=GOAWAY_RETRY_MS_MAX)),
        }
        Next::Go
    }

    fn take_frame(&mut self, frame: Result<Incoming, Ended>) -> Next {
        let now = Instant::now();
        match frame {
            Ok(Incoming::Text(text)) => match ClientFrame::parse(&text) {
                Some(frame) => self.session.on_frame(frame, now),
                None => return Next::Close(Close::NotTheProtocol),
            },
            // A fragment counts as a frame: a client could send empty ones without end.
            Ok(Incoming::Ping(_) | Incoming::Pong | Incoming::Fragment) => {
                self.session.on_control(now)
            }
            Ok(Incoming::Close(_)) => return Next::Close(Close::Answered),
            Ok(Incoming::Binary) => return Next::Close(Close::NotTheProtocol),
            Err(Ended::Fault(Fault::Framing)) => return Next::Close(Close::BrokenFraming),
            Err(Ended::Fault(Fault::NotUtf8)) => return Next::Close(Close::NotUtf8),
            Err(Ended::Fault(Fault::TooBig)) => return Next::Close(Close::TooBig),
            // Many clients go like this, and then there is nobody to send a close to.
            Err(Ended::Gone) => return Next::Gone,
        }
        Next::Go
    }

    /// Does what the session wants, then flushes once.
    async fn put_out<S: AsyncRead + AsyncWrite + Unpin>(&mut self, socket: &mut Socket<S>) -> Next {
        let (mut sent, begun) = (Vec::new(), SystemTime::now());
        loop {
            let outputs = self.session.take_outputs();
            if outputs.is_empty() {
                break;
            }
            for output in outputs {
                match output {
                    Output::Notification(notification) => {
                        socket.put_text(notification.frame.clone());
                        sent.push(notification);
                    }
                    Output::Send(frame) => socket.put_text(frame),
                    Output::Ping => socket.put_ping(),
                    Output::Close(close) => return Next::Close(close),
                    other => self.record(other),
                }
                if socket.unsent_bytes() >= WRITE_BYTES {
                    match flush(socket).await {
                        Next::Go => {}
                        end => return end,
                    }
                }
            }
        }
        // Also the answers to pings, which the socket gives by itself.
        if socket.unsent_bytes() > 0 {
            match flush(socket).await {
                Next::Go => {}
                end => return end,
            }
        }
        self.count_sent(&sent, begun);
        Next::Go
    }

    /// Does what needs no socket.
    fn record(&mut self, output: Output) {
        match output {
            Output::Acknowledged(sent) => {
                self.lateness.on_ack();
                self.observe_wait(
                    &self.shared.metrics.publish_to_ack,
                    sent.time,
                    OffsetDateTime::now_utc(),
                );
                if let Some(origin) = sent.origin {
                    traces::acknowledged(&origin);
                }
            }
            Output::Read {
                feed,
                after,
                wanted,
                changes_after,
            } => {
                self.page = Some(self.shared.replay.read(feed, after, wanted, changes_after));
            }
            Output::Say { feed, said } => {
                let answer = MarkRequest {
                    feed,
                    subscriber: self.opened.subscriber.clone(),
                    said,
                };
                let (epoch, inbox) = (
                    self.opened.epoch.clone(),
                    self.opened.registration.inbox().clone(),
                );
                self.shared.answers.say(answer, epoch, inbox);
            }
            Output::Ack { feed, seq } => {
                self.shared.metrics.acks.inc();
                self.shared
                    .cursors
                    .ack(self.cursor_key(feed), seq, &self.opened.epoch);
            }
            Output::Doubt => self
                .shared
                .epochs
                .doubt(&self.opened.epoch, "a page ended before what was sent"),
            Output::Verify { token } => {
                let verdict = self.verify(&token);
                self.session
                    .on_verified(verdict.as_ref().copied().map_err(String::as_str));
            }
            Output::Notification(_) | Output::Send(_) | Output::Ping | Output::Close(_) => {}
        }
    }

    /// Takes what the client sent before it saw the close: its acks, reads and handles count, and nothing is sent for them.
    fn take_late(&mut self, text: &str) {
        let Some(frame) = ClientFrame::parse(text) else {
            return;
        };
        if !matches!(
            frame,
            ClientFrame::Ack { .. } | ClientFrame::Read { .. } | ClientFrame::Handle { .. }
        ) {
            return;
        }
        self.session.on_frame(frame, Instant::now());
        for output in self.session.take_outputs() {
            if matches!(
                output,
                Output::Acknowledged(_) | Output::Ack { .. } | Output::Say { .. }
            ) {
                self.record(output);
            }
        }
    }

    /// Counts what was written and flushed, since then.
    fn count_sent(&mut self, sent: &[Arc<Notification>], begun: SystemTime) {
        if sent.is_empty() {
            return;
        }
        let (metrics, now) = (&self.shared.metrics, OffsetDateTime::now_utc());
        metrics.notifications_sent.inc_by(sent.len() as u64);
        for notification in sent {
            self.observe_wait(&metrics.publish_to_delivery, notification.time, now);
        }
        for notification in sent {
            let Some(origin) = &notification.origin else {
                continue;
            };
            let (feed, seq) = (notification.feed.as_str(), notification.seq.get());
            if let Some(origin) = traces::delivered(origin, feed, seq, begun) {
                self.session.on_traced(notification, origin);
            }
        }
    }

    /// Only of what was published while the merchant was there: a replay is as old as the merchant was long away. And no
    /// canary's, whose share would hide what merchants wait for.
    fn observe_wait(
        &self,
        histogram: &Histogram,
        published_at: Option<OffsetDateTime>,
        now: OffsetDateTime,
    ) {
        if let Some(published_at) = published_at
            && published_at >= self.opened_at
            && !self.opened.is_canary
        {
            // A publisher whose clock is ahead made nobody wait.
            histogram.observe((now - published_at).as_seconds_f64().max(0.0));
        }
    }

    fn count_full_windows(&mut self) {
        if self.session.is_window_full() != self.behind.is_some() {
            let gauge = &self.shared.metrics.sessions_behind;
            self.behind = self
                .session
                .is_window_full()
                .then(|| Counted::in_gauge(gauge));
        }
        let is_late = self
            .lateness
            .is_late(self.session.outstanding(), Instant::now());
        if is_late != self.late.is_some() {
            self.late = is_late.then(|| Counted::in_gauge(&self.shared.metrics.sessions_late));
        }
    }

    /// A fresh token must be for the same subscriber and still name every feed of the session.
    fn verify(&self, token: &str) -> Result<Instant, String> {
        let grant = self
            .shared
            .authenticator
            .check(token)
            .map_err(|error| error.to_string())?;
        if grant.subscriber != self.opened.subscriber {
            return Err("the token is for another subscriber".into());
        }
        // The broadcast feed is in every grant: who could answer for all must still be named to it.
        let is_kept = |open: &WelcomeFeed| {
            grant.feeds.contains(&open.feed)
                && (open.shared || grant.shared.as_ref() != Some(&open.feed))
        };
        if !self.opened.feeds.iter().all(is_kept) {
            return Err(
                "the token does not name every feed of this session: reconnect with it".into(),
            );
        }
        Ok(Instant::now() + grant.remaining() + LEEWAY)
    }

    fn cursor_key(&self, feed: Feed) -> CursorKey {
        CursorKey {
            feed,
            subscriber: self.opened.subscriber.clone(),
            device: self.opened.device.clone(),
        }
    }
}

/// The page that was asked for; never, while none is.
async fn next_page(
    page: &mut Option<oneshot::Receiver<Arc<Page>>>,
) -> Result<Arc<Page>, oneshot::error::RecvError> {
    match page {
        Some(receiver) => {
            let answer = receiver.await;
            *page = None;
            answer
        }
        None => std::future::pending().await,
    }
}

/// Writes what is queued, and waits for a client that does not take it, within bounds.
async fn flush<S: AsyncRead + AsyncWrite + Unpin>(socket: &mut Socket<S>) -> Next {
    let by_size = Duration::from_secs((socket.unsent_bytes() / WRITE_BYTES_PER_SECOND_MIN) as u64);
    // Most writes end at once: no timer for those.
    let written = match socket.flush().now_or_never() {
        Some(written) => Ok(written),
        None => tokio::time::timeout(WRITE_TIMEOUT + by_size, socket.flush()).await,
    };
    match written {
        Ok(Ok(())) => Next::Go,
        Ok(Err(_)) => Next::Gone,
        Err(_) => Next::Close(Close::Silent),
    }
}

/// Returns when this session is to leave a replica that drains: at a random moment, so that clients do not return in step.
async fn leave(drain: CancellationToken, spread: Duration) {
    drain.cancelled().await;
    tokio::time::sleep(spread.mul_f64(DRAIN_SPREAD * fastrand::f64())).await;
}

/// Up to a tenth less, so that sessions which began together do not end together.
fn jittered(age: Duration) -> Duration {
    age.mul_f64(1.0 - fastrand::f64() / 10.0)
}
