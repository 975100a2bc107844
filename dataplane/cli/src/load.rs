//! `certeus load`: sends events to a ledger and measures what it makes of them.
//!
//! This file is the driver: it owns the process's runtime, clock, signals and files. What is decided, counted and
//! said is in the modules below. It runs on one thread where it can, as the ledger under test often shares the machine.
//! Read next: `options.rs`, `pacer.rs`, `worker.rs`.

mod client;
mod options;
mod pacer;
mod publish;
mod replay;
mod reply;
mod report;
mod schedule;
mod tally;
mod template;
mod worker;

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use hyper::header::HeaderValue;
use jiff::Timestamp;
use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use client::Client;
use options::{Encoding, Options, RunId, Settings, Throughput};
use pacer::Pacer;
use replay::Replay;
use report::{Ending, Report};
use schedule::Schedule;
use tally::Tally;
use template::Template;
use worker::{Run, Source, Worker};

pub(crate) use options::{Endpoint, Span};
pub(crate) use report::Status;

pub(crate) const API_KEY: &str = "CERTEUS_API_KEY";
/// What was begun in time (late requests of an open loop, events that were refused and wait) may still be finished.
const GRACE: Duration = Duration::from_secs(5);
const PROGRESS_TERMINAL: Duration = Duration::from_secs(1);
const PROGRESS_LOG: Duration = Duration::from_secs(5);

/// Lines stay below 98 columns, as clap wraps there.
const AFTER_HELP: &str = "\
Environment:
  CERTEUS_API_KEY  key of the ledger's API, if it wants one

What is counted:
  acknowledged  committed, by a receipt (201) of the ledger
  unknown       perhaps committed: the connection broke after the request was written, no reply
                came within 30 s, or the ledger said so, and the run ended before it was found
                out; without idempotency keys never sent again, as that could store events twice
  abandoned     certainly not committed: refused (429, 503) or not sent until the run ended
Refused events are sent again after the time the ledger asks for: a refusal costs time only.
Events whose outcome is unknown, or which were spooled (202), are sent again under their
idempotency key until the ledger gives their receipt. To continue an interrupted run with the
same keys, give it the same --run-id and options within 24 hours.

Latency is measured until a request's events are acknowledged, from when it was due (with a
target throughput: a late request is sent at once and counts its delay) or first sent (without).

Exit status:
  0    every event offered was acknowledged
  1    some events ended unknown or abandoned
  2    the options are wrong; nothing was sent
  3    the run failed: the ledger was not there, refused the events for good, a file could not
       be used, or the result could not be published
  130  interrupted; replies in flight were awaited (a second signal ends at once)

Examples:
  certeus load                                             as fast as taken, for 30 s
  certeus load --target-throughput 50000 --duration 5m --ramp-up 30s
  certeus load --target-throughput 1000 --batch 1          single events
  certeus load --events 1000000 --batch 1000 --acks acks.tsv --output result.json
  certeus load --file events.ndjson                        real events, once, in order
  certeus load --duration 1m --publish                     with a result that others can verify
  certeus load --config load.yaml --duration 10s           same names in YAML: 'ramp-up: 30s'";

/// The arguments of `certeus load`.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// Read options from this YAML file, which has the names below as keys; flags win
    #[arg(long, value_name = "LOAD.yaml")]
    config: Option<PathBuf>,
    #[command(flatten)]
    options: Options,
}

/// Why a run cannot begin or its result cannot be kept.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("cannot {action} '{}': {source}", path.display())]
    File { action: &'static str, path: PathBuf, source: io::Error },
    #[error("the value of {API_KEY} cannot be sent in a header")]
    ApiKey,
    #[error("cannot {action}: {source}")]
    System { action: &'static str, source: io::Error },
    #[error("the URL cannot be used: {0}")]
    Url(#[from] hyper::http::Error),
    #[error(transparent)]
    Replay(#[from] replay::Error),
    #[error("the result was not published: {}", crate::input::chain(.0))]
    Publish(#[from] publish::Error),
}

/// Runs the command. The error is one of usage.
pub(crate) fn run(args: Args) -> Result<Status, options::Error> {
    let Args { config, options } = args;
    let options = match config {
        Some(path) => options.or(Options::read(&path)?),
        None => options,
    };
    let settings = options.resolve(new_run_id()?)?;
    Ok(measure(settings).unwrap_or_else(|error| {
        eprintln!("error: {error}");
        Status::Failed
    }))
}

/// A name that sorts by time, with four random digits against runs begun in the same second.
fn new_run_id() -> Result<RunId, options::Error> {
    let name = format!("{}-{:04x}", Timestamp::now().strftime("%Y%m%dT%H%M%S"), rand::random::<u16>());
    name.parse().map_err(|problem| options::Error::Value { key: "run-id", problem })
}

fn measure(settings: Settings) -> Result<Status, Error> {
    let acks = settings.acks.as_deref().map(create).transpose()?;
    // Opened first: a long run must not end in a result that cannot be written.
    let output = settings
        .output
        .as_deref()
        .map(|path| create(path).map(|file| (path.to_owned(), file)))
        .transpose()?;
    let authorization = authorization()?;
    let runtime = runtime(&settings)?;

    let started_at = Timestamp::now();
    let start = Instant::now();
    let run = Arc::new(new_run(&settings, start, acks));
    let (stop, stopped) = watch::channel(false);
    let publish = settings.publish.then(|| settings.url.clone());
    let workers = workers(&settings, &run, &stopped, authorization.as_ref())?;
    let ending = runtime.block_on(drive(&settings, &run, workers, &stop, start))?;

    let elapsed = start.elapsed();
    let mut tally = run.tally();
    if settings.file.is_none() {
        for first in run.pacer.backlog().map(|number| number * settings.batch as u64) {
            tally.abandon(run.events_from(first));
        }
    }
    let ending = match (tally.flush(), ending) {
        (Err(source), Ending::Completed | Ending::Interrupted) => {
            Ending::Failed(worker::Error::Acks(source).to_string())
        }
        (_, ending) => ending,
    };
    let report = Report::new(ending, settings, started_at, elapsed, cpu_time(), &tally);
    if let Some((path, mut file)) = output {
        serde_json::to_writer_pretty(&mut file, &report)
            .map_err(io::Error::from)
            .and_then(|()| file.write_all(b"\n"))
            .map_err(|source| Error::File { action: "write", path, source })?;
    }
    let status = report.status();
    if let Err(error) = write!(io::stdout(), "{report}") {
        // Whoever read it has gone away; the status still tells.
        eprintln!("cannot print the summary: {error}");
    }
    if let Ending::Failed(reason) = &report.ending {
        eprintln!("error: {reason}");
        return Ok(status);
    }
    if let Some(ledger) = publish {
        let url = publish::publish(ledger, &report)?;
        if let Err(error) = writeln!(io::stdout(), "published     {url}") {
            eprintln!("cannot print where the result was published: {error}");
        }
    }
    Ok(status)
}

fn create(path: &Path) -> Result<File, Error> {
    File::create(path).map_err(|source| Error::File { action: "create", path: path.to_owned(), source })
}

/// The header that carries the key; `None` when there is no key.
fn authorization() -> Result<Option<HeaderValue>, Error> {
    let key = std::env::var_os(API_KEY).filter(|key| !key.is_empty());
    let Some(key) = key else { return Ok(None) };
    let key = key.into_string().map_err(|_not_text| Error::ApiKey)?;
    let mut value = HeaderValue::try_from(format!("Bearer {key}")).map_err(|_invalid| Error::ApiKey)?;
    value.set_sensitive(true);
    Ok(Some(value))
}

/// One thread, unless requests are compressed, which takes far more processor time than sending them.
fn runtime(settings: &Settings) -> Result<Runtime, Error> {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    let mut builder = match settings.encoding {
        Encoding::None => Builder::new_current_thread(),
        Encoding::Gzip | Encoding::Zstd => Builder::new_multi_thread(),
    };
    let builder = builder.worker_threads(cores.min(settings.workers)).enable_all();
    builder.build().map_err(|source| Error::System { action: "start the runtime", source })
}

fn new_run(settings: &Settings, start: Instant, acks: Option<File>) -> Run {
    let duration = settings.duration.map(|Span(duration)| duration);
    let deadline = duration.map(|duration| start + duration);
    let events = settings.events.unwrap_or(template::SEQ_END);
    // A file's requests may hold fewer events, if those are large: only its end, or `events`, ends it.
    let requests = if settings.file.is_some() { u64::MAX } else { events.div_ceil(settings.batch as u64) };
    let pacer = match settings.target_throughput {
        Throughput::Max => Pacer::as_taken(requests, deadline),
        Throughput::EventsPerSecond(rate) => {
            let schedule = Schedule::new(rate / settings.batch as f64, settings.ramp_up.0);
            Pacer::scheduled(schedule, start, requests, duration)
        }
    };
    Run {
        pacer,
        tally: Mutex::new(Tally::new(acks)),
        url: settings.url.to_string(),
        batch: settings.batch,
        events,
        encoding: settings.encoding,
        key_prefix: settings.idempotency_keys.then(|| settings.run_id.as_str().to_owned()),
        deadline,
    }
}

/// The workers, not yet started.
fn workers(
    settings: &Settings,
    run: &Arc<Run>,
    stop: &watch::Receiver<bool>,
    authorization: Option<&HeaderValue>,
) -> Result<Vec<Worker>, Error> {
    let worker = |_| {
        let source = match &settings.file {
            Some(path) => Source::File(Replay::open(path)?),
            None => {
                let run_id = settings.run_id.as_str();
                Source::Generated(Template::new(run_id, settings.event_size, settings.batch))
            }
        };
        let client = Client::new(&settings.url, settings.encoding, authorization)?;
        Ok(Worker { run: run.clone(), source, client, stop: stop.clone(), replayed: 0 })
    };
    (0..settings.workers).map(worker).collect()
}

/// Runs the workers to their end and shows how it goes.
async fn drive(
    settings: &Settings,
    run: &Arc<Run>,
    workers: Vec<Worker>,
    stop: &watch::Sender<bool>,
    start: Instant,
) -> Result<Ending, Error> {
    let (_release_until_dropped, stopped) = mpsc::channel::<()>();
    let releasing = run.clone();
    std::thread::Builder::new()
        .name("pacer".into())
        .spawn(move || releasing.pacer.release(&stopped))
        .map_err(|source| Error::System { action: "start a thread", source })?;

    // In an open loop the ramp-up is in the schedule.
    let closed_loop = settings.target_throughput == Throughput::Max;
    let ramp_up = if closed_loop { settings.ramp_up.0 } else { Duration::ZERO };
    let step = ramp_up.div_f64(settings.workers as f64);
    let mut running = JoinSet::new();
    for (worker, place) in workers.into_iter().zip(0..) {
        running.spawn(worker.work(step * place));
    }

    let mut signals =
        Signals::new().map_err(|source| Error::System { action: "listen for signals", source })?;
    let mut progress = Progress::new(settings, start);
    let mut tick = tokio::time::interval(progress.every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    tick.tick().await;
    let last_call = run.deadline.map(|deadline| tokio::time::Instant::from_std(deadline + GRACE));
    let mut ending = Ending::Completed;
    loop {
        tokio::select! {
            ended = running.join_next() => {
                let error = match ended {
                    None => break,
                    Some(Ok(Ok(()))) => continue,
                    Some(Ok(Err(error))) => error.to_string(),
                    Some(Err(panic)) => format!("a worker ended unexpectedly: {panic}"),
                };
                // The first reason is the one to tell; the others follow from it, or say the same.
                if !matches!(ending, Ending::Failed(_)) {
                    ending = Ending::Failed(error);
                }
                stop.send_replace(true);
            }
            () = signals.next() => {
                if ending == Ending::Interrupted {
                    std::process::exit(Status::Interrupted.code().into());
                }
                progress.say("interrupted: waiting for the replies in flight");
                ending = Ending::Interrupted;
                stop.send_replace(true);
            }
            _ = tick.tick() => progress.show(run),
            () = at(last_call), if !*stop.borrow() => {
                stop.send_replace(true);
            }
        }
    }
    progress.close();
    Ok(ending)
}

/// Waits for a moment, for ever if there is none.
async fn at(moment: Option<tokio::time::Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// The signals that ask the run to end.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// The progress line, on standard error: one that is rewritten on a terminal, else a line now and then.
struct Progress {
    terminal: bool,
    every: Duration,
    batch: f64,
    start: Instant,
    last: Instant,
}

impl Progress {
    fn new(settings: &Settings, start: Instant) -> Self {
        let terminal = io::stderr().is_terminal();
        let every = if terminal { PROGRESS_TERMINAL } else { PROGRESS_LOG };
        Self { terminal, every, batch: settings.batch as f64, start, last: start }
    }

    fn show(&mut self, run: &Run) {
        let now = Instant::now();
        let elapsed = now - self.start;
        let target = run.pacer.rate_at(elapsed).map(|requests| requests * self.batch);
        let mut tally = run.tally();
        let interval = tally.take_interval();
        let line = report::progress(elapsed, target, now - self.last, interval, &tally);
        drop(tally);
        self.last = now;
        self.write(&if self.terminal { format!("\r\x1b[K{line}") } else { format!("{line}\n") });
    }

    fn say(&self, text: &str) {
        self.close();
        self.write(&format!("{text}\n"));
    }

    /// Leaves the progress line as it is.
    fn close(&self) {
        if self.terminal {
            self.write("\n");
        }
    }

    fn write(&self, text: &str) {
        // The run is worth more than its progress line: it goes on when nobody reads that any more.
        let _nobody_reads = io::stderr().write_all(text.as_bytes());
    }
}

/// Processor time that this process has used, user and system.
pub(crate) fn cpu_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap_or_default()
}
