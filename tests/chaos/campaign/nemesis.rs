//! The nemesis: it begins a fault, lets it last for a random time, and ends it, again and again.

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use futures_util::FutureExt as _;
use futures_util::future::{LocalBoxFuture, join_all};
use serde_json::json;
use tokio::time::{Instant, sleep, sleep_until};

use super::history::Book;
use super::stage::Stage;

/// A fault of the list. To add one, write its `plan` and add it to `ALL` in `faults.rs`.
pub struct Fault {
    /// Its name in `SHOPBELL_CHAOS_FAULTS`.
    pub name: &'static str,
    /// Milliseconds between its begin and its end.
    pub lasts_ms: std::ops::Range<u64>,
    /// Chooses its target.
    pub plan: fn(&Arc<Stage>, &mut Rng) -> Plan,
}

impl Fault {
    /// Whether RabbitMQ delivers in another order afterwards. RabbitMQ 4 returns only the deliveries
    /// of a consumer that have timed out, so newer ones overtake them. Shopbell gives up before the
    /// default timeout of 30 minutes (docs/reliability.md).
    pub fn reorders(&self, rabbitmq: &str) -> bool {
        self.name == "consumer-timeout" && !rabbitmq.starts_with("3.")
    }

    /// Whether RabbitMQ may forget the partition of a recipient.
    pub fn moves_partitions(&self) -> bool {
        [
            "kill-rabbitmq",
            "stop-rabbitmq",
            "queue-deleted",
            "queue-of-another-kind",
        ]
        .contains(&self.name)
    }
}

/// A fault that is about to begin.
pub struct Plan {
    /// The parts that it hits, from `hits` in `tests/chaos/checker/HISTORY.md`. Faults that hit the
    /// same part never overlap.
    pub hits: Vec<String>,
    /// The target in words, for people.
    pub target: String,
    /// The parts are wholly away.
    pub total: bool,
    /// Begins it. Its result ends it.
    pub begin: LocalBoxFuture<'static, End>,
}

/// The end of a fault. Its result counts the effects of the fault: processes that ended, connections
/// that broke, sessions that waited, and so on. Without any, the fault proves nothing.
pub struct End(LocalBoxFuture<'static, u64>);

impl End {
    pub fn by(end: impl Future<Output = u64> + 'static) -> Self {
        Self(end.boxed_local())
    }
}

/// A fault that has begun.
struct Present {
    number: u64,
    fault: &'static Fault,
    hits: Vec<String>,
    note: serde_json::Value,
    end: End,
    ends_at: Instant,
}

/// Even a short run has these, because they are the most frequent ones in production.
const USUAL: [&str; 3] = ["kill-replica", "kill-rabbitmq", "restart-postgres"];
/// A second fault begins this long after the first one, at most.
const OVERLAP_MS: std::ops::Range<u64> = 0..2_000;
/// One fault in so many overlaps with another.
const OVERLAP_RARITY: u8 = 3;

/// A fault without effect is repeated after so many others.
const FAULTS_BETWEEN: usize = 3;

/// Causes the faults until `until`, and at least one. Each is caused once before any is repeated, and
/// the usual ones come first.
pub async fn strike(
    stage: &Arc<Stage>,
    faults: &[&'static Fault],
    until: Instant,
    mut random: Rng,
) {
    let (mut bag, mut number) = (full_bag(faults, &mut random), 0);
    bag.sort_by_key(|fault| USUAL.contains(&fault.name));
    if faults.is_empty() {
        sleep_until(until).await;
    }
    loop {
        let calm_ms = stage.parts.setting.calm_ms();
        sleep(Duration::from_millis(random.u64(calm_ms))).await;
        if Instant::now() >= until && (number > 0 || faults.is_empty()) {
            return;
        }
        let mut present = Vec::new();
        let together = if random.u8(..OVERLAP_RARITY) == 0 {
            2
        } else {
            1
        };
        for place in 0..together {
            if place > 0 {
                sleep(Duration::from_millis(random.u64(OVERLAP_MS))).await;
            }
            if let Some((fault, plan)) = choose(stage, faults, &mut bag, &present, &mut random) {
                number += 1;
                present.push(begin(stage, number, fault, plan, &mut random).await);
            }
        }
        // Together, because the end of one may wait for the end of the other.
        let ended = join_all(present.into_iter().map(|fault| end(stage, fault))).await;
        for fault in ended.into_iter().flatten() {
            // A few faults later, because the cause may pass.
            bag.insert(bag.len().saturating_sub(FAULTS_BETWEEN), fault);
        }
    }
}

/// Ends a fault when its time is over. Returns the fault if it had no effect.
async fn end(stage: &Stage, present: Present) -> Option<&'static Fault> {
    sleep_until(present.ends_at).await;
    // A service answers before its start has ended.
    let mut note = present.note;
    note["ends_from"] = stage.history.now().into();
    let effect = present.end.0.await;
    note["effect"] = effect.into();
    stage.history.note(Book::Faults, "fault_ended", note);
    let (number, name) = (present.number, present.fault.name);
    let text = format!("fault {number}, {name}, ended, with {effect} effects");
    stage.history.say(&text);
    (effect == 0).then_some(present.fault)
}

/// The next fault of the bag that hits no part of the `present` ones.
fn choose(
    stage: &Arc<Stage>,
    faults: &[&'static Fault],
    bag: &mut Vec<&'static Fault>,
    present: &[Present],
    random: &mut Rng,
) -> Option<(&'static Fault, Plan)> {
    if bag.is_empty() {
        *bag = full_bag(faults, random);
    }
    for place in (0..bag.len()).rev() {
        let plan = (bag[place].plan)(stage, random);
        let is_free = |part: &String| !present.iter().any(|fault| fault.hits.contains(part));
        if plan.hits.iter().all(is_free) {
            return Some((bag.remove(place), plan));
        }
    }
    None
}

/// All faults. They are taken from the end.
fn full_bag(faults: &[&'static Fault], random: &mut Rng) -> Vec<&'static Fault> {
    let mut bag = faults.to_vec();
    random.shuffle(&mut bag);
    bag
}

async fn begin(
    stage: &Arc<Stage>,
    number: u64,
    fault: &'static Fault,
    plan: Plan,
    random: &mut Rng,
) -> Present {
    let mut note = json!({
        "fault": fault.name, "number": number, "target": plan.target, "hits": plan.hits, "total": plan.total,
    });
    stage
        .history
        .note(Book::Faults, "fault_begun", note.clone());
    let (name, target) = (fault.name, &plan.target);
    stage
        .history
        .say(&format!("fault {number}, {name}, begins: {target}"));
    let end = plan.begin.await;
    note["effective_from"] = stage.history.now().into();
    let lasts = Duration::from_millis(random.u64(fault.lasts_ms.clone()));
    Present {
        number,
        fault,
        hits: plan.hits,
        note,
        end,
        ends_at: Instant::now() + lasts,
    }
}

/// Those of `all` with these names: all without a name, and none for `none`.
pub fn named(all: &'static [Fault], names: &[String]) -> Vec<&'static Fault> {
    match names {
        [] => return all.iter().collect(),
        [none] if none == "none" => return Vec::new(),
        _ => {}
    }
    let find = |name: &String| {
        let fault = all.iter().find(|fault| fault.name == name);
        fault.unwrap_or_else(|| {
            let known: Vec<_> = all.iter().map(|fault| fault.name).collect();
            panic!(
                "there is no fault {name}; the faults are: {}",
                known.join(", ")
            )
        })
    };
    names.iter().map(find).collect()
}
