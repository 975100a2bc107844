//! What a scenario breaks: one PostgreSQL, some pods, and a faulty network between clients, pods and database.
//!
//! Owns all of it, and the end of every scenario: bring everything back, see that it goes on, stop it in order, and
//! compare what was promised with what is there.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::checker::{self, Violations};
use crate::dice::Dice;
use crate::http;
use crate::journal::{Entry, Journal, Outcome, Receipt};
use crate::log::{LogKey, Watcher};
use crate::pod::{Pod, PodSpec};
use crate::postgres::{Postgres, Sql};
use crate::programs;
use crate::proxy::Proxy;
use crate::recorder::{Habits, Recorder, Targets};
use crate::run::Run;
use crate::snapshot::Snapshot;
use crate::spools::{self, SpoolSetup};
use crate::wait_for;

/// The database in the private server.
const DATABASE: &str = "postgres";
const LEDGER: &str = "default";
/// Once all faults are over, this many acknowledgements must come within the limit.
const PROGRESS_REQUESTS: usize = 20;
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(60);
/// Acknowledged events that are read back through the API.
const READ_BACK: usize = 20;

/// What to start.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Number of pods.
    pub pods: usize,
    /// Where PostgreSQL's data goes, if not into the run's folder.
    pub postgres_dir: Option<PathBuf>,
    /// Further settings of PostgreSQL.
    pub postgres_settings: Vec<(&'static str, &'static str)>,
    /// What its environment has beside the usual.
    pub postgres_env: Vec<(String, String)>,
    /// Environment of each pod beyond the usual; the last one is for all that follow.
    pub pod_env: Vec<Vec<(String, String)>>,
    /// The pods' configuration file.
    pub pod_config: String,
    /// Their spools.
    pub spool: Option<SpoolSetup>,
    /// Whether they share one anchor. Otherwise what a pod has seen does not depend on what others tell it, and a new sealer
    /// waits before it signs.
    pub anchor_shared: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            pods: 2,
            postgres_dir: None,
            postgres_settings: Vec::new(),
            postgres_env: Vec::new(),
            pod_env: Vec::new(),
            pod_config: String::new(),
            spool: None,
            anchor_shared: false,
        }
    }
}

/// What was seen at the end.
#[derive(Debug, Default, Clone, Copy)]
pub struct Tally {
    /// Requests that were sent.
    pub requests: usize,
    /// Of which acknowledged.
    pub acknowledged: usize,
    /// Of which no answer came, or the answer that nobody knows.
    pub unknown: usize,
    /// Of which stored nevertheless.
    pub unknown_stored: usize,
    /// Events in the ledger.
    pub events: usize,
    /// Different checkpoints that pods have shown.
    pub checkpoints: usize,
    /// Requests that spools promised.
    pub spooled: usize,
}

impl Tally {
    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            requests: self.requests + other.requests,
            acknowledged: self.acknowledged + other.acknowledged,
            unknown: self.unknown + other.unknown,
            unknown_stored: self.unknown_stored + other.unknown_stored,
            events: self.events + other.events,
            checkpoints: self.checkpoints + other.checkpoints,
            spooled: self.spooled + other.spooled,
        }
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { requests, acknowledged, unknown, unknown_stored, events, checkpoints, spooled } = self;
        write!(
            f,
            "{events} events, {checkpoints} checkpoints; {requests} requests, {acknowledged} acknowledged, {unknown} unknown \
             ({unknown_stored} stored)"
        )?;
        if *spooled > 0 { write!(f, "; {spooled} spooled") } else { Ok(()) }
    }
}

/// Everything that runs.
#[derive(Debug)]
pub struct World {
    // In the order in which they are to end.
    pods: Vec<Option<Pod>>,
    fronts: Vec<Proxy>,
    /// The network between pods and database.
    pub network: Proxy,
    /// The database server.
    pub postgres: Postgres,
    /// Chance for what happens here.
    pub dice: Dice,
    /// The key that signs the log.
    pub key: LogKey,
    watcher: Watcher,
    /// The pods' own addresses.
    apis: Targets,
    journal: Arc<Journal>,
    targets: Targets,
    specs: Vec<PodSpec>,
    dir: PathBuf,
    pods_started: u32,
    /// The pods' spools, if they have any.
    spools: Vec<PathBuf>,
}

impl World {
    /// Starts PostgreSQL and the pods, and waits until they take events.
    ///
    /// # Errors
    /// When something does not start.
    pub fn start(run: &mut Run, part: &str, setup: &Setup) -> Result<Self> {
        let dir = run.folder(part)?;
        let postgres =
            Postgres::start(&postgres_dir(setup, &dir), &dir, &setup.postgres_settings, &setup.postgres_env)?;
        let network = Proxy::start(postgres.address()).context("cannot start a proxy")?;
        let program = programs::dataplane()?;
        let url = postgres.url_through(network.address(), DATABASE);
        let key = LogKey::new(run.seed())?;
        let spools: Vec<PathBuf> =
            setup.spool.iter().flat_map(|spool| (0..setup.pods).map(|pod| spool.folder(part, pod))).collect();
        let spec = |pod: usize| {
            let own = setup.pod_env.get(pod).or(setup.pod_env.last()).cloned().unwrap_or_default();
            let usual = [
                ("CERTEUS_DB_URL", url.clone()),
                ("CERTEUS_SIGNING_KEY", key.secret()),
                (
                    "CERTEUS_LOG_ANCHOR",
                    format!("file://{}", anchor(&dir, if setup.anchor_shared { 0 } else { pod }).display()),
                ),
                ("CERTEUS_LOG_ANCHOR_SHARED", setup.anchor_shared.to_string()),
            ];
            let usual = usual.map(|(name, value)| (name.to_owned(), value));
            PodSpec {
                program: program.clone(),
                env: own.into_iter().chain(usual).collect(),
                config: setup.pod_config.clone()
                    + &setup.spool.as_ref().map(|spool| spool.config(part, pod)).unwrap_or_default(),
            }
        };
        // Leads nowhere until the pod is there.
        let nowhere = network.address();
        let fronts = (0..setup.pods).map(|_| Proxy::start(nowhere)).collect::<std::io::Result<Vec<_>>>()?;
        let specs = (0..setup.pods).map(spec).collect();
        let apis = Targets::default();
        let mut world = Self {
            watcher: Watcher::start(&key, &apis),
            key,
            apis,
            pods: (0..setup.pods).map(|_| None).collect(),
            fronts,
            network,
            postgres,
            dice: run.dice.fork(),
            journal: Arc::new(
                Journal::create(&dir.join("journal.ndjson")).context("cannot make the journal")?,
            ),
            targets: Targets::default(),
            specs,
            dir,
            pods_started: 0,
            spools,
        };
        for pod in 0..setup.pods {
            world.start_pod(pod)?;
        }
        for pod in world.pods.iter().flatten() {
            pod.wait_until_ready()?;
        }
        Ok(world)
    }

    /// Starts clients.
    #[must_use]
    pub fn load(&mut self, habits: &Habits) -> Recorder {
        Recorder::start(habits, &self.targets, &self.journal, &mut self.dice)
    }

    /// The file that a pod keeps the newest checkpoint in.
    #[must_use]
    pub fn anchor(&self, pod: usize) -> PathBuf {
        anchor(&self.dir, pod)
    }

    /// How many pods there are.
    #[must_use]
    pub fn pod_count(&self) -> usize {
        self.pods.len()
    }

    /// A running pod.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pod(&self, pod: usize) -> Result<&Pod> {
        self.pods[pod].as_ref().with_context(|| format!("pod {pod} does not run"))
    }

    /// The network between clients and a pod.
    #[must_use]
    pub fn front(&self, pod: usize) -> &Proxy {
        &self.fronts[pod]
    }

    /// What clients were promised so far.
    #[must_use]
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Starts a pod that does not run; it may not take events yet.
    ///
    /// # Errors
    /// When it ends at once.
    pub fn start_pod(&mut self, pod: usize) -> Result<()> {
        ensure!(self.pods[pod].is_none(), "pod {pod} runs already");
        self.pods_started += 1;
        let log = self.dir.join(format!("pod-{pod}-{}.log", self.pods_started));
        let started = Pod::start(&self.specs[pod], &log)?;
        self.fronts[pod].set_upstream(started.api());
        self.pods[pod] = Some(started);
        self.offer_running();
        Ok(())
    }

    /// `kill -9` of a pod.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill_pod(&mut self, pod: usize) -> Result<()> {
        let killed = self.pods[pod].take().with_context(|| format!("pod {pod} does not run"))?;
        self.offer_running();
        killed.kill()
    }

    /// SIGTERM to a pod; waits until it has drained and ended.
    ///
    /// # Errors
    /// When it does not run, or does not end well.
    pub fn stop_pod(&mut self, pod: usize) -> Result<()> {
        let stopped = self.pods[pod].take().with_context(|| format!("pod {pod} does not run"))?;
        self.offer_running();
        stopped.stop()
    }

    /// Tells clients which pods there are, as a load balancer would. Those that are connected stay.
    fn offer_running(&self) {
        let running = self.pods.iter().zip(&self.fronts).filter(|(pod, _)| pod.is_some());
        self.targets.set(running.map(|(_, front)| front.address()).collect());
        self.apis.set(self.pods.iter().flatten().map(Pod::api).collect());
    }

    /// Starts PostgreSQL again after its end, and leads the pods to it.
    ///
    /// # Errors
    /// When it does not start.
    pub fn restart_postgres(&mut self) -> Result<()> {
        self.postgres.restart()?;
        self.network.set_upstream(self.postgres.address());
        Ok(())
    }

    /// Waits until PostgreSQL answers, after a fault that may end it now or in a moment; starts it again if it does. Says whether
    /// it did.
    ///
    /// # Errors
    /// When it does not come back.
    pub fn recover_postgres(&mut self) -> Result<bool> {
        let (deadline, mut ended) = (Instant::now() + PROGRESS_TIMEOUT, false);
        loop {
            if self.postgres.has_ended()? {
                ended = true;
                self.postgres.forget();
                self.restart_postgres()?;
            }
            if self.postgres.answers() {
                return Ok(ended);
            }
            ensure!(Instant::now() < deadline, "PostgreSQL does not recover");
            sleep(Duration::from_millis(50));
        }
    }

    /// A connection to the ledger's database as superuser.
    ///
    /// # Errors
    /// When it cannot be had.
    pub fn sql(&self) -> Result<Sql> {
        self.postgres.connect(DATABASE)
    }

    /// Kills a backend that is busy with such a statement; see [`Postgres::kill_backend_in`].
    #[must_use]
    pub fn kill_backend_in(&self, statement: &str, limit: Duration) -> bool {
        self.postgres.kill_backend_in(DATABASE, statement, limit)
    }

    /// Reads the whole ledger and compares it with the journal. Clients must have stopped.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn check(&self) -> Result<(Tally, Violations)> {
        let snapshot = Snapshot::read(&self.sql()?, LEDGER)?;
        let entries = self.journal.entries();
        let tally = Tally {
            checkpoints: self.checkpoints_shown(),
            spooled: self.journal.spooled_count(),
            ..tally(&entries, &snapshot)
        };
        Ok((tally, checker::check(&snapshot, &entries)))
    }

    /// Ends all faults, and waits until events are taken again.
    ///
    /// # Errors
    /// When the ledger does not come back by itself.
    pub fn recover(&mut self) -> Result<()> {
        self.network.heal();
        for front in &self.fronts {
            front.heal();
        }
        if self.postgres.has_ended()? {
            self.postgres.forget();
            self.restart_postgres()?;
        }
        for pod in 0..self.pods.len() {
            if self.pods[pod].is_none() {
                self.start_pod(pod)?;
            }
        }
        for pod in self.pods.iter().flatten() {
            pod.wait_until_ready().context("after the faults")?;
        }
        let before = self.journal.acknowledged_count();
        let goes_on = || Ok(self.journal.acknowledged_count() >= before + PROGRESS_REQUESTS);
        wait_for("acknowledgements after the faults", PROGRESS_TIMEOUT, goes_on)
    }

    /// The end of a scenario: recover, stop the clients, read back, stop the pods, check everything.
    ///
    /// # Errors
    /// When anything does not hold.
    pub fn conclude(mut self, recorder: Recorder) -> Result<Tally> {
        self.recover()?;
        recorder.finish()?;
        if !self.spools.is_empty() {
            spools::fetch(&self.journal, &self.apis.all())?;
        }
        self.wait_until_sealed()?;
        self.read_back()?;
        for pod in 0..self.pods.len() {
            self.stop_pod(pod)?;
        }
        let (tally, violations) = self.check()?;
        let (shown, odd) = self.watcher.seen();
        let snapshot = Snapshot::read(&self.sql()?, LEDGER)?;
        let of_log = checker::check_log(&snapshot, &self.journal.entries(), &shown);
        let surprises = [self.journal.surprises(), odd].concat();
        if !violations.is_empty() || !of_log.is_empty() || !surprises.is_empty() {
            bail!("{violations}{of_log}{}", surprises.join("\n"));
        }
        spools::check_folders(&self.spools)?;
        self.postgres.stop()?;
        Ok(tally)
    }

    /// Waits until the log covers all that was acknowledged, and every pod shows as much.
    ///
    /// # Errors
    /// When it does not come to that.
    pub fn wait_until_sealed(&self) -> Result<()> {
        let entries = self.journal.entries();
        let ends = entries.iter().filter_map(receipt).map(|receipt| receipt.first_index + receipt.count);
        let end = ends.max().unwrap_or(0);
        let covered = |pod: &Pod| self.watcher.newest(pod.api()).is_some_and(|size| size >= end);
        wait_for("the signature of all that was acknowledged", PROGRESS_TIMEOUT, || {
            Ok(self.pods.iter().flatten().all(covered))
        })
    }

    /// Checkpoints that were shown so far.
    #[must_use]
    pub fn checkpoints_shown(&self) -> usize {
        self.watcher.seen().0.len()
    }

    /// Reads some acknowledged events through the API.
    fn read_back(&mut self) -> Result<()> {
        let entries = self.journal.entries();
        let receipts: Vec<&Receipt> = entries.iter().filter_map(receipt).collect();
        ensure!(!receipts.is_empty(), "nothing was acknowledged");
        for _ in 0..READ_BACK {
            let receipt = *self.dice.pick(&receipts);
            let api = self.pod(0)?.api();
            let path = format!("/v1/ledger/events/{}", receipt.first_id);
            let reply = http::request(api, "GET", &path).context("cannot read an event back")?;
            // Not into a `Value`: some events hold numbers that it cannot.
            let index = serde_json::from_slice::<Place>(&reply.body).ok().map(|place| place.index);
            ensure!(
                reply.status == 200 && index == Some(receipt.first_index),
                "event {} reads as {} {}",
                receipt.first_id,
                reply.status,
                String::from_utf8_lossy(&reply.body)
            );
        }
        Ok(())
    }
}

fn anchor(dir: &Path, pod: usize) -> PathBuf {
    dir.join(format!("anchor-{pod}"))
}

/// Where PostgreSQL's data is, given the folder of a part of the run.
pub(crate) fn postgres_dir(setup: &Setup, part: &Path) -> PathBuf {
    setup.postgres_dir.clone().unwrap_or_else(|| part.join("postgres"))
}

/// What a read event is checked for.
#[derive(serde::Deserialize)]
struct Place {
    index: u64,
}

/// The receipt of an acknowledged request.
#[must_use]
pub fn receipt(entry: &Entry) -> Option<&Receipt> {
    match &entry.outcome {
        Outcome::Acknowledged { receipt, .. } => Some(receipt),
        Outcome::Unknown | Outcome::Spooled { .. } | Outcome::NotStored => None,
    }
}

fn tally(entries: &[Entry], snapshot: &Snapshot) -> Tally {
    let numbers = snapshot.rows.iter().filter_map(|row| crate::event::Event::number_in(&row.payload));
    let stored: std::collections::HashSet<u64> = numbers.map(|event| event.0).collect();
    let unknown: Vec<&Entry> = entries.iter().filter(|entry| entry.outcome == Outcome::Unknown).collect();
    Tally {
        requests: entries.len(),
        acknowledged: entries.iter().filter_map(receipt).count(),
        unknown: unknown.len(),
        unknown_stored: unknown.iter().filter(|entry| stored.contains(&entry.first_number)).count(),
        events: snapshot.rows.len(),
        checkpoints: 0,
        spooled: 0,
    }
}
