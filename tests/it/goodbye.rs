//! If the server closes a session, everything counts that the client sent before it received the
//! close.

use tokio::task::JoinSet;

use crate::support::raw_socket::{CLOSE, CONTINUATION, FIRST_FRAGMENT, PING, RawSocket, TEXT};
use crate::support::{Event, Frame, PATIENCE, Replica, World, eventually, holds};

const MERCHANT: &str = "merchant-42";
/// The client's close: 1000.
const NORMAL: (u8, &[u8]) = (CLOSE, &[0x03, 0xe8]);

fn ack(seq: u64) -> String {
    format!(r#"{{"type":"ack","feed":"{MERCHANT}","seq":{seq}}}"#)
}

/// A session that was sent ten orders and has acknowledged none.
async fn with_ten_orders(world: &World, replica: &Replica, token: String) -> RawSocket {
    world
        .publisher()
        .await
        .publish_all(Event::orders(MERCHANT, 10))
        .await;
    world.expect_stored(MERCHANT, 10).await;
    let mut merchant = world
        .merchant(MERCHANT)
        .token(token)
        .connect_raw(replica.public())
        .await;
    merchant.notifications(10).await;
    merchant
}

/// Acknowledges and handles while the server's close is on its way, then replies to the close.
async fn acknowledge_in_flight(world: &World, merchant: &mut RawSocket, close: u16) {
    let (code, reason) = merchant.next_close().await;
    assert_eq!(code, close, "{reason}");
    let (one, ten) = (ack(1), ack(10));
    let handle = format!(r#"{{"type":"handle","feed":"{MERCHANT}","seqs":[2,3]}}"#);
    let not_sent = ack(11);
    let frames = [
        one.as_bytes(),
        ten.as_bytes(),
        handle.as_bytes(),
        not_sent.as_bytes(),
    ]
    .map(|text| (TEXT, text));
    assert!(merchant.send(&frames).await && merchant.send(&[(PING, b"late"), NORMAL]).await);
    assert_eq!(merchant.next_frame().await, None, "nothing follows a close");
    world.expect_cursor(MERCHANT, "", 10).await;
    eventually("the handles count", PATIENCE, async || {
        let unmarked = world.unmarked(MERCHANT).await;
        holds(unmarked.1 == 8, format!("{unmarked:?}"))
    })
    .await;
}

#[tokio::test]
async fn acks_in_flight_count_when_a_replica_leaves() {
    let world = World::new().await;
    let replica = world.serve().await;
    let mut merchant = with_ten_orders(&world, &replica, world.token(MERCHANT).sign()).await;
    replica.ask_to_leave();
    acknowledge_in_flight(&world, &mut merchant, 1012).await;
    assert!(replica.ended().await.success());

    replica.restart().await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    assert_eq!(
        merchant.expect_caught_up(MERCHANT).await,
        10,
        "nothing is repeated"
    );
    world.finish().await;
}

#[tokio::test]
async fn acks_in_flight_count_when_the_token_expires() {
    let world = World::new().await;
    let replica = world.serve().await;
    let token = world.token(MERCHANT).expires_in_seconds(0).sign();
    let mut merchant = with_ten_orders(&world, &replica, token).await;
    acknowledge_in_flight(&world, &mut merchant, 4401).await;
    world.finish().await;
}

#[tokio::test]
async fn acks_in_flight_count_when_a_session_is_too_old() {
    let world = World::new().await;
    let replica = world
        .replica()
        .with("SHOPBELL_MAX_SESSION_SECONDS", 2)
        .start()
        .await;
    let mut merchant = with_ten_orders(&world, &replica, world.token(MERCHANT).sign()).await;
    acknowledge_in_flight(&world, &mut merchant, 4409).await;
    world.finish().await;
}

#[tokio::test]
async fn acks_in_flight_count_when_a_client_was_silent() {
    let world = World::new().await;
    let replica = world
        .replica()
        .with("SHOPBELL_HEARTBEAT_SECONDS", 1)
        .start()
        .await;
    let mut merchant = with_ten_orders(&world, &replica, world.token(MERCHANT).sign()).await;
    acknowledge_in_flight(&world, &mut merchant, 4408).await;
    world.finish().await;
}

#[tokio::test]
async fn frames_after_a_fault_of_the_client_do_not_count() {
    let world = World::new().await;
    let replica = world.serve().await;
    let mut merchant = with_ten_orders(&world, &replica, world.token(MERCHANT).sign()).await;
    let (four, ten) = (ack(4), ack(10));
    assert!(
        merchant
            .send(&[
                (TEXT, four.as_bytes()),
                (TEXT, b"ding dong"),
                (TEXT, ten.as_bytes()),
                NORMAL
            ])
            .await
    );
    assert_eq!(merchant.next_close().await.0, 4500);
    assert_eq!(merchant.next_frame().await, None);
    assert!(replica.terminate().await.success());
    world.expect_cursor(MERCHANT, "", 4).await;
    world.finish().await;
}

#[tokio::test]
async fn empty_fragments_count_as_frames() {
    let world = World::new().await;
    let replica = world.serve().await;
    let mut merchant = world.merchant(MERCHANT).connect_raw(replica.public()).await;
    assert!(
        merchant
            .send(&[
                (FIRST_FRAGMENT, br#"{"type":"#),
                (PING, b"between"),
                (CONTINUATION, b"\"ping\"")
            ])
            .await
    );
    assert!(
        merchant.send(&[(CONTINUATION, b""), (0x80, b"}")]).await,
        "a message in fragments is one message"
    );
    while merchant.next_frame().await.expect("a pong").1 != br#"{"type":"pong"}"# {}

    assert!(merchant.send(&[(FIRST_FRAGMENT, b"")]).await);
    let many = [(CONTINUATION, &b""[..]); 500];
    for _ in 0..20 {
        if !merchant.send(&many).await {
            break;
        }
    }
    let (code, reason) = merchant.next_close().await;
    assert_eq!(code, 4429, "{reason}");
    world.finish().await;
}

#[tokio::test]
async fn a_deploy_under_load_repeats_no_acknowledged_notification() {
    const MERCHANTS: usize = 12;
    let world = World::new().await;
    let replica = world
        .replica()
        .with("SHOPBELL_DRAIN_SECONDS", 1)
        .start()
        .await;
    let feeds: Vec<String> = (0..MERCHANTS)
        .map(|number| format!("merchant-{number}"))
        .collect();
    let mut clients = JoinSet::new();
    for feed in feeds.clone() {
        let mut socket = world.merchant(&feed).connect_raw(replica.public()).await;
        // On a slow network, an ack and the next notification or the close cross.
        clients.spawn(async move {
            let mut last = 0;
            while let Some((first, payload)) = socket.next_frame().await {
                let ack = format!(r#"{{"type":"ack","feed":"{feed}","seq":{last}}}"#);
                if first == CLOSE {
                    assert!(
                        socket
                            .send(&[(TEXT, ack.as_bytes()), (CLOSE, &payload[..2])])
                            .await
                    );
                    break;
                }
                let frame = Frame::parse(&String::from_utf8_lossy(&payload));
                if let Ok(Frame::Notification(notification)) = frame {
                    assert!(
                        socket.send(&[(TEXT, ack.as_bytes())]).await,
                        "the replica reads until the client's close"
                    );
                    last = notification.seq;
                }
            }
            (feed, last)
        });
    }
    let orders: Vec<_> = (0..1_000)
        .flat_map(|number| Event::orders(&feeds[number % MERCHANTS], 1))
        .collect();
    let publisher = world.publisher().await;
    let deploy = async {
        replica.metric_reaches("shopbell_acks_total", 200).await;
        assert!(replica.terminate().await.success());
    };
    tokio::join!(publisher.publish_all(&orders), deploy);
    replica.restart().await;
    for (feed, last) in clients.join_all().await {
        assert!(last > 0, "{feed} was sent something");
        let merchant = world.merchant(&feed).connect(replica.public()).await;
        let cursors = merchant
            .welcome()
            .feeds
            .iter()
            .filter(|state| state.feed == feed)
            .map(|state| state.cursor);
        assert_eq!(
            cursors.collect::<Vec<_>>(),
            [last],
            "{feed} goes on where it stopped"
        );
    }
    world.finish().await;
}
