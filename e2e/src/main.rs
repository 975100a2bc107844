//! `certeus-torture`: runs the fault scenarios at length. Exit code 1 when anything did not hold.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use certeus_e2e::run::{Verdict, run};
use certeus_e2e::scenario::{ALL, Scenario};
use certeus_e2e::{dice, interrupt};
use clap::{Parser, Subcommand};

/// Break pods, PostgreSQL, disks, clocks and networks, and check that nothing acknowledged is lost.
#[derive(Debug, Parser)]
#[command(
    name = "certeus-torture",
    version,
    after_help = "Needs certeus-dataplane beside itself: run it with 'make torture'.\n\n\
                  Exit codes: 0 everything held, 1 something did not, 2 the options are wrong."
)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the scenarios
    List,
    /// Run scenarios, all unless some are named
    Run(Options),
}

#[derive(Debug, clap::Args)]
struct Options {
    /// Names of scenarios
    #[arg(value_parser = find)]
    scenarios: Vec<&'static Scenario>,
    /// Repeat the faults of an earlier run
    #[arg(long)]
    seed: Option<u64>,
    /// Rounds of each scenario, instead of its own number
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// A few rounds of each, as the tests do
    #[arg(long, conflicts_with = "rounds")]
    short: bool,
    /// Where runs keep their files; those of runs that broke stay
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir().join("certeus-torture"))]
    dir: PathBuf,
}

fn find(name: &str) -> Result<&'static Scenario, String> {
    ALL.iter().find(|scenario| scenario.name == name).ok_or_else(|| "no such scenario: see 'list'".to_owned())
}

fn main() -> ExitCode {
    match Args::parse().command {
        Command::List => {
            for Scenario { name, about, long_rounds, .. } in ALL {
                println!("{name:<18} {long_rounds:>5} rounds  {about}");
            }
            ExitCode::SUCCESS
        }
        Command::Run(options) => torture(&options),
    }
}

fn torture(options: &Options) -> ExitCode {
    if let Err(error) = interrupt::listen() {
        eprintln!("certeus-torture: {error:#}");
        return ExitCode::FAILURE;
    }
    let seed = options.seed.unwrap_or_else(seed_of_now);
    let scenarios: Vec<&Scenario> =
        if options.scenarios.is_empty() { ALL.iter().collect() } else { options.scenarios.clone() };
    let mut broke = false;
    let mut table = Vec::new();
    for scenario in scenarios {
        if interrupt::check().is_err() {
            broke = true;
            break;
        }
        let usual = if options.short { scenario.short_rounds } else { scenario.long_rounds };
        let rounds = options.rounds.unwrap_or(usual);
        if rounds == 0 {
            table.push(format!("{:<18} has no short form", scenario.name));
            continue;
        }
        let started = Instant::now();
        let (word, text) = match run(scenario, seed, rounds, &options.dir) {
            Verdict::Held(text) => ("held", text),
            Verdict::Skipped(text) => ("SKIPPED", text),
            Verdict::Broke(text) => {
                broke = true;
                ("BROKE", text)
            }
        };
        eprintln!("{}: {word}: {text}", scenario.name);
        let first_line = text.lines().next().unwrap_or_default();
        table.push(format!(
            "{:<18} {word:<8} {rounds:>5} rounds {:>6} s  {first_line}",
            scenario.name,
            started.elapsed().as_secs()
        ));
    }
    println!("\nseed {seed}\n{}", table.join("\n"));
    if broke { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn seed_of_now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // Short enough to type.
    dice::mix(u64::try_from(since.as_nanos()).unwrap_or(0)) % 1_000_000
}
