//! Links that break: refused, silent, forgotten, slow or late. Each is a TCP proxy of the stage.

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use futures_util::FutureExt as _;
use tokio::time::sleep;

use super::effects;
use crate::campaign::nemesis::{End, Plan};
use crate::campaign::stage::{REPLICAS, Stage, name};
use crate::it::support::Proxy;

/// Bytes a second of a slow link.
const SLOW_BYTES: usize = 30_000;
/// Delay of each packet of a late link.
const LATE: Duration = Duration::from_millis(80);
/// Time in which replies are lost, before their connections end.
const LOSS_MS: std::ops::Range<u64> = 200..2_500;

/// The link that breaks.
#[derive(Debug, Clone, Copy)]
pub enum Link {
    /// From all replicas to Postgres.
    Postgres,
    /// From all replicas to RabbitMQ.
    RabbitMq,
    /// From the publishers to RabbitMQ.
    Publishers,
    /// From the clients to one replica.
    Clients,
}

/// The way in which it breaks.
#[derive(Debug, Clone, Copy)]
pub enum Trouble {
    /// Every connection ends, and new ones are refused.
    Cut,
    /// Nothing moves. At the end, either everything moves again or the old connections stay dead.
    BlackHole,
    /// The present connections stay open and move nothing for ever. New ones work.
    HalfOpen,
    /// Replies arrive slowly.
    Slow,
    /// Everything arrives late.
    Late,
    /// Requests arrive and their replies do not. Then the connections end.
    RepliesLost,
    /// Requests do not arrive. Then the connections end.
    RequestsLost,
}

pub fn plan(stage: &Arc<Stage>, random: &mut Rng, link: Link, trouble: Trouble) -> Plan {
    let (stage, replica, forgets) = (Arc::clone(stage), random.usize(..REPLICAS), random.bool());
    let loss = Duration::from_millis(random.u64(LOSS_MS));
    let hits = match link {
        Link::Postgres => vec!["postgres".to_owned(), "network".to_owned()],
        Link::RabbitMq | Link::Publishers => vec!["rabbitmq".to_owned(), "network".to_owned()],
        Link::Clients => vec!["network".to_owned(), name(replica)],
    };
    Plan {
        hits,
        target: match link {
            Link::Clients => format!("{link:?} of {}: {trouble:?}", name(replica)),
            _ => format!("{link:?}: {trouble:?}"),
        },
        total: matches!(trouble, Trouble::Cut | Trouble::BlackHole)
            && !matches!(link, Link::Publishers),
        begin: async move {
            let connections = effects::connections(proxy(&stage, link, replica).address());
            begin(proxy(&stage, link, replica), trouble, loss).await;
            End::by(async move {
                let proxy = proxy(&stage, link, replica);
                if forgets && matches!(trouble, Trouble::BlackHole) {
                    proxy.forget();
                }
                proxy.mend();
                effects::count(&connections)
            })
        }
        .boxed(),
    }
}

/// Hints are lost between RabbitMQ and the replicas. Heartbeats and events arrive.
pub fn hints_lost(stage: &Arc<Stage>, _: &mut Rng) -> Plan {
    let stage = Arc::clone(stage);
    Plan {
        hits: vec!["rabbitmq".to_owned(), "network".to_owned()],
        target: "hints are lost".to_owned(),
        total: false,
        begin: async move {
            let before = stage.tap.hints_lost();
            stage.tap.lose_hints();
            End::by(async move {
                stage.tap.recover();
                stage.tap.hints_lost() - before
            })
        }
        .boxed(),
    }
}

async fn begin(proxy: &Proxy, trouble: Trouble, loss: Duration) {
    match trouble {
        Trouble::Cut => proxy.cut(),
        Trouble::BlackHole => proxy.stall(),
        Trouble::HalfOpen => proxy.forget(),
        Trouble::Slow => proxy.slow_downstream(SLOW_BYTES),
        Trouble::Late => proxy.delay(LATE),
        Trouble::RepliesLost => {
            proxy.stall_downstream();
            sleep(loss).await;
            proxy.cut();
        }
        Trouble::RequestsLost => {
            proxy.stall_upstream();
            sleep(loss).await;
            proxy.cut();
        }
    }
}

fn proxy(stage: &Stage, link: Link, replica: usize) -> &Proxy {
    match link {
        Link::Postgres => &stage.to_postgres,
        Link::RabbitMq => &stage.to_rabbitmq,
        Link::Publishers => &stage.publishers,
        Link::Clients => &stage.doors[replica],
    }
}
