//! `LedgerCluster`: what a user says about one ledger and the pods that serve it.
//! The doc comments are what `kubectl explain ledgercluster.spec` prints.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::CustomResource;
use kube::core::Rule;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::autoscaling::{Autoscaling, BAND, FALLBACK_RANGE, MIN_MAX, NO_POLICY, NO_TRIGGER};
use crate::image::{self, REFERENCE_PATTERN, TAG_PATTERN};
use crate::sections::{self, BATCH_QUEUE, CA_OF_SECRET, EVENTS_ARCHIVE, ONE_DATABASE};
use crate::status::LedgerClusterStatus;
use crate::{
    ByteSize, Database, Duration, FieldError, LedgerSettings, Log, Monitoring, Network, Proofs, Retention,
    Scheduling, SecretRef, Security, Spool, schema,
};

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
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].reason"}"#,
    printcolumn = r#"{"name":"Pods","type":"integer","jsonPath":".status.readyReplicas"}"#,
    printcolumn = r#"{"name":"Desired","type":"integer","jsonPath":".status.desiredReplicas"}"#,
    printcolumn = r#"{"name":"CPU","type":"number","jsonPath":".status.triggers[?(@.name==\"cpu\")].value"}"#,
    printcolumn = r#"{"name":"Queue","type":"number","jsonPath":".status.triggers[?(@.name==\"queueDepth\")].value"}"#,
    printcolumn = r#"{"name":"Last decision","type":"string","jsonPath":".status.lastDecision.message", "priority": 1}"#,
    printcolumn = r#"{"name":"Image","type":"string","jsonPath":".status.image", "priority": 1}"#,
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
    #[schemars(length(min = 1, max = 512), regex(pattern = REFERENCE_PATTERN))]
    pub image: String,
    /// Version of the data plane, used as the image's tag. Default: the version of the operator that makes the pods. It
    /// stays as it is when the operator is upgraded, until a version is named here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128), regex(pattern = TAG_PATTERN))]
    pub version: Option<String>,
    /// Secrets with credentials for the registries of `image` and `database.embeddedImage`, in the same namespace, as in a pod:
    /// of type `kubernetes.io/dockerconfigjson`. A change replaces the pods one by one, as pods that wait for their image
    /// get credentials in no other way. Default: those of the nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub image_pull_secrets: Vec<SecretRef>,
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
    /// The signed log over all events.
    #[serde(default)]
    pub log: Log,
    /// What becomes of old events.
    #[serde(default)]
    pub retention: Retention,
    /// How proof bundles are made and published.
    #[serde(default)]
    pub proofs: Proofs,
    /// How the ledger is watched.
    #[serde(default)]
    pub monitoring: Monitoring,
    /// Keys, by reference to Secrets in the same namespace. Key material is never written here.
    #[serde(default)]
    pub security: Security,
    /// Who may reach the pods.
    #[serde(default)]
    pub network: Network,
    /// Where pods may run.
    #[serde(default)]
    pub scheduling: Scheduling,
    /// Leave everything as it is: no change, no scaling, only status. Goes before all else here. Default: false.
    #[serde(default)]
    pub paused: bool,
    /// Run no pod, and no embedded database. Volumes, Services and keys stay, so that setting it back continues where this
    /// ended. Default: false.
    #[serde(default)]
    pub stopped: bool,
    /// Decide and explain in the status what would be done, and do nothing of it. Default: false.
    #[serde(default)]
    pub dry_run: bool,
}

const FIXED_REPLICAS: &str =
    "replicas fixes the number of pods; set autoscaling.enabled to false as well, or remove replicas";
const IMAGE_VERSION: &str = "image has a tag or digest already; remove it there, or remove version";

/// Longest name of a `LedgerCluster`. One bound for all, so that no cluster is refused for a change of its database.
pub const NAME_LENGTH_MAX: usize = 43;
/// What [`LedgerCluster::has_valid_name`] says.
pub(crate) const NAME_RULE: &str =
    "size(self.metadata.name) <= 43 && self.metadata.name.matches('^[a-z]([a-z0-9-]*[a-z0-9])?$')";
pub(crate) const NAME_PROBLEM: &str =
    "must be at most 43 lower-case letters, digits and dashes, begin with a letter and not end with a dash";

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

pub(crate) fn rule(expression: &str, message: &str) -> Rule {
    Rule::new(expression).message(message)
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
        if !self.has_valid_name() {
            errors.push(FieldError::new("metadata.name", NAME_PROBLEM));
        }
        self.spec.check_relations(&mut errors);
        errors
    }

    fn has_valid_name(&self) -> bool {
        let name = self.metadata.name.as_deref().unwrap_or_default();
        let in_name = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        name.len() <= NAME_LENGTH_MAX
            && name.bytes().all(in_name)
            && name.starts_with(|first: char| first.is_ascii_lowercase())
            && !name.ends_with('-')
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
        self.check_images(&mut refuse);
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
        let unused_ca = self.database.ca_secret_ref.is_some() && self.database.secret_ref.is_none();
        refuse(unused_ca, "spec.database.caSecretRef", CA_OF_SECRET);

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
        self.check_log(&mut refuse);
    }

    fn check_images(&self, refuse: &mut impl FnMut(bool, &str, &str)) {
        let reference = "must name an image such as registry.example:5000/certeus/dataplane, with a tag or digest if need be";
        refuse(!image::is_reference(&self.image), "spec.image", reference);
        let embedded = &self.database.embedded_image;
        refuse(!image::is_reference(embedded), "spec.database.embeddedImage", reference);
        let tag = "must be a tag such as 1.2.3: letters, digits, dots, dashes and underscores";
        let malformed = self.version.as_ref().is_some_and(|version| !image::is_tag(version));
        refuse(malformed, "spec.version", tag);
        for (index, secret) in self.image_pull_secrets.iter().enumerate() {
            let path = schema::element_path("spec.imagePullSecrets", index);
            secret.check(&format!("{path}.name"), refuse);
        }
    }

    fn check_log(&self, refuse: &mut impl FnMut(bool, &str, &str)) {
        let interval = Duration::from_millis(100)..=Duration::from_secs(60);
        let outside = !interval.contains(&self.log.checkpoint_interval);
        refuse(outside, "spec.log.checkpointInterval", "must be from 100ms to 1m");
        let malformed = |text: &Option<String>, is_valid: fn(&str) -> bool| {
            text.as_ref().is_some_and(|text| !is_valid(text))
        };
        let object = "must be an object such as s3://bucket/ledger/anchor";
        refuse(malformed(&self.log.anchor, sections::is_anchor), "spec.log.anchor", object);
        let bucket = "must be a bucket, and a prefix if need be, such as s3://bucket/ledger";
        refuse(malformed(&self.retention.archive, sections::is_archive), "spec.retention.archive", bucket);
        let unarchived = self.retention.events.is_some() && self.retention.archive.is_none();
        refuse(unarchived, "spec.retention.archive", EVENTS_ARCHIVE);
        // As the pod reads it.
        let in_days = |events: Duration| {
            let (days, rest) = (events.as_millis() / DAY_MILLIS, events.as_millis() % DAY_MILLIS);
            rest == 0 && (1..=36_500).contains(&days)
        };
        let not_days = self.retention.events.is_some_and(|events| !in_days(events));
        refuse(not_days, "spec.retention.events", "must be whole days, from 1d to 36500d");
        let address = "must be an address such as https://proofs.example.com, without query and fragment";
        let base_url = &self.proofs.public_base_url;
        refuse(malformed(base_url, sections::is_base_url), "spec.proofs.publicBaseUrl", address);
    }
}

const DAY_MILLIS: u64 = 86_400_000;
