//! One round over the rules of one cluster: finalizers, pods, status, farewells. Everything it writes is written because it differs.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use certeus_autoscale::PodPhase;
use certeus_crds::{AlertRule, AlertRuleStatus, LedgerCluster};
use certeus_operator::rules::{Accepted, Delivery, Subject, Wanted, status};
use futures_util::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder};
use kube::{Api, Client, Resource};
use prometheus::{IntCounterVec, IntGauge, Opts};
use rand::RngExt;
use serde_json::json;

use super::super::clock;
use super::super::error::{Class, Error};
use super::super::pods::{ObjectKey, PodSeen};
use super::super::telemetry::Metrics;
use super::pod::{Name, Outcome, deliver};
use super::seen::{FINALIZER, RuleSeen};

const MANAGER: &str = "certeus-operator";
const KIND: &str = "AlertRule";
/// Requests to the API server at the same time, of one round.
const WRITES_MAX: usize = 8;
/// Pods that are spoken to at the same time, of one round.
const PODS_MAX: usize = 8;
/// A deleted object waits this long for pods that do not answer. If one comes back, the next rounds remove what it still has.
const FAREWELL_MAX: Duration = Duration::from_secs(30);
/// A status that was written shows in the watch within this time. Until then it is not written again.
const ECHO_MAX: Duration = Duration::from_secs(10);
/// Kubernetes takes no longer note in an event.
const NOTE_BYTES_MAX: usize = 1000;

/// What rounds work with.
pub(super) struct Tools {
    client: Client,
    recorder: Recorder,
    metrics: Arc<Metrics>,
    /// AlertRules that exist.
    pub(super) objects: IntGauge,
    deliveries: IntCounterVec,
}

impl Tools {
    /// Registers the metrics.
    pub(super) fn new(
        client: Client,
        recorder: Recorder,
        metrics: Arc<Metrics>,
    ) -> Result<Self, prometheus::Error> {
        let objects = metrics.register(IntGauge::new("alert_rules", "AlertRules that exist.")?)?;
        let help = "Rules brought to pods by result: sent, removed, refused, or unreachable (once for each pod and round).";
        let deliveries =
            metrics.register(IntCounterVec::new(Opts::new("rule_deliveries_total", help), &["result"])?)?;
        Ok(Self { client, recorder, metrics, objects, deliveries })
    }

    fn api(&self, namespace: &str) -> Api<AlertRule> {
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
    /// Its pods; `None` if the cluster is not known.
    pub(super) pods: Option<Arc<[PodSeen]>>,
    pub(super) memory: Memory,
}

/// What the next round of the same cluster needs to know.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// By identity of the object.
    written: HashMap<String, (Duration, AlertRuleStatus)>,
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
    let Round { cluster, rules, pods, mut memory } = round;
    memory.forget(&rules);
    memory.has_conflict = false;
    if pods.is_none() && exists(tools, &cluster).await {
        // It is there, and its pods are not known yet: nothing may be concluded from that.
        return (memory, Again::Soon);
    }
    let held = match &pods {
        Some(_) => hold(tools, &rules, &mut memory).await,
        None => Vec::new(),
    };
    let outcomes = visit(&rules, &held, pods.as_deref().unwrap_or_default()).await;
    for (pod, outcome) in &outcomes {
        let Outcome { refused, error, sent, removed, .. } = outcome;
        tools.count("sent", *sent);
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
        let exists = |uid: &String| rules.values().any(|rule| rule.uid == *uid);
        if self.written.len() + self.paused.len() > 2 * rules.len() {
            self.written.retain(|uid, _| exists(uid));
            self.paused.retain(|uid, _| exists(uid));
        }
    }

    /// Whether the object is left alone for now. An edit ends that.
    fn is_paused(&self, rule: &RuleSeen, now: Duration) -> bool {
        self.paused.get(&rule.uid).is_some_and(|pause| {
            pause.generation == rule.generation && pause.until.is_none_or(|until| now < until)
        })
    }

    /// Notes the end of a write.
    fn note(&mut self, key: &ObjectKey, rule: &RuleSeen, written: Result<(), Error>) {
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

/// Puts our finalizer on what may be sent to pods, so that it cannot go without being removed there. Gives the keys of what has it.
async fn hold<'a>(
    tools: &Tools,
    rules: &'a BTreeMap<ObjectKey, Arc<RuleSeen>>,
    memory: &mut Memory,
) -> Vec<&'a ObjectKey> {
    let now = clock::now();
    let wanted = rules.iter().filter(|(_, rule)| rule.deleted_at.is_none() && rule.verdict.is_ok());
    let (mut held, missing): (Vec<_>, Vec<_>) = wanted.partition(|(_, rule)| rule.is_held());
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
    held: &[&ObjectKey],
    pods: &'a [PodSeen],
) -> Vec<(&'a PodSeen, Outcome)> {
    let held: std::collections::HashSet<&ObjectKey> = held.iter().copied().collect();
    let (mut wanted, mut bodies) = (BTreeMap::new(), HashMap::new());
    for (key, rule) in rules.iter().filter(|(_, rule)| rule.deleted_at.is_none()) {
        let name = (&*key.namespace, &*key.name);
        if let (Ok(Accepted { body, .. }), true) = (&*rule.verdict, held.contains(key)) {
            bodies.insert(name, Bytes::clone(body));
        }
        let is_accepted = bodies.contains_key(&name);
        wanted.insert(name, Wanted { uid: &rule.uid, generation: rule.generation, is_accepted });
    }
    let (wanted, bodies) = (&wanted, &bodies);
    let mut visits = Vec::new();
    for pod in pods.iter().filter(|pod| runs(pod)) {
        visits.push(async move { (pod, deliver(pod, wanted, bodies).await) });
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

/// Whether a pod counts among those that should have the rules.
fn counts(pod: &PodSeen) -> bool {
    matches!(pod.phase, PodPhase::Running { .. } | PodPhase::Pending)
}

/// Writes the status where it differs.
async fn report(
    tools: &Tools,
    rules: &BTreeMap<ObjectKey, Arc<RuleSeen>>,
    pods: Option<&[PodSeen]>,
    outcomes: &[(&PodSeen, Outcome)],
    memory: &mut Memory,
) {
    let (now, time) = (clock::now(), Timestamp::now());
    // Whole seconds, as the API server keeps them.
    let time = Timestamp::from_second(time.as_second()).unwrap_or(time);
    let total =
        pods.map(|pods| u32::try_from(pods.iter().filter(|pod| counts(pod)).count()).unwrap_or(u32::MAX));
    let mut writes = Vec::new();
    for (key, rule) in rules.iter().filter(|(_, rule)| rule.deleted_at.is_none()) {
        if memory.is_paused(rule, now) {
            continue;
        }
        let name: Name = (key.namespace.to_string(), key.name.to_string());
        let has = |outcome: &Outcome| outcome.loaded.contains(&name);
        let loaded = outcomes.iter().filter(|(pod, outcome)| counts(pod) && has(outcome)).count();
        let lacking = outcomes.iter().filter(|(_, outcome)| !has(outcome));
        let error =
            lacking.filter_map(|(_, outcome)| outcome.refused.get(&name).or(outcome.error.as_ref())).next();
        let recently = memory.written.get(&rule.uid).filter(|(at, _)| now < *at + ECHO_MAX);
        let before = recently.map(|(_, status)| status).or(rule.status.as_ref());
        let subject = Subject {
            generation: Some(rule.generation),
            cluster: &rule.cluster.name,
            before,
            verdict: (*rule.verdict).as_ref().map_err(Vec::as_slice),
        };
        let delivery = Delivery {
            loaded: u32::try_from(loaded).unwrap_or(u32::MAX),
            total,
            error: error.map(String::as_str),
        };
        let status = status(subject, delivery, time);
        if before != Some(&status) {
            let event = news(before, &status);
            writes.push(
                async move { (key, rule, write_status(tools, key, rule, &status).await, status, event) },
            );
        }
    }
    let done: Vec<_> = futures_util::stream::iter(writes).buffer_unordered(WRITES_MAX).collect().await;
    for (key, rule, written, status, event) in done {
        if written.is_ok() {
            memory.written.insert(rule.uid.clone(), (now, status));
            if let Some(event) = event {
                publish(tools, key, rule, &event).await;
            }
        }
        memory.note(key, rule, written);
    }
}

async fn write_status(
    tools: &Tools,
    key: &ObjectKey,
    rule: &RuleSeen,
    status: &AlertRuleStatus,
) -> Result<(), Error> {
    // The whole status, under our name: what it no longer has is removed. The identity keeps it off an object of the same name.
    let apply = json!({
        "apiVersion": AlertRule::api_version(&()), "kind": KIND,
        "metadata": { "name": &*key.name, "namespace": &*key.namespace, "uid": rule.uid },
        "status": status,
    });
    let parameters = PatchParams::apply(MANAGER).force();
    let written = tools.api(&key.namespace).patch_status(&key.name, &parameters, &Patch::Apply(apply)).await;
    tools.metrics.writes.with_label_values(&[KIND, "status"]).inc();
    match written {
        // Deleted meanwhile: there is nothing left to tell.
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        written => written
            .map(drop)
            .map_err(|error| Error::api(format!("write the status of {KIND} {}", key.name), error)),
    }
}

/// What the owner should hear of: rules that are refused, and that they no longer are.
fn news(before: Option<&AlertRuleStatus>, after: &AlertRuleStatus) -> Option<Event> {
    fn accepted(status: &AlertRuleStatus) -> Option<&Condition> {
        status.conditions.iter().find(|condition| condition.type_ == "Accepted")
    }
    let after = accepted(after)?;
    let before = before.and_then(accepted);
    let is_true = |condition: &Condition| condition.status == "True";
    let is_news = match before {
        // That all is well from the beginning is no news.
        None => !is_true(after),
        Some(before) if is_true(after) => !is_true(before),
        Some(before) => {
            (&before.status, &before.reason, &before.message)
                != (&after.status, &after.reason, &after.message)
        }
    };
    is_news.then(|| Event {
        type_: if is_true(after) { EventType::Normal } else { EventType::Warning },
        reason: after.reason.clone(),
        note: Some(cut(&after.message)),
        action: "Validate".to_owned(),
        secondary: None,
    })
}

fn cut(text: &str) -> String {
    text[..text.floor_char_boundary(NOTE_BYTES_MAX)].to_owned()
}

async fn publish(tools: &Tools, key: &ObjectKey, rule: &RuleSeen, event: &Event) {
    let object = ObjectReference {
        api_version: Some(AlertRule::api_version(&()).into_owned()),
        kind: Some(KIND.to_owned()),
        name: Some(key.name.to_string()),
        namespace: Some(key.namespace.to_string()),
        uid: Some(rule.uid.clone()),
        ..ObjectReference::default()
    };
    if let Err(error) = tools.recorder.publish(event, &object).await {
        tools.metrics.events_lost.inc();
        tracing::debug!(rule = %key, reason = %error, "an event could not be published");
    }
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
