//! `shopbell completions`: prints a script that completes the command line in a shell.

use clap::CommandFactory;
use clap_complete::Shell;

use super::{Cli, terminal};

/// The shell.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The shell that will run the script
    #[arg(value_enum)]
    shell: Shell,
}

/// Prints the script.
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
