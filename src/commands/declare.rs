//! `shopbell declare`: declares or verifies the exchanges and queues in RabbitMQ, and consumes
//! nothing.

use serde::Serialize;

use super::terminal::{self, Format};
use super::{BROKER_TIMEOUT, broker, within};

#[derive(Serialize)]
struct Declared<'a> {
    kind: &'static str,
    name: &'a str,
    /// Whether only its existence was checked.
    only_verified: bool,
}

/// Declares or verifies the topology, and prints a line for each exchange and queue.
pub async fn run(format: Format) -> anyhow::Result<()> {
    let broker = broker()?;
    let what = if broker.declare {
        "declaring the topology"
    } else {
        "verifying the topology"
    };
    let topology = within(BROKER_TIMEOUT, what, broker.ensure()).await?;
    let exchanges = topology.exchanges.iter().map(|name| ("exchange", name));
    let queues = topology.queues.iter().map(|name| ("queue", name));
    let declared = exchanges.chain(queues).map(|(kind, name)| Declared {
        kind,
        name,
        only_verified: !broker.declare,
    });
    let lines = declared
        .map(|declared| line(&declared, format))
        .collect::<anyhow::Result<String>>()?;
    terminal::write_lines(&lines)?;
    if !broker.declare {
        terminal::write_message(
            "SHOPBELL_AMQP_DECLARE is false: all of them exist, and nothing was declared or bound",
        );
    }
    anyhow::ensure!(
        !topology.more_partitions,
        "SHOPBELL_INGEST_PARTITIONS is {}, but RabbitMQ has more partitions: set it to their number",
        broker.partitions
    );
    Ok(())
}

fn line(declared: &Declared<'_>, format: Format) -> anyhow::Result<String> {
    let Declared {
        kind,
        name,
        only_verified,
    } = declared;
    let note = if *only_verified {
        " (only verified)"
    } else {
        ""
    };
    match format {
        Format::Text => Ok(terminal::text_line(&format!("{kind} {name}{note}"))),
        Format::Json => terminal::json_line(declared),
    }
}
