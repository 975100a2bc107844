//! Decides what to do with the pod processes: a pure state machine over desired count, revision, events and time.
//!
//! Owns each pod's phase, its restart count and its back-off. Never reads a clock, never touches a process: the driver
//! carries out the [`Action`]s and reports back with [`Event`]s. Promises: at most one process per ordinal; no pod is
//! stopped before it was asked to drain; a change of revision takes one pod at a time out of service.
//! Read next: `driver.rs`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long a pod has between SIGTERM and SIGKILL: it has drained already, or had its time to.
pub(crate) const TERMINATE_TIMEOUT: Duration = Duration::from_secs(10);
/// First wait after a crash; doubles with each further one.
const BACK_OFF_MIN: Duration = Duration::from_millis(500);
const BACK_OFF_MAX: Duration = Duration::from_secs(60);
/// A pod that was up for this long has recovered: its next crash waits `BACK_OFF_MIN` again.
const STABLE_AFTER: Duration = Duration::from_secs(60);

/// What should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Desired {
    /// Number of pods; ordinals count from 0.
    pub(crate) replicas: u32,
    /// Changes whenever the pod template or its configuration changes.
    pub(crate) revision: u64,
    /// How long a pod may take to drain.
    pub(crate) drain_timeout: Duration,
}

impl Desired {
    fn draining(self, now: Instant) -> Phase {
        Phase::Draining { deadline: now + self.drain_timeout, drained: false }
    }
}

/// What the driver must do next. Each is final: the driver has no choice left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Start a process for the ordinal with the desired revision.
    Start { ordinal: u32 },
    /// Ask the pod to drain, and report [`Event::Drained`].
    Drain { ordinal: u32, reason: DrainReason },
    /// Send SIGTERM.
    Terminate { ordinal: u32, drained: bool },
    /// Send SIGKILL.
    Kill { ordinal: u32 },
}

/// Why a pod leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DrainReason {
    /// Fewer pods are wanted.
    Surplus,
    /// The pod runs an older revision.
    Outdated,
}

/// What happened to a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// Its readiness was probed and changed.
    Ready(bool),
    /// It holds nothing any more, or it cannot be asked to drain.
    Drained,
    /// Its process ended, or could not be started.
    Exited,
}

/// What became of an event, for the driver to tell the user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Nothing to tell.
    Noted,
    /// The pod is ready for the first time.
    BecameReady,
    /// The pod ended without being asked to; it starts again after the delay.
    Crashed { restarts: u32, delay: Duration },
    /// The pod ended as planned.
    Stopped,
}

/// Where a pod is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The process runs; `ready` while it answers its readiness probe.
    Running { ready: bool, started_at: Instant, ready_changed_at: Instant },
    /// Asked to drain; SIGTERM follows when it has drained, or at the deadline.
    Draining { deadline: Instant, drained: bool },
    /// SIGTERM was sent; SIGKILL follows at the deadline.
    Terminating { deadline: Instant },
    /// SIGKILL was sent.
    Killed,
    /// Crashed; starts again at `until`.
    BackOff { until: Instant },
}

impl Phase {
    fn started(now: Instant) -> Self {
        Self::Running { ready: false, started_at: now, ready_changed_at: now }
    }
}

/// One pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pod {
    pub(crate) phase: Phase,
    pub(crate) revision: u64,
    /// Crashes since the pod was created.
    pub(crate) restarts: u32,
    /// Crashes since the pod was last stable.
    failures: u32,
    was_ready: bool,
}

impl Pod {
    fn new(revision: u64, now: Instant) -> Self {
        let phase = Phase::started(now);
        Self { phase, revision, restarts: 0, failures: 0, was_ready: false }
    }

    pub(crate) fn is_ready(&self) -> bool {
        matches!(self.phase, Phase::Running { ready: true, .. })
    }

    fn is_leaving(&self) -> bool {
        match self.phase {
            Phase::Draining { .. } | Phase::Terminating { .. } | Phase::Killed => true,
            Phase::Running { .. } | Phase::BackOff { .. } => false,
        }
    }
}

/// All pods of the cluster, by ordinal.
#[derive(Debug, Default)]
pub(crate) struct Fleet {
    pods: BTreeMap<u32, Pod>,
}

impl Fleet {
    pub(crate) fn pods(&self) -> impl Iterator<Item = (u32, &Pod)> {
        self.pods.iter().map(|(ordinal, pod)| (*ordinal, pod))
    }

    #[cfg(test)]
    fn get(&self, ordinal: u32) -> Option<&Pod> {
        self.pods.get(&ordinal)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pods.is_empty()
    }

    /// Takes note of what happened to a pod. An event of a pod that is no more is ignored.
    pub(crate) fn observe(&mut self, ordinal: u32, event: Event, now: Instant) -> Outcome {
        let Some(pod) = self.pods.get_mut(&ordinal) else { return Outcome::Noted };
        match (event, pod.phase) {
            (Event::Ready(ready), Phase::Running { ready: before, started_at, .. }) if ready != before => {
                pod.phase = Phase::Running { ready, started_at, ready_changed_at: now };
                if ready && !std::mem::replace(&mut pod.was_ready, true) {
                    return Outcome::BecameReady;
                }
            }
            (Event::Drained, Phase::Draining { deadline, drained: _ }) => {
                pod.phase = Phase::Draining { deadline, drained: true };
            }
            (Event::Exited, Phase::Running { ready, ready_changed_at, .. }) => {
                if ready && now.duration_since(ready_changed_at) >= STABLE_AFTER {
                    pod.failures = 0;
                }
                let delay = BACK_OFF_MIN.saturating_mul(1 << pod.failures.min(16)).min(BACK_OFF_MAX);
                pod.failures += 1;
                pod.restarts += 1;
                pod.was_ready = false;
                pod.phase = Phase::BackOff { until: now + delay };
                return Outcome::Crashed { restarts: pod.restarts, delay };
            }
            (Event::Exited, Phase::Draining { .. } | Phase::Terminating { .. } | Phase::Killed) => {
                self.pods.remove(&ordinal);
                return Outcome::Stopped;
            }
            (Event::Ready(_) | Event::Drained | Event::Exited, _) => {}
        }
        Outcome::Noted
    }

    /// Steps towards what is desired. Calling it again at the same time returns nothing more.
    pub(crate) fn reconcile(&mut self, desired: Desired, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        self.pods.retain(|ordinal, pod| {
            *ordinal < desired.replicas || !matches!(pod.phase, Phase::BackOff { .. })
        });
        for ordinal in 0..desired.replicas {
            self.pods.entry(ordinal).or_insert_with(|| {
                actions.push(Action::Start { ordinal });
                Pod::new(desired.revision, now)
            });
        }
        for (&ordinal, pod) in &mut self.pods {
            match pod.phase {
                Phase::Running { .. } if ordinal >= desired.replicas => {
                    pod.phase = desired.draining(now);
                    actions.push(Action::Drain { ordinal, reason: DrainReason::Surplus });
                }
                Phase::Draining { deadline, drained } if drained || deadline <= now => {
                    pod.phase = Phase::Terminating { deadline: now + TERMINATE_TIMEOUT };
                    actions.push(Action::Terminate { ordinal, drained });
                }
                Phase::Terminating { deadline } if deadline <= now => {
                    pod.phase = Phase::Killed;
                    actions.push(Action::Kill { ordinal });
                }
                // A new revision may be the repair: it is tried at once.
                Phase::BackOff { until } if until <= now || pod.revision != desired.revision => {
                    if pod.revision != desired.revision {
                        pod.failures = 0;
                    }
                    pod.revision = desired.revision;
                    pod.phase = Phase::started(now);
                    actions.push(Action::Start { ordinal });
                }
                Phase::Running { .. }
                | Phase::Draining { .. }
                | Phase::Terminating { .. }
                | Phase::Killed
                | Phase::BackOff { .. } => {}
            }
        }
        if let Some(ordinal) = self.next_outdated(desired)
            && let Some(pod) = self.pods.get_mut(&ordinal)
        {
            pod.phase = desired.draining(now);
            actions.push(Action::Drain { ordinal, reason: DrainReason::Outdated });
        }
        actions
    }

    /// The pod to replace now, if the others can spare it: one that serves nobody, otherwise the highest ordinal
    /// once all pods are ready.
    fn next_outdated(&self, desired: Desired) -> Option<u32> {
        let wanted = || self.pods.range(..desired.replicas);
        if wanted().any(|(_, pod)| pod.is_leaving()) {
            return None;
        }
        let outdated =
            |pod: &Pod| pod.revision != desired.revision && matches!(pod.phase, Phase::Running { .. });
        let broken = wanted().rev().find(|(_, pod)| outdated(pod) && !pod.is_ready());
        let all_ready = wanted().all(|(_, pod)| pod.is_ready());
        let spare = || wanted().rev().find(|(_, pod)| all_ready && outdated(pod));
        broken.or_else(spare).map(|(ordinal, _)| *ordinal)
    }

    /// When [`Fleet::reconcile`] has something to do even if nothing happens before.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.pods
            .values()
            .filter_map(|pod| match pod.phase {
                Phase::Draining { deadline, .. } | Phase::Terminating { deadline } => Some(deadline),
                Phase::BackOff { until } => Some(until),
                Phase::Running { .. } | Phase::Killed => None,
            })
            .min()
    }
}

#[cfg(test)]
mod tests;
