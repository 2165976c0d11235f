//! The fan-out: hints that wake the sessions of a feed, on this replica and on the others.
//!
//! Stored notifications and marks come in. [`hub`] passes them to the sessions of this replica,
//! [`publisher`] sends them to the other replicas through RabbitMQ, and [`receiver`] takes theirs. A
//! hint only saves a session a read, so hints are neither persistent nor repeated.
//!
//! Each hint has a number in its [`stream`], and [`heartbeat`] repeats the last numbers. [`heard`]
//! finds evidence that a hint was lost. Then the gateway reads the newest numbers of its feeds.
//!
//! With many gateways, hints are lean: they carry numbers without frames, and only the gateways with a
//! session of the feed read the notifications. A lean hint that follows another within 10 ms waits and
//! shares a message with those after it. Ingest acknowledges its events afterwards, so if it is killed
//! meanwhile, RabbitMQ delivers them again.
//!
//! Hints delay the acknowledgement of a batch by 3 s at most: 1 s each to connect, to count the
//! gateways, and to publish. After a failed connect, hints are dropped at once for 5 s. In an alarm of
//! RabbitMQ they are dropped at once, and heartbeats begin again when it ends.

pub mod announcement;
pub mod evidence;
pub mod heard;
pub mod heartbeat;
pub mod hub;
pub mod publisher;
pub mod receiver;
pub mod stream;
pub mod wire;

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::amqp::{Broker, BrokerError};
use crate::fanout::evidence::Found;
use crate::fanout::heard::Heard;
use crate::fanout::hub::Hub;
use crate::fanout::stream::{Stream, Streams};
use crate::model::feed::{Epoch, Feed, Newest};
use crate::model::mark::StateFrame;
use crate::model::notification::Notification;
use crate::store::epoch::known::Epochs;
use crate::telemetry::health::{BrokerState, Health};
use crate::telemetry::labels::Evidence;
use crate::telemetry::metrics::Metrics;

/// The hints of one batch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hints {
    /// The epoch of all numbers. `None` if a replica without epochs sent the hints.
    pub epoch: Option<Epoch>,
    /// New notifications, ready to send.
    pub stored: Vec<Arc<Notification>>,
    /// Numbers without a frame. Sessions that miss them read the rest from Postgres.
    pub newest: Vec<(Feed, Newest)>,
    /// New marks.
    pub states: Vec<Arc<StateFrame>>,
}

impl Hints {
    fn len(&self) -> usize {
        self.stored.len() + self.newest.len() + self.states.len()
    }
}

/// The fan-out of this replica.
#[derive(Debug)]
pub struct Fanout {
    hub: Arc<Hub>,
    epochs: Arc<Epochs>,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    exchange: String,
    /// The number of gateways from which hints carry numbers only; `None` for none.
    lean_from: Option<u32>,
    /// A random name. The receiver drops hints that carry it, because the hub already has them.
    replica: String,
    /// Whether RabbitMQ counts this replica among the gateways.
    receives: AtomicBool,
    /// The numbers of the hints that this replica publishes.
    streams: Streams,
    /// The numbers of the hints that it receives. Locked only for a lookup.
    heard: Mutex<Heard>,
    /// The evidence of lost hints, for the part that reads them.
    evidence: Arc<Found>,
    /// Hints were not confirmed, so the next heartbeat is due.
    refused: Notify,
}

impl Fanout {
    /// Creates the fan-out without connecting.
    pub fn new(
        hub: Arc<Hub>,
        epochs: Arc<Epochs>,
        metrics: Arc<Metrics>,
        health: Arc<Health>,
        broker: &Broker,
        lean_from: Option<u32>,
    ) -> Self {
        let replica = uuid::Uuid::new_v4().simple().to_string();
        Self {
            hub,
            epochs,
            metrics,
            health,
            exchange: broker.names.fanout(),
            lean_from,
            heard: Mutex::new(Heard::new(replica.clone())),
            replica,
            receives: AtomicBool::new(false),
            streams: Streams::default(),
            evidence: Arc::default(),
            refused: Notify::new(),
        }
    }

    /// Opens the stream of a part that publishes hints.
    pub fn open_stream(&self) -> Arc<Stream> {
        self.streams.open()
    }

    /// The evidence of lost hints.
    pub fn evidence(&self) -> Arc<Found> {
        self.evidence.clone()
    }

    /// Makes every gateway read the newest numbers, because a write of the part with this stream may be stored without
    /// hints.
    pub fn suspect_write(&self, stream: &Stream) {
        stream.skip();
        self.evidence.add(Evidence::Write);
    }

    /// Records whether RabbitMQ has confirmed hints or a heartbeat. The next heartbeat shows whether it
    /// works again.
    fn published(&self, published: &Result<(), BrokerError>) {
        let state = match published {
            Ok(()) => Some(BrokerState::Ok),
            Err(BrokerError::Blocked) => Some(BrokerState::Blocked),
            // Nothing was attempted.
            Err(BrokerError::FailedBefore(_)) => None,
            Err(_) => Some(BrokerState::Away),
        };
        if let Some(state) = state {
            self.health.fanout_published(state);
        }
        if published.is_err() {
            self.refused.notify_one();
        }
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the sessions of this replica. Hints of another epoch are dropped, and the database is asked for the present
    /// epoch; if it changed, sessions read the dropped notifications.
    pub fn publish_locally(&self, hints: &Hints) {
        match &hints.epoch {
            Some(epoch) if self.epochs.is_current(epoch) => {
                self.hub.publish(epoch, &hints.stored);
                self.hub.publish_states(epoch, &hints.states);
                self.hub.publish_newest(epoch, &hints.newest);
            }
            Some(_) => self.epochs.ask(),
            // The frames may belong to any epoch. Their numbers only make sessions read pages, which name their epoch.
            None => {
                if let Some(epoch) = self.epochs.current() {
                    self.hub.publish_newest(&epoch, &numbers(hints));
                }
            }
        }
    }
}

/// The hints of batches without frames: for each epoch, the highest numbers of each feed.
fn lean(batches: &[&Hints]) -> Vec<Hints> {
    let mut epochs = BTreeMap::<&Option<Epoch>, BTreeMap<Feed, Newest>>::new();
    for hints in batches {
        let newest = epochs.entry(&hints.epoch).or_default();
        for (feed, more) in numbers(hints) {
            let known = newest.entry(feed).or_default();
            *known = known.max(more);
        }
    }
    let lean = |(epoch, newest): (&Option<Epoch>, BTreeMap<_, _>)| Hints {
        epoch: epoch.clone(),
        newest: newest.into_iter().collect(),
        ..Hints::default()
    };
    epochs.into_iter().map(lean).collect()
}

/// The numbers of the hints, without their frames.
fn numbers(hints: &Hints) -> Vec<(Feed, Newest)> {
    let of_seq = |seq| Newest {
        seq,
        ..Newest::default()
    };
    let of_version = |version| Newest {
        version,
        ..Newest::default()
    };
    let (stored, states) = (hints.stored.iter(), hints.states.iter());
    stored
        .map(|stored| (stored.feed.clone(), of_seq(stored.seq)))
        .chain(states.map(|state| (state.feed.clone(), of_version(state.version))))
        .chain(hints.newest.iter().cloned())
        .collect()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::model::feed::{Seq, Version};

    #[test]
    fn lean_hints_have_the_highest_numbers_of_each_feed_and_epoch() {
        let feed = |name: &str| Feed::parse(name).unwrap();
        let newest = |seq, version| Newest {
            seq: Seq::new(seq).unwrap(),
            version: Version::new(version).unwrap(),
        };
        let stored = |name: &str, seq| {
            Arc::new(Notification {
                feed: feed(name),
                seq: Seq::new(seq).unwrap(),
                expires_at: None,
                time: None,
                trace: None,
                frame: "{}".into(),
            })
        };
        let state = StateFrame {
            feed: feed("a"),
            version: Version::new(4).unwrap(),
            highest: Seq::new(2).unwrap(),
            frame: "{}".into(),
        };
        let epoch = |text| Some(Epoch::parse(text).unwrap());
        let hints = Hints {
            epoch: epoch("e1"),
            stored: vec![stored("b", 1), stored("a", 7), stored("a", 8)],
            newest: vec![(feed("b"), newest(3, 0)), (feed("a"), newest(5, 2))],
            states: vec![Arc::new(state)],
        };
        let restored = Hints {
            epoch: epoch("e2"),
            stored: vec![stored("a", 2)],
            ..Hints::default()
        };
        let later = Hints {
            epoch: epoch("e1"),
            stored: vec![stored("a", 9)],
            ..Hints::default()
        };
        let of = |text, newest| Hints {
            epoch: epoch(text),
            newest,
            ..Hints::default()
        };
        assert_eq!(
            lean(&[&hints, &restored, &later]),
            [
                of(
                    "e1",
                    vec![(feed("a"), newest(9, 4)), (feed("b"), newest(3, 0))]
                ),
                of("e2", vec![(feed("a"), newest(2, 0))]),
            ]
        );
    }
}
