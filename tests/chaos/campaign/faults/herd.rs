//! A herd: many clients lose their replica at once and reconnect to the others.

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::campaign::nemesis::{End, Plan};
use crate::campaign::population::HERD;
use crate::campaign::stage::{REPLICAS, Stage, name};

/// Bound for the herd to connect, on a loaded machine of two cores.
const CONNECT_BOUND: Duration = Duration::from_secs(90);
const HANDSHAKE_BOUND: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(200);

/// The replica of the whole herd is killed.
pub fn plan(stage: &Arc<Stage>, random: &mut Rng) -> Plan {
    let (stage, replica) = (Arc::clone(stage), random.usize(..REPLICAS));
    Plan {
        // The herd keeps the machine busy.
        hits: vec![name(replica), "machine".to_owned()],
        target: format!("{} clients of {}", stage.herd, name(replica)),
        total: true,
        begin: async move {
            let mut herd = JoinSet::new();
            for number in 0..stage.herd {
                let first = Client::connect(Arc::clone(&stage), number, replica);
                herd.spawn(first);
            }
            let mut clients: Vec<_> = collect(&mut herd).await;
            stage.history.say(&format!(
                "{} clients of the herd are connected",
                clients.len()
            ));
            stage.hold(replica);
            stage.replicas[replica].kill();
            let mut herd = JoinSet::new();
            for client in clients.drain(..) {
                herd.spawn(client.reconnect());
            }
            End::by(async move {
                let clients = collect(&mut herd).await;
                let text = format!("{} clients of the herd are connected again", clients.len());
                stage.history.say(&text);
                stage.release(replica);
                u64::try_from(clients.len()).expect("thousands")
            })
        }
        .boxed(),
    }
}

/// All clients that connect in time.
async fn collect(herd: &mut JoinSet<Client>) -> Vec<Client> {
    let mut clients = Vec::new();
    let all = async {
        while let Some(client) = herd.join_next().await {
            clients.push(client.expect("a client of the herd does not panic"));
        }
    };
    timeout(CONNECT_BOUND, all).await.ok();
    herd.abort_all();
    clients
}

/// A client without events of its own. It records nothing.
struct Client {
    stage: Arc<Stage>,
    number: usize,
    replica: usize,
    /// Reads until the session ends.
    session: tokio::task::JoinHandle<()>,
}

impl Client {
    async fn connect(stage: Arc<Stage>, number: usize, mut replica: usize) -> Self {
        let who = format!("{HERD}{number}");
        loop {
            let address = stage.replicas[replica].public();
            let opened = stage.world.merchant(&who);
            if let Ok(Ok((_, mut socket))) = timeout(HANDSHAKE_BOUND, opened.open(address)).await {
                let session =
                    tokio::spawn(async move { while let Some(Ok(_)) = socket.next().await {} });
                return Self {
                    stage,
                    number,
                    replica,
                    session,
                };
            }
            sleep(PAUSE).await;
            if stage.is_held(replica) {
                replica = (replica + 1) % REPLICAS;
            }
        }
    }

    /// Waits for the end of the session, and connects to another replica.
    async fn reconnect(mut self) -> Self {
        (&mut self.session).await.ok();
        let next = (self.replica + 1 + self.number % (REPLICAS - 1)) % REPLICAS;
        Self::connect(Arc::clone(&self.stage), self.number, next).await
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.session.abort();
    }
}
