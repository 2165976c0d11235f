//! The command line, used by an operator and by a newcomer.

use std::net::TcpListener;

use serde::Deserialize;

use crate::support::{Event, Frame, PATIENCE, World, run_any};

const MERCHANT: &str = "merchant-42";

#[tokio::test]
async fn tail_prints_the_events_that_publish_sends() {
    let world = World::new().await;
    let replica = world.serve().await;
    let token = world
        .shopbell(&["token", "--subscriber", MERCHANT])
        .await
        .succeeded()
        .stdout;
    let url = format!("ws://{}/v1/ws", replica.public());

    let tail = [
        "tail",
        "--url",
        &url,
        "--token",
        token.trim(),
        "--count",
        "3",
        "--output",
        "json",
    ];
    let publish = ["publish", "--recipient", MERCHANT, "--count", "3"];
    let (tailed, published) = tokio::join!(world.shopbell(&tail), world.shopbell(&publish));
    published.succeeded();

    let tailed = tailed.succeeded();
    let frames: Vec<_> = tailed
        .stdout
        .lines()
        .map(|line| Frame::parse(line).expect("a frame, unchanged"))
        .collect();
    let seqs: Vec<_> = frames
        .iter()
        .filter_map(|frame| match frame {
            Frame::Notification(notification) => Some(notification.seq),
            _ => None,
        })
        .collect();
    assert_eq!(seqs, [1, 2, 3]);
    world.expect_cursor(MERCHANT, "", 3).await;
    world.finish().await;
}

#[tokio::test]
async fn a_tail_can_stop_when_it_has_caught_up() {
    let world = World::new().await;
    let replica = world.serve().await;
    world
        .publisher()
        .await
        .publish_all(Event::orders("merchant-43", 2))
        .await;
    world.expect_stored("merchant-43", 2).await;
    let mint = [
        "token",
        "--subscriber",
        MERCHANT,
        "--feed",
        MERCHANT,
        "--feed",
        "merchant-43",
        "--ttl-seconds",
        "60",
    ];
    let token = world.shopbell(&mint).await.succeeded().stdout;
    let url = format!("ws://{}/v1/ws", replica.public());

    let tail = [
        "tail",
        "--url",
        &url,
        "--token",
        token.trim(),
        "--device",
        "terminal",
        "--until-caught-up",
    ];
    let tailed = world
        .shopbell(&[&tail[..], &["--output", "json"]].concat())
        .await
        .succeeded();
    let notifications = tailed
        .stdout
        .lines()
        .filter(|line| line.contains(r#""type":"notification""#))
        .count();
    assert_eq!(notifications, 2);
    // Without `--output json`. The notifications arrive again because this device has not
    // acknowledged them.
    let tailed = world.shopbell(&tail).await.succeeded();
    assert!(!tailed.stdout.contains("order.created"), "{tailed:?}");
    world.finish().await;
}

#[tokio::test]
async fn a_tail_needs_no_path_and_takes_the_url_of_the_dashboard() {
    let world = World::new().await;
    let replica = world.serve().await;
    let token = world
        .shopbell(&["token", "--subscriber", MERCHANT])
        .await
        .succeeded()
        .stdout;
    let address = replica.public();
    for url in [
        format!("ws://{address}"),
        format!("http://{address}/"),
        format!("ws://{address}?utm_source=mail"),
    ] {
        let tail = [
            "tail",
            "--url",
            &url,
            "--token",
            token.trim(),
            "--until-caught-up",
        ];
        world.shopbell(&tail).await.succeeded();
    }
    for (url, named) in [
        (format!("https://{address}"), "TLS"),
        (format!("ftp://{address}"), "ws://"),
        (format!("ws://me:s3cr3t@{address}"), "password"),
        (format!("http://{address}/#token=s3cr3t"), "#"),
    ] {
        let refused = world
            .shopbell(&["tail", "--url", &url, "--token", token.trim()])
            .await
            .failed_with(2);
        assert!(
            refused.stderr.contains(named) && !refused.stderr.contains("s3cr3t"),
            "{refused:?}"
        );
    }
    world.finish().await;
}

#[tokio::test]
async fn a_chosen_event_is_published_once_however_often() {
    let world = World::new().await;
    let replica = world.serve().await;
    let mut publish = vec![
        "publish",
        "--recipient",
        MERCHANT,
        "--type",
        "order.paid",
        "--data",
        r#"{"order":"7"}"#,
    ];
    publish.extend(["--id", "7", "--source", "/terminal"]);
    for _ in 0..2 {
        world.shopbell(&publish).await.succeeded();
    }
    replica
        .metric_reaches("shopbell_events_duplicate_total", 1)
        .await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    let arrived = merchant.take_seqs(1..=1).await.remove(0);
    assert_eq!(
        (
            arrived.id.as_str(),
            arrived.source.as_str(),
            arrived.event.as_str()
        ),
        ("7", "/terminal", "order.paid")
    );
    assert_eq!(arrived.data(), r#"{"order":"7"}"#);
    world.expect_stored(MERCHANT, 1).await;
    world.finish().await;
}

#[tokio::test]
async fn a_sample_import_is_published_whole() {
    #[derive(Deserialize)]
    struct Item {
        status: String,
    }
    let world = World::new().await;
    let replica = world.serve().await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    world
        .shopbell(&[
            "publish",
            "--recipient",
            MERCHANT,
            "--import",
            "6",
            "--failed",
            "2",
        ])
        .await
        .succeeded();

    let arrived = merchant.take_seqs(1..=8).await;
    let [started, items @ .., finished] = &arrived[..] else {
        unreachable!("eight notifications")
    };
    assert_eq!(
        (started.event.as_str(), finished.event.as_str()),
        ("import.started", "import.finished")
    );
    let items: Vec<Item> = items
        .iter()
        .map(|item| serde_json::from_str(item.data()).expect("an item"))
        .collect();
    assert_eq!(
        items.iter().filter(|item| item.status == "failed").count(),
        2
    );
    assert_eq!(
        replica.metric("shopbell_events_dead_lettered_total").await,
        0
    );
    world.finish().await;
}

#[tokio::test]
async fn healthcheck_fails_if_the_replica_is_dead() {
    let world = World::new().await;
    let replica = world.serve().await;
    replica.shopbell(&["healthcheck"]).await.succeeded();
    replica.kill();
    let ill = replica.shopbell(&["healthcheck"]).await.failed_with(1);
    assert!(!ill.stderr.is_empty(), "the reason is on stderr");
    world.finish().await;
}

#[tokio::test]
async fn an_invalid_configuration_is_reported_completely_without_secrets() {
    let world = World::new().await;
    let bad = [
        (
            "DATABASE_URL",
            "mysql://shop:s3cr3t-database@localhost/shop",
        ),
        ("AMQP_URL", "s3cr3t-broker"),
        ("SHOPBELL_JWT_HS256_SECRET", "s3cr3t-short"),
        ("SHOPBELL_LISTEN", "nowhere"),
        ("SHOPBELL_WINDOW", "many"),
        ("SHOPBELL_HEARTBEAT_SECONDS", "-1"),
        ("SHOPBELL_DRAIN_SECONDS", "soon"),
    ];
    let refused = world.shopbell_with(&bad, &["serve"]).await.failed_with(2);
    for (variable, _) in bad {
        assert!(
            refused.stderr.contains(variable),
            "{variable} is not named in {}",
            refused.stderr
        );
    }
    assert!(!refused.stderr.contains("s3cr3t"), "{}", refused.stderr);
    assert_eq!(refused.stdout, "", "errors belong on stderr");

    let missing = world
        .shopbell_with(&[("DATABASE_URL", ""), ("AMQP_URL", "")], &["serve"])
        .await
        .failed_with(2);
    assert!(
        missing.stderr.contains("DATABASE_URL") && missing.stderr.contains("AMQP_URL"),
        "{}",
        missing.stderr
    );
    world.finish().await;
}

#[tokio::test]
async fn a_wrong_argument_exits_with_a_usage_error() {
    let world = World::new().await;
    for arguments in [&["ring"][..], &["publish"], &["dead-letters", "show"]] {
        let refused = world.shopbell(arguments).await.failed_with(2);
        assert!(
            refused.stderr.to_lowercase().contains("usage"),
            "{}",
            refused.stderr
        );
    }
    world.finish().await;
}

#[tokio::test]
async fn a_second_migration_changes_nothing() {
    let world = World::new().await;
    for _ in 0..2 {
        world.shopbell(&["migrate"]).await.succeeded();
    }
    world.serve().await;
    world.finish().await;
}

#[tokio::test]
async fn the_demo_is_reached_from_beyond_loopback_only_in_a_container() {
    let world = World::new().await;
    let everywhere = ("SHOPBELL_LISTEN", "0.0.0.0:0");
    let refused = world
        .shopbell_with(&[everywhere], &["demo"])
        .await
        .failed_with(2);
    assert!(
        refused
            .stderr
            .contains("SHOPBELL_LISTEN must be on loopback"),
        "{refused:?}"
    );

    // If the operations port is in use, the process names the port and exits.
    let taken = TcpListener::bind("0.0.0.0:0").expect("a free port");
    let operations = taken.local_addr().expect("an address").to_string();
    let settings = [everywhere, ("SHOPBELL_OPS_LISTEN", operations.as_str())];
    let ended = world
        .shopbell_with(&settings, &["demo", "--in-container"])
        .await
        .failed_with(1);
    assert!(
        ended.stdout.starts_with("http://127.0.0.1:0/#token="),
        "{ended:?}"
    );
    world.finish().await;
}

#[tokio::test]
async fn an_old_version_works_on_a_newer_schema() {
    let world = World::new().await;
    world
        .execute(
            "insert into _sqlx_migrations (version, description, success, checksum, execution_time)
             values (9999, 'of a newer version', true, '', 0)",
        )
        .await;
    world.shopbell(&["migrate"]).await.succeeded();
    let output = world.shopbell(&["doctor"]).await.succeeded().stdout;
    assert!(
        output.contains("all migrations have run, and newer ones (9999)"),
        "{output}"
    );
    let replica = world.serve().await;
    replica.shopbell(&["healthcheck"]).await.succeeded();
    world.finish().await;
}

#[tokio::test]
async fn a_shell_completes_subcommands_and_options() {
    let world = World::new().await;
    for shell in ["zsh", "fish", "elvish", "powershell"] {
        let script = world
            .shopbell(&["completions", shell])
            .await
            .succeeded()
            .stdout;
        assert!(script.contains("dead-letters"), "{shell}: {script}");
    }
    let script = world
        .shopbell(&["completions", "bash"])
        .await
        .succeeded()
        .stdout;
    let file = world.file("completions.bash", script.as_bytes());
    // The request of bash if someone presses the tab key after `dead-letters re`.
    let ask = format!(
        "set -eu; . {file}; COMP_WORDS=(shopbell dead-letters re); COMP_CWORD=2
         _shopbell shopbell re dead-letters; echo \"${{COMPREPLY[@]}}\""
    );
    let mut bash = std::process::Command::new("bash");
    bash.args(["-c", &ask]);
    assert_eq!(run_any(bash, PATIENCE).await.succeeded().stdout, "replay\n");
    world.finish().await;
}
