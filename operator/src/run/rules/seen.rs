//! AlertRules as the API server has them, checked once for each generation, and the watch that brings them.
//! Of the specification nothing is kept but what is sent to pods.

use std::sync::Arc;

use certeus_crds::{AlertRule, AlertRuleStatus, FieldError};
use certeus_operator::rules::{Accepted, validate};
use jiff::Timestamp;
use kube::api::{ApiResource, DynamicObject};
use kube::runtime::watcher;
use kube::{Api, Client};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::super::Scope;
use super::super::follow::{Need, Outlet, follow};
use super::super::pods::ObjectKey;
use super::super::telemetry::{Health, Metrics};

/// Keeps an object until no pod has its rules any more.
pub(super) const FINALIZER: &str = "certeus.io/rules";

/// Objects of one page of a list: a rule may have a megabyte and more.
const PAGE_OBJECTS: u32 = 10;

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
    health: &Arc<Health>,
) -> JoinSet<()> {
    let kind = ApiResource::erase::<AlertRule>(&());
    let apis: Vec<Api<DynamicObject>> = match scope {
        Scope::All => vec![Api::all_with(client.clone(), &kind)],
        Scope::Namespaces(names) => {
            names.iter().map(|name| Api::namespaced_with(client.clone(), name, &kind)).collect()
        }
    };
    let mut tasks = JoinSet::new();
    for (place, api) in apis.into_iter().enumerate() {
        let (changes, metrics, health) = (changes.clone(), Arc::clone(metrics), Arc::clone(health));
        let outlet = Outlet { changes, metrics, health, place, synced: || Change::Synced };
        let change = |key, object: Option<Box<DynamicObject>>| match object {
            Some(object) => Change::Rule(key, object),
            None => Change::Gone(key),
        };
        let read = |object| Some(Box::new(object));
        let config = watcher::Config::default().page_size(PAGE_OBJECTS);
        tasks.spawn(follow("alertrules", Need::Required, api, config, read, change, outlet));
    }
    tasks
}
