//! `certeus`, the command line of the ledger. Owns the definition of the commands and the exit status; each command
//! is a module of its own. Read next: `load.rs`.

mod load;

use std::io;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

/// The command line of Certeus, the verifiable event ledger.
#[derive(Debug, Parser)]
#[command(name = "certeus", version, propagate_version = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Send events to a ledger at a given rate, or as fast as it takes them, and measure it.
    Load(Box<load::Args>),
    /// Print the completion script of a shell.
    ///
    /// For bash: certeus completions bash > /etc/bash_completion.d/certeus
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Load(args) => match load::run(*args) {
            Ok(status) => ExitCode::from(status.code()),
            Err(usage) => {
                let mut command = Cli::command();
                command.build();
                let load = command.find_subcommand_mut("load");
                let error = clap::error::ErrorKind::ValueValidation;
                load.map_or_else(|| Cli::command().error(error, &usage), |load| load.error(error, &usage))
                    .exit()
            }
        },
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "certeus", &mut io::stdout());
            ExitCode::SUCCESS
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_of_the_commands_is_sound() {
        Cli::command().debug_assert();
    }
}
