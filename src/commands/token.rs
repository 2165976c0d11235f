//! `shopbell token`: signs a token for development, with the key of `serve`.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::UsageError;
use super::terminal::{self, Format};
use crate::config::Environment;
use crate::gateway::auth::{Recipients, Right, Tokens};
use crate::model::feed::{Feed, Subscriber};

/// Ten years, so that no clock overflows.
const TTL_SECONDS_MAX: u64 = 315_360_000;

/// The claims of the token.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The subscriber: `sub` of the token
    #[arg(long, value_parser = Subscriber::parse)]
    subscriber: Subscriber,
    /// A feed that the token may read; repeatable [default: the feed with the name of the
    /// subscriber]
    #[arg(long = "feed", value_name = "FEED", value_parser = Feed::parse)]
    feeds: Vec<Feed>,
    /// Allow to mark notifications of the broadcast feed as read or handled
    #[arg(long)]
    broadcast: bool,
    /// A recipient to whom the token may publish by HTTP, or a prefix that ends in `*`; repeatable
    #[arg(long, value_name = "RECIPIENT")]
    publish: Vec<String>,
    /// Lifetime of the token
    #[arg(long, default_value_t = 3_600, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=TTL_SECONDS_MAX))]
    ttl_seconds: u64,
}

#[derive(Serialize)]
struct Minted {
    token: String,
}

/// Prints the token only.
pub fn run(arguments: &Arguments, format: Format) -> anyhow::Result<()> {
    if !arguments.publish.is_empty() {
        Recipients::parse(&arguments.publish)
            .map_err(|error| UsageError(format!("--publish: {error}")))?;
    }
    check_audience(arguments, &Environment::of_process().broadcast_feed()?)?;
    let tokens = Tokens::new(&Environment::of_process().jwt()?, &Arc::default());
    let right = if arguments.broadcast {
        Right::Broadcast
    } else {
        Right::None
    };
    let ttl = Duration::from_secs(arguments.ttl_seconds);
    let token = tokens
        .mint(
            &arguments.subscriber,
            &arguments.feeds,
            &arguments.publish,
            right,
            ttl,
        )
        .map_err(super::cannot_sign)?;
    let line = match format {
        Format::Text => terminal::text_line(&token),
        Format::Json => terminal::json_line(&Minted { token })?,
    };
    terminal::write_lines(&line)
}

/// Rejects arguments of a token that `serve` would reject, or that would allow less than it seems.
fn check_audience(arguments: &Arguments, broadcast_feed: &Feed) -> anyhow::Result<()> {
    let problem = if arguments.subscriber.as_str() == broadcast_feed.as_str() {
        "--subscriber is the name of the broadcast feed (SHOPBELL_BROADCAST_FEED): no merchant can have this id"
    } else if !arguments.broadcast && arguments.feeds.contains(broadcast_feed) {
        "--feed names the broadcast feed (SHOPBELL_BROADCAST_FEED), which every token reads: use --broadcast for a token that \
         marks its notifications"
    } else if arguments.feeds.iter().any(Feed::is_of_a_canary) {
        "--feed begins with shopbell-canary/, which is reserved for Shopbell"
    } else {
        return Ok(());
    };
    Err(UsageError(problem.into()).into())
}
