//! JSON Web Tokens as an identity provider would mint them, and as an attacker would.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{EncodingKey, Header};
use serde::Serialize;

/// How long a token lives unless the story says otherwise.
const TTL_SECONDS: i64 = 600;

/// A token being made out; [`Token::sign`] or one of its bad siblings gives the text.
#[derive(Clone)]
pub struct Token {
    secret: String,
    claims: Claims,
}

#[derive(Clone, Serialize)]
struct Claims {
    sub: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    exp: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    feeds: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    aud: Option<String>,
}

impl Token {
    /// A good token of `subscriber`, to be signed with `secret`.
    pub fn new(secret: &str, subscriber: &str) -> Self {
        let claims = Claims { sub: subscriber.to_owned(), exp: Some(now() + TTL_SECONDS), feeds: None, aud: None };
        Self { secret: secret.to_owned(), claims }
    }

    /// The feeds it may read, instead of the subscriber's own.
    pub fn feeds<const N: usize>(mut self, feeds: [&str; N]) -> Self {
        self.claims.feeds = Some(feeds.map(str::to_owned).to_vec());
        self
    }

    /// For whom it was minted.
    pub fn audience(mut self, audience: &str) -> Self {
        self.claims.aud = Some(audience.to_owned());
        self
    }

    /// When it expires, from now on; in the past where negative.
    pub fn expires_in_seconds(mut self, seconds: i64) -> Self {
        self.claims.exp = Some(now() + seconds);
        self
    }

    /// A token that never says when it expires.
    pub fn without_expiry(mut self) -> Self {
        self.claims.exp = None;
        self
    }

    /// The token, signed with HS256.
    pub fn sign(&self) -> String {
        let key = EncodingKey::from_secret(self.secret.as_bytes());
        jsonwebtoken::encode(&Header::default(), &self.claims, &key).expect("claims are JSON")
    }

    /// The token, signed with a secret that the service does not know.
    pub fn sign_with_a_foreign_secret(&self) -> String {
        Self { secret: "a secret of thirty-two bytes, but not ours".to_owned(), ..self.clone() }.sign()
    }

    /// The token with `"alg":"none"` and no signature, as the oldest trick has it.
    pub fn unsigned(&self) -> String {
        let claims = serde_json::to_vec(&self.claims).expect("claims are JSON");
        format!("{}.{}.", URL_SAFE_NO_PAD.encode(br#"{"alg":"none","typ":"JWT"}"#), URL_SAFE_NO_PAD.encode(claims))
    }
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
    i64::try_from(since.as_secs()).expect("seconds fit")
}
