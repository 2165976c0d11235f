//! `shopbell config` prints the settings of a service, and everything that is wrong with them.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::support::World;

#[derive(Debug, Deserialize)]
struct Setting {
    variable: String,
    value: Option<String>,
    origin: String,
    file: Option<String>,
}

#[tokio::test]
async fn every_setting_is_listed_without_secrets() {
    let world = World::new().await;
    let secret = "s3cr3t-0123456789abcdef0123456789";
    let file = world.file("jwt-secret", format!("{secret}\n").as_bytes());
    let settings = [
        ("SHOPBELL_JWT_HS256_SECRET", ""),
        ("SHOPBELL_JWT_HS256_SECRET_FILE", file.as_str()),
        ("SHOPBELL_WINDOW", "7"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "key=s3cr3t"),
        (
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            "http://collector.example:4318/s3cr3t/v1/traces",
        ),
        // Without a scheme it is no URL. It has a password all the same.
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "me:s3cr3t@collector:4318"),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.key=s3cr3t"),
        // Without this, spans have no destination.
        ("OTEL_SDK_DISABLED", "true"),
    ];
    let output = world
        .shopbell_with(&settings, &["config", "--output", "json"])
        .await
        .succeeded();
    let secrets = [
        secret,
        "s3cr3t",
        password(world.database_url()),
        password(world.amqp_url()),
    ];
    for secret in secrets {
        assert!(
            !output.stdout.contains(secret) && !output.stderr.contains(secret),
            "{output:?}"
        );
    }
    let lines = output.json_lines::<Setting>();
    let by_name: BTreeMap<_, _> = lines
        .iter()
        .map(|setting| (setting.variable.as_str(), setting))
        .collect();
    assert_eq!(
        lines.len(),
        by_name.len(),
        "each is reported once: {lines:?}"
    );
    let of = |variable| {
        (
            by_name[variable].value.as_deref(),
            by_name[variable].origin.as_str(),
        )
    };
    assert_eq!(of("SHOPBELL_WINDOW"), (Some("7"), "set"));
    assert_eq!(of("SHOPBELL_LISTEN"), (Some("0.0.0.0:8080"), "default"));
    assert_eq!(of("SHOPBELL_JWT_AUDIENCE"), (None, "default"));
    assert_eq!(of("SHOPBELL_JWT_HS256_SECRET"), (Some("(secret)"), "file"));
    assert_eq!(
        by_name["SHOPBELL_JWT_HS256_SECRET"].file.as_deref(),
        Some(file.as_str())
    );
    assert_eq!(
        of("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"),
        (Some("http://collector.example:4318"), "set")
    );
    assert_eq!(of("OTEL_SDK_DISABLED"), (Some("true"), "set"));
    for variable in [
        "OTEL_EXPORTER_OTLP_HEADERS",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_RESOURCE_ATTRIBUTES",
    ] {
        assert_eq!(of(variable), (Some("(set)"), "set"), "{variable}");
    }
    assert_eq!(of("RUST_LOG"), (Some("info"), "set"));
    for row in ["DATABASE_URL", "AMQP_URL"] {
        assert!(
            of(row).0.is_some_and(|url| url.contains("@127.0.0.1:")),
            "{:?}",
            by_name[row]
        );
    }
    world.finish().await;
}

#[tokio::test]
async fn the_list_for_one_role_leaves_out_the_settings_of_the_other() {
    let world = World::new().await;
    let output = world
        .shopbell(&["config", "--role", "ingest"])
        .await
        .succeeded()
        .stdout;
    assert!(
        output.contains("SHOPBELL_MAX_EVENT_BYTES") && !output.contains("SHOPBELL_LISTEN"),
        "{output}"
    );
    world.finish().await;
}

#[tokio::test]
async fn all_invalid_and_unknown_settings_are_reported_at_once() {
    let world = World::new().await;
    let bad = [
        ("SHOPBELL_WINDOWS", "7"),
        ("SHOPBELL_HEARTBEAT_SECONDS", "0"),
        ("DATABASE_URL", "mysql://s3cr3t"),
    ];
    let refused = world.shopbell_with(&bad, &["config"]).await.failed_with(2);
    for (variable, _) in bad {
        assert!(
            refused.stderr.contains(variable),
            "{variable} is not named in {}",
            refused.stderr
        );
    }
    assert_eq!(refused.stdout, "");
    assert!(!refused.stderr.contains("s3cr3t"), "{}", refused.stderr);
    world.finish().await;
}

fn password(url: &str) -> &str {
    let (_, rest) = url.split_once("://").expect("a URL");
    let (user, _) = rest.split_once('@').expect("a URL with a user");
    user.split_once(':').expect("a URL with a password").1
}
