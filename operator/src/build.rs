//! Builds the Kubernetes objects of a cluster. Pure and deterministic: the same cluster gives the same bytes, so that applying
//! them again changes nothing. Secrets are referred to, never read.
//! On one machine the same objects are built, and the pod template is run as a process.

use std::collections::BTreeMap;

use certeus_crds::{GROUP, SecretKeyRef, VERSION};
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec};
use k8s_openapi::api::core::v1::{
    Capabilities, ConfigMap, ConfigMapVolumeSource, Container, ContainerPort, EmptyDirVolumeSource, EnvVar,
    EnvVarSource, HTTPGetAction, Lifecycle, LifecycleHandler, PersistentVolumeClaim,
    PersistentVolumeClaimSpec, PodSecurityContext, PodSpec, PodTemplateSpec, Probe, SeccompProfile,
    SecretKeySelector, SecurityContext, SleepAction, TopologySpreadConstraint, Volume, VolumeMount,
    VolumeResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use sha2::{Digest, Sha256};

use crate::validate::{Cluster, DatabaseSource};

/// Port of the API in a pod.
pub const API_PORT: i32 = 8000;
/// Port of metrics, health and drain in a pod.
pub const ADMIN_PORT: i32 = 9090;
/// Name of the one container of a pod.
pub const CONTAINER: &str = "dataplane";
/// Key of the configuration in the ConfigMap, and name of the file in the pod.
pub const CONFIG_FILE: &str = "config.yaml";
/// Annotation of the pod template that makes pods restart when the configuration changes.
pub const CONFIG_HASH: &str = "certeus.io/config-hash";

const CONFIG_FOLDER: &str = "/etc/certeus";
const SPOOL_FOLDER: &str = "/var/lib/certeus/spool";
/// The user of the image, who owns nothing.
const USER: i64 = 65532;
/// Time between being marked as terminating and SIGTERM, in which proxies stop sending new connections; on SIGTERM the
/// pod drains by itself.
const ENDPOINT_REMOVAL_SECONDS: i64 = 5;
/// Time to flush a full queue to a slow database after that, before the pod is killed.
const DRAIN_SECONDS: i64 = 55;

/// Everything that runs a cluster, in the order in which to apply it: the workload last.
#[derive(Clone, Debug, PartialEq)]
pub struct Objects {
    /// The configuration of the pods.
    pub config_map: ConfigMap,
    /// The pods.
    pub stateful_set: StatefulSet,
}

/// Builds the objects of `cluster` for this many pods.
#[must_use]
pub fn build(cluster: &Cluster, replicas: u32) -> Objects {
    let config = pod_config(cluster);
    Objects {
        stateful_set: StatefulSet {
            metadata: metadata(cluster, cluster.name.clone()),
            spec: Some(StatefulSetSpec {
                replicas: Some(i32::try_from(replicas).unwrap_or(i32::MAX)),
                selector: selector(cluster),
                // Pods do not wait for each other: a surge gets all its pods at once.
                pod_management_policy: Some("Parallel".to_owned()),
                template: PodTemplateSpec {
                    metadata: Some(ObjectMeta {
                        labels: Some(labels(cluster)),
                        annotations: Some([(CONFIG_HASH.to_owned(), hash(&config))].into()),
                        ..ObjectMeta::default()
                    }),
                    spec: Some(pod_spec(cluster)),
                },
                volume_claim_templates: Some(vec![spool_claim(cluster)]),
                ..StatefulSetSpec::default()
            }),
            status: None,
        },
        config_map: ConfigMap {
            metadata: metadata(cluster, config_map_name(cluster)),
            data: Some([(CONFIG_FILE.to_owned(), config)].into()),
            ..ConfigMap::default()
        },
    }
}

/// The label selector of the cluster's pods, as text.
#[must_use]
pub fn selector_text(cluster: &Cluster) -> String {
    let pairs = selector_labels(cluster).into_iter().map(|(key, value)| format!("{key}={value}"));
    pairs.collect::<Vec<_>>().join(",")
}

/// The pod's configuration file.
fn pod_config(cluster: &Cluster) -> String {
    // Without a key whoever reaches the pod could write to the ledger; the pod refuses other addresses as well.
    let host = if cluster.security.api_key_secret_ref.is_some() { "0.0.0.0" } else { "127.0.0.1" };
    let ledger = &cluster.ledger;
    // Every JSON text is YAML. Left out where there is none, so that pods of other clusters do not restart.
    let encryption = cluster.security.encrypted_fields.as_ref().map_or_else(String::new, |fields| {
        format!("encryption:\n  fields: {}\n", serde_json::Value::from(fields.clone()))
    });
    // On the pod's volume, which no restore of the database reaches.
    let anchor = match cluster.security.signing_key_secret_ref {
        Some(_) => format!("  anchor: \"file://{SPOOL_FOLDER}/log-anchor\"\n"),
        None => String::new(),
    };
    // Sizes and times are written in one unit each, whatever the user wrote, so that equal settings give equal text.
    format!(
        "api:\n  listen: \"{host}:{API_PORT}\"\n\
         admin:\n  listen: \"{host}:{ADMIN_PORT}\"\n\
         database:\n  poolSize: {}\n\
         ledger:\n  batchSize: {}\n  batchTimeout: {}ms\n  queueEvents: {}\n  queueBytes: {}\n  writers: {}\n\
         spool:\n  maxBytes: {}\n  persistent: true\n\
         {encryption}\
         log:\n  level: info\n{anchor}",
        cluster.pool_size,
        ledger.batch_size,
        ledger.batch_timeout.as_millis(),
        ledger.queue_events,
        ledger.queue_bytes.bytes(),
        ledger.writers,
        // The rest is for the file system's own needs, and for what is set aside.
        cluster.spool.size.bytes() / 10 * 9,
    )
}

fn hash(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn config_map_name(cluster: &Cluster) -> String {
    format!("{}-config", cluster.name)
}

fn selector_labels(cluster: &Cluster) -> BTreeMap<String, String> {
    [("app.kubernetes.io/name", "certeus-dataplane"), ("app.kubernetes.io/instance", &cluster.name)]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
}

fn labels(cluster: &Cluster) -> BTreeMap<String, String> {
    let mut labels = selector_labels(cluster);
    labels.insert("app.kubernetes.io/managed-by".to_owned(), "certeus-operator".to_owned());
    labels
}

fn selector(cluster: &Cluster) -> LabelSelector {
    LabelSelector { match_labels: Some(selector_labels(cluster)), match_expressions: None }
}

fn metadata(cluster: &Cluster, name: String) -> ObjectMeta {
    let owner = cluster.uid.as_ref().map(|uid| OwnerReference {
        api_version: format!("{GROUP}/{VERSION}"),
        kind: "LedgerCluster".to_owned(),
        name: cluster.name.clone(),
        uid: uid.clone(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    });
    ObjectMeta {
        name: Some(name),
        namespace: Some(cluster.namespace.clone()),
        labels: Some(labels(cluster)),
        owner_references: owner.map(|owner| vec![owner]),
        ..ObjectMeta::default()
    }
}

fn spool_claim(cluster: &Cluster) -> PersistentVolumeClaim {
    PersistentVolumeClaim {
        metadata: ObjectMeta { name: Some("spool".to_owned()), ..ObjectMeta::default() },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
            storage_class_name: cluster.spool.storage_class_name.clone(),
            resources: Some(VolumeResourceRequirements {
                requests: Some([("storage".to_owned(), cluster.spool.size.into())].into()),
                limits: None,
            }),
            ..PersistentVolumeClaimSpec::default()
        }),
        status: None,
    }
}

fn pod_spec(cluster: &Cluster) -> PodSpec {
    let scheduling = &cluster.scheduling;
    let spread = scheduling.topology_spread_constraints.iter().map(|constraint| TopologySpreadConstraint {
        label_selector: Some(constraint.label_selector.clone().unwrap_or_else(|| selector(cluster))),
        ..constraint.clone()
    });
    PodSpec {
        containers: vec![container(cluster)],
        // The pod talks to PostgreSQL, not to the API server.
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(USER),
            run_as_group: Some(USER),
            fs_group: Some(USER),
            fs_group_change_policy: Some("OnRootMismatch".to_owned()),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".to_owned(),
                localhost_profile: None,
            }),
            ..PodSecurityContext::default()
        }),
        termination_grace_period_seconds: Some(ENDPOINT_REMOVAL_SECONDS + DRAIN_SECONDS),
        affinity: scheduling.affinity.clone(),
        tolerations: some_unless_empty(scheduling.tolerations.clone()),
        topology_spread_constraints: some_unless_empty(spread.collect()),
        volumes: Some(vec![
            Volume {
                name: "config".to_owned(),
                config_map: Some(ConfigMapVolumeSource {
                    name: config_map_name(cluster),
                    ..ConfigMapVolumeSource::default()
                }),
                ..Volume::default()
            },
            Volume {
                name: "tmp".to_owned(),
                empty_dir: Some(EmptyDirVolumeSource::default()),
                ..Volume::default()
            },
        ]),
        ..PodSpec::default()
    }
}

fn container(cluster: &Cluster) -> Container {
    let port = |name: &str, port: i32| ContainerPort {
        name: Some(name.to_owned()),
        container_port: port,
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    };
    let mount = |name: &str, path: &str, read_only: bool| VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    };
    Container {
        name: CONTAINER.to_owned(),
        image: Some(cluster.image.clone()),
        command: Some(vec!["certeus-dataplane".to_owned()]),
        // The spool's folder is an argument: on one machine each pod has its own.
        args: Some(vec![
            "--config".to_owned(),
            format!("{CONFIG_FOLDER}/{CONFIG_FILE}"),
            format!("--spool={SPOOL_FOLDER}"),
        ]),
        env: some_unless_empty(environment(cluster)),
        ports: Some(vec![port("api", API_PORT), port("admin", ADMIN_PORT)]),
        resources: Some(cluster.resources.clone()),
        // A pod that cannot do its work is restarted after half a minute; one that is busy merely gets no new connections.
        liveness_probe: Some(probe("/health/live", 10, 3)),
        readiness_probe: Some(probe("/health/ready", 2, 2)),
        lifecycle: Some(Lifecycle {
            pre_stop: Some(LifecycleHandler {
                sleep: Some(SleepAction { seconds: ENDPOINT_REMOVAL_SECONDS }),
                ..LifecycleHandler::default()
            }),
            ..Lifecycle::default()
        }),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
            ..SecurityContext::default()
        }),
        volume_mounts: Some(vec![
            mount("config", CONFIG_FOLDER, true),
            mount("spool", SPOOL_FOLDER, false),
            mount("tmp", "/tmp", false),
        ]),
        ..Container::default()
    }
}

/// The secrets a pod gets. With an embedded database its URL is added by whoever started that database.
fn environment(cluster: &Cluster) -> Vec<EnvVar> {
    let database = match &cluster.database {
        DatabaseSource::Secret(reference) => Some(reference),
        DatabaseSource::Embedded => None,
    };
    let security = &cluster.security;
    let secrets = [
        ("CERTEUS_DB_URL", database),
        ("CERTEUS_API_KEY", security.api_key_secret_ref.as_ref()),
        ("CERTEUS_DECRYPT_API_KEY", security.decrypt_api_key_secret_ref.as_ref()),
        ("CERTEUS_ENCRYPTION_KEY", security.encryption_key_secret_ref.as_ref()),
        ("CERTEUS_SIGNING_KEY", security.signing_key_secret_ref.as_ref()),
    ];
    secrets.into_iter().filter_map(|(name, reference)| Some(secret_variable(name, reference?))).collect()
}

fn secret_variable(name: &str, reference: &SecretKeyRef) -> EnvVar {
    EnvVar {
        name: name.to_owned(),
        value_from: Some(EnvVarSource {
            secret_key_ref: Some(SecretKeySelector {
                name: reference.name.clone(),
                key: reference.key.clone(),
                optional: None,
            }),
            ..EnvVarSource::default()
        }),
        value: None,
    }
}

fn probe(path: &str, period_seconds: i32, failure_threshold: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String("admin".to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period_seconds),
        failure_threshold: Some(failure_threshold),
        timeout_seconds: Some(2),
        ..Probe::default()
    }
}

fn some_unless_empty<T>(list: Vec<T>) -> Option<Vec<T>> {
    (!list.is_empty()).then_some(list)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{Object, parse};
    use crate::validate::validate;

    fn read(name: &str) -> Cluster {
        let path = golden(name);
        let mut manifests = parse(&path, &std::fs::read_to_string(&path).unwrap()).unwrap();
        match manifests.remove(0).object {
            Object::LedgerCluster(cluster) => validate(&cluster).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    fn golden(name: &str) -> std::path::PathBuf {
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/build/golden").join(name)
    }

    #[track_caller]
    fn check(name: &str) {
        let Objects { config_map, stateful_set } = build(&read(&format!("{name}.yaml")), 3);
        let built = format!(
            "---\n{}---\n{}",
            serde_saphyr::to_string(&config_map).unwrap(),
            serde_saphyr::to_string(&stateful_set).unwrap()
        );
        let path = golden(&format!("{name}.out.yaml"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&path, &built).unwrap();
        }
        let expected = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            expected == built,
            "{} differs; run with UPDATE_GOLDEN=1 and read the diff. Built:\n{built}",
            path.display()
        );
    }

    #[test]
    fn a_minimal_cluster_listens_on_loopback_only() {
        check("minimal");
    }

    #[test]
    fn a_full_cluster_carries_every_setting_to_its_pods() {
        check("full");
    }

    #[test]
    fn the_hash_follows_the_configuration_and_nothing_else() {
        let hash = |cluster: &Cluster, replicas| {
            let template = build(cluster, replicas).stateful_set.spec.unwrap().template;
            template.metadata.unwrap().annotations.unwrap()[CONFIG_HASH].clone()
        };
        let cluster = read("minimal.yaml");
        assert_eq!(hash(&cluster, 3), hash(&cluster, 4), "scaling must not restart pods");
        let mut changed = cluster.clone();
        changed.ledger.writers += 1;
        assert_ne!(hash(&cluster, 3), hash(&changed, 3));
    }
}
