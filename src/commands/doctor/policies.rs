//! Checks policies and bindings of RabbitMQ. AMQP cannot read them, so they come from the output of
//! `rabbitmqctl`.

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
/// Bound on the output; that of a broker with thousands of queues is smaller.
const OUTPUT_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Prints the four lists, in this order.
const COMMAND: &str = "for list in 'list_queues name policy' list_policies list_operator_policies 'list_bindings source_name \
                       destination_name routing_key'; do rabbitmqctl -q $list --formatter json; done | shopbell doctor \
                       --rabbitmqctl -";

/// The output of [`COMMAND`].
#[derive(Debug)]
pub(super) struct Definitions {
    queues: Vec<Queue>,
    policies: Vec<Policy>,
    /// RabbitMQ 3.10 does not print which queues these apply to.
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
    /// Reads the file, or stdin if the path is `-`.
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

/// Returns the findings about these queues of ours.
pub(super) fn findings(
    definitions: Option<&Definitions>,
    broker: &Broker,
    queues: &[&str],
) -> Vec<Finding> {
    let Some(definitions) = definitions else {
        let bindings = "not checked, because AMQP cannot read them. If one is missing, its events arrive in rabbitmq.unroutable";
        let policies = format!(
            "not checked, because AMQP cannot read them. Some policies lose events. To check them, run: {COMMAND}"
        );
        return vec![
            Finding::ok(BINDINGS, bindings),
            Finding::ok(POLICIES, policies),
        ];
    };
    let mut policies: Vec<_> = queues
        .iter()
        .flat_map(|queue| definitions.findings_of_queue(broker, queue))
        .collect();
    policies.extend(
        definitions
            .operator_policies
            .iter()
            .filter_map(operator_policy_finding),
    );
    if policies.is_empty() {
        policies.push(Finding::ok(POLICIES, "no policy loses events"));
    }
    [definitions.missing_bindings(broker), policies].concat()
}

impl Definitions {
    fn missing_bindings(&self, broker: &Broker) -> Vec<Finding> {
        let exists = |[source, destination, key]: &[String; 3]| {
            let is_equal = |binding: &Binding| {
                binding.source_name == *source
                    && binding.destination_name == *destination
                    && binding.routing_key == *key
            };
            self.bindings.iter().any(is_equal)
        };
        let missing = broker
            .bindings()
            .into_iter()
            .filter(|binding| !exists(binding));
        let missing = missing.map(|[source, destination, key]| {
            let found = format!("{destination} is not bound to {source} with {key}, so it receives no events from there");
            let remedy = "Run `shopbell declare`. If SHOPBELL_AMQP_DECLARE is false, add the binding to your definitions";
            Finding::error(BINDINGS, found, remedy)
        });
        let missing: Vec<_> = missing.collect();
        if missing.is_empty() {
            vec![Finding::ok(BINDINGS, "all bindings exist")]
        } else {
            missing
        }
    }

    fn findings_of_queue(&self, broker: &Broker, name: &str) -> Vec<Finding> {
        let Some(queue) = self.queues.iter().find(|queue| queue.name == name) else {
            let remedy = "Run `rabbitmqctl` with `-p` and the vhost of AMQP_URL. If the queue does not exist, run `shopbell declare`";
            return vec![Finding::warning(
                POLICIES,
                format!("queue {name} is missing in the output of rabbitmqctl"),
                remedy,
            )];
        };
        let policy = self
            .policies
            .iter()
            .find(|policy| queue.policy.as_ref() == Some(&policy.name));
        let Some((policy, purpose)) = policy.zip(Purpose::of(broker, name)) else {
            return Vec::new();
        };
        let definition = definition_keys(&policy.definition);
        let harmful = definition
            .iter()
            .filter_map(|(key, value)| Some((key, value, harm_of(purpose, key, &definition)?)));
        let finding = |(key, value, (state, harm)): (&String, &Value, (State, &str))| {
            let found = format!(
                "policy {} sets {key}={value} for {name}: {harm}",
                policy.name
            );
            let remedy = format!(
                "Exclude {name} from the pattern {} of the policy",
                policy.pattern
            );
            Finding {
                state,
                ..Finding::warning(POLICIES, found, remedy)
            }
        };
        harmful.map(finding).collect()
    }
}

/// A person must check if the pattern matches our queues, because the output does not have that.
fn operator_policy_finding(policy: &Policy) -> Option<Finding> {
    let definition = definition_keys(&policy.definition);
    let (key, value) = definition
        .iter()
        .find(|(key, _)| harm_of(Purpose::Storage, key, &definition).is_some())?;
    let (name, pattern) = (&policy.name, &policy.pattern);
    let found =
        format!("operator policy {name} sets {key}={value} for queues that match {pattern}");
    Some(Finding::warning(
        POLICIES,
        found,
        "If a queue of Shopbell matches the pattern, exclude the queue, because it would lose events",
    ))
}

/// Parses the definition of a policy, which RabbitMQ prints as an object or as JSON in a string.
fn definition_keys(definition: &Value) -> BTreeMap<String, Value> {
    let parsed = definition
        .as_str()
        .and_then(|text| serde_json::from_str(text).ok());
    parsed
        .or_else(|| serde_json::from_value(definition.clone()).ok())
        .unwrap_or_default()
}

/// The purpose of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Ingest,
    /// Keeps dead letters and unroutable events until an operator removes them.
    Storage,
    /// Counts gateways by its consumers, and stays empty.
    Gateways,
}

impl Purpose {
    fn of(broker: &Broker, queue: &str) -> Option<Self> {
        let names = &broker.names;
        if [names.dead_letter(), names.unroutable()]
            .iter()
            .any(|name| name == queue)
        {
            return Some(Self::Storage);
        }
        if names.gateways() == queue {
            return Some(Self::Gateways);
        }
        (1..=broker.partitions)
            .any(|number| names.partition(number) == queue)
            .then_some(Self::Ingest)
    }
}

/// The harm that a key of a policy does to a queue. The arguments of the queue override the policy,
/// but of two numbers the lower one applies.
fn harm_of(
    purpose: Purpose,
    key: &str,
    definition: &BTreeMap<String, Value>,
) -> Option<(State, &'static str)> {
    let rejects = definition
        .get("overflow")
        .is_some_and(|overflow| overflow != "drop-head");
    Some(match (key, purpose) {
        ("expires", _) => (
            State::Error,
            "RabbitMQ deletes the queue and its events if it has no consumer for that time",
        ),
        (_, Purpose::Gateways) => return None,
        ("message-ttl", Purpose::Ingest) => (
            State::Error,
            "events that wait longer become dead letters and are not delivered",
        ),
        ("message-ttl", Purpose::Storage) => {
            (State::Error, "RabbitMQ deletes events that wait longer")
        }
        ("max-length" | "max-length-bytes", Purpose::Ingest) => (
            State::Warning,
            "RabbitMQ rejects new events while the queue is full",
        ),
        ("max-length" | "max-length-bytes", Purpose::Storage) if rejects => (
            State::Warning,
            "while the queue is full, RabbitMQ rejects its events, and they wait in Postgres or in the ingest queue",
        ),
        ("max-length" | "max-length-bytes", Purpose::Storage) => (
            State::Error,
            "RabbitMQ deletes the oldest events if the queue is full",
        ),
        ("delivery-limit", Purpose::Ingest) => (
            State::Warning,
            "events become dead letters after that many deliveries, for example while Postgres is unreachable",
        ),
        ("delivery-limit", Purpose::Storage) => (
            State::Error,
            "RabbitMQ deletes events that were listed that many times",
        ),
        _ => return None,
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::amqp::QueueType;

    /// The output format of RabbitMQ 3.10.8.
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
,{{"source_name":"shop.entry","destination_name":"shop.ingest","routing_key":"#"}}
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

    fn findings_of(output: &str, partitions: u8, queues: &[&str]) -> Vec<(String, State)> {
        let broker = Broker::new(
            "amqp://127.0.0.1",
            "shop",
            partitions,
            QueueType::Quorum,
            true,
        )
        .unwrap();
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
        let bad = findings_of(&output(&policy(definition), "[]"), 1, &QUEUES);
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
    fn the_harm_of_a_policy_depends_on_the_queue() {
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
    fn a_harmful_operator_policy_is_a_warning() {
        let found = findings_of(
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
        let found = findings_of(
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
        let found = findings_of(
            &output("[]", "[]"),
            1,
            &[&QUEUES[..], &["shop.ingest.2"]].concat(),
        );
        assert_eq!(
            found.iter().map(|(_, state)| *state).collect::<Vec<_>>(),
            [State::Ok, State::Warning],
            "{found:?}"
        );
        let found = findings_of(&output("[]", "[]"), 2, &QUEUES);
        let errors = found.iter().filter(|(found, state)| {
            found.starts_with("rabbitmq.bindings") && *state == State::Error
        });
        assert_eq!(
            errors.count(),
            4,
            "of both exchanges and of each partition: {found:?}"
        );
    }

    #[test]
    fn other_output_is_rejected() {
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
