//! Parses JSON text and keeps the bytes of the values.
//!
//! A derived `Deserialize` does not fit. It accepts an array for a struct and quotes values in its
//! errors. It also rejects a lone surrogate in the name of an unused member.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::rejection::{Reason, Rejection};

/// Deepest nesting. serde_json stops at 127 levels, and `data` is one level deeper in the frame.
pub(super) const LEVELS_MAX: usize = 126;
const BYTE_ORDER_MARK: char = '\u{feff}';

/// Checks that a text is one JSON value within the bound on nesting. Returns the value without the
/// white space around it.
///
/// The syntax is that of RFC 8259. Nothing is converted, so a number may have any size and a string
/// any escape.
pub(super) fn parse(text: &str) -> Result<&RawValue, Rejection> {
    if levels(text) > LEVELS_MAX {
        let detail = format!("the JSON is nested more than {LEVELS_MAX} levels deep");
        return Err(Rejection::new(Reason::TooDeep, detail));
    }
    if text.starts_with(BYTE_ORDER_MARK) {
        // RFC 8259 §8.1 allows to reject it. Some readers of the stored data would not skip it.
        let detail = "there is a byte order mark (U+FEFF) before the JSON, publish it without";
        return Err(Rejection::new(Reason::MalformedJson, detail));
    }
    serde_json::from_str(text).map_err(|error| {
        // The messages of serde_json may quote the text, so they are not used.
        let problem = if error.is_eof() {
            "the JSON ends too early"
        } else {
            "not JSON"
        };
        let detail = format!("{problem}: line {} column {}", error.line(), error.column());
        Rejection::new(Reason::MalformedJson, detail)
    })
}

/// A member of an object with a given name.
#[derive(Debug, Clone, Copy)]
pub(super) struct Member<'a> {
    pub(super) name: &'static str,
    pub(super) value: MemberValue<'a>,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum MemberValue<'a> {
    Absent,
    Once(&'a RawValue),
    /// The object has the name more than once. Parsers differ in the one that they use (RFC 8259
    /// §4).
    Repeated,
}

/// The members with these names, in the order of the names. `None` if the value is no object.
pub(super) fn members<'a, const N: usize>(
    value: &'a RawValue,
    names: [&'static str; N],
) -> Option<[Member<'a>; N]> {
    serde_json::Deserializer::from_str(value.get())
        .deserialize_map(Members { names })
        .ok()
}

/// The text of a JSON string. `None` if the value is no string, or has a lone surrogate, which
/// neither Rust nor Postgres can hold.
pub(super) fn text(value: &RawValue) -> Option<Cow<'_, str>> {
    let json = value.get();
    match json
        .strip_prefix('"')
        .and_then(|json| json.strip_suffix('"'))
    {
        Some(plain) if !plain.contains('\\') => Some(Cow::Borrowed(plain)),
        _ => serde_json::from_str(json).ok().map(Cow::Owned),
    }
}

/// The integer of a JSON number in any form. In JSON Schema a number with a fraction of zero is an
/// integer (2020-12, validation §6.1.1). The digits are parsed without a float, so that large
/// numbers stay exact. `None` if it does not fit into `i64`.
pub(super) fn integer(value: &RawValue) -> Option<i64> {
    let json = value.get();
    let (sign, unsigned) = json
        .strip_prefix('-')
        .map_or((1, json), |unsigned| (-1, unsigned));
    if !unsigned.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let (mantissa, exponent) = unsigned.split_once(['e', 'E']).unwrap_or((unsigned, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    let significant = digits.trim_end_matches('0');
    if significant.is_empty() {
        return Some(0);
    }
    // The number is `significant` followed by this many zeros.
    let zeros = exponent
        .parse::<i64>()
        .ok()?
        .checked_add(i64::try_from(whole.len()).ok()?)?;
    let zeros = u32::try_from(zeros.checked_sub(i64::try_from(significant.len()).ok()?)?).ok()?;
    let significant = format!("{}{significant}", if sign < 0 { "-" } else { "" })
        .parse::<i64>()
        .ok()?;
    significant.checked_mul(10_i64.checked_pow(zeros)?)
}

/// The depth of nested arrays and objects. The result is exact only for valid JSON.
fn levels(text: &str) -> usize {
    let mut deepest = 0;
    let mut level = 0_usize;
    let mut in_string = false;
    let mut escaped = false;
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                level += 1;
                deepest = deepest.max(level);
            }
            b']' | b'}' if !in_string => level = level.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

struct Members<const N: usize> {
    names: [&'static str; N],
}

impl<'de, const N: usize> Visitor<'de> for Members<N> {
    type Value = [Member<'de>; N];

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = self.names.map(|name| Member {
            name,
            value: MemberValue::Absent,
        });
        while let Some(member) = map.next_key_seed(Name(&mut members))? {
            let Some(member) = member else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            let value = map.next_value()?;
            member.value = match member.value {
                MemberValue::Absent => MemberValue::Once(value),
                MemberValue::Once(_) | MemberValue::Repeated => MemberValue::Repeated,
            };
        }
        Ok(members)
    }
}

/// Finds the member with the name of a key. The key is read as bytes, because it may hold a lone
/// surrogate.
struct Name<'m, 'a>(&'m mut [Member<'a>]);

impl<'de, 'm, 'a> DeserializeSeed<'de> for Name<'m, 'a> {
    type Value = Option<&'m mut Member<'a>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_bytes(self)
    }
}

impl<'m, 'a> Visitor<'_> for Name<'m, 'a> {
    type Value = Option<&'m mut Member<'a>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a member")
    }

    fn visit_bytes<E>(self, key: &[u8]) -> Result<Self::Value, E> {
        Ok(self
            .0
            .iter_mut()
            .find(|member| member.name.as_bytes() == key))
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_value_keeps_its_bytes_and_loses_the_white_space_around_it() {
        for json in [
            "123456789012345678901234567890",
            "1e400",
            "-0.10E-2",
            r#"{"b":1,  "a":2 , "b":3}"#,
            r#""\u0000 \ud800 \udc00\ud800 \/ é ü""#,
            "[ 1 ,\n\t2\r]",
            "null",
            r#"{"\ud800":1}"#,
        ] {
            assert_eq!(parse(&format!(" \r\n\t{json}\n ")).unwrap().get(), json);
        }
    }

    #[test]
    fn a_rejection_has_the_place_of_the_error_and_no_text() {
        for (text, detail) in [
            ("", "the JSON ends too early: line 1 column 0"),
            ("{\"s3cr3t\":\n", "the JSON ends too early: line 2 column 0"),
            ("s3cr3t", "not JSON: line 1 column 1"),
            ("{} s3cr3t", "not JSON: line 1 column 4"),
            ("\"a\nb\"", "not JSON: line 1 column 2"),
            ("[1,]", "not JSON: line 1 column 4"),
            ("01", "not JSON: line 1 column 2"),
            (
                "\u{feff}1",
                "there is a byte order mark (U+FEFF) before the JSON, publish it without",
            ),
            (r#""\ud8zz""#, "not JSON: line 1 column 7"),
        ] {
            let rejection = parse(text).unwrap_err();
            assert_eq!(rejection.reason, Reason::MalformedJson);
            assert_eq!(rejection.detail, detail, "{text}");
        }
    }

    #[test]
    fn nesting_is_accepted_up_to_the_bound() {
        let nested = |levels| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert!(parse(&nested(LEVELS_MAX)).is_ok());
        assert_eq!(
            parse(&nested(LEVELS_MAX + 1)).unwrap_err().reason,
            Reason::TooDeep
        );
        let unclosed = "[{".repeat(100_000);
        assert_eq!(parse(&unclosed).unwrap_err().reason, Reason::TooDeep);
    }

    #[test]
    fn brackets_in_strings_and_side_by_side_do_not_nest() {
        let brackets = "[{".repeat(LEVELS_MAX);
        let in_strings = format!(r#"["\"{brackets}","\\",["{brackets}"]]"#);
        assert_eq!(levels(&in_strings), 2);
        assert!(parse(&in_strings).is_ok());
        assert_eq!(levels("[[],[],{},{}]"), 2);
    }

    #[test]
    fn members_are_found_by_name_however_it_is_escaped() {
        let [a, b, c, d] = found(
            r#" {"a": 1 ,"\u0062":[2],"x":{"a":9},"\ud800":3,"c":1,"c":1,"a\u0000":7} "#,
            ["a", "b", "c", "d"],
        )
        .unwrap();
        assert_eq!((a.as_str(), b.as_str()), ("1", "[2]"));
        assert_eq!((c.as_str(), d.as_str()), ("repeated", "absent"));
    }

    #[test]
    fn only_an_object_has_members() {
        for json in ["[1]", "null", "\"a\"", "1", "true", "[]"] {
            assert_eq!(found(json, ["a"]), None);
        }
        assert!(found("{}", ["a"]).is_some());
    }

    #[test]
    fn text_is_the_unescaped_string() {
        for (json, expected) in [
            (r#""""#, Some("")),
            (r#""é""#, Some("é")),
            (r#""\u0000\"\/""#, Some("\0\"/")),
            (r#""\ud83d\ude00""#, Some("😀")),
            (r#""\ud800""#, None),
            (r#""\udc00\ud800""#, None),
            ("1", None),
            ("null", None),
            (r#"["a"]"#, None),
        ] {
            assert_eq!(text(parse(json).unwrap()).as_deref(), expected, "{json}");
        }
    }

    #[test]
    fn a_number_without_a_fraction_is_an_integer_in_any_form() {
        for (json, expected) in [
            ("0", Some(0)),
            ("-0", Some(0)),
            ("0.000e-999999999999999999999", Some(0)),
            ("3", Some(3)),
            ("3.0", Some(3)),
            ("3e0", Some(3)),
            ("30E-1", Some(3)),
            ("0.3e+1", Some(3)),
            ("0.0030e3", Some(3)),
            ("-12.50e2", Some(-1_250)),
            ("9223372036854775807", Some(i64::MAX)),
            ("9223372036854775807.0", Some(i64::MAX)),
            ("9.223372036854775807e18", Some(i64::MAX)),
            ("-9223372036854775808", Some(i64::MIN)),
            ("9007199254740993.0", Some(9_007_199_254_740_993)),
            ("9223372036854775808", None),
            ("1e19", None),
            ("1e999999999999999999999", None),
            ("1e-1", None),
            ("3.5", None),
            ("35e-1", None),
            ("1e-999999999999999999999", None),
            (r#""3""#, None),
            ("true", None),
            ("null", None),
            ("[3]", None),
        ] {
            assert_eq!(integer(parse(json).unwrap()), expected, "{json}");
        }
    }

    fn found<const N: usize>(json: &str, names: [&'static str; N]) -> Option<[String; N]> {
        let members = members(parse(json).unwrap(), names)?;
        Some(members.map(|member| match member.value {
            MemberValue::Absent => "absent".into(),
            MemberValue::Once(value) => value.get().into(),
            MemberValue::Repeated => "repeated".into(),
        }))
    }
}
