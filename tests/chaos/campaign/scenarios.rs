//! The scenarios of a campaign: a setting, and the faults that it can have.

use super::faults::{self, clusters, fault};
use super::nemesis::Fault;
use super::setting::Setting;

/// Length of a scenario that has no short form.
pub const SECONDS: u64 = 60;

pub struct Scenario {
    /// Its name in `SHOPBELL_CHAOS_ON`.
    pub name: &'static str,
    pub setting: Setting,
    pub faults: &'static [Fault],
    /// Seconds of faults in the short form, which `make test` runs; `None` if it is not part of it.
    pub short_seconds: Option<u64>,
}

/// The first one is repeated as often as `SHOPBELL_CHAOS_RUNS`.
pub const ALL: &[Scenario] = &[
    Scenario {
        name: "alone",
        setting: Setting::Alone,
        faults: faults::ALL,
        short_seconds: Some(90),
    },
    Scenario {
        name: "rabbitmq-cluster",
        setting: Setting::RabbitmqCluster,
        faults: OF_RABBITMQ_NODES,
        short_seconds: Some(8),
    },
    Scenario {
        name: "synchronous-standby",
        setting: Setting::SynchronousStandby,
        faults: OF_A_STANDBY,
        short_seconds: Some(5),
    },
    Scenario {
        name: "asynchronous-standby",
        setting: Setting::AsynchronousStandby,
        faults: OF_A_STANDBY,
        short_seconds: None,
    },
    Scenario {
        name: "small-disk",
        setting: Setting::SmallDisk,
        faults: OF_A_DISK,
        short_seconds: None,
    },
    Scenario {
        name: "moved-clocks",
        setting: Setting::MovedClocks,
        faults: OF_CLOCKS,
        short_seconds: None,
    },
];

const OF_RABBITMQ_NODES: &[Fault] = &[
    fault("kill-node", 1_000..2_000, clusters::kill_node),
    fault("kill-two-nodes", 1_000..4_000, clusters::kill_two_nodes),
];
const OF_A_STANDBY: &[Fault] = &[fault("fail-over", 1_000..3_000, clusters::fail_over)];
const OF_A_DISK: &[Fault] = &[fault("full-disk", 5_000..12_000, clusters::fill_disk)];
const OF_CLOCKS: &[Fault] = &[fault("moved-clock", 2_000..10_000, clusters::move_clock)];

/// The scenario with this name.
pub fn named(name: &str) -> &'static Scenario {
    let scenario = ALL.iter().find(|scenario| scenario.name == name);
    scenario.unwrap_or_else(|| {
        let known: Vec<_> = ALL.iter().map(|scenario| scenario.name).collect();
        panic!(
            "there is no scenario {name}; the scenarios are: {}",
            known.join(", ")
        )
    })
}
