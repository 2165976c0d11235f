//! An event that meets every rule of the contract.

use std::fmt;

use serde_json::value::RawValue;
use time::OffsetDateTime;

use super::fact::Asked;
use super::import::Import;
use super::settlement::{Settlement, Subjects};
use crate::model::feed::Feed;

/// Longest `id`, in bytes. `id`, `source` and the feed form one unique index. Postgres bounds an
/// index entry to about 2,700 bytes, and the three bounds together are below that.
pub const ID_BYTES_MAX: usize = 512;
/// Longest `source`, in bytes: room for a URI. See [`ID_BYTES_MAX`].
pub const SOURCE_BYTES_MAX: usize = 1024;
/// Longest `type`, in bytes: it is the routing key, a shortstr of AMQP 0-9-1.
pub const TYPE_BYTES_MAX: usize = 255;
/// Longest `collapsekey`, in bytes: room for two names of feeds, and small enough for an index
/// entry.
pub const COLLAPSE_KEY_BYTES_MAX: usize = 256;
/// Longest `subject` and `settles`, in bytes: as long as a `source`, because some publishers name a URI.
pub const SUBJECT_BYTES_MAX: usize = 1024;
/// Longest `traceparent`, in bytes: the size of version 00 (W3C Trace Context §3.2.2).
pub const TRACEPARENT_BYTES_MAX: usize = 55;

/// An event that meets every rule of the contract: Postgres can store and index its texts.
#[derive(Clone)]
pub struct Event {
    /// `recipient`: the feed that stores it.
    pub recipient: Feed,
    /// `broadcast`: whether the publisher sends it to everyone, if the publisher set it.
    pub broadcast: Option<bool>,
    /// `id`: identifies the event together with `source` (CloudEvents 1.0, "id").
    pub id: String,
    /// `source`: a URI reference, which is not parsed (CloudEvents 1.0, "source").
    pub source: String,
    /// `type`: the kind of occurrence (CloudEvents 1.0, "type").
    pub event_type: String,
    /// `time`: the time of the occurrence, in UTC, cut to microseconds because Postgres keeps those
    /// (CloudEvents 1.0, "time").
    pub time: Option<OffsetDateTime>,
    /// `expirytime`: after this time the notification is skipped; in UTC, cut to microseconds
    /// (CloudEvents extension "Expiry Time").
    pub expires_at: Option<OffsetDateTime>,
    /// `collapsekey`, or the key that the schema of the type sets. A replay sends only the newest
    /// notification of each key.
    pub collapse_key: Option<String>,
    /// The import that it belongs to, if its type is of an import.
    pub import: Option<Import>,
    /// The names by which later events may settle it.
    pub subjects: Subjects,
    /// The earlier notifications that it settles, if it settles any.
    pub settles: Option<Settlement>,
    /// The facts that its publisher asks for, if it asks for any.
    pub asked: Option<Asked>,
    /// `traceparent` (CloudEvents extension "Distributed Tracing"), or else the header of that
    /// name, which instrumented publishers set. `None` if it cannot be used.
    pub traceparent: Option<String>,
    /// The data, byte for byte as published, without the white space around it. A published `null`
    /// is data and stays `null`.
    pub data: Option<Box<RawValue>>,
}

/// Omits the data, because logs must not contain it.
impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event")
            .field("recipient", &self.recipient)
            .field("broadcast", &self.broadcast)
            .field("id", &self.id)
            .field("source", &self.source)
            .field("event_type", &self.event_type)
            .field("time", &self.time)
            .field("expires_at", &self.expires_at)
            .field("collapse_key", &self.collapse_key)
            .field("import", &self.import)
            .field("subjects", &self.subjects)
            .field("settles", &self.settles)
            .field("asked", &self.asked)
            .field("traceparent", &self.traceparent)
            .field(
                "data_bytes",
                &self.data.as_ref().map(|data| data.get().len()),
            )
            .finish()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::super::sample;
    use super::*;
    use crate::model::feed::FEED_BYTES_MAX;

    #[test]
    fn debug_output_has_no_data() {
        let event = sample::structured_data("custom.thing", r#""s3cr3t""#).unwrap();
        let debug = format!("{event:?}");
        assert!(
            debug.contains("data_bytes: Some(8)") && !debug.contains("s3cr3t"),
            "{debug}"
        );
    }

    #[test]
    fn the_keys_of_the_unique_index_fit_into_one_entry() {
        const POSTGRES_BTREE_ENTRY_BYTES_MAX: usize = 2704;
        let key = ID_BYTES_MAX + SOURCE_BYTES_MAX + FEED_BYTES_MAX;
        assert!(key < POSTGRES_BTREE_ENTRY_BYTES_MAX);
    }
}
