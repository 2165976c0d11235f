//! `shopbell doctor`: looks for what would keep the service from its promise, and says what to do. Changes nothing.

mod machine;
mod policies;
mod postgres;
mod rabbitmq;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;

use self::policies::Definitions;
use super::terminal::{self, Format};
use super::{broker_of, within};
use crate::amqp;
use crate::config::{AmqpConfig, Environment, Role};
use crate::store::checkup;
use crate::store::pools::Pools;

/// How long Postgres may take to answer everything.
const POSTGRES_TIMEOUT: Duration = Duration::from_secs(10);

/// Of whom.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The half that would be run; both, where it is not said.
    #[arg(
        long,
        value_enum,
        value_name = "ingest|gateway",
        hide_possible_values = true
    )]
    role: Option<Role>,
    /// Judge RabbitMQ's policies and bindings too, from what `rabbitmqctl` prints; - for stdin. Without it, the command to give is
    /// told.
    #[arg(long, value_name = "FILE")]
    rabbitmqctl: Option<PathBuf>,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    check: String,
    state: State,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    /// The service works, and will not always.
    Warning,
    /// The promise does not hold.
    Error,
}

impl Finding {
    fn ok(check: impl Into<String>, found: impl Into<String>) -> Self {
        Self {
            check: check.into(),
            state: State::Ok,
            found: found.into(),
            remedy: None,
        }
    }

    fn warning(
        check: impl Into<String>,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            state: State::Warning,
            remedy: Some(remedy.into()),
            ..Self::ok(check, found)
        }
    }

    fn error(
        check: impl Into<String>,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            state: State::Error,
            ..Self::warning(check, found, remedy)
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Ok => "ok",
            State::Warning => "warning",
            State::Error => "ERROR",
        };
        write!(f, "{state:7}  {}: {}", self.check, self.found)?;
        self.remedy
            .iter()
            .try_for_each(|remedy| write!(f, ". {remedy}"))
    }
}

/// Writes a line for each thing looked at, as far as it can be reached; fails where one is an error.
pub async fn run(arguments: &Arguments, format: Format) -> anyhow::Result<()> {
    let definitions = arguments
        .rabbitmqctl
        .as_deref()
        .map(Definitions::read)
        .transpose()?;
    let mut findings = Vec::new();
    let (database, amqp) = match Environment::of_process().explain(arguments.role) {
        Ok((config, settings)) => {
            findings.push(Finding::ok(
                "configuration",
                format!("{} settings are good", settings.len()),
            ));
            findings.extend(
                config
                    .roles
                    .gateway()
                    .into_iter()
                    .flat_map(|gateway| machine::look(gateway.session.sessions_max)),
            );
            (Some(config.database), Some(config.amqp))
        }
        Err(error) => {
            let found = error.to_string().replace("\n  ", " ");
            findings.push(Finding::error(
                "configuration",
                found,
                "Correct it; `shopbell config` tells all of it",
            ));
            // What is wrong elsewhere in the environment does not keep us from looking further.
            (
                Environment::of_process().database().ok(),
                Environment::of_process().amqp().ok(),
            )
        }
    };
    if let Some(options) = database {
        let partitions = amqp.as_ref().map_or(1, |config| config.partitions);
        let connections = connections_max(
            &Pools::lazy(&options, partitions, &Default::default()),
            arguments.role,
        );
        match within(POSTGRES_TIMEOUT, "asking Postgres", checkup::read(&options)).await {
            Ok(checkup) => findings.extend(postgres::findings(&checkup, connections)),
            Err(error) => findings.push(postgres::away(&error)),
        }
    }
    if let Some(config) = amqp {
        findings.extend(
            ask_rabbitmq(&config, definitions.as_ref())
                .await
                .unwrap_or_else(|error| vec![rabbitmq::away(&error)]),
        );
    }
    let lines = findings.iter().map(|finding| match format {
        Format::Text => Ok(terminal::text_line(&finding.to_string())),
        Format::Json => terminal::json_line(finding),
    });
    terminal::write_lines(&lines.collect::<anyhow::Result<String>>()?)?;
    let errors = findings
        .iter()
        .filter(|finding| finding.state == State::Error)
        .count();
    anyhow::ensure!(
        errors == 0,
        "{errors} of {} checks found an error",
        findings.len()
    );
    Ok(())
}

/// The most connections to Postgres that a replica takes: of all pools but those that only the other half uses.
fn connections_max(pools: &Pools, role: Option<Role>) -> u32 {
    let unused = match role {
        None => &[][..],
        Some(Role::Ingest) => &[&pools.acks, &pools.marks, &pools.history],
        Some(Role::Gateway) => &[&pools.ingest],
    };
    pools.connections_max()
        - unused
            .iter()
            .map(|pool| pool.connections_max())
            .sum::<u32>()
}

/// Each step of it has a limit of its own, and says which it was.
async fn ask_rabbitmq(
    config: &AmqpConfig,
    definitions: Option<&Definitions>,
) -> anyhow::Result<Vec<Finding>> {
    let broker = broker_of(config)?;
    let checkup = amqp::checkup::inspect(&broker)
        .await
        .context("asking RabbitMQ")?;
    Ok(rabbitmq::findings(&checkup, &broker, definitions))
}

#[cfg(test)]
mod tests {
    use sqlx::postgres::PgConnectOptions;

    use super::*;

    #[tokio::test]
    async fn a_half_takes_what_it_uses_and_no_more() {
        let most = |partitions, role| {
            connections_max(
                &Pools::lazy(&PgConnectOptions::new(), partitions, &Default::default()),
                role,
            )
        };
        let (both, ingest, gateway) = (
            most(1, None),
            most(1, Some(Role::Ingest)),
            most(1, Some(Role::Gateway)),
        );
        assert!(
            ingest < gateway && gateway < both,
            "{ingest}, {gateway}, {both}"
        );
        assert!(
            ingest + gateway > both,
            "there are pools that each of them has: {ingest}, {gateway}, {both}"
        );
        let four = (
            most(4, None),
            most(4, Some(Role::Ingest)),
            most(4, Some(Role::Gateway)),
        );
        assert_eq!(
            four,
            (both + 3, ingest + 3, gateway),
            "a partition is ingest's"
        );
    }

    #[test]
    fn a_finding_is_one_line_that_says_what_to_do() {
        let line = Finding::error("postgres.fsync", "it is off", "Turn it on").to_string();
        assert_eq!(line, "ERROR    postgres.fsync: it is off. Turn it on");
        assert_eq!(
            Finding::ok("postgres.fsync", "on").to_string(),
            "ok       postgres.fsync: on"
        );
    }
}
