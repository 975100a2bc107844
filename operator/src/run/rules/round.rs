//! One round over the rules of one cluster: finalizers, pods, report, farewells. Everything it writes is written because it differs.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use certeus_autoscale::PodPhase;
use certeus_crds::{AlertRule, AlertRuleStatus, LedgerCluster};
use certeus_operator::rules::{Accepted, Wanted};
use futures_util::StreamExt;
use jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::runtime::events::Recorder;
use kube::{Api, Client};
use prometheus::{IntCounterVec, IntGauge, IntGaugeVec, Opts};
use rand::RngExt;
use serde_json::json;

use super::super::clock;
use super::super::error::{Class, Error};
use super::super::pods::{ObjectKey, PodSeen};
use super::super::telemetry::Metrics;
use super::pod::{Name, Outcome, deliver};
use super::report::{Told, report};
use super::seen::{FINALIZER, Origin, RuleSeen};

pub(super) const MANAGER: &str = "certeus-operator";
pub(super) const KIND: &str = "AlertRule";
/// Requests to the API server at the same time, of one round.
pub(super) const WRITES_MAX: usize = 8;
/// Pods that are spoken to at the same time, of one round.
const PODS_MAX: usize = 8;
/// A deleted object waits this long for pods that do not answer. If one comes back, the next rounds remove what it still has.
const FAREWELL_MAX: Duration = Duration::from_secs(30);
/// A status that was written shows in the watch within this time. Until then it is not written again.
pub(super) const ECHO_MAX: Duration = Duration::from_secs(10);

/// What rounds work with.
pub(super) struct Tools {
    client: Client,
    pub(super) recorder: Recorder,
    pub(super) metrics: Arc<Metrics>,
    alert_rules: IntGauge,
    prometheus_rules: IntGaugeVec,
    deliveries: IntCounterVec,
}

impl Tools {
    /// Registers the metrics.
    pub(super) fn new(
        client: Client,
        recorder: Recorder,
        metrics: Arc<Metrics>,
    ) -> Result<Self, prometheus::Error> {
        let alert_rules = metrics.register(IntGauge::new("alert_rules", "AlertRules that exist.")?)?;
        let help = "PrometheusRules that a label gives to a cluster, by result of their checks: accepted or refused.";
        let prometheus_rules =
            metrics.register(IntGaugeVec::new(Opts::new("prometheus_rules", help), &["result"])?)?;
        let help = "Rules brought to pods by result: sent, removed, refused, or unreachable (once for each pod and round).";
        let deliveries =
            metrics.register(IntCounterVec::new(Opts::new("rule_deliveries_total", help), &["result"])?)?;
        Ok(Self { client, recorder, metrics, alert_rules, prometheus_rules, deliveries })
    }

    /// How many objects there are of which this is one.
    pub(super) fn objects(&self, rule: &RuleSeen) -> IntGauge {
        match (rule.origin, &*rule.verdict) {
            (Origin::AlertRule, _) => self.alert_rules.clone(),
            (Origin::PrometheusRule, Ok(_)) => self.prometheus_rules.with_label_values(&["accepted"]),
            (Origin::PrometheusRule, Err(_)) => self.prometheus_rules.with_label_values(&["refused"]),
        }
    }

    pub(super) fn api(&self, namespace: &str) -> Api<AlertRule> {
        Api::namespaced(self.client.clone(), namespace)
    }

    fn count(&self, result: &str, by: u64) {
        self.deliveries.with_label_values(&[result]).inc_by(by);
    }
}

/// What one round looks at.
pub(super) struct Round {
    pub(super) cluster: ObjectKey,
    /// The rules that name the cluster.
    pub(super) rules: BTreeMap<ObjectKey, Arc<RuleSeen>>,
    /// Whether all PrometheusRules that name it are among them. If not, none is.
    pub(super) with_imports: bool,
    /// Its pods; `None` if the cluster is not known.
    pub(super) pods: Option<Arc<[PodSeen]>>,
    pub(super) memory: Memory,
}

/// What the next round of the same cluster needs to know.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// By identity of the object.
    pub(super) written: HashMap<String, (Duration, AlertRuleStatus)>,
    /// Of PrometheusRules.
    pub(super) told: HashMap<String, Told>,
    paused: HashMap<String, Pause>,
    /// Somebody else wrote an object in the last round.
    has_conflict: bool,
}

/// An object that the API server did not let us write.
#[derive(Debug)]
struct Pause {
    generation: i64,
    failures: u32,
    until: Option<Duration>,
}

/// When to look again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Again {
    /// Something is unfinished.
    Soon,
    /// There are pods with rules.
    Recheck,
    /// Something would have to change first.
    Rarely,
}

/// Goes over all rules of a cluster once.
pub(super) async fn round(tools: &Tools, round: Round) -> (Memory, Again) {
    let Round { cluster, rules, with_imports, pods, mut memory } = round;
    memory.forget(&rules);
    memory.has_conflict = false;
    if pods.is_none() && exists(tools, &cluster).await {
        // It is there, and its pods are not known yet: nothing may be concluded from that. When they are, they wake it.
        return (memory, Again::Recheck);
    }
    let held = match &pods {
        Some(_) => hold(tools, &rules, &mut memory).await,
        None => Vec::new(),
    };
    let outcomes = visit(&rules, with_imports, &held, pods.as_deref().unwrap_or_default()).await;
    for (pod, outcome) in &outcomes {
        let Outcome { refused, error, sent, removed, .. } = outcome;
        tools.count("sent", sent.len() as u64);
        tools.count("removed", *removed);
        tools.count("refused", refused.len() as u64);
        if let Some(error) = error {
            tools.count("unreachable", 1);
            tracing::debug!(pod = pod.name, error, "rules were not delivered");
        }
    }
    report(tools, &rules, pods.as_deref(), &outcomes, &mut memory).await;
    let is_waiting = dismiss(tools, &rules, &outcomes, &mut memory).await;
    let is_unfinished = outcomes.iter().any(|(_, outcome)| outcome.is_unfinished);
    let again = if is_unfinished || is_waiting || memory.has_conflict {
        Again::Soon
    } else if rules.is_empty() || pods.is_none() && memory.paused.is_empty() {
        Again::Rarely
    } else {
        Again::Recheck
    };
    (memory, again)
}

/// Whether the cluster is there. In doubt it is.
async fn exists(tools: &Tools, cluster: &ObjectKey) -> bool {
    if cluster.name.is_empty() {
        return false;
    }
    let api: Api<LedgerCluster> = Api::namespaced(tools.client.clone(), &cluster.namespace);
    !matches!(api.get_metadata_opt(&cluster.name).await, Ok(None))
}

impl Memory {
    /// Forgets what there is nothing left of.
    fn forget(&mut self, rules: &BTreeMap<ObjectKey, Arc<RuleSeen>>) {
        let imported: HashSet<&str> = rules
            .values()
            .filter(|rule| rule.origin == Origin::PrometheusRule)
            .map(|rule| &*rule.uid)
            .collect();
        self.told.retain(|uid, _| imported.contains(&**uid));
        let exists = |uid: &String| rules.values().any(|rule| rule.uid == *uid);
        if self.written.len() + self.paused.len() > 2 * rules.len() {
            self.written.retain(|uid, _| exists(uid));
            self.paused.retain(|uid, _| exists(uid));
        }
    }

    /// Whether the object is left alone for now. An edit ends that.
    pub(super) fn is_paused(&self, rule: &RuleSeen, now: Duration) -> bool {
        self.paused.get(&rule.uid).is_some_and(|pause| {
            pause.generation == rule.generation && pause.until.is_none_or(|until| now < until)
        })
    }

    /// Notes the end of a write.
    pub(super) fn note(&mut self, key: &ObjectKey, rule: &RuleSeen, written: Result<(), Error>) {
        let Err(error) = written else {
            self.paused.remove(&rule.uid);
            return;
        };
        let class = error.class();
        if class == Class::Conflict {
            // Somebody else's write, which the next round knows.
            self.has_conflict = true;
            return;
        }
        let before = self.paused.get(&rule.uid).filter(|pause| pause.generation == rule.generation);
        let failures = before.map_or(0, |pause| pause.failures).saturating_add(1);
        let reason = error.message();
        tracing::warn!(rule = %key, class = class.label(), reason, "an AlertRule could not be written");
        let until = class.retry(failures, rand::rng().random()).map(|pause| clock::now() + pause);
        self.paused.insert(rule.uid.clone(), Pause { generation: rule.generation, failures, until });
    }
}

/// Puts our finalizer on AlertRules that may be sent to pods, so that they cannot go without being removed there. Gives the keys of
/// what has it, or needs none.
async fn hold<'a>(
    tools: &Tools,
    rules: &'a BTreeMap<ObjectKey, Arc<RuleSeen>>,
    memory: &mut Memory,
) -> Vec<&'a ObjectKey> {
    let now = clock::now();
    let wanted = rules.iter().filter(|(_, rule)| rule.deleted_at.is_none() && rule.verdict.is_ok());
    let needs_none = |rule: &RuleSeen| rule.origin == Origin::PrometheusRule || rule.is_held();
    let (mut held, missing): (Vec<_>, Vec<_>) = wanted.partition(|(_, rule)| needs_none(rule));
    let mut writes = Vec::new();
    for (key, rule) in missing.into_iter().filter(|(_, rule)| !memory.is_paused(rule, now)) {
        writes.push(async move {
            let finalizers: Vec<&str> =
                rule.finalizers.iter().map(String::as_str).chain(std::iter::once(FINALIZER)).collect();
            (key, rule, write_finalizers(tools, key, rule, &finalizers).await)
        });
    }
    let done: Vec<_> = futures_util::stream::iter(writes).buffer_unordered(WRITES_MAX).collect().await;
    for (key, rule, written) in done {
        if written.is_ok() {
            held.push((key, rule));
        }
        memory.note(key, rule, written);
    }
    held.into_iter().map(|(key, _)| key).collect()
}

/// The list belongs to many: it is only written if it is still the one that was read.
async fn write_finalizers(
    tools: &Tools,
    key: &ObjectKey,
    rule: &RuleSeen,
    finalizers: &[&str],
) -> Result<(), Error> {
    let patch = json!({ "metadata": {
        "uid": rule.uid, "resourceVersion": rule.resource_version, "finalizers": finalizers,
    } });
    let written = tools
        .api(&key.namespace)
        .patch_metadata(&key.name, &PatchParams::default(), &Patch::Merge(patch))
        .await;
    tools.metrics.writes.with_label_values(&[KIND, "finalize"]).inc();
    written
        .map(drop)
        .map_err(|error| Error::api(format!("write the finalizers of {KIND} {}", key.name), error))
}

/// Speaks to every pod that runs.
async fn visit<'a>(
    rules: &BTreeMap<ObjectKey, Arc<RuleSeen>>,
    with_imports: bool,
    held: &[&ObjectKey],
    pods: &'a [PodSeen],
) -> Vec<(&'a PodSeen, Outcome)> {
    let held: HashSet<&ObjectKey> = held.iter().copied().collect();
    let (mut wanted, mut bodies) = (BTreeMap::new(), HashMap::new());
    for (key, rule) in rules.iter().filter(|(_, rule)| rule.deleted_at.is_none()) {
        let name = (&*key.namespace, &*key.name);
        match &*rule.verdict {
            // There is nothing in it for pods.
            Ok(Accepted { groups: 0, .. }) => continue,
            Ok(Accepted { body, .. }) if held.contains(key) => {
                bodies.insert(name, Bytes::clone(body));
            }
            Ok(_) | Err(_) => {}
        }
        let is_accepted = bodies.contains_key(&name);
        wanted.insert(name, Wanted { uid: &rule.uid, generation: rule.generation, is_accepted });
    }
    let (wanted, bodies) = (&wanted, &bodies);
    let mut visits = Vec::new();
    for pod in pods.iter().filter(|pod| runs(pod)) {
        visits.push(async move { (pod, deliver(pod, wanted, bodies, with_imports).await) });
    }
    let mut outcomes: Vec<_> = futures_util::stream::iter(visits).buffer_unordered(PODS_MAX).collect().await;
    // In one order, so that of two errors the same one is told each time.
    outcomes.sort_by_key(|(pod, _)| pod.ordinal);
    outcomes
}

/// Whether a pod can be spoken to. One that is not ready, as its database is away, needs its rules most.
fn runs(pod: &PodSeen) -> bool {
    matches!(pod.phase, PodPhase::Running { .. }) && pod.ip.is_some()
}

/// Lets deleted objects go once no pod has their rules, or no pod that has them answers for too long. Whether any has to wait.
async fn dismiss(
    tools: &Tools,
    rules: &BTreeMap<ObjectKey, Arc<RuleSeen>>,
    outcomes: &[(&PodSeen, Outcome)],
    memory: &mut Memory,
) -> bool {
    let (now, time) = (clock::now(), Timestamp::now());
    let mut is_waiting = false;
    let mut writes = Vec::new();
    for (key, rule) in rules.iter().filter(|(_, rule)| rule.is_held()) {
        let Some(deleted_at) = rule.deleted_at else { continue };
        let name: Name = (key.namespace.to_string(), key.name.to_string());
        let is_gone =
            outcomes.iter().all(|(_, outcome)| outcome.has_answered && !outcome.present.contains(&name));
        let waited = Duration::try_from(time.duration_since(deleted_at)).unwrap_or_default();
        if !is_gone && waited < FAREWELL_MAX {
            is_waiting = true;
        } else if !memory.is_paused(rule, now) {
            if !is_gone {
                tracing::warn!(rule = %key, "an AlertRule goes although pods that do not answer may still have it");
            }
            writes.push(async move {
                let others: Vec<&str> =
                    rule.finalizers.iter().map(String::as_str).filter(|other| *other != FINALIZER).collect();
                (key, rule, write_finalizers(tools, key, rule, &others).await)
            });
        }
    }
    let done: Vec<_> = futures_util::stream::iter(writes).buffer_unordered(WRITES_MAX).collect().await;
    for (key, rule, written) in done {
        let is_absent = |error: &Error| matches!(error, Error::Api { source: kube::Error::Api(status), .. } if status.code == 404);
        memory.note(key, rule, written.or_else(|error| if is_absent(&error) { Ok(()) } else { Err(error) }));
    }
    is_waiting
}
