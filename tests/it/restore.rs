//! Postgres is restored to an earlier moment with the commands of docs/backup.md, as they are
//! written there.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use crate::support::{Event, PATIENCE, World, run_any};

const MERCHANT: &str = "merchant-42";

#[tokio::test]
async fn a_merchant_gets_every_order_once_over_a_restore() {
    let world = World::new().await;
    let old = world.serve().await;
    let orders = Event::orders(MERCHANT, 20);
    let publisher = world.publisher().await;
    publisher.publish_all(orders[..10].to_vec()).await;
    let mut merchant = world.merchant(MERCHANT).connect(old.public()).await;
    merchant.expect_seqs(1..=10).await;
    merchant.ack(MERCHANT, 6).await;
    world.expect_cursor(MERCHANT, "", 6).await;

    let restored_url = world.another_database();
    let folder = world.folder("restore");
    run(
        &world,
        &folder,
        &restored_url,
        &blocks("## What to back up"),
    )
    .await;
    publisher.publish_all(orders[10..].to_vec()).await;
    merchant.take_seqs(11..=20).await;
    world.expect_cursor(MERCHANT, "", 20).await;

    // The disk is lost, with everything after the dump. These events wait in RabbitMQ.
    assert!(old.terminate().await.success());
    let late = Event::orders(MERCHANT, 2);
    publisher.publish_all(late.clone()).await;
    let output = run(&world, &folder, &restored_url, &blocks("## Restore")).await;
    assert!(
        output.contains("postgres.schema: all migrations have run"),
        "{output}"
    );
    assert!(
        output.contains("merchant-42: 10 notifications")
            && output.contains("oldest undelivered: #7"),
        "{output}"
    );

    let new = world
        .replica()
        .with("DATABASE_URL", &restored_url)
        .start()
        .await;
    let mut merchant = world.merchant(MERCHANT).connect(new.public()).await;
    let mut arrived = merchant.take_seqs(7..=12).await;
    for _ in 0..2 {
        publisher.publish_all(orders.clone()).await;
    }
    arrived.extend(merchant.take_seqs(13..=22).await);
    new.metric_reaches("shopbell_events_duplicate_total", 30)
        .await;
    assert_eq!(
        new.metric("shopbell_events_stored_total").await,
        12,
        "each is stored once"
    );

    let arrived: Vec<_> = arrived
        .iter()
        .map(|notification| notification.id.as_str())
        .collect();
    let expected = orders[6..10]
        .iter()
        .chain(&late)
        .chain(&orders[10..])
        .map(Event::event_id);
    assert_eq!(arrived, expected.collect::<Vec<_>>());
    assert_eq!(arrived.iter().collect::<BTreeSet<_>>().len(), arrived.len());
    world.finish().await;
}

/// Runs commands in a folder of their own, with `shopbell` and the programs of Postgres in the
/// PATH. Returns their output.
async fn run(world: &World, folder: &str, restored_url: &str, commands: &str) -> String {
    let shopbell = Path::new(env!("CARGO_BIN_EXE_shopbell"))
        .parent()
        .expect("a program is in a folder")
        .display();
    // Debian keeps all of them except psql out of the PATH.
    let script = format!(
        "set -euo pipefail
        dump=$(find /usr/lib/postgresql -path '*/bin/pg_dump' | sort -V | tail -n 1)
        export PATH={shopbell}:$PATH:${{dump%/pg_dump}}
        cd {folder}
        {commands}"
    );
    let mut bash = Command::new("bash");
    bash.args(["-c", &script])
        .envs(world.environment())
        // Only an administrator creates databases.
        .env("DATABASE_URL", world.admin_database_url())
        .env("RESTORED_URL", restored_url);
    run_any(bash, PATIENCE).await.succeeded().stdout
}

/// The shell blocks of a section of docs/backup.md.
fn blocks(heading: &str) -> String {
    let page = std::fs::read_to_string("docs/backup.md").expect("the checkout has it");
    let (_, section) = page
        .split_once(&format!("{heading}\n"))
        .expect("the page has the section");
    let section = section.split("\n## ").next().expect("a section has text");
    let blocks: Vec<_> = section
        .split("```sh\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .collect();
    assert!(!blocks.is_empty(), "{heading} has nothing to run");
    blocks.concat()
}
