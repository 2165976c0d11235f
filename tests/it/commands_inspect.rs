//! `shopbell inspect` shows support a feed.

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::support::{Event, World};

const MERCHANT: &str = "merchant-42";

#[derive(Debug, Deserialize)]
struct FeedState {
    last: u64,
    unread: u64,
    unhandled: u64,
    acked: u64,
    undelivered: u64,
    oldest_undelivered: Option<Envelope>,
    cursors: Vec<Cursor>,
    imports: Vec<Import>,
    newest: Vec<Envelope>,
}

#[derive(Debug, Deserialize)]
struct Envelope {
    seq: u64,
    id: String,
    event: String,
    delivered: bool,
    handled_at: Option<String>,
    handled_by: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Cursor {
    subscriber: String,
    device: String,
    acked: u64,
}

#[derive(Debug, Deserialize)]
struct Import {
    done: u64,
    total: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct Shown {
    notification: Envelope,
    data: Option<Box<RawValue>>,
}

/// The data of an import that the feed ends with.
const STARTED: &str = r#"{"import_id":"i-1","total":9}"#;

/// A feed of twelve orders, of which 4 are acknowledged and one is handled, and an import.
async fn feed_with_cursor_mark_and_import(world: &World) {
    let replica = world.serve().await;
    let publisher = world.publisher().await;
    publisher.publish_all(Event::orders(MERCHANT, 12)).await;
    world.expect_stored(MERCHANT, 12).await;
    let mut merchant = world
        .merchant(MERCHANT)
        .device("till")
        .connect(replica.public())
        .await;
    merchant.expect_seqs(1..=12).await;
    merchant.ack(MERCHANT, 4).await;
    merchant.handle(MERCHANT, &[3]).await;
    world.expect_cursor(MERCHANT, "till", 4).await;
    let publish = [
        "publish",
        "--recipient",
        MERCHANT,
        "--type",
        "import.started",
        "--data",
        STARTED,
    ];
    world.shopbell(&publish).await.succeeded();
    world.expect_stored(MERCHANT, 13).await;
}

#[tokio::test]
async fn inspect_shows_received_and_missing_notifications() {
    let world = World::new().await;
    feed_with_cursor_mark_and_import(&world).await;
    let inspect = ["inspect", MERCHANT, "--output", "json"];
    let done = world.shopbell(&inspect).await.succeeded();
    let [state] = &done.json_lines::<FeedState>()[..] else {
        panic!("one object: {done:?}")
    };
    assert_eq!(
        (state.last, state.acked, state.undelivered),
        (13, 4, 9),
        "{state:?}"
    );
    assert_eq!(
        world.unmarked(MERCHANT).await,
        (state.unread, state.unhandled)
    );
    assert_eq!(
        state.oldest_undelivered.as_ref().map(|oldest| oldest.seq),
        Some(5)
    );
    let cursors: Vec<_> = state
        .cursors
        .iter()
        .map(|c| (c.subscriber.as_str(), c.device.as_str(), c.acked))
        .collect();
    assert_eq!(cursors, [(MERCHANT, "till", 4)]);
    assert_eq!(
        state
            .imports
            .iter()
            .map(|import| (import.done, import.total))
            .collect::<Vec<_>>(),
        [(0, Some(9))]
    );
    let newest: Vec<_> = state.newest.iter().map(|newest| newest.seq).collect();
    assert_eq!(newest, (4..=13).rev().collect::<Vec<_>>());
    assert_eq!(state.newest[0].event, "import.started");
    assert!(
        !done.stdout.contains("total\":9}"),
        "no data: {}",
        done.stdout
    );
    // Without `--output json`: one line for each item.
    let output = world
        .shopbell(&["inspect", MERCHANT])
        .await
        .succeeded()
        .stdout;
    assert!(
        output.contains("oldest undelivered: #5")
            && output.contains("cursor of merchant-42 on till: #4"),
        "{output}"
    );
    world.finish().await;
}

#[tokio::test]
async fn inspect_shows_one_notification_and_its_data_on_request() {
    let world = World::new().await;
    feed_with_cursor_mark_and_import(&world).await;
    let one = ["inspect", MERCHANT, "--output", "json", "--seq", "3"];
    let Some(shown) = world
        .shopbell(&one)
        .await
        .succeeded()
        .json_lines::<Shown>()
        .pop()
    else {
        panic!("an object")
    };
    let envelope = &shown.notification;
    assert!(
        envelope.delivered && !envelope.id.is_empty() && envelope.handled_at.is_some(),
        "{envelope:?}"
    );
    assert_eq!(envelope.handled_by.as_deref(), Some(MERCHANT));
    assert!(shown.data.is_none(), "only with --data");
    let one = ["inspect", MERCHANT, "--seq", "13", "--data"];
    let done = world.shopbell(&one).await.succeeded();
    assert!(
        done.stdout.contains(STARTED) && done.stdout.contains("not delivered"),
        "{}",
        done.stdout
    );
    let json = world
        .shopbell(&[&one[..], &["--output", "json"]].concat())
        .await
        .succeeded()
        .json_lines::<Shown>();
    assert_eq!(json[0].data.as_deref().map(RawValue::get), Some(STARTED));

    world.finish().await;
}

#[tokio::test]
async fn inspect_reports_an_unknown_feed() {
    let world = World::new().await;
    let nobody = world
        .shopbell(&["inspect", "merchant-7"])
        .await
        .failed_with(1);
    assert!(
        nobody.stderr.contains("there is no feed merchant-7") && nobody.stdout.is_empty(),
        "{nobody:?}"
    );
    let nothing = world
        .shopbell(&["inspect", "merchant-7", "--seq", "1"])
        .await
        .failed_with(1);
    assert!(
        nothing.stderr.contains("no notification #1 in merchant-7"),
        "{nothing:?}"
    );
    world
        .shopbell(&["inspect", "merchant-7", "--data"])
        .await
        .failed_with(2);

    // A subscriber that connects before the first order is listed too.
    let replica = world.serve().await;
    let _merchant = world.merchant("merchant-7").connect(replica.public()).await;
    world.expect_cursor("merchant-7", "", 0).await;
    let output = world
        .shopbell(&["inspect", "merchant-7"])
        .await
        .succeeded()
        .stdout;
    assert!(
        output.contains("merchant-7: 0 notifications")
            && output.contains("cursor of merchant-7: #0"),
        "{output}"
    );
    world.finish().await;
}
