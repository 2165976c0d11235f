//! The key set of the issuer: a JSON Web Key Set (RFC 7517) comes in, keys or an error come out.
//! No I/O.

pub(super) mod cache;
pub mod fetch;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny};
use serde_json::value::RawValue;

use super::claims::object;
use crate::config::{PublicAlgorithm, PublicKey};

/// Most keys of a set. Each token without `kid` is checked with all keys of its algorithm.
const KEYS_MAX: usize = 32;
/// Most elements of a set, usable or not.
const ELEMENTS_MAX: usize = 128;
/// Longest `kid` in bytes.
const KID_BYTES_MAX: usize = 256;

/// The usable keys of a set.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct KeySet {
    keys: Vec<NamedKey>,
    /// The keys that are not usable, each with its reason.
    pub unusable: Vec<String>,
}

#[derive(Debug, PartialEq, Eq)]
struct NamedKey {
    kid: Option<String>,
    key: PublicKey,
}

#[derive(Deserialize)]
struct Set<'a> {
    #[serde(borrow)]
    keys: Vec<&'a RawValue>,
}

/// The members of a key that are read (RFC 7517 §4, RFC 7518 §6, RFC 8037 §2).
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    #[serde(rename = "use")]
    purpose: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    kid: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
    #[serde(default, deserialize_with = "is_there")]
    d: bool,
}

impl KeySet {
    /// Parses a set. A key that is not usable is left out, because an issuer may add kinds of keys.
    /// The result may have no usable key. A set without any element is an error, because it is more
    /// likely a fault of the issuer than the end of all its keys.
    pub fn parse(json: &str) -> Result<Self, String> {
        let set: Set<'_> = object(json).ok_or("it is no JSON Web Key Set")?;
        if set.keys.is_empty() {
            return Err("it is empty".into());
        }
        if set.keys.len() > ELEMENTS_MAX {
            return Err(format!("it has more than {ELEMENTS_MAX} keys"));
        }
        let mut parsed = Self::default();
        for (at, jwk) in set.keys.iter().enumerate() {
            let named = match parsed.keys.len() {
                KEYS_MAX => Err(format!("more than {KEYS_MAX} keys are usable")),
                _ => named_key(jwk.get()),
            };
            match named {
                Ok(key) => parsed.keys.push(key),
                Err(problem) => parsed.unusable.push(format!("key {at}: {problem}")),
            }
        }
        Ok(parsed)
    }

    /// Number of usable keys.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is no usable key.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The names and algorithms of the keys.
    pub fn names(&self) -> Vec<String> {
        let name = |named: &NamedKey| match &named.kid {
            Some(kid) => format!("{kid} ({})", named.key.algorithm()),
            None => format!("a key without kid ({})", named.key.algorithm()),
        };
        self.keys.iter().map(name).collect()
    }

    /// Whether the set has a key of this name.
    pub(super) fn names_key(&self, kid: &str) -> bool {
        self.keys
            .iter()
            .any(|named| named.kid.as_deref() == Some(kid))
    }

    /// The keys that may have signed a token: those of its algorithm and its `kid`. If either has
    /// no `kid`, the algorithm decides.
    pub(super) fn candidates(
        &self,
        algorithm: PublicAlgorithm,
        kid: Option<&str>,
    ) -> impl Iterator<Item = &PublicKey> {
        let may_be = move |named: &&NamedKey| match (&named.kid, kid) {
            (Some(name), Some(kid)) => name == kid,
            _ => true,
        };
        let keys = self.keys.iter().filter(may_be).map(|named| &named.key);
        keys.filter(move |key| key.algorithm() == algorithm)
    }
}

/// Whether a key can have this name.
pub(super) fn is_kid(kid: &str) -> bool {
    kid.len() <= KID_BYTES_MAX && !kid.contains(char::is_control)
}

fn named_key(json: &str) -> Result<NamedKey, String> {
    let jwk: Jwk = object(json).ok_or("it is no JSON Web Key")?;
    if jwk.d {
        return Err("it has a private part, so the key is not secret any more".into());
    }
    if jwk
        .purpose
        .as_deref()
        .is_some_and(|purpose| purpose != "sig")
    {
        return Err("its use is not sig".into());
    }
    let verifies = |operations: &Vec<String>| operations.iter().any(|one| one == "verify");
    if !jwk.key_ops.as_ref().is_none_or(verifies) {
        return Err("its key_ops do not have verify".into());
    }
    if !jwk.kid.as_deref().is_none_or(is_kid) {
        return Err(format!(
            "its kid is longer than {KID_BYTES_MAX} bytes or has control characters"
        ));
    }
    let key = key(&jwk)?;
    let fits = |alg: &str| match key.algorithm() {
        PublicAlgorithm::Rs256 => alg == "RS256",
        PublicAlgorithm::Es256 => alg == "ES256",
        PublicAlgorithm::EdDsa => alg == "EdDSA" || alg == "Ed25519",
    };
    if !jwk.alg.as_deref().is_none_or(fits) {
        return Err(format!("its alg is not {}", key.algorithm()));
    }
    Ok(NamedKey { kid: jwk.kid, key })
}

fn key(jwk: &Jwk) -> Result<PublicKey, String> {
    let bytes = |member: &Option<String>, name: &str| {
        let decoded = member
            .as_ref()
            .and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
        decoded.ok_or_else(|| format!("its {name} is missing or no base64url"))
    };
    match (jwk.kty.as_str(), jwk.crv.as_deref()) {
        ("RSA", _) => PublicKey::rsa(&bytes(&jwk.n, "n")?, &bytes(&jwk.e, "e")?),
        ("EC", Some("P-256")) => PublicKey::p256(&bytes(&jwk.x, "x")?, &bytes(&jwk.y, "y")?),
        ("OKP", Some("Ed25519")) => PublicKey::ed25519(&bytes(&jwk.x, "x")?),
        // A symmetric key in a published set is known to everybody.
        _ => Err("its kty and crv are neither RSA nor P-256 nor Ed25519".into()),
    }
}

fn is_there<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(deserializer).map(|_| true)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// RFC 7517 §A.1, RFC 8037 §A.2.
    fn p256() -> Value {
        let (x, y) = (
            "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
            "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM",
        );
        json!({"kty": "EC", "crv": "P-256", "x": x, "y": y})
    }

    fn ed25519() -> Value {
        json!({"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"})
    }

    fn rsa(bits: usize) -> Value {
        let modulus = URL_SAFE_NO_PAD.encode(vec![0xc5; bits / 8]);
        json!({"kty": "RSA", "n": modulus, "e": "AQAB"})
    }

    fn with(mut key: Value, name: &str, value: impl Into<Value>) -> Value {
        key[name] = value.into();
        key
    }

    fn parse(keys: &[Value]) -> Result<KeySet, String> {
        KeySet::parse(&json!({"keys": keys, "more": 1}).to_string())
    }

    #[test]
    fn a_key_is_found_by_its_kid_and_its_algorithm() {
        let set = parse(&[
            with(rsa(2048), "kid", "a"),
            with(p256(), "kid", "b"),
            with(p256(), "kid", "a"),
            ed25519(),
        ])
        .unwrap();
        let found = |algorithm, kid| set.candidates(algorithm, kid).count();
        assert_eq!(found(PublicAlgorithm::Rs256, Some("a")), 1);
        assert_eq!(found(PublicAlgorithm::Rs256, Some("b")), 0);
        assert_eq!(found(PublicAlgorithm::Rs256, None), 1);
        assert_eq!(found(PublicAlgorithm::Es256, None), 2);
        assert_eq!(found(PublicAlgorithm::Es256, Some("a")), 1);
        assert_eq!(
            found(PublicAlgorithm::EdDsa, Some("a")),
            1,
            "its key has no name"
        );
        for unknown in ["", "A", "a ", "' or 1=1 --", "../a", "a\0"] {
            assert_eq!(found(PublicAlgorithm::Es256, Some(unknown)), 0, "{unknown}");
            assert!(!set.names_key(unknown));
        }
    }

    #[test]
    fn a_key_for_another_purpose_is_left_out() {
        for good in [
            with(p256(), "use", "sig"),
            with(p256(), "alg", "ES256"),
            with(ed25519(), "alg", "EdDSA"),
            with(ed25519(), "alg", "Ed25519"),
            with(rsa(3072), "alg", "RS256"),
            with(p256(), "key_ops", json!(["sign", "verify"])),
            with(p256(), "x5u", "https://attacker.example/"),
            with(p256(), "kid", "k".repeat(KID_BYTES_MAX)),
        ] {
            assert_eq!(
                parse(std::slice::from_ref(&good)).map(|set| set.len()),
                Ok(1),
                "{good}"
            );
        }
        for bad in [
            with(p256(), "use", "enc"),
            with(p256(), "use", 7),
            with(p256(), "key_ops", json!(["encrypt"])),
            with(p256(), "key_ops", json!([])),
            with(p256(), "alg", "ES384"),
            with(p256(), "alg", "HS256"),
            with(rsa(2048), "alg", "RS512"),
            with(rsa(2048), "alg", "RSA-OAEP"),
            with(p256(), "crv", "P-384"),
            with(p256(), "kty", "oct"),
            json!({"kty": "oct", "k": URL_SAFE_NO_PAD.encode([7; 32]), "alg": "HS256"}),
            with(p256(), "y", "AAAA"),
            with(p256(), "y", "not base64!"),
            with(p256(), "d", "jpsQnnGQmL-YBIffH1136cspYG6-0iY7X1fCE9-E9LI"),
            with(p256(), "kid", "k".repeat(KID_BYTES_MAX + 1)),
            with(p256(), "kid", "a\nb"),
            with(p256(), "kid", 7),
            rsa(1024),
            rsa(2040),
            with(rsa(2048), "e", "AQ"),
            with(rsa(2048), "n", ""),
            json!({"kty": "RSA", "n": null}),
            json!("P-256"),
            json!([]),
            Value::Null,
        ] {
            let alone = parse(std::slice::from_ref(&bad)).unwrap();
            assert_eq!((alone.len(), alone.unusable.len()), (0, 1), "{bad}");
            let set = parse(&[bad.clone(), ed25519()]).unwrap();
            assert_eq!((set.len(), set.unusable.len()), (1, 1), "{bad}");
        }
    }

    #[test]
    fn an_answer_that_is_no_set_or_an_empty_one_is_refused() {
        for answer in [
            "",
            "<html></html>",
            "{}",
            "[]",
            r#"{"keys":{}}"#,
            r#"{"keys":[]}"#,
            r#"{"keys":null}"#,
            r#"{"error":"not found"}"#,
            r#"{"keys":[],"keys":[]}"#,
        ] {
            assert!(KeySet::parse(answer).is_err(), "{answer}");
        }
        let duplicate = p256().to_string().replacen('{', r#"{"kty":"EC","#, 1);
        let set = KeySet::parse(&format!(r#"{{"keys":[{duplicate}]}}"#)).unwrap();
        assert!(set.is_empty());
    }

    #[test]
    fn the_number_of_keys_is_bounded() {
        let set = parse(&vec![p256(); KEYS_MAX + 3]).unwrap();
        assert_eq!((set.len(), set.unusable.len()), (KEYS_MAX, 3));
        let set = parse(&vec![Value::Null; ELEMENTS_MAX]).unwrap();
        assert_eq!((set.len(), set.unusable.len()), (0, ELEMENTS_MAX));
        assert!(parse(&vec![Value::Null; ELEMENTS_MAX + 1]).is_err());
    }
}
