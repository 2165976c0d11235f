//! One TCP connection to RabbitMQ that can be ended at any moment.
//!
//! lapin runs a thread for each connection, and this thread ends only with the socket. If RabbitMQ
//! is silent in the handshake, or blocks the connection in an alarm, neither a timeout nor dropping
//! lapin's connection ends the thread. So this module keeps the socket and shuts it down.

use std::fs;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use futures_util::{AsyncRead, AsyncWrite};
use lapin::tcp::{AsyncTcpStream, OwnedIdentity, OwnedTLSConfig};
use lapin::{Channel, ConnectionProperties, ErrorKind};
use tokio::time::error::Elapsed;

use super::uri::Address;
use super::{BrokerError, CLOSE_TIMEOUT, CONNECT_TIMEOUT, within};
use crate::tls;

/// AMQP's reply code for a close without an error.
const NOTHING_WRONG: u16 = 200;
/// The smallest frame that every supported RabbitMQ accepts. lapin allocates 64 frames for each
/// connection.
const SMALL_FRAME_BYTES: u32 = 8 * 1024;

/// The size of the largest frame. It decides how much memory a connection takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Frames {
    /// As large as RabbitMQ allows, for connections that carry headers of publishers. AMQP does not
    /// split headers over frames. With a smaller limit, one event with large headers would end
    /// every connection that receives it.
    Large,
    /// Small, for connections that only declare and inspect.
    Small,
}

/// A connection. Dropping it ends its socket and its thread at once. [`Connection::close`] closes
/// it cleanly.
pub(super) struct Connection {
    // Drops first: lapin cancels a dropped consumer, and RabbitMQ must not receive the cancel.
    socket: Arc<Socket>,
    inner: lapin::Connection,
}

impl Connection {
    /// Connects. `purpose` is the name that RabbitMQ shows.
    pub(super) async fn open(
        address: &Address,
        purpose: &str,
        frames: Frames,
    ) -> Result<Self, BrokerError> {
        within(
            CONNECT_TIMEOUT,
            "connecting",
            connect(address, purpose, frames),
        )
        .await
    }

    /// Opens a channel.
    pub(super) async fn channel(&self) -> Result<Channel, BrokerError> {
        let opening = async { Ok(self.inner.create_channel().await?) };
        within(CONNECT_TIMEOUT, "opening a channel", opening).await
    }

    /// Whether lapin has noticed no failure of the connection.
    pub(super) fn is_connected(&self) -> bool {
        self.inner.status().connected()
    }

    /// Whether RabbitMQ accepts no publishes on it. If a connection ends while it is blocked, lapin
    /// keeps its flag, so this checks both.
    pub(super) fn is_blocked(&self) -> bool {
        let status = self.inner.status();
        status.connected() && status.blocked()
    }

    /// Ends the socket at once, for all users of this connection.
    pub(super) fn cut(&self) {
        self.socket.cut();
    }

    /// Closes the connection cleanly, if RabbitMQ answers in time.
    ///
    /// The caller passes an open `channel` to keep it open: lapin closes a channel when it drops,
    /// and meanwhile it fails to close the connection.
    pub(super) async fn close(self, channel: &Channel) {
        let closing = self.inner.close(NOTHING_WRONG, "goodbye".into());
        log_failed_close(tokio::time::timeout(CLOSE_TIMEOUT, closing).await, channel);
    }
}

/// Closes one channel of a shared connection, if RabbitMQ answers in time.
pub(super) async fn close_channel(channel: &Channel) {
    let closing = channel.close(NOTHING_WRONG, "goodbye".into());
    log_failed_close(tokio::time::timeout(CLOSE_TIMEOUT, closing).await, channel);
}

fn log_failed_close(closed: Result<lapin::Result<()>, Elapsed>, channel: &Channel) {
    if !matches!(closed, Ok(Ok(()))) {
        tracing::debug!(
            channel = channel.id(),
            ?closed,
            "a connection to RabbitMQ did not close cleanly"
        );
    }
}

async fn connect(
    address: &Address,
    purpose: &str,
    frames: Frames,
) -> Result<Connection, BrokerError> {
    let mut uri = address.uri.clone();
    if frames == Frames::Small {
        let wanted = uri.query.frame_max.filter(|wanted| *wanted > 0);
        uri.query.frame_max =
            Some(wanted.map_or(SMALL_FRAME_BYTES, |wanted| wanted.min(SMALL_FRAME_BYTES)));
    }
    let runtime = lapin::runtime::default_runtime()?;
    let stream = AsyncTcpStream::connect(&runtime, resolve(address).await?)
        .await
        .map_err(lapin::Error::from)?;
    let socket = match &stream {
        AsyncTcpStream::Plain(stream) => {
            Arc::new(Socket::of(stream.get_ref()).map_err(lapin::Error::from)?)
        }
        _ => return Err(lapin::Error::from(io::Error::from(io::ErrorKind::Unsupported)).into()),
    };
    address.sockets.add(&socket);
    let stream = secure(address, stream).await?;
    // If the first stream ends early, lapin connects again. It then gets an error.
    let stream = Mutex::new(Some(stream));
    let take = async move |_, _| {
        let taken = stream.lock().unwrap_or_else(PoisonError::into_inner).take();
        taken.ok_or_else(|| lapin::Error::from(io::Error::from(io::ErrorKind::ConnectionAborted)))
    };
    let properties =
        ConnectionProperties::default().with_connection_name(format!("shopbell {purpose}").into());
    // With TLS 1.3, the server rejects a client's certificate only after the handshake of TLS.
    let connected = lapin::Connection::connector(uri, runtime, take, properties).await;
    let inner = connected.map_err(|error| failed(address, error))?;
    Ok(Connection { socket, inner })
}

/// Looks up the host. lapin would block its thread while a name server does not answer.
pub(super) async fn resolve(address: &Address) -> Result<Vec<SocketAddr>, BrokerError> {
    let authority = &address.uri.authority;
    let host = (authority.host.as_str(), authority.port);
    let found = tokio::net::lookup_host(host).await;
    Ok(found.map_err(lapin::Error::from)?.collect())
}

/// Encrypts a stream if the URL begins with `amqps`.
pub(super) async fn secure<S>(
    address: &Address,
    stream: AsyncTcpStream<S>,
) -> Result<AsyncTcpStream<S>, BrokerError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    if !address.is_encrypted() {
        return Ok(stream);
    }
    let certificates = certificates(address)?;
    let host = &address.uri.authority.host;
    let secured = stream.into_tls(host, certificates.as_ref()).await;
    secured.map_err(|error| failed(address, error.into()))
}

/// Reads the files of certificates for each connection, so that a renewed certificate needs no
/// restart.
fn certificates(address: &Address) -> Result<OwnedTLSConfig, BrokerError> {
    let read = |parameter: &str, path: &Path| {
        fs::read_to_string(path).map_err(|error| BrokerError::Handshake {
            address: address.authority(),
            reason: format!("could not read {parameter} {}: {error}", path.display()),
        })
    };
    let ca = address.ca.as_deref().map(|path| read("cacertfile", path));
    let identity = match &address.client {
        Some((certificate, key)) => Some(OwnedIdentity::PKCS8 {
            pem: read("certfile", certificate)?.into_bytes(),
            key: read("keyfile", key)?.into_bytes(),
        }),
        None => None,
    };
    Ok(OwnedTLSConfig {
        identity,
        cert_chain: ca.transpose()?,
    })
}

/// Explains an error of the handshake.
fn failed(address: &Address, error: lapin::Error) -> BrokerError {
    const SETTINGS: tls::Settings = tls::Settings {
        ca: "`cacertfile` in AMQP_URL",
        client: Some("`certfile` and `keyfile` in AMQP_URL"),
    };
    const NOT_AMQP: &str =
        "the port does not speak AMQP; if it is the port for TLS, begin AMQP_URL with amqps://";
    let reason = match (error.kind(), address.is_encrypted()) {
        (ErrorKind::ParsingError(_), false) => Some(NOT_AMQP.to_owned()),
        _ => tls::reason(&error, SETTINGS),
    };
    match reason {
        Some(reason) => BrokerError::Handshake {
            address: address.authority(),
            reason,
        },
        None => error.into(),
    }
}

/// The sockets of one address, so that all of them end if another address replaces it.
#[derive(Debug, Clone, Default)]
pub(super) struct Sockets(Arc<Mutex<OpenSockets>>);

#[derive(Debug, Default)]
struct OpenSockets {
    /// Some may have ended. A replica has a few connections.
    open: Vec<Weak<Socket>>,
    is_replaced: bool,
}

impl Sockets {
    /// Adds a socket. Ends it if the address was replaced meanwhile.
    fn add(&self, socket: &Arc<Socket>) {
        let mut sockets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if sockets.is_replaced {
            socket.cut();
        }
        sockets.open.retain(|socket| socket.strong_count() > 0);
        sockets.open.push(Arc::downgrade(socket));
    }

    /// Ends all sockets, also those that are added later.
    pub(super) fn replace(&self) {
        let mut sockets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sockets.is_replaced = true;
        let open = sockets.open.drain(..);
        open.filter_map(|socket| socket.upgrade())
            .for_each(|socket| socket.cut());
    }
}

/// A second handle of a connection's socket. Its drop ends the socket, also if opening fails
/// halfway.
#[derive(Debug)]
struct Socket(TcpStream);

impl Socket {
    fn of(stream: &impl AsFd) -> io::Result<Self> {
        Ok(Self(stream.as_fd().try_clone_to_owned()?.into()))
    }

    fn cut(&self) {
        // Fails only if the socket has ended already.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.cut();
    }
}
