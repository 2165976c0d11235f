//! `shopbell verify` bounds its lists, its statements and their time.

use std::collections::BTreeMap;

use super::{Line, add_feeds};
use crate::support::World;

/// A statement of new sessions may take so long.
const SHORT_STATEMENTS: &str = "do $$ begin
    execute format('alter database %I set statement_timeout = ''1s''', current_database()); end $$";

#[tokio::test]
async fn verify_bounds_its_lists_and_counts_the_rest() {
    let world = World::new().await;
    let names: Vec<_> = (0..150).map(|n| format!("merchant-{n}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    add_feeds(&world, &names).await;
    world
        .change_database(
            "update feeds set unread = unread + 1;
             update notifications set identity = gen_random_uuid() where seq = 3",
        )
        .await;
    let done = world
        .shopbell(&["verify", "--output", "json"])
        .await
        .failed_with(1);
    let lines = done.json_lines::<Line>();
    for wanted in ["counts", "identities"] {
        let is_printed =
            |line: &&Line| matches!(line, Line::Problem { check, .. } if check == wanted);
        assert_eq!(lines.iter().filter(is_printed).count(), 100, "{wanted}");
        let is_rest =
            |line: &&Line| matches!(line, Line::More { check, problems: 50 } if check == wanted);
        assert_eq!(lines.iter().filter(is_rest).count(), 1, "{wanted}");
    }
    let Some(Line::Verdict { problems, .. }) = lines.last() else {
        panic!("{lines:?}")
    };
    let counted = BTreeMap::from([("counts".to_owned(), 150), ("identities".to_owned(), 150)]);
    assert_eq!(*problems, counted);
    let done = world.shopbell(&["verify"]).await.failed_with(1);
    for check in ["counts", "identities"] {
        let rest = format!("MORE     {check}: 50 more problems are not printed\n");
        assert!(done.stdout.contains(&rest), "{done:?}");
    }
}

#[tokio::test]
async fn verify_reads_a_large_feed_in_steps_with_a_timeout() {
    let world = World::new().await;
    add_feeds(&world, &["large"]).await;
    // Each row takes a millisecond, so the feed takes longer than a statement may.
    world
        .change_database(
            "insert into notifications (feed, seq, identity, source, event_id, event_type, time)
                 select 'large', n, event_identity('large', '/s', n::text), '/s', n::text, 't', now()
                 from generate_series(11, 3000) n;
             update feeds set last_seq = 3000, unread = 2996, unhandled = 3000 where feed = 'large';
             alter table notifications rename to fast;
             create view notifications as select * from fast where pg_sleep(0.001) is not null",
        )
        .await;
    world.change_database(SHORT_STATEMENTS).await;
    let done = world.shopbell(&["verify", "large"]).await.succeeded();
    assert_eq!(
        done.stdout,
        "1 feeds with 3000 notifications and 1 cursors, 0 rows in indexes: no problem\n"
    );
    world
        .change_database("delete from fast where seq = 700")
        .await;
    let done = world.shopbell(&["verify", "large"]).await.failed_with(1);
    let missing = "1 notifications from 1 to 3000 are missing, the first is 700";
    assert!(done.stdout.contains(missing), "{done:?}");
}
