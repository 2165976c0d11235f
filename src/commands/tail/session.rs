//! Runs sessions, and keeps the state that the next session continues.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::{FutureExt, SinkExt, StreamExt};
use serde::Serialize;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_util::sync::CancellationToken;

use super::Arguments;
use super::connection::{self, Socket, Target};
use super::frame::{Frame, Welcome};
use super::line;
use super::loss::Loss;
use super::received::Received;
use crate::commands::terminal::{self, Format};

/// Bound on the wait for `welcome`.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(10);
/// Heartbeats that may be missing before the connection counts as broken.
const SILENT_HEARTBEATS_MAX: u64 = 3;
/// Bound on the heartbeat interval that a service can announce.
const HEARTBEAT_SECONDS_MAX: u64 = 86_400;
/// Maximum number of frames that are printed together and acked by one ack for each feed.
const BATCH_FRAMES_MAX: usize = 256;
/// If a write takes longer, the connection counts as broken.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Bound on the last ack and the closing handshake.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// The end of a session.
pub(super) enum End {
    /// The command is done.
    Done,
    /// The connection was lost.
    Lost(Loss),
}

/// The state of all sessions of the command.
pub(super) struct Tail {
    arguments: Arguments,
    format: Format,
    received: Received,
    pub(super) was_welcomed: bool,
    printed: u64,
    /// Feeds that have not caught up in this session; `None` before its `welcome`.
    catching_up: Option<BTreeSet<String>>,
    /// If the session is silent for longer, the connection counts as broken.
    silence_max: Duration,
    /// Notifications that this session may still send without an ack.
    window_left: usize,
    /// Lines to write before their acks are sent.
    lines: String,
}

impl Tail {
    pub(super) fn new(arguments: Arguments, format: Format) -> Self {
        Self {
            received: Received::new(&arguments.after),
            arguments,
            format,
            was_welcomed: false,
            printed: 0,
            catching_up: None,
            silence_max: WELCOME_TIMEOUT,
            window_left: usize::MAX,
            lines: String::new(),
        }
    }

    /// Runs one session.
    pub(super) async fn session(
        &mut self,
        target: &Target,
        stop: &CancellationToken,
    ) -> anyhow::Result<End> {
        self.catching_up = None;
        self.silence_max = WELCOME_TIMEOUT;
        let Some(connected) = stop
            .run_until_cancelled(target.connect(self.received.starts()))
            .await
        else {
            return Ok(End::Done);
        };
        let mut socket = match connected {
            Ok(socket) => socket,
            Err(loss) => return Ok(End::Lost(loss)),
        };
        loop {
            let next = tokio::time::timeout(self.silence_max, socket.next());
            let loss = match stop.run_until_cancelled(next).await {
                None => {
                    close(socket).await;
                    return Ok(End::Done);
                }
                Some(Err(_)) => Some(Loss::silent(self.silence_max)),
                Some(Ok(first)) => self.receive(first, &mut socket)?,
            };
            if let Some(loss) = loss {
                return Ok(End::Lost(loss));
            }
            if !self.arguments.no_ack && !self.send_acks(&mut socket).await {
                return Ok(End::Lost(Loss::broken(
                    "the connection broke while acks were sent",
                )));
            }
            if self.is_done() {
                return Ok(match close(socket).await {
                    true => End::Done,
                    // The service may not have received the last ack, so the next session sends it
                    // again.
                    false => End::Lost(Loss::broken(
                        "the connection broke before the service received the last ack",
                    )),
                });
            }
            self.check_window()?;
        }
    }

    fn is_done(&self) -> bool {
        self.arguments.count == Some(self.printed)
            || (self.arguments.until_caught_up
                && self.catching_up.as_ref().is_some_and(BTreeSet::is_empty))
    }

    /// Handles a WebSocket message and those that arrived with it. Prints their lines, even if one
    /// is wrong.
    fn receive(
        &mut self,
        first: Option<Result<Message, Error>>,
        socket: &mut Socket,
    ) -> anyhow::Result<Option<Loss>> {
        let mut result = self.on_message(first);
        for _ in 1..BATCH_FRAMES_MAX {
            if self.is_done() || !matches!(result, Ok(None)) {
                break;
            }
            let Some(message) = socket.next().now_or_never() else {
                break;
            };
            result = self.on_message(message);
        }
        terminal::write_lines(&std::mem::take(&mut self.lines))?;
        result
    }

    fn on_message(
        &mut self,
        message: Option<Result<Message, Error>>,
    ) -> anyhow::Result<Option<Loss>> {
        match message {
            Some(Ok(Message::Text(text))) => {
                let frame = Frame::parse(&text).map_err(|error| {
                    anyhow::anyhow!("the service sent a frame that is not shopbell.v1: {error}")
                })?;
                self.on_frame(frame, &text)?;
                Ok(None)
            }
            Some(Ok(Message::Close(close))) => Ok(Some(Loss::of_close(close))),
            // tungstenite replies to pings itself.
            Some(Ok(_)) => Ok(None),
            Some(Err(error)) => Ok(Some(Loss::broken(&format!(
                "the connection broke: {error}"
            )))),
            None => Ok(Some(Loss::broken(
                "the connection ended without a close frame",
            ))),
        }
    }

    fn on_frame(&mut self, frame: Frame, text: &str) -> anyhow::Result<()> {
        let mut line = None;
        match frame {
            Frame::Notification(notification) => {
                if !self
                    .received
                    .receive(&notification.feed, notification.seq, notification.seq)?
                {
                    return Ok(());
                }
                self.printed += 1;
                self.window_left = self.window_left.saturating_sub(1);
                line = Some(line::notification(&notification));
            }
            Frame::Skipped {
                feed,
                from,
                through,
                reason,
            } => {
                if !self.received.receive(&feed, from, through)? {
                    return Ok(());
                }
                self.write_message(&format!("{feed} #{from} to #{through} skipped: {reason}"));
            }
            Frame::Welcome(welcome) => self.on_welcome(&welcome)?,
            Frame::CaughtUp { feed, seq } => {
                if let Some(catching_up) = &mut self.catching_up {
                    catching_up.remove(&feed);
                }
                self.write_message(&format!("{feed} caught up at #{seq}"));
            }
            Frame::Heartbeat { sent } => sent
                .iter()
                .try_for_each(|(feed, seq)| self.received.check_sent(feed, *seq))?,
            Frame::Goaway { retry_after_ms } => self.write_message(&format!(
                "the replica drains and will close the session (reconnect after {retry_after_ms} ms)"
            )),
            Frame::Error { code, message } => {
                self.write_message(&format!("the service rejected a frame: {code}: {message}"))
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
        self.window_left = welcome.window;
        self.silence_max = Duration::from_secs(
            welcome.heartbeat_seconds.clamp(1, HEARTBEAT_SECONDS_MAX) * SILENT_HEARTBEATS_MAX,
        );
        self.catching_up = Some(welcome.feeds.iter().map(|feed| feed.feed.clone()).collect());
        for feed in &welcome.feeds {
            if self.received.begin_session(
                &feed.feed,
                feed.cursor,
                feed.last,
                feed.epoch.as_deref(),
            )? {
                let (name, cursor) = (&feed.feed, feed.cursor);
                self.write_message(&format!(
                    "the database was restored: {name} continues after #{cursor}, and earlier numbers are invalid"
                ));
            }
        }
        self.write_message(&line::welcome(welcome));
        Ok(())
    }

    /// Writes a message. With JSON the frame itself is on stdout.
    fn write_message(&self, text: &str) {
        if self.format == Format::Text {
            terminal::write_message(text);
        }
    }

    /// Sends one ack for each feed with printed notifications. Returns whether it succeeded.
    async fn send_acks(&mut self, socket: &mut Socket) -> bool {
        let acks = self.received.take_acks();
        if acks.is_empty() {
            return true;
        }
        let write = async {
            for (feed, seq) in &acks {
                socket
                    .feed(message(&ClientFrame::Ack { feed, seq: *seq }))
                    .await?;
            }
            socket.flush().await
        };
        matches!(tokio::time::timeout(WRITE_TIMEOUT, write).await, Ok(Ok(())))
    }

    /// Without acks, the service sends no more than one window.
    fn check_window(&mut self) -> anyhow::Result<()> {
        if !self.arguments.no_ack || self.window_left > 0 {
            return Ok(());
        }
        let full = "the window is full: with --no-ack the service sends no more notifications";
        anyhow::ensure!(
            self.arguments.count.is_none() && !self.arguments.until_caught_up,
            full
        );
        self.window_left = usize::MAX;
        terminal::write_message(full);
        Ok(())
    }
}

/// The frames that this client sends.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum ClientFrame<'a> {
    Ack { feed: &'a str, seq: i64 },
    Ping,
}

fn message(frame: &ClientFrame<'_>) -> Message {
    // The serialization of strings and numbers cannot fail.
    Message::text(serde_json::to_string(frame).unwrap_or_default())
}

/// Waits until the service has handled the last ack, and closes the session. Returns whether it
/// has.
async fn close(mut socket: Socket) -> bool {
    let mut are_acks_handled = false;
    let closing = async {
        // The service handles frames in order, so a pong proves that it has handled the acks.
        socket.send(message(&ClientFrame::Ping)).await?;
        while let Some(message) = socket.next().await {
            let message = message?;
            if let Ok(text) = message.to_text()
                && matches!(Frame::parse(text), Ok(Frame::Pong))
            {
                are_acks_handled = true;
                break;
            }
        }
        socket.close(Some(connection::normal_close())).await?;
        while socket.next().await.transpose()?.is_some() {}
        Ok::<_, Error>(())
    };
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, closing).await;
    are_acks_handled
}
