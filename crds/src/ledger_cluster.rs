//! `LedgerCluster`: what a user says about one ledger and the pods that serve it.
//! The doc comments are what `kubectl explain ledgercluster.spec` prints.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Affinity, ResourceRequirements, Toleration, TopologySpreadConstraint};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::CustomResource;
use kube::core::Rule;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::autoscaling::{Autoscaling, BAND, FALLBACK_RANGE, MIN_MAX, NO_POLICY, NO_TRIGGER};
use crate::status::LedgerClusterStatus;
use crate::{ByteSize, Duration, FieldError, schema};

/// A verifiable event ledger on PostgreSQL and the pods that serve it, scaled with load.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "certeus.io",
    version = "v1alpha1",
    kind = "LedgerCluster",
    namespaced,
    doc = "A verifiable event ledger on PostgreSQL and the pods that serve it, scaled with load.",
    status = "LedgerClusterStatus",
    shortname = "lc",
    category = "certeus",
    derive = "PartialEq",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].status"}"#,
    printcolumn = r#"{"name":"Pods","type":"integer","jsonPath":".status.readyReplicas"}"#,
    printcolumn = r#"{"name":"Desired","type":"integer","jsonPath":".status.desiredReplicas"}"#,
    printcolumn = r#"{"name":"CPU","type":"number","jsonPath":".status.triggers[?(@.name==\"cpu\")].value"}"#,
    printcolumn = r#"{"name":"Queue","type":"number","jsonPath":".status.triggers[?(@.name==\"queueDepth\")].value"}"#,
    printcolumn = r#"{"name":"Last decision","type":"string","jsonPath":".status.lastDecision.message", "priority": 1}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    rule("!has(self.replicas) || !self.autoscaling.enabled", FIXED_REPLICAS).field_path(".replicas"),
    rule("!has(self.version) || !self.image.matches('(@|:[^/]*$)')", IMAGE_VERSION).field_path(".version"),
]))]
pub struct LedgerClusterSpec {
    /// Container image of the data plane, without a tag; `version` gives the tag. An image with a tag or digest of its
    /// own is taken as it stands, and `version` must be absent then. Not used on one machine without Kubernetes.
    #[serde(default = "default_image")]
    #[schemars(length(min = 1, max = 512))]
    pub image: String,
    /// Version of the data plane, used as the image's tag. Default: the version of the operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub version: Option<String>,
    /// CPU and memory of each pod. `requests.cpu` is the measure of the CPU trigger and must be there while that trigger
    /// is enabled.
    #[serde(default = "default_resources")]
    pub resources: ResourceRequirements,
    /// Fixed number of pods. Needs `autoscaling.enabled: false`; without a value `autoscaling.min` counts then. This is
    /// the field that `kubectl scale` and other autoscalers set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub replicas: Option<u32>,
    /// How the number of pods follows the load.
    #[serde(default)]
    pub autoscaling: Autoscaling,
    /// How events are gathered and committed.
    #[serde(default)]
    pub ledger: LedgerSettings,
    /// The PostgreSQL database that holds the ledger.
    pub database: Database,
    /// Volume of each pod that holds accepted events while the database is away. Cannot be changed later.
    #[serde(default)]
    pub spool: Spool,
    /// The built-in metrics store.
    #[serde(default)]
    pub monitoring: Monitoring,
    /// Keys, by reference to Secrets in the same namespace. Key material is never written here.
    #[serde(default)]
    pub security: Security,
    /// Where pods may run.
    #[serde(default)]
    pub scheduling: Scheduling,
    /// Leave everything as it is: no change, no scaling, only status. Default: false.
    #[serde(default)]
    pub paused: bool,
}

const FIXED_REPLICAS: &str =
    "replicas fixes the number of pods; set autoscaling.enabled to false as well, or remove replicas";
const IMAGE_VERSION: &str = "image has a tag or digest already; remove it there, or remove version";

fn default_image() -> String {
    "certeus/dataplane".to_owned()
}

/// One core and 512 MiB for a pod, at most 2 GiB.
fn default_resources() -> ResourceRequirements {
    let list = |entries: &[(&str, &str)]| {
        let entries = entries.iter().map(|(name, value)| ((*name).to_owned(), Quantity((*value).to_owned())));
        Some(entries.collect::<BTreeMap<_, _>>())
    };
    ResourceRequirements {
        requests: list(&[("cpu", "1"), ("memory", "512Mi")]),
        limits: list(&[("memory", "2Gi")]),
        claims: None,
    }
}

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

const BATCH_QUEUE: &str = "batchSize must not be larger than queueEvents";

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
]))]
pub struct Database {
    /// Key of a Secret that holds the connection URL, such as `postgres://user:password@host/database`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretKeyRef>,
    /// Use a private PostgreSQL that is started with the cluster. For trying things out. Default: false.
    #[serde(default)]
    pub embedded: bool,
    /// Most connections that all pods together may open. Each pod gets an equal share of it, computed for the largest
    /// number of pods, and needs two more than `ledger.writers`. Default: 80.
    #[serde(default = "default_connection_budget")]
    #[schemars(range(min = 3, max = 100_000))]
    pub connection_budget: u32,
}

const ONE_DATABASE: &str = "exactly one of secretRef and embedded: true must be given";

/// What 20 pods need with 2 writers each, and within the 100 connections a PostgreSQL server allows by default.
fn default_connection_budget() -> u32 {
    80
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

/// The built-in metrics store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Monitoring {
    /// How long samples are kept. At least 1h. Default: 90d.
    pub retention: Duration,
}

impl Default for Monitoring {
    fn default() -> Self {
        Self { retention: Duration::from_secs(90 * 86_400) }
    }
}

/// Keys, by reference to Secrets in the same namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [
    rule("!has(self.decryptApiKeySecretRef) || has(self.apiKeySecretRef)", DECRYPT_NEEDS_KEY)
        .field_path(".decryptApiKeySecretRef"),
    rule("has(self.encryptedFields) == has(self.encryptionKeySecretRef)", FIELDS_AND_KEY)
        .field_path(".encryptedFields"),
    rule(
        "!has(self.encryptedFields) || !self.encryptedFields.exists(f, f.matches('^/(type|timestamp|case_id)(/|$)'))",
        PLAIN_FIELDS,
    )
    .field_path(".encryptedFields"),
    rule(
        "!has(self.encryptedFields) || \
         self.encryptedFields.all(f, self.encryptedFields.exists_one(g, (f + '/').startsWith(g + '/')))",
        COVERED_FIELDS,
    )
    .field_path(".encryptedFields"),
]))]
pub struct Security {
    /// The API key that every request must carry. Without it pods listen on the loopback address alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_key_secret_ref: Option<SecretKeyRef>,
    /// A second API key. Requests that carry it may do everything that the first one allows, and read encrypted fields
    /// decrypted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decrypt_api_key_secret_ref: Option<SecretKeyRef>,
    /// The keys for field-level encryption: each 32 bytes in base64, separated by commas or lines. The first one encrypts,
    /// all of them decrypt. Needs `encryptedFields`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encryption_key_secret_ref: Option<SecretKeyRef>,
    /// Members of events whose values are stored encrypted, as JSON pointers such as `/card/number`; in place of an array's
    /// elements the array. An empty list encrypts nothing and still decrypts what is stored. Needs
    /// `encryptionKeySecretRef`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 64),
        inner(length(min = 1, max = 256), regex(pattern = r"^(/([^~/]|~[01])*){1,16}$"))
    )]
    pub encrypted_fields: Option<Vec<String>>,
    /// The Ed25519 private key that signs checkpoints.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signing_key_secret_ref: Option<SecretKeyRef>,
}

const DECRYPT_NEEDS_KEY: &str =
    "decryptApiKeySecretRef needs apiKeySecretRef: without it every caller may read what is decrypted";
const FIELDS_AND_KEY: &str = "encryptedFields and encryptionKeySecretRef need each other; an empty list of fields encrypts nothing and \
     still decrypts what is stored";
const PLAIN_FIELDS: &str = "type, timestamp and case_id cannot be encrypted: the ledger finds events by them";
const COVERED_FIELDS: &str = "a field is listed that another one contains or repeats; leave it out";

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

pub(crate) fn rule(expression: &str, message: &str) -> Rule {
    Rule::new(expression).message(message)
}

/// What the pattern of `encryptedFields` says (RFC 6901; the pod takes 16 segments).
fn is_member_pointer(text: &str) -> bool {
    let escapes_end = |segment: &str| segment.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']));
    text.strip_prefix('/')
        .is_some_and(|path| path.split('/').count() <= 16 && path.split('/').all(escapes_end))
}

impl Security {
    fn check_relations(&self, refuse: &mut impl FnMut(bool, &str, &str)) {
        let without_key = self.decrypt_api_key_secret_ref.is_some() && self.api_key_secret_ref.is_none();
        refuse(without_key, "spec.security.decryptApiKeySecretRef", DECRYPT_NEEDS_KEY);
        let fields_path = "spec.security.encryptedFields";
        let one_alone = self.encrypted_fields.is_some() != self.encryption_key_secret_ref.is_some();
        refuse(one_alone, fields_path, FIELDS_AND_KEY);
        let pointers = self.encrypted_fields.iter().flatten().enumerate();
        for (index, pointer) in pointers.filter(|(_, pointer)| !is_member_pointer(pointer)) {
            let problem =
                format!("must be a JSON pointer to a member, such as /card/number, not {pointer:?}");
            refuse(true, &schema::element_path(fields_path, index), &problem);
        }
        let fields: Vec<String> =
            self.encrypted_fields.iter().flatten().map(|field| format!("{field}/")).collect();
        let plain = |field: &String| {
            ["/type/", "/timestamp/", "/case_id/"].iter().any(|reserved| field.starts_with(reserved))
        };
        refuse(fields.iter().any(plain), fields_path, PLAIN_FIELDS);
        // Each field is within itself, and must be within no other.
        let covered = |field: &String| fields.iter().filter(|other| field.starts_with(*other)).count() > 1;
        refuse(fields.iter().any(covered), fields_path, COVERED_FIELDS);
    }
}

impl LedgerCluster {
    /// Reads an object as written by a user.
    ///
    /// # Errors
    /// All that is wrong with it: unknown fields, wrong types, then whatever [`check`](Self::check) finds.
    pub fn read(value: serde_json::Value) -> Result<Self, Vec<FieldError>> {
        let cluster: Self = schema::read(&schema::LEDGER_CLUSTER, value)?;
        let errors = cluster.check();
        if errors.is_empty() { Ok(cluster) } else { Err(errors) }
    }

    /// Everything that is wrong with the spec; the same checks as the schema and its rules.
    #[must_use]
    pub fn check(&self) -> Vec<FieldError> {
        let mut errors = schema::check(&schema::LEDGER_CLUSTER, self);
        self.spec.check_relations(&mut errors);
        errors
    }
}

impl LedgerClusterSpec {
    /// Whether `image` names a tag or a digest. A colon before the last slash belongs to a registry's port.
    #[must_use]
    pub fn image_has_version(&self) -> bool {
        self.image.contains('@') || self.image.rsplit('/').next().is_some_and(|name| name.contains(':'))
    }

    /// What a schema cannot say: the CEL rules above, and the ranges of durations and sizes, for which CEL has no
    /// function that reads our syntax.
    fn check_relations(&self, errors: &mut Vec<FieldError>) {
        let mut refuse = |refused: bool, path: &str, problem: &str| {
            if refused {
                errors.push(FieldError::new(path, problem));
            }
        };
        let scaling = &self.autoscaling;
        refuse(self.replicas.is_some() && scaling.enabled, "spec.replicas", FIXED_REPLICAS);
        refuse(self.version.is_some() && self.image_has_version(), "spec.version", IMAGE_VERSION);
        refuse(scaling.min > scaling.max, "spec.autoscaling.min", MIN_MAX);
        let triggerless = !scaling.cpu.enabled && !scaling.queue_depth.enabled;
        refuse(scaling.enabled && triggerless, "spec.autoscaling.cpu", NO_TRIGGER);
        if let Some(fallback) = &scaling.fallback {
            let outside = fallback.replicas < scaling.min || fallback.replicas > scaling.max;
            refuse(outside, "spec.autoscaling.fallback", FALLBACK_RANGE);
        }
        let (cpu, queue) = (&scaling.cpu, &scaling.queue_depth);
        let in_order = |down: f64, target: f64, up: f64| down <= target && target <= up;
        let cpu_in_order = in_order(cpu.scale_down_threshold, cpu.target, cpu.scale_up_threshold);
        refuse(!cpu_in_order, "spec.autoscaling.cpu.target", BAND);
        let queue_in_order = in_order(queue.scale_down_threshold, queue.target, queue.scale_up_threshold);
        refuse(!queue_in_order, "spec.autoscaling.queueDepth.target", BAND);
        let directions =
            [("scaleUp", &scaling.behavior.scale_up), ("scaleDown", &scaling.behavior.scale_down)];
        for (name, rules) in directions {
            let empty = rules.as_ref().and_then(|rules| rules.policies.as_ref()).is_some_and(Vec::is_empty);
            refuse(empty, &format!("spec.autoscaling.behavior.{name}.policies"), NO_POLICY);
        }
        refuse(self.ledger.batch_size > self.ledger.queue_events, "spec.ledger.batchSize", BATCH_QUEUE);
        refuse(
            self.database.secret_ref.is_some() == self.database.embedded,
            "spec.database.secretRef",
            ONE_DATABASE,
        );

        self.security.check_relations(&mut refuse);

        let cooldown_max = Duration::from_secs(3600);
        refuse(scaling.cooldown > cooldown_max, "spec.autoscaling.cooldown", "must be at most 1h");
        let batch_timeout_max = Duration::from_secs(5);
        refuse(
            self.ledger.batch_timeout > batch_timeout_max,
            "spec.ledger.batchTimeout",
            "must be at most 5s",
        );
        let queue_bytes = ByteSize::from_mib(1)..=ByteSize::from_mib(16 << 10);
        let outside = !queue_bytes.contains(&self.ledger.queue_bytes);
        refuse(outside, "spec.ledger.queueBytes", "must be from 1Mi to 16Gi");
        refuse(self.spool.size < ByteSize::from_mib(1), "spec.spool.size", "must be at least 1Mi");
        let retention_min = Duration::from_secs(3600);
        refuse(self.monitoring.retention < retention_min, "spec.monitoring.retention", "must be at least 1h");
    }
}
