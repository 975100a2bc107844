//! What a decision means for a `LedgerCluster`'s status. Equal circumstances give equal status, so that nothing is written when
//! nothing changed: the last decision stays the last for another number of pods, and measured values move in steps.

use certeus_autoscale::{Decision, Reason};
use certeus_crds::{
    DrainingPod, FieldError, LastDecision, LedgerClusterStatus, SpooledVolume, TriggerStatus,
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::PodScrape;
use super::conditions::{self, Count, Finding};
use super::words::{ConditionType, PodsWaiting, Problem};
use crate::build::selector_text;
use crate::validate::{Cluster, DatabaseSource};

/// Measured values are never quite at rest. A change of less than this is not shown.
const VALUE_STEP: f64 = 0.05;
/// Longer than anybody reads; what an API server says of a refusal can be longer.
const MESSAGE_CHARACTERS_MAX: usize = 1024;
/// Draining pods that are listed.
const DRAINING_MAX: usize = 100;

/// What there is to report.
#[derive(Clone, Copy, Debug)]
pub struct Observed<'a> {
    /// The pods' scrapes.
    pub pods: &'a [PodScrape],
    /// Pods wanted.
    pub desired: u32,
    /// Pods asked for as things are: not those wanted while nothing may be changed.
    pub applied: u32,
    /// The engine's answer, if it was asked.
    pub decision: Option<&'a Decision>,
    /// Pods that drain.
    pub draining: &'a [DrainingPod],
    /// What is around the cluster in Kubernetes; `None` on one machine without it.
    pub surroundings: Option<Surroundings<'a>>,
    /// The status so far: transition times and the last decision carry over.
    pub before: Option<&'a LedgerClusterStatus>,
    /// The time of day.
    pub now: Timestamp,
}

/// What is around a cluster in Kubernetes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Surroundings<'a> {
    /// Image of the workload.
    pub image: Option<&'a str>,
    /// Pods whose template is not the workload's newest.
    pub outdated_pods: u32,
    /// What keeps the cluster from being what its spec says, the worst first.
    pub problems: &'a [Problem],
    /// Pods that are restarted again and again, and how they ended last, in a fixed order.
    pub crashing: &'a [String],
    /// Why pods do not start, the worst first.
    pub waiting: &'a [PodsWaiting],
    /// Volumes on which requests wait since a stop, in a fixed order.
    pub spooled: &'a [SpooledVolume],
    /// Kind and name of what else sets the workload's replicas, in a fixed order.
    pub autoscalers: &'a [String],
    /// What applying would do, such as `create Service demo`, in a fixed order; shown in a dry run.
    pub pending: &'a [String],
    /// Public halves of the signing keys; empty when there is no usable key, `None` while that is not known.
    pub verifier_keys: Option<&'a [String]>,
    /// Whether the Kubernetes cluster knows ServiceMonitors.
    pub service_monitors: bool,
}

/// The status of `cluster`.
#[must_use]
pub fn status(cluster: &Cluster, observed: &Observed<'_>) -> LedgerClusterStatus {
    let Observed { pods, desired, applied: _, decision, draining, surroundings, before, now } = *observed;
    let count = Count::of(pods);
    let findings = conditions::findings(cluster, observed, &count);
    let conditions = findings.into_iter().map(|finding| finding.at(cluster.generation, before, now));
    let mut draining = draining.to_vec();
    draining.sort_by(|one, other| one.name.cmp(&other.name));
    draining.truncate(DRAINING_MAX);
    LedgerClusterStatus {
        observed_generation: cluster.generation,
        replicas: count.existing,
        ready_replicas: count.ready,
        desired_replicas: desired,
        selector: Some(selector_text(cluster)),
        triggers: decision.map(|decision| triggers(decision, before)).unwrap_or_default(),
        last_decision: latest_decision(decision, before, now),
        draining,
        spooled_volumes: surroundings.map(|around| around.spooled.to_vec()).unwrap_or_default(),
        image: surroundings.and_then(|surroundings| surroundings.image).map(str::to_owned),
        database: Some(match &cluster.database {
            DatabaseSource::Secret { url, .. } => format!("Secret {}, key {}", url.name, url.key),
            DatabaseSource::Embedded { .. } => "embedded, not for production".to_owned(),
        }),
        verifier_keys: verifier_keys(surroundings.as_ref(), before),
        conditions: conditions.collect(),
    }
}

/// Those of before are what the log was signed with, whether or not they can be read now.
fn verifier_keys(around: Option<&Surroundings<'_>>, before: Option<&LedgerClusterStatus>) -> Vec<String> {
    let Some(around) = around else { return Vec::new() };
    match around.verifier_keys {
        Some(keys) if !keys.is_empty() => keys.to_vec(),
        _ => before.map(|before| before.verifier_keys.clone()).unwrap_or_default(),
    }
}

/// The status of a cluster whose spec cannot be carried out: `errors` say why. What ran before goes on, and so does what is
/// said of it.
#[must_use]
pub fn invalid(
    generation: Option<i64>,
    before: Option<&LedgerClusterStatus>,
    errors: &[FieldError],
    now: Timestamp,
) -> LedgerClusterStatus {
    let mut status = before.cloned().unwrap_or_default();
    status.observed_generation = generation;
    let accepted = conditions::accepted(Err(errors)).at(generation, before, now);
    match status.conditions.iter_mut().find(|old| old.type_ == accepted.type_) {
        Some(old) => *old = accepted,
        None => status.conditions.push(accepted),
    }
    let ready = ConditionType::Ready.as_str();
    if !status.conditions.iter().any(|old| old.type_ == ready) {
        status.conditions.insert(0, conditions::never_ready().at(generation, before, now));
    }
    status
}

impl Finding {
    /// As a condition. The time is that of the last change of its status, not of its reason or message.
    fn at(self, generation: Option<i64>, before: Option<&LedgerClusterStatus>, now: Timestamp) -> Condition {
        let Self { kind, holds, reason, message } = self;
        let status = match holds {
            Some(true) => "True",
            Some(false) => "False",
            None => "Unknown",
        };
        let same = |old: &&Condition| old.type_ == kind.as_str() && old.status == status;
        let mut message = message;
        if let Some((end, _)) = message.char_indices().nth(MESSAGE_CHARACTERS_MAX) {
            message.truncate(end);
        }
        let kept = before.and_then(|before| before.conditions.iter().find(same));
        Condition {
            type_: kind.as_str().to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message,
            last_transition_time: kept.map_or(Time(now), |old| old.last_transition_time.clone()),
            observed_generation: generation,
        }
    }
}

/// What the triggers measured; what was shown before where that is near enough and nothing follows from the difference.
fn triggers(decision: &Decision, before: Option<&LedgerClusterStatus>) -> Vec<TriggerStatus> {
    let steady = decision.desired == decision.current;
    let latest = decision.triggers.iter().map(|report| {
        let measured = report.outcome.as_ref();
        TriggerStatus {
            name: report.kind.to_string(),
            value: measured.ok().map(|measured| (measured.value * 100.0).round() / 100.0),
            proposed_replicas: measured.ok().map(|measured| measured.proposal),
            error: measured.err().map(ToString::to_string),
        }
    });
    let near = |old: &TriggerStatus, new: &TriggerStatus| match (old.value, new.value) {
        (Some(old), Some(new)) => (old - new).abs() < VALUE_STEP,
        _ => false,
    };
    let shown = |new: TriggerStatus| {
        let old = before.and_then(|before| before.triggers.iter().find(|old| old.name == new.name));
        old.filter(|old| steady && near(old, &new)).cloned().unwrap_or(new)
    };
    latest.map(shown).collect()
}

fn latest_decision(
    decision: Option<&Decision>,
    before: Option<&LedgerClusterStatus>,
    now: Timestamp,
) -> Option<LastDecision> {
    let before = before.and_then(|before| before.last_decision.clone());
    let Some(decision) = decision.filter(|decision| decision.desired != decision.current) else {
        return before;
    };
    let repeated =
        before.as_ref().is_some_and(|old| (old.from, old.to) == (decision.current, decision.desired));
    if repeated { before } else { Some(last_decision(decision, now)) }
}

/// A decision that changed the number of pods at `time`, as status.
#[must_use]
pub fn last_decision(decision: &Decision, time: Timestamp) -> LastDecision {
    // The step that set the count may be a limit; what happened is still growth or shrinking.
    let reason = if decision.desired > decision.current { Reason::ScaleUp } else { Reason::ScaleDown };
    LastDecision {
        time: Time(time),
        from: decision.current,
        to: decision.desired,
        reason: reason.as_str().to_owned(),
        message: decision.to_string(),
    }
}
