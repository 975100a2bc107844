//! `AlertRule`: alerting and recording rules for one cluster, in the field names of Prometheus' rule files, so that the
//! `groups` of such a file can be pasted unchanged.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use kube::core::Rule as CelRule;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Duration, FieldError, SecretKeyRef, schema};

/// Alerting and recording rules for one ledger cluster.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "certeus.io",
    version = "v1alpha1",
    kind = "AlertRule",
    namespaced,
    doc = "Alerting and recording rules for one ledger cluster, in the field names of Prometheus' rule files.",
    status = "AlertRuleStatus",
    shortname = "ar",
    category = "certeus",
    derive = "PartialEq",
    printcolumn = r#"{"name":"Cluster","type":"string","jsonPath":".spec.clusterRef.name"}"#,
    printcolumn = r#"{"name":"Accepted","type":"string","jsonPath":".status.conditions[?(@.type==\"Accepted\")].status"}"#,
    printcolumn = r#"{"name":"Loaded","type":"integer","jsonPath":".status.loadedPods"}"#,
    printcolumn = r#"{"name":"State","type":"string","jsonPath":".status.state"}"#,
    printcolumn = r#"{"name":"Firing","type":"integer","jsonPath":".status.alerts.firing"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct AlertRuleSpec {
    /// The cluster in the same namespace whose metrics the rules read.
    pub cluster_ref: ClusterRef,
    /// Groups of rules. The rules of a group are evaluated in order and at the same instant.
    #[schemars(length(min = 1, max = 64))]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub groups: Vec<RuleGroup>,
    /// Where alerts of these rules are sent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub notify: Vec<NotifyTarget>,
}

/// A `LedgerCluster` in the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ClusterRef {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// Rules that are evaluated together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RuleGroup {
    /// Name of the group, unique in this object.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// How often the rules are evaluated. Default: 15s.
    #[serde(default = "default_interval")]
    pub interval: Duration,
    /// The rules.
    #[schemars(length(min = 1, max = 256))]
    pub rules: Vec<Rule>,
}

fn default_interval() -> Duration {
    Duration::from_secs(15)
}

/// One alerting or recording rule: exactly one of `alert` and `record`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [
    CelRule::new("has(self.alert) != has(self.record)").message(ONE_KIND),
    CelRule::new("has(self.alert) || !(has(self.__for__) || has(self.keep_firing_for) || has(self.annotations))").message(ALERT_ONLY),
]))]
pub struct Rule {
    /// Name of the alert; makes this an alerting rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub alert: Option<String>,
    /// Name of the series to write; makes this a recording rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub record: Option<String>,
    /// PromQL expression. An alert is active for every series it returns.
    #[schemars(length(min = 1, max = 8192))]
    pub expr: String,
    /// How long the expression must hold before the alert fires. Default: 0s.
    #[serde(rename = "for", default, skip_serializing_if = "Option::is_none")]
    pub hold_for: Option<Duration>,
    /// How long the alert keeps firing after the expression stopped to hold. Default: 0s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_firing_for: Option<Duration>,
    /// Labels added to the alert or series.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 64))]
    pub labels: Option<BTreeMap<String, String>>,
    /// Texts for the people who get the alert. May use Prometheus' templates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 64))]
    pub annotations: Option<BTreeMap<String, String>>,
}

const ONE_KIND: &str = "exactly one of alert and record must be given";
const ALERT_ONLY: &str = "for, keep_firing_for and annotations belong to alerting rules only";

/// A webhook that gets alerts in the format of Prometheus' Alertmanager. Exactly one of `url` and `urlSecretRef`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    CelRule::new("has(self.url) != has(self.urlSecretRef)").message(ONE_URL),
    CelRule::new("!has(self.url) || self.url.startsWith('http://') || self.url.startsWith('https://')").message(HTTP_URL),
]))]
pub struct NotifyTarget {
    /// Name of the target, unique in this object.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Address of the webhook, when it is no secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub url: Option<String>,
    /// Key of a Secret that holds the address of the webhook.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url_secret_ref: Option<SecretKeyRef>,
    /// Whether to tell when an alert is over. Default: true.
    #[serde(default = "default_send_resolved")]
    pub send_resolved: bool,
}

const ONE_URL: &str = "exactly one of url and urlSecretRef must be given";
const HTTP_URL: &str = "url must begin with http:// or https://";

fn default_send_resolved() -> bool {
    true
}

/// What the operator last saw of the rules.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AlertRuleStatus {
    /// The generation of the spec that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Pods that have loaded this generation of the rules.
    #[serde(default)]
    pub loaded_pods: u32,
    /// Pods of the cluster.
    #[serde(default)]
    pub total_pods: u32,
    /// What went wrong last, until it is put right.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// The most serious state of any alert of these rules. Absent while it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<AlertState>,
    /// How many alerts are in which state.
    #[serde(default)]
    pub alerts: AlertCounts,
    /// Accepted: the rules are valid and the cluster exists. Loaded: all pods have them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// State of an alert, as in Prometheus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum AlertState {
    /// The expression does not hold.
    Inactive,
    /// The expression holds, but not yet for long enough.
    Pending,
    /// The alert fires.
    Firing,
}

/// How many alerts are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AlertCounts {
    /// Alerts whose expression holds, but not yet for long enough.
    pub pending: u32,
    /// Alerts that fire.
    pub firing: u32,
}

impl AlertRule {
    /// Reads an object as written by a user.
    ///
    /// # Errors
    /// All that is wrong with it: unknown fields, wrong types, then whatever [`check`](Self::check) finds.
    pub fn read(value: serde_json::Value) -> Result<Self, Vec<FieldError>> {
        let rule: Self = schema::read(&schema::ALERT_RULE, value)?;
        let errors = rule.check();
        if errors.is_empty() { Ok(rule) } else { Err(errors) }
    }

    /// Everything that is wrong with the spec; the same checks as the schema and its rules. The expressions themselves are
    /// not parsed here.
    #[must_use]
    pub fn check(&self) -> Vec<FieldError> {
        let mut errors = schema::check(&schema::ALERT_RULE, self);
        for (g, group) in self.spec.groups.iter().enumerate() {
            if group.interval.as_millis() == 0 {
                errors.push(FieldError::new(format!("spec.groups[{g}].interval"), "must be above 0s"));
            }
            for (r, rule) in group.rules.iter().enumerate() {
                let path = format!("spec.groups[{g}].rules[{r}]");
                if rule.alert.is_some() == rule.record.is_some() {
                    errors.push(FieldError::new(&path, ONE_KIND));
                }
                let alert_fields =
                    rule.hold_for.is_some() || rule.keep_firing_for.is_some() || rule.annotations.is_some();
                if rule.alert.is_none() && alert_fields {
                    errors.push(FieldError::new(&path, ALERT_ONLY));
                }
            }
        }
        for (n, target) in self.spec.notify.iter().enumerate() {
            if target.url.is_some() == target.url_secret_ref.is_some() {
                errors.push(FieldError::new(format!("spec.notify[{n}]"), ONE_URL));
            }
            let is_http = |url: &String| url.starts_with("http://") || url.starts_with("https://");
            if !target.url.as_ref().is_none_or(is_http) {
                errors.push(FieldError::new(format!("spec.notify[{n}]"), HTTP_URL));
            }
        }
        errors
    }
}
