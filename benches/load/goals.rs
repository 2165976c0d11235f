//! The goals, and the figures that they bound. A run at full size fails if it misses one.
//!
//! A goal begins with the name of its scenario.

use serde::Serialize;

use crate::report::{Report, Who};
use crate::{hints, many, overload, retention, soak};

/// The growth of memory by a broadcast and by a replayed window.
pub const AFTER_BROADCAST: &str = "C memory after a broadcast of 64 KiB, of idle";
/// See [`AFTER_BROADCAST`].
pub const AFTER_WINDOW: &str = "C memory after a replayed window, of idle";

/// The memory of a session after a burst of replays, and of one that has gone, in KiB.
pub const AFTER_BURST: &str = "C KiB a session, after a burst of replays";
/// See [`AFTER_BURST`].
pub const AFTER_ALL: &str = "C KiB a session that has gone, after a burst of replays";

/// One goal.
#[derive(Debug, Serialize)]
pub struct Goal {
    pub goal: &'static str,
    /// `None` if a figure was not measured.
    pub value: Option<f64>,
    pub met: Option<bool>,
}

/// Every goal, also if this run measured none of its figures, so that missing ones are visible.
pub fn all(report: &Report) -> Vec<Goal> {
    let medians = Medians(report);
    let goals = [
        medians.throughput_goals(),
        medians.latency_and_replay_goals(),
        medians.session_goals(),
        medians.scale_goals(),
        medians.hint_goals(),
        medians.long_run_goals(),
    ];
    goals.into_iter().flatten().collect()
}

struct Medians<'a>(&'a Report);

impl Medians<'_> {
    /// The median of Shopbell.
    fn shopbell(&self, what: &str) -> Option<f64> {
        self.0.median(what, Who::Shopbell)
    }

    /// The median of Shopbell divided by that of another program.
    fn ratio(&self, what: &str, other: Who) -> Option<f64> {
        Some(self.shopbell(what)? / self.0.median(what, other)?)
    }

    /// One median of Shopbell divided by another.
    fn over(&self, what: &str, other: &str) -> Option<f64> {
        Some(self.shopbell(what)? / self.shopbell(other)?)
    }

    /// The CPU time of all servers divided by that of their parts alone.
    fn over_parts_alone(&self, rabbitmq: &str) -> Option<f64> {
        let others = [
            "lapin consumer, CPU-s",
            "Postgres append, CPU-s",
            "WebSocket push one at a time, CPU-s",
        ];
        let parts = [rabbitmq].into_iter().chain(others);
        let alone = parts.map(|part| self.0.median(part, Who::Floor));
        Some(self.shopbell("T all server CPU-s")? / alone.sum::<Option<f64>>()?)
    }

    /// The cost with a million stored notifications divided by that with ten thousand.
    fn growth(&self, what: &str) -> Option<f64> {
        self.over(
            &format!("S 1,000,000 stored, {what}"),
            &format!("S 10,000 stored, {what}"),
        )
    }

    fn throughput_goals(&self) -> Vec<Goal> {
        vec![
            at_least(
                "T: at least 3 x Web MQTT's events/s",
                self.ratio("T events/s", Who::WebMqtt),
                3.0,
            ),
            at_least(
                "T: at least 0.98 x the minimal pipeline's events/s",
                self.ratio("T events/s", Who::Minimal),
                0.98,
            ),
            at_most(
                "T: at most 0.4 x Web MQTT's server CPU",
                self.ratio("T all server CPU-s", Who::WebMqtt),
                0.4,
            ),
            at_most(
                "T: all server CPU at most 1.5 x the parts alone",
                self.over_parts_alone("RabbitMQ publish + consume, CPU-s"),
                1.5,
            ),
            at_most(
                "T: the same, RabbitMQ's part through a topic exchange, as the contract has it",
                self.over_parts_alone("RabbitMQ publish + consume, topic exchange, CPU-s"),
                1.5,
            ),
            at_most(
                "T: at most 9.5 CPU-s of all servers per 100,000",
                self.shopbell("T all server CPU-s"),
                9.5,
            ),
            at_most(
                "T: Shopbell itself at most 3 CPU-s per 100,000",
                self.shopbell("T Shopbell CPU-s"),
                3.0,
            ),
            at_most(
                "T: peak memory of Shopbell below 100 MB",
                self.shopbell("T peak RSS, MB"),
                100.0,
            ),
        ]
    }

    fn latency_and_replay_goals(&self) -> Vec<Goal> {
        vec![
            at_most(
                "L: p50 at 500/s at most 1.0 ms",
                self.shopbell("L 500/s, p50 ms"),
                1.0,
            ),
            at_most(
                "L: p99 at 500/s at most 2.5 ms",
                self.shopbell("L 500/s, p99 ms"),
                2.5,
            ),
            at_most(
                "L: p50 at 500/s at most 1.05 x the minimal pipeline's",
                self.ratio("L 500/s, p50 ms", Who::Minimal),
                1.05,
            ),
            at_most(
                "L: p99 at 500/s at most 1.25 x the minimal pipeline's",
                self.ratio("L 500/s, p99 ms", Who::Minimal),
                1.25,
            ),
            at_most(
                "L: p50 at 500/s at most 2 x Web MQTT's",
                self.ratio("L 500/s, p50 ms", Who::WebMqtt),
                2.0,
            ),
            at_most(
                "L: p99 at 500/s at most 2 x Web MQTT's",
                self.ratio("L 500/s, p99 ms", Who::WebMqtt),
                2.0,
            ),
            at_most(
                "L: p99 at 2,000/s under 3 x that at 500/s",
                self.over("L 2000/s, p99 ms", "L 500/s, p99 ms"),
                3.0,
            ),
            at_least(
                "R: at least 4 x Web STOMP's events/s",
                self.ratio("R events/s", Who::WebStomp),
                4.0,
            ),
            at_least(
                "R: at least 7 x Web MQTT's events/s",
                self.ratio("R events/s", Who::WebMqtt),
                7.0,
            ),
            at_least(
                "R: at least 50 sessions and pages a query",
                self.shopbell("R pages a query"),
                50.0,
            ),
        ]
    }

    fn session_goals(&self) -> Vec<Goal> {
        vec![
            at_most(
                "C: at most 8 KiB an idle session",
                self.shopbell("C KiB a connection"),
                8.0,
            ),
            at_most(
                "C: at most 1.3 x the idle memory within 10 s of a broadcast of 64 KiB",
                self.shopbell(AFTER_BROADCAST),
                1.3,
            ),
            at_most(
                "C: at most 1.3 x the idle memory within 10 s of a replayed window",
                self.shopbell(AFTER_WINDOW),
                1.3,
            ),
            at_most(
                "C: at most 1.3 x the idle memory within 10 s of a burst of replays",
                self.over(AFTER_BURST, "C KiB a connection"),
                1.3,
            ),
            at_most(
                "C: at most 2 KiB of a session that has gone",
                self.shopbell(AFTER_ALL),
                2.0,
            ),
            at_least(
                "C: at least 3,000 connects/s",
                self.shopbell("C connects/s"),
                3_000.0,
            ),
            at_most(
                "H: a hot merchant slows the others' p99 by less than 2 x",
                self.over("H others, p99 ms", "L 2000/s, p99 ms"),
                2.0,
            ),
            at_most(
                "C: a broadcast reaches all sessions within 1 s",
                self.shopbell("B seconds to all"),
                1.0,
            ),
        ]
    }

    fn scale_goals(&self) -> Vec<Goal> {
        vec![
            at_most(
                "S: cost of T flat within 15 %, 1,000 recipients",
                self.growth("1,000 recipients, T server CPU-s"),
                1.15,
            ),
            at_most(
                "S: cost of R flat within 15 %, 1,000 recipients",
                self.growth("1,000 recipients, R server CPU-s"),
                1.15,
            ),
            at_most(
                "S: cost of T flat within 15 %, 10,000 recipients",
                self.growth("10,000 recipients, T server CPU-s"),
                1.15,
            ),
            at_most(
                "S: cost of R flat within 15 %, 10,000 recipients",
                self.growth("10,000 recipients, R server CPU-s"),
                1.15,
            ),
        ]
    }

    fn hint_goals(&self) -> Vec<Goal> {
        vec![
            at_least(
                "hints: lean ones send at least 5 x fewer bytes to a gateway without recipients",
                self.shopbell(hints::BYTES_SAVED),
                5.0,
            ),
            at_least(
                "hints: lean ones cost such a gateway at least 5 x less CPU",
                self.shopbell(hints::CPU_SAVED),
                5.0,
            ),
        ]
    }

    fn long_run_goals(&self) -> Vec<Goal> {
        let soak_growth = self.over(soak::AFTER, soak::WARM_UP);
        let overload_growth = self.over(overload::AFTER, overload::WARM_UP);
        let normal = self.over(overload::LATENCY_AFTER, overload::LATENCY_BEFORE);
        vec![
            at_most(
                "many: at most 8 KiB of a gateway a session",
                self.shopbell(many::MEMORY),
                8.0,
            ),
            at_most(
                "many: Postgres at most 1 % of a core while nothing happens",
                self.shopbell(many::IDLE_POSTGRES),
                1.0,
            ),
            at_most(
                "many: Shopbell and Postgres at most 2 % of a core while nothing happens",
                self.shopbell(many::IDLE_ALL),
                2.0,
            ),
            at_most(
                "soak: memory grows by at most 10 % after a minute",
                soak_growth,
                1.1,
            ),
            at_most(
                "overload: memory grows by at most 10 % after a minute",
                overload_growth,
                1.1,
            ),
            at_most(
                "overload: 5 s after it, p99 is at most 2 x the worst before",
                normal,
                2.0,
            ),
            at_most(
                "retention: an append costs at most 1.15 x that to an empty database, ids in order of time",
                self.shopbell(retention::APPEND_IN_ORDER),
                1.15,
            ),
            at_most(
                "retention: the same, random ids",
                self.shopbell(retention::APPEND_RANDOM),
                1.15,
            ),
            at_most(
                "retention: a replay takes at most 1.25 x that of an empty database",
                self.shopbell(retention::REPLAY),
                1.25,
            ),
            at_least(
                "retention: removes at least 5,000/s while as many arrive",
                self.shopbell(retention::REMOVED),
                retention::PER_SECOND,
            ),
            at_least(
                "retention: stores at least 0.99 x the events meanwhile",
                self.shopbell(retention::STORED)
                    .map(|rate| rate / retention::PER_SECOND),
                0.99,
            ),
            at_most(
                "retention: the table with its indexes grows to at most 1.1 x",
                self.over(retention::SIZE_MOST, retention::SIZE_BEFORE),
                1.1,
            ),
            at_most(
                "retention: feeds and cursors stay below 64 MB",
                self.shopbell(retention::COUNTERS_MOST),
                64.0,
            ),
        ]
    }
}

fn at_least(goal: &'static str, value: Option<f64>, bound: f64) -> Goal {
    Goal {
        goal,
        value,
        met: value.map(|value| value >= bound),
    }
}

fn at_most(goal: &'static str, value: Option<f64>, bound: f64) -> Goal {
    Goal {
        goal,
        value,
        met: value.map(|value| value <= bound),
    }
}
