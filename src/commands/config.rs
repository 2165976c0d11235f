//! `shopbell config`: tells each setting that `serve` would run on, and where it is from; secrets are never shown.

use super::terminal::{self, Format};
use super::{SERVICE_LOG, broker_of};
use crate::config::{Environment, Origin, Role, Setting};

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
}

/// Writes a line for each setting; where any is bad or unknown, names all of these instead.
pub fn run(arguments: &Arguments, format: Format) -> anyhow::Result<()> {
    let (config, mut settings) = Environment::of_process().explain(arguments.role)?;
    broker_of(&config.amqp)?;
    if !settings
        .iter()
        .any(|setting| setting.variable == "RUST_LOG")
    {
        let value = Some(SERVICE_LOG.into());
        settings.push(Setting {
            variable: "RUST_LOG".into(),
            value,
            origin: Origin::Default,
            file: None,
        });
    }
    let width = settings
        .iter()
        .map(|setting| setting.variable.len())
        .max()
        .unwrap_or_default();
    let lines = settings.iter().map(|setting| match format {
        Format::Text => Ok(terminal::text_line(&text(setting, width))),
        Format::Json => terminal::json_line(setting),
    });
    terminal::write_lines(&lines.collect::<anyhow::Result<String>>()?)
}

fn text(setting: &Setting, width: usize) -> String {
    let Setting {
        variable,
        value,
        origin,
        file,
    } = setting;
    let Some(value) = value else {
        return format!("{variable:width$}  (unset)");
    };
    match (origin, file) {
        (Origin::Default, _) => format!("{variable:width$}  {value}  (default)"),
        (Origin::File, Some(file)) => format!("{variable:width$}  {value}  (from {file})"),
        _ => format!("{variable:width$}  {value}"),
    }
}
