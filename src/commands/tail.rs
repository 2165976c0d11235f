//! `shopbell tail`: a client of `shopbell.v1` in the terminal.
//!
//! It acks only printed notifications, reconnects as the close code demands, and checks by the
//! numbers that it missed nothing.

mod connection;
mod frame;
mod line;
mod loss;
mod received;
mod session;

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::connection::Target;
use self::loss::Loss;
use self::session::{End, Tail};
use super::UsageError;
use super::terminal::{self, Format};
use crate::model::feed::{Device, Epoch, Feed, Seq};
use crate::retry::{self, Backoff};

/// Read if `--token` is not given, because other users of the machine can see a command line.
const TOKEN_VARIABLE: &str = "SHOPBELL_TOKEN";
/// The command fails if no service has sent `welcome` within this time, because the URL is probably
/// wrong.
const FIRST_WELCOME_TIMEOUT: Duration = Duration::from_secs(30);
/// A session that lasts longer resets the waits between attempts.
const STABLE_SESSION: Duration = Duration::from_secs(5);
/// The exit status of a process that SIGINT has ended: 128 + 2.
const INTERRUPTED: i32 = 130;

/// The session, and when to end it.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// URL of the service
    #[arg(
        long,
        default_value = "ws://127.0.0.1:8080/v1/ws",
        value_name = "ws://HOST:PORT"
    )]
    url: String,
    /// Token of the subscriber [default: the environment variable SHOPBELL_TOKEN]
    #[arg(long, value_name = "JWT")]
    token: Option<String>,
    /// Device of the subscriber, which has its own cursor
    #[arg(long, default_value = "", hide_default_value = true, value_parser = Device::parse)]
    device: Device,
    /// Begin this feed after this number instead of the cursor, with the epoch if the number was
    /// stored; repeatable
    #[arg(long, value_name = "FEED:SEQ[:EPOCH]")]
    after: Vec<After>,
    /// Exit after this many notifications
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Exit when all feeds have caught up
    #[arg(long)]
    until_caught_up: bool,
    /// Send no acks: the service sends one window at most, and sends it again next time
    #[arg(long)]
    no_ack: bool,
}

/// Prints notifications until a signal, the end that the arguments set, or a close code that
/// forbids to reconnect.
pub async fn run(mut arguments: Arguments, format: Format) -> anyhow::Result<()> {
    let token = arguments
        .token
        .take()
        .or_else(|| std::env::var(TOKEN_VARIABLE).ok())
        .filter(|token| !token.trim().is_empty());
    let token = token
        .ok_or_else(|| UsageError(format!("no token: use --token, or set {TOKEN_VARIABLE}")))?;
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
        let (reason, retry_after) = match loss {
            Loss::Final(reason) => anyhow::bail!(reason),
            Loss::Temporary {
                reason,
                retry_after,
            } => (reason, retry_after),
        };
        if !tail.was_welcomed && Instant::now() > first_welcome_by {
            anyhow::bail!(
                "{reason}; no session within {} s: is the service running at --url?",
                FIRST_WELCOME_TIMEOUT.as_secs()
            );
        }
        if began.elapsed() > STABLE_SESSION {
            backoff.reset();
        }
        let wait = backoff.next_wait().max(retry_after.unwrap_or_default());
        terminal::write_message(&format!(
            "{reason}; next attempt in {:.1} s",
            wait.as_secs_f64()
        ));
        if !retry::sleep(wait, &stop).await {
            return Ok(());
        }
    }
}

/// The start of a feed, from the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
struct After {
    feed: Feed,
    seq: Seq,
    epoch: Option<String>,
}

impl std::str::FromStr for After {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_epoch = |text: &&str| text.starts_with(|first: char| first.is_ascii_alphabetic());
        let (rest, epoch) = match text.rsplit_once(':').filter(|(_, last)| is_epoch(last)) {
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
            .ok_or("SEQ must be a whole number of at least 0")?;
        Ok(Self { feed, seq, epoch })
    }
}

/// Handles SIGINT and SIGTERM. The first one closes the session, the second one exits at once.
fn stop_on_signal() -> anyhow::Result<CancellationToken> {
    let (mut interrupt, mut terminate) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    let stop = CancellationToken::new();
    let on_signal = stop.clone();
    tokio::spawn(async move {
        for _ in 0..2 {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if on_signal.is_cancelled() {
                std::process::exit(INTERRUPTED);
            }
            on_signal.cancel();
        }
    });
    Ok(stop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_is_a_feed_a_number_and_perhaps_an_epoch() {
        let start = |text: &str| {
            let After { feed, seq, epoch } = text.parse()?;
            Ok::<_, String>((feed.to_string(), seq.get(), epoch))
        };
        assert_eq!(start("a/b-1:17"), Ok(("a/b-1".into(), 17, None)));
        assert_eq!(start("m:17:e9"), Ok(("m".into(), 17, Some("e9".into()))));
        for bad in ["m", "m:", ":1", "m:-1", "m:x", "a b:1", "m:1:e-9", "m:e9"] {
            assert!(start(bad).is_err(), "{bad}");
        }
    }
}
