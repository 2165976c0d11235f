//! `shopbell config`: prints each effective setting of `serve` and where it is from, without
//! secrets.

use super::terminal::{self, Format};
use super::{SERVICE_LOG, UsageError, broker_of};
use crate::config::{self, EffectiveSetting, Environment, Origin, Role};

/// The settings to print.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Print the settings of one role [default: both roles]
    #[arg(
        long,
        value_enum,
        value_name = "ingest|gateway",
        hide_possible_values = true
    )]
    role: Option<Role>,
    /// Print the table of all settings as Markdown, and read no environment
    #[arg(long, conflicts_with = "role")]
    markdown: bool,
}

/// Prints one line for each setting. If a setting is bad or unknown, prints only an error that
/// names all of these.
pub fn run(arguments: &Arguments, format: Format) -> anyhow::Result<()> {
    if arguments.markdown {
        if format == Format::Json {
            return Err(UsageError("--markdown has no JSON output".into()).into());
        }
        return terminal::write_lines(&config::markdown_table());
    }
    let (config, mut settings) = Environment::of_process().explain(arguments.role)?;
    broker_of(&config.amqp)?;
    let sets_the_log = |setting: &EffectiveSetting| setting.variable == "RUST_LOG";
    if !settings.iter().any(sets_the_log) {
        settings.push(EffectiveSetting {
            variable: "RUST_LOG".into(),
            value: Some(SERVICE_LOG.into()),
            origin: Origin::Default,
            file: None,
        });
    }
    let widths = settings.iter().map(|setting| setting.variable.len());
    let width = widths.max().unwrap_or_default();
    let lines = settings.iter().map(|setting| match format {
        Format::Text => Ok(terminal::text_line(&text(setting, width))),
        Format::Json => terminal::json_line(setting),
    });
    terminal::write_lines(&lines.collect::<anyhow::Result<String>>()?)
}

fn text(setting: &EffectiveSetting, width: usize) -> String {
    let EffectiveSetting {
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
