//! `certeus audit`: checks a whole ledger, from the payloads' bytes up, against what was signed.
//!
//! Owns the options, the progress shown, the file of a saved audit, and the exit status; what is checked is the matter of
//! `certeus_ledger::audit`. Never writes to the database. Never says "clean" of what it did not look at.

mod progress;
mod report;

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use certeus_ledger::audit::{ArchiveFrom, Audit, AuditError, Options, Report, RowCounts};
use certeus_ledger::{ArchiveLocation, Class, Database};
use tokio::runtime::Builder;
use tokio::time::MissedTickBehavior;

use crate::input;
use crate::load::{Signals, cpu_time};
use progress::Bar;

/// How often the state is written: what is done again after a crash takes no longer.
const SAVE_INTERVAL: Duration = Duration::from_secs(5);

const AFTER_HELP: &str = "\
Every event is hashed again and compared with its log entry, every log entry goes into the tree again,
and the tree is compared with every stored tile and signed checkpoint, and with those you bring.
Findings name the event: altered, removed, added, or in another one's place. Archived events are hashed
again as well, from their files, which must be those that are on record and have every event of their
days once.

  certeus audit --key log.vkey --checkpoint kept.checkpoint --state audit.state

A checkpoint that you kept yourself, or that a witness has, is what finds a database that was cut off
or rewritten together with its own checkpoints: bring one. With --state, what was done is kept every
few seconds; the same command goes on there. It then ends where the ledger stood at the first start;
the file is removed at the end. Keep it where nobody else can write.

Archived files are read where they were written to: a folder, or a bucket with the usual AWS_ variables
(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT, ...). If they were moved, or you
have a copy, say where; if you have none, leave them out, and the report says what it did not look at:

  certeus audit --key log.vkey --archive file:///mnt/mirror/events
  certeus audit --key log.vkey --without-archive

An archive that cannot be reached is an error (exit status 3), never a finding.

The role needs to read the schema `certeus`: GRANT USAGE ON SCHEMA certeus TO auditor;
GRANT SELECT ON ALL TABLES IN SCHEMA certeus TO auditor;

Environment:
  CERTEUS_DB_URL   the database, unless --db is given; an option can be seen by others on the machine
  CERTEUS_DB_CA    certificates in PEM: the database must have one that these signed, instead of the
                   system's store: CERTEUS_DB_CA=\"$(cat ca.crt)\"

Exit status:
  0    everything that was looked at is as it was committed and signed
  1    there are findings
  2    wrong usage, or an input that cannot be used; nothing was audited
  3    the audit could not be finished
  130  interrupted; with --state, the same command goes on";

/// The arguments of `certeus audit`.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// URL of the database
    #[arg(long, value_name = "URL", env = "CERTEUS_DB_URL", hide_env_values = true)]
    db: String,
    /// Name of the ledger
    #[arg(long, default_value = "default")]
    ledger: String,
    /// A public key of the log, or a file of them, retired ones included; may be given more than once
    #[arg(long, value_name = "KEY|FILE", required = true)]
    key: Vec<String>,
    /// The log's name [default: the name of its keys]
    #[arg(long, value_name = "NAME")]
    origin: Option<String>,
    /// A checkpoint that the ledger must agree with; may be given more than once
    #[arg(long, value_name = "FILE|URL")]
    checkpoint: Vec<String>,
    /// Keep what was done in this file, and go on from there
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// Read archived files here instead of where they were written to: file:///absolute/path or s3://bucket/prefix
    #[arg(long, value_name = "URL", conflicts_with = "without_archive")]
    archive: Option<ArchiveLocation>,
    /// Leave out archived events: only their log entries are audited
    #[arg(long)]
    without_archive: bool,
    /// Connections that read events, or archived files, at the same time [default: one for each core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: Option<u16>,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Input(#[from] input::Error),
    #[error("{0}")]
    Usage(String),
    #[error("the database cannot be used")]
    Database(#[from] certeus_ledger::ConfigError),
    #[error("CERTEUS_DB_CA")]
    Ca(#[source] certeus_ledger::ConfigError),
    #[error(transparent)]
    Audit(#[from] AuditError),
    #[error("cannot {action} '{}'", path.display())]
    State { action: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot {action}")]
    System { action: &'static str, source: io::Error },
}

impl Error {
    fn status(&self) -> u8 {
        match self {
            Self::Input(_) | Self::Usage(_) | Self::Database(_) | Self::Ca(_) => 2,
            Self::Audit(error) if error.class() == Class::Invalid => 2,
            Self::Audit(_) | Self::State { .. } | Self::System { .. } => 3,
        }
    }
}

/// How an audit ended, unless it failed.
enum Ending {
    Finished(Box<Report>, Effort),
    Interrupted,
}

/// What this run of the audit took.
#[derive(Debug, Clone, Copy)]
struct Effort {
    elapsed: Duration,
    /// Processor time of this process, user and system; PostgreSQL's is not in it.
    cpu: Duration,
    /// Events that this run re-hashed, without those before a resume.
    rehashed: u64,
}

/// Runs the command, prints the report, and gives the exit status.
pub(crate) fn run(args: &Args) -> u8 {
    match audit(args) {
        Ok(Ending::Finished(report, elapsed)) => {
            let text =
                if args.json { report::json(&report, elapsed) } else { report::text(&report, elapsed) };
            let status = u8::from(report.findings.count() > 0);
            if report.rows.archived_unseen() > 0 && args.without_archive {
                let unseen = report.rows.archived_unseen();
                eprintln!(
                    "note: {unseen} archived events were left out (--without-archive): this says nothing about their content"
                );
            }
            // A report that nobody got is none.
            if io::stdout().write_all(text.as_bytes()).is_ok() { status } else { 3 }
        }
        Ok(Ending::Interrupted) => 130,
        Err(error) => {
            eprintln!("error: {}", input::chain(&error));
            if matches!(&error, Error::Audit(error) if error.concerns_archive()) {
                eprintln!(
                    "hint: --archive URL reads the files at another place, --without-archive leaves archived events out"
                );
            }
            error.status()
        }
    }
}

fn audit(args: &Args) -> Result<Ending, Error> {
    let keys = input::all_keys(&args.key)?;
    let origin = input::origin(args.origin.as_deref(), &keys).map_err(Error::Usage)?;
    let checkpoints =
        args.checkpoint.iter().map(|source| Ok((format!("'{source}'"), input::read_or_fetch(source)?)));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let options = Options {
        database: database(args)?,
        ledger: args.ledger.clone(),
        origin,
        keys,
        checkpoints: checkpoints.collect::<Result<_, Error>>()?,
        jobs: args.jobs.map_or(cores, usize::from),
        archive: match &args.archive {
            _ if args.without_archive => ArchiveFrom::Skip,
            Some(location) => ArchiveFrom::At(location.clone()),
            None => ArchiveFrom::Recorded,
        },
    };
    let saved = args.state.as_deref().map(read_state).transpose()?.flatten();
    let runtime = Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|source| Error::System { action: "start the runtime", source })?;
    runtime.block_on(drive(options, saved, args.state.as_deref()))
}

fn database(args: &Args) -> Result<Database, Error> {
    let database = Database::from_url(&args.db)?;
    match std::env::var("CERTEUS_DB_CA") {
        Ok(ca) => database.trusting(&ca).map_err(Error::Ca),
        Err(std::env::VarError::NotPresent) => Ok(database),
        Err(std::env::VarError::NotUnicode(_)) => Err(Error::Usage("CERTEUS_DB_CA is not UTF-8".to_owned())),
    }
}

/// Runs the audit to its end or to a signal, keeps its state, and shows how far it is.
async fn drive(options: Options, saved: Option<Vec<u8>>, state: Option<&Path>) -> Result<Ending, Error> {
    let mut signals =
        Signals::new().map_err(|source| Error::System { action: "listen for signals", source })?;
    let mut audit = Audit::start(options, saved.as_deref()).await?;
    let start = Instant::now();
    let before = audit.progress();
    let bar = Bar::new(start, before);
    if saved.is_some() {
        bar.say("going on with the saved audit");
    }
    let mut save = tokio::time::interval(SAVE_INTERVAL);
    save.set_missed_tick_behavior(MissedTickBehavior::Delay);
    save.tick().await;
    let mut show = tokio::time::interval(bar.every());
    show.set_missed_tick_behavior(MissedTickBehavior::Skip);
    show.tick().await;
    loop {
        let more = tokio::select! {
            more = audit.step() => more,
            () = signals.next() => {
                bar.close();
                match state {
                    Some(path) => {
                        write_state(path, &audit.save())?;
                        bar.say("interrupted; the same command goes on from here");
                    }
                    None => bar.say("interrupted; with --state it could go on from here"),
                }
                return Ok(Ending::Interrupted);
            }
            _ = save.tick(), if state.is_some() => {
                state.map_or(Ok(()), |path| write_state(path, &audit.save()))?;
                continue;
            }
            _ = show.tick() => {
                bar.show(audit.progress());
                continue;
            }
        };
        match more {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) => {
                bar.close();
                if let Some(path) = state {
                    write_state(path, &audit.save())?;
                    bar.say("what was done is kept; the same command goes on from there");
                }
                return Err(error.into());
            }
        }
    }
    bar.show(audit.progress());
    bar.close();
    let report = audit.finish().await?;
    if let Some(path) = state.filter(|path| path.exists()) {
        // It would only lead to the same report again.
        let source = |source| Error::State { action: "remove", path: path.to_owned(), source };
        std::fs::remove_file(path).map_err(source)?;
    }
    let hashed = |rows: RowCounts| rows.rehashed + rows.archived_rehashed;
    let rehashed = hashed(report.rows) - hashed(before.rows);
    let effort = Effort { elapsed: start.elapsed(), cpu: cpu_time(), rehashed };
    Ok(Ending::Finished(Box::new(report), effort))
}

/// `None` when there is no such file yet.
fn read_state(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::State { action: "read", path: path.to_owned(), source }),
    }
}

/// Replaces the file as a whole: after a crash it is the one before or this one.
fn write_state(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let failed = |source| Error::State { action: "write", path: path.to_owned(), source };
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let mut file = File::create(&new).map_err(failed)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed)?;
    std::fs::rename(&new, path).map_err(failed)
}
