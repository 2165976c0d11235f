//! Performs the outputs of a session: frames go to its socket, effects to the other parts of the
//! gateway.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::FutureExt;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Opened, SessionEnd, Shared, Task};
use crate::gateway::auth::LEEWAY;
use crate::gateway::rates::TooFast;
use crate::gateway::session::socket::Socket;
use crate::gateway::session::state::{Effect, Frame, Output, Unverified};
use crate::model::notification::Notification;
use crate::model::protocol::{Close, WelcomeFeed};
use crate::store::marks::MarkRequest;
use crate::telemetry::traces;

/// Time in which a client must take the frames of a page, or of other outputs that are performed
/// together. If it does not, its session is closed as silent.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Each so many bytes of these frames extend the timeout by a second, because a large page takes
/// longer.
const WRITE_BYTES_PER_SECOND_MIN: usize = 32 * 1024;
/// Bytes of queued frames that are written at once.
const WRITE_BYTES: usize = 64 * 1024;

impl Task {
    /// Performs the outputs until there are none, and writes all frames.
    pub(super) async fn perform_outputs<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        socket: &mut Socket<S>,
    ) -> Result<(), SessionEnd> {
        let (mut sent, begun) = (Vec::new(), SystemTime::now());
        let mut writes = Writes::default();
        let mut is_answered = false;
        while !is_answered {
            let outputs = self.session.take_outputs();
            if outputs.is_empty() {
                break;
            }
            for output in outputs {
                match output {
                    Output::Send(frame) => {
                        queue(frame, socket, &mut sent);
                        if socket.unsent_bytes() >= WRITE_BYTES {
                            writes.flush(socket).await?;
                        }
                    }
                    Output::Perform(Effect::Verify { token }) => {
                        // Boxed, because an idle session would have its size too.
                        let verdict = Box::pin(verify(&self.shared, &self.opened, &token)).await;
                        self.session.on_verified(verdict);
                    }
                    Output::Perform(read @ Effect::Read { .. }) => {
                        // A client that takes its page slowly must not hold the next one too.
                        if socket.unsent_bytes() > 0 {
                            writes.flush(socket).await?;
                        }
                        self.perform(read);
                    }
                    Output::Perform(effect) => self.perform(effect),
                    // The frames of a poll are written like those of other sessions.
                    Output::Close(Close::Answered) => is_answered = true,
                    Output::Close(close) => return Err(SessionEnd::Close(close)),
                }
            }
        }
        // The socket also queues pongs.
        if socket.unsent_bytes() > 0 {
            writes.flush(socket).await?;
        }
        self.on_sent(&sent, begun);
        match is_answered {
            true => Err(SessionEnd::Close(Close::Answered)),
            false => Ok(()),
        }
    }

    /// Performs an effect that needs no wait.
    pub(super) fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Read {
                feed,
                after,
                wanted,
                states_after,
            } => {
                self.page = Some(self.shared.replay.read(feed, after, wanted, states_after));
            }
            Effect::Ack { feed, seq } => {
                self.shared.metrics.acks.inc();
                let key = self.cursor_key(feed);
                self.shared.cursors.ack(key, seq, &self.opened.epoch);
            }
            Effect::ReadCursors { after } => self.read_cursors(after),
            Effect::Acknowledged(sent) => {
                self.measures.on_acknowledged(&sent, &self.shared.metrics);
                if let Some(trace) = sent.trace {
                    traces::acknowledged(&trace);
                }
            }
            Effect::Mark { feed, mark } => {
                let request = MarkRequest {
                    feed,
                    subscriber: self.opened.subscriber.clone(),
                    mark,
                };
                let epoch = self.opened.epoch.clone();
                let inbox = self.opened.registration.inbox().clone();
                self.shared.marks.submit(request, epoch, inbox);
            }
            Effect::DeviceState(state) => self.shared.presence.report(self.keys(), state),
            Effect::Doubt => self.shared.epochs.doubt(
                &self.opened.epoch,
                "a page ended below a number that was sent",
            ),
            // A session that has closed needs no new token.
            Effect::Verify { .. } => {}
        }
    }

    /// Measures and traces notifications that were queued at `begun` or later and are written.
    fn on_sent(&mut self, sent: &[Arc<Notification>], begun: SystemTime) {
        if sent.is_empty() {
            return;
        }
        self.measures.on_sent(sent, &self.shared.metrics);
        for notification in sent {
            let Some(trace) = &notification.trace else {
                continue;
            };
            let (feed, seq) = (notification.feed.as_str(), notification.seq.get());
            if let Some(trace) = traces::delivered(trace, feed, seq, begun) {
                self.session.on_traced(notification, trace);
            }
        }
    }
}

/// Checks a new token. It must be for the same subscriber and name every feed of the session.
async fn verify(shared: &Shared, opened: &Opened, token: &str) -> Result<Instant, Unverified> {
    let admitted = shared.authenticator.admit(Some(token)).await;
    let grant = admitted.map_err(|error| {
        // Only the session that guesses is closed, not the others of its address.
        let (rates, block) = (&shared.rates, opened.block);
        if error.may_be_a_guess() && rates.failed_token(block, Instant::now()).is_err() {
            let retry_after_ms = TooFast::retry_after().as_millis() as u64;
            return Unverified::TooMany { retry_after_ms };
        }
        Unverified::Refused(error.to_string())
    })?;
    if grant.subscriber != opened.subscriber {
        let message = "the token is for another subscriber: reconnect with it";
        return Err(Unverified::Refused(message.into()));
    }
    // Every grant has the broadcast feed. A session that may mark it must keep that right.
    let is_kept = |open: &WelcomeFeed| {
        grant.feeds.contains(&open.feed)
            && (open.shared || grant.shared.as_ref() != Some(&open.feed))
    };
    if !opened.feeds.iter().all(is_kept) {
        let message = "the token does not name every feed of this session: reconnect with it";
        return Err(Unverified::Refused(message.into()));
    }
    Ok(Instant::now() + grant.remaining() + LEEWAY)
}

fn queue<S: AsyncRead + AsyncWrite + Unpin>(
    frame: Frame,
    socket: &mut Socket<S>,
    sent: &mut Vec<Arc<Notification>>,
) {
    match frame {
        Frame::Notification(notification) => {
            socket.put_notification(&notification);
            sent.push(notification);
        }
        Frame::Text(text) => socket.put_text(text),
        Frame::Ping => socket.put_ping(),
    }
}

/// The writes of outputs that are performed together. All of them share one timeout, because the
/// memory of their page is in use until the last one ends.
#[derive(Debug, Default)]
struct Writes {
    /// Bytes that were written.
    bytes: usize,
    /// Time for which the client was waited for.
    waited: Duration,
}

impl Writes {
    /// The rest of the timeout.
    fn left(&self) -> Duration {
        write_timeout(self.bytes).saturating_sub(self.waited)
    }

    /// Writes the queued frames. A client that does not take them in time is closed.
    async fn flush<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        socket: &mut Socket<S>,
    ) -> Result<(), SessionEnd> {
        self.bytes += socket.unsent_bytes();
        // Most writes end at once and need no timer.
        let written = match socket.flush().now_or_never() {
            Some(written) => Ok(written),
            None => {
                let begun = Instant::now();
                let written = tokio::time::timeout(self.left(), socket.flush()).await;
                self.waited += begun.elapsed();
                written
            }
        };
        match written {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(SessionEnd::Gone),
            Err(_) => Err(SessionEnd::Close(Close::Silent)),
        }
    }
}

fn write_timeout(bytes: usize) -> Duration {
    let by_size = bytes / WRITE_BYTES_PER_SECOND_MIN;
    WRITE_TIMEOUT + Duration::from_secs(by_size as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queued_frames_have_ten_seconds_and_more_if_they_are_large() {
        let seconds = [0, 32_767, 32_768, 300_000].map(|bytes| write_timeout(bytes).as_secs());
        assert_eq!(seconds, [10, 10, 11, 19]);
    }

    /// The seconds for which a client is waited for that takes a page of 256 KiB at this speed, and
    /// whether it gets the whole page.
    fn write_page(bytes_per_second: usize) -> (u64, bool) {
        let mut writes = Writes::default();
        let mut is_in_time = true;
        for _ in 0..4 {
            writes.bytes += WRITE_BYTES;
            let needed = Duration::from_secs((WRITE_BYTES / bytes_per_second) as u64);
            is_in_time &= needed <= writes.left();
            writes.waited += needed.min(writes.left());
        }
        (writes.waited.as_secs(), is_in_time)
    }

    #[test]
    fn one_timeout_holds_for_all_writes_of_a_page() {
        assert_eq!(write_page(16 * 1024), (16, true));
        assert_eq!(write_page(6 * 1024), (18, false));
        assert_eq!(write_page(1), (18, false));
    }
}
