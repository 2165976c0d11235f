//! Receives the hints of the other replicas and passes them to the hub.

use std::sync::atomic::Ordering;

use tokio_util::sync::CancellationToken;

use super::{Fanout, wire};
use crate::amqp::consumer::Consumer;
use crate::amqp::{Broker, BrokerError};
use crate::retry::{self, Retry};
use crate::telemetry::labels::Retried;

/// Most batches that RabbitMQ sends ahead. Each takes microseconds, so a few are enough.
const PREFETCH: u16 = 64;

impl Fanout {
    /// Receives hints until `stop`. If RabbitMQ is away, it reconnects with back-off; the sweep covers the time between.
    pub async fn receive(&self, broker: &Broker, stop: CancellationToken) {
        let mut retry = Retry::new(Retried::Fanout, &self.metrics);
        while !stop.is_cancelled() {
            let ended = self
                .receive_one_incarnation(broker, &mut retry, &stop)
                .await;
            self.receives.store(false, Ordering::Relaxed);
            let Err(error) = ended else { return };
            let wait = retry.failed("the fan-out consumer failed", &error);
            retry::sleep(wait, &stop).await;
        }
    }

    async fn receive_one_incarnation(
        &self,
        broker: &Broker,
        retry: &mut Retry<'_>,
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
            .run_until_cancelled(self.receive_from(&mut consumer, retry))
            .await;
        consumer.close().await;
        received.unwrap_or(Ok(()))
    }

    /// Receives until the consumer ends, which is an error.
    async fn receive_from(
        &self,
        consumer: &mut Consumer,
        retry: &mut Retry<'_>,
    ) -> Result<(), BrokerError> {
        let acknowledger = consumer.acknowledger();
        loop {
            let delivery = consumer.next().await?;
            let tag = delivery.tag();
            if delivery.app_id() != Some(&self.replica) {
                self.receive_batches(delivery.body());
            }
            acknowledger.acknowledge_through(tag).await?;
            retry.reset();
        }
    }

    fn receive_batches(&self, body: &[u8]) {
        match wire::decode(body) {
            Ok(batches) => {
                for hints in &batches {
                    self.metrics.hints.received.inc_by(hints.len() as u64);
                    self.publish_locally(hints);
                }
            }
            Err(error) => {
                tracing::warn!(%error, "a delivery of the fan-out queue holds no hints and was dropped");
            }
        }
    }
}
