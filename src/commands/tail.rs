//! `shopbell tail`: a client of `shopbell.v1` in the terminal, as honest as a dashboard has to be.
//!
//! It acknowledges only what it has printed, comes back by the contract's table of close codes, and proves by the numbers
//! that it missed nothing.

mod connection;
mod frame;
mod line;
mod places;

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::{FutureExt, SinkExt, StreamExt};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_util::sync::CancellationToken;

use self::connection::{Loss, Socket, Target};
use self::frame::{Frame, Welcome};
use self::places::Places;
use super::UsageError;
use super::terminal::{self, Format};
use crate::model::feed::{Device, Epoch, Feed, Seq};
use crate::retry::{self, Backoff};

/// Where the token is looked for when it is not on the command line, which other users of the machine can see.
const TOKEN_VARIABLE: &str = "SHOPBELL_TOKEN";
/// A service that never let us in is given up on after this: the URL is probably wrong.
const FIRST_WELCOME_TIMEOUT: Duration = Duration::from_secs(30);
/// A session that lasted so long was a good one: the next back-off begins anew.
const GOOD_SESSION: Duration = Duration::from_secs(5);
/// A server owes its `welcome` within this; after it, something is heard in every so many heartbeats.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(10);
const SILENT_HEARTBEATS_MAX: u64 = 3;
/// Longest heartbeat that is believed.
const HEARTBEAT_SECONDS_MAX: u64 = 86_400;
/// Most frames that are printed at once and acknowledged by one ack a feed.
const BATCH_FRAMES_MAX: usize = 256;
/// A write that takes longer has lost its connection.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the last ack and the closing handshake may take.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);
/// The status of a process that Ctrl-C ended.
const INTERRUPTED: i32 = 130;

/// What to read, and until when.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Where the service is.
    #[arg(
        long,
        default_value = "ws://127.0.0.1:8080/v1/ws",
        value_name = "ws://HOST:PORT"
    )]
    url: String,
    /// Who reads; without it, the environment variable SHOPBELL_TOKEN.
    #[arg(long, value_name = "JWT")]
    token: Option<String>,
    /// A cursor of its own for this device of the subscriber.
    #[arg(long, default_value = "", hide_default_value = true, value_parser = Device::parse)]
    device: Device,
    /// Begin in this feed after this number, acknowledged or not; with the epoch of the number if it was stored; repeatable.
    #[arg(long, value_name = "FEED:SEQ[:EPOCH]")]
    after: Vec<After>,
    /// Leave after so many notifications.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Leave when everything that was stored at the beginning has come.
    #[arg(long)]
    until_caught_up: bool,
    /// Acknowledge nothing: what is printed comes again, and no more than a window of it.
    #[arg(long)]
    no_ack: bool,
}

/// Reads until it is told to stop, has what it was asked for, or may not come back.
pub async fn run(mut arguments: Arguments, format: Format) -> anyhow::Result<()> {
    let token = arguments
        .token
        .take()
        .or_else(|| std::env::var(TOKEN_VARIABLE).ok())
        .filter(|token| !token.trim().is_empty());
    let token = token
        .ok_or_else(|| UsageError(format!("no token: give --token, or set {TOKEN_VARIABLE}")))?;
    let target =
        Target::parse(&arguments.url, token.trim(), &arguments.device).map_err(UsageError)?;
    let stop = stop_on_signal()?;
    let mut tail = Tail::new(arguments, format);
    let mut backoff = Backoff::default();
    let first_welcome_by = Instant::now() + FIRST_WELCOME_TIMEOUT;
    loop {
        let began = Instant::now();
        let loss = match tail.session(&target, &stop).await? {
            End::Done => return Ok(()),
            End::Lost(loss) => loss,
        };
        let (why, retry_after) = match loss {
            Loss::Final(why) => anyhow::bail!(why),
            Loss::Passing { why, retry_after } => (why, retry_after),
        };
        if !tail.was_welcomed && Instant::now() > first_welcome_by {
            anyhow::bail!(
                "{why}; given up after {} s: is the service running there?",
                FIRST_WELCOME_TIMEOUT.as_secs()
            );
        }
        if began.elapsed() > GOOD_SESSION {
            backoff.reset();
        }
        let wait = backoff.next_wait().max(retry_after.unwrap_or_default());
        terminal::write_message(&format!(
            "{why}; trying again in {:.1} s",
            wait.as_secs_f64()
        ));
        if !retry::sleep(wait, &stop).await {
            return Ok(());
        }
    }
}

/// A place to begin, from the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
struct After {
    feed: Feed,
    seq: Seq,
    epoch: Option<String>,
}

impl std::str::FromStr for After {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let begins_with_a_letter =
            |text: &&str| text.starts_with(|first: char| first.is_ascii_alphabetic());
        let (rest, epoch) = match text
            .rsplit_once(':')
            .filter(|(_, last)| begins_with_a_letter(last))
        {
            Some((rest, epoch)) => (
                rest,
                Some(
                    Epoch::parse(epoch)
                        .map_err(|error| error.to_string())?
                        .to_string(),
                ),
            ),
            None => (text, None),
        };
        let (feed, seq) = rest
            .rsplit_once(':')
            .ok_or("must be FEED:SEQ or FEED:SEQ:EPOCH, like merchant-42:17")?;
        let feed = Feed::parse(feed).map_err(|error| error.to_string())?;
        let seq = seq
            .parse()
            .ok()
            .and_then(Seq::new)
            .ok_or("SEQ must be a whole number from 0")?;
        Ok(Self { feed, seq, epoch })
    }
}

/// Ctrl-C or SIGTERM: the first asks to leave properly, the second leaves.
fn stop_on_signal() -> anyhow::Result<CancellationToken> {
    let (mut interrupt, mut terminate) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    let stop = CancellationToken::new();
    let told = stop.clone();
    tokio::spawn(async move {
        for _ in 0..2 {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if told.is_cancelled() {
                std::process::exit(INTERRUPTED);
            }
            told.cancel();
        }
    });
    Ok(stop)
}

/// How a session ended.
enum End {
    /// There is nothing left to do.
    Done,
    /// Without being asked to.
    Lost(Loss),
}

/// What outlives a session.
struct Tail {
    arguments: Arguments,
    format: Format,
    places: Places,
    was_welcomed: bool,
    printed: u64,
    /// Feeds that have not caught up in this session; `None` before its `welcome`.
    behind: Option<BTreeSet<String>>,
    /// How long this session may be silent.
    silence_max: Duration,
    /// How many more this session may send without an ack.
    room: usize,
    /// Lines to be written before anything is acknowledged.
    lines: String,
}

impl Tail {
    fn new(arguments: Arguments, format: Format) -> Self {
        Self {
            places: Places::new(&arguments.after),
            arguments,
            format,
            was_welcomed: false,
            printed: 0,
            behind: None,
            silence_max: WELCOME_TIMEOUT,
            room: usize::MAX,
            lines: String::new(),
        }
    }

    async fn session(&mut self, target: &Target, stop: &CancellationToken) -> anyhow::Result<End> {
        self.behind = None;
        self.silence_max = WELCOME_TIMEOUT;
        let Some(connected) = stop
            .run_until_cancelled(target.connect(self.places.starts()))
            .await
        else {
            return Ok(End::Done);
        };
        let mut socket = match connected {
            Ok(socket) => socket,
            Err(loss) => return Ok(End::Lost(loss)),
        };
        loop {
            let heard = tokio::time::timeout(self.silence_max, socket.next());
            let loss = match stop.run_until_cancelled(heard).await {
                None => {
                    leave(socket).await;
                    return Ok(End::Done);
                }
                Some(Err(_)) => Some(Loss::silent(self.silence_max)),
                Some(Ok(first)) => self.take_in(first, &mut socket)?,
            };
            if let Some(loss) = loss {
                return Ok(End::Lost(loss));
            }
            if !self.arguments.no_ack && !self.acknowledge(&mut socket).await {
                return Ok(End::Lost(Loss::broken(
                    "the connection broke while acknowledging",
                )));
            }
            if self.is_done() {
                return Ok(match leave(socket).await {
                    true => End::Done,
                    // What is acknowledged may not have been taken: it is acknowledged again at the next connection.
                    false => End::Lost(Loss::broken(
                        "the connection broke before the last ack was taken",
                    )),
                });
            }
            self.check_room()?;
        }
    }

    fn is_done(&self) -> bool {
        self.arguments.count == Some(self.printed)
            || (self.arguments.until_caught_up
                && self.behind.as_ref().is_some_and(BTreeSet::is_empty))
    }

    /// Takes a message and whatever has arrived with it, and writes what is to be written, whatever else is wrong.
    fn take_in(
        &mut self,
        first: Option<Result<Message, Error>>,
        socket: &mut Socket,
    ) -> anyhow::Result<Option<Loss>> {
        let mut taken = self.on_message(first);
        for _ in 1..BATCH_FRAMES_MAX {
            if self.is_done() || !matches!(taken, Ok(None)) {
                break;
            }
            let Some(message) = socket.next().now_or_never() else {
                break;
            };
            taken = self.on_message(message);
        }
        terminal::write_lines(&std::mem::take(&mut self.lines))?;
        taken
    }

    fn on_message(
        &mut self,
        message: Option<Result<Message, Error>>,
    ) -> anyhow::Result<Option<Loss>> {
        match message {
            Some(Ok(Message::Text(text))) => {
                let frame = Frame::parse(&text)
                    .map_err(|error| anyhow::anyhow!("a frame that is no shopbell.v1: {error}"))?;
                self.on_frame(frame, &text)?;
                Ok(None)
            }
            Some(Ok(Message::Close(close))) => Ok(Some(Loss::of_close(close))),
            // tungstenite answers pings by itself.
            Some(Ok(_)) => Ok(None),
            Some(Err(error)) => Ok(Some(Loss::broken(&format!(
                "the connection broke: {error}"
            )))),
            None => Ok(Some(Loss::broken("the connection ended without a close"))),
        }
    }

    fn on_frame(&mut self, frame: Frame, text: &str) -> anyhow::Result<()> {
        let mut line = None;
        match frame {
            Frame::Notification(notification) => {
                if !self
                    .places
                    .advance(&notification.feed, notification.seq, notification.seq)?
                {
                    return Ok(());
                }
                self.printed += 1;
                self.room = self.room.saturating_sub(1);
                line = Some(line::notification(&notification));
            }
            Frame::Skipped {
                feed,
                from,
                through,
                reason,
            } => {
                if !self.places.advance(&feed, from, through)? {
                    return Ok(());
                }
                self.talk(&format!("{feed} #{from} to #{through} skipped: {reason}"));
            }
            Frame::Welcome(welcome) => self.on_welcome(&welcome)?,
            Frame::CaughtUp { feed, seq } => {
                if let Some(behind) = &mut self.behind {
                    behind.remove(&feed);
                }
                self.talk(&format!("{feed} caught up at #{seq}"));
            }
            Frame::Heartbeat { sent } => sent
                .iter()
                .try_for_each(|(feed, seq)| self.places.check(feed, *seq))?,
            Frame::Goaway { retry_after_ms } => self.talk(&format!(
                "the replica is leaving (retry in {retry_after_ms} ms)"
            )),
            Frame::Error { code, message } => {
                self.talk(&format!("the service complains: {code}: {message}"))
            }
            Frame::Pong | Frame::Unknown => {}
        }
        match (self.format, line) {
            (Format::Json, _) => self.lines += &terminal::one_line(text),
            (Format::Text, Some(line)) => self.lines += &terminal::text_line(&line),
            (Format::Text, None) => {}
        }
        Ok(())
    }

    fn on_welcome(&mut self, welcome: &Welcome) -> anyhow::Result<()> {
        self.was_welcomed = true;
        self.room = welcome.window;
        self.silence_max = Duration::from_secs(
            welcome.heartbeat_seconds.clamp(1, HEARTBEAT_SECONDS_MAX) * SILENT_HEARTBEATS_MAX,
        );
        self.behind = Some(welcome.feeds.iter().map(|feed| feed.feed.clone()).collect());
        for feed in &welcome.feeds {
            if self
                .places
                .begin(&feed.feed, feed.cursor, feed.last, feed.epoch.as_deref())?
            {
                let (name, cursor) = (&feed.feed, feed.cursor);
                self.talk(&format!(
                    "the database was restored: {name} is read after #{cursor}, numbers of before do not count"
                ));
            }
        }
        self.talk(&line::welcome(welcome));
        Ok(())
    }

    /// In JSON everything is data already.
    fn talk(&self, text: &str) {
        if self.format == Format::Text {
            terminal::write_message(text);
        }
    }

    /// Acknowledges what was printed: one ack a feed.
    async fn acknowledge(&mut self, socket: &mut Socket) -> bool {
        let acks = self.places.take_acks();
        if acks.is_empty() {
            return true;
        }
        let write = async {
            for (feed, seq) in &acks {
                socket
                    .feed(said(&ClientFrame::Ack { feed, seq: *seq }))
                    .await?;
            }
            socket.flush().await
        };
        matches!(tokio::time::timeout(WRITE_TIMEOUT, write).await, Ok(Ok(())))
    }

    /// Without acks a session ends at its window.
    fn check_room(&mut self) -> anyhow::Result<()> {
        if !self.arguments.no_ack || self.room > 0 {
            return Ok(());
        }
        let full = "the window is full: with --no-ack nothing more comes";
        anyhow::ensure!(
            self.arguments.count.is_none() && !self.arguments.until_caught_up,
            full
        );
        self.room = usize::MAX;
        terminal::write_message(full);
        Ok(())
    }
}

/// What a client says.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum ClientFrame<'a> {
    Ack { feed: &'a str, seq: i64 },
    Ping,
}

fn said(frame: &ClientFrame<'_>) -> Message {
    // Serialising strings and numbers cannot fail.
    Message::text(serde_json::to_string(frame).unwrap_or_default())
}

/// Waits until the service has taken in what was said, and closes. Says whether it had.
async fn leave(mut socket: Socket) -> bool {
    let mut taken = false;
    let leaving = async {
        socket.send(said(&ClientFrame::Ping)).await?;
        while let Some(message) = socket.next().await {
            let message = message?;
            if let Ok(text) = message.to_text()
                && matches!(Frame::parse(text), Ok(Frame::Pong))
            {
                taken = true;
                break;
            }
        }
        socket.close(Some(connection::goodbye())).await?;
        while socket.next().await.transpose()?.is_some() {}
        Ok::<_, Error>(())
    };
    let _ = tokio::time::timeout(LEAVE_TIMEOUT, leaving).await;
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_to_begin_is_feed_and_number_and_its_epoch() {
        let place = |text: &str| {
            let After { feed, seq, epoch } = text.parse()?;
            Ok::<_, String>((feed.to_string(), seq.get(), epoch))
        };
        assert_eq!(place("a/b-1:17"), Ok(("a/b-1".into(), 17, None)));
        assert_eq!(place("m:17:e9"), Ok(("m".into(), 17, Some("e9".into()))));
        for bad in ["m", "m:", ":1", "m:-1", "m:x", "a b:1", "m:1:e-9", "m:e9"] {
            assert!(place(bad).is_err(), "{bad}");
        }
    }
}
