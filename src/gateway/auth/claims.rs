//! The claims of a token, checked against every rule of RFC 7519 §4.1 that this service applies.
//!
//! JSON and the time come in, [`Claims`] or an error come out. No I/O. `jsonwebtoken` does not read
//! them, because it rounds numeric dates.

use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::{Right, TokenError};

/// Largest difference that is accepted between the clock of a token's issuer and ours.
pub const LEEWAY: Duration = Duration::from_secs(5);
/// If an issuer's clock is ahead, its tokens are dated into the future, and `iat` shows by how
/// much. A difference up to this is accepted.
const SKEW_MAX: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Expected<'a> {
    pub(super) audience: Option<&'a str>,
    pub(super) issuer: Option<&'a str>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Claims {
    pub(super) sub: String,
    pub(super) feeds: Option<Vec<String>>,
    pub(super) right: Right,
    /// The recipients to whom the token may publish. Another issuer may use the name for another claim,
    /// so a claim that is no list of strings counts as absent.
    pub(super) publish: Option<Vec<String>>,
    pub(super) exp: Duration,
}

/// The claims that are read. A claim that occurs twice is an error, because readers would differ on
/// which of the two counts.
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
    #[serde(borrow)]
    publish: Option<&'a RawValue>,
}

/// RFC 7519 §4.1.3.
#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

impl Claims {
    pub(super) fn parse(
        json: &str,
        expected: Expected<'_>,
        now: Duration,
    ) -> Result<Self, TokenError> {
        let not_claims =
            TokenError::Refused("its claims are no JSON object, or a claim is there twice");
        let claims: Payload<'_> = object(json).ok_or(not_claims)?;
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
        // Another issuer may use these names for other claims, so only `true` counts.
        let is_true = |claim: Option<&RawValue>| claim.is_some_and(|claim| claim.get() == "true");
        let right = match (is_true(claims.broadcast), is_true(claims.shopbell_canary)) {
            (true, _) => Right::Broadcast,
            (false, true) => Right::Canary,
            (false, false) => Right::None,
        };
        Ok(Self {
            sub,
            feeds,
            right,
            publish: claims.publish.and_then(read),
            exp,
        })
    }
}

fn check_audience(claim: Option<&RawValue>, expected: Option<&str>) -> Result<(), TokenError> {
    let Some(expected) = expected else {
        return Ok(());
    };
    let claim = claim.ok_or(TokenError::Audience("aud is missing"))?;
    let is_named = match read(claim).ok_or(TokenError::Audience(
        "aud must be a string or a list of strings",
    ))? {
        Audience::One(name) => name == expected,
        Audience::Many(names) => names.iter().any(|name| name == expected),
    };
    if is_named {
        Ok(())
    } else {
        Err(TokenError::Audience("wrong audience"))
    }
}

fn check_issuer(claim: Option<&RawValue>, expected: Option<&str>) -> Result<(), TokenError> {
    let Some(expected) = expected else {
        return Ok(());
    };
    let claim = claim.ok_or(TokenError::Issuer("iss is missing"))?;
    let issuer: String = read(claim).ok_or(TokenError::Issuer("iss must be a string"))?;
    if issuer == expected {
        Ok(())
    } else {
        Err(TokenError::Issuer("wrong issuer"))
    }
}

/// Parses seconds since 1970, with or without a fraction (RFC 7519 §2). A number that `Duration`
/// cannot hold becomes `Duration::MAX`.
fn numeric_date(claim: &RawValue) -> Option<Duration> {
    let json = claim.get();
    // `f64` also parses `inf` and `NaN`.
    let is_number = json.starts_with(|c: char| c.is_ascii_digit() || c == '-');
    let seconds = json
        .parse::<f64>()
        .ok()
        .filter(|seconds| is_number && seconds.is_finite() && *seconds >= 0.0)?;
    Some(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
}

fn read<T: DeserializeOwned>(claim: &RawValue) -> Option<T> {
    serde_json::from_str(claim.get()).ok()
}

/// Parses a JSON object. serde would also accept a list for a struct.
pub(super) fn object<'a, T: Deserialize<'a>>(json: &'a str) -> Option<T> {
    json.trim_start()
        .starts_with('{')
        .then(|| serde_json::from_str(json).ok())?
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use proptest::prelude::*;

    use super::super::token::Token;
    use super::*;

    proptest! {
        #[test]
        fn any_token_is_accepted_or_refused(token in "[a-zA-Z0-9_.-]{0,64}|.*") {
            let _ = Token::parse(&token).map(|token| token.claims(SHOP, NOW));
        }

        #[test]
        fn any_dates_are_accepted_or_refused(exp in date(), nbf in date(), iat in date(), now in any::<u64>()) {
            let token = token(&format!(r#"{{"sub":"m","exp":{exp},"nbf":{nbf},"iat":{iat}}}"#));
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

    fn token(payload: &str) -> String {
        let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256"}"#);
        format!("{header}.{}.c2lnbmF0dXJl", URL_SAFE_NO_PAD.encode(payload))
    }

    fn claims_for(payload: &str, expected: Expected<'_>) -> Result<Claims, TokenError> {
        Token::parse(&token(payload)).unwrap().claims(expected, NOW)
    }

    fn beside(more: &str) -> Result<Claims, TokenError> {
        claims_for(&format!(r#"{{"sub":"m","exp":1800000600,{more}}}"#), ANY)
    }

    #[track_caller]
    fn assert_refused(result: Result<Claims, TokenError>, named: &str) {
        let error = result.unwrap_err();
        let is_final = error.retry_after().is_none() && error != TokenError::Expired;
        assert!(is_final && error.to_string().contains(named), "{error}");
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
            assert_refused(
                claims_for(&format!(r#"{{"sub":"m","exp":{exp}}}"#), ANY),
                "exp must be",
            );
        }
        for word in ["NaN", "inf", "Infinity", "+1800000600"] {
            assert_refused(
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
            let result = claims_for(&format!(r#"{{"sub":"m","exp":{exp}}}"#), ANY);
            assert_eq!(result == Err(TokenError::Expired), is_expired, "{exp}");
        }
    }

    #[test]
    fn a_token_that_is_not_valid_yet_has_the_time_to_wait() {
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
        assert_refused(beside(r#""nbf":-1"#), "nbf must be");
        assert_refused(beside(r#""nbf":"1800000000""#), "nbf must be");
        assert!(beside(r#""nbf":null"#).is_ok());
    }

    #[test]
    fn an_issuers_clock_is_taken_from_its_iat() {
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
        assert_refused(claims_for(r#"{"exp":1800000600}"#, ANY), "sub is missing");
        for sub in ["7", "[]", r#"["m"]"#, r#""\ud800""#, "true"] {
            assert_refused(
                claims_for(&format!(r#"{{"sub":{sub},"exp":1800000600}}"#), ANY),
                "sub must be",
            );
        }
        for feeds in [r#""a""#, "[1]", "{}", "7"] {
            assert_refused(beside(&format!(r#""feeds":{feeds}"#)), "feeds must be");
        }
        assert_eq!(beside(r#""feeds":null"#).unwrap().feeds, None);
        assert_eq!(
            beside(r#""feeds":["a","b"]"#).unwrap().feeds.unwrap(),
            ["a", "b"]
        );
    }

    #[test]
    fn a_claim_may_not_occur_twice() {
        assert_refused(
            claims_for(r#"{"sub":"m","sub":"other","exp":1800000600}"#, ANY),
            "twice",
        );
        assert_refused(beside(r#""exp":1"#), "twice");
        assert!(beside(r#""other":1,"other":2"#).is_ok());
        for payload in ["", "[]", r#"["m",1800000600]"#, "7", "{", "x\u{9c}"] {
            assert_refused(claims_for(payload, ANY), "no JSON object");
        }
    }

    #[test]
    fn audience_and_issuer_are_required_if_they_are_configured() {
        let result =
            |more: &str| claims_for(&format!(r#"{{"sub":"m","exp":1800000600{more}}}"#), SHOP);
        for aud in [r#""shop""#, r#"["shop"]"#, r#"["other","shop"]"#] {
            assert!(
                result(&format!(r#","iss":"id","aud":{aud}"#)).is_ok(),
                "{aud}"
            );
        }
        for aud in [r#""other""#, r#"["other"]"#, "[]", r#""""#, r#""Shop""#] {
            assert_refused(
                result(&format!(r#","iss":"id","aud":{aud}"#)),
                "wrong audience",
            );
        }
        for aud in ["7", r#"["shop",7]"#, "{}"] {
            assert_refused(
                result(&format!(r#","iss":"id","aud":{aud}"#)),
                "aud must be",
            );
        }
        assert_refused(result(r#","iss":"id""#), "aud is missing");
        assert_refused(result(r#","iss":"id","aud":null"#), "aud is missing");
        assert_refused(result(r#","aud":"shop""#), "iss is missing");
        assert_refused(result(r#","aud":"shop","iss":"other""#), "wrong issuer");
        assert_refused(result(r#","aud":"shop","iss":["id"]"#), "iss must be");
        assert!(
            beside(r#""aud":["x",7],"iss":7"#).is_ok(),
            "neither is expected"
        );
    }
}
