//! `shopbell completions`: a script with which a shell completes the command line.

use clap::CommandFactory;
use clap_complete::Shell;

use super::{Cli, terminal};

/// Of which shell.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The shell that is to read it.
    #[arg(value_enum)]
    shell: Shell,
}

/// Writes the script.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(
        arguments.shell,
        &mut Cli::command(),
        "shopbell",
        &mut script,
    );
    terminal::write(&script)
}
