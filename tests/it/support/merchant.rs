//! A merchant's client in a session: it reads, acknowledges and leaves. [`Seen`] checks every
//! frame.

use std::collections::{BTreeMap, VecDeque};
use std::ops::RangeInclusive;

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Error, Message, Utf8Bytes};

use super::frames::{Frame, Goaway, Notification, Refused, Saying, State, Welcome};
use super::handshake::Closed;
use super::seen::Seen;
use super::{PATIENCE, Token};

/// The client acknowledges after this many notifications. The number is far below any window.
const ACK_EVERY: u64 = 50;

/// The client's side of a session.
pub struct Merchant {
    who: String,
    welcome: Welcome,
    socket: WebSocketStream<TcpStream>,
    seen: Seen,
    /// Arrived while the client waited for another frame.
    inbox: VecDeque<Frame>,
}

impl Merchant {
    /// A session after its welcome.
    pub(super) fn new(
        who: &str,
        welcome: Welcome,
        seen: Seen,
        socket: WebSocketStream<TcpStream>,
    ) -> Self {
        Self {
            who: who.to_owned(),
            welcome,
            socket,
            seen,
            inbox: VecDeque::new(),
        }
    }

    /// The welcome.
    pub fn welcome(&self) -> &Welcome {
        &self.welcome
    }

    /// The number of notifications that wait for this client's ack.
    pub fn outstanding(&self) -> usize {
        self.seen.outstanding()
    }

    /// The last number in `feed` that arrived or was skipped.
    pub fn through(&self, feed: &str) -> u64 {
        self.seen.through(feed)
    }

    /// The last version of `feed` that this session received.
    pub fn version(&self, feed: &str) -> u64 {
        self.seen.version(feed)
    }

    /// The next frame, or the end of the session. Panics if neither arrives.
    pub async fn next_frame(&mut self) -> Result<Frame, Closed> {
        match self.inbox.pop_front() {
            Some(frame) => Ok(frame),
            None => self.receive().await,
        }
    }

    /// The next notification. Heartbeats and frames about the replay are skipped.
    pub async fn next_notification(&mut self) -> Notification {
        let pick = |frame| {
            if let Frame::Notification(notification) = frame {
                Some(notification)
            } else {
                None
            }
        };
        self.next("a notification", pick).await
    }

    /// The next notification, and every number skipped before it, with the reason.
    pub async fn next_after_skips(&mut self) -> (Vec<(u64, String)>, Notification) {
        let mut skips = Vec::new();
        let pick = |frame| match frame {
            Frame::Skipped(skipped) => {
                skips.extend(
                    (skipped.from..=skipped.through).map(|seq| (seq, skipped.reason.clone())),
                );
                None
            }
            Frame::Notification(notification) => Some(notification),
            _ => None,
        };
        let notification = self.next("a notification", pick).await;
        (skips, notification)
    }

    /// The next frame with marks.
    pub async fn next_state(&mut self) -> State {
        self.next("a state", |frame| {
            if let Frame::State(state) = frame {
                Some(state)
            } else {
                None
            }
        })
        .await
    }

    /// The next error.
    pub async fn next_error(&mut self) -> Refused {
        self.next("an error", |frame| {
            if let Frame::Error(refused) = frame {
                Some(refused)
            } else {
                None
            }
        })
        .await
    }

    /// The goodbye of a leaving replica.
    pub async fn next_goaway(&mut self) -> Goaway {
        self.next("a goaway", |frame| {
            if let Frame::Goaway(goaway) = frame {
                Some(goaway)
            } else {
                None
            }
        })
        .await
    }

    /// The next heartbeat: the last sent number of each feed.
    pub async fn next_heartbeat(&mut self) -> BTreeMap<String, u64> {
        self.next("a heartbeat", |frame| {
            if let Frame::Heartbeat(beat) = frame {
                Some(beat.sent)
            } else {
                None
            }
        })
        .await
    }

    /// Expects exactly these next, and nothing between them. Returns them.
    pub async fn expect_seqs(&mut self, seqs: RangeInclusive<u64>) -> Vec<Notification> {
        let mut notifications = Vec::new();
        for expected in seqs {
            let notification = self.next_notification().await;
            assert_eq!(notification.seq, expected, "{}: {notification:?}", self.who);
            notifications.push(notification);
        }
        notifications
    }

    /// The same, with acks on the way, so that the window never stops the replay.
    pub async fn take_seqs(&mut self, seqs: RangeInclusive<u64>) -> Vec<Notification> {
        let (mut notifications, last) = (Vec::new(), *seqs.end());
        for expected in seqs {
            let notification = self.expect_seqs(expected..=expected).await.remove(0);
            if expected % ACK_EVERY == 0
                || expected == last
                || self.outstanding() == self.welcome().window
            {
                self.ack(&notification.feed, expected).await;
            }
            notifications.push(notification);
        }
        notifications
    }

    /// Expects `caught_up` with no notification of `feed` before it.
    pub async fn expect_caught_up(&mut self, feed: &str) -> u64 {
        let mut of_other_feeds = VecDeque::new();
        while self.seen.caught_up(feed).is_none() || self.holds_caught_up(feed) {
            match self.next("caught_up", Some).await {
                Frame::CaughtUp(caught_up) if caught_up.feed == feed => break,
                Frame::Notification(other) if other.feed == feed => {
                    panic!("{}: not caught up in {feed}, but {other:?}", self.who)
                }
                other => of_other_feeds.push_back(other),
            }
        }
        of_other_feeds.append(&mut self.inbox);
        self.inbox = of_other_feeds;
        self.seen.caught_up(feed).expect("just seen")
    }

    /// Acknowledges everything in `feed` up to `seq`.
    pub async fn ack(&mut self, feed: &str, seq: u64) {
        self.seen.on_ack(feed, seq);
        self.say(&Saying::Ack { feed, seq }).await;
    }

    /// Marks these as read.
    pub async fn read(&mut self, feed: &str, seqs: &[u64]) {
        self.say(&Saying::Read {
            feed,
            seqs: Some(seqs),
            through: None,
        })
        .await;
    }

    /// Marks all up to this one as read.
    pub async fn read_through(&mut self, feed: &str, through: u64) {
        self.say(&Saying::Read {
            feed,
            seqs: None,
            through: Some(through),
        })
        .await;
    }

    /// Marks these as handled.
    pub async fn handle(&mut self, feed: &str, seqs: &[u64]) {
        self.say(&Saying::Handle { feed, seqs }).await;
    }

    /// Sends a new token.
    pub async fn show(&mut self, token: &Token) {
        self.say(&Saying::Auth {
            token: &token.sign(),
        })
        .await;
    }

    /// Pings, and waits for the pong. The server has then received every earlier frame.
    pub async fn ping(&mut self) {
        self.say(&Saying::Ping).await;
        let (mut others, mut before) = (VecDeque::new(), std::mem::take(&mut self.inbox));
        let keep_others = |frame| match frame {
            Frame::Pong => Some(()),
            other => {
                others.push_back(other);
                None
            }
        };
        self.next("a pong", keep_others).await;
        before.append(&mut others);
        self.inbox = before;
    }

    /// Sends text that need not be a frame of the contract.
    pub async fn send_text(&mut self, text: &str) {
        self.send(Message::Text(Utf8Bytes::from(text))).await;
    }

    /// Sends a binary message.
    pub async fn send_binary(&mut self, bytes: &[u8]) {
        self.send(Message::Binary(bytes.to_vec().into())).await;
    }

    /// Reads until the session ends, and returns the end.
    pub async fn closed(mut self) -> Closed {
        let end = async {
            loop {
                if let Err(closed) = self.next_frame().await {
                    return closed;
                }
            }
        };
        timeout(PATIENCE, end).await.expect("the session ends")
    }

    /// Reads the unread close frame as bytes. A WebSocket library would answer the pings before it,
    /// and a server that is gone would reset the connection.
    pub async fn unread_close(self) -> Closed {
        let mut bytes = Vec::new();
        let mut stream = self.socket.into_inner();
        timeout(PATIENCE, stream.read_to_end(&mut bytes))
            .await
            .expect("the server ends the connection")
            .ok();
        let reason = bytes
            .windows(9)
            .rposition(|window| window == br#"{"code":""#)
            .expect("a close with a reason");
        let code = u16::from_be_bytes([bytes[reason - 2], bytes[reason - 1]]);
        let reason = String::from_utf8(bytes[reason..].to_vec()).expect("a reason is UTF-8");
        Closed::from(&CloseFrame {
            code: code.into(),
            reason: reason.into(),
        })
    }

    /// Disconnects without a close, like a laptop whose lid is shut.
    pub fn vanish(self) {
        drop(self);
    }

    /// Closes like a browser's tab, and waits for the server's close.
    pub async fn leave(mut self) {
        self.socket.close(None).await.ok();
        self.closed().await;
    }

    async fn say(&mut self, saying: &Saying<'_>) {
        let text = serde_json::to_string(saying).expect("a frame is JSON");
        self.send_text(&text).await;
    }

    async fn send(&mut self, message: Message) {
        let sent = timeout(PATIENCE, self.socket.send(message))
            .await
            .expect("the socket accepts the frame");
        // The read reports the reason for the end, the failed write does not.
        sent.ok();
    }

    /// Reads until `pick` accepts a frame. Panics if the session ends first.
    async fn next<T>(&mut self, what: &str, mut pick: impl FnMut(Frame) -> Option<T>) -> T {
        let who = self.who.clone();
        let picked = async {
            loop {
                match self.next_frame().await {
                    Ok(frame) => {
                        if let Some(picked) = pick(frame) {
                            return picked;
                        }
                    }
                    Err(closed) => panic!("{who} expected {what} and got {closed:?}"),
                }
            }
        };
        timeout(PATIENCE, picked)
            .await
            .unwrap_or_else(|_| panic!("{who}: {what} does not come"))
    }

    fn holds_caught_up(&self, feed: &str) -> bool {
        self.inbox
            .iter()
            .any(|frame| matches!(frame, Frame::CaughtUp(caught_up) if caught_up.feed == feed))
    }

    async fn receive(&mut self) -> Result<Frame, Closed> {
        loop {
            let read = timeout(PATIENCE, self.socket.next()).await;
            match read.unwrap_or_else(|_| panic!("{}: nothing comes any more", self.who)) {
                Some(Ok(Message::Text(text))) => {
                    let frame = Frame::parse(&text)
                        .unwrap_or_else(|error| panic!("{}: {error} in {text}", self.who));
                    self.seen.on_frame(&frame);
                    return Ok(frame);
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Close(Some(frame)))) => {
                    // The next flush writes the reply to a close.
                    self.socket.flush().await.ok();
                    return Err(Closed::from(&frame));
                }
                Some(
                    Ok(Message::Close(None))
                    | Err(Error::Io(_) | Error::ConnectionClosed | Error::AlreadyClosed),
                )
                | None
                | Some(Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake))) => {
                    return Err(Closed::ABNORMAL);
                }
                Some(other) => panic!("{}: the contract knows no {other:?}", self.who),
            }
        }
    }
}
