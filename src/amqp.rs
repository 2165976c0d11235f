//! RabbitMQ: connections, topology, publishing with confirms, consuming. Nobody else names lapin.
//!
//! A connection, its channels and its delivery tags are one *incarnation*: whatever fails, the whole is dropped and a new
//! one opened by its owner. lapin's own recovery is off, because it reopens a channel whose delivery tags begin anew, where
//! a late acknowledgement would acknowledge deliveries that nobody stored.

pub mod checkup;
mod connection;
pub mod consumer;
pub mod dead_letter;
pub mod delivery;
pub mod depths;
pub mod publisher;
pub mod topology;
mod uri;

use std::time::Duration;

use lapin::Channel;
use lapin::uri::AMQPUri;

use self::connection::{Connection, Frames};
use self::topology::Topology;

/// How long connecting may take, from the name of the host to the end of the AMQP handshake; and opening a channel.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long declaring everything may take: RabbitMQ makes a quorum queue on several nodes.
const DECLARE_TIMEOUT: Duration = Duration::from_secs(30);
/// Seconds between heartbeats where the URL names none: a broker that is silent for two of them is gone.
const HEARTBEAT_SECONDS: u16 = 10;
/// How long a clean close may take before the socket is ended without it.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// What went wrong with the broker. Its remedy is always a new incarnation; the text is for the log.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// The library or the broker says so.
    #[error("RabbitMQ: {0}")]
    Broker(#[from] lapin::Error),
    /// No answer in time.
    #[error("RabbitMQ did not answer within {0:?} while {1}")]
    Timeout(Duration, &'static str),
    /// The consumer ended: its queue was deleted, or the connection was lost.
    #[error("RabbitMQ ended the consumer of {0}")]
    ConsumerEnded(String),
    /// The broker said no to a publish, or lost it.
    #[error("RabbitMQ did not confirm a publish to {0}")]
    NotConfirmed(String),
    /// The broker has raised an alarm, for memory or disk.
    #[error("RabbitMQ has raised an alarm and takes no publishes")]
    Blocked,
    /// It failed just before, and is not tried again so soon.
    #[error("RabbitMQ failed less than {0:?} ago and is not tried yet")]
    FailedBefore(Duration),
    /// An exchange or routing key is longer than AMQP has room for.
    #[error("RabbitMQ takes names of up to 255 bytes, not of {0}")]
    NameTooLong(usize),
    /// A dead letter that was stored cannot be read back.
    #[error("the properties of a stored dead letter are not encoded as AMQP does it")]
    Undecodable,
    /// A publish reached no queue.
    #[error("RabbitMQ could route a publish to {0} to no queue")]
    Unroutable(String),
}

/// Where the broker is, and how our names there begin.
#[derive(Clone)]
pub struct Broker {
    /// The parsed `AMQP_URL`.
    uri: AMQPUri,
    /// Names of exchanges and queues.
    pub names: topology::Names,
    /// How many queues the events are spread over.
    pub partitions: u8,
    /// Declare the topology, or only verify that it exists.
    pub declare: bool,
    publishing: publisher::Shared,
}

impl std::fmt::Debug for Broker {
    /// Without the URL, which holds a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Broker")
            .field("names", &self.names)
            .field("partitions", &self.partitions)
            .field("declare", &self.declare)
            .finish_non_exhaustive()
    }
}

impl Broker {
    /// Takes an `amqp` or `amqps` URL. The error does not repeat the URL, which holds a password.
    pub fn new(url: &str, prefix: &str, partitions: u8, declare: bool) -> Result<Self, String> {
        let mut uri = uri::parse(url)?;
        uri.query.heartbeat.get_or_insert(HEARTBEAT_SECONDS);
        Ok(Self {
            uri,
            names: topology::Names::new(prefix),
            partitions,
            declare,
            publishing: publisher::Shared::default(),
        })
    }

    /// Declares the topology, or verifies it, and does nothing more.
    pub async fn ensure(&self) -> Result<Topology, BrokerError> {
        let (connection, channel, topology) = self.open("declare", Frames::Small).await?;
        connection.close(&channel).await;
        Ok(topology)
    }

    /// Opens a connection and a channel on it, with the topology declared or verified.
    async fn open(
        &self,
        purpose: &str,
        frames: Frames,
    ) -> Result<(Connection, Channel, Topology), BrokerError> {
        let connection = Connection::open(&self.uri, purpose, frames).await?;
        let channel = connection.channel().await?;
        let topology = self.ensure_on(&connection, &channel).await?;
        Ok((connection, channel, topology))
    }

    /// Declares the topology, or verifies it, on this channel.
    async fn ensure_on(
        &self,
        connection: &Connection,
        channel: &Channel,
    ) -> Result<Topology, BrokerError> {
        let ensuring = topology::ensure(connection, channel, self);
        within(DECLARE_TIMEOUT, "declaring exchanges and queues", ensuring).await
    }
}

/// Gives an answer of the broker a limit: heartbeats go on while one does not come.
async fn within<T>(
    limit: Duration,
    what: &'static str,
    answer: impl Future<Output = Result<T, BrokerError>>,
) -> Result<T, BrokerError> {
    tokio::time::timeout(limit, answer)
        .await
        .unwrap_or(Err(BrokerError::Timeout(limit, what)))
}
