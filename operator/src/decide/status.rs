//! What a decision means for a `LedgerCluster`'s status. Equal circumstances give equal status, so that nothing is written when
//! nothing changed: values are rounded, and the last decision stays the last that changed the number of pods.

use certeus_autoscale::{Decision, Observation, PodPhase, Reason};
use certeus_crds::{LastDecision, LedgerClusterStatus, TriggerStatus};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::{Outcome, PodScrape};
use crate::build::selector_text;
use crate::validate::{Cluster, Scaling};

/// What there is to report.
#[derive(Clone, Copy, Debug)]
pub struct Observed<'a> {
    /// The pods' scrapes.
    pub pods: &'a [PodScrape],
    /// What was made of them.
    pub observation: &'a Observation,
    /// The decision.
    pub outcome: &'a Outcome,
    /// The status so far: transition times and the last decision carry over.
    pub before: Option<&'a LedgerClusterStatus>,
    /// The time of day.
    pub now: Timestamp,
}

/// The status of `cluster`.
#[must_use]
pub fn status(cluster: &Cluster, observed: Observed<'_>) -> LedgerClusterStatus {
    let Observed { pods, observation, outcome, before, now } = observed;
    let exists = |phase: PodPhase| phase != PodPhase::Failed;
    let ready = |phase: PodPhase| matches!(phase, PodPhase::Running { ready: true, .. });
    let replicas = count(observation, exists);
    let ready_replicas = count(observation, ready);
    let conditions = [
        ready_condition(cluster, outcome, ready_replicas),
        progressing_condition(outcome, replicas, ready_replicas),
        scaling_active_condition(cluster, outcome),
        scaling_limited_condition(outcome),
        degraded_condition(pods),
    ];
    let condition = |(type_, holds, reason, message): Finding| {
        let status = if holds { "True" } else { "False" };
        let same = |old: &&Condition| old.type_ == type_ && old.status == status;
        let kept = before.and_then(|before| before.conditions.iter().find(same));
        Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message,
            last_transition_time: kept.map_or(Time(now), |old| old.last_transition_time.clone()),
            observed_generation: cluster.generation,
        }
    };
    LedgerClusterStatus {
        observed_generation: cluster.generation,
        replicas,
        ready_replicas,
        desired_replicas: outcome.desired,
        selector: Some(selector_text(cluster)),
        triggers: outcome.decision.iter().flat_map(trigger_status).collect(),
        last_decision: last_decision(outcome, before, now),
        draining: Vec::new(),
        image: None,
        database: None,
        verifier_keys: Vec::new(),
        conditions: conditions.into_iter().map(condition).collect(),
    }
}

/// Type, whether it holds, reason and message of a condition.
type Finding = (&'static str, bool, &'static str, String);

fn count(observation: &Observation, is: impl Fn(PodPhase) -> bool) -> u32 {
    let count = observation.pods.iter().filter(|pod| is(pod.phase)).count();
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn ready_condition(cluster: &Cluster, outcome: &Outcome, ready: u32) -> Finding {
    // While a surge is being answered the cluster is as ready as it was before.
    let needed = cluster.scaling.min().min(outcome.desired);
    let message = format!("{ready} of at least {needed} pods take events");
    if ready >= needed {
        ("Ready", true, "PodsReady", message)
    } else {
        ("Ready", false, "PodsNotReady", message)
    }
}

fn progressing_condition(outcome: &Outcome, replicas: u32, ready: u32) -> Finding {
    let desired = outcome.desired;
    if replicas < desired {
        ("Progressing", true, "AddingPods", format!("{replicas} of {desired} pods exist"))
    } else if replicas > desired {
        ("Progressing", true, "RemovingPods", format!("{} pods drain", replicas - desired))
    } else if ready < desired {
        ("Progressing", true, "PodsStarting", format!("{ready} of {desired} pods are ready"))
    } else {
        ("Progressing", false, "Stable", format!("all {desired} pods are ready"))
    }
}

fn scaling_active_condition(cluster: &Cluster, outcome: &Outcome) -> Finding {
    let Some(decision) = &outcome.decision else {
        return match (cluster.paused, &cluster.scaling) {
            (true, _) => ("ScalingActive", false, "Paused", "spec.paused is true".to_owned()),
            (false, Scaling::Fixed(_) | Scaling::Auto(_)) => {
                ("ScalingActive", false, "Disabled", "spec.autoscaling.enabled is false".to_owned())
            }
        };
    };
    let failures = decision.triggers.iter().filter_map(|report| {
        let failure = report.outcome.as_ref().err()?;
        Some(format!("{}: {failure}", report.kind))
    });
    let failures: Vec<String> = failures.collect();
    if failures.is_empty() {
        ("ScalingActive", true, "Measured", "every trigger has a value".to_owned())
    } else {
        ("ScalingActive", false, "MeasurementFailed", failures.join("; "))
    }
}

fn scaling_limited_condition(outcome: &Outcome) -> Finding {
    let last = outcome.decision.as_ref().and_then(|decision| decision.adjustments.last());
    match last {
        Some(adjustment) => {
            let message = format!("{} pods instead of {}", adjustment.to, adjustment.from);
            ("ScalingLimited", true, adjustment.reason.as_str(), message)
        }
        None => ("ScalingLimited", false, "NotLimited", "the triggers get what they ask for".to_owned()),
    }
}

fn degraded_condition(pods: &[PodScrape]) -> Finding {
    let is_without_database =
        |pod: &&PodScrape| pod.latest.as_ref().is_ok_and(|sample| sample.database_up == Ok(0.0));
    let without_database = pods.iter().filter(is_without_database).count();
    let failed = pods.iter().filter(|pod| pod.phase == PodPhase::Failed).count();
    if without_database > 0 {
        let message = format!("{without_database} of {} pods cannot reach the database", pods.len());
        ("Degraded", true, "DatabaseUnavailable", message)
    } else if failed > 0 {
        ("Degraded", true, "PodsFailed", format!("{failed} pods ended and were not restarted"))
    } else {
        ("Degraded", false, "AsExpected", String::new())
    }
}

fn trigger_status(decision: &Decision) -> impl Iterator<Item = TriggerStatus> {
    decision.triggers.iter().map(|report| {
        let measured = report.outcome.as_ref();
        TriggerStatus {
            name: report.kind.to_string(),
            value: measured.ok().map(|measured| (measured.value * 100.0).round() / 100.0),
            proposed_replicas: measured.ok().map(|measured| measured.proposal),
            error: measured.err().map(ToString::to_string),
        }
    })
}

fn last_decision(
    outcome: &Outcome,
    before: Option<&LedgerClusterStatus>,
    now: Timestamp,
) -> Option<LastDecision> {
    let before = before.and_then(|before| before.last_decision.clone());
    let Some(decision) = outcome.decision.as_ref().filter(|decision| decision.desired != decision.current)
    else {
        return before;
    };
    // The step that set the count may be a limit; what happened is still growth or shrinking.
    let reason = if decision.desired > decision.current { Reason::ScaleUp } else { Reason::ScaleDown };
    let repeated =
        before.as_ref().is_some_and(|old| (old.from, old.to) == (decision.current, decision.desired));
    if repeated {
        return before;
    }
    Some(LastDecision {
        time: Time(now),
        from: decision.current,
        to: decision.desired,
        reason: reason.as_str().to_owned(),
        message: decision.to_string(),
    })
}
