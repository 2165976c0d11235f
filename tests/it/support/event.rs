//! Events as publishers write them: structured CloudEvents 1.0, and anything else that may arrive
//! over AMQP.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use serde::Serialize;
use serde_json::value::RawValue;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// The default source of events in the stories.
pub const SOURCE: &str = "/shop/orders";

/// A CloudEvents event. It is well formed unless a story changes it.
#[derive(Clone, Serialize)]
pub struct Event {
    specversion: &'static str,
    id: String,
    source: String,
    #[serde(rename = "type")]
    event_type: String,
    recipient: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    expirytime: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    collapsekey: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    broadcast: Option<bool>,
    #[serde(flatten)]
    attributes: BTreeMap<&'static str, String>,
    data: Box<RawValue>,
}

impl Event {
    /// An event of any type, with its data as JSON text.
    pub fn new(event_type: &str, recipient: &str, data: &str) -> Self {
        Self {
            specversion: "1.0",
            id: unique_id(),
            source: SOURCE.to_owned(),
            event_type: event_type.to_owned(),
            recipient: recipient.to_owned(),
            expirytime: None,
            collapsekey: None,
            broadcast: None,
            attributes: BTreeMap::new(),
            data: RawValue::from_string(data.to_owned()).expect("the story's data is JSON"),
        }
    }

    /// A new order of `recipient`.
    pub fn order(recipient: &str) -> Self {
        let id = unique_id();
        let data = format!(r#"{{"order_id":"{id}","total":"19.90","currency":"EUR","items":2}}"#);
        Self::new("order.created", recipient, &data).id(&id)
    }

    /// A new order of `recipient` with this `order_id`.
    pub fn order_with_id(recipient: &str, order_id: &str) -> Self {
        let data =
            format!(r#"{{"order_id":"{order_id}","total":"19.90","currency":"EUR","items":2}}"#);
        Self::new("order.created", recipient, &data)
    }

    /// The cancellation of an order.
    pub fn cancellation(recipient: &str, order_id: &str) -> Self {
        let data = format!(r#"{{"order_id":"{order_id}","reason":"out of stock"}}"#);
        Self::new("order.cancelled", recipient, &data)
    }

    /// `count` orders of `recipient`, in the order of their numbers.
    pub fn orders(recipient: &str, count: usize) -> Vec<Self> {
        (0..count).map(|_| Self::order(recipient)).collect()
    }

    /// The start of an import.
    pub fn import_started(recipient: &str, import: &str, total: usize) -> Self {
        Self::new(
            "import.started",
            recipient,
            &format!(r#"{{"import_id":"{import}","total":{total}}}"#),
        )
    }

    /// An imported or failed item.
    pub fn import_item(recipient: &str, import: &str, index: usize, failed: bool) -> Self {
        let outcome = if failed {
            r#""failed","error":"no price""#
        } else {
            r#""imported""#
        };
        let data = format!(
            r#"{{"import_id":"{import}","index":{index},"sku":"S-{index}","status":{outcome}}}"#
        );
        Self::new("import.item", recipient, &data)
    }

    /// The end of an import.
    pub fn import_finished(recipient: &str, import: &str, status: &str) -> Self {
        Self::new(
            "import.finished",
            recipient,
            &format!(r#"{{"import_id":"{import}","status":"{status}"}}"#),
        )
    }

    /// The id of the event, unique within its source.
    pub fn id(mut self, id: &str) -> Self {
        self.id = id.to_owned();
        self
    }

    pub fn source(mut self, source: &str) -> Self {
        self.source = source.to_owned();
        self
    }

    /// Sets any other attribute.
    pub fn attribute(mut self, name: &'static str, value: &str) -> Self {
        self.attributes.insert(name, value.to_owned());
        self
    }

    /// Only the newest event with the same key matters.
    pub fn collapse_key(mut self, key: &str) -> Self {
        self.collapsekey = Some(key.to_owned());
        self
    }

    /// Marks it for everyone.
    pub fn broadcast(mut self, broadcast: bool) -> Self {
        self.broadcast = Some(broadcast);
        self
    }

    /// The event expires after `seconds`, which may be negative.
    pub fn expires_in_seconds(self, seconds: i64) -> Self {
        self.expires_at(OffsetDateTime::now_utc() + time::Duration::seconds(seconds))
    }

    /// The event expires at this time.
    pub fn expires_at(mut self, at: OffsetDateTime) -> Self {
        self.expirytime = Some(at.format(&Rfc3339).expect("a time can be written"));
        self
    }

    /// The id, to compare with arriving notifications.
    pub fn event_id(&self) -> &str {
        &self.id
    }

    /// The structured form, as bytes.
    pub fn body(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("an event is JSON")
    }
}

/// Anything that can be published to the exchange, well formed or not.
#[derive(Clone)]
pub struct Parcel {
    /// Its routing key.
    pub routing_key: String,
    /// Its content type.
    pub content_type: Option<String>,
    /// Its content encoding.
    pub content_encoding: Option<String>,
    /// Application headers.
    pub headers: FieldTable,
    pub body: Vec<u8>,
}

impl Parcel {
    /// A structured CloudEvents message with any bytes as its body.
    pub fn structured(routing_key: &str, body: impl Into<Vec<u8>>) -> Self {
        Self {
            routing_key: routing_key.to_owned(),
            content_type: Some("application/cloudevents+json".to_owned()),
            content_encoding: None,
            headers: FieldTable::default(),
            body: body.into(),
        }
    }

    /// A binary CloudEvents message: attributes as headers with `prefix`, the data as the body.
    pub fn binary(prefix: &str, attributes: &[(&str, &str)], data: impl Into<Vec<u8>>) -> Self {
        let routing_key = attributes
            .iter()
            .find(|(name, _)| *name == "type")
            .map_or("", |(_, value)| *value);
        let mut parcel = Self::structured(routing_key, data).content_type("application/json");
        for (name, value) in attributes {
            parcel.headers.insert(
                format!("{prefix}{name}").into(),
                AMQPValue::LongString((*value).into()),
            );
        }
        parcel
    }

    /// Without application headers.
    pub fn without_headers(mut self) -> Self {
        self.headers = FieldTable::default();
        self
    }

    /// Another content type.
    pub fn content_type(mut self, content_type: &str) -> Self {
        self.content_type = Some(content_type.to_owned());
        self
    }

    /// With this content encoding.
    pub fn content_encoding(mut self, content_encoding: &str) -> Self {
        self.content_encoding = Some(content_encoding.to_owned());
        self
    }

    /// The AMQP properties. It is always persistent.
    pub fn properties(&self) -> BasicProperties {
        let mut properties = BasicProperties::default()
            .with_delivery_mode(2)
            .with_headers(self.headers.clone());
        if let Some(content_type) = &self.content_type {
            properties = properties.with_content_type(content_type.as_str().into());
        }
        if let Some(content_encoding) = &self.content_encoding {
            properties = properties.with_content_encoding(content_encoding.as_str().into());
        }
        properties
    }
}

impl From<&Event> for Parcel {
    /// With its recipient in a header, as partitions need it.
    fn from(event: &Event) -> Self {
        let mut parcel = Self::structured(&event.event_type, event.body());
        let recipient = AMQPValue::LongString(event.recipient.as_str().into());
        parcel
            .headers
            .insert("cloudEvents_recipient".into(), recipient);
        parcel
    }
}

impl From<Event> for Parcel {
    fn from(event: Event) -> Self {
        Self::from(&event)
    }
}

impl From<&Parcel> for Parcel {
    fn from(parcel: &Parcel) -> Self {
        parcel.clone()
    }
}

/// Ids that differ within a test, and show the order of the events if a test fails.
fn unique_id() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("e-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}
