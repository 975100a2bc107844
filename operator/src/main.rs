//! `certeus-operator`: reads the command line, runs one command, turns its end into an exit code.

mod admin;
mod cli;
mod errors;
mod local;
mod names;
mod run;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use cli::{Cli, Command, Exit};

fn main() -> ExitCode {
    // Two libraries here speak TLS; both are to use the same cryptography, and only the first choice counts.
    let _chosen_before = rustls::crypto::ring::default_provider().install_default();
    let Cli { command } = Cli::parse();
    let done = match command {
        Command::Run(args) => run::run(args).map_err(Failure::Run),
        Command::Local(args) => local::local(args).map_err(Failure::Local),
        Command::Status(args) => local::status(args).map_err(Failure::Local).and_then(|text| print(&text)),
        Command::Down(args) => local::down(args).map_err(Failure::Local),
        Command::Crd => certeus_crds::yaml().map_err(Failure::Crd).and_then(|yaml| print(&yaml)),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "certeus-operator", &mut script);
            print_bytes(&script)
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Without a reader the exit code still tells.
            let _nobody = writeln!(io::stderr(), "error: {}", errors::chain(&failure));
            let exit = match failure {
                Failure::Run(error) => error.exit(),
                Failure::Local(error) => error.exit(),
                Failure::Crd(_) | Failure::Print(_) => Exit::Failure,
            };
            ExitCode::from(exit as u8)
        }
    }
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Run(run::Error),
    #[error(transparent)]
    Local(local::Error),
    #[error("cannot write the definitions as YAML")]
    Crd(#[source] serde_saphyr::ser_error::Error),
    #[error("cannot print")]
    Print(#[source] io::Error),
}

fn print(text: &str) -> Result<(), Failure> {
    print_bytes(text.as_bytes())
}

/// A reader that has seen enough (`| head`) is no failure.
fn print_bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::Print(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}
