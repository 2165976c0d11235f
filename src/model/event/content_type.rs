//! The mode of a message, from its content type (CloudEvents AMQP binding 1.0 §3, HTTP binding 1.0
//! §3).

use super::attribute::name_in_header;
use super::message::Message;
use super::rejection::{Reason, Rejection};

/// The form of an event in its message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// The body is the whole event, in the CloudEvents JSON format.
    Structured,
    /// The body is the data, and the attributes are headers.
    Binary,
}

pub(super) fn mode(message: &Message<'_>) -> Result<Mode, Rejection> {
    let media_type = message.content_type.map(media_type).unwrap_or_default();
    if let Some(format) = media_type.strip_prefix("application/cloudevents") {
        return match format {
            "" | "+json" => Ok(Mode::Structured),
            "-batch+json" => Err(unsupported(
                "a batch is not accepted: publish each event by itself as application/cloudevents+json",
            )),
            _ => Err(unsupported(
                "of the structured formats only application/cloudevents+json is accepted",
            )),
        };
    }
    if !message
        .headers
        .iter()
        .any(|(name, _)| name_in_header(name).is_some())
    {
        return Err(unsupported(
            "neither structured (content type application/cloudevents+json) nor binary (headers cloudEvents_NAME)",
        ));
    }
    if media_type.is_empty() || is_json(&media_type) {
        Ok(Mode::Binary)
    } else {
        Err(unsupported(
            "the data of a binary event must be JSON: application/json or a type that ends in +json",
        ))
    }
}

/// Whether data of this content type is JSON (CloudEvents JSON format 1.0 §3.1.1; RFC 6839 §3.1 for
/// `+json`). Two types match its `*/json`.
pub(super) fn is_json(content_type: &str) -> bool {
    let media_type = media_type(content_type);
    matches!(media_type.as_str(), "application/json" | "text/json")
        || (media_type.contains('/') && media_type.ends_with("+json"))
}

pub(super) fn unsupported(detail: &str) -> Rejection {
    Rejection::new(Reason::UnsupportedContentType, detail)
}

/// The media type without parameters, in lower case. A `charset` is ignored, because JSON is UTF-8
/// (RFC 8259 §8.1) and the body is checked for that.
fn media_type(content_type: &str) -> String {
    let (media_type, _parameters) = content_type.split_once(';').unwrap_or((content_type, ""));
    media_type.trim().to_ascii_lowercase()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn the_cloudevents_json_types_are_structured() {
        for content_type in [
            "application/cloudevents",
            "application/cloudevents+json",
            "Application/CloudEvents+JSON; charset=UTF-8",
            " application/cloudevents ;charset=utf-8;x=y",
        ] {
            assert_eq!(
                mode_of(Some(content_type), &[]),
                Ok(Mode::Structured),
                "{content_type}"
            );
        }
    }

    #[test]
    fn a_structured_content_type_wins_over_attribute_headers() {
        let headers = ["cloudEvents_id"];
        assert_eq!(
            mode_of(Some("application/cloudevents+json"), &headers),
            Ok(Mode::Structured)
        );
    }

    #[test]
    fn batches_and_other_formats_are_unsupported_with_advice() {
        for (content_type, advice) in [
            (
                "application/cloudevents-batch+json",
                "publish each event by itself",
            ),
            (
                "application/cloudevents+xml",
                "only application/cloudevents+json",
            ),
            (
                "application/cloudevents+protobuf",
                "only application/cloudevents+json",
            ),
            (
                "application/cloudevents+avro; x=y",
                "only application/cloudevents+json",
            ),
            ("application/json", "neither structured"),
            ("", "neither structured"),
        ] {
            let detail = mode_of(Some(content_type), &[]).unwrap_err();
            assert!(detail.contains(advice), "{content_type}: {detail}");
        }
    }

    #[test]
    fn attribute_headers_and_json_make_a_message_binary() {
        for header in [
            "cloudEvents_id",
            "cloudEvents:id",
            "CLOUDEVENTS_id",
            "cloudevents:other",
        ] {
            for content_type in [
                None,
                Some(""),
                Some("application/json"),
                Some("text/json"),
                Some("Application/Vnd.Shop+JSON; charset=utf-8"),
            ] {
                assert_eq!(
                    mode_of(content_type, &[header]),
                    Ok(Mode::Binary),
                    "{content_type:?}"
                );
            }
            for content_type in [
                "text/plain",
                "application/xml",
                "application/octet-stream",
                "+json",
            ] {
                let detail = mode_of(Some(content_type), &[header]).unwrap_err();
                assert!(detail.contains("must be JSON"), "{content_type}: {detail}");
            }
        }
    }

    #[test]
    fn other_headers_do_not_make_a_message_binary() {
        for header in [
            "cloudEvents",
            "cloudEvents_",
            "cloudEvents-id",
            "ce-",
            "ceid",
            "xcloudEvents_id",
            "cloudEvent\u{e9}_",
        ] {
            assert!(mode_of(None, &[header]).is_err(), "{header}");
        }
    }

    fn mode_of(content_type: Option<&str>, headers: &[&str]) -> Result<Mode, String> {
        let headers = headers.iter().map(|name| ((*name).into(), "value".into()));
        let message = Message {
            content_type,
            content_encoding: None,
            headers: headers.collect(),
            body: b"",
        };
        mode(&message).map_err(|rejection| {
            assert_eq!(rejection.reason, Reason::UnsupportedContentType);
            rejection.detail
        })
    }
}
