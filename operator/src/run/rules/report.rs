//! What users are told: the status of AlertRules, written where it differs, and Events.
//!
//! PrometheusRules are somebody else's and never written: what their status would say is kept here for as long as the process lives, and
//! told in Events, each once. A new operator tells trouble again, and of rules that pods have already it says nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use certeus_autoscale::PodPhase;
use certeus_crds::{AlertRule, AlertRuleStatus, FieldError};
use certeus_operator::counted;
use certeus_operator::rules::{
    Accepted, Delivery, Subject, VALID, name_of_imported, prometheus_rule_resource, status,
};
use futures_util::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::Resource;
use kube::api::{ApiResource, Patch, PatchParams};
use kube::runtime::events::{Event, EventType};
use serde_json::json;

use super::super::clock;
use super::super::error::Error;
use super::super::events::{self, event};
use super::super::pods::{ObjectKey, PodSeen};
use super::pod::{Name, Outcome};
use super::round::{ECHO_MAX, KIND, MANAGER, Memory, Tools, WRITES_MAX};
use super::seen::{Origin, RuleSeen};

/// Whether a pod counts among those that should have the rules.
fn counts(pod: &PodSeen) -> bool {
    matches!(pod.phase, PodPhase::Running { .. } | PodPhase::Pending)
}

/// Writes the status where it differs, and tells what is new.
pub(super) async fn report(
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
    let (mut writes, mut events) = (Vec::new(), Vec::new());
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
        let before = match rule.origin {
            Origin::AlertRule => {
                let recently = memory.written.get(&rule.uid).filter(|(at, _)| now < *at + ECHO_MAX);
                recently.map(|(_, status)| status).or(rule.status.as_ref())
            }
            Origin::PrometheusRule => memory.told.get(&rule.uid).and_then(|told| told.status.as_ref()),
        };
        let subject = Subject {
            generation: Some(rule.generation),
            cluster: &rule.cluster.name,
            before,
            verdict: (*rule.verdict).as_ref().map_err(Vec::as_slice),
            lacks_room: rule.lacks_room,
        };
        let delivery = Delivery {
            loaded: u32::try_from(loaded).unwrap_or(u32::MAX),
            total,
            error: error.map(String::as_str),
        };
        let status = status(subject, delivery, time);
        match rule.origin {
            Origin::AlertRule if before == Some(&status) => {}
            Origin::AlertRule => {
                let event = news(before, &status);
                writes.push(async move {
                    (key, rule, write_status(tools, key, rule, &status).await, status, event)
                });
            }
            Origin::PrometheusRule => {
                let refused = outcomes.iter().find_map(|(_, outcome)| outcome.refused.get(&name));
                let is_sent = outcomes.iter().any(|(_, outcome)| outcome.sent.contains(&name));
                let told = memory.told.entry(rule.uid.clone()).or_default();
                let new = told.take(&rule.verdict, status, refused, is_sent);
                events.extend(new.into_iter().map(|event| (key, rule, event)));
            }
        }
    }
    let done: Vec<_> = futures_util::stream::iter(writes).buffer_unordered(WRITES_MAX).collect().await;
    for (key, rule, written, status, event) in done {
        if written.is_ok() {
            memory.written.insert(rule.uid.clone(), (now, status));
            events.extend(event.map(|event| (key, rule, event)));
        }
        memory.note(key, rule, written);
    }
    let mut told = Vec::new();
    for (key, rule, event) in events {
        told.push(async move { publish(tools, key, rule, &event).await });
    }
    futures_util::stream::iter(told).buffer_unordered(WRITES_MAX).collect::<()>().await;
}

/// What was told of a PrometheusRule.
#[derive(Debug, Default)]
pub(super) struct Told {
    status: Option<AlertRuleStatus>,
    /// What the last pod said that did not take it.
    refused: Option<String>,
    /// A pod got this generation from this process.
    is_sent: bool,
    /// That all pods have it was told.
    is_loaded: bool,
}

impl Told {
    /// Takes note of how things are now; gives what is new.
    fn take(
        &mut self,
        verdict: &Result<Accepted, Vec<FieldError>>,
        status: AlertRuleStatus,
        refused: Option<&String>,
        is_sent: bool,
    ) -> Vec<Event> {
        let before = self.status.as_ref().and_then(|status| status.observed_generation);
        if before != status.observed_generation {
            *self = Self { status: self.status.take(), ..Self::default() };
        }
        self.is_sent |= is_sent;
        let mut events: Vec<Event> = news(self.status.as_ref(), &status).into_iter().collect();
        let is_loaded = status
            .conditions
            .iter()
            .any(|condition| condition.type_ == "Loaded" && condition.status == "True");
        if let (true, Ok(Accepted { rules, groups, .. })) =
            (is_loaded && self.is_sent && !self.is_loaded, verdict)
        {
            self.is_loaded = true;
            let pods = status.loaded_pods;
            let verb = if *rules == 1 { "is" } else { "are" };
            let (rules, groups) = (counted(*rules, "rule"), counted(*groups, "group"));
            let note = format!("{rules} in {groups} {verb} in {pods} of {pods} pods");
            events.push(event(EventType::Normal, "Loaded", "Deliver", &note));
        }
        if let Some(refused) = refused.filter(|refused| self.refused.as_ref() != Some(refused)) {
            self.refused = Some(refused.clone());
            events.push(event(EventType::Warning, "DeliveryFailed", "Deliver", refused));
        }
        self.status = Some(status);
        events
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
    let is_valid = |condition: &Condition| condition.reason == VALID;
    let is_news = match before {
        // That all is well from the beginning is no news.
        None => !is_valid(after),
        Some(before) if is_valid(after) => !is_valid(before),
        Some(before) => {
            (&before.status, &before.reason, &before.message)
                != (&after.status, &after.reason, &after.message)
        }
    };
    let type_ = if is_valid(after) { EventType::Normal } else { EventType::Warning };
    is_news.then(|| event(type_, &after.reason, "Validate", &after.message))
}

async fn publish(tools: &Tools, key: &ObjectKey, rule: &RuleSeen, event: &Event) {
    let (api_version, kind, name) = match rule.origin {
        Origin::AlertRule => (AlertRule::api_version(&()).into_owned(), KIND.to_owned(), &*key.name),
        Origin::PrometheusRule => {
            let ApiResource { api_version, kind, .. } = prometheus_rule_resource();
            (api_version, kind, name_of_imported(&key.name).unwrap_or(&key.name))
        }
    };
    if rule.origin == Origin::PrometheusRule && event.type_ == EventType::Warning {
        let (reason, message) = (&event.reason, &event.note);
        tracing::warn!(rule = %key, reason, message, "a PrometheusRule is not in effect as it stands");
    }
    let object = ObjectReference {
        api_version: Some(api_version),
        kind: Some(kind),
        name: Some(name.to_owned()),
        namespace: Some(key.namespace.to_string()),
        uid: Some(rule.uid.clone()),
        // So that a second mistake shows its own text.
        resource_version: Some(rule.resource_version.clone()),
        ..ObjectReference::default()
    };
    events::publish(&tools.recorder, &tools.metrics, event, &object).await;
}
