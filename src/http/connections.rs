//! Connections that are not sessions: their deadlines, and the choice of the one that is closed if there are too many.
//!
//! Anybody can open a connection, so their number has its own bound. If it is reached, a connection that waits for its
//! client is closed in favour of a new one.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use axum::body::Body;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::handover::Handover;
use crate::telemetry::instruments::Counted;
use crate::telemetry::labels::ConnectionDropped;
use crate::telemetry::metrics::ConnectionMetrics;

/// Most time for the first byte of a connection, and from there to the end of a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Most time between two requests. It is longer than load balancers keep a connection (60 s, Google's 600 s), so that they
/// send no request on a connection that is being closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(620);
/// Most time for which a client may leave a response unread.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Least age of a connection that is closed to make room, so that a client on a slow network can send its head.
const HEAD_GRACE: Duration = Duration::from_secs(1);
/// The same for a connection that sends one request after another.
const BUSY_AGE: Duration = Duration::from_secs(30);
/// Wait for a free slot before one more connection is closed.
const ROOM_WAIT: Duration = Duration::from_millis(100);

/// The connections of one port.
#[derive(Debug)]
pub struct Connections {
    slots: Arc<Semaphore>,
    metrics: ConnectionMetrics,
    next_id: AtomicU64,
    /// By id, which is the order of acceptance. Locked for one operation, or for one pass if there is no free slot.
    open: Mutex<BTreeMap<u64, Arc<Watch>>>,
}

impl Connections {
    /// Allows `max` connections.
    pub fn new(max: usize, metrics: ConnectionMetrics) -> Arc<Self> {
        metrics.max.set(i64::try_from(max).unwrap_or(i64::MAX));
        let slots = Arc::new(Semaphore::new(max));
        Arc::new(Self {
            slots,
            metrics,
            next_id: AtomicU64::new(0),
            open: Mutex::default(),
        })
    }

    /// Waits for a free slot. If there is none, it closes the connection that has waited longest for its client.
    pub async fn slot(self: &Arc<Self>) -> Slot {
        let permit = loop {
            if let Ok(permit) = self.slots.clone().try_acquire_owned() {
                break permit;
            }
            self.make_room(Instant::now());
            // The semaphore is never closed.
            if let Ok(Ok(permit)) =
                tokio::time::timeout(ROOM_WAIT, self.slots.clone().acquire_owned()).await
            {
                break permit;
            }
        };
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let watch = Arc::new(Watch::new(Instant::now()));
        lock(&self.open).insert(id, watch.clone());
        Slot {
            connections: self.clone(),
            id,
            watch,
            _counted: Counted::in_gauge(&self.metrics.open),
            _permit: permit,
        }
    }

    fn make_room(&self, now: Instant) {
        let open = lock(&self.open);
        let candidates = open
            .values()
            .filter_map(|watch| Some((watch.candidacy(now)?, watch)));
        if let Some((_, watch)) = candidates.min_by_key(|(candidacy, _)| *candidacy) {
            watch.ask_to_go();
        }
    }
}

/// A connection's slot, until it is dropped.
#[derive(Debug)]
pub struct Slot {
    connections: Arc<Connections>,
    id: u64,
    /// The state of the connection.
    pub watch: Arc<Watch>,
    _counted: Counted,
    _permit: OwnedSemaphorePermit,
}

impl Slot {
    /// Counts a connection that the server ends.
    pub fn count_dropped(&self, reason: ConnectionDropped) {
        self.connections.metrics.dropped.inc(reason);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        lock(&self.connections.open).remove(&self.id);
    }
}

/// The state of a connection, which determines its next deadline.
#[derive(Debug)]
pub struct Watch {
    opened: Instant,
    state: Mutex<State>,
    go: Notify,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// Since when the client reads nothing of the response.
    stalled: Option<Instant>,
    is_asked_to_go: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// No byte has arrived.
    New,
    /// Since this time, a part of a request's head has arrived.
    Head(Instant),
    /// A request is served.
    Busy,
    /// The last response ended at this time.
    Idle(Instant),
}

/// The reaction of a connection that is asked to make room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Go {
    /// It stays, because its request has arrived meanwhile.
    Stay,
    /// It ends after the response.
    AfterResponse,
    /// It ends now.
    Now,
}

impl Watch {
    fn new(now: Instant) -> Self {
        let state = State {
            phase: Phase::New,
            stalled: None,
            is_asked_to_go: false,
        };
        Self {
            opened: now,
            state: Mutex::new(state),
            go: Notify::new(),
        }
    }

    /// The next deadline and its reason.
    pub fn due(&self) -> Option<(Instant, ConnectionDropped)> {
        let state = lock(&self.state);
        let phase = match state.phase {
            Phase::New => Some((self.opened + HEAD_TIMEOUT, ConnectionDropped::Head)),
            Phase::Head(since) => Some((since + HEAD_TIMEOUT, ConnectionDropped::Head)),
            Phase::Busy => None,
            Phase::Idle(since) => Some((since + IDLE_TIMEOUT, ConnectionDropped::Idle)),
        };
        let stalled = state
            .stalled
            .map(|since| (since + WRITE_TIMEOUT, ConnectionDropped::Stalled));
        phase.into_iter().chain(stalled).min_by_key(|(at, _)| *at)
    }

    /// Returns when the connection must make room for another.
    pub async fn asked_to_go(&self) {
        self.go.notified().await;
    }

    /// Decides how a connection makes room. Its request may have arrived meanwhile.
    pub fn go(&self, now: Instant) -> Go {
        let mut state = lock(&self.state);
        let is_old = now.saturating_duration_since(self.opened) >= BUSY_AGE;
        match state.phase {
            Phase::Busy if is_old => Go::AfterResponse,
            Phase::Busy => {
                state.is_asked_to_go = false;
                Go::Stay
            }
            _ => Go::Now,
        }
    }

    /// A request has arrived.
    pub fn begin(&self) {
        lock(&self.state).phase = Phase::Busy;
    }

    fn heard(&self, now: Instant) {
        let mut state = lock(&self.state);
        if matches!(state.phase, Phase::New | Phase::Idle(_)) {
            state.phase = Phase::Head(now);
        }
    }

    fn wrote(&self, is_taken: bool) {
        let mut state = lock(&self.state);
        state.stalled = if is_taken {
            None
        } else {
            state.stalled.or_else(|| Some(Instant::now()))
        };
    }

    fn response_ended(&self, now: Instant) {
        lock(&self.state).phase = Phase::Idle(now);
    }

    fn ask_to_go(&self) {
        lock(&self.state).is_asked_to_go = true;
        self.go.notify_one();
    }

    /// The order in which connections make room; `None` if this one may not. Idle connections come first, then those that
    /// wait for a head, then busy ones; of each, the oldest.
    fn candidacy(&self, now: Instant) -> Option<(u8, Instant)> {
        let state = lock(&self.state);
        if state.is_asked_to_go {
            return None;
        }
        let (rank, since, grace) = match state.phase {
            Phase::Idle(since) if state.stalled.is_none() => (0, since, Duration::ZERO),
            Phase::New => (1, self.opened, HEAD_GRACE),
            Phase::Head(since) => (1, since, HEAD_GRACE),
            Phase::Idle(_) | Phase::Busy => (2, self.opened, BUSY_AGE),
        };
        (now.saturating_duration_since(since) >= grace).then_some((rank, since))
    }
}

/// Runs the connection.
///
/// # Errors
/// The reason of the deadline that passed.
pub async fn within_deadlines<T>(
    watch: &Watch,
    connection: impl Future<Output = T>,
) -> Result<T, ConnectionDropped> {
    let mut connection = pin!(connection);
    let mut timer = pin!(tokio::time::sleep(HEAD_TIMEOUT));
    poll_fn(|context| {
        if let Poll::Ready(ended) = connection.as_mut().poll(context) {
            return Poll::Ready(Ok(ended));
        }
        // The deadline changes only while the connection is polled.
        let Some((due, reason)) = watch.due() else {
            return Poll::Pending;
        };
        if timer.deadline() != due.into() {
            timer.as_mut().reset(due.into());
        }
        timer.as_mut().poll(context).map(|()| Err(reason))
    })
    .await
}

/// A stream that records reads and writes, until a session takes it.
#[derive(Debug)]
pub struct Watched {
    /// `None` after a handover. Nothing is read then, and the end of the response that hyper writes is dropped.
    stream: Option<TcpStream>,
    watch: Arc<Watch>,
    handover: Handover,
}

impl Watched {
    /// Records in `watch`, and gives the stream to the session that waits in `handover`.
    pub fn new(stream: TcpStream, watch: Arc<Watch>, handover: Handover) -> Self {
        Self {
            stream: Some(stream),
            watch,
            handover,
        }
    }
}

/// The stream of an upgraded connection, and the bytes that were read beyond the request. `None` if the client left.
pub async fn upgraded(upgrade: OnUpgrade) -> Option<(TcpStream, Vec<u8>)> {
    let upgraded = upgrade.await.ok()?;
    match upgraded.downcast::<TokioIo<Watched>>() {
        // Copied, because a conversion would keep hyper's whole buffer.
        Ok(parts) => Some((parts.io.into_inner().stream?, parts.read_buf.to_vec())),
        Err(_) => {
            tracing::error!("a connection of an unknown kind was upgraded; it is dropped");
            None
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(stream) = &mut self.stream else {
            return Poll::Pending;
        };
        let before = buf.filled().len();
        let read = Pin::new(stream).poll_read(context, buf);
        if buf.filled().len() > before {
            self.watch.heard(Instant::now());
        }
        read
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Some(stream) = &mut self.stream else {
            return Poll::Ready(Ok(bytes.len()));
        };
        let written = Pin::new(stream).poll_write(context, bytes);
        self.watch.wrote(written.is_ready());
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Some(stream) = &mut self.stream else {
            return Poll::Ready(Ok(parts.iter().map(|part| part.len()).sum()));
        };
        let written = Pin::new(stream).poll_write_vectored(context, parts);
        self.watch.wrote(written.is_ready());
        written
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// hyper flushes when it has written all that it has.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(stream) = &mut self.stream {
            ready!(Pin::new(stream).poll_flush(context))?;
            if let Some(waiting) = self.handover.take()
                && let Some(stream) = self.stream.take()
            {
                waiting.give(stream);
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Some(stream) => Pin::new(stream).poll_shutdown(context),
            None => Poll::Ready(Ok(())),
        }
    }
}

/// The body of a response. The response has ended when it is dropped.
#[derive(Debug)]
pub struct TrackedBody {
    body: Body,
    watch: Arc<Watch>,
}

impl TrackedBody {
    /// Records its end in `watch`.
    pub fn new(body: Body, watch: Arc<Watch>) -> Self {
        Self { body, watch }
    }
}

impl HttpBody for TrackedBody {
    type Data = <Body as HttpBody>::Data;
    type Error = <Body as HttpBody>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for TrackedBody {
    fn drop(&mut self) {
        self.watch.response_ended(Instant::now());
    }
}

/// A poisoned lock is used again, because a panic under these locks leaves no half-made change.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests;
