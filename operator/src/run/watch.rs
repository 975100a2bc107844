//! What the operator watches, cut down to what it needs: objects in, [`Change`]s out.
//!
//! Bodies are read where they count (LedgerClusters, StatefulSets, pods, autoscalers) and dropped at once but for a few fields;
//! of everything else only metadata crosses the wire. Secrets are never held: only that one changed is passed on. Nothing here
//! decides anything. Read next: `follow.rs`.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::Arc;

use certeus_crds::{FieldError, LedgerCluster, LedgerClusterStatus};
use certeus_operator::build;
use certeus_operator::validate::{Cluster, validate};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::{ApiResource, DynamicObject, PartialObjectMeta};
use kube::core::NamespaceScope;
use kube::runtime::watcher;
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::Scope;
use super::follow::{Need, Outlet, follow};
use super::lists::Listing;
use super::owned::{Seen, Workload};
use super::pods::{INSTANCE_LABEL, ObjectKey, PodSeen};
use super::telemetry::{Health, Metrics};

/// Objects of ours of every kind carry it.
const OURS: &str = "app.kubernetes.io/managed-by=certeus-operator";
/// Secrets that nobody refers to from a LedgerCluster, and of which there may be very many.
const SECRETS: &str = "type!=helm.sh/release.v1,type!=kubernetes.io/service-account-token";
/// A LedgerCluster as the API server has it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ClusterSeen {
    pub(crate) uid: String,
    pub(crate) generation: Option<i64>,
    pub(crate) resource_version: String,
    pub(crate) deleted: bool,
    /// What it asks for, or why that cannot be carried out.
    pub(crate) cluster: Result<Arc<Cluster>, Vec<FieldError>>,
    pub(crate) status: Option<LedgerClusterStatus>,
}

/// One thing that became different; `None` means that it is gone.
#[derive(Debug)]
pub(crate) enum Change {
    Cluster(ObjectKey, Option<Box<ClusterSeen>>),
    Pod(ObjectKey, Option<Box<(ObjectKey, PodSeen)>>),
    /// The kind's name and the object's.
    Owned(&'static str, ObjectKey, Option<Box<(ObjectKey, Seen)>>),
    /// Something about a Secret, present or not.
    Secret(ObjectKey),
    /// Whether the API server knows ServiceMonitors.
    ServiceMonitors(bool),
    /// An autoscaler and the StatefulSet that it scales.
    Autoscaler(ObjectKey, Option<ObjectKey>),
    /// How the list of a watch fares.
    List(Listing),
}

/// All watches, as tasks, and whose lists there are to wait for in each watched namespace.
#[derive(Default)]
pub(crate) struct Watches {
    pub(crate) tasks: JoinSet<()>,
    pub(crate) required: BTreeSet<&'static str>,
}

/// Starts all watches in `scope`.
pub(crate) fn start(
    client: &Client,
    scope: &Scope,
    changes: &mpsc::Sender<Change>,
    metrics: &Arc<Metrics>,
    health: &Arc<Health>,
) -> Watches {
    let mut watches = Watches::default();
    for (place, namespace) in scope.namespaces().into_iter().enumerate() {
        let outlet = Outlet::new(changes, metrics, health, (place, namespace), Change::List);
        Start { client, namespace, outlet }.all(&mut watches);
    }
    watches
}

/// Starts the watch of a kind that may come while the operator runs.
pub(crate) fn start_service_monitors(
    client: &Client,
    scope: &Scope,
    changes: &mpsc::Sender<Change>,
    metrics: &Arc<Metrics>,
    health: &Arc<Health>,
) -> JoinSet<()> {
    let mut watches = Watches::default();
    for (place, namespace) in scope.namespaces().into_iter().enumerate() {
        let outlet = Outlet::new(changes, metrics, health, (place, namespace), Change::List);
        let start = Start { client, namespace, outlet };
        start.metadata(&build::service_monitor_resource(), Need::Helpful, &mut watches);
    }
    watches.tasks
}

struct Start<'a> {
    client: &'a Client,
    namespace: Option<&'a str>,
    outlet: Outlet<Change>,
}

impl Start<'_> {
    fn all(&self, watches: &mut Watches) {
        let ours = watcher::Config::default().labels(OURS);
        let all = watcher::Config::default();
        let clusters = self.api::<DynamicObject>(&ApiResource::erase::<LedgerCluster>(&()));
        self.spawn(
            watches,
            "ledgerclusters",
            Need::Required,
            clusters,
            all.clone(),
            read_cluster,
            Change::Cluster,
        );
        self.spawn(
            watches,
            "pods",
            Need::Required,
            self.api::<Pod>(&()),
            ours.clone(),
            read_pod,
            Change::Pod,
        );
        let sets = self.api::<StatefulSet>(&());
        let set = |key, seen| Change::Owned("StatefulSet", key, seen);
        self.spawn(watches, "statefulsets", Need::Required, sets, ours.clone(), read_set, set);
        for kind in build::owned_kinds(false) {
            self.metadata(&kind, Need::Required, watches);
        }
        let secrets = self.api::<PartialObjectMeta<Secret>>(&());
        let secret = |key, _seen: Option<()>| Change::Secret(key);
        self.spawn(
            watches,
            "secrets",
            Need::Helpful,
            secrets,
            all.clone().fields(SECRETS),
            |_| Some(()),
            secret,
        );
        let autoscalers = self.api::<HorizontalPodAutoscaler>(&());
        let target = Change::Autoscaler;
        self.spawn(watches, "autoscalers", Need::Helpful, autoscalers, all, read_autoscaler, target);
    }

    /// Watches only the metadata of what is ours of a kind.
    fn metadata(&self, kind: &ApiResource, need: Need, watches: &mut Watches) {
        let Some((name, watch)) = known(&kind.kind) else { return };
        let objects = self.api::<PartialObjectMeta<DynamicObject>>(kind);
        let owned = move |key, seen| Change::Owned(name, key, seen);
        let ours = watcher::Config::default().labels(OURS);
        self.spawn(watches, watch, need, objects, ours, read_metadata, owned);
    }

    fn api<K: Resource<Scope: NamespaceScope>>(&self, kind: &K::DynamicType) -> Api<K> {
        let api = Api::all_with(self.client.clone(), kind);
        match self.namespace {
            Some(namespace) => api.constrain(namespace),
            None => api,
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one row of the table above")]
    fn spawn<K, V>(
        &self,
        watches: &mut Watches,
        name: &'static str,
        need: Need,
        api: Api<K>,
        config: watcher::Config,
        read: impl Fn(K) -> Option<V> + Send + 'static,
        change: impl Fn(ObjectKey, Option<V>) -> Change + Send + 'static,
    ) where
        K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
        V: Send + 'static,
    {
        if need == Need::Required {
            watches.required.insert(name);
        }
        let outlet = self.outlet.clone();
        watches.tasks.spawn(follow(name, need, api, config, read, change, outlet));
    }
}

/// The kinds of which metadata is enough: their names in errors and metrics, and their watches'. StatefulSets are watched
/// with their bodies.
fn known(kind: &str) -> Option<(&'static str, &'static str)> {
    match kind {
        "ServiceAccount" => Some(("ServiceAccount", "serviceaccounts")),
        "ConfigMap" => Some(("ConfigMap", "configmaps")),
        "Service" => Some(("Service", "services")),
        "PodDisruptionBudget" => Some(("PodDisruptionBudget", "poddisruptionbudgets")),
        "NetworkPolicy" => Some(("NetworkPolicy", "networkpolicies")),
        "ServiceMonitor" => Some(("ServiceMonitor", "servicemonitors")),
        _ => None,
    }
}

/// The cluster that an object of ours belongs to.
fn cluster<K: Resource>(object: &K) -> Option<ObjectKey> {
    let meta = object.meta();
    Some(ObjectKey::new(meta.namespace.as_deref()?, meta.labels.as_ref()?.get(INSTANCE_LABEL)?))
}

fn read_cluster(mut object: DynamicObject) -> Option<Box<ClusterSeen>> {
    object.metadata.managed_fields = None;
    // A status of another version must not make the object unreadable.
    let status = object.data.as_object_mut().and_then(|data| data.remove("status"));
    let metadata = object.metadata.clone();
    let whole = serde_json::to_value(&object).map_err(|error| vec![FieldError::new("", error.to_string())]);
    Some(Box::new(ClusterSeen {
        uid: metadata.uid.unwrap_or_default(),
        generation: metadata.generation,
        resource_version: metadata.resource_version.unwrap_or_default(),
        deleted: metadata.deletion_timestamp.is_some(),
        cluster: whole.and_then(checked),
        status: status.and_then(|status| serde_json::from_value(status).ok()),
    }))
}

/// What a LedgerCluster asks for, or everything that is wrong with it.
pub(crate) fn checked(object: serde_json::Value) -> Result<Arc<Cluster>, Vec<FieldError>> {
    let cluster = LedgerCluster::read(object).and_then(|object| validate(&object))?;
    Ok(Arc::new(build::with_api_key(cluster)))
}

#[expect(clippy::needless_pass_by_value, reason = "as the other readers")]
fn read_pod(pod: Pod) -> Option<Box<(ObjectKey, PodSeen)>> {
    // The embedded database's pod is none of ours to scale.
    let component = pod.metadata.labels.as_ref().and_then(|labels| labels.get("app.kubernetes.io/name"));
    if component.is_none_or(|name| name != "certeus-dataplane") {
        return None;
    }
    Some(Box::new((cluster(&pod)?, PodSeen::read(&pod)?)))
}

#[expect(clippy::needless_pass_by_value, reason = "as the other readers")]
fn read_set(set: StatefulSet) -> Option<Box<(ObjectKey, Seen)>> {
    let workload = Workload::read(&set);
    Some(Box::new((cluster(&set)?, Seen { workload: Some(Box::new(workload)), ..Seen::read(&set.metadata) })))
}

#[expect(clippy::needless_pass_by_value, reason = "as the other readers")]
fn read_metadata(object: PartialObjectMeta<DynamicObject>) -> Option<Box<(ObjectKey, Seen)>> {
    Some(Box::new((cluster(&object)?, Seen::read(&object.metadata))))
}

fn read_autoscaler(autoscaler: HorizontalPodAutoscaler) -> Option<ObjectKey> {
    let namespace = autoscaler.metadata.namespace?;
    let target = autoscaler.spec.scale_target_ref;
    (target.kind == "StatefulSet").then(|| ObjectKey::new(&namespace, &target.name))
}
