//! From pod samples to one trigger's report. Owns which pods count and the HPA's arithmetic. All sums are integers, so
//! that the order of the pods cannot matter and a count of exactly six is not rounded up to seven.

use std::time::Duration;

use crate::{
    CpuSample, DownstreamGuard, Measured, MissingReason, MissingSample, Observation, PodObservation,
    PodPhase, PolicyConfig, QueueSample, Trigger, TriggerFailure, TriggerKind, TriggerReport, Verdict,
};

/// A fraction of one pod's capacity in millionths.
type Micro = u64;

const MICRO: f64 = 1_000_000.0;

/// Largest fraction told apart, a million pods' worth: 10^12 millionths, so that sums over any number of pods that fits
/// in memory stay within `u64` when saturating.
const FRACTION_LIMIT: f64 = 1_000_000.0;

/// What one trigger makes of an observation.
pub(crate) fn report(
    config: &PolicyConfig,
    kind: TriggerKind,
    trigger: Trigger,
    observation: &Observation,
) -> TriggerReport {
    let samples = match kind {
        TriggerKind::Cpu => cpu_samples(config, observation),
        TriggerKind::QueueDepth => queue_samples(config, observation),
    };
    TriggerReport { kind, trigger, outcome: samples.judge(config, trigger, observation.replicas) }
}

/// Whether the pods wait for the database: their CPU idles while most of those that commit do so slowly, or none does at
/// all. Pods are counted, not commits, as one that hangs or one that is fast says little about the others. What was not
/// measured makes no claim, so that a failed sample cannot hold growth.
pub(crate) fn is_downstream_saturated(
    config: &PolicyConfig,
    guard: &DownstreamGuard,
    observation: &Observation,
) -> bool {
    let cpu = cpu_samples(config, observation).values;
    let commits: Vec<(f64, f64)> = observation
        .pods
        .iter()
        .filter(|pod| matches!(pod.phase, PodPhase::Running { .. }))
        .filter_map(|pod| pod.downstream.ok())
        .filter_map(|sample| Some((checked(sample.commits).ok()?, checked(sample.commit_seconds).ok()?)))
        .collect();
    if cpu.is_empty() || commits.is_empty() || sum(&cpu) >= times(micro(guard.cpu_below), cpu.len()) {
        return false;
    }
    let limit = guard.commit_latency.as_secs_f64();
    let committing = commits.into_iter().filter(|(count, _)| *count > 0.0);
    let slow: Vec<bool> = committing.map(|(count, seconds)| seconds > count * limit).collect();
    slow.is_empty() || slow.iter().filter(|slow| **slow).count() * 2 > slow.len()
}

fn cpu_samples(config: &PolicyConfig, observation: &Observation) -> Samples {
    let mut samples = Samples::default();
    for pod in &observation.pods {
        let starting = is_starting(config, pod.phase)
            || pod.cpu.as_ref().is_ok_and(|sample| is_warming(config, pod.phase, sample, observation.now));
        samples.add(pod, starting, pod.cpu.and_then(cpu_fraction));
    }
    samples
}

fn queue_samples(config: &PolicyConfig, observation: &Observation) -> Samples {
    let mut samples = Samples::default();
    for pod in &observation.pods {
        let fraction = pod.queue.and_then(|sample| queue_fraction(&sample, config.queue_age_full));
        samples.add(pod, is_starting(config, pod.phase), fraction);
    }
    samples
}

#[derive(Default)]
struct Samples {
    values: Vec<Micro>,
    missing: Vec<MissingSample>,
    starting: usize,
}

impl Samples {
    fn add(&mut self, pod: &PodObservation, starting: bool, sample: Result<Micro, MissingReason>) {
        match pod.phase {
            PodPhase::Draining | PodPhase::Failed => {}
            PodPhase::Pending => self.starting += 1,
            PodPhase::Running { .. } if starting => self.starting += 1,
            PodPhase::Running { .. } => match sample {
                Ok(value) => self.values.push(value),
                Err(reason) => self.missing.push(MissingSample { pod: pod.name.clone(), reason }),
            },
        }
    }

    /// The HPA's arithmetic. A missing sample is taken for whatever speaks against moving: for growing the pod is idle,
    /// for shrinking it is full.
    fn judge(
        self,
        config: &PolicyConfig,
        trigger: Trigger,
        current: u32,
    ) -> Result<Measured, TriggerFailure> {
        let Samples { values, mut missing, starting } = self;
        missing.sort_by(|a, b| a.pod.cmp(&b.pod).then(a.reason.cmp(&b.reason)));
        if values.is_empty() {
            return Err(match missing.into_iter().next() {
                Some(first) => TriggerFailure::NoSample { first },
                None if starting > 0 => TriggerFailure::AllStarting,
                None => TriggerFailure::NoPods,
            });
        }
        let behavior = &config.behavior;
        let target = micro(trigger.target);
        let above =
            micro(trigger.scale_up_threshold.max(trigger.target * (1.0 + behavior.scale_up.tolerance)));
        let below =
            micro(trigger.scale_down_threshold.min(trigger.target * (1.0 - behavior.scale_down.tolerance)));

        let full = micro(trigger.scale_up_threshold.max(1.0));
        let total = sum(&values);
        let total_at_worst = total.saturating_add(times(full, missing.len()));
        let verdict = if total > times(above, values.len() + missing.len() + starting) {
            Verdict::Above
        } else if total_at_worst < times(below, values.len() + missing.len()) {
            Verdict::Below
        } else if total < times(below, values.len()) {
            Verdict::Unclear
        } else {
            Verdict::Within
        };
        let proposal = match verdict {
            Verdict::Above => pods_for(total, target).max(current),
            Verdict::Within => current,
            Verdict::Below | Verdict::Unclear => pods_for(total_at_worst, target).min(current),
        };
        let value = total as f64 / MICRO / values.len() as f64;
        Ok(Measured { value, pods: values.len(), starting, missing, verdict, proposal })
    }
}

/// Whether a running pod has never been ready. Kubernetes does not say so; as in the HPA, one that has not changed its
/// readiness since shortly after its start is taken to have begun unready. One that was ready and is no more still has
/// its share of the load.
fn is_starting(config: &PolicyConfig, phase: PodPhase) -> bool {
    match phase {
        PodPhase::Running { ready: false, started_at, ready_changed_at } => {
            ready_changed_at <= started_at.saturating_add(config.initial_readiness_delay)
        }
        _ => false,
    }
}

/// Whether a young pod's CPU may still be the work of starting: it is unready, or the interval measured began before it
/// was ready.
fn is_warming(config: &PolicyConfig, phase: PodPhase, sample: &CpuSample, now: Duration) -> bool {
    match phase {
        PodPhase::Running { ready, started_at, ready_changed_at } => {
            now < started_at.saturating_add(config.cpu_initialization_period)
                && (!ready || sample.since < ready_changed_at)
        }
        _ => false,
    }
}

fn cpu_fraction(sample: CpuSample) -> Result<Micro, MissingReason> {
    checked(sample.utilization).map(micro)
}

/// How full a queue is: the worst of its events, its bytes and the age of its oldest event. Age makes a queue that is
/// short but stuck count as full, and never as more than full: it tells that work waits, not how much.
fn queue_fraction(sample: &QueueSample, age_full: Duration) -> Result<Micro, MissingReason> {
    let QueueSample { events, events_max, bytes, bytes_max, oldest_age_seconds } = *sample;
    let share = |value: f64, full: f64| {
        let (value, full) = (checked(value)?, checked(full)?);
        if full > 0.0 { Ok(value / full) } else { Err(MissingReason::ZeroCapacity) }
    };
    let age = share(oldest_age_seconds, age_full.as_secs_f64())?;
    Ok(micro(share(events, events_max)?.max(share(bytes, bytes_max)?).max(age.min(1.0))))
}

/// A sample that can be reckoned with, or why it cannot.
fn checked(value: f64) -> Result<f64, MissingReason> {
    if value.is_nan() {
        Err(MissingReason::NotANumber)
    } else if value.is_infinite() {
        Err(MissingReason::Infinite)
    } else if value < 0.0 {
        Err(MissingReason::Negative)
    } else {
        Ok(value)
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to 0..=10^12, and `as` turns no value into a wrong one: thresholds below zero become 0"
)]
fn micro(fraction: f64) -> Micro {
    (fraction.clamp(0.0, FRACTION_LIMIT) * MICRO).round() as Micro
}

fn sum(values: &[Micro]) -> Micro {
    values.iter().fold(0, |total, value| total.saturating_add(*value))
}

fn times(value: Micro, count: usize) -> Micro {
    value.saturating_mul(u64::try_from(count).unwrap_or(u64::MAX))
}

fn pods_for(total: Micro, target: Micro) -> u32 {
    u32::try_from(total.div_ceil(target.max(1))).unwrap_or(u32::MAX)
}
