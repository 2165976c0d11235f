//! Many merchants whose orders must arrive in publishing order.

use futures_util::future::join_all;
use tokio::time::timeout;

use crate::support::{
    Event, Frame, Merchant, Notification, PATIENCE, Parcel, Replica, World, eventually,
};

/// Merchants, and the orders of each in publishing order: in each round, one order of each
/// merchant.
pub struct Crowd {
    merchants: Vec<String>,
    orders: Vec<Vec<Event>>,
}

impl Crowd {
    pub fn new(merchants: usize, orders: usize) -> Self {
        let merchants: Vec<_> = (0..merchants)
            .map(|number| format!("merchant-{number}"))
            .collect();
        let orders = merchants
            .iter()
            .map(|merchant| Event::orders(merchant, orders))
            .collect();
        Self { merchants, orders }
    }

    /// One more order of each merchant.
    pub fn next_round(&mut self) -> Vec<Parcel> {
        for (merchant, orders) in self.merchants.iter().zip(&mut self.orders) {
            orders.push(Event::order(merchant));
        }
        self.orders
            .iter()
            .filter_map(|orders| orders.last())
            .map(Parcel::from)
            .collect()
    }

    pub fn parcels(&self) -> Vec<Parcel> {
        let rounds = 0..self.orders[0].len();
        rounds
            .flat_map(|round| {
                self.orders
                    .iter()
                    .map(move |orders| Parcel::from(&orders[round]))
            })
            .collect()
    }

    pub async fn publish(&self, world: &World) {
        world.publisher().await.publish_all(self.parcels()).await;
    }

    /// Each merchant receives its orders once and in publishing order, from any replica.
    pub async fn expect_all(&self, world: &World, replicas: &[Replica]) {
        let follow = |number: usize| async move {
            let (merchant, orders) = (&self.merchants[number], &self.orders[number]);
            let arrived = follow(
                world,
                merchant,
                replicas.iter().cycle().skip(number),
                orders.len(),
            )
            .await;
            let published: Vec<_> = orders.iter().map(Event::event_id).collect();
            assert_eq!(arrived, published, "the orders of {merchant}");
        };
        join_all((0..self.merchants.len()).map(follow)).await;
    }
}

/// A client that keeps its own place, and connects to the next replica if its session ends. Returns
/// the ids in the order of arrival.
async fn follow<'a>(
    world: &World,
    merchant: &str,
    mut replicas: impl Iterator<Item = &'a Replica>,
    count: usize,
) -> Vec<String> {
    let mut ids = Vec::new();
    while ids.len() < count {
        let handshake = world.merchant(merchant).after(merchant, ids.len() as u64);
        let mut session = eventually(&format!("{merchant} is let in"), PATIENCE, async || {
            let replica = replicas.next().expect("they go round");
            handshake.try_connect(replica.public()).await
        })
        .await;
        while ids.len() < count
            && let Some(notification) = next_or_end(&mut session).await
        {
            assert_eq!(
                notification.seq,
                ids.len() as u64 + 1,
                "{merchant}: {notification:?}"
            );
            session.ack(merchant, notification.seq).await;
            ids.push(notification.id);
        }
    }
    ids
}

/// The next notification, or none if the session ends before.
async fn next_or_end(session: &mut Merchant) -> Option<Notification> {
    let next = async {
        loop {
            match session.next_frame().await {
                Ok(Frame::Notification(notification)) => return Some(notification),
                Ok(_) => {}
                Err(_) => return None,
            }
        }
    };
    timeout(PATIENCE, next)
        .await
        .expect("a notification comes, or the session ends")
}
