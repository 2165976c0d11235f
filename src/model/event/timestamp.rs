//! Timestamps of CloudEvents: RFC 3339 (CloudEvents 1.0, "Type System"), or milliseconds as in AMQP
//! 1.0.

use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcOffset};

const NANOSECONDS_PER_MICROSECOND: u32 = 1_000;
const NANOSECONDS_PER_MILLISECOND: i128 = 1_000_000;
/// In the year 1973. A smaller number is probably in seconds, and the event would be expired at
/// once.
const MILLISECONDS_MIN: i64 = 100_000_000_000;

/// The time in UTC, cut to microseconds like a `timestamptz` of Postgres. So a live frame and a
/// replayed frame are equal. `None` if it is not RFC 3339, or not in the years 1 to 9999 in UTC.
pub(super) fn parse(text: &str) -> Option<OffsetDateTime> {
    // RFC 3339 §5.6 allows these separators. The `time` crate accepts any byte.
    if !matches!(text.as_bytes().get(10), Some(b'T' | b't' | b' ')) {
        return None;
    }
    let moment = OffsetDateTime::parse(text, &Rfc3339)
        .ok()?
        .checked_to_offset(UtcOffset::UTC)?;
    let nanosecond = moment.nanosecond();
    let moment = moment
        .replace_nanosecond(nanosecond - nanosecond % NANOSECONDS_PER_MICROSECOND)
        .ok()?;
    (1..=9999).contains(&moment.year()).then_some(moment)
}

/// RFC 3339 for milliseconds since 1970, the timestamp of AMQP 1.0 (§1.6.17). AMQP 0-9-1 has no
/// such type, and the CloudEvents SDK for Python sends a number. `None` if it is no number, or too
/// small.
pub(super) fn from_milliseconds(text: &str) -> Option<String> {
    let milliseconds: i64 = text.parse().ok()?;
    if milliseconds < MILLISECONDS_MIN {
        return None;
    }
    let nanoseconds = i128::from(milliseconds) * NANOSECONDS_PER_MILLISECOND;
    OffsetDateTime::from_unix_timestamp_nanos(nanoseconds)
        .ok()?
        .format(&Rfc3339)
        .ok()
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn rfc_3339_becomes_utc_in_microseconds() {
        for (text, moment) in [
            ("2026-02-03T04:05:06Z", datetime!(2026-02-03 4:05:06 UTC)),
            ("2026-02-03t04:05:06z", datetime!(2026-02-03 4:05:06 UTC)),
            (
                "2026-02-03 04:05:06+00:00",
                datetime!(2026-02-03 4:05:06 UTC),
            ),
            (
                "2026-02-03T00:30:00.5+01:00",
                datetime!(2026-02-02 23:30:00.5 UTC),
            ),
            (
                "2026-02-03T04:05:06.123456999Z",
                datetime!(2026-02-03 4:05:06.123456 UTC),
            ),
            (
                "1969-12-31T23:59:59.9999999Z",
                datetime!(1969-12-31 23:59:59.999999 UTC),
            ),
            (
                "2016-12-31T23:59:60Z",
                datetime!(2016-12-31 23:59:59.999999 UTC),
            ),
            ("0001-01-01T00:00:00Z", datetime!(0001-01-01 0:00 UTC)),
            (
                "9999-12-31T23:59:59.999999Z",
                datetime!(9999-12-31 23:59:59.999999 UTC),
            ),
        ] {
            assert_eq!(parse(text), Some(moment), "{text}");
        }
    }

    #[test]
    fn other_forms_are_rejected() {
        for text in [
            "",
            "now",
            "1767225600",
            "2026-02-03",
            "2026-02-03T04:05:06",
            "2026-02-03X04:05:06Z",
            "2026-02-30T04:05:06Z",
            "2026-02-03T24:00:00Z",
            "2026-02-03T04:05:06Z ",
            "20260203T040506Z",
            "0000-12-31T00:00:00Z",
            "0001-01-01T00:00:00+00:01",
            "9999-12-31T23:59:59-00:01",
            "9999-12-31T23:59:59-23:59",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn milliseconds_become_rfc_3339() {
        for (text, rfc_3339) in [
            ("1767323045678", "2026-01-02T03:04:05.678Z"),
            ("100000000000", "1973-03-03T09:46:40Z"),
            ("253402300799999", "9999-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(from_milliseconds(text).as_deref(), Some(rfc_3339), "{text}");
        }
    }

    #[test]
    fn seconds_and_out_of_range_numbers_are_rejected() {
        for text in [
            "",
            "0",
            "1767323045",
            "99999999999",
            "-1767323045678",
            "253402300800000",
            "9223372036854775807",
            "1.7e12",
        ] {
            assert_eq!(from_milliseconds(text), None, "{text}");
        }
    }
}
