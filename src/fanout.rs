//! The fan-out: hints that wake the sessions of a feed, on this replica and on the others.
//!
//! Stored notifications and marks come in. [`hub`] passes them to the sessions of this replica,
//! [`publisher`] sends them to the other replicas through RabbitMQ, and [`receiver`] takes theirs. A
//! hint only saves a session a read: if it is lost, the sweep finds the notification. So hints are
//! neither persistent nor repeated.
//!
//! Hints delay the acknowledgement of a batch by 3 s at most: 1 s each to connect, to count the
//! gateways, and to publish. After a failed connect, hints are dropped at once for 5 s.

pub mod hub;
pub mod publisher;
pub mod receiver;
pub mod wire;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::amqp::Broker;
use crate::fanout::hub::Hub;
use crate::model::feed::{Epoch, Feed, Newest, Seq, Version};
use crate::model::mark::StateFrame;
use crate::model::notification::Notification;
use crate::store::epoch::known::Epochs;
use crate::telemetry::health::Health;
use crate::telemetry::metrics::Metrics;

/// The hints of one batch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hints {
    /// The epoch of all numbers. `None` if a replica without epochs sent the hints.
    pub epoch: Option<Epoch>,
    /// New notifications, ready to send.
    pub stored: Vec<Arc<Notification>>,
    /// Events that were stored before. Sessions that miss them read them from Postgres.
    pub duplicates: Vec<(Feed, Seq)>,
    /// New marks.
    pub states: Vec<Arc<StateFrame>>,
}

impl Hints {
    fn len(&self) -> usize {
        self.stored.len() + self.duplicates.len() + self.states.len()
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
    /// A random name. The receiver drops hints that carry it, because the hub already has them.
    replica: String,
    /// Whether RabbitMQ counts this replica among the gateways.
    receives: AtomicBool,
}

impl Fanout {
    /// Creates the fan-out without connecting.
    pub fn new(
        hub: Arc<Hub>,
        epochs: Arc<Epochs>,
        metrics: Arc<Metrics>,
        health: Arc<Health>,
        broker: &Broker,
    ) -> Self {
        Self {
            hub,
            epochs,
            metrics,
            health,
            exchange: broker.names.fanout(),
            replica: uuid::Uuid::new_v4().simple().to_string(),
            receives: AtomicBool::new(false),
        }
    }

    /// Wakes the sessions of this replica. Hints of another epoch are dropped, and the sweep asks the database for the
    /// present epoch; if it changed, sessions read the dropped notifications.
    pub fn publish_locally(&self, hints: &Hints) {
        match &hints.epoch {
            Some(epoch) if self.epochs.is_current(epoch) => {
                self.hub.publish(epoch, &hints.stored);
                self.hub.publish_states(epoch, &hints.states);
                let duplicates = hints.duplicates.iter();
                self.hub.publish_newest(
                    epoch,
                    &duplicates
                        .map(|(feed, seq)| newest_seq(feed, *seq))
                        .collect::<Vec<_>>(),
                );
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

/// The highest numbers of the hints, without their frames.
fn numbers(hints: &Hints) -> Vec<(Feed, Newest)> {
    let stored = hints.stored.iter();
    let states = hints.states.iter();
    stored
        .map(|stored| newest_seq(&stored.feed, stored.seq))
        .chain(
            hints
                .duplicates
                .iter()
                .map(|(feed, seq)| newest_seq(feed, *seq)),
        )
        .chain(states.map(|state| newest_version(&state.feed, state.version)))
        .collect()
}

fn newest_seq(feed: &Feed, seq: Seq) -> (Feed, Newest) {
    (
        feed.clone(),
        Newest {
            seq,
            ..Newest::default()
        },
    )
}

fn newest_version(feed: &Feed, version: Version) -> (Feed, Newest) {
    (
        feed.clone(),
        Newest {
            version,
            ..Newest::default()
        },
    )
}
