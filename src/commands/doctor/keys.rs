//! Checks the keys of tokens, and fetches the key set of the issuer.

use super::Finding;
use crate::config::{JwksConfig, JwtConfig};
use crate::gateway::auth::KeySet;
use crate::gateway::auth::fetch::{FetchError, fetch};

/// Checks the configured keys, and the key set at its URL.
pub(super) async fn findings(jwt: &JwtConfig) -> Vec<Finding> {
    let mut findings = configured(jwt);
    if let Some(jwks) = &jwt.jwks {
        findings.extend(transport(jwks));
        findings.extend(key_set(fetch(jwks).await, has_other_keys(jwt)));
    }
    findings
}

fn has_other_keys(jwt: &JwtConfig) -> bool {
    jwt.keys.current.is_some() || !jwt.keys.public.is_empty()
}

fn configured(jwt: &JwtConfig) -> Vec<Finding> {
    let secrets = [&jwt.keys.current, &jwt.keys.previous]
        .into_iter()
        .flatten()
        .count();
    let public = jwt
        .keys
        .public
        .iter()
        .map(|key| key.algorithm().to_string());
    let public: Vec<_> = public.collect();
    let mut findings = Vec::new();
    if secrets > 0 {
        findings.push(Finding::ok("keys.secrets", format!("{secrets} (HS256)")));
    }
    if !public.is_empty() {
        let found = format!("{} ({})", public.len(), public.join(", "));
        findings.push(Finding::ok("keys.public", found));
    }
    // A secret has one purpose. The keys of an issuer often sign tokens for other services too.
    for (check, claim, expected) in [
        ("keys.audience", "aud", &jwt.audience),
        ("keys.issuer", "iss", &jwt.issuer),
    ] {
        if jwt.jwks.is_some() && expected.is_none() {
            let variable = check.replace("keys.", "SHOPBELL_JWT_").to_uppercase();
            let found = format!("{variable} is not set, so tokens for other services are accepted");
            let remedy = format!("Set it to the `{claim}` of the tokens for Shopbell");
            findings.push(Finding::warning(check, found, remedy));
        }
    }
    findings
}

fn transport(jwks: &JwksConfig) -> Option<Finding> {
    (jwks.url.scheme() == "http" && !jwks.is_on_loopback()).then(|| {
        let found = "the key set comes over HTTP, so anybody in between can replace the keys";
        let remedy = "Use an https URL for SHOPBELL_JWKS_URL";
        Finding::warning("keys.transport", found, remedy)
    })
}

fn key_set(fetched: Result<KeySet, FetchError>, has_other_keys: bool) -> Vec<Finding> {
    const CHECK: &str = "keys.set";
    match fetched {
        Ok(set) => {
            let mut findings = vec![match set.is_empty() {
                true => {
                    let remedy = "Let the issuer publish an RS256, ES256 or EdDSA key";
                    graded(
                        CHECK,
                        "the key set has no usable key",
                        remedy,
                        has_other_keys,
                    )
                }
                false => {
                    let names = set.names().join(", ");
                    Finding::ok(CHECK, format!("{} usable keys: {names}", set.len()))
                }
            }];
            if !set.unusable.is_empty() {
                let found = set.unusable.join("; ");
                let remedy = "Tokens of these keys are refused. docs/keys.md lists the keys that Shopbell uses";
                findings.push(Finding::warning("keys.unusable", found, remedy));
            }
            findings
        }
        Err(error) => {
            let found = format!("the key set of SHOPBELL_JWKS_URL cannot be fetched: {error}");
            let remedy = "Check the URL, its certificate and the network from here to it";
            vec![graded(CHECK, found, remedy, has_other_keys)]
        }
    }
}

/// An error if no token can be valid without the key set.
fn graded(check: &str, found: impl Into<String>, remedy: &str, has_other_keys: bool) -> Finding {
    match has_other_keys {
        true => Finding::warning(check, found, remedy),
        false => Finding::error(check, found, remedy),
    }
}
