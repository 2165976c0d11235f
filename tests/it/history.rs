//! The history of a feed by HTTP: newest first, page by page, and only the feeds of the token.

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::support::{Event, Replica, World, http};

const MERCHANT: &str = "merchant-42";

#[derive(Debug, Deserialize)]
struct Page {
    feed: String,
    last: u64,
    version: u64,
    unread: u64,
    unhandled: u64,
    notifications: Vec<Entry>,
    next: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct Entry {
    r#type: String,
    seq: u64,
    event: String,
    data: Box<RawValue>,
    read_at: Option<String>,
    handled_by: Option<String>,
}

impl Page {
    fn seqs(&self) -> Vec<u64> {
        self.notifications.iter().map(|entry| entry.seq).collect()
    }
}

async fn ask(world: &World, replica: &Replica, who: &str, path: &str) -> http::Reply {
    let authorization = format!("Bearer {}", world.token(who).sign());
    http::get_with(replica.public(), path, &[("Authorization", &authorization)])
        .await
        .expect("an answer")
}

async fn page(world: &World, replica: &Replica, query: &str) -> Page {
    let path = format!("/v1/feeds/{MERCHANT}/notifications{query}");
    let reply = ask(world, replica, MERCHANT, &path).await;
    assert_eq!(
        (reply.status, reply.header("content-type")),
        (200, Some("application/json")),
        "{reply:?}"
    );
    assert_eq!(reply.header("cache-control"), Some("no-store"));
    serde_json::from_slice(&reply.body).unwrap_or_else(|error| panic!("{error}: {}", reply.text()))
}

#[tokio::test]
async fn a_feed_is_paged_newest_first_with_its_marks() {
    let world = World::new().await;
    let replica = world.serve().await;
    let data = r#"{"text" : "as it came", "n":1e400}"#;
    let publisher = world.publisher().await;
    publisher.publish_all(Event::orders(MERCHANT, 119)).await;
    publisher
        .publish(&Event::new("custom.thing", MERCHANT, data))
        .await;
    world.expect_stored(MERCHANT, 120).await;
    let mut merchant = world
        .merchant(MERCHANT)
        .after(MERCHANT, 119)
        .connect(replica.public())
        .await;
    merchant.take_seqs(120..=120).await;
    merchant.read_through(MERCHANT, 100).await;
    merchant.next_state().await;
    merchant.handle(MERCHANT, &[3, 118]).await;
    merchant.next_state().await;

    let first = page(&world, &replica, "").await;
    assert_eq!(
        (first.feed.as_str(), first.last, first.version),
        (MERCHANT, 120, 2)
    );
    assert_eq!((first.unread, first.unhandled), (20, 118));
    assert_eq!(
        (first.seqs(), first.next),
        ((71..=120).rev().collect(), Some(71))
    );
    let newest = &first.notifications[0];
    assert_eq!(
        (
            newest.r#type.as_str(),
            newest.event.as_str(),
            newest.data.get()
        ),
        ("notification", "custom.thing", data)
    );
    assert_eq!(first.notifications[2].handled_by.as_deref(), Some(MERCHANT));
    assert!(first.notifications[20].read_at.is_some() && first.notifications[19].read_at.is_none());
    let second = page(&world, &replica, "?before=71").await;
    assert_eq!(
        (second.seqs(), second.next),
        ((21..=70).rev().collect(), Some(21))
    );
    let third = page(&world, &replica, "?before=21&other=ignored").await;
    assert_eq!((third.seqs(), third.next), ((1..=20).rev().collect(), None));

    assert_eq!(
        page(&world, &replica, "?unread=true").await.seqs(),
        (101..=120).rev().collect::<Vec<_>>()
    );
    let unhandled = page(&world, &replica, "?unhandled=true&limit=4").await;
    assert_eq!(
        (unhandled.seqs(), unhandled.next),
        (vec![120, 119, 117, 116], Some(116))
    );
    assert_eq!(
        page(&world, &replica, "?before=5&unhandled=true")
            .await
            .seqs(),
        [4, 2, 1]
    );
    world.finish().await;
}

#[tokio::test]
async fn an_import_is_one_line_of_history_and_its_failures() {
    let world = World::new().await;
    let replica = world.serve().await;
    let publisher = world.publisher().await;
    publisher.publish(&Event::order(MERCHANT)).await;
    publisher
        .publish_all((1..=20).map(|index| Event::import_item(MERCHANT, "i", index, index == 7)))
        .await;
    publisher
        .publish(&Event::order(MERCHANT).expires_in_seconds(-1))
        .await;
    world.expect_stored(MERCHANT, 22).await;
    let collapsed = page(&world, &replica, "").await;
    assert_eq!(
        collapsed.seqs(),
        [21, 8, 1],
        "expired notifications are not in the page either"
    );
    assert_eq!(
        page(&world, &replica, "?collapse=false").await.seqs(),
        (1..=22).rev().collect::<Vec<_>>()
    );
    let counted = page(&world, &replica, "?unhandled=true").await;
    assert_eq!(
        (counted.seqs(), counted.unhandled),
        (vec![22, 8, 1], 3),
        "the pages have as many notifications as the counts"
    );
    world.finish().await;
}

#[tokio::test]
async fn a_page_with_few_matches_may_be_empty_and_has_a_next_cursor() {
    let world = World::new().await;
    let replica = world.serve().await;
    world
        .publisher()
        .await
        .publish_all(Event::orders(MERCHANT, 1))
        .await;
    world.expect_stored(MERCHANT, 1).await;
    world
        .execute(
            "insert into notifications (feed, seq, identity, source, event_id, event_type, time, read_at, handled_at)
             select 'merchant-42', n, event_identity('merchant-42', '/s', n::text), '/s', n::text, 't', now(), now(), now() from generate_series(2, 12000) n",
        )
        .await;
    world
        .execute("update feeds set last_seq = 12000 where feed = 'merchant-42'")
        .await;
    assert_eq!(walk(&world, &replica, "unhandled=true").await, (vec![1], 3));
    world.finish().await;
}

/// All numbers of the pages, and the count of the pages.
async fn walk(world: &World, replica: &Replica, query: &str) -> (Vec<u64>, usize) {
    let (mut found, mut pages, mut before) = (Vec::new(), 0, String::new());
    loop {
        let page = page(world, replica, &format!("?{query}{before}")).await;
        found.extend(page.seqs());
        pages += 1;
        match page.next {
            Some(next) => before = format!("&before={next}"),
            None => return (found, pages),
        }
    }
}

#[tokio::test]
async fn few_unhandled_of_many_are_found_without_another_walk() {
    let world = World::new().await;
    let replica = world.serve().await;
    world
        .execute(
            "insert into notifications (feed, seq, identity, source, event_id, event_type, time, read_at, handled_at)
             select 'merchant-42', n, event_identity('merchant-42', '/s', n::text), '/s', n::text, 't', now(),
                    case when n <> 3 then now() end, case when n not in (3, 30400, 30500) then now() end
             from generate_series(1, 31000) n",
        )
        .await;
    world.execute("insert into feeds (feed, last_seq, unread, unhandled) values ('merchant-42', 31000, 1, 3)").await;
    assert_eq!(
        walk(&world, &replica, "unhandled=true&limit=2").await,
        (vec![30_500, 30_400, 3], 7)
    );
    // A walk remembers the blocks without such notifications.
    assert_eq!(
        walk(&world, &replica, "unhandled=true&limit=2").await,
        (vec![30_500, 30_400, 3], 2)
    );
    let first = page(&world, &replica, "?unhandled=true").await;
    assert_eq!(
        (first.seqs(), first.next),
        (vec![30_500, 30_400, 3], None),
        "the history has all counted notifications"
    );
    assert_eq!(walk(&world, &replica, "unread=true").await, (vec![3], 7));
    assert_eq!(walk(&world, &replica, "unread=true").await, (vec![3], 1));
    assert_eq!(
        page(&world, &replica, "?before=30400&unhandled=true")
            .await
            .seqs(),
        [3]
    );
    assert_eq!(
        page(&world, &replica, "").await.seqs(),
        (30_951..=31_000).rev().collect::<Vec<_>>()
    );

    let mut merchant = world
        .merchant(MERCHANT)
        .after(MERCHANT, 31_000)
        .connect(replica.public())
        .await;
    for seq in [3, 30_400, 30_500] {
        merchant.handle(MERCHANT, &[seq]).await;
        merchant.next_state().await;
    }
    let none = page(&world, &replica, "?unhandled=true").await;
    assert_eq!((none.seqs(), none.next, none.unhandled), (vec![], None, 0));
    world.finish().await;
}

#[tokio::test]
async fn unknown_feeds_and_parameters_are_refused() {
    let world = World::new().await;
    let replica = world.serve().await;
    let path = |feed: &str, query: &str| format!("/v1/feeds/{feed}/notifications{query}");
    for (path, status) in [
        (path("merchant-43", ""), 403),
        (path("a%20b", ""), 400),
        (path(MERCHANT, "?limit=0"), 400),
        (path(MERCHANT, "?limit=201"), 400),
        (path(MERCHANT, "?before=0"), 400),
        (path(MERCHANT, "?before=x"), 400),
        (path(MERCHANT, "?unread=maybe"), 400),
        ("/v1/feeds".into(), 404),
    ] {
        ask(&world, &replica, MERCHANT, &path)
            .await
            .expect_problem(status);
    }
    let reply = http::get(replica.public(), &path(MERCHANT, ""))
        .await
        .expect("an answer");
    reply.expect_problem(401);
    assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
    for (reason, refused) in [
        ("bad_request", 6),
        ("feed", 1),
        ("token", 1),
        ("not_ready", 0),
    ] {
        let counted = replica.metric_where("shopbell_history_refused_total", reason);
        assert_eq!(counted.await, refused, "{reason}");
    }
    let slashed = world.token("shop/1").sign();
    let authorization = format!("Bearer {slashed}");
    let headers = [("Authorization", authorization.as_str())];
    let reply = http::get_with(replica.public(), &path("shop%2F1", ""), &headers)
        .await
        .expect("an answer");
    assert_eq!(reply.status, 200, "{reply:?}");
    world.finish().await;
}

#[tokio::test]
async fn feeds_named_like_dot_segments_are_found_where_url_parsers_put_them() {
    let world = World::new().await;
    let replica = world.serve().await;
    // `fetch` and every proxy that normalises paths remove the segments `.` and `..` (RFC 3986
    // §5.2.4).
    for (feed, address) in [
        (".", "/v1/feeds/notifications"),
        ("..", "/v1/notifications"),
    ] {
        world.publisher().await.publish(&Event::order(feed)).await;
        world.expect_stored(feed, 1).await;
        let encoded = format!("/v1/feeds/{}/notifications", feed.replace('.', "%2E"));
        let query = format!("/v1/notifications?feed={feed}");
        for path in [address, &encoded, &query] {
            let reply = ask(&world, &replica, feed, path).await;
            assert_eq!(reply.status, 200, "{feed} at {path}: {reply:?}");
            let page: Page = serde_json::from_slice(&reply.body).expect("a page");
            assert_eq!((page.feed.as_str(), page.seqs()), (feed, vec![1]));
        }
    }
    let reply = ask(&world, &replica, MERCHANT, "/v1/notifications").await;
    reply.expect_problem(400);
    assert!(reply.text().contains("?feed="), "{}", reply.text());
    ask(&world, &replica, MERCHANT, "/v1/feeds/notifications")
        .await
        .expect_problem(403);
    world.finish().await;
}

#[tokio::test]
async fn pages_of_listed_origins_may_ask_and_others_may_not() {
    let world = World::new().await;
    let replica = world
        .replica()
        .with("SHOPBELL_ALLOWED_ORIGINS", "https://admin.example")
        .start()
        .await;
    let path = format!("/v1/feeds/{MERCHANT}/notifications");
    for (origin, allowed) in [
        ("https://admin.example", true),
        ("https://evil.example", false),
    ] {
        let preflight = [
            ("Origin", origin),
            ("Access-Control-Request-Method", "GET"),
            ("Access-Control-Request-Headers", "authorization"),
        ];
        let reply = http::request("OPTIONS", replica.public(), &path, &preflight)
            .await
            .expect("an answer");
        assert_eq!(
            reply.header("access-control-allow-origin"),
            allowed.then_some(origin),
            "{reply:?}"
        );
        let reply = http::get_with(replica.public(), &path, &[("Origin", origin)])
            .await
            .expect("an answer");
        reply.expect_problem(401);
        assert_eq!(
            reply.header("access-control-allow-origin"),
            allowed.then_some(origin),
            "{reply:?}"
        );
    }
    world.finish().await;
}
