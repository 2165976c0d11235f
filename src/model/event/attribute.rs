//! The attributes of CloudEvents 1.0 that Shopbell uses, in both modes, and the rules of their
//! types.

use std::borrow::Cow;

use serde_json::value::RawValue;
use time::OffsetDateTime;

use super::json::{self, Member, MemberValue};
use super::rejection::{Reason, Rejection};
use super::timestamp;

/// The names of the attributes, in the order that `Envelope::new` expects.
pub(super) const ATTRIBUTES: [&str; 16] = [
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
    "subject",
    "settles",
    "receipts",
    "deliverwithin",
    "handlewithin",
];

/// Prefixes of attributes in headers: two of the AMQP binding (§3.1.3.1), and one of the RabbitMQ
/// binding. Up to version 1.0.2 the AMQP binding has only the second.
const HEADER_PREFIXES: [&str; 3] = ["cloudEvents_", "cloudEvents:", "ce-"];

/// An attribute of a message, before its rule is checked.
#[derive(Debug)]
pub(super) struct Attribute<'a> {
    pub(super) name: &'static str,
    pub(super) value: AttributeValue<'a>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum AttributeValue<'a> {
    Absent,
    Text(Cow<'a, str>),
    /// JSON that is no text, or a string that neither Rust nor Postgres can hold.
    NotText,
    /// A header with a value of this type, which no attribute can have.
    Unreadable(&'static str),
    /// The message has it more than once.
    Repeated,
}

/// The attribute that a header carries. Publishers differ in the case of the prefix, so any case
/// matches. The name must be in lower case (CloudEvents 1.0, "Naming Conventions").
pub(super) fn name_in_header(header: &str) -> Option<&str> {
    HEADER_PREFIXES.iter().find_map(|expected| {
        let (prefix, name) = header.split_at_checked(expected.len())?;
        (prefix.eq_ignore_ascii_case(expected) && !name.is_empty()).then_some(name)
    })
}

impl<'a> Attribute<'a> {
    /// The text, if the message has the attribute.
    pub(super) fn text(self) -> Result<Option<Cow<'a, str>>, Rejection> {
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

    /// A text to store: not empty, bounded, and without control characters (CloudEvents 1.0, "Type
    /// System": String). One of these is NUL, which Postgres cannot store.
    pub(super) fn optional(self, bytes_max: usize) -> Result<Option<String>, Rejection> {
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

    pub(super) fn required(self, bytes_max: usize) -> Result<String, Rejection> {
        let name = self.name;
        self.optional(bytes_max)?
            .ok_or_else(|| missing(Reason::InvalidEnvelope, name))
    }

    /// A Boolean, from its canonical text.
    pub(super) fn boolean(self) -> Result<Option<bool>, Rejection> {
        let name = self.name;
        match self.text()?.as_deref() {
            None => Ok(None),
            Some("true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(_) => Err(must_be(name, "true or false")),
        }
    }

    pub(super) fn moment(self) -> Result<Option<OffsetDateTime>, Rejection> {
        let name = self.name;
        self.text()?
            .map(|text| {
                timestamp::parse(&text).ok_or_else(|| must_be(name, "an RFC 3339 timestamp"))
            })
            .transpose()
    }
}

/// From a member of the JSON format. Null equals absent (CloudEvents JSON format 1.0 §2.2).
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

/// The text of a string, or the canonical text of a Boolean or an Integer (CloudEvents 1.0, "Type
/// System"). An Integer may have 64 bits, as in AMQP and so in binary mode.
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
        format!("attribute `{name}` appears more than once"),
    )
}

pub(super) fn missing(reason: Reason, name: &str) -> Rejection {
    Rejection::new(reason, format!("missing attribute `{name}`"))
}

pub(super) fn unreadable(reason: Reason, name: &str, what: &str) -> Rejection {
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
    use super::super::cloud_event::{
        COLLAPSE_KEY_BYTES_MAX, ID_BYTES_MAX, SOURCE_BYTES_MAX, TYPE_BYTES_MAX,
    };
    use super::super::sample;
    use super::*;

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
}
