//! The handover of a connection: after hyper has written the head of a response, a session takes the TCP stream and writes
//! the body. So an idle stream costs no buffers of hyper, and no longer counts among the connections.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use hyper::body::{Body as HttpBody, Frame};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

/// The place where a handler asks for the stream of its connection. It is an extension of each request.
#[derive(Debug, Clone, Default)]
pub struct Handover(Arc<Mutex<Option<Waiting>>>);

/// A session that waits for the stream.
#[derive(Debug)]
pub struct Waiting {
    stream: oneshot::Sender<TcpStream>,
    /// The body ends when this is dropped.
    _body: oneshot::Sender<()>,
}

impl Waiting {
    /// Gives the stream to the session. It is closed if the session no longer waits.
    pub fn give(self, stream: TcpStream) {
        let _ = self.stream.send(stream);
    }
}

impl Handover {
    /// The body for a response, and the stream after its head was written. There is no stream if the client leaves before.
    pub fn begin(&self) -> (Body, oneshot::Receiver<TcpStream>) {
        let (stream, taken) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let waiting = Waiting { stream, _body: end };
        let body = HandedOver {
            handover: self.clone(),
            waiting: Some(waiting),
            ended,
        };
        (Body::new(body), taken)
    }

    /// Takes the session that waits, if the head of its response is written.
    pub(super) fn take(&self) -> Option<Waiting> {
        self.lock().take()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Waiting>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A body without bytes of its own. hyper polls it first when the head is in its buffer.
struct HandedOver {
    handover: Handover,
    waiting: Option<Waiting>,
    ended: oneshot::Receiver<()>,
}

impl HttpBody for HandedOver {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Some(waiting) = self.waiting.take() {
            *self.handover.lock() = Some(waiting);
        }
        Pin::new(&mut self.ended).poll(context).map(|_| None)
    }
}
