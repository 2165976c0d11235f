//! The progress of an import is exact at every item, live and replayed, although deliveries come
//! twice.

use std::collections::BTreeMap;

use crate::support::{Event, Merchant, Notification, Progress, World};

const MERCHANT: &str = "merchant-42";

/// Every eighth item fails.
const FAILS_EVERY: usize = 9;

fn items(import: &str, count: usize) -> Vec<Event> {
    (1..=count)
        .map(|index| Event::import_item(MERCHANT, import, index, index.is_multiple_of(FAILS_EVERY)))
        .collect()
}

fn progress(done: usize, total: Option<usize>) -> Option<Progress> {
    let number = |number: usize| u64::try_from(number).expect("small");
    Some(Progress {
        done: number(done),
        failed: number(done / FAILS_EVERY),
        total: total.map(number),
    })
}

fn type_and_progress(notification: &Notification) -> (&str, Option<Progress>) {
    (&notification.event, notification.progress)
}

#[tokio::test]
async fn each_step_has_the_progress_and_a_replay_has_the_end_and_the_failures() {
    let world = World::new().await;
    let replica = world.serve().await;
    let publisher = world.publisher().await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    merchant.expect_caught_up(MERCHANT).await;

    publisher
        .publish(&Event::import_started(MERCHANT, "spring", 200))
        .await;
    let all = items("spring", 200);
    publisher.publish_all(&all[..100]).await;
    publisher.publish(&Event::order(MERCHANT)).await;
    publisher.publish_all(items("another", 30)).await;
    publisher.publish_all(&all[100..]).await;
    publisher
        .publish(&Event::import_finished(MERCHANT, "spring", "finished"))
        .await;

    // A session that is behind for a moment gets only the newest.
    let live = take_through(&mut merchant, 233).await;
    assert!(live.len() > 30, "{} came live", live.len());
    for notification in live.values() {
        let expected = match notification.seq {
            1 => ("import.started", progress(0, Some(200))),
            102 => ("order.created", None),
            233 => ("import.finished", progress(200, Some(200))),
            seq @ 2..=101 => ("import.item", progress(at(seq - 1), Some(200))),
            seq @ 103..=132 => ("import.item", progress(at(seq - 102), None)),
            seq => ("import.item", progress(at(seq - 32), Some(200))),
        };
        assert_eq!(
            type_and_progress(notification),
            expected,
            "{notification:?}"
        );
        let is_progress = notification.data().contains(r#""imported""#);
        let answered = (
            notification.read_at.is_some(),
            notification.handled_at.is_some(),
        );
        assert_eq!(
            answered,
            (is_progress, is_progress),
            "only failures are unread: {notification:?}"
        );
    }
    assert_eq!(
        world.import(MERCHANT, "spring").await,
        Some((200, 22, Some(200), "finished".into()))
    );
    assert_eq!(
        world.import(MERCHANT, "another").await,
        Some((30, 3, None, "running".into()))
    );

    // Started, finished, an order, and 22 and 3 failures. The rest is progress, which is collapsed.
    let mut late = world
        .merchant(MERCHANT)
        .device("late")
        .after(MERCHANT, 0)
        .connect(replica.public())
        .await;
    let feed = late
        .welcome()
        .feeds
        .iter()
        .find(|feed| feed.feed == MERCHANT)
        .expect("its feed");
    assert_eq!((feed.unread, feed.unhandled), (28, 28));
    let replayed = take_through(&mut late, 233).await;
    assert_eq!(
        replayed.len(),
        30,
        "the unread ones, and the newest item of each import"
    );
    for (seq, notification) in &replayed {
        assert_eq!(
            format!("{notification:?}"),
            format!("{:?}", live[seq]),
            "the same live and replayed"
        );
    }
    world.finish().await;
}

/// Receives and acknowledges notifications up to `last`, by number. The other numbers are
/// collapsed.
async fn take_through(merchant: &mut Merchant, last: u64) -> BTreeMap<u64, Notification> {
    let mut taken = BTreeMap::new();
    while !taken.contains_key(&last) {
        let (skips, notification) = merchant.next_after_skips().await;
        assert!(
            skips.iter().all(|(_, reason)| reason == "collapsed"),
            "{skips:?}"
        );
        merchant.ack(MERCHANT, notification.seq).await;
        taken.insert(notification.seq, notification);
    }
    taken
}

fn at(index: u64) -> usize {
    usize::try_from(index).expect("small")
}

#[tokio::test]
async fn an_item_published_or_delivered_twice_counts_once() {
    let world = World::new().await;
    let replica = world.serve().await;
    let mut publisher = world.publisher().await;
    let mut all = vec![Event::import_started(MERCHANT, "spring", 60)];
    all.extend(items("spring", 60));
    all.push(Event::import_finished(MERCHANT, "spring", "aborted"));
    publisher.publish_all(&all[..20]).await;
    world.expect_stored(MERCHANT, 20).await;
    // New ones among old ones, and some twice in one batch.
    publisher.publish_all(&all[10..40]).await;
    publisher.publish_all(&all[30..50]).await;
    replica.kill();
    publisher.publish_until_confirmed(&all).await;
    replica.restart().await;
    world.expect_stored(MERCHANT, 62).await;
    assert_eq!(
        world.import(MERCHANT, "spring").await,
        Some((60, 6, Some(60), "aborted".into()))
    );

    let mut merchant = world
        .merchant(MERCHANT)
        .after(MERCHANT, 61)
        .connect(replica.public())
        .await;
    assert_eq!(
        type_and_progress(&merchant.take_seqs(62..=62).await[0]),
        ("import.finished", progress(60, Some(60)))
    );
    world.finish().await;
}

#[tokio::test]
async fn an_item_that_is_imported_again_counts_once_with_its_last_status() {
    let world = World::new().await;
    let replica = world.serve().await;
    let publisher = world.publisher().await;
    let item = |index, failed| Event::import_item(MERCHANT, "spring", index, failed);
    publisher
        .publish(&Event::import_started(MERCHANT, "spring", 3))
        .await;
    publisher
        .publish_all([
            item(1, false),
            item(2, true),
            item(3, false),
            item(2, false),
        ])
        .await;
    world.expect_stored(MERCHANT, 5).await;
    assert_eq!(
        world.import(MERCHANT, "spring").await,
        Some((3, 0, Some(3), "running".into()))
    );
    // In other batches, in both directions, and one twice within a batch.
    publisher
        .publish_all([item(3, true), item(3, true), item(1, true)])
        .await;
    world.expect_stored(MERCHANT, 8).await;
    publisher
        .publish_all([item(1, false), item(700, false)])
        .await;
    publisher
        .publish(&Event::import_finished(MERCHANT, "spring", "finished"))
        .await;
    world.expect_stored(MERCHANT, 11).await;
    assert_eq!(
        world.import(MERCHANT, "spring").await,
        Some((4, 1, Some(3), "finished".into()))
    );

    let mut merchant = world
        .merchant(MERCHANT)
        .after(MERCHANT, 10)
        .connect(replica.public())
        .await;
    let last = merchant.take_seqs(11..=11).await.remove(0);
    let expected = Progress {
        done: 4,
        failed: 1,
        total: Some(4),
    };
    assert_eq!(
        last.progress,
        Some(expected),
        "never more done than the total"
    );
    world.finish().await;
}

#[tokio::test]
async fn a_start_after_the_end_begins_a_new_run() {
    let world = World::new().await;
    let replica = world.serve().await;
    let publisher = world.publisher().await;
    let run = |failed| {
        let mut run = vec![Event::import_started(MERCHANT, "nightly", 3)];
        run.extend(
            (1..=3).map(|index| Event::import_item(MERCHANT, "nightly", index, index == failed)),
        );
        run.push(Event::import_finished(MERCHANT, "nightly", "finished"));
        run
    };
    publisher.publish_all(run(2)).await;
    world.expect_stored(MERCHANT, 5).await;
    let second = run(0);
    publisher.publish_all(&second[..2]).await;
    world.expect_stored(MERCHANT, 7).await;
    assert_eq!(
        world.import(MERCHANT, "nightly").await,
        Some((1, 0, Some(3), "running".into()))
    );
    // The end of one run and the next run in one batch.
    publisher
        .publish_all(second[2..].iter().chain(&run(3)[..4]))
        .await;
    world.expect_stored(MERCHANT, 14).await;
    assert_eq!(
        world.import(MERCHANT, "nightly").await,
        Some((3, 1, Some(3), "running".into()))
    );

    let mut merchant = world
        .merchant(MERCHANT)
        .after(MERCHANT, 5)
        .connect(replica.public())
        .await;
    let replayed = take_through(&mut merchant, 14).await;
    let done: Vec<_> = replayed
        .values()
        .map(|item| item.progress.as_ref().map(|p| (p.done, p.failed, p.total)))
        .collect();
    assert_eq!(done.first(), Some(&Some((0, 0, Some(3)))), "{done:?}");
    assert_eq!(done.last(), Some(&Some((3, 1, Some(3)))), "{done:?}");
    world.finish().await;
}

#[tokio::test]
async fn a_late_start_belongs_to_the_run_that_it_missed() {
    let world = World::new().await;
    world.serve().await;
    let mut all = vec![Event::import_finished(MERCHANT, "spring", "finished")];
    all.extend([3, 1, 2].map(|index| Event::import_item(MERCHANT, "spring", index, false)));
    all.push(Event::import_started(MERCHANT, "spring", 3));
    world.publisher().await.publish_all(&all).await;
    world.expect_stored(MERCHANT, 5).await;
    assert_eq!(
        world.import(MERCHANT, "spring").await,
        Some((3, 0, Some(3), "finished".into()))
    );
    world.finish().await;
}
