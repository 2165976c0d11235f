//! The names and numbers that all parts use: [`Feed`], [`Subscriber`], [`Device`], [`Epoch`],
//! [`Seq`], [`Version`].
//!
//! A value exists only if it was parsed, so no other part checks it again.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

/// Longest name of a feed, in bytes.
pub const FEED_BYTES_MAX: usize = 128;
/// Longest `sub` of a token, in bytes: room for the subject of any identity provider, and small
/// enough for an index entry.
pub const SUBSCRIBER_BYTES_MAX: usize = 255;
/// Longest device name, in characters: at most 256 bytes, small enough for an index entry.
pub const DEVICE_CHARS_MAX: usize = 64;
/// Longest epoch, in bytes.
const EPOCH_BYTES_MAX: usize = 64;

/// The reserved prefix of the feeds of canaries.
pub const CANARY_PREFIX: &str = "shopbell-canary/";

/// A name that breaks its rule. The message is for the person who sent the name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} must be {rule}")]
pub struct NameError {
    kind: &'static str,
    rule: &'static str,
}

/// The notifications of one recipient, by the name of the recipient.
///
/// A name has 1 to 128 of `A-Z a-z 0-9 . _ ~ / -`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Feed(Arc<str>);

impl Feed {
    /// Parses the name from an event, a token or a client.
    pub fn parse(name: &str) -> Result<Self, NameError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._~/-".contains(&byte);
        if (1..=FEED_BYTES_MAX).contains(&name.len()) && name.bytes().all(allowed) {
            Ok(Self(name.into()))
        } else {
            Err(NameError {
                kind: "a feed",
                rule: "1 to 128 of A-Z a-z 0-9 . _ ~ / -",
            })
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The default of `SHOPBELL_BROADCAST_FEED`.
    pub fn of_everyone() -> Self {
        Self("all".into())
    }

    /// Whether the name is reserved for canaries.
    pub fn is_of_a_canary(&self) -> bool {
        self.0.starts_with(CANARY_PREFIX)
    }
}

/// A map finds a feed by its name.
impl Borrow<str> for Feed {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// The reader of feeds: the `sub` of a token, 1 to 255 bytes without control characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subscriber(Arc<str>);

impl Subscriber {
    /// Parses the `sub` of a verified token.
    pub fn parse(name: &str) -> Result<Self, NameError> {
        if (1..=SUBSCRIBER_BYTES_MAX).contains(&name.len()) && !name.contains(char::is_control) {
            Ok(Self(name.into()))
        } else {
            Err(NameError {
                kind: "a subscriber",
                rule: "1 to 255 bytes without control characters",
            })
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The device of a subscriber. All devices without a name share the empty name.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Device(Arc<str>);

impl Device {
    /// Parses the `device` of a handshake: up to 64 printable characters. Spaces around it are
    /// removed.
    pub fn parse(name: &str) -> Result<Self, NameError> {
        let name = name.trim();
        // JavaScript treats the two separators as line breaks.
        let is_printable = |c: char| !c.is_control() && !"\u{2028}\u{2029}".contains(c);
        if name.chars().count() <= DEVICE_CHARS_MAX && name.chars().all(is_printable) {
            Ok(Self(name.into()))
        } else {
            Err(NameError {
                kind: "a device",
                rule: "at most 64 printable characters",
            })
        }
    }

    /// The name, empty for the unnamed device.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Identity of a numbering. A [`Seq`] or [`Version`] of another epoch may number something else. It
/// begins with a letter and has no `:`, so that it can follow a number.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(Arc<str>);

impl Epoch {
    /// Parses an epoch from the database, a hint or a client.
    pub fn parse(epoch: &str) -> Result<Self, NameError> {
        let begins_with_a_letter = epoch.starts_with(|first: char| first.is_ascii_alphabetic());
        let allowed = |byte: u8| byte.is_ascii_alphanumeric();
        if begins_with_a_letter && epoch.len() <= EPOCH_BYTES_MAX && epoch.bytes().all(allowed) {
            Ok(Self(epoch.into()))
        } else {
            Err(NameError {
                kind: "an epoch",
                rule: "a letter, then up to 63 of A-Z a-z 0-9",
            })
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

macro_rules! display_as_str {
    ($($name:ty),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }
    )*};
}
display_as_str!(Feed, Subscriber, Device, Epoch);

/// The number of a notification in its feed: 1, 2, 3 … without a gap. [`Seq::ZERO`] precedes the
/// first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(transparent)]
pub struct Seq(i64);

impl Seq {
    /// Before the first notification of every feed.
    pub const ZERO: Self = Self(0);

    /// Checks a number from a client or the database. `None` if it is negative.
    pub fn new(number: i64) -> Option<Self> {
        (number >= 0).then_some(Self(number))
    }

    /// The number, for SQL and arithmetic.
    pub fn get(self) -> i64 {
        self.0
    }

    /// The number after this one.
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The number before this one. [`Seq::ZERO`] precedes itself.
    pub fn previous(self) -> Self {
        Self((self.0 - 1).max(0))
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The number of a mark in its feed: 1, 2, 3 … without a gap. [`Version::ZERO`] precedes the first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(transparent)]
pub struct Version(i64);

impl Version {
    /// Before the first mark of every feed.
    pub const ZERO: Self = Self(0);

    /// Checks a number from a client or the database. `None` if it is negative.
    pub fn new(number: i64) -> Option<Self> {
        (number >= 0).then_some(Self(number))
    }

    /// The number, for SQL and arithmetic.
    pub fn get(self) -> i64 {
        self.0
    }

    /// The number after this one.
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// The highest known numbers of a feed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Newest {
    /// Its newest notification.
    pub seq: Seq,
    /// Its newest mark.
    pub version: Version,
}

impl Newest {
    /// The higher number of both, for each kind.
    pub fn max(self, other: Self) -> Self {
        Self {
            seq: self.seq.max(other.seq),
            version: self.version.max(other.version),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_feed_is_1_to_128_of_the_allowed_characters() {
        for good in ["merchant-42", "a", "A.b_c~d/e-9", &"x".repeat(128)] {
            assert_eq!(
                Feed::parse(good).map(|feed| feed.to_string()),
                Ok(good.into())
            );
        }
        for bad in ["", " ", "a b", "é", "a\0", "a:b", &"x".repeat(129)] {
            assert!(Feed::parse(bad).is_err(), "{bad:?} must be refused");
        }
    }

    #[test]
    fn a_subscriber_has_no_control_characters() {
        for good in ["auth0|5f7c8ec7c33c6c004bbafe82", &"x".repeat(255)] {
            assert!(Subscriber::parse(good).is_ok(), "{good:?}");
        }
        for bad in ["", "a\0b", "a\nb", &"x".repeat(256)] {
            assert!(Subscriber::parse(bad).is_err(), "{bad:?} must be refused");
        }
    }

    #[test]
    fn a_device_has_up_to_64_printable_characters() {
        for name in [
            "",
            "till-2",
            "Till 2",
            "iPad von Jürgen",
            "a/b:c",
            "👩‍👩‍👧",
            &"店".repeat(64),
        ] {
            assert_eq!(
                Device::parse(name).map(|device| device.to_string()),
                Ok(name.into())
            );
        }
        assert_eq!(
            Device::parse("  Till 2\t").map(|device| device.to_string()),
            Ok("Till 2".into())
        );
        for bad in ["a\0b", "a\nb", "a\u{2028}b", "a\u{85}b", &"x".repeat(65)] {
            assert!(Device::parse(bad).is_err(), "{bad:?} must be refused");
        }
    }

    #[test]
    fn an_epoch_can_follow_a_number() {
        assert_eq!(
            Epoch::parse("e09af").map(|epoch| epoch.to_string()),
            Ok("e09af".into())
        );
        assert!(Epoch::parse(&"e".repeat(64)).is_ok());
        for bad in ["", "7", "e:1", "e-1", "é", &"e".repeat(65)] {
            assert!(Epoch::parse(bad).is_err(), "{bad:?} must be refused");
        }
    }

    #[test]
    fn a_seq_is_never_negative() {
        assert_eq!(Seq::new(-1), None);
        assert_eq!(Seq::ZERO.previous(), Seq::ZERO);
        assert_eq!(Seq::ZERO.next().get(), 1);
    }
}
