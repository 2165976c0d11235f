//! Authentication: a token comes in; a [`Grant`] with the subscriber and its feeds goes out, or the
//! error for the client. It never logs a token or a key.

mod audience;
mod claims;
mod jwks;
mod keys;
mod recipients;
mod token;
mod watcher;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

pub use self::audience::Right;
use self::claims::Claims;
pub use self::claims::LEEWAY;
pub use self::jwks::cache::Jwks;
pub use self::jwks::{KeySet, fetch};
use self::keys::Signer;
pub use self::keys::{SignError, Tokens};
pub use self::recipients::Recipients;
use self::token::Token;
pub use self::watcher::Watcher;
use crate::model::feed::{Feed, Subscriber};
use crate::telemetry::labels::TokenRefused;
use crate::telemetry::metrics::Metrics;

/// Most feeds in one token. Each costs a session memory and one row at connect.
const FEEDS_MAX: usize = 64;
/// Longest time that a token is valid for a session: ten years.
const REMAINING_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
/// Shortest wait of a client whose token is signed with an unknown key. A replica reads its new key
/// in this time. A random part of the same length is added, so that clients do not return together.
const KEY_WAIT: Duration = Duration::from_secs(2);
/// Longest wait of a client whose token is not valid yet. It returns with a new token, which may be
/// valid at once.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Why a token was refused. The text is for the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The request has no token.
    #[error("no token: send `Authorization: Bearer JWT`, or the subprotocol `bearer.JWT`")]
    Missing,
    /// Its form, a claim or its subject is wrong.
    #[error("the token was refused: {0}")]
    Refused(&'static str),
    /// No key here can have its algorithm.
    #[error("the token was refused: wrong algorithm")]
    Algorithm,
    /// No key here signed it, and its claims are wrong too.
    #[error("the token was refused: wrong signature")]
    Signature,
    /// Its audience is wrong or missing.
    #[error("the token was refused: {0}")]
    Audience(&'static str),
    /// Its issuer is wrong or missing.
    #[error("the token was refused: {0}")]
    Issuer(&'static str),
    /// Only its signature is wrong. During a rotation, this replica or the issuer may lack the new
    /// key.
    #[error("unknown signing key: get a new token and reconnect")]
    KeyUnknown,
    /// It is valid later.
    #[error("the token is not valid yet: its nbf is {} s ahead", .wait.as_secs())]
    NotYetValid {
        /// The time until then, by our clock.
        wait: Duration,
    },
    /// It was valid.
    #[error("the token has expired")]
    Expired,
    /// It names no feed.
    #[error("the token names no feed")]
    NoFeed,
    /// It may not publish.
    #[error("the token may not publish: {0}")]
    NoPublish(&'static str),
}

impl TokenError {
    /// How long the client should wait before it comes back; `None` if waiting does not help.
    pub fn retry_after(self) -> Option<Duration> {
        match self {
            Self::KeyUnknown => Some(KEY_WAIT.mul_f64(1.0 + fastrand::f64())),
            Self::NotYetValid { wait } => Some(wait.min(WAIT_MAX)),
            _ => None,
        }
    }

    /// Whether the token may be a guess. Other tokens were valid once, or will be.
    pub fn may_be_a_guess(self) -> bool {
        !matches!(
            self,
            Self::Missing
                | Self::Expired
                | Self::NotYetValid { .. }
                | Self::NoFeed
                | Self::NoPublish(_)
        )
    }

    /// The value of the label `reason` in the metrics.
    fn label(self) -> TokenRefused {
        match self {
            Self::Missing => TokenRefused::Missing,
            Self::Refused(_) => TokenRefused::Invalid,
            Self::Algorithm => TokenRefused::Algorithm,
            Self::Signature => TokenRefused::Signature,
            Self::Audience(_) => TokenRefused::Audience,
            Self::Issuer(_) => TokenRefused::Issuer,
            Self::KeyUnknown => TokenRefused::KeyUnknown,
            Self::NotYetValid { .. } => TokenRefused::NotYetValid,
            Self::Expired => TokenRefused::Expired,
            Self::NoFeed => TokenRefused::Feed,
            Self::NoPublish(_) => TokenRefused::Publish,
        }
    }
}

/// The rights of a valid token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The subject of the token.
    pub subscriber: Subscriber,
    /// The feeds that it may read: those of the token and the broadcast feed, each once.
    pub feeds: Vec<Feed>,
    /// The broadcast feed, if the token may read it and not mark it: only [`Right::Broadcast`]
    /// marks for everyone.
    pub shared: Option<Feed>,
    /// Whether a canary uses the token.
    pub is_canary: bool,
    /// The time of its expiry, since 1970.
    pub expires_at: Duration,
}

impl Grant {
    /// Time until the token expires. It is bounded, so that the caller can add it to a clock.
    pub fn remaining(&self) -> Duration {
        self.expires_at
            .saturating_sub(since_1970())
            .min(REMAINING_MAX)
    }
}

/// Checks tokens.
#[derive(Debug, Clone)]
pub struct Authenticator {
    tokens: Arc<Tokens>,
    broadcast_feed: Feed,
    metrics: Arc<Metrics>,
}

impl Authenticator {
    /// Checks tokens with these keys. A token never chooses its key's algorithm.
    pub fn new(tokens: Arc<Tokens>, broadcast_feed: Feed, metrics: Arc<Metrics>) -> Self {
        Self {
            tokens,
            broadcast_feed,
            metrics,
        }
    }

    /// Checks the token of a request. If its key is unknown and may be new in the key set of the
    /// issuer, this waits a bounded time for a fetch of the set.
    pub async fn admit(&self, token: Option<&str>) -> Result<Grant, TokenError> {
        let checked = match token {
            Some(token) => self.check_again(token, |token| self.check(token)).await,
            None => Err(TokenError::Missing),
        };
        checked.inspect_err(|error| self.metrics.tokens.refused.inc(error.label()))
    }

    /// Checks the token of a publisher in the same way, and returns the recipients of its claim
    /// `publish`.
    pub async fn admit_publisher(&self, token: Option<&str>) -> Result<Recipients, TokenError> {
        let check = |token: &str| Recipients::of(self.verify(token)?.publish);
        let checked = match token {
            Some(token) => self.check_again(token, check).await,
            None => Err(TokenError::Missing),
        };
        checked.inspect_err(|error| self.metrics.tokens.refused.inc(error.label()))
    }

    /// Checks the token of somebody who asks for presence: one that reads feeds, or that may publish.
    pub async fn admit_watcher(&self, token: Option<&str>) -> Result<Watcher, TokenError> {
        let checked = match token {
            Some(token) => {
                let check = |token: &str| self.check_watcher(token);
                self.check_again(token, check).await
            }
            None => Err(TokenError::Missing),
        };
        checked.inspect_err(|error| self.metrics.tokens.refused.inc(error.label()))
    }

    async fn check_again<T>(
        &self,
        token: &str,
        check: impl Fn(&str) -> Result<T, TokenError>,
    ) -> Result<T, TokenError> {
        let set = self.tokens.key_set();
        match check(token) {
            Err(TokenError::KeyUnknown) if self.fetches_key_of(token, &set).await => check(token),
            checked => checked,
        }
    }

    async fn fetches_key_of(&self, token: &str, checked: &KeySet) -> bool {
        match Token::parse(token) {
            Ok(token) => self.tokens.fetches_key_of(&token, checked).await,
            Err(_) => false,
        }
    }

    /// Checks the signature and the claims of a token with the present keys.
    fn verify(&self, token: &str) -> Result<Claims, TokenError> {
        let token = Token::parse(token)?;
        let claims = token.claims(self.tokens.expected(), since_1970());
        let signer = match (self.tokens.signer(&token), &claims) {
            (Ok(Some(signer)), _) => signer,
            // The claims are not trusted. They only decide whether the client may reconnect.
            (_, Err(TokenError::Expired)) => return Err(TokenError::Expired),
            (Err(error), _) => return Err(error),
            (Ok(None), Ok(_) | Err(TokenError::NotYetValid { .. })) => {
                return Err(TokenError::KeyUnknown);
            }
            (Ok(None), Err(_)) => return Err(TokenError::Signature),
        };
        let claims = claims?;
        if signer == Signer::Replica && claims.right != Right::Canary {
            return Err(TokenError::Signature);
        }
        Ok(claims)
    }

    /// Checks a token. Without a `feeds` claim it is for the feed named like its subject.
    fn check(&self, token: &str) -> Result<Grant, TokenError> {
        self.grant(self.verify(token)?)
    }

    fn check_watcher(&self, token: &str) -> Result<Watcher, TokenError> {
        let mut claims = self.verify(token)?;
        let recipients = claims.publish.take().map(|claim| Recipients::parse(&claim));
        let recipients = recipients.and_then(Result::ok);
        match (self.grant(claims), recipients) {
            (Err(error), None) => Err(error),
            (grant, recipients) => Ok(Watcher {
                grant: grant.ok(),
                recipients,
                broadcast_feed: self.broadcast_feed.clone(),
            }),
        }
    }

    fn grant(&self, claims: Claims) -> Result<Grant, TokenError> {
        let is_canary = claims.right == Right::Canary;
        let subscriber = Subscriber::parse(&claims.sub)
            .map_err(|_| TokenError::Refused("sub is empty, too long or has control characters"))?;
        let (feeds, shared) =
            audience::feeds(claims.sub, claims.feeds, claims.right, &self.broadcast_feed)?;
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
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
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
        Arc::new(Tokens::new(&environment.jwt().unwrap(), &Arc::default()))
    }

    fn authenticator(audience: Option<&str>) -> Authenticator {
        Authenticator::new(
            tokens(audience.unwrap_or_default()),
            Feed::parse("all").unwrap(),
            Arc::default(),
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
    fn a_token_grants_the_feed_of_its_subject_and_the_broadcast_feed() {
        let (subscriber, ttl) = (Subscriber::parse("m-1").unwrap(), Duration::from_secs(60));
        let minted = tokens("")
            .mint(&subscriber, &[], &[], Right::None, ttl)
            .unwrap();
        let grant = authenticator(None).check(&minted).unwrap();
        assert_eq!(
            grant.feeds,
            [Feed::parse("all").unwrap(), Feed::parse("m-1").unwrap()]
        );
        assert!((50..=60).contains(&grant.remaining().as_secs()));
    }

    #[test]
    fn a_token_with_wrong_or_missing_claims_is_refused() {
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
            TokenError::Audience("wrong audience")
        );
        assert_eq!(
            check(serde_json::json!({"sub": "m", "exp": far})),
            TokenError::Audience("aud is missing")
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
        assert_eq!(authenticator(None).check(none), Err(TokenError::Algorithm));
    }

    #[test]
    fn an_expired_token_of_a_kind_without_key_may_come_back() {
        let public = "eyJhbGciOiJFUzI1NiIsInR5cCI6IkpXVCJ9";
        let check = |claims: &str| {
            let claims = URL_SAFE_NO_PAD.encode(claims);
            let token = format!("{public}.{claims}.c2lnbmF0dXJl");
            authenticator(None).check(&token).unwrap_err()
        };
        assert_eq!(check(r#"{"sub":"m","exp":1}"#), TokenError::Expired);
        assert_eq!(
            check(r#"{"sub":"m","exp":4000000000}"#),
            TokenError::Algorithm
        );
    }

    #[test]
    fn both_keys_are_accepted_and_an_unknown_key_is_temporary() {
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
            assert_eq!(check(foreign, never), Err(TokenError::Signature));
        }
    }

    #[test]
    fn a_damaged_signature_is_refused() {
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
    fn a_far_expiry_is_bounded() {
        let grant = authenticator(None)
            .check(&token(&serde_json::json!({"sub": "m", "exp": u64::MAX})))
            .unwrap();
        assert_eq!(grant.remaining(), REMAINING_MAX);
    }

    #[test]
    fn an_audience_is_ignored_if_none_is_configured() {
        let token =
            token(&serde_json::json!({"sub": "m", "exp": 4_000_000_000_u64, "aud": ["x", "y"]}));
        assert!(authenticator(None).check(&token).is_ok());
    }
}
