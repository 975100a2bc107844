//! The life of one pod on the node: prepared, run, restarted, ended, deleted; and its status all along.

use std::net::Ipv4Addr;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Container, Pod};
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::exec::{self, Action};
use super::probe::Probes;
use super::template::{self, Launch, Waiting};
use super::{Fate, Shared, lock, now};
use crate::cluster::guard::Process;

const TICK: Duration = Duration::from_millis(50);
/// How soon something that a pod waits for is looked for again.
const PREPARE_AGAIN: Duration = Duration::from_millis(500);
/// What ended once is started again at once, and then with pauses. A kubelet's are 10 s first and 300 s at most; tests have less
/// patience.
const BACKOFF_FIRST: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// A container that ran for so long starts again without delay.
const BACKOFF_RESET: Duration = Duration::from_secs(60);
/// What a container gets whose probe failed and that has no grace period.
const GRACE_DEFAULT: Duration = Duration::from_secs(30);

/// Runs a pod to its end.
pub(super) async fn run(
    shared: Arc<Shared>,
    pod: Pod,
    address: Ipv4Addr,
    fronted: bool,
    process: Arc<Mutex<Option<Process>>>,
    fate: watch::Receiver<Fate>,
) {
    let uid = pod.uid().unwrap_or_default();
    let dir =
        shared.dir.join("pods").join(format!("{}-{}", pod.name_any(), uid.get(..8).unwrap_or_default()));
    let Some(container) = pod.spec.as_ref().and_then(|spec| spec.containers.first()).cloned() else { return };
    let log = shared.dir.join(format!("pod-{}.log", pod.name_any()));
    let view = View::new(&pod, &container, address);
    let mut life = Life { shared, pod, container, address, fronted, dir, log, process, fate, view };
    life.live().await;
}

struct Life {
    shared: Arc<Shared>,
    pod: Pod,
    container: Container,
    address: Ipv4Addr,
    fronted: bool,
    dir: PathBuf,
    log: PathBuf,
    process: Arc<Mutex<Option<Process>>>,
    fate: watch::Receiver<Fate>,
    view: View,
}

/// Why a container is not run any more.
enum End {
    Exited(ExitStatus),
    Unhealthy(&'static str),
    Told(Fate),
}

impl Life {
    async fn live(&mut self) {
        let mut backoff = Duration::ZERO;
        loop {
            let Some(launch) = self.prepare().await else { return self.finish().await };
            let begun = Instant::now();
            match self.contain(&Arc::new(launch)).await {
                End::Told(_) => return self.finish().await,
                End::Unhealthy(why) => self.view.message = format!("{why}; restarted"),
                End::Exited(status) => {
                    self.view.message = format!("ended with {status}");
                    if let Some(phase) = self.phase_after(status) {
                        self.view.phase = phase;
                        self.report().await;
                        self.wait_for_fate().await;
                        return self.finish().await;
                    }
                }
            }
            self.report().await;
            if begun.elapsed() > BACKOFF_RESET {
                backoff = Duration::ZERO;
            }
            if !backoff.is_zero() {
                self.view.wait(&Waiting("CrashLoopBackOff", self.view.message.clone()));
                self.report().await;
                if !self.pause(backoff).await {
                    return self.finish().await;
                }
            }
            backoff = (backoff * 2).clamp(BACKOFF_FIRST, BACKOFF_MAX);
            // Counted as they are started, not as they end.
            self.view.restarts += 1;
        }
    }

    /// What a pod becomes whose container is not started again.
    fn phase_after(&self, status: ExitStatus) -> Option<&'static str> {
        let policy = self.pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref());
        match policy {
            Some("Never") if !status.success() => Some("Failed"),
            Some("Never" | "OnFailure") if status.success() => Some("Succeeded"),
            _ => None,
        }
    }

    /// Waits until everything the container needs is there; `None` when the pod is to go.
    async fn prepare(&mut self) -> Option<Launch> {
        for attempt in 0.. {
            let prepared = template::prepare(&self.shared, &self.pod, self.address, self.fronted, &self.dir);
            match Box::pin(prepared).await {
                Ok(launch) if *self.fate.borrow() == Fate::Run => return Some(launch),
                Ok(_) => return None,
                Err(waiting) => {
                    self.view.wait(&waiting.at_attempt(attempt));
                    self.report().await;
                }
            }
            if !self.pause(PREPARE_AGAIN).await {
                return None;
            }
        }
        None
    }

    /// False when the pod is to go.
    async fn pause(&mut self, time: Duration) -> bool {
        tokio::time::timeout(time, self.wait_for_fate()).await.is_err()
    }

    async fn wait_for_fate(&mut self) {
        // A sender that is gone takes this task with it.
        let _told = self.fate.wait_for(|fate| *fate != Fate::Run).await;
    }

    /// Runs the container until it ends.
    async fn contain(&mut self, launch: &Arc<Launch>) -> End {
        match exec::start(launch, &self.log) {
            Ok(started) => *lock(&self.process) = Some(started),
            Err(error) => {
                self.view.message = format!("{error:#}");
                return End::Unhealthy("cannot be started");
            }
        }
        let mut probes = Probes::new(&self.container);
        self.view.run(self.process_id());
        let end = loop {
            self.view.started = probes.started;
            self.view.set_ready(probes.ready);
            self.report().await;
            let told = *self.fate.borrow();
            if told != Fate::Run {
                break End::Told(told);
            }
            if let Some(status) = self.ended() {
                break End::Exited(status);
            }
            if let Some(why) = probes.failed {
                break End::Unhealthy(why);
            }
            probes.step(Instant::now(), self.address, launch, false);
            tokio::time::sleep(TICK).await;
        };
        match end {
            End::Told(Fate::Terminate(grace)) => self.terminate(launch, &mut probes, grace).await,
            End::Unhealthy(_) => self.terminate(launch, &mut probes, self.grace()).await,
            End::Told(_) | End::Exited(_) => {}
        }
        let status = self.ended();
        drop(lock(&self.process).take());
        let words = std::fs::read_to_string(self.dir.join(template::LAST_WORDS));
        self.view.end(status, &words.unwrap_or_default());
        end
    }

    fn grace(&self) -> Duration {
        let seconds = self.pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
        seconds.and_then(|seconds| u64::try_from(seconds).ok()).map_or(GRACE_DEFAULT, Duration::from_secs)
    }

    /// preStop, the image's stop signal, and SIGKILL when the grace period is over.
    async fn terminate(&mut self, launch: &Arc<Launch>, probes: &mut Probes, grace: Duration) {
        let mut deadline = Instant::now() + grace;
        let hook = self.container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.as_ref());
        let hook = hook.and_then(|hook| match &hook.sleep {
            Some(sleep) => {
                Some(Action::Sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))))
            }
            None => Action::new(&self.container, hook.http_get.as_ref(), None, hook.exec.as_ref()),
        });
        let mut hook = hook.map(|hook| {
            let (address, launch) = (self.address, Arc::clone(launch));
            tokio::spawn(async move { hook.run(address, &launch, grace).await })
        });
        if hook.is_none() {
            self.signal(launch.stop_signal);
        }
        while self.ended().is_none() {
            if hook.as_ref().is_some_and(tokio::task::JoinHandle::is_finished) {
                hook = None;
                self.signal(launch.stop_signal);
            }
            match *self.fate.borrow() {
                Fate::Gone => deadline = Instant::now(),
                // It may have become shorter meanwhile.
                Fate::Terminate(shorter) => deadline = deadline.min(Instant::now() + shorter),
                Fate::Run => {}
            }
            if Instant::now() >= deadline {
                self.signal(Signal::KILL);
            }
            probes.step(Instant::now(), self.address, launch, true);
            self.view.set_ready(probes.ready);
            self.report().await;
            tokio::time::sleep(TICK).await;
        }
        if let Some(hook) = hook {
            hook.abort();
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(process) = &*lock(&self.process) {
            process.signal(signal);
        }
    }

    fn process_id(&self) -> u32 {
        lock(&self.process).as_ref().map_or(0, Process::id)
    }

    /// How the process ended; one that is not there has ended.
    fn ended(&self) -> Option<ExitStatus> {
        match &mut *lock(&self.process) {
            Some(process) => process.ended().unwrap_or_default(),
            None => Some(ExitStatus::from_raw(0)),
        }
    }

    /// The last report, and the end of the object.
    async fn finish(&mut self) {
        if *self.fate.borrow() != Fate::Gone {
            self.view.set_ready(false);
            self.report().await;
            let parameters = DeleteParams {
                grace_period_seconds: Some(0),
                preconditions: Some(Preconditions { uid: self.pod.uid(), resource_version: None }),
                ..DeleteParams::default()
            };
            for _attempt in 0..100 {
                let deleted = self.shared.pods().delete(&self.pod.name_any(), &parameters).await;
                match deleted {
                    Ok(_) => break,
                    Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => break,
                    Err(error) => eprintln!("{}: cannot delete a pod: {error}", self.shared.node),
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
        self.shared.forget(&self.pod.name_any(), &self.pod.uid().unwrap_or_default());
    }

    /// Writes the status when it is not what was written last.
    async fn report(&mut self) {
        let status = self.view.status();
        if self.view.reported.as_ref() == Some(&status) {
            return;
        }
        // Another pod of this name must not get it.
        let patch = json!({ "metadata": { "uid": self.pod.uid() }, "status": status });
        let written = self
            .shared
            .pods()
            .patch_status(&self.pod.name_any(), &PatchParams::default(), &Patch::Strategic(&patch))
            .await;
        match written {
            Ok(_) => self.view.reported = Some(status),
            // It is gone; the watch will say so.
            Err(kube::Error::Api(refused)) if refused.code == 404 || refused.code == 409 => {
                self.view.reported = Some(status);
            }
            Err(error) => eprintln!("{}: cannot report on a pod: {error}", self.shared.node),
        }
    }
}

/// A pod as its status shows it.
struct View {
    container: String,
    image: String,
    address: Ipv4Addr,
    start_time: String,
    phase: &'static str,
    state: Value,
    last_state: Value,
    started: bool,
    ready: (bool, String),
    initialized: String,
    restarts: u32,
    process: u32,
    /// Why the container ended last.
    message: String,
    reported: Option<Value>,
}

impl View {
    fn new(_pod: &Pod, container: &Container, address: Ipv4Addr) -> Self {
        let begun = now();
        Self {
            container: container.name.clone(),
            image: container.image.clone().unwrap_or_default(),
            address,
            start_time: begun.clone(),
            phase: "Pending",
            state: json!({ "waiting": { "reason": "ContainerCreating" } }),
            last_state: json!({}),
            started: false,
            ready: (false, begun.clone()),
            initialized: begun,
            restarts: 0,
            process: 0,
            message: String::new(),
            reported: None,
        }
    }

    fn wait(&mut self, Waiting(reason, message): &Waiting) {
        self.state = json!({ "waiting": { "reason": reason, "message": message } });
        self.started = false;
        self.set_ready(false);
    }

    fn run(&mut self, process: u32) {
        self.phase = "Running";
        self.process = process;
        self.state = json!({ "running": { "startedAt": now() } });
    }

    fn end(&mut self, status: Option<ExitStatus>, words: &str) {
        let signal = status.and_then(|status| status.signal());
        let code = status.and_then(|status| status.code()).unwrap_or(128 + signal.unwrap_or(9));
        let reason = if code == 0 { "Completed" } else { "Error" };
        let began = self.state["running"]["startedAt"].clone();
        self.state = json!({ "terminated": {
            "exitCode": code, "reason": reason, "startedAt": began, "finishedAt": now(), "message": words,
        } });
        self.last_state = self.state.clone();
        self.started = false;
        self.set_ready(false);
    }

    fn set_ready(&mut self, ready: bool) {
        if self.ready.0 != ready {
            self.ready = (ready, now());
        }
    }

    fn status(&self) -> Value {
        let (ready, since) = &self.ready;
        let truth = |so: bool| if so { "True" } else { "False" };
        let condition = |kind: &str, so: bool, since: &str| json!({ "type": kind, "status": truth(so), "lastTransitionTime": since });
        json!({
            "phase": self.phase,
            "hostIP": "127.0.0.1",
            "podIP": self.address.to_string(),
            "podIPs": [{ "ip": self.address.to_string() }],
            "startTime": self.start_time,
            "conditions": [
                condition("PodReadyToStartContainers", true, &self.initialized),
                condition("Initialized", true, &self.initialized),
                condition("ContainersReady", *ready, since),
                condition("Ready", *ready, since),
            ],
            "containerStatuses": [{
                "name": self.container, "image": self.image, "imageID": self.image,
                "containerID": format!("process://{}", self.process),
                "started": self.started, "ready": ready, "restartCount": self.restarts,
                "state": self.state, "lastState": self.last_state,
            }],
        })
    }
}
