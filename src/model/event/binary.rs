//! Binary mode: the attributes are headers, and the body is the data (CloudEvents AMQP binding 1.0
//! §3.1). The RabbitMQ binding, which the SDKs use for AMQP 0-9-1, differs only in the prefix.

use std::borrow::Cow;

use super::attribute::{ATTRIBUTES, Attribute, AttributeValue, name_in_header};
use super::data::Data;
use super::envelope::Envelope;
use super::json;
use super::message::HeaderValue;
use super::rejection::Rejection;
use super::timestamp;

/// The attributes of type Timestamp. AMQP may send a number instead (§3.1.3.2).
const TIMESTAMPS: [&str; 2] = ["time", "expirytime"];

/// Parses a message in binary mode. An empty body is no data.
pub(super) fn envelope<'a>(
    headers: &'a [(Cow<'a, str>, HeaderValue<'a>)],
    body: &'a str,
) -> Result<Envelope<'a>, Rejection> {
    let data = match body {
        "" => Data::Absent,
        body => Data::Json(json::parse(body)?),
    };
    let attributes = ATTRIBUTES.map(|name| Attribute {
        name,
        value: value(headers, name),
    });
    Ok(Envelope::new(attributes, data))
}

/// A message may have an attribute with several prefixes, if their values are equal.
fn value<'a>(headers: &'a [(Cow<'a, str>, HeaderValue<'a>)], name: &str) -> AttributeValue<'a> {
    let mut values = headers
        .iter()
        .filter(|(header, _)| name_in_header(header) == Some(name))
        .map(|(_, value)| value);
    let Some(first) = values.next() else {
        return AttributeValue::Absent;
    };
    if !values.all(|value| value == first) {
        return AttributeValue::Repeated;
    }
    let first = match first {
        HeaderValue::Text(text) => text.as_ref(),
        HeaderValue::Unreadable(what) => return AttributeValue::Unreadable(what),
    };
    let timestamp = TIMESTAMPS
        .contains(&name)
        .then(|| timestamp::from_milliseconds(first))
        .flatten();
    AttributeValue::Text(timestamp.map_or(Cow::Borrowed(first), Cow::Owned))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::super::rejection::Reason;
    use super::super::sample;

    #[test]
    fn a_binary_event_is_read_in_either_spelling() {
        for prefix in [
            "cloudEvents_",
            "cloudEvents:",
            "CLOUDEVENTS_",
            "cloudevents:",
            "ce-",
            "CE-",
        ] {
            let header = |name| format!("{prefix}{name}");
            let headers = [
                (header("specversion"), "1.0"),
                (header("id"), "7"),
                (header("source"), "/shop"),
                (header("type"), "custom.thing"),
                (header("recipient"), "merchant-42"),
                (header("time"), "2026-01-02T03:04:05Z"),
                (header("collapsekey"), "k"),
                (header("unknown"), "x"),
                ("x-other".to_owned(), "x"),
            ];
            let headers: Vec<_> = headers
                .iter()
                .map(|(name, value)| (name.as_str(), *value))
                .collect();
            let event =
                sample::parse(Some("application/json"), &headers, b" {\"a\" : 1}\n").unwrap();
            assert_eq!(
                (event.id.as_str(), event.recipient.as_str()),
                ("7", "merchant-42")
            );
            assert_eq!(
                event.time,
                Some(time::macros::datetime!(2026-01-02 3:04:05 UTC))
            );
            assert_eq!(event.collapse_key.as_deref(), Some("k"));
            assert_eq!(event.data.unwrap().get(), r#"{"a" : 1}"#);
        }
    }

    #[test]
    fn an_empty_body_is_no_data_and_a_null_is() {
        assert!(sample::binary(&[], b"").unwrap().data.is_none());
        assert_eq!(
            sample::binary(&[], b" null ").unwrap().data.unwrap().get(),
            "null"
        );
        assert_eq!(
            sample::binary(&[], b" ").unwrap_err().reason,
            Reason::MalformedJson
        );
    }

    #[test]
    fn both_spellings_must_agree() {
        assert!(sample::binary(&[("cloudEvents:id", "e-1")], b"1").is_ok());
        for (header, name) in [
            ("cloudEvents:id", "id"),
            ("cloudevents_recipient", "recipient"),
        ] {
            let rejection = sample::binary(&[(header, "another")], b"1").unwrap_err();
            assert_eq!(rejection.reason, Reason::InvalidEnvelope);
            assert_eq!(
                rejection.detail,
                format!("attribute `{name}` appears more than once")
            );
        }
    }

    #[test]
    fn a_timestamp_may_be_milliseconds_and_not_seconds() {
        let event = sample::binary(
            &[
                ("cloudEvents_time", "1767323045678"),
                ("cloudEvents_expirytime", "1767323046000"),
            ],
            b"1",
        );
        let event = event.unwrap();
        assert_eq!(
            event.time,
            Some(time::macros::datetime!(2026-01-02 3:04:05.678 UTC))
        );
        assert_eq!(
            event.expires_at,
            Some(time::macros::datetime!(2026-01-02 3:04:06 UTC))
        );
        for name in ["time", "expirytime"] {
            let rejection = sample::binary(&[(&format!("cloudEvents_{name}"), "1767323045")], b"1")
                .unwrap_err();
            assert_eq!(
                rejection.to_string(),
                format!("invalid_envelope: attribute `{name}` must be an RFC 3339 timestamp")
            );
        }
        let event = sample::binary(&[("cloudEvents_collapsekey", "1767323045678")], b"1").unwrap();
        assert_eq!(
            event.collapse_key.as_deref(),
            Some("1767323045678"),
            "no Timestamp"
        );
    }

    #[test]
    fn an_attribute_in_upper_case_is_another_attribute() {
        assert!(sample::binary(&[("cloudEvents_ID", "another")], b"1").is_ok());
    }

    #[test]
    fn conflicting_traces_cost_no_event() {
        let traces = [
            ("cloudEvents_traceparent", "a"),
            ("cloudEvents:traceparent", "b"),
        ];
        assert_eq!(sample::binary(&traces, b"1").unwrap().traceparent, None);
    }

    #[test]
    fn the_body_must_be_json_in_utf_8() {
        for (body, reason) in [
            (b"{".as_slice(), Reason::MalformedJson),
            (b"1 2", Reason::MalformedJson),
            (b"\"\xff\"", Reason::InvalidUtf8),
        ] {
            assert_eq!(sample::binary(&[], body).unwrap_err().reason, reason);
        }
    }

    #[test]
    fn the_schema_holds_in_binary_mode_too() {
        let headers = [
            ("cloudEvents_specversion", "1.0"),
            ("cloudEvents_id", "e-1"),
            ("cloudEvents_source", "/shop"),
            ("cloudEvents_type", "import.started"),
            ("cloudEvents_recipient", "merchant-42"),
        ];
        let rejection = sample::parse(None, &headers, b"").unwrap_err();
        assert_eq!(
            rejection.to_string(),
            "invalid_data: import.started: missing data"
        );
    }
}
