//! Connections to Postgres and RabbitMQ are encrypted and verified, and each error of a certificate is
//! reported with its host and its remedy.

use std::process::{Command, Stdio};

use serde::Deserialize;

use crate::support::certificates::{Authority, Certificate, Content};
use crate::support::http;
use crate::support::process::shopbell;
use crate::support::replica::free_address;
use crate::support::tls_server::{ANY, TlsPostgres, TlsServer};
use crate::support::{Event, PATIENCE, World, eventually, holds, run_any};

const MERCHANT: &str = "merchant-42";

#[derive(Debug, Deserialize)]
struct Finding {
    check: String,
    found: String,
}

/// A certificate of the servers, or their configuration, and the expected reason.
struct Case {
    name: &'static str,
    certificate: Certificate,
    /// Arguments of openssl, and settings and rules of Postgres.
    openssl: Vec<String>,
    settings: &'static [&'static str],
    rules: &'static str,
    reason: &'static str,
}

impl Case {
    fn new(name: &'static str, certificate: Certificate, reason: &'static str) -> Self {
        Self {
            name,
            certificate,
            openssl: Vec::new(),
            settings: &[],
            rules: ANY,
            reason,
        }
    }
}

#[tokio::test]
async fn each_error_of_a_certificate_names_the_part_the_host_and_the_remedy() {
    let world = World::new().await;
    let ca = Authority::new(world.folder("ca")).await;
    let good = ca.issue("good", Content::default()).await;
    let mut postgres = TlsPostgres::start(&ca.file(), &good).await;
    let trusted = ca.file().display().to_string();
    for case in cases(&world, &ca, &good).await {
        postgres
            .change(&case.certificate, case.settings, case.rules)
            .await;
        let openssl: Vec<&str> = case.openssl.iter().map(String::as_str).collect();
        let rabbitmq = TlsServer::start(&case.certificate, &openssl).await;
        let port = rabbitmq.address.port();
        let database = postgres.url(&format!("verify-full&sslrootcert={trusted}"));
        let broker = format!("amqps://shopbell:canary@localhost:{port}/?cacertfile={trusted}");
        let hosts = [&database, &broker].map(|url| host_of(url));
        // Postgres reads its new configuration a moment later.
        eventually(case.name, PATIENCE, async || {
            let settings = [("DATABASE_URL", &*database), ("AMQP_URL", &*broker)];
            let texts = unreachable(&world, &settings).await;
            let named = texts
                .iter()
                .zip(&hosts)
                .all(|(text, host)| text.contains(host.as_str()) && text.contains(case.reason));
            assert!(!texts.concat().contains("canary"), "{texts:?}");
            holds(named, format!("{texts:?}"))
        })
        .await;
    }
    world.finish().await;
}

async fn cases(world: &World, ca: &Authority, good: &Certificate) -> Vec<Case> {
    let issue = async |name, change: fn(&mut Content)| {
        let mut content = Content::default();
        change(&mut content);
        ca.issue(name, content).await
    };
    let other = Authority::new(world.folder("other-ca")).await;
    let other = other.issue("good", Content::default()).await;
    let expired = issue("expired", |it| it.until = "20210101000000Z").await;
    let later = issue("later", |it| it.from = "20480101000000Z").await;
    let named = issue("named", |it| it.names = "DNS:other.example").await;
    let usage = issue("usage", |it| it.usage = "clientAuth").await;
    let required = format!(
        "-Verify 1 -verify_return_error -CAfile {}",
        ca.file().display()
    );
    vec![
        Case::new("an unknown CA", other, "no trusted CA has signed"),
        Case::new(
            "a self-signed certificate",
            ca.self_signed().await,
            "has signed itself",
        ),
        Case::new("an expired certificate", expired, "has expired; renew it"),
        Case::new(
            "a certificate of the future",
            later,
            "is not valid yet; compare the clocks",
        ),
        Case::new("another name", named, "is for another name"),
        Case::new("another usage", usage, "is not for servers"),
        Case {
            openssl: required.split(' ').map(str::to_owned).collect(),
            rules: "hostssl all all 127.0.0.1/32 trust clientcert=verify-ca\n",
            ..Case::new(
                "a client without a certificate",
                good.clone(),
                "client certificate",
            )
        },
        Case {
            openssl: ["-tls1_1", "-cipher", "DEFAULT:@SECLEVEL=0"]
                .map(str::to_owned)
                .into(),
            settings: &[
                "ssl_min_protocol_version = 'TLSv1.1'",
                "ssl_max_protocol_version = 'TLSv1.1'",
                "ssl_ciphers = 'DEFAULT:@SECLEVEL=0'",
            ],
            ..Case::new("TLS 1.1 only", good.clone(), "neither TLS 1.2 nor TLS 1.3")
        },
    ]
}

#[tokio::test]
async fn a_port_that_is_spoken_to_in_the_other_way_is_reported() {
    let world = World::new().await;
    let ca = Authority::new(world.folder("ca")).await;
    let good = ca.issue("good", Content::default()).await;
    let mut postgres = TlsPostgres::start(&ca.file(), &good).await;
    let (tls, _) = rabbitmq_with_tls().await;

    // TLS to plain ports.
    postgres.change(&good, &["ssl = off"], ANY).await;
    let database = postgres.url("verify-full");
    let broker = world.amqp_url().replace("amqp://", "amqps://");
    eventually("TLS to plain ports", PATIENCE, async || {
        let settings = [("DATABASE_URL", &*database), ("AMQP_URL", &*broker)];
        let [of_postgres, of_rabbitmq] = unreachable(&world, &settings).await;
        let named = of_postgres.contains("turn on `ssl` in Postgres")
            && of_rabbitmq.contains("the port does not speak TLS");
        holds(named, format!("{of_postgres}\n{of_rabbitmq}"))
    })
    .await;

    // And the other way.
    let only_tls = "hostssl all all 127.0.0.1/32 trust\n";
    postgres.change(&good, &[], only_tls).await;
    let database = postgres.url("disable");
    let broker = tls.replace("amqps://", "amqp://");
    eventually("no TLS to ports for TLS", PATIENCE, async || {
        let settings = [("DATABASE_URL", &*database), ("AMQP_URL", &*broker)];
        let [of_postgres, of_rabbitmq] = unreachable(&world, &settings).await;
        let named = of_postgres.contains("no encryption") && of_rabbitmq.contains("amqps://");
        holds(named, format!("{of_postgres}\n{of_rabbitmq}"))
    })
    .await;
    world.finish().await;
}

#[tokio::test]
async fn orders_arrive_over_verified_connections_and_not_over_others() {
    let world = World::new().await;
    let ca = Authority::new(world.folder("ca")).await;
    let good = ca.issue("good", Content::default()).await;
    let mut postgres = TlsPostgres::start(&ca.file(), &good).await;
    let only_tls = "hostssl all all 127.0.0.1/32 trust\n";
    postgres.change(&good, &[], only_tls).await;
    let (broker, folder) = rabbitmq_with_tls().await;
    let trusted = ca.file().display().to_string();

    // Without the CA, no mode that verifies connects, and the service is not ready.
    let settings = [("DATABASE_URL", &*postgres.url("verify-ca"))];
    let refused = world.shopbell_with(&settings, &["migrate"]).await;
    assert!(refused.failed_with(1).stderr.contains("no trusted CA"));
    is_not_ready(&world, &postgres.url("verify-full"), &broker).await;

    let database = postgres.url(&format!("verify-full&sslrootcert={trusted}"));
    let settings = [("DATABASE_URL", &*database)];
    world
        .shopbell_with(&settings, &["migrate"])
        .await
        .succeeded();
    let ca_only = format!("{broker}?cacertfile={folder}/ca.pem");
    let with_client = format!("{ca_only}&certfile={folder}/client.pem&keyfile={folder}/client.key");
    for (url, first) in [(&ca_only, 1), (&with_client, 3)] {
        let replica = world
            .replica()
            .with("DATABASE_URL", &database)
            .with("AMQP_URL", url)
            .start()
            .await;
        let publisher = world.publisher().await;
        publisher.publish_all(Event::orders(MERCHANT, 2)).await;
        let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
        merchant.take_seqs(first..=first + 1).await;
        assert!(postgres.encrypted_sessions().await > 0);
        let settings = [("DATABASE_URL", &*database), ("AMQP_URL", url)];
        world
            .shopbell_with(&settings, &["declare"])
            .await
            .succeeded();
        assert!(replica.terminate().await.success());
    }
    world.finish().await;
}

/// Serves, and expects that the service reports its database as away and its broker as absent.
async fn is_not_ready(world: &World, database: &str, broker: &str) {
    let mut environment = world.environment();
    let operations = free_address();
    for (name, value) in [
        ("DATABASE_URL", database.to_owned()),
        ("AMQP_URL", broker.to_owned()),
        ("SHOPBELL_LISTEN", free_address().to_string()),
        ("SHOPBELL_OPS_LISTEN", operations.to_string()),
    ] {
        environment.insert(name.to_owned(), value);
    }
    let mut serve = shopbell(&environment);
    serve
        .arg("serve")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let mut child = serve.stderr(Stdio::null()).spawn().expect("it starts");
    eventually("the service is not ready", PATIENCE, async || {
        let reply = http::get(operations, "/readyz").await;
        let reply = reply.map_err(|error| error.to_string())?;
        let text = reply.text();
        let away = text.contains(r#""database":"away""#) && text.contains(r#""broker":"away""#);
        holds(reply.status == 503 && away, text)
    })
    .await;
    child.kill().expect("a child can be killed");
    child.wait().expect("a child can be waited for");
}

/// The findings of doctor about a Postgres and a RabbitMQ that it cannot reach.
async fn unreachable(world: &World, settings: &[(&str, &str)]) -> [String; 2] {
    let doctor = ["doctor", "--output", "json"];
    let done = world.shopbell_with(settings, &doctor).await;
    let findings: Vec<Finding> = done.json_lines();
    ["postgres", "rabbitmq"].map(|part| {
        let finding = findings.iter().find(|finding| finding.check == part);
        finding.map_or(String::new(), |finding| finding.found.clone())
    })
}

/// `localhost:port` of a URL.
fn host_of(url: &str) -> String {
    let (_, rest) = url.split_once('@').expect("a URL with a user");
    rest.split('/').next().unwrap_or_default().to_owned()
}

/// The TLS listener of the private RabbitMQ, without parameters, and the folder of its certificates.
async fn rabbitmq_with_tls() -> (String, String) {
    let mut services = Command::new("scripts/services");
    services.arg("tls").stdin(Stdio::null());
    let done = run_any(services, PATIENCE).await.succeeded();
    let value = |name: &str| {
        let line = done.stdout.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("{done:?}")).to_owned()
    };
    (value("AMQPS_URL="), value("TLS_DIR="))
}
