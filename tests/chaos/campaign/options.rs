//! The options of a campaign, from the environment. `scripts/chaos` sets them.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::scenarios::{self, Scenario};
use super::setting::Setting;

/// Time for everything to arrive after the last fault, on a loaded machine of two cores.
const DRAIN_SECONDS: u64 = 180;
/// Events a second that a debug build on two cores stores and delivers with time to spare.
const RATE: f64 = 200.0;

/// Clients of a reconnect herd, in a long and in a short run.
const HERD_LONG: usize = 5_000;
const HERD_SHORT: usize = 300;

pub struct Options {
    /// Of the first run. The next runs have the following numbers.
    seed: u64,
    /// Length of the faults of a run. Without it, this is the short form, which `make test` runs.
    seconds: Option<u64>,
    runs: u64,
    /// Names of scenarios; all if it is empty.
    on: Vec<String>,
    /// Names of faults; all if it is empty.
    pub faults: Vec<String>,
    /// Whether to keep the history of a clean run.
    pub keep: bool,
    /// Events a second.
    pub rate: f64,
    /// Time for everything to arrive after the last fault.
    pub drain: Duration,
}

impl Options {
    pub fn from_environment() -> Self {
        Self {
            seed: value("SHOPBELL_CHAOS_SEED").unwrap_or_else(|| u64::from(fastrand::u32(..))),
            seconds: value("SHOPBELL_CHAOS_SECONDS"),
            runs: value("SHOPBELL_CHAOS_RUNS").unwrap_or(1),
            on: names("SHOPBELL_CHAOS_ON"),
            faults: names("SHOPBELL_CHAOS_FAULTS"),
            keep: value("SHOPBELL_CHAOS_KEEP").unwrap_or(false),
            rate: value("SHOPBELL_CHAOS_RATE").unwrap_or(RATE),
            drain: Duration::from_secs(value("SHOPBELL_CHAOS_DRAIN").unwrap_or(DRAIN_SECONDS)),
        }
    }

    /// The scenarios to run, with the length and the number of their runs.
    pub fn scenarios(&self) -> Vec<(&'static Scenario, u64, u64)> {
        if !self.on.is_empty() {
            let scenario = |name: &String| {
                let scenario = scenarios::named(name);
                let short = scenario.short_seconds.unwrap_or(scenarios::SECONDS);
                (scenario, self.seconds.unwrap_or(short), self.runs)
            };
            return self.on.iter().map(scenario).collect();
        }
        // Faults have their names in one scenario.
        let count = if self.faults.is_empty() {
            usize::MAX
        } else {
            1
        };
        let all = scenarios::ALL.iter().take(count).enumerate();
        all.filter_map(|(place, scenario)| {
            let seconds = self.seconds.or(scenario.short_seconds)?;
            Some((scenario, seconds, if place == 0 { self.runs } else { 1 }))
        })
        .collect()
    }

    /// The seed of a run.
    pub fn seed_of(&self, run: u64) -> u64 {
        self.seed.wrapping_add(run)
    }

    /// Clients of a reconnect herd.
    pub fn herd(&self) -> usize {
        if self
            .seconds
            .is_some_and(|seconds| seconds > scenarios::SECONDS)
        {
            HERD_LONG
        } else {
            HERD_SHORT
        }
    }

    /// The directory of the history of a run. An earlier run with the same seed is
    /// removed.
    pub fn folder(&self, scenario: &Scenario, seed: u64) -> PathBuf {
        let name = match scenario.setting {
            Setting::Alone => format!("chaos-{seed}"),
            _ => format!("chaos-{}-{seed}", scenario.name),
        };
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        if folder.exists() {
            std::fs::remove_dir_all(&folder).expect("an earlier history can be removed");
        }
        folder
    }
}

fn names(variable: &str) -> Vec<String> {
    let names = std::env::var(variable).unwrap_or_default();
    names
        .split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

fn value<T: FromStr>(variable: &str) -> Option<T> {
    let text = std::env::var(variable)
        .ok()
        .filter(|text| !text.is_empty())?;
    match text.parse() {
        Ok(value) => Some(value),
        Err(_) => panic!("{variable} has a bad value: {text}"),
    }
}
