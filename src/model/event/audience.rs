//! The audience of an event: one merchant, everyone, or a canary of Shopbell.
//!
//! The broadcast feed and the feeds of canaries have names that a merchant could have. An event for
//! one merchant must never be stored there.

use super::cloud_event::Event;
use super::rejection::{Reason, Rejection};
use crate::model::feed::Feed;

/// Prefixes of the types of events about one merchant. Such an event goes to everyone only if its
/// publisher sets `broadcast`.
const OF_ONE_MERCHANT: [&str; 2] = ["order.", "import."];
/// The type of the events of canaries.
pub const CANARY_TYPE: &str = "shopbell.canary";
/// The source of the events of canaries.
pub const CANARY_SOURCE: &str = "/shopbell/canary";

impl Event {
    /// Rejects an event for one merchant that would reach everyone, and the reverse.
    pub fn check_audience(&self, broadcast_feed: &Feed) -> Result<(), Rejection> {
        let is_for_all = self.recipient == *broadcast_feed;
        let is_of_one = OF_ONE_MERCHANT
            .iter()
            .any(|prefix| self.event_type.starts_with(prefix));
        let is_canary = self.event_type == CANARY_TYPE && self.source == CANARY_SOURCE;
        let problem = match self.broadcast {
            Some(false) if is_for_all => {
                "it is the broadcast feed (SHOPBELL_BROADCAST_FEED), and `broadcast` is false; no merchant can have this id"
            }
            None if is_for_all && is_of_one => {
                "everyone reads the broadcast feed (SHOPBELL_BROADCAST_FEED), and an event of this type is for one \
                 merchant: set `broadcast` to true to send it to everyone"
            }
            Some(true) if !is_for_all => {
                "it is not the broadcast feed (SHOPBELL_BROADCAST_FEED), and `broadcast` is true"
            }
            _ if self.recipient.is_of_a_canary() && !is_canary => {
                "names that begin with shopbell-canary/ are reserved for Shopbell"
            }
            _ => return Ok(()),
        };
        Err(Rejection::new(
            Reason::InvalidRecipient,
            format!("attribute `recipient`: {problem}"),
        ))
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::super::sample;
    use super::*;

    const ORDER_DATA: &str = r#"{"order_id":"A-1","total":"12.50","currency":"EUR","items":3}"#;

    fn check(recipient: &str, event_type: &str, broadcast: &str) -> Result<(), Rejection> {
        let more =
            format!(r#""{recipient}","data":{ORDER_DATA},"broadcast":{broadcast},"subject":"x""#);
        let body = sample::with("recipient", &more).replace("custom.thing", event_type);
        sample::structured(&body)?.check_audience(&Feed::parse("all").unwrap())
    }

    #[test]
    fn an_event_of_one_merchant_needs_broadcast_to_reach_everyone() {
        for event_type in ["order.created", "order.updated", "order."] {
            let rejection = check("all", event_type, "null").unwrap_err();
            assert_eq!(rejection.reason, Reason::InvalidRecipient);
            assert!(
                rejection.detail.contains("SHOPBELL_BROADCAST_FEED"),
                "{rejection}"
            );
            assert_eq!(check("all", event_type, "true"), Ok(()));
            assert_eq!(check("merchant-42", event_type, "null"), Ok(()));
        }
        for event_type in ["notice", "orders", "order"] {
            assert_eq!(check("all", event_type, "null"), Ok(()));
        }
    }

    #[test]
    fn broadcast_and_the_recipient_must_agree() {
        for broadcast in ["true", r#""true""#] {
            assert_eq!(check("all", "notice", broadcast), Ok(()));
            assert_eq!(
                check("All", "notice", broadcast).unwrap_err().reason,
                Reason::InvalidRecipient
            );
        }
        for broadcast in ["false", r#""false""#] {
            assert_eq!(check("merchant-42", "notice", broadcast), Ok(()));
            assert_eq!(
                check("all", "notice", broadcast).unwrap_err().reason,
                Reason::InvalidRecipient
            );
        }
        for broadcast in ["1", r#""yes""#, r#""""#, "[]"] {
            let rejection = check("all", "notice", broadcast).unwrap_err();
            assert_eq!(rejection.reason, Reason::InvalidEnvelope);
            assert!(
                rejection
                    .detail
                    .starts_with("attribute `broadcast` must be "),
                "{rejection}"
            );
        }
    }

    #[test]
    fn only_canaries_publish_to_feeds_of_canaries() {
        for event_type in ["notice", "order.created", CANARY_TYPE] {
            let rejection = check("shopbell-canary/x", event_type, "null").unwrap_err();
            assert!(rejection.detail.contains("reserved"), "{rejection}");
        }
        let canary = sample::with("recipient", r#""shopbell-canary/x""#)
            .replace("custom.thing", CANARY_TYPE);
        let canary = sample::structured(&canary.replace("/shop\"", "/shopbell/canary\"")).unwrap();
        assert_eq!(canary.check_audience(&Feed::parse("all").unwrap()), Ok(()));
    }
}
