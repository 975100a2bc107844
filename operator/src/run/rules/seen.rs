//! AlertRules as the API server has them, checked once for each generation, and the watch that brings them.
//! Of the specification nothing is kept but what is sent to pods.

use std::collections::HashSet;
use std::sync::Arc;

use certeus_crds::{AlertRule, AlertRuleStatus, FieldError};
use certeus_operator::rules::{Accepted, validate};
use futures_util::StreamExt;
use jiff::Timestamp;
use kube::api::{ApiResource, DynamicObject};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::super::Scope;
use super::super::clock;
use super::super::pods::ObjectKey;
use super::super::telemetry::Metrics;

/// Keeps an object until no pod has its rules any more.
pub(super) const FINALIZER: &str = "certeus.io/rules";
/// Name of the watch in metrics.
const WATCH: &str = "alertrules";
/// Objects of one page of a list.
const PAGE_OBJECTS: u32 = 250;
/// A watch ends and begins anew after this many seconds, so that a dead connection is noticed.
const WATCH_SECONDS: u32 = 240;

/// One thing that became different.
#[derive(Debug)]
pub(super) enum Change {
    Rule(ObjectKey, Box<DynamicObject>),
    Gone(ObjectKey),
    /// The first list of one watch is complete.
    Synced,
}

/// An AlertRule.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct RuleSeen {
    pub(super) uid: String,
    pub(super) generation: i64,
    pub(super) resource_version: String,
    pub(super) deleted_at: Option<Timestamp>,
    pub(super) finalizers: Vec<String>,
    /// The cluster that it names.
    pub(super) cluster: ObjectKey,
    /// What pods get, or what is wrong.
    pub(super) verdict: Arc<Result<Accepted, Vec<FieldError>>>,
    pub(super) status: Option<AlertRuleStatus>,
}

impl RuleSeen {
    /// Reads an object. What is known of the same generation is not worked out again.
    pub(super) fn read(mut object: DynamicObject, before: Option<&Self>) -> Self {
        // Neither of these may make an object unreadable.
        object.metadata.managed_fields = None;
        let status = object.data.as_object_mut().and_then(|data| data.remove("status"));
        let metadata = &object.metadata;
        let uid = metadata.uid.clone().unwrap_or_default();
        let generation = metadata.generation.unwrap_or_default();
        let name = object.data.pointer("/spec/clusterRef/name").and_then(Value::as_str).unwrap_or_default();
        let cluster = ObjectKey::new(metadata.namespace.as_deref().unwrap_or_default(), name);
        let known = before.filter(|before| before.uid == uid && before.generation == generation);
        Self {
            resource_version: metadata.resource_version.clone().unwrap_or_default(),
            deleted_at: metadata.deletion_timestamp.as_ref().map(|time| time.0),
            finalizers: metadata.finalizers.clone().unwrap_or_default(),
            status: status.and_then(|status| serde_json::from_value(status).ok()),
            cluster,
            uid,
            generation,
            verdict: match known {
                Some(before) => Arc::clone(&before.verdict),
                None => Arc::new(checked(&object)),
            },
        }
    }

    pub(super) fn is_held(&self) -> bool {
        self.finalizers.iter().any(|finalizer| finalizer == FINALIZER)
    }
}

fn checked(object: &DynamicObject) -> Result<Accepted, Vec<FieldError>> {
    let value = serde_json::to_value(object).map_err(|error| vec![FieldError::new("", error.to_string())])?;
    validate(&AlertRule::read(value)?)
}

/// Watches AlertRules in `scope`, with one task for each namespace.
pub(super) fn watch(
    client: &Client,
    scope: &Scope,
    changes: &mpsc::Sender<Change>,
    metrics: &Arc<Metrics>,
) -> JoinSet<()> {
    let kind = ApiResource::erase::<AlertRule>(&());
    let apis: Vec<Api<DynamicObject>> = match scope {
        Scope::All => vec![Api::all_with(client.clone(), &kind)],
        Scope::Namespaces(names) => {
            names.iter().map(|name| Api::namespaced_with(client.clone(), name, &kind)).collect()
        }
    };
    let mut tasks = JoinSet::new();
    for api in apis {
        tasks.spawn(follow(api, changes.clone(), Arc::clone(metrics)));
    }
    tasks
}

async fn follow(api: Api<DynamicObject>, changes: mpsc::Sender<Change>, metrics: Arc<Metrics>) {
    let events = metrics.watch_events.with_label_values(&[WATCH]);
    let errors = metrics.watch_errors.with_label_values(&[WATCH]);
    let last = metrics.watch_last_event.with_label_values(&[WATCH]);
    let config = watcher::Config::default().page_size(PAGE_OBJECTS).timeout(WATCH_SECONDS);
    let mut stream = std::pin::pin!(watcher(api, config).default_backoff());
    // What was there, so that what a new list lacks is known to be gone.
    let (mut known, mut listed) = (HashSet::new(), HashSet::new());
    let (mut synced, mut failing) = (false, false);
    // The stream never ends by itself.
    while let Some(event) = stream.next().await {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                errors.inc();
                if !failing {
                    let reason = crate::local::chain(&error);
                    tracing::warn!(watch = WATCH, reason, "a watch failed; it begins anew");
                }
                failing = true;
                continue;
            }
        };
        failing = false;
        events.inc();
        last.set(i64::try_from(clock::now().as_secs()).unwrap_or(i64::MAX));
        let mut out = Vec::new();
        match event {
            watcher::Event::Init => listed.clear(),
            watcher::Event::InitApply(object) => {
                let key = key(&object);
                listed.insert(key.clone());
                out.push(Change::Rule(key, Box::new(object)));
            }
            watcher::Event::InitDone => {
                out.extend(known.difference(&listed).cloned().map(Change::Gone));
                known = std::mem::take(&mut listed);
                if !std::mem::replace(&mut synced, true) {
                    out.push(Change::Synced);
                }
            }
            watcher::Event::Apply(object) => {
                let key = key(&object);
                known.insert(key.clone());
                out.push(Change::Rule(key, Box::new(object)));
            }
            watcher::Event::Delete(object) => {
                let key = key(&object);
                known.remove(&key);
                out.push(Change::Gone(key));
            }
        }
        for change in out {
            // The controller reads until it ends, and then nobody wants to know.
            if changes.send(change).await.is_err() {
                return;
            }
        }
    }
}

fn key(object: &DynamicObject) -> ObjectKey {
    let metadata = &object.metadata;
    ObjectKey::new(
        metadata.namespace.as_deref().unwrap_or_default(),
        metadata.name.as_deref().unwrap_or_default(),
    )
}
