//! Keys of OpenSSL 3.0, good and bad.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair,
};

use super::*;

const RSA: &str = "\
-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAooZarZa+ZqceKqqHm4We
Dw1/E0fTtyh3HOTFBnOylAulO+8GQOfsj1AonkBrzoFrgKU1fAWL0c0VEXJu2qnz
PUOwc3avzTvLyBijlYIJBIKB723C6oQRk+g9BEnOkAqLXAsdfA1dHzz/4y1H/XfB
ZKNp+XO6x9L7R9BUZ7bNj2ViwU7ruK8BPr7/LkFUr01VG/vC4StPKEj8BGA1vpw4
Ph17AzIjZlw3D440xxjbKeH0OaY5Nk5tAAE0IheimsYC6/JBQ/HpIDSJFudV25xP
ZSXDULAUm+dAIzVjS8tVirPjX+tNKlZ0jDtx9xwwiowlbXBImXLPaFT8xSiZk8HR
QQIDAQAB
-----END PUBLIC KEY-----
";

const P256: &str = "\
-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEj64sNrsiapDnJAxbSm9e57G/n4cf
xs2S4jpkdoz4TqN4GWbJnw38+uD7D7ixwy2Fw1yzrTo6VHSgdbdzoMSKDA==
-----END PUBLIC KEY-----
";

const ED25519: &str = "\
-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAAywQCKVOYkRFWHwOc5cNCv6xa5n3OxQODUPnF8iwhhE=
-----END PUBLIC KEY-----
";

/// Keys that cannot check tokens, each with a part of its error.
const UNUSABLE: [(&str, &str); 8] = [
    (
        "\
-----BEGIN PUBLIC KEY-----
MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDPyIZsYAmJGZu8uBDwozjp/a0t
2uJGosn9jRnf+RWqLnmKGSq/umgFRYen7LxV5ym5qpzSnAFJZiUEKkFIsq9DVtOH
oe/KwTitwRdxCtwX8b9qe+hxrQzWJV30eDVVHFDSzXwR86XA4Su84GPUwJGJVDiK
c7xVrBuJXT66AaacpQIDAQAB
-----END PUBLIC KEY-----
",
        "2048 to 8192 bits",
    ),
    (
        "\
-----BEGIN PUBLIC KEY-----
MHYwEAYHKoZIzj0CAQYFK4EEACIDYgAE+8hDO6VEX0+JBKc0CFsvAkZ6JQ9fqnI2
q1FIKg/4fBg1iy6iqK3Xzr2bJJZ+ba9pKfozTg1zbsb9E31qsPjCoa7rJQdlkzCQ
NIzd3JwdpjVPJVVj6RsjsX2EleWVGr7N
-----END PUBLIC KEY-----
",
        "neither RSA",
    ),
    (
        "\
-----BEGIN PUBLIC KEY-----
MFYwEAYHKoZIzj0CAQYFK4EEAAoDQgAEN4gfBbt6AnN4+t+6ma9v6QwC6ovn4jRE
WYRVdw71p9MMR/2q/JnpN2DuHUqq/8hYofq7BRdmBiN8U/VOzugUUA==
-----END PUBLIC KEY-----
",
        "neither RSA",
    ),
    (
        "\
-----BEGIN PUBLIC KEY-----
MEMwBQYDK2VxAzoAU9nOrMeLSk1GhmYyju1PVnndQ0uzpUctXFXCbyMzvuoFb/8Z
0Se26jJ7f89BODu2cgqEZXSHLYkA
-----END PUBLIC KEY-----
",
        "neither RSA",
    ),
    (
        "\
-----BEGIN PUBLIC KEY-----
MIIBIDALBgkqhkiG9w0BAQoDggEPADCCAQoCggEBALvNVv9wJxK7se6mmtSNk5NJ
6e7Y9Mo+uCkZDoyRmtO3NRBWv3stS5lQA++aqUL4h15Gx/ewzCygp0FeIoN5PXVp
IWYUVjPJgXEr1ArYdAl5akJnp/B0oq8ZetR1uj6BKDcRJJ9H550KMuGxkSlF/9li
n/3mRF3VSWp6W0GpfI/W0Ymrh0ByNTZx59wNKwUN7XBIJOEy/AQ03QRTjmI+LoKF
gDkuDUvd7Ah7OPk+iF8Qa8LqVs2ztQImTBPlZBIBdkfjW/3cNpT0FtwW4cQZpENs
jW/wIwj8M5UkSU95+g0KJP9zvKMBpttaFU/mZv7M7BRRHGhUzmS5MQql3mUUkfkC
AwEAAQ==
-----END PUBLIC KEY-----
",
        "neither RSA",
    ),
    (
        "\
-----BEGIN RSA PUBLIC KEY-----
MIIBCgKCAQEAooZarZa+ZqceKqqHm4WeDw1/E0fTtyh3HOTFBnOylAulO+8GQOfs
j1AonkBrzoFrgKU1fAWL0c0VEXJu2qnzPUOwc3avzTvLyBijlYIJBIKB723C6oQR
k+g9BEnOkAqLXAsdfA1dHzz/4y1H/XfBZKNp+XO6x9L7R9BUZ7bNj2ViwU7ruK8B
Pr7/LkFUr01VG/vC4StPKEj8BGA1vpw4Ph17AzIjZlw3D440xxjbKeH0OaY5Nk5t
AAE0IheimsYC6/JBQ/HpIDSJFudV25xPZSXDULAUm+dAIzVjS8tVirPjX+tNKlZ0
jDtx9xwwiowlbXBImXLPaFT8xSiZk8HRQQIDAQAB
-----END RSA PUBLIC KEY-----
",
        "no public key",
    ),
    (
        "\
-----BEGIN PRIVATE KEY-----
AAAA
-----END PRIVATE KEY-----
",
        "a private key",
    ),
    (
        "\
-----BEGIN CERTIFICATE-----
AAAA
-----END CERTIFICATE-----
",
        "a certificate",
    ),
];

fn algorithms(pem: &str) -> Vec<PublicAlgorithm> {
    let keys = PublicKey::of_pem(pem).unwrap();
    keys.iter().map(PublicKey::algorithm).collect()
}

#[test]
fn the_type_of_a_key_decides_its_algorithm() {
    let all = format!("{RSA}a comment\n{P256}\r\n{ED25519}");
    assert_eq!(
        algorithms(&all),
        [
            PublicAlgorithm::Rs256,
            PublicAlgorithm::Es256,
            PublicAlgorithm::EdDsa
        ]
    );
    assert_eq!(
        PublicKey::of_pem(RSA),
        PublicKey::of_pem(&RSA.replace('\n', "\r\n"))
    );
    assert_ne!(PublicKey::of_pem(P256), PublicKey::of_pem(ED25519));
}

#[test]
fn other_and_weak_keys_are_refused_with_their_reason() {
    for (pem, reason) in UNUSABLE {
        for text in [pem.to_owned(), format!("{P256}{pem}")] {
            let refused = PublicKey::of_pem(&text).unwrap_err();
            assert!(refused.contains(reason), "{pem}{refused}");
        }
    }
    let cut = &P256[..100];
    for text in [
        "",
        "hunter2",
        cut,
        &P256.replace("MFkw", "!!!!"),
        &P256.replace("MFkw", "MFkx"),
    ] {
        let refused = PublicKey::of_pem(text).unwrap_err();
        assert!(
            !refused.contains("hunter2") && !refused.contains("Ewy"),
            "{refused}"
        );
    }
    assert!(PublicKey::of_pem(&P256.repeat(KEYS_MAX)).is_ok());
    assert!(
        PublicKey::of_pem(&P256.repeat(KEYS_MAX + 1))
            .unwrap_err()
            .contains("17 PEM sections")
    );
}

#[test]
fn the_parts_of_an_rsa_key_are_checked() {
    let mut modulus = vec![0xc5; 256];
    assert!(PublicKey::rsa(&modulus, &[1, 0, 1]).is_ok());
    modulus.insert(0, 0);
    assert!(
        PublicKey::rsa(&modulus, &[0, 1, 0, 1]).is_ok(),
        "zeros before a number change nothing"
    );
    let numbers: [(&[u8], &[u8]); 8] = [
        (&[0xc5; 128], &[1, 0, 1]),
        (&[0xc5; 255], &[1, 0, 1]),
        (&[0xc5; 1025], &[1, 0, 1]),
        (&[0xc5; 256], &[1]),
        (&[0xc5; 256], &[2]),
        (&[0xc5; 256], &[]),
        (&[], &[1, 0, 1]),
        (&[0xc5; 256], &[0xff; 64]),
    ];
    for (modulus, exponent) in numbers {
        let refused = PublicKey::rsa(modulus, exponent);
        assert!(refused.is_err(), "{} bytes, {exponent:?}", modulus.len());
    }
}

#[test]
fn a_point_is_on_its_curve() {
    for (x, y) in [
        ([0; 32], [0; 32]),
        ([1; 32], [1; 32]),
        ([0xff; 32], [0xff; 32]),
    ] {
        assert!(PublicKey::p256(&x, &y).is_err());
    }
    assert!(PublicKey::p256(&[1; 31], &[1; 32]).is_err());
    assert!(PublicKey::ed25519(&[1; 31]).is_err());
    assert!(PublicKey::ed25519(&[]).is_err());
}

#[test]
fn only_the_signature_of_the_key_is_valid() {
    let edwards = Ed25519KeyPair::generate().unwrap();
    let curve = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    let point = curve.public_key().as_ref();
    let keys = [
        PublicKey::ed25519(edwards.public_key().as_ref()).unwrap(),
        PublicKey::p256(&point[1..33], &point[33..]).unwrap(),
    ];
    let signatures = [
        edwards.sign(b"text").as_ref().to_vec(),
        curve
            .sign(&SystemRandom::new(), b"text")
            .unwrap()
            .as_ref()
            .to_vec(),
    ];
    for (at, key) in keys.iter().enumerate() {
        assert!(key.has_signed("text", &signatures[at]));
        assert!(!key.has_signed("other", &signatures[at]));
        // Zeros for both numbers were valid for any text in CVE-2022-21449.
        for signature in [
            &signatures[1 - at][..],
            &[],
            &[0; 64],
            &signatures[at][..63],
            &[0xff; 64],
        ] {
            assert!(!key.has_signed("text", signature), "{key:?}");
        }
    }
}
