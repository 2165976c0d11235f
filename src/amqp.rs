//! RabbitMQ: connections, the topology, publishing with confirms, and consuming.
//!
//! The other rooms pass [`Outgoing`](publisher::Outgoing) in and receive
//! [`Delivery`](delivery::Delivery). No other room uses lapin.
//!
//! A connection, its channels and its delivery tags are one *incarnation*. If any of them fails,
//! its owner drops all of them and opens a new incarnation. The recovery of lapin is off: it
//! reopens a channel, and the delivery tags of that channel begin anew. A late acknowledgement
//! would then acknowledge deliveries that are not stored.

pub mod checkup;
mod connection;
pub mod consumer;
pub mod dead_letter;
pub mod delivery;
pub mod depths;
pub mod publisher;
pub mod topology;
mod uri;

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::{Channel, ErrorKind};

use self::connection::{Connection, Frames};
use self::topology::Topology;
use self::uri::Address;

/// Longest time to connect, from the lookup of the host name to the end of the AMQP handshake.
/// Also the longest time to open a channel.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time to declare the topology. RabbitMQ creates a quorum queue on several nodes.
const DECLARE_TIMEOUT: Duration = Duration::from_secs(30);
/// Seconds between heartbeats if the URL does not set them. A broker that misses two is gone.
const HEARTBEAT_SECONDS: u16 = 10;
/// Longest time for a clean close, after which the socket is shut down. A step of the stop has 10 s.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// A failure of RabbitMQ or of a connection to it. The owner of the incarnation opens a new one.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// RabbitMQ or lapin reports an error.
    #[error("RabbitMQ: {0}")]
    Broker(#[from] lapin::Error),
    /// The handshake with RabbitMQ at this address failed, for this reason.
    #[error("RabbitMQ at {address}: {reason}")]
    Handshake {
        /// `host:port`.
        address: String,
        /// The reason with its remedy.
        reason: String,
    },
    /// RabbitMQ did not answer in time.
    #[error("RabbitMQ did not answer within {0:?} while {1}")]
    Timeout(Duration, &'static str),
    /// The consumer of this queue ended: the queue was deleted, or the connection was lost.
    #[error("RabbitMQ ended the consumer of {0}")]
    ConsumerEnded(String),
    /// All consumers of a channel ended.
    #[error("RabbitMQ ended all consumers")]
    ConsumersEnded,
    /// RabbitMQ confirms hints and delivers none, so the queue has lost its binding.
    #[error("RabbitMQ takes hints and delivers none; the queue of hints is bound again")]
    NothingDelivered,
    /// RabbitMQ rejected a publish to this exchange, or lost it.
    #[error("RabbitMQ did not confirm a publish to the exchange {0}")]
    NotConfirmed(String),
    /// RabbitMQ blocks publishers because of an alarm for memory or disk.
    #[error("RabbitMQ blocks publishers because of an alarm; free memory or disk on its node")]
    Blocked,
    /// The last attempt failed a short time ago, so no new one is made.
    #[error("RabbitMQ failed less than {0:?} ago; the next attempt comes later")]
    FailedBefore(Duration),
    /// The name of an exchange or a routing key has too many bytes for AMQP.
    #[error("the name of an exchange or a routing key has {0} bytes; AMQP allows 255")]
    NameTooLong(usize),
    /// A publish to this exchange reached no queue.
    #[error("RabbitMQ routed a publish to the exchange {0} to no queue; check its bindings")]
    Unroutable(String),
}

impl BrokerError {
    /// Returns whether RabbitMQ or AMQP refuses a publish for ever, for example because it is too large
    /// (PRECONDITION_FAILED).
    pub fn refuses_a_publish(&self) -> bool {
        match self {
            Self::NameTooLong(_) => true,
            Self::Broker(error) => matches!(
                error.kind(),
                ErrorKind::ProtocolError(error)
                    if matches!(error.kind(), AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED))
            ),
            _ => false,
        }
    }
}

/// The type of the ingest queues. RabbitMQ cannot change it for a queue that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueType {
    /// Replicated, with a delivery limit.
    Quorum,
    /// On one node. It is faster, and has no delivery limit.
    Classic,
}

/// The address of RabbitMQ, and the names that Shopbell uses there.
#[derive(Clone)]
pub struct Broker {
    /// The parsed `AMQP_URL`, which all clones share. Locked only to copy or to replace the pointer.
    address: Arc<RwLock<Arc<Address>>>,
    /// The names of exchanges and queues.
    pub names: topology::Names,
    /// The number of ingest queues.
    pub partitions: u8,
    /// The type of the ingest queues.
    pub queue_type: QueueType,
    /// Whether to declare the topology, or only to verify that it exists.
    pub declare: bool,
    publishing: publisher::Shared,
}

impl std::fmt::Debug for Broker {
    /// Omits the URL, because it holds a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Broker")
            .field("names", &self.names)
            .field("partitions", &self.partitions)
            .field("queue_type", &self.queue_type)
            .field("declare", &self.declare)
            .finish_non_exhaustive()
    }
}

impl Broker {
    /// Uses the RabbitMQ of an `amqp` or `amqps` URL.
    ///
    /// # Errors
    /// The URL is not valid. The text does not repeat the URL, because it holds a password.
    pub fn new(
        url: &str,
        prefix: &str,
        partitions: u8,
        queue_type: QueueType,
        declare: bool,
    ) -> Result<Self, String> {
        Ok(Self {
            address: Arc::new(RwLock::new(Arc::new(parse(url)?))),
            names: topology::Names::new(prefix),
            partitions,
            queue_type,
            declare,
            publishing: publisher::Shared::default(),
        })
    }

    /// The host of RabbitMQ, and whether the connection is encrypted.
    pub fn host(&self) -> (String, bool) {
        let address = self.address();
        (address.uri.authority.host.clone(), address.is_encrypted())
    }

    /// Uses this URL for each new connection. If it leads to another host, port or virtual host, or differs in TLS, ends
    /// the open connections, so that all parts use the same broker. Otherwise they stay open.
    ///
    /// # Errors
    /// The URL is not valid. Nothing changes then.
    pub fn use_url(&self, url: &str) -> Result<(), String> {
        let mut address = parse(url)?;
        let mut current = self.address.write().unwrap_or_else(PoisonError::into_inner);
        if address.is_same_place(&current) {
            address.sockets = current.sockets.clone();
        } else {
            current.sockets.replace();
        }
        *current = Arc::new(address);
        Ok(())
    }

    /// Whether RabbitMQ blocks the publishers of this process because of an alarm.
    pub fn blocks_publishers(&self) -> bool {
        self.publishing.is_blocked()
    }

    fn address(&self) -> Arc<Address> {
        let address = self.address.read();
        address.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Declares or verifies the topology over a connection of its own.
    ///
    /// # Errors
    /// RabbitMQ does not answer, or rejects a part of the topology.
    pub async fn ensure(&self) -> Result<Topology, BrokerError> {
        let (connection, channel, topology) = self.open("declare", Frames::Small).await?;
        connection.close(&channel).await;
        Ok(topology)
    }

    /// Opens a connection with one channel, and declares or verifies the topology.
    async fn open(
        &self,
        purpose: &str,
        frames: Frames,
    ) -> Result<(Connection, Channel, Topology), BrokerError> {
        let connection = Connection::open(&self.address(), purpose, frames).await?;
        let channel = connection.channel().await?;
        let topology = self.ensure_on(&connection, &channel).await?;
        Ok((connection, channel, topology))
    }

    /// Declares or verifies the topology on this channel.
    async fn ensure_on(
        &self,
        connection: &Connection,
        channel: &Channel,
    ) -> Result<Topology, BrokerError> {
        let ensuring = topology::ensure(connection, channel, self);
        within(DECLARE_TIMEOUT, "declaring exchanges and queues", ensuring).await
    }
}

fn parse(url: &str) -> Result<Address, String> {
    let mut address = uri::parse(url)?;
    address.uri.query.heartbeat.get_or_insert(HEARTBEAT_SECONDS);
    Ok(address)
}

/// Bounds the wait for an answer. Heartbeats do not: a broker may send them and never answer.
async fn within<T>(
    limit: Duration,
    what: &'static str,
    answer: impl Future<Output = Result<T, BrokerError>>,
) -> Result<T, BrokerError> {
    tokio::time::timeout(limit, answer)
        .await
        .unwrap_or(Err(BrokerError::Timeout(limit, what)))
}
