//! What the status says, and its one write per change.
//!
//! Shares of load change with every scrape: alone, they are written only when they moved by a visible amount, and not more often
//! than [`VALUES_INTERVAL`], so that a cluster at rest is not written at all.

use std::time::Duration;

use certeus_crds::{DrainingPod, LedgerCluster, LedgerClusterStatus};
use certeus_operator::build::MANAGER;
use certeus_autoscale::MissingReason;
use certeus_operator::decide::{self, Observed, Outcome, PodScrape};
use certeus_operator::validate::{Cluster, DatabaseSource};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use super::Context;
use super::apply::Done;
use crate::run::clock;
use crate::run::error::{Class, Error};
use crate::run::owned::Workload;
use crate::run::pods::{ObjectKey, PodSeen};
use crate::run::scaling::Advice;
use crate::run::world::Snapshot;

/// Most condition messages are one sentence; an API server's refusal can be longer than anybody reads. The limit is the API's.
const MESSAGE_CHARS_MAX: usize = 1024;
/// A share of load that moved by less is the same.
const VALUE_STEP: f64 = 0.05;
const VALUES_INTERVAL: Duration = Duration::from_secs(10);

/// The status as it was written last.
pub(crate) struct Written {
    /// The version of the object that was known then: until the watch shows a later one, this is what stands there.
    over: String,
    status: LedgerClusterStatus,
    at: Duration,
}

/// What there is to report.
pub(crate) struct Seen<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) pods: &'a [PodSeen],
    pub(crate) advice: &'a Advice,
    pub(crate) workload: Option<&'a Workload>,
    pub(crate) done: &'a Done,
}

/// The status to be.
pub(crate) struct Report {
    pub(crate) status: LedgerClusterStatus,
}

impl Report {
    /// Of an object that cannot be carried out: what was said of its pods stays.
    pub(crate) fn invalid(snapshot: &Snapshot, error: &Error) -> Self {
        let generation = snapshot.cluster.generation;
        let mut status = snapshot.cluster.status.clone().unwrap_or_default();
        status.observed_generation = generation;
        for condition in &mut status.conditions {
            condition.observed_generation = generation;
        }
        let mut report = Self { status };
        report.set(generation, "Accepted", false, error.reason(), error.message());
        if !report.status.conditions.iter().any(|condition| condition.type_ == "Ready") {
            report.set(generation, "Ready", false, error.reason(), "nothing runs yet".to_owned());
        }
        report
    }

    pub(crate) fn new(snapshot: &Snapshot, seen: &Seen<'_>, error: Option<&Error>) -> Self {
        let Seen { cluster, pods, advice, workload, done } = *seen;
        let scrapes: Vec<PodScrape> = pods.iter().map(|pod| scrape(pod, advice)).collect();
        let observation = decide::observe(cluster, clock::now(), advice.replicas, &scrapes);
        let fixed = Outcome { desired: advice.desired, decision: None };
        let outcome = advice.outcome.as_ref().unwrap_or(&fixed);
        let before = snapshot.cluster.status.as_ref();
        let now = Timestamp::now();
        let observed = Observed { pods: &scrapes, observation: &observation, outcome, before, now };
        let mut report = Self { status: decide::status(cluster, observed) };
        let status = &mut report.status;
        status.image = workload.and_then(|workload| workload.image.clone());
        status.database = Some(match &cluster.database {
            DatabaseSource::Secret(reference) => format!("Secret {}, key {}", reference.name, reference.key),
            DatabaseSource::Embedded { .. } => "embedded, not for production".to_owned(),
        });
        let draining = advice.draining.iter();
        status.draining =
            draining.map(|drain| DrainingPod { name: drain.pod.clone(), message: Some(drain.message.clone()) }).collect();
        report.explain(cluster, snapshot, done, error);
        report
    }

    fn explain(&mut self, cluster: &Cluster, snapshot: &Snapshot, done: &Done, error: Option<&Error>) {
        let generation = cluster.generation;
        let refused = error.filter(|error| error.class() == Class::Invalid);
        match refused {
            Some(error) => self.set(generation, "Accepted", false, error.reason(), error.message()),
            None => self.set(generation, "Accepted", true, "Valid", "the specification can be carried out".to_owned()),
        }
        if let Some(error) = error {
            self.set(generation, "Degraded", true, error.reason(), error.message());
            if snapshot.workload(&cluster.name).is_none() {
                self.set(generation, "Ready", false, error.reason(), error.message());
            }
        }
        if cluster.stopped {
            self.set(generation, "Ready", false, "Stopped", "spec.stopped is true: no pods, volumes stay".to_owned());
        }
        if let Some(autoscaler) = &snapshot.autoscaler {
            let message = format!(
                "HorizontalPodAutoscaler {autoscaler} scales the same StatefulSet, so its number of pods is left to it; \
                 remove it, or let it scale the LedgerCluster with autoscaling.enabled false"
            );
            self.set(generation, "ScalingActive", false, "AmbiguousOwner", message);
        }
        if cluster.paused {
            let message = "spec.paused is true: nothing is changed".to_owned();
            self.set(generation, "Progressing", false, "Paused", message);
        } else if cluster.dry_run {
            let message = match done.pending.as_slice() {
                [] => "spec.dryRun is true, and nothing would be changed".to_owned(),
                pending => format!("spec.dryRun is true; without it: {}", pending.join(", ")),
            };
            self.set(generation, "Progressing", false, "DryRun", message);
        }
    }

    fn set(&mut self, generation: Option<i64>, type_: &str, holds: bool, reason: &str, message: String) {
        let mut message = message;
        if let Some((end, _)) = message.char_indices().nth(MESSAGE_CHARS_MAX) {
            message.truncate(end);
        }
        let status = if holds { "True" } else { "False" };
        let conditions = &mut self.status.conditions;
        let old = conditions.iter().position(|condition| condition.type_ == type_);
        let same = old.and_then(|index| conditions.get(index)).filter(|old| old.status == status);
        let condition = Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message,
            last_transition_time: same.map_or_else(|| Time(Timestamp::now()), |old| old.last_transition_time.clone()),
            observed_generation: generation,
        };
        match old {
            Some(index) => conditions[index] = condition,
            None => conditions.push(condition),
        }
    }

    /// Takes the times of transitions from the status that stands there.
    fn keep_transitions(&mut self, before: &LedgerClusterStatus) {
        for condition in &mut self.status.conditions {
            let same = |old: &&Condition| old.type_ == condition.type_ && old.status == condition.status;
            if let Some(old) = before.conditions.iter().find(same) {
                condition.last_transition_time = old.last_transition_time.clone();
            }
        }
    }
}

/// A pod's scrapes as the scaler has them, in the phase in which the watch has it.
fn scrape(pod: &PodSeen, advice: &Advice) -> PodScrape {
    match advice.scrapes.iter().find(|scrape| scrape.name == pod.name) {
        Some(scrape) => PodScrape { phase: pod.phase, ..scrape.clone() },
        None => PodScrape {
            name: pod.name.clone(),
            phase: pod.phase,
            latest: Err(MissingReason::TooFewScrapes),
            previous: None,
        },
    }
}

/// Writes the status if it says anything new.
pub(crate) async fn write(
    context: &Context,
    key: &ObjectKey,
    written: &mut Option<Written>,
    snapshot: &Snapshot,
    mut report: Report,
) -> Result<(), Error> {
    let now = clock::now();
    // The watch may not have brought our own last write yet.
    let own = written.as_ref().filter(|written| written.over == snapshot.cluster.resource_version);
    let before = own.map(|own| &own.status).or(snapshot.cluster.status.as_ref());
    if let Some(before) = before {
        report.keep_transitions(before);
        let age = written.as_ref().map_or(VALUES_INTERVAL, |written| now.saturating_sub(written.at));
        if is_same(before, &report.status, age) {
            return Ok(());
        }
    }
    let api: Api<LedgerCluster> = Api::namespaced(context.client.clone(), &key.namespace);
    // An apply takes away what is no longer said. The uid keeps it from an object that has taken this one's place.
    let patch = json!({
        "apiVersion": "certeus.io/v1alpha1", "kind": "LedgerCluster",
        "metadata": { "uid": snapshot.cluster.uid }, "status": report.status,
    });
    context.metrics.writes.with_label_values(&["LedgerCluster", "status"]).inc();
    let params = PatchParams::apply(MANAGER).force();
    match api.patch_status(&key.name, &params, &Patch::Apply(&patch)).await {
        Ok(_) => {}
        // Deleted meanwhile, or made anew: the watch will tell.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => return Ok(()),
        Err(error) => return Err(Error::api("write the status", error)),
    }
    *written = Some(Written {
        over: snapshot.cluster.resource_version.clone(),
        status: report.status,
        at: now,
    });
    Ok(())
}

/// Whether writing `new` over `old` would tell nobody anything, `age` after the last write.
fn is_same(old: &LedgerClusterStatus, new: &LedgerClusterStatus, age: Duration) -> bool {
    if old == new {
        return true;
    }
    let mut calm = new.clone();
    for trigger in &mut calm.triggers {
        let Some(before) = old.triggers.iter().find(|old| old.name == trigger.name) else { return false };
        let (Some(was), Some(is)) = (before.value, trigger.value) else { continue };
        if (was - is).abs() < VALUE_STEP || age < VALUES_INTERVAL {
            trigger.value = before.value;
            trigger.proposed_replicas = before.proposed_replicas;
        }
    }
    *old == calm
}

#[cfg(test)]
mod tests {
    use certeus_crds::TriggerStatus;

    use super::*;

    fn status(value: Option<f64>, ready_replicas: u32) -> LedgerClusterStatus {
        let trigger = TriggerStatus { name: "cpu".to_owned(), value, proposed_replicas: None, error: None };
        LedgerClusterStatus { ready_replicas, triggers: vec![trigger], ..LedgerClusterStatus::default() }
    }

    #[test]
    fn shares_of_load_alone_are_written_seldom() {
        let (soon, later) = (Duration::from_secs(1), VALUES_INTERVAL);
        let old = status(Some(0.5), 2);
        assert!(is_same(&old, &status(Some(0.5), 2), later));
        assert!(is_same(&old, &status(Some(0.54), 2), later));
        assert!(is_same(&old, &status(Some(0.9), 2), soon));
        assert!(!is_same(&old, &status(Some(0.9), 2), later));
        assert!(!is_same(&old, &status(Some(0.5), 3), soon));
        assert!(!is_same(&old, &status(None, 2), soon), "it could not be measured");
    }
}
