//! Receipts: facts about a notification that its publisher asks for, as CloudEvents.

use aws_lc_rs::digest::{SHA256, digest};
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::model::event::Fact;
use crate::model::feed::{Feed, Seq};

/// `source` of receipts.
pub const SOURCE: &str = "/shopbell";

/// A notification whose publisher asks for receipts, with its facts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// The feed.
    pub feed: Feed,
    /// Its number in the feed.
    pub seq: Seq,
    /// `source` of the event.
    pub source: String,
    /// `id` of the event.
    pub event_id: String,
    /// `type` of the event.
    pub event_type: String,
    /// When it was stored.
    pub stored_at: OffsetDateTime,
    /// `deliverwithin` as a time.
    pub deliver_by: Option<OffsetDateTime>,
    /// `handlewithin` as a time.
    pub handle_by: Option<OffsetDateTime>,
    /// The facts, in the order of [`Fact::ALL`].
    pub facts: Vec<Known>,
}

/// A fact of a notification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// The fact.
    pub fact: Fact,
    /// When it became true.
    pub at: OffsetDateTime,
    /// The subscriber that caused it, or `cancelled` or `settled`.
    pub by: Option<String>,
    /// The device that caused it.
    pub device: Option<String>,
}

/// `data` of a receipt.
#[derive(Serialize)]
struct Data<'a> {
    feed: &'a Feed,
    seq: Seq,
    source: &'a str,
    event: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    subscriber: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<&'a str>,
    stored_at: String,
    at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    deliver_by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    handle_by: Option<String>,
}

/// A receipt as a CloudEvent.
#[derive(Serialize)]
struct Envelope<'a> {
    specversion: &'static str,
    id: String,
    source: &'static str,
    #[serde(rename = "type")]
    event_type: String,
    subject: &'a str,
    time: String,
    datacontenttype: &'static str,
    data: Data<'a>,
}

impl Receipt {
    /// Renders a fact as a CloudEvent in the JSON format. A repeated receipt has the same id.
    pub fn cloud_event(&self, known: &Known) -> String {
        let fact = known.fact;
        let envelope = Envelope {
            specversion: "1.0",
            id: self.id(fact),
            source: SOURCE,
            event_type: event_type(fact),
            subject: &self.event_id,
            time: rfc3339(known.at),
            datacontenttype: "application/json",
            data: Data {
                feed: &self.feed,
                seq: self.seq,
                source: &self.source,
                event: &self.event_type,
                subscriber: known.by.as_deref(),
                device: known.device.as_deref(),
                stored_at: rfc3339(self.stored_at),
                at: rfc3339(known.at),
                deliver_by: self.deliver_by.map(rfc3339),
                handle_by: self.handle_by.map(rfc3339),
            },
        };
        // Texts and numbers are always JSON.
        serde_json::to_string(&envelope).unwrap_or_default()
    }

    /// The id of a receipt: a hash of what it is about.
    fn id(&self, fact: Fact) -> String {
        let parts = [
            self.feed.as_str(),
            &self.source,
            &self.event_id,
            fact.as_str(),
        ];
        let hash = digest(&SHA256, parts.join("\0").as_bytes());
        let bytes: [u8; 16] = hash.as_ref().first_chunk().copied().unwrap_or_default();
        uuid::Builder::from_custom_bytes(bytes)
            .into_uuid()
            .to_string()
    }
}

/// The `type` of receipts of a fact, which is also their routing key.
pub fn event_type(fact: Fact) -> String {
    format!("shopbell.{}", fact.as_str())
}

/// Times from Postgres are within the years of RFC 3339.
fn rfc3339(time: OffsetDateTime) -> String {
    time.format(&Rfc3339).unwrap_or_default()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn receipt() -> Receipt {
        let at =
            |seconds: i64| OffsetDateTime::from_unix_timestamp(1_700_000_000 + seconds).unwrap();
        Receipt {
            feed: Feed::parse("merchant-42").unwrap(),
            seq: Seq::new(7).unwrap(),
            source: "/checkout".into(),
            event_id: "o-1".into(),
            event_type: "order.created".into(),
            stored_at: at(0),
            deliver_by: None,
            handle_by: Some(at(60)),
            facts: vec![Known {
                fact: Fact::Handled,
                at: at(5),
                by: Some("anna".into()),
                device: None,
            }],
        }
    }

    #[test]
    fn a_receipt_is_a_cloud_event_of_the_contract() {
        let receipt = receipt();
        let expected = r#"{"specversion":"1.0","id":"ID","source":"/shopbell","type":"shopbell.handled","subject":"o-1","time":"2023-11-14T22:13:25Z","datacontenttype":"application/json","data":{"feed":"merchant-42","seq":7,"source":"/checkout","event":"order.created","subscriber":"anna","stored_at":"2023-11-14T22:13:20Z","at":"2023-11-14T22:13:25Z","handle_by":"2023-11-14T22:14:20Z"}}"#;
        let expected = expected.replace("ID", &receipt.id(Fact::Handled));
        assert_eq!(receipt.cloud_event(&receipt.facts[0]), expected);
    }

    #[test]
    fn each_fact_of_each_event_has_an_id_of_its_own() {
        let one = receipt();
        let mut other = receipt();
        other.event_id = "o-2".into();
        let ids = [
            one.id(Fact::Handled),
            one.id(Fact::Overdue),
            other.id(Fact::Handled),
        ];
        assert_eq!(ids[0], receipt().id(Fact::Handled));
        assert!(ids[0] != ids[1] && ids[0] != ids[2]);
        assert!(Uuid::parse_str(&ids[0]).is_ok());
    }
}
