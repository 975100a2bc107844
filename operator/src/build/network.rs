//! How pods are reached, by whom, and what they are there: Services, NetworkPolicy, disruption budget, service account.

use k8s_openapi::api::core::v1::{Service, ServiceAccount, ServicePort, ServiceSpec};
use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{
    ADMIN_PORT, API_PORT, COMPONENT_LABEL, MANAGER, NAME_LABEL, headless_service_name, metadata, selector,
    selector_labels, service_account_name, workload_name,
};
use crate::validate::Cluster;

/// Value of [`COMPONENT_LABEL`] of the headless Service, so that one Service of a cluster is scraped and not both.
pub(super) const HEADLESS: &str = "pods";

pub(super) fn service_account(cluster: &Cluster) -> ServiceAccount {
    ServiceAccount {
        metadata: metadata(cluster, service_account_name(cluster)),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}

/// Whoever needs one certain pod finds it here even while it starts or drains: its metrics matter then most of all.
pub(super) fn headless_service(cluster: &Cluster) -> Service {
    Service {
        metadata: with_component(metadata(cluster, headless_service_name(cluster)), HEADLESS),
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".to_owned()),
            publish_not_ready_addresses: Some(true),
            selector: Some(selector_labels(cluster)),
            ports: Some(vec![service_port("api", API_PORT), service_port("admin", ADMIN_PORT)]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

pub(super) fn client_service(cluster: &Cluster) -> Service {
    Service {
        metadata: with_component(metadata(cluster, cluster.name.clone()), "api"),
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            selector: Some(selector_labels(cluster)),
            ports: Some(vec![service_port("api", API_PORT)]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

fn with_component(mut metadata: ObjectMeta, component: &str) -> ObjectMeta {
    metadata.labels.get_or_insert_default().insert(COMPONENT_LABEL.to_owned(), component.to_owned());
    metadata
}

pub(super) fn service_port(name: &str, port: i32) -> ServicePort {
    ServicePort {
        name: Some(name.to_owned()),
        port,
        target_port: Some(IntOrString::String(name.to_owned())),
        protocol: Some("TCP".to_owned()),
        ..ServicePort::default()
    }
}

/// A pod that is not ready serves nobody, so that it never keeps a node from being drained.
pub(super) fn pod_disruption_budget(cluster: &Cluster) -> PodDisruptionBudget {
    PodDisruptionBudget {
        metadata: metadata(cluster, workload_name(cluster).to_owned()),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            selector: Some(selector(cluster)),
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
            ..PodDisruptionBudgetSpec::default()
        }),
        status: None,
    }
}

/// Pods of one cluster share a database and never call each other, so nothing is open between them. What pods call is left
/// open: the database, the buckets and their sign-in services are wherever the user has them, and a policy that guessed
/// wrong would stop the ledger or leave it without its anchor.
pub(super) fn network_policy(cluster: &Cluster) -> NetworkPolicy {
    let clients = match cluster.network.clients.as_slice() {
        [] => vec![everywhere(None)],
        given => given.to_vec(),
    };
    let mut scrapers = vec![everywhere(Some(MANAGER))];
    scrapers.extend(cluster.monitoring.service_monitor.then(|| everywhere(Some("prometheus"))));
    policy(
        metadata(cluster, workload_name(cluster).to_owned()),
        selector(cluster),
        vec![ingress(API_PORT, clients), ingress(ADMIN_PORT, scrapers)],
    )
}

/// Pods of any namespace: those with this [`NAME_LABEL`], or all of them.
fn everywhere(name: Option<&str>) -> NetworkPolicyPeer {
    NetworkPolicyPeer {
        namespace_selector: Some(LabelSelector::default()),
        pod_selector: name.map(|name| LabelSelector {
            match_labels: Some([(NAME_LABEL.to_owned(), name.to_owned())].into()),
            match_expressions: None,
        }),
        ip_block: None,
    }
}

pub(super) fn ingress(port: i32, from: Vec<NetworkPolicyPeer>) -> NetworkPolicyIngressRule {
    NetworkPolicyIngressRule {
        from: Some(from),
        ports: Some(vec![NetworkPolicyPort {
            port: Some(IntOrString::Int(port)),
            protocol: Some("TCP".to_owned()),
            end_port: None,
        }]),
    }
}

pub(super) fn policy(
    metadata: ObjectMeta,
    pods: LabelSelector,
    ingress: Vec<NetworkPolicyIngressRule>,
) -> NetworkPolicy {
    NetworkPolicy {
        metadata,
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(pods),
            policy_types: Some(vec!["Ingress".to_owned()]),
            ingress: Some(ingress),
            egress: None,
        }),
    }
}
