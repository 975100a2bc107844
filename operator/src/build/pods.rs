//! The workload: a StatefulSet of hardened pods, each with a volume for its spool.
//! `serviceName`, the pods' selector and the volume claims can never be changed once the StatefulSet exists.

use certeus_crds::SecretKeyRef;
use k8s_openapi::api::apps::v1::{
    StatefulSet, StatefulSetPersistentVolumeClaimRetentionPolicy, StatefulSetSpec,
};
use k8s_openapi::api::core::v1::{
    Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EmptyDirVolumeSource, EnvVar,
    EnvVarSource, HTTPGetAction, Lifecycle, LifecycleHandler, LocalObjectReference, PersistentVolumeClaim,
    PersistentVolumeClaimSpec, PodSecurityContext, PodSpec, PodTemplateSpec, Probe, SeccompProfile,
    SecretKeySelector, SecurityContext, SleepAction, TopologySpreadConstraint, Volume, VolumeMount,
    VolumeResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::secrets::secret_uses;
use super::{
    ADMIN_PORT, API_PORT, CONFIG_FILE, CONFIG_HASH, CONTAINER, SECRETS_HASH, config_map_name,
    headless_service_name, labels, metadata, selector, service_account_name, workload_name,
};
use crate::validate::Cluster;

const CONFIG_FOLDER: &str = "/etc/certeus";
pub(super) const SPOOL_FOLDER: &str = "/var/lib/certeus/spool";
pub(super) const SPOOL_VOLUME: &str = "spool";
/// The user of the image, who owns nothing.
const USER: i64 = 65532;
/// Time between being marked as terminating and SIGTERM, in which proxies stop sending new connections; on SIGTERM the
/// pod drains by itself.
const ENDPOINT_REMOVAL_SECONDS: i64 = 5;
/// Time to flush a full queue to a slow database after that, before the pod is killed.
const DRAIN_SECONDS: i64 = 55;
/// Domains over which pods spread unless the user says otherwise.
const SPREAD_KEYS: [&str; 2] = ["topology.kubernetes.io/zone", "kubernetes.io/hostname"];

pub(super) fn stateful_set(
    cluster: &Cluster,
    replicas: u32,
    config_hash: &str,
    secrets_hash: Option<&str>,
    image: &str,
) -> StatefulSet {
    let hashes = [(CONFIG_HASH, Some(config_hash)), (SECRETS_HASH, secrets_hash)];
    let annotations =
        hashes.iter().filter_map(|(name, hash)| Some(((*name).to_owned(), (*hash)?.to_owned())));
    StatefulSet {
        metadata: metadata(cluster, workload_name(cluster).to_owned()),
        spec: Some(StatefulSetSpec {
            replicas: Some(i32::try_from(replicas).unwrap_or(i32::MAX)),
            selector: selector(cluster),
            service_name: Some(headless_service_name(cluster)),
            // Pods do not wait for each other: a surge gets all its pods at once.
            pod_management_policy: Some("Parallel".to_owned()),
            // A spool may hold acknowledged events of a pod that could not drain.
            persistent_volume_claim_retention_policy: Some(StatefulSetPersistentVolumeClaimRetentionPolicy {
                when_deleted: Some("Retain".to_owned()),
                when_scaled: Some("Retain".to_owned()),
            }),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(labels(cluster)),
                    annotations: Some(annotations.collect()),
                    ..ObjectMeta::default()
                }),
                spec: Some(pod_spec(cluster, image)),
            },
            volume_claim_templates: Some(vec![claim(
                SPOOL_VOLUME,
                cluster.spool.size.into(),
                cluster.spool.storage_class_name.clone(),
            )]),
            ..StatefulSetSpec::default()
        }),
        status: None,
    }
}

/// A volume of each pod.
pub(super) fn claim(name: &str, size: Quantity, storage_class_name: Option<String>) -> PersistentVolumeClaim {
    PersistentVolumeClaim {
        metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
            storage_class_name,
            resources: Some(VolumeResourceRequirements {
                requests: Some([("storage".to_owned(), size)].into()),
                limits: None,
            }),
            ..PersistentVolumeClaimSpec::default()
        }),
        status: None,
    }
}

fn pod_spec(cluster: &Cluster, image: &str) -> PodSpec {
    let scheduling = &cluster.scheduling;
    PodSpec {
        containers: vec![container(cluster, image)],
        image_pull_secrets: image_pull_secrets(cluster),
        service_account_name: Some(service_account_name(cluster)),
        // The pod talks to PostgreSQL, not to the API server.
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        security_context: Some(pod_security(USER)),
        termination_grace_period_seconds: Some(ENDPOINT_REMOVAL_SECONDS + DRAIN_SECONDS),
        affinity: scheduling.affinity.clone(),
        tolerations: some_unless_empty(scheduling.tolerations.clone()),
        topology_spread_constraints: Some(spread(cluster)),
        volumes: Some(vec![
            Volume {
                name: "config".to_owned(),
                config_map: Some(ConfigMapVolumeSource {
                    name: config_map_name(cluster),
                    ..ConfigMapVolumeSource::default()
                }),
                ..Volume::default()
            },
            scratch("tmp"),
        ]),
        ..PodSpec::default()
    }
}

/// In the template, although a change replaces the pods that way: those that wait for their image would never see it in the
/// service account, which counts when a pod is made.
pub(super) fn image_pull_secrets(cluster: &Cluster) -> Option<Vec<LocalObjectReference>> {
    let named = cluster.image_pull_secrets.iter();
    some_unless_empty(named.map(|secret| LocalObjectReference { name: secret.name.clone() }).collect())
}

/// What the user gives, completed; else evenly over zones and nodes, as far as that goes.
fn spread(cluster: &Cluster) -> Vec<TopologySpreadConstraint> {
    let given = &cluster.scheduling.topology_spread_constraints;
    if given.is_empty() {
        return SPREAD_KEYS
            .map(|key| TopologySpreadConstraint {
                max_skew: 1,
                topology_key: key.to_owned(),
                when_unsatisfiable: "ScheduleAnyway".to_owned(),
                label_selector: Some(selector(cluster)),
                ..TopologySpreadConstraint::default()
            })
            .into();
    }
    let completed = given.iter().map(|constraint| TopologySpreadConstraint {
        label_selector: Some(constraint.label_selector.clone().unwrap_or_else(|| selector(cluster))),
        ..constraint.clone()
    });
    completed.collect()
}

/// What the `restricted` pod security standard asks for, and a user and group of its own.
pub(super) fn pod_security(user: i64) -> PodSecurityContext {
    PodSecurityContext {
        run_as_non_root: Some(true),
        run_as_user: Some(user),
        run_as_group: Some(user),
        fs_group: Some(user),
        fs_group_change_policy: Some("OnRootMismatch".to_owned()),
        seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }),
        ..PodSecurityContext::default()
    }
}

/// What the `restricted` pod security standard asks for, and a root file system that nothing can write to.
pub(super) fn container_security() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        read_only_root_filesystem: Some(true),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
        ..SecurityContext::default()
    }
}

/// An empty folder that goes with the pod.
pub(super) fn scratch(name: &str) -> Volume {
    Volume { name: name.to_owned(), empty_dir: Some(EmptyDirVolumeSource::default()), ..Volume::default() }
}

pub(super) fn mount(name: &str, path: &str) -> VolumeMount {
    VolumeMount { name: name.to_owned(), mount_path: path.to_owned(), ..VolumeMount::default() }
}

pub(super) fn container_port(name: &str, port: i32) -> ContainerPort {
    ContainerPort {
        name: Some(name.to_owned()),
        container_port: port,
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    }
}

fn container(cluster: &Cluster, image: &str) -> Container {
    let uses = secret_uses(cluster).into_iter();
    let environment = uses.map(|found| secret_variable(found.variable, found.reference, found.optional));
    Container {
        name: CONTAINER.to_owned(),
        image: Some(image.to_owned()),
        command: Some(vec!["certeus-dataplane".to_owned()]),
        // The spool's folder is an argument: on one machine each pod has its own.
        args: Some(vec![
            "--config".to_owned(),
            format!("{CONFIG_FOLDER}/{CONFIG_FILE}"),
            format!("--spool={SPOOL_FOLDER}"),
        ]),
        env: Some(environment.collect()),
        ports: Some(vec![container_port("api", API_PORT), container_port("admin", ADMIN_PORT)]),
        resources: Some(cluster.resources.clone()),
        // A start takes no minute, even beside a database that is away; until it is over the others wait.
        startup_probe: Some(probe("/health/live", 1, 60)),
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
        security_context: Some(container_security()),
        volume_mounts: Some(vec![
            VolumeMount { read_only: Some(true), ..mount("config", CONFIG_FOLDER) },
            mount(SPOOL_VOLUME, SPOOL_FOLDER),
            mount("tmp", "/tmp"),
        ]),
        ..Container::default()
    }
}

pub(super) fn secret_variable(name: &str, reference: SecretKeyRef, optional: bool) -> EnvVar {
    let SecretKeyRef { name: secret, key } = reference;
    EnvVar {
        name: name.to_owned(),
        value_from: Some(EnvVarSource {
            secret_key_ref: Some(SecretKeySelector { name: secret, key, optional: optional.then_some(true) }),
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
