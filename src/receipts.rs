//! Publishes receipts: the facts that publishers ask for, and the deadlines that pass.
//!
//! The facts come from rows of Postgres, which the transaction of an ack, a mark or a settlement changes. Every replica with
//! ingest runs this part, and each takes other rows. A receipt is published at least once. If a replica dies between the
//! confirm and its record, another one publishes its rows again, with the same ids.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::amqp::Broker;
use crate::amqp::publisher::{Outgoing, Publisher};
use crate::fanout::Fanout;
use crate::fanout::publisher::HintPublisher;
use crate::fanout::stream::Stream;
use crate::model::event::Fact;
use crate::model::feed::Feed;
use crate::model::receipt;
use crate::store::StoreError;
use crate::store::pool::Pool;
use crate::store::receipts::{self, Taken};
use crate::telemetry::labels::Retried;
use crate::telemetry::metrics::Metrics;

/// Interval of the question whether a row is due: one read of an index. Deadlines are reported within two seconds.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// Pause after a failure. Taken rows wait for the end of their lease.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Most rows that are taken together. They are published within their lease.
const ROWS_MAX: i32 = 500;

/// Publishes receipts.
#[derive(Debug)]
pub struct ReceiptPublisher {
    /// The RabbitMQ with the exchange of receipts.
    pub broker: Broker,
    /// The database.
    pub pool: Pool,
    /// Receives the new numbers of feeds with an overdue notification.
    pub fanout: Arc<Fanout>,
    /// The numbers of the hints.
    pub stream: Arc<Stream>,
    /// The counters.
    pub metrics: Arc<Metrics>,
}

impl ReceiptPublisher {
    /// Publishes until `stop`, which may come at any time. Publishes hints to other replicas through `hints`.
    pub async fn run(self, mut hints: HintPublisher, stop: CancellationToken) {
        let facts = Fact::ALL.map(Fact::as_str);
        self.metrics.receipts.published.begin(&facts);
        let mut publisher = Publisher::lazy(&self.broker);
        stop.run_until_cancelled(self.publish_all(&mut publisher, &mut hints))
            .await;
        // The last escalation may be stored without hints.
        self.stream.skip();
        hints.close().await;
        publisher.close().await;
    }

    async fn publish_all(&self, publisher: &mut Publisher, hints: &mut HintPublisher) {
        loop {
            let taken = receipts::take(&self.pool, ROWS_MAX).await;
            if let Err(error) = &taken
                && error.may_be_stored()
            {
                self.fanout.suspect_write(&self.stream);
            }
            let pause = match taken {
                Ok(taken) if taken.is_empty() => POLL_INTERVAL,
                Ok(taken) => {
                    self.escalate(&taken, hints).await;
                    match self.publish(&taken, publisher).await {
                        Ok(true) => Duration::ZERO,
                        Ok(false) => RETRY_AFTER,
                        Err(error) => self.failed(&error),
                    }
                }
                Err(error) => self.failed(&error),
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Publishes the facts of rows, and records them. Returns whether RabbitMQ has confirmed them.
    async fn publish(
        &self,
        taken: &[Taken],
        publisher: &mut Publisher,
    ) -> Result<bool, StoreError> {
        let exchange = self.broker.names.receipts();
        let due = |taken: &Taken| {
            let bits = taken.unpublished;
            let mut due: Vec<_> = taken
                .receipt
                .facts
                .iter()
                .filter(|known| known.fact.bit() & bits != 0)
                .cloned()
                .collect();
            due.sort_by_key(|known| known.at);
            due
        };
        let mut outgoing = Vec::new();
        for taken in taken {
            for known in due(taken) {
                let body = taken.receipt.cloud_event(&known).into_bytes();
                outgoing.push(Outgoing::receipt(
                    exchange.clone(),
                    receipt::event_type(known.fact),
                    body,
                ));
            }
        }
        let confirmed = publisher.publish(&outgoing).await;
        let published: Vec<i32> = match &confirmed {
            Ok(()) => taken.iter().map(|taken| taken.unpublished).collect(),
            Err(_) => vec![0; taken.len()],
        };
        receipts::finish(&self.pool, taken, &published).await?;
        match confirmed {
            Ok(()) => {
                for known in taken.iter().flat_map(due) {
                    self.metrics.receipts.published.inc(known.fact.as_str());
                }
                Ok(true)
            }
            Err(error) => {
                self.metrics.retries.inc(Retried::Receipts);
                tracing::warn!(%error, receipts = outgoing.len(), "receipts could not be published; they stay in Postgres");
                Ok(false)
            }
        }
    }

    /// Publishes the newest numbers of the feeds with a notification that is overdue now. Their sessions read the mark.
    async fn escalate(&self, taken: &[Taken], publisher: &mut HintPublisher) {
        let escalated = taken.iter().filter(|taken| taken.is_escalated);
        let mut feeds: Vec<Feed> = escalated.map(|taken| taken.receipt.feed.clone()).collect();
        feeds.dedup();
        publisher.publish_newest(&self.pool, &feeds).await;
    }

    fn failed(&self, error: &StoreError) -> Duration {
        self.metrics.retries.inc(Retried::Receipts);
        tracing::warn!(%error, "due receipts could not be read or recorded; the next attempt follows");
        RETRY_AFTER
    }
}
