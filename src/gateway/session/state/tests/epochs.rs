//! Epochs: numbers of another epoch are never used.

use super::*;

#[test]
fn a_place_is_used_only_in_its_own_epoch() {
    let other = Epoch::parse("e0").unwrap();
    let cases = [
        (
            kept(seq(5), Some(epoch())),
            kept(version(1), Some(epoch())),
            (5, 1),
        ),
        (
            kept(seq(5), Some(other.clone())),
            kept(version(1), Some(other)),
            (3, 2),
        ),
        (
            kept(seq(8), Some(epoch())),
            kept(version(3), Some(epoch())),
            (3, 2),
        ),
        (kept(seq(5), None), kept(version(1), None), (5, 1)),
        (None, None, (3, 2)),
    ];
    for (after, version, begins) in cases {
        let kept = KeptByClient { after, version };
        let start = Start::new(feed(), &epoch(), seq(3), stored(7, 2), kept.clone(), false);
        assert_eq!((start.after.get(), start.version.get()), begins, "{kept:?}");
    }
}

#[test]
fn a_restored_database_ends_the_session_and_is_doubted() {
    let mut session = session(3, 5);
    words(&mut session);
    session.on_page(&page(3, 3, 2), wall());
    assert_eq!(words(&mut session), ["doubt", "close 4410"]);
}

#[test]
fn a_deleted_canary_feed_ends_its_session_without_a_doubt() {
    let canary = Feed::parse("shopbell-canary/1").unwrap();
    let start = Start::new(
        canary.clone(),
        &epoch(),
        seq(3),
        stored(5, 0),
        KeptByClient::default(),
        false,
    );
    let mut session = begin(Instant::now(), start);
    words(&mut session);
    let mut page = page(3, 3, 2);
    page.feed = canary;
    session.on_page(&page, wall());
    assert_eq!(words(&mut session), ["close 4410"]);
}

#[test]
fn a_page_of_another_epoch_ends_the_session() {
    for epoch in [None, Some(Epoch::parse("e2").unwrap())] {
        let mut session = session(3, 5);
        words(&mut session);
        let mut page = page(3, 5, 5);
        page.epoch = epoch;
        session.on_page(&page, wall());
        assert_eq!(
            words(&mut session),
            ["close 4410"],
            "the database is not doubted"
        );
    }
}

#[test]
fn another_epoch_ends_the_session_with_its_own_wait() {
    let mut session = session(3, 3);
    words(&mut session);
    session.on_epoch(&epoch());
    assert_eq!(words(&mut session), [""; 0]);
    session.on_epoch(&Epoch::parse("e2").unwrap());
    assert_eq!(
        session.take_outputs(),
        [Output::Close(Close::EpochChanged { retry_after_ms: 7 })]
    );
}
