//! JSON Web Tokens as an identity provider signs them, and as an attacker forges them.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey};
use serde::Serialize;
use serde_json::{Map, Value};

use super::SigningKey;

/// The default life of a token in seconds.
const TTL_SECONDS: i64 = 600;

/// A token in the making. [`Token::sign`] or one of its invalid siblings returns the text.
#[derive(Clone)]
pub struct Token {
    secret: String,
    header: Value,
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
    #[serde(flatten)]
    more: Map<String, Value>,
}

impl Token {
    /// A valid token of `subscriber`, to be signed with `secret`.
    pub fn new(secret: &str, subscriber: &str) -> Self {
        let (exp, more) = (Some(now() + TTL_SECONDS), Map::new());
        let claims = Claims {
            sub: subscriber.to_owned(),
            exp,
            feeds: None,
            aud: None,
            more,
        };
        let header = serde_json::json!({"alg": "HS256", "typ": "JWT"});
        Self {
            secret: secret.to_owned(),
            header,
            claims,
        }
    }

    /// The same token, to be signed with this secret.
    pub fn secret(mut self, secret: &str) -> Self {
        self.secret = secret.to_owned();
        self
    }

    /// A claim that is this many seconds from now, with a fraction.
    pub fn moment(mut self, name: &str, seconds: f64) -> Self {
        if name == "exp" {
            self.claims.exp = None;
        }
        self.claims
            .more
            .insert(name.to_owned(), (now() as f64 + seconds).into());
        self
    }

    /// A parameter of the header.
    pub fn header(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.header[name] = value.into();
        self
    }

    /// The feeds that it may read, instead of the subscriber's own.
    pub fn feeds<const N: usize>(mut self, feeds: [&str; N]) -> Self {
        self.claims.feeds = Some(feeds.map(str::to_owned).to_vec());
        self
    }

    /// The same for a list of any length.
    #[allow(
        dead_code,
        reason = "only the chaos stories use it, and both test binaries share this file"
    )]
    pub fn feed_list(mut self, feeds: Vec<String>) -> Self {
        self.claims.feeds = Some(feeds);
        self
    }

    /// With the right to mark notifications for everyone in the broadcast feed.
    pub fn broadcast(mut self) -> Self {
        self.claims.more.insert("broadcast".to_owned(), true.into());
        self
    }

    /// The recipients to whom it may publish.
    #[allow(
        dead_code,
        reason = "only the stories use it, and both test binaries share this file"
    )]
    pub fn publish<const N: usize>(mut self, recipients: [&str; N]) -> Self {
        let recipients: Vec<Value> = recipients.map(Value::from).into();
        self.claims
            .more
            .insert("publish".to_owned(), recipients.into());
        self
    }

    /// The audience.
    pub fn audience(mut self, audience: &str) -> Self {
        self.claims.aud = Some(audience.to_owned());
        self
    }

    /// The issuer.
    pub fn issuer(mut self, issuer: &str) -> Self {
        self.claims.more.insert("iss".to_owned(), issuer.into());
        self
    }

    /// Seconds from now until it expires; they may be negative.
    pub fn expires_in_seconds(mut self, seconds: i64) -> Self {
        self.claims.exp = Some(now() + seconds);
        self
    }

    /// A token that never expires.
    pub fn without_expiry(mut self) -> Self {
        self.claims.exp = None;
        self
    }

    /// The token, signed with HS256.
    pub fn sign(&self) -> String {
        let signed = format!("{}.{}", part(&self.header), part(&self.claims));
        let key =
            EncodingKey::from_secret(self.secret.as_bytes()).expect("the secret is not empty");
        let signature = jsonwebtoken::crypto::sign(signed.as_bytes(), &key, Algorithm::HS256);
        format!("{signed}.{}", signature.expect("HS256 signs anything"))
    }

    /// The token with the algorithm and the `kid` of this key, signed with it.
    pub fn sign_with(&self, key: &SigningKey) -> String {
        let token = self.clone().header("alg", key.algorithm());
        token.header("kid", key.kid.as_str()).sign_as_it_is(key)
    }

    /// The token with its header as it is, signed with this key.
    pub fn sign_as_it_is(&self, key: &SigningKey) -> String {
        let signed = format!("{}.{}", part(&self.header), part(&self.claims));
        let signature = URL_SAFE_NO_PAD.encode(key.sign(&signed));
        format!("{signed}.{signature}")
    }

    /// The token, signed with a secret that the service does not know.
    pub fn sign_with_a_foreign_secret(&self) -> String {
        Self {
            secret: "a secret of thirty-two bytes, but not ours".to_owned(),
            ..self.clone()
        }
        .sign()
    }

    /// The token with `"alg":"none"` and no signature, a classic attack.
    pub fn unsigned(&self) -> String {
        format!(
            "{}.{}.",
            URL_SAFE_NO_PAD.encode(br#"{"alg":"none","typ":"JWT"}"#),
            part(&self.claims)
        )
    }
}

fn part(json: &impl Serialize) -> String {
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(json).expect("a token is made of JSON"))
}

fn now() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("the clock is past 1970");
    i64::try_from(since.as_secs()).expect("seconds fit")
}
