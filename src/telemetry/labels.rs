//! The label values of metrics, as enums, so that a misspelled value does not compile and each series exists from the start.

use std::fmt;
use std::hash::Hash;

use prometheus_client::encoding::{EncodeLabelValue, LabelValueEncoder};

/// A value of a label. The number of its values is bounded by the program.
pub trait LabelValue:
    EncodeLabelValue + Copy + Eq + Hash + fmt::Debug + Send + Sync + 'static
{
}

impl<T: EncodeLabelValue + Copy + Eq + Hash + fmt::Debug + Send + Sync + 'static> LabelValue for T {}

/// Defines an enum with the text of each value, [`EncodeLabelValue`] and a list of all values.
macro_rules! label_values {
    ($(#[$docs:meta])* $name:ident { $($(#[$value_docs:meta])* $value:ident = $text:literal,)+ }) => {
        $(#[$docs])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[$value_docs])* $value,)+
        }

        impl $name {
            /// Every value.
            pub const ALL: &[Self] = &[$(Self::$value,)+];

            /// The text of the label.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$value => $text,)+
                }
            }
        }

        impl EncodeLabelValue for $name {
            fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
                EncodeLabelValue::encode(&self.as_str(), encoder)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

label_values! {
    /// Work that failed in Postgres or RabbitMQ and is tried again.
    Retried {
        /// The write of a batch.
        Append = "append",
        /// The read of cursors when a session opens.
        Cursors = "cursors",
        /// The write of acks.
        Acks = "acks",
        /// The read of pages.
        Pages = "pages",
        /// The sweep, and the reads of all newest numbers.
        Sweep = "sweep",
        /// The write of marks. The label is historical: marks were once named answers.
        Marks = "answers",
        /// The connection of ingest.
        Ingest = "ingest",
        /// The connection of the fan-out.
        Fanout = "fanout",
        /// A probe. The label is historical: probes were once named watch.
        Probes = "watch",
        /// The publishing of dead letters.
        DeadLetters = "dead_letters",
        /// The release of held feeds.
        HeldFeeds = "held_feeds",
        /// The publish of receipts.
        Receipts = "receipts",
        /// The removal of old notifications.
        Retention = "retention",
        /// The write of presence.
        Presence = "presence",
    }
}

label_values! {
    /// The evidence that hints were lost.
    Evidence {
        /// A number of a stream did not arrive.
        Gap = "gap",
        /// A stream is heard for the first time.
        NewStream = "new_stream",
        /// A process publishes no heartbeats, or those of this process do not arrive.
        Silence = "silence",
        /// This gateway has no connection to RabbitMQ.
        Disconnect = "disconnect",
        /// This gateway has a new queue.
        Reconnect = "reconnect",
        /// A write of this replica was repeated, and its first attempt may have been stored.
        Write = "write",
    }
}

label_values! {
    /// The reason of a refused handshake, or of a refused request of the history or of a publisher.
    RequestRefused {
        /// The request breaks RFC 6455 or the protocol.
        BadRequest = "bad_request",
        /// The page's origin is not allowed.
        Origin = "origin",
        /// The token is missing, invalid or expired.
        Token = "token",
        /// The token has no feed.
        Feed = "feed",
        /// The replica or the subscriber has too many sessions.
        TooMany = "too_many",
        /// The address has too many sessions.
        TooManyOfAddress = "too_many_of_address",
        /// A bound on requests or on failed tokens is reached.
        TooFast = "too_fast",
        /// The replica drains, or Postgres does not return what the request needs.
        NotReady = "not_ready",
    }
}

label_values! {
    /// The transport of a session without a WebSocket.
    HttpTransport {
        /// Server-Sent Events.
        Stream = "stream",
        /// Long polling.
        Poll = "poll",
    }
}

label_values! {
    /// The verdict of an event that a publisher sent by HTTP.
    EventVerdict {
        /// RabbitMQ confirmed it.
        Accepted = "accepted",
        /// It can never be stored, or the token does not allow its recipient.
        Refused = "refused",
    }
}

label_values! {
    /// The reason of a refused token.
    TokenRefused {
        /// The request has none.
        Missing = "missing",
        /// Its form, a claim or its subject is wrong.
        Invalid = "invalid",
        /// No key can have its algorithm.
        Algorithm = "algorithm",
        /// No key signed it, and its claims are wrong too.
        Signature = "signature",
        /// Its audience is wrong or missing.
        Audience = "audience",
        /// Its issuer is wrong or missing.
        Issuer = "issuer",
        /// No key signed it, and its claims are valid.
        KeyUnknown = "key_unknown",
        /// It is valid later.
        NotYetValid = "not_yet_valid",
        /// It has expired.
        Expired = "expired",
        /// It names no feed.
        Feed = "feed",
        /// It names no recipient to whom it may publish.
        Publish = "publish",
    }
}

label_values! {
    /// The result of a fetch of the issuer's key set.
    JwksFetch {
        /// The set is in use.
        Ok = "ok",
        /// The last set stays in use.
        Failed = "failed",
    }
}

label_values! {
    /// The reason for which the server ended a connection that is not a session.
    ConnectionDropped {
        /// The head of the request did not arrive in time.
        Head = "head",
        /// The connection was idle for too long.
        Idle = "idle",
        /// The client did not read the response.
        Stalled = "stalled",
        /// A new connection needed the place.
        Crowded = "crowded",
    }
}

label_values! {
    /// A step of the canary.
    CanaryStep {
        /// It connects like a client.
        Connect = "connect",
        /// It publishes an event.
        Publish = "publish",
        /// It receives the notification.
        Deliver = "deliver",
        /// Its ack is stored.
        Ack = "ack",
    }
}

label_values! {
    /// The state of a dead letter or a held event.
    DeadLetterState {
        /// Dead letters in Postgres.
        Stored = "stored",
        /// Dead letters that are not published to RabbitMQ yet.
        Unpublished = "unpublished",
        /// Events that wait for a damaged feed.
        Held = "held",
    }
}

label_values! {
    /// A part of a replica whose state `/readyz` and the metrics report.
    HealthPart {
        /// Ingest of all partitions.
        Ingest = "ingest",
        /// The receiver of hints.
        Fanout = "fanout",
    }
}

label_values! {
    /// The part of a relay that failed.
    RelayFailure {
        /// The database of the outbox.
        Database = "database",
        /// RabbitMQ.
        Publish = "publish",
        /// A row that can never be published.
        Row = "row",
        /// The probe of the lag.
        Probe = "probe",
    }
}
