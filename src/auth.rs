//! A token becomes a subscriber and the feeds it may read.

use std::time::{Duration, SystemTime};

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};

use crate::feed::{Feed, Subscriber};

/// How far a clock of the token's issuer may differ from ours.
pub const LEEWAY: Duration = Duration::from_secs(5);
/// Most feeds in one token: each costs a session memory and a row at connect.
const FEEDS_MAX: usize = 64;
/// A session does not last longer on one token: ten years.
const REMAINING_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
/// Longest token that is looked at.
const TOKEN_BYTES_MAX: usize = 8 * 1024;

/// Why a token was refused; the text is for its bearer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// No token at all.
    #[error("no token: send `Authorization: Bearer JWT`, or the subprotocol `bearer.JWT`")]
    Missing,
    /// Not a JWT of ours: form, algorithm, signature, audience, issuer or subject.
    #[error("the token was refused: {0}")]
    Refused(&'static str),
    /// It was one of ours.
    #[error("the token has expired")]
    Expired,
    /// It names no feed.
    #[error("the token names no feed")]
    NoFeed,
}

/// What a good token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Who reads.
    pub subscriber: Subscriber,
    /// What may be read: the token's feeds and the broadcast feed, each once.
    pub feeds: Vec<Feed>,
    /// The broadcast feed, where the token does not name it: its bearer reads it like everyone, and answers for nobody.
    pub shared: Option<Feed>,
    /// When the token expires, in seconds since 1970.
    pub expires_at: u64,
}

impl Grant {
    /// Time until the token expires; bounded, so that it can be added to a clock whatever the issuer wrote.
    pub fn remaining(&self) -> Duration {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Duration::from_secs(self.expires_at).saturating_sub(now).min(REMAINING_MAX)
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    sub: String,
    exp: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    feeds: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    aud: Option<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    iss: Option<String>,
}

/// What tokens are checked with.
#[derive(Clone)]
pub struct Authenticator {
    key: DecodingKey,
    validation: Validation,
    broadcast_feed: Feed,
}

impl std::fmt::Debug for Authenticator {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authenticator").field("broadcast_feed", &self.broadcast_feed).finish_non_exhaustive()
    }
}

impl Authenticator {
    /// Checks HS256 tokens. The algorithm is ours, never the token's; `aud` and `iss` must be there where they are given.
    pub fn new(secret: &[u8], audience: Option<&str>, issuer: Option<&str>, broadcast_feed: Feed) -> Self {
        let mut validation = Validation::new(Algorithm::HS256);
        validation.leeway = LEEWAY.as_secs();
        validation.validate_nbf = true;
        let mut required = vec!["exp", "sub"];
        match audience {
            Some(audience) => {
                validation.set_audience(&[audience]);
                required.push("aud");
            }
            None => validation.validate_aud = false,
        }
        if let Some(issuer) = issuer {
            validation.set_issuer(&[issuer]);
            required.push("iss");
        }
        validation.set_required_spec_claims(&required);
        Self { key: DecodingKey::from_secret(secret), validation, broadcast_feed }
    }

    /// Checks a token. Without a `feeds` claim it is for the feed named like its subject.
    pub fn check(&self, token: &str) -> Result<Grant, TokenError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::Refused("longer than 8 KiB"));
        }
        let claims = jsonwebtoken::decode::<Claims>(token, &self.key, &self.validation)
            .map_err(|error| match error.kind() {
                ErrorKind::ExpiredSignature => TokenError::Expired,
                ErrorKind::InvalidSignature => TokenError::Refused("wrong signature"),
                ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName => TokenError::Refused("wrong algorithm"),
                ErrorKind::InvalidAudience => TokenError::Refused("wrong audience"),
                ErrorKind::InvalidIssuer => TokenError::Refused("wrong issuer"),
                ErrorKind::ImmatureSignature => TokenError::Refused("not valid yet"),
                ErrorKind::MissingRequiredClaim(_) => {
                    TokenError::Refused("sub, exp, or a required aud or iss is missing")
                }
                _ => TokenError::Refused("not a JWT with sub and exp"),
            })?
            .claims;
        let subscriber = Subscriber::parse(&claims.sub)
            .map_err(|_| TokenError::Refused("sub is empty, too long or has control characters"))?;
        let names = claims.feeds.unwrap_or_else(|| vec![claims.sub]);
        if names.len() > FEEDS_MAX {
            return Err(TokenError::Refused("more than 64 feeds"));
        }
        let mut feeds = names
            .iter()
            .map(|name| Feed::parse(name))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| TokenError::Refused("a feed that no recipient can have"))?;
        if feeds.is_empty() {
            return Err(TokenError::NoFeed);
        }
        let shared = (!feeds.contains(&self.broadcast_feed)).then(|| self.broadcast_feed.clone());
        feeds.extend(shared.clone());
        feeds.sort_unstable();
        feeds.dedup();
        Ok(Grant { subscriber, feeds, shared, expires_at: claims.exp })
    }
}

/// Mints a development token, signed with the secret.
pub fn mint(
    secret: &[u8],
    subscriber: &Subscriber,
    feeds: &[Feed],
    ttl: Duration,
    audience: Option<&str>,
    issuer: Option<&str>,
) -> Result<String, jsonwebtoken::errors::Error> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let claims = Claims {
        sub: subscriber.to_string(),
        exp: (now + ttl).as_secs(),
        feeds: (!feeds.is_empty()).then(|| feeds.iter().map(Feed::to_string).collect()),
        aud: audience.map(Into::into),
        iss: issuer.map(Into::into),
    };
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &EncodingKey::from_secret(secret))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

    fn authenticator(audience: Option<&str>) -> Authenticator {
        Authenticator::new(SECRET, audience, None, Feed::parse("all").unwrap())
    }

    fn token(claims: &serde_json::Value) -> String {
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), claims, &EncodingKey::from_secret(SECRET)).unwrap()
    }

    #[test]
    fn a_token_is_for_the_feed_of_its_subject_and_the_broadcast() {
        let minted =
            mint(SECRET, &Subscriber::parse("m-1").unwrap(), &[], Duration::from_secs(60), None, None).unwrap();
        let grant = authenticator(None).check(&minted).unwrap();
        assert_eq!(grant.feeds, [Feed::parse("all").unwrap(), Feed::parse("m-1").unwrap()]);
        assert!((50..=60).contains(&grant.remaining().as_secs()));
    }

    #[test]
    fn what_is_not_ours_is_refused() {
        let check = |claims: serde_json::Value| authenticator(Some("shop")).check(&token(&claims)).unwrap_err();
        let far = 4_000_000_000_u64;
        assert_eq!(check(serde_json::json!({"sub": "m", "exp": 1, "aud": "shop"})), TokenError::Expired);
        assert_eq!(
            check(serde_json::json!({"sub": "m", "exp": far, "aud": "other"})),
            TokenError::Refused("wrong audience")
        );
        assert!(
            matches!(check(serde_json::json!({"sub": "m", "exp": far})), TokenError::Refused(_)),
            "aud is required"
        );
        assert!(
            matches!(check(serde_json::json!({"sub": "m", "aud": "shop"})), TokenError::Refused(_)),
            "exp is required"
        );
        assert!(
            matches!(check(serde_json::json!({"exp": far, "aud": "shop"})), TokenError::Refused(_)),
            "sub is required"
        );
        assert_eq!(check(serde_json::json!({"sub": "m", "exp": far, "aud": "shop", "feeds": []})), TokenError::NoFeed);
        assert!(matches!(
            check(serde_json::json!({"sub": "m", "exp": far, "aud": "shop", "feeds": ["a b"]})),
            TokenError::Refused(_)
        ));
        let none = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.eyJzdWIiOiJtIiwiZXhwIjo0MDAwMDAwMDAwfQ.";
        assert!(matches!(authenticator(None).check(none), Err(TokenError::Refused(_))));
        let other = jsonwebtoken::encode(
            &Header::new(Algorithm::HS256),
            &serde_json::json!({"sub": "m", "exp": far}),
            &EncodingKey::from_secret(b"another secret of at least 32 bytes"),
        );
        assert_eq!(authenticator(None).check(&other.unwrap()), Err(TokenError::Refused("wrong signature")));
    }

    #[test]
    fn a_token_that_never_expires_is_as_good_as_one_for_years() {
        let grant = authenticator(None).check(&token(&serde_json::json!({"sub": "m", "exp": u64::MAX}))).unwrap();
        assert_eq!(grant.remaining(), REMAINING_MAX);
    }

    #[test]
    fn an_audience_is_ignored_where_none_is_configured() {
        let token = token(&serde_json::json!({"sub": "m", "exp": 4_000_000_000_u64, "aud": ["x", "y"]}));
        assert!(authenticator(None).check(&token).is_ok());
    }
}
