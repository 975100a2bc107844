//! The embedded database, for development: one PostgreSQL pod with one volume. Not for production: it has no standby, no
//! backup, and stops for every change of its node or its image.
//! Its password is generated once (`secrets.rs`). The pod is hardened as far as the official image allows, which runs as
//! its own user and writes to four folders alone.

use std::collections::BTreeMap;

use certeus_crds::SecretKeyRef;
use k8s_openapi::api::apps::v1::{
    StatefulSet, StatefulSetPersistentVolumeClaimRetentionPolicy, StatefulSetSpec,
};
use k8s_openapi::api::core::v1::{
    Container, EmptyDirVolumeSource, EnvVar, ExecAction, PodSpec, PodTemplateSpec, Probe,
    ResourceRequirements, Service, ServiceSpec, Volume,
};
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};

use super::network::{ingress, policy, service_port};
use super::pods::{
    claim, container_port, container_security, image_pull_secrets, mount, pod_security, scratch,
    secret_variable,
};
use super::secrets::{DATABASE_PASSWORD, DATABASE_USER};
use super::{INSTANCE_LABEL, NAME_LABEL, database_secret_name, metadata, selector};
use crate::validate::{Cluster, DatabaseSource};

pub(super) const DATABASE_PORT: i32 = 5432;
/// Value of [`NAME_LABEL`] of the database's pod.
const DATABASE: &str = "certeus-database";
/// The user of the official image, in its Debian variant. Alpine's is 70; there `initdb` refuses this one, which has no name.
const USER: i64 = 999;
/// Connections beside those of the pods: for people, and what PostgreSQL reserves for its superuser.
const SPARE_CONNECTIONS: u32 = 20;
/// PostgreSQL stops within seconds of being asked to; its last checkpoint may write all of shared memory.
const STOP_SECONDS: i64 = 60;
/// Mounted one level above where images before 18 keep their data, and data in a folder that none of them uses by itself: so
/// every version of the image keeps it on this volume.
const VOLUME_FOLDER: &str = "/var/lib/postgresql";
const DATA_FOLDER: &str = "/var/lib/postgresql/certeus";
const VOLUME: &str = "data";
const VOLUME_SIZE: &str = "10Gi";
/// A container runtime gives 64 MiB, which queries that run in parallel exceed ("could not resize shared memory segment").
/// What is written there counts as memory of the container, so it is a part of its limit.
const SHARED_MEMORY: &str = "256Mi";
const MEMORY_LIMIT: &str = "1Gi";

/// The objects of the embedded database, in the order in which to apply them.
#[derive(Clone, Debug, PartialEq)]
pub struct EmbeddedDatabase {
    /// Only the cluster's pods may connect.
    pub network_policy: NetworkPolicy,
    /// Its name for the pods.
    pub service: Service,
    /// Its pod.
    pub stateful_set: StatefulSet,
}

/// Name of all its objects.
pub(super) fn database_name(cluster: &Cluster) -> String {
    format!("{}-database", cluster.name)
}

/// With `replicas` pods that may need it.
pub(super) fn embedded(cluster: &Cluster, replicas: u32) -> Option<EmbeddedDatabase> {
    let DatabaseSource::Embedded { image } = &cluster.database else { return None };
    let pods = LabelSelector { match_labels: Some(selector_labels(cluster)), match_expressions: None };
    let client = NetworkPolicyPeer { pod_selector: Some(selector(cluster)), ..NetworkPolicyPeer::default() };
    Some(EmbeddedDatabase {
        network_policy: policy(
            database_metadata(cluster),
            pods.clone(),
            vec![ingress(DATABASE_PORT, vec![client])],
        ),
        service: Service {
            metadata: database_metadata(cluster),
            spec: Some(ServiceSpec {
                cluster_ip: Some("None".to_owned()),
                selector: Some(selector_labels(cluster)),
                ports: Some(vec![service_port("postgres", DATABASE_PORT)]),
                ..ServiceSpec::default()
            }),
            status: None,
        },
        // Pods that are being stopped still commit what they have accepted.
        stateful_set: stateful_set(cluster, image, pods, !cluster.stopped || replicas > 0),
    })
}

fn selector_labels(cluster: &Cluster) -> BTreeMap<String, String> {
    [(NAME_LABEL, DATABASE), (INSTANCE_LABEL, &cluster.name)]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
}

fn database_metadata(cluster: &Cluster) -> ObjectMeta {
    let mut metadata = metadata(cluster, database_name(cluster));
    metadata.labels.get_or_insert_default().extend(selector_labels(cluster));
    metadata
}

fn stateful_set(cluster: &Cluster, image: &str, selector: LabelSelector, runs: bool) -> StatefulSet {
    let metadata = database_metadata(cluster);
    let labels = metadata.labels.clone();
    StatefulSet {
        spec: Some(StatefulSetSpec {
            replicas: Some(i32::from(runs)),
            selector,
            service_name: Some(database_name(cluster)),
            // Kubernetes replaces a pod that never became ready, with an image that is none, only so (kubernetes#67250).
            pod_management_policy: Some("Parallel".to_owned()),
            persistent_volume_claim_retention_policy: Some(StatefulSetPersistentVolumeClaimRetentionPolicy {
                when_deleted: Some("Retain".to_owned()),
                when_scaled: Some("Retain".to_owned()),
            }),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta { labels, ..ObjectMeta::default() }),
                spec: Some(PodSpec {
                    containers: vec![container(cluster, image)],
                    image_pull_secrets: image_pull_secrets(cluster),
                    automount_service_account_token: Some(false),
                    enable_service_links: Some(false),
                    security_context: Some(pod_security(USER)),
                    termination_grace_period_seconds: Some(STOP_SECONDS),
                    tolerations: Some(cluster.scheduling.tolerations.clone()).filter(|list| !list.is_empty()),
                    volumes: Some(vec![scratch("run"), scratch("tmp"), shared_memory()]),
                    ..PodSpec::default()
                }),
            },
            volume_claim_templates: Some(vec![claim(
                VOLUME,
                Quantity(VOLUME_SIZE.to_owned()),
                cluster.spool.storage_class_name.clone(),
            )]),
            ..StatefulSetSpec::default()
        }),
        metadata,
        status: None,
    }
}

fn container(cluster: &Cluster, image: &str) -> Container {
    let variable = |name: &str, value: &str| EnvVar {
        name: name.to_owned(),
        value: Some(value.to_owned()),
        value_from: None,
    };
    let password = SecretKeyRef { name: database_secret_name(cluster), key: DATABASE_PASSWORD.to_owned() };
    let quantities = |entries: &[(&str, &str)]| {
        let entries = entries.iter().map(|(name, value)| ((*name).to_owned(), Quantity((*value).to_owned())));
        Some(entries.collect())
    };
    let connections = cluster.connection_budget.saturating_add(SPARE_CONNECTIONS);
    Container {
        name: "postgres".to_owned(),
        image: Some(image.to_owned()),
        args: Some(vec!["-c".to_owned(), format!("max_connections={connections}")]),
        env: Some(vec![
            variable("POSTGRES_USER", DATABASE_USER),
            variable("POSTGRES_DB", DATABASE_USER),
            secret_variable("POSTGRES_PASSWORD", password, false),
            variable("POSTGRES_INITDB_ARGS", "--auth-host=scram-sha-256 --data-checksums"),
            variable("PGDATA", DATA_FOLDER),
        ]),
        ports: Some(vec![container_port("postgres", DATABASE_PORT)]),
        resources: Some(ResourceRequirements {
            requests: quantities(&[("cpu", "250m"), ("memory", "256Mi")]),
            limits: quantities(&[("memory", MEMORY_LIMIT)]),
            claims: None,
        }),
        // The first start makes the database, and one after a crash replays its log.
        startup_probe: Some(probe(2, 150)),
        liveness_probe: Some(probe(10, 6)),
        readiness_probe: Some(probe(5, 2)),
        security_context: Some(container_security()),
        volume_mounts: Some(vec![
            mount(VOLUME, VOLUME_FOLDER),
            mount("run", "/var/run/postgresql"),
            mount("tmp", "/tmp"),
            mount("shm", "/dev/shm"),
        ]),
        ..Container::default()
    }
}

fn shared_memory() -> Volume {
    let source = EmptyDirVolumeSource {
        medium: Some("Memory".to_owned()),
        size_limit: Some(Quantity(SHARED_MEMORY.to_owned())),
    };
    Volume { name: "shm".to_owned(), empty_dir: Some(source), ..Volume::default() }
}

/// Over TCP: while the image makes the database it listens on a socket alone.
fn probe(period_seconds: i32, failure_threshold: i32) -> Probe {
    let command = ["pg_isready", "-q", "-h", "127.0.0.1", "-U", DATABASE_USER];
    Probe {
        exec: Some(ExecAction { command: Some(command.map(str::to_owned).into()) }),
        period_seconds: Some(period_seconds),
        failure_threshold: Some(failure_threshold),
        timeout_seconds: Some(5),
        ..Probe::default()
    }
}
