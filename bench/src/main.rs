//! `make bench`: measures one pod on this machine, beside PostgreSQL's own COPY of the same rows as the ceiling.
//!
//! Owns the private PostgreSQL, the pod and the load generator it starts, and the order of the measurements. Never
//! judges by its exit status how fast the machine is: a figure below its floor is printed and stored as such.
//! `anyhow` throughout: nobody tells the errors apart, they only have to say what was being done.
//! Read next: `report.rs`.

mod child;
mod http;
mod load;
mod machine;
mod pod;
mod postgres;
mod processes;
mod report;
mod sealing;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;

use load::{Load, LoadResult};
use machine::Machine;
use pod::Pod;
use postgres::Postgres;
use processes::{CpuTime, Sampler};
use report::{CpuPerMillion, Figures, Ingest, Latency, Measured, Report, Settings, median};
use sealing::Sealing;

/// Measure a ledger on this machine: throughput beside COPY, latency, memory and processor time.
#[derive(Debug, Parser)]
#[command(
    name = "certeus-bench",
    version,
    after_help = "Needs certeus and certeus-dataplane beside itself: run it with 'make bench'.\n\
                  Everything else should be quiet meanwhile; the figures are those of the whole machine.\n\n\
                  Exit status: 0 when everything was measured, even if a floor was missed; 1 otherwise."
)]
struct Args {
    /// A short run, to see that it works; its figures are not to be quoted.
    #[arg(long)]
    quick: bool,
    /// Where the results go.
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    output: PathBuf,
}

fn main() -> ExitCode {
    let Args { quick, output } = Args::parse();
    match bench(&Settings::new(quick), &output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("certeus-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench(settings: &Settings, output: &Path) -> Result<()> {
    child::listen_for_signals()?;
    fs::create_dir_all(output).with_context(|| format!("cannot create {}", output.display()))?;
    let programs = std::env::current_exe().context("cannot tell where this program is")?;
    let programs = programs.parent().context("this program is in no folder")?;
    say("starting PostgreSQL and one pod");
    let postgres = Postgres::start()?;
    let pod =
        Pod::start(&programs.join("certeus-dataplane"), postgres.url(), &output.join("dataplane.log"), &[])?;
    let bench =
        Bench { settings, output, load: Load::new(&programs.join("certeus"), pod.url()), postgres, pod };
    let ingest = bench.run()?;
    let Bench { postgres, pod, .. } = bench;
    pod.stop()?;
    let sealing = Sealing { settings, output, programs, postgres: &postgres }.run()?;
    let figures = Figures { ingest, sealing };
    let report = Report::new(jiff::Timestamp::now(), Machine::of_this(&postgres)?, settings.clone(), figures);
    let path = output.join("ingest.json");
    let json = serde_json::to_vec_pretty(&report).context("cannot make JSON of the figures")?;
    fs::write(&path, json).with_context(|| format!("cannot write {}", path.display()))?;
    println!("\n{report}\nwritten to {}", path.display());
    Ok(())
}

/// What all measurements use.
struct Bench<'a> {
    settings: &'a Settings,
    output: &'a Path,
    load: Load,
    postgres: Postgres,
    pod: Pod,
}

impl Bench<'_> {
    fn run(&self) -> Result<Ingest> {
        let Settings { rounds, round_events, flood_events, .. } = *self.settings;
        say("warming up, and making the rows for the ceiling");
        let warm_up = self.load_events("warm-up", round_events)?;
        let rows = self.postgres.export(round_events, self.output)?;

        let mut ceilings = Vec::new();
        let mut sustained = Vec::new();
        let mut acknowledged = warm_up.acknowledged.events;
        for round in 1..=rounds {
            say(&format!("round {round} of {rounds}: COPY of {round_events} rows"));
            let rate = self.postgres.ceiling(&rows, round_events)?;
            say(&format!("round {round} of {rounds}: {rate:.0} rows/s; now the same over HTTP"));
            self.postgres.forget_events()?;
            let result = self.load_events("sustained", round_events)?;
            acknowledged += result.acknowledged.events;
            ceilings.push(rate);
            sustained.push(result.events_per_s);
        }
        fs::remove_file(&rows).with_context(|| format!("cannot remove {}", rows.display()))?;

        say("1,000 requests/s of one event");
        let single = self.load("1000rps", self.settings.single)?;
        say("50,000 events/s in requests of 100");
        let paced = self.load("50000eps", self.settings.paced)?;
        acknowledged += single.acknowledged.events + paced.acknowledged.events;

        say(&format!("{flood_events} events as fast as they are taken"));
        self.postgres.settle()?;
        let before = self.cpu()?;
        let sampler = Sampler::start(self.pod.pid());
        let flood = self.load_events("flood", flood_events);
        let rss_mb = sampler.stop()?;
        let flood = flood?;
        let cpu = self.cpu()?;
        acknowledged += flood.acknowledged.events;
        let stored = self.postgres.stored_events()?;
        ensure!(stored == acknowledged, "{acknowledged} events were acknowledged, but {stored} are stored");

        let per_million = |seconds: f64| seconds / (flood.acknowledged.events as f64 / 1e6);
        Ok(Ingest {
            copy_ceiling_rows_per_s: median(&ceilings),
            sustained_events_per_s: median(&sustained),
            rounds: Measured { ceilings, sustained },
            latency_1000rps_ms: Latency::of(&single)?,
            latency_50000eps_ms: Latency::of(&paced)?,
            rss_mb,
            flood_events_per_s: flood.events_per_s,
            cpu_s_per_million: CpuPerMillion {
                server: per_million(cpu.server - before.server),
                postgresql: per_million(cpu.postgresql - before.postgresql),
                load: per_million(flood.cpu_s),
            },
        })
    }

    /// A timed run of the load generator that nothing may go wrong in.
    fn load(&self, name: &str, arguments: &[&str]) -> Result<LoadResult> {
        self.postgres.settle()?;
        self.load.run(arguments, &self.output.join(format!("load-{name}.json")))
    }

    /// So many events as fast as they are taken.
    fn load_events(&self, name: &str, events: u64) -> Result<LoadResult> {
        let events = events.to_string();
        self.load(name, &[&["--events", &events], self.settings.as_fast_as_taken].concat())
    }

    fn cpu(&self) -> Result<CpuTime> {
        Ok(CpuTime {
            server: processes::cpu_seconds(self.pod.pid())?,
            postgresql: processes::cpu_seconds_with_children(self.postgres.pid())?,
        })
    }
}

fn say(text: &str) {
    eprintln!("bench: {text}");
}

/// Waits until something is so.
fn wait_for(what: &str, limit: Duration, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = std::time::Instant::now() + limit;
    while !is_so()? {
        child::check()?;
        ensure!(std::time::Instant::now() < deadline, "{what} took longer than {} s", limit.as_secs());
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
