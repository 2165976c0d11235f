//! A token is refused unless one of our keys signed it, its header is the expected one, and its
//! claims are in their bounds.
//!
//! The input is a token, or the JSON of a header and of claims with a line feed between them. The
//! target signs the latter with the key of its `alg`, and with every other key. One service has its
//! public keys in PEM, another in a key set, where `kid` names a key.
#![no_main]

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::pin::pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256,
};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, crypto};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};
use shopbell::config::Environment;
use shopbell::gateway::auth::{Authenticator, Grant, LEEWAY, TokenError, Tokens};
use shopbell::model::feed::Feed;
use shopbell::telemetry::health::Health;
use shopbell_fuzz::within;
use tokio::runtime::Runtime;

const SECRET: &str = "0123456789abcdef0123456789abcdef";
const BROADCAST: &str = "all";
const FEEDS_MAX: usize = 64;
const SUBSCRIBER_BYTES_MAX: usize = 255;
const ALGORITHMS: [&str; 4] = ["HS256", "RS256", "ES256", "EdDSA"];

static PAIRS: LazyLock<Pairs> = LazyLock::new(Pairs::generate);
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().expect("a runtime")
});
/// Has its public keys in PEM.
static WITH_PEM: LazyLock<Authenticator> = LazyLock::new(|| {
    let keys = ("SHOPBELL_JWT_PUBLIC_KEY", PAIRS.pem());
    authenticator(&tokens(keys))
});
/// Has its public keys in a set that it has fetched.
static WITH_SET: LazyLock<Authenticator> = LazyLock::new(|| {
    let tokens = tokens(("SHOPBELL_JWKS_URL", serve(PAIRS.set().to_string())));
    let health = Arc::new(Health::new(0, 0));
    RUNTIME.block_on(async {
        let following = tokens.clone().follow(health);
        let followed = tokio::time::timeout(Duration::from_secs(5), following).await;
        assert!(followed.is_err(), "it follows for ever");
    });
    authenticator(&tokens)
});

fuzz_target!(|input: &[u8]| {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let Some((header, claims)) = text.split_once('\n') else {
        check_refused(text);
        return;
    };
    let signed = format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(header),
        URL_SAFE_NO_PAD.encode(claims)
    );
    check_refused(&format!("{signed}."));
    check_refused(&format!("{signed}.{}", "A".repeat(43)));
    let header: Value = serde_json::from_str(header).unwrap_or_default();
    for algorithm in ALGORITHMS {
        let token = format!("{signed}.{}", PAIRS.sign(algorithm, &signed));
        if header["alg"] == algorithm {
            check_signed(&WITH_PEM, &token, &header, false);
            check_signed(&WITH_SET, &token, &header, algorithm != "HS256");
        } else {
            // The key decides the algorithm, never the token.
            check_refused(&token);
        }
    }
    // The public key is no secret.
    let key = EncodingKey::from_secret(PAIRS.pem().as_bytes()).expect("a key");
    let signature = crypto::sign(signed.as_bytes(), &key, Algorithm::HS256).expect("a signature");
    check_refused(&format!("{signed}.{signature}"));
});

/// Checks a token that the key of its algorithm signed. With `is_named`, the key has its algorithm
/// as its name.
fn check_signed(authenticator: &Authenticator, token: &str, header: &Value, is_named: bool) {
    let kid = header.get("kid").and_then(Value::as_str);
    match check(authenticator, token) {
        Some(Ok(grant)) => {
            check_grant(&grant, header);
            assert!(
                !is_named || kid.is_none_or(|kid| header["alg"] == kid),
                "another key has signed it: {kid:?}"
            );
        }
        // A service with a set waits for the key.
        None | Some(Err(TokenError::KeyUnknown | TokenError::Signature)) => {
            assert!(
                is_named && kid.is_some_and(|kid| header["alg"] != kid),
                "the key is known"
            );
        }
        Some(Err(TokenError::Missing)) => panic!("there is a token"),
        Some(Err(TokenError::Audience(_) | TokenError::Issuer(_))) => panic!("none is expected"),
        Some(Err(TokenError::Algorithm)) => panic!("there is a key for this algorithm"),
        Some(Err(TokenError::NoPublish(_))) => panic!("a session needs no claim publish"),
        Some(Err(
            TokenError::Refused(_)
            | TokenError::NotYetValid { .. }
            | TokenError::Expired
            | TokenError::NoFeed,
        )) => {}
    }
}

/// Returns `None` if the service waits for a key set.
fn check(authenticator: &Authenticator, token: &str) -> Option<Result<Grant, TokenError>> {
    let _entered = RUNTIME.enter();
    within(32 * token.len() + 16 * 1024, || {
        let mut admission = pin!(authenticator.admit(Some(token)));
        match admission
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
        {
            Poll::Ready(result) => Some(result),
            Poll::Pending => None,
        }
    })
}

fn check_refused(token: &str) {
    for authenticator in [&WITH_PEM, &WITH_SET] {
        let result = check(authenticator, token);
        let is_granted = matches!(result, Some(Ok(_)));
        assert!(!is_granted, "nobody signed this token: {result:?}");
    }
}

fn check_grant(grant: &Grant, header: &Value) {
    assert!(header.get("crit").is_none() && header.get("b64").is_none());
    assert!((1..=SUBSCRIBER_BYTES_MAX).contains(&grant.subscriber.as_str().len()));
    assert!(!grant.subscriber.as_str().contains(char::is_control));
    let feeds: BTreeSet<_> = grant.feeds.iter().map(Feed::as_str).collect();
    assert_eq!(feeds.len(), grant.feeds.len(), "each feed once");
    assert!(feeds.len() <= FEEDS_MAX + 1 && feeds.len() > usize::from(grant.shared.is_some()));
    assert!(feeds.contains(BROADCAST) || grant.is_canary);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.expect("a clock after 1970");
    assert!(
        grant
            .expires_at
            .saturating_add(LEEWAY + Duration::from_secs(5))
            > now,
        "it has expired"
    );
}

/// A key pair for each public algorithm.
struct Pairs {
    rsa: RsaKeyPair,
    p256: EcdsaKeyPair,
    ed25519: Ed25519KeyPair,
}

impl Pairs {
    fn generate() -> Self {
        Self {
            rsa: RsaKeyPair::generate(KeySize::Rsa2048).expect("a key"),
            p256: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key"),
            ed25519: Ed25519KeyPair::generate().expect("a key"),
        }
    }

    /// The signature of a text, as it stands in a token.
    fn sign(&self, algorithm: &str, text: &str) -> String {
        let random = SystemRandom::new();
        let text = text.as_bytes();
        let signature = match algorithm {
            "RS256" => {
                let mut signature = vec![0; self.rsa.public_modulus_len()];
                let signed = self
                    .rsa
                    .sign(&RSA_PKCS1_SHA256, &random, text, &mut signature);
                signed.expect("a signature");
                signature
            }
            "ES256" => {
                let signature = self.p256.sign(&random, text).expect("a signature");
                signature.as_ref().to_vec()
            }
            "EdDSA" => self.ed25519.sign(text).as_ref().to_vec(),
            _ => {
                let key = EncodingKey::from_secret(SECRET.as_bytes()).expect("a key");
                return crypto::sign(text, &key, Algorithm::HS256).expect("a signature");
            }
        };
        URL_SAFE_NO_PAD.encode(signature)
    }

    /// The public keys in PEM.
    fn pem(&self) -> String {
        let ders: [PublicKeyX509Der<'_>; 3] = [
            self.rsa.public_key().as_der().expect("it can be encoded"),
            self.p256.public_key().as_der().expect("it can be encoded"),
            self.ed25519
                .public_key()
                .as_der()
                .expect("it can be encoded"),
        ];
        let pem = |der: &PublicKeyX509Der<'_>| {
            let text = STANDARD.encode(der.as_ref());
            format!("-----BEGIN PUBLIC KEY-----\n{text}\n-----END PUBLIC KEY-----\n")
        };
        ders.iter().map(pem).collect()
    }

    /// The public keys as a key set. Each has its algorithm as its name.
    fn set(&self) -> Value {
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let rsa = self.rsa.public_key();
        let [n, e] = [rsa.modulus(), rsa.exponent()]
            .map(|number| text(number.big_endian_without_leading_zero()));
        let point = self.p256.public_key().as_ref();
        let (x, y) = (text(&point[1..33]), text(&point[33..]));
        let of_ed25519 = text(self.ed25519.public_key().as_ref());
        json!({"keys": [
            {"kty": "RSA", "kid": "RS256", "n": n, "e": e},
            {"kty": "EC", "kid": "ES256", "crv": "P-256", "x": x, "y": y},
            {"kty": "OKP", "kid": "EdDSA", "crv": "Ed25519", "x": of_ed25519},
        ]})
    }
}

fn tokens((variable, keys): (&str, String)) -> Arc<Tokens> {
    let variables = vec![
        ("SHOPBELL_JWT_HS256_SECRET".into(), SECRET.into()),
        (variable.into(), keys),
    ];
    let config = Environment::of(variables).jwt().expect("keys");
    Arc::new(Tokens::new(&config, &Arc::default()))
}

fn authenticator(tokens: &Arc<Tokens>) -> Authenticator {
    let broadcast = Feed::parse(BROADCAST).expect("a feed");
    Authenticator::new(tokens.clone(), broadcast, Arc::default())
}

/// Serves a key set on loopback once, and returns its URL.
fn serve(set: String) -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("an address");
    let address = listener.local_addr().expect("it is bound");
    std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().expect("a connection");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            socket.read_exact(&mut byte).expect("a request");
            head.extend(byte);
        }
        let length = set.len();
        let response = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{set}"
        );
        socket.write_all(response.as_bytes()).expect("it is read");
    });
    format!("http://{address}/")
}
