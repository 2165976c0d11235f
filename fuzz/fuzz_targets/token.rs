//! A token is refused unless our key signed it, its header is the expected one, and its claims are
//! in their bounds.
//!
//! The input is a token, or the JSON of a header and of claims with a line feed between them, which
//! the target signs with the key.
#![no_main]

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, crypto};
use libfuzzer_sys::fuzz_target;
use shopbell::config::Environment;
use shopbell::gateway::auth::{Authenticator, Grant, LEEWAY, TokenError, Tokens};
use shopbell::model::feed::Feed;
use shopbell_fuzz::within;

const SECRET: &str = "0123456789abcdef0123456789abcdef";
const BROADCAST: &str = "all";
const FEEDS_MAX: usize = 64;
const SUBSCRIBER_BYTES_MAX: usize = 255;

static AUTHENTICATOR: LazyLock<Authenticator> = LazyLock::new(|| {
    let variables = vec![("SHOPBELL_JWT_HS256_SECRET".into(), SECRET.into())];
    let config = Environment::of(variables).jwt().expect("a key");
    let broadcast = Feed::parse(BROADCAST).expect("a feed");
    let metrics = Arc::default();
    Authenticator::new(Arc::new(Tokens::new(&config, &metrics)), broadcast, metrics)
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
    let key = EncodingKey::from_secret(SECRET.as_bytes()).expect("a key");
    let signature = crypto::sign(signed.as_bytes(), &key, Algorithm::HS256).expect("a signature");
    match check(&format!("{signed}.{signature}")) {
        Ok(grant) => check_grant(&grant, header),
        Err(TokenError::KeyUnknown | TokenError::Signature | TokenError::Missing) => {
            panic!("the key is known")
        }
        Err(TokenError::Audience(_) | TokenError::Issuer(_)) => panic!("none is expected"),
        Err(TokenError::Algorithm) => {
            let header: serde_json::Value = serde_json::from_str(header).expect("it is JSON");
            assert_ne!(header["alg"], "HS256");
        }
        Err(
            TokenError::Refused(_)
            | TokenError::NotYetValid { .. }
            | TokenError::Expired
            | TokenError::NoFeed,
        ) => {}
    }
});

fn check(token: &str) -> Result<Grant, TokenError> {
    LazyLock::force(&AUTHENTICATOR);
    within(32 * token.len() + 16 * 1024, || {
        let mut admission = pin!(AUTHENTICATOR.admit(Some(token)));
        match admission
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
        {
            Poll::Ready(result) => result,
            Poll::Pending => panic!("there is no key set to wait for"),
        }
    })
}

fn check_refused(token: &str) {
    let result = check(token);
    assert!(result.is_err(), "nobody signed this token: {result:?}");
}

fn check_grant(grant: &Grant, header: &str) {
    let header: serde_json::Value = serde_json::from_str(header).expect("the header is JSON");
    assert_eq!(header["alg"], "HS256");
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
