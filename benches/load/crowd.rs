//! Many clients: each connects, checks each received event against the ledger, and acknowledges it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use futures_util::{FutureExt, SinkExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

use crate::ledger::{Ledger, Order};
use crate::wire::Server;

/// Clients that connect at the same moment if all are to be connected soon.
const CONNECTING_MAX: usize = 64;
/// Source addresses of clients, 127.0.0.2 and on, so that ports do not run out while old ones wait
/// for their end.
const SOURCES: usize = 8;
/// If a server accepts no client for so long, it does not work.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(120);
/// Small, because there are thousands.
const BUFFER_BYTES: usize = 4 * 1024;

type Socket = WebSocketStream<TcpStream>;

/// Connected clients in the order of their names. They do not read yet.
pub struct Crowd {
    server: Server,
    sockets: Vec<(String, Socket)>,
}

/// Clients at work. They end if this is dropped.
pub struct Reading(#[expect(dead_code, reason = "held, for its tasks end with it")] JoinSet<()>);

impl Crowd {
    /// Connects these clients, a few at a time, until the server has answered all setup frames of
    /// each.
    pub async fn connect(server: &Server, names: Vec<String>) -> anyhow::Result<Self> {
        let connecting = names.into_iter().enumerate().map(async |(place, name)| {
            let socket = connect(server, &name, place)
                .await
                .with_context(|| format!("{name} could not connect"))?;
            anyhow::Ok((name, socket))
        });
        let sockets = stream::iter(connecting)
            .buffered(CONNECTING_MAX)
            .try_collect()
            .await?;
        Ok(Self {
            server: server.clone(),
            sockets,
        })
    }

    /// Each client now reads and acknowledges.
    pub fn read(self, ledger: &Arc<Ledger>) -> Reading {
        self.read_at(&Pace::default(), ledger)
    }

    /// The same at a pace that can change.
    pub fn read_at(self, pace: &Pace, ledger: &Arc<Ledger>) -> Reading {
        let mut tasks = JoinSet::new();
        for (name, socket) in self.sockets {
            let (server, pace, ledger) = (self.server.clone(), pace.clone(), ledger.clone());
            tasks.spawn(client(server, name, socket, Order::default(), pace, ledger));
        }
        Reading(tasks)
    }
}

/// The wait of clients before each message. They are fast if it is 0.
#[derive(Debug, Clone, Default)]
pub struct Pace(Arc<AtomicU64>);

impl Pace {
    pub fn set(&self, wait: Duration) {
        self.0.store(wait.as_millis() as u64, Ordering::Relaxed);
    }

    /// `None` if the clients are fast.
    fn wait(&self) -> Option<Duration> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            wait => Some(Duration::from_millis(wait)),
        }
    }
}

/// Clients that connect all at once and read from the first moment on, as after an outage.
pub fn storm(server: &Server, names: Vec<String>, ledger: &Arc<Ledger>) -> Reading {
    come(server, names, ledger, usize::MAX)
}

/// Clients that connect a few at a time and read from the first moment on.
pub fn stream_in(server: &Server, names: Vec<String>, ledger: &Arc<Ledger>) -> Reading {
    come(server, names, ledger, CONNECTING_MAX)
}

fn come(server: &Server, names: Vec<String>, ledger: &Arc<Ledger>, at_once: usize) -> Reading {
    let doors = Arc::new(Semaphore::new(at_once.min(Semaphore::MAX_PERMITS)));
    let mut tasks = JoinSet::new();
    for (place, name) in names.into_iter().enumerate() {
        let (server, ledger, doors) = (server.clone(), ledger.clone(), doors.clone());
        tasks.spawn(async move {
            let door = doors.acquire().await;
            let connected = connect_to_read(&server, &name, place, &ledger).await;
            drop(door);
            match connected {
                Ok((socket, order)) => {
                    client(server, name, socket, order, Pace::default(), ledger).await
                }
                Err(error) => ledger.fault(format!("{name} could not connect: {error:#}")),
            }
        });
    }
    Reading(tasks)
}

/// A peer may send events before it has answered all setup frames.
async fn connect_to_read(
    server: &Server,
    name: &str,
    place: usize,
    ledger: &Ledger,
) -> anyhow::Result<(Socket, Order)> {
    let mut order = Order::default();
    let mut socket = handshake(server, name, place).await?;
    for message in server.opening(name) {
        socket.send(message).await?;
        let answer = socket
            .next()
            .await
            .context("the server ended the connection")??;
        for received in server.read(name, &answer)? {
            order.check(&received).map_err(anyhow::Error::msg)?;
            ledger.receive(received.index);
            socket.send(received.ack).await?;
        }
    }
    Ok((socket, order))
}

async fn connect(server: &Server, name: &str, place: usize) -> anyhow::Result<Socket> {
    let connecting = async {
        let mut socket = handshake(server, name, place).await?;
        if server.greets() {
            server.read(
                name,
                &socket
                    .next()
                    .await
                    .context("the server ended the connection")??,
            )?;
        }
        for message in server.opening(name) {
            socket.send(message).await?;
            let answer = socket
                .next()
                .await
                .context("the server ended the connection")??;
            if !server.read(name, &answer)?.is_empty() {
                bail!("an event arrived that was not published");
            }
        }
        Ok(socket)
    };
    tokio::time::timeout(CONNECT_TIMEOUT, connecting).await?
}

async fn handshake(server: &Server, name: &str, place: usize) -> anyhow::Result<Socket> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((
        [127, 0, 0, (2 + place % SOURCES) as u8],
        0,
    )))?;
    let stream = socket
        .connect(SocketAddr::from(([127, 0, 0, 1], server.port())))
        .await?;
    stream.set_nodelay(true)?;
    let config = WebSocketConfig::default()
        .read_buffer_size(BUFFER_BYTES)
        .write_buffer_size(BUFFER_BYTES);
    let request = server.request(name)?;
    Ok(
        tokio_tungstenite::client_async_with_config(request, stream, Some(config))
            .await?
            .0,
    )
}

async fn client(
    server: Server,
    name: String,
    socket: Socket,
    order: Order,
    pace: Pace,
    ledger: Arc<Ledger>,
) {
    if let Err(error) = read_and_acknowledge(&server, &name, socket, order, &pace, &ledger).await {
        ledger.fault(format!("{name}: {error:#}"));
    }
}

/// Acknowledges each event by itself. Acks for events that arrived together are sent in one write.
async fn read_and_acknowledge(
    server: &Server,
    name: &str,
    mut socket: Socket,
    mut order: Order,
    pace: &Pace,
    ledger: &Ledger,
) -> anyhow::Result<()> {
    while let Some(message) = socket.next().await {
        if let Some(wait) = pace.wait() {
            tokio::time::sleep(wait).await;
        }
        let mut next = Some(message);
        while let Some(message) = next {
            for received in server.read(name, &message?)? {
                order.check(&received).map_err(anyhow::Error::msg)?;
                ledger.receive(received.index);
                socket.feed(received.ack).await?;
            }
            next = match pace.wait() {
                None => socket.next().now_or_never().flatten(),
                Some(_) => None,
            };
        }
        socket.flush().await?;
    }
    bail!("the server ended the connection")
}
