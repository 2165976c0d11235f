//! The form of a token: a JWT with an HS256 header (RFC 7519, RFC 7515). No I/O.
//!
//! `jsonwebtoken` does not read it, because it accepts critical extensions that it does not know.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny};

use super::TokenError;
use super::claims::{Claims, Expected, object};

const TOKEN_BYTES_MAX: usize = 8 * 1024;

/// A token in the form of HS256. Its signature is not checked yet.
#[derive(Debug)]
pub(super) struct Token<'a> {
    /// The header and the payload, which the signature covers.
    pub(super) signed: &'a str,
    /// The signature, in base64url.
    pub(super) signature: &'a str,
    payload: &'a str,
}

/// The header parameters that are read. Others are ignored (RFC 7515 §4).
#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default, deserialize_with = "is_there")]
    crit: bool,
    #[serde(default, deserialize_with = "is_there")]
    b64: bool,
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
        // An unknown critical extension makes the token invalid (RFC 7515 §4.1.11, RFC 7797 §6).
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
        Claims::parse(&json, expected, now)
    }
}

fn decoded(part: &str) -> Option<String> {
    String::from_utf8(URL_SAFE_NO_PAD.decode(part).ok()?).ok()
}

fn is_there<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(deserializer).map(|_| true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(header: &str, payload: &str) -> String {
        format!(
            "{}.{}.c2lnbmF0dXJl",
            URL_SAFE_NO_PAD.encode(header),
            URL_SAFE_NO_PAD.encode(payload)
        )
    }

    #[test]
    fn a_header_is_hs256_and_has_no_critical_extension() {
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
    fn a_token_may_have_the_greatest_size() {
        let short = token(r#"{"alg":"HS256"}"#, "{}");
        let of = |bytes: usize| format!("{short}{}", "a".repeat(bytes - short.len()));
        assert!(Token::parse(&of(TOKEN_BYTES_MAX)).is_ok());
        assert_eq!(
            Token::parse(&of(TOKEN_BYTES_MAX + 1)).err(),
            Some(TokenError::Refused("longer than 8 KiB"))
        );
    }
}
