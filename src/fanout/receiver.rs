//! Receives the hints of the other replicas and passes them to the hub. Finds evidence of lost hints.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::announcement::Announcement;
use super::{Fanout, wire};
use crate::amqp::consumer::Consumer;
use crate::amqp::delivery::Delivery;
use crate::amqp::{Broker, BrokerError};
use crate::retry::{self, Retry};
use crate::telemetry::labels::{Evidence, Retried};

/// Most batches that RabbitMQ sends ahead. Each takes microseconds, so a few are enough.
const PREFETCH: u16 = 64;
/// Deliveries that are acknowledged together, because each acknowledgement costs as much as a delivery. It is a part of the
/// prefetch, so that RabbitMQ goes on with the rest.
const DELIVERIES_PER_ACKNOWLEDGEMENT: u64 = 16;
/// Interval of the look for processes that are silent, and of the acknowledgement of all deliveries.
const CHECK_EVERY: Duration = Duration::from_millis(500);

impl Fanout {
    /// Receives hints until `stop`. If RabbitMQ is away, it reconnects with back-off.
    pub async fn receive(&self, broker: &Broker, stop: CancellationToken) {
        tokio::select! {
            () = self.receive_always(broker, &stop) => {}
            () = self.find_faults() => {}
        }
    }

    /// Finds evidence of faults that last, for ever.
    async fn find_faults(&self) {
        let mut interval = interval();
        loop {
            interval.tick().await;
            if let Some(evidence) = self.heard().check(Instant::now()) {
                self.evidence.add(evidence);
            }
        }
    }

    async fn receive_always(&self, broker: &Broker, stop: &CancellationToken) {
        let mut retry = Retry::new(Retried::Fanout, &self.metrics);
        while !stop.is_cancelled() {
            let ended = self.receive_one_incarnation(broker, &mut retry, stop).await;
            self.receives.store(false, Ordering::Relaxed);
            self.heard().disconnected();
            let Err(error) = ended else { return };
            let wait = retry.failed("the fan-out consumer failed", &error);
            retry::sleep(wait, stop).await;
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
        // The queue is bound, so a read from now on finds all that it does not receive.
        self.heard().connected(Instant::now());
        self.evidence.add(Evidence::Reconnect);
        self.receives.store(true, Ordering::Relaxed);
        let _up = self.health.fanout.up();
        let received = stop
            .run_until_cancelled(self.receive_from(&mut consumer, retry))
            .await;
        consumer.close().await;
        received.unwrap_or(Ok(()))
    }

    /// Receives until the consumer ends or RabbitMQ delivers nothing, which are errors.
    async fn receive_from(
        &self,
        consumer: &mut Consumer,
        retry: &mut Retry<'_>,
    ) -> Result<(), BrokerError> {
        let acknowledger = consumer.acknowledger();
        let mut interval = interval();
        let (mut received, mut acknowledged) = (0, 0);
        loop {
            let delivery = tokio::select! {
                delivery = consumer.next() => Some(delivery?),
                _ = interval.tick() => None,
            };
            match &delivery {
                Some(delivery) => {
                    self.receive_one(delivery);
                    received = delivery.tag();
                    retry.reset();
                }
                None if self.heard().is_deaf(Instant::now()) => {
                    return Err(BrokerError::NothingDelivered);
                }
                None => {}
            }
            let waiting = received - acknowledged;
            if waiting >= DELIVERIES_PER_ACKNOWLEDGEMENT || waiting > 0 && delivery.is_none() {
                acknowledger.acknowledge_through(received).await?;
                acknowledged = received;
            }
        }
    }

    fn receive_one(&self, delivery: &Delivery) {
        self.hear(delivery);
        if delivery.app_id() == Some(&self.replica) {
            return;
        }
        match wire::decode_lean(delivery.body()) {
            Some(lean) => {
                self.metrics.hints.received.inc_by(lean.count() as u64);
                self.publish_locally(&lean.of(|feed| self.hub.has_session(feed)));
            }
            None => self.receive_batches(delivery.body()),
        }
    }

    /// Compares the numbers of a delivery with those before.
    fn hear(&self, delivery: &Delivery) {
        let announcement = delivery
            .announcement()
            .and_then(|header| Announcement::decode(&header));
        let now = Instant::now();
        let mut heard = self.heard();
        let evidence = match delivery.app_id().zip(announcement) {
            Some((process, announcement)) => heard.hear(process, &announcement, now),
            None => {
                heard.delivered(now);
                None
            }
        };
        let missed = heard.take_missed();
        drop(heard);
        self.metrics.hints.missed.inc_by(missed);
        if let Some(evidence) = evidence {
            self.evidence.add(evidence);
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
                self.evidence.add(Evidence::Gap);
            }
        }
    }
}

fn interval() -> Interval {
    let mut interval = tokio::time::interval(CHECK_EVERY);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}
