//! RabbitMQ behind a TCP proxy that reads AMQP 0-9-1. It records how each client closes, and causes
//! faults of RabbitMQ.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::OwnedReadHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use super::url;

/// `connection.blocked` with the reason `low on memory`, as RabbitMQ sends it in an alarm.
const BLOCKED: &[u8] = b"\x01\0\0\0\0\0\x12\0\x0a\0\x3c\x0dlow on memory\xce";
const HEARTBEAT: &[u8] = b"\x08\0\0\0\0\0\0\xce";
/// Often enough for a client with heartbeats of ten seconds.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(3);
/// Bytes that are moved at once.
const BUFFER_BYTES: usize = 64 * 1024;
/// The length of the protocol header, which a client sends before its first frame.
const PROTOCOL_HEADER_BYTES: usize = 8;
/// The head of a frame: type, channel, length.
const HEAD_BYTES: usize = 7;
/// Class and method of `connection.open`, `connection.close` and `connection.close-ok`.
const OPEN: [u8; 4] = [0, 10, 0, 40];
const CLOSE: [u8; 4] = [0, 10, 0, 50];
const CLOSE_OK: [u8; 4] = [0, 10, 0, 51];
/// Class and method of `basic.publish`.
const PUBLISH: [u8; 4] = [0, 60, 0, 40];

/// The proxy. It ends with the test's runtime.
pub struct Tap {
    address: SocketAddr,
    links: Arc<Mutex<Vec<Link>>>,
    mood: Arc<watch::Sender<Mood>>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Mood {
    Well,
    /// Answers nothing on new connections.
    Silent,
    /// Blocks each connection that publishes, and reads nothing more from it.
    Alarmed,
}

/// One connection of a client.
#[derive(Debug, Clone, Default)]
struct Link {
    /// RabbitMQ never answered on it.
    silent: bool,
    /// The client has sent `connection.open`.
    opened: bool,
    /// The client has closed it with an AMQP close.
    closed: bool,
    /// The client published while RabbitMQ was in an alarm.
    blocked: bool,
    /// Its socket ended.
    ended: bool,
}

impl Tap {
    /// A proxy in front of the RabbitMQ of this URL.
    pub async fn before(amqp_url: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a proxy can listen");
        let address = listener.local_addr().expect("a listener has an address");
        let (links, mood) = (Arc::default(), Arc::new(watch::Sender::new(Mood::Well)));
        tokio::spawn(accept(
            listener,
            url::authority(amqp_url),
            Arc::clone(&links),
            Arc::clone(&mood),
        ));
        Self {
            address,
            links,
            mood,
        }
    }

    /// The URL of RabbitMQ through this proxy.
    pub fn url(&self, amqp_url: &str) -> String {
        url::at(amqp_url, &self.address.to_string())
    }

    /// Ends every connection, and answers nothing on new ones.
    pub fn silence(&self) {
        self.mood.send_replace(Mood::Silent);
    }

    /// Accepts no publishes from now on, like RabbitMQ in an alarm.
    pub fn alarm(&self) {
        self.mood.send_replace(Mood::Alarmed);
    }

    /// The number of connections that were fully opened.
    pub fn opened(&self) -> usize {
        self.count(|link| link.opened)
    }

    /// The number of these that ended without a close.
    pub fn torn(&self) -> usize {
        self.count(|link| link.opened && link.ended && !link.closed)
    }

    /// The number of connections that were blocked in an alarm.
    pub fn blocked(&self) -> usize {
        self.count(|link| link.blocked)
    }

    /// The number of open connections.
    pub fn alive(&self) -> usize {
        self.count(|link| !link.ended)
    }

    /// The number of connections without any answer, and the number of these that the client has
    /// given up.
    pub fn unanswered(&self) -> (usize, usize) {
        (
            self.count(|link| link.silent),
            self.count(|link| link.silent && link.ended),
        )
    }

    fn count(&self, is_it: impl Fn(&Link) -> bool) -> usize {
        self.links().iter().filter(|link| is_it(link)).count()
    }

    fn links(&self) -> MutexGuard<'_, Vec<Link>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn accept(
    listener: TcpListener,
    behind: String,
    links: Arc<Mutex<Vec<Link>>>,
    mood: Arc<watch::Sender<Mood>>,
) {
    while let Ok((near, _)) = listener.accept().await {
        let silent = *mood.borrow() == Mood::Silent;
        let number = {
            let mut links = links.lock().unwrap_or_else(PoisonError::into_inner);
            links.push(Link {
                silent,
                ..Link::default()
            });
            links.len() - 1
        };
        let (links, behind, mood) = (Arc::clone(&links), behind.clone(), mood.subscribe());
        let note = move |change: fn(&mut Link)| {
            change(&mut links.lock().unwrap_or_else(PoisonError::into_inner)[number]);
        };
        tokio::spawn(async move {
            match silent {
                true => swallow(near).await,
                false => carry(near, &behind, mood, &note).await,
            }
            note(|link| link.ended = true);
        });
    }
}

/// Reads until the client ends its side.
async fn swallow(mut near: TcpStream) {
    let mut bytes = [0; 1_024];
    while matches!(near.read(&mut bytes).await, Ok(1..)) {}
}

async fn carry(
    near: TcpStream,
    behind: &str,
    mut mood: watch::Receiver<Mood>,
    note: &impl Fn(fn(&mut Link)),
) {
    let Ok(far) = TcpStream::connect(behind).await else {
        return;
    };
    let ((mut near_read, mut near_write), (mut far_read, mut far_write)) =
        (near.into_split(), far.into_split());
    let (block, mut blocked) = mpsc::channel(1);
    let moods = mood.clone();
    let upstream = async {
        let (mut sent, mut bytes) = (Sent::default(), vec![0; BUFFER_BYTES]);
        while let Ok(count @ 1..) = near_read.read(&mut bytes).await {
            // Noted before it is sent, because RabbitMQ's reply may end the connection.
            let published = sent.take(&bytes[..count], note);
            if published && *moods.borrow() == Mood::Alarmed {
                note(|link| link.blocked = true);
                block.send(()).await.ok();
                while matches!(near_read.read(&mut bytes).await, Ok(1..)) {}
                return;
            }
            if far_write.write_all(&bytes[..count]).await.is_err() {
                return;
            }
        }
    };
    let downstream = async {
        let mut bytes = vec![0; BUFFER_BYTES];
        loop {
            let more: &[u8] = tokio::select! {
                Some(()) = blocked.recv() => {
                    // RabbitMQ has answered everything before the client publishes, so no frame is
                    // halfway through.
                    near_write.write_all(BLOCKED).await.ok();
                    // RabbitMQ receives nothing more. A RabbitMQ in an alarm keeps the connection.
                    while near_write.write_all(HEARTBEAT).await.is_ok() {
                        sleep(HEARTBEAT_INTERVAL).await;
                    }
                    return;
                }
                count = read(&mut far_read, &mut bytes) => match count {
                    0 => return,
                    count => &bytes[..count],
                },
            };
            if near_write.write_all(more).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = upstream => {}
        () = downstream => {}
        _ = mood.wait_for(|mood| *mood == Mood::Silent) => {}
    }
}

async fn read(from: &mut OwnedReadHalf, bytes: &mut [u8]) -> usize {
    from.read(bytes).await.unwrap_or(0)
}

/// The frames of a client.
#[derive(Default)]
struct Sent {
    bytes: Vec<u8>,
    begun: bool,
}

impl Sent {
    /// Returns whether they contain a publish.
    fn take(&mut self, bytes: &[u8], note: &impl Fn(fn(&mut Link))) -> bool {
        let mut published = false;
        self.bytes.extend(bytes);
        if !self.begun && self.bytes.len() >= PROTOCOL_HEADER_BYTES {
            self.bytes.drain(..PROTOCOL_HEADER_BYTES);
            self.begun = true;
        }
        while self.begun && self.bytes.len() >= HEAD_BYTES {
            let length =
                u32::from_be_bytes([self.bytes[3], self.bytes[4], self.bytes[5], self.bytes[6]]);
            // With the octet that ends it.
            let end = HEAD_BYTES + length as usize + 1;
            if self.bytes.len() < end {
                break;
            }
            let is_method = |method: [u8; 4]| {
                self.bytes[0] == 1 && self.bytes[HEAD_BYTES..].starts_with(&method)
            };
            if is_method(OPEN) {
                note(|link| link.opened = true);
            }
            if is_method(CLOSE) || is_method(CLOSE_OK) {
                note(|link| link.closed = true);
            }
            published |= is_method(PUBLISH);
            self.bytes.drain(..end);
        }
        published
    }
}
