//! Presence: which devices have a session, on any replica, and whether they can ring.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Event, PATIENCE, StreamClient, World, eventually, holds, http};

const MERCHANT: &str = "merchant-42";
const PATH: &str = "/v1/feeds/merchant-42/presence";
/// A lease and a half, because the killed replica may have renewed its lease just before.
const LEASE_BOUND: Duration = Duration::from_secs(45);
/// A session that waits for a locked table waits longer.
const PROMPT: Duration = Duration::from_secs(5);

/// The presence of the merchant; the error if the database is away.
async fn presence(world: &World, address: SocketAddr) -> Result<Value, String> {
    let authorization = format!("Bearer {}", world.token(MERCHANT).sign());
    let reply = http::get_with(address, PATH, &[("Authorization", &authorization)]).await;
    let reply = reply.expect("a response");
    if reply.status == 503 {
        return Err(reply.text());
    }
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!(reply.header("cache-control"), Some("no-store"));
    Ok(serde_json::from_slice(&reply.body).expect("JSON"))
}

/// Waits until each device has this state: whether it is online, and whether it can ring.
async fn expect(world: &World, address: SocketAddr, wanted: &[(&str, bool, Option<&str>)]) {
    expect_within(PATIENCE, world, address, wanted).await;
}

async fn expect_within(
    bound: Duration,
    world: &World,
    address: SocketAddr,
    wanted: &[(&str, bool, Option<&str>)],
) {
    eventually("the devices have this presence", bound, async || {
        let presence = presence(world, address).await?;
        let devices = presence["devices"].as_array().expect("a list");
        let mut seen: Vec<_> = devices
            .iter()
            .map(|device| {
                let name = device["device"].as_str().unwrap_or_default();
                let online = device["online"] == true;
                (name, online, device["can_ring"].as_str())
            })
            .collect();
        seen.sort_unstable();
        let any = wanted.iter().any(|(_, online, _)| *online);
        holds(seen == wanted && presence["online"] == any, &presence)
    })
    .await;
}

fn device_state(can_ring: &str) -> String {
    json!({"type": "device_state", "can_ring": can_ring, "visible": true}).to_string()
}

#[tokio::test]
async fn devices_of_two_replicas_are_online_until_they_leave() {
    let world = World::new().await;
    let [one, other] = [world.serve().await, world.serve().await];
    let counter = world.merchant(MERCHANT).device("counter");
    let mut counter = counter.connect(one.public()).await;
    let kitchen = world.merchant(MERCHANT).device("kitchen");
    let mut kitchen = kitchen.connect(other.public()).await;
    for replica in [&one, &other] {
        let both = [("counter", true, None), ("kitchen", true, None)];
        expect(&world, replica.public(), &both).await;
    }
    counter.send_text(&device_state("yes")).await;
    kitchen.send_text(&device_state("blocked")).await;
    let ring = |counter, kitchen| {
        [
            ("counter", true, Some(counter)),
            ("kitchen", true, Some(kitchen)),
        ]
    };
    expect(&world, one.public(), &ring("yes", "blocked")).await;
    kitchen.send_text(&device_state("asleep")).await;
    expect(&world, one.public(), &ring("yes", "asleep")).await;
    // A value that this server does not know changes nothing.
    kitchen.send_text(&device_state("hums")).await;
    assert_eq!(kitchen.next_error().await.code, "unknown_type");

    let found = presence(&world, one.public()).await.expect("presence");
    assert_eq!(
        (&found["feed"], &found["sessions"]),
        (&json!(MERCHANT), &json!(2))
    );
    let device = &found["devices"][0];
    assert_eq!(
        [
            &device["subscriber"],
            &device["sessions"],
            &device["visible"]
        ],
        [&json!(MERCHANT), &json!(1), &json!(true)]
    );
    assert!(device["connected_at"].is_string() && device["last_seen"].is_string());
    let printed = world.shopbell(&["presence", MERCHANT]).await.succeeded();
    assert!(
        printed.stdout.contains("merchant-42: online, 2 sessions\n"),
        "{printed:?}"
    );
    assert!(
        printed.stdout.contains("merchant-42 on kitchen: online"),
        "{printed:?}"
    );

    // Its cursor has no newer time than this, so only the end of its session moves `last_seen`.
    world
        .change_database("update cursors set updated_at = now() - interval '1 day', seen_at = now() - interval '1 day'")
        .await;
    counter.leave().await;
    let left = [("counter", false, None), ("kitchen", true, Some("asleep"))];
    expect(&world, other.public(), &left).await;
    let recent = "select count(*) from cursors where feed = 'merchant-42' and device = 'counter'
                  and seen_at > now() - interval '1 minute'";
    assert_eq!(world.number(recent).await, 1);
    kitchen.vanish();
    expect(
        &world,
        one.public(),
        &[("counter", false, None), ("kitchen", false, None)],
    )
    .await;
    assert_eq!(world.number("select count(*) from presences").await, 0);
    world.finish().await;
}

#[tokio::test]
async fn sessions_of_a_killed_replica_are_offline_when_its_lease_ends() {
    let world = World::new().await;
    let [killed, other] = [world.serve().await, world.serve().await];
    let counter = world.merchant(MERCHANT).device("counter");
    let mut counter = counter.connect(killed.public()).await;
    let kitchen = world.merchant(MERCHANT).device("kitchen");
    let _kitchen = kitchen.connect(other.public()).await;
    counter.send_text(&device_state("yes")).await;
    let both = [("counter", true, Some("yes")), ("kitchen", true, None)];
    expect(&world, other.public(), &both).await;
    killed.kill();
    expect(&world, other.public(), &both).await;
    let one = [("counter", false, None), ("kitchen", true, None)];
    expect_within(LEASE_BOUND, &world, other.public(), &one).await;
    assert_eq!(world.number("select count(*) from presences").await, 2);

    // Housekeeping runs at the start of a replica. The killed one begins with a new id.
    world
        .change_database("update gateways set leased_until = now() - interval '1 hour' where leased_until < now()")
        .await;
    killed.restart().await;
    eventually(
        "the rows of the killed replica are deleted",
        PATIENCE,
        async || {
            let rows = world.number("select count(*) from presences").await;
            let gateways = world.number("select count(*) from gateways").await;
            holds((rows, gateways) == (1, 2), format!("{rows} {gateways}"))
        },
    )
    .await;
    expect(&world, other.public(), &one).await;
    world.finish().await;
}

#[tokio::test]
async fn presence_that_postgres_lost_is_written_again() {
    let world = World::new().await;
    let replica = world.serve().await;
    let counter = world.merchant(MERCHANT).device("counter");
    let mut counter = counter.connect(replica.public()).await;
    counter.send_text(&device_state("muted")).await;
    let muted = [("counter", true, Some("muted"))];
    expect(&world, replica.public(), &muted).await;
    // A crash of Postgres ends all connections and empties unlogged tables.
    world
        .change_database(
            "truncate gateways, presences;
             select pg_terminate_backend(pid) from pg_stat_activity
             where datname = current_database() and pid <> pg_backend_pid() and application_name = 'shopbell'",
        )
        .await;
    expect(&world, replica.public(), &muted).await;
    let leases = "select count(*) from gateways where leased_until > now()";
    assert_eq!(world.number(leases).await, 1);
    // The end of a lease, as after a long time without the database.
    world
        .change_database("update gateways set leased_until = now() - interval '1 second'")
        .await;
    expect(&world, replica.public(), &muted).await;
    assert!(replica.terminate().await.success());
    assert_eq!(world.number(leases).await, 0);
    world.finish().await;
}

#[tokio::test]
async fn a_token_reads_the_presence_of_its_feeds_and_its_recipients() {
    let world = World::new().await;
    let replica = world.serve().await;
    let ask = async |token: Option<String>, path: &str| {
        let authorization = token.map(|token| format!("Bearer {token}"));
        let headers = authorization
            .iter()
            .map(|value| ("Authorization", value.as_str()));
        let headers: Vec<_> = headers.collect();
        let reply = http::get_with(replica.public(), path, &headers).await;
        reply.expect("a response")
    };
    let token = |subscriber| world.token(subscriber);
    let prefix = token("shop").publish(["merchant-*"]);
    let only_publishes = prefix.clone().feeds([]);
    for allowed in [
        token(MERCHANT),
        token("cook").feeds([MERCHANT]),
        prefix.clone(),
        only_publishes,
    ] {
        let reply = ask(Some(allowed.sign()), PATH).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        let found: Value = serde_json::from_slice(&reply.body).expect("JSON");
        assert_eq!(
            found,
            json!({"feed": MERCHANT, "online": false, "sessions": 0, "devices": []})
        );
    }
    for (refused, path, status) in [
        (None, PATH, 401),
        (
            Some(token(MERCHANT).sign_with_a_foreign_secret()),
            PATH,
            401,
        ),
        (Some(token("other").sign()), PATH, 403),
        (
            Some(token("shop").publish(["merchant-1*"]).sign()),
            PATH,
            403,
        ),
        (Some(token(MERCHANT).sign()), "/v1/feeds/all/presence", 400),
        (
            Some(token(MERCHANT).sign()),
            "/v1/feeds/a%20b/presence",
            400,
        ),
    ] {
        ask(refused, path).await.expect_problem(status);
    }
    let refused = replica.metric_where("shopbell_presence_refused_total", "reason=\"feed\"");
    assert_eq!(refused.await, 2);
    world.finish().await;
}

/// Posts an order for each recipient, and returns `online` of each verdict.
async fn online(world: &World, address: SocketAddr, recipients: &[&str]) -> Vec<Option<bool>> {
    let token = world.token("shop").publish(["*", "all"]).sign();
    let authorization = format!("Bearer {token}");
    let headers = [
        ("Authorization", authorization.as_str()),
        ("Content-Type", "application/cloudevents-batch+json"),
    ];
    let events: Vec<_> = recipients
        .iter()
        .map(|recipient| Event::new("notice", recipient, "1"))
        .collect();
    let body = serde_json::to_string(&events).expect("events are JSON");
    let reply = http::post(address, "/v1/events", &headers, &body).await;
    let reply = reply.expect("a response");
    assert_eq!(reply.status, 200, "{reply:?}");
    let verdicts: Vec<Value> = serde_json::from_slice(&reply.body).expect("verdicts");
    assert!(
        verdicts
            .iter()
            .all(|verdict| verdict["verdict"] == "accepted"),
        "{verdicts:?}"
    );
    verdicts
        .iter()
        .map(|verdict| verdict["online"].as_bool())
        .collect()
}

#[tokio::test]
async fn a_verdict_has_whether_the_recipient_is_online() {
    let world = World::new().await;
    let [one, other] = [world.serve().await, world.serve().await];
    let recipients = ["merchant-42", "merchant-43", "all", "merchant-42"];
    let offline = [Some(false), Some(false), None, Some(false)];
    let mut merchant = None;
    let here = [Some(true), Some(false), None, Some(true)];
    for wanted in [offline, here, offline] {
        eventually("the verdicts have this presence", PATIENCE, async || {
            let online = online(&world, other.public(), &recipients).await;
            holds(online == wanted, format!("{online:?}"))
        })
        .await;
        merchant = match merchant {
            None => Some(world.merchant(MERCHANT).connect(one.public()).await),
            Some(_) => None,
        };
    }
    world.finish().await;
}

#[tokio::test]
async fn presence_that_cannot_be_written_delays_nothing() {
    let world = World::new().await;
    let replica = world.serve().await;
    let address = replica.public();
    let first = world.merchant(MERCHANT).device("first");
    let first = first.connect(address).await;
    expect(&world, address, &[("first", true, None)]).await;

    let lock = world
        .lock("lock table presences in access exclusive mode")
        .await;
    first.vanish();
    let begun = Instant::now();
    let mut merchant = world
        .merchant(MERCHANT)
        .device("second")
        .connect(address)
        .await;
    assert_eq!(online(&world, address, &[MERCHANT]).await, [None]);
    assert_eq!(online(&world, address, &[MERCHANT]).await, [None]);
    merchant.take_seqs(1..=2).await;
    world.expect_cursor(MERCHANT, "second", 2).await;
    let took = begun.elapsed();
    assert!(took < PROMPT, "{took:?}");
    replica
        .metric_is("shopbell_retries_total", "part=\"presence\"", 1)
        .await;
    drop(lock);
    expect(
        &world,
        address,
        &[("first", false, None), ("second", true, None)],
    )
    .await;
    world.finish().await;
}

#[tokio::test]
async fn sessions_over_http_are_present_and_a_poll_for_a_moment() {
    let world = World::new().await;
    let [one, other] = [world.serve().await, world.serve().await];
    let token = world.token(MERCHANT);
    let client = StreamClient::new(one.public(), &token);
    let stream = client.open("/v1/stream?device=till").await;
    let elsewhere = StreamClient::new(other.public(), &token);
    expect(&world, one.public(), &[("till", true, None)]).await;
    let state: Value = serde_json::from_str(&device_state("muted")).expect("JSON");
    let reply = elsewhere
        .post("/v1/frames?device=till", &state.to_string())
        .await;
    assert_eq!(
        (reply.status, reply.text().trim()),
        (200, "[]"),
        "{reply:?}"
    );
    expect(&world, one.public(), &[("till", true, Some("muted"))]).await;
    drop(stream);
    expect(&world, one.public(), &[("till", false, None)]).await;

    client.poll("/v1/stream?device=till&wait=0").await;
    let online = [("till", true, None)];
    expect(&world, one.public(), &online).await;
    for _ in 0..3 {
        client.poll("/v1/stream?device=till&wait=1").await;
        expect(&world, one.public(), &online).await;
    }
    let written = one.metric("shopbell_presence_rows_written_total").await;
    assert_eq!(written, 3, "polls of a device that is online write nothing");
    expect(&world, one.public(), &[("till", false, None)]).await;
    world.finish().await;
}

#[tokio::test]
async fn a_feed_with_many_devices_lists_the_online_ones_first() {
    let world = World::new().await;
    let replica = world.serve().await;
    world
        .change_database(
            "insert into cursors (feed, subscriber, device, acked_seq, updated_at, seen_at)
             select 'merchant-42', 'cook-' || n, '', 0, now() - n * interval '1 minute', now() - n * interval '1 minute'
             from generate_series(1, 300) n",
        )
        .await;
    let cook = world.token("cook-300").feeds([MERCHANT]);
    let _cook = world
        .merchant("cook-300")
        .token(cook.sign())
        .connect(replica.public())
        .await;
    eventually("the cook is online", PATIENCE, async || {
        let presence = presence(&world, replica.public()).await?;
        let names: Vec<_> = presence["devices"]
            .as_array()
            .expect("a list")
            .iter()
            .collect();
        let first: Vec<_> = names
            .iter()
            .take(2)
            .map(|one| one["subscriber"].clone())
            .collect();
        let is_cook = first == ["cook-300", "cook-1"];
        holds(
            is_cook && names.len() == 200 && presence["sessions"] == 1,
            &presence,
        )
    })
    .await;
    world.finish().await;
}
