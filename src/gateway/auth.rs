//! A token becomes a subscriber and the feeds it may read.

mod audience;
mod keys;
mod token;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

pub use self::audience::Right;
pub use self::keys::Tokens;
pub use self::token::LEEWAY;
use self::token::Token;
use crate::model::feed::{Feed, Subscriber};

/// Most feeds in one token: each costs a session memory and a row at connect.
const FEEDS_MAX: usize = 64;
/// A session does not last longer on one token: ten years.
const REMAINING_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
/// A client whose token is signed with an unknown key comes back after this, and as much again at random: long enough for a
/// replica to read its new key, and clients that came together do not come back together.
const KEY_WAIT: Duration = Duration::from_secs(2);
/// Longest that a client is asked to wait.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Why a token was refused; the text is for its bearer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// No token at all.
    #[error("no token: send `Authorization: Bearer JWT`, or the subprotocol `bearer.JWT`")]
    Missing,
    /// Not a JWT of ours: form, algorithm, audience, issuer or subject.
    #[error("the token was refused: {0}")]
    Refused(&'static str),
    /// It would be one of ours if we had its key, as in a rotation in which this replica or the issuer is behind.
    #[error("this replica has no key that signed the token: get a new token and come back")]
    KeyUnknown,
    /// It is one of ours, later.
    #[error("the token is not valid yet: its nbf is {} s ahead", .wait.as_secs())]
    NotYetValid {
        /// For how long, by our clock.
        wait: Duration,
    },
    /// It was one of ours.
    #[error("the token has expired")]
    Expired,
    /// It names no feed.
    #[error("the token names no feed")]
    NoFeed,
}

impl TokenError {
    /// How long the client should wait before it comes back; `None` if waiting does not help.
    pub fn retry_after(self) -> Option<Duration> {
        match self {
            Self::KeyUnknown => Some(KEY_WAIT.mul_f64(1.0 + fastrand::f64())),
            Self::NotYetValid { wait } => Some(wait.min(WAIT_MAX)),
            Self::Missing | Self::Refused(_) | Self::Expired | Self::NoFeed => None,
        }
    }
}

/// What a good token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Who reads.
    pub subscriber: Subscriber,
    /// What may be read: the token's feeds and the broadcast feed, each once.
    pub feeds: Vec<Feed>,
    /// The broadcast feed, unless the token has the right to answer for everyone: its bearer reads it and answers for nobody.
    pub shared: Option<Feed>,
    /// It is the token of a canary.
    pub is_canary: bool,
    /// When the token expires, since 1970.
    pub expires_at: Duration,
}

impl Grant {
    /// Time until the token expires; bounded, so that it can be added to a clock whatever the issuer wrote.
    pub fn remaining(&self) -> Duration {
        self.expires_at
            .saturating_sub(since_1970())
            .min(REMAINING_MAX)
    }
}

/// What tokens are checked with.
#[derive(Debug, Clone)]
pub struct Authenticator {
    tokens: Arc<Tokens>,
    broadcast_feed: Feed,
}

impl Authenticator {
    /// Checks HS256 tokens. The algorithm is ours, never the token's; `aud` and `iss` must be there where they are given.
    pub fn new(tokens: Arc<Tokens>, broadcast_feed: Feed) -> Self {
        Self {
            tokens,
            broadcast_feed,
        }
    }

    /// Checks a token. Without a `feeds` claim it is for the feed named like its subject.
    pub fn check(&self, token: &str) -> Result<Grant, TokenError> {
        let token = Token::parse(token)?;
        let claims = token.claims(self.tokens.expected(), since_1970());
        if !self.tokens.is_signed(&token) {
            // Nothing of it is believed. It only decides whether the client may come back.
            return Err(match claims {
                Err(TokenError::Expired) => TokenError::Expired,
                Ok(_) | Err(TokenError::NotYetValid { .. }) => TokenError::KeyUnknown,
                Err(_) => TokenError::Refused("wrong signature"),
            });
        }
        let claims = claims?;
        let subscriber = Subscriber::parse(&claims.sub)
            .map_err(|_| TokenError::Refused("sub is empty, too long or has control characters"))?;
        let (feeds, shared) =
            audience::feeds(claims.sub, claims.feeds, claims.right, &self.broadcast_feed)?;
        let is_canary = claims.right == Right::Canary;
        Ok(Grant {
            subscriber,
            feeds,
            shared,
            is_canary,
            expires_at: claims.exp,
        })
    }
}

fn since_1970() -> Duration {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use jsonwebtoken::{Algorithm, EncodingKey, Header};

    use super::*;
    use crate::config::Environment;

    const SECRET: &str = "0123456789abcdef0123456789abcdef";
    const PREVIOUS: &str = "fedcba9876543210fedcba9876543210";

    fn tokens(audience: &str) -> Arc<Tokens> {
        let variables = [
            ("SHOPBELL_JWT_HS256_SECRET", SECRET),
            ("SHOPBELL_JWT_HS256_SECRET_PREVIOUS", PREVIOUS),
            ("SHOPBELL_JWT_AUDIENCE", audience),
        ];
        let given = variables.into_iter().filter(|(_, value)| !value.is_empty());
        let environment = Environment::of(
            given
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
        );
        Arc::new(Tokens::new(&environment.jwt().unwrap()))
    }

    fn authenticator(audience: Option<&str>) -> Authenticator {
        Authenticator::new(
            tokens(audience.unwrap_or_default()),
            Feed::parse("all").unwrap(),
        )
    }

    fn token(claims: &serde_json::Value) -> String {
        signed(SECRET, claims)
    }

    fn signed(secret: &str, claims: &serde_json::Value) -> String {
        let key = EncodingKey::from_secret(secret.as_bytes()).unwrap();
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), claims, &key).unwrap()
    }

    #[test]
    fn a_token_is_for_the_feed_of_its_subject_and_the_broadcast() {
        let (subscriber, ttl) = (Subscriber::parse("m-1").unwrap(), Duration::from_secs(60));
        let minted = tokens("").mint(&subscriber, &[], Right::None, ttl).unwrap();
        let grant = authenticator(None).check(&minted).unwrap();
        assert_eq!(
            grant.feeds,
            [Feed::parse("all").unwrap(), Feed::parse("m-1").unwrap()]
        );
        assert!((50..=60).contains(&grant.remaining().as_secs()));
    }

    #[test]
    fn what_is_not_ours_is_refused() {
        let check = |claims: serde_json::Value| {
            authenticator(Some("shop"))
                .check(&token(&claims))
                .unwrap_err()
        };
        let far = 4_000_000_000_u64;
        assert_eq!(
            check(serde_json::json!({"sub": "m", "exp": 1, "aud": "shop"})),
            TokenError::Expired
        );
        assert_eq!(
            check(serde_json::json!({"sub": "m", "exp": far, "aud": "other"})),
            TokenError::Refused("wrong audience")
        );
        assert!(
            matches!(
                check(serde_json::json!({"sub": "m", "exp": far})),
                TokenError::Refused(_)
            ),
            "aud is required"
        );
        assert!(
            matches!(
                check(serde_json::json!({"sub": "m", "aud": "shop"})),
                TokenError::Refused(_)
            ),
            "exp is required"
        );
        assert!(
            matches!(
                check(serde_json::json!({"exp": far, "aud": "shop"})),
                TokenError::Refused(_)
            ),
            "sub is required"
        );
        assert_eq!(
            check(serde_json::json!({"sub": "m", "exp": far, "aud": "shop", "feeds": []})),
            TokenError::NoFeed
        );
        assert!(matches!(
            check(serde_json::json!({"sub": "m", "exp": far, "aud": "shop", "feeds": ["a b"]})),
            TokenError::Refused(_)
        ));
        let none = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.eyJzdWIiOiJtIiwiZXhwIjo0MDAwMDAwMDAwfQ.";
        assert!(matches!(
            authenticator(None).check(none),
            Err(TokenError::Refused(_))
        ));
    }

    #[test]
    fn both_keys_are_good_and_another_may_become_known() {
        let (far, foreign) = (4_000_000_000_u64, "another secret of at least 32 bytes");
        let check = |secret, claims| authenticator(Some("shop")).check(&signed(secret, &claims));
        let good = || serde_json::json!({"sub": "m", "exp": far, "aud": "shop"});
        for secret in [SECRET, PREVIOUS] {
            assert_eq!(check(secret, good()).unwrap().subscriber.as_str(), "m");
        }
        let key_unknown = check(foreign, good()).unwrap_err();
        assert_eq!(key_unknown, TokenError::KeyUnknown);
        assert!(
            key_unknown
                .retry_after()
                .is_some_and(|wait| (2..=4).contains(&wait.as_secs()))
        );
        let later = serde_json::json!({"sub": "m", "exp": far, "aud": "shop", "nbf": far});
        assert_eq!(check(foreign, later), Err(TokenError::KeyUnknown));
        let expired = serde_json::json!({"sub": "m", "exp": 1, "aud": "shop"});
        assert_eq!(check(foreign, expired), Err(TokenError::Expired));
        for never in [
            serde_json::json!({"sub": "m", "exp": far, "aud": "other"}),
            serde_json::json!({"aud": "shop"}),
        ] {
            assert_eq!(
                check(foreign, never),
                Err(TokenError::Refused("wrong signature"))
            );
        }
    }

    #[test]
    fn a_damaged_signature_is_no_signature() {
        let token = token(&serde_json::json!({"sub": "m", "exp": 4_000_000_000_u64}));
        let (signed, signature) = token.rsplit_once('.').unwrap();
        for damaged in [
            String::new(),
            "!".into(),
            format!("{signature}="),
            signature.replace(['A', 'a'], "b"),
            "AAAA".into(),
        ] {
            let checked = authenticator(None).check(&format!("{signed}.{damaged}"));
            assert!(
                damaged == signature || checked == Err(TokenError::KeyUnknown),
                "{checked:?}"
            );
        }
    }

    #[test]
    fn a_token_that_never_expires_is_as_good_as_one_for_years() {
        let grant = authenticator(None)
            .check(&token(&serde_json::json!({"sub": "m", "exp": u64::MAX})))
            .unwrap();
        assert_eq!(grant.remaining(), REMAINING_MAX);
    }

    #[test]
    fn an_audience_is_ignored_where_none_is_configured() {
        let token =
            token(&serde_json::json!({"sub": "m", "exp": 4_000_000_000_u64, "aud": ["x", "y"]}));
        assert!(authenticator(None).check(&token).is_ok());
    }
}
