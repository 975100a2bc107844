//! The probes of one container: when each is due, and what follows from how they went.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Container, Probe};
use tokio::task::JoinHandle;

use super::exec::Action;
use super::template::Launch;

/// One probe.
#[derive(Debug)]
struct Running {
    action: Action,
    period: Duration,
    limit: Duration,
    failures_max: u32,
    successes_min: u32,
    due: Instant,
    under_way: Option<JoinHandle<bool>>,
    failures: u32,
    successes: u32,
}

/// All probes of a container that runs.
#[derive(Debug)]
pub(super) struct Probes {
    startup: Option<Running>,
    readiness: Option<Running>,
    liveness: Option<Running>,
    pub(super) started: bool,
    pub(super) ready: bool,
    /// A kubelet would end the container now, and start it again.
    pub(super) failed: Option<&'static str>,
}

impl Probes {
    /// Those of a container that starts now.
    pub(super) fn new(container: &Container) -> Self {
        let running = |probe: &Option<Probe>| Running::new(container, probe.as_ref()?);
        let probes = Self {
            startup: running(&container.startup_probe),
            readiness: running(&container.readiness_probe),
            liveness: running(&container.liveness_probe),
            started: false,
            ready: false,
            failed: None,
        };
        let started = probes.startup.is_none();
        Self { ready: started && probes.readiness.is_none(), started, ..probes }
    }

    /// Takes results and begins what is due. A container that is ending is only asked whether it is ready.
    pub(super) fn step(&mut self, now: Instant, address: Ipv4Addr, launch: &Arc<Launch>, ending: bool) {
        if let Some(startup) = self.startup.as_mut().filter(|_| !self.started && !ending) {
            startup.step(now, address, launch);
            if startup.has_succeeded() {
                self.started = true;
                self.ready = self.readiness.is_none();
            } else if startup.has_failed() {
                self.failed = Some("startup probe failed");
            }
        }
        if !self.started {
            return;
        }
        if let Some(readiness) = &mut self.readiness {
            readiness.step(now, address, launch);
            if readiness.has_succeeded() {
                self.ready = true;
            } else if readiness.has_failed() {
                self.ready = false;
            }
        }
        if let Some(liveness) = self.liveness.as_mut().filter(|_| !ending) {
            liveness.step(now, address, launch);
            if liveness.has_failed() {
                self.failed = Some("liveness probe failed");
            }
        }
    }
}

impl Running {
    fn new(container: &Container, probe: &Probe) -> Option<Self> {
        let seconds = |value: Option<i32>, default: u64| {
            Duration::from_secs(value.and_then(|value| u64::try_from(value).ok()).unwrap_or(default))
        };
        let count = |value: Option<i32>, default: u32| {
            value.and_then(|value| u32::try_from(value).ok()).unwrap_or(default).max(1)
        };
        let action =
            Action::new(container, probe.http_get.as_ref(), probe.tcp_socket.as_ref(), probe.exec.as_ref())?;
        Some(Self {
            action,
            period: seconds(probe.period_seconds, 10).max(Duration::from_secs(1)),
            limit: seconds(probe.timeout_seconds, 1).max(Duration::from_secs(1)),
            failures_max: count(probe.failure_threshold, 3),
            successes_min: count(probe.success_threshold, 1),
            due: Instant::now() + seconds(probe.initial_delay_seconds, 0),
            under_way: None,
            failures: 0,
            successes: 0,
        })
    }

    fn step(&mut self, now: Instant, address: Ipv4Addr, launch: &Arc<Launch>) {
        if let Some(task) = self.under_way.take_if(|task| task.is_finished()) {
            use futures_util::FutureExt;
            let went_well = task.now_or_never().is_some_and(|result| result.unwrap_or(false));
            if went_well {
                self.successes += 1;
                self.failures = 0;
            } else {
                self.failures += 1;
                self.successes = 0;
            }
        }
        if self.under_way.is_none() && now >= self.due {
            self.due = now + self.period;
            let (action, launch, limit) = (self.action.clone(), Arc::clone(launch), self.limit);
            self.under_way = Some(tokio::spawn(async move { action.run(address, &launch, limit).await }));
        }
    }

    fn has_succeeded(&self) -> bool {
        self.successes >= self.successes_min
    }

    fn has_failed(&self) -> bool {
        self.failures >= self.failures_max
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(task) = &self.under_way {
            task.abort();
        }
    }
}
