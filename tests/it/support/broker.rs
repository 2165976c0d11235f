//! RabbitMQ from outside: the content of queues, and the removal of exchanges.

use lapin::options::{
    BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, ExchangeDeclareOptions,
    ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
    QueuePurgeOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, Consumer, ExchangeKind};
use tokio::time::timeout;

use super::{PATIENCE, eventually};

/// Queues that Shopbell declares, without the prefix.
const QUEUES: [&str; 8] = [
    "gateways",
    "ingest",
    "ingest.2",
    "ingest.3",
    "ingest.4",
    "dead-letter",
    "unroutable",
    "receipts-queue",
];
/// Exchanges that Shopbell declares, without the prefix.
const EXCHANGES: [&str; 7] = [
    "events",
    "entry",
    "partitions",
    "dead-letter",
    "unroutable",
    "fanout",
    "receipts",
];

/// A connection to inspect and change RabbitMQ.
pub struct Broker {
    connection: Connection,
}

/// A message in a queue.
#[derive(Debug, Clone)]
pub struct Letter {
    pub body: Vec<u8>,
    /// Their content type.
    pub content_type: Option<String>,
    /// The `app_id` property.
    pub app_id: Option<String>,
    headers: FieldTable,
}

impl Letter {
    /// The body as text.
    #[allow(
        dead_code,
        reason = "the chaos stories do not use it, and both test binaries share this file"
    )]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// An application header as text.
    pub fn header(&self, name: &str) -> Option<String> {
        match self.headers.inner().get(name)? {
            AMQPValue::LongString(text) => Some(text.to_string()),
            AMQPValue::ShortString(text) => Some(text.to_string()),
            other => Some(format!("{other:?}")),
        }
    }
}

impl Broker {
    /// Connects.
    pub async fn connect(amqp_url: &str) -> Self {
        let connect = Connection::connect(amqp_url, ConnectionProperties::default());
        let connection = timeout(PATIENCE, connect)
            .await
            .expect("RabbitMQ replies in time");
        Self {
            connection: connection.expect("RabbitMQ can be reached"),
        }
    }

    /// Whether RabbitMQ accepts the user and the password of this URL.
    pub async fn accepts(amqp_url: &str) -> bool {
        let connect = Connection::connect(amqp_url, ConnectionProperties::default());
        match timeout(PATIENCE, connect).await {
            Ok(Ok(_)) => true,
            Ok(Err(error)) if error.to_string().contains("ACCESS_REFUSED") => false,
            other => panic!("RabbitMQ can be reached: {other:?}"),
        }
    }

    /// The number of ready messages in `queue`; `None` if the queue does not exist.
    pub async fn depth(&self, queue: &str) -> Option<u32> {
        // On a channel of its own, because asking for a missing queue closes it.
        let options = QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::default()
        };
        let declared = self
            .channel()
            .await
            .queue_declare(queue.into(), options, FieldTable::default())
            .await;
        declared.ok().map(|queue| queue.message_count())
    }

    /// Reads `queue` until it holds `count` dead letters, and puts them back unchanged.
    pub async fn letters(&self, queue: &str, count: usize) -> Vec<Letter> {
        eventually(
            &format!("{count} letters lie in {queue}"),
            PATIENCE,
            async || {
                let letters = self.read(queue).await;
                if letters.len() == count {
                    Ok(letters)
                } else {
                    Err(format!("{letters:?}"))
                }
            },
        )
        .await
    }

    /// Deletes an exchange with its bindings, unknown to Shopbell.
    pub async fn delete_exchange(&self, name: &str) {
        let deleted = self
            .channel()
            .await
            .exchange_delete(name.into(), ExchangeDeleteOptions::default())
            .await;
        deleted.expect("an exchange can be deleted");
    }

    /// Declares a durable fan-out exchange without a binding.
    pub async fn declare_fanout(&self, name: &str) {
        let options = ExchangeDeclareOptions {
            durable: true,
            ..ExchangeDeclareOptions::default()
        };
        let declare = self.channel().await;
        let declared = declare
            .exchange_declare(
                name.into(),
                ExchangeKind::Fanout,
                options,
                FieldTable::default(),
            )
            .await;
        declared.expect("an exchange can be declared");
    }

    /// Publishes to a fan-out exchange as another process, with a header of numbers and no hints.
    #[allow(
        dead_code,
        reason = "the chaos stories do not use it, and both test binaries share this file"
    )]
    pub async fn announce(&self, exchange: &str, numbers: &str) {
        self.announce_as("another", exchange, numbers).await;
    }

    /// The same as the process of this name.
    #[allow(
        dead_code,
        reason = "the chaos stories do not use it, and both test binaries share this file"
    )]
    pub async fn announce_as(&self, process: &str, exchange: &str, numbers: &str) {
        let mut header = FieldTable::default();
        let numbers = AMQPValue::LongString(numbers.into());
        header.insert("shopbell-announcement".into(), numbers);
        let properties = BasicProperties::default()
            .with_app_id(process.into())
            .with_headers(header);
        let options = BasicPublishOptions::default();
        let channel = self.channel().await;
        let published = channel
            .basic_publish(exchange.into(), "".into(), options, b"[]", properties)
            .await;
        published.expect("a message can be published");
    }

    /// Copies the messages of an exchange from now on, and returns the queue of the copies. It lasts as long
    /// as this connection.
    #[allow(
        dead_code,
        reason = "the chaos stories do not use it, and both test binaries share this file"
    )]
    pub async fn copies_of(&self, exchange: &str) -> String {
        let channel = self.channel().await;
        let options = QueueDeclareOptions {
            exclusive: true,
            ..QueueDeclareOptions::default()
        };
        let declared = channel
            .queue_declare("".into(), options, FieldTable::default())
            .await
            .expect("a queue can be declared");
        let queue = declared.name().to_string();
        let (bind, none) = (QueueBindOptions::default(), FieldTable::default());
        channel
            .queue_bind(
                queue.as_str().into(),
                exchange.into(),
                "".into(),
                bind,
                none,
            )
            .await
            .expect("a queue can be bound");
        queue
    }

    /// Consumes a queue `count` times, until the consumers are dropped.
    #[allow(
        dead_code,
        reason = "the chaos stories do not use it, and both test binaries share this file"
    )]
    pub async fn consume(&self, queue: &str, count: usize) -> Vec<Consumer> {
        let (channel, mut consumers) = (self.channel().await, Vec::new());
        for _ in 0..count {
            let (options, none) = (BasicConsumeOptions::default(), FieldTable::default());
            let consumer = channel
                .basic_consume(queue.into(), "".into(), options, none)
                .await;
            consumers.push(consumer.expect("a queue can be consumed"));
        }
        consumers
    }

    /// Removes a queue's binding to a topic exchange, unknown to Shopbell.
    pub async fn unbind(&self, queue: &str, exchange: &str) {
        let (key, none) = ("#".into(), FieldTable::default());
        let unbound = self
            .channel()
            .await
            .queue_unbind(queue.into(), exchange.into(), key, none)
            .await;
        unbound.expect("a binding can be removed");
    }

    /// Purges a queue.
    pub async fn purge(&self, queue: &str) {
        let purged = self
            .channel()
            .await
            .queue_purge(queue.into(), QueuePurgeOptions::default())
            .await;
        purged.expect("a queue can be purged");
    }

    /// Declares a durable queue without arguments, which is a classic one.
    pub async fn declare_classic(&self, name: &str) {
        let options = QueueDeclareOptions {
            durable: true,
            ..QueueDeclareOptions::default()
        };
        let declared = self
            .channel()
            .await
            .queue_declare(name.into(), options, FieldTable::default())
            .await;
        declared.expect("a queue can be declared");
    }

    /// Declares a durable queue that gets all of a topic exchange.
    pub async fn declare_queue_of(&self, queue: &str, exchange: &str) {
        self.declare_classic(queue).await;
        let (options, arguments) = (QueueBindOptions::default(), FieldTable::default());
        let bind = self.channel().await;
        let bound = bind
            .queue_bind(
                queue.into(),
                exchange.into(),
                "#".into(),
                options,
                arguments,
            )
            .await;
        bound.expect("a queue can be bound");
    }

    /// Takes all messages of a queue.
    pub async fn take_all(&self, queue: &str) -> Vec<Letter> {
        self.get(queue, BasicGetOptions { no_ack: true }).await
    }

    /// Deletes all that Shopbell declared under `prefix`.
    pub async fn clear(&self, prefix: &str) {
        let channel = self.channel().await;
        for queue in QUEUES {
            let name = format!("{prefix}.{queue}").as_str().into();
            channel
                .queue_delete(name, QueueDeleteOptions::default())
                .await
                .expect("a queue can be deleted");
        }
        for exchange in EXCHANGES {
            self.delete_exchange(&format!("{prefix}.{exchange}")).await;
        }
    }

    /// All of `queue`. Nothing is acknowledged, so closing the channel puts it back.
    pub async fn read(&self, queue: &str) -> Vec<Letter> {
        self.get(queue, BasicGetOptions::default()).await
    }

    /// All of `queue`. Closing the channel puts back all that is not acknowledged.
    async fn get(&self, queue: &str, options: BasicGetOptions) -> Vec<Letter> {
        let (channel, mut letters) = (self.channel().await, Vec::new());
        while let Ok(Some(message)) = channel.basic_get(queue.into(), options).await {
            let properties = &message.delivery.properties;
            letters.push(Letter {
                content_type: properties.content_type().as_ref().map(ToString::to_string),
                app_id: properties.app_id().as_ref().map(ToString::to_string),
                headers: properties.headers().clone().unwrap_or_default(),
                body: message.delivery.data,
            });
        }
        channel.close(200, "read".into()).await.ok();
        letters
    }

    async fn channel(&self) -> Channel {
        self.connection
            .create_channel()
            .await
            .expect("a channel can be opened")
    }
}
