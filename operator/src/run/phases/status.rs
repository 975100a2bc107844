//! What the status says, and its one write per change.

use std::time::Duration;

use certeus_autoscale::MissingReason;
use certeus_crds::{DrainingPod, FieldError, LedgerCluster, LedgerClusterStatus, SpooledVolume};
use certeus_operator::build::{self, MANAGER};
use certeus_operator::counted;
use certeus_operator::decide::{
    self, ConditionReason, Observed, PodScrape, PodsWaiting, Problem, ProblemReason, Surroundings,
};
use certeus_operator::validate::Cluster;
use jiff::Timestamp;
use kube::Api;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use serde_json::json;

use super::Context;
use crate::run::clock;
use crate::run::error::{Class, Error};
use crate::run::owned::Workload;
use crate::run::pods::{ObjectKey, PodSeen};
use crate::run::scaling::{Advice, ParkedVolumes};
use crate::run::trouble::{Kind, Trouble};
use crate::run::world::Snapshot;

/// The status as it was written last, while the watch does not show it yet.
pub(crate) struct Written {
    /// The version of the object that was known then: until the watch shows a later one, this is what stands there.
    over: String,
    status: LedgerClusterStatus,
}

/// What there is to report.
pub(crate) struct Seen<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) pods: &'a [PodSeen],
    pub(crate) advice: &'a Advice,
    pub(crate) workload: Option<&'a Workload>,
    /// In a dry run: what would be done.
    pub(crate) pending: &'a [String],
    /// Public halves of the signing keys; none if there is no key that can sign, `None` while that is not known.
    pub(crate) verifier_keys: Option<&'a [String]>,
    /// The worst first.
    pub(crate) errors: &'a [Error],
}

/// Lets go of what was written once the watch shows it.
pub(crate) fn forget(written: &mut Option<Written>, snapshot: &Snapshot) {
    written.take_if(|written| written.over != snapshot.cluster.resource_version);
}

/// The status that stands there.
pub(crate) fn before<'a>(
    written: Option<&'a Written>,
    snapshot: &'a Snapshot,
) -> Option<&'a LedgerClusterStatus> {
    written.map(|own| &own.status).or(snapshot.cluster.status.as_ref())
}

/// The volumes that the status names, on which requests wait since a stop.
pub(crate) fn parked(written: Option<&Written>, snapshot: &Snapshot) -> ParkedVolumes {
    let volumes = before(written, snapshot).into_iter().flat_map(|status| &status.spooled_volumes);
    let ordinal = |name: &str| name.rsplit_once('-')?.1.parse().ok();
    volumes.filter_map(|volume| Some((ordinal(&volume.name)?, volume.records))).collect()
}

/// The status of an object that cannot be carried out.
pub(crate) fn invalid(written: Option<&Written>, snapshot: &Snapshot, error: &Error) -> LedgerClusterStatus {
    let other = [FieldError::new("spec", error.message())];
    let errors = match error {
        Error::Invalid(errors) => errors,
        _ => &other[..],
    };
    decide::invalid(snapshot.cluster.generation, before(written, snapshot), errors, Timestamp::now())
}

/// The status of a cluster.
pub(crate) fn status(written: Option<&Written>, snapshot: &Snapshot, seen: &Seen<'_>) -> LedgerClusterStatus {
    let Seen { cluster, pods, advice, workload, pending, verifier_keys, errors } = *seen;
    let scrapes: Vec<PodScrape> = pods.iter().map(|pod| scrape(pod, advice)).collect();
    let draining = advice.draining.iter();
    let draining: Vec<DrainingPod> = draining
        .map(|drain| DrainingPod { name: drain.pod.clone(), message: drain.message.clone() })
        .collect();
    let newest = workload.and_then(|workload| workload.update_revision.as_ref());
    let outdated: Vec<&PodSeen> = pods
        .iter()
        .filter(|pod| newest.is_some() && pod.revision.is_some() && pod.revision.as_ref() != newest)
        .collect();
    let stuck = advice.draining.iter().filter(|drain| drain.state.needs_help()).map(|drain| {
        let why = drain.message.as_deref().unwrap_or("it does not say why");
        let waiting = outdated.iter().filter(|pod| pod.name != drain.pod).count();
        Problem {
            reason: ProblemReason::DrainStuck,
            message: format!("pod {} cannot drain: {why}{}", drain.pod, held_up(waiting)),
        }
    });
    // That somebody else was faster is no trouble: it is looked at again at once.
    let errors = errors.iter().filter(|error| error.class() != Class::Conflict);
    let problems: Vec<Problem> = errors.map(Error::problem).chain(stuck).collect();
    let autoscalers: Vec<String> =
        snapshot.autoscaler.iter().map(|name| format!("HorizontalPodAutoscaler {name}")).collect();
    let spooled = advice.parked.iter();
    let spooled: Vec<SpooledVolume> = spooled
        .map(|(ordinal, records)| SpooledVolume {
            name: build::spool_claim_name(cluster, *ordinal),
            records: *records,
        })
        .collect();
    let crashing: Vec<String> = pods.iter().filter_map(crashing).collect();
    let waiting = waiting(pods, clock::now());
    let before = before(written, snapshot);
    let observed = Observed {
        pods: &scrapes,
        desired: advice.desired,
        applied: workload.map_or(0, |workload| workload.replicas),
        decision: advice.outcome.as_ref().and_then(|outcome| outcome.decision.as_ref()),
        draining: &draining,
        surroundings: Some(Surroundings {
            image: workload.and_then(|workload| workload.image.as_deref()),
            outdated_pods: u32::try_from(outdated.len()).unwrap_or(u32::MAX),
            problems: &problems,
            crashing: &crashing,
            waiting: &waiting,
            spooled: &spooled,
            autoscalers: &autoscalers,
            pending,
            verifier_keys,
            service_monitors: snapshot.service_monitors,
        }),
        before,
        now: Timestamp::now(),
    };
    let mut status = decide::status(cluster, &observed);
    status.last_decision = match &advice.last_change {
        Some(change) => Some(decide::last_decision(&change.decision, clock::timestamp(change.at))),
        // The one before this operator's time.
        None => before.and_then(|before| before.last_decision.clone()),
    };
    status
}

/// What to do about pods that a rollout does not come to: Kubernetes waits until the one above them is ready.
fn held_up(pods: usize) -> String {
    if pods == 0 {
        return String::new();
    }
    let pods = counted(u32::try_from(pods).unwrap_or(u32::MAX), "pod");
    format!(
        ". {pods} with an older template may wait for it: `kubectl delete pod`, one by one, brings them back with the new one"
    )
}

/// What there is to say of a pod that crashes.
fn crashing(pod: &PodSeen) -> Option<String> {
    let Trouble { kind: Kind::Crash { exit_code }, text, .. } = pod.trouble.as_deref()? else { return None };
    let code = exit_code.map(|code| format!(" with exit code {code}")).unwrap_or_default();
    let colon = if text.is_empty() { "" } else { ": " };
    Some(format!("pod {} is restarted again and again, ended last{code}{colon}{text}", pod.name))
}

/// What there is to say of pods that do not start: of each sort of trouble once, in the words of the first pod, as a hundred
/// pods mostly have one cause.
fn waiting(pods: &[PodSeen], now: Duration) -> Vec<PodsWaiting> {
    let told = pods.iter().filter_map(|pod| Some((pod, pod.trouble.as_deref()?)));
    let told: Vec<_> = told.filter(|(_, trouble)| trouble.from <= now).collect();
    let of = |kind: Kind, reason: ConditionReason, what: &str, advice: &str| {
        let mut pods = told.iter().filter(|(_, trouble)| trouble.kind == kind);
        let (first, Trouble { text, .. }) = pods.next()?;
        let others = match pods.count() {
            0 => String::new(),
            others => format!(" and {}", counted(u32::try_from(others).unwrap_or(u32::MAX), "other")),
        };
        let message = format!("{what} for pod {}{others}: {text}; {advice}", first.name);
        Some(PodsWaiting { reason, message })
    };
    [
        of(
            Kind::Image,
            ConditionReason::ImagePullFailed,
            "an image cannot be had",
            "check spec.image and spec.version, and that nodes may pull from that registry",
        ),
        of(
            Kind::Start,
            ConditionReason::PodsNotStarted,
            "a container cannot be started",
            "put right what is named here; kubectl describe pod may tell more",
        ),
        of(
            Kind::Prepare,
            ConditionReason::PodsNotStarted,
            "volumes or network are not ready on the node",
            "kubectl describe pod tells why",
        ),
        of(
            Kind::Schedule,
            ConditionReason::PodsUnschedulable,
            "there is no node",
            "make room, or change spec.resources, spec.scheduling or spec.spool.storageClassName",
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// When there will be more to say of pods though nothing happens.
pub(crate) fn due(pods: &[PodSeen], now: Duration) -> Option<Duration> {
    let from = pods.iter().filter_map(|pod| Some(pod.trouble.as_deref()?.from));
    from.filter(|from| *from > now).min()
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
    status: LedgerClusterStatus,
) -> Result<(), Error> {
    if before(written.as_ref(), snapshot) == Some(&status) {
        return Ok(());
    }
    // The reply is not read: the object may be one that cannot be.
    let kind = ApiResource::erase::<LedgerCluster>(&());
    let api: Api<DynamicObject> = Api::namespaced_with(context.client.clone(), &key.namespace, &kind);
    // An apply takes away what is no longer said. The uid keeps it from an object that has taken this one's place.
    let patch = json!({
        "apiVersion": "certeus.io/v1alpha1", "kind": "LedgerCluster",
        "metadata": { "uid": snapshot.cluster.uid }, "status": status,
    });
    context.metrics.writes.with_label_values(&["LedgerCluster", "status"]).inc();
    let params = PatchParams::apply(MANAGER).force();
    match api.patch_status(&key.name, &params, &Patch::Apply(&patch)).await {
        Ok(_) => {}
        // Deleted meanwhile, or made anew: the watch will tell.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => return Ok(()),
        Err(error) => return Err(Error::api("write the status", error)),
    }
    *written = Some(Written { over: snapshot.cluster.resource_version.clone(), status });
    Ok(())
}
