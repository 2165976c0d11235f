//! Moves bytes and hints in and out of a session's state machine. `select!` only chooses the input; the work comes after,
//! so nothing is dropped halfway.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::{FutureExt, SinkExt, StreamExt};
use prometheus_client::metrics::histogram::Histogram;
use time::OffsetDateTime;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::{CapacityError, Error, ProtocolError};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::protocol::frame::CloseFrame;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};
use tokio_util::sync::CancellationToken;

use super::state::{Ends, Output, Rules, Session, Start};
use crate::answers::Answers;
use crate::auth::{Authenticator, LEEWAY};
use crate::cursors::{Cursors, SEEN_AFTER};
use crate::feed::{Device, Feed, Subscriber};
use crate::hub::{Registration, Waiting};
use crate::notification::{Notification, Page};
use crate::pager::Pager;
use crate::protocol::{ClientFrame, Close, ServerFrame, WelcomeFeed};
use crate::store::answers::Answer;
use crate::store::cursors::CursorKey;
use crate::telemetry::metrics::{Counted, Metrics};
use crate::telemetry::traces;

/// A client that takes less than this in that time reads nothing, or as good as: it is closed, and what it missed is
/// replayed. A large event has longer, by its size.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
const WRITE_BYTES_PER_SECOND_MIN: usize = 32 * 1024;
/// How long the client may take to answer a close (RFC 6455 §7.1.1) before the TCP connection is dropped.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Most bytes read and thrown away while waiting for that.
const CLOSE_BYTES_MAX: u64 = 1024 * 1024;
/// tungstenite allocates this at once and zero-fills it before each read: its 128 KiB would be most of an idle session.
const READ_BUFFER_BYTES: usize = 4 * 1024;
/// Frames are gathered up to this before they are written.
const WRITE_BUFFER_BYTES: usize = 16 * 1024;
/// Past this the socket refuses to take a frame; never reached, for a frame is only put in when the last is being written,
/// and an event has at most 16 MiB.
const WRITE_BUFFER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// A replica that leaves uses this part of its drain time to spread the closes; the rest is for the closes themselves.
const DRAIN_SPREAD: f64 = 0.8;
/// How it is called where a client went without a word, or its network did.
const GONE: &str = "gone";
/// Longest that a client of a leaving replica is told to wait, in milliseconds.
const GOAWAY_RETRY_MS_MAX: u64 = 2_000;

/// What all sessions of a replica share.
#[derive(Debug)]
pub struct Shared {
    /// Checks the tokens of `auth` frames.
    pub authenticator: Authenticator,
    /// Where pages are asked for.
    pub pager: Pager,
    /// Where acks go.
    pub cursors: Arc<Cursors>,
    /// Where reads and handles go.
    pub answers: Answers,
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

/// The settings of a session's socket; `frame_bytes_max` bounds what a client can make us hold.
pub fn socket_config(frame_bytes_max: usize) -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(WRITE_BUFFER_BYTES)
        .max_write_buffer_size(WRITE_BUFFER_BYTES_MAX)
        .max_message_size(Some(frame_bytes_max))
        .max_frame_size(Some(frame_bytes_max))
}

/// What came.
enum Input {
    Message(Option<Result<Message, Error>>),
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
pub async fn run<S>(mut socket: WebSocketStream<S>, mut opened: Opened, shared: Arc<Shared>, drain: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let now = Instant::now();
    let ends =
        Ends { token: now + opened.token_remaining + LEEWAY, age: shared.age_max.map(|age| now + jittered(age)) };
    let session = Session::new(shared.rules, std::mem::take(&mut opened.starts), ends, now);
    let opened_at = OffsetDateTime::now_utc();
    let mut task = Task { session, opened, shared, page: None, opened_at, behind: None };
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
            message = socket.next() => Input::Message(message),
            () = task.opened.registration.inbox().woken() => Input::Hints,
            page = next_page(&mut task.page) => Input::Page(page),
            () = &mut timer => Input::Tick,
            () = &mut leave => Input::Drain,
        };
        next = match task.take_in(input) {
            Next::Go => task.put_out(&mut socket).await,
            end => end,
        };
        task.count_behind();
    }
    task.shared.cursors.hurry();
    if now.elapsed() >= SEEN_AFTER {
        task.shared.cursors.seen(task.opened.feeds.iter().map(|open| task.cursor_key(open.feed.clone())).collect());
    }
    task.shared.metrics.sessions_closed.inc(next.word());
    if let Next::Close(close) = next {
        tracing::debug!(session = task.opened.id, code = close.code(), "the session is closed");
        say_goodbye(socket, close).await;
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
}

impl Task {
    async fn welcome<S: AsyncRead + AsyncWrite + Unpin>(&mut self, socket: &mut WebSocketStream<S>) -> Next {
        let welcome = ServerFrame::Welcome {
            session: &self.opened.id,
            subscriber: &self.opened.subscriber,
            device: &self.opened.device,
            window: self.shared.rules.window,
            heartbeat_seconds: self.shared.rules.heartbeat.as_secs(),
            token_expires_in: i64::try_from(self.opened.token_remaining.as_secs()).unwrap_or(i64::MAX),
            feeds: &self.opened.feeds,
        };
        let welcome = Message::text(welcome.to_json());
        match within_write_timeout(welcome.len(), socket.feed(welcome)).await {
            Next::Go => self.put_out(socket).await,
            end => end,
        }
    }

    fn take_in(&mut self, input: Input) -> Next {
        match input {
            Input::Message(message) => return self.take_message(message),
            Input::Hints => {
                let Waiting { hints, changes, newest, replies, .. } = self.opened.registration.inbox().take();
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
            Input::Drain => self.session.on_drain(fastrand::u64(0..=GOAWAY_RETRY_MS_MAX)),
        }
        Next::Go
    }

    fn take_message(&mut self, message: Option<Result<Message, Error>>) -> Next {
        let now = Instant::now();
        match message {
            Some(Ok(Message::Text(text))) => match serde_json::from_str::<ClientFrame>(&text) {
                Ok(frame) => self.session.on_frame(frame, now),
                Err(_) => return Next::Close(Close::NotTheProtocol),
            },
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => self.session.on_control(now),
            Some(Ok(Message::Close(_))) => return Next::Close(Close::Answered),
            Some(Ok(Message::Binary(_) | Message::Frame(_))) => return Next::Close(Close::NotTheProtocol),
            Some(Err(Error::Capacity(CapacityError::MessageTooLong { .. } | CapacityError::TooManyHeaders))) => {
                return Next::Close(Close::TooBig);
            }
            Some(Err(Error::Utf8(_))) => return Next::Close(Close::NotUtf8),
            // Many clients go like this; nobody is left to be told anything.
            Some(Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake))) => return Next::Gone,
            Some(Err(Error::Protocol(_))) => return Next::Close(Close::BrokenFraming),
            Some(Err(_)) | None => return Next::Gone,
        }
        Next::Go
    }

    /// Does what the session wants, then flushes once.
    async fn put_out<S: AsyncRead + AsyncWrite + Unpin>(&mut self, socket: &mut WebSocketStream<S>) -> Next {
        // What waits in the write buffer is never much more than the largest message.
        let (mut largest_bytes, mut sent, begun) = (0, Vec::new(), SystemTime::now());
        loop {
            let outputs = self.session.take_outputs();
            if outputs.is_empty() {
                break;
            }
            for output in outputs {
                let (message, notification) = match output {
                    Output::Notification(notification) => {
                        (Message::Text(notification.frame.clone()), Some(notification))
                    }
                    Output::Send(frame) => (Message::Text(frame), None),
                    Output::Ping => (Message::Ping(Default::default()), None),
                    Output::Acknowledged(sent) => {
                        self.observe_wait(&self.shared.metrics.publish_to_ack, sent.time, OffsetDateTime::now_utc());
                        if let Some(origin) = sent.origin {
                            traces::acknowledged(&origin);
                        }
                        continue;
                    }
                    Output::Read { feed, after, wanted, changes_after } => {
                        self.page = Some(self.shared.pager.read(feed, after, wanted, changes_after));
                        continue;
                    }
                    Output::Say { feed, said } => {
                        let answer = Answer { feed, subscriber: self.opened.subscriber.clone(), said };
                        self.shared.answers.say(answer, self.opened.registration.inbox().clone());
                        continue;
                    }
                    Output::Ack { feed, seq } => {
                        self.shared.metrics.acks.inc();
                        self.shared.cursors.ack(self.cursor_key(feed), seq);
                        continue;
                    }
                    Output::Verify { token } => {
                        let verdict = self.verify(&token);
                        self.session.on_verified(verdict.as_ref().copied().map_err(String::as_str));
                        continue;
                    }
                    Output::Close(close) => return Next::Close(close),
                };
                // At least one, for a ping without a payload.
                largest_bytes = message.len().max(largest_bytes).max(1);
                match within_write_timeout(largest_bytes, socket.feed(message)).await {
                    Next::Go => sent.extend(notification),
                    end => return end,
                }
            }
        }
        if largest_bytes > 0 {
            match within_write_timeout(largest_bytes, socket.flush()).await {
                Next::Go => self.count_sent(&sent, begun),
                end => return end,
            }
        }
        Next::Go
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
            let Some(origin) = &notification.origin else { continue };
            let (feed, seq) = (notification.feed.as_str(), notification.seq.get());
            if let Some(origin) = traces::delivered(origin, feed, seq, begun) {
                self.session.on_traced(notification, origin);
            }
        }
    }

    /// Only of what was published while the merchant was there: a replay is as old as the merchant was long away. And no
    /// canary's, whose share would hide what merchants wait for.
    fn observe_wait(&self, histogram: &Histogram, published_at: Option<OffsetDateTime>, now: OffsetDateTime) {
        if let Some(published_at) = published_at
            && published_at >= self.opened_at
            && !self.opened.is_canary
        {
            // A publisher whose clock is ahead made nobody wait.
            histogram.observe((now - published_at).as_seconds_f64().max(0.0));
        }
    }

    fn count_behind(&mut self) {
        if self.session.is_behind() != self.behind.is_some() {
            let gauge = &self.shared.metrics.sessions_behind;
            self.behind = self.session.is_behind().then(|| Counted::in_gauge(gauge));
        }
    }

    /// A fresh token must be for the same subscriber and still name every feed of the session.
    fn verify(&self, token: &str) -> Result<Instant, String> {
        let grant = self.shared.authenticator.check(token).map_err(|error| error.to_string())?;
        if grant.subscriber != self.opened.subscriber {
            return Err("the token is for another subscriber".into());
        }
        // The broadcast feed is in every grant: who could answer for all must still be named to it.
        let is_kept = |open: &WelcomeFeed| {
            grant.feeds.contains(&open.feed) && (open.shared || grant.shared.as_ref() != Some(&open.feed))
        };
        if !self.opened.feeds.iter().all(is_kept) {
            return Err("the token does not name every feed of this session: reconnect with it".into());
        }
        Ok(Instant::now() + grant.remaining() + LEEWAY)
    }

    fn cursor_key(&self, feed: Feed) -> CursorKey {
        CursorKey { feed, subscriber: self.opened.subscriber.clone(), device: self.opened.device.clone() }
    }
}

/// The page that was asked for; never, while none is.
async fn next_page(page: &mut Option<oneshot::Receiver<Arc<Page>>>) -> Result<Arc<Page>, oneshot::error::RecvError> {
    match page {
        Some(receiver) => {
            let answer = receiver.await;
            *page = None;
            answer
        }
        None => std::future::pending().await,
    }
}

/// Writes, and waits for a client that does not drain what was written, within bounds.
async fn within_write_timeout(bytes: usize, mut write: impl Future<Output = Result<(), Error>> + Unpin) -> Next {
    // Most writes end at once: no timer for those.
    let written = match (&mut write).now_or_never() {
        Some(written) => Ok(written),
        None => {
            let by_size = Duration::from_secs((bytes / WRITE_BYTES_PER_SECOND_MIN) as u64);
            tokio::time::timeout(WRITE_TIMEOUT + by_size, write).await
        }
    };
    match written {
        Ok(Ok(())) => Next::Go,
        Ok(Err(_)) => Next::Gone,
        Err(_) => Next::Close(Close::Silent),
    }
}

/// Sends the close and waits, within bounds, for the client's: dropped at once, TCP would reset and the client might never
/// see the code. Our side ends only after that (RFC 6455 §7.1.1): a proxy takes one side's end for the end of both, and would
/// reset a client that is just writing.
pub async fn say_goodbye<S: AsyncRead + AsyncWrite + Unpin>(mut socket: WebSocketStream<S>, close: Close) {
    let goodbye = async {
        if close != Close::Answered {
            let frame = CloseFrame { code: close.code().into(), reason: Utf8Bytes::from(close.reason()) };
            let _ = socket.send(Message::Close(Some(frame))).await;
            let mut bytes = 0;
            while let Some(Ok(message)) = socket.next().await {
                bytes += message.len() as u64;
                if message.is_close() || bytes > CLOSE_BYTES_MAX {
                    break;
                }
            }
        } else {
            // The answer to the client's close waits in the write buffer.
            let _ = socket.flush().await;
        }
        let mut stream = socket.into_inner();
        let _ = stream.shutdown().await;
        let _ = tokio::io::copy(&mut stream.take(CLOSE_BYTES_MAX), &mut tokio::io::sink()).await;
    };
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, goodbye).await;
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

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use tokio_tungstenite::tungstenite::protocol::Role;

    use super::*;

    #[tokio::test]
    async fn the_connection_ends_only_after_the_clients_close() {
        let (ours, mut theirs) = tokio::io::duplex(1_024);
        let socket = WebSocketStream::from_raw_socket(ours, Role::Server, None).await;
        let mut goodbye = Box::pin(say_goodbye(socket, Close::GoingAway { retry_after_ms: 700 }));
        assert!((&mut goodbye).now_or_never().is_none(), "the client's close is waited for");

        let mut bytes = Vec::new();
        theirs.read_buf(&mut bytes).await.unwrap();
        assert_eq!((bytes[0], bytes.len()), (0x88, 2 + usize::from(bytes[1])), "one whole close frame: {bytes:?}");
        assert!(theirs.read_buf(&mut bytes).now_or_never().is_none(), "the connection ended with the close");

        // A pong that was on its way, then the answer; both masked with zeros.
        theirs.write_all(&[0x8a, 0x80, 0, 0, 0, 0, 0x88, 0x82, 0, 0, 0, 0, 0x03, 0xf4]).await.unwrap();
        assert!((&mut goodbye).now_or_never().is_none(), "the client's end is waited for");
        assert_eq!(theirs.read_buf(&mut bytes).await.unwrap(), 0, "more than a close");
        drop(theirs);
        goodbye.await;
    }
}
