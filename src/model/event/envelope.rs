//! The attributes of CloudEvents 1.0 that Shopbell knows, and their rules; what structured and binary mode share.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::value::RawValue;
use time::OffsetDateTime;

use super::content_type::{is_json, unsupported};
use super::json::{self, Member, MemberValue};
use super::schema;
use super::{Event, Reason, Rejection, timestamp};
use crate::model::feed::Feed;

/// Longest `id`. It stands with `source` and the feed in one unique index, whose entries Postgres takes up to some
/// 2,700 bytes: the three bounds together stay below.
pub const ID_BYTES_MAX: usize = 512;
/// Longest `source`: room for a URI; see [`ID_BYTES_MAX`].
pub const SOURCE_BYTES_MAX: usize = 1024;
/// Longest `type`: it is the routing key, and AMQP 0-9-1 gives that 255 bytes (shortstr).
pub const TYPE_BYTES_MAX: usize = 255;
/// Longest `collapsekey`: room for a feed's name twice, small enough for an index entry.
pub const COLLAPSE_KEY_BYTES_MAX: usize = 256;
/// Longest `traceparent`: the size of version 00 (W3C Trace Context §3.2.2).
pub const TRACEPARENT_BYTES_MAX: usize = 55;

/// The names of the attributes, in the order in which [`Envelope::new`] takes them.
pub(super) const ATTRIBUTES: [&str; 11] = [
    "specversion",
    "id",
    "source",
    "type",
    "recipient",
    "time",
    "expirytime",
    "collapsekey",
    "traceparent",
    "datacontenttype",
    "broadcast",
];

/// An attribute as the message has it, not yet held against its rule.
#[derive(Debug)]
pub(super) struct Attribute<'a> {
    pub(super) name: &'static str,
    pub(super) value: AttributeValue<'a>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum AttributeValue<'a> {
    Absent,
    Text(Cow<'a, str>),
    /// Some other JSON, or a string that no Rust or Postgres text can hold.
    NotText,
    /// A header whose value has this type, which no attribute can have.
    Unreadable(&'static str),
    /// It stands there more than once.
    Repeated,
}

/// The data as the message has it.
#[derive(Debug)]
pub(super) enum Data<'a> {
    Absent,
    Json(&'a RawValue),
    /// The value of `data_base64` (CloudEvents JSON format 1.0 §3.1.1).
    Base64(&'a RawValue),
}

/// An event, taken apart and not yet held against the contract.
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
            data,
        }
    }

    /// Holds it against every rule: envelope first, then the recipient, then the data.
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
        let recipient = recipient(self.recipient)?;
        let data = match self.data {
            Data::Absent => None,
            Data::Json(data) => Some(data.to_owned()),
            Data::Base64(encoded) => decode(encoded, datacontenttype.as_deref())?,
        };
        let import = schema::check(&event_type, data.as_deref())?;
        let collapse_key = match &import {
            None => published_key,
            Some(import) if import.is_progress() => {
                published_key.or_else(|| Some(format!("import/{}", import.id)))
            }
            // A milestone is never collapsed, whatever the event brings.
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

/// Telemetry never costs an event: what cannot be used is as good as absent.
pub(super) fn traceparent(text: &str) -> Option<String> {
    let usable = (1..=TRACEPARENT_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_graphic());
    usable.then(|| text.to_owned())
}

/// Takes JSON out of base64 (RFC 4648 §4, padded). No bytes at all are no data, like an empty body in binary mode.
fn decode(
    encoded: &RawValue,
    datacontenttype: Option<&str>,
) -> Result<Option<Box<RawValue>>, Rejection> {
    if !datacontenttype.is_none_or(is_json) {
        return Err(unsupported(
            "`data_base64` must hold JSON, and `datacontenttype` says that it does not",
        ));
    }
    let refuse = |why: &str| Rejection::new(Reason::InvalidData, format!("`data_base64`: {why}"));
    let encoded = json::text(encoded).ok_or_else(|| refuse("must be a string"))?;
    let bytes = STANDARD
        .decode(&*encoded)
        .map_err(|_| refuse("not base64 with padding"))?;
    if bytes.is_empty() {
        return Ok(None);
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| refuse("what it holds is not UTF-8"))?;
    let data = json::parse(text).map_err(|rejection| match rejection.reason {
        Reason::TooDeep => rejection,
        _ => refuse(&format!("what it holds is no JSON: {}", rejection.detail)),
    })?;
    Ok(Some(data.to_owned()))
}

impl<'a> Attribute<'a> {
    /// The text, where there is one.
    fn text(self) -> Result<Option<Cow<'a, str>>, Rejection> {
        match self.value {
            AttributeValue::Absent => Ok(None),
            AttributeValue::Text(text) => Ok(Some(text)),
            AttributeValue::NotText => Err(must_be(self.name, "a string")),
            AttributeValue::Unreadable(what) => {
                Err(unreadable(Reason::InvalidEnvelope, self.name, what))
            }
            AttributeValue::Repeated => Err(repeated(self.name)),
        }
    }

    /// A text to be stored: not empty, bounded, and without control characters (CloudEvents 1.0, "Type System":
    /// String). NUL is one of them, and the one that Postgres cannot store.
    fn optional(self, bytes_max: usize) -> Result<Option<String>, Rejection> {
        let name = self.name;
        let Some(text) = self.text()? else {
            return Ok(None);
        };
        if (1..=bytes_max).contains(&text.len()) && !text.contains(char::is_control) {
            Ok(Some(text.into_owned()))
        } else {
            let rule = format!("1 to {bytes_max} bytes without control characters");
            Err(must_be(name, &rule))
        }
    }

    fn required(self, bytes_max: usize) -> Result<String, Rejection> {
        let name = self.name;
        self.optional(bytes_max)?
            .ok_or_else(|| missing(Reason::InvalidEnvelope, name))
    }

    /// A Boolean, as its canonical text.
    fn boolean(self) -> Result<Option<bool>, Rejection> {
        let name = self.name;
        match self.text()?.as_deref() {
            None => Ok(None),
            Some("true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(_) => Err(must_be(name, "true or false")),
        }
    }

    fn moment(self) -> Result<Option<OffsetDateTime>, Rejection> {
        let name = self.name;
        self.text()?
            .map(|text| {
                timestamp::parse(&text).ok_or_else(|| must_be(name, "an RFC 3339 timestamp"))
            })
            .transpose()
    }
}

/// A member of the JSON format. Null is the same as absent (CloudEvents JSON format 1.0 §2.2).
impl<'a> From<Member<'a>> for Attribute<'a> {
    fn from(member: Member<'a>) -> Self {
        let value = match member.value {
            MemberValue::Absent => AttributeValue::Absent,
            MemberValue::Once(value) if value.get() == "null" => AttributeValue::Absent,
            MemberValue::Once(value) => {
                scalar(value).map_or(AttributeValue::NotText, AttributeValue::Text)
            }
            MemberValue::Repeated => AttributeValue::Repeated,
        };
        Self {
            name: member.name,
            value,
        }
    }
}

/// The text of a string, and the canonical string of a Boolean or an Integer (CloudEvents 1.0, "Type System"). An Integer may
/// have 64 bits, because AMQP has such integers and binary mode takes them.
fn scalar(value: &RawValue) -> Option<Cow<'_, str>> {
    match value.get() {
        "true" => Some(Cow::Borrowed("true")),
        "false" => Some(Cow::Borrowed("false")),
        json => match json.parse::<i64>() {
            Ok(integer) => Some(Cow::Owned(integer.to_string())),
            Err(_) => json::text(value),
        },
    }
}

pub(super) fn repeated(name: &str) -> Rejection {
    Rejection::new(
        Reason::InvalidEnvelope,
        format!("attribute `{name}` stands there more than once"),
    )
}

fn missing(reason: Reason, name: &str) -> Rejection {
    Rejection::new(reason, format!("missing attribute `{name}`"))
}

fn unreadable(reason: Reason, name: &str, what: &str) -> Rejection {
    Rejection::new(
        reason,
        format!("attribute `{name}` holds {what}: publish it as a string"),
    )
}

fn must_be(name: &str, rule: &str) -> Rejection {
    Rejection::new(
        Reason::InvalidEnvelope,
        format!("attribute `{name}` must be {rule}"),
    )
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn each_required_attribute_is_missed_by_name() {
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
    fn texts_are_bounded_not_empty_and_without_control_characters() {
        for (name, bytes_max) in [
            ("id", ID_BYTES_MAX),
            ("source", SOURCE_BYTES_MAX),
            ("type", TYPE_BYTES_MAX),
            ("collapsekey", COLLAPSE_KEY_BYTES_MAX),
        ] {
            let fits = format!("{:?}", "x".repeat(bytes_max));
            assert!(
                sample::structured(&sample::with(name, &fits)).is_ok(),
                "{name}"
            );
            let too_long = format!("{:?}", "x".repeat(bytes_max + 1));
            for value in [
                &too_long,
                r#""""#,
                r#""a\u0000""#,
                r#""a\u001f""#,
                r#""\u007f""#,
                r#""\u0085""#,
            ] {
                let rejection = sample::structured(&sample::with(name, value)).unwrap_err();
                assert_eq!(rejection.reason, Reason::InvalidEnvelope);
                let rule = format!(
                    "attribute `{name}` must be 1 to {bytes_max} bytes without control characters"
                );
                assert_eq!(rejection.detail, rule);
            }
            for value in [
                "7.5",
                "7.0",
                "1e3",
                "9223372036854775808",
                r#"["x"]"#,
                "{}",
                r#""\ud800""#,
            ] {
                let rejection = sample::structured(&sample::with(name, value)).unwrap_err();
                assert_eq!(rejection.reason, Reason::InvalidEnvelope);
                assert_eq!(
                    rejection.detail,
                    format!("attribute `{name}` must be a string")
                );
            }
        }
    }

    #[test]
    fn integers_and_booleans_are_their_canonical_strings() {
        for (value, text) in [
            ("7", "7"),
            ("-0", "0"),
            ("-2147483648", "-2147483648"),
            ("9223372036854775807", "9223372036854775807"),
            ("true", "true"),
            ("false", "false"),
        ] {
            let event = sample::structured(&sample::with("collapsekey", value)).unwrap();
            assert_eq!(event.collapse_key.as_deref(), Some(text));
            assert_eq!(
                sample::structured(&sample::with("id", value)).unwrap().id,
                text
            );
        }
        assert_eq!(
            sample::structured(&sample::with("recipient", "42"))
                .unwrap()
                .recipient
                .as_str(),
            "42"
        );
        let rejection = sample::structured(&sample::with("recipient", "-42.5")).unwrap_err();
        assert_eq!(rejection.detail, "attribute `recipient`: must be a string");
    }

    #[test]
    fn the_keys_of_the_unique_index_fit_into_one_entry() {
        const POSTGRES_BTREE_ENTRY_BYTES_MAX: usize = 2704;
        let key = ID_BYTES_MAX + SOURCE_BYTES_MAX + crate::model::feed::FEED_BYTES_MAX;
        assert!(key < POSTGRES_BTREE_ENTRY_BYTES_MAX);
    }

    #[test]
    fn times_must_be_rfc_3339() {
        for name in ["time", "expirytime"] {
            for value in [r#""yesterday""#, r#""""#, "1767225600"] {
                let rejection = sample::structured(&sample::with(name, value)).unwrap_err();
                assert_eq!(rejection.reason, Reason::InvalidEnvelope, "{value}");
                assert!(
                    rejection
                        .detail
                        .starts_with(&format!("attribute `{name}` must be"))
                );
            }
        }
    }

    #[test]
    fn a_bad_recipient_is_told_the_rule_and_not_its_name() {
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
