//! The frames of clients. Only the fields that the type of a frame has are read. Other fields may
//! hold any JSON.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::device_state::{CanRing, DeviceState};

/// A frame of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientFrame {
    /// The client has every notification of the feed up to `seq`.
    Ack {
        /// The feed.
        feed: String,
        /// The highest number that the client has.
        seq: i64,
    },
    /// A person read these notifications: `seqs`, or all up to `through`. With neither or both, the
    /// session is closed.
    Read {
        /// The feed.
        feed: String,
        /// The numbers. An empty list requests only the counts of the feed.
        seqs: Option<Vec<i64>>,
        /// The highest number.
        through: Option<i64>,
    },
    /// A person handles these notifications. The bell stops on every device.
    Handle {
        /// The feed.
        feed: String,
        /// The numbers.
        seqs: Vec<i64>,
    },
    /// A new token of the same subscriber.
    Auth {
        /// The JWT.
        token: String,
    },
    /// The device can ring, or cannot.
    DeviceState(DeviceState),
    /// The server replies `pong` after it processed all earlier frames of the client.
    Ping,
    /// A frame of an unknown type. The server replies with an `error`, so that a newer client can
    /// fall back.
    Unknown,
}

/// The fields of all frames, not parsed yet. A tagged enum of serde would parse every field, and
/// fail for an unknown field with a number that no double can hold.
#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(borrow, rename = "type")]
    kind: &'a RawValue,
    #[serde(borrow)]
    feed: Option<&'a RawValue>,
    #[serde(borrow)]
    seq: Option<&'a RawValue>,
    #[serde(borrow)]
    seqs: Option<&'a RawValue>,
    #[serde(borrow)]
    through: Option<&'a RawValue>,
    #[serde(borrow)]
    token: Option<&'a RawValue>,
    #[serde(borrow)]
    can_ring: Option<&'a RawValue>,
    #[serde(borrow)]
    visible: Option<&'a RawValue>,
}

impl ClientFrame {
    /// The feed that the frame names.
    pub fn feed(&self) -> Option<&str> {
        match self {
            Self::Ack { feed, .. } | Self::Read { feed, .. } | Self::Handle { feed, .. } => {
                Some(feed)
            }
            Self::Auth { .. } | Self::DeviceState(_) | Self::Ping | Self::Unknown => None,
        }
    }

    /// Parses a text message. Returns `None` if it is no frame of the protocol.
    pub fn parse(text: &str) -> Option<Self> {
        // serde would accept an array for a struct.
        if !text.trim_start().starts_with('{') {
            return None;
        }
        let fields: Fields<'_> = serde_json::from_str(text).ok()?;
        let frame = match string(fields.kind)?.as_str() {
            "ack" => Self::Ack {
                feed: string(fields.feed?)?,
                seq: whole(fields.seq?.get())?,
            },
            "read" => Self::Read {
                feed: string(fields.feed?)?,
                seqs: optional(fields.seqs, seqs).ok()?,
                through: optional(fields.through, |through| whole(through.get())).ok()?,
            },
            "handle" => Self::Handle {
                feed: string(fields.feed?)?,
                seqs: seqs(fields.seqs?)?,
            },
            "auth" => Self::Auth {
                token: string(fields.token?)?,
            },
            "device_state" => {
                let visible = optional(fields.visible, boolean).ok()?;
                // A newer client may have a value that this server does not know.
                match CanRing::parse(&string(fields.can_ring?)?) {
                    Some(can_ring) => Self::DeviceState(DeviceState { can_ring, visible }),
                    None => Self::Unknown,
                }
            }
            "ping" => Self::Ping,
            _ => Self::Unknown,
        };
        Some(frame)
    }
}

fn string(value: &RawValue) -> Option<String> {
    serde_json::from_str(value.get()).ok()
}

fn boolean(value: &RawValue) -> Option<bool> {
    serde_json::from_str(value.get()).ok()
}

fn seqs(value: &RawValue) -> Option<Vec<i64>> {
    let numbers: Vec<&RawValue> = serde_json::from_str(value.get()).ok()?;
    numbers
        .into_iter()
        .map(|number| whole(number.get()))
        .collect()
}

/// A field that `parse` rejects.
struct BadField;

/// A field that may be absent or null.
fn optional<T>(
    value: Option<&RawValue>,
    parse: impl Fn(&RawValue) -> Option<T>,
) -> Result<Option<T>, BadField> {
    value.map(|value| parse(value).ok_or(BadField)).transpose()
}

/// A whole number in any form (RFC 8259 §6). `1`, `1.0` and `1e0` are equal, because many languages
/// have only doubles. A number beyond `i64` becomes the nearest, which no notification has.
fn whole(number: &str) -> Option<i64> {
    if let Ok(number) = number.parse() {
        return Some(number);
    }
    let (sign, number) = match number.strip_prefix('-') {
        Some(number) => (-1, number),
        None => (1, number),
    };
    let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let (before, after) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = [before, after].concat();
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits = digits.trim_start_matches('0');
    // An exponent that does not fit is beyond any number of digits.
    let exponent: i64 = exponent.parse().unwrap_or(if exponent.starts_with('-') {
        i64::MIN
    } else {
        i64::MAX
    });
    let zeros = exponent.saturating_sub(i64::try_from(after.len()).ok()?);
    if digits.is_empty() {
        return Some(0);
    }
    let (digits, zeros) = match usize::try_from(zeros) {
        Ok(zeros) => (digits, zeros),
        Err(_) => {
            let whole = digits
                .len()
                .checked_sub(usize::try_from(zeros.unsigned_abs()).ok()?)?;
            let (digits, fraction) = digits.split_at(whole);
            if !fraction.bytes().all(|byte| byte == b'0') {
                return None;
            }
            (digits, 0)
        }
    };
    let scale = u32::try_from(zeros)
        .ok()
        .and_then(|zeros| 10_i128.checked_pow(zeros));
    let absolute = digits
        .parse()
        .ok()
        .zip(scale)
        .and_then(|(digits, scale): (i128, i128)| digits.checked_mul(scale));
    let number = sign * absolute.unwrap_or(i128::from(i64::MAX) + 1);
    Some(number.clamp(i64::MIN.into(), i64::MAX.into()) as i64)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn the_type_selects_the_frame_and_unknown_fields_are_ignored() {
        let parse = ClientFrame::parse;
        assert_eq!(
            parse(r#"{"type":"ack","feed":"m","seq":3,"new":1}"#).unwrap(),
            ClientFrame::Ack {
                feed: "m".into(),
                seq: 3
            }
        );
        assert_eq!(parse(r#" {"type":"ping"}"#).unwrap(), ClientFrame::Ping);
        assert_eq!(
            parse(r#"{"seqs":[1],"type":"read","feed":"m","through":null}"#).unwrap(),
            ClientFrame::Read {
                feed: "m".into(),
                seqs: Some(vec![1]),
                through: None
            }
        );
        assert_eq!(
            parse(r#"{"\u0074ype":"pr\u0061ise","feed":"m"}"#).unwrap(),
            ClientFrame::Unknown
        );
        let device_state =
            |can_ring, visible| ClientFrame::DeviceState(DeviceState { can_ring, visible });
        assert_eq!(
            parse(r#"{"type":"device_state","can_ring":"muted","visible":false}"#).unwrap(),
            device_state(CanRing::Muted, Some(false))
        );
        assert_eq!(
            parse(r#"{"type":"device_state","can_ring":"yes","visible":null}"#).unwrap(),
            device_state(CanRing::Yes, None)
        );
        assert_eq!(
            parse(r#"{"type":"device_state","can_ring":"hums"}"#).unwrap(),
            ClientFrame::Unknown
        );
        for bad in [
            r#"{"type":"device_state"}"#,
            r#"{"type":"device_state","can_ring":true}"#,
            r#"{"type":"device_state","can_ring":"yes","visible":"yes"}"#,
            r#"{"feed":"m"}"#,
            r#"{"type":"ack","feed":"m"}"#,
            r#"{"type":"ack","feed":"m","seq":1.5}"#,
            r#"{"type":"ack","feed":"m","seq":"1"}"#,
            r#"{"type":"ack","feed":7,"seq":1}"#,
            r#"{"type":"ack","feed":"m","seq":1,"seq":2}"#,
            r#"{"type":"read","feed":"m","seqs":7}"#,
            r#"{"type":"handle","feed":"m","seqs":null}"#,
            r#"{"type":7}"#,
            r#"["ack","m",1,null,null,null]"#,
            "[]",
            "",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_field_of_another_type_may_hold_any_json() {
        for more in [
            "1e400",
            r#""\ud800""#,
            "123456789012345678901234567890",
            r#"{"a":[1e999]}"#,
        ] {
            let ack =
                format!(r#"{{"type":"ack","feed":"m","seq":2,"more":{more},"through":{more}}}"#);
            assert_eq!(
                ClientFrame::parse(&ack),
                Some(ClientFrame::Ack {
                    feed: "m".into(),
                    seq: 2
                }),
                "{more}"
            );
            let unknown = format!(r#"{{"type":"praise","seq":{more}}}"#);
            assert_eq!(
                ClientFrame::parse(&unknown),
                Some(ClientFrame::Unknown),
                "{more}"
            );
        }
    }

    #[test]
    fn a_whole_number_may_be_written_as_a_fraction_or_with_an_exponent() {
        for (written, number) in [
            ("0", 0),
            ("-0", 0),
            ("-0.0", 0),
            ("0e999999999999999999999", 0),
            ("1.0", 1),
            ("1e0", 1),
            ("-1.0", -1),
            ("12.50e1", 125),
            ("1200e-2", 12),
            ("1200.0e-2", 12),
            ("9007199254740993.0", 9_007_199_254_740_993),
            ("9223372036854775807", i64::MAX),
            ("9223372036854775808", i64::MAX),
            ("-9223372036854775809", i64::MIN),
            ("1e400", i64::MAX),
            ("-1e999999999999999999999", i64::MIN),
        ] {
            assert_eq!(whole(written), Some(number), "{written}");
        }
        for bad in [
            "1.5",
            "1e-1",
            "1e-999999999999999999999",
            "125e-2",
            "0.1",
            "true",
            "null",
            "\"1\"",
            "[1]",
            "{}",
        ] {
            assert_eq!(whole(bad), None, "{bad}");
        }
    }
}
