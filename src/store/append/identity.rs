//! The identity of an event in a feed, by which Postgres finds duplicates. Pure.

use aws_lc_rs::digest::{Context, SHA256};
use uuid::Uuid;

use crate::model::event::Event;

/// Between the parts. No text of Postgres contains it.
const SEPARATOR: &[u8] = &[0];

/// Returns the identity, as the function `event_identity` in `migrations/` does.
pub(super) fn identity(event: &Event) -> Uuid {
    of(event.recipient.as_str(), &event.source, &event.id)
}

fn of(feed: &str, source: &str, id: &str) -> Uuid {
    let mut context = Context::new(&SHA256);
    for part in [feed.as_bytes(), SEPARATOR, source.as_bytes(), SEPARATOR] {
        context.update(part);
    }
    context.update(id.as_bytes());
    let digest = context.finish();
    let first = digest.as_ref().first_chunk().copied();
    Uuid::from_bytes(first.unwrap_or_default())
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
