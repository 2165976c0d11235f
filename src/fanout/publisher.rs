//! Publishes hints to the other replicas, and gives the proof that ingest needs to acknowledge a batch.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::mpsc;

use super::announcement::Announcement;
use super::stream::Stream;
use super::{Fanout, Hints, lean, wire};
use crate::amqp::BrokerError;
use crate::amqp::consumer::Acknowledger;
use crate::amqp::delivery::Delivery;
use crate::amqp::publisher::{Outgoing, Publisher};
use crate::model::feed::Feed;
use crate::store::append::Committed;
use crate::store::pages;
use crate::store::pool::Pool;
use crate::telemetry::traces;

/// Longest wait for RabbitMQ to confirm hints. RabbitMQ confirms none during an alarm, and an alarm that the ingest queue
/// caused ends only if ingest goes on.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(1);

/// Time for which a count of the gateways is used again. A replica that starts meanwhile finds a gap in the numbers.
const COUNT_MAX_AGE: Duration = Duration::from_secs(1);

/// Least time from one publish of lean hints of a part to the next, because a message costs a gateway about as much as a
/// hundred of its hints. Ingest delays acknowledgements by the same time anyway, and a merchant does not notice it.
const LEAN_INTERVAL: Duration = Duration::from_millis(10);

/// A stored batch: its hints, and the tag that acknowledges it and all deliveries before it. Only made from the proof that
/// the store returns.
#[derive(Debug)]
pub struct StoredBatch {
    hints: Hints,
    through: u64,
}

impl StoredBatch {
    /// Takes committed deliveries; `None` if there are none.
    pub fn new(committed: Committed<Delivery>, hints: Hints) -> Option<Self> {
        let through = committed.origins().map(Delivery::tag).max()?;
        Some(Self { hints, through })
    }

    /// The tag of the last delivery.
    pub fn through(&self) -> u64 {
        self.through
    }
}

/// Proof that batches are committed, and their hints published or dropped. Only
/// [`HintPublisher::publish`] makes it.
#[derive(Debug)]
pub struct Published {
    through: u64,
}

impl Published {
    /// The tag of the last delivery.
    pub fn through(&self) -> u64 {
        self.through
    }

    /// Acknowledges all deliveries up to the tag.
    ///
    /// # Errors
    /// The connection to RabbitMQ is lost.
    pub async fn acknowledge(self, acknowledger: &Acknowledger) -> Result<(), BrokerError> {
        acknowledger.acknowledge_through(self.through).await
    }
}

/// Publishes hints over one connection.
#[derive(Debug)]
pub struct HintPublisher {
    fanout: Arc<Fanout>,
    publisher: Publisher,
    stream: Arc<Stream>,
    /// The number of gateways, and when they were counted. `None` if RabbitMQ did not answer.
    counted: Option<(Option<u32>, Instant)>,
    /// The earliest time of the next publish, if the last hints were lean.
    lean_again_at: Option<Instant>,
    /// Whether RabbitMQ did not confirm the last hints.
    was_refused: bool,
}

impl HintPublisher {
    /// Publishes through `publisher`, with the numbers of `stream`.
    pub fn new(fanout: Arc<Fanout>, publisher: Publisher, stream: Arc<Stream>) -> Self {
        Self {
            fanout,
            publisher,
            stream,
            counted: None,
            lean_again_at: None,
            was_refused: false,
        }
    }

    /// Collects what is to be published together, after something has come. It takes more from `arriving` until lean hints
    /// may be published again, `is_full` holds, or the channel is closed. Whole hints, and lean ones after a pause, wait for
    /// nothing.
    pub async fn collect<T>(
        &self,
        arriving: &mut mpsc::Receiver<T>,
        collected: &mut Vec<T>,
        is_full: impl Fn(&[T]) -> bool,
    ) {
        collect_until(self.lean_again_at, arriving, collected, is_full).await;
    }

    /// Publishes the hints of stored batches, and returns the proof. If RabbitMQ does not confirm them, the hints are lost
    /// and the proof is returned all the same. Returns `None` without a batch.
    pub async fn publish(&mut self, stored: &[StoredBatch]) -> Option<Published> {
        let through = stored.last()?.through;
        let batches: Vec<&Hints> = stored.iter().map(|batch| &batch.hints).collect();
        self.publish_hints(&batches).await;
        Some(Published { through })
    }

    /// Publishes the newest numbers of feeds that have changed, to the sessions of all replicas. Sessions read the changes
    /// from Postgres. If the numbers cannot be read, every gateway reads those of its feeds.
    pub async fn publish_newest(&mut self, pool: &Pool, feeds: &[Feed]) {
        if feeds.is_empty() {
            return;
        }
        match pages::newest(pool, feeds).await {
            Ok((epoch, newest)) => {
                let hints = Hints {
                    epoch,
                    newest,
                    ..Hints::default()
                };
                self.fanout.publish_locally(&hints);
                self.publish_hints(&[&hints]).await;
            }
            Err(error) => {
                tracing::warn!(%error, "the numbers of changed feeds could not be read; gateways read them");
                self.fanout.suspect_write(&self.stream);
            }
        }
    }

    /// Publishes hints if there are other gateways. Uses up a number in any case. If RabbitMQ does not confirm the hints
    /// within [`PUBLISH_TIMEOUT`], they are lost, and other gateways find a gap.
    pub async fn publish_hints(&mut self, batches: &[&Hints]) {
        let batches: Vec<&Hints> = batches
            .iter()
            .copied()
            .filter(|hints| hints.len() > 0)
            .collect();
        if batches.is_empty() {
            return;
        }
        let refused = self.try_publish_hints(&batches).await.err();
        // Only the first of consecutive failures is logged, because clients choose the number of marks.
        if let Some(error) = refused.as_ref().filter(|_| !self.was_refused) {
            tracing::warn!(%error, "RabbitMQ does not take hints; other replicas read the missed notifications");
        }
        self.was_refused = refused.is_some();
    }

    async fn try_publish_hints(&mut self, batches: &[&Hints]) -> Result<(), BrokerError> {
        let count: usize = batches.iter().map(|hints| hints.len()).sum();
        let stream = self.stream.clone();
        let in_flight = stream.begin();
        let gateways = self.gateways().await;
        if self.is_alone(gateways) {
            self.lean_again_at = None;
            return Ok(());
        }
        let bound = gateways.zip(self.fanout.lean_from);
        let is_lean = bound.is_some_and(|(gateways, from)| gateways >= from);
        self.lean_again_at = is_lean.then(|| Instant::now() + LEAN_INTERVAL);
        let body = match is_lean {
            true => wire::encode(&lean(batches).iter().collect::<Vec<_>>()),
            false => wire::encode(batches),
        };
        let Fanout {
            metrics,
            exchange,
            replica,
            ..
        } = &*self.fanout;
        let bytes = body.len();
        let announcement = Announcement::Hints {
            stream: in_flight.stream(),
            number: in_flight.number(),
        };
        let begun = SystemTime::now();
        let published = self
            .publisher
            .try_publish(
                PUBLISH_TIMEOUT,
                Outgoing::hints(
                    exchange.clone(),
                    replica,
                    announcement.encode(),
                    body.into_bytes(),
                ),
            )
            .await;
        self.fanout.published(&published);
        if published.is_ok() {
            metrics.hints.published.inc_by(count as u64);
            metrics.hints.bytes_published.inc_by(bytes as u64);
            let stored = batches.iter().flat_map(|hints| &hints.stored);
            for trace in stored.filter_map(|stored| stored.trace.as_ref()) {
                traces::published(trace, exchange, begun);
            }
        } else {
            metrics.hints.refused.inc_by(count as u64);
        }
        published
    }

    /// Whether RabbitMQ counts no gateway but this replica. If RabbitMQ does not answer, it returns false.
    ///
    /// If RabbitMQ has closed this replica's fan-out connection and the replica has not noticed, the count is one too low
    /// and another gateway gets no hints. It finds a gap in the numbers then.
    fn is_alone(&self, gateways: Option<u32>) -> bool {
        let own = u32::from(self.fanout.receives.load(Ordering::Relaxed));
        gateways.is_some_and(|gateways| gateways <= own)
    }

    /// Counts the gateways from time to time.
    async fn gateways(&mut self) -> Option<u32> {
        if let Some((gateways, at)) = self.counted
            && at.elapsed() < COUNT_MAX_AGE
        {
            return gateways;
        }
        let gateways = self.publisher.count_gateways(PUBLISH_TIMEOUT).await.ok();
        self.counted = Some((gateways, Instant::now()));
        gateways
    }

    /// Closes the connection.
    pub async fn close(self) {
        self.publisher.close().await;
    }
}

async fn collect_until<T>(
    due: Option<Instant>,
    arriving: &mut mpsc::Receiver<T>,
    collected: &mut Vec<T>,
    is_full: impl Fn(&[T]) -> bool,
) {
    let Some(due) = due else { return };
    while !is_full(collected) {
        let arrived = tokio::select! {
            arrived = arriving.recv() => arrived,
            () = tokio::time::sleep_until(due.into()) => None,
        };
        match arrived {
            Some(arrived) => collected.push(arrived),
            None => return,
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    const LATER: Duration = Duration::from_secs(3_600);
    const PATIENCE: Duration = Duration::from_secs(10);

    /// The items that are published together after the first, if `sent` are in the channel.
    async fn collected(due: Option<Instant>, sent: u32, is_closed: bool) -> Vec<u32> {
        let (sender, mut arriving) = mpsc::channel(8);
        for item in 1..=sent {
            sender.send(item).await.unwrap();
        }
        let sender = Some(sender).filter(|_| !is_closed);
        let mut collected = vec![0];
        let collecting = collect_until(due, &mut arriving, &mut collected, |all| all.len() >= 4);
        tokio::time::timeout(PATIENCE, collecting).await.unwrap();
        drop(sender);
        collected
    }

    #[tokio::test]
    async fn lean_hints_wait_for_their_time_and_whole_ones_for_nothing() {
        let later = Some(Instant::now() + LATER);
        assert_eq!(collected(None, 2, false).await, [0]);
        assert_eq!(collected(later, 5, false).await, [0, 1, 2, 3], "full");
        assert_eq!(collected(later, 2, true).await, [0, 1, 2], "closed");
        // After a pause, the first hints are due at once.
        assert_eq!(collected(Some(Instant::now()), 0, false).await, [0]);
        let soon = Instant::now() + LEAN_INTERVAL;
        assert_eq!(collected(Some(soon), 2, false).await, [0, 1, 2]);
        assert!(Instant::now() >= soon);
    }
}
