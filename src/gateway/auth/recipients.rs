//! The recipients of a publisher's token: its claim `publish` comes in, and the answer whether it
//! allows a recipient goes out.

use super::TokenError;
use crate::model::feed::Feed;

/// Most entries of the claim. Every event is compared with them.
const ENTRIES_MAX: usize = 64;

/// The recipients to whom a token may publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipients(Vec<Entry>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Entry {
    One(Feed),
    /// Every recipient that begins with this text, but not the broadcast feed.
    Prefix(String),
}

impl Recipients {
    /// Reads the claim: names of feeds, or prefixes that end in `*`.
    ///
    /// # Errors
    /// It is missing, empty or too long, or an entry can match no feed.
    pub(super) fn of(claim: Option<Vec<String>>) -> Result<Self, TokenError> {
        let claim = claim.ok_or(TokenError::NoPublish(
            "it needs the claim publish, a list of recipients",
        ))?;
        Self::parse(&claim)
    }

    /// Reads the entries of the claim.
    ///
    /// # Errors
    /// There is none or too many, or one can match no feed.
    pub fn parse(entries: &[String]) -> Result<Self, TokenError> {
        if entries.is_empty() || entries.len() > ENTRIES_MAX {
            return Err(TokenError::NoPublish(
                "its claim publish must have 1 to 64 recipients",
            ));
        }
        let entries = entries.iter().map(|entry| match entry.strip_suffix('*') {
            Some("") => Some(Entry::Prefix(String::new())),
            // A prefix has the characters of a feed.
            Some(prefix) => Feed::parse(prefix)
                .ok()
                .map(|_| Entry::Prefix(prefix.into())),
            None => Feed::parse(entry).ok().map(Entry::One),
        });
        let entries: Option<Vec<_>> = entries.collect();
        entries.map(Self).ok_or(TokenError::NoPublish(
            "each entry of its claim publish must be a feed, or a prefix of feeds that ends in *",
        ))
    }

    /// The recipients that the token names in full.
    pub fn named(&self) -> Vec<Feed> {
        let named = self.0.iter().filter_map(|entry| match entry {
            Entry::One(feed) => Some(feed.clone()),
            Entry::Prefix(_) => None,
        });
        named.collect()
    }

    /// Whether the token may publish to `recipient`. Everyone reads the broadcast feed, so only its
    /// own name allows it.
    pub fn allow(&self, recipient: &Feed, broadcast_feed: &Feed) -> bool {
        self.0.iter().any(|entry| match entry {
            Entry::One(feed) => feed == recipient,
            Entry::Prefix(prefix) => {
                recipient != broadcast_feed && recipient.as_str().starts_with(prefix)
            }
        })
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn parsed(entries: &[&str]) -> Result<Recipients, TokenError> {
        Recipients::of(Some(entries.iter().map(|entry| (*entry).into()).collect()))
    }

    fn allowed(entries: &[&str], recipient: &str) -> bool {
        let (recipient, broadcast) = (Feed::parse(recipient), Feed::parse("all"));
        parsed(entries)
            .unwrap()
            .allow(&recipient.unwrap(), &broadcast.unwrap())
    }

    #[test]
    fn an_entry_is_a_recipient_or_a_prefix() {
        for (entries, recipient, allows) in [
            (&["m-1"] as &[&str], "m-1", true),
            (&["m-1"], "m-12", false),
            (&["m-1"], "M-1", false),
            (&["m-*"], "m-1", true),
            (&["m-*"], "m-", true),
            (&["m-*"], "m", false),
            (&["x", "shop/*"], "shop/a/b", true),
            (&["*"], "anyone", true),
            (&["*"], "all", false),
            (&["a*"], "all", false),
            (&["all"], "all", true),
            (&["*", "all"], "all", true),
        ] {
            assert_eq!(
                allowed(entries, recipient),
                allows,
                "{entries:?} {recipient}"
            );
        }
    }

    #[test]
    fn a_claim_that_can_match_nothing_is_refused() {
        let many = vec!["m"; ENTRIES_MAX + 1];
        for entries in [
            &[] as &[&str],
            &[""],
            &["a b"],
            &["**"],
            &["a*b"],
            &["m", "\u{e9}*"],
            &many,
        ] {
            assert!(
                matches!(parsed(entries), Err(TokenError::NoPublish(_))),
                "{entries:?}"
            );
        }
        assert!(matches!(
            Recipients::of(None),
            Err(TokenError::NoPublish(_))
        ));
        assert!(parsed(&many[1..]).is_ok());
    }
}
