//! The identity of an event in a feed, by which Postgres finds duplicates, and the keys of its subjects. Pure.
//!
//! It is a hash, and begins with the time of an event id that is a UUID of version 7. So events of the
//! same minute are neighbours in the index.

use aws_lc_rs::digest::{Context, SHA256};
use uuid::Uuid;

use crate::model::event::Event;

/// Between the parts. No text of Postgres contains it.
const SEPARATOR: &[u8] = &[0];

/// Returns the identity, as the function `event_identity` in `migrations/` does.
pub(super) fn identity(event: &Event) -> Uuid {
    of(event.recipient.as_str(), &event.source, &event.id)
}

/// Returns the key of a subject in the feed and of the source of an event.
pub(super) fn key(event: &Event, subject: &str) -> Uuid {
    of(event.recipient.as_str(), &event.source, subject)
}

fn of(feed: &str, source: &str, id: &str) -> Uuid {
    let mut context = Context::new(&SHA256);
    for part in [feed.as_bytes(), SEPARATOR, source.as_bytes(), SEPARATOR] {
        context.update(part);
    }
    context.update(id.as_bytes());
    let digest = context.finish();
    let mut bytes: [u8; 16] = digest.as_ref().first_chunk().copied().unwrap_or_default();
    if let (Some(first), Some(time)) = (bytes.first_chunk_mut(), time_of(id)) {
        *first = time;
    }
    Uuid::from_bytes(bytes)
}

/// The first four bytes of a UUID of version 7: its time, in units of 66 s (RFC 9562 §5.7).
fn time_of(id: &str) -> Option<[u8; 4]> {
    let (high, rest) = id.split_at_checked(8)?;
    let (low, rest) = rest.strip_prefix('-')?.split_at_checked(4)?;
    let is_hex = [high, low]
        .concat()
        .bytes()
        .all(|byte| byte.is_ascii_hexdigit());
    let high = u32::from_str_radix(high, 16).ok()?;
    (is_hex && rest.starts_with("-7")).then(|| high.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_identity_is_the_begin_of_a_sha_256() {
        // printf 'merchant-42\0/checkout\0o-1' | sha256sum
        let expected = "cf4f5d435b8361acf09636711e9ebe95";
        assert_eq!(
            of("merchant-42", "/checkout", "o-1").simple().to_string(),
            expected
        );
    }

    #[test]
    fn the_identity_of_a_uuid_of_version_7_begins_with_its_time() {
        let of = |id| of("merchant-42", "/checkout", id).simple().to_string();
        assert_eq!(
            of("0190c0de-5b00-7abc-8def-0123456789ab"),
            "0190c0de921e84b394179e5bd5095cb0"
        );
        for id in [
            "0190c0de-5b00-4abc-8def-0123456789ab",
            "0190c0de-5b0x-7abc-8def-0123456789ab",
            "+190c0de-5b00-7abc-8def-0123456789ab",
            "0190c0de5b007abc8def0123456789ab",
            "0190c0de-5b0",
        ] {
            assert!(!of(id).starts_with("0190c0de"), "{id}");
            assert_eq!(time_of(id), None, "{id}");
        }
    }

    #[test]
    fn events_that_differ_in_one_part_have_different_identities() {
        let names = [
            ("a", "bc", "d"),
            ("ab", "c", "d"),
            ("a", "b", "cd"),
            ("a", "bc", "e"),
        ];
        let identities = names.map(|(feed, source, id)| of(feed, source, id));
        for (place, identity) in identities.iter().enumerate() {
            assert!(
                !identities
                    .iter()
                    .skip(place + 1)
                    .any(|other| other == identity)
            );
        }
    }
}
