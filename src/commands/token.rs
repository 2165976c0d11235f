//! `shopbell token`: mints a token for development, with the secret that `serve` checks tokens with.

use std::time::Duration;

use anyhow::Context;
use serde::Serialize;

use super::terminal::{self, Format};
use crate::auth::Tokens;
use crate::config::Environment;
use crate::feed::{Feed, Subscriber};

/// Ten years: enough for any development, and no overflow of a clock.
const TTL_SECONDS_MAX: u64 = 315_360_000;

/// What the token says.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Who reads: the token's `sub`.
    #[arg(long, value_parser = Subscriber::parse)]
    subscriber: Subscriber,
    /// A feed it may read, repeatable; without any, the one named like the subscriber.
    #[arg(long = "feed", value_name = "FEED", value_parser = Feed::parse)]
    feeds: Vec<Feed>,
    /// How long it is good for.
    #[arg(long, default_value_t = 3_600, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=TTL_SECONDS_MAX))]
    ttl_seconds: u64,
}

#[derive(Serialize)]
struct Minted {
    token: String,
}

/// Writes the token, alone.
pub fn run(arguments: &Arguments, format: Format) -> anyhow::Result<()> {
    let tokens = Tokens::new(&Environment::of_process().jwt()?);
    let ttl = Duration::from_secs(arguments.ttl_seconds);
    let token = tokens.mint(&arguments.subscriber, &arguments.feeds, ttl).context("could not sign the token")?;
    let line = match format {
        Format::Text => terminal::text_line(&token),
        Format::Json => terminal::json_line(&Minted { token })?,
    };
    terminal::write_lines(&line)
}
