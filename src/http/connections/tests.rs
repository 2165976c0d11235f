//! Deadlines of connections, and the one that makes room.

use super::*;

#[test]
fn a_deadline_follows_what_the_connection_does() {
    let begin = Instant::now();
    let at = |seconds| begin + Duration::from_secs(seconds);
    let watch = Watch::new(begin);
    assert_eq!(watch.due(), Some((at(5), ConnectionDropped::Head)));
    watch.heard(at(3));
    watch.heard(at(4));
    assert_eq!(
        watch.due(),
        Some((at(8), ConnectionDropped::Head)),
        "more bytes of a head give it no more time"
    );
    watch.begin();
    watch.heard(at(9));
    assert_eq!(watch.due(), None);
    watch.response_ended(at(10));
    assert_eq!(watch.due(), Some((at(630), ConnectionDropped::Idle)));
    watch.wrote(false);
    assert_eq!(watch.due().unwrap().1, ConnectionDropped::Stalled);
    watch.wrote(true);
    watch.heard(at(100));
    assert_eq!(watch.due(), Some((at(105), ConnectionDropped::Head)));
}

#[test]
fn idle_connections_make_room_first_and_young_ones_never() {
    let begin = Instant::now();
    let at = |milliseconds| begin + Duration::from_millis(milliseconds);
    let watch = || Watch::new(begin);
    let (new, head, busy, idle) = (watch(), watch(), watch(), watch());
    head.heard(at(900));
    busy.begin();
    idle.response_ended(at(300));
    let candidacies = |now| [&idle, &new, &head, &busy].map(|watch| watch.candidacy(at(now)));
    assert_eq!(candidacies(900), [Some((0, at(300))), None, None, None]);
    let waiting = [
        Some((0, at(300))),
        Some((1, at(0))),
        Some((1, at(900))),
        None,
    ];
    assert_eq!(candidacies(1_900), waiting);
    assert_eq!(candidacies(30_000)[3], Some((2, at(0))));
    idle.ask_to_go();
    assert_eq!(idle.candidacy(at(30_000)), None, "nobody is asked twice");
    assert_eq!(
        (idle.go(at(30_000)), head.go(at(1_900))),
        (Go::Now, Go::Now)
    );
    head.ask_to_go();
    head.begin();
    assert_eq!(head.go(at(1_900)), Go::Stay, "its request has come");
    assert_eq!(
        head.candidacy(at(30_000)),
        Some((2, at(0))),
        "it may be asked again"
    );
    assert_eq!(head.go(at(30_000)), Go::AfterResponse);
}

#[tokio::test]
async fn a_new_connection_takes_the_place_of_the_oldest_that_waits() {
    let connections = Connections::new(2, ConnectionMetrics::default());
    let (first, second) = (connections.slot().await, connections.slot().await);
    second.watch.begin();
    let asked = first.watch.clone();
    let leaving = async {
        asked.asked_to_go().await;
        drop(first);
    };
    let (third, ()) = tokio::join!(connections.slot(), leaving);
    assert_eq!(lock(&connections.open).len(), 2);
    assert_eq!(connections.metrics.open.get(), 2);
    drop((second, third));
    assert_eq!(connections.metrics.open.get(), 0);
}
