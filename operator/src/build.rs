//! Builds the Kubernetes objects of a cluster. Pure and deterministic: the same cluster gives the same bytes, so that applying
//! them again changes nothing. Secrets are referred to, never read; what is generated once is made from given randomness.
//! On one machine the same objects are built, and the pod template is run as a process.
//! Reading order: this file lists the objects, `pods.rs` makes the workload, `secrets.rs` says what is secret.

mod config;
mod database;
mod monitoring;
mod network;
mod pods;
mod secrets;

use std::collections::BTreeMap;

use certeus_crds::{GROUP, VERSION};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use kube::Resource;
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use serde::Serialize;

pub use database::EmbeddedDatabase;
pub use secrets::{
    GeneratedSecret, SecretUse, api_key_name, database_secret, database_secret_name, generated_secrets,
    has_generated_api_key, secret_uses, secrets_hash, signing_key_name, signing_key_origin,
    signing_key_secret, signing_key_secret_key, with_api_key,
};

use crate::validate::Cluster;

/// Port of the API in a pod.
pub const API_PORT: i32 = 8000;
/// Port of metrics, health and drain in a pod.
pub const ADMIN_PORT: i32 = 9090;
/// Name of the one container of a pod.
pub const CONTAINER: &str = "dataplane";
/// Key of the configuration in the ConfigMap, and name of the file in the pod.
pub const CONFIG_FILE: &str = "config.yaml";
/// Annotation of the pod template that makes pods restart when the configuration changes.
pub const CONFIG_HASH: &str = "certeus.io/config-hash";
/// Annotation of the pod template that makes pods restart when a Secret changes that they refer to.
pub const SECRETS_HASH: &str = "certeus.io/secrets-hash";
/// The field manager of everything that is applied, and the value of the label by which what is owned is found.
pub const MANAGER: &str = "certeus-operator";

const NAME_LABEL: &str = "app.kubernetes.io/name";
const INSTANCE_LABEL: &str = "app.kubernetes.io/instance";
const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";
const COMPONENT_LABEL: &str = "app.kubernetes.io/component";
/// Value of [`NAME_LABEL`] of a cluster's pods and whatever belongs to them.
const DATAPLANE: &str = "certeus-dataplane";

/// What the objects follow from beside the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inputs {
    /// Pods wanted now; of a cluster that is being stopped fewer and fewer, as they drain.
    pub replicas: u32,
    /// What [`secrets_hash`] makes of the Secrets that the pods refer to. Pods are replaced when it changes.
    pub secrets_hash: Option<String>,
    /// Whether the Kubernetes cluster knows ServiceMonitors.
    pub service_monitors: bool,
    /// Image of the workload as it is; its tag stays while the user names no version.
    pub image: Option<String>,
}

/// Everything that runs a cluster, in the order in which to apply it: the workload last, as its pods need the rest.
/// What [`generated_secrets`] lists has to be there before.
#[derive(Clone, Debug, PartialEq)]
pub struct Objects {
    /// What the pods are; it has no rights.
    pub service_account: ServiceAccount,
    /// The configuration of the pods.
    pub config_map: ConfigMap,
    /// A name for each pod, ready or not.
    pub headless_service: Service,
    /// One name for all pods that are ready: the API alone.
    pub client_service: Service,
    /// Keeps evictions from taking several pods at once; from two pods on.
    pub pod_disruption_budget: Option<PodDisruptionBudget>,
    /// Who may reach the pods.
    pub network_policy: NetworkPolicy,
    /// The embedded database, if that is wanted.
    pub database: Option<EmbeddedDatabase>,
    /// What a Prometheus operator needs to scrape the pods, if that is wanted.
    pub service_monitor: Option<DynamicObject>,
    /// A Grafana dashboard, if that is wanted.
    pub dashboard: Option<ConfigMap>,
    /// The pods.
    pub stateful_set: StatefulSet,
}

/// An object of any kind, ready to be applied.
#[derive(Clone, Debug, PartialEq)]
pub struct Owned {
    /// Which kind it is.
    pub resource: ApiResource,
    /// The object.
    pub object: DynamicObject,
}

impl Objects {
    /// All of them in the order in which to apply them.
    #[must_use]
    pub fn all(&self) -> Vec<Owned> {
        let Self {
            service_account,
            config_map,
            headless_service,
            client_service,
            pod_disruption_budget,
            network_policy,
            database,
            service_monitor,
            dashboard,
            stateful_set,
        } = self;
        let mut all =
            vec![owned(service_account), owned(config_map), owned(headless_service), owned(client_service)];
        all.extend(pod_disruption_budget.as_ref().map(owned));
        all.push(owned(network_policy));
        if let Some(EmbeddedDatabase { network_policy, service, stateful_set }) = database {
            all.extend([owned(network_policy), owned(service), owned(stateful_set)]);
        }
        let service_monitor = service_monitor.clone();
        all.extend(service_monitor.map(|object| Owned { resource: service_monitor_resource(), object }));
        all.extend(dashboard.as_ref().map(owned));
        all.push(owned(stateful_set));
        all
    }
}

/// The kinds of which a cluster may own objects: where to look for those that it no longer needs. Secrets are not among
/// them: what was generated once is never removed.
#[must_use]
pub fn owned_kinds(service_monitors: bool) -> Vec<ApiResource> {
    let mut kinds = vec![
        ApiResource::erase::<ServiceAccount>(&()),
        ApiResource::erase::<ConfigMap>(&()),
        ApiResource::erase::<Service>(&()),
        ApiResource::erase::<PodDisruptionBudget>(&()),
        ApiResource::erase::<NetworkPolicy>(&()),
        ApiResource::erase::<StatefulSet>(&()),
    ];
    kinds.extend(service_monitors.then(service_monitor_resource));
    kinds
}

/// The kind of the Prometheus operator by which it learns what to scrape.
#[must_use]
pub fn service_monitor_resource() -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk("monitoring.coreos.com", "v1", "ServiceMonitor"))
}

#[expect(
    clippy::expect_used,
    reason = "types of Kubernetes have string keys and nothing else that could fail, and all have metadata"
)]
fn owned<K: Resource<DynamicType = ()> + Serialize>(object: &K) -> Owned {
    let object = serde_json::to_value(object).and_then(serde_json::from_value);
    Owned { resource: ApiResource::erase::<K>(&()), object: object.expect("API objects are JSON") }
}

/// Builds the objects of `cluster`.
#[must_use]
pub fn build(cluster: &Cluster, inputs: &Inputs) -> Objects {
    let Inputs { replicas, secrets_hash, service_monitors, image } = inputs;
    let replicas = *replicas;
    let config = config::pod_config(cluster);
    let monitoring = &cluster.monitoring;
    Objects {
        service_account: network::service_account(cluster),
        headless_service: network::headless_service(cluster),
        client_service: network::client_service(cluster),
        pod_disruption_budget: (replicas > 1).then(|| network::pod_disruption_budget(cluster)),
        network_policy: network::network_policy(cluster),
        database: database::embedded(cluster, replicas),
        service_monitor: (monitoring.service_monitor && *service_monitors)
            .then(|| monitoring::service_monitor(cluster)),
        dashboard: monitoring.dashboard.then(|| monitoring::dashboard(cluster)),
        stateful_set: pods::stateful_set(
            cluster,
            replicas,
            &config::hash(&config),
            secrets_hash.as_deref(),
            &cluster.image.resolve(image.as_deref()),
        ),
        config_map: ConfigMap {
            metadata: metadata(cluster, config_map_name(cluster)),
            data: Some([(CONFIG_FILE.to_owned(), config)].into()),
            ..ConfigMap::default()
        },
    }
}

/// The label selector of the cluster's pods, as text.
#[must_use]
pub fn selector_text(cluster: &Cluster) -> String {
    join(&selector_labels(cluster))
}

/// The label selector, as text, of all objects that belong to the cluster.
#[must_use]
pub fn owned_selector(cluster: &Cluster) -> String {
    let labels = [(INSTANCE_LABEL, cluster.name.as_str()), (MANAGED_BY_LABEL, MANAGER)];
    join(&labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into())
}

fn join(labels: &BTreeMap<String, String>) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

/// Name of the workload. Its pods are called `NAME-0` and so on.
#[must_use]
pub fn workload_name(cluster: &Cluster) -> &str {
    &cluster.name
}

/// Name of the claim of a pod's volume, as the StatefulSet makes it.
#[must_use]
pub fn spool_claim_name(cluster: &Cluster, ordinal: u32) -> String {
    format!("{}-{}-{ordinal}", pods::SPOOL_VOLUME, workload_name(cluster))
}

fn config_map_name(cluster: &Cluster) -> String {
    format!("{}-config", cluster.name)
}

/// Part of each pod's DNS name and of its workload for ever: Kubernetes lets nobody change a StatefulSet's `serviceName`.
fn headless_service_name(cluster: &Cluster) -> String {
    format!("{}-pods", cluster.name)
}

/// What a user of the namespace can be taken for is what it is called: never the namespace's own `default`.
fn service_account_name(cluster: &Cluster) -> String {
    format!("{}-dataplane", cluster.name)
}

fn selector_labels(cluster: &Cluster) -> BTreeMap<String, String> {
    [(NAME_LABEL, DATAPLANE), (INSTANCE_LABEL, &cluster.name)]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
}

fn labels(cluster: &Cluster) -> BTreeMap<String, String> {
    let mut labels = selector_labels(cluster);
    labels.insert(MANAGED_BY_LABEL.to_owned(), MANAGER.to_owned());
    labels
}

fn selector(cluster: &Cluster) -> LabelSelector {
    LabelSelector { match_labels: Some(selector_labels(cluster)), match_expressions: None }
}

/// Metadata of an object that goes when the cluster is deleted.
fn metadata(cluster: &Cluster, name: String) -> ObjectMeta {
    let owner = cluster.uid.as_ref().map(|uid| OwnerReference {
        api_version: format!("{GROUP}/{VERSION}"),
        kind: "LedgerCluster".to_owned(),
        name: cluster.name.clone(),
        uid: uid.clone(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    });
    ObjectMeta {
        name: Some(name),
        namespace: Some(cluster.namespace.clone()),
        labels: Some(labels(cluster)),
        owner_references: owner.map(|owner| vec![owner]),
        ..ObjectMeta::default()
    }
}

#[cfg(test)]
mod tests;
