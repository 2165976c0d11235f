//! A token, taken apart and held against every rule but the signature. No I/O, and the time is an argument.
//!
//! Read here and not by `jsonwebtoken`, which accepts critical extensions that it does not know, and rounds numeric dates.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, IgnoredAny};
use serde_json::value::RawValue;

use super::{Right, TokenError};

/// How far a clock of the token's issuer may differ from ours.
pub const LEEWAY: Duration = Duration::from_secs(5);
/// An issuer whose clock is ahead dates a token into the future, so `iat` shows how far ahead it is. Up to this is believed.
const SKEW_MAX: Duration = Duration::from_secs(60);
/// Longest token that is looked at.
const TOKEN_BYTES_MAX: usize = 8 * 1024;

/// A token in the form of HS256. Its signature is not checked yet.
#[derive(Debug)]
pub(super) struct Token<'a> {
    /// What is signed.
    pub(super) signed: &'a str,
    /// The signature, in base64url.
    pub(super) signature: &'a str,
    payload: &'a str,
}

/// What `aud` and `iss` must be.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Expected<'a> {
    pub(super) audience: Option<&'a str>,
    pub(super) issuer: Option<&'a str>,
}

/// The claims of a token that is valid now.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Claims {
    pub(super) sub: String,
    pub(super) feeds: Option<Vec<String>>,
    pub(super) right: Right,
    /// Since 1970.
    pub(super) exp: Duration,
}

/// The parameters of the header that count. Others are ignored (RFC 7515 §4).
#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default, deserialize_with = "is_there")]
    crit: bool,
    #[serde(default, deserialize_with = "is_there")]
    b64: bool,
}

/// The claims that count. A claim that is there twice is an error, because readers would differ on which one counts.
#[derive(Deserialize)]
struct Payload<'a> {
    #[serde(borrow)]
    sub: Option<&'a RawValue>,
    #[serde(borrow)]
    exp: Option<&'a RawValue>,
    #[serde(borrow)]
    nbf: Option<&'a RawValue>,
    #[serde(borrow)]
    iat: Option<&'a RawValue>,
    #[serde(borrow)]
    feeds: Option<&'a RawValue>,
    #[serde(borrow)]
    aud: Option<&'a RawValue>,
    #[serde(borrow)]
    iss: Option<&'a RawValue>,
    #[serde(borrow)]
    broadcast: Option<&'a RawValue>,
    #[serde(borrow)]
    shopbell_canary: Option<&'a RawValue>,
}

/// RFC 7519 §4.1.3.
#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

impl<'a> Token<'a> {
    pub(super) fn parse(token: &'a str) -> Result<Self, TokenError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::Refused("longer than 8 KiB"));
        }
        let not_a_jwt = TokenError::Refused("not a JWT");
        let (signed, signature) = token.rsplit_once('.').ok_or(not_a_jwt)?;
        let (header, payload) = signed
            .split_once('.')
            .filter(|(_, payload)| !payload.contains('.'))
            .ok_or(not_a_jwt)?;
        let header = decoded(header).ok_or(not_a_jwt)?;
        let header: Header = object(&header).ok_or(not_a_jwt)?;
        if header.alg != "HS256" {
            return Err(TokenError::Refused("wrong algorithm"));
        }
        // RFC 7515 §4.1.11 and RFC 7797 §6: what is critical and not understood makes the token invalid.
        if header.crit || header.b64 {
            return Err(TokenError::Refused(
                "its header has crit or b64, which are not supported",
            ));
        }
        Ok(Self {
            signed,
            signature,
            payload,
        })
    }

    /// The claims, if they are complete and valid at `now`, a time since 1970.
    pub(super) fn claims(
        &self,
        expected: Expected<'_>,
        now: Duration,
    ) -> Result<Claims, TokenError> {
        let json = decoded(self.payload).ok_or(TokenError::Refused("not a JWT"))?;
        let not_claims =
            TokenError::Refused("its claims are no JSON object, or a claim is there twice");
        let claims: Payload<'_> = object_of(&json).ok_or(not_claims)?;
        let exp = claims.exp.ok_or(TokenError::Refused("exp is missing"))?;
        let exp = numeric_date(exp).ok_or(TokenError::Refused(
            "exp must be a number of seconds since 1970",
        ))?;
        check_audience(claims.aud, expected.audience)?;
        check_issuer(claims.iss, expected.issuer)?;
        let sub = claims.sub.ok_or(TokenError::Refused("sub is missing"))?;
        let sub = read(sub).ok_or(TokenError::Refused("sub must be a string"))?;
        let feeds = match claims.feeds {
            Some(feeds) => {
                Some(read(feeds).ok_or(TokenError::Refused("feeds must be a list of strings"))?)
            }
            None => None,
        };
        if now > exp.saturating_add(LEEWAY) {
            return Err(TokenError::Expired);
        }
        if let Some(nbf) = claims.nbf {
            let nbf = numeric_date(nbf).ok_or(TokenError::Refused(
                "nbf must be a number of seconds since 1970",
            ))?;
            let issued = claims.iat.and_then(numeric_date).unwrap_or_default();
            let now_of_issuer = issued.min(now + SKEW_MAX).max(now);
            if nbf > now_of_issuer + LEEWAY {
                return Err(TokenError::NotYetValid {
                    wait: nbf - LEEWAY - now,
                });
            }
        }
        // Anything but `true` is the claim of somebody else.
        let is_true = |claim: Option<&RawValue>| claim.is_some_and(|claim| claim.get() == "true");
        let right = match (is_true(claims.broadcast), is_true(claims.shopbell_canary)) {
            (true, _) => Right::Broadcast,
            (false, true) => Right::Canary,
            (false, false) => Right::None,
        };
        Ok(Claims {
            sub,
            feeds,
            right,
            exp,
        })
    }
}

fn check_audience(claim: Option<&RawValue>, expected: Option<&str>) -> Result<(), TokenError> {
    let Some(expected) = expected else {
        return Ok(());
    };
    let claim = claim.ok_or(TokenError::Refused("aud is missing"))?;
    let is_named = match read(claim).ok_or(TokenError::Refused(
        "aud must be a string or a list of strings",
    ))? {
        Audience::One(name) => name == expected,
        Audience::Many(names) => names.iter().any(|name| name == expected),
    };
    if is_named {
        Ok(())
    } else {
        Err(TokenError::Refused("wrong audience"))
    }
}

fn check_issuer(claim: Option<&RawValue>, expected: Option<&str>) -> Result<(), TokenError> {
    let Some(expected) = expected else {
        return Ok(());
    };
    let claim = claim.ok_or(TokenError::Refused("iss is missing"))?;
    let issuer: String = read(claim).ok_or(TokenError::Refused("iss must be a string"))?;
    if issuer == expected {
        Ok(())
    } else {
        Err(TokenError::Refused("wrong issuer"))
    }
}

/// Seconds since 1970, with or without a fraction (RFC 7519 §2). A number beyond `Duration` is its greatest.
fn numeric_date(claim: &RawValue) -> Option<Duration> {
    let json = claim.get();
    // `f64` would also parse the words that stand for no number.
    let is_number = json.starts_with(|c: char| c.is_ascii_digit() || c == '-');
    let seconds = json
        .parse::<f64>()
        .ok()
        .filter(|seconds| is_number && seconds.is_finite() && *seconds >= 0.0)?;
    Some(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
}

fn decoded(part: &str) -> Option<String> {
    String::from_utf8(URL_SAFE_NO_PAD.decode(part).ok()?).ok()
}

fn object<T: DeserializeOwned>(json: &str) -> Option<T> {
    object_of(json)
}

/// serde would take a list for a struct too.
fn object_of<'a, T: Deserialize<'a>>(json: &'a str) -> Option<T> {
    json.trim_start()
        .starts_with('{')
        .then(|| serde_json::from_str(json).ok())?
}

fn read<T: DeserializeOwned>(claim: &RawValue) -> Option<T> {
    serde_json::from_str(claim.get()).ok()
}

fn is_there<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(deserializer).map(|_| true)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_token_is_read_or_refused(token in "[a-zA-Z0-9_.-]{0,64}|.*") {
            let _ = Token::parse(&token).map(|token| token.claims(SHOP, NOW));
        }

        #[test]
        fn any_dates_are_read_or_refused(exp in date(), nbf in date(), iat in date(), now in any::<u64>()) {
            let token = token(r#"{"alg":"HS256"}"#, &format!(r#"{{"sub":"m","exp":{exp},"nbf":{nbf},"iat":{iat}}}"#));
            let now = Duration::from_secs(now / 2);
            let claims = Token::parse(&token).unwrap().claims(ANY, now);
            if let Ok(claims) = claims {
                prop_assert!(claims.exp.saturating_add(LEEWAY) >= now);
            }
        }
    }

    fn date() -> impl Strategy<Value = String> {
        let number = r"-?(0|[1-9][0-9]{0,30})(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,4})?";
        prop_oneof![
            Just("null".to_owned()),
            Just("true".to_owned()),
            number,
            r#""[0-9]{0,9}""#
        ]
    }

    const NOW: Duration = Duration::from_millis(1_800_000_000_500);
    const SHOP: Expected<'_> = Expected {
        audience: Some("shop"),
        issuer: Some("id"),
    };
    const ANY: Expected<'_> = Expected {
        audience: None,
        issuer: None,
    };

    fn token(header: &str, payload: &str) -> String {
        format!(
            "{}.{}.c2lnbmF0dXJl",
            URL_SAFE_NO_PAD.encode(header),
            URL_SAFE_NO_PAD.encode(payload)
        )
    }

    fn claims_for(payload: &str, expected: Expected<'_>) -> Result<Claims, TokenError> {
        Token::parse(&token(r#"{"alg":"HS256"}"#, payload))
            .unwrap()
            .claims(expected, NOW)
    }

    /// The outcome of claims beside a good `sub` and `exp`.
    fn beside(more: &str) -> Result<Claims, TokenError> {
        claims_for(&format!(r#"{{"sub":"m","exp":1800000600,{more}}}"#), ANY)
    }

    #[track_caller]
    fn is_refused(outcome: Result<Claims, TokenError>, named: &str) {
        let error = outcome.unwrap_err();
        assert!(
            matches!(error, TokenError::Refused(why) if why.contains(named)),
            "{error}"
        );
    }

    #[test]
    fn a_right_is_a_claim_that_is_true() {
        assert_eq!(
            beside(r#""broadcast":true"#).unwrap().right,
            Right::Broadcast
        );
        assert_eq!(
            beside(r#""shopbell_canary":true"#).unwrap().right,
            Right::Canary
        );
        for other in [
            r#""broadcast":false"#,
            r#""broadcast":"true""#,
            r#""broadcast":1"#,
            r#""canary":true"#,
        ] {
            assert_eq!(beside(other).unwrap().right, Right::None, "{other}");
        }
    }

    #[test]
    fn the_header_must_be_of_hs256_and_without_critical_extensions() {
        for good in [
            r#"{"alg":"HS256"}"#,
            r#"{"typ":"at+jwt","kid":"2026","cty":"x","zip":"DEF","jku":"https://x.example","alg":"HS256"}"#,
        ] {
            assert!(Token::parse(&token(good, "{}")).is_ok(), "{good}");
        }
        for bad in [
            r#"{"alg":"hs256"}"#,
            r#"{"alg":"none"}"#,
            r#"{"alg":"HS512"}"#,
            r#"{"alg":"RS256"}"#,
            r#"{"alg":["HS256"]}"#,
            r#"{"alg":"HS256","alg":"HS256"}"#,
            r#"{"alg":"HS256","crit":["exp"],"exp":1}"#,
            r#"{"alg":"HS256","crit":[]}"#,
            r#"{"alg":"HS256","crit":null}"#,
            r#"{"alg":"HS256","b64":false}"#,
            r#"["HS256"]"#,
            "{}",
            "HS256",
        ] {
            assert!(
                matches!(Token::parse(&token(bad, "{}")), Err(TokenError::Refused(_))),
                "{bad}"
            );
        }
        let padded = token(r#"{"alg":"HS256"}"#, "{}").replacen('.', "=.", 1);
        for bad in [
            "",
            "a",
            "a.b",
            "..",
            "a.b.c.d",
            &padded,
            &"a".repeat(TOKEN_BYTES_MAX + 1),
        ] {
            assert!(
                matches!(Token::parse(bad), Err(TokenError::Refused(_))),
                "{bad}"
            );
        }
    }

    #[test]
    fn numeric_dates_may_have_fractions() {
        for exp in [
            "1800000600",
            "1800000600.5",
            "1800000600.0",
            "1.8000006e9",
            "18446744073709551615",
            "1e300",
        ] {
            assert!(
                claims_for(&format!(r#"{{"sub":"m","exp":{exp}}}"#), ANY).is_ok(),
                "{exp}"
            );
        }
        let claims = claims_for(r#"{"sub":"m","exp":1800000000.25}"#, ANY).unwrap();
        assert_eq!(claims.exp, Duration::from_millis(1_800_000_000_250));
        for exp in [
            "-1",
            "-0.5",
            "1e400",
            r#""1800000600""#,
            "true",
            "[1800000600]",
            "{}",
        ] {
            is_refused(
                claims_for(&format!(r#"{{"sub":"m","exp":{exp}}}"#), ANY),
                "exp must be",
            );
        }
        for word in ["NaN", "inf", "Infinity", "+1800000600"] {
            is_refused(
                claims_for(&format!(r#"{{"sub":"m","exp":{word}}}"#), ANY),
                "no JSON object",
            );
        }
    }

    #[test]
    fn a_token_expires_after_the_leeway() {
        for (exp, is_expired) in [
            ("1799999995.6", false),
            ("1799999995.4", true),
            ("0", true),
            ("-0", true),
        ] {
            let outcome = claims_for(&format!(r#"{{"sub":"m","exp":{exp}}}"#), ANY);
            assert_eq!(outcome == Err(TokenError::Expired), is_expired, "{exp}");
        }
    }

    #[test]
    fn a_token_that_is_not_valid_yet_says_how_long_to_wait() {
        for nbf in ["1800000005.4", "1800000000", "0", "0.5"] {
            assert!(beside(&format!(r#""nbf":{nbf}"#)).is_ok(), "{nbf}");
        }
        let wait = Duration::from_secs(7);
        assert_eq!(
            beside(r#""nbf":1800000012.5"#),
            Err(TokenError::NotYetValid { wait })
        );
        assert!(matches!(
            beside(r#""nbf":1e300"#),
            Err(TokenError::NotYetValid { .. })
        ));
        is_refused(beside(r#""nbf":-1"#), "nbf must be");
        is_refused(beside(r#""nbf":"1800000000""#), "nbf must be");
        assert!(beside(r#""nbf":null"#).is_ok());
    }

    #[test]
    fn the_clock_of_an_issuer_is_known_by_its_iat() {
        for good in [
            r#""nbf":1800000060,"iat":1800000060"#,
            r#""nbf":1800000060.9,"iat":1800000059.5"#,
            r#""iat":1800000300"#,
            r#""iat":"soon""#,
        ] {
            assert!(beside(good).is_ok(), "{good}");
        }
        for bad in [
            r#""nbf":1800000070,"iat":1800000070"#,
            r#""nbf":1800000040,"iat":1800000010"#,
            r#""nbf":1800000040,"iat":1799999990"#,
            r#""nbf":1800000040,"iat":"1800000040""#,
        ] {
            assert!(
                matches!(beside(bad), Err(TokenError::NotYetValid { .. })),
                "{bad}"
            );
        }
    }

    #[test]
    fn sub_and_feeds_have_their_types() {
        is_refused(claims_for(r#"{"exp":1800000600}"#, ANY), "sub is missing");
        for sub in ["7", "[]", r#"["m"]"#, r#""\ud800""#, "true"] {
            is_refused(
                claims_for(&format!(r#"{{"sub":{sub},"exp":1800000600}}"#), ANY),
                "sub must be",
            );
        }
        for feeds in [r#""a""#, "[1]", "{}", "7"] {
            is_refused(beside(&format!(r#""feeds":{feeds}"#)), "feeds must be");
        }
        assert_eq!(beside(r#""feeds":null"#).unwrap().feeds, None);
        assert_eq!(
            beside(r#""feeds":["a","b"]"#).unwrap().feeds.unwrap(),
            ["a", "b"]
        );
    }

    #[test]
    fn a_claim_that_counts_is_there_once() {
        is_refused(
            claims_for(r#"{"sub":"m","sub":"other","exp":1800000600}"#, ANY),
            "twice",
        );
        is_refused(beside(r#""exp":1"#), "twice");
        assert!(beside(r#""other":1,"other":2"#).is_ok());
        for payload in ["", "[]", r#"["m",1800000600]"#, "7", "{", "x\u{9c}"] {
            is_refused(claims_for(payload, ANY), "no JSON object");
        }
    }

    #[test]
    fn audience_and_issuer_are_required_where_they_are_expected() {
        let outcome =
            |more: &str| claims_for(&format!(r#"{{"sub":"m","exp":1800000600{more}}}"#), SHOP);
        for aud in [r#""shop""#, r#"["shop"]"#, r#"["other","shop"]"#] {
            assert!(
                outcome(&format!(r#","iss":"id","aud":{aud}"#)).is_ok(),
                "{aud}"
            );
        }
        for aud in [r#""other""#, r#"["other"]"#, "[]", r#""""#, r#""Shop""#] {
            is_refused(
                outcome(&format!(r#","iss":"id","aud":{aud}"#)),
                "wrong audience",
            );
        }
        for aud in ["7", r#"["shop",7]"#, "{}"] {
            is_refused(
                outcome(&format!(r#","iss":"id","aud":{aud}"#)),
                "aud must be",
            );
        }
        is_refused(outcome(r#","iss":"id""#), "aud is missing");
        is_refused(outcome(r#","iss":"id","aud":null"#), "aud is missing");
        is_refused(outcome(r#","aud":"shop""#), "iss is missing");
        is_refused(outcome(r#","aud":"shop","iss":"other""#), "wrong issuer");
        is_refused(outcome(r#","aud":"shop","iss":["id"]"#), "iss must be");
        assert!(
            beside(r#""aud":["x",7],"iss":7"#).is_ok(),
            "neither is expected"
        );
    }
}
