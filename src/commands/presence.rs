//! `shopbell presence`: prints which devices of a feed have a session, and whether they can ring.

use std::time::Duration;

use anyhow::Context;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::terminal::{self, Format};
use super::within;
use crate::config::Environment;
use crate::model::feed::Feed;
use crate::store::pools::Pools;
use crate::store::presence::{self, DevicePresence, FeedPresence};

/// Bound on the wait for Postgres.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The feed to print.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The feed, which is the recipient of its events
    #[arg(value_parser = Feed::parse)]
    feed: Feed,
}

/// Prints the presence of the feed.
pub async fn run(arguments: &Arguments, format: Format) -> anyhow::Result<()> {
    let options = Environment::of_process().database()?;
    let pool = Pools::lazy(&options, 1, &Default::default()).upkeep;
    let read = presence::read(&pool, &arguments.feed);
    let presence = within(TIMEOUT, "reading the presence of a feed", read)
        .await
        .context("could not read the database at DATABASE_URL (is it running, is it migrated?)")?;
    terminal::write_lines(&match format {
        Format::Text => lines(&presence),
        Format::Json => terminal::json_line(&presence)?,
    })
}

fn lines(presence: &FeedPresence) -> String {
    let FeedPresence {
        feed,
        online,
        sessions,
        devices,
    } = presence;
    let state = if *online { "online" } else { "offline" };
    let first = format!("{feed}: {state}, {sessions} sessions");
    let lines = std::iter::once(first).chain(devices.iter().map(line));
    lines.map(|line| terminal::text_line(&line)).collect()
}

fn line(device: &DevicePresence) -> String {
    let name = match device.device.as_str() {
        "" => device.subscriber.clone(),
        name => format!("{} on {name}", device.subscriber),
    };
    if !device.online {
        return format!("{name}: offline, last seen {}", at(device.last_seen));
    }
    let mut line = format!("{name}: online, {} sessions", device.sessions);
    line += &device
        .connected_at
        .map(|since| format!(" since {}", at(since)))
        .unwrap_or_default();
    let can_ring = device.can_ring.as_deref().unwrap_or("unknown");
    line + &format!(", can ring: {can_ring}")
}

fn at(time: OffsetDateTime) -> String {
    let time = time.replace_nanosecond(0).unwrap_or(time);
    time.format(&Rfc3339).unwrap_or_default()
}
