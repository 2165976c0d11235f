//! The upstream system: one channel, persistent events, publisher confirms, a bound on unconfirmed
//! publishes. For JetStream, it is one connection, and a confirm is a reply.

use std::collections::VecDeque;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures_util::FutureExt;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, PublisherConfirm,
};
use tokio::runtime::Handle;

use crate::event;
use crate::jetstream::{ENDED, Link, Reply};
use crate::ledger::Ledger;
use crate::nats;

/// Most unconfirmed publishes.
const IN_FLIGHT_MAX: usize = 1_000;

/// The destination and addressing of events.
#[derive(Debug, Clone)]
pub enum Target {
    /// A topic exchange like Shopbell's; the routing key is the type.
    Events(String),
    /// RabbitMQ's own exchange for MQTT and STOMP topics; the routing key is the recipient.
    Topics,
    Queue(String),
}

/// The ids of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ids {
    /// Without an order that Postgres could use.
    Random,
    /// UUIDs of version 7 (RFC 9562 §5.7).
    InOrder,
}

/// One connection with one channel.
pub struct Publisher {
    upstream: Upstream,
    event_bytes: usize,
    ids: Ids,
}

#[expect(clippy::large_enum_variant, reason = "a run has one")]
enum Upstream {
    RabbitMq {
        connection: Connection,
        channel: Channel,
        target: Target,
    },
    JetStream(Link),
}

/// A confirm that has not arrived yet.
enum Confirm {
    RabbitMq(PublisherConfirm),
    JetStream(Reply),
}

impl Future for Confirm {
    type Output = anyhow::Result<()>;

    fn poll(self: Pin<&mut Self>, context: &mut std::task::Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Self::RabbitMq(confirm) => Pin::new(confirm)
                .poll(context)
                .map(|confirmation| accept(confirmation?)),
            Self::JetStream(reply) => Pin::new(reply)
                .poll(context)
                .map(|reply| reply.context(ENDED)?),
        }
    }
}

impl Publisher {
    pub async fn connect(amqp_url: &str, target: Target) -> anyhow::Result<Self> {
        let connection = Connection::connect(amqp_url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel
            .confirm_select(ConfirmSelectOptions::default())
            .await?;
        Ok(Self::of(Upstream::RabbitMq {
            connection,
            channel,
            target,
        }))
    }

    /// Publishes to JetStream instead; the subject names the recipient.
    pub fn to_jetstream(link: Link) -> Self {
        Self::of(Upstream::JetStream(link))
    }

    fn of(upstream: Upstream) -> Self {
        Self {
            upstream,
            event_bytes: event::BYTES,
            ids: Ids::Random,
        }
    }

    /// The same with other ids.
    pub fn with_ids(self, ids: Ids) -> Self {
        Self { ids, ..self }
    }

    /// The same with events of another size.
    pub fn with_event_bytes(self, event_bytes: usize) -> Self {
        Self {
            event_bytes,
            ..self
        }
    }

    /// Publishes these events as fast as they are confirmed. `recipient` returns the recipient
    /// of each.
    pub async fn publish_all(
        &self,
        run: &str,
        ledger: &Ledger,
        indices: impl IntoIterator<Item = usize>,
        recipient: impl Fn(usize) -> String,
    ) -> anyhow::Result<()> {
        let mut unconfirmed = VecDeque::with_capacity(IN_FLIGHT_MAX);
        for index in indices {
            if unconfirmed.len() >= IN_FLIGHT_MAX
                && let Some(oldest) = unconfirmed.pop_front()
            {
                oldest.await?;
            }
            ledger.publish(index);
            unconfirmed.push_back(self.publish(run, index, &recipient(index)).await?);
        }
        for confirm in unconfirmed {
            confirm.await?;
        }
        Ok(())
    }

    /// Publishes at a steady rate without waiting for receipts (an open loop), from a thread of its
    /// own that sleeps precisely.
    pub async fn publish_at(
        self,
        run: String,
        ledger: Arc<Ledger>,
        indices: Range<usize>,
        per_second: f64,
        recipient: impl Fn(usize) -> String + Send + 'static,
    ) -> anyhow::Result<()> {
        let runtime = Handle::current();
        let publishing = move || {
            runtime.block_on(async {
                let (began, mut unconfirmed) = (Instant::now(), VecDeque::new());
                for (place, index) in indices.enumerate() {
                    let due = began + Duration::from_secs_f64(place as f64 / per_second);
                    std::thread::sleep(due.saturating_duration_since(Instant::now()));
                    ledger.publish_due(index, due);
                    unconfirmed.push_back(self.publish(&run, index, &recipient(index)).await?);
                    while let Some(confirmed) =
                        unconfirmed.front_mut().and_then(FutureExt::now_or_never)
                    {
                        unconfirmed.pop_front();
                        confirmed?;
                    }
                }
                for confirm in unconfirmed {
                    confirm.await?;
                }
                self.close().await;
                anyhow::Ok(())
            })
        };
        tokio::task::spawn_blocking(publishing).await?
    }

    pub async fn close(self) {
        if let Upstream::RabbitMq { connection, .. } = self.upstream {
            let _ = connection.close(200, "goodbye".into()).await;
        }
    }

    async fn publish(&self, run: &str, index: usize, recipient: &str) -> anyhow::Result<Confirm> {
        let id = match self.ids {
            Ids::Random => event::id(run, index),
            Ids::InOrder => event::id_in_order(index),
        };
        let body = event::order_of(self.event_bytes, &id, index, recipient);
        let (channel, target) = match &self.upstream {
            Upstream::RabbitMq {
                channel, target, ..
            } => (channel, target),
            Upstream::JetStream(link) => {
                let reply = link.request(nats::orders_of(recipient), body)?;
                return Ok(Confirm::JetStream(reply));
            }
        };
        let (exchange, routing_key) = match target {
            Target::Events(exchange) => (exchange.as_str(), "order.created"),
            Target::Topics => ("amq.topic", recipient),
            Target::Queue(queue) => ("", queue.as_str()),
        };
        let properties = BasicProperties::default()
            .with_delivery_mode(2)
            .with_content_type("application/cloudevents+json".into());
        let options = BasicPublishOptions {
            mandatory: true,
            ..Default::default()
        };
        let publishing = channel.basic_publish(
            exchange.into(),
            routing_key.into(),
            options,
            &body,
            properties,
        );
        let confirm = publishing.await.context("could not publish")?;
        Ok(Confirm::RabbitMq(confirm))
    }
}

fn accept(confirmation: Confirmation) -> anyhow::Result<()> {
    ensure!(
        matches!(confirmation, Confirmation::Ack(None)),
        "RabbitMQ did not confirm an event: {confirmation:?}"
    );
    Ok(())
}
