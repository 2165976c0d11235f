//! Prometheus' part in a story: it scrapes replicas and evaluates the real rules with `promtool
//! test rules`, so that no story waits as long as a rule does.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use serde_json::json;

use super::{PATIENCE, Relay, Replica, World, eventually, holds, promtool};

/// Each scrape counts for this many scrapes in a row, 15 s apart: 15 minutes.
const REPEATS_PER_SCRAPE: usize = 60;

/// The replicas to scrape.
pub struct Monitor<'a> {
    world: &'a World,
    replicas: Vec<&'a Replica>,
    relays: Vec<&'a Relay>,
    scrapes: Vec<BTreeMap<String, String>>,
}

impl<'a> Monitor<'a> {
    /// Starts with a scrape of these replicas before the fault.
    pub async fn of(world: &'a World, replicas: impl IntoIterator<Item = &'a Replica>) -> Self {
        Self::with_relays(world, replicas, []).await
    }

    /// The same with relays, each a target of the job `shopbell-relay`.
    pub async fn with_relays(
        world: &'a World,
        replicas: impl IntoIterator<Item = &'a Replica>,
        relays: impl IntoIterator<Item = &'a Relay>,
    ) -> Self {
        let mut monitor = Self {
            world,
            replicas: replicas.into_iter().collect(),
            relays: relays.into_iter().collect(),
            scrapes: Vec::new(),
        };
        for replica in &monitor.replicas {
            replica.metric_reaches("shopbell_database_up", 1).await;
            replica.metric_reaches("shopbell_broker_up", 1).await;
            eventually(
                "the metrics show that the ingest queue is consumed",
                PATIENCE,
                async || {
                    let consumers = replica
                        .metric_where("shopbell_queue_consumers", "ingest")
                        .await;
                    holds(consumers > 0, consumers)
                },
            )
            .await;
        }
        monitor.scrape().await;
        monitor
    }

    /// Scrapes all of them, each as a target of the job `shopbell`.
    pub async fn scrape(&mut self) {
        let mut targets = Vec::new();
        for (number, replica) in self.replicas.iter().enumerate() {
            let scraped = match replica.is_running() {
                true => Some(replica.get("/metrics").await.text()),
                false => None,
            };
            targets.push((
                format!(r#"job="shopbell",instance="replica-{number}""#),
                scraped,
            ));
        }
        for (number, relay) in self.relays.iter().enumerate() {
            let scraped = relay.get("/metrics").await.ok().map(|reply| reply.text());
            targets.push((
                format!(r#"job="shopbell-relay",instance="relay-{number}""#),
                scraped,
            ));
        }
        let mut scrape = BTreeMap::new();
        for (target, scraped) in targets {
            scrape.insert(
                format!("up{{{target}}}"),
                u8::from(scraped.is_some()).to_string(),
            );
            for line in scraped
                .iter()
                .flat_map(|text| text.lines())
                .filter(|line| !line.starts_with('#'))
            {
                let (series, value) = line
                    .rsplit_once(' ')
                    .expect("a sample is a series and a value");
                let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
                scrape.insert(
                    format!("{name}{{{target},{labels}").replace(",}", "}"),
                    value.to_owned(),
                );
            }
        }
        self.scrapes.push(scrape);
    }

    /// Scrapes again. Asserts that no alert fired before the fault, and that this alert fires
    /// within 15 minutes of the present state.
    pub async fn expect_alert(mut self, alert: &str, severity: &str) {
        self.scrape().await;
        let fires =
            format!(r#"ALERTS{{alertname="{alert}",severity="{severity}",alertstate="firing"}}"#);
        let minutes = |scrapes: usize| scrapes * REPEATS_PER_SCRAPE / 4;
        let (well, now) = (
            format!("{}m", minutes(1) - 1),
            format!("{}m", minutes(self.scrapes.len())),
        );
        let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("observability/alerts.yaml");
        // JSON is YAML too.
        let test = json!({
            "rule_files": [rules],
            "evaluation_interval": "15s",
            "tests": [{
                "interval": "15s",
                "input_series": self.series(),
                "promql_expr_test": [
                    { "expr": r#"ALERTS{alertstate="firing"}"#, "eval_time": well, "exp_samples": [] },
                    {
                        "expr": format!("max_over_time(count({fires})[{}m:15s]) > bool 0", minutes(1)),
                        "eval_time": now,
                        "exp_samples": [{ "labels": "{}", "value": 1 }],
                    },
                ],
            }],
        });
        let test = self
            .world
            .file(&format!("{alert}_test.json"), test.to_string().as_bytes());
        let done = promtool(&["test", "rules", &test], None).await;
        let mut moved = String::new();
        for (series, value) in self.scrapes.last().expect("the last scrape").iter() {
            let before = self.scrapes[0].get(series);
            if before != Some(value) {
                writeln!(
                    moved,
                    "{series} {} -> {value}",
                    before.map_or("none", String::as_str)
                )
                .ok();
            }
        }
        assert_eq!(
            done.status,
            Some(0),
            "{alert} ({severity}): {}{}\n{moved}",
            done.stdout,
            done.stderr
        );
    }

    /// Every series over all scrapes, in the notation of rule tests. A series that a scrape lacks
    /// is stale.
    fn series(&self) -> Vec<serde_json::Value> {
        let names: BTreeSet<&String> = self.scrapes.iter().flat_map(BTreeMap::keys).collect();
        let repeats = REPEATS_PER_SCRAPE - 1;
        let values = |name: &String| {
            let of_scrape = |scrape: &BTreeMap<String, String>| match scrape.get(name) {
                Some(value) => format!("{value}x{repeats}"),
                None => format!("stale _x{repeats}"),
            };
            self.scrapes
                .iter()
                .map(of_scrape)
                .collect::<Vec<_>>()
                .join(" ")
        };
        names
            .into_iter()
            .map(|name| json!({ "series": name, "values": values(name) }))
            .collect()
    }
}
