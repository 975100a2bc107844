//! What it costs that the ledger proves itself: throughput with and without, proofs of a large ledger, and its audit.
//!
//! Owns the order of these measurements. With and without are two databases and two pods per round, in turns; "with" is
//! everything: idempotency keys with their rows, tree, tiles and signed checkpoints. Log entries and salts are
//! made in both, since the build cannot do without.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::child;
use crate::http::Connection;
use crate::load::{Load, LoadResult};
use crate::pod::Pod;
use crate::postgres::Postgres;
use crate::report::{Proofs, SealingFigures, Settings, median};
use crate::{say, wait_for};

/// Connections that ask for proofs at the same time.
const PROOF_CONNECTIONS: usize = 4;
/// How long sealing may go on after the last event.
const SEAL_LIMIT: Duration = Duration::from_secs(120);

/// Measures on `postgres`, in databases of its own.
pub(crate) struct Sealing<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) output: &'a Path,
    /// Folder of the programs.
    pub(crate) programs: &'a Path,
    pub(crate) postgres: &'a Postgres,
}

/// A pod on a new database.
struct Ledger {
    pod: Pod,
    load: Load,
    database_url: String,
    /// The log's verifier key; `None` when nothing is sealed.
    key: Option<String>,
}

impl Sealing<'_> {
    pub(crate) fn run(&self) -> Result<SealingFigures> {
        let Settings { rounds, round_events, flood_events, .. } = *self.settings;
        let (mut without, mut with) = (Vec::new(), Vec::new());
        for round in 1..=rounds {
            for sealed in [false, true] {
                let ledger = self.start(&format!("bench_{round}_{sealed}"), sealed)?;
                let rate = self.load(&ledger, round_events)?.events_per_s;
                let word = if sealed { "sealed, with keys" } else { "not sealed" };
                say(&format!("round {round} of {rounds}: {rate:.0} events/s {word}"));
                if sealed {
                    self.wait_until_sealed(&ledger, round_events)?;
                }
                if sealed { &mut with } else { &mut without }.push(rate);
                self.end(ledger)?;
            }
        }
        say(&format!("{flood_events} events, sealed"));
        let ledger = self.start("bench_large", true)?;
        self.load(&ledger, flood_events)?;
        let behind = Instant::now();
        self.wait_until_sealed(&ledger, flood_events)?;
        let seal_lag_s = behind.elapsed().as_secs_f64();
        say(&format!("{} proofs of it", self.settings.proofs));
        let proofs = self.proofs(&ledger, flood_events)?;
        say("its audit");
        let audit_events_per_s_per_core = self.audit(&ledger, flood_events)?;
        self.end(ledger)?;
        Ok(SealingFigures {
            ratio: median(&with) / median(&without),
            without_events_per_s: without,
            with_events_per_s: with,
            seal_lag_s,
            proofs,
            audit_events_per_s_per_core,
        })
    }

    fn start(&self, name: &str, sealed: bool) -> Result<Ledger> {
        let database_url = self.postgres.create_database(name)?;
        let log = self.output.join(format!("dataplane-{name}.log"));
        let mut environment = Vec::new();
        let mut key = None;
        if sealed {
            let signing_key = self.fresh(format!("{name}.key"))?;
            let anchor = self.fresh(format!("{name}.anchor"))?;
            key = Some(self.new_key(name, &signing_key)?);
            environment.push(("CERTEUS_SIGNING_KEY_FILE", signing_key.display().to_string()));
            environment.push(("CERTEUS_LOG_ANCHOR", format!("file://{}", anchor.display())));
            environment.push(("CERTEUS_LOG_ANCHOR_SHARED", "true".to_owned()));
        }
        let pod = Pod::start(&self.programs.join("certeus-dataplane"), &database_url, &log, &environment)?;
        let load = Load::new(&self.programs.join("certeus"), pod.url());
        self.postgres.settle()?;
        Ok(Ledger { pod, load, database_url, key })
    }

    /// A file that is not there, also when an earlier run left one of that name.
    fn fresh(&self, name: String) -> Result<PathBuf> {
        let path = std::path::absolute(self.output.join(name)).context("cannot name a file")?;
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", path.display()))
            }
            Ok(()) | Err(_) => Ok(path),
        }
    }

    /// Makes a signing key; gives the verifier key.
    fn new_key(&self, name: &str, path: &Path) -> Result<String> {
        let mut command = Command::new(self.programs.join("certeus"));
        command.args(["key", "new", "--name", &format!("certeus.example/{name}"), "--out"]).arg(path);
        let output = child::run(command.stdout(Stdio::piped()))?;
        ensure!(output.status.success(), "'certeus key new' ended with {}", output.status);
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    fn load(&self, ledger: &Ledger, events: u64) -> Result<LoadResult> {
        let keys = if ledger.key.is_some() { "true" } else { "false" };
        let arguments = ["--events", &events.to_string(), "--idempotency-keys", keys];
        let result = self.output.join("load-sealing.json");
        ledger.load.run(&[&arguments, self.settings.as_fast_as_taken].concat(), &result)
    }

    fn end(&self, ledger: Ledger) -> Result<()> {
        ledger.pod.stop()?;
        self.postgres.drop_database(&ledger.database_url)
    }

    /// Until the newest checkpoint covers so many events.
    fn wait_until_sealed(&self, ledger: &Ledger, events: u64) -> Result<()> {
        let mut connection = Connection::new(ledger.pod.api());
        wait_for("sealing", SEAL_LIMIT, || {
            let (status, checkpoint) = connection.get("/log/default/checkpoint")?;
            let text = String::from_utf8_lossy(&checkpoint);
            let size = text.lines().nth(1).and_then(|size| size.parse::<u64>().ok());
            Ok(status == 200 && size.is_some_and(|size| size >= events))
        })
    }

    /// Latencies of proofs of events all over the ledger, after some that warm up.
    fn proofs(&self, ledger: &Ledger, events: u64) -> Result<Proofs> {
        let asked = self.settings.proofs;
        let api = ledger.pod.api();
        let ids = |first| -> Result<Vec<String>> {
            let mut connection = Connection::new(api);
            (first..asked)
                .step_by(PROOF_CONNECTIONS)
                .map(|n| event_id(&mut connection, place(n, events)))
                .collect()
        };
        let workers: Vec<_> = (0..asked)
            .take(PROOF_CONNECTIONS)
            .map(|first| {
                let ids = ids(first)?;
                Ok(thread::spawn(move || time_proofs(&mut Connection::new(api), &ids)))
            })
            .collect::<Result<_>>()?;
        let mut latencies = Vec::new();
        for worker in workers {
            latencies.extend(worker.join().map_err(|_panic| anyhow::anyhow!("a proof client panicked"))??);
        }
        Proofs::of(latencies, events)
    }

    /// Events per second and core, by the auditor's own processor time.
    fn audit(&self, ledger: &Ledger, events: u64) -> Result<f64> {
        #[derive(Deserialize)]
        struct Audit {
            rehashed: u64,
            cpu_seconds: f64,
        }
        let key = ledger.key.as_ref().context("a sealed ledger has a key")?;
        let mut command = Command::new(self.programs.join("certeus"));
        command.args(["audit", "--json", "--key", key]);
        command.env("CERTEUS_DB_URL", &ledger.database_url).stdout(Stdio::piped());
        let output = child::run(&mut command)?;
        ensure!(output.status.success(), "'certeus audit' ended with {}", output.status);
        let audit: Audit = serde_json::from_slice(&output.stdout).context("cannot understand the audit")?;
        ensure!(audit.rehashed == events, "{} of {events} events were audited", audit.rehashed);
        Ok(audit.rehashed as f64 / audit.cpu_seconds)
    }
}

/// Where the n-th proof is asked: all over the ledger, in no order that a cache could guess.
fn place(n: u64, events: u64) -> u64 {
    n.wrapping_mul(0x9E37_79B9_7F4A_7C15) % events
}

fn event_id(connection: &mut Connection, index: u64) -> Result<String> {
    #[derive(Deserialize)]
    struct Page {
        events: Vec<Event>,
    }
    #[derive(Deserialize)]
    struct Event {
        id: String,
        index: u64,
    }
    let (status, body) = connection.get(&format!("/v1/ledger/events?cursor={index}&limit=1"))?;
    ensure!(status == 200, "a list answered {status}: {}", String::from_utf8_lossy(&body));
    let page: Page = serde_json::from_slice(&body).context("cannot understand a list")?;
    let event = page.events.into_iter().next().context("a list is empty")?;
    ensure!(event.index == index, "asked for event {index}, got {}", event.index);
    Ok(event.id)
}

fn time_proofs(connection: &mut Connection, ids: &[String]) -> Result<Vec<Duration>> {
    let mut latencies = Vec::with_capacity(ids.len());
    for id in ids {
        let asked = Instant::now();
        let (status, body) = connection.get(&format!("/v1/ledger/events/{id}/proof"))?;
        let latency = asked.elapsed();
        ensure!(
            status == 200 && body.starts_with(b"c2sp.org/tlog-proof@v1\n"),
            "the proof of {id} answered {status}: {}",
            String::from_utf8_lossy(&body)
        );
        latencies.push(latency);
    }
    Ok(latencies)
}
