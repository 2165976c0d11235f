//! The campaign: mixed load and random faults, with a history that a separate program judges.
//!
//! `tests/chaos/README.md` describes how to run it, to repeat a run and to read its result.

mod device;
mod dump;
mod ending;
mod faults;
mod floors;
mod history;
mod load;
mod marking;
mod mix;
mod nemesis;
mod options;
mod population;
mod publisher;
mod report;
mod samples;
mod scenarios;
mod session;
mod setting;
mod stage;

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use futures_util::FutureExt as _;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use history::Book;
use load::PUBLISHERS;
use mix::Mix;
use nemesis::Fault;
use options::Options;
use population::{BROADCAST_FEED, Population};
use report::Report;
use scenarios::Scenario;
use stage::{Phase, REPLICAS, Stage, name};

/// Ingest partitions, by the seed.
const PARTITIONS: &[u8] = &[1, 1, 4];
/// Time for the publishers to confirm everything, and for the clients to receive the counts.
const CONFIRM_BOUND: Duration = Duration::from_secs(120);
const COUNTS_BOUND: Duration = Duration::from_secs(60);
/// The bounds that the checker applies. The memory is that of the debug build, and of a replica with the
/// whole reconnect herd.
const RECOVERY_SECONDS: u64 = 60;
const READINESS_SECONDS: u64 = 8;
/// `/readyz` asks Postgres for each reply.
const UNREADY_SECONDS: u64 = 2;
const RSS_BYTES: u64 = 160 * 1024 * 1024;
const RSS_BYTES_PER_CLIENT: usize = 50 * 1024;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn campaign_of_random_faults_breaks_no_promise() {
    let options = Options::from_environment();
    let mut report = Report::default();
    let scenarios = options.scenarios();
    let runs = scenarios.iter().flat_map(|(scenario, seconds, runs)| {
        let options = &options;
        (0..*runs).map(move |run| Run {
            options,
            scenario,
            seed: options.seed_of(run),
            seconds: *seconds,
        })
    });
    for run in runs {
        eprintln!(
            "SHOPBELL_CHAOS_ON={} SHOPBELL_CHAOS_SEED={} SHOPBELL_CHAOS_SECONDS={}",
            run.scenario.name, run.seed, run.seconds
        );
        let folder = options.folder(run.scenario, run.seed);
        // The next run begins even if this one panics.
        let one = AssertUnwindSafe(run_once(&run, &folder)).catch_unwind();
        let oddities = one.await.unwrap_or_else(|panic| vec![text_of(&*panic)]);
        let (verdict, good) = ending::judge(&folder).await;
        let clean = good && oddities.is_empty();
        for oddity in oddities {
            eprintln!("{oddity}");
        }
        report.add(&run, &verdict, clean);
        if clean && !options.keep {
            std::fs::remove_dir_all(&folder).expect("the history can be removed");
        } else {
            eprintln!("the history is in {}", folder.display());
        }
    }
    eprintln!("{}", report.table());
    assert!(
        report.is_clean(),
        "a run broke a promise; the table above has its seed"
    );
}

/// The message of a panic.
fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied());
    format!("the run panicked: {}", text.unwrap_or("without a message"))
}

/// One run of the campaign.
struct Run<'a> {
    options: &'a Options,
    scenario: &'static Scenario,
    seed: u64,
    seconds: u64,
}

/// One run: load and faults, then the drain, then the dump. Returns the
/// frames that no client may receive.
async fn run_once(run: &Run<'_>, folder: &Path) -> Vec<String> {
    let (options, setting) = (run.options, run.scenario.setting);
    let mut random = Rng::with_seed(run.seed);
    let population = Arc::new(Population::draw(&mut random));
    let mut faults = nemesis::named(run.scenario.faults, &options.faults);
    let partitions = *random.choice(PARTITIONS).expect("there are numbers");
    let partitions = setting.partitions().unwrap_or(partitions);
    // Whole hints, or lean ones for any number of gateways.
    let lean_hints_from = random.usize(..=1);
    let open = Stage::open(
        folder.to_owned(),
        setting,
        partitions,
        lean_hints_from,
        options.herd(),
    );
    let stage = Arc::new(open.await);
    let rabbitmq = stage.services.rabbitmqctl(["version"]).await;
    if options.faults.is_empty() {
        faults.retain(|fault| !fault.reorders(&rabbitmq));
    }
    describe(&stage, run, &faults, rabbitmq.trim()).await;
    stage.history.write("secrets.json", &population.secrets());
    stage
        .history
        .write("devices.json", &population.description());

    let mut background = JoinSet::new();
    let supervised = Arc::clone(&stage);
    background.spawn(async move { supervised.supervise().await });
    let witnessed = Arc::clone(&stage);
    background.spawn(async move { samples::witness(&witnessed).await });
    for replica in 0..REPLICAS {
        let sampled = Arc::clone(&stage);
        background.spawn(async move { samples::sample(&sampled, replica).await });
    }
    let mut devices = JoinSet::new();
    for device in population.devices.clone() {
        devices.spawn(device::live(Arc::clone(&stage), device, random.fork()));
    }
    let mut publishers = JoinSet::new();
    for publisher in 0..PUBLISHERS {
        let mix = Mix::new(publisher, Arc::clone(&population), random.fork());
        let rate = options.rate / PUBLISHERS as f64;
        publishers.spawn(publisher::publish(Arc::clone(&stage), mix, rate));
    }
    let until = Instant::now() + Duration::from_secs(run.seconds);
    nemesis::strike(&stage, &faults, until, random.fork()).await;

    stage.history.note(Book::Faults, "healed", json!({}));
    stage.enter(Phase::Draining);
    let confirmed = timeout(CONFIRM_BOUND, publishers.join_all()).await;
    confirmed.expect("every event is confirmed in time");
    let missing = ending::drained(&stage, &population, options.drain).await;
    if let Some(missing) = &missing {
        stage.history.say(&format!("not drained: {missing}"));
    }
    stage
        .history
        .note(Book::Faults, "drained", json!({"missing": missing}));
    stage.enter(Phase::Finishing);
    if timeout(COUNTS_BOUND, devices.join_all()).await.is_err() {
        let text = "a client did not receive the counts of its feeds at the end";
        stage.history.object(text.to_owned());
    }
    background.shutdown().await;
    ending::write_down(&stage).await;
    stage.history.flush();
    let oddities = stage.history.oddities();
    let Ok(stage) = Arc::try_unwrap(stage) else {
        panic!("a task of the run still uses its parts");
    };
    stage.world.finish().await;
    oddities
}

/// Writes the file that describes the run.
async fn describe(stage: &Stage, run: &Run<'_>, faults: &[&Fault], rabbitmq: &str) {
    // RabbitMQ keeps the partition of a recipient only in memory (docs/scaling.md).
    let reorders = |fault: &&Fault| {
        fault.reorders(rabbitmq) || stage.partitions > 1 && fault.moves_partitions()
    };
    let reordering: Vec<_> = faults
        .iter()
        .filter(|fault| reorders(fault))
        .map(|fault| fault.name)
        .collect();
    let ordered = reordering.is_empty();
    let faults: Vec<_> = faults.iter().map(|fault| fault.name).collect();
    let postgres: String = sqlx::query_scalar("show server_version")
        .fetch_one(&stage.pool)
        .await
        .expect("Postgres answers");
    let started_at = stage
        .history
        .began_at()
        .format(&time::format_description::well_known::Rfc3339)
        .expect("a time can be written");
    let settings = json!({
        "seed": run.seed, "seconds": run.seconds, "on": run.scenario.name, "scenarios": faults, "started_at": started_at,
        "started_at_us": i64::try_from(stage.history.began_at().unix_timestamp_nanos() / 1_000).unwrap_or_default(),
        "versions": {
            "shopbell": env!("CARGO_PKG_VERSION"),
            "rabbitmq": rabbitmq,
            "postgres": postgres,
        },
        "replicas": (0..REPLICAS).map(name).collect::<Vec<_>>(),
        "broadcast_feed": BROADCAST_FEED, "window": 256, "partitions": stage.partitions, "lean_hints_from": stage.lean_hints_from,
        "ordered": ordered, "lossy": run.scenario.setting.is_lossy(),
        "bounds": {
            "recovery_seconds": RECOVERY_SECONDS, "rss_bytes": RSS_BYTES + (stage.herd * RSS_BYTES_PER_CLIENT) as u64,
            "readiness_seconds": READINESS_SECONDS, "unready_seconds": UNREADY_SECONDS,
        },
        "reordering_faults": reordering, "lag_seconds": setting::LAG.as_secs(),
        "floors": floors::of(run.seconds, run.options.rate, faults.is_empty(), run.scenario.setting),
    });
    stage.history.write("run.json", &settings);
}
