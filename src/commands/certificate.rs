//! `shopbell certificate`: prints what became of an event.

use std::time::Duration;

use anyhow::Context;

use super::terminal::{self, Format};
use super::within;
use crate::config::Environment;
use crate::model::feed::Feed;
use crate::store::certificates::{self, Certificate, Fact, Place};

/// Bound on the wait for Postgres.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The event.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The recipient of the event
    #[arg(value_parser = Feed::parse)]
    feed: Feed,
    /// The id of the event
    id: String,
    /// The source of the event
    #[arg(long)]
    source: String,
}

/// Prints the certificate. Fails if the event is not stored.
pub async fn run(arguments: &Arguments, format: Format) -> anyhow::Result<()> {
    let Arguments { feed, id, source } = arguments;
    let options = Environment::of_process().database()?;
    let finding = certificates::find(&options, feed, Place::Event(source, id));
    let found = within(TIMEOUT, "reading a certificate", finding).await;
    let hint = "could not read the database at DATABASE_URL (is it running, is it migrated?)";
    let certificate = found.context(hint)?.with_context(|| {
        format!("{feed} has no event {id} of {source}: it is not stored yet, became a dead letter, or retention has removed it")
    })?;
    terminal::write_lines(&match format {
        Format::Text => lines(&certificate),
        Format::Json => terminal::json_line(&certificate)?,
    })
}

/// The lines of a certificate for people.
pub fn lines(certificate: &Certificate) -> String {
    let Certificate {
        feed,
        seq,
        event,
        stored_at,
        delivered,
        acked_by,
        read,
        handled,
        settled,
        expired,
        undelivered,
        overdue,
    } = certificate;
    let mut lines = vec![format!(
        "#{seq} of {feed}: {event}, stored {}",
        super::inspect::at(*stored_at)
    )];
    let facts = [
        ("delivered", delivered),
        ("read", read),
        ("handled", handled),
        ("settled", settled),
        ("expired", expired),
        ("undelivered in time", undelivered),
        ("overdue", overdue),
    ];
    lines.extend(
        facts
            .into_iter()
            .filter_map(|(name, fact)| Some(fact_line(name, fact.as_ref()?))),
    );
    lines.extend(acked_by.iter().map(|reader| match reader.device.as_str() {
        "" => format!("acked by {}", reader.subscriber),
        device => format!("acked by {} on {device}", reader.subscriber),
    }));
    lines.iter().map(|line| terminal::text_line(line)).collect()
}

fn fact_line(name: &str, fact: &Fact) -> String {
    let at = fact
        .at
        .map(|at| format!(" {}", super::inspect::at(at)))
        .unwrap_or_default();
    let by = fact
        .subscriber
        .as_ref()
        .map(|by| format!(" by {by}"))
        .unwrap_or_default();
    let device = fact
        .device
        .as_ref()
        .map(|on| format!(" on {on}"))
        .unwrap_or_default();
    format!("{name}{at}{by}{device}")
}
