//! One TCP connection to RabbitMQ that can be ended at any moment, whatever RabbitMQ does.
//!
//! lapin runs a thread for each connection. That thread ends only when its socket does: neither dropping lapin's connection
//! nor a timeout ends it while the broker is silent in the handshake, or blocks the connection in an alarm.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};

use lapin::tcp::{AsyncTcpStream, OwnedTLSConfig};
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Channel, ConnectionProperties};
use tokio::time::error::Elapsed;

use super::{BrokerError, CLOSE_TIMEOUT, CONNECT_TIMEOUT, within};

/// AMQP's reply code for a close without an error.
const NOTHING_WRONG: u16 = 200;
/// The smallest frame that every supported RabbitMQ accepts. lapin allocates 64 frames for each connection.
const SMALL_FRAME_BYTES: u32 = 8 * 1024;

/// The size of the largest frame, which decides how much memory a connection takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Frames {
    /// As large as RabbitMQ allows, for connections that carry the headers of others. Headers are never split over frames, so
    /// a smaller limit would let one event with large headers end every connection that receives it.
    Large,
    /// For connections that only declare and ask.
    Small,
}

/// A connection. Dropping it ends its socket and its thread at once; [`Connection::close`] takes leave first.
pub(super) struct Connection {
    // First, so that it drops first: lapin cancels a consumer that is dropped, and RabbitMQ must not receive that.
    socket: Socket,
    inner: lapin::Connection,
}

impl Connection {
    /// Connects. `purpose` is the name that RabbitMQ shows.
    pub(super) async fn open(
        uri: &AMQPUri,
        purpose: &str,
        frames: Frames,
    ) -> Result<Self, BrokerError> {
        within(
            CONNECT_TIMEOUT,
            "connecting",
            connect(uri.clone(), purpose, frames),
        )
        .await
    }

    /// Opens a channel.
    pub(super) async fn channel(&self) -> Result<Channel, BrokerError> {
        let opening = async { Ok(self.inner.create_channel().await?) };
        within(CONNECT_TIMEOUT, "opening a channel", opening).await
    }

    /// Whether the connection works, as far as lapin knows.
    pub(super) fn is_connected(&self) -> bool {
        self.inner.status().connected()
    }

    /// Whether RabbitMQ accepts no publishes on it. lapin keeps the flag of a connection that ended while it was blocked.
    pub(super) fn is_blocked(&self) -> bool {
        let status = self.inner.status();
        status.connected() && status.blocked()
    }

    /// Ends the socket at once, also for everybody else who uses this connection.
    pub(super) fn cut(&self) {
        self.socket.cut();
    }

    /// Closes the connection as AMQP wants it, if RabbitMQ answers in time.
    ///
    /// `channel` is one that is still open: lapin closes a channel that is dropped, and fails to close a connection while it
    /// does that.
    pub(super) async fn close(self, channel: &Channel) {
        let closing = self.inner.close(NOTHING_WRONG, "goodbye".into());
        note(tokio::time::timeout(CLOSE_TIMEOUT, closing).await, channel);
    }
}

/// Closes one channel of several, if RabbitMQ answers in time.
pub(super) async fn close_channel(channel: &Channel) {
    let closing = channel.close(NOTHING_WRONG, "goodbye".into());
    note(tokio::time::timeout(CLOSE_TIMEOUT, closing).await, channel);
}

fn note(closed: Result<lapin::Result<()>, Elapsed>, channel: &Channel) {
    if !matches!(closed, Ok(Ok(()))) {
        tracing::debug!(
            channel = channel.id(),
            ?closed,
            "the connection to RabbitMQ did not close cleanly"
        );
    }
}

async fn connect(
    mut uri: AMQPUri,
    purpose: &str,
    frames: Frames,
) -> Result<Connection, BrokerError> {
    if frames == Frames::Small {
        let wanted = uri.query.frame_max.filter(|wanted| *wanted > 0);
        uri.query.frame_max =
            Some(wanted.map_or(SMALL_FRAME_BYTES, |wanted| wanted.min(SMALL_FRAME_BYTES)));
    }
    let runtime = lapin::runtime::default_runtime()?;
    // Here and not on lapin's thread, so that no thread waits for a host that does not answer.
    let host = (uri.authority.host.as_str(), uri.authority.port);
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host(host)
        .await
        .map_err(lapin::Error::from)?
        .collect();
    let stream = AsyncTcpStream::connect(&runtime, addresses)
        .await
        .map_err(lapin::Error::from)?;
    let socket = match &stream {
        AsyncTcpStream::Plain(stream) => {
            Socket::of(stream.get_ref()).map_err(lapin::Error::from)?
        }
        _ => return Err(lapin::Error::from(io::Error::from(io::ErrorKind::Unsupported)).into()),
    };
    let stream = match uri.scheme {
        AMQPScheme::AMQP => stream,
        AMQPScheme::AMQPS => {
            let secured = stream
                .into_tls(&uri.authority.host, OwnedTLSConfig::default().as_ref())
                .await;
            secured.map_err(lapin::Error::from)?
        }
    };
    // Once: lapin asks again where the first stream ended early, and gets an error.
    let stream = Mutex::new(Some(stream));
    let take = async move |_, _| {
        let taken = stream.lock().unwrap_or_else(PoisonError::into_inner).take();
        taken.ok_or_else(|| lapin::Error::from(io::Error::from(io::ErrorKind::ConnectionAborted)))
    };
    let properties =
        ConnectionProperties::default().with_connection_name(format!("shopbell {purpose}").into());
    let inner = lapin::Connection::connector(uri, runtime, take, properties).await?;
    Ok(Connection { socket, inner })
}

/// A second hold on a connection's socket, which ends it. It is dropped with the connection, also while that is being opened.
struct Socket(TcpStream);

impl Socket {
    fn of(stream: &impl AsFd) -> io::Result<Self> {
        Ok(Self(stream.as_fd().try_clone_to_owned()?.into()))
    }

    fn cut(&self) {
        // Fails only where the socket has ended already.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.cut();
    }
}
