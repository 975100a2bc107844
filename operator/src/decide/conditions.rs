//! What each condition of a `LedgerCluster` says in which circumstances. Its words are in `words.rs`.
//! Messages name counts and names, never measured values: these change all the time, and each change is a write.

use certeus_autoscale::{Decision, PodPhase, Reason as ScalingReason};

use super::PodScrape;
use super::status::{Observed, Surroundings};
use super::words::{ConditionReason, ConditionType, PodsWaiting};
use crate::counted;
use crate::validate::{Cluster, DatabaseSource, Scaling};

/// Problems and names that one message lists; of more it says how many.
const LISTED_MAX: usize = 8;

/// A condition without its time.
pub(super) struct Finding {
    pub(super) kind: ConditionType,
    /// `None`: unknown.
    pub(super) holds: Option<bool>,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

impl Finding {
    fn new(
        kind: ConditionType,
        holds: impl Into<Option<bool>>,
        reason: ConditionReason,
        message: impl Into<String>,
    ) -> Self {
        Self { kind, holds: holds.into(), reason: reason.as_str(), message: message.into() }
    }
}

/// How many pods there are, of which sort.
pub(super) struct Count {
    pub(super) all: u32,
    pub(super) existing: u32,
    pub(super) ready: u32,
    running: u32,
    failed: u32,
    reporting: u32,
    without_database: u32,
    unchecked: u32,
}

impl Count {
    pub(super) fn of(pods: &[PodScrape]) -> Self {
        let count = |is: &dyn Fn(&PodScrape) -> bool| {
            u32::try_from(pods.iter().filter(|pod| is(pod)).count()).unwrap_or(u32::MAX)
        };
        let database = |pod: &PodScrape| pod.latest.as_ref().ok().and_then(|sample| sample.database_up.ok());
        Self {
            all: count(&|_| true),
            existing: count(&|pod| pod.phase != PodPhase::Failed),
            ready: count(&|pod| matches!(pod.seen_phase(), PodPhase::Running { ready: true, .. })),
            running: count(&|pod| matches!(pod.phase, PodPhase::Running { .. })),
            failed: count(&|pod| pod.phase == PodPhase::Failed),
            reporting: count(&|pod| database(pod).is_some()),
            without_database: count(&|pod| database(pod) == Some(0.0)),
            unchecked: count(&PodScrape::waits_for_log),
        }
    }

    fn unchecked_message(&self) -> String {
        let Self { unchecked, all, .. } = self;
        format!(
            "{unchecked} of {all} pods reach the database and commit nothing: they could not compare it with the signed \
             log yet, mostly as they cannot read the anchor (spec.log.anchor)"
        )
    }
}

/// All conditions, in order.
pub(super) fn findings(cluster: &Cluster, observed: &Observed<'_>, count: &Count) -> Vec<Finding> {
    let mut findings = vec![
        ready(cluster, observed, count),
        progressing(cluster, observed, count),
        degraded(observed, count),
        accepted(Ok(())),
        scaling_active(cluster, observed),
        scaling_limited(observed.decision),
        database_reachable(observed, count),
    ];
    if let Some(surroundings) = &observed.surroundings {
        findings.extend(in_kubernetes(cluster, observed, surroundings));
    }
    findings.extend(downstream_saturated(observed.decision));
    findings.extend(modes(cluster, observed));
    // Where the API server keeps a list in order, an equal list must be in equal order.
    findings.sort_by_key(|finding| finding.kind);
    findings
}

fn ready(cluster: &Cluster, observed: &Observed<'_>, count: &Count) -> Finding {
    use ConditionReason::{DatabaseNeverReached, PodsNotReady, PodsReady, Stopped};
    let kind = ConditionType::Ready;
    if cluster.stopped && cluster.may_change() {
        return Finding::new(kind, false, Stopped, "spec.stopped is true: no pod is to run");
    }
    // While a surge is being answered the cluster is as ready as it was before.
    // Where nothing may be changed, what counts is what there is to be, not what there would be.
    let wanted = if cluster.may_change() { observed.desired } else { observed.applied };
    let needed = cluster.scaling.min().min(wanted).max(1);
    let enough = count.ready >= needed;
    let problems = observed.surroundings.map_or(&[][..], |surroundings| surroundings.problems);
    if let (Some(problem), 0) = (problems.first(), count.existing) {
        let (reason, message) = (problem.reason.as_str(), problem.message.clone());
        return Finding { kind, holds: Some(false), reason, message };
    }
    if let (Some(waiting), 0) = (waiting(observed).first(), count.running) {
        return Finding::new(kind, false, waiting.reason, waiting.message.clone());
    }
    if enough && !was_reached(observed, count) {
        let message =
            "pods take events into their spools; none has been able to commit one yet, see DatabaseReachable";
        return Finding::new(kind, false, DatabaseNeverReached, message);
    }
    let message = format!("{} of at least {needed} pods take events", count.ready);
    Finding::new(kind, enough, if enough { PodsReady } else { PodsNotReady }, message)
}

/// Whether any pod of the cluster could ever commit. Spools bridge an outage; a database that was never there is none. What was
/// so before is told by the status that stands there: once another reason was given, this one never comes back.
fn was_reached(observed: &Observed<'_>, count: &Count) -> bool {
    let conditions = observed.before.iter().flat_map(|before| &before.conditions);
    let mut conditions =
        conditions.filter(|condition| condition.type_ == ConditionType::DatabaseReachable.as_str());
    let before =
        conditions.any(|condition| condition.reason != ConditionReason::DatabaseNeverReached.as_str());
    before || count.reporting > count.without_database + count.unchecked
}

fn progressing(cluster: &Cluster, observed: &Observed<'_>, count: &Count) -> Finding {
    use ConditionReason as R;
    let (desired, replicas, ready) = (observed.desired, count.existing, count.ready);
    let (problems, outdated) = observed.surroundings.map_or((&[][..], 0), |s| (s.problems, s.outdated_pods));
    let (holds, reason, message) = if cluster.paused {
        (false, R::Paused, "spec.paused is true".to_owned())
    } else if cluster.dry_run {
        (false, R::DryRun, "spec.dryRun is true".to_owned())
    } else if !problems.is_empty() {
        (false, R::Blocked, "see Degraded".to_owned())
    } else if replicas < desired {
        (true, R::AddingPods, format!("{replicas} of {desired} pods exist"))
    } else if replicas > desired {
        (true, R::RemovingPods, format!("{} draining", counted(replicas - desired, "pod")))
    } else if outdated > 0 {
        (true, R::RollingOut, format!("{outdated} of {desired} pods are yet to be replaced"))
    } else if ready < desired {
        (true, R::PodsStarting, format!("{ready} of {desired} pods are ready"))
    } else if cluster.stopped {
        (false, R::Stopped, "no pod runs".to_owned())
    } else {
        (false, R::Stable, format!("{desired} of {desired} pods are ready"))
    };
    Finding::new(ConditionType::Progressing, holds, reason, message)
}

fn degraded(observed: &Observed<'_>, count: &Count) -> Finding {
    let kind = ConditionType::Degraded;
    let problems = observed.surroundings.map_or(&[][..], |surroundings| surroundings.problems);
    if let Some(first) = problems.first() {
        let message = list(problems.iter().map(|problem| problem.message.as_str()));
        return Finding { kind, holds: Some(true), reason: first.reason.as_str(), message };
    }
    let crashing = observed.surroundings.map_or(&[][..], |surroundings| surroundings.crashing);
    if !crashing.is_empty() {
        let message = list(crashing.iter().map(String::as_str));
        Finding::new(kind, true, ConditionReason::PodsCrashing, message)
    } else if count.without_database > 0 {
        let message = format!("{} of {} pods cannot reach the database", count.without_database, count.all);
        Finding::new(kind, true, ConditionReason::DatabaseUnavailable, message)
    } else if count.unchecked > 0 {
        Finding::new(kind, true, ConditionReason::LogUnchecked, count.unchecked_message())
    } else if let Some(first) = waiting(observed).first() {
        let message = list(waiting(observed).iter().map(|waiting| waiting.message.as_str()));
        Finding::new(kind, true, first.reason, message)
    } else if count.failed > 0 {
        let message = format!("{} of {} pods ended and were not restarted", count.failed, count.all);
        Finding::new(kind, true, ConditionReason::PodsFailed, message)
    } else {
        Finding::new(kind, false, ConditionReason::AsExpected, "")
    }
}

/// Why pods do not start. Those that crash did start, and are worse.
fn waiting<'a>(observed: &Observed<'a>) -> &'a [PodsWaiting] {
    match observed.surroundings {
        Some(Surroundings { crashing: [], waiting, .. }) => waiting,
        Some(_) | None => &[],
    }
}

/// Whether the spec can be carried out; if not, everything that is wrong with it.
pub(super) fn accepted(spec: Result<(), &[certeus_crds::FieldError]>) -> Finding {
    let kind = ConditionType::Accepted;
    match spec {
        Ok(()) => Finding::new(kind, true, ConditionReason::Valid, "the spec can be carried out"),
        Err(errors) => {
            let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
            let message = list(errors.iter().map(String::as_str));
            Finding::new(kind, false, ConditionReason::Invalid, message)
        }
    }
}

/// Of a cluster that never was valid.
pub(super) fn never_ready() -> Finding {
    let message = "the spec cannot be carried out; see Accepted";
    Finding::new(ConditionType::Ready, false, ConditionReason::Invalid, message)
}

fn scaling_active(cluster: &Cluster, observed: &Observed<'_>) -> Finding {
    use ConditionReason as R;
    let kind = ConditionType::ScalingActive;
    if observed.surroundings.is_some_and(|around| !around.autoscalers.is_empty()) {
        return Finding::new(
            kind,
            false,
            R::AmbiguousOwner,
            "the number of pods is left to another autoscaler",
        );
    }
    let Some(decision) = observed.decision else {
        let (reason, message) = match &cluster.scaling {
            _ if cluster.paused => (R::Paused, "spec.paused is true"),
            _ if cluster.stopped => (R::Stopped, "spec.stopped is true"),
            Scaling::Fixed(_) => (R::Disabled, "spec.autoscaling.enabled is false"),
            Scaling::Auto(_) => (R::NotMeasured, "no pod has been measured yet"),
        };
        return Finding::new(kind, false, reason, message);
    };
    let failures = decision.triggers.iter().filter_map(|report| {
        let failure = report.outcome.as_ref().err()?;
        Some(format!("{}: {failure}", report.kind))
    });
    let failures: Vec<String> = failures.collect();
    if failures.is_empty() {
        Finding::new(kind, true, R::Measured, "every trigger has a value")
    } else {
        Finding::new(kind, false, R::MeasurementFailed, failures.join("; "))
    }
}

fn scaling_limited(decision: Option<&Decision>) -> Finding {
    let kind = ConditionType::ScalingLimited;
    match decision.and_then(|decision| decision.adjustments.last()) {
        Some(adjustment) => {
            let direction = if adjustment.from > adjustment.to { "more" } else { "fewer" };
            let message = format!("the triggers ask for {direction} than {} pods", adjustment.to);
            Finding { kind, holds: Some(true), reason: adjustment.reason.as_str(), message }
        }
        None => {
            let message = "the triggers get what they ask for";
            Finding::new(kind, false, ConditionReason::NotLimited, message)
        }
    }
}

fn database_reachable(observed: &Observed<'_>, count: &Count) -> Finding {
    use ConditionReason::{DatabaseNeverReached, LogUnchecked, NotReported, Reachable, Unreachable};
    let kind = ConditionType::DatabaseReachable;
    if !was_reached(observed, count) {
        let holds = (count.reporting > 0).then_some(false);
        let message = match count.unchecked {
            0 => "no pod has been able to commit yet".to_owned(),
            _ => count.unchecked_message(),
        };
        Finding::new(kind, holds, DatabaseNeverReached, message)
    } else if count.reporting == 0 {
        Finding::new(kind, None, NotReported, "no pod reports whether it can commit")
    } else if count.without_database > 0 {
        let message = format!("{} of {} pods cannot commit", count.without_database, count.all);
        Finding::new(kind, false, Unreachable, message)
    } else if count.unchecked > 0 {
        // Who waits for this condition waits for pods that commit.
        Finding::new(kind, false, LogUnchecked, count.unchecked_message())
    } else {
        Finding::new(kind, true, Reachable, "all pods that report can commit")
    }
}

fn in_kubernetes(cluster: &Cluster, observed: &Observed<'_>, around: &Surroundings<'_>) -> Vec<Finding> {
    use ConditionReason as R;
    let mut findings = Vec::new();
    let generated = cluster.security.signing_key_secret_ref.is_none();
    findings.push(match (around.verifier_keys, generated) {
        (None, _) => {
            let message = "its Secret could not be read; see Degraded";
            Finding::new(ConditionType::SigningKey, None, R::NotRead, message)
        }
        (Some([]), _) => {
            Finding::new(ConditionType::SigningKey, false, R::Unusable, "there is no key that can sign")
        }
        (Some(_), true) => {
            let name = crate::build::signing_key_name(cluster);
            let message = format!("generated in Secret {name}: keep a copy of it outside of the cluster");
            Finding::new(ConditionType::SigningKey, true, R::Generated, message)
        }
        (Some(_), false) => {
            let message = "as spec.security.signingKeySecretRef names it";
            Finding::new(ConditionType::SigningKey, true, R::Referenced, message)
        }
    });
    findings.push(if crate::build::has_generated_api_key(cluster) {
        let message = format!("generated in Secret {}", crate::build::api_key_name(cluster));
        Finding::new(ConditionType::ApiKey, true, R::Generated, message)
    } else {
        let message = "as spec.security.apiKeySecretRef names it";
        Finding::new(ConditionType::ApiKey, true, R::Referenced, message)
    });
    if cluster.monitoring.service_monitor {
        let kind = ConditionType::Monitored;
        findings.push(if around.service_monitors {
            Finding::new(kind, true, R::ServiceMonitor, "")
        } else {
            let message = "ServiceMonitors of monitoring.coreos.com are not known to this Kubernetes cluster";
            Finding::new(kind, false, R::DefinitionMissing, message)
        });
    }
    if !around.autoscalers.is_empty() {
        let names = list(around.autoscalers.iter().map(String::as_str));
        let message = format!(
            "{names} scales the same StatefulSet, so its number of pods is left to it: remove it, or set \
             spec.autoscaling.enabled to false and spec.replicas to a number, and let it scale the LedgerCluster"
        );
        findings.push(Finding::new(ConditionType::AmbiguousOwner, true, R::OtherAutoscaler, message));
    }
    if matches!(cluster.database, DatabaseSource::Embedded { .. }) {
        let message = "not for production: the embedded database has one pod, one volume and no backup";
        findings.push(Finding::new(ConditionType::EmbeddedDatabase, true, R::NotForProduction, message));
    }
    if cluster.dry_run {
        findings.push(dry_run(observed, around));
    }
    findings
}

fn dry_run(observed: &Observed<'_>, around: &Surroundings<'_>) -> Finding {
    let scale = observed.decision.filter(|decision| decision.current != decision.desired);
    let scale = scale.map(|decision| format!("scale from {} to {} pods", decision.current, decision.desired));
    let would: Vec<&str> = scale.iter().chain(around.pending).map(String::as_str).collect();
    let kind = ConditionType::DryRun;
    if would.is_empty() {
        Finding::new(kind, true, ConditionReason::NothingToDo, "spec.dryRun is true; nothing would be done")
    } else {
        let message = format!("spec.dryRun is true; it would: {}", list(would.into_iter()));
        Finding::new(kind, true, ConditionReason::WouldChange, message)
    }
}

/// What the user set, and what becomes true by it.
fn modes(cluster: &Cluster, observed: &Observed<'_>) -> impl Iterator<Item = Finding> {
    let paused = cluster.paused.then(|| {
        let message = "spec.paused is true: nothing is changed, whatever else is set";
        Finding::new(ConditionType::Paused, true, ConditionReason::Paused, message)
    });
    let stopped = cluster.stopped.then(|| {
        let spooled = observed.surroundings.map_or(0, |around| around.spooled.len());
        let spooled = u32::try_from(spooled).unwrap_or(u32::MAX);
        let waiting = match spooled {
            0 => String::new(),
            _ => format!(
                "; requests wait on {} (status.spooledVolumes), and reach the database when the cluster runs again",
                counted(spooled, "volume")
            ),
        };
        let message = format!("spec.stopped is true: no pod is to run; volumes and keys stay{waiting}");
        Finding::new(ConditionType::Stopped, true, ConditionReason::Stopped, message)
    });
    paused.into_iter().chain(stopped)
}

/// Whether the decision was held back because the database is the bottleneck.
fn downstream_saturated(decision: Option<&Decision>) -> Option<Finding> {
    let mut adjustments = decision?.adjustments.iter();
    let saturated = adjustments.any(|adjustment| adjustment.reason == ScalingReason::DownstreamSaturated);
    let message =
        "commits are slow while the pods are not busy: more pods would not help, the database would";
    saturated.then(|| {
        Finding::new(ConditionType::DownstreamSaturated, true, ConditionReason::SlowCommits, message)
    })
}

/// The first few of what is given, and how many more there are.
fn list<'a>(items: impl ExactSizeIterator<Item = &'a str>) -> String {
    let more = items.len().saturating_sub(LISTED_MAX);
    let listed = items.take(LISTED_MAX).collect::<Vec<_>>().join("; ");
    if more == 0 { listed } else { format!("{listed}; and {more} more") }
}
