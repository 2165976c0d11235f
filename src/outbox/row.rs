//! A row of the outbox, and the event that it becomes.

use serde_json::{Map, Value};
use sqlx::FromRow;

/// The largest event that any Shopbell stores: the greatest `SHOPBELL_MAX_EVENT_BYTES`. A larger row
/// is not even read.
pub(super) const EVENT_BYTES_MAX: i64 = 16 * 1024 * 1024;

/// A row of `shopbell_outbox.events`. `shopbell_publish` has checked its texts.
#[derive(FromRow)]
pub(super) struct Row {
    pub(super) id: i64,
    pub(super) recipient: String,
    #[sqlx(rename = "type")]
    pub(super) event_type: String,
    event_id: String,
    source: String,
    subject: Option<String>,
    /// RFC 3339, in UTC.
    time: Option<String>,
    expirytime: Option<String>,
    extensions: Option<String>,
    /// `None` also if the row is too large.
    data: Option<String>,
    /// The size of the data and the extensions.
    pub(super) bytes: i64,
}

impl Row {
    /// The event in structured mode, with `data` byte for byte.
    ///
    /// Its content is not judged here: an event that breaks the contract becomes a dead letter, with
    /// the tools of dead letters.
    ///
    /// # Errors
    /// The row can never be published, for this reason.
    pub(super) fn to_event(&self) -> Result<String, String> {
        if self.bytes > EVENT_BYTES_MAX {
            return Err(format!(
                "the event has {} bytes; Shopbell stores at most {EVENT_BYTES_MAX}",
                self.bytes
            ));
        }
        let mut event = String::from(r#"{"specversion":"1.0""#);
        let mut add = |name: &str, value: Value| {
            event.push_str(&format!(",{}:{value}", Value::from(name)));
        };
        for (name, text) in [
            ("id", Some(&self.event_id)),
            ("source", Some(&self.source)),
            ("type", Some(&self.event_type)),
            ("recipient", Some(&self.recipient)),
            ("subject", self.subject.as_ref()),
            ("time", self.time.as_ref()),
            ("expirytime", self.expirytime.as_ref()),
        ] {
            if let Some(text) = text {
                add(name, Value::from(text.as_str()));
            }
        }
        if let Some(extensions) = &self.extensions {
            let extensions: Map<String, Value> = serde_json::from_str(extensions)
                .map_err(|_| "`extensions` is no JSON object".to_owned())?;
            for (name, value) in extensions {
                add(&name, value);
            }
        }
        if let Some(data) = &self.data {
            event.push_str(r#","data":"#);
            event.push_str(data);
        }
        event.push('}');
        Ok(event)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::model::event::{Limits, Message, parse};

    fn row() -> Row {
        Row {
            id: 1,
            recipient: "merchant-42".into(),
            event_type: "custom.thing".into(),
            event_id: "a\"b".into(),
            source: "/shop".into(),
            subject: Some("é".into()),
            time: Some("2026-01-02T03:04:05.123456Z".into()),
            expirytime: None,
            extensions: Some(r#"{"collapsekey": "k", "broadcast": false, "n": null}"#.into()),
            data: Some("{\"b\": 1 ,\"a\":1e400,\"u\":\"\\u0000\"}".into()),
            bytes: 90,
        }
    }

    #[test]
    fn a_row_becomes_an_event_that_ingest_accepts() {
        let row = row();
        let body = row.to_event().unwrap();
        let message = Message {
            content_type: Some("application/cloudevents+json"),
            content_encoding: None,
            headers: vec![],
            body: body.as_bytes(),
        };
        let limits = Limits {
            event_bytes_max: 65_536,
        };
        let event = parse(&message, limits).unwrap();
        assert_eq!(event.recipient.as_str(), "merchant-42");
        assert_eq!(
            (event.id.as_str(), event.source.as_str()),
            ("a\"b", "/shop")
        );
        assert_eq!(event.collapse_key.as_deref(), Some("k"));
        assert_eq!(event.broadcast, Some(false));
        assert!(event.time.is_some());
        assert_eq!(event.data.unwrap().get(), row.data.unwrap());
    }

    #[test]
    fn a_row_that_no_shopbell_stores_is_refused_with_its_reason() {
        let too_large = Row {
            bytes: EVENT_BYTES_MAX + 1,
            ..row()
        };
        assert!(too_large.to_event().unwrap_err().contains("16777217 bytes"));
        let no_object = Row {
            extensions: Some("[1]".into()),
            ..row()
        };
        assert!(no_object.to_event().unwrap_err().contains("extensions"));
    }
}
