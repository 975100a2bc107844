//! The same loads given to the same plant under different autoscalers. The HPA and KEDA are played by this engine with
//! their defaults, their sampling and their arithmetic: no band but a tolerance of a tenth around the target.

use std::time::Duration;

use certeus_autoscale::{
    Behavior, CpuSample, MissingReason, Observation, PodObservation, PodPhase, Policy, PolicyConfig,
    PolicyError, QueueSample, ScalingRules, State, Trigger, decide,
};

use crate::plant::{Load, Plant, Scraper, TICK, noise, queue_sample};

/// A run lasts this long.
const LENGTH: Duration = Duration::from_secs(1800);
/// An event that must wait longer than this is late, and the cluster with it until nothing waits longer than that.
const LATE_SECONDS: (f64, f64) = (1.0, 0.2);
const AMPLE: f64 = 1e9;

/// A load over time.
#[derive(Clone, Copy)]
pub(crate) struct Scenario {
    /// What it is called.
    pub(crate) name: &'static str,
    load: fn(seed: u64, now: Duration) -> Load,
}

/// Every scenario is calm for two minutes first.
pub(crate) const SCENARIOS: [Scenario; 5] = [
    Scenario { name: "step", load: |_, now| events(if is_within(now, 120, 1020) { 100e3 } else { 10e3 }) },
    Scenario {
        name: "ramp",
        load: |_, now| {
            let t = now.as_secs_f64();
            let height = ((t - 120.0) / 300.0).min((1200.0 - t) / 300.0).clamp(0.0, 1.0);
            events(10e3 + 110e3 * height)
        },
    },
    Scenario {
        name: "spikes",
        load: |_, now| {
            let spiking = is_within(now, 120, 1500) && (now.as_secs() - 120) % 180 < 30;
            events(if spiking { 100e3 } else { 10e3 })
        },
    },
    Scenario {
        name: "noise",
        load: |seed, now| {
            let (each_second, each_20_seconds) =
                (noise(seed, now.as_secs()), noise(!seed, now.as_secs() / 20));
            let factor = 1.0 + 0.25 * each_second + 0.15 * each_20_seconds;
            events(if is_within(now, 120, 1800) { 60e3 * factor } else { 10e3 })
        },
    },
    Scenario {
        name: "database",
        load: |_, now| {
            if is_within(now, 120, 720) {
                Load { events_per_second: 12e3, database_events_per_second: 9e3 }
            } else {
                events(6e3)
            }
        },
    },
];

fn is_within(now: Duration, from_second: u64, to_second: u64) -> bool {
    (from_second..to_second).contains(&now.as_secs())
}

fn events(events_per_second: f64) -> Load {
    Load { events_per_second, database_events_per_second: AMPLE }
}

/// Who decides, from what, and how often.
#[derive(Clone, Copy)]
pub(crate) struct Autoscaler {
    /// What it is called.
    pub(crate) name: &'static str,
    policy: fn() -> PolicyConfig,
    scrape_every: Duration,
    decide_every: Duration,
    /// How long after a scrape's moment the decision's moment comes.
    decide_after: Duration,
    /// Sees the queues' sum only, as an external metric, not the pods.
    sees_queue_sum: bool,
}

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// The product's defaults first.
pub(crate) const AUTOSCALERS: [Autoscaler; 4] = [
    Autoscaler {
        name: "certeus",
        policy: PolicyConfig::default,
        scrape_every: s(2),
        decide_every: s(2),
        decide_after: s(0),
        sees_queue_sum: false,
    },
    Autoscaler {
        name: "HPA cpu",
        policy: || PolicyConfig { cpu: Some(exact(0.7)), queue_depth: None, ..hpa() },
        scrape_every: s(15),
        decide_every: s(15),
        // The two clocks are not in step: half a period lies between them on average.
        decide_after: s(7),
        sees_queue_sum: false,
    },
    Autoscaler {
        name: "KEDA queue",
        policy: || PolicyConfig { cpu: None, queue_depth: Some(exact(0.3)), ..hpa() },
        scrape_every: s(15),
        decide_every: s(15),
        decide_after: s(0),
        sees_queue_sum: true,
    },
    Autoscaler {
        name: "KEDA queue, cached",
        policy: || PolicyConfig { cpu: None, queue_depth: Some(exact(0.3)), ..hpa() },
        scrape_every: s(30),
        decide_every: s(15),
        decide_after: s(7),
        sees_queue_sum: true,
    },
];

fn exact(target: f64) -> Trigger {
    Trigger { target, scale_up_threshold: target, scale_down_threshold: target }
}

/// The HPA's default behavior is this engine's, but for its tolerance.
fn hpa() -> PolicyConfig {
    let config = PolicyConfig::default();
    let tolerant = |rules: &ScalingRules| ScalingRules { tolerance: 0.1, ..rules.clone() };
    let behavior = Behavior {
        scale_up: tolerant(&config.behavior.scale_up),
        scale_down: tolerant(&config.behavior.scale_down),
    };
    PolicyConfig { behavior, downstream_guard: None, ..config }
}

/// How a run went.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Outcome {
    /// The longest time from becoming late to having caught up, in seconds.
    pub(crate) recover_seconds: f64,
    /// All the time spent late, in seconds.
    pub(crate) late_seconds: f64,
    /// Events refused as a fraction of those sent.
    pub(crate) rejected: f64,
    /// What was paid for, in seconds.
    pub(crate) pod_seconds: f64,
    /// Most replicas asked for.
    pub(crate) replicas_max: u32,
    /// How often the replica count was changed.
    pub(crate) changes: u32,
    /// How often a change went the other way than the one before.
    pub(crate) reversals: u32,
}

/// Runs one scenario under one autoscaler.
pub(crate) fn run(scenario: &Scenario, autoscaler: &Autoscaler, seed: u64) -> Result<Outcome, PolicyError> {
    let policy = Policy::new((autoscaler.policy)())?;
    let mut plant = Plant::new(seed, policy.config().replicas_min);
    let mut state = State::new(plant.now(), plant.replicas);
    let mut scraper = Scraper::default();
    let mut seen = None;
    let mut outcome = Outcome { replicas_max: plant.replicas, ..Outcome::default() };
    let mut late_since = None;
    let mut grew = None;
    while plant.now() < LENGTH {
        plant.step((scenario.load)(seed, plant.now()));
        let now = plant.now();
        if is_due(now, autoscaler.scrape_every) {
            seen = Some(scraper.scrape(&plant));
        }
        if let Some(seen) = &seen
            && is_due(now.saturating_sub(autoscaler.decide_after), autoscaler.decide_every)
        {
            let observation = view(autoscaler, seen, &plant);
            let decision = decide(&policy, &mut state, &observation);
            if decision.desired != plant.replicas {
                let grows = decision.desired > plant.replicas;
                outcome.changes += 1;
                outcome.reversals += u32::from(grew.is_some_and(|grew| grew != grows));
                outcome.replicas_max = outcome.replicas_max.max(decision.desired);
                grew = Some(grows);
                state.record_scale(now, plant.replicas, decision.desired);
                plant.scale(decision.desired);
            }
        }
        let (late, caught_up) = LATE_SECONDS;
        let wait = plant.wait_seconds();
        if wait > late || (late_since.is_some() && wait > caught_up) {
            let since = *late_since.get_or_insert(now);
            outcome.late_seconds += TICK.as_secs_f64();
            outcome.recover_seconds = outcome.recover_seconds.max((now - since).as_secs_f64());
        } else {
            late_since = None;
        }
    }
    Ok(Outcome { rejected: plant.rejected / plant.sent, pod_seconds: plant.pod_seconds, ..outcome })
}

fn is_due(now: Duration, every: Duration) -> bool {
    !now.is_zero() && now.as_millis().is_multiple_of(every.as_millis())
}

/// What the autoscaler makes of the last scrape. The pods' phases are always fresh: both kinds watch them.
fn view(autoscaler: &Autoscaler, seen: &Observation, plant: &Plant) -> Observation {
    let (now, replicas) = (plant.now(), plant.replicas);
    if !autoscaler.sees_queue_sum {
        return Observation { now, replicas, ..seen.clone() };
    }
    // An average over the replicas asked for, whether they are ready or not: the same for each of them.
    let sum: f64 = seen.pods.iter().filter_map(|pod| Some(pod.queue.as_ref().ok()?.events)).sum();
    let pod = |_| PodObservation {
        name: String::new(),
        phase: PodPhase::Running {
            ready: true,
            started_at: Duration::ZERO,
            ready_changed_at: Duration::ZERO,
        },
        cpu: Err::<CpuSample, _>(MissingReason::NotReported),
        queue: Ok(QueueSample { oldest_age_seconds: 0.0, ..queue_sample(sum / f64::from(replicas)) }),
        downstream: Err(MissingReason::NotReported),
    };
    Observation { now, replicas, pods: (0..replicas).map(pod).collect() }
}

/// All scenarios under all autoscalers, as a Markdown table.
pub(crate) fn table(seed: u64) -> Result<String, PolicyError> {
    let mut text = String::from(
        "| load | autoscaler | recover s | late s | refused % | pod-seconds | most pods | changes | reversals |\n\
         |---|---|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    for scenario in &SCENARIOS {
        for autoscaler in &AUTOSCALERS {
            let Outcome {
                recover_seconds,
                late_seconds,
                rejected,
                pod_seconds,
                replicas_max,
                changes,
                reversals,
            } = run(scenario, autoscaler, seed)?;
            text += &format!(
                "| {} | {} | {recover_seconds:.0} | {late_seconds:.0} | {:.1} | {pod_seconds:.0} | {replicas_max} | \
                 {changes} | {reversals} |\n",
                scenario.name,
                autoscaler.name,
                rejected * 100.0,
            );
        }
    }
    Ok(text)
}
