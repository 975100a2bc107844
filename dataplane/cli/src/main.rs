//! `certeus`, the command line of the ledger. Owns the definition of the commands and the exit status; each command
//! is a module of its own. Read next: `load.rs`, `verify.rs`, `audit.rs`.

mod audit;
mod http;
mod input;
mod key;
mod load;
mod verify;

use std::io::{self, Write};
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
    /// Make and show keys that sign a log.
    #[command(subcommand)]
    Key(key::Command),
    /// Check an event, a checkpoint, or that a log only grew, without trusting its server.
    Verify(Box<verify::Args>),
    /// Check every event of a ledger in its database against what was signed.
    Audit(Box<audit::Args>),
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
        Command::Key(command) => match key::run(command) {
            Ok(keys) => match io::stdout().write_all(keys.as_bytes()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(_closed) => ExitCode::from(2),
            },
            Err(error) => {
                eprintln!("error: {}", input::chain(&error));
                ExitCode::from(2)
            }
        },
        Command::Verify(args) => ExitCode::from(verify::run(&args)),
        Command::Audit(args) => ExitCode::from(audit::run(&args)),
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
