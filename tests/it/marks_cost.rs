//! Marks of one merchant do not delay those of another, and are cheap for Postgres.

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};

use crate::support::{Event, PATIENCE, World, eventually, holds};

const READER: &str = "merchant-42";
const OTHER: &str = "merchant-43";
/// Marks that one session may send before the first reply.
const WAITING_MAX: usize = 64;

#[tokio::test]
async fn a_long_read_of_one_merchant_does_not_hold_up_a_handle_of_another() {
    let world = World::new().await;
    let replica = world.serve().await;
    world
        .publisher()
        .await
        .publish_all(Event::orders(OTHER, 5))
        .await;
    world.expect_stored(OTHER, 5).await;
    store_100_000(&world).await;
    let mut reader = world
        .merchant(READER)
        .after(READER, 100_000)
        .connect(replica.public())
        .await;
    let mut other = world
        .merchant(OTHER)
        .after(OTHER, 5)
        .connect(replica.public())
        .await;

    for _ in 0..WAITING_MAX {
        reader.read_through(READER, 100_000).await;
    }
    reader.next_state().await;
    for seq in 1..=5 {
        let read_before = world
            .number("select read_seq from feeds where feed = 'merchant-42'")
            .await;
        other.handle(OTHER, &[seq]).await;
        assert_eq!(other.next_state().await.seqs, Some(vec![seq]));
        let read_after = world
            .number("select read_seq from feeds where feed = 'merchant-42'")
            .await;
        assert!(
            read_after - read_before <= 5_000,
            "{} were read meanwhile",
            read_after - read_before
        );
    }
    // It took turns with the reader, whose last request ends last.
    let (mut replies, mut through) = (0, 0);
    while replies < WAITING_MAX - 1 {
        let state = reader.next_state().await;
        replies += usize::from(state.version.is_none());
        through = through.max(state.through.unwrap_or_default());
    }
    assert_eq!(through, 100_000);
    assert_eq!(world.unmarked(READER).await, (0, 100_000));
    world.finish().await;
}

#[tokio::test]
async fn a_locked_feed_holds_up_the_marks_of_no_other_feed() {
    let world = World::new().await;
    let replica = world.serve().await;
    for merchant in [READER, OTHER] {
        world
            .publisher()
            .await
            .publish_all(Event::orders(merchant, 2))
            .await;
        world.expect_stored(merchant, 2).await;
    }
    let mut reader = world
        .merchant(READER)
        .after(READER, 2)
        .connect(replica.public())
        .await;
    let mut other = world
        .merchant(OTHER)
        .after(OTHER, 2)
        .connect(replica.public())
        .await;
    let both = world.token("support").feeds([READER, OTHER]).sign();
    let mut both = world
        .merchant("support")
        .token(both)
        .after(READER, 2)
        .after(OTHER, 2)
        .connect(replica.public())
        .await;

    let locked = world.lock_feed_of_merchant_42().await;
    reader.read_through(READER, 2).await;
    reader.handle(READER, &[1]).await;
    both.handle(READER, &[2]).await;
    both.handle(OTHER, &[1]).await;
    other.handle(OTHER, &[2]).await;
    let mut handled = Vec::new();
    while handled.len() < 2 {
        handled.extend(other.next_state().await.seqs.expect("two handles"));
    }
    handled.sort_unstable();
    assert_eq!(handled, [1, 2], "the lock is still held");
    drop(locked);
    // The mark of the other subscriber may be stored before, between or after them.
    let mut own = Vec::new();
    while own.len() < 2 {
        let state = reader.next_state().await;
        if state.seqs != Some(vec![2]) {
            own.push((state.through, state.seqs));
        }
    }
    assert_eq!(
        own,
        [(Some(2), None), (None, Some(vec![1]))],
        "in the order in which they were sent"
    );
    eventually("all marks are stored", PATIENCE, async || {
        let unmarked = world.unmarked(READER).await;
        holds(unmarked == (0, 0), format!("{unmarked:?}"))
    })
    .await;
    world.finish().await;
}

#[tokio::test]
async fn a_mark_that_fails_does_not_fail_the_marks_written_with_it() {
    let world = World::new().await;
    let replica = world.serve().await;
    for merchant in ["slow", READER, OTHER] {
        world
            .publisher()
            .await
            .publish_all(Event::orders(merchant, 2))
            .await;
        world.expect_stored(merchant, 2).await;
    }
    world
        .change_database(
            "create function check_mark() returns trigger language plpgsql as $$ begin
                 if new.feed = 'slow' then
                     perform pg_sleep(0.5);
                 elsif new.feed = 'merchant-42' and new.seq = 1 then
                     raise exception 'a damaged row' using errcode = 'data_exception';
                 end if;
                 return new;
             end $$;
             create trigger check_mark before update on notifications for each row execute function check_mark()",
        )
        .await;
    let mut slow = world
        .merchant("slow")
        .after("slow", 2)
        .connect(replica.public())
        .await;
    let mut reader = world
        .merchant(READER)
        .after(READER, 2)
        .connect(replica.public())
        .await;
    let mut other = world
        .merchant(OTHER)
        .after(OTHER, 2)
        .connect(replica.public())
        .await;

    // The other marks wait for this write, so the next write stores both.
    slow.handle("slow", &[1]).await;
    reader.handle(READER, &[1]).await;
    other.handle(OTHER, &[1]).await;
    assert_eq!(other.next_state().await.seqs, Some(vec![1]));
    let refused = reader.next_error().await;
    assert_eq!(
        (refused.code.as_str(), refused.feed.as_deref()),
        ("not_taken", Some(READER))
    );
    reader.handle(READER, &[2]).await;
    assert_eq!(
        reader.next_state().await.seqs,
        Some(vec![2]),
        "its other rows can be marked"
    );
    assert_eq!(slow.next_state().await.seqs, Some(vec![1]));
    replica.logs("ERROR", "error", |_| true).await;
    world.finish().await;
}

#[tokio::test]
async fn a_mark_updates_its_row_in_place() {
    let world = World::new().await;
    store_100_000(&world).await;
    let mut connection = PgConnection::connect(world.database_url())
        .await
        .expect("a session");
    let mut transaction = connection.begin().await.expect("a transaction");
    let marks = "select mark_notifications(array['merchant-42'], array[kind], array[null::bigint], array[seqs::text],
                                           array['anna'], 1000, 1000, null)
                 from (select kind, array_agg(n) as seqs from generate_series(1, 100000, 97) n, (values ('read'), ('handled')) k (kind)
                       where n % 2 = case kind when 'read' then 0 else 1 end group by kind, n / 20000) m";
    transaction.execute(marks).await.expect("marks");
    let query = "select n_tup_upd, n_tup_hot_upd from pg_stat_xact_user_tables where relname = 'notifications'";
    let (updates, in_place): (i64, i64) = sqlx::query_as(query)
        .fetch_one(&mut *transaction)
        .await
        .expect("counts");
    assert_eq!(updates, 1_031);
    assert!(
        in_place * 100 >= updates * 95,
        "{in_place} of {updates} updates are in place"
    );
    transaction.rollback().await.expect("a rollback");
    world.finish().await;
}

#[tokio::test]
async fn an_old_snapshot_makes_the_row_of_a_feed_few_pages_long() {
    let world = World::new().await;
    world
        .execute("insert into feeds (feed) select 'merchant-' || n from generate_series(1, 300) n")
        .await;
    // As a dump does: an open transaction with an id of its own keeps all row versions.
    let snapshot = world.lock("select txid_current()").await;
    let append = "insert into feeds as f (feed, last_seq) select feed, 1 from feeds order by feed
                  on conflict (feed) do update set last_seq = f.last_seq + 1";
    let mut connection = PgConnection::connect(world.database_url())
        .await
        .expect("a session");
    for _ in 0..30 {
        connection.execute(append).await.expect("an append");
    }
    let plan = format!("explain (analyze, buffers, format json) {append}");
    let plan: serde_json::Value = sqlx::query_scalar(AssertSqlSafe(plan))
        .fetch_one(&mut connection)
        .await
        .expect("a plan");
    let pages = plan[0]["Plan"]["Shared Hit Blocks"]
        .as_u64()
        .expect("a count")
        / 300;
    assert!(pages <= 28, "{pages} pages for a row after 30 appends");
    drop(snapshot);
    world.execute("update feeds set last_seq = 0").await;
    world.finish().await;
}

/// Unread notifications, written directly because a publisher would take longer.
async fn store_100_000(world: &World) {
    world
        .change_database(
            "insert into notifications (feed, seq, identity, source, event_id, event_type, time)
                 select 'merchant-42', n, event_identity('merchant-42', '/s', n::text), '/s', n::text, 't', now()
                 from generate_series(1, 100000) n;
             insert into feeds (feed, last_seq, unread, unhandled) values ('merchant-42', 100000, 100000, 100000)",
        )
        .await;
}
