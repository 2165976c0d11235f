//! `shopbell inspect`: prints the state of a feed, so that support can find an order. Prints the
//! data of a notification only with `--data`.

use std::time::Duration;

use anyhow::Context;
use serde::Serialize;
use serde_json::value::RawValue;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::terminal::{self, Format};
use super::{certificate, within};
use crate::config::Environment;
use crate::model::feed::{Feed, Seq};
use crate::store::certificates::{self, Certificate, Place};
use crate::store::inspect::{self, Cursor, Envelope, FeedState, Import};

/// Bound on the wait for Postgres.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The feed or notification to print.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The feed, which is the recipient of its events
    #[arg(value_parser = Feed::parse)]
    feed: Feed,
    /// Print only the notification with this number
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..))]
    seq: Option<i64>,
    /// Print the data too, which may be personal
    #[arg(long, requires = "seq")]
    data: bool,
}

/// Prints the feed or the notification. Fails if it does not exist.
pub async fn run(arguments: &Arguments, format: Format) -> anyhow::Result<()> {
    let Arguments { feed, seq, data } = arguments;
    let options = Environment::of_process().database()?;
    let hint = "could not read the database at DATABASE_URL (is it running, is it migrated?)";
    let lines = match seq.and_then(Seq::new) {
        Some(seq) => {
            let found = within(
                TIMEOUT,
                "reading a notification",
                inspect::notification(&options, feed, seq),
            );
            let found = found.await.context(hint)?;
            let (envelope, text) =
                found.with_context(|| format!("there is no notification #{seq} in {feed}"))?;
            let certified = certificates::find(&options, feed, Place::Seq(seq));
            let certificate = within(TIMEOUT, "reading a certificate", certified).await;
            let certificate = certificate.context(hint)?;
            let data = if *data {
                Some(text.as_deref().unwrap_or("null"))
            } else {
                None
            };
            notification_lines(&envelope, certificate.as_ref(), data, format)?
        }
        None => {
            let state = within(TIMEOUT, "reading a feed", inspect::feed(&options, feed))
                .await
                .context(hint)?;
            let state = state.with_context(|| {
                format!("there is no feed {feed}: it has no notification, and no subscriber has connected to it")
            })?;
            match format {
                Format::Text => feed_lines(&state),
                Format::Json => terminal::json_line(&state)?,
            }
        }
    };
    terminal::write_lines(&lines)
}

#[derive(Serialize)]
struct WithData<'a> {
    notification: &'a Envelope,
    certificate: Option<&'a Certificate>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a RawValue>,
}

fn notification_lines(
    notification: &Envelope,
    certificate: Option<&Certificate>,
    data: Option<&str>,
    format: Format,
) -> anyhow::Result<String> {
    match format {
        Format::Text => {
            let data = data
                .into_iter()
                .flat_map(str::lines)
                .map(terminal::text_line);
            let certificate = certificate.map(certificate::lines).unwrap_or_default();
            Ok(terminal::text_line(&envelope(notification))
                + &certificate
                + &data.collect::<String>())
        }
        Format::Json => {
            let data = data
                .map(serde_json::from_str)
                .transpose()
                .context("the stored data is not JSON")?;
            terminal::json_line(&WithData {
                notification,
                certificate,
                data,
            })
        }
    }
}

fn feed_lines(state: &FeedState) -> String {
    let FeedState {
        feed,
        epoch,
        last,
        trimmed,
        unread,
        unhandled,
        acked,
        undelivered,
        ..
    } = state;
    let stored = last - trimmed;
    let mut lines = vec![
        format!(
            "{feed}: {stored} notifications, {unread} unread, {unhandled} unhandled (epoch {epoch})"
        ),
        format!("undelivered: {undelivered} (the highest ack of all cursors is #{acked})"),
    ];
    if *trimmed > 0 {
        lines.push(format!("removed by retention: all up to #{trimmed}"));
    }
    lines.extend(
        state
            .oldest_undelivered
            .iter()
            .map(|oldest| format!("oldest undelivered: {}", envelope(oldest))),
    );
    lines.extend(state.cursors.iter().map(cursor));
    lines.extend(state.imports.iter().map(import));
    lines.extend(state.newest.iter().map(envelope));
    lines.iter().map(|line| terminal::text_line(line)).collect()
}

fn envelope(envelope: &Envelope) -> String {
    let Envelope {
        seq,
        id,
        source,
        event,
        time,
        stored_at,
        ..
    } = envelope;
    let mut line = format!(
        "#{seq}  {}  {event}  {id} of {source}, stored {}",
        at(*time),
        at(*stored_at)
    );
    line += if envelope.delivered {
        ", delivered"
    } else {
        ", not delivered"
    };
    for (change, time) in [
        ("read", envelope.read_at),
        ("handled", envelope.handled_at),
        ("expires", envelope.expires_at),
    ] {
        line += &time
            .map(|time| format!(", {change} {}", at(time)))
            .unwrap_or_default();
    }
    line + &envelope
        .handled_by
        .iter()
        .map(|subscriber| format!(" by {subscriber}"))
        .collect::<String>()
}

fn cursor(cursor: &Cursor) -> String {
    let Cursor {
        subscriber,
        device,
        acked,
        undelivered,
        oldest_undelivered_at,
        updated_at,
        seen_at,
    } = cursor;
    let device = if device.is_empty() {
        String::new()
    } else {
        format!(" on {device}")
    };
    let mut line = format!("cursor of {subscriber}{device}: #{acked}, {undelivered} undelivered");
    line += &oldest_undelivered_at
        .map(|oldest| format!(" since {}", at(oldest)))
        .unwrap_or_default();
    line + &format!(", moved {}, seen {}", at(*updated_at), at(*seen_at))
}

fn import(import: &Import) -> String {
    let Import {
        import_id,
        done,
        failed,
        total,
        started_at,
        updated_at,
    } = import;
    let total = total.map_or_else(|| "?".into(), |total| total.to_string());
    let (started_at, updated_at) = (at(*started_at), at(*updated_at));
    format!(
        "import {import_id}: {done} of {total} done, {failed} failed, started {started_at}, updated {updated_at}"
    )
}

pub(super) fn at(time: OffsetDateTime) -> String {
    let time = time.replace_nanosecond(0).unwrap_or(time);
    time.format(&Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn a_notification_is_one_line_without_its_data() {
        let text = envelope(&Envelope {
            seq: 7,
            id: "5f0c".into(),
            source: "/checkout".into(),
            event: "order.created".into(),
            time: datetime!(2026-11-21 10:00:00 UTC),
            stored_at: datetime!(2026-11-21 10:00:01.5 UTC),
            expires_at: None,
            delivered: true,
            read_at: None,
            handled_at: Some(datetime!(2026-11-21 10:01:00 UTC)),
            handled_by: Some("merchant-42".into()),
        });
        let line = "#7  2026-11-21T10:00:00Z  order.created  5f0c of /checkout, stored 2026-11-21T10:00:01Z, \
                    delivered, handled 2026-11-21T10:01:00Z by merchant-42";
        assert_eq!(text, line);
    }
}
