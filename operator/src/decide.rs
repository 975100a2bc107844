//! From scrapes to a replica count: turns what pods reported at two moments into the autoscale engine's observation, asks the
//! engine, and reports the answer as status.
//! Pure: time and scrapes come in as values. Promises: what a pod did not report is missing, with a reason, and never zero.

use std::time::Duration;

use certeus_autoscale::{
    CpuSample, Decision, DownstreamSample, MissingReason, Observation, PodObservation, PodPhase, QueueSample,
    State,
};

use crate::validate::{Cluster, Millicores, Scaling};

mod conditions;
mod metrics;
mod scrapes;
mod status;
mod words;

pub use metrics::{MetricsSample, Reading, parse};
pub use scrapes::Scrapes;
pub use status::{Observed, Surroundings, invalid, last_decision, status};
pub use words::{ConditionReason, ConditionType, PodsWaiting, Problem, ProblemReason};

/// Oldest scrape that still says something about now. Pods are scraped every second or two, so this is a handful of misses.
const SAMPLE_AGE_MAX: Duration = Duration::from_secs(10);

/// One pod and its last two scrapes.
#[derive(Clone, Debug, PartialEq)]
pub struct PodScrape {
    /// The pod's name.
    pub name: String,
    /// Where the pod is in its life, as whoever runs it sees it.
    pub phase: PodPhase,
    /// The latest scrape, or why it failed.
    pub latest: Result<MetricsSample, MissingReason>,
    /// The last scrape that succeeded before it.
    pub previous: Option<MetricsSample>,
}

impl PodScrape {
    /// The phase as the pod itself sees it: one may start to drain before whoever runs it has noticed.
    fn seen_phase(&self) -> PodPhase {
        phase_with(self.phase, self.latest.as_ref().map_err(|reason| *reason))
    }

    /// Whether it reaches the database, and commits nothing before that was compared with the signed log.
    #[must_use]
    pub fn waits_for_log(&self) -> bool {
        self.latest
            .as_ref()
            .is_ok_and(|sample| (sample.database_up, sample.log_checked) == (Ok(1.0), Ok(0.0)))
    }
}

fn phase_with(phase: PodPhase, latest: Result<&MetricsSample, MissingReason>) -> PodPhase {
    let drains = latest.is_ok_and(|sample| sample.draining.is_ok_and(|draining| draining != 0.0));
    match phase {
        PodPhase::Running { .. } if drains => PodPhase::Draining,
        phase => phase,
    }
}

/// How many pods there should be, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Pods wanted.
    pub desired: u32,
    /// The engine's answer; absent while nothing is measured: the cluster is paused, stopped, of a fixed size, or has no pod.
    pub decision: Option<Decision>,
}

impl Outcome {
    /// Pods to have now, where there are `current`: a cluster that may not be changed stays as it is, whatever is wanted.
    #[must_use]
    pub fn replicas(&self, cluster: &Cluster, current: u32) -> u32 {
        if cluster.may_change() { self.desired } else { current }
    }
}

/// What the engine is to look at: `replicas` is what was last asked for, and instants are those of [`MetricsSample::at`].
#[must_use]
pub fn observe(cluster: &Cluster, now: Duration, replicas: u32, pods: &[PodScrape]) -> Observation {
    let pods = pods.iter().map(|pod| observe_pod(pod, now, cluster.cpu_request)).collect();
    Observation { now, replicas, pods }
}

/// How many pods there should be. `state` is the engine's history of this cluster; after a change of the workload's size
/// the caller tells it so with [`State::record_scale`].
#[must_use]
pub fn decide(cluster: &Cluster, state: &mut State, observation: &Observation) -> Outcome {
    if cluster.paused {
        return Outcome { desired: observation.replicas, decision: None };
    }
    if cluster.stopped {
        return Outcome { desired: 0, decision: None };
    }
    match &cluster.scaling {
        Scaling::Fixed(replicas) => Outcome { desired: replicas.get(), decision: None },
        // Not created yet, or stopped until now: no pod, no load.
        Scaling::Auto(_) if observation.replicas == 0 => {
            Outcome { desired: cluster.scaling.min(), decision: None }
        }
        Scaling::Auto(policy) => {
            let decision = certeus_autoscale::decide(policy, state, observation);
            Outcome { desired: decision.desired, decision: Some(decision) }
        }
    }
}

fn observe_pod(pod: &PodScrape, now: Duration, cpu_request: Option<Millicores>) -> PodObservation {
    let latest = match &pod.latest {
        Ok(sample) if now.saturating_sub(sample.at) > SAMPLE_AGE_MAX => Err(MissingReason::Stale),
        Ok(sample) => Ok(sample),
        Err(reason) => Err(*reason),
    };
    let phase = phase_with(pod.phase, latest);
    let interval = latest.and_then(|latest| Interval::between(pod.previous.as_ref(), latest));
    PodObservation {
        name: pod.name.clone(),
        phase,
        cpu: interval.and_then(|interval| interval.cpu(cpu_request)),
        queue: latest.and_then(queue),
        downstream: interval.and_then(Interval::downstream),
    }
}

fn queue(sample: &MetricsSample) -> Result<QueueSample, MissingReason> {
    Ok(QueueSample {
        events: sample.queue_events?,
        events_max: sample.queue_events_max?,
        bytes: sample.queue_bytes?,
        bytes_max: sample.queue_bytes_max?,
        oldest_age_seconds: sample.queue_oldest_age_seconds?,
    })
}

/// Two scrapes of the same process, some time apart.
#[derive(Clone, Copy)]
struct Interval<'a> {
    previous: &'a MetricsSample,
    latest: &'a MetricsSample,
}

impl<'a> Interval<'a> {
    fn between(
        previous: Option<&'a MetricsSample>,
        latest: &'a MetricsSample,
    ) -> Result<Self, MissingReason> {
        let previous = previous.ok_or(MissingReason::TooFewScrapes)?;
        // Counters of a process that was replaced in between began anew, and may have passed the old value already.
        if previous.process_start? != latest.process_start? || previous.at >= latest.at {
            return Err(MissingReason::TooFewScrapes);
        }
        Ok(Self { previous, latest })
    }

    fn cpu(self, request: Option<Millicores>) -> Result<CpuSample, MissingReason> {
        let Some(request) = request else { return Err(MissingReason::NotReported) };
        let used = metrics::increase(self.previous.cpu_seconds, self.latest.cpu_seconds)?;
        // By the pod's own clock: a page that was under way for long would make the interval seem shorter or longer than it was.
        let elapsed = match metrics::increase(self.previous.uptime_seconds, self.latest.uptime_seconds) {
            // Of a version that does not tell.
            Err(MissingReason::NotReported) => self.latest.at.saturating_sub(self.previous.at).as_secs_f64(),
            elapsed => elapsed?,
        };
        if elapsed <= 0.0 {
            return Err(MissingReason::TooFewScrapes);
        }
        Ok(CpuSample { utilization: used / elapsed / request.cores(), since: self.previous.at })
    }

    fn downstream(self) -> Result<DownstreamSample, MissingReason> {
        Ok(DownstreamSample {
            commits: metrics::increase(self.previous.commits, self.latest.commits)?,
            commit_seconds: metrics::increase(self.previous.commit_seconds, self.latest.commit_seconds)?,
        })
    }
}

#[cfg(test)]
mod status_tests;
#[cfg(test)]
mod tests;
