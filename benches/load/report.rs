//! Figures, their medians, and their comparison with the goals.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use crate::goals::{self, Goal};

/// The durability behind the figures of JetStream. nats-server 2.9 has no setting for it.
const JETSTREAM_NOTE: &str = "NATS JetStream has a stream and a consumer for each merchant, made before the merchants \
    connect. It confirms an event when it is written to a file, and syncs the file to the disk every two minutes. \
    RabbitMQ and Postgres sync before they confirm. So only NATS JetStream can lose confirmed events if the machine \
    crashes.";

/// The owner of a figure: a column of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Who {
    Shopbell,
    WebMqtt,
    WebStomp,
    JetStream,
    /// The same durability without Shopbell.
    Minimal,
    /// A part alone.
    Floor,
}

impl Who {
    const ALL: [(Self, &'static str); 6] = [
        (Self::Shopbell, "Shopbell"),
        (Self::WebMqtt, "Web MQTT"),
        (Self::WebStomp, "Web STOMP"),
        (Self::JetStream, "NATS JetStream"),
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

    /// The same figures of other services.
    pub fn of_others(self, versions: &str) -> Self {
        let named = |(what, who, value)| (format!("{versions}: {what}"), who, value);
        Self(self.0.into_iter().map(named).collect())
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
        report.goals = goals::all(&report);
        report
    }

    /// The table in Markdown.
    pub fn table(&self) -> String {
        let mut table = format!("{}; medians of {}\n\n| |", self.machine, self.rounds);
        // Writing to a string cannot fail.
        Who::ALL
            .iter()
            .for_each(|(_, title)| _ = write!(table, " {title} |"));
        let _ = writeln!(table, "\n|{}", "---|".repeat(1 + Who::ALL.len()));
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
        if self.has(Who::JetStream) {
            let _ = writeln!(table, "\n{JETSTREAM_NOTE}");
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

    fn has(&self, who: Who) -> bool {
        self.rows.iter().any(|row| row.medians.contains_key(&who))
    }

    /// The goals that this run missed, each with its figure.
    pub fn missed(&self) -> Vec<String> {
        let missed = self.goals.iter().filter(|goal| goal.met == Some(false));
        missed
            .map(|goal| {
                format!(
                    "{} ({})",
                    goal.goal,
                    goal.value.map_or(String::new(), number)
                )
            })
            .collect()
    }

    /// The goals of these scenarios without a figure.
    pub fn unmeasured(&self, scenarios: &[String]) -> Vec<&str> {
        let without = self.goals.iter().filter(|goal| {
            let scenario = goal.goal.split(':').next().unwrap_or_default();
            goal.value.is_none() && scenarios.iter().any(|run| run == scenario)
        });
        without.map(|goal| goal.goal).collect()
    }

    /// The median of a figure.
    pub fn median(&self, what: &str, who: Who) -> Option<f64> {
        self.rows
            .iter()
            .find(|row| row.what == what)?
            .medians
            .get(&who)
            .copied()
    }
}

/// The middle value.
pub fn median(values: &[f64]) -> f64 {
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
