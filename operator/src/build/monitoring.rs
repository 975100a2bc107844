//! What watches a cluster from outside: a ServiceMonitor for a Prometheus operator and a dashboard for Grafana.
//! The dashboard shows metrics that `dataplane/ledger` and `dataplane/server` export, by the labels `namespace` and `pod`,
//! which a ServiceMonitor and the usual scrape configurations give alike.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::core::DynamicObject;
use serde_json::json;

use super::config::hash;
use super::network::HEADLESS;
use super::{COMPONENT_LABEL, metadata, selector_labels, service_monitor_resource, workload_name};
use crate::validate::Cluster;

/// Label by which Grafana's sidecar finds dashboards.
const DASHBOARD_LABEL: &str = "grafana_dashboard";
/// A dashboard of Grafana with the placeholders `@NAMESPACE@`, `@CLUSTER@` and `@UID@`.
const DASHBOARD: &str = include_str!("dashboard.json");
/// Grafana takes 40 characters.
const UID_CHARACTERS: usize = 24;

pub(super) fn service_monitor(cluster: &Cluster) -> DynamicObject {
    let mut labels = selector_labels(cluster);
    labels.insert(COMPONENT_LABEL.to_owned(), HEADLESS.to_owned());
    let mut endpoint = json!({ "port": "admin", "path": "/metrics", "interval": "15s" });
    if let Some(key) = &cluster.security.api_key_secret_ref {
        let credentials = json!({ "name": key.name, "key": key.key });
        endpoint["authorization"] = json!({ "type": "Bearer", "credentials": credentials });
    }
    let mut object = DynamicObject::new(workload_name(cluster), &service_monitor_resource());
    object.metadata = metadata(cluster, workload_name(cluster).to_owned());
    object.data(json!({ "spec": { "selector": { "matchLabels": labels }, "endpoints": [endpoint] } }))
}

pub(super) fn dashboard(cluster: &Cluster) -> ConfigMap {
    let (namespace, name) = (&cluster.namespace, &cluster.name);
    let mut uid = hash(&format!("{namespace}/{name}"));
    uid.truncate(UID_CHARACTERS);
    let dashboard =
        DASHBOARD.replace("@NAMESPACE@", namespace).replace("@CLUSTER@", name).replace("@UID@", &uid);
    let mut metadata = metadata(cluster, format!("{name}-dashboard"));
    metadata.labels.get_or_insert_default().insert(DASHBOARD_LABEL.to_owned(), "1".to_owned());
    ConfigMap {
        metadata,
        data: Some([(format!("certeus-{namespace}-{name}.json"), dashboard)].into()),
        ..ConfigMap::default()
    }
}
