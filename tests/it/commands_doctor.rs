//! `shopbell doctor` finds and names each fault, and changes nothing.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::support::{Done, World};

#[derive(Debug, Deserialize)]
struct Finding {
    check: String,
    state: String,
    found: String,
    remedy: Option<String>,
}

/// A limit that is small enough for every machine.
const FEW_SESSIONS: (&str, &str) = ("SHOPBELL_MAX_SESSIONS", "100");

#[tokio::test]
async fn doctor_reports_a_healthy_service() {
    let world = World::new().await;
    let _replica = world.serve().await;
    let done = doctor(&world, &[]).await.succeeded();
    let findings = done.json_lines::<Finding>();
    let bad: Vec<_> = findings
        .iter()
        .filter(|finding| finding.state != "ok")
        .collect();
    // The test machine may have its own limits, and transactions of other users.
    const OTHERS: [&str; 4] = [
        "machine.listen_backlog",
        "machine.half_open_connections",
        "machine.tracked_connections",
        "postgres.transactions",
    ];
    let ours = |finding: &&&Finding| !OTHERS.contains(&finding.check.as_str());
    assert_eq!(bad.iter().filter(ours).count(), 0, "{bad:?}");
    let of = |check: &str| {
        findings
            .iter()
            .filter(|finding| finding.check == check)
            .count()
    };
    assert_eq!(
        (
            of("rabbitmq.version"),
            of("rabbitmq.exchange"),
            of("rabbitmq.queue")
        ),
        (1, 6, 4),
        "{findings:?}"
    );
    assert_eq!(
        (
            of("postgres.fsync"),
            of("postgres.clock"),
            of("postgres.rows"),
            of("configuration")
        ),
        (1, 1, 1, 1),
        "{findings:?}"
    );
    assert!(
        the(&done, "rabbitmq.bindings")
            .found
            .starts_with("not checked"),
        "{findings:?}"
    );
    world.finish().await;
}

#[tokio::test]
async fn a_database_that_was_never_migrated_is_found() {
    let world = World::new().await;
    world
        .change_database("drop schema public cascade; create schema public;
             grant usage on schema public to public; grant create on schema public to shopbell_owner",
        )
        .await;
    let finding = the(&doctor(&world, &[]).await.failed_with(1), "postgres.schema");
    assert_eq!(finding.state, "error");
    assert!(
        finding
            .remedy
            .is_some_and(|remedy| remedy.contains("shopbell migrate"))
    );
    world.shopbell(&["migrate"]).await.succeeded();
    assert_eq!(
        the(&doctor(&world, &[]).await.succeeded(), "postgres.schema").state,
        "ok"
    );

    world
        .execute("update _sqlx_migrations set version = 9999 where version = 1")
        .await;
    let finding = the(&doctor(&world, &[]).await.failed_with(1), "postgres.schema");
    assert!(finding.found.contains("migrations: 1"), "{finding:?}");
    world
        .execute("update _sqlx_migrations set version = 1 where version = 9999")
        .await;
    world.finish().await;
}

#[tokio::test]
async fn commits_that_do_not_wait_for_the_disk_are_found() {
    let world = World::new().await;
    world
        .change_database(
            "do $$ begin execute format('alter database %I set synchronous_commit = off', current_database()); end $$",
        )
        .await;
    let finding = the(
        &doctor(&world, &[]).await.failed_with(1),
        "postgres.synchronous_commit",
    );
    assert!(
        finding.state == "error" && finding.remedy.is_some(),
        "{finding:?}"
    );
    world.finish().await;
}

#[tokio::test]
async fn doctor_finds_the_lowest_connection_limit_without_special_rights() {
    let world = World::new().await;
    // A user of this test's own without the right to read the sessions of others.
    world
        .change_database(
            "do $$ begin
                 execute format('create role %I login password ''s3cr3t'' connection limit 40', current_database());
                 execute format('grant connect on database %1$I to %1$I', current_database());
                 execute format('grant select on _sqlx_migrations to %I', current_database());
             end $$",
        )
        .await;
    let (server, database) = world
        .database_url()
        .rsplit_once('/')
        .expect("a URL with a database");
    let (_, server) = server.rsplit_once('@').expect("a URL with a user");
    let url = format!("postgres://{database}:s3cr3t@{server}/{database}");
    let settings = [("DATABASE_URL", url.as_str())];
    let connections = async || the(&doctor(&world, &settings).await, "postgres.connections");

    let finding = connections().await;
    let found = format!(" of 40 connections are used (the connection limit of role {database})");
    assert!(
        finding.state == "ok" && finding.found.contains(&found),
        "{finding:?}"
    );
    world
        .change_database("do $$ begin execute format('alter database %I connection limit 35', current_database()); end $$")
        .await;
    let finding = connections().await;
    let (taken, limit) = finding
        .found
        .split_once(" of ")
        .expect("how many of how many");
    assert!(
        limit.starts_with(&format!(
            "35 connections are used (the connection limit of database {database})"
        )),
        "{finding:?}"
    );
    assert!(
        taken.parse::<u32>().expect("a number") > 1,
        "the test's own connections count too: {finding:?}"
    );
    world.change_database("do $$ begin execute format('alter role %I connection limit 11', current_database()); end $$").await;
    let finding = connections().await;
    assert!(
        finding.state == "error" && finding.found.contains(" of 11 connections are used"),
        "{finding:?}"
    );
    assert!(
        finding
            .remedy
            .is_some_and(|remedy| remedy.starts_with("Raise the connection limit of role"))
    );
    // One role alone needs fewer.
    let ingest = world
        .shopbell_with(
            &settings,
            &["doctor", "--role", "ingest", "--output", "json"],
        )
        .await;
    let finding = the(&ingest, "postgres.connections");
    assert!(
        finding.state == "ok" && finding.found.contains(" of 11 connections are used"),
        "{finding:?}"
    );

    world
        .change_database(
            "do $$ begin
                 execute format('drop owned by %I', current_database());
                 execute format('drop role %I', current_database());
                 execute format('alter database %I connection limit -1', current_database());
             end $$",
        )
        .await;
    world.finish().await;
}

#[tokio::test]
async fn a_slot_that_keeps_nothing_raises_no_alarm() {
    let world = World::new().await;
    world
        .change_database("select pg_create_physical_replication_slot(current_database())")
        .await;
    let (_, name) = world
        .database_url()
        .rsplit_once('/')
        .expect("a URL with a database");
    let findings = doctor(&world, &[])
        .await
        .succeeded()
        .json_lines::<Finding>();
    let finding = findings
        .iter()
        .find(|finding| finding.found.starts_with(name))
        .expect("the finding exists");
    assert_eq!(
        (finding.check.as_str(), finding.state.as_str()),
        ("postgres.replication_slots", "ok"),
        "{finding:?}"
    );
    world
        .change_database("select pg_drop_replication_slot(current_database())")
        .await;
    world.finish().await;
}

#[tokio::test]
async fn a_different_declaration_is_found_and_nothing_is_declared() {
    let world = World::new().await;
    let (prefix, broker) = (world.another_prefix(), world.broker().await);
    let (queue, exchange) = (format!("{prefix}.ingest"), format!("{prefix}.receipts"));
    broker.declare_classic(&queue).await;
    broker.declare_fanout(&exchange).await;
    let done = doctor(&world, &[("SHOPBELL_AMQP_PREFIX", &prefix)])
        .await
        .failed_with(1);
    let findings = done.json_lines::<Finding>();
    for (check, name) in [("rabbitmq.queue", &queue), ("rabbitmq.exchange", &exchange)] {
        let finding = findings
            .iter()
            .find(|finding| finding.found.starts_with(name))
            .expect("the finding exists");
        assert_eq!(
            (finding.check.as_str(), finding.state.as_str()),
            (check, "error")
        );
        assert!(
            finding
                .found
                .contains("PRECONDITION_FAILED - inequivalent arg"),
            "{finding:?}"
        );
    }
    let missing = findings
        .iter()
        .filter(|finding| finding.found.ends_with("is missing"));
    assert_eq!(missing.count(), 8, "{findings:?}");
    assert_eq!(
        broker.depth(&format!("{prefix}.dead-letter")).await,
        None,
        "a doctor declares nothing"
    );

    // Without the right to declare, the missing queue is an error.
    let settings = [
        ("SHOPBELL_AMQP_PREFIX", prefix.as_str()),
        ("SHOPBELL_AMQP_DECLARE", "false"),
    ];
    let findings = doctor(&world, &settings)
        .await
        .failed_with(1)
        .json_lines::<Finding>();
    let events = format!("{prefix}.events");
    let finding = findings
        .iter()
        .find(|finding| finding.found.starts_with(&events))
        .expect("the finding exists");
    assert_eq!(finding.state, "error", "{finding:?}");
    world.finish().await;
}

#[tokio::test]
async fn an_absent_dependency_is_named_and_the_rest_is_checked() {
    let world = World::new().await;
    let closed = [
        ("AMQP_URL", "amqp://shop:s3cr3t@127.0.0.1:1/"),
        ("SHOPBELL_WINDOWS", "7"),
    ];
    let done = doctor(&world, &closed).await.failed_with(1);
    assert!(!done.stdout.contains("s3cr3t"), "{}", done.stdout);
    let finding = the(&done, "rabbitmq");
    assert!(
        finding.state == "error"
            && finding
                .remedy
                .is_some_and(|remedy| remedy.contains("AMQP_URL"))
    );
    assert!(
        the(&done, "configuration")
            .found
            .contains("SHOPBELL_WINDOWS")
    );
    assert_eq!(the(&done, "postgres.schema").state, "ok");

    let closed = [("DATABASE_URL", "postgres://shop:s3cr3t@127.0.0.1:1/shop")];
    let done = doctor(&world, &closed).await.failed_with(1);
    assert_eq!(the(&done, "postgres").state, "error");
    assert_eq!(the(&done, "rabbitmq.version").state, "ok");
    assert!(!done.stdout.contains("s3cr3t"), "{}", done.stdout);
    world.finish().await;
}

#[tokio::test]
async fn doctor_warns_of_dead_letters_and_of_a_queue_without_a_consumer() {
    let world = World::new().await;
    let replica = world.serve().await;
    let bad = [
        "publish",
        "--recipient",
        "merchant-42",
        "--type",
        "order.created",
        "--data",
        "{}",
        "--unchecked",
    ];
    world.shopbell(&bad).await.succeeded();
    replica
        .metric_reaches("shopbell_events_dead_lettered_total", 1)
        .await;
    let done = doctor(&world, &[]).await.succeeded();
    let finding = the(&done, "rabbitmq.dead_letters");
    assert!(
        finding.state == "warning" && finding.found.starts_with("1 wait"),
        "{finding:?}"
    );
    assert_eq!(the(&done, "rabbitmq.ingest").state, "ok");

    replica.terminate().await;
    let done = doctor(&world, &[]).await.succeeded();
    assert_eq!(the(&done, "rabbitmq.ingest").state, "warning");
    world.finish().await;
}

#[tokio::test]
async fn a_policy_that_deletes_events_is_found_in_the_rabbitmqctl_output() {
    let world = World::new().await;
    world.shopbell(&["declare"]).await.succeeded();
    let names = [
        "ingest",
        "dead-letter",
        "unroutable",
        "gateways",
        "events",
        "entry",
    ];
    let [ingest, dead_letter, unroutable, gateways, events, entry] =
        names.map(|what| world.name(what));
    let queues = json!(
        [&ingest, &dead_letter, &unroutable, &gateways]
            .map(|name| json!({ "name": name, "policy": "all" }))
    );
    let policies =
        |definition: &str| json!([{ "name": "all", "pattern": ".*", "definition": definition }]);
    let binding = |source: &str, destination: &str| json!({ "source_name": source, "destination_name": destination, "routing_key": "#" });
    let bound = json!([
        binding(&dead_letter, &dead_letter),
        binding(&unroutable, &unroutable),
        binding(&events, &ingest),
        binding(&entry, &ingest)
    ]);
    let run = async |name: &str, policies: Value, bindings: &Value| {
        let printed = format!("{queues}\n{policies}\n[\n]\n{bindings}\n");
        let path = world.file(name, printed.as_bytes());
        world
            .shopbell_with(
                &[FEW_SESSIONS],
                &["doctor", "--output", "json", "--rabbitmqctl", &path],
            )
            .await
    };

    let done = run("ttl.json", policies(r#"{"message-ttl":2000}"#), &bound)
        .await
        .failed_with(1);
    let mut findings = done.json_lines::<Finding>();
    findings.retain(|finding| finding.check == "rabbitmq.policies");
    assert_eq!(
        findings.len(),
        3,
        "of ingest, dead letters and unroutable: {findings:?}"
    );
    assert!(
        findings
            .iter()
            .all(|finding| finding.state == "error" && finding.found.contains("message-ttl=2000"))
    );

    let done = run("unbound.json", policies("{}"), &json!([]))
        .await
        .failed_with(1);
    let unbound = done
        .json_lines::<Finding>()
        .into_iter()
        .filter(|finding| finding.check == "rabbitmq.bindings");
    assert_eq!(
        unbound.filter(|finding| finding.state == "error").count(),
        4,
        "{done:?}"
    );

    let done = run("good.json", policies("{}"), &bound).await.succeeded();
    assert_eq!(the(&done, "rabbitmq.policies").state, "ok");
    assert_eq!(the(&done, "rabbitmq.bindings").found, "all bindings exist");
    let found = the(&doctor(&world, &[]).await, "rabbitmq.policies").found;
    assert!(
        found.contains("rabbitmqctl") && found.contains("list_policies"),
        "{found}"
    );
    world.finish().await;
}

async fn doctor(world: &World, settings: &[(&str, &str)]) -> Done {
    let settings = [&[FEW_SESSIONS][..], settings].concat();
    world
        .shopbell_with(&settings, &["doctor", "--output", "json"])
        .await
}

/// The only finding of a check.
#[track_caller]
fn the(done: &Done, check: &str) -> Finding {
    let mut findings: Vec<Finding> = done.json_lines();
    findings.retain(|finding| finding.check == check);
    assert_eq!(findings.len(), 1, "{check} in {done:?}");
    findings.remove(0)
}
