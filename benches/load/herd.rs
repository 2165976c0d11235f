//! Many cheap clients in a process of their own: `many` starts one for each gateway.
//!
//! A client is a task with a raw socket and no buffer. It checks the order of its events,
//! acknowledges each, answers pings, and reconnects at once if its connection ends. The process
//! prints a line when all clients are connected, and when each has one more event.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio_tungstenite::tungstenite::Message;

use crate::event;
use crate::ledger::Order;
use crate::wire::Server;

/// The argument that makes this program a herd.
pub const HERD: &str = "--herd";
/// Clients of one process that connect at the same moment for the first time.
const CONNECTING_MAX: usize = 32;
/// Source addresses, 127.0.0.2 and on, so that ports do not run out.
const SOURCES: usize = 8;
/// If a gateway does not answer a client for so long, the client tries again.
const WELCOME_WITHIN: Duration = Duration::from_secs(30);
/// Longest wait before a client connects again, in milliseconds.
const RETRY_MS_MAX: u64 = 1_000;
const READ_BYTES: usize = 4 * 1024;
/// A longer head or frame is not of Shopbell.
const UNREAD_BYTES_MAX: usize = 1024 * 1024;

/// The clients of one gateway, and what they count.
struct Herd {
    server: Server,
    clients: usize,
    doors: Semaphore,
    connected: AtomicUsize,
    received: AtomicUsize,
    refused: AtomicUsize,
}

/// Runs until the process is killed.
pub async fn herd(port: u16, secret: &str, first: usize, clients: usize) -> anyhow::Result<()> {
    let herd = Arc::new(Herd {
        server: Server::Shopbell {
            port,
            secret: secret.to_owned(),
        },
        clients,
        doors: Semaphore::new(CONNECTING_MAX),
        connected: AtomicUsize::new(0),
        received: AtomicUsize::new(0),
        refused: AtomicUsize::new(0),
    });
    let names = (first..first + clients).map(event::merchant);
    let heads = names.map(|name| anyhow::Ok((head(&herd.server, &name)?, name)));
    let heads = heads.collect::<Result<Vec<_>, _>>()?;
    println!("prepared");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    for (place, (head, name)) in heads.into_iter().enumerate() {
        tokio::spawn(client(herd.clone(), place, name, head));
    }
    std::future::pending().await
}

/// The request of a client. It is made before the clients connect, because a token costs time.
fn head(server: &Server, name: &str) -> anyhow::Result<String> {
    let request = server.request(name)?;
    let mut head = format!("GET {} HTTP/1.1\r\n", request.uri().path());
    for (header, value) in request.headers() {
        head.push_str(&format!("{header}: {}\r\n", value.to_str()?));
    }
    head.push_str("\r\n");
    Ok(head)
}

async fn client(herd: Arc<Herd>, place: usize, name: String, head: String) {
    let mut order = Order::default();
    let mut is_first = true;
    loop {
        // Boxed, because a connected client would have the size of the handshake too.
        let connecting = Box::pin(connect(&herd, place, &head, is_first));
        match tokio::time::timeout(WELCOME_WITHIN, connecting).await {
            Ok(Ok(stream)) => {
                is_first = false;
                let (fault, was_welcome) = read(&herd, &name, stream, &mut order).await;
                if was_welcome {
                    herd.connected.fetch_sub(1, Ordering::Relaxed);
                }
                if let Some(fault) = fault {
                    println!("fault {name}: {fault:#}");
                }
            }
            Ok(Err(_)) | Err(_) => {
                herd.refused.fetch_add(1, Ordering::Relaxed);
            }
        }
        tokio::time::sleep(Duration::from_millis(fastrand::u64(0..RETRY_MS_MAX))).await;
    }
}

/// Connects, and reads the head of the reply.
async fn connect(
    herd: &Herd,
    place: usize,
    head: &str,
    is_first: bool,
) -> anyhow::Result<TcpStream> {
    let _door = match is_first {
        true => Some(herd.doors.acquire().await?),
        false => None,
    };
    let socket = TcpSocket::new_v4()?;
    let source = [127, 0, 0, (2 + place % SOURCES) as u8];
    socket.bind(SocketAddr::from((source, 0)))?;
    let gateway = SocketAddr::from(([127, 0, 0, 1], herd.server.port()));
    let mut stream = socket.connect(gateway).await?;
    stream.set_nodelay(true)?;
    stream.write_all(head.as_bytes()).await?;
    let mut reply = Vec::new();
    // One byte at a time, so that no byte of a frame is read. It is short.
    while !reply.ends_with(b"\r\n\r\n") {
        ensure!(reply.len() < READ_BYTES, "a long reply");
        reply.push(stream.read_u8().await?);
    }
    ensure!(reply.starts_with(b"HTTP/1.1 101 "), "refused");
    Ok(stream)
}

/// Reads until the connection ends. Returns a fault of the server if there was one, and whether the
/// client was welcome.
async fn read(
    herd: &Herd,
    name: &str,
    mut stream: TcpStream,
    order: &mut Order,
) -> (Option<anyhow::Error>, bool) {
    let (mut unread, mut was_welcome) = (Vec::new(), false);
    loop {
        if stream.readable().await.is_err() {
            return (None, was_welcome);
        }
        match read_some(&stream, &mut unread) {
            Ok(true) => {}
            Ok(false) => continue,
            Err(_) => return (None, was_welcome),
        }
        let replies = match take_frames(herd, name, &mut unread, order, &mut was_welcome) {
            Ok(replies) => replies,
            Err(fault) => return (Some(fault), was_welcome),
        };
        if !replies.is_empty() && stream.write_all(&replies).await.is_err() {
            return (None, was_welcome);
        }
    }
}

/// Returns whether bytes were read.
fn read_some(stream: &TcpStream, unread: &mut Vec<u8>) -> std::io::Result<bool> {
    let mut buffer = [0; READ_BYTES];
    match stream.try_read(&mut buffer) {
        Ok(0) => Err(std::io::ErrorKind::UnexpectedEof.into()),
        Ok(count) => {
            unread.extend_from_slice(&buffer[..count]);
            Ok(true)
        }
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

/// Takes all complete frames. Returns the bytes of the replies.
fn take_frames(
    herd: &Herd,
    name: &str,
    unread: &mut Vec<u8>,
    order: &mut Order,
    was_welcome: &mut bool,
) -> anyhow::Result<Vec<u8>> {
    let (mut rest, mut replies) = (unread.as_slice(), Vec::new());
    while let Some((opcode, payload, after)) = frame(rest) {
        rest = after;
        match opcode {
            0x1 => {
                let text = std::str::from_utf8(payload)?;
                if text.starts_with(r#"{"type":"welcome""#) {
                    *was_welcome = true;
                    count(&herd.connected, herd, "connected");
                }
                for received in herd.server.read(name, &Message::text(text))? {
                    order.check(&received).map_err(anyhow::Error::msg)?;
                    put_frame(&mut replies, 0x1, &received.ack.into_data());
                    count(&herd.received, herd, "received");
                }
            }
            0x9 => put_frame(&mut replies, 0xa, payload),
            // The connection ends after a close.
            0x8 | 0xa => {}
            other => bail!("a frame with opcode {other}"),
        }
    }
    ensure!(rest.len() < UNREAD_BYTES_MAX, "a frame without an end");
    *unread = rest.to_vec();
    Ok(replies)
}

/// Counts one, and prints a line when all clients count.
fn count(counter: &AtomicUsize, herd: &Herd, what: &str) {
    let number = counter.fetch_add(1, Ordering::Relaxed) + 1;
    if number.is_multiple_of(herd.clients) {
        let refused = herd.refused.load(Ordering::Relaxed);
        println!("{what} {} {refused}", number / herd.clients);
    }
}

/// The first frame of a server (RFC 6455 §5.2), if it is complete: its opcode, its payload, and the
/// bytes after it.
fn frame(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<2>()?;
    let (length, rest) = match head[1] {
        126 => {
            let (length, rest) = rest.split_first_chunk()?;
            (usize::from(u16::from_be_bytes(*length)), rest)
        }
        127 => {
            let (length, rest) = rest.split_first_chunk()?;
            (u64::from_be_bytes(*length) as usize, rest)
        }
        length => (usize::from(length), rest),
    };
    let (payload, after) = rest.split_at_checked(length)?;
    Some((head[0] & 0x0f, payload, after))
}

/// Adds a short frame of a client. Its mask is zero, so the payload is unchanged.
fn put_frame(bytes: &mut Vec<u8>, opcode: u8, payload: &[u8]) {
    const FINAL: u8 = 0x80;
    const MASKED: u8 = 0x80;
    bytes.push(FINAL | opcode);
    match payload.len() {
        length @ 0..126 => bytes.push(MASKED | length as u8),
        length => {
            bytes.push(MASKED | 126);
            bytes.extend_from_slice(&(length as u16).to_be_bytes());
        }
    }
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(payload);
}

/// A line of a herd.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// It waits for a line on its stdin before the clients connect.
    Prepared,
    /// All are connected.
    Connected,
    /// Each has this many events.
    Received(usize),
}

/// Reads a line, and the number of attempts to connect that failed so far.
pub fn parse(line: &str) -> anyhow::Result<(Line, usize)> {
    let words: Vec<&str> = line.split(' ').collect();
    match words.as_slice() {
        ["prepared"] => Ok((Line::Prepared, 0)),
        ["connected", _, refused] => Ok((Line::Connected, refused.parse()?)),
        ["received", times, refused] => Ok((Line::Received(times.parse()?), refused.parse()?)),
        _ => Err(anyhow::anyhow!("{line}")).context("a client found a fault"),
    }
}
