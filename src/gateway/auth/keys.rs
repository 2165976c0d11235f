//! The keys that sign and check tokens.
//!
//! Keys come from the configuration, and from files that are read again while the service runs.
//! Keys never leave this module.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header};
use serde::Serialize;

use super::Right;
use super::claims::Expected;
use super::token::Token;
use crate::config::{JwtConfig, KeyFiles, Keys};
use crate::model::feed::{Feed, Subscriber};

/// Interval between two reads of the files. During a rotation, two replicas may have different keys
/// for this long.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// Signs tokens with the current key, and checks them with the current and the previous one.
pub struct Tokens {
    files: KeyFiles,
    audience: Option<String>,
    issuer: Option<String>,
    /// Locked only to copy or to replace the pointer.
    current: RwLock<Arc<Prepared>>,
}

struct Prepared {
    keys: Keys,
    /// The current key, then the previous one.
    checking: Vec<DecodingKey>,
}

#[derive(Serialize)]
struct Minted<'a> {
    sub: &'a str,
    iat: u64,
    exp: u64,
    #[serde(skip_serializing_if = "<[Feed]>::is_empty")]
    feeds: &'a [Feed],
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    broadcast: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    shopbell_canary: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    aud: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<&'a str>,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokens")
            .field("audience", &self.audience)
            .field("issuer", &self.issuer)
            .finish_non_exhaustive()
    }
}

impl Tokens {
    /// Begins with the keys that the configuration read.
    pub fn new(config: &JwtConfig) -> Self {
        Self {
            files: config.files.clone(),
            audience: config.audience.clone(),
            issuer: config.issuer.clone(),
            current: RwLock::new(Arc::new(Prepared::new(config.keys.clone()))),
        }
    }

    /// Reads keys from their files again and again, for ever. A key from a variable stays.
    pub async fn follow(self: Arc<Self>) {
        if self.files.is_empty() {
            return std::future::pending().await;
        }
        let mut known = Vec::new();
        loop {
            tokio::time::sleep(POLL_INTERVAL).await;
            let tokens = self.clone();
            // It fails only while the runtime stops.
            let Ok(problems) = tokio::task::spawn_blocking(move || tokens.refresh()).await else {
                continue;
            };
            for problem in problems.iter().filter(|problem| !known.contains(*problem)) {
                tracing::error!(
                    problem,
                    "a key for tokens cannot be read; the last one stays in use"
                );
            }
            if problems.is_empty() && !known.is_empty() {
                tracing::info!("the keys for tokens can be read again");
            }
            known = problems;
        }
    }

    fn refresh(&self) -> Vec<String> {
        let last = self.prepared();
        let (keys, problems) = self.files.read(&last.keys);
        if keys != last.keys {
            tracing::info!(
                has_previous = keys.previous.is_some(),
                "the keys for tokens changed"
            );
            *self.current.write().unwrap_or_else(PoisonError::into_inner) =
                Arc::new(Prepared::new(keys));
        }
        problems
    }

    /// Makes a token that is valid for `ttl`, signed with the current key.
    pub fn mint(
        &self,
        subscriber: &Subscriber,
        feeds: &[Feed],
        right: Right,
        ttl: Duration,
    ) -> Result<String, jsonwebtoken::errors::Error> {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let claims = Minted {
            sub: subscriber.as_str(),
            iat: now.as_secs(),
            exp: (now + ttl).as_secs(),
            feeds,
            broadcast: right == Right::Broadcast,
            shopbell_canary: right == Right::Canary,
            aud: self.audience.as_deref(),
            iss: self.issuer.as_deref(),
        };
        let key = EncodingKey::from_secret(self.prepared().keys.current.reveal().as_bytes())?;
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key)
    }

    pub(super) fn is_signed(&self, token: &Token<'_>) -> bool {
        let signed_by = |key: &DecodingKey| {
            jsonwebtoken::crypto::verify(
                token.signature,
                token.signed.as_bytes(),
                key,
                Algorithm::HS256,
            )
        };
        self.prepared()
            .checking
            .iter()
            .any(|key| signed_by(key).unwrap_or(false))
    }

    pub(super) fn expected(&self) -> Expected<'_> {
        Expected {
            audience: self.audience.as_deref(),
            issuer: self.issuer.as_deref(),
        }
    }

    fn prepared(&self) -> Arc<Prepared> {
        self.current
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Prepared {
    fn new(keys: Keys) -> Self {
        let all = [Some(&keys.current), keys.previous.as_ref()];
        // Only an empty key is an error, and the configuration rejects it.
        let checking = all
            .into_iter()
            .flatten()
            .filter_map(|key| DecodingKey::from_secret(key.reveal().as_bytes()).ok())
            .collect();
        Self { keys, checking }
    }
}
