//! The keys that sign and check tokens.
//!
//! Keys come from the configuration, from files that are read again while the service runs, and
//! from the key set of the issuer. A key checks only tokens of its own algorithm. Keys never leave
//! this module.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use jsonwebtoken::{DecodingKey, EncodingKey, Header};
use serde::Serialize;

use super::claims::Expected;
use super::jwks::KeySet;
use super::token::{Algorithm, Token};
use super::{Jwks, Right, TokenError};
use crate::config::{JwtConfig, KeyFiles, Keys, PublicAlgorithm};
use crate::model::feed::{Feed, Subscriber};
use crate::telemetry::health::Health;
use crate::telemetry::metrics::Metrics;

/// Interval between two reads of the files. During a rotation, two replicas may have different keys
/// for this long.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// Signs tokens with the current secret, and checks them with all keys.
pub struct Tokens {
    files: KeyFiles,
    audience: Option<String>,
    issuer: Option<String>,
    jwks: Option<Jwks>,
    /// A random secret of this process. It signs the tokens of the canary, which connects to its
    /// own replica, if no secret is configured. It is valid for nothing else.
    own: Vec<u8>,
    own_checking: Option<DecodingKey>,
    /// Locked only to copy or to replace the pointer.
    current: RwLock<Arc<Prepared>>,
}

struct Prepared {
    keys: Keys,
    /// The current secret, then the previous one.
    secrets: Vec<DecodingKey>,
}

/// The key that signed a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signer {
    /// A configured key, or one of the key set.
    Issuer,
    /// The own secret of this process.
    Replica,
}

/// A token cannot be signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// There is no secret.
    #[error(
        "SHOPBELL_JWT_HS256_SECRET is not set, and Shopbell signs tokens only with it: use a token of your issuer"
    )]
    NoSecret,
    /// The library failed.
    #[error(transparent)]
    Failed(#[from] jsonwebtoken::errors::Error),
}

#[derive(Serialize)]
struct Minted<'a> {
    sub: &'a str,
    iat: u64,
    exp: u64,
    #[serde(skip_serializing_if = "<[Feed]>::is_empty")]
    feeds: &'a [Feed],
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    publish: &'a [String],
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
    pub fn new(config: &JwtConfig, metrics: &Arc<Metrics>) -> Self {
        let jwks = config.jwks.clone();
        let own = [(); 2].map(|()| uuid::Uuid::new_v4().into_bytes()).concat();
        Self {
            files: config.files.clone(),
            audience: config.audience.clone(),
            issuer: config.issuer.clone(),
            jwks: jwks.map(|jwks| Jwks::new(jwks, metrics.clone())),
            own_checking: DecodingKey::from_secret(&own).ok(),
            own,
            current: RwLock::new(Arc::new(Prepared::new(config.keys.clone()))),
        }
    }

    /// Reads keys from their files and from the key set again and again, for ever. A key from a
    /// variable stays.
    pub async fn follow(self: Arc<Self>, health: Arc<Health>) {
        let report = || self.report(&health);
        let following_set = async {
            match &self.jwks {
                Some(jwks) => jwks.follow(report).await,
                None => std::future::pending().await,
            }
        };
        tokio::join!(self.clone().follow_files(&health), following_set);
    }

    async fn follow_files(self: Arc<Self>, health: &Health) {
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
            self.report(health);
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
                public_keys = keys.public.len(),
                "the keys for tokens changed"
            );
            *self.current.write().unwrap_or_else(PoisonError::into_inner) =
                Arc::new(Prepared::new(keys));
        }
        problems
    }

    /// Makes a token that is valid for `ttl`, signed with the current secret. Without one, only the
    /// canary gets a token.
    pub fn mint(
        &self,
        subscriber: &Subscriber,
        feeds: &[Feed],
        publish: &[String],
        right: Right,
        ttl: Duration,
    ) -> Result<String, SignError> {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let claims = Minted {
            sub: subscriber.as_str(),
            iat: now.as_secs(),
            exp: (now + ttl).as_secs(),
            feeds,
            publish,
            broadcast: right == Right::Broadcast,
            shopbell_canary: right == Right::Canary,
            aud: self.audience.as_deref(),
            iss: self.issuer.as_deref(),
        };
        let prepared = self.prepared();
        let secret = match &prepared.keys.current {
            Some(secret) => secret.reveal().as_bytes(),
            None if right == Right::Canary => &self.own,
            None => return Err(SignError::NoSecret),
        };
        let key = EncodingKey::from_secret(secret)?;
        let header = Header::new(jsonwebtoken::Algorithm::HS256);
        Ok(jsonwebtoken::encode(&header, &claims, &key)?)
    }

    /// The signer of a token; `None` if no key signed it. Fails if no key here can have its
    /// algorithm.
    pub(super) fn signer(&self, token: &Token<'_>) -> Result<Option<Signer>, TokenError> {
        let prepared = self.prepared();
        let is_signed = match token.algorithm {
            Algorithm::Hs256 => {
                if self.own_checking.iter().any(|key| signed_by(key, token)) {
                    return Ok(Some(Signer::Replica));
                }
                if prepared.secrets.is_empty() && !self.files.may_have_secret() {
                    return Err(TokenError::Algorithm);
                }
                prepared.secrets.iter().any(|key| signed_by(key, token))
            }
            Algorithm::Public(algorithm) => {
                self.is_signed_by_public(&prepared, algorithm, token)?
            }
        };
        Ok(is_signed.then_some(Signer::Issuer))
    }

    fn is_signed_by_public(
        &self,
        prepared: &Prepared,
        algorithm: PublicAlgorithm,
        token: &Token<'_>,
    ) -> Result<bool, TokenError> {
        let configured = &prepared.keys.public;
        if configured.is_empty() && !self.files.may_have_public() && self.jwks.is_none() {
            return Err(TokenError::Algorithm);
        }
        // A key in PEM has no name.
        let configured = configured.iter().filter(|key| key.algorithm() == algorithm);
        let set = self.key_set();
        let signature = token.signature_bytes();
        let mut keys = configured.chain(set.candidates(algorithm, token.kid.as_deref()));
        Ok(keys.any(|key| key.has_signed(token.signed, &signature)))
    }

    /// The present key set of the issuer. It is empty if none is configured.
    pub(super) fn key_set(&self) -> Arc<KeySet> {
        let set = self.jwks.as_ref().map(|jwks| jwks.set());
        set.unwrap_or_default()
    }

    /// Waits for a key set that may have the key of this token, which was checked with another one.
    /// Returns false if there is none now.
    pub(super) async fn fetches_key_of(&self, token: &Token<'_>, checked: &KeySet) -> bool {
        match (&self.jwks, token.algorithm) {
            (Some(jwks), Algorithm::Public(_)) => {
                jwks.fetches_key(checked, token.kid.as_deref()).await
            }
            _ => false,
        }
    }

    /// Whether any token can be valid now.
    fn has_keys(&self) -> bool {
        let prepared = self.prepared();
        let has_set = || !self.key_set().is_empty();
        !prepared.secrets.is_empty() || !prepared.keys.public.is_empty() || has_set()
    }

    /// Reports to the health of the replica whether it has a key.
    pub fn report(&self, health: &Health) {
        health.keyless.store(!self.has_keys(), Ordering::Relaxed);
    }

    /// The claims that each token must have.
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
        let all = [&keys.current, &keys.previous];
        // Only an empty secret is an error, and the configuration rejects it.
        let secrets = all
            .into_iter()
            .flatten()
            .filter_map(|key| DecodingKey::from_secret(key.reveal().as_bytes()).ok())
            .collect();
        Self { keys, secrets }
    }
}

fn signed_by(key: &DecodingKey, token: &Token<'_>) -> bool {
    let (signature, signed) = (token.signature, token.signed.as_bytes());
    jsonwebtoken::crypto::verify(signature, signed, key, jsonwebtoken::Algorithm::HS256)
        .unwrap_or(false)
}
