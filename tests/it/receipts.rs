//! Receipts: a publisher learns that its event was delivered, read, handled or settled, or that it was not in time.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::support::http::{Reply, get_with};
use crate::support::{Broker, Event, PATIENCE, Replica, World, eventually, holds};

const MERCHANT: &str = "merchant-42";

/// The receipts that a publisher has received.
struct Receipts {
    broker: Broker,
    queue: String,
    received: Vec<Value>,
}

impl Receipts {
    /// Binds a queue to the exchange of receipts, which a replica has declared.
    async fn of(world: &World) -> Self {
        let (broker, queue) = (world.broker().await, world.name("receipts-queue"));
        broker
            .declare_queue_of(&queue, &world.name("receipts"))
            .await;
        Self {
            broker,
            queue,
            received: Vec::new(),
        }
    }

    /// Waits until the receipts fulfil a condition, which returns the reason if they do not.
    async fn until(&mut self, what: &str, is_met: impl Fn(&[Value]) -> Result<(), String>) {
        let Self {
            broker,
            queue,
            received,
        } = self;
        eventually(what, PATIENCE, async || {
            let letters = broker.take_all(queue).await;
            for letter in letters {
                let expected = "application/cloudevents+json; charset=utf-8";
                assert_eq!(letter.content_type.as_deref(), Some(expected));
                received.push(serde_json::from_slice(&letter.body).expect("a receipt is JSON"));
            }
            is_met(received)
        })
        .await;
    }

    /// Waits for this number of receipts, and returns each as its type and the id of its event.
    async fn take(&mut self, count: usize) -> Vec<(String, String)> {
        let what = format!("{count} receipts");
        self.until(&what, |received| {
            holds(received.len() >= count, format!("{received:?}"))
        })
        .await;
        self.received.iter().map(named).collect()
    }
}

fn text(receipt: &Value, field: &str) -> String {
    receipt[field].as_str().unwrap_or_default().to_owned()
}

/// The type without its prefix, and the id of the event.
fn named(receipt: &Value) -> (String, String) {
    let event_type = text(receipt, "type");
    let fact = event_type.strip_prefix("shopbell.").unwrap_or_default();
    (fact.to_owned(), text(receipt, "subject"))
}

fn time(text: &str) -> OffsetDateTime {
    OffsetDateTime::parse(text, &Rfc3339).expect("an RFC 3339 time")
}

fn pairs<const N: usize>(expected: [(&str, &str); N]) -> Vec<(String, String)> {
    let owned = |(fact, event): (&str, &str)| (fact.to_owned(), event.to_owned());
    expected.map(owned).to_vec()
}

#[tokio::test]
async fn a_publisher_learns_of_delivery_reading_handling_and_settlement() {
    let world = World::new().await;
    let replica = world.serve().await;
    let mut receipts = Receipts::of(&world).await;
    let publisher = world.publisher().await;
    let all = "delivered,read,handled,settled,expired";
    let asking = Event::order_with_id(MERCHANT, "A-1")
        .id("e-1")
        .attribute("receipts", all);
    let cancelled = Event::order_with_id(MERCHANT, "A-2")
        .id("e-2")
        .attribute("receipts", "settled");
    publisher.publish_all([asking.clone(), cancelled]).await;
    // The same event again, and one that asks for nothing.
    publisher
        .publish_all([asking, Event::order(MERCHANT)])
        .await;
    let token = world.token("anna").feeds([MERCHANT]).sign();
    let anna = world.merchant("anna").token(token).device("phone");
    let mut anna = anna.connect(replica.public()).await;
    anna.take_seqs(1..=3).await;
    assert_eq!(receipts.take(1).await, pairs([("delivered", "e-1")]));
    let delivered = &receipts.received[0];
    assert_eq!(delivered["specversion"], "1.0");
    assert_eq!(delivered["source"], "/shopbell");
    let data = &delivered["data"];
    assert_eq!((&data["feed"], &data["seq"]), (&MERCHANT.into(), &1.into()));
    assert_eq!(
        (&data["subscriber"], &data["device"]),
        (&"anna".into(), &"phone".into())
    );
    assert_eq!(
        (&data["source"], &data["event"]),
        (&"/shop/orders".into(), &"order.created".into())
    );
    assert!(time(&text(data, "stored_at")) <= time(&text(delivered, "time")));

    anna.read_through(MERCHANT, 3).await;
    anna.next_state().await;
    anna.handle(MERCHANT, &[1, 3]).await;
    anna.next_state().await;
    let expected = [("delivered", "e-1"), ("read", "e-1"), ("handled", "e-1")];
    assert_eq!(receipts.take(3).await, pairs(expected));
    assert_eq!(receipts.received[2]["data"]["subscriber"], "anna");
    publisher
        .publish(&Event::cancellation(MERCHANT, "A-2"))
        .await;
    let expected = [
        ("delivered", "e-1"),
        ("read", "e-1"),
        ("handled", "e-1"),
        ("settled", "e-2"),
    ];
    assert_eq!(receipts.take(4).await, pairs(expected));
    assert_eq!(receipts.received[3]["data"]["subscriber"], "cancelled");

    let open = "select count(*) from receipts where due_at is not null";
    assert_eq!(world.number(open).await, 0, "nothing is left to do");
    assert_eq!(world.number("select count(*) from receipts").await, 2);
    world.finish().await;
}

#[tokio::test]
async fn a_missed_deadline_is_reported_in_time_and_so_is_what_follows() {
    let world = World::new().await;
    let replica = world.serve().await;
    let mut receipts = Receipts::of(&world).await;
    let publisher = world.publisher().await;
    let mut late = world
        .merchant(MERCHANT)
        .device("late")
        .connect(replica.public())
        .await;
    let order = |id: &str| Event::order_with_id(MERCHANT, id).id(id);
    let asking = order("A-1")
        .attribute("deliverwithin", "1")
        .attribute("handlewithin", "2");
    publisher.publish(&asking).await;
    late.next_notification().await;
    let expected = pairs([("undelivered", "A-1"), ("overdue", "A-1")]);
    assert_eq!(receipts.take(2).await, expected);
    for (receipt, deadline) in receipts.received.iter().zip(["deliver_by", "handle_by"]) {
        let late = time(&text(receipt, "time")) - time(&text(&receipt["data"], deadline));
        assert!(
            late.is_positive() && late < time::Duration::seconds(2),
            "{late}: {receipt}"
        );
    }
    let state = late.next_state().await;
    assert_eq!((state.seqs, state.version), (Some(vec![1]), Some(1)));
    assert_eq!((state.unread, state.unhandled), (1, 1));
    assert!(state.overdue_at.is_some() && state.handled_at.is_none());
    // A device that was away reads it too.
    let mut other = world
        .merchant(MERCHANT)
        .state(MERCHANT, 0)
        .connect(replica.public())
        .await;
    assert_eq!(other.next_state().await.overdue_at, state.overdue_at);

    late.ack(MERCHANT, 1).await;
    late.handle(MERCHANT, &[1]).await;
    let facts = receipts.take(4).await;
    let later: BTreeSet<_> = facts
        .iter()
        .skip(2)
        .map(|(fact, _)| fact.as_str())
        .collect();
    assert_eq!(later, BTreeSet::from(["delivered", "handled"]));
    world.finish().await;
}

#[tokio::test]
async fn a_fact_in_time_prevents_the_escalation() {
    let world = World::new().await;
    let replica = world.serve().await;
    let mut receipts = Receipts::of(&world).await;
    let publisher = world.publisher().await;
    let order = |id: &str| {
        let order = Event::order_with_id(MERCHANT, id).id(id);
        order
            .attribute("handlewithin", "2")
            .attribute("deliverwithin", "2")
    };
    let expiring = order("A-3")
        .attribute("receipts", "expired")
        .expires_in_seconds(1);
    publisher
        .publish_all([order("A-1"), order("A-2"), expiring])
        .await;
    let mut merchant = world.merchant(MERCHANT).connect(replica.public()).await;
    merchant.expect_seqs(1..=2).await;
    merchant.handle(MERCHANT, &[1]).await;
    publisher
        .publish(&Event::cancellation(MERCHANT, "A-2"))
        .await;
    merchant.ack(MERCHANT, 2).await;
    // The third shows that the deadline of the others has passed.
    let expected = [
        ("expired", "A-3"),
        ("undelivered", "A-3"),
        ("overdue", "A-3"),
    ];
    let facts: BTreeSet<_> = receipts.take(3).await.into_iter().collect();
    assert_eq!(facts, BTreeSet::from_iter(pairs(expected)));
    let open = "select count(*) from receipts where due_at is not null";
    eventually("nothing is due", PATIENCE, async || {
        let open = world.number(open).await;
        holds(open == 0, open)
    })
    .await;
    assert_eq!(receipts.take(3).await.len(), 3, "the others were in time");
    world.finish().await;
}

#[tokio::test]
async fn a_handle_and_an_escalation_agree_who_was_first() {
    const ORDERS: u64 = 60;
    let world = World::new().await;
    let replicas = [world.serve().await, world.serve().await];
    let mut receipts = Receipts::of(&world).await;
    let mut merchant = world.merchant(MERCHANT).connect(replicas[0].public()).await;
    let publisher = world.publisher().await;
    let order = |number: u64| {
        let order = Event::order(MERCHANT).id(&format!("e-{number}"));
        order
            .attribute("handlewithin", "1")
            .attribute("receipts", "handled")
    };
    publisher.publish_all((1..=ORDERS).map(order)).await;
    merchant.take_seqs(1..=ORDERS).await;
    // The handles are spread over the time of the deadline.
    let passed =
        "select (extract(epoch from now() - min(handle_by)) * 1000 + 100000)::bigint from receipts";
    for seq in 1..=ORDERS {
        eventually("the time of this handle has come", PATIENCE, async || {
            let passed = world.number(passed).await;
            holds(passed + 20 * (ORDERS / 2) >= 100_000 + 20 * seq, passed)
        })
        .await;
        merchant.handle(MERCHANT, &[seq]).await;
    }
    receipts
        .until("each order was handled", |received| {
            let handled = received
                .iter()
                .filter(|one| named(one).0 == "handled")
                .count();
            holds(handled as u64 == ORDERS, handled)
        })
        .await;
    let mut facts = BTreeMap::<String, Vec<String>>::new();
    for receipt in &receipts.received {
        let (fact, event) = named(receipt);
        facts.entry(event).or_default().push(fact);
    }
    let escalated = facts
        .values()
        .filter(|facts| **facts == ["overdue", "handled"])
        .count() as u64;
    let in_time = facts
        .values()
        .filter(|facts| **facts == ["handled"])
        .count() as u64;
    assert_eq!(
        escalated + in_time,
        ORDERS,
        "no fact is missing or repeated: {facts:?}"
    );
    let first =
        "select count(*) from receipts where overdue_at is not null and overdue_at <= handled_at";
    assert_eq!(world.number(first).await, escalated);
    let any = "select count(*) from receipts where overdue_at is not null";
    assert_eq!(world.number(any).await, escalated);
    world.finish().await;
}

#[tokio::test]
async fn receipts_survive_the_kill_of_a_replica_and_the_loss_of_rabbitmq() {
    const ORDERS: u64 = 400;
    let world = World::new().await;
    let (proxy, first) = world.replica().start_behind_broker_proxy().await;
    let mut receipts = Receipts::of(&world).await;
    let publisher = world.publisher().await;
    let order = |number: u64| {
        let order = Event::order(&format!("m-{}", number % 20)).id(&format!("e-{number}"));
        order.attribute("handlewithin", "1")
    };
    publisher.publish_all((0..ORDERS).map(order)).await;
    world.stored_reaches(ORDERS, PATIENCE).await;
    proxy.cut();
    let failed = "receipts could not be published; they stay in Postgres";
    first.logs("WARN", "message", |text| text == failed).await;
    proxy.mend();
    receipts
        .until("some receipts came", |received| {
            holds(!received.is_empty(), "none")
        })
        .await;
    first.kill();
    let _second = world.serve().await;
    let ids = |received: &[Value]| {
        received
            .iter()
            .map(|one| text(one, "id"))
            .collect::<BTreeSet<_>>()
    };
    receipts
        .until("each order is overdue", |received| {
            let events: BTreeSet<_> = received.iter().map(named).collect();
            holds(events.len() as u64 == ORDERS, events.len())
        })
        .await;
    assert_eq!(
        ids(&receipts.received).len() as u64,
        ORDERS,
        "a repeated receipt has its id again"
    );
    world.finish().await;
}

#[tokio::test]
async fn receipts_are_erased_with_their_notifications() {
    let world = World::new().await;
    let _first = world.serve().await;
    let asking = Event::order(MERCHANT).attribute("receipts", "delivered");
    let publisher = world.publisher().await;
    publisher
        .publish_all([asking, Event::order(MERCHANT).attribute("receipts", "read")])
        .await;
    world.expect_stored(MERCHANT, 2).await;
    world
        .change_database(
            "delete from notifications where seq = 1;
             update feeds set trimmed_seq = 1, unread = 1, unhandled = 1",
        )
        .await;
    // Housekeeping runs at the start of a replica.
    let _second = world.serve().await;
    eventually("the receipt is gone", PATIENCE, async || {
        let left = world.number("select count(*) from receipts").await;
        holds(left == 1, left)
    })
    .await;
    world.finish().await;
}

/// Requests certificates as a publisher.
async fn certify(replica: &Replica, token: &str, query: &str) -> Reply {
    let (path, bearer) = (format!("/v1/events/{query}"), format!("Bearer {token}"));
    let reply = get_with(replica.public(), &path, &[("authorization", &bearer)]).await;
    reply.expect("the replica replies")
}

#[tokio::test]
async fn the_certificate_of_an_event_shows_each_fact_with_its_device() {
    let world = World::new().await;
    let replica = world.serve().await;
    let asking = Event::order_with_id(MERCHANT, "A-1").id("a/1");
    let asking = asking.attribute("receipts", "delivered");
    let silent = Event::order_with_id(MERCHANT, "A-2").id("e-2");
    let publisher = world.publisher().await;
    publisher.publish_all([asking, silent]).await;
    world.expect_stored(MERCHANT, 2).await;
    let token = world.token("shop").publish([MERCHANT]).sign();
    let certificate = async |query: &str| {
        let reply = certify(&replica, &token, query).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        let body: Value = serde_json::from_str(&reply.text()).expect("JSON");
        body["notifications"][0].clone()
    };
    let stored = certificate("e-2?source=/shop/orders").await;
    assert_eq!(
        (&stored["feed"], &stored["seq"]),
        (&MERCHANT.into(), &2.into())
    );
    let nobody = (&Value::Null, &Value::Array(vec![]));
    assert_eq!((&stored["delivered"], &stored["acked_by"]), nobody);

    let merchant = world.merchant(MERCHANT).device("phone");
    let mut merchant = merchant.connect(replica.public()).await;
    merchant.take_seqs(1..=2).await;
    merchant.handle(MERCHANT, &[1]).await;
    merchant.next_state().await;
    publisher
        .publish(&Event::cancellation(MERCHANT, "A-2"))
        .await;
    merchant.take_seqs(3..=3).await;
    merchant.next_state().await;
    world.expect_cursor(MERCHANT, "phone", 3).await;
    let asked = certificate("a/1?source=/shop/orders").await;
    let delivered = &asked["delivered"];
    assert_eq!(
        (&delivered["subscriber"], &delivered["device"]),
        (&MERCHANT.into(), &"phone".into())
    );
    assert!(time(&text(delivered, "at")) >= time(&text(&asked, "stored_at")));
    assert_eq!(asked["handled"]["subscriber"], MERCHANT);
    let cancelled = certificate("e-2?source=/shop/orders&recipient=merchant-42").await;
    assert_eq!(cancelled["settled"]["subscriber"], "cancelled");
    let unknown = (&cancelled["handled"], &cancelled["delivered"]["at"]);
    assert_eq!(unknown, (&Value::Null, &Value::Null));
    assert_eq!(cancelled["acked_by"][0]["device"], "phone");

    let arguments = ["certificate", MERCHANT, "a/1", "--source", "/shop/orders"];
    let printed = world.shopbell(&arguments).await.succeeded().stdout;
    assert!(printed.contains("delivered 20"), "{printed}");
    assert!(
        printed.contains("acked by merchant-42 on phone"),
        "{printed}"
    );
    let inspected = world
        .shopbell(&["inspect", MERCHANT, "--seq", "2"])
        .await
        .succeeded();
    assert!(inspected.stdout.contains("settled 20"), "{inspected:?}");
    world.finish().await;
}

#[tokio::test]
async fn a_certificate_is_refused_to_a_token_that_may_not_publish_to_its_recipient() {
    let world = World::new().await;
    let replica = world.serve().await;
    let publisher = world.publisher().await;
    publisher.publish(&Event::order(MERCHANT).id("e-2")).await;
    world.expect_stored(MERCHANT, 1).await;
    let (own, foreign) = (["merchant-42"], ["merchant-4"]);
    let prefix = ["merchant-*"];
    for (recipients, query, status) in [
        (own, "e-2?source=/shop/orders", 200),
        (own, "e-3?source=/shop/orders", 404),
        (own, "e-2?source=/another", 404),
        (own, "e-2", 400),
        (own, "e-2?source=/shop/orders&recipient=merchant-4", 403),
        (foreign, "e-2?source=/shop/orders", 404),
        (
            foreign,
            "e-2?source=/shop/orders&recipient=merchant-42",
            403,
        ),
        (prefix, "e-2?source=/shop/orders", 400),
        (prefix, "e-2?source=/shop/orders&recipient=merchant-42", 200),
    ] {
        let token = world.token("shop").publish(recipients).sign();
        let reply = certify(&replica, &token, query).await;
        assert_eq!(
            reply.status,
            status,
            "{recipients:?} {query}: {}",
            reply.text()
        );
    }
    let reader = world.token(MERCHANT).sign();
    let refused = certify(&replica, &reader, "e-2?source=/shop/orders").await;
    refused.expect_problem(403);
    world.finish().await;
}
