//! Names of the OpenTelemetry semantic conventions, as of 1.37: messaging ("Development" there, so they may still change) and
//! database. Ours begin with `shopbell.`.

use opentelemetry::KeyValue;

/// The number of messages that are handled together.
pub(super) const BATCH_MESSAGE_COUNT: &str = "messaging.batch.message_count";
/// The queue, or exchange.
pub(super) const DESTINATION_NAME: &str = "messaging.destination.name";
/// The event's `id`.
pub(super) const MESSAGE_ID: &str = "messaging.message.id";
/// AMQP's routing key: the event's type.
pub(super) const ROUTING_KEY: &str = "messaging.rabbitmq.destination.routing_key";
/// What is spoken over a socket.
pub(super) const PROTOCOL_NAME: &str = "network.protocol.name";
/// A value of the former.
pub(super) const WEBSOCKET: &str = "websocket";
/// The feed of a notification.
pub(super) const FEED: &str = "shopbell.feed";
/// Its number there.
pub(super) const SEQ: &str = "shopbell.seq";

const SYSTEM: &str = "messaging.system";
const OPERATION_NAME: &str = "messaging.operation.name";
const OPERATION_TYPE: &str = "messaging.operation.type";

/// What is done with messages: the name in a span's name, its type, and in which system.
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
/// Ingest takes an event from RabbitMQ and stores it.
pub(super) const PROCESS: Operation = Operation {
    name: "process",
    kind: "process",
    system: "rabbitmq",
};
/// Ingest does so with many at once.
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
/// The client acknowledges it.
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

    /// What every messaging span says.
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

/// What a database span says.
pub(super) fn commit_attributes() -> Vec<KeyValue> {
    vec![
        KeyValue::new("db.system.name", "postgresql"),
        KeyValue::new("db.operation.name", "append"),
        KeyValue::new("db.collection.name", "notifications"),
    ]
}
