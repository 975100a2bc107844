//! What the operator reports about a `LedgerCluster`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the operator last saw and did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LedgerClusterStatus {
    /// The generation of the spec that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Pods that exist.
    #[serde(default)]
    pub replicas: u32,
    /// Pods that take events.
    #[serde(default)]
    pub ready_replicas: u32,
    /// Pods the operator wants.
    #[serde(default)]
    pub desired_replicas: u32,
    /// Label selector of the pods, for the scale subresource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// What each trigger measured last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub triggers: Vec<TriggerStatus>,
    /// The last decision that changed the number of pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_decision: Option<LastDecision>,
    /// Pods that finish what they have accepted before they go.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub draining: Vec<DrainingPod>,
    /// Volumes on which requests wait since the cluster was stopped, as the database was away or nobody could tell. Their pods come
    /// back with the cluster and stay until the database has them. Keep these volumes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub spooled_volumes: Vec<SpooledVolume>,
    /// Image of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Where the database is: the Secret and key that hold its URL, or that it is embedded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
    /// Public keys that verify the log's checkpoints, as `name+hash+base64`. The name is the log's origin.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub verifier_keys: Vec<String>,
    /// Ready: enough pods take events. Progressing: what runs is being changed. Degraded: something needs attention.
    /// Accepted: the spec can be carried out. ScalingActive: load is being measured. ScalingLimited: a bound or a rate holds
    /// the number of pods. DatabaseReachable and SigningKey: these are as they must be. Others stand here only while they
    /// are true.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// A pod that finishes what it has accepted before it goes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DrainingPod {
    /// The pod's name.
    pub name: String,
    /// What it waits for, or what went wrong. Absent while all goes as it should.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// A volume on which requests wait.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SpooledVolume {
    /// Name of its PersistentVolumeClaim.
    pub name: String,
    /// Requests that wait on it. Absent when the pod could not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub records: Option<u64>,
}

/// What one trigger measured last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TriggerStatus {
    /// `cpu` or `queueDepth`.
    pub name: String,
    /// Mean over the pods as a fraction of what one pod can take, to two decimals. Absent when it could not be measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<f64>,
    /// Number of pods this trigger asks for, before any limit. Absent when it could not be measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proposed_replicas: Option<u32>,
    /// Why there is no value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// One scaling decision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastDecision {
    /// When it was taken.
    pub time: Time,
    /// Pods before.
    pub from: u32,
    /// Pods wanted.
    pub to: u32,
    /// One word for it, such as `ScaleUp` or `ScaleDown`.
    pub reason: String,
    /// The whole explanation.
    pub message: String,
}
