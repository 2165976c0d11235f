//! A delivery becomes an event that Postgres can store, or a rejection with its reason.
//!
//! The input is the length of the AMQP properties (two bytes), the properties as on the wire, and
//! the body.
#![no_main]

use amq_protocol::protocol::basic::parse_properties;
use libfuzzer_sys::fuzz_target;
use serde_json::value::RawValue;
use shopbell::amqp::delivery::message;
use shopbell::model::event::{
    COLLAPSE_KEY_BYTES_MAX, Event, ID_BYTES_MAX, Limits, Message, Reason, Rejection,
    SOURCE_BYTES_MAX, TRACEPARENT_BYTES_MAX, TYPE_BYTES_MAX, parse,
};
use shopbell::model::feed::Feed;
use shopbell_fuzz::within;
use time::format_description::well_known::Rfc3339;

const BODY_BYTES_MAX: usize = 16 * 1024;
const LIMITS: Limits = Limits {
    event_bytes_max: BODY_BYTES_MAX,
};
/// The memory of a parse for each byte of the input: copies of texts, and an index of JSON fields.
const BYTES_PER_BYTE: usize = 32;
const DETAIL_BYTES_MAX: usize = 200;

fuzz_target!(|input: &[u8]| {
    let Some((length, rest)) = input.split_first_chunk() else {
        return;
    };
    let length = usize::from(u16::from_be_bytes(*length)).min(rest.len());
    let (properties, body) = rest.split_at(length);
    let Ok((_, properties)) = parse_properties(properties) else {
        return;
    };
    let message = message(&properties, body);
    let parsed = within(BYTES_PER_BYTE * input.len() + 64 * 1024, || {
        parse(&message, LIMITS)
    });
    match parsed {
        Ok(event) => check_event(&event, &message),
        Err(rejection) => check_rejection(&rejection),
    }
});

fn check_event(event: &Event, message: &Message<'_>) {
    let texts = [
        (Some(&event.id), 1, ID_BYTES_MAX),
        (Some(&event.source), 1, SOURCE_BYTES_MAX),
        (Some(&event.event_type), 1, TYPE_BYTES_MAX),
        (event.collapse_key.as_ref(), 1, COLLAPSE_KEY_BYTES_MAX),
        (event.traceparent.as_ref(), 1, TRACEPARENT_BYTES_MAX),
    ];
    for (text, bytes_min, bytes_max) in texts {
        if let Some(text) = text {
            assert!((bytes_min..=bytes_max).contains(&text.len()), "{text:?}");
            assert!(!text.contains('\0'), "Postgres cannot store {text:?}");
        }
    }
    assert!(message.body.len() <= BODY_BYTES_MAX);
    if let Some(data) = &event.data {
        let data = data.get();
        let is_part = |part: &[u8]| part == data.as_bytes();
        assert!(
            message.body.windows(data.len()).any(is_part),
            "byte for byte"
        );
        serde_json::from_str::<&RawValue>(data).expect("data is JSON");
    }
    let broadcast = Feed::parse("all").expect("a feed");
    if let Err(rejection) = event.check_audience(&broadcast) {
        check_rejection(&rejection);
    }
    let written = structured(event);
    let again = Message {
        content_type: Some("application/cloudevents+json"),
        content_encoding: None,
        headers: vec![],
        body: written.as_bytes(),
    };
    let limits = Limits {
        event_bytes_max: usize::MAX,
    };
    let again = parse(&again, limits).expect("an event can be published again");
    assert_eq!(format!("{event:?}"), format!("{again:?}"), "{written}");
    let data = |event: &Event| event.data.as_ref().map(|data| data.get().to_owned());
    assert_eq!(data(event), data(&again));
}

/// The event as a publisher would send it in structured mode.
fn structured(event: &Event) -> String {
    let mut fields = vec![("specversion", Some("1.0".to_owned()))];
    let moment = |at: Option<time::OffsetDateTime>| {
        at.map(|at| at.format(&Rfc3339).expect("a time of RFC 3339"))
    };
    fields.push(("id", Some(event.id.clone())));
    fields.push(("source", Some(event.source.clone())));
    fields.push(("type", Some(event.event_type.clone())));
    fields.push(("recipient", Some(event.recipient.to_string())));
    fields.push((
        "broadcast",
        event.broadcast.map(|is_set| is_set.to_string()),
    ));
    fields.push(("time", moment(event.time)));
    fields.push(("expirytime", moment(event.expires_at)));
    fields.push(("collapsekey", event.collapse_key.clone()));
    fields.push(("traceparent", event.traceparent.clone()));
    let fields = fields
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)));
    let mut written: Vec<_> = fields
        .map(|(name, value)| format!(r#""{name}":{}"#, serde_json::Value::from(value)))
        .collect();
    if let Some(data) = &event.data {
        written.push(format!(r#""data":{}"#, data.get()));
    }
    format!("{{{}}}", written.join(","))
}

fn check_rejection(rejection: &Rejection) {
    let Rejection { reason, detail } = rejection;
    assert!(Reason::ALL.contains(reason));
    assert!((1..=DETAIL_BYTES_MAX).contains(&detail.len()), "{detail}");
    assert!(!detail.contains(char::is_control), "{detail:?}");
}
