//! The server side of a connection: bytes of the client become frames, frames become bytes, on any
//! stream. A WebSocket has frames both ways; a response has only those of the server.
//!
//! An idle socket holds no buffer: it reads bytes into the stack, and it shares the payloads that
//! it sends with all other sessions that send them.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::framing::{Decoder, Fault, Header, Incoming, Kind};
use super::response::{Part, ResponseBody};
use crate::model::frame_text::FrameText;
use crate::model::notification::Notification;
use crate::model::protocol::Close;

/// Bytes of one read. Most frames of clients are acks with fewer than a hundred bytes.
const READ_BYTES: usize = 4 * 1024;
/// Parts of one write: a header and a payload for each frame.
const PARTS_MAX: usize = 64;

/// The reason why no more frames can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadError {
    /// The connection ended.
    Gone,
    /// The client broke the framing.
    Fault(Fault),
}

/// A connection.
#[derive(Debug)]
pub struct Socket<S> {
    stream: S,
    form: Form,
    /// Bytes that were read together with a frame.
    unread: Vec<u8>,
    /// Number of bytes of `unread` that were decoded.
    decoded: usize,
    unsent: VecDeque<Outgoing>,
    /// Number of bytes of the first unsent frame that were written.
    written: usize,
    unsent_bytes: usize,
    /// Nothing may follow a close (RFC 6455 §5.5.1).
    is_closing: bool,
}

/// The form of the bytes.
#[derive(Debug)]
enum Form {
    WebSocket(Decoder),
    Response(ResponseBody),
}

impl Form {
    fn take(&mut self, bytes: &mut &[u8]) -> Result<Option<Incoming>, ReadError> {
        match self {
            Self::WebSocket(decoder) => decoder.take(bytes).map_err(ReadError::Fault),
            // A client sends nothing after its request. Its bytes are dropped, and count as a frame.
            Self::Response(_) => {
                *bytes = &[];
                Ok(Some(Incoming::Fragment))
            }
        }
    }
}

#[derive(Debug)]
struct Outgoing {
    header: Head,
    payload: Payload,
    after: &'static [u8],
}

#[derive(Debug)]
enum Head {
    OfFrame(Header),
    OfPart(Vec<u8>),
}

impl Outgoing {
    /// Its bytes, in order.
    fn parts(&self) -> [&[u8]; 3] {
        let header = match &self.header {
            Head::OfFrame(header) => header.as_bytes(),
            Head::OfPart(bytes) => bytes,
        };
        [header, self.payload.as_bytes(), self.after]
    }

    fn length(&self) -> usize {
        self.parts().iter().map(|part| part.len()).sum()
    }
}

#[derive(Debug)]
enum Payload {
    /// Shared with the other sessions that send it.
    Text(FrameText),
    /// At most 125 bytes (RFC 6455 §5.5).
    Control(Vec<u8>),
}

impl Payload {
    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Text(text) => text.as_bytes(),
            Self::Control(bytes) => bytes,
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
    /// Begins a WebSocket after the handshake. `unread` are the bytes that were read after it.
    pub fn new(stream: S, unread: Vec<u8>, text_bytes_max: usize) -> Self {
        let form = Form::WebSocket(Decoder::new(text_bytes_max));
        Self::of(stream, form, unread)
    }

    /// Begins the body of a response after its head.
    pub fn of_response(stream: S, body: ResponseBody) -> Self {
        Self::of(stream, Form::Response(body), Vec::new())
    }

    fn of(stream: S, form: Form, unread: Vec<u8>) -> Self {
        Self {
            stream,
            form,
            unread,
            decoded: 0,
            unsent: VecDeque::new(),
            written: 0,
            unsent_bytes: 0,
            is_closing: false,
        }
    }

    /// Reads the next frame. Pings and closes are answered by the next flush. Dropping this future
    /// loses nothing.
    pub async fn next(&mut self) -> Result<Incoming, ReadError> {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// Queues a text.
    pub fn put_text(&mut self, text: FrameText) {
        match &mut self.form {
            Form::WebSocket(_) => self.put(Kind::Text, Payload::Text(text)),
            Form::Response(body) => {
                let part = body.frame(text, None);
                self.put_part(part);
            }
        }
    }

    /// Queues a notification.
    pub fn put_notification(&mut self, notification: &Notification) {
        let text = notification.frame.clone();
        match &mut self.form {
            Form::WebSocket(_) => self.put(Kind::Text, Payload::Text(text)),
            Form::Response(body) => {
                let part = body.frame(text, Some((&notification.feed, notification.seq)));
                self.put_part(part);
            }
        }
    }

    /// Queues a ping. A response has none.
    pub fn put_ping(&mut self) {
        if let Form::WebSocket(_) = self.form {
            self.put(Kind::Ping, Payload::Control(Vec::new()));
        }
    }

    /// Queues the end of the session, unless it was queued. Returns whether the client will close
    /// its side first.
    pub fn put_end(&mut self, close: Close, reason: &str) -> bool {
        let is_answered = close == Close::Answered;
        match &mut self.form {
            Form::WebSocket(_) if is_answered => false,
            Form::WebSocket(_) => {
                self.put_close(Some(close.code()), reason);
                true
            }
            Form::Response(body) => {
                let part = (!is_answered).then(|| body.close(close, reason));
                let end = Part {
                    before: body.end(),
                    text: "".into(),
                    after: b"",
                };
                part.into_iter()
                    .chain([end])
                    .for_each(|part| self.put_part(part));
                self.is_closing = true;
                false
            }
        }
    }

    fn put_close(&mut self, code: Option<u16>, reason: &str) {
        let code = code.map(u16::to_be_bytes);
        let payload = code
            .iter()
            .flatten()
            .chain(reason.as_bytes())
            .copied()
            .collect();
        self.put(Kind::Close, Payload::Control(payload));
        self.is_closing = true;
    }

    /// Number of bytes that are queued and not written.
    pub fn unsent_bytes(&self) -> usize {
        self.unsent_bytes
    }

    /// Writes the queued frames. If this future is dropped, the next one continues at the same
    /// byte.
    pub async fn flush(&mut self) -> io::Result<()> {
        poll_fn(|context| self.poll_flush(context)).await
    }

    /// Ends our side, then reads until the client ends its side, at most `bytes_max` bytes.
    pub async fn end(mut self, bytes_max: u64) {
        let _ = self.stream.shutdown().await;
        let _ = tokio::io::copy(&mut self.stream.take(bytes_max), &mut tokio::io::sink()).await;
    }

    fn put(&mut self, kind: Kind, payload: Payload) {
        let header = Head::OfFrame(Header::new(kind, payload.as_bytes().len()));
        self.push(Outgoing {
            header,
            payload,
            after: b"",
        });
    }

    fn put_part(&mut self, part: Part) {
        let (header, payload) = (Head::OfPart(part.before), Payload::Text(part.text));
        let after = part.after;
        self.push(Outgoing {
            header,
            payload,
            after,
        });
    }

    fn push(&mut self, outgoing: Outgoing) {
        if !self.is_closing {
            self.unsent_bytes += outgoing.length();
            self.unsent.push_back(outgoing);
        }
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Incoming, ReadError>> {
        if !self.unread.is_empty() {
            let mut rest = &self.unread[self.decoded..];
            let incoming = self.form.take(&mut rest)?;
            self.decoded = self.unread.len() - rest.len();
            if rest.is_empty() {
                (self.unread, self.decoded) = (Vec::new(), 0);
            }
            if let Some(incoming) = incoming {
                return Poll::Ready(Ok(self.answered(incoming)));
            }
        }
        loop {
            let mut scratch = [const { MaybeUninit::uninit() }; READ_BYTES];
            let mut read = ReadBuf::uninit(&mut scratch);
            ready!(Pin::new(&mut self.stream).poll_read(context, &mut read))
                .map_err(|_| ReadError::Gone)?;
            let mut bytes = read.filled();
            if bytes.is_empty() {
                return Poll::Ready(Err(ReadError::Gone));
            }
            if let Some(incoming) = self.form.take(&mut bytes)? {
                self.unread = bytes.to_vec();
                return Poll::Ready(Ok(self.answered(incoming)));
            }
        }
    }

    fn answered(&mut self, incoming: Incoming) -> Incoming {
        match &incoming {
            Incoming::Ping(payload) => self.put(Kind::Pong, Payload::Control(payload.clone())),
            Incoming::Close(code) => self.put_close(*code, ""),
            _ => {}
        }
        incoming
    }

    fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unsent.is_empty() {
            let mut parts = [IoSlice::new(&[]); PARTS_MAX];
            let count = parts_left(&self.unsent, self.written, &mut parts);
            match ready!(Pin::new(&mut self.stream).poll_write_vectored(context, &parts[..count]))?
            {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.consume(written),
            }
        }
        // A queue that was long once must not keep its memory.
        self.unsent = VecDeque::new();
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn consume(&mut self, bytes: usize) {
        self.unsent_bytes -= bytes;
        self.written += bytes;
        while let Some(first) = self.unsent.front() {
            let length = first.length();
            if self.written < length {
                break;
            }
            self.written -= length;
            self.unsent.pop_front();
        }
    }
}

/// Fills `parts` with the bytes to write next, in order. Returns the number of parts.
fn parts_left<'a>(
    unsent: &'a VecDeque<Outgoing>,
    mut written: usize,
    parts: &mut [IoSlice<'a>],
) -> usize {
    let bytes = unsent.iter().flat_map(Outgoing::parts);
    let left = bytes.filter_map(|bytes| {
        let skipped = written.min(bytes.len());
        written -= skipped;
        (skipped < bytes.len()).then(|| &bytes[skipped..])
    });
    let mut count = 0;
    for (part, bytes) in parts.iter_mut().zip(left) {
        *part = IoSlice::new(bytes);
        count += 1;
    }
    count
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use futures_util::{FutureExt, SinkExt, StreamExt};
    use tokio::io::DuplexStream;
    use tokio_tungstenite::WebSocketStream;
    use tokio_tungstenite::tungstenite::protocol::Role;
    use tokio_tungstenite::tungstenite::{Bytes, Message};

    use super::*;

    async fn pair(buffer_bytes: usize) -> (Socket<DuplexStream>, WebSocketStream<DuplexStream>) {
        let (ours, theirs) = tokio::io::duplex(buffer_bytes);
        (
            Socket::new(ours, Vec::new(), 100_000),
            WebSocketStream::from_raw_socket(theirs, Role::Client, None).await,
        )
    }

    #[tokio::test]
    async fn texts_pass_both_ways_in_order_and_leave_no_memory() {
        let (mut socket, mut client) = pair(1_000_000).await;
        let texts: Vec<String> = (0..200)
            .map(|number| number.to_string().repeat(number))
            .collect();
        for text in &texts {
            socket.put_text(text.as_str().into());
            client.feed(Message::text(text)).await.unwrap();
        }
        client.flush().await.unwrap();
        socket.flush().await.unwrap();
        for text in &texts {
            assert_eq!(client.next().await.unwrap().unwrap(), Message::text(text));
            assert_eq!(socket.next().await, Ok(Incoming::Text(text.clone())));
        }
        assert_eq!(
            (
                socket.unread.capacity(),
                socket.unsent.capacity(),
                socket.unsent_bytes()
            ),
            (0, 0, 0)
        );
    }

    #[tokio::test]
    async fn a_dropped_flush_continues_at_the_same_byte() {
        let (mut socket, mut client) = pair(64).await;
        let texts = [
            "a".repeat(50),
            "b".repeat(500),
            String::new(),
            "c".repeat(70_000),
        ];
        texts
            .iter()
            .for_each(|text| socket.put_text(text.as_str().into()));
        assert!(
            socket.flush().now_or_never().is_none(),
            "the client reads nothing yet"
        );
        socket.put_ping();
        let read = async {
            for text in &texts {
                assert_eq!(client.next().await.unwrap().unwrap(), Message::text(text));
            }
            assert_eq!(
                client.next().await.unwrap().unwrap(),
                Message::Ping(Bytes::new())
            );
        };
        let (written, ()) = tokio::join!(socket.flush(), read);
        written.unwrap();
        assert_eq!(socket.unsent_bytes(), 0);
    }

    #[tokio::test]
    async fn pings_and_closes_are_answered() {
        let (mut socket, mut client) = pair(1_000).await;
        client.send(Message::Ping("tick".into())).await.unwrap();
        client.close(None).await.unwrap();
        assert_eq!(socket.next().await, Ok(Incoming::Ping(b"tick".into())));
        assert_eq!(socket.next().await, Ok(Incoming::Close(None)));
        socket.put_text("too late".into());
        socket.flush().await.unwrap();
        assert_eq!(
            client.next().await.unwrap().unwrap(),
            Message::Pong("tick".into())
        );
        assert_eq!(client.next().await.unwrap().unwrap(), Message::Close(None));
        drop(client);
        assert_eq!(socket.next().await, Err(ReadError::Gone));
    }

    #[tokio::test]
    async fn bytes_after_the_handshake_are_read_first() {
        let (ours, mut theirs) = tokio::io::duplex(100);
        // Two pings without a payload; the second is not complete.
        let mut socket = Socket::new(ours, vec![0x89, 0x80, 0, 0, 0, 0, 0x89, 0x80, 0], 100);
        assert_eq!(socket.next().await, Ok(Incoming::Ping(vec![])));
        assert!(socket.next().now_or_never().is_none());
        theirs.write_all(&[0, 0, 0]).await.unwrap();
        assert_eq!(socket.next().await, Ok(Incoming::Ping(vec![])));
    }
}
