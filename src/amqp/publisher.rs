//! Publishing with confirms.

use std::time::Duration;

use futures_util::stream::{FuturesUnordered, TryStreamExt};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::ShortString;
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

/// A connection that only publishes: the broker may block it in an alarm, and then a consumer on it would starve. It is
/// opened when it is needed, and dropped after any failure.
#[derive(Debug)]
pub struct Publisher {
    broker: Broker,
    incarnation: Option<Incarnation>,
}

struct Incarnation {
    connection: Connection,
    channel: Channel,
}

impl std::fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Incarnation").finish_non_exhaustive()
    }
}

impl Publisher {
    /// Connects, with the topology declared or verified.
    pub async fn open(broker: &Broker) -> Result<Self, BrokerError> {
        Ok(Self { broker: broker.clone(), incarnation: Some(Incarnation::open(broker).await?) })
    }

    /// Publishes in order and returns when the broker has confirmed all. After an error nobody knows which arrived:
    /// the caller publishes all again.
    ///
    /// `&mut self`, because lapin may swap the confirms of two tasks that publish on one channel at once.
    pub async fn publish(&mut self, messages: &[Outgoing]) -> Result<(), BrokerError> {
        self.publish_within(CONFIRM_TIMEOUT, messages).await
    }

    /// The same, for one who does not wait as long.
    pub async fn publish_within(&mut self, limit: Duration, messages: &[Outgoing]) -> Result<(), BrokerError> {
        // Taken out, so that whatever goes wrong on the way drops it.
        let mut taken = self.incarnation.take();
        let publishing = async {
            let incarnation = match taken.take() {
                Some(incarnation) => incarnation,
                None => Incarnation::open(&self.broker).await?,
            };
            incarnation.publish(messages).await?;
            Ok::<_, BrokerError>(incarnation)
        };
        match tokio::time::timeout(limit, publishing).await {
            Ok(published) => {
                self.incarnation = Some(published?);
                Ok(())
            }
            Err(_) => Err(BrokerError::Timeout(limit, "confirming publishes")),
        }
    }

    /// Closes cleanly.
    pub async fn close(self) {
        if let Some(incarnation) = self.incarnation {
            close(incarnation.connection).await;
        }
    }
}

impl Incarnation {
    async fn open(broker: &Broker) -> Result<Self, BrokerError> {
        let (connection, channel) = broker.open("publisher").await?;
        topology::ensure(&channel, &broker.names, broker.declare).await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(Self { connection, channel })
    }

    async fn publish(&self, messages: &[Outgoing]) -> Result<(), BrokerError> {
        let mut confirms = FuturesUnordered::new();
        for message in messages {
            let options = BasicPublishOptions { mandatory: message.mandatory, ..Default::default() };
            let name = |name: &String| ShortString::try_new(name).map_err(|_| BrokerError::NameTooLong(name.len()));
            let (exchange, key) = (name(&message.exchange)?, name(&message.routing_key)?);
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
}

/// lapin may hang a returned message on the confirm of another, so a return fails the whole call, whosever it is.
fn check(confirmation: &Confirmation, message: &Outgoing) -> Result<(), BrokerError> {
    match confirmation {
        Confirmation::Ack(None) => Ok(()),
        Confirmation::Ack(Some(_)) => Err(BrokerError::Unroutable(message.exchange.clone())),
        Confirmation::Nack(_) | Confirmation::NotRequested => Err(BrokerError::NotConfirmed(message.exchange.clone())),
    }
}
