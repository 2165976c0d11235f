//! Figures, their medians, and their comparison with the goals.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::ensure;
use serde::Serialize;

/// The growth of memory by a broadcast and by a replayed window, which the goals bound.
pub const AFTER_BROADCAST: &str = "C memory after a broadcast of 64 KiB, of idle";
/// See [`AFTER_BROADCAST`].
pub const AFTER_WINDOW: &str = "C memory after a replayed window, of idle";

/// The owner of a figure: a column of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Who {
    Shopbell,
    WebMqtt,
    WebStomp,
    /// The same durability without Shopbell.
    Minimal,
    /// A part alone.
    Floor,
}

impl Who {
    const ALL: [(Self, &'static str); 5] = [
        (Self::Shopbell, "Shopbell"),
        (Self::WebMqtt, "Web MQTT"),
        (Self::WebStomp, "Web STOMP"),
        (Self::Minimal, "minimal pipeline"),
        (Self::Floor, "part alone"),
    ];
}

/// The figures of one round in their order.
#[derive(Debug, Default)]
pub struct Figures(Vec<(String, Who, f64)>);

impl Figures {
    /// Records a figure.
    pub fn set(&mut self, what: impl Into<String>, who: Who, value: f64) {
        self.0.push((what.into(), who, value));
    }

    /// Records seconds, converted to 100,000 events.
    pub fn set_per_100k(&mut self, what: impl Into<String>, who: Who, seconds: f64, events: usize) {
        self.set(what, who, seconds * 100_000.0 / events as f64);
    }

    /// Records the usual quantiles of latencies.
    pub fn set_latencies(&mut self, what: &str, who: Who, quantiles: BTreeMap<&'static str, f64>) {
        for (quantile, milliseconds) in quantiles {
            self.set(format!("{what}, {quantile} ms"), who, milliseconds);
        }
    }

    /// Adds the figures of another scenario.
    pub fn append(&mut self, mut other: Self) {
        self.0.append(&mut other.0);
    }

    /// One line of progress.
    pub fn line(&self) -> String {
        let figures = self
            .0
            .iter()
            .map(|(what, who, value)| format!("{what} [{who:?}]: {}", number(*value)));
        figures.collect::<Vec<_>>().join(" | ")
    }
}

/// The median of each figure over the rounds.
#[derive(Debug, Serialize)]
pub struct Report {
    machine: String,
    rounds: usize,
    rows: Vec<Row>,
    goals: Vec<Goal>,
}

#[derive(Debug, Serialize)]
struct Row {
    what: String,
    medians: BTreeMap<Who, f64>,
    all: BTreeMap<Who, Vec<f64>>,
}

#[derive(Debug, Serialize)]
struct Goal {
    goal: &'static str,
    /// `None` if a required figure was not measured.
    value: Option<f64>,
    met: Option<bool>,
    /// If it is not met, the run fails.
    required: bool,
}

impl Report {
    /// Of all rounds.
    pub fn of(machine: String, rounds: usize, measured: Vec<Figures>) -> Self {
        let mut rows: Vec<Row> = Vec::new();
        for (what, who, value) in measured.into_iter().flat_map(|figures| figures.0) {
            let place = rows
                .iter()
                .position(|row| row.what == what)
                .unwrap_or_else(|| {
                    rows.push(Row {
                        what,
                        medians: BTreeMap::new(),
                        all: BTreeMap::new(),
                    });
                    rows.len() - 1
                });
            rows[place].all.entry(who).or_default().push(value);
        }
        for row in &mut rows {
            row.medians = row
                .all
                .iter()
                .map(|(who, values)| (*who, median(values)))
                .collect();
        }
        let mut report = Self {
            machine,
            rounds,
            rows,
            goals: vec![],
        };
        report.goals = report.judge();
        report
    }

    /// The table in Markdown.
    pub fn table(&self) -> String {
        let mut table = format!("{}; medians of {}\n\n| |", self.machine, self.rounds);
        // Writing to a string cannot fail.
        Who::ALL
            .iter()
            .for_each(|(_, title)| _ = write!(table, " {title} |"));
        table.push_str("\n|---|---|---|---|---|\n");
        for row in &self.rows {
            let _ = write!(table, "| {} |", row.what);
            for (who, _) in Who::ALL {
                let _ = write!(
                    table,
                    " {} |",
                    row.medians
                        .get(&who)
                        .map_or(String::new(), |value| number(*value))
                );
            }
            table.push('\n');
        }
        table.push_str("\n| goal | measured | |\n|---|---|---|\n");
        for Goal {
            goal, value, met, ..
        } in &self.goals
        {
            let verdict = match met {
                Some(true) => "met",
                Some(false) => "**not met**",
                None => "not measured",
            };
            let _ = writeln!(
                table,
                "| {goal} | {} | {verdict} |",
                value.map_or(String::new(), number)
            );
        }
        table
    }

    /// Fails if a required goal was measured and not reached.
    pub fn required_goals_are_met(&self) -> anyhow::Result<()> {
        let missed = self
            .goals
            .iter()
            .filter(|goal| goal.required && goal.met == Some(false));
        let missed: Vec<_> = missed.map(|goal| goal.goal).collect();
        ensure!(missed.is_empty(), "not met: {}", missed.join("; "));
        Ok(())
    }

    fn median(&self, what: &str, who: Who) -> Option<f64> {
        self.rows
            .iter()
            .find(|row| row.what == what)?
            .medians
            .get(&who)
            .copied()
    }

    /// Every goal, also if this run measured none of its figures, so that missing ones are visible.
    fn judge(&self) -> Vec<Goal> {
        let goals = [
            self.throughput_goals(),
            self.latency_and_replay_goals(),
            self.session_goals(),
        ];
        goals.into_iter().flatten().collect()
    }

    /// The median of Shopbell.
    fn shopbell(&self, what: &str) -> Option<f64> {
        self.median(what, Who::Shopbell)
    }

    /// The median of Shopbell divided by that of another program.
    fn ratio(&self, what: &str, other: Who) -> Option<f64> {
        Some(self.shopbell(what)? / self.median(what, other)?)
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
        let alone = parts.map(|part| self.median(part, Who::Floor));
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
                "R: at least 50 sessions and pages a query",
                self.shopbell("R pages a query"),
                50.0,
            ),
        ]
    }

    fn session_goals(&self) -> Vec<Goal> {
        vec![
            at_most(
                "C: at most 12 KiB an idle connection",
                self.shopbell("C KiB a connection"),
                12.0,
            ),
            required(at_most(
                "C: at most 1.3 x the idle memory within 10 s of a broadcast of 64 KiB",
                self.shopbell(AFTER_BROADCAST),
                1.3,
            )),
            required(at_most(
                "C: at most 1.3 x the idle memory within 10 s of a replayed window",
                self.shopbell(AFTER_WINDOW),
                1.3,
            )),
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
                "B: a broadcast reaches 10,000 sessions within 1 s",
                self.shopbell("B seconds to all"),
                1.0,
            ),
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
}

fn at_least(goal: &'static str, value: Option<f64>, bound: f64) -> Goal {
    Goal {
        goal,
        value,
        met: value.map(|value| value >= bound),
        required: false,
    }
}

fn at_most(goal: &'static str, value: Option<f64>, bound: f64) -> Goal {
    Goal {
        goal,
        value,
        met: value.map(|value| value <= bound),
        required: false,
    }
}

/// A goal that fails the run if it is not met.
fn required(goal: Goal) -> Goal {
    Goal {
        required: true,
        ..goal
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

/// The machine is not more precise than three digits.
fn number(value: f64) -> String {
    match value {
        value if value >= 1_000.0 => {
            let digits = format!("{value:.0}");
            let (head, tail) = digits.split_at(digits.len() - 3);
            match head.len() {
                4.. => format!(
                    "{},{},{tail}",
                    &head[..head.len() - 3],
                    &head[head.len() - 3..]
                ),
                _ => format!("{head},{tail}"),
            }
        }
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}
