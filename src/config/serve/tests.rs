//! Configurations of `serve`, good and bad.

use super::super::settings::{EVENT_BYTES_MAX_DEFAULT, Kind, UsedBy};
use super::super::{Origin, SETTINGS};
use super::*;

const GOOD: [(&str, &str); 3] = [
    ("DATABASE_URL", "postgres://u:hidden@h/d"),
    ("AMQP_URL", "amqp://u:hidden@h"),
    (
        "SHOPBELL_JWT_HS256_SECRET",
        "0123456789abcdef0123456789abcdef",
    ),
];

fn environment(variables: &[(&str, &str)]) -> Environment {
    Environment::of(
        variables
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()))
            .collect(),
    )
}

#[test]
fn three_variables_are_enough() {
    let config = environment(&GOOD).serve(None).unwrap();
    let gateway = config.roles.gateway().unwrap();
    assert_eq!(
        (gateway.session.window, gateway.session.heartbeat.as_secs()),
        (256, 25)
    );
    assert_eq!(
        (gateway.listen.to_string(), config.ops_listen.to_string()),
        ("0.0.0.0:8080".into(), "0.0.0.0:9090".into())
    );
    let amqp = config.amqp;
    assert_eq!(
        (amqp.prefix.as_str(), amqp.partitions, amqp.declare),
        ("shopbell", 1, true)
    );
    assert_eq!(
        config.roles.ingest().unwrap().event_bytes_max,
        EVENT_BYTES_MAX_DEFAULT
    );
}

#[test]
fn a_role_reads_only_the_keys_that_it_needs() {
    let unused_secret = ("SHOPBELL_JWT_HS256_SECRET", "short");
    let ingest = environment(&[GOOD[0], GOOD[1], unused_secret])
        .serve(Some(Role::Ingest))
        .unwrap();
    assert!(matches!(ingest.roles, RoleConfig::Ingest(_)));
    let gateway = environment(&GOOD).serve(Some(Role::Gateway)).unwrap();
    assert!(matches!(gateway.roles, RoleConfig::Gateway(_)));
    let refused = environment(&GOOD[..2])
        .serve(Some(Role::Gateway))
        .unwrap_err();
    assert!(
        refused.to_string().contains("SHOPBELL_JWT_HS256_SECRET"),
        "{refused}"
    );
}

#[test]
fn one_message_names_every_bad_value_and_no_secret() {
    let bad = [
        ("DATABASE_URL", "mysql://hidden"),
        ("AMQP_URL", "http://hidden"),
        ("SHOPBELL_JWT_HS256_SECRET", "hidden"),
        ("SHOPBELL_WINDOW", "0"),
        ("SHOPBELL_LISTEN", "nowhere"),
        ("SHOPBELL_ALLOWED_ORIGINS", "*"),
        ("SHOPBELL_BROADCAST_FEED", "a b"),
        ("SHOPBELL_AMQP_DECLARE", "maybe"),
        ("SHOPBELL_INGEST_PARTITIONS", "65"),
    ];
    let message = environment(&bad).serve(None).unwrap_err().to_string();
    for (name, _) in bad {
        assert!(message.contains(name), "{name} is not named in: {message}");
    }
    assert!(!message.contains("hidden"), "{message}");
    let missing = environment(&[]).serve(None).unwrap_err();
    assert_eq!(missing.to_string().lines().count(), 1 + 3, "{missing}");
}

fn explained(variables: &[(&str, &str)], role: Option<Role>) -> Vec<EffectiveSetting> {
    environment(variables).explain(role).unwrap().1
}

fn of<'a>(settings: &'a [EffectiveSetting], variable: &str) -> Option<(&'a str, Origin)> {
    let setting = settings
        .iter()
        .find(|setting| setting.variable == variable)?;
    Some((setting.value.as_deref().unwrap_or_default(), setting.origin))
}

#[test]
fn each_setting_is_explained_with_its_value_and_origin() {
    let mut given = GOOD.to_vec();
    given.extend([
        ("SHOPBELL_WINDOW", " 7 "),
        (
            "SHOPBELL_ALLOWED_ORIGINS",
            "https://a.example , https://b.example",
        ),
    ]);
    let settings = explained(&given, None);
    let of = |variable| of(&settings, variable).unwrap();
    assert_eq!(of("SHOPBELL_WINDOW"), ("7", Origin::Set));
    assert_eq!(of("SHOPBELL_CANARY_SECONDS"), ("30", Origin::Default));
    assert_eq!(
        of("SHOPBELL_ALLOWED_ORIGINS"),
        ("https://a.example,https://b.example", Origin::Set)
    );
    assert_eq!(of("SHOPBELL_JWT_ISSUER"), ("", Origin::Default));
    assert_eq!(of("SHOPBELL_JWT_HS256_SECRET"), ("(secret)", Origin::Set));
    let shown = format!("{settings:?}");
    assert!(
        !shown.contains("hidden") && !shown.contains(GOOD[2].1),
        "{shown}"
    );
    let variables: Vec<_> = settings.iter().map(|one| one.variable.as_str()).collect();
    let of_serve = SETTINGS
        .iter()
        .filter(|setting| setting.used_by != UsedBy::Relay);
    let of_serve: Vec<_> = of_serve.map(|setting| setting.variable).collect();
    assert_eq!(variables, of_serve);
}

#[test]
fn a_url_is_shown_without_its_secrets() {
    let urls = [
        (
            "DATABASE_URL",
            "postgres://me:hidden@db.example/shop?sslmode=verify-full&application_name=hidden",
        ),
        (
            "AMQP_URL",
            "amqps://me:hidden@mq.example/%2f?heartbeat=5&auth=hidden#hidden",
        ),
        GOOD[2],
    ];
    let settings = explained(&urls, None);
    let shown = |variable| of(&settings, variable).unwrap().0;
    assert_eq!(
        shown("DATABASE_URL"),
        "postgres://me@db.example:5432/shop?sslmode=verify-full"
    );
    assert_eq!(shown("AMQP_URL"), "amqps://me@mq.example/%2f");
}

#[test]
fn settings_of_the_other_role_are_not_shown() {
    let settings = explained(&GOOD, Some(Role::Ingest));
    assert!(
        of(&settings, "SHOPBELL_WINDOW").is_none()
            && of(&settings, "SHOPBELL_JWT_HS256_SECRET").is_none()
    );
    assert!(of(&settings, "SHOPBELL_RETENTION_DAYS").is_some());
    let settings = explained(&GOOD, Some(Role::Gateway));
    assert!(
        of(&settings, "SHOPBELL_WINDOW").is_some()
            && of(&settings, "SHOPBELL_RETENTION_DAYS").is_none()
    );
}

#[test]
fn an_unknown_variable_is_an_error_of_explain_only() {
    let mut given = GOOD.to_vec();
    given.extend([
        ("SHOPBELL_WINDOWS", "7"),
        ("SHOPBELL_TOKEN", "hidden"),
        ("SHOPBELL_DRAIN_SECONDS", "soon"),
    ]);
    let refused = environment(&given).explain(None).unwrap_err();
    assert_eq!(refused.to_string().lines().count(), 1 + 2, "{refused}");
    assert!(
        refused
            .to_string()
            .contains("SHOPBELL_WINDOWS is not known"),
        "{refused}"
    );
    given.pop();
    assert!(environment(&given).serve(None).is_ok());
}

#[test]
fn zero_seconds_disable_the_canary() {
    let canary = |given: &[_]| {
        environment(given)
            .serve(None)
            .unwrap()
            .roles
            .gateway()
            .unwrap()
            .canary
    };
    assert_eq!(canary(&GOOD), Some(Duration::from_secs(30)));
    assert_eq!(
        canary(&[&GOOD[..], &[("SHOPBELL_CANARY_SECONDS", "0")]].concat()),
        None
    );
}

#[test]
fn each_number_has_the_range_of_the_table() {
    let mut checked = 0;
    for setting in SETTINGS {
        let Kind::Number { min, max, .. } = setting.kind else {
            continue;
        };
        let accepts = |value: u64| {
            let value = value.to_string();
            let given = [&GOOD[..], &[(setting.variable, &value)]].concat();
            environment(&given).serve(None).is_ok()
        };
        assert!(accepts(min) && accepts(max), "{}", setting.variable);
        assert!(!accepts(max + 1), "{}", setting.variable);
        assert!(min == 0 || !accepts(min - 1), "{}", setting.variable);
        checked += 1;
    }
    assert!(checked > 10);
}

#[test]
fn a_secret_has_at_least_32_bytes() {
    let accepts = |bytes| {
        let secret = "s".repeat(bytes);
        let given = [GOOD[0], GOOD[1], ("SHOPBELL_JWT_HS256_SECRET", &secret)];
        environment(&given).serve(None).is_ok()
    };
    assert!(accepts(32));
    assert!(!accepts(31));
}
