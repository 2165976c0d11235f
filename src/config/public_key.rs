//! Public keys that check tokens. The type of a key decides its algorithm, so a token never chooses it (RFC 8725 §3.1).

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rsa::PublicEncryptingKey;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256,
    RsaPublicKeyComponents,
};
use rustls_pki_types::pem::{PemObject, SectionKind};

/// Most keys in one file. A token without `kid` is checked with all keys of its algorithm.
const KEYS_MAX: usize = 16;
/// The begin of a PEM section (RFC 7468 §2).
const PEM_BEGIN: &str = "-----BEGIN ";
/// Bytes of an Ed25519 key (RFC 8032 §5.1.5), and of a coordinate of P-256 (RFC 7518 §6.2.1.2).
const KEY_BYTES: usize = 32;
/// The object identifier `rsaEncryption` in DER (RFC 8017 §A.1), and the greatest offset at which it
/// begins, after the headers of two sequences of less than 64 KiB.
const RSA_ENCRYPTION: [u8; 11] = [6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1];
const RSA_ENCRYPTION_AT_MAX: usize = 8 + 1;
/// The begin of a point without compression (SEC 1 §2.3.3).
const UNCOMPRESSED: u8 = 4;

/// The algorithm of a public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PublicAlgorithm {
    /// RSA with at least 2048 bits, PKCS #1 v1.5 and SHA-256.
    Rs256,
    /// ECDSA with P-256 and SHA-256.
    Es256,
    /// Ed25519.
    EdDsa,
}

impl fmt::Display for PublicAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rs256 => "RS256",
            Self::Es256 => "ES256",
            Self::EdDsa => "EdDSA",
        })
    }
}

/// A public key with its one algorithm.
#[derive(Clone)]
pub struct PublicKey {
    algorithm: PublicAlgorithm,
    encoded: Arc<[u8]>,
    parsed: Arc<ParsedPublicKey>,
}

impl PartialEq for PublicKey {
    fn eq(&self, other: &Self) -> bool {
        self.algorithm == other.algorithm && self.encoded == other.encoded
    }
}

impl Eq for PublicKey {}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.algorithm)
    }
}

impl PublicKey {
    /// The keys of a PEM text. An error follows the name of the text, and repeats no part of it.
    pub fn of_pem(text: &str) -> Result<Vec<Self>, String> {
        let sections = text.matches(PEM_BEGIN).count();
        if sections == 0 {
            return Err("must be one or more public keys in PEM, which begin with `-----BEGIN PUBLIC KEY-----`".into());
        }
        if sections > KEYS_MAX {
            return Err(format!(
                "has {sections} PEM sections; {KEYS_MAX} keys are allowed"
            ));
        }
        let keys = <(SectionKind, Vec<u8>)>::pem_slice_iter(text.as_bytes())
            .map(|section| {
                let (kind, der) =
                    section.map_err(|_| "has a PEM section that is not complete".to_owned())?;
                of_section(kind, &der)
            })
            .collect::<Result<Vec<_>, _>>()?;
        // The parser skips sections with labels that it does not know.
        if keys.len() != sections {
            return Err(
                "has a PEM section that is no public key: `openssl pkey -pubin` converts other forms to `PUBLIC KEY`".into(),
            );
        }
        Ok(keys)
    }

    /// An RSA key (RFC 7518 §6.3.1).
    pub fn rsa(modulus: &[u8], exponent: &[u8]) -> Result<Self, String> {
        let components = RsaPublicKeyComponents {
            n: without_leading_zeros(modulus),
            e: without_leading_zeros(exponent),
        };
        let key: PublicEncryptingKey = components.try_into().map_err(|_| weak_rsa())?;
        let der = key.as_der().map_err(|_| weak_rsa())?;
        Self::of_spki(der.as_ref())
    }

    /// A P-256 key (RFC 7518 §6.2.1).
    pub fn p256(x: &[u8], y: &[u8]) -> Result<Self, String> {
        if x.len() != KEY_BYTES || y.len() != KEY_BYTES {
            return Err("has coordinates that do not have 32 bytes".into());
        }
        let point = [&[UNCOMPRESSED], x, y].concat();
        let parsed = ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &point);
        let parsed = parsed.map_err(|_| "is no point of P-256")?;
        Ok(Self::new(PublicAlgorithm::Es256, &point, parsed))
    }

    /// An Ed25519 key (RFC 8037 §2).
    pub fn ed25519(x: &[u8]) -> Result<Self, String> {
        let parsed = ParsedPublicKey::new(&ED25519, x)
            .ok()
            .filter(|_| x.len() == KEY_BYTES);
        let parsed = parsed.ok_or("is no Ed25519 key of 32 bytes")?;
        Ok(Self::new(PublicAlgorithm::EdDsa, x, parsed))
    }

    /// The key of a `SubjectPublicKeyInfo` (RFC 5280 §4.1.2.7).
    fn of_spki(der: &[u8]) -> Result<Self, String> {
        if let Ok(parsed) = ParsedPublicKey::new(&ED25519, der) {
            return Ok(Self::new(PublicAlgorithm::EdDsa, der, parsed));
        }
        if let Ok(parsed) = ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, der) {
            return Ok(Self::new(PublicAlgorithm::Es256, der, parsed));
        }
        // Without this check, a key that is only for RSASSA-PSS would parse too.
        let is_rsa = der
            .windows(RSA_ENCRYPTION.len())
            .take(RSA_ENCRYPTION_AT_MAX);
        let is_rsa = is_rsa.into_iter().any(|bytes| bytes == RSA_ENCRYPTION);
        let parsed = ParsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, der);
        let Some(parsed) = parsed.ok().filter(|_| is_rsa) else {
            return Err("has a key that is neither RSA nor P-256 nor Ed25519".into());
        };
        // Parsing a key to verify with it does not check its size.
        PublicEncryptingKey::from_der(der).map_err(|_| weak_rsa())?;
        Ok(Self::new(PublicAlgorithm::Rs256, der, parsed))
    }

    fn new(algorithm: PublicAlgorithm, encoded: &[u8], parsed: ParsedPublicKey) -> Self {
        Self {
            algorithm,
            encoded: encoded.into(),
            parsed: Arc::new(parsed),
        }
    }

    /// The only algorithm that the key checks.
    pub fn algorithm(&self) -> PublicAlgorithm {
        self.algorithm
    }

    /// Whether the key signed this text.
    pub fn has_signed(&self, text: &str, signature: &[u8]) -> bool {
        self.parsed.verify_sig(text.as_bytes(), signature).is_ok()
    }
}

fn of_section(kind: SectionKind, der: &[u8]) -> Result<PublicKey, String> {
    match kind {
        SectionKind::PublicKey => PublicKey::of_spki(der),
        SectionKind::Certificate => {
            Err("has a certificate: use its public key, which `openssl x509 -pubkey -noout` prints".into())
        }
        SectionKind::PrivateKey | SectionKind::RsaPrivateKey | SectionKind::EcPrivateKey => {
            Err("has a private key, which Shopbell must not have: use the public key, which `openssl pkey -pubout` prints".into())
        }
        _ => Err("has a PEM section that is no public key".into()),
    }
}

fn weak_rsa() -> String {
    "has an RSA key that does not have 2048 to 8192 bits".into()
}

/// Some issuers write the modulus with a sign byte (RFC 7518 §2, Base64urlUInt, forbids it).
fn without_leading_zeros(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    &number[zeros..]
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests;
