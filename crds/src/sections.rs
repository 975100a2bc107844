//! The parts of a `LedgerCluster` beside scaling and keys. The doc comments are what `kubectl explain` prints.

use k8s_openapi::api::core::v1::{Affinity, Toleration, TopologySpreadConstraint};
use k8s_openapi::api::networking::v1::NetworkPolicyPeer;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::image::REFERENCE_PATTERN;
use crate::ledger_cluster::rule;
use crate::{ByteSize, Duration};

/// How events are gathered and committed. More of everything costs memory in each pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [
    rule("self.batchSize <= self.queueEvents", BATCH_QUEUE).field_path(".batchSize"),
]))]
pub struct LedgerSettings {
    /// Most events in one database transaction. Default: 10000.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub batch_size: u32,
    /// Longest wait for a batch to fill while a writer is busy; an idle writer never waits. At most 5s. Default: 100ms.
    pub batch_timeout: Duration,
    /// Most events accepted but not yet committed, per pod. Beyond it callers are asked to come back. Default: 100000.
    #[schemars(range(min = 1, max = 10_000_000))]
    pub queue_events: u32,
    /// Most bytes accepted but not yet committed, per pod. From 1Mi to 16Gi. Default: 64Mi.
    pub queue_bytes: ByteSize,
    /// Database connections per pod that commit batches at the same time. Default: 2.
    #[schemars(range(min = 1, max = 64))]
    pub writers: u32,
}

pub(crate) const BATCH_QUEUE: &str = "batchSize must not be larger than queueEvents";

impl Default for LedgerSettings {
    fn default() -> Self {
        Self {
            batch_size: 10_000,
            batch_timeout: Duration::from_millis(100),
            queue_events: 100_000,
            queue_bytes: ByteSize::from_mib(64),
            writers: 2,
        }
    }
}

/// The PostgreSQL database that holds the ledger. Exactly one of `secretRef` and `embedded: true`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    rule("has(self.secretRef) != self.embedded", ONE_DATABASE).field_path(".secretRef"),
    rule("!has(self.caSecretRef) || has(self.secretRef)", CA_OF_SECRET).field_path(".caSecretRef"),
]))]
pub struct Database {
    /// Key of a Secret that holds the connection URL, such as `postgres://user:password@host/database`. The Secret that
    /// CloudNativePG makes for its cluster NAME serves as it is: name `NAME-app`, key `uri`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretKeyRef>,
    /// Key of a Secret that holds the certificates, in PEM, of the authorities that may have signed PostgreSQL's certificate.
    /// For the CloudNativePG cluster NAME: name `NAME-ca`, key `ca.crt`. With it connections are encrypted, and the
    /// server's certificate and host name checked against these alone, also where the URL does not ask for it. At most 64 KiB.
    /// Default: `sslmode=require` or `verify-full` in the URL checks against public authorities, without it nothing is checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<SecretKeyRef>,
    /// Use a private PostgreSQL that is started with the cluster: one pod with one volume, without backup or standby. For
    /// trying things out, not for production. Default: false.
    #[serde(default)]
    pub embedded: bool,
    /// Image of the embedded PostgreSQL: the official one in its Debian variant, or a copy of it. Alpine variants and other
    /// images do not start, as their user is not 999. Not used with `secretRef`, or on one machine without Kubernetes.
    /// Default: postgres:18.
    #[serde(default = "default_embedded_image")]
    #[schemars(length(min = 1, max = 512), regex(pattern = REFERENCE_PATTERN))]
    pub embedded_image: String,
    /// Most connections that all pods together may open. Each pod gets an equal share of it, computed for the largest
    /// number of pods, and needs three more than `ledger.writers`. PostgreSQL's `max_connections` must be above it. Default:
    /// 100.
    #[serde(default = "default_connection_budget")]
    #[schemars(range(min = 4, max = 100_000))]
    pub connection_budget: u32,
}

pub(crate) const ONE_DATABASE: &str = "exactly one of secretRef and embedded: true must be given";

pub(crate) const CA_OF_SECRET: &str = "caSecretRef needs secretRef: the embedded database has no TLS";

/// The newest release at the time of writing; a later one cannot read its volume without an upgrade of the data.
fn default_embedded_image() -> String {
    "postgres:18".to_owned()
}

/// What 20 pods need with 2 writers each.
fn default_connection_budget() -> u32 {
    100
}

/// One key of a Secret in the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key within the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// Volume of each pod that holds accepted events while the database is away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [rule("self == oldSelf", SPOOL_FIXED)]))]
pub struct Spool {
    /// Size of the volume. Default: 1Gi.
    pub size: ByteSize,
    /// Storage class of the volume. Default: that of the Kubernetes cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub storage_class_name: Option<String>,
}

const SPOOL_FIXED: &str = "the spool volume cannot be changed once the cluster exists";

impl Default for Spool {
    fn default() -> Self {
        Self { size: ByteSize::from_mib(1024), storage_class_name: None }
    }
}

/// How the ledger is watched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Monitoring {
    /// How long the built-in metrics store keeps samples. At least 1h. Default: 90d.
    pub retention: Duration,
    /// Whether to make a ServiceMonitor, so that a Prometheus operator scrapes the pods. Without its definitions in the
    /// Kubernetes cluster nothing is made, and the status says so. Default: false.
    pub service_monitor: bool,
    /// Whether to make a ConfigMap with a Grafana dashboard, labelled `grafana_dashboard: "1"` as Grafana's sidecar looks
    /// for it. Default: false.
    pub dashboard: bool,
}

impl Default for Monitoring {
    fn default() -> Self {
        Self { retention: Duration::from_secs(90 * 86_400), service_monitor: false, dashboard: false }
    }
}

/// The signed log over all events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Log {
    /// Object that keeps the newest checkpoint outside of the database, such as `s3://bucket/ledger/anchor`: with it a
    /// database restored from an old backup is never signed for. Credentials: `security.objectStoreSecretRef`. Default: a
    /// file on each pod's volume, which protects less, as a new pod has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024), regex(pattern = ANCHOR_PATTERN))]
    pub anchor: Option<String>,
    /// Longest time between an event's commit and a signed checkpoint that covers it. From 100ms to 1m. Default: 1s.
    pub checkpoint_interval: Duration,
}

/// The same language as [`is_anchor`].
const ANCHOR_PATTERN: &str = "^s3://[a-z0-9.-]{3,63}(/[A-Za-z0-9_=+-][A-Za-z0-9_.=+-]*)+$";
/// The same language as [`is_archive`].
const ARCHIVE_PATTERN: &str = "^s3://[a-z0-9.-]{3,63}(/[A-Za-z0-9_=+-][A-Za-z0-9_.=+-]*)*$";

impl Default for Log {
    fn default() -> Self {
        Self { anchor: None, checkpoint_interval: Duration::from_secs(1) }
    }
}

/// An object of a bucket.
pub(crate) fn is_anchor(text: &str) -> bool {
    is_archive(text) && text.matches('/').count() > 2
}

/// A bucket, or a prefix in one. No name in it can change the host or the path of a request.
pub(crate) fn is_archive(text: &str) -> bool {
    let Some(rest) = text.strip_prefix("s3://") else { return false };
    let (bucket, prefix) =
        rest.split_once('/').map_or((rest, None), |(bucket, prefix)| (bucket, Some(prefix)));
    let in_bucket = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-".contains(&byte);
    let in_segment = |byte: u8| byte.is_ascii_alphanumeric() || b"_.=+-".contains(&byte);
    let is_segment =
        |segment: &str| !segment.is_empty() && !segment.starts_with('.') && segment.bytes().all(in_segment);
    (3..=63).contains(&bucket.len())
        && bucket.bytes().all(in_bucket)
        && prefix.is_none_or(|prefix| prefix.split('/').all(is_segment))
}

/// What becomes of old events. They stay in the database for ever unless this says otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [
    rule("!has(self.events) || has(self.archive)", EVENTS_ARCHIVE).field_path(".archive"),
]))]
pub struct Retention {
    /// Days with events older than this move to the archive, and are dropped from the database once they were read back
    /// from there. Whole days, up to 36500d. Default: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events: Option<Duration>,
    /// Bucket, and a prefix in it, that archived events go to and are read from, such as `s3://bucket/ledger`. Credentials:
    /// `security.objectStoreSecretRef`. Must stay for as long as anything is in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024), regex(pattern = ARCHIVE_PATTERN))]
    pub archive: Option<String>,
}

pub(crate) const EVENTS_ARCHIVE: &str =
    "archive is required with events: what is old is moved, never merely dropped";

/// How proof bundles are made and published.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Proofs {
    /// Whether to refuse requests to publish what is not proven. Default: false.
    pub strict: bool,
    /// What stands before the path in the address of a published bundle, such as `https://proofs.example.com`. Default:
    /// nothing, so that addresses are paths alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024), regex(pattern = BASE_URL_PATTERN))]
    pub public_base_url: Option<String>,
}

/// The same language as [`is_base_url`]; all of it is accepted by the pod.
const BASE_URL_PATTERN: &str = r"^https?://[A-Za-z0-9\[][A-Za-z0-9._~:/\[\]!$&'()*+,;=%-]*$";

pub(crate) fn is_base_url(text: &str) -> bool {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._~:/[]!$&'()*+,;=%-".contains(&byte);
    rest.is_some_and(|rest| {
        rest.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '[')
            && rest.bytes().all(allowed)
    })
}

/// Who may reach the pods, as far as the network enforces it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Network {
    /// Who may connect to the API, as in a NetworkPolicy's `from`. Default: every pod of the Kubernetes cluster. The admin
    /// port is open to the operator alone, and to Prometheus with `monitoring.serviceMonitor`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub clients: Vec<NetworkPolicyPeer>,
}

/// Where pods may run. All of it is copied into the pods as it stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Scheduling {
    /// Affinity of the pods to nodes and to each other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// Taints the pods tolerate.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Toleration>,
    /// How pods spread over zones and nodes. A constraint without a label selector gets the one of the cluster's pods.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub topology_spread_constraints: Vec<TopologySpreadConstraint>,
}
