//! Publishing with confirms.

use std::time::Duration;

use futures_util::stream::{FuturesUnordered, TryStreamExt};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Confirmation, Connection};

use super::{Broker, BrokerError, close, topology};

/// A confirm that takes longer is given up with its incarnation: the broker is gone, or has raised an alarm.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);
/// Most publishes under way on the channel.
const IN_FLIGHT_MAX: usize = 256;
/// Written to disk before it is confirmed.
const PERSISTENT: u8 = 2;

/// Something to publish.
#[derive(Debug, Clone)]
pub struct Outgoing {
    pub(super) exchange: String,
    pub(super) routing_key: String,
    pub(super) properties: BasicProperties,
    pub(super) body: Vec<u8>,
    pub(super) mandatory: bool,
}

impl Outgoing {
    /// A CloudEvent in structured mode, to a queue or back to us.
    pub fn event(exchange: String, event_type: &str, body: Vec<u8>) -> Self {
        Self {
            exchange,
            routing_key: event_type.into(),
            properties: BasicProperties::default()
                .with_delivery_mode(PERSISTENT)
                .with_content_type("application/cloudevents+json; charset=utf-8".into()),
            body,
            mandatory: true,
        }
    }

    /// A hint for every replica. Not persistent: a lost one is made good by the sweep.
    pub fn hint(exchange: String, replica: &str, body: Vec<u8>) -> Self {
        Self {
            exchange,
            routing_key: String::new(),
            properties: BasicProperties::default().with_app_id(replica.into()),
            body,
            mandatory: false,
        }
    }

    pub(super) fn persistent(properties: BasicProperties) -> BasicProperties {
        properties.with_delivery_mode(PERSISTENT)
    }
}

/// A connection that only publishes: the broker may block it in an alarm, and then a consumer on it would starve.
pub struct Publisher {
    connection: Connection,
    channel: Channel,
}

impl std::fmt::Debug for Publisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Publisher").finish_non_exhaustive()
    }
}

impl Publisher {
    /// Opens a new incarnation, with the topology declared or verified.
    pub async fn open(broker: &Broker) -> Result<Self, BrokerError> {
        let (connection, channel) = broker.open("publisher").await?;
        topology::ensure(&channel, &broker.names, broker.declare).await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(Self { connection, channel })
    }

    /// Publishes in order and returns when the broker has confirmed all. After an error nobody knows which arrived:
    /// the caller opens a new incarnation and publishes all again.
    ///
    /// `&mut self`, because lapin may swap the confirms of two tasks that publish on one channel at once.
    pub async fn publish(&mut self, messages: &[Outgoing]) -> Result<(), BrokerError> {
        match tokio::time::timeout(CONFIRM_TIMEOUT, self.publish_all(messages)).await {
            Ok(published) => published,
            Err(_) => Err(BrokerError::Timeout(CONFIRM_TIMEOUT, "confirming publishes")),
        }
    }

    async fn publish_all(&mut self, messages: &[Outgoing]) -> Result<(), BrokerError> {
        let mut confirms = FuturesUnordered::new();
        for message in messages {
            let options = BasicPublishOptions { mandatory: message.mandatory, ..Default::default() };
            let (exchange, key) = (message.exchange.as_str().into(), message.routing_key.as_str().into());
            let properties = message.properties.clone();
            confirms.push(self.channel.basic_publish(exchange, key, options, &message.body, properties).await?);
            if confirms.len() >= IN_FLIGHT_MAX
                && let Some(confirmation) = confirms.try_next().await?
            {
                check(&confirmation, message)?;
            }
        }
        while let Some(confirmation) = confirms.try_next().await? {
            if let Some(message) = messages.last() {
                check(&confirmation, message)?;
            }
        }
        Ok(())
    }

    /// Closes cleanly.
    pub async fn close(self) {
        close(self.connection).await;
    }
}

/// lapin may hang a returned message on the confirm of another, so a return fails the whole call, whosever it is.
fn check(confirmation: &Confirmation, message: &Outgoing) -> Result<(), BrokerError> {
    match confirmation {
        Confirmation::Ack(None) => Ok(()),
        Confirmation::Ack(Some(_)) => Err(BrokerError::Unroutable(message.exchange.clone())),
        Confirmation::Nack(_) | Confirmation::NotRequested => Err(BrokerError::NotConfirmed(message.exchange.clone())),
    }
}
