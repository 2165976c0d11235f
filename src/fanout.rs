//! Hands a stored batch to every replica, this one included, and receives the others'.
//!
//! A hint only wakes sessions and saves them a read: one that is lost is made good by the sweep, so hints are neither
//! persistent nor repeated, and each replica's queue of them is bounded.

pub mod hub;

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use serde::Deserialize;
use serde_json::value::RawValue;
use time::OffsetDateTime;
use tokio_tungstenite::tungstenite::Utf8Bytes;
use tokio_util::sync::CancellationToken;

use crate::amqp::consumer::{Acknowledger, Consumer};
use crate::amqp::delivery::Delivery;
use crate::amqp::publisher::{Outgoing, Publisher};
use crate::amqp::{Broker, BrokerError};
use crate::fanout::hub::Hub;
use crate::model::feed::{Epoch, Feed, Seq, Version};
use crate::model::mark::StateFrame;
use crate::model::notification::{Newest, Notification};
use crate::retry::Backoff;
use crate::store::append::Committed;
use crate::store::epoch::known::Epochs;
use crate::telemetry::health::{Health, HintsRefused};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::traces::{self, Origin};

/// Most batches taken from the broker and not yet spread: each is handled at once.
const PREFETCH: u16 = 64;

/// What there is to tell of a batch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hints {
    /// The epoch of all numbers; `None` where a replica of an earlier version told of them.
    pub epoch: Option<Epoch>,
    /// New, ready to send.
    pub stored: Vec<Arc<Notification>>,
    /// Stored before: who has not got it reads it as it is stored.
    pub again: Vec<(Feed, Seq)>,
    /// What people said.
    pub changed: Vec<Arc<StateFrame>>,
}

impl Hints {
    fn len(&self) -> usize {
        self.stored.len() + self.again.len() + self.changed.len()
    }
}

/// How long a batch waits for the broker to take its hints. In an alarm the broker takes none, and an alarm that the ingest
/// queue raised only ends when ingest goes on: so then the other replicas' sweeps must do without.
const HAND_ON_TIMEOUT: Duration = Duration::from_secs(1);
/// A larger frame is not sent along: its sessions read it. So the hints of the few batches that travel together stay below
/// RabbitMQ's bound (8 MiB, as the README has it), for a batch takes no event beyond its first MiB.
const FRAME_BYTES_MAX: usize = 64 * 1024;

/// How long it is believed that there is another gateway to tell, or none. One that starts reads by its sweep until then.
const BELIEF_TIME: Duration = Duration::from_secs(1);

/// A batch that is stored: its hints, and the tag that acknowledges all of it and what came before. Made only of the proof that the
/// store gives.
#[derive(Debug)]
pub struct Stored {
    hints: Hints,
    through: u64,
}

impl Stored {
    /// Of deliveries that are committed; `None` where there are none.
    pub fn new(committed: Committed<Delivery>, hints: Hints) -> Option<Self> {
        let through = committed.origins().map(Delivery::tag).max()?;
        Some(Self { hints, through })
    }
}

/// Proof that batches are committed and their hints published: only [`HintPublisher::publish`] makes one, of what is
/// [`Stored`], and it acknowledges these and no others.
#[derive(Debug)]
pub struct Published {
    through: u64,
}

impl Published {
    /// The tag of the last delivery that was handed on.
    pub fn through(&self) -> u64 {
        self.through
    }

    /// Tells RabbitMQ that all of them are done.
    pub async fn acknowledge(self, acknowledger: &Acknowledger) -> Result<(), BrokerError> {
        acknowledger.acknowledge_through(self.through).await
    }
}

/// This replica's part in the fan-out.
#[derive(Debug)]
pub struct Fanout {
    hub: Arc<Hub>,
    epochs: Arc<Epochs>,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    exchange: String,
    replica: String,
    /// This replica is one of the gateways that RabbitMQ counts.
    receives: AtomicBool,
}

impl Fanout {
    /// A replica knows its own hints again by its random name.
    pub fn new(
        hub: Arc<Hub>,
        epochs: Arc<Epochs>,
        metrics: Arc<Metrics>,
        health: Arc<Health>,
        broker: &Broker,
    ) -> Self {
        let replica = uuid::Uuid::new_v4().simple().to_string();
        let (exchange, receives) = (broker.names.fanout(), AtomicBool::new(false));
        Self {
            hub,
            epochs,
            metrics,
            health,
            exchange,
            replica,
            receives,
        }
    }

    /// Wakes this replica's sessions. Hints of another epoch are dropped, and the database is asked for the present one: if
    /// there is a newer epoch, sessions find by the sweep what was dropped.
    pub fn announce(&self, hints: &Hints) {
        match &hints.epoch {
            Some(epoch) if self.epochs.is_current(epoch) => {
                self.hub.announce(epoch, &hints.stored);
                self.hub.publish_states(epoch, &hints.changed);
                let again = |(feed, seq): &(Feed, Seq)| {
                    (
                        feed.clone(),
                        Newest {
                            seq: *seq,
                            ..Newest::default()
                        },
                    )
                };
                self.hub
                    .publish_newest(epoch, &hints.again.iter().map(again).collect::<Vec<_>>());
            }
            Some(_) => self.epochs.ask(),
            // The frames may be of any epoch. The numbers only make sessions read pages, which name their epoch.
            None => {
                let Some(epoch) = self.epochs.current() else {
                    return;
                };
                let newest = |feed: &Feed, seq, version| (feed.clone(), Newest { seq, version });
                let stored = hints
                    .stored
                    .iter()
                    .map(|stored| newest(&stored.feed, stored.seq, Version::ZERO));
                let again = hints
                    .again
                    .iter()
                    .map(|(feed, seq)| newest(feed, *seq, Version::ZERO));
                let changed = hints
                    .changed
                    .iter()
                    .map(|change| newest(&change.feed, Seq::ZERO, change.version));
                self.hub.publish_newest(
                    &epoch,
                    &stored.chain(again).chain(changed).collect::<Vec<_>>(),
                );
            }
        }
    }

    /// Receives hints until told to stop. A broker that is away is waited for; meanwhile the sweep serves.
    pub async fn receive(&self, broker: &Broker, stop: CancellationToken) {
        let mut backoff = Backoff::default();
        while !stop.is_cancelled() {
            let ended = self
                .receive_one_incarnation(broker, &mut backoff, &stop)
                .await;
            self.receives.store(false, Ordering::Relaxed);
            let Err(error) = ended else { return };
            let wait = backoff.next_wait();
            self.metrics.retries.inc("fanout");
            tracing::warn!(%error, wait_ms = wait.as_millis(), "the fan-out consumer ended; it is opened again");
            stop.run_until_cancelled(tokio::time::sleep(wait)).await;
        }
    }

    async fn receive_one_incarnation(
        &self,
        broker: &Broker,
        backoff: &mut Backoff,
        stop: &CancellationToken,
    ) -> Result<(), BrokerError> {
        let Some(opened) = stop
            .run_until_cancelled(Consumer::fanout(broker, PREFETCH))
            .await
        else {
            return Ok(());
        };
        let mut consumer = opened?;
        self.receives.store(true, Ordering::Relaxed);
        let _up = self.health.fanout.up();
        let received = stop
            .run_until_cancelled(self.receive_from(&mut consumer, backoff))
            .await;
        consumer.close().await;
        received.unwrap_or(Ok(()))
    }

    /// Receives until the consumer ends, which is an error.
    async fn receive_from(
        &self,
        consumer: &mut Consumer,
        backoff: &mut Backoff,
    ) -> Result<(), BrokerError> {
        let acknowledger = consumer.acknowledger();
        loop {
            let delivery = consumer.next().await?;
            let tag = delivery.tag();
            if delivery.app_id() != Some(&self.replica) {
                self.spread(delivery.body());
            }
            acknowledger.acknowledge_through(tag).await?;
            backoff.reset();
        }
    }

    fn spread(&self, body: &[u8]) {
        match decode(body) {
            Ok(batches) => {
                for hints in &batches {
                    self.metrics.hints_received.inc_by(hints.len() as u64);
                    self.announce(hints);
                }
            }
            Err(error) => {
                tracing::warn!(%error, "a fan-out message is not one of ours and was dropped")
            }
        }
    }
}

/// Tells the other gateways what ingest has stored, for one incarnation of it.
#[derive(Debug)]
pub struct HintPublisher {
    fanout: Arc<Fanout>,
    publisher: Publisher,
    /// Whether there is none, as of that moment.
    alone: Option<(bool, Instant)>,
    /// RabbitMQ took none of a batch the last time. (Not, where there is nobody left to miss them.)
    refused: Option<HintsRefused>,
}

impl HintPublisher {
    /// Publishes over this connection.
    pub fn new(fanout: Arc<Fanout>, publisher: Publisher) -> Self {
        Self {
            fanout,
            publisher,
            alone: None,
            refused: None,
        }
    }

    /// Tells the other gateways of what was stored, and proves it. Returns also when the broker takes nothing: hints may be lost,
    /// for the sweep makes them good, and must not hold up ingest. Proves nothing of no batch.
    pub async fn publish(&mut self, stored: &[Stored]) -> Option<Published> {
        let through = stored.last()?.through;
        let batches: Vec<&Hints> = stored
            .iter()
            .map(|batch| &batch.hints)
            .filter(|hints| hints.len() > 0)
            .collect();
        if !batches.is_empty() {
            match self.tell(&batches).await {
                Ok(()) => self.refused = None,
                Err(error) if self.refused.is_none() => {
                    tracing::warn!(%error, "RabbitMQ takes no hints; other replicas find notifications by their sweep");
                    self.refused = Some(HintsRefused::noted(self.fanout.health.clone()));
                }
                Err(_) => {}
            }
        }
        Some(Published { through })
    }

    /// Tells the other gateways, if there are any. Returns when the broker has confirmed it, or takes nothing.
    pub async fn tell(&mut self, batches: &[&Hints]) -> Result<(), BrokerError> {
        let hints: usize = batches.iter().map(|hints| hints.len()).sum();
        if hints == 0 || self.is_alone().await {
            return Ok(());
        }
        let Fanout {
            metrics,
            exchange,
            replica,
            ..
        } = &*self.fanout;
        let hint = Outgoing::hint(exchange.clone(), replica, encode(batches).into_bytes());
        let begun = SystemTime::now();
        let told = self.publisher.try_publish(HAND_ON_TIMEOUT, hint).await;
        if told.is_ok() {
            let stored = batches.iter().flat_map(|hints| &hints.stored);
            stored
                .filter_map(|notification| notification.origin.as_ref())
                .for_each(|origin| {
                    traces::handed_on(origin, exchange, begun);
                });
        }
        let counter = if told.is_ok() {
            &metrics.hints_published
        } else {
            &metrics.hints_refused
        };
        counter.inc_by(hints as u64);
        told
    }

    /// Whether every gateway that RabbitMQ knows is this replica, which is told directly. Not, where that cannot be told.
    ///
    /// Where RabbitMQ has given up this replica's fan-out connection and this replica not yet, it counts one too few, and
    /// another gateway passes for this one: until a heartbeat is missed here too (two of `HEARTBEAT_SECONDS`), its sweep
    /// serves it, as it does one that has just started.
    async fn is_alone(&mut self) -> bool {
        if let Some((alone, at)) = self.alone
            && at.elapsed() < BELIEF_TIME
        {
            return alone;
        }
        let own = u32::from(self.fanout.receives.load(Ordering::Relaxed));
        let counted = self.publisher.gateways(HAND_ON_TIMEOUT).await;
        let alone = counted.is_ok_and(|gateways| gateways <= own);
        self.alone = Some((alone, Instant::now()));
        alone
    }

    /// Closes the connection cleanly.
    pub async fn close(self) {
        self.publisher.close().await;
    }
}

/// One hint as it goes through the broker.
#[derive(Deserialize)]
struct WireHint<'a> {
    /// Of this hint and those that follow it, up to the next one that has it.
    epoch: Option<&'a str>,
    feed: &'a str,
    /// Of a notification its number; of a change the highest number that it speaks of.
    seq: i64,
    /// Of a change.
    version: Option<i64>,
    /// Microseconds since 1970, as precise as Postgres keeps it.
    expires_at_us: Option<i64>,
    /// The same of the event's time.
    time_us: Option<i64>,
    /// Where its trace goes on (W3C Trace Context).
    traceparent: Option<&'a str>,
    #[serde(borrow)]
    frame: Option<&'a RawValue>,
    /// Of a change its frame, by another name: a replica that knows no changes then reads the notification that it speaks of,
    /// rather than take this for it.
    #[serde(borrow)]
    change: Option<&'a RawValue>,
}

/// Writes the hints as JSON around the ready-made frames, without parsing those again. Feeds need no escaping.
fn encode(batches: &[&Hints]) -> String {
    const AROUND_A_FRAME: usize = 200;
    let stored = || {
        batches
            .iter()
            .flat_map(|hints| hints.stored.iter().map(|stored| (&hints.epoch, &**stored)))
    };
    let again = || {
        batches
            .iter()
            .flat_map(|hints| hints.again.iter().map(|again| (&hints.epoch, again)))
    };
    let changed = || {
        batches
            .iter()
            .flat_map(|hints| hints.changed.iter().map(|change| (&hints.epoch, &**change)))
    };
    let frames = stored()
        .map(|(_, n)| &n.frame)
        .chain(changed().map(|(_, change)| &change.frame));
    let mut body = String::with_capacity(
        frames.map(|f| f.len() + AROUND_A_FRAME).sum::<usize>() + AROUND_A_FRAME,
    );
    let (mut separator, mut named) = ('[', None);
    // Writing to a string cannot fail.
    let mut begin = |body: &mut String, epoch: &'_ Option<Epoch>| {
        let _ = write!(body, "{separator}{{");
        separator = ',';
        if let Some(epoch) = epoch
            && named.as_ref() != Some(epoch)
        {
            let _ = write!(body, r#""epoch":"{epoch}","#);
            named = Some(epoch.clone());
        }
    };
    for (
        epoch,
        Notification {
            feed,
            seq,
            expires_at,
            time,
            origin,
            frame,
        },
    ) in stored()
    {
        begin(&mut body, epoch);
        let _ = write!(body, r#""feed":"{feed}","seq":{seq}"#);
        for (name, at) in [("expires_at_us", expires_at), ("time_us", time)] {
            if let Some(at) = at {
                let _ = write!(body, r#","{name}":{}"#, at.unix_timestamp_nanos() / 1_000);
            }
        }
        if let Some(origin) = origin {
            let _ = write!(body, r#","traceparent":"{origin}""#);
        }
        if frame.len() <= FRAME_BYTES_MAX {
            body.push_str(r#","frame":"#);
            body.push_str(frame);
        }
        body.push('}');
    }
    for (
        epoch,
        StateFrame {
            feed,
            version,
            highest,
            frame,
        },
    ) in changed()
    {
        let version = version.get();
        begin(&mut body, epoch);
        let _ = write!(
            body,
            r#""feed":"{feed}","seq":{highest},"version":{version},"change":{frame}}}"#
        );
    }
    for (epoch, (feed, seq)) in again() {
        begin(&mut body, epoch);
        let _ = write!(body, r#""feed":"{feed}","seq":{seq}}}"#);
    }
    body.push(']');
    body
}

/// Reads them back, one `Hints` for each epoch.
fn decode(body: &[u8]) -> Result<Vec<Hints>, String> {
    let hints: Vec<WireHint<'_>> =
        serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let (mut batches, mut place) = (
        vec![Hints {
            stored: Vec::with_capacity(hints.len()),
            ..Hints::default()
        }],
        0,
    );
    for hint in hints {
        if let Some(epoch) = hint.epoch {
            let epoch = Some(Epoch::parse(epoch).map_err(|error| error.to_string())?);
            let first = batches[0].epoch.is_none() && batches[0].len() == 0;
            place = match batches.iter().position(|batch| batch.epoch == epoch) {
                Some(place) => place,
                None if first => 0,
                None => {
                    batches.push(Hints::default());
                    batches.len() - 1
                }
            };
            batches[place].epoch = epoch;
        }
        let decoded = &mut batches[place];
        let feed = Feed::parse(hint.feed).map_err(|error| error.to_string())?;
        let seq = Seq::new(hint.seq).ok_or("a negative seq")?;
        if let Some((version, frame)) = hint.version.zip(hint.change) {
            let version = Version::new(version).ok_or("a negative version")?;
            let frame = Utf8Bytes::from(frame.get());
            decoded.changed.push(Arc::new(StateFrame {
                feed,
                version,
                highest: seq,
                frame,
            }));
            continue;
        }
        let Some(frame) = hint.frame else {
            decoded.again.push((feed, seq));
            continue;
        };
        // Copied out: a frame that waits for a slow client must not hold its whole batch in memory.
        let frame = Utf8Bytes::from(frame.get());
        let (expires_at, time) = (moment(hint.expires_at_us)?, moment(hint.time_us)?);
        let origin = hint.traceparent.and_then(Origin::received);
        decoded.stored.push(Arc::new(Notification {
            feed,
            seq,
            expires_at,
            time,
            origin,
            frame,
        }));
    }
    Ok(batches)
}

/// Of microseconds since 1970.
fn moment(us: Option<i64>) -> Result<Option<OffsetDateTime>, String> {
    let moment = us
        .map(|us| OffsetDateTime::from_unix_timestamp_nanos(i128::from(us) * 1_000))
        .transpose();
    moment.map_err(|error| error.to_string())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_decoded_byte_for_byte() {
        let at = OffsetDateTime::from_unix_timestamp_nanos(1_700_000_000_123_456_000).unwrap();
        let notification = |seq, frame: &str, expires_at| {
            Arc::new(Notification {
                feed: Feed::parse("m-1").unwrap(),
                seq: Seq::new(seq).unwrap(),
                expires_at,
                time: Some(at),
                origin: None,
                frame: frame.into(),
            })
        };
        let stored = vec![
            notification(1, r#"{"data":{ "b":1e400,"a":"\u0000" }}"#, Some(at)),
            notification(2, r#"{"data":null}"#, None),
        ];
        let again = vec![(Feed::parse("m-2").unwrap(), Seq::new(9).unwrap())];
        let change = StateFrame {
            feed: Feed::parse("m-3").unwrap(),
            version: Version::new(4).unwrap(),
            highest: Seq::new(7).unwrap(),
            frame: r#"{"type":"state"}"#.into(),
        };
        let epoch = |text| Some(Epoch::parse(text).unwrap());
        let hints = Hints {
            epoch: epoch("e1"),
            stored,
            again,
            changed: vec![Arc::new(change)],
        };
        let later = Hints {
            epoch: epoch("e2"),
            again: hints.again.clone(),
            ..Hints::default()
        };
        let encoded = encode(&[&hints, &later, &hints]);
        assert_eq!(
            encoded.matches("epoch").count(),
            3,
            "where it is another than before: {encoded}"
        );
        let twice = |mut hints: Hints| {
            hints.stored.extend(hints.stored.clone());
            hints.again.extend(hints.again.clone());
            hints.changed.extend(hints.changed.clone());
            hints
        };
        assert_eq!(
            decode(encoded.as_bytes()).unwrap(),
            [twice(hints.clone()), later]
        );
        let encoded = encode(&[&hints]);
        assert!(
            encoded.starts_with(r#"[{"epoch":"e1","feed":"m-1","seq":1,"#),
            "{encoded}"
        );
        assert_eq!(decode(encoded.as_bytes()).unwrap(), [hints]);
        // Replicas of two versions talk to each other while one rolls out: each reads what it does not know as "read again".
        let change = r#"{"feed":"m-3","seq":7,"version":4,"change":{"type":"state"}}"#;
        let again = r#"{"feed":"m-2","seq":9}"#;
        assert!(
            encoded.ends_with(&format!("{change},{again}]")),
            "{encoded}"
        );
        assert!(decode(b"[{}]").is_err());
        assert_eq!(
            decode(br#"[{"feed":"m","seq":1}]"#).unwrap()[0].epoch,
            None,
            "of a replica before epochs"
        );
    }
}
