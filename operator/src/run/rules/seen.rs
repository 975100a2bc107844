//! AlertRules and PrometheusRules as the API server has them, checked once for each generation, and the watches that bring them.
//! Of the specification nothing is kept but what is sent to pods. Keys are the names under which pods know the rules.

use std::sync::Arc;

use certeus_crds::{AlertRule, AlertRuleStatus, FieldError};
use certeus_operator::rules::{
    Accepted, CLUSTER_LABEL, import, imported_name, name_of_imported, prometheus_rule_resource, validate,
};
use jiff::Timestamp;
use kube::api::{ApiResource, DynamicObject};
use kube::runtime::watcher;
use kube::{Api, Client};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::super::Scope;
use super::super::follow::{Need, Outlet, follow};
use super::super::lists::Listing;
use super::super::pods::ObjectKey;
use super::super::telemetry::{Health, Metrics};
use super::room::{CLUSTER_BYTES_MAX, TOTAL_BYTES_MAX};

/// Keeps an object until no pod has its rules any more.
pub(super) const FINALIZER: &str = "certeus.io/rules";

/// Objects of one page of a list: a rule may have a megabyte and more.
const PAGE_OBJECTS: u32 = 10;
/// Mistakes of an object that are kept; its status tells fewer.
const ERRORS_MAX: usize = 32;
/// Of each, and of where it is.
const ERROR_BYTES_MAX: usize = 1024;

/// One thing that became different.
#[derive(Debug)]
pub(super) enum Change {
    Rule(ObjectKey, Box<DynamicObject>),
    /// An object that was read again: older or newer than what the watch has shown, perhaps.
    Again(ObjectKey, Box<DynamicObject>),
    Gone(ObjectKey),
    /// How the list of one watch fares.
    List(Listing),
    /// Whether the API server knows PrometheusRules.
    Imports(bool),
}

/// Where rules come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    AlertRule,
    /// One that a label gives to a cluster. Such an object is only read.
    PrometheusRule,
}

/// An object with rules.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct RuleSeen {
    pub(super) origin: Origin,
    pub(super) uid: String,
    pub(super) generation: i64,
    pub(super) resource_version: String,
    pub(super) deleted_at: Option<Timestamp>,
    pub(super) finalizers: Vec<String>,
    /// The cluster that it names.
    pub(super) cluster: ObjectKey,
    /// What pods get, or what is wrong.
    pub(super) verdict: Arc<Result<Accepted, Vec<FieldError>>>,
    /// Nothing is wrong with it, but there was no room to keep it.
    pub(super) lacks_room: bool,
    pub(super) status: Option<AlertRuleStatus>,
}

impl RuleSeen {
    /// Reads an object. What is known of the same generation is not worked out again.
    pub(super) fn read(key: &ObjectKey, mut object: DynamicObject, before: Option<&Self>) -> Self {
        // Neither of these may make an object unreadable.
        object.metadata.managed_fields = None;
        let status = object.data.as_object_mut().and_then(|data| data.remove("status"));
        let metadata = object.metadata.clone();
        let (origin, cluster, finalizers, status) = if name_of_imported(&key.name).is_some() {
            let labels = metadata.labels.unwrap_or_default();
            // Its finalizers and its status are those of others.
            (Origin::PrometheusRule, labels.get(CLUSTER_LABEL).cloned(), Vec::new(), None)
        } else {
            let name = object.data.pointer("/spec/clusterRef/name").and_then(Value::as_str);
            let status = status.and_then(|status| serde_json::from_value(status).ok());
            (Origin::AlertRule, name.map(ToOwned::to_owned), metadata.finalizers.unwrap_or_default(), status)
        };
        let uid = metadata.uid.unwrap_or_default();
        let generation = metadata.generation.unwrap_or_default();
        let same = |before: &&Self| before.uid == uid && before.generation == generation;
        let known = before.filter(same).filter(|before| !before.lacks_room);
        Self {
            origin,
            resource_version: metadata.resource_version.unwrap_or_default(),
            deleted_at: metadata.deletion_timestamp.map(|time| time.0),
            finalizers,
            cluster: ObjectKey::new(&key.namespace, &cluster.unwrap_or_default()),
            status,
            verdict: match (known, origin) {
                (Some(before), _) => Arc::clone(&before.verdict),
                (None, Origin::AlertRule) => Arc::new(checked(&object)),
                (None, Origin::PrometheusRule) => Arc::new(import(object).map_err(kept)),
            },
            uid,
            generation,
            lacks_room: false,
        }
    }

    /// The bytes that are kept to be sent.
    pub(super) fn body_bytes(&self) -> usize {
        (*self.verdict).as_ref().map_or(0, |accepted| accepted.body.len())
    }

    /// Without what there is no room for. Pods keep an earlier generation.
    pub(super) fn drop_body(&mut self) {
        let problem = format!(
            "these {} bytes find no room beside the rules that are kept already: {CLUSTER_BYTES_MAX} bytes for one cluster, \
             {TOTAL_BYTES_MAX} for all of them; they are tried again when others are removed or made smaller",
            self.body_bytes()
        );
        self.verdict = Arc::new(Err(vec![FieldError::new("spec", problem)]));
        self.lacks_room = true;
    }

    /// Whether it has our finalizer.
    pub(super) fn is_held(&self) -> bool {
        self.finalizers.iter().any(|finalizer| finalizer == FINALIZER)
    }
}

fn checked(object: &DynamicObject) -> Result<Accepted, Vec<FieldError>> {
    let value = serde_json::to_value(object).map_err(|error| vec![FieldError::new("", error.to_string())])?;
    AlertRule::read(value).and_then(|rule| validate(&rule)).map_err(kept)
}

/// Mistakes as far as they are worth keeping: they may be many and quote an object of more than a megabyte.
fn kept(mut errors: Vec<FieldError>) -> Vec<FieldError> {
    errors.truncate(ERRORS_MAX);
    for FieldError { path, problem } in &mut errors {
        for text in [path, problem] {
            text.truncate(text.floor_char_boundary(ERROR_BYTES_MAX));
            text.shrink_to_fit();
        }
    }
    errors.shrink_to_fit();
    errors
}

/// Reads objects again; false if one could not be had. Those that are gone are left to the watch.
pub(super) async fn read_again(client: Client, keys: Vec<ObjectKey>, changes: mpsc::Sender<Change>) -> bool {
    let mut complete = true;
    for key in keys {
        let (kind, name) = match name_of_imported(&key.name) {
            Some(name) => (prometheus_rule_resource(), name),
            None => (ApiResource::erase::<AlertRule>(&()), &*key.name),
        };
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &key.namespace, &kind);
        match api.get_opt(name).await {
            Ok(Some(object)) => {
                // Whoever does not take it has ended.
                let _taken = changes.send(Change::Again(key, Box::new(object))).await;
            }
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(rule = %key, reason = %error, "rules cannot be read again");
                complete = false;
            }
        }
    }
    complete
}

/// The name of the watch of AlertRules.
pub(super) const WATCH: &str = "alertrules";
/// The name of the watch of PrometheusRules.
pub(super) const IMPORTS_WATCH: &str = "prometheusrules";

/// Starts the watches of rules.
pub(super) struct Watching {
    pub(super) client: Client,
    pub(super) scope: Scope,
    pub(super) changes: mpsc::Sender<Change>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) health: Arc<Health>,
}

impl Watching {
    /// One task for each watched namespace.
    pub(super) fn start(&self, origin: Origin, tasks: &mut JoinSet<()>) {
        let config = watcher::Config::default().page_size(PAGE_OBJECTS);
        let (name, need, kind, config) = match origin {
            Origin::AlertRule => (WATCH, Need::Required, ApiResource::erase::<AlertRule>(&()), config),
            // Their definition, or the right to read them, may be missing: that must not end the process.
            Origin::PrometheusRule => {
                (IMPORTS_WATCH, Need::Helpful, prometheus_rule_resource(), config.labels(CLUSTER_LABEL))
            }
        };
        for (place, namespace) in self.scope.namespaces().into_iter().enumerate() {
            let api: Api<DynamicObject> = match namespace {
                None => Api::all_with(self.client.clone(), &kind),
                Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &kind),
            };
            let Self { changes, metrics, health, client: _, scope: _ } = self;
            let outlet = Outlet::new(changes, metrics, health, (place, namespace), Change::List);
            let change = move |key: ObjectKey, object: Option<Box<DynamicObject>>| {
                let key = match origin {
                    Origin::AlertRule => key,
                    Origin::PrometheusRule => ObjectKey::new(&key.namespace, &imported_name(&key.name)),
                };
                match object {
                    Some(object) => Change::Rule(key, object),
                    None => Change::Gone(key),
                }
            };
            let read = |object| Some(Box::new(object));
            tasks.spawn(follow(name, need, api, config.clone(), read, change, outlet));
        }
    }
}
