//! Messages for the tests of `event`: a valid event in both modes, and variants of it.

use super::cloud_event::Event;
use super::message::Message;
use super::parse::{self, Limits};
use super::rejection::Rejection;

pub(super) const STRUCTURED: &str = "application/cloudevents+json; charset=utf-8";

const REQUIRED: [(&str, &str); 5] = [
    ("specversion", r#""1.0""#),
    ("id", r#""e-1""#),
    ("source", r#""/shop""#),
    ("type", r#""custom.thing""#),
    ("recipient", r#""merchant-42""#),
];

pub(super) const ORDER: &str = r#""order_id":"A-1","total":"12.50","currency":"EUR","items":3"#;
pub(super) const STARTED: &str = r#""import_id":"i-1","total":10"#;
pub(super) const ITEM: &str = r#""import_id":"i-1","index":1,"sku":"S","status":"imported""#;
pub(super) const FAILED: &str =
    r#""import_id":"i-1","index":1,"sku":"","status":"failed","error":"no sku""#;
pub(super) const FINISHED: &str = r#""import_id":"i-1","status":"finished""#;
/// Each type that has a schema, with the required fields of its data.
pub(super) const SCHEMAS: [(&str, &str); 5] = [
    ("order.created", ORDER),
    ("import.started", STARTED),
    ("import.item", ITEM),
    ("import.item", FAILED),
    ("import.finished", FINISHED),
];

/// Parses with generous limits.
pub(super) fn parse(
    content_type: Option<&str>,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Result<Event, Rejection> {
    let headers = headers
        .iter()
        .map(|(name, value)| ((*name).into(), (*value).into()));
    let message = Message {
        content_type,
        content_encoding: None,
        headers: headers.collect(),
        body,
    };
    parse::parse(
        &message,
        Limits {
            event_bytes_max: 1 << 20,
        },
    )
}

pub(super) fn structured(body: &str) -> Result<Event, Rejection> {
    parse(Some(STRUCTURED), &[], body.as_bytes())
}

/// A valid event with this attribute set to this JSON, or added.
pub(super) fn with(name: &str, json: &str) -> String {
    let others = REQUIRED.iter().filter(|(other, _)| *other != name);
    let members = others.copied().chain([(name, json)]);
    object(members)
}

/// A valid event without this attribute, and without data.
pub(super) fn without(name: &str) -> String {
    object(REQUIRED.iter().filter(|(other, _)| *other != name).copied())
}

pub(super) fn structured_body(event_type: &str, data: &str) -> String {
    with("type", &format!(r#""{event_type}","data":{data}"#))
}

pub(super) fn structured_data(event_type: &str, data: &str) -> Result<Event, Rejection> {
    structured(&structured_body(event_type, data))
}

/// A valid binary event, with these headers beside its own.
pub(super) fn binary(more: &[(&str, &str)], body: &[u8]) -> Result<Event, Rejection> {
    let headers = [
        ("cloudEvents_specversion", "1.0"),
        ("cloudEvents_id", "e-1"),
        ("cloudEvents_source", "/shop"),
        ("cloudEvents_type", "custom.thing"),
        ("cloudEvents_recipient", "merchant-42"),
    ];
    parse(Some("application/json"), &[&headers, more].concat(), body)
}

/// A valid binary event with this header in place of its own, and without data.
pub(super) fn binary_with(header: &str, value: &str) -> Result<Event, Rejection> {
    let own = ["specversion", "id", "source", "type", "recipient"]
        .map(|name| format!("cloudEvents_{name}"));
    let values = ["1.0", "e-1", "/shop", "custom.thing", "merchant-42"];
    let own = own
        .iter()
        .map(String::as_str)
        .zip(values)
        .filter(|(name, _)| *name != header);
    let headers: Vec<_> = own.chain([(header, value)]).collect();
    parse(Some("application/json"), &headers, b"")
}

fn object<'a>(members: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let members: Vec<_> = members
        .map(|(name, json)| format!(r#""{name}":{json}"#))
        .collect();
    format!("{{{}}}", members.join(","))
}
