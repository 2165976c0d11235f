//! What RabbitMQ's answers mean.

use super::Finding;
use super::policies::{self, Definitions};
use crate::amqp::Broker;
use crate::amqp::checkup::{Checkup, Found, Queue};
use crate::commands::terminal;

/// The first that has what the topology needs: dead-lettering at least once.
const VERSION_MIN: (u32, u32) = (3, 10);
/// More than this waiting is more than a batch under way.
const WAITING_MAX: u32 = 1_000;

/// It could not be asked.
pub(super) fn away(error: &anyhow::Error) -> Finding {
    let remedy = "Is it running, and are host, user, password and vhost in AMQP_URL right?";
    Finding::error("rabbitmq", terminal::chain(error), remedy)
}

/// Judges what it answered.
pub(super) fn findings(
    checkup: &Checkup,
    broker: &Broker,
    definitions: Option<&Definitions>,
) -> Vec<Finding> {
    // It said yes to confirms, or there were no answers at all.
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
                "there are more than SHOPBELL_INGEST_PARTITIONS={}: nobody here reads the others",
                broker.partitions
            ),
            "Set it to their number (docs/scaling.md)",
        ));
    }
    let there = checkup
        .queues
        .iter()
        .filter(|queue| queue.found != Found::Missing);
    let names: Vec<&str> = there.clone().map(|queue| queue.name.as_str()).collect();
    findings.extend(policies::findings(definitions, broker, &names));
    findings.extend(there.filter_map(|queue| waiting(queue, broker)));
    findings.push(Finding::ok(
        "rabbitmq.gateways",
        format!("{} are connected", checkup.gateways),
    ));
    findings
}

fn version(version: Option<&str>) -> Finding {
    const CHECK: &str = "rabbitmq.version";
    let Some(version) = version else {
        return Finding::warning(
            CHECK,
            "it does not tell its version",
            "3.10 is the least: look for yourself",
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
            "Upgrade it: 3.10 is the least, for dead letters that cannot be lost",
        ),
    }
}

fn declared(kind: &str, name: &str, found: &Found, declares: bool) -> Finding {
    let check = format!("rabbitmq.{kind}");
    match found {
        Found::AsDeclared => Finding::ok(check, format!("{name} is as it must be")),
        Found::Missing if declares => Finding::warning(
            check,
            format!("{name} is not there"),
            "`shopbell serve` declares it; or `shopbell declare`",
        ),
        Found::Missing => Finding::error(
            check,
            format!("{name} is not there, and SHOPBELL_AMQP_DECLARE is false"),
            "Have it declared, with SHOPBELL_AMQP_DECLARE=true shopbell declare or by your definitions",
        ),
        Found::Different(told) => Finding::error(
            check,
            format!("{name} is another than it must be: {told}"),
            format!(
                "Once it is empty and nobody uses it: delete the {kind}, then `shopbell declare`"
            ),
        ),
        Found::NotComparable(told) => Finding::ok(
            check,
            format!("{name} is there; this user may not ask how it was declared: {told}"),
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
                "See why: `shopbell dead-letters list`",
            ),
        });
    }
    if *name == names.unroutable() {
        let bind_again = match broker.declare {
            true => {
                "Run `shopbell declare`, then move them back to the events exchange (docs/runbook.md)"
            }
            false => {
                "SHOPBELL_AMQP_DECLARE is false, so `shopbell declare` binds nothing: have whoever owns the topology bind \
                 it again, then move them back to the events exchange (docs/runbook.md)"
            }
        };
        return Some(match messages {
            0 => Finding::ok("rabbitmq.unroutable", "none"),
            _ => Finding::warning(
                "rabbitmq.unroutable",
                format!("{found}: no queue was bound when they were published"),
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
            format!("{found}, and nobody stores them"),
            "Run `shopbell serve`, with --role ingest or without a role",
        ),
        (_, true) => Finding::warning(
            "rabbitmq.ingest",
            found,
            "If it does not fall, see what ingest waits for (docs/runbook.md)",
        ),
        _ => Finding::ok("rabbitmq.ingest", format!("{found}, {consumers} consumers")),
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::super::State;
    use super::*;
    use crate::amqp::checkup::Exchange;

    fn broker(declare: bool) -> Broker {
        Broker::new("amqp://127.0.0.1", "shop", 1, declare).unwrap()
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
    fn each_thing_that_is_wrong_is_found_and_nothing_else() {
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
    fn who_declares_nothing_is_not_told_to_bind() {
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
        assert!(remedy(false).contains("have whoever owns the topology bind it again"));
    }

    #[test]
    fn a_version_is_compared_by_its_numbers() {
        for (told, state) in [
            ("3.10.0", State::Ok),
            ("4.1.2", State::Ok),
            ("3.13.0-rc.1", State::Ok),
            ("3.9.0", State::Error),
        ] {
            assert_eq!(version(Some(told)).state, state, "{told}");
        }
    }
}
