//! An event before its rules are checked, in a form that both modes share.

use super::attribute::{ATTRIBUTES, Attribute, AttributeValue, missing, repeated, unreadable};
use super::cloud_event::{
    COLLAPSE_KEY_BYTES_MAX, Event, ID_BYTES_MAX, SOURCE_BYTES_MAX, SUBJECT_BYTES_MAX,
    TRACEPARENT_BYTES_MAX, TYPE_BYTES_MAX,
};
use super::data::{self, Data};
use super::fact::Asked;
use super::rejection::{Reason, Rejection};
use super::schema::{self, Described};
use super::settlement::{Settlement, Subjects};
use crate::model::feed::Feed;

/// The attributes and the data of a message, before the rules are checked.
#[derive(Debug)]
pub(super) struct Envelope<'a> {
    specversion: Attribute<'a>,
    id: Attribute<'a>,
    source: Attribute<'a>,
    event_type: Attribute<'a>,
    recipient: Attribute<'a>,
    time: Attribute<'a>,
    expirytime: Attribute<'a>,
    collapsekey: Attribute<'a>,
    traceparent: Attribute<'a>,
    datacontenttype: Attribute<'a>,
    broadcast: Attribute<'a>,
    subject: Attribute<'a>,
    settles: Attribute<'a>,
    receipts: Attribute<'a>,
    deliverwithin: Attribute<'a>,
    handlewithin: Attribute<'a>,
    data: Data<'a>,
}

impl<'a> Envelope<'a> {
    pub(super) fn new(attributes: [Attribute<'a>; ATTRIBUTES.len()], data: Data<'a>) -> Self {
        let [
            specversion,
            id,
            source,
            event_type,
            recipient,
            time,
            expirytime,
            collapsekey,
            traceparent,
            datacontenttype,
            broadcast,
            subject,
            settles,
            receipts,
            deliverwithin,
            handlewithin,
        ] = attributes;
        Self {
            specversion,
            id,
            source,
            event_type,
            recipient,
            time,
            expirytime,
            collapsekey,
            traceparent,
            datacontenttype,
            broadcast,
            subject,
            settles,
            receipts,
            deliverwithin,
            handlewithin,
            data,
        }
    }

    /// Checks every rule: first the envelope, then the recipient, then the data.
    pub(super) fn into_event(self) -> Result<Event, Rejection> {
        check_version(self.specversion)?;
        let id = self.id.required(ID_BYTES_MAX)?;
        let source = self.source.required(SOURCE_BYTES_MAX)?;
        let event_type = self.event_type.required(TYPE_BYTES_MAX)?;
        let time = self.time.moment()?;
        let expires_at = self.expirytime.moment()?;
        let published_key = self.collapsekey.optional(COLLAPSE_KEY_BYTES_MAX)?;
        let datacontenttype = self.datacontenttype.text()?;
        let broadcast = self.broadcast.boolean()?;
        // An event with a subject of any kind was accepted before subjects had a meaning.
        let subject = self.subject.optional(SUBJECT_BYTES_MAX).unwrap_or_default();
        let settles = self.settles.optional(SUBJECT_BYTES_MAX)?;
        let receipts = self.receipts.text()?;
        let deliver_within = self.deliverwithin.text()?;
        let handle_within = self.handlewithin.text()?;
        let asked = Asked::read(
            receipts.as_deref(),
            deliver_within.as_deref(),
            handle_within.as_deref(),
        )?;
        let recipient = recipient(self.recipient)?;
        let data = match self.data {
            Data::Absent => None,
            Data::Json(data) => Some(data.to_owned()),
            Data::Base64(encoded) => data::decode(encoded, datacontenttype.as_deref())?,
        };
        let Described { import, order } = schema::check(&event_type, data.as_deref())?;
        let collapse_key = match &import {
            None => published_key,
            Some(import) if import.is_progress() => {
                published_key.or_else(|| Some(format!("import/{}", import.id)))
            }
            // A milestone is never collapsed, even if its publisher sets a key.
            Some(_) => None,
        };
        Ok(Event {
            recipient,
            broadcast,
            id,
            source,
            event_type,
            time,
            expires_at,
            collapse_key,
            import,
            subjects: Subjects::new(subject, order.as_ref()),
            settles: Settlement::new(settles, order.as_ref()),
            asked,
            traceparent: match self.traceparent.value {
                AttributeValue::Text(text) => traceparent(&text),
                _ => None,
            },
            data,
        })
    }
}

/// CloudEvents 1.0, "specversion": required, and `1.0` covers every 1.x.
fn check_version(specversion: Attribute<'_>) -> Result<(), Rejection> {
    let name = specversion.name;
    match specversion.text()?.as_deref() {
        Some("1.0") => Ok(()),
        Some(_) => Err(Rejection::new(
            Reason::UnsupportedVersion,
            format!("attribute `{name}` must be 1.0"),
        )),
        None => Err(missing(Reason::InvalidEnvelope, name)),
    }
}

fn recipient(attribute: Attribute<'_>) -> Result<Feed, Rejection> {
    let refuse = |why: String| {
        Rejection::new(
            Reason::InvalidRecipient,
            format!("attribute `{}`: {why}", attribute.name),
        )
    };
    match &attribute.value {
        AttributeValue::Absent => Err(missing(Reason::InvalidRecipient, attribute.name)),
        AttributeValue::Text(name) => Feed::parse(name).map_err(|error| refuse(error.to_string())),
        AttributeValue::NotText => Err(refuse("must be a string".into())),
        AttributeValue::Unreadable(what) => {
            Err(unreadable(Reason::InvalidRecipient, attribute.name, what))
        }
        AttributeValue::Repeated => Err(repeated(attribute.name)),
    }
}

/// A `traceparent` that cannot be used counts as absent. Tracing never rejects an event.
pub(super) fn traceparent(text: &str) -> Option<String> {
    let usable = (1..=TRACEPARENT_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_graphic());
    usable.then(|| text.to_owned())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn a_rejection_names_the_missing_attribute() {
        for (name, reason) in [
            ("specversion", Reason::InvalidEnvelope),
            ("id", Reason::InvalidEnvelope),
            ("source", Reason::InvalidEnvelope),
            ("type", Reason::InvalidEnvelope),
            ("recipient", Reason::InvalidRecipient),
        ] {
            for attributes in [sample::without(name), sample::with(name, "null")] {
                let rejection = sample::structured(&attributes).unwrap_err();
                assert_eq!(rejection.reason, reason);
                assert_eq!(rejection.detail, format!("missing attribute `{name}`"));
            }
        }
    }

    #[test]
    fn optional_attributes_may_be_null() {
        for name in [
            "time",
            "expirytime",
            "collapsekey",
            "traceparent",
            "datacontenttype",
        ] {
            assert!(
                sample::structured(&sample::with(name, "null")).is_ok(),
                "{name}"
            );
        }
    }

    #[test]
    fn another_version_is_unsupported() {
        for (version, reason) in [
            (r#""0.3""#, Reason::UnsupportedVersion),
            (r#""1.0.2""#, Reason::UnsupportedVersion),
            (r#""""#, Reason::UnsupportedVersion),
            ("1.0", Reason::InvalidEnvelope),
            ("1", Reason::UnsupportedVersion),
        ] {
            let rejection = sample::structured(&sample::with("specversion", version)).unwrap_err();
            assert_eq!(rejection.reason, reason, "{version}");
        }
    }

    #[test]
    fn the_rejection_of_a_recipient_has_the_rule_and_not_the_name() {
        for value in [r#""s3cr3t name""#, r#""""#, r#""a\u0000""#] {
            let rejection = sample::structured(&sample::with("recipient", value)).unwrap_err();
            assert_eq!(rejection.reason, Reason::InvalidRecipient);
            assert_eq!(
                rejection.detail,
                "attribute `recipient`: a feed must be 1 to 128 of A-Z a-z 0-9 . _ ~ / -"
            );
        }
        let rejection = sample::structured(&sample::with("recipient", "{}")).unwrap_err();
        assert_eq!(rejection.reason, Reason::InvalidRecipient);
        assert_eq!(rejection.detail, "attribute `recipient`: must be a string");
    }

    #[test]
    fn an_unusable_traceparent_is_ignored() {
        let longest = format!("{:?}", "0".repeat(TRACEPARENT_BYTES_MAX));
        let event = sample::structured(&sample::with("traceparent", &longest)).unwrap();
        assert!(event.traceparent.is_some());
        let too_long = format!("{:?}", "0".repeat(TRACEPARENT_BYTES_MAX + 1));
        for value in [
            "7.5",
            r#""""#,
            r#""a\u0000""#,
            r#""00 0a""#,
            r#""é""#,
            &too_long,
            r#""a","traceparent":"b""#,
        ] {
            let event = sample::structured(&sample::with("traceparent", value)).unwrap();
            assert_eq!(event.traceparent, None, "{value}");
        }
    }
}
