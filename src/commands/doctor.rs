//! `shopbell doctor`: checks this machine, Postgres and RabbitMQ for problems that can lose or
//! delay events, and prints a remedy for each. Changes nothing.

mod encryption;
mod keys;
mod machine;
mod policies;
mod postgres;
mod rabbitmq;
mod rows;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;
use sqlx::postgres::PgConnectOptions;

use self::policies::Definitions;
use super::terminal::{self, Format};
use super::{broker_of, within};
use crate::amqp;
use crate::config::{AmqpConfig, Environment, JwtConfig, Role};
use crate::store::checkup;
use crate::store::pools::Pools;
use crate::store::verify::{Scope, verify};

/// Bound on all reads from Postgres.
const POSTGRES_TIMEOUT: Duration = Duration::from_secs(10);

/// The checks to run.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Check for a replica with only this role [default: both roles]
    #[arg(
        long,
        value_enum,
        value_name = "ingest|gateway",
        hide_possible_values = true
    )]
    role: Option<Role>,
    /// Check policies and bindings of RabbitMQ in this output of rabbitmqctl, `-` for stdin
    /// [default: print the command to run]
    #[arg(long, value_name = "FILE")]
    rabbitmqctl: Option<PathBuf>,
}

/// The result of one check.
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
    /// The service works now, but a known event can stop it or lose data.
    Warning,
    /// The service cannot run, or can lose notifications.
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

/// Prints a line for each check. If one part is unreachable, checks the others. Fails if a check
/// finds an error.
pub async fn run(arguments: &Arguments, format: Format) -> anyhow::Result<()> {
    let definitions = arguments
        .rabbitmqctl
        .as_deref()
        .map(Definitions::read)
        .transpose()?;
    let Checked {
        mut findings,
        database,
        amqp,
        jwt,
    } = check_configuration(arguments.role);
    if let Some(jwt) = jwt {
        findings.extend(keys::findings(&jwt).await);
    }
    if let Some(options) = database {
        let partitions = amqp.as_ref().map_or(1, |config| config.partitions);
        findings.extend(check_postgres(&options, partitions, arguments.role).await);
    }
    if let Some(config) = amqp {
        let checked = check_rabbitmq(&config, definitions.as_ref()).await;
        findings.extend(checked.unwrap_or_else(|error| vec![rabbitmq::unreachable(&error)]));
    }
    let lines = findings.iter().map(|finding| match format {
        Format::Text => Ok(terminal::text_line(&finding.to_string())),
        Format::Json => terminal::json_line(finding),
    });
    terminal::write_lines(&lines.collect::<anyhow::Result<String>>()?)?;
    let is_error = |finding: &&Finding| finding.state == State::Error;
    let (errors, checks) = (findings.iter().filter(is_error).count(), findings.len());
    anyhow::ensure!(errors == 0, "{errors} of {checks} checks found an error");
    Ok(())
}

/// The findings about the settings, and the settings that are usable.
struct Checked {
    findings: Vec<Finding>,
    database: Option<PgConnectOptions>,
    amqp: Option<AmqpConfig>,
    /// `None` for ingest, which has no keys.
    jwt: Option<JwtConfig>,
}

/// Checks the settings and the limits of this machine.
fn check_configuration(role: Option<Role>) -> Checked {
    const CHECK: &str = "configuration";
    match Environment::of_process().explain(role) {
        Ok((config, settings)) => {
            let found = format!("{} settings are valid", settings.len());
            let mut findings = vec![
                Finding::ok(CHECK, found),
                encryption::postgres(&config.database),
            ];
            if let Ok(broker) = broker_of(&config.amqp) {
                let (host, is_encrypted) = broker.host();
                findings.push(encryption::rabbitmq((&host, is_encrypted)));
            }
            if let Some(gateway) = config.roles.gateway() {
                findings.extend(machine::findings(gateway.session.sessions_max));
            }
            Checked {
                findings,
                jwt: config.roles.gateway().map(|gateway| gateway.jwt.clone()),
                database: Some(config.database),
                amqp: Some(config.amqp),
            }
        }
        Err(error) => {
            let found = error.to_string().replace("\n  ", " ");
            let remedy = "Correct the settings. `shopbell config` lists each bad setting";
            // Other settings may be bad while these are usable.
            let jwt = (role != Some(Role::Ingest)).then(|| Environment::of_process().jwt().ok());
            Checked {
                findings: vec![Finding::error(CHECK, found, remedy)],
                database: Environment::of_process().database().ok(),
                amqp: Environment::of_process().amqp().ok(),
                jwt: jwt.flatten(),
            }
        }
    }
}

async fn check_postgres(
    options: &PgConnectOptions,
    partitions: u8,
    role: Option<Role>,
) -> Vec<Finding> {
    let connections = connections_max(&Pools::lazy(options, partitions, &Arc::default()), role);
    let reading = checkup::read(options);
    let checkup = match within(POSTGRES_TIMEOUT, "reading the state of Postgres", reading).await {
        Ok(checkup) => checkup,
        Err(error) => return vec![postgres::unreachable(options, &error)],
    };
    let mut findings = postgres::findings(&checkup, connections);
    if checkup.missing_migrations.is_empty() {
        let verifying = verify(options, &Scope::Sample, |_, _| {});
        let verified = within(POSTGRES_TIMEOUT, "reading a sample of the rows", verifying).await;
        findings.push(rows::finding(&verified));
    }
    findings
}

/// The maximum number of Postgres connections of a replica. Leaves out the pools that its role does
/// not use.
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

/// Needs no bound of its own, because each step of the checkup has one.
async fn check_rabbitmq(
    config: &AmqpConfig,
    definitions: Option<&Definitions>,
) -> anyhow::Result<Vec<Finding>> {
    let broker = broker_of(config)?;
    let checkup = amqp::checkup::inspect(&broker)
        .await
        .context("reading the state of RabbitMQ")?;
    Ok(rabbitmq::findings(&checkup, &broker, definitions))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_role_counts_only_the_connections_of_its_own_pools() {
        let max = |partitions, role| {
            connections_max(
                &Pools::lazy(&PgConnectOptions::new(), partitions, &Default::default()),
                role,
            )
        };
        let (both, ingest, gateway) = (
            max(1, None),
            max(1, Some(Role::Ingest)),
            max(1, Some(Role::Gateway)),
        );
        assert!(
            ingest < gateway && gateway < both,
            "{ingest}, {gateway}, {both}"
        );
        assert!(
            ingest + gateway > both,
            "both roles use some pools: {ingest}, {gateway}, {both}"
        );
        let four = (
            max(4, None),
            max(4, Some(Role::Ingest)),
            max(4, Some(Role::Gateway)),
        );
        assert_eq!(
            four,
            (both + 3, ingest + 3, gateway),
            "each partition needs a connection of ingest"
        );
    }

    #[test]
    fn a_finding_is_one_line_with_its_remedy() {
        let line = Finding::error("postgres.fsync", "it is off", "Turn it on").to_string();
        assert_eq!(line, "ERROR    postgres.fsync: it is off. Turn it on");
        assert_eq!(
            Finding::ok("postgres.fsync", "on").to_string(),
            "ok       postgres.fsync: on"
        );
    }
}
