//! Processes that are killed, stopped or paused.

use std::sync::Arc;

use fastrand::Rng;
use futures_util::FutureExt as _;

use crate::campaign::nemesis::{End, Plan};
use crate::campaign::stage::{REPLICAS, Stage, name};

/// `kill -9` of a replica.
pub fn kill_replica(stage: &Arc<Stage>, random: &mut Rng) -> Plan {
    let (stage, replica) = (Arc::clone(stage), random.usize(..REPLICAS));
    Plan {
        hits: vec![name(replica)],
        target: format!("{} is killed", name(replica)),
        total: true,
        begin: async move {
            stage.hold(replica);
            stage.replicas[replica].kill();
            End::by(async move { stage.release(replica) })
        }
        .boxed(),
    }
}

/// A service that is away until it is started again. `action` is one of `scripts/services`.
pub fn service(stage: &Arc<Stage>, service: &'static str, action: &'static str) -> Plan {
    let stage = Arc::clone(stage);
    Plan {
        hits: vec![service.to_owned()],
        target: format!("{action} {service}"),
        total: true,
        begin: async move {
            stage.services.act(action, service).await;
            End::by(async move { stage.services.act("start", service).await })
        }
        .boxed(),
    }
}
