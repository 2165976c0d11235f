//! One session of a device. It records every frame and judges none.

use std::collections::BTreeMap;
use std::time::Duration;

use fastrand::Rng;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use super::history::{Book, secrets_in};
use super::marking::{self, Marking};
use super::population::Device;
use super::stage::{self, Phase, Stage};
use crate::it::support::Frame;
use crate::it::support::frames::{FeedState, Welcome};

/// Interval of acks and marks.
const TICK: Duration = Duration::from_millis(300);
/// Notifications without an ack. It is far below the window.
const UNACKED_MAX: u64 = 60;
/// Interval of the acks of a client that hoards. The greatest merchants have more events than a window
/// meanwhile.
const HOARD: Duration = Duration::from_secs(12);
/// A slow client needs this long for a frame, at most.
const SLOW_MS: u64 = 60;
/// Bound of a write, and of the server's reply to a close.
const WRITE_BOUND: Duration = Duration::from_secs(15);
const CLOSE_BOUND: Duration = Duration::from_secs(5);
/// After these closes the server still stores the acks that the client sent before (docs/protocol.md).
const ORDERLY: [u16; 5] = [1000, 1012, 4401, 4408, 4409];

/// The plan of a session.
pub struct Stay {
    pub slow: bool,
    /// Acknowledges rarely while the run has faults.
    pub hoards: bool,
    /// Time after which the client leaves; `None` to stay.
    pub length: Option<Duration>,
}

/// A session after its welcome.
pub struct Session<'a> {
    stage: &'a Stage,
    name: String,
    socket: WebSocketStream<TcpStream>,
    feeds: BTreeMap<String, Place>,
    marking: Marking,
    /// Without a frame until then, the client reconnects (docs/protocol.md, `heartbeat`).
    silent_at: Instant,
    patience: Duration,
    /// The session sends no ack before this moment.
    hoards_until: Option<Instant>,
}

/// The place of a session in a feed.
struct Place {
    epoch: String,
    /// The last number that arrived or was skipped.
    through: u64,
    acked: u64,
    shared: bool,
    /// The reply to the last request for counts arrived.
    counted: bool,
}

/// The end of a session: its close code.
struct Ended(u16);

impl<'a> Session<'a> {
    pub fn new(
        stage: &'a Stage,
        name: String,
        device: &Device,
        replica: usize,
        welcome: &Welcome,
        socket: WebSocketStream<TcpStream>,
    ) -> Self {
        let feeds: Vec<_> = welcome
            .feeds
            .iter()
            .map(|feed| {
                json!({"feed": feed.feed, "epoch": feed.epoch, "cursor": feed.cursor, "last_seq": feed.last})
            })
            .collect();
        let opened = json!({
            "session": name, "device": device.name, "subscriber": device.subscriber,
            "replica": stage::name(replica), "feeds": feeds,
        });
        stage.history.note(Book::Sessions, "session_opened", opened);
        for feed in &welcome.feeds {
            let counts = json!({
                "session": name, "feed": feed.feed, "unread": feed.unread, "unhandled": feed.unhandled,
                "version": feed.version, "last": feed.last,
            });
            stage.history.note(Book::Sessions, "counts", counts);
        }
        let place = |feed: &FeedState| Place {
            epoch: feed.epoch.clone(),
            through: feed.cursor,
            acked: feed.cursor,
            shared: feed.shared,
            counted: false,
        };
        let patience = Duration::from_secs(2 * welcome.heartbeat_seconds + 5);
        Self {
            stage,
            name,
            socket,
            feeds: welcome
                .feeds
                .iter()
                .map(|feed| (feed.feed.clone(), place(feed)))
                .collect(),
            marking: Marking::default(),
            silent_at: Instant::now() + patience,
            patience,
            hoards_until: None,
        }
    }

    /// Reads until the end of the session. Returns whether the device has finished.
    pub async fn live(
        mut self,
        stay: Stay,
        random: &mut Rng,
        phase: &mut watch::Receiver<Phase>,
    ) -> bool {
        let ended = self.converse(&stay, random, phase).await;
        let finished = matches!(ended, Err(Ended(1000))) && *phase.borrow() == Phase::Finishing;
        let code = match ended {
            Ok(()) => 1006,
            Err(Ended(code)) => code,
        };
        self.note(
            "session_closed",
            json!({"code": code, "clean": ORDERLY.contains(&code)}),
        );
        finished
    }

    async fn converse(
        &mut self,
        stay: &Stay,
        random: &mut Rng,
        phase: &mut watch::Receiver<Phase>,
    ) -> Result<(), Ended> {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut hoards_until = stay.hoards.then(|| Instant::now() + HOARD);
        self.hoards_until = hoards_until;
        let leave_at = stay.length.map(|length| Instant::now() + length);
        loop {
            let now = *phase.borrow_and_update();
            let leaving = async {
                match leave_at.filter(|_| now == Phase::Running) {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                message = self.socket.next() => {
                    self.receive(message).await?;
                    if stay.slow && now == Phase::Running {
                        sleep(Duration::from_millis(random.u64(..SLOW_MS))).await;
                    }
                }
                _ = tick.tick() => {
                    self.hoards_until = hoards_until.filter(|_| now == Phase::Running);
                    if self.hoards_until.is_some_and(|until| until <= Instant::now()) {
                        hoards_until = Some(Instant::now() + HOARD);
                        self.hoards_until = None;
                    }
                    self.on_tick(now, random).await?;
                }
                () = leaving => return self.depart(random.bool()).await,
                () = sleep_until(self.silent_at) => return Err(Ended(1006)),
                // The sender lives as long as the stage.
                _ = phase.changed() => {}
            }
        }
    }

    async fn on_tick(&mut self, phase: Phase, random: &mut Rng) -> Result<(), Ended> {
        let feeds: Vec<String> = self.feeds.keys().cloned().collect();
        if self.hoards_until.is_none() {
            for feed in &feeds {
                self.ack(feed).await?;
            }
        }
        match phase {
            Phase::Running => {
                let markable: Vec<_> = self
                    .feeds
                    .iter()
                    .filter(|(_, place)| !place.shared && place.through > 0)
                    .map(|(feed, place)| (feed.as_str(), place.through))
                    .collect();
                if let Some((frame, note)) = self.marking.begin(&markable, random) {
                    self.note("mark_invoked", note);
                    self.send(&frame).await?;
                }
            }
            Phase::Draining => {}
            Phase::Finishing => {
                let waiting: Vec<String> = self
                    .feeds
                    .iter()
                    .filter(|(_, place)| !place.shared && !place.counted)
                    .map(|(feed, _)| feed.clone())
                    .collect();
                if waiting.is_empty() {
                    return self.depart(true).await;
                }
                for feed in waiting {
                    self.send(&json!({"type": "read", "feed": feed, "seqs": []}))
                        .await?;
                }
            }
        }
        Ok(())
    }

    /// Acknowledges everything that arrived in a feed.
    async fn ack(&mut self, feed: &str) -> Result<(), Ended> {
        let Some(place) = self.feeds.get_mut(feed) else {
            return Ok(());
        };
        if place.through == place.acked {
            return Ok(());
        }
        place.acked = place.through;
        let seq = place.through;
        self.note("ack_sent", json!({"feed": feed, "seq": seq}));
        self.send(&json!({"type": "ack", "feed": feed, "seq": seq}))
            .await
    }

    async fn receive(
        &mut self,
        message: Option<Result<Message, tokio_tungstenite::tungstenite::Error>>,
    ) -> Result<(), Ended> {
        match message {
            Some(Ok(Message::Text(text))) => {
                self.silent_at = Instant::now() + self.patience;
                match Frame::parse(&text) {
                    Ok(frame) => self.on_frame(frame).await,
                    Err(error) => {
                        self.object(&error.to_string());
                        Ok(())
                    }
                }
            }
            Some(Ok(Message::Close(frame))) => {
                timeout(CLOSE_BOUND, self.socket.flush()).await.ok();
                Err(Ended(frame.map_or(1006, |frame| frame.code.into())))
            }
            Some(Ok(_)) => Ok(()),
            Some(Err(_)) | None => Err(Ended(1006)),
        }
    }

    async fn on_frame(&mut self, frame: Frame) -> Result<(), Ended> {
        match frame {
            Frame::Notification(arrived) => {
                let place = self.feeds.get_mut(&arrived.feed);
                let epoch = place.as_ref().map(|place| place.epoch.clone());
                let secrets = secrets_in(arrived.data());
                let line = json!({
                    "feed": arrived.feed, "epoch": epoch, "seq": arrived.seq, "source": arrived.source,
                    "id": arrived.id, "secrets": secrets,
                });
                let mut unacked = 0;
                if let Some(place) = place {
                    place.through = arrived.seq;
                    unacked = place.through.saturating_sub(place.acked);
                }
                self.note("frame", line);
                if unacked >= UNACKED_MAX && self.hoards_until.is_none() {
                    self.ack(&arrived.feed).await?;
                }
            }
            Frame::Skipped(skipped) => {
                if let Some(place) = self.feeds.get_mut(&skipped.feed) {
                    place.through = skipped.through;
                }
                let line = json!({
                    "feed": skipped.feed, "from": skipped.from, "to": skipped.through, "reason": skipped.reason,
                });
                self.note("skipped", line);
            }
            Frame::State(state) => {
                self.note("state", json!(state));
                let counts = json!({
                    "feed": state.feed, "unread": state.unread, "unhandled": state.unhandled,
                    "version": state.version, "last": state.last,
                });
                self.note("counts", counts);
                let is_reply =
                    state.version.is_none() && state.seqs.as_ref().is_some_and(Vec::is_empty);
                if let Some(place) = self.feeds.get_mut(&state.feed).filter(|_| is_reply) {
                    place.counted = true;
                }
                if let Some(confirmed) = self.marking.on_state(&state) {
                    self.note("mark_confirmed", confirmed);
                }
            }
            Frame::Error(refused) => match self.marking.on_error(&refused) {
                Some(note) => self.note("mark_refused", note),
                // The mark of another session may confirm a request before its own reply.
                None if marking::refuses(&refused) => {}
                None => self.object(&format!("{refused:?}")),
            },
            Frame::Welcome(_) => self.object("a second welcome"),
            Frame::CaughtUp(_) | Frame::Heartbeat(_) | Frame::Goaway(_) | Frame::Pong => {}
        }
        Ok(())
    }

    /// Ends the session: with a close and the server's reply, or without a word.
    async fn depart(&mut self, politely: bool) -> Result<(), Ended> {
        if !politely {
            return Err(Ended(1006));
        }
        let closing = async {
            self.socket.close(None).await.ok();
            // Frames before the server's close are replayed, because nothing acknowledges them.
            while let Some(Ok(_)) = self.socket.next().await {}
        };
        let closed = timeout(CLOSE_BOUND, closing).await;
        Err(Ended(if closed.is_ok() { 1000 } else { 1006 }))
    }

    async fn send(&mut self, frame: &Value) -> Result<(), Ended> {
        let message = Message::Text(Utf8Bytes::from(frame.to_string()));
        match timeout(WRITE_BOUND, self.socket.send(message)).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(Ended(1006)),
        }
    }

    fn object(&self, text: &str) {
        let text = format!("{} received {text}", self.name);
        self.stage.history.object(text);
    }

    fn note(&self, kind: &str, mut fields: Value) {
        fields["session"] = self.name.clone().into();
        self.stage.history.note(Book::Sessions, kind, fields);
    }
}
