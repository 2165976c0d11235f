//! `shopbell verify` finds each contradiction of the rows, and none in a healthy database.

mod bounds;

use std::collections::BTreeMap;

use serde::Deserialize;
use sqlx::Connection as _;
use sqlx::postgres::PgConnection;

use crate::support::{Event, World};

const MERCHANT: &str = "merchant-42";
/// The identity of its event begins with its time.
const UUID_OF_VERSION_7: &str = "0190c0de-5b00-7abc-8def-0123456789ab";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Problem {
        check: String,
        feed: Option<String>,
        found: String,
    },
    Verdict {
        feeds: u64,
        notifications: u64,
        indexed_rows: u64,
        problems: BTreeMap<String, u64>,
    },
    More {
        check: String,
        problems: u64,
    },
}

#[tokio::test]
async fn verify_finds_no_problem_while_replicas_work() {
    let world = World::new().await;
    let (first, second) = (world.serve().await, world.serve().await);
    let publisher = world.publisher().await;
    publisher.publish_all(Event::orders(MERCHANT, 4)).await;
    let timed = Event::order(MERCHANT).id(UUID_OF_VERSION_7);
    publisher.publish(&timed).await;
    let mut merchant = world.merchant(MERCHANT).connect(first.public()).await;
    merchant.take_seqs(1..=5).await;
    merchant.read(MERCHANT, &[1, 3]).await;
    merchant.handle(MERCHANT, &[2]).await;
    merchant.ack(MERCHANT, 5).await;
    merchant.next_state().await;

    let publishing = async {
        for round in 0..20 {
            for number in 0..20 {
                let recipient = format!("merchant-{}", number % 7);
                publisher.publish(&Event::order(&recipient)).await;
                publisher
                    .publish(&Event::import_item(
                        &recipient,
                        "i-1",
                        number + round + 1,
                        number == 7,
                    ))
                    .await;
            }
            publisher.publish(&Event::order(MERCHANT)).await;
            let mut other = world
                .merchant(MERCHANT)
                .device("second")
                .connect(second.public())
                .await;
            other.read_through(MERCHANT, 3 + round as u64).await;
            other.ack(MERCHANT, 4).await;
            other.leave().await;
        }
    };
    let verifying = async {
        for _ in 0..20 {
            world.shopbell(&["verify"]).await.succeeded();
        }
    };
    tokio::join!(publishing, verifying);
    world.expect_stored(MERCHANT, 25).await;

    let done = world
        .shopbell(&["verify", "--output", "json"])
        .await
        .succeeded();
    let lines = done.json_lines::<Line>();
    let [
        Line::Verdict {
            feeds,
            notifications,
            indexed_rows,
            problems,
        },
    ] = &lines[..]
    else {
        panic!("{lines:?}")
    };
    assert_eq!((*feeds, *notifications, problems.len()), (8, 825, 0));
    let rows = "select (select count(*) from feeds) + (select count(*) from notifications) + (select count(*) from cursors)";
    assert!(*indexed_rows >= world.number(rows).await, "{lines:?}");
    let done = world.shopbell(&["verify", MERCHANT]).await.succeeded();
    assert_eq!(
        done.stdout,
        "1 feeds with 25 notifications and 2 cursors, 0 rows in indexes: no problem\n"
    );
    let typo = world.shopbell(&["verify", "nobody"]).await.failed_with(1);
    assert!(
        typo.stdout.is_empty() && typo.stderr.contains("there is no feed nobody"),
        "{typo:?}"
    );
    world.finish().await;
}

/// Each contradiction: the feed that it makes, the statements, the check, and a part of the text.
/// The feed has ten notifications, which are read up to 4, and two marks.
const CONTRADICTIONS: [(&str, &str, &str, &str); 32] = [
    (
        "missing",
        "delete from notifications where feed = 'missing' and seq = 3",
        "numbers",
        "1 notifications from 1 to 10 are missing, the first is 3",
    ),
    (
        "cut",
        "delete from notifications where feed = 'cut' and seq > 6",
        "numbers",
        "4 notifications from 1 to 10 are missing, the first is 7",
    ),
    (
        "above",
        "update notifications set seq = 11 where feed = 'above' and seq = 10",
        "numbers",
        "the newest number should be 10, but 11 is stored",
    ),
    (
        "below",
        "update feeds set trimmed_seq = 2 where feed = 'below'",
        "numbers",
        "numbers up to 2 should be removed, but 1 is stored",
    ),
    (
        "trimmed",
        "update feeds set trimmed_seq = 20 where feed = 'trimmed'",
        "numbers",
        "numbers up to 20 should be removed, but the newest number is 10",
    ),
    (
        "enormous",
        "update feeds set last_seq = 4000000000 where feed = 'enormous'",
        "numbers",
        "3999999990 notifications from 1 to 4000000000 are missing, the first is 11",
    ),
    (
        "largest",
        "update feeds set last_seq = 9223372036854775807 where feed = 'largest'",
        "numbers",
        "9223372036854775797 notifications from 1 to 9223372036854775807 are missing, the first is 11",
    ),
    (
        "orphan",
        "delete from feeds where feed = 'orphan'",
        "numbers",
        "10 notifications are stored, but the feed has no row",
    ),
    (
        "unread",
        "update feeds set unread = unread + 1 where feed = 'unread'",
        "counts",
        "the count of unread notifications is 7, but 6 have no read mark",
    ),
    (
        "unhandled",
        "update feeds set unhandled = 3 where feed = 'unhandled'",
        "counts",
        "the count of unhandled notifications is 3, but 10 have no handle mark",
    ),
    (
        "through",
        "update feeds set read_seq = 6 where feed = 'through'",
        "counts",
        "all up to 6 should be read, but 5 is unread",
    ),
    (
        "beyond",
        "update feeds set read_seq = 11 where feed = 'beyond'",
        "counts",
        "all up to 11 should be read, but the newest number is 10",
    ),
    (
        "acked",
        "update feeds set acked_seq = 12 where feed = 'acked'",
        "cursors",
        "the highest ack is 12, but the newest number is 10",
    ),
    (
        "cursor",
        "insert into cursors (feed, subscriber, device, acked_seq) values ('cursor', 's', 'd', 11)",
        "cursors",
        "the cursor of s on device \"d\" is 11, but the newest number is 10",
    ),
    (
        "higher",
        "insert into evicted_cursors (feed, subscriber, device, acked_seq) values ('higher', 's', 'd', 9)",
        "cursors",
        "the evicted cursor of s on device \"d\" is 9, but the acks of the feed are recorded up to 8",
    ),
    (
        "evicted",
        "insert into evicted_cursors (feed, subscriber, device, acked_seq) values ('evicted', 's', 'd', 99)",
        "cursors",
        "the evicted cursor of s on device \"d\" is 99",
    ),
    (
        "nowhere",
        "insert into cursors (feed, subscriber, acked_seq) values ('nowhere', 's', 1)",
        "cursors",
        "the newest number is 0",
    ),
    (
        "gap",
        "update marks set version = 3 where feed = 'gap' and version = 2; update feeds set version = 3 where feed = 'gap'",
        "marks",
        "from version 1 to 3 should be 3 rows, but 2 are stored",
    ),
    (
        "newer",
        "update feeds set version = 1 where feed = 'newer'",
        "marks",
        "the newest mark should have the version 1, but 2 is stored",
    ),
    (
        "unmarked",
        "delete from marks where feed = 'unmarked' and version = 2",
        "marks",
        "the newest mark should have the version 2, but 1 is stored",
    ),
    (
        "markless",
        "delete from marks where feed = 'markless'",
        "marks",
        "the newest mark should have the version 2, but none is stored",
    ),
    (
        "oldest",
        "delete from marks where feed = 'oldest' and version = 1",
        "marks",
        "the oldest mark should have the version 1, but 2 is stored",
    ),
    (
        "import",
        "update imports set done = done + 1 where feed = 'import'",
        "imports",
        "the import i-1 counts 3 done and 1 failed, but its items are 2 and 1",
    ),
    (
        "items",
        "delete from import_items where feed = 'items'",
        "imports",
        "the import i-1 counts 2 done and 1 failed, but its items are 0 and 0",
    ),
    (
        "waiting",
        "insert into dead_letters (id, reason, detail, exchange, routing_key, properties, body, bytes, feed, received_at) values ('w', 'r', 'd', 'e', 'k', '', '', 0, 'waiting', now())",
        "held",
        "1 events wait for the feed, but it is not held",
    ),
    (
        "identity",
        "update notifications set identity = gen_random_uuid() where feed = 'identity' and seq = 3",
        "identities",
        "notification 3 has an identity that is not the one of its event",
    ),
    (
        "settled",
        "insert into settled_blocks values ('settled', 'read', 0)",
        "settled",
        "the block 0, settled as read, ends above the newest number",
    ),
    (
        "unsettled",
        "update feeds set last_seq = 1000 where feed = 'unsettled'; insert into settled_blocks values ('unsettled', 'handled', 0)",
        "settled",
        "the block 0, settled as handled, has notifications without this mark",
    ),
    (
        "uncounted",
        "insert into settled_blocks values ('uncounted', 'read', 9223372036854775807)",
        "settled",
        "the block 9223372036854775807, settled as read, ends above the newest number",
    ),
    (
        "index",
        "update pg_index set indisready = false where indexrelid = 'cursors_pkey'::regclass; insert into cursors (feed, subscriber, acked_seq) values ('index', 'unindexed', 1); update pg_index set indisready = true where indexrelid = 'cursors_pkey'::regclass",
        "indexes",
        "the cursor of unindexed on device \"\" is a row of cursors, but cursors_pkey finds 0 rows",
    ),
    (
        "collapse",
        "update pg_index set indisready = false where indexrelid = 'notifications_collapse'::regclass; update notifications set collapse_key = 'k' where feed = 'collapse' and seq = 4; update pg_index set indisready = true where indexrelid = 'notifications_collapse'::regclass",
        "indexes",
        "notification 4 is a row of notifications, but notifications_collapse finds 0 rows",
    ),
    (
        "double",
        "update pg_index set indisready = false where indexrelid in ('notifications_pkey'::regclass, 'notifications_identity_key'::regclass); insert into notifications (feed, seq, identity, source, event_id, event_type, time) select feed, seq, identity, source, event_id, event_type, time from notifications where feed = 'double' and seq = 3; update pg_index set indisready = true where indexrelid in ('notifications_pkey'::regclass, 'notifications_identity_key'::regclass)",
        "indexes",
        "notification 3 is a row of notifications, but notifications_pkey finds another row",
    ),
];

/// The rows of a feed with ten notifications, a cursor, two marks and an import of two items.
const FEED: [&str; 5] = [
    "insert into feeds (feed, last_seq, acked_seq, unread, unhandled, read_seq, version)
         select f, 10, 8, 6, 10, 4, 2 from unnest($1::text[]) f",
    "insert into notifications (feed, seq, identity, source, event_id, event_type, time, read_at)
         select f, n, event_identity(f, '/s', n::text), '/s', n::text, 't', now(), case when n <= 4 then now() end
         from unnest($1::text[]) f, generate_series(1, 10) n",
    "insert into cursors (feed, subscriber, acked_seq) select f, f, 8 from unnest($1::text[]) f",
    "insert into marks (feed, version, kind, through, marked_at, marked_by, unread, unhandled, last_seq)
         select f, v, 'read', 2 * v, now(), f, 10 - 2 * v, 10, 10 from unnest($1::text[]) f, generate_series(1, 2) v",
    "with added as (insert into imports (feed, import_id, total, done, failed) select f, 'i-1', 5, 2, 1 from unnest($1::text[]) f)
     insert into import_items (feed, import_id, run, chunk, seen, failed)
         select f, 'i-1', 1, 0, set_bit(set_bit(0::bit(512), 1, 1), 7, 1), set_bit(0::bit(512), 7, 1) from unnest($1::text[]) f",
];

/// New sessions in the database of the story may use so much of the disk for temporary files.
const LITTLE_DISK: &str = "do $$ begin
    execute format('alter database %I set temp_file_limit = ''16MB''', current_database()); end $$";
async fn add_feeds(world: &World, feeds: &[&str]) {
    let mut connection = PgConnection::connect(world.database_url())
        .await
        .expect("a session");
    for statement in FEED {
        let query = sqlx::query(statement).bind(feeds);
        query
            .execute(&mut connection)
            .await
            .expect("the rows are valid");
    }
}

#[tokio::test]
async fn verify_names_each_contradiction_and_its_feed() {
    let world = World::new().await;
    let mut feeds = vec!["sound"];
    feeds.extend(
        CONTRADICTIONS
            .map(|(feed, _, _, _)| feed)
            .iter()
            .filter(|feed| **feed != "nowhere"),
    );
    add_feeds(&world, &feeds).await;
    world.shopbell(&["verify"]).await.succeeded();
    // A damaged number must not fill the disk of Postgres.
    world.change_database(LITTLE_DISK).await;
    for (_, statements, _, _) in CONTRADICTIONS {
        world.change_database(statements).await;
    }
    // A late ack for the feed of a canary that was deleted meanwhile.
    world
        .change_database(
            "insert into cursors (feed, subscriber, acked_seq) values ('shopbell-canary/1', 's', 1)",
        )
        .await;
    world
        .change_database("update pg_index set indisvalid = false where indexrelid = 'traces_stored_at'::regclass; delete from epochs")
        .await;

    let done = world
        .shopbell(&["verify", "--output", "json"])
        .await
        .failed_with(1);
    let lines = done.json_lines::<Line>();
    let mut wanted = vec![
        (None, "epoch", "there should be one epoch, but 0 are stored"),
        (None, "indexes", "the index traces_stored_at is not valid"),
    ];
    wanted.extend(CONTRADICTIONS.map(|(name, _, check, text)| (Some(name), check, text)));
    for (name, wanted, text) in wanted {
        let is_wanted = |line: &&Line| match line {
            Line::Problem { check, feed, found } => {
                feed.as_deref() == name && check == wanted && found.contains(text)
            }
            Line::Verdict { .. } | Line::More { .. } => false,
        };
        assert_eq!(
            lines.iter().filter(is_wanted).count(),
            1,
            "{name:?} {wanted} {text}: {lines:#?}"
        );
    }
    let found = lines.iter().filter_map(|line| match line {
        Line::Problem { feed, .. } => feed.as_deref(),
        Line::Verdict { .. } | Line::More { .. } => None,
    });
    let is_sound = |feed: &str| feed == "sound" || feed.starts_with("shopbell-canary/");
    assert!(!found.clone().any(is_sound), "{lines:#?}");
    let done = world.shopbell(&["verify", "missing"]).await.failed_with(1);
    assert!(
        done.stdout
            .starts_with("PROBLEM  numbers: missing: 1 notifications"),
        "{done:?}"
    );
    world.shopbell(&["verify", "sound"]).await.succeeded();
    world.shopbell(&["verify", "--quick"]).await.failed_with(1);
    let doctor = world.shopbell(&["doctor"]).await.failed_with(1);
    assert!(
        doctor
            .stdout
            .contains("ERROR    postgres.rows: a sample of"),
        "{doctor:?}"
    );
}

#[tokio::test]
async fn the_remedies_for_cursors_remove_the_problem() {
    let world = World::new().await;
    add_feeds(&world, &["acked", "higher", "cursor", "evicted"]).await;
    for (feed, statements, check, _) in CONTRADICTIONS {
        if check == "cursors" {
            world.change_database(statements).await;
            world.shopbell(&["verify", feed]).await.failed_with(1);
        }
    }
    world.shopbell(&["epoch", "--renew"]).await.succeeded();
    for feed in ["acked", "cursor", "evicted", "nowhere"] {
        world.shopbell(&["verify", feed]).await.succeeded();
    }
    world
        .change_database(
            "update feeds f set acked_seq = (select max(c.acked_seq) from evicted_cursors c where c.feed = f.feed)
             where f.feed = 'higher'",
        )
        .await;
    world.shopbell(&["verify"]).await.succeeded();
}

#[tokio::test]
async fn verify_goes_on_after_rows_that_postgres_cannot_read() {
    let world = World::new().await;
    add_feeds(&world, &["merchant-1", "merchant-2", "merchant-3"]).await;
    world
        .change_database(
            "create function unreadable() returns bool language plpgsql as $$
                 begin raise 'invalid page' using errcode = 'XX001'; end $$;
             alter table notifications rename to readable;
             create view notifications as
                 select ctid, * from readable where case when feed = 'merchant-1' then unreadable() else true end;
             update feeds set unread = 9 where feed = 'merchant-3'",
        )
        .await;
    let done = world
        .shopbell(&["verify", "merchant-1", "--output", "json"])
        .await
        .failed_with(1);
    let lines = done.json_lines::<Line>();
    let [Line::Problem { check, found, .. }, Line::Verdict { .. }] = &lines[..] else {
        panic!("{lines:?}")
    };
    assert_eq!(check, "readable");
    assert!(
        found.contains("feed merchant-1") && found.contains("invalid page"),
        "{found}"
    );
    world.shopbell(&["verify", "merchant-2"]).await.succeeded();
    // The feeds beside the unreadable one are verified too.
    let done = world.shopbell(&["verify"]).await.failed_with(1);
    let found = [
        "PROBLEM  readable: feed merchant-1",
        "PROBLEM  counts: merchant-3: the count of unread notifications is 9",
    ];
    for found in found {
        assert!(done.stdout.contains(found), "{done:?}");
    }
    assert_eq!(done.stdout.matches("PROBLEM").count(), 2, "{done:?}");
}
