//! `shopbell publish`: publishes test events or an import, and prints each event that RabbitMQ
//! confirmed.

mod sample;

use std::io::Read;
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;
use serde_json::value::RawValue;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::{Interval, MissedTickBehavior};

use self::sample::Import;
use super::terminal::{self, Format};
use super::{BROKER_TIMEOUT, UsageError, broker, read_body, within};
use crate::amqp::publisher::{Outgoing, Publisher};
use crate::config::{EVENT_BYTES_MAX_DEFAULT, Environment};
use crate::model::event::{self, Limits, Message};
use crate::model::feed::Feed;
use crate::telemetry::traces::Publishing;

/// Events that are published together if no rate is set. After a failure their state is unknown.
const CHUNK: usize = 256;
/// The default of `SHOPBELL_MAX_EVENT_BYTES`, because the setting of the service is not known here.
const EVENT_BYTES_MAX: usize = EVENT_BYTES_MAX_DEFAULT;
const CONTENT_TYPE: &str = "application/cloudevents+json";
/// The type with sample data.
const ORDER: &str = "order.created";
/// A hundred years, so that no clock overflows.
const EXPIRY_SECONDS_MAX: u64 = 3_155_760_000;
const NANOSECONDS_PER_SECOND: f64 = 1e9;

/// The events to publish.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The feed that stores the events
    #[arg(long, value_name = "FEED")]
    recipient: String,
    /// Send the events to everyone; the recipient must be the broadcast feed
    #[arg(long)]
    broadcast: bool,
    /// Number of events
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: u64,
    /// Events per second [default: as many as RabbitMQ confirms]
    #[arg(long, value_name = "PER_SECOND", value_parser = rate)]
    rate: Option<f64>,
    /// Type of the events
    #[arg(long = "type", default_value = ORDER, value_name = "TYPE")]
    event_type: String,
    /// The data, byte for byte, or `-` for stdin [default: a sample order, or no data for another
    /// type]
    #[arg(long, value_name = "JSON", allow_hyphen_values = true)]
    data: Option<String>,
    /// One id for all events, of which only the first is stored [default: a new id for each event]
    #[arg(long)]
    id: Option<String>,
    /// Source of the events
    #[arg(long, default_value = "/shopbell/publish")]
    source: String,
    /// A replay sends only the newest notification with this key
    #[arg(long, value_name = "KEY")]
    collapse_key: Option<String>,
    /// After this time the notifications are skipped
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(..=EXPIRY_SECONDS_MAX))]
    expires_in_seconds: Option<u64>,
    /// Publish an import of this many items instead: its start, each item, its end
    #[arg(long, value_name = "ITEMS", conflicts_with_all = ["count", "event_type", "data", "id", "collapse_key"],
        value_parser = clap::value_parser!(u64).range(..=sample::ITEMS_MAX))]
    import: Option<u64>,
    /// Number of items of the import that fail
    #[arg(long, default_value_t = 0, value_name = "ITEMS", requires = "import")]
    failed: u64,
    /// Publish events that will be dead-lettered too
    #[arg(long)]
    unchecked: bool,
}

/// Publishes the events, and prints a line for each event that RabbitMQ confirmed.
pub async fn run(arguments: Arguments, format: Format) -> anyhow::Result<()> {
    let plan = Plan::new(arguments, Environment::of_process().broadcast_feed()?)?;
    let total = plan.total();
    // A mistake in the arguments shows in the first event, without a broker.
    plan.event(0, None)?;
    let broker = broker()?;
    let exchange = broker.names.events();
    let mut publisher = within(
        BROKER_TIMEOUT,
        "opening a connection to publish",
        Publisher::open(&broker),
    )
    .await
    .context(
        "could not connect to RabbitMQ at AMQP_URL (is it running, are user, password and vhost correct?)",
    )?;

    let (mut ticks, chunk) = match plan.arguments.rate {
        Some(rate) => (Some(ticks(rate)), 1),
        None => (None, CHUNK),
    };
    for first in (0..total).step_by(chunk) {
        if let Some(ticks) = &mut ticks {
            ticks.tick().await;
        }
        let through = total.min(first.saturating_add(chunk as u64));
        let mut events = (first..through)
            .map(|index| plan.event(index, Some(&exchange)))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let recipient = &plan.arguments.recipient;
        let outgoing: Vec<_> = events
            .iter()
            .map(|event| {
                Outgoing::event(
                    exchange.clone(),
                    &event.event_type,
                    recipient,
                    event.body.clone(),
                )
            })
            .collect();
        publisher.publish(&outgoing).await.with_context(|| {
            format!(
                "{first} of {total} events were confirmed; the state of the next {} is unknown",
                outgoing.len()
            )
        })?;
        events.iter_mut().for_each(|event| drop(event.trace.take()));
        let lines = events
            .iter()
            .map(|event| plan.line(event, format))
            .collect::<anyhow::Result<String>>()?;
        terminal::write_lines(&lines)?;
    }
    publisher.close().await;
    Ok(())
}

fn ticks(rate: f64) -> Interval {
    let nanoseconds = (NANOSECONDS_PER_SECOND / rate).max(1.0);
    let mut ticks = tokio::time::interval(Duration::from_nanos(nanoseconds as u64));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text
        .parse()
        .ok()
        .filter(|rate| (0.001..=1e6).contains(rate));
    rate.ok_or_else(|| "must be a number from 0.001 to 1000000".into())
}

/// An event that is ready to publish.
struct Planned {
    id: String,
    /// It ends when RabbitMQ confirms the event.
    trace: Option<Publishing>,
    event_type: String,
    body: Vec<u8>,
}

/// The events to publish. Each is made just before it is published.
struct Plan {
    arguments: Arguments,
    data: Option<Vec<u8>>,
    import: Option<Import>,
    broadcast_feed: Feed,
}

impl Plan {
    fn new(arguments: Arguments, broadcast_feed: Feed) -> anyhow::Result<Self> {
        let import = arguments
            .import
            .map(|items| Import::new(items, arguments.failed));
        if let Some(items) = arguments.import.filter(|items| arguments.failed > *items) {
            let failed = arguments.failed;
            return Err(UsageError(format!(
                "--failed {failed} is more than the {items} items of the import"
            ))
            .into());
        }
        let data = match arguments.data.as_deref() {
            Some("-") => {
                // One byte more than the bound, so that the check below fails.
                let limit = EVENT_BYTES_MAX as u64 + 1;
                let limit = if arguments.unchecked { u64::MAX } else { limit };
                let data = read_body(std::io::stdin().lock().take(limit));
                Some(data.context("reading data from stdin")?)
            }
            Some(data) => Some(data.as_bytes().to_vec()),
            None => None,
        };
        if let Some(data) = data
            .as_deref()
            .filter(|data| !arguments.unchecked && data.len() <= EVENT_BYTES_MAX)
            && let Err(error) = serde_json::from_slice::<&RawValue>(data)
        {
            return Err(UsageError(format!("--data is not JSON: {error}")).into());
        }
        Ok(Self {
            arguments,
            data,
            import,
            broadcast_feed,
        })
    }

    fn total(&self) -> u64 {
        self.import
            .as_ref()
            .map_or(self.arguments.count, Import::total)
    }

    /// Makes an event. It is traced if an exchange is given.
    fn event(&self, index: u64, exchange: Option<&str>) -> anyhow::Result<Planned> {
        let (event_type, data) = match &self.import {
            Some(import) => {
                let (event_type, data) = import.event(index);
                (event_type, Some(data.into_bytes()))
            }
            None if self.data.is_none() && self.arguments.event_type == ORDER => {
                (ORDER, Some(sample::order()?.into_bytes()))
            }
            None => (self.arguments.event_type.as_str(), self.data.clone()),
        };
        let id = self
            .arguments
            .id
            .clone()
            .unwrap_or_else(|| uuid::Uuid::now_v7().to_string());
        let trace = exchange.and_then(|exchange| Publishing::begin(exchange, event_type, &id));
        let body = self.body(&id, event_type, trace.as_ref(), data.as_deref())?;
        if !self.arguments.unchecked {
            let content_type = Some(CONTENT_TYPE);
            let message = Message {
                content_type,
                content_encoding: None,
                headers: vec![],
                body: &body,
            };
            let checked = event::parse(
                &message,
                Limits {
                    event_bytes_max: EVENT_BYTES_MAX,
                },
            )
            .and_then(|event| event.check_audience(&self.broadcast_feed));
            checked.map_err(|rejection| {
                UsageError(format!("this event would be a dead letter: {rejection} (--unchecked publishes it anyway)"))
            })?;
        }
        Ok(Planned {
            id,
            trace,
            event_type: event_type.into(),
            body,
        })
    }

    /// The event in the JSON format of CloudEvents. The data is appended as bytes, so that they
    /// stay the same.
    fn body(
        &self,
        id: &str,
        event_type: &str,
        trace: Option<&Publishing>,
        data: Option<&[u8]>,
    ) -> anyhow::Result<Vec<u8>> {
        let now = OffsetDateTime::now_utc();
        let expiry = self
            .arguments
            .expires_in_seconds
            .map(|seconds| now + Duration::from_secs(seconds));
        let mut body = serde_json::to_vec(&Envelope {
            specversion: "1.0",
            id,
            source: &self.arguments.source,
            event_type,
            recipient: &self.arguments.recipient,
            time: now.format(&Rfc3339)?,
            expirytime: expiry.map(|at| at.format(&Rfc3339)).transpose()?,
            collapsekey: self.arguments.collapse_key.as_deref(),
            traceparent: trace.map(ToString::to_string),
            broadcast: self.arguments.broadcast,
        })?;
        if let Some(data) = data {
            body.pop();
            body.extend_from_slice(br#","data":"#);
            body.extend_from_slice(data);
            body.push(b'}');
        }
        Ok(body)
    }

    fn line(&self, event: &Planned, format: Format) -> anyhow::Result<String> {
        let (id, event_type, recipient) = (&event.id, &event.event_type, &self.arguments.recipient);
        Ok(match format {
            Format::Text => terminal::text_line(&format!("{event_type} {id} {recipient}")),
            Format::Json => terminal::json_line(&Confirmed {
                id,
                event_type,
                recipient,
                source: &self.arguments.source,
            })?,
        })
    }
}

#[derive(Serialize)]
struct Envelope<'a> {
    specversion: &'static str,
    id: &'a str,
    source: &'a str,
    #[serde(rename = "type")]
    event_type: &'a str,
    recipient: &'a str,
    time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    expirytime: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    collapsekey: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    broadcast: bool,
}

#[derive(Serialize)]
struct Confirmed<'a> {
    id: &'a str,
    #[serde(rename = "type")]
    event_type: &'a str,
    recipient: &'a str,
    source: &'a str,
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    #[test]
    fn published_events_meet_the_contract() {
        let lines: [&[&str]; 4] = [
            &["--count", "50"],
            &[
                "--type",
                "custom.thing",
                "--collapse-key",
                "k",
                "--expires-in-seconds",
                "60",
            ],
            &["--import", "20", "--failed", "7"],
            &["--import", "0"],
        ];
        for line in lines {
            let plan = plan(line).unwrap();
            assert!(
                (0..plan.total()).all(|index| plan.event(index, None).is_ok()),
                "{line:?}"
            );
        }
    }

    #[test]
    fn data_is_published_byte_for_byte() {
        let data = r#"{ "b":1e400, "a":"\ud800",  "b":2}"#;
        let plan = plan(&["--type", "custom.thing", "--data", data, "--id", "e-1"]).unwrap();
        let body = String::from_utf8(plan.event(0, None).unwrap().body).unwrap();
        assert!(body.ends_with(&format!(r#","data":{data}}}"#)), "{body}");
        assert!(body.contains(r#""id":"e-1""#));
    }

    #[test]
    fn a_bad_event_is_rejected_unless_unchecked() {
        let cases: [(&[&str], &str); 7] = [
            (&["--data", "{"], "not JSON"),
            (&["--data", r#"1,"id":"x""#], "not JSON"),
            (&["--data", "{}"], "invalid_data"),
            (&["--recipient", "a b"], "invalid_recipient"),
            (&["--type", ""], "invalid_envelope"),
            (&["--recipient", "all"], "invalid_recipient"),
            (&["--broadcast"], "invalid_recipient"),
        ];
        for (line, expected) in cases {
            let error = plan(line)
                .and_then(|plan| plan.event(0, None).map(drop))
                .unwrap_err();
            assert!(
                error.is::<UsageError>() && error.to_string().contains(expected),
                "{error}"
            );
            assert!(
                plan(&[line, &["--unchecked"]].concat())
                    .unwrap()
                    .event(0, None)
                    .is_ok()
            );
        }
        assert!(plan(&["--import", "3", "--failed", "4"]).is_err());
    }

    #[test]
    fn a_line_names_the_confirmed_event() {
        let plan = plan(&["--type", "a\x1b", "--unchecked", "--id", "e-1"]).unwrap();
        let event = plan.event(0, None).unwrap();
        assert_eq!(plan.line(&event, Format::Text).unwrap(), "a\\u{1b} e-1 m\n");
        let json = r#"{"id":"e-1","type":"a\u001b","recipient":"m","source":"/shopbell/publish"}"#;
        assert_eq!(
            plan.line(&event, Format::Json).unwrap(),
            format!("{json}\n")
        );
    }

    fn plan(line: &[&str]) -> anyhow::Result<Plan> {
        let recipient: &[&str] = if line.contains(&"--recipient") {
            &[]
        } else {
            &["--recipient", "m"]
        };
        Plan::new(
            Line::try_parse_from([&["publish"], recipient, line].concat())?.arguments,
            Feed::of_everyone(),
        )
    }
}
