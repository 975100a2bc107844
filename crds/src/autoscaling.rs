//! The part of a `LedgerCluster` that says how the number of pods follows the load.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Duration;
use crate::ledger_cluster::rule;

/// How the number of pods follows the load.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [
    rule("self.min <= self.max", MIN_MAX).field_path(".min"),
    rule("!self.enabled || self.cpu.enabled || self.queueDepth.enabled", NO_TRIGGER).field_path(".cpu"),
    rule("!has(self.fallback) || (self.fallback.replicas >= self.min && self.fallback.replicas <= self.max)", FALLBACK_RANGE)
        .field_path(".fallback"),
]))]
pub struct Autoscaling {
    /// Whether the operator scales. Default: true.
    pub enabled: bool,
    /// Fewest pods. Default: 3.
    #[schemars(range(min = 1, max = 1000))]
    pub min: u32,
    /// Most pods. The database's connection budget is divided by this number. Default: 20.
    #[schemars(range(min = 1, max = 1000))]
    pub max: u32,
    /// Scales on CPU in use, as a fraction of `resources.requests.cpu`.
    pub cpu: CpuTrigger,
    /// Scales on how full the queue of accepted events is, by number, bytes or age of its oldest event, as a fraction.
    pub queue_depth: QueueDepthTrigger,
    /// How long the load must stay low before pods are removed. `behavior.scaleDown.stabilizationWindowSeconds` goes
    /// before it. At most 1h. Default: 5m.
    pub cooldown: Duration,
    /// How fast to move in each direction, as in a HorizontalPodAutoscaler v2.
    pub behavior: Behavior,
    /// What to do while load cannot be measured. Default: keep the number of pods; never fewer in any case.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fallback: Option<Fallback>,
}

pub(crate) const MIN_MAX: &str = "min must not be larger than max";
pub(crate) const NO_TRIGGER: &str =
    "at least one of cpu and queueDepth must be enabled, or set autoscaling.enabled to false";
pub(crate) const FALLBACK_RANGE: &str = "fallback.replicas must lie between min and max";

impl Default for Autoscaling {
    fn default() -> Self {
        Self {
            enabled: true,
            min: 3,
            max: 20,
            cpu: CpuTrigger::default(),
            queue_depth: QueueDepthTrigger::default(),
            cooldown: Duration::from_secs(300),
            behavior: Behavior::default(),
            fallback: None,
        }
    }
}

const BAND_RULE: &str = "self.scaleDownThreshold <= self.target && self.target <= self.scaleUpThreshold";
pub(crate) const BAND: &str = "must satisfy scaleDownThreshold <= target <= scaleUpThreshold";

/// Scales on CPU in use, as a fraction of `resources.requests.cpu`. Values are the mean over the
/// pods. Between the two thresholds nothing happens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [rule(BAND_RULE, BAND).field_path(".target")]))]
pub struct CpuTrigger {
    /// Whether this measure counts. Default: true.
    pub enabled: bool,
    /// The value that a move aims for. Default: 0.70.
    #[schemars(range(min = 0.001, max = 1000.0))]
    pub target: f64,
    /// Add pods above this value. Default: 0.80.
    #[schemars(range(min = 0.001, max = 1000.0))]
    pub scale_up_threshold: f64,
    /// Remove pods below this value. Default: 0.40.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub scale_down_threshold: f64,
}

impl Default for CpuTrigger {
    fn default() -> Self {
        Self { enabled: true, target: 0.70, scale_up_threshold: 0.80, scale_down_threshold: 0.40 }
    }
}

/// Scales on how full the queue of accepted events is, as a fraction: by number, by bytes or by the age of its oldest
/// event, whichever is more. Values are the mean over the
/// pods. Between the two thresholds nothing happens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [rule(BAND_RULE, BAND).field_path(".target")]))]
pub struct QueueDepthTrigger {
    /// Whether this measure counts. Default: true.
    pub enabled: bool,
    /// The value that a move aims for. Default: 0.30.
    #[schemars(range(min = 0.001, max = 1000.0))]
    pub target: f64,
    /// Add pods above this value. Default: 0.50.
    #[schemars(range(min = 0.001, max = 1000.0))]
    pub scale_up_threshold: f64,
    /// Remove pods below this value. Default: 0.10.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub scale_down_threshold: f64,
}

impl Default for QueueDepthTrigger {
    fn default() -> Self {
        Self { enabled: true, target: 0.30, scale_up_threshold: 0.50, scale_down_threshold: 0.10 }
    }
}

/// How fast to move in each direction, as in a HorizontalPodAutoscaler v2.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Behavior {
    /// Rules for adding pods. Default: at once, and per 15 seconds at most 4 pods or as many again, whichever is more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale_up: Option<ScalingRules>,
    /// Rules for removing pods. Default: after `cooldown`, without a limit on the rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale_down: Option<ScalingRules>,
}

/// How fast and how readily to move in one direction.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [
    rule("!has(self.policies) || size(self.policies) > 0", NO_POLICY).field_path(".policies"),
]))]
pub struct ScalingRules {
    /// Move only as far as every recommendation of these last seconds agrees with. Default: 0 for adding pods, `cooldown`
    /// for removing them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 3600))]
    pub stabilization_window_seconds: Option<u32>,
    /// Which of the policies counts. Default: Max.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub select_policy: Option<SelectPolicy>,
    /// Limits on the change per period.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub policies: Option<Vec<RatePolicy>>,
    /// How far the value must be from the target, as a fraction of the target, on top of the trigger's threshold, such as
    /// `0.05`. Default: 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tolerance: Option<Quantity>,
}

pub(crate) const NO_POLICY: &str =
    "must name at least one policy; use selectPolicy: Disabled to forbid the direction";

/// Which of several rate policies counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SelectPolicy {
    /// The one that allows the largest change.
    Max,
    /// The one that allows the smallest change.
    Min,
    /// No move in this direction.
    Disabled,
}

/// The most that may change within a period.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RatePolicy {
    /// What `value` counts.
    #[serde(rename = "type")]
    pub kind: RatePolicyType,
    /// How many pods or percent.
    #[schemars(range(min = 1, max = 100_000))]
    pub value: u32,
    /// Within how many seconds.
    #[schemars(range(min = 1, max = 1800))]
    pub period_seconds: u32,
}

/// The unit of a rate policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RatePolicyType {
    /// A number of pods.
    Pods,
    /// Percent of the pods at the start of the period.
    Percent,
}

/// What to do when measuring keeps failing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Fallback {
    /// How many evaluations in a row must fail first.
    #[schemars(range(min = 1, max = 100_000))]
    pub failures: u32,
    /// Have at least this many pods then. Never fewer than before.
    #[schemars(range(min = 1, max = 1000))]
    pub replicas: u32,
}
