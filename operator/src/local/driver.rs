//! The loop of a local instance: one owner of all state, one closed list of what can wake it.
//!
//! Dull on purpose: `plan.rs` decides what happens to pods, `scaler.rs` asks the operator's own reasoning how many
//! there should be. This carries it out, feeds the results back, and tells the user.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rustix::process::Signal;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep_until};

use super::cluster::Cluster;
use super::folder::Folder;
use super::plan::{Action, Desired, DrainReason, Event, Fleet, Outcome, TERMINATE_TIMEOUT};
use super::pod::{self, Handle, Report, Site};
use super::postgres::{self, Postgres};
use super::say;
use super::scaler::{Now, Scaler, Scrape};
use super::signals::Signals;
use super::snapshot::{PodStatus, Snapshot};
use super::state::{self, Processes};
use super::template::DATABASE_URL;
use crate::admin::Reply;
use crate::errors::chain;

/// How often pods are scraped, a decision is made and the manifests are looked at.
const TICK: Duration = Duration::from_secs(1);
/// Programs that run others (`timeout`, some shells) send a signal twice: only a later one is a person's second.
const REPEAT_AFTER: Duration = Duration::from_millis(300);
/// Reports waiting for the loop; a pod's task waits when it is full.
const REPORTS_MAX: usize = 64;

/// A running local instance.
pub(crate) struct Driver {
    site: Site,
    folder: Folder,
    cluster: Cluster,
    scaler: Scaler,
    manifests_error: Option<String>,
    /// Counts changes of the pod template.
    revision: u64,
    /// How many pods were last asked for.
    replicas: u32,
    fleet: Fleet,
    pods: BTreeMap<u32, Handle>,
    processes: Processes,
    tasks: JoinSet<()>,
    reports: mpsc::Sender<Report>,
    scrapes: mpsc::Sender<Vec<Scrape>>,
    scraping: bool,
    was_ready: bool,
    /// Since when everything is to stop.
    stopping: Option<Instant>,
    /// What the state file holds, to write it only when it changes.
    written: Option<Snapshot>,
    /// The state could not be written (the disk may be full), and the user was told.
    write_failing: bool,
}

/// What woke the loop.
enum Wake {
    Pod(Report),
    Scraped(Vec<Scrape>),
    Postgres(postgres::Report),
    Tick,
    Deadline,
    Stop(&'static str),
}

/// Runs until it is asked to stop and all pods have ended.
pub(crate) async fn run(
    site: Site,
    folder: Folder,
    cluster: Cluster,
    processes: Processes,
    postgres: Option<Postgres>,
    mut postgres_reports: mpsc::Receiver<postgres::Report>,
    mut signals: Signals,
) {
    let (reports, mut reported) = mpsc::channel(REPORTS_MAX);
    let (scrapes, mut scraped) = mpsc::channel(1);
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let replicas = cluster.replicas_at_start();
    if replicas == 0 {
        say("spec.paused, spec.stopped or spec.dryRun is true: no pod is started");
    }
    let scaler = Scaler::new(replicas, Instant::now());
    let mut driver = Driver {
        replicas,
        site,
        folder,
        cluster,
        scaler,
        manifests_error: None,
        revision: 1,
        fleet: Fleet::default(),
        pods: BTreeMap::new(),
        processes,
        tasks: JoinSet::new(),
        reports,
        scrapes,
        scraping: false,
        was_ready: false,
        stopping: None,
        written: None,
        write_failing: false,
    };
    while !(driver.stopping.is_some() && driver.fleet.is_empty()) {
        let deadline = driver.fleet.next_deadline();
        let wake = tokio::select! {
            // A stop that was asked for during the start comes before the first pod.
            biased;
            signal = signals.recv() => Wake::Stop(signal),
            Some(report) = reported.recv() => Wake::Pod(report),
            Some(found) = scraped.recv() => Wake::Scraped(found),
            Some(report) = postgres_reports.recv() => Wake::Postgres(report),
            _ = tick.tick() => Wake::Tick,
            () = sleep_until(deadline.unwrap_or_else(Instant::now).into()), if deadline.is_some() => Wake::Deadline,
        };
        driver.wake(wake);
        driver.step();
    }
    // Each pod's task ended with its last report.
    while driver.tasks.join_next().await.is_some() {}
    let Some(postgres) = postgres else { return };
    say("PostgreSQL stops");
    if let Err(error) = postgres.stop().await {
        say(&format!("PostgreSQL: {}", chain(&error)));
    }
}

impl Driver {
    fn wake(&mut self, wake: Wake) {
        match wake {
            Wake::Pod(report) => self.pod_reported(report),
            Wake::Scraped(scrapes) => {
                self.scraping = false;
                self.decide(&scrapes);
            }
            Wake::Postgres(report) => self.postgres_reported(report),
            Wake::Tick => {
                if self.folder.has_changed() && self.stopping.is_none() {
                    self.reload();
                }
                self.bound_logs();
                // Finished tasks are kept until they are asked for.
                while self.tasks.try_join_next().is_some() {}
                self.scrape();
            }
            Wake::Deadline => {}
            Wake::Stop(signal) => self.stop(signal),
        }
    }

    fn stop(&mut self, signal: &str) {
        match self.stopping {
            None => {
                self.stopping = Some(Instant::now());
                say(&format!("{signal}: pods drain, then everything stops (once more to stop at once)"));
            }
            Some(since) if since.elapsed() >= REPEAT_AFTER => self.kill_everything(),
            Some(_) => {}
        }
    }

    /// Does what the plan says, then writes down what is now.
    fn step(&mut self) {
        let desired = Desired {
            replicas: if self.stopping.is_some() { 0 } else { self.replicas },
            revision: self.revision,
            drain_timeout: self.cluster.template.drain_timeout,
        };
        for action in self.fleet.reconcile(desired, Instant::now()) {
            self.act(action, desired);
        }
        self.write_snapshot();
    }

    fn act(&mut self, action: Action, desired: Desired) {
        match action {
            Action::Start { ordinal } => self.start(ordinal),
            Action::Drain { ordinal, reason } => {
                let why = match reason {
                    _ if self.stopping.is_some() => "everything stops",
                    DrainReason::Surplus => "fewer pods are wanted",
                    DrainReason::Outdated => "its configuration changed",
                };
                if let Some(pod) = self.pods.get_mut(&ordinal) {
                    say(&format!("pod {} drains: {why}", pod.name));
                    pod.drain();
                }
            }
            Action::Terminate { ordinal, drained } => {
                let Some(pod) = self.pods.get(&ordinal) else { return };
                if !drained {
                    let waited = desired.drain_timeout.as_secs();
                    say(&format!("pod {} did not drain within {waited} s: terminating it", pod.name));
                }
                pod.process.signal(Signal::TERM);
            }
            Action::Kill { ordinal } => {
                let Some(pod) = self.pods.get(&ordinal) else { return };
                let waited = TERMINATE_TIMEOUT.as_secs();
                say(&format!("pod {} did not end within {waited} s: killing it", pod.name));
                pod.process.signal(Signal::KILL);
            }
        }
    }

    fn start(&mut self, ordinal: u32) {
        match self.site.start(&self.cluster.template, ordinal, self.reports.clone()) {
            Ok((handle, watch)) => {
                let Handle { name, process, admin, .. } = &handle;
                say(&format!("pod {name} starts: process {}, admin http://{}", process.pid, admin.address));
                self.processes.pods.insert(name.clone(), *process);
                self.pods.insert(ordinal, handle);
                self.tasks.spawn(watch);
                self.write_processes();
            }
            Err(error) => {
                let detail = Some(chain(&error));
                self.pod_reported(Report { ordinal, event: Event::Exited, detail });
            }
        }
    }

    fn pod_reported(&mut self, report: Report) {
        let Report { ordinal, event, detail } = report;
        let name = self.cluster.template.pod_name(ordinal);
        let detail = detail.map(|detail| format!(" ({detail})")).unwrap_or_default();
        match self.fleet.observe(ordinal, event, Instant::now()) {
            Outcome::Noted if !detail.is_empty() => say(&format!("pod {name}{detail}")),
            Outcome::Noted => {}
            Outcome::BecameReady => say(&format!("pod {name} is ready")),
            Outcome::Stopped => say(&format!("pod {name} stopped{detail}")),
            Outcome::Crashed { restarts, delay } => {
                let delay = delay.as_secs_f64();
                say(&format!("pod {name} failed{detail}: restart {restarts} in {delay} s"));
            }
        }
        if event == Event::Exited {
            self.pods.remove(&ordinal);
            self.processes.pods.remove(&name);
            self.write_processes();
        }
        self.tell_when_ready();
    }

    /// Says once, and again after it was not so, that all pods that are wanted serve as configured.
    fn tell_when_ready(&mut self) {
        let current = self.revision;
        let ready = self.fleet.pods().all(|(_, pod)| pod.is_ready() && pod.revision == current);
        let count = self.fleet.pods().count();
        let all = self.stopping.is_none() && ready && count > 0 && u32::try_from(count) == Ok(self.replicas);
        if all && !self.was_ready {
            let api = self.api_address().map(|address| format!("; API http://{address}")).unwrap_or_default();
            say(&format!("ready: {count} of {count} pods{api}"));
        }
        self.was_ready = all;
    }

    fn api_address(&self) -> Option<std::net::SocketAddr> {
        self.site.listener.local_addr().ok()
    }

    fn postgres_reported(&mut self, report: postgres::Report) {
        match report {
            postgres::Report::Died { how } => {
                say(&format!("PostgreSQL ended by itself ({how}): starting it again"));
                self.processes.postgres = None;
            }
            postgres::Report::RestartFailed { why } => {
                say(&format!("PostgreSQL does not start, trying again: {why}"));
            }
            postgres::Report::Restarted { process } => {
                say("PostgreSQL is back");
                self.processes.postgres = process;
            }
        }
        self.write_processes();
    }

    /// Takes an edit over, or keeps the last good manifests and says why.
    fn reload(&mut self) {
        let loaded = Cluster::load(self.folder.path());
        let checked = loaded.and_then(|cluster| cluster.following(&self.cluster)).and_then(|cluster| {
            let listening = self.api_address().map_or(Ok(()), |address| cluster.check_listen(address));
            listening.map(|()| cluster)
        });
        let cluster = match checked {
            Ok(cluster) => cluster,
            Err(error) => {
                let error = chain(&error);
                say(&format!("the manifests were edited but not taken over: {error}"));
                self.manifests_error = Some(error);
                return;
            }
        };
        self.manifests_error = None;
        // Only a database that is not ours can have moved.
        if let Some(url) = cluster.template.env(DATABASE_URL) {
            let written = state::write_private(&self.site.state.database_url(), url.as_bytes());
            self.tell_write(written);
        }
        let paused = cluster.is_paused();
        say(if paused { "the manifests were edited: paused" } else { "the manifests were edited" });
        if paused {
            // As in Kubernetes: what was applied last goes on as it is.
            self.cluster.pause(cluster);
            return;
        }
        if cluster.template != self.cluster.template {
            self.revision += 1;
        }
        self.cluster = cluster;
        if self.replicas == 0 {
            // Paused from the start until now, or stopped.
            self.replicas = self.cluster.replicas_at_start();
        }
    }

    fn bound_logs(&mut self) {
        let bounded: Result<(), _> =
            self.pods.values().try_for_each(|pod| pod::bound_log(&self.site.state.log(&pod.name)));
        self.tell_write(bounded);
    }

    /// Asks all pods for their metrics at the same time, unless the last round is still under way.
    fn scrape(&mut self) {
        if std::mem::replace(&mut self.scraping, true) {
            return;
        }
        let round: Vec<_> = self.pods.iter().map(|(ordinal, pod)| (*ordinal, pod.admin.clone())).collect();
        let scrapes = self.scrapes.clone();
        self.tasks.spawn(async move {
            let mut requests = JoinSet::new();
            for (ordinal, admin) in round {
                requests.spawn(async move {
                    let page = admin.get("/metrics").await.and_then(Reply::success);
                    Scrape { ordinal, at: Instant::now(), page }
                });
            }
            // The loop only goes away when nothing waits for this any more.
            let _nobody = scrapes.send(requests.join_all().await).await;
        });
    }

    /// Asks how many pods there should be, after each round of scrapes.
    fn decide(&mut self, scrapes: &[Scrape]) {
        if self.stopping.is_some() {
            return;
        }
        let now = Now { instant: Instant::now(), time: Timestamp::now() };
        let decided = self.scaler.decide(&self.cluster, self.replicas, &self.fleet, scrapes, now);
        if decided.replicas != self.replicas {
            say(&decided.message);
            self.was_ready = false;
            self.scaler.scaled(self.replicas, decided.replicas, now.instant);
            self.replicas = decided.replicas;
        }
    }

    fn kill_everything(&mut self) {
        say("stopping at once");
        for pod in self.pods.values() {
            pod.process.signal(Signal::KILL);
        }
        if let Some(process) = self.processes.postgres {
            postgres::stop_at_once(process);
        }
    }

    fn write_processes(&mut self) {
        let written = self.site.state.write_processes(&self.processes);
        self.tell_write(written);
    }

    fn write_snapshot(&mut self) {
        let Some(snapshot) = self.snapshot() else { return };
        if self.written.as_ref() == Some(&snapshot) {
            return;
        }
        let written = state::write_json(&self.site.state.status(), &snapshot);
        if written.is_ok() {
            self.written = Some(snapshot);
            self.write_failing = false;
        }
        self.tell_write(written);
    }

    /// A failed write hurts nobody who is being served: it is told once, and tried again.
    fn tell_write(&mut self, result: Result<(), state::Error>) {
        if let Err(error) = result
            && !std::mem::replace(&mut self.write_failing, true)
        {
            say(&format!(
                "{}: the instance goes on, but 'status' and 'down' may see an old state",
                chain(&error)
            ));
        }
    }

    fn snapshot(&self) -> Option<Snapshot> {
        let pods = self.fleet.pods().map(|(ordinal, pod)| {
            let name = self.cluster.template.pod_name(ordinal);
            PodStatus::new(pod, self.pods.get(&ordinal), self.site.state.log(&name), name)
        });
        Some(Snapshot {
            pods: pods.collect(),
            ledger_cluster: self.cluster.resource_with(self.scaler.status().clone()),
            alert_rules: self.cluster.alert_rules.clone(),
            api_address: self.api_address()?,
            database_url_file: self.site.state.database_url(),
            manifests: self.folder.path().to_owned(),
            manifests_error: self.manifests_error.clone(),
            operator_pid: self.processes.operator.map(|process| process.pid),
            postgres_pid: self.processes.postgres.map(|process| process.pid),
        })
    }
}
