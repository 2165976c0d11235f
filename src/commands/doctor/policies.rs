//! Policies and bindings of RabbitMQ, which AMQP cannot ask for: read from the output of `rabbitmqctl`, judged. Changes nothing.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use anyhow::Context;
use serde::Deserialize;
use serde_json::Value;

use super::{Finding, State};
use crate::amqp::Broker;

const POLICIES: &str = "rabbitmq.policies";
const BINDINGS: &str = "rabbitmq.bindings";
/// More than a broker with thousands of queues prints.
const OUTPUT_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Prints the four lists, in this order.
const COMMAND: &str = "for list in 'list_queues name policy' list_policies list_operator_policies 'list_bindings source_name \
                       destination_name routing_key'; do rabbitmqctl -q $list --formatter json; done | shopbell doctor \
                       --rabbitmqctl -";

/// What `rabbitmqctl` printed.
#[derive(Debug)]
pub(super) struct Definitions {
    queues: Vec<Queue>,
    policies: Vec<Policy>,
    /// RabbitMQ 3.10 does not print to which queues these apply.
    operator_policies: Vec<Policy>,
    bindings: Vec<Binding>,
}

#[derive(Debug, Deserialize)]
struct Queue {
    name: String,
    #[serde(default)]
    policy: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Policy {
    name: String,
    pattern: String,
    definition: Value,
}

#[derive(Debug, Deserialize)]
struct Binding {
    source_name: String,
    destination_name: String,
    routing_key: String,
}

impl Definitions {
    /// Reads the file, or stdin where it is `-`.
    pub(super) fn read(path: &Path) -> anyhow::Result<Self> {
        let mut output = String::new();
        let read = match path.to_str() {
            Some("-") => std::io::stdin()
                .lock()
                .take(OUTPUT_BYTES_MAX)
                .read_to_string(&mut output),
            _ => std::fs::File::open(path)
                .and_then(|file| file.take(OUTPUT_BYTES_MAX).read_to_string(&mut output)),
        };
        read.with_context(|| format!("could not read {}", path.display()))?;
        Self::parse(&output)
            .with_context(|| format!("{} is not the output of: {COMMAND}", path.display()))
    }

    fn parse(output: &str) -> anyhow::Result<Self> {
        let mut lists = serde_json::Deserializer::from_str(output).into_iter::<Value>();
        let mut next = || {
            lists
                .next()
                .context("a list is missing")?
                .context("it is not JSON")
        };
        Ok(Self {
            queues: serde_json::from_value(next()?).context("the first list is not of queues")?,
            policies: serde_json::from_value(next()?)
                .context("the second list is not of policies")?,
            operator_policies: serde_json::from_value(next()?)
                .context("the third list is not of operator policies")?,
            bindings: serde_json::from_value(next()?)
                .context("the fourth list is not of bindings")?,
        })
    }
}

/// Judges what concerns these queues of ours.
pub(super) fn findings(
    definitions: Option<&Definitions>,
    broker: &Broker,
    queues: &[&str],
) -> Vec<Finding> {
    let Some(definitions) = definitions else {
        let bindings = "cannot be asked for: what a missing one keeps from its queue is counted as rabbitmq.unroutable";
        let policies = format!(
            "AMQP cannot ask for policies, and some can lose events. To check them: {COMMAND}"
        );
        return vec![
            Finding::ok(BINDINGS, bindings),
            Finding::ok(POLICIES, policies),
        ];
    };
    let mut policies: Vec<_> = queues
        .iter()
        .flat_map(|queue| definitions.of_queue(broker, queue))
        .collect();
    policies.extend(definitions.operator_policies.iter().filter_map(of_operator));
    if policies.is_empty() {
        policies.push(Finding::ok(POLICIES, "none of them loses events"));
    }
    [definitions.missing_bindings(broker), policies].concat()
}

impl Definitions {
    fn missing_bindings(&self, broker: &Broker) -> Vec<Finding> {
        let is_there = |[source, destination, key]: &[String; 3]| {
            let is_it = |binding: &Binding| {
                binding.source_name == *source
                    && binding.destination_name == *destination
                    && binding.routing_key == *key
            };
            self.bindings.iter().any(is_it)
        };
        let missing = broker
            .bindings()
            .into_iter()
            .filter(|binding| !is_there(binding));
        let missing = missing.map(|[source, destination, key]| {
            let found = format!("{destination} is not bound to {source} with {key}, so no event takes this way");
            let remedy = "Run `shopbell declare`; if SHOPBELL_AMQP_DECLARE is false, have it bound by your definitions";
            Finding::error(BINDINGS, found, remedy)
        });
        let missing: Vec<_> = missing.collect();
        if missing.is_empty() {
            vec![Finding::ok(BINDINGS, "all are there")]
        } else {
            missing
        }
    }

    fn of_queue(&self, broker: &Broker, name: &str) -> Vec<Finding> {
        let Some(queue) = self.queues.iter().find(|queue| queue.name == name) else {
            let remedy = "Give `rabbitmqctl` the vhost of AMQP_URL with -p, and declare the queue if it does not exist";
            return vec![Finding::warning(
                POLICIES,
                format!("{name} is not in the list of queues"),
                remedy,
            )];
        };
        let policy = self
            .policies
            .iter()
            .find(|policy| queue.policy.as_ref() == Some(&policy.name));
        let Some((policy, part)) = policy.zip(Part::of(broker, name)) else {
            return Vec::new();
        };
        let definition = keys(&policy.definition);
        let harm = definition
            .iter()
            .filter_map(|(key, value)| Some((key, value, judge(part, key, &definition)?)));
        let finding = |(key, value, (state, harm)): (&String, &Value, (State, &str))| {
            let found = format!(
                "policy {} sets {key}={value} for {name}: {harm}",
                policy.name
            );
            let remedy = format!(
                "Exclude {name} from the policy's pattern {}",
                policy.pattern
            );
            Finding {
                state,
                ..Finding::warning(POLICIES, found, remedy)
            }
        };
        harm.map(finding).collect()
    }
}

/// Whether its pattern matches a queue of ours is for a person to see.
fn of_operator(policy: &Policy) -> Option<Finding> {
    let definition = keys(&policy.definition);
    let (key, value) = definition
        .iter()
        .find(|(key, _)| judge(Part::Kept, key, &definition).is_some())?;
    let (name, pattern) = (&policy.name, &policy.pattern);
    let found =
        format!("operator policy {name} sets {key}={value} for queues that match {pattern}");
    Some(Finding::warning(
        POLICIES,
        found,
        "If a queue of Shopbell matches, exclude it: events would be lost",
    ))
}

/// RabbitMQ prints a policy's definition as an object, or as JSON in a string.
fn keys(definition: &Value) -> BTreeMap<String, Value> {
    let parsed = definition
        .as_str()
        .and_then(|text| serde_json::from_str(text).ok());
    parsed
        .or_else(|| serde_json::from_value(definition.clone()).ok())
        .unwrap_or_default()
}

/// What a queue is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Ingest,
    /// Dead letters and unroutable events, until somebody takes them.
    Kept,
    /// Gateways consume it so that they can be counted; nobody publishes to it.
    Gateways,
}

impl Part {
    fn of(broker: &Broker, queue: &str) -> Option<Self> {
        let names = &broker.names;
        if [names.dead_letter(), names.unroutable()]
            .iter()
            .any(|name| name == queue)
        {
            return Some(Self::Kept);
        }
        if names.gateways() == queue {
            return Some(Self::Gateways);
        }
        (1..=broker.partitions)
            .any(|number| names.partition(number) == queue)
            .then_some(Self::Ingest)
    }
}

/// What harm a key of a policy does to a queue. A queue's own arguments win over a policy, except that the lower of two numbers
/// counts.
fn judge(
    part: Part,
    key: &str,
    definition: &BTreeMap<String, Value>,
) -> Option<(State, &'static str)> {
    let refuses = definition
        .get("overflow")
        .is_some_and(|overflow| overflow != "drop-head");
    Some(match (key, part) {
        ("expires", _) => (
            State::Error,
            "RabbitMQ deletes the queue, with all in it, when nobody consumes it for that long",
        ),
        (_, Part::Gateways) => return None,
        ("message-ttl", Part::Ingest) => (
            State::Error,
            "events that wait that long become dead letters and are not delivered",
        ),
        ("message-ttl", Part::Kept) => (State::Error, "events that wait that long are deleted"),
        ("max-length" | "max-length-bytes", Part::Ingest) => (
            State::Warning,
            "RabbitMQ refuses events of publishers while the queue is full",
        ),
        ("max-length" | "max-length-bytes", Part::Kept) if refuses => (
            State::Warning,
            "what does not fit into the queue is refused, and events of ingest wait for it",
        ),
        ("max-length" | "max-length-bytes", Part::Kept) => (
            State::Error,
            "the oldest events are deleted when the queue is full",
        ),
        ("delivery-limit", Part::Ingest) => (
            State::Warning,
            "events that were delivered that often, for example while Postgres is away, become dead letters",
        ),
        ("delivery-limit", Part::Kept) => (
            State::Error,
            "events that were listed that often are deleted",
        ),
        _ => return None,
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    /// As RabbitMQ 3.10.8 prints it.
    fn output(policies: &str, operator_policies: &str) -> String {
        format!(
            r##"[
{{"name":"shop.ingest","policy":"p"}}
,{{"name":"shop.dead-letter","policy":"p"}}
,{{"name":"shop.unroutable","policy":""}}
,{{"name":"shop.gateways","policy":"p"}}
]
{policies}
{operator_policies}
[
{{"source_name":"","destination_name":"shop.ingest","routing_key":"shop.ingest"}}
,{{"source_name":"shop.dead-letter","destination_name":"shop.dead-letter","routing_key":"#"}}
,{{"source_name":"shop.events","destination_name":"shop.ingest","routing_key":"#"}}
,{{"source_name":"shop.unroutable","destination_name":"shop.unroutable","routing_key":"#"}}
]
"##
        )
    }

    fn policy(definition: &str) -> String {
        let definition = serde_json::to_string(definition).unwrap();
        format!(
            r#"[{{"vhost":"/","name":"p","pattern":"^shop","apply-to":"queues","definition":{definition},"priority":0}}]"#
        )
    }

    fn judged(output: &str, partitions: u8, queues: &[&str]) -> Vec<(String, State)> {
        let broker = Broker::new("amqp://127.0.0.1", "shop", partitions, true).unwrap();
        let findings = findings(Some(&Definitions::parse(output).unwrap()), &broker, queues);
        findings
            .into_iter()
            .map(|finding| {
                (
                    format!("{} {}", finding.check, finding.found),
                    finding.state,
                )
            })
            .collect()
    }

    const QUEUES: [&str; 4] = [
        "shop.ingest",
        "shop.dead-letter",
        "shop.unroutable",
        "shop.gateways",
    ];

    #[track_caller]
    fn check(definition: &str, expected: &[(&str, State)]) {
        let bad = judged(&output(&policy(definition), "[]"), 1, &QUEUES);
        let bad: Vec<_> = bad
            .iter()
            .filter(|(_, state)| *state != State::Ok)
            .collect();
        assert_eq!(bad.len(), expected.len(), "{bad:?}");
        for ((found, state), (queue, expected)) in bad.iter().zip(expected) {
            assert!(
                found.contains(&format!(" for {queue}:")) && state == expected,
                "{bad:?}"
            );
        }
    }

    #[test]
    fn a_policy_is_judged_by_the_queue_it_applies_to() {
        use State::{Error, Warning};
        let (ingest, dead) = ("shop.ingest", "shop.dead-letter");
        check(r#"{"message-ttl":2000}"#, &[(ingest, Error), (dead, Error)]);
        check(r#"{"max-length":5}"#, &[(ingest, Warning), (dead, Error)]);
        check(
            r#"{"max-length-bytes":5,"overflow":"reject-publish"}"#,
            &[(ingest, Warning), (dead, Warning)],
        );
        check(
            r#"{"delivery-limit":5}"#,
            &[(ingest, Warning), (dead, Error)],
        );
        check(
            r#"{"expires":5}"#,
            &[(ingest, Error), (dead, Error), ("shop.gateways", Error)],
        );
        check(
            r#"{"queue-leader-locator":"balanced","max-in-memory-length":5}"#,
            &[],
        );
    }

    #[test]
    fn an_operator_policy_that_could_apply_is_reported() {
        let found = judged(
            &output("[]", &policy(r#"{"message-ttl":2000}"#)),
            1,
            &QUEUES,
        );
        let warnings: Vec<_> = found
            .iter()
            .filter(|(_, state)| *state == State::Warning)
            .collect();
        assert!(
            matches!(&warnings[..], [(found, _)] if found.contains("operator policy p")),
            "{found:?}"
        );
        let found = judged(
            &output("[]", &policy(r#"{"max-in-memory-length":5}"#)),
            1,
            &QUEUES,
        );
        assert!(
            found.iter().all(|(_, state)| *state == State::Ok),
            "{found:?}"
        );
    }

    #[test]
    fn a_missing_binding_and_a_missing_queue_are_reported() {
        let found = judged(
            &output("[]", "[]"),
            1,
            &[&QUEUES[..], &["shop.ingest.2"]].concat(),
        );
        assert_eq!(
            found.iter().map(|(_, state)| *state).collect::<Vec<_>>(),
            [State::Ok, State::Warning],
            "{found:?}"
        );
        let found = judged(&output("[]", "[]"), 2, &QUEUES);
        let errors = found.iter().filter(|(found, state)| {
            found.starts_with("rabbitmq.bindings") && *state == State::Error
        });
        assert_eq!(
            errors.count(),
            3,
            "to the partitions and to each of them: {found:?}"
        );
    }

    #[test]
    fn other_text_is_refused_with_the_command() {
        for text in [
            "",
            "[]",
            "[] [] []",
            "Listing queues ...",
            r#"[{"name":1}] [] [] []"#,
        ] {
            assert!(Definitions::parse(text).is_err(), "{text}");
        }
        assert!(Definitions::parse("[] [] [] []").is_ok());
    }
}
