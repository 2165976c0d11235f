//! The task of one session: the loop between its socket, its inbox in the hub and its state
//! machine.
//!
//! Frames, hints, pages and the time come in; [`Session`] decides; frames go out, and acks and
//! marks go to their writers. In the loop, `select!` only chooses an input. The work comes
//! afterwards, so no input is dropped half done.

mod cursor_reads;
mod measures;
mod outputs;
mod request;

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use self::measures::Measures;
pub use self::request::{NotPerformed, perform_request};
use super::closing::{accepts_late_frames, send_close};
use super::framing::{Fault, Incoming};
use super::socket::{ReadError, Socket};
use super::state::{Effect, Ends, Output, Rules, Session, Start, Transport};
use crate::fanout::hub::{InboxContent, Registration};
use crate::gateway::auth::{Authenticator, LEEWAY};
use crate::gateway::cursors::{Cursors, SEEN_AFTER};
use crate::gateway::marks::Marks;
use crate::gateway::presence::Presence;
use crate::gateway::rates::Rates;
use crate::gateway::replay::{PageInRoom, Replay};
use crate::http::client_address::AddressBlock;
use crate::model::feed::{Device, Epoch, Feed, Seq, Subscriber};
use crate::model::protocol::{ClientFrame, Close, ServerFrame, WelcomeFeed};
use crate::store::cursors::CursorKey;
use crate::store::epoch::known::Epochs;
use crate::telemetry::metrics::Metrics;

/// Part of the drain time over which the closes are spread. The rest is for the closes themselves.
const DRAIN_SPREAD: f64 = 0.8;
/// Reason of a session's end in the metrics if its connection ended without a close.
const GONE: &str = "gone";
/// Longest wait that a draining replica asks a client for, in milliseconds.
const GOAWAY_RETRY_MS_MAX: u64 = 2_000;
/// Longest wait that a client is asked for after a change of the epoch, in milliseconds. All
/// clients reconnect then.
const EPOCH_RETRY_MS_MAX: u64 = 5_000;

/// The parts of a replica that all its sessions share.
#[derive(Debug)]
pub struct Shared {
    /// Checks the tokens of `auth` frames.
    pub authenticator: Authenticator,
    /// Bounds the rate of requests, and of refused tokens.
    pub rates: Rates,
    /// Reads pages.
    pub replay: Replay,
    /// Stores acks.
    pub cursors: Arc<Cursors>,
    /// Stores which devices have a session.
    pub presence: Arc<Presence>,
    /// Stores reads and handles.
    pub marks: Marks,
    /// The present epoch.
    pub epochs: Arc<Epochs>,
    /// The metrics of the replica.
    pub metrics: Arc<Metrics>,
    /// Settings of sessions.
    pub rules: Rules,
    /// The greatest age of a session, before jitter.
    pub age_max: Option<Duration>,
    /// Time over which a draining replica closes its sessions.
    pub drain: Duration,
}

/// A session that was admitted.
#[derive(Debug)]
pub struct Opened {
    /// Its id, for support.
    pub id: String,
    /// The subscriber.
    pub subscriber: Subscriber,
    /// The device of the subscriber.
    pub device: Device,
    /// Its connection.
    pub transport: Transport,
    /// The epoch of all its numbers.
    pub epoch: Epoch,
    /// Its begin in each feed.
    pub starts: Vec<Start>,
    /// The feeds of `welcome`.
    pub feeds: Vec<WelcomeFeed>,
    /// Time until the token expires.
    pub token_remaining: Duration,
    /// Whether a canary opened it. Its waits are not measured here.
    pub is_canary: bool,
    /// Its registration in the hub, made before its cursors were read.
    pub registration: Registration,
    /// The address of its client. `None` if no bound applies to it.
    pub block: Option<AddressBlock>,
}

enum Input {
    Frame(Result<Incoming, ReadError>),
    Hints,
    Page(Result<Arc<PageInRoom>, oneshot::error::RecvError>),
    Cursors(Vec<Seq>),
    Tick,
    Drain,
}

#[derive(Clone, Copy)]
enum SessionEnd {
    Close(Close),
    Gone,
}

impl SessionEnd {
    fn word(self) -> &'static str {
        match self {
            Self::Close(close) => close.word(),
            Self::Gone => GONE,
        }
    }
}

/// Begins the counters of ended sessions at zero.
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
        Close::TooManyRequests { retry_after_ms },
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
    opened: Opened,
    shared: Arc<Shared>,
    drain: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let begun = Instant::now();
    let mut task = Task::new(opened, shared, begun);
    task.shared.metrics.sessions_opened.inc();
    task.arrive();
    let Err(end) = task.serve(&mut socket, drain).await;
    task.leave();
    task.shared.cursors.write_soon();
    if begun.elapsed() >= SEEN_AFTER {
        task.note_seen();
    }
    task.shared.metrics.sessions_closed.inc(end.word());
    if let SessionEnd::Close(close) = end {
        tracing::debug!(
            session = task.opened.id,
            code = close.code(),
            "a session was closed"
        );
        let accepts_late = accepts_late_frames(close);
        send_close(socket, close, &close.reason(), |text| {
            if accepts_late {
                task.on_late_text(text);
            }
        })
        .await;
        task.shared.cursors.write_soon();
    }
}

struct Task {
    session: Session,
    opened: Opened,
    shared: Arc<Shared>,
    page: Option<oneshot::Receiver<Arc<PageInRoom>>>,
    /// The cursors of a session over HTTP that are being read, or will be.
    cursors: Option<Pin<Box<dyn Future<Output = Vec<Seq>> + Send>>>,
    measures: Measures,
    /// Whether the session counts as presence.
    is_present: bool,
}

impl Drop for Task {
    /// Also after a panic.
    fn drop(&mut self) {
        self.leave();
    }
}

impl Task {
    fn new(mut opened: Opened, shared: Arc<Shared>, now: Instant) -> Self {
        let ends = Ends {
            token: now + opened.token_remaining + LEEWAY,
            age: shared.age_max.map(|age| now + jittered(age)),
            epoch_retry_ms: fastrand::u64(0..=EPOCH_RETRY_MS_MAX),
        };
        let starts = std::mem::take(&mut opened.starts);
        let rules = Rules {
            transport: opened.transport,
            ..shared.rules
        };
        Self {
            session: Session::new(rules, opened.epoch.clone(), starts, ends, now),
            measures: Measures::new(opened.is_canary, opened.transport == Transport::WebSocket),
            opened,
            shared,
            page: None,
            cursors: None,
            is_present: false,
        }
    }

    /// Sends `welcome`, then serves the session until it ends.
    async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        socket: &mut Socket<S>,
        drain: CancellationToken,
    ) -> Result<Infallible, SessionEnd> {
        socket.put_text(self.welcome().to_json().into());
        self.perform_outputs(socket).await?;
        let mut timer = pin!(tokio::time::sleep_until(self.session.deadline().into()));
        let mut leave = pin!(leave(drain, self.shared.drain));
        loop {
            let deadline = self.session.deadline().into();
            if timer.deadline() != deadline {
                timer.as_mut().reset(deadline);
            }
            let input = tokio::select! {
                // The socket first, so that acks that have arrived count before a session is closed
                // as silent. Its frames are counted, so a client cannot hold up the other inputs.
                biased;
                frame = socket.next() => Input::Frame(frame),
                () = self.opened.registration.inbox().woken() => Input::Hints,
                page = next_page(&mut self.page) => Input::Page(page),
                acked = cursor_reads::next(&mut self.cursors) => Input::Cursors(acked),
                () = &mut timer => Input::Tick,
                () = &mut leave => Input::Drain,
            };
            let page = self.on_input(input)?;
            self.perform_outputs(socket).await?;
            drop(page);
            self.measures.update(&self.session, &self.shared.metrics);
        }
    }

    fn welcome(&self) -> ServerFrame<'_> {
        ServerFrame::Welcome {
            session: &self.opened.id,
            subscriber: &self.opened.subscriber,
            device: &self.opened.device,
            window: self.shared.rules.window,
            heartbeat_seconds: self.shared.rules.heartbeat.as_secs(),
            token_expires_in: i64::try_from(self.opened.token_remaining.as_secs())
                .unwrap_or(i64::MAX),
            feeds: &self.opened.feeds,
        }
    }

    /// Returns the page that the outputs are from, because its memory is in use until they are
    /// written.
    fn on_input(&mut self, input: Input) -> Result<Option<Arc<PageInRoom>>, SessionEnd> {
        match input {
            Input::Frame(frame) => self.on_socket_frame(frame)?,
            Input::Hints => self.on_waiting(),
            Input::Page(Ok(page)) => {
                self.session.on_page(&page, OffsetDateTime::now_utc());
                return Ok(Some(page));
            }
            // Replay gave up, or has no room: a fault of this replica.
            Input::Page(Err(_)) => return Err(SessionEnd::Close(Close::Internal)),
            Input::Cursors(acked) => self.session.on_cursors(&acked),
            Input::Tick => self.session.on_tick(Instant::now()),
            Input::Drain => self
                .session
                .on_drain(fastrand::u64(0..=GOAWAY_RETRY_MS_MAX)),
        }
        Ok(None)
    }

    fn on_socket_frame(&mut self, frame: Result<Incoming, ReadError>) -> Result<(), SessionEnd> {
        let now = Instant::now();
        let close = match frame {
            Ok(Incoming::Text(text)) => match ClientFrame::parse(&text) {
                Some(frame) => {
                    self.session.on_frame(frame, now);
                    return Ok(());
                }
                None => Close::NotTheProtocol,
            },
            // A fragment counts as a frame, because a client could send empty ones without end.
            Ok(Incoming::Ping(_) | Incoming::Pong | Incoming::Fragment) => {
                self.session.on_control(now);
                return Ok(());
            }
            Ok(Incoming::Close(_)) => Close::Answered,
            Ok(Incoming::Binary) => Close::NotTheProtocol,
            Err(ReadError::Fault(Fault::Framing)) => Close::BrokenFraming,
            Err(ReadError::Fault(Fault::NotUtf8)) => Close::NotUtf8,
            Err(ReadError::Fault(Fault::TooBig)) => Close::TooBig,
            Err(ReadError::Gone) => return Err(SessionEnd::Gone),
        };
        Err(SessionEnd::Close(close))
    }

    fn on_waiting(&mut self) {
        let InboxContent {
            hints,
            states,
            newest,
            replies,
            epoch,
            ..
        } = self.opened.registration.inbox().take();
        if let Some(epoch) = epoch
            && epoch != self.opened.epoch
        {
            return self.session.on_epoch(&epoch);
        }
        for (feed, newest) in newest {
            self.session.on_newest(&feed, newest);
        }
        self.session.on_hints(hints, OffsetDateTime::now_utc());
        self.session.on_states(&states);
        self.session.on_replies(replies);
    }

    /// Performs the acks and marks of a frame that the client sent before it saw the close. Nothing
    /// is sent for them.
    fn on_late_text(&mut self, text: &str) {
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
            if let Output::Perform(
                effect @ (Effect::Acknowledged(_) | Effect::Ack { .. } | Effect::Mark { .. }),
            ) = output
            {
                self.perform(effect);
            }
        }
    }

    /// Counts the session as presence. Those of canaries do not count.
    fn arrive(&mut self) {
        self.is_present = !self.opened.is_canary;
        if self.is_present {
            self.shared.presence.arrive(self.keys());
        }
    }

    fn leave(&mut self) {
        if std::mem::take(&mut self.is_present) {
            let returns = matches!(self.opened.transport, Transport::Poll { .. });
            self.shared.presence.leave(self.keys(), returns);
        }
    }

    fn note_seen(&self) {
        self.shared.cursors.note_seen(self.keys().collect());
    }

    fn keys(&self) -> impl Iterator<Item = CursorKey> {
        let feeds = self.opened.feeds.iter();
        feeds.map(|open| self.cursor_key(open.feed.clone()))
    }

    fn cursor_key(&self, feed: Feed) -> CursorKey {
        CursorKey {
            feed,
            subscriber: self.opened.subscriber.clone(),
            device: self.opened.device.clone(),
        }
    }
}

/// Returns the page that is being read. If none is, it never returns.
async fn next_page(
    page: &mut Option<oneshot::Receiver<Arc<PageInRoom>>>,
) -> Result<Arc<PageInRoom>, oneshot::error::RecvError> {
    match page {
        Some(receiver) => {
            let read = receiver.await;
            *page = None;
            read
        }
        None => std::future::pending().await,
    }
}

/// Returns when this session must leave a draining replica. The time is random, so that clients do
/// not return together.
async fn leave(drain: CancellationToken, spread: Duration) {
    drain.cancelled().await;
    tokio::time::sleep(spread.mul_f64(DRAIN_SPREAD * fastrand::f64())).await;
}

/// Shortens an age by up to a tenth, so that sessions that began together do not end together.
fn jittered(age: Duration) -> Duration {
    age.mul_f64(1.0 - fastrand::f64() / 10.0)
}
