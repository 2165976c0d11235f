//! Checks the state of RabbitMQ.

use super::Finding;
use super::policies::{self, Definitions};
use crate::amqp::Broker;
use crate::amqp::checkup::{Checkup, Found, Queue};
use crate::commands::terminal;

/// The first version with at-least-once dead-lettering, which the topology needs.
const VERSION_MIN: (u32, u32) = (3, 10);
/// More waiting events than this are a backlog, not a batch under way.
const WAITING_MAX: u32 = 1_000;

/// The finding if RabbitMQ cannot be read.
pub(super) fn unreachable(error: &anyhow::Error) -> Finding {
    let remedy =
        "Check that it is running, and that host, user, password and vhost in AMQP_URL are correct";
    Finding::error("rabbitmq", terminal::chain(error), remedy)
}

/// Returns a finding for each check.
pub(super) fn findings(
    checkup: &Checkup,
    broker: &Broker,
    definitions: Option<&Definitions>,
) -> Vec<Finding> {
    // The checkup fails if RabbitMQ rejects confirms.
    let confirms = Finding::ok("rabbitmq.confirms", "publishes are confirmed");
    let mut findings = vec![version(checkup.version.as_deref()), confirms];
    let exchanges = checkup
        .exchanges
        .iter()
        .map(|exchange| ("exchange", &exchange.name, &exchange.found));
    let queues = checkup
        .queues
        .iter()
        .map(|queue| ("queue", &queue.name, &queue.found));
    findings.extend(
        exchanges
            .chain(queues)
            .map(|(kind, name, found)| declared(kind, name, found, broker.declare)),
    );
    if checkup.more_partitions {
        findings.push(Finding::error(
            "rabbitmq.partitions",
            format!(
                "RabbitMQ has more partitions than SHOPBELL_INGEST_PARTITIONS={}, so this service does not consume all of them",
                broker.partitions
            ),
            "Set SHOPBELL_INGEST_PARTITIONS to the number of partitions (docs/scaling.md)",
        ));
    }
    let existing = checkup
        .queues
        .iter()
        .filter(|queue| queue.found != Found::Missing);
    let names: Vec<&str> = existing.clone().map(|queue| queue.name.as_str()).collect();
    findings.extend(policies::findings(definitions, broker, &names));
    findings.extend(existing.filter_map(|queue| waiting(queue, broker)));
    findings.push(Finding::ok(
        "rabbitmq.gateways",
        format!("{} connected", checkup.gateways),
    ));
    findings
}

fn version(version: Option<&str>) -> Finding {
    const CHECK: &str = "rabbitmq.version";
    let Some(version) = version else {
        return Finding::warning(
            CHECK,
            "RabbitMQ did not send its version",
            "Check with `rabbitmqctl version` that it is 3.10 or newer",
        );
    };
    let mut numbers = version
        .split(['.', '-', '+'])
        .map_while(|number| number.parse::<u32>().ok());
    match (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= VERSION_MIN {
        true => Finding::ok(CHECK, version),
        false => Finding::error(
            CHECK,
            version,
            "Upgrade RabbitMQ to 3.10 or newer, because older versions can lose dead letters",
        ),
    }
}

fn declared(kind: &str, name: &str, found: &Found, declares: bool) -> Finding {
    let check = format!("rabbitmq.{kind}");
    match found {
        Found::AsDeclared => Finding::ok(check, format!("{name} has the expected declaration")),
        Found::Missing if declares => Finding::warning(
            check,
            format!("{name} is missing"),
            "Run `shopbell declare`, or start `shopbell serve`, which declares it too",
        ),
        Found::Missing => Finding::error(
            check,
            format!("{name} is missing, and SHOPBELL_AMQP_DECLARE is false"),
            "Run `SHOPBELL_AMQP_DECLARE=true shopbell declare`, or add it to your definitions",
        ),
        Found::Different(error) => Finding::error(
            check,
            format!("{name} has another declaration than expected: {error}"),
            format!("If the {kind} is empty and unused, delete it and run `shopbell declare`"),
        ),
        Found::NotComparable(error) => Finding::ok(
            check,
            format!("{name} exists; this user has no permission to check its declaration: {error}"),
        ),
    }
}

fn waiting(queue: &Queue, broker: &Broker) -> Option<Finding> {
    let Queue {
        name,
        messages,
        consumers,
        ..
    } = queue;
    let names = &broker.names;
    let found = format!("{messages} wait in {name}");
    if *name == names.dead_letter() {
        return Some(match messages {
            0 => Finding::ok("rabbitmq.dead_letters", "none"),
            _ => Finding::warning(
                "rabbitmq.dead_letters",
                found,
                "List them with `shopbell dead-letters list`, then replay or drop each",
            ),
        });
    }
    if *name == names.unroutable() {
        let bind_again = match broker.declare {
            true => {
                "Run `shopbell declare`, then move the events back to the events exchange (docs/runbook.md)"
            }
            false => {
                "Ask the owner of the topology to bind the queue again, because SHOPBELL_AMQP_DECLARE is false. Then move \
                 the events back to the events exchange (docs/runbook.md)"
            }
        };
        return Some(match messages {
            0 => Finding::ok("rabbitmq.unroutable", "none"),
            _ => Finding::warning(
                "rabbitmq.unroutable",
                format!("{found}, because no queue was bound when they were published"),
                bind_again,
            ),
        });
    }
    if *name == names.gateways() {
        return None;
    }
    Some(match (consumers, *messages > WAITING_MAX) {
        (0, _) => Finding::warning(
            "rabbitmq.ingest",
            format!("{found}, and the queue has no consumer"),
            "Start `shopbell serve` with `--role ingest` or without a role",
        ),
        (_, true) => Finding::warning(
            "rabbitmq.ingest",
            found,
            "If the number does not fall, find the cause in docs/runbook.md",
        ),
        _ => Finding::ok("rabbitmq.ingest", format!("{found}, {consumers} consumers")),
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::super::State;
    use super::*;
    use crate::amqp::QueueType;
    use crate::amqp::checkup::Exchange;

    fn broker(declare: bool) -> Broker {
        Broker::new("amqp://127.0.0.1", "shop", 1, QueueType::Quorum, declare).unwrap()
    }

    fn healthy() -> Checkup {
        let queue = |name: &str| Queue {
            name: name.into(),
            found: Found::AsDeclared,
            messages: 0,
            consumers: 1,
        };
        Checkup {
            version: Some("3.10.8".into()),
            exchanges: vec![Exchange {
                name: "shop.events".into(),
                found: Found::AsDeclared,
            }],
            queues: [
                "shop.dead-letter",
                "shop.unroutable",
                "shop.gateways",
                "shop.ingest",
            ]
            .map(queue)
            .into(),
            more_partitions: false,
            gateways: 1,
        }
    }

    #[track_caller]
    fn check(change: impl FnOnce(&mut Checkup), declare: bool, expected: &[(&str, State)]) {
        let mut checkup = healthy();
        change(&mut checkup);
        let findings = findings(&checkup, &broker(declare), None);
        let bad = findings.iter().filter(|finding| finding.state != State::Ok);
        let bad: Vec<_> = bad
            .map(|finding| (finding.check.as_str(), finding.state))
            .collect();
        assert_eq!(bad, expected, "{findings:?}");
    }

    #[test]
    fn each_fault_is_one_finding() {
        use State::{Error, Warning};
        check(|_| {}, true, &[]);
        check(
            |checkup| checkup.version = Some("3.9.29".into()),
            true,
            &[("rabbitmq.version", Error)],
        );
        check(
            |checkup| checkup.version = None,
            true,
            &[("rabbitmq.version", Warning)],
        );
        check(
            |checkup| checkup.exchanges[0].found = Found::Missing,
            true,
            &[("rabbitmq.exchange", Warning)],
        );
        check(
            |checkup| checkup.exchanges[0].found = Found::Missing,
            false,
            &[("rabbitmq.exchange", Error)],
        );
        let different = Found::Different("inequivalent arg".into());
        check(
            |checkup| checkup.queues[0].found = different,
            true,
            &[("rabbitmq.queue", Error)],
        );
        check(
            |checkup| checkup.queues[0].found = Found::NotComparable("refused".into()),
            true,
            &[],
        );
        check(
            |checkup| checkup.more_partitions = true,
            true,
            &[("rabbitmq.partitions", Error)],
        );
        check(
            |checkup| checkup.queues[0].messages = 1,
            true,
            &[("rabbitmq.dead_letters", Warning)],
        );
        check(
            |checkup| checkup.queues[1].messages = 1,
            true,
            &[("rabbitmq.unroutable", Warning)],
        );
        check(|checkup| checkup.queues[2].consumers = 0, true, &[]);
        check(
            |checkup| checkup.queues[3].consumers = 0,
            true,
            &[("rabbitmq.ingest", Warning)],
        );
        check(
            |checkup| checkup.queues[3].messages = 5_000,
            true,
            &[("rabbitmq.ingest", Warning)],
        );
        check(|checkup| checkup.queues[3].messages = 5, true, &[]);
    }

    #[test]
    fn the_remedy_for_unroutable_events_fits_the_declare_setting() {
        let remedy = |declare| {
            let mut checkup = healthy();
            checkup.queues[1].messages = 1;
            let findings = findings(&checkup, &broker(declare), None);
            let finding = findings
                .into_iter()
                .find(|finding| finding.check == "rabbitmq.unroutable")
                .unwrap();
            finding.remedy.unwrap()
        };
        assert!(remedy(true).starts_with("Run `shopbell declare`"));
        assert!(remedy(false).contains("Ask the owner of the topology"));
    }

    #[test]
    fn a_version_is_compared_by_its_numbers() {
        for (text, state) in [
            ("3.10.0", State::Ok),
            ("4.1.2", State::Ok),
            ("3.13.0-rc.1", State::Ok),
            ("3.9.0", State::Error),
        ] {
            assert_eq!(version(Some(text)).state, state, "{text}");
        }
    }
}
