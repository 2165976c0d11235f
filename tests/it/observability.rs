//! The alert rules, the dashboard and the runbook use metrics that a replica exposes, and name each
//! other correctly.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::support::{PATIENCE, Shop, World, eventually, holds, promtool};

const ALERTS: &str = "observability/alerts.yaml";
const DASHBOARD: &str = "observability/grafana/dashboards/shopbell.json";
const RUNBOOK: &str = "docs/runbook.md";

/// Labels that Prometheus adds to each sample.
const TARGET_LABELS: [&str; 2] = ["job", "instance"];
/// The bucket that counts as in time.
const IN_TIME: &str = r#"le="2""#;

#[tokio::test]
async fn every_metric_in_use_is_exposed_by_an_idle_replica() {
    let world = World::new().await;
    let replica = world.serve().await;
    let shop = Shop::open(&world).await;
    let relay = shop.relay(&world, &[]).start().await;
    let used: BTreeSet<_> = [
        read(ALERTS),
        read(DASHBOARD),
        blocks(RUNBOOK, "promql").join("\n"),
    ]
    .iter()
    .flat_map(|text| selectors(text))
    .map(|(name, _)| name)
    .collect();
    assert!(used.len() > 40, "only these were found: {used:?}");

    // The metrics of RabbitMQ exist after the first poll.
    eventually("every metric in use is exposed", PATIENCE, async || {
        let mut names = replica.metric_names().await;
        let of_relay = relay.get("/metrics").await?.text();
        names.extend(
            of_relay
                .lines()
                .filter_map(|line| Some(line.split(['{', ' ']).next()?.to_owned())),
        );
        let missing: Vec<_> = used.difference(&names).collect();
        holds(missing.is_empty(), format!("missing: {missing:?}"))
    })
    .await;
    let of_relay = relay
        .get("/metrics")
        .await
        .expect("the relay responds")
        .text();
    let text = replica.get("/metrics").await.text() + &of_relay;
    let mut missing = Vec::new();
    for (name, matchers) in selectors(&read(ALERTS)) {
        let of_it = || {
            text.lines()
                .filter(|line| line.split(['{', ' ']).next() == Some(&name))
        };
        for (label, value) in matchers
            .iter()
            .filter(|(label, _)| !TARGET_LABELS.contains(&label.as_str()))
        {
            // Each value of `=~"one|other"`.
            for value in value.trim_start_matches('~').trim_matches('"').split('|') {
                let wanted = if label == "le" {
                    IN_TIME.to_owned()
                } else {
                    format!("{label}=\"{value}\"")
                };
                // From the start, because an alert on an increase needs the zero before it.
                if !of_it().any(|line| line.contains(&wanted)) {
                    missing.push(format!("{name}{{{wanted}}}"));
                }
            }
        }
    }
    assert_eq!(
        missing,
        Vec::<String>::new(),
        "the alerts select these, and they are not in:\n{text}"
    );
    world.finish().await;
}

#[tokio::test]
async fn prometheus_finds_nothing_to_correct_in_the_metrics() {
    let world = World::new().await;
    let replica = world.serve().await;
    replica.metric_reaches("shopbell_broker_up", 1).await;
    let shop = Shop::open(&world).await;
    let relay = shop.relay(&world, &[]).start().await;
    let of_relay = relay.get("/metrics").await.expect("the relay responds");
    for metrics in [replica.get("/metrics").await, of_relay] {
        let file = world.file("metrics", metrics.text().as_bytes());
        let checked = promtool(&["check", "metrics"], Some(&file))
            .await
            .succeeded();
        assert_eq!((checked.stdout.as_str(), checked.stderr.as_str()), ("", ""));
    }
    world.finish().await;
}

#[tokio::test]
async fn prometheus_understands_every_query_of_the_dashboard_and_the_runbook() {
    let dashboard: Value = serde_json::from_str(&read(DASHBOARD)).expect("the dashboard is JSON");
    let mut queries = BTreeSet::new();
    strings_named("expr", &dashboard, &mut queries);
    assert!(queries.len() > 40, "only these were found: {queries:?}");
    queries.extend(
        blocks(RUNBOOK, "promql")
            .iter()
            .flat_map(|block| block.lines().map(str::to_owned)),
    );
    let rules: Vec<_> = queries
        .iter()
        // Grafana replaces these before it sends a query.
        .map(|query| query.replace("$__rate_interval", "1m"))
        .enumerate()
        .map(
            |(index, expr)| serde_json::json!({ "record": format!("query:{index}"), "expr": expr }),
        )
        .collect();
    let groups = serde_json::json!({ "groups": [{ "name": "queries", "rules": rules }] });
    let file = format!("{}/queries.yaml", env!("CARGO_TARGET_TMPDIR"));
    std::fs::write(&file, groups.to_string()).expect("a file can be written");
    promtool(&["check", "rules", &file], None).await.succeeded();
}

#[test]
fn every_alert_has_its_entry_in_the_runbook_and_every_entry_an_alert() {
    let alerts = alerts();
    let entries: BTreeMap<_, _> = sections(RUNBOOK)
        .into_iter()
        .filter(|(title, _)| title.starts_with("Shopbell"))
        .collect();
    assert!(
        alerts.keys().eq(entries.keys()),
        "alerts: {:?}\nentries: {:?}",
        alerts.keys(),
        entries.keys()
    );
    for (name, rules) in &alerts {
        let entry = &entries[name];
        for part in [
            "**Meaning.**",
            "**Impact",
            "**Check.**",
            "**Fix",
            "**Resolved**",
        ] {
            assert!(entry.contains(part), "{RUNBOOK}: {name} has no part {part}");
        }
        let in_index = format!("\n| [{name}](#{}) | ", anchor(name));
        assert!(
            read(RUNBOOK).contains(&in_index),
            "{RUNBOOK}: the index has no line for {name}"
        );
        let first_line = entry.trim_start().lines().next().unwrap_or_default();
        for severity in ["page", "ticket"] {
            let is_so = rules
                .iter()
                .any(|rule| rule.contains(&format!("severity: {severity}\n")));
            assert_eq!(
                first_line.contains(&format!("*{severity}*")),
                is_so,
                "{name}, {severity}: {RUNBOOK} has {first_line:?}"
            );
        }
        for rule in rules {
            let here = format!("runbook: {RUNBOOK}#{}\n", anchor(name));
            assert!(
                rule.contains(&here),
                "{ALERTS}: {name} does not lead to its entry:\n{rule}"
            );
        }
    }
}

#[test]
fn every_link_to_the_runbook_leads_to_an_entry() {
    let anchors: BTreeSet<_> = sections(RUNBOOK)
        .iter()
        .map(|(title, _)| anchor(title))
        .collect();
    let links = [(DASHBOARD, "${runbook}#", '"'), (RUNBOOK, "](#", ')')];
    for (file, before, after) in links {
        let text = read(file);
        let linked: BTreeSet<_> = text
            .split(before)
            .skip(1)
            .filter_map(|rest| rest.split(after).next())
            .collect();
        assert!(!linked.is_empty(), "{file} has no link");
        let astray: Vec<_> = linked
            .into_iter()
            .filter(|link| !anchors.contains(*link))
            .collect();
        assert_eq!(
            astray,
            Vec::<&str>::new(),
            "{file} leads to these, which are not in {RUNBOOK}"
        );
    }
}

#[test]
fn the_dashboard_shows_retention_keys_and_refusals() {
    let dashboard: Value = serde_json::from_str(&read(DASHBOARD)).expect("the dashboard is JSON");
    let mut queries = BTreeSet::new();
    strings_named("expr", &dashboard, &mut queries);
    for metric in [
        "shopbell_notifications_removed_total",
        "shopbell_retention_late_seconds",
        "shopbell_retention_feeds_held_back",
        "shopbell_jwks_age_seconds",
        "shopbell_jwks_keys",
        "shopbell_jwks_fetches_total",
        "shopbell_tokens_refused_total",
        "shopbell_history_refused_total",
        "shopbell_handshakes_refused_total",
        "shopbell_connections_dropped_total",
    ] {
        assert!(
            queries.iter().any(|query| query.contains(metric)),
            "no panel shows {metric}"
        );
    }
}

#[test]
fn every_panel_has_a_description_and_uses_the_chosen_data_source() {
    let dashboard: Value = serde_json::from_str(&read(DASHBOARD)).expect("the dashboard is JSON");
    let mut uids = BTreeSet::new();
    strings_named("uid", &dashboard, &mut uids);
    assert_eq!(
        uids,
        ["${datasource}", "shopbell"].map(str::to_owned).into(),
        "the data source of the panel, and the chosen one"
    );
    let mut ids = BTreeSet::new();
    for panel in dashboard["panels"].as_array().expect("panels") {
        let title = panel["title"].as_str().expect("a title");
        assert!(
            ids.insert(panel["id"].as_u64().expect("an id")),
            "{title}: another panel has its id"
        );
        let explained = panel["description"]
            .as_str()
            .is_some_and(|text| !text.is_empty());
        assert!(
            explained || panel["type"] == "row",
            "{title} has no description"
        );
    }
}

/// The rules of each alert.
fn alerts() -> BTreeMap<String, Vec<String>> {
    let mut alerts = BTreeMap::<_, Vec<_>>::new();
    for rule in read(ALERTS).split("- alert: ").skip(1) {
        let (name, rule) = rule.split_once('\n').expect("a rule has more than a name");
        alerts
            .entry(name.to_owned())
            .or_default()
            .push(rule.to_owned());
    }
    alerts
}

/// Headings of the second level, each with its section.
fn sections(file: &str) -> Vec<(String, String)> {
    let text = read(file);
    let sections = text
        .split("\n## ")
        .skip(1)
        .filter_map(|section| section.split_once('\n'));
    sections
        .map(|(title, text)| (title.to_owned(), text.to_owned()))
        .collect()
}

/// The anchor of a heading in a browser.
fn anchor(title: &str) -> String {
    title.to_lowercase().replace(' ', "-")
}

/// The blocks of a document that are in `language`.
fn blocks(file: &str, language: &str) -> Vec<String> {
    let (text, opening) = (read(file), format!("```{language}\n"));
    let blocks = text
        .split(&opening)
        .skip(1)
        .filter_map(|rest| rest.split("\n```").next());
    blocks.map(str::to_owned).collect()
}

/// Every metric of ours in a text, with the labels of its selector. JSON escapes the quotation
/// marks.
fn selectors(text: &str) -> Vec<(String, Vec<(String, String)>)> {
    let text = text.replace("\\\"", "\"");
    let is_in_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let mut selectors = Vec::new();
    let mut rest = text.as_str();
    while let Some(start) = rest.find(is_in_name) {
        let name = rest[start..]
            .split(|c| !is_in_name(c))
            .next()
            .unwrap_or_default();
        rest = &rest[start + name.len()..];
        if name.starts_with("shopbell_") || name.starts_with("process_") {
            let braces = rest
                .strip_prefix('{')
                .and_then(|rest| rest.split('}').next())
                .unwrap_or_default();
            let matchers = braces
                .split(", ")
                .filter_map(|matcher| matcher.split_once('='));
            selectors.push((
                name.to_owned(),
                matchers
                    .map(|(label, value)| (label.into(), value.into()))
                    .collect(),
            ));
        }
    }
    selectors
}

/// All texts with this key, at any depth.
fn strings_named(name: &str, value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(members) => {
            found.extend(members.get(name).and_then(Value::as_str).map(str::to_owned));
            members
                .values()
                .for_each(|value| strings_named(name, value, found));
        }
        Value::Array(values) => values
            .iter()
            .for_each(|value| strings_named(name, value, found)),
        _ => {}
    }
}

fn read(file: &str) -> String {
    std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{file} cannot be read: {error}"))
}
