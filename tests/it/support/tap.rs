//! RabbitMQ behind a TCP proxy that reads AMQP 0-9-1. It records how each client closes, and causes
//! faults of RabbitMQ.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::amqp_frames::{self, Frame, Frames};
use super::url;

/// `connection.blocked` with the reason `low on memory`, as RabbitMQ sends it in an alarm.
const BLOCKED: &[u8] = b"\x01\0\0\0\0\0\x12\0\x0a\0\x3c\x0dlow on memory\xce";
/// `connection.unblocked`.
const UNBLOCKED: &[u8] = b"\x01\0\0\0\0\0\x04\0\x0a\0\x3d\xce";
const HEARTBEAT: &[u8] = b"\x08\0\0\0\0\0\0\xce";
/// Often enough for heartbeats of ten seconds.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(3);
/// Bytes that are moved at once.
const BUFFER_BYTES: usize = 64 * 1024;
/// Class and method of `connection.open`, `connection.close` and `connection.close-ok`.
const OPEN: [u8; 4] = [0, 10, 0, 40];
const CLOSE: [u8; 4] = [0, 10, 0, 50];
const CLOSE_OK: [u8; 4] = [0, 10, 0, 51];
/// Class and method of `basic.publish`.
const PUBLISH: [u8; 4] = [0, 60, 0, 40];
/// The end of the name of the exchange for hints.
const HINTS: &[u8] = b".fanout";
/// The body of a heartbeat of Shopbell.
const NO_HINTS: &[u8] = b"[]";

/// The proxy. It ends with the test's runtime.
pub struct Tap {
    address: SocketAddr,
    links: Arc<Mutex<Vec<Link>>>,
    mood: Arc<watch::Sender<Mood>>,
    hints_lost: Arc<AtomicU64>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Mood {
    Well,
    /// Answers nothing on new connections.
    Silent,
    /// Blocks each connection that publishes, and reads nothing more from it.
    Alarmed,
    /// Holds each publish, and reads nothing more from its connection.
    Holding,
    /// Delivers heartbeats of Shopbell, and loses its hints.
    Forgetful,
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
        let tap = Self {
            address,
            links,
            mood,
            hints_lost: Arc::default(),
        };
        tokio::spawn(accept(
            listener,
            url::authority(amqp_url),
            Arc::clone(&tap.links),
            Arc::clone(&tap.mood),
            Arc::clone(&tap.hints_lost),
        ));
        tap
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

    /// Forwards no publishes from now on, without a sign.
    #[allow(
        dead_code,
        reason = "the chaos stories do not use it, and both test binaries share this file"
    )]
    pub fn hold_publishes(&self) {
        self.mood.send_replace(Mood::Holding);
    }

    /// Loses the hints of Shopbell from now on, and delivers everything else.
    pub fn lose_hints(&self) {
        self.mood.send_replace(Mood::Forgetful);
    }

    /// Ends the fault. RabbitMQ reads on from blocked connections.
    pub fn recover(&self) {
        self.mood.send_replace(Mood::Well);
    }

    /// The number of deliveries with hints that were lost.
    pub fn hints_lost(&self) -> u64 {
        self.hints_lost.load(Ordering::Relaxed)
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
    hints_lost: Arc<AtomicU64>,
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
        near.set_nodelay(true).ok();
        let (links, behind, mood) = (Arc::clone(&links), behind.clone(), mood.subscribe());
        let hints_lost = Arc::clone(&hints_lost);
        let note = move |change: fn(&mut Link)| {
            change(&mut links.lock().unwrap_or_else(PoisonError::into_inner)[number]);
        };
        tokio::spawn(async move {
            match silent {
                true => swallow(near).await,
                false => carry(near, &behind, mood, &hints_lost, &note).await,
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
    hints_lost: &AtomicU64,
    note: &impl Fn(fn(&mut Link)),
) {
    let Ok(far) = TcpStream::connect(behind).await else {
        return;
    };
    far.set_nodelay(true).ok();
    let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
    let (say, said) = mpsc::channel(1);
    let upstream = carry_upstream(near_read, far_write, mood.clone(), say, note);
    let downstream = carry_downstream(far_read, near_write, mood.clone(), said, hints_lost);
    tokio::select! {
        () = upstream => {}
        () = downstream => {}
        _ = mood.wait_for(|mood| *mood == Mood::Silent) => {}
    }
}

/// Moves the frames of a client until one side ends. In an alarm, holds a publish and all after it.
async fn carry_upstream(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut mood: watch::Receiver<Mood>,
    say: mpsc::Sender<&'static [u8]>,
    note: &impl Fn(fn(&mut Link)),
) {
    let (mut frames, mut bytes) = (Frames::of_client(), vec![0; BUFFER_BYTES]);
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        for frame in frames.take(&bytes[..count]) {
            // Noted before it is sent, because RabbitMQ's reply may end the connection.
            if frame.is_method(OPEN) {
                note(|link| link.opened = true);
            }
            if frame.is_method(CLOSE) || frame.is_method(CLOSE_OK) {
                note(|link| link.closed = true);
            }
            if frame.is_method(PUBLISH) && *mood.borrow() == Mood::Alarmed {
                note(|link| link.blocked = true);
                say.send(BLOCKED).await.ok();
                let ended = async |mood: &mut watch::Receiver<Mood>| {
                    mood.wait_for(|mood| *mood != Mood::Alarmed).await.is_ok()
                };
                // RabbitMQ keeps a blocked connection, so it must not miss heartbeats here.
                while timeout(HEARTBEAT_INTERVAL, ended(&mut mood)).await.is_err() {
                    if to.write_all(HEARTBEAT).await.is_err() {
                        return;
                    }
                }
                say.send(UNBLOCKED).await.ok();
            }
            if frame.is_method(PUBLISH) && *mood.borrow() == Mood::Holding {
                mood.wait_for(|mood| *mood != Mood::Holding).await.ok();
            }
            if to.write_all(&frame.0).await.is_err() {
                return;
            }
        }
    }
}

/// Forwards the frames of RabbitMQ until one side ends, and puts those of `said` between them.
async fn carry_downstream(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mood: watch::Receiver<Mood>,
    mut said: mpsc::Receiver<&'static [u8]>,
    hints_lost: &AtomicU64,
) {
    let (mut frames, mut bytes) = (Frames::of_server(), vec![0; BUFFER_BYTES]);
    let mut loss = Loss::default();
    loop {
        let count = tokio::select! {
            Some(frame) = said.recv() => match to.write_all(frame).await {
                Ok(()) => continue,
                Err(_) => return,
            },
            read = from.read(&mut bytes) => read.unwrap_or(0),
        };
        if count == 0 {
            return;
        }
        let mut passed = Vec::with_capacity(count);
        for frame in frames.take(&bytes[..count]) {
            let is_losing = *mood.borrow() == Mood::Forgetful;
            passed.extend(loss.pass(frame, is_losing, hints_lost));
        }
        if to.write_all(&passed).await.is_err() {
            return;
        }
    }
}

/// Loses the content of deliveries with hints. The size of their body shows that they have any. An empty
/// message passes instead, because the tags of a channel have no gap.
#[derive(Default)]
struct Loss(HashMap<[u8; 2], Content>);

/// The delivery on a channel whose content has not passed.
enum Content {
    /// Its method waits for the content header.
    Unknown(Vec<u8>),
    Lost,
}

impl Loss {
    /// Returns the bytes that pass.
    fn pass(&mut self, frame: Frame, is_losing: bool, lost: &AtomicU64) -> Vec<u8> {
        let channel = frame.channel();
        if !frame.is_content() {
            self.0.remove(&channel);
            let is_hint = frame
                .delivered_from()
                .is_some_and(|exchange| exchange.ends_with(HINTS));
            if is_losing && is_hint {
                self.0.insert(channel, Content::Unknown(frame.0));
                return Vec::new();
            }
            return frame.0;
        }
        match self.0.remove(&channel) {
            None => frame.0,
            Some(Content::Unknown(mut method)) if !frame.has_body_above(NO_HINTS.len()) => {
                method.extend(frame.0);
                method
            }
            Some(Content::Unknown(mut method)) => {
                lost.fetch_add(1, Ordering::Relaxed);
                self.0.insert(channel, Content::Lost);
                method.extend(amqp_frames::content(channel, NO_HINTS));
                method
            }
            Some(Content::Lost) => {
                self.0.insert(channel, Content::Lost);
                Vec::new()
            }
        }
    }
}
