//! The form of a token: a signed JWT (RFC 7519, RFC 7515). No I/O.
//!
//! `jsonwebtoken` does not read it, because it accepts critical extensions that it does not know.
//! A key or a URL of a key in the header (`jwk`, `jku`, `x5u`, `x5c`) is ignored: only the
//! configuration names keys (RFC 8725 §3.10).

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny};

use super::TokenError;
use super::claims::{Claims, Expected, object};
use crate::config::PublicAlgorithm;

const TOKEN_BYTES_MAX: usize = 8 * 1024;
/// The types of tokens that grant access (RFC 7519 §5.1, RFC 9068 §2.1). An issuer signs other
/// types with the same keys, such as logout tokens (RFC 8725 §3.11).
const TYPES: [&str; 2] = ["jwt", "at+jwt"];

/// The algorithm that a token names. A key checks only tokens of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Algorithm {
    Hs256,
    Public(PublicAlgorithm),
}

/// A token in its form. Its signature is not checked yet.
#[derive(Debug)]
pub(super) struct Token<'a> {
    pub(super) algorithm: Algorithm,
    /// The name of its key, as the token states it. It is only compared.
    pub(super) kid: Option<String>,
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
    kid: Option<String>,
    typ: Option<String>,
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
        let algorithm = match header.alg.as_str() {
            "HS256" => Algorithm::Hs256,
            "RS256" => Algorithm::Public(PublicAlgorithm::Rs256),
            "ES256" => Algorithm::Public(PublicAlgorithm::Es256),
            // RFC 9864 §2.2 renames it.
            "EdDSA" | "Ed25519" => Algorithm::Public(PublicAlgorithm::EdDsa),
            _ => return Err(TokenError::Algorithm),
        };
        if !header.typ.as_deref().is_none_or(grants_access) {
            return Err(TokenError::Refused("its typ is neither JWT nor at+jwt"));
        }
        // An unknown critical extension makes the token invalid (RFC 7515 §4.1.11, RFC 7797 §6).
        if header.crit || header.b64 {
            return Err(TokenError::Refused(
                "its header has crit or b64, which are not supported",
            ));
        }
        Ok(Self {
            algorithm,
            kid: header.kid,
            signed,
            signature,
            payload,
        })
    }

    /// The bytes of the signature; empty if it is no base64url.
    pub(super) fn signature_bytes(&self) -> Vec<u8> {
        URL_SAFE_NO_PAD.decode(self.signature).unwrap_or_default()
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

/// `application/` may be left out, and case does not matter (RFC 7515 §4.1.9).
fn grants_access(typ: &str) -> bool {
    let typ = typ.to_ascii_lowercase();
    TYPES.contains(&typ.strip_prefix("application/").unwrap_or(&typ))
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

    fn parsed(header: &str) -> Result<Algorithm, TokenError> {
        Token::parse(&token(header, "{}")).map(|token| token.algorithm)
    }

    #[test]
    fn a_header_names_an_algorithm_that_we_know() {
        for (alg, algorithm) in [
            ("HS256", Algorithm::Hs256),
            ("RS256", Algorithm::Public(PublicAlgorithm::Rs256)),
            ("ES256", Algorithm::Public(PublicAlgorithm::Es256)),
            ("EdDSA", Algorithm::Public(PublicAlgorithm::EdDsa)),
            ("Ed25519", Algorithm::Public(PublicAlgorithm::EdDsa)),
        ] {
            assert_eq!(parsed(&format!(r#"{{"alg":"{alg}"}}"#)), Ok(algorithm));
        }
        for alg in [
            "none", "None", "NONE", "nOnE", "", "hs256", "HS384", "HS512", "RS384", "PS256",
            "ES384", "ES256K", "Ed448", "eddsa", "RSA-OAEP", "dir", "HS256 ",
        ] {
            let refused = parsed(&format!(r#"{{"alg":"{alg}"}}"#));
            assert_eq!(refused, Err(TokenError::Algorithm), "{alg}");
        }
    }

    #[test]
    fn a_header_has_its_types_each_name_once_and_no_critical_extension() {
        for good in [
            r#"{"typ":"at+jwt","kid":"2026","cty":"x","zip":"DEF","jku":"https://x.example","alg":"HS256"}"#,
            r#"{"alg":"HS256","typ":"application/at+JWT"}"#,
            r#"{"alg":"HS256","typ":"jwt"}"#,
            r#"{"alg":"HS256","kid":""}"#,
            r#"{"alg":"HS256","kid":"' or 1=1; --/../../\u0000"}"#,
            r#" {"alg":"HS256"}"#,
        ] {
            assert_eq!(parsed(good), Ok(Algorithm::Hs256), "{good}");
        }
        for bad in [
            r#"{"alg":["HS256"]}"#,
            r#"{"alg":null}"#,
            r#"{"alg":256}"#,
            r#"{"alg":"HS256","alg":"HS256"}"#,
            r#"{"alg":"none","alg":"HS256"}"#,
            r#"{"alg":"HS256","kid":"a","kid":"a"}"#,
            r#"{"alg":"HS256","kid":7}"#,
            r#"{"alg":"HS256","kid":["a"]}"#,
            r#"{"alg":"HS256","typ":"JWT","typ":"JWT"}"#,
            r#"{"alg":"HS256","typ":["JWT"]}"#,
            r#"{"alg":"HS256","typ":"logout+jwt"}"#,
            r#"{"alg":"HS256","typ":"dpop+jwt"}"#,
            r#"{"alg":"HS256","typ":"secevent+jwt"}"#,
            r#"{"alg":"HS256","typ":"JWE"}"#,
            r#"{"alg":"HS256","typ":""}"#,
            r#"{"alg":"HS256","crit":["exp"],"exp":1}"#,
            r#"{"alg":"HS256","crit":[]}"#,
            r#"{"alg":"HS256","crit":null}"#,
            r#"{"alg":"HS256","b64":false}"#,
            r#"["HS256"]"#,
            "{}",
            "HS256",
            "",
            "{",
        ] {
            assert!(matches!(parsed(bad), Err(TokenError::Refused(_))), "{bad}");
        }
    }

    #[test]
    fn a_token_has_three_parts_in_base64url() {
        let good = token(r#"{"alg":"HS256"}"#, "{}");
        assert!(Token::parse(&good).is_ok());
        let padded = good.replacen('.', "=.", 1);
        for bad in [
            "",
            "a",
            "a.b",
            "..",
            "...",
            "a.b.c.d",
            "a.b.c.d.e",
            &format!("{good}.x"),
            &format!(".{good}"),
            &format!(" {good}"),
            &good.replacen("ey", "e y", 1),
            &good.replacen("ey", "e+", 1),
            &padded,
            &".".repeat(TOKEN_BYTES_MAX),
            &"a".repeat(TOKEN_BYTES_MAX + 1),
            &format!("{good}{}", "a".repeat(TOKEN_BYTES_MAX)),
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
