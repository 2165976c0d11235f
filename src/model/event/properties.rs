//! Properties that hold for every message.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::attribute::ATTRIBUTES;
use super::cloud_event::Event;
use super::rejection::{Reason, Rejection};
use super::sample;

/// The attributes of type String.
const TEXTS: [&str; 7] = [
    "specversion",
    "id",
    "source",
    "type",
    "recipient",
    "collapsekey",
    "datacontenttype",
];
/// The detail of a rejection fits into a header, a log line and an HTTP response.
const DETAIL_BYTES_MAX: usize = 200;
const SECRET: &str = "s3cr3t";

proptest! {
    #[test]
    fn any_json_comes_out_as_it_went_in(json in json(), before in white_space(), after in white_space()) {
        let padded = format!("{before}{json}{after}");
        let structured = sample::structured_data("custom.thing", &padded);
        prop_assert_eq!(data(structured)?, json.clone());
        let binary = sample::binary(&[], padded.as_bytes());
        prop_assert_eq!(data(binary)?, json);
    }

    #[test]
    fn arbitrary_bytes_are_read_or_rejected(
        content_type in content_type(),
        headers in proptest::collection::vec((header(), ".*"), 0..8),
        body in proptest::collection::vec(any::<u8>(), 0..256),
    ) {
        let headers: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        check(sample::parse(content_type.as_deref(), &headers, &body))?;
    }

    #[test]
    fn both_modes_read_an_attribute_alike(name in prop::sample::select(TEXTS.to_vec()), (json, header) in scalar()) {
        let structured = sample::structured(&sample::with(name, &json));
        let header_name = format!("cloudEvents_{name}");
        let binary = sample::binary_with(&header_name, &header);
        prop_assert_eq!(format!("{structured:?}"), format!("{binary:?}"), "{} {}", name, json);
    }

    #[test]
    fn a_number_is_an_integer_if_its_fraction_is_zero(number in any::<i64>(), zeros in 0..30_usize, shift in 0..30_usize) {
        let zeros = "0".repeat(zeros);
        let shifted = format!("{number}{}", "0".repeat(shift));
        for json in [format!("{number}"), format!("{number}.0{zeros}"), format!("{number}e0"), format!("{shifted}E-{shift}")] {
            let value = super::json::parse(&json).map_err(|rejection| TestCaseError::fail(rejection.to_string()))?;
            prop_assert_eq!(super::json::integer(value), Some(number), "{}", json);
        }
    }

    #[test]
    fn a_damaged_event_is_read_or_rejected(
        event_type in event_type(),
        json in json(),
        place in any::<proptest::sample::Index>(),
        byte in any::<u8>(),
        cut in any::<bool>(),
    ) {
        let mut body = sample::structured_body(event_type, &json).into_bytes();
        let place = place.index(body.len());
        body[place] = byte;
        if cut {
            body.truncate(place);
        }
        check(sample::parse(Some(sample::STRUCTURED), &[], &body))?;
    }
}

#[test]
fn a_rejection_repeats_nothing_that_was_sent() {
    let mut reasons = BTreeSet::new();
    for secret in [
        r#""s3cr3t""#,
        r#"["s3cr3t"]"#,
        r#"{"s3cr3t":"s3cr3t"}"#,
        r#""s3cr3t\u0000""#,
        r#""s3cr3t\ud800""#,
        "s3cr3t",
        r#""s3cr3t"#,
        "\"s3cr3t\n\"",
        r#"{"s3cr3t":1"#,
        r#""s3cr3t\x""#,
    ] {
        let mut outcomes: Vec<_> = bodies_with(secret)
            .iter()
            .map(|body| sample::structured(body))
            .collect();
        for name in ATTRIBUTES {
            outcomes.push(sample::binary(
                &[(&format!("cloudEvents_{name}"), secret)],
                b"1",
            ));
        }
        outcomes.push(sample::binary(&[], secret.as_bytes()));
        for content_type in [
            secret.to_owned(),
            format!("application/cloudevents+{secret}"),
        ] {
            outcomes.push(sample::parse(
                Some(&content_type),
                &[("cloudEvents_id", secret)],
                b"1",
            ));
        }
        for rejection in outcomes.into_iter().filter_map(Result::err) {
            assert!(!rejection.to_string().contains(SECRET), "{rejection}");
            reasons.insert(rejection.reason);
        }
    }
    let never = [Reason::TooLarge, Reason::TooDeep, Reason::InvalidUtf8];
    let expected = Reason::ALL
        .into_iter()
        .filter(|reason| !never.contains(reason));
    assert_eq!(
        reasons,
        expected.collect(),
        "every reason that a secret can cause"
    );
}

/// Events that have this text in each place of a value.
fn bodies_with(secret: &str) -> Vec<String> {
    let mut bodies = vec![secret.to_owned(), format!("[{secret}]")];
    for name in ATTRIBUTES.into_iter().chain(["data", "data_base64"]) {
        bodies.push(sample::with(name, secret));
    }
    for (event_type, fields) in sample::SCHEMAS {
        bodies.push(sample::structured_body(event_type, secret));
        for field in fields.split(',') {
            let (name, _) = field.split_once(':').unwrap_or_default();
            let fields = fields.replace(field, &format!("{name}:{secret}"));
            bodies.push(sample::structured_body(
                event_type,
                &format!("{{{fields}}}"),
            ));
        }
    }
    bodies
}

fn check(outcome: Result<Event, Rejection>) -> Result<(), TestCaseError> {
    if let Err(rejection) = outcome {
        prop_assert!(rejection.detail.len() <= DETAIL_BYTES_MAX, "{}", rejection);
        prop_assert!(!rejection.to_string().contains(SECRET), "{}", rejection);
    }
    Ok(())
}

fn data(outcome: Result<Event, Rejection>) -> Result<String, TestCaseError> {
    let event = outcome.map_err(|rejection| TestCaseError::fail(rejection.to_string()))?;
    Ok(event
        .data
        .map(|data| data.get().to_owned())
        .unwrap_or_default())
}

/// Any JSON text, with the parts that some parsers change: white space, the order of keys, repeated
/// keys, long numbers, needless escapes, lone surrogates.
fn json() -> impl Strategy<Value = String> {
    let number = r"-?(0|[1-9][0-9]{0,40})(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,4})?";
    let leaf = prop_oneof![
        prop::sample::select(vec!["null", "true", "false"]).prop_map(str::to_owned),
        number,
        string(),
    ];
    leaf.prop_recursive(8, 64, 6, |inner| {
        let padded = (white_space(), inner, white_space());
        let padded = padded
            .prop_map(|(before, json, after)| before + &json + &after)
            .boxed();
        let key = (white_space(), string(), white_space());
        let member = (key, padded.clone());
        let member = member
            .prop_map(|((before, key, after), value)| format!("{before}{key}{after}:{value}"));
        prop_oneof![
            proptest::collection::vec(padded, 1..6)
                .prop_map(|values| format!("[{}]", values.join(","))),
            proptest::collection::vec(member, 1..6)
                .prop_map(|members| format!("{{{}}}", members.join(","))),
            white_space().prop_map(|inside| format!("[{inside}]")),
            white_space().prop_map(|inside| format!("{{{inside}}}")),
        ]
    })
}

/// A value of an attribute, as JSON and as text in a header.
fn scalar() -> impl Strategy<Value = (String, String)> {
    prop_oneof![
        any::<i64>().prop_map(|number| (number.to_string(), number.to_string())),
        any::<bool>().prop_map(|flag| (flag.to_string(), flag.to_string())),
        prop_oneof![".{0,3}", "[a-z0-9/.~-]{1,300}", any::<String>()]
            .prop_map(|text| (serde_json::Value::from(text.clone()).to_string(), text)),
    ]
}

fn string() -> impl Strategy<Value = String> {
    let character = prop_oneof![
        any::<char>().prop_filter_map("an escape stands for it", |character| {
            let escaped = matches!(character, '"' | '\\' | '\0'..='\u{1f}');
            (!escaped).then(|| character.to_string())
        }),
        r#"\\["\\/bfnrt]"#,
        r"\\u[0-9a-fA-F]{4}",
        r"\\u[dD][89a-fA-F][0-9a-fA-F]{2}",
    ];
    proptest::collection::vec(character, 0..12)
        .prop_map(|characters| format!("\"{}\"", characters.concat()))
}

fn white_space() -> impl Strategy<Value = String> {
    "[ \t\r\n]{0,3}"
}

fn content_type() -> impl Strategy<Value = Option<String>> {
    prop_oneof![
        Just(None),
        Just(Some(sample::STRUCTURED.to_owned())),
        Just(Some("application/json".to_owned())),
        ".*".prop_map(Some),
    ]
}

fn header() -> impl Strategy<Value = String> {
    let attribute = prop::sample::select(ATTRIBUTES.to_vec());
    prop_oneof![
        attribute.prop_map(|name| format!("cloudEvents_{name}")),
        ".*"
    ]
}

fn event_type() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "custom.thing",
        "order.created",
        "import.started",
        "import.item",
        "import.finished",
    ])
}
