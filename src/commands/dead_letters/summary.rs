//! Prints a dead letter, with or without its body.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use crate::amqp::dead_letter::DeadLetter;
use crate::commands::terminal::{self, Format};
use crate::store::dead_letters::StoredDeadLetter;

/// The fields of a dead letter without its body.
#[derive(Serialize)]
pub(super) struct Summary<'a> {
    id: &'a str,
    reason: &'a str,
    detail: &'a str,
    exchange: &'a str,
    routing_key: &'a str,
    content_type: Option<&'a str>,
    bytes: i64,
}

impl<'a> Summary<'a> {
    pub(super) fn of_queued(letter: &'a DeadLetter) -> Self {
        Self {
            id: &letter.id,
            reason: &letter.reason,
            detail: &letter.detail,
            exchange: &letter.exchange,
            routing_key: &letter.routing_key,
            content_type: letter.content_type(),
            bytes: i64::try_from(letter.body.len()).unwrap_or(i64::MAX),
        }
    }

    pub(super) fn of_stored(letter: &'a StoredDeadLetter) -> Self {
        Self {
            id: &letter.id,
            reason: &letter.reason,
            detail: &letter.detail,
            exchange: &letter.exchange,
            routing_key: &letter.routing_key,
            content_type: letter.content_type.as_deref(),
            bytes: letter.bytes,
        }
    }

    pub(super) fn print(&self, format: Format) -> anyhow::Result<()> {
        terminal::write_lines(&match format {
            Format::Text => terminal::text_line(&self.to_string()),
            Format::Json => terminal::json_line(self)?,
        })
    }

    /// Writes the body to stdout, unchanged unless stdout is a terminal.
    pub(super) fn print_with_body(self, body: &[u8], format: Format) -> anyhow::Result<()> {
        if format == Format::Json {
            return terminal::write_lines(&terminal::json_line(&WithBody::new(self, body))?);
        }
        terminal::write_message(&self.to_string());
        if terminal::is_stdout_terminal() {
            let body = String::from_utf8_lossy(body);
            return body
                .lines()
                .try_for_each(|line| terminal::write_lines(&terminal::text_line(line)));
        }
        terminal::write(body)
    }
}

impl std::fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            id,
            reason,
            detail,
            exchange,
            routing_key,
            content_type,
            bytes,
        } = self;
        let content_type = content_type.unwrap_or("no content type");
        write!(
            f,
            "{id}  {reason}: {detail}  ({exchange} {routing_key}, {content_type}, {bytes} bytes)"
        )
    }
}

/// A dead letter with its body, which is in base64 if it is not UTF-8.
#[derive(Serialize)]
struct WithBody<'a> {
    id: &'a str,
    reason: &'a str,
    detail: &'a str,
    exchange: &'a str,
    routing_key: &'a str,
    content_type: Option<&'a str>,
    bytes: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
}

impl<'a> WithBody<'a> {
    fn new(summary: Summary<'a>, body: &'a [u8]) -> Self {
        let Summary {
            id,
            reason,
            detail,
            exchange,
            routing_key,
            content_type,
            bytes,
        } = summary;
        let text = std::str::from_utf8(body).ok();
        let body_base64 = text.is_none().then(|| STANDARD.encode(body));
        Self {
            id,
            reason,
            detail,
            exchange,
            routing_key,
            content_type,
            bytes,
            body: text,
            body_base64,
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn summary() -> Summary<'static> {
        Summary {
            id: "0193",
            reason: "invalid_data",
            detail: "order.created: missing data",
            exchange: "shopbell.events",
            routing_key: "order.created",
            content_type: None,
            bytes: 2,
        }
    }

    #[test]
    fn a_summary_is_one_line() {
        let line = "0193  invalid_data: order.created: missing data  (shopbell.events order.created, no content type, 2 bytes)";
        assert_eq!(summary().to_string(), line);
    }

    #[test]
    fn a_body_is_text_if_it_is_utf_8_and_base64_otherwise() {
        let json = |body| serde_json::to_value(WithBody::new(summary(), body)).unwrap();
        let text = json(b"{}");
        assert_eq!(
            (&text["body"], text.get("body_base64")),
            (&"{}".into(), None)
        );
        let bytes = json(b"\xff\xfe");
        assert_eq!(
            (bytes.get("body"), &bytes["body_base64"]),
            (None, &"//4=".into())
        );
    }
}
