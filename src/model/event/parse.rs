//! Parses a message into an event.

use std::borrow::Cow;

use super::binary;
use super::cloud_event::Event;
use super::content_type::{self, Mode};
use super::encoding;
use super::envelope::{self, Envelope};
use super::message::{HeaderValue, Message};
use super::rejection::{Reason, Rejection};
use super::structured;

/// Bound on the names and values of all headers together. RabbitMQ bounds an AMQP frame to 128 KiB,
/// and a dead letter carries these headers and those of Shopbell in one frame. So the publisher
/// gets half a frame. The attributes need a twentieth of it.
pub const HEADERS_BYTES_MAX: usize = 64 * 1024;

/// The bounds that an operator may set.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Largest body.
    pub event_bytes_max: usize,
}

/// Parses a message. The first check that fails decides the reason. The order is: size, content
/// type, UTF-8, nesting, JSON, envelope, recipient, data.
pub fn parse(message: &Message<'_>, limits: Limits) -> Result<Event, Rejection> {
    check_size(message, limits)?;
    let mode = content_type::mode(message)?;
    let envelope =
        envelope(message, mode).map_err(|rejection| encoding::explain(rejection, message))?;
    let mut event = envelope.into_event()?;
    if event.traceparent.is_none() {
        let header = message
            .headers
            .iter()
            .find(|(name, _)| name == "traceparent");
        event.traceparent = header.and_then(|(_, value)| envelope::traceparent(value.text()?));
    }
    Ok(event)
}

fn envelope<'a>(message: &'a Message<'_>, mode: Mode) -> Result<Envelope<'a>, Rejection> {
    let body = std::str::from_utf8(message.body).map_err(|error| {
        let detail = format!("the body is not UTF-8 after byte {}", error.valid_up_to());
        Rejection::new(Reason::InvalidUtf8, detail)
    })?;
    match mode {
        Mode::Structured => structured::envelope(body),
        Mode::Binary => binary::envelope(&message.headers, body),
    }
}

fn check_size(message: &Message<'_>, limits: Limits) -> Result<(), Rejection> {
    let header_bytes = |(name, value): &(Cow<'_, str>, HeaderValue<'_>)| {
        name.len() + value.text().map_or(0, str::len)
    };
    let header_bytes = message.headers.iter().map(header_bytes).sum();
    for (what, bytes, bytes_max) in [
        ("body", message.body.len(), limits.event_bytes_max),
        ("headers", header_bytes, HEADERS_BYTES_MAX),
    ] {
        if bytes > bytes_max {
            let detail = format!("{what} of {bytes} bytes, at most {bytes_max} are allowed");
            return Err(Rejection::new(Reason::TooLarge, detail));
        }
    }
    Ok(())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::super::cloud_event::TRACEPARENT_BYTES_MAX;
    use super::super::sample::{self, STRUCTURED};
    use super::*;

    #[test]
    fn a_structured_event_is_read_whole() {
        let event = sample::structured(
            r#"{"specversion":"1.0","id":"e-1","source":"/shop","type":"custom.thing","recipient":"merchant-42",
                "time":"2026-01-02T03:04:05.1234567+02:00","expirytime":"2026-01-03T00:00:00Z","collapsekey":"k",
                "traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01","other":[1],"data":{"a":1}}"#,
        )
        .unwrap();
        assert_eq!(event.recipient.as_str(), "merchant-42");
        assert_eq!((event.id.as_str(), event.source.as_str()), ("e-1", "/shop"));
        assert_eq!(event.event_type, "custom.thing");
        assert_eq!(
            event.time,
            Some(time::macros::datetime!(2026-01-02 01:04:05.123456 UTC))
        );
        assert_eq!(
            event.expires_at,
            Some(time::macros::datetime!(2026-01-03 0:00 UTC))
        );
        assert_eq!(event.collapse_key.as_deref(), Some("k"));
        assert_eq!(
            event.traceparent.map(|text| text.len()),
            Some(TRACEPARENT_BYTES_MAX)
        );
        assert_eq!(event.data.unwrap().get(), r#"{"a":1}"#);
    }

    #[test]
    fn a_body_may_have_the_greatest_size() {
        let body = sample::structured_body("custom.thing", "1");
        let (content_type, content_encoding) = (Some(STRUCTURED), None);
        let message = Message {
            content_type,
            content_encoding,
            headers: vec![],
            body: body.as_bytes(),
        };
        let limit = |event_bytes_max| Limits { event_bytes_max };
        assert!(parse(&message, limit(body.len())).is_ok());
        let rejection = parse(&message, limit(body.len() - 1)).unwrap_err();
        assert_eq!(rejection.reason, Reason::TooLarge);
    }

    #[test]
    fn headers_are_bounded_too() {
        let of = |bytes: usize| "x".repeat(bytes - "x-other".len());
        let with = |header: &str| {
            let body = sample::structured_body("custom.thing", "1");
            sample::parse(Some(STRUCTURED), &[("x-other", header)], body.as_bytes())
        };
        assert!(with(&of(HEADERS_BYTES_MAX)).is_ok());
        let rejection = with(&of(HEADERS_BYTES_MAX + 1)).unwrap_err();
        assert_eq!(rejection.reason, Reason::TooLarge);
        assert!(rejection.detail.starts_with("headers of "), "{rejection}");
    }

    #[test]
    fn the_first_check_that_fails_names_the_reason() {
        let deep = "[".repeat(200);
        let too_deep_not_json_no_recipient = format!(r#"{{"id":7,"data":{deep}"#);
        let bad_recipient_bad_data =
            r#"{"specversion":"1.0","id":"e","source":"s","type":"order.created","data":7}"#;
        let cases: [(&str, &[u8], Reason); 7] = [
            ("text/plain", b"\xff", Reason::UnsupportedContentType),
            (STRUCTURED, b"[[[\xff", Reason::InvalidUtf8),
            (
                STRUCTURED,
                too_deep_not_json_no_recipient.as_bytes(),
                Reason::TooDeep,
            ),
            (
                STRUCTURED,
                br#"{"specversion":"0.3""#,
                Reason::MalformedJson,
            ),
            (
                STRUCTURED,
                br#"{"specversion":"0.3"}"#,
                Reason::UnsupportedVersion,
            ),
            (
                STRUCTURED,
                br#"{"specversion":"1.0","recipient":7}"#,
                Reason::InvalidEnvelope,
            ),
            (
                STRUCTURED,
                bad_recipient_bad_data.as_bytes(),
                Reason::InvalidRecipient,
            ),
        ];
        for (content_type, body, reason) in cases {
            let rejection = sample::parse(Some(content_type), &[], body).unwrap_err();
            assert_eq!(rejection.reason, reason, "{rejection}");
        }
    }
}
