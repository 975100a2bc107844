//! Kubernetes Events about a cluster: what went wrong, that it is right again, and each change of the number of pods. Only when
//! that changes, and never so important that a reconcile fails for it.

use certeus_crds::{GROUP, LastDecision, LedgerClusterStatus, VERSION};
use certeus_operator::decide::{ConditionReason, ConditionType, ProblemReason};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::runtime::events::{Event, EventType};

use super::Context;
use crate::run::error::Error;
use crate::run::events::{self, event};
use crate::run::pods::ObjectKey;
use crate::run::world::Snapshot;

/// What was told last.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// Reason and message of the trouble there is; `None` before anything was looked at.
    problem: Option<Option<(&'static str, String)>>,
    /// What pods are in trouble with, also while something worse hides it; `None` before anything was looked at.
    pods: Option<Option<&'static str>>,
    decision: Option<LastDecision>,
}

/// What may be worth an Event.
pub(crate) struct News<'a> {
    /// The status that stands there.
    pub(crate) before: Option<&'a LedgerClusterStatus>,
    /// The one that takes its place.
    pub(crate) status: &'a LedgerClusterStatus,
    /// What this reconcile failed with.
    pub(crate) error: Option<&'a Error>,
}

pub(crate) async fn publish(
    context: &Context,
    key: &ObjectKey,
    told: &mut Told,
    snapshot: &Snapshot,
    news: &News<'_>,
) {
    let News { before, status, error } = *news;
    let mut events = Vec::new();
    events.extend(pods_event(told, before, status));
    let problem =
        error.filter(|error| error.class().is_news()).map(|error| (error.reason(), error.message()));
    // Trouble that passes by itself is no recovery either.
    if error.is_none() || problem.is_some() {
        events.extend(problem_event(told, snapshot, problem.as_ref()));
        told.problem = Some(problem);
    }
    let before =
        told.decision.as_ref().or(snapshot.cluster.status.as_ref().and_then(|s| s.last_decision.as_ref()));
    if let Some(decision) = &status.last_decision {
        if before.is_none_or(|before| {
            (before.from, before.to, &before.time) != (decision.from, decision.to, &decision.time)
        }) {
            events.push(event(EventType::Normal, &decision.reason, "Scale", &decision.message));
        }
        told.decision = Some(decision.clone());
    }
    let reference = ObjectReference {
        api_version: Some(format!("{GROUP}/{VERSION}")),
        kind: Some("LedgerCluster".to_owned()),
        namespace: Some(key.namespace.to_string()),
        name: Some(key.name.to_string()),
        uid: Some(snapshot.cluster.uid.clone()),
        // So that a second change or trouble of one reason shows its own text.
        resource_version: Some(snapshot.cluster.resource_version.clone()),
        ..ObjectReference::default()
    };
    for event in events {
        events::publish(&context.recorder, &context.metrics, &event, &reference).await;
    }
}

fn problem_event(
    told: &Told,
    snapshot: &Snapshot,
    problem: Option<&(&'static str, String)>,
) -> Option<Event> {
    match (problem, &told.problem) {
        (Some(problem), Some(Some(before))) if problem == before => None,
        (Some((reason, message)), before) => {
            // Told by the operator before this one.
            let standing = snapshot.cluster.status.iter().flat_map(|status| &status.conditions);
            let mut standing =
                standing.filter(|condition| condition.reason == *reason && condition.message == *message);
            let known = before.is_none() && standing.next().is_some();
            (!known).then(|| event(EventType::Warning, reason, "Reconcile", message))
        }
        (None, Some(Some((reason, _)))) => {
            Some(event(EventType::Normal, "Recovered", "Reconcile", &format!("{reason} is over")))
        }
        (None, Some(None) | None) => None,
    }
}

/// Of pods that began to crash, cannot start or cannot drain, or that are over it.
fn pods_event(
    told: &mut Told,
    before: Option<&LedgerClusterStatus>,
    status: &LedgerClusterStatus,
) -> Option<Event> {
    let degraded = |status: &LedgerClusterStatus| {
        let kind = ConditionType::Degraded.as_str();
        status.conditions.iter().find(|condition| condition.type_ == kind).cloned()
    };
    let now = degraded(status)?;
    let was = told.pods.get_or_insert_with(|| before.and_then(degraded).as_ref().and_then(pods_reason));
    match (*was, pods_reason(&now)) {
        (before, Some(is)) if before != Some(is) => {
            *was = Some(is);
            Some(event(EventType::Warning, is, "Watch", &now.message))
        }
        (Some(before), None) if now.status == "False" => {
            *was = None;
            Some(event(EventType::Normal, "Recovered", "Watch", &format!("{before} is over")))
        }
        (_, _) => None,
    }
}

fn pods_reason(degraded: &Condition) -> Option<&'static str> {
    use ConditionReason::{ImagePullFailed, PodsCrashing, PodsNotStarted, PodsUnschedulable};
    let reasons =
        [PodsCrashing, ImagePullFailed, PodsNotStarted, PodsUnschedulable].map(ConditionReason::as_str);
    let mut reasons = reasons.into_iter().chain([ProblemReason::DrainStuck.as_str()]);
    reasons.find(|reason| *reason == degraded.reason)
}

#[cfg(test)]
mod tests {
    use ConditionReason as R;
    use jiff::Timestamp;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    fn status(reason: &str) -> LedgerClusterStatus {
        let degraded = Condition {
            type_: ConditionType::Degraded.as_str().to_owned(),
            status: if reason == R::AsExpected.as_str() { "False" } else { "True" }.to_owned(),
            reason: reason.to_owned(),
            message: "why".to_owned(),
            last_transition_time: Time(Timestamp::UNIX_EPOCH),
            observed_generation: None,
        };
        LedgerClusterStatus { conditions: vec![degraded], ..LedgerClusterStatus::default() }
    }

    #[test]
    fn trouble_of_pods_is_told_once_and_is_over_when_nothing_hides_it_any_more() {
        let [well, crashing, outage] =
            [R::AsExpected, R::PodsCrashing, R::DatabaseUnavailable].map(R::as_str);
        let stuck = ProblemReason::DrainStuck.as_str();
        let seen =
            [well, crashing, crashing, outage, crashing, outage, well, well, stuck, stuck, crashing, well];
        let expected = [
            "",
            "PodsCrashing: why",
            "",
            "",
            "",
            "",
            "Recovered: PodsCrashing is over",
            "",
            "DrainStuck: why",
            "",
            "PodsCrashing: why",
            "Recovered: PodsCrashing is over",
        ];
        let mut told = Told::default();
        let events = seen.map(|reason| {
            let event = pods_event(&mut told, Some(&status(well)), &status(reason));
            event.map_or(String::new(), |event| format!("{}: {}", event.reason, event.note.unwrap()))
        });
        assert_eq!(events, expected);
        // By the operator before this one.
        assert!(pods_event(&mut Told::default(), Some(&status(stuck)), &status(stuck)).is_none());
    }
}
