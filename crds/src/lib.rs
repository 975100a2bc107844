//! The custom resources of group `certeus.io`: their types, defaults, rules and the YAML that installs them.
//! Owns what a user may write. Must never talk to an API server, read a clock or know how a cluster is run.
//! Promises: [`LedgerCluster::check`] and [`AlertRule::check`] refuse what the API server would refuse, with the
//! path of the field and what would be valid there, so that a manifest means the same with and without Kubernetes.
//! Read next: `ledger_cluster.rs`, then `schema.rs`.

use std::fmt;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;

mod alert_rule;
mod autoscaling;
mod duration;
mod image;
mod ledger_cluster;
mod quantity;
mod schema;
mod sections;
mod security;
mod status;
#[cfg(test)]
mod tests;

pub use alert_rule::{
    AlertCounts, AlertRule, AlertRuleSpec, AlertRuleStatus, AlertState, ClusterRef, NotifyTarget, Rule,
    RuleGroup,
};
pub use autoscaling::{
    Autoscaling, Behavior, CpuTrigger, Fallback, QueueDepthTrigger, RatePolicy, RatePolicyType, ScalingRules,
    SelectPolicy,
};
pub use duration::{Duration, DurationError};
pub use ledger_cluster::{LedgerCluster, LedgerClusterSpec, NAME_LENGTH_MAX};
pub use quantity::{ByteSize, QuantityError, bytes, millicores};
pub use schema::{crds, element_path, field_path, read_builtin};
pub use sections::{
    Database, LedgerSettings, Log, Monitoring, Network, Proofs, Retention, Scheduling, SecretKeyRef, Spool,
};
pub use security::{SecretRef, Security};
pub use status::{DrainingPod, LastDecision, LedgerClusterStatus, SpooledVolume, TriggerStatus};

/// API group of all resources here.
pub const GROUP: &str = "certeus.io";
/// The one version of the group.
pub const VERSION: &str = "v1alpha1";

/// What is wrong with one field, and what would be valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// Path from the root of the object, such as `spec.autoscaling.cpu.target` or `spec.groups[0].rules[1].expr`.
    pub path: String,
    /// What is wrong, and what would be valid.
    pub problem: String,
}

impl FieldError {
    /// An error at `path`.
    pub fn new(path: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { path: path.into(), problem: problem.into() }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.problem)
    }
}

impl std::error::Error for FieldError {}

/// The definitions as YAML documents, ready for `kubectl apply -f -`.
///
/// # Errors
/// When a definition cannot be written as YAML, which would be a defect of this crate.
pub fn yaml() -> Result<String, serde_saphyr::ser_error::Error> {
    crds().iter().map(document).collect()
}

/// One definition as a YAML document with its leading `---`.
fn document(crd: &CustomResourceDefinition) -> Result<String, serde_saphyr::ser_error::Error> {
    Ok(format!("---\n{}", serde_saphyr::to_string(crd)?))
}
