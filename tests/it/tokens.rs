//! Forged and broken tokens over the wire. RFC 8725 lists the attacks. Each row changes one thing
//! of a token that is valid otherwise.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::json;

use crate::support::{Issuer, Replica, SigningKey, World};

const MERCHANT: &str = "m-1";
const HEADER: &str = r#"{"alg":"ES256","kid":"a","typ":"JWT"}"#;
/// Close codes: the token is wrong for good, may be valid later, has expired, names no feed.
const REFUSED: u16 = 4501;
const LATER: u16 = 4402;
const EXPIRED: u16 = 4401;
const NO_FEED: u16 = 4503;

/// The claims of a valid token, with `more` after them.
fn claims(more: &str) -> String {
    let exp = now() + 600;
    format!(r#"{{"sub":"{MERCHANT}","exp":{exp},"aud":"shop","iss":"id"{more}}}"#)
}

/// The claims with one of them replaced, or left out.
fn claims_but(name: &str, value: &str) -> String {
    let exp = (now() + 600).to_string();
    let all = [
        ("sub", "\"m-1\""),
        ("exp", exp.as_str()),
        ("aud", "\"shop\""),
        ("iss", "\"id\""),
    ];
    let mut all: Vec<_> = all
        .into_iter()
        .filter(|(other, _)| *other != name)
        .collect();
    if !value.is_empty() {
        all.push((name, value));
    }
    let members = all
        .iter()
        .map(|(name, value)| format!("\"{name}\":{value}"));
    format!("{{{}}}", members.collect::<Vec<_>>().join(","))
}

fn signed(header: &str, payload: &str, key: &SigningKey) -> String {
    let [header, payload] = [header, payload].map(|part| URL_SAFE_NO_PAD.encode(part));
    let text = format!("{header}.{payload}");
    let signature = URL_SAFE_NO_PAD.encode(key.sign(&text));
    format!("{text}.{signature}")
}

fn signed_with_secret(header: &str, payload: &str, secret: &[u8]) -> String {
    let [header, payload] = [header, payload].map(|part| URL_SAFE_NO_PAD.encode(part));
    let text = format!("{header}.{payload}");
    let key = EncodingKey::from_secret(secret).expect("the secret is not empty");
    let signature = jsonwebtoken::crypto::sign(text.as_bytes(), &key, Algorithm::HS256);
    format!("{text}.{}", signature.expect("HS256 signs anything"))
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("the clock is past 1970").as_secs()
}

/// Headers that are wrong, although the right key signed the token.
fn headers() -> Vec<(String, u16)> {
    let wrong = [
        r#"{"kid":"a"}"#,
        r#"{"alg":"none","kid":"a"}"#,
        r#"{"alg":"","kid":"a"}"#,
        r#"{"alg":null,"kid":"a"}"#,
        r#"{"alg":["ES256"],"kid":"a"}"#,
        r#"{"alg":"es256","kid":"a"}"#,
        r#"{"alg":"ES384","kid":"a"}"#,
        r#"{"alg":"PS256","kid":"a"}"#,
        r#"{"alg":"HS512","kid":"a"}"#,
        r#"{"alg":"ES256","alg":"ES256","kid":"a"}"#,
        r#"{"alg":"ES256","kid":"a","kid":"a"}"#,
        r#"{"alg":"ES256","kid":7}"#,
        r#"{"alg":"ES256","kid":["a"]}"#,
        r#"{"alg":"ES256","kid":"a","typ":"logout+jwt"}"#,
        r#"{"alg":"ES256","kid":"a","typ":"JWE"}"#,
        r#"{"alg":"ES256","kid":"a","typ":7}"#,
        r#"{"alg":"ES256","kid":"a","crit":["exp"],"exp":1}"#,
        r#"{"alg":"ES256","kid":"a","crit":[]}"#,
        r#"{"alg":"ES256","kid":"a","crit":["b64"],"b64":false}"#,
        r#"{"alg":"ES256","kid":"a","b64":true}"#,
        r#"["ES256"]"#,
        "",
        "ES256",
    ];
    // The algorithm and the name of a key are checked together.
    let other_key = [
        r#"{"alg":"RS256","kid":"a"}"#,
        r#"{"alg":"EdDSA","kid":"a"}"#,
        r#"{"alg":"HS256","kid":"a"}"#,
        r#"{"alg":"ES256","kid":"A"}"#,
        r#"{"alg":"ES256","kid":""}"#,
        r#"{"alg":"ES256","kid":"a' or '1'='1"}"#,
        r#"{"alg":"ES256","kid":"../../dev/null"}"#,
        r#"{"alg":"ES256","kid":"a\u0000"}"#,
    ];
    let row = |code| move |header: &str| (header.to_owned(), code);
    let wrong = wrong.into_iter().map(row(REFUSED));
    wrong.chain(other_key.into_iter().map(row(LATER))).collect()
}

/// Wrong values of one claim, separated by `|`. An empty one leaves the claim out.
const WRONG_CLAIMS: [(&str, &str); 6] = [
    (
        "exp",
        r#"|null|-1|"1999999999"|true|[1999999999]|{}|1e999|NaN|Infinity|0x7fffffff"#,
    ),
    ("nbf", r#"-1|"0"|[]|{}|true|NaN"#),
    (
        "aud",
        r#"|null|7|{}|[]|[7]|["shop",7]|""|"Shop"|"other"|["other"]|[["shop"]]"#,
    ),
    ("iss", r#"|null|7|["id"]|""|"ID"|"id/""#),
    (
        "sub",
        r#"|null|7|""|[]|["m-1"]|{}|true|"a\u0000b"|"a\nb"|"\ud800"|"all""#,
    ),
    (
        "feeds",
        r#""m-1"|7|true|{}|[7]|[null]|[["m-1"]]|[{}]|[""]|["a b"]|["a\u0000"]|["shopbell-canary/x"]|["all"]|["*"]"#,
    ),
];

/// Claims that are wrong, although the right key signed them.
fn payloads() -> Vec<(String, u16)> {
    let mut rows = Vec::new();
    for (name, values) in WRONG_CLAIMS {
        let wrong = values.split('|').map(|value| claims_but(name, value));
        rows.extend(wrong.map(|payload| (payload, REFUSED)));
    }
    let long = format!("\"{}\"", "s".repeat(2000));
    rows.push((claims_but("sub", &long), REFUSED));
    let many: Vec<_> = (0..65).map(|feed| feed.to_string()).collect();
    rows.push((claims_but("feeds", &json!(many).to_string()), REFUSED));
    rows.push((claims_but("feeds", "[]"), NO_FEED));
    for name in ["sub", "exp", "aud", "iss", "feeds", "nbf", "broadcast"] {
        rows.push((claims(&format!(r#","{name}":1,"{name}":1"#)), REFUSED));
    }
    for exp in ["0", "1", "1.5", "1e3"] {
        rows.push((claims_but("exp", exp), EXPIRED));
    }
    for nbf in ["4000000000", "4000000000.5", "1e300"] {
        rows.push((claims_but("nbf", nbf), LATER));
    }
    for payload in ["", "[]", "7", "null", "\"m-1\"", "{", "{}", "\u{feff}{}"] {
        rows.push((payload.to_owned(), REFUSED));
    }
    rows
}

/// Tokens that another key signed, or none, although header and claims are right.
fn signatures(good: &str, rsa: &SigningKey, key: &SigningKey) -> Vec<(String, u16)> {
    let (text, signature) = good.rsplit_once('.').expect("a token has parts");
    let zeros = URL_SAFE_NO_PAD.encode([0; 64]);
    let (lower, padded) = (signature.to_lowercase(), format!("{signature}="));
    let mut rows = Vec::new();
    for other in ["", "AAAA", "!", &zeros, &lower, &padded] {
        rows.push((format!("{text}.{other}"), LATER));
    }
    let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none","typ":"JWT"}"#);
    let payload = URL_SAFE_NO_PAD.encode(claims(""));
    for signature in ["", signature] {
        rows.push((format!("{none}.{payload}.{signature}"), REFUSED));
    }
    // A public key is no secret (RFC 8725 §2.1).
    for public in [
        rsa.pem(),
        rsa.pem().trim_end().to_owned(),
        key.pem(),
        key.jwk().to_string(),
        json!({"keys": [key.jwk()]}).to_string(),
        key.jwk()["x"].to_string(),
        " ".to_owned(),
    ] {
        let token = signed_with_secret(r#"{"alg":"HS256"}"#, &claims(""), public.as_bytes());
        rows.push((token, LATER));
    }
    rows
}

/// Tokens that bring or name the key of an attacker (RFC 8725 §3.10).
fn foreign_keys(evil: &SigningKey, url: &str) -> Vec<(String, u16)> {
    let headers = [
        json!({"alg": "ES256", "jwk": evil.jwk()}),
        json!({"alg": "ES256", "kid": "evil", "jwk": evil.jwk()}),
        json!({"alg": "ES256", "kid": "evil", "jku": url}),
        json!({"alg": "ES256", "kid": "evil", "x5u": url}),
        json!({"alg": "ES256", "kid": url}),
        json!({"alg": "ES256", "x5c": ["AAAA"], "x5t": "AAAA"}),
        json!({"alg": "ES256", "kid": "a", "jku": url}),
    ];
    let sign = |header: serde_json::Value| (signed(&header.to_string(), &claims(""), evil), LATER);
    headers.into_iter().map(sign).collect()
}

/// Tokens that are no three parts in base64url, or too large.
fn forms(good: &str, key: &SigningKey) -> Vec<(String, u16)> {
    let parts: Vec<_> = good.split('.').collect();
    let [header, payload, signature] = parts[..] else {
        panic!("a token has three parts");
    };
    let huge = claims(&format!(r#","x":"{}""#, "x".repeat(8192)));
    let forms = [
        "a".to_owned(),
        "a.b".to_owned(),
        "..".to_owned(),
        ".....".to_owned(),
        format!("{good}.x"),
        format!("{good}."),
        format!(".{good}"),
        format!("{payload}.{header}.{signature}"),
        format!("{header}=.{payload}.{signature}"),
        format!("{header}.{payload}%3D.{signature}"),
        format!("{header}.{payload}+/.{signature}"),
        "a.".repeat(2000),
        signed(HEADER, &huge, key),
    ];
    forms.into_iter().map(|form| (form, REFUSED)).collect()
}

async fn expect_refused(world: &World, replica: &Replica, token: &str, code: u16) {
    let merchant = world.merchant(MERCHANT).token(token.to_owned());
    let refused = merchant.refused(replica.public()).await;
    let status = if code == NO_FEED { 403 } else { 401 };
    assert_eq!(refused.status, status, "{}: {refused:?}", readable(token));
    let page = merchant.by_subprotocol();
    let closed = page.closed_at_once(replica.public()).await;
    assert_eq!(closed.code, code, "{}: {closed:?}", readable(token));
    let answers = format!("{refused:?}{closed:?}");
    assert!(token.len() < 100 || !answers.contains(token), "{answers}");
}

/// Tokens that differ from the refused ones only by the flaw. `url` and `evil` are ignored.
fn good_tokens(key: &SigningKey, evil: &SigningKey, url: &str) -> Vec<String> {
    let with_foreign =
        json!({"alg": "ES256", "kid": "a", "jku": url, "jwk": evil.jwk(), "x5u": url});
    let headers = [
        HEADER.to_owned(),
        r#"{"alg":"ES256"}"#.to_owned(),
        r#"{"alg":"ES256","kid":"a","typ":"at+jwt","cty":"x"}"#.to_owned(),
        with_foreign.to_string(),
    ];
    let payloads = [
        claims(""),
        claims(r#","nbf":0.5,"iat":1.5"#),
        claims(r#","nbf":null,"iat":"soon","feeds":null"#),
        claims(r#","feeds":["m-1","m-1"],"shopbell_canary":"true","broadcast":1"#),
        claims_but("aud", r#"["x","shop"]"#),
    ];
    let all = headers
        .iter()
        .flat_map(|header| payloads.iter().map(move |payload| (header, payload)));
    all.map(|(header, payload)| signed(header, payload, key))
        .collect()
}

#[tokio::test]
async fn a_forged_or_broken_token_opens_no_session() {
    let world = World::new().await;
    let key = SigningKey::p256("a");
    let (rsa, evil) = (SigningKey::rsa("r"), SigningKey::p256("evil"));
    let (issuer, attacker) = (Issuer::start(&[&key]).await, Issuer::start(&[&evil]).await);
    let replica = world
        .replica()
        .with("SHOPBELL_JWKS_URL", issuer.url())
        .with("SHOPBELL_JWT_PUBLIC_KEY", rsa.pem())
        .with("SHOPBELL_JWT_AUDIENCE", "shop")
        .with("SHOPBELL_JWT_ISSUER", "id")
        .start()
        .await;
    let good = signed(HEADER, &claims(""), &key);
    let headers = headers().into_iter();
    let mut rows: Vec<_> = headers
        .map(|(header, code)| (signed(&header, &claims(""), &key), code))
        .collect();
    let payloads = payloads().into_iter();
    rows.extend(payloads.map(|(payload, code)| (signed(HEADER, &payload, &key), code)));
    rows.extend(signatures(&good, &rsa, &key));
    rows.extend(foreign_keys(&evil, &attacker.url()));
    let by_attacker = claims_but("iss", &json!(attacker.url()).to_string());
    rows.push((signed(HEADER, &by_attacker, &key), REFUSED));
    rows.extend(forms(&good, &key));
    for (token, code) in &rows {
        expect_refused(&world, &replica, token, *code).await;
    }
    let count = u64::try_from(rows.len()).expect("a count fits");
    assert!(count > 140, "only {count} rows");
    let refused = replica.metric("shopbell_tokens_refused_total").await;
    assert_eq!(refused, 2 * count);
    for token in good_tokens(&key, &evil, &attacker.url()) {
        let merchant = world.merchant(MERCHANT).token(token);
        merchant.connect(replica.public()).await.leave().await;
    }
    assert_eq!(attacker.requests(), 0);
    let log = replica.log();
    for part in good.split('.').skip(1) {
        assert!(!log.contains(part), "a token is in the log");
    }
    world.finish().await;
}

/// The decoded parts of a token, for a message.
fn readable(token: &str) -> String {
    let decoded = token
        .split('.')
        .take(2)
        .map(|part| match URL_SAFE_NO_PAD.decode(part) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(_) => part.to_owned(),
        });
    decoded
        .collect::<Vec<_>>()
        .join(" . ")
        .chars()
        .take(300)
        .collect()
}
