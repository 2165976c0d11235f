//! The feed that a message is addressed to, also if the message is no valid event.
//!
//! `forget` deletes dead letters by this. So a doubtful message belongs to no feed.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::attribute::{Attribute, AttributeValue, name_in_header};
use super::content_type::{self, Mode};
use super::json;
use super::message::Message;
use crate::model::feed::Feed;

const RECIPIENT: &str = "recipient";
/// The name as a key of JSON.
const KEY: &str = "\"recipient\"";

/// Returns whether all recipients of a message are this feed, and it has at least one.
///
/// In structured mode these are in the body, or else in the headers. In binary mode they are in the
/// headers. If the mode is unknown, or the body is no JSON, each key `recipient` counts.
pub fn is_addressed_to(message: &Message<'_>, feed: &Feed) -> bool {
    let in_headers = || {
        let headers = message.headers.iter();
        let recipients = headers.filter(|(name, _)| name_in_header(name) == Some(RECIPIENT));
        recipients.map(|(_, value)| value.text() == Some(feed.as_str()))
    };
    let body = String::from_utf8_lossy(message.body);
    let found: Vec<bool> = match content_type::mode(message) {
        Ok(Mode::Binary) => in_headers().collect(),
        Ok(Mode::Structured) => {
            let found = in_body(&body, feed);
            match found.is_empty() {
                true => in_headers().collect(),
                false => found,
            }
        }
        Err(_) => in_headers().chain(in_body(&body, feed)).collect(),
    };
    !found.is_empty() && found.into_iter().all(|is_feed| is_feed)
}

/// Returns for each recipient in a body whether it is the feed.
fn in_body(body: &str, feed: &Feed) -> Vec<bool> {
    let is_feed = |attribute: &Attribute<'_>| match &attribute.value {
        AttributeValue::Absent => None,
        AttributeValue::Text(name) => Some(name == feed.as_str()),
        _ => Some(false),
    };
    let object = json::parse(body).ok();
    match object.and_then(|object| json::members(object, [RECIPIENT])) {
        Some(members) => {
            let attributes = members.map(Attribute::from);
            attributes.iter().filter_map(is_feed).collect()
        }
        None => {
            let places = body.match_indices(KEY);
            let values = places.filter_map(|(at, key)| value_after(body.get(at + key.len()..)?));
            values.map(|name| name == feed.as_str()).collect()
        }
    }
}

/// Reads the string or the number after a key. `None` if the text has no value there.
fn value_after(text: &str) -> Option<Cow<'_, str>> {
    let text = text.trim_start().strip_prefix(':')?.trim_start();
    // The rest of the text is no JSON, so only the value is parsed.
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<&RawValue>();
    let value = values.next()?.ok()?;
    json::text(value).or_else(|| Some(value.get().into()))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::super::message::HeaderValue;
    use super::super::sample::{self, STRUCTURED};
    use super::*;

    fn is_addressed(content_type: &str, headers: &[(&str, &str)], body: &str, feed: &str) -> bool {
        let headers = headers
            .iter()
            .map(|(name, value)| ((*name).into(), HeaderValue::from(*value)));
        let message = Message {
            content_type: Some(content_type),
            content_encoding: None,
            headers: headers.collect(),
            body: body.as_bytes(),
        };
        is_addressed_to(&message, &Feed::parse(feed).unwrap())
    }

    #[test]
    fn a_structured_message_is_addressed_by_its_own_member() {
        let is = |body: &str, feed: &str| is_addressed(STRUCTURED, &[], body, feed);
        assert!(is(r#"{"recipient":"m-4"}"#, "m-4"));
        assert!(is(r#"{"recipient":"shops\/4"}"#, "shops/4"));
        assert!(is(r#"{"recipient":"m\u002d4"}"#, "m-4"));
        assert!(is(r#"{"recipient":42}"#, "42"));
        assert!(!is(r#"{"recipient":"m-7","data":{"items":42}}"#, "42"));
        assert!(!is(
            r#"{"recipient":"m-7","data":{"recipient":"m-4"}}"#,
            "m-4"
        ));
        assert!(!is(r#"{"recipient":"m-42"}"#, "m-4"));
        assert!(!is(r#"{"data":{"recipient":"m-4"}}"#, "m-4"));
        assert!(!is(&sample::with("note", r#""m-4""#), "m-4"));
    }

    #[test]
    fn a_binary_message_is_addressed_by_its_header() {
        let is = |feed| {
            let headers = [
                ("cloudEvents_recipient", "m-4"),
                ("cloudEvents_source", "/m-7"),
            ];
            let body = r#"{"recipient":"m-7"}"#;
            is_addressed("application/json", &headers, body, feed)
        };
        assert!(is("m-4") && !is("m-7") && !is("/m-7"));
    }

    #[test]
    fn a_body_that_is_no_json_is_addressed_by_all_of_its_keys() {
        let is = |body: &str| is_addressed(STRUCTURED, &[], body, "shops/4");
        assert!(is(r#"{"recipient" : "shops\/4","data":"#));
        assert!(!is(r#"{"recipient":"m-7","note":"shops/4","#));
        assert!(!is(r#"{"recipient":"m-7","data":{"recipient":"shops/4"},"#));
        assert!(!is(r#"{"recipient":"shops/4"#), "it is cut");
        assert!(!is("shops/4") && !is(r#""recipient""#));
    }

    #[test]
    fn a_message_of_an_unknown_mode_needs_equal_recipients() {
        let is = |header: &str, body: &str| {
            is_addressed("text/plain", &[("ce-recipient", header)], body, "m-4")
        };
        assert!(is("m-4", "no JSON") && is("m-4", r#"{"recipient":"m-4"}"#));
        assert!(!is("m-7", r#"{"recipient":"m-4"}"#) && !is("m-4", r#"{"recipient":"m-7"}"#));
    }
}
