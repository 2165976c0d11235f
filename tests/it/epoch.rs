//! The database is restored to an earlier state while replicas run. No number from before the
//! restore is used again.

use crate::support::{Event, Frame, Merchant, Monitor, World};

const MERCHANT: &str = "merchant-42";
/// Another replica stores this in the restored database before this one reads the epoch.
const OVERTAKE: &str = "select append_notifications(
    array_fill('merchant-42'::text, array[4]),
    array(select event_identity('merchant-42', '/elsewhere', 'n-' || n) from generate_series(8, 11) n),
    array_fill('/elsewhere'::text, array[4]), array['n-8', 'n-9', 'n-10', 'n-11'], array_fill('order.created'::text, array[4]),
    array_fill(now(), array[4]), array_fill('{}'::text, array[4]), array_fill(null::text, array[4]),
    array_fill(null::timestamptz, array[4]), now(), array[]::bigint[], array[]::text[], array[]::bigint[],
    array[]::bigint[], array[]::bigint[], array[]::bigint[], array[]::text[], false)";
/// Exactly the newest three are missing.
const DELETE_THREE: &str = "
    delete from notifications where seq > 7;
    update feeds set last_seq = 7, unread = 7, unhandled = 7 where feed = 'merchant-42'";

/// A merchant with 1 to 10 that has acknowledged `acked`.
async fn merchant_with_ten(world: &World, merchant: &mut Merchant, acked: u64) {
    world
        .publisher()
        .await
        .publish_all(Event::orders(MERCHANT, 10))
        .await;
    merchant.expect_seqs(1..=10).await;
    merchant.ack(MERCHANT, acked).await;
    world.expect_cursor(MERCHANT, "", acked).await;
}

fn epoch_of(merchant: &Merchant) -> String {
    let epoch = merchant.welcome().feeds[0].epoch.clone();
    assert!(
        epoch.starts_with(|first: char| first.is_ascii_lowercase()) && !epoch.contains(':'),
        "{epoch:?}"
    );
    epoch
}

fn cursor_of(merchant: &Merchant) -> u64 {
    let feed = merchant
        .welcome()
        .feeds
        .iter()
        .find(|state| state.feed == MERCHANT);
    feed.expect("the merchant reads its feed").cursor
}

/// Expects 8 to 11 of the restored database, and nothing else.
async fn expect_the_new_ones(merchant: &mut Merchant) {
    let new = merchant.take_seqs(8..=11).await;
    let ids: Vec<_> = new
        .iter()
        .map(|notification| notification.id.as_str())
        .collect();
    assert_eq!(ids, ["n-8", "n-9", "n-10", "n-11"]);
}

#[tokio::test]
async fn orders_that_got_old_numbers_after_a_restore_are_sent() {
    let world = World::new().await;
    let replicas = [world.serve().await, world.serve().await];
    let publisher = world.publisher().await;
    let mut merchants = Vec::new();
    for (device, replica) in ["till-1", "till-2"].into_iter().zip(&replicas) {
        merchants.push(
            world
                .merchant(MERCHANT)
                .device(device)
                .connect(replica.public())
                .await,
        );
    }
    publisher.publish_all(Event::orders(MERCHANT, 7)).await;
    for (device, merchant) in ["till-1", "till-2"].into_iter().zip(&mut merchants) {
        merchant.take_seqs(1..=7).await;
        world.expect_cursor(MERCHANT, device, 7).await;
    }
    let copy = world.copy_database().await;
    copy.execute(OVERTAKE).await;
    publisher.publish_all(Event::orders(MERCHANT, 3)).await;
    for merchant in &mut merchants {
        merchant.expect_seqs(8..=10).await;
    }
    let epoch = epoch_of(&merchants[0]);

    world.restore(copy).await;
    for (merchant, replica) in merchants.into_iter().zip(&replicas) {
        let device = merchant.welcome().device.clone().expect("a device");
        let closed = merchant.closed().await;
        assert_eq!(
            (closed.code, closed.word.as_deref()),
            (4410, Some("epoch_changed"))
        );
        assert!(closed.retry_after_ms.is_some());
        let mut merchant = world
            .merchant(MERCHANT)
            .device(&device)
            .connect(replica.public())
            .await;
        assert_ne!(epoch_of(&merchant), epoch);
        expect_the_new_ones(&mut merchant).await;
        world.expect_cursor(MERCHANT, &device, 11).await;
        publisher.publish(&Event::order(MERCHANT)).await;
        let through = merchant.through(MERCHANT);
        assert_eq!(
            merchant.next_notification().await.seq,
            through + 1,
            "a new order is pushed"
        );
    }
    world.finish().await;
}

#[tokio::test]
async fn a_pending_ack_of_before_a_restore_covers_no_new_order() {
    let world = World::new().await;
    let (proxy, replica) = world.replica().start_behind_database_proxy().await;
    world
        .publisher()
        .await
        .publish_all(Event::orders(MERCHANT, 7))
        .await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    merchant.take_seqs(1..=7).await;
    world.expect_cursor(MERCHANT, "", 7).await;
    let copy = world.copy_database().await;
    copy.execute(OVERTAKE).await;
    world
        .publisher()
        .await
        .publish_all(Event::orders(MERCHANT, 3))
        .await;
    merchant.expect_seqs(8..=10).await;

    // The ack cannot be written before the restore.
    proxy.cut();
    merchant.ack(MERCHANT, 10).await;
    merchant.ping().await;
    world.restore(copy).await;
    proxy.mend();
    assert_eq!(merchant.closed().await.code, 4410);
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    expect_the_new_ones(&mut merchant).await;
    world.finish().await;
}

#[tokio::test]
async fn the_sweep_notices_a_restore_on_live_connections() {
    let world = World::new().await;
    let replica = world
        .replica()
        .with("SHOPBELL_SWEEP_SECONDS", 2)
        .start()
        .await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    merchant_with_ten(&world, &mut merchant, 10).await;
    let epoch = epoch_of(&merchant);

    world.change_database(DELETE_THREE).await;
    assert_eq!(merchant.closed().await.code, 4410);
    // The cursor was at 10. It must not hide the new notifications with numbers up to 10.
    world.expect_cursor(MERCHANT, "", 7).await;
    world
        .publisher()
        .await
        .publish_all(Event::orders(MERCHANT, 4))
        .await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    assert_ne!(epoch_of(&merchant), epoch);
    merchant.take_seqs(8..=11).await;
    world.finish().await;
}

/// The newest three are missing, and others have their numbers.
const REPLACE_THREE: &str = "
    delete from notifications where seq > 7;
    insert into notifications (feed, seq, identity, source, event_id, event_type, time, data)
        select 'merchant-42', n, event_identity('merchant-42', '/elsewhere', 'n-' || n), '/elsewhere', 'n-' || n,
               'order.created', now(), '{}'
        from generate_series(8, 9) n;
    update feeds set last_seq = 9, unread = 9, unhandled = 9 where feed = 'merchant-42'";

#[tokio::test]
async fn an_ack_of_a_lost_order_covers_no_new_one() {
    let world = World::new().await;
    let replica = world.serve().await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    merchant_with_ten(&world, &mut merchant, 5).await;
    world.change_database(REPLACE_THREE).await;
    merchant.ack(MERCHANT, 10).await;
    assert_eq!(merchant.closed().await.code, 4410);
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    assert_eq!(cursor_of(&merchant), 5);
    let again = merchant.take_seqs(6..=9).await;
    assert_eq!([&*again[2].id, &*again[3].id], ["n-8", "n-9"]);
    world.finish().await;
}

#[tokio::test]
async fn an_ack_after_the_database_changed_is_not_stored() {
    for change in [
        // The table has another identity, as after `pg_restore --clean`.
        "update epochs set feeds_oid = 0",
        // As after a fail-over behind a pooler.
        "update epochs set timeline = '00000000'",
        // As after a pooler was pointed to a restored copy.
        "update epochs set system_identifier = '0'",
        "update epochs set database_oid = 0",
    ] {
        let world = World::new().await;
        let replica = world.serve().await;
        let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
        merchant_with_ten(&world, &mut merchant, 5).await;
        // The connections are the same.
        world.change_database(change).await;
        merchant.ack(MERCHANT, 10).await;
        assert_eq!(merchant.closed().await.code, 4410, "{change}");
        let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
        assert_eq!(cursor_of(&merchant), 5, "{change}");
        merchant.take_seqs(6..=10).await;
        world.finish().await;
    }
}

#[tokio::test]
async fn a_place_of_another_epoch_is_not_used() {
    let world = World::new().await;
    let replica = world.serve().await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    merchant_with_ten(&world, &mut merchant, 4).await;
    merchant.handle(MERCHANT, &[1]).await;
    merchant.next_state().await;
    merchant.handle(MERCHANT, &[2]).await;
    merchant.next_state().await;
    let epoch = epoch_of(&merchant);
    merchant.leave().await;

    let mut same = world
        .merchant(MERCHANT)
        .place(MERCHANT, 9, 1, &epoch)
        .connect(replica.public())
        .await;
    assert_eq!(cursor_of(&same), 9);
    assert_eq!(same.next_notification().await.seq, 10);
    assert_eq!(
        same.next_state().await.version,
        Some(2),
        "the change after the version that was given"
    );
    same.leave().await;
    for (place, why) in [
        ((9, "e0"), "another epoch"),
        ((90, epoch.as_str()), "more than is stored"),
    ] {
        let (seq, epoch) = place;
        let mut other = world
            .merchant(MERCHANT)
            .place(MERCHANT, seq, 1, epoch)
            .connect(replica.public())
            .await;
        assert_eq!(cursor_of(&other), 4, "{why}");
        other.expect_seqs(5..=10).await;
        other.leave().await;
    }
    world.finish().await;
}

#[tokio::test]
async fn a_handle_from_before_a_restore_handles_no_other_order() {
    let world = World::new().await;
    let replica = world.serve().await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    merchant_with_ten(&world, &mut merchant, 7).await;

    let copy = world.copy_database().await;
    copy.execute("select renew_epoch(null, 'as after a restore')")
        .await;
    world
        .change_database("select renew_epoch(null, 'by another replica')")
        .await;
    merchant.handle(MERCHANT, &[9]).await;
    merchant.closed().await;
    let handled = "select count(*) from notifications where handled_at is not null";
    assert_eq!(world.number(handled).await, 0);
    world.finish().await;
}

#[tokio::test]
async fn an_operator_can_begin_a_new_epoch() {
    let world = World::new().await;
    let replicas = [world.serve().await, world.serve().await];
    let mut merchant = world.merchant(MERCHANT).connect(replicas[0].public()).await;
    let mut elsewhere = world
        .merchant(MERCHANT)
        .device("second")
        .connect(replicas[1].public())
        .await;
    world
        .publisher()
        .await
        .publish_all(Event::orders(MERCHANT, 10))
        .await;
    merchant.expect_seqs(1..=10).await;
    elsewhere.expect_seqs(1..=10).await;
    merchant.ack(MERCHANT, 7).await;
    world.expect_cursor(MERCHANT, "", 7).await;
    let epoch = epoch_of(&merchant);
    let shown = replicas[0].shopbell(&["epoch"]).await.succeeded().stdout;
    assert!(shown.starts_with(&format!("{epoch} since ")), "{shown}");

    let renewed = replicas[0]
        .shopbell(&["epoch", "--renew"])
        .await
        .succeeded()
        .stdout;
    assert!(
        renewed.contains("an operator renewed it") && !renewed.contains(&epoch),
        "{renewed}"
    );
    for merchant in [merchant, elsewhere] {
        assert_eq!(merchant.closed().await.code, 4410);
    }
    for replica in &replicas {
        replica
            .metric_reaches("shopbell_epoch_changes_total", 1)
            .await;
        let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
        assert!(renewed.starts_with(&epoch_of(&merchant)), "{renewed}");
        merchant.expect_seqs(8..=10).await;
        merchant.vanish();
    }
    world.finish().await;
}

#[tokio::test]
async fn tail_continues_at_the_cursor_if_the_epoch_changes() {
    let world = World::new().await;
    let replica = world.serve().await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    merchant_with_ten(&world, &mut merchant, 10).await;
    let epoch = epoch_of(&merchant);
    merchant.leave().await;
    world.change_database(DELETE_THREE).await;
    replica.shopbell(&["epoch", "--renew"]).await.succeeded();
    world
        .publisher()
        .await
        .publish_all(Event::orders(MERCHANT, 4))
        .await;
    world.expect_stored(MERCHANT, 11).await;

    let (url, token) = (
        format!("ws://{}", replica.public()),
        world.token(MERCHANT).sign(),
    );
    let after = format!("{MERCHANT}:10:{epoch}");
    let arguments = [
        "tail",
        "--url",
        &url,
        "--token",
        &token,
        "--after",
        &after,
        "--until-caught-up",
    ];
    let lines = replica.shopbell(&arguments).await.succeeded().stdout;
    let seqs: Vec<_> = lines
        .lines()
        .filter_map(|line| line.split('#').nth(1)?.split(' ').next())
        .collect();
    assert_eq!(seqs, ["8", "9", "10", "11"], "{lines}");
    world.finish().await;
}

#[tokio::test]
async fn a_row_that_is_missing_is_reported_as_lost_and_counted() {
    let world = World::new().await;
    let replica = world.serve().await;
    let monitor = Monitor::of(&world, [&replica]).await;
    world
        .publisher()
        .await
        .publish_all(Event::orders(MERCHANT, 6))
        .await;
    world.expect_stored(MERCHANT, 6).await;
    // Retention deleted 1 and 2. Nothing deleted 4 and 6.
    world
        .change_database(
            "delete from notifications where seq in (1, 2, 4, 6);
             update feeds set trimmed_seq = 2, unread = 2, unhandled = 2",
        )
        .await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    let (skips, third) = merchant.next_after_skips().await;
    assert_eq!(
        (skips, third.seq),
        (
            vec![(1, "trimmed".to_owned()), (2, "trimmed".to_owned())],
            3
        )
    );
    let (skips, fifth) = merchant.next_after_skips().await;
    assert_eq!((skips, fifth.seq), (vec![(4, "lost".to_owned())], 5));
    merchant.ack(MERCHANT, 5).await;
    merchant.leave().await;
    replica
        .metric_reaches("shopbell_notifications_lost_total", 1)
        .await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    let lost = loop {
        if let Frame::Skipped(skipped) = merchant.next_frame().await.expect("the session lives") {
            break skipped;
        }
    };
    assert_eq!(
        (lost.from, lost.through, lost.reason.as_str()),
        (6, 6, "lost")
    );
    replica
        .logs("ERROR", "through", |through| through == "6")
        .await;
    replica
        .metric_reaches("shopbell_notifications_lost_total", 2)
        .await;
    monitor
        .expect_alert("ShopbellNotificationsLost", "page")
        .await;
    // The teardown compares the counts with the rows, and the last row is missing.
    world.change_database("update feeds set last_seq = 5").await;
    merchant.vanish();
    world.finish_unverified().await;
}

#[tokio::test]
async fn cursors_that_a_restore_of_some_tables_left_are_lowered_at_the_start() {
    let world = World::new().await;
    let replica = world.serve().await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    merchant_with_ten(&world, &mut merchant, 10).await;
    assert!(replica.terminate().await.success());

    world.change_database(DELETE_THREE).await;
    // The table has another identity, as after `pg_restore --clean`.
    world
        .change_database("update epochs set feeds_oid = 0")
        .await;
    let replica = world.serve().await;
    world.expect_cursor(MERCHANT, "", 7).await;
    world
        .publisher()
        .await
        .publish_all(Event::orders(MERCHANT, 4))
        .await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    merchant.take_seqs(8..=11).await;
    world.finish().await;
}

#[tokio::test]
async fn the_sweep_continues_while_cursors_cannot_be_lowered() {
    let world = World::new().await;
    let replica = world
        .replica()
        .with("SHOPBELL_SWEEP_SECONDS", 2)
        .start()
        .await;
    let merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    world
        .change_database(
            "create or replace function lower_cursors(
                 in_feed text, in_subscriber text, in_device text, in_rows_max integer, out feed text, out subscriber text,
                 out device text) language plpgsql as
             $$ begin raise exception 'a page cannot be read' using errcode = 'XX001'; end $$",
        )
        .await;
    world
        .change_database("select renew_epoch(null, 'a restore')")
        .await;
    assert_eq!(merchant.closed().await.code, 4410);

    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    // No hint announces these.
    world.change_database(OVERTAKE).await;
    merchant.take_seqs(1..=4).await;
    world.finish().await;
}
