//! The feeds of a token: claims come in; the feeds that it may read go out, or an error.
//!
//! Everyone reads the broadcast feed. So a token that could be meant for a merchant of that name is
//! refused, and a token marks for everyone only if it has that right.

use super::{FEEDS_MAX, TokenError};
use crate::model::feed::{CANARY_PREFIX, Feed};

/// A right beyond reading feeds. It is a claim of its own, so that no merchant's id can be taken
/// for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right {
    /// No such right.
    None,
    /// To read and handle for everyone in the broadcast feed: the claim `broadcast`.
    Broadcast,
    /// To read the feed of a canary: the claim `shopbell_canary`.
    Canary,
}

/// The feeds that a token may read, each once; and the broadcast feed again if the token may not
/// mark there.
pub(super) fn feeds(
    subject: String,
    names: Option<Vec<String>>,
    right: Right,
    broadcast_feed: &Feed,
) -> Result<(Vec<Feed>, Option<Feed>), TokenError> {
    if subject == broadcast_feed.as_str() {
        return Err(TokenError::Refused(
            "sub is the name of the broadcast feed (SHOPBELL_BROADCAST_FEED), which everyone reads: use another id",
        ));
    }
    let names = names.unwrap_or_else(|| vec![subject]);
    if names.len() > FEEDS_MAX {
        return Err(TokenError::Refused("more than 64 feeds"));
    }
    let parsed = names
        .iter()
        .map(|name| Feed::parse(name))
        .collect::<Result<Vec<_>, _>>();
    let mut feeds = parsed
        .map_err(|_| TokenError::Refused("a feed must have 1 to 128 of A-Z a-z 0-9 . _ ~ / -"))?;
    if feeds.is_empty() {
        return Err(TokenError::NoFeed);
    }
    if right != Right::Canary
        && feeds
            .iter()
            .any(|feed| feed.as_str().starts_with(CANARY_PREFIX))
    {
        return Err(TokenError::Refused(
            "feeds that begin with shopbell-canary/ are reserved for Shopbell",
        ));
    }
    if right != Right::Broadcast && feeds.iter().all(|feed| feed == broadcast_feed) {
        return Err(TokenError::Refused(
            "feeds names only the broadcast feed (SHOPBELL_BROADCAST_FEED), which every token reads: name a merchant, \
             or add the claim broadcast to mark for everyone",
        ));
    }
    let shared = (right != Right::Broadcast).then(|| broadcast_feed.clone());
    feeds.push(broadcast_feed.clone());
    feeds.sort_unstable();
    feeds.dedup();
    Ok((feeds, shared))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn granted(
        subject: &str,
        names: Option<&[&str]>,
        right: Right,
    ) -> Result<(Vec<String>, bool), TokenError> {
        let names = names.map(|names| names.iter().map(|name| (*name).to_owned()).collect());
        let (feeds, shared) = feeds(subject.into(), names, right, &Feed::parse("all").unwrap())?;
        Ok((
            feeds.iter().map(Feed::to_string).collect(),
            shared.is_some(),
        ))
    }

    #[test]
    fn everyone_reads_the_broadcast_feed_and_marks_it_with_a_right_only() {
        let both = || vec!["all".to_owned(), "m".to_owned()];
        for names in [
            None,
            Some(&["m"][..]),
            Some(&["m", "all"]),
            Some(&["all", "m", "all"]),
        ] {
            assert_eq!(granted("m", names, Right::None), Ok((both(), true)));
            assert_eq!(granted("m", names, Right::Broadcast), Ok((both(), false)));
        }
        assert_eq!(
            granted("owner", Some(&["all"]), Right::Broadcast),
            Ok((vec!["all".to_owned()], false))
        );
    }

    #[test]
    fn a_token_for_a_merchant_named_like_the_broadcast_feed_is_refused() {
        for right in [Right::None, Right::Broadcast, Right::Canary] {
            assert!(matches!(
                granted("all", None, right),
                Err(TokenError::Refused(_))
            ));
            assert!(matches!(
                granted("all", Some(&["m"]), right),
                Err(TokenError::Refused(_))
            ));
        }
        assert!(matches!(
            granted("cook", Some(&["all"]), Right::None),
            Err(TokenError::Refused(_))
        ));
        assert!(
            granted("All", None, Right::None).is_ok(),
            "another name is another feed"
        );
    }

    #[test]
    fn feeds_of_canaries_need_the_right_to_them() {
        let name = "shopbell-canary/x";
        assert!(matches!(
            granted(name, None, Right::None),
            Err(TokenError::Refused(_))
        ));
        assert!(matches!(
            granted("cook", Some(&["m", name]), Right::Broadcast),
            Err(TokenError::Refused(_))
        ));
        assert!(granted(name, None, Right::Canary).is_ok());
        assert!(
            granted(name, Some(&["m"]), Right::None).is_ok(),
            "a subscriber is no feed"
        );
    }

    #[test]
    fn a_token_may_name_64_feeds() {
        let names: Vec<_> = (0..=FEEDS_MAX).map(|at| format!("m-{at}")).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let (feeds, _) = granted("m", Some(&names[1..]), Right::None).unwrap();
        assert_eq!(feeds.len(), FEEDS_MAX + 1, "with the broadcast feed");
        assert_eq!(
            granted("m", Some(&names), Right::None),
            Err(TokenError::Refused("more than 64 feeds"))
        );
    }
}
