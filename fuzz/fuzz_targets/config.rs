//! The settings are read, or one error names every bad one. Neither shows a secret, and the shown
//! values give the same settings again.
//!
//! The input is a role and an environment, as in /proc/PID/environ. Unknown variables are left out.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use shopbell::config::{ConfigError, EffectiveSetting, Environment, Role, SETTINGS};
use shopbell_fuzz::within;

/// The password of each URL, and the end of each key.
const CANARY: &str = "c4n4ry-0123456789abcdef0123456789";
const URLS: [&str; 2] = ["DATABASE_URL", "AMQP_URL"];
const REQUIRED: [(&str, &str); 3] = [
    ("DATABASE_URL", "postgres://h/d"),
    ("AMQP_URL", "amqp://h"),
    ("SHOPBELL_JWT_HS256_SECRET", ""),
];

fuzz_target!(|input: &[u8]| {
    let mut records = input.split(|byte| *byte == 0);
    let role = match records.next() {
        Some(b"ingest") => Some(Role::Ingest),
        Some(b"gateway") => Some(Role::Gateway),
        _ => None,
    };
    let mut given: BTreeMap<String, String> = REQUIRED
        .iter()
        .map(|(name, value)| ((*name).to_owned(), with_canary(name, value)))
        .collect();
    for record in records {
        let Some((name, value)) = str::from_utf8(record)
            .ok()
            .and_then(|record| record.split_once('='))
        else {
            continue;
        };
        if SETTINGS.iter().any(|setting| setting.variable == name) {
            given.insert(name.to_owned(), with_canary(name, value));
        }
    }
    match explained(&given, role) {
        Ok(settings) => {
            for setting in &settings {
                let shown = setting.value.as_deref().unwrap_or_default();
                assert!(
                    !shown.contains(CANARY),
                    "{} shows its secret",
                    setting.variable
                );
            }
            check_again(&given, role, &settings);
        }
        Err(error) => {
            let error = error.to_string();
            assert!(!error.is_empty() && !error.contains(CANARY), "{error}");
        }
    }
});

fn with_canary(name: &str, value: &str) -> String {
    if URLS.contains(&name) && !value.contains('@') {
        value.replacen("://", &format!("://u:{CANARY}@"), 1)
    } else if name.contains("SECRET") {
        format!("{value}{CANARY}")
    } else {
        value.to_owned()
    }
}

fn explained(
    given: &BTreeMap<String, String>,
    role: Option<Role>,
) -> Result<Vec<EffectiveSetting>, ConfigError> {
    let given: Vec<_> = given.clone().into_iter().collect();
    let bytes: usize = given
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    within(64 * bytes + 256 * 1024, || {
        Environment::of(given)
            .explain(role)
            .map(|(_, settings)| settings)
    })
}

/// Gives each shown value in place of the one that was given.
fn check_again(
    given: &BTreeMap<String, String>,
    role: Option<Role>,
    settings: &[EffectiveSetting],
) {
    let mut shown = given.clone();
    for setting in settings {
        let is_plain = shown
            .get(&setting.variable)
            .is_some_and(|value| !value.contains(CANARY) || URLS.contains(&&*setting.variable));
        if let Some(value) = setting.value.clone().filter(|_| is_plain) {
            shown.insert(setting.variable.clone(), value);
        }
    }
    let again = explained(&shown, role).expect("a shown value is accepted");
    assert_eq!(settings, again);
}
