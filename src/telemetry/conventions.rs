//! Names of the OpenTelemetry semantic conventions 1.37 for messaging (status "Development") and databases. Names of our own
//! begin with `shopbell.`.

use opentelemetry::KeyValue;

/// The number of messages in a batch.
pub(super) const BATCH_MESSAGE_COUNT: &str = "messaging.batch.message_count";
/// The queue or exchange.
pub(super) const DESTINATION_NAME: &str = "messaging.destination.name";
/// The event's `id`.
pub(super) const MESSAGE_ID: &str = "messaging.message.id";
/// The routing key of AMQP, which is the event's type.
pub(super) const ROUTING_KEY: &str = "messaging.rabbitmq.destination.routing_key";
/// The protocol of a socket.
pub(super) const PROTOCOL_NAME: &str = "network.protocol.name";
/// A value of [`PROTOCOL_NAME`].
pub(super) const WEBSOCKET: &str = "websocket";
/// The feed of a notification.
pub(super) const FEED: &str = "shopbell.feed";
/// The number of a notification in its feed.
pub(super) const SEQ: &str = "shopbell.seq";

const SYSTEM: &str = "messaging.system";
const OPERATION_NAME: &str = "messaging.operation.name";
const OPERATION_TYPE: &str = "messaging.operation.type";

/// An operation on messages: its name in the span's name, its type, and its system.
#[derive(Debug, Clone, Copy)]
pub(super) struct Operation {
    name: &'static str,
    kind: &'static str,
    system: &'static str,
}

/// A publisher publishes to RabbitMQ; ingest publishes hints.
pub(super) const PUBLISH: Operation = Operation {
    name: "send",
    kind: "send",
    system: "rabbitmq",
};
/// Ingest stores an event.
pub(super) const PROCESS: Operation = Operation {
    name: "process",
    kind: "process",
    system: "rabbitmq",
};
/// Ingest stores a batch.
pub(super) const BATCH: Operation = Operation {
    name: "batch",
    kind: "process",
    system: "rabbitmq",
};
/// A session sends a notification to its client.
pub(super) const DELIVER: Operation = Operation {
    name: "send",
    kind: "send",
    system: "shopbell",
};
/// The client acknowledges a notification.
pub(super) const SETTLE: Operation = Operation {
    name: "ack",
    kind: "settle",
    system: "shopbell",
};

impl Operation {
    /// `{operation} {destination}`.
    pub(super) fn span_name(self, destination: &str) -> String {
        format!("{} {destination}", self.name)
    }

    /// The attributes of every messaging span.
    pub(super) fn attributes(self, destination: &str) -> Vec<KeyValue> {
        vec![
            KeyValue::new(SYSTEM, self.system),
            KeyValue::new(OPERATION_NAME, self.name),
            KeyValue::new(OPERATION_TYPE, self.kind),
            KeyValue::new(DESTINATION_NAME, destination.to_owned()),
        ]
    }
}

/// The transaction that stores a batch.
pub(super) const COMMIT: &str = "append notifications";

/// The attributes of a database span.
pub(super) fn commit_attributes() -> Vec<KeyValue> {
    vec![
        KeyValue::new("db.system.name", "postgresql"),
        KeyValue::new("db.operation.name", "append"),
        KeyValue::new("db.collection.name", "notifications"),
    ]
}
