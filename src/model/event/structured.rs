//! Structured mode: the body is the whole event (CloudEvents JSON format 1.0).

use super::attribute::{ATTRIBUTES, Attribute, repeated};
use super::data::Data;
use super::envelope::Envelope;
use super::json::{self, Member, MemberValue};
use super::rejection::{Reason, Rejection};

/// Parses an event in the JSON format. Unknown extensions are ignored.
///
/// `data` is any JSON value, also if `datacontenttype` names another format: then it is a string
/// (§3.1.1) and stays one. `"data": null` is data (§3.1.1).
pub(super) fn envelope(body: &str) -> Result<Envelope<'_>, Rejection> {
    let object = json::parse(body)?;
    let not_an_object =
        || Rejection::new(Reason::InvalidEnvelope, "the event is not a JSON object");
    let attributes = json::members(object, ATTRIBUTES).ok_or_else(not_an_object)?;
    let [data, data_base64] =
        json::members(object, ["data", "data_base64"]).ok_or_else(not_an_object)?;
    Ok(Envelope::new(
        attributes.map(Attribute::from),
        one_of(data, data_base64)?,
    ))
}

/// `data` and `data_base64` exclude each other (§3.1.1). A null `data_base64` counts as absent.
fn one_of<'a>(data: Member<'a>, data_base64: Member<'a>) -> Result<Data<'a>, Rejection> {
    match (data.value, data_base64.value) {
        (MemberValue::Repeated, _) => Err(repeated(data.name)),
        (_, MemberValue::Repeated) => Err(repeated(data_base64.name)),
        (MemberValue::Absent, MemberValue::Once(encoded)) if encoded.get() != "null" => {
            Ok(Data::Base64(encoded))
        }
        (MemberValue::Absent, _) => Ok(Data::Absent),
        (MemberValue::Once(_), MemberValue::Once(encoded)) if encoded.get() != "null" => {
            Err(Rejection::new(
                Reason::InvalidEnvelope,
                "`data` and `data_base64` exclude each other",
            ))
        }
        (MemberValue::Once(data), _) => Ok(Data::Json(data)),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;

    use super::super::cloud_event::Event;
    use super::super::sample;
    use super::*;

    #[test]
    fn an_event_that_is_no_object_has_no_envelope() {
        for body in [
            "[]",
            "null",
            "\"a\"",
            "1",
            r#"["1.0","e","s","t","merchant-42"]"#,
        ] {
            let rejection = sample::structured(body).unwrap_err();
            assert_eq!(
                rejection.to_string(),
                "invalid_envelope: the event is not a JSON object"
            );
        }
    }

    #[test]
    fn a_repeated_attribute_is_refused_by_name() {
        for name in ATTRIBUTES.into_iter().chain(["data", "data_base64"]) {
            if ["traceparent", "subject"].contains(&name) {
                continue; // neither costs an event
            }
            let twice = format!(r#""a","{name}":"a""#);
            let rejection = sample::structured(&sample::with(name, &twice)).unwrap_err();
            assert_eq!(rejection.reason, Reason::InvalidEnvelope, "{rejection}");
            assert_eq!(
                rejection.detail,
                format!("attribute `{name}` appears more than once")
            );
        }
    }

    #[test]
    fn unknown_extensions_are_passed_over_whatever_they_hold() {
        let unknown = r#"1,"x":"\ud800","\udc00":1e999,"x":{"id":2}"#;
        assert!(sample::structured(&sample::with("unknown", unknown)).is_ok());
    }

    #[test]
    fn data_keeps_its_bytes() {
        for data in [
            "123456789012345678901234567890",
            "1e400",
            "-0.0",
            r#"{"b":1,"a" :  2,"b":3}"#,
            r#""\u0000\ud800\/""#,
            "[ 1 ,\n\t2 ]",
            "null",
            "false",
            r#"{"\ud800":"\udc00"}"#,
        ] {
            let event = sample::structured_data("custom.thing", &format!("\n {data}\t")).unwrap();
            assert_eq!(event.data.unwrap().get(), data);
        }
    }

    #[test]
    fn data_may_be_absent() {
        assert!(
            sample::structured(&sample::without("data"))
                .unwrap()
                .data
                .is_none()
        );
    }

    #[test]
    fn text_data_goes_through_as_a_string() {
        let text = r#""text/plain","data":"Bonjour""#;
        let event = sample::structured(&sample::with("datacontenttype", text)).unwrap();
        assert_eq!(event.data.unwrap().get(), r#""Bonjour""#);
    }

    #[test]
    fn a_content_type_must_be_text() {
        let rejection = sample::structured(&sample::with("datacontenttype", "[]")).unwrap_err();
        assert_eq!(
            rejection.detail,
            "attribute `datacontenttype` must be a string"
        );
    }

    #[test]
    fn base64_data_is_decoded_where_it_is_json() {
        for data in ["{\"a\" : 1e400}", " [1] ", "null"] {
            for content_type in [
                "null",
                r#""application/json""#,
                r#""application/x+json; a=b""#,
            ] {
                let event = in_base64(data.as_bytes(), content_type).unwrap();
                assert_eq!(event.data.unwrap().get(), data.trim());
            }
        }
        assert!(in_base64(b"", "null").unwrap().data.is_none());
        let null = sample::structured(&sample::with("data_base64", r#"null,"data":1"#)).unwrap();
        assert_eq!(null.data.unwrap().get(), "1");
        let escaped = sample::structured(&sample::with("data_base64", r#""\u004dQ==""#)).unwrap();
        assert_eq!(escaped.data.unwrap().get(), "1");
    }

    #[test]
    fn base64_data_of_another_kind_is_refused() {
        let rejection = in_base64(b"<a/>", r#""application/xml""#).unwrap_err();
        assert_eq!(rejection.reason, Reason::UnsupportedContentType);
        for bytes in [b"<s3cr3t/>".as_slice(), b"\xff", b" "] {
            let rejection = in_base64(bytes, "null").unwrap_err();
            assert_eq!(rejection.reason, Reason::InvalidData, "{rejection}");
        }
        let deep = "[".repeat(json::LEVELS_MAX + 1);
        assert_eq!(
            in_base64(deep.as_bytes(), "null").unwrap_err().reason,
            Reason::TooDeep
        );
        for value in [
            r#""MQ""#,
            r#""M_-=""#,
            r#""M Q==""#,
            "7",
            "[]",
            r#""\ud800""#,
        ] {
            let rejection = sample::structured(&sample::with("data_base64", value)).unwrap_err();
            assert_eq!(rejection.reason, Reason::InvalidData, "{rejection}");
        }
    }

    #[test]
    fn data_and_base64_data_exclude_each_other() {
        for both in [r#""MQ==","data":1"#, r#""MQ==","data":null"#] {
            let rejection = sample::structured(&sample::with("data_base64", both)).unwrap_err();
            assert_eq!(rejection.reason, Reason::InvalidEnvelope);
            assert_eq!(
                rejection.detail,
                "`data` and `data_base64` exclude each other"
            );
        }
    }

    fn in_base64(bytes: &[u8], content_type: &str) -> Result<Event, Rejection> {
        let value = format!(
            r#""{}","datacontenttype":{content_type}"#,
            STANDARD.encode(bytes)
        );
        sample::structured(&sample::with("data_base64", &value))
    }
}
