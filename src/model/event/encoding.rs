//! Bodies that the library of a publisher encoded. The rejection names the encoding, because the
//! publisher sees correct JSON.

use super::message::Message;
use super::rejection::{Reason, Rejection};

/// Content encodings that compress (RFC 9110 §8.4.1, RFC 8878, and those of message libraries).
/// Some publishers set others, such as `utf-8`.
const COMPRESSIONS: [&str; 10] = [
    "gzip",
    "x-gzip",
    "deflate",
    "compress",
    "x-compress",
    "br",
    "zstd",
    "snappy",
    "lz4",
    "xz",
];
/// First bytes of compressed formats. No JSON begins with any of them.
const SIGNATURES: [(&[u8], &str); 9] = [
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x78\x01", "deflate"),
    (b"\x78\x5e", "deflate"),
    (b"\x78\x9c", "deflate"),
    (b"\x78\xda", "deflate"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"\xfd7zXZ\0", "xz"),
    (b"PK\x03\x04", "zip"),
];

/// Adds the encoding of the body to the rejection, if the encoding may be its cause.
pub(super) fn explain(rejection: Rejection, message: &Message<'_>) -> Rejection {
    if !matches!(
        rejection.reason,
        Reason::InvalidUtf8 | Reason::MalformedJson
    ) {
        return rejection;
    }
    match encoding(message) {
        Some(encoding) => Rejection::new(
            rejection.reason,
            format!("{encoding}: {}", rejection.detail),
        ),
        None => rejection,
    }
}

fn encoding(message: &Message<'_>) -> Option<String> {
    let compressed =
        |what: &str| format!("the body is compressed ({what}), publish it uncompressed");
    if let Some((_, what)) = SIGNATURES
        .iter()
        .find(|(signature, _)| message.body.starts_with(signature))
    {
        return Some(compressed(what));
    }
    if let Some(what) = declared(message) {
        return Some(compressed(what));
    }
    // UTF-16 and UTF-32 add zero bytes to each ASCII character.
    let (starts, has_zero) = (
        |mark: &[u8]| message.body.starts_with(mark),
        message.body.iter().take(2).any(|b| *b == 0),
    );
    (starts(b"\xff\xfe") || starts(b"\xfe\xff") || has_zero)
        .then(|| "the body is UTF-16 or UTF-32, publish it as UTF-8".to_owned())
}

/// The compression that the content encoding names, in the property or in a header.
fn declared(message: &Message<'_>) -> Option<&'static str> {
    let headers = message
        .headers
        .iter()
        .filter(|(name, _)| name.eq_ignore_ascii_case("content-encoding"));
    let headers = headers.filter_map(|(_, value)| value.text());
    let mut names = message
        .content_encoding
        .into_iter()
        .chain(headers)
        .flat_map(|value| value.split(','));
    names.find_map(|name| {
        COMPRESSIONS
            .into_iter()
            .find(|known| name.trim().eq_ignore_ascii_case(known))
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::super::message::HeaderValue;
    use super::super::parse::{Limits, parse};
    use super::super::sample::{self, STRUCTURED};
    use super::*;

    fn detail(content_encoding: Option<&str>, headers: &[(&str, &str)], body: &[u8]) -> String {
        let headers = headers
            .iter()
            .map(|(name, value)| ((*name).into(), HeaderValue::from(*value)))
            .collect();
        let message = Message {
            content_type: Some(STRUCTURED),
            content_encoding,
            headers,
            body,
        };
        parse(
            &message,
            Limits {
                event_bytes_max: 1 << 20,
            },
        )
        .unwrap_err()
        .detail
    }

    #[test]
    fn a_compressed_body_is_named_by_its_first_bytes() {
        for (body, what) in [
            (&b"\x1f\x8b\x08\0"[..], "gzip"),
            (b"\x28\xb5\x2f\xfd\0", "zstd"),
            (b"\x78\x5e\x00", "deflate"),
        ] {
            let detail = detail(None, &[], body);
            assert!(
                detail.starts_with(&format!(
                    "the body is compressed ({what}), publish it uncompressed: "
                )),
                "{detail}"
            );
        }
    }

    #[test]
    fn a_compressed_body_is_named_by_its_content_encoding() {
        for (property, headers) in [
            (Some("br"), &[][..]),
            (Some("utf-8, BR"), &[]),
            (None, &[("Content-Encoding", "br")]),
            (Some("utf-8"), &[("content-encoding", " br ")]),
        ] {
            let detail = detail(property, headers, b"\x0b\x01\x80{}\x03");
            assert!(
                detail.starts_with("the body is compressed (br)"),
                "{detail}"
            );
        }
    }

    #[test]
    fn an_encoding_that_is_no_compression_is_not_named() {
        for property in ["utf-8", "UTF-8", "identity", "base64", ""] {
            assert_eq!(
                detail(Some(property), &[], b"{"),
                "the JSON ends too early: line 1 column 1"
            );
        }
    }

    #[test]
    fn a_readable_body_is_parsed_whatever_its_content_encoding() {
        let body = sample::structured_body("custom.thing", "1");
        let (content_encoding, headers) = (Some("gzip"), Vec::new());
        let message = Message {
            content_type: Some(STRUCTURED),
            content_encoding,
            headers,
            body: body.as_bytes(),
        };
        assert!(
            parse(
                &message,
                Limits {
                    event_bytes_max: 1 << 20
                }
            )
            .is_ok()
        );
    }

    #[test]
    fn wide_characters_are_named() {
        for body in [
            &b"\xff\xfe{\0"[..],
            b"\xfe\xff\0{",
            b"{\0}\0",
            b"\0{\0}",
            b"{\0\0\0",
        ] {
            let detail = detail(None, &[], body);
            assert!(
                detail.starts_with("the body is UTF-16 or UTF-32, publish it as UTF-8: "),
                "{detail}"
            );
        }
    }
}
