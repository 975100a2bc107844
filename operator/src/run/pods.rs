//! Pods of the clusters as the watch shows them, and where to find them for whoever talks to them.
//! Owns the directory that the controller fills. Never talks to a pod; never shows an API key.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use certeus_autoscale::PodPhase;
use certeus_operator::build::{ADMIN_PORT, CONTAINER};
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod, PodCondition, PodStatus};
use tokio::sync::broadcast;

use super::clock;
use super::trouble::{Kind, Trouble};
use crate::admin::{self, Admin, ApiKey};

/// Label of a pod that names its cluster.
pub(crate) const INSTANCE_LABEL: &str = "app.kubernetes.io/instance";
/// The library's constant has the type that Kubernetes gives ports.
#[expect(clippy::cast_possible_truncation, reason = "checked beside it")]
const ADMIN: u16 = ADMIN_PORT as u16;
const _: () = assert!(ADMIN as i32 == ADMIN_PORT);
/// Changes that a slow reader of the directory may lag behind before it has to read all of it again.
const CHANGES_MAX: usize = 1024;

/// Namespace and name of an object whose kind is clear from the context.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ObjectKey {
    pub(crate) namespace: Arc<str>,
    pub(crate) name: Arc<str>,
}

impl ObjectKey {
    pub(crate) fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// One pod of a cluster.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PodSeen {
    pub(crate) name: String,
    /// Identity: a pod that was replaced has the same name and another one.
    pub(crate) uid: String,
    /// Its number within the StatefulSet.
    pub(crate) ordinal: u32,
    /// Absent until the kubelet gave it one.
    pub(crate) ip: Option<IpAddr>,
    /// Where it is in its life; times are those of [`clock`].
    pub(crate) phase: PodPhase,
    /// When it is to be gone at the latest if it is being deleted: its grace period is over then.
    pub(crate) gone_by: Option<Duration>,
    /// A process of it was started, as far as its status tells: it may have written to its volume.
    pub(crate) has_run: bool,
    /// What keeps it from its work. Of most pods nothing, so that is what takes no room.
    pub(crate) trouble: Option<Box<Trouble>>,
    /// The StatefulSet's revision it was made from.
    pub(crate) revision: Option<String>,
    /// What its admin port asks callers for.
    pub(crate) key: Option<ApiKey>,
}

impl PodSeen {
    /// Its container ends each time soon after it is started.
    pub(crate) fn crashes(&self) -> bool {
        self.trouble.as_ref().is_some_and(|trouble| matches!(trouble.kind, Kind::Crash { .. }))
    }

    /// Where to ask it.
    ///
    /// # Errors
    /// It has no address yet.
    pub(crate) fn admin(&self) -> Result<Admin, admin::Error> {
        let ip = self.ip.ok_or(admin::Error::NoAddress)?;
        Ok(Admin { address: SocketAddr::new(ip, ADMIN), api_key: self.key.clone() })
    }

    /// Reads what counts from a pod; `None` if it is no pod of a StatefulSet.
    pub(crate) fn read(pod: &Pod) -> Option<Self> {
        let name = pod.metadata.name.clone()?;
        let ordinal = name.rsplit_once('-')?.1.parse().ok()?;
        let status = pod.status.as_ref();
        let phase = phase(pod);
        let label = |label: &str| pod.metadata.labels.as_ref()?.get(label).cloned();
        Some(Self {
            ordinal,
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            ip: status.and_then(|status| status.pod_ip.as_ref()).and_then(|ip| ip.parse().ok()),
            phase,
            gone_by: pod.metadata.deletion_timestamp.as_ref().map(|time| clock::since_unix_epoch(time.0)),
            has_run: status.is_some_and(has_run),
            trouble: Trouble::read(pod, phase, clock::now()).map(Box::new),
            revision: label("controller-revision-hash"),
            key: None,
            name,
        })
    }
}

fn phase(pod: &Pod) -> PodPhase {
    if pod.metadata.deletion_timestamp.is_some() {
        return PodPhase::Draining;
    }
    let Some(status) = &pod.status else { return PodPhase::Pending };
    match status.phase.as_deref() {
        Some("Running") => {}
        // A pod that succeeded ended, too: this one never should.
        Some("Failed" | "Succeeded") => return PodPhase::Failed,
        Some(_) | None => return PodPhase::Pending,
    }
    let container = own_container(status);
    let running = container.and_then(|container| container.state.as_ref()).map(running_since);
    let pod_start = status.start_time.as_ref().map(|time| clock::since_unix_epoch(time.0));
    let started_at = match running {
        // Waiting to be restarted, for instance.
        Some(None) => return PodPhase::Pending,
        Some(Some(started_at)) => Some(started_at),
        None => pod_start,
    };
    let Some(started_at) = started_at else { return PodPhase::Pending };
    let is_ready = |condition: &&PodCondition| condition.type_ == "Ready";
    let condition = status.conditions.iter().flatten().find(is_ready);
    let changed = condition.and_then(|condition| condition.last_transition_time.as_ref());
    PodPhase::Running {
        ready: condition.is_some_and(|condition| condition.status == "True"),
        started_at,
        ready_changed_at: changed.map_or(started_at, |time| clock::since_unix_epoch(time.0).max(started_at)),
    }
}

fn has_run(status: &PodStatus) -> bool {
    // One that failed or is lost may have lost what its containers did, too.
    if status.phase.as_deref().is_some_and(|phase| phase != "Pending") {
        return true;
    }
    let started = |state: &ContainerState| state.running.is_some() || state.terminated.is_some();
    own_container(status).is_some_and(|container| {
        container.restart_count > 0
            || [&container.state, &container.last_state].into_iter().flatten().any(started)
    })
}

/// The kubelet sorts containers by name, and somebody may have injected others.
pub(super) fn own_container(status: &PodStatus) -> Option<&ContainerStatus> {
    status.container_statuses.iter().flatten().find(|container| container.name == CONTAINER)
}

fn running_since(state: &ContainerState) -> Option<Duration> {
    let running = state.running.as_ref()?;
    running.started_at.as_ref().map(|time| clock::since_unix_epoch(time.0))
}

/// All clusters' pods, for readers in other tasks. The controller is the only writer.
#[derive(Clone)]
pub(crate) struct PodDirectory {
    /// Guards the map alone; never held while waiting.
    pods: Arc<Mutex<HashMap<ObjectKey, Arc<[PodSeen]>>>>,
    changes: broadcast::Sender<ObjectKey>,
}

impl PodDirectory {
    pub(crate) fn new() -> Self {
        Self { pods: Arc::default(), changes: broadcast::Sender::new(CHANGES_MAX) }
    }

    /// The pods of a cluster in order of their numbers; `None` if there is no such cluster.
    pub(crate) fn pods(&self, cluster: &ObjectKey) -> Option<Arc<[PodSeen]>> {
        self.lock().get(cluster).cloned()
    }

    /// All clusters, in order.
    pub(crate) fn clusters(&self) -> BTreeMap<ObjectKey, Arc<[PodSeen]>> {
        self.lock().iter().map(|(key, pods)| (key.clone(), Arc::clone(pods))).collect()
    }

    /// Tells the cluster whenever its pods changed. Who lags behind gets `Lagged` and reads all again.
    pub(crate) fn changes(&self) -> broadcast::Receiver<ObjectKey> {
        self.changes.subscribe()
    }

    /// Replaces what is known of a cluster; `None` when it is gone.
    pub(crate) fn set(&self, cluster: &ObjectKey, pods: Option<Vec<PodSeen>>) {
        let changed = {
            let mut all = self.lock();
            match pods {
                Some(pods) if all.get(cluster).is_some_and(|old| **old == *pods) => false,
                Some(pods) => all.insert(cluster.clone(), pods.into()).is_none_or(|_| true),
                None => all.remove(cluster).is_some(),
            }
        };
        if changed {
            // Without a reader nobody needs to know.
            let _readers = self.changes.send(cluster.clone());
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ObjectKey, Arc<[PodSeen]>>> {
        // Nothing in here panics half-way.
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[track_caller]
    fn check(change: &[(&str, Value)], expected: PodPhase) {
        let mut pod = json!({
            "metadata": { "name": "demo-3", "uid": "u" },
            "status": {
                "phase": "Running", "podIP": "10.0.0.7", "startTime": "1970-01-01T00:01:00Z",
                "containerStatuses": [{ "name": "dataplane", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                    "state": { "running": { "startedAt": "1970-01-01T00:01:10Z" } } }],
                "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": "1970-01-01T00:01:20Z" }]
            }
        });
        for (pointer, value) in change {
            *pod.pointer_mut(pointer).unwrap() = value.clone();
        }
        let seen = PodSeen::read(&serde_json::from_value(pod).unwrap()).unwrap();
        assert_eq!(seen.phase, expected);
        let gone_by = (expected == PodPhase::Draining).then_some(Duration::from_secs(120));
        let ip = Some("10.0.0.7".parse().unwrap());
        assert_eq!((seen.ordinal, seen.ip, seen.gone_by), (3, ip, gone_by));
    }

    #[test]
    fn a_pod_is_in_the_phase_that_its_status_shows() {
        let running = |ready, at| PodPhase::Running {
            ready,
            started_at: Duration::from_secs(70),
            ready_changed_at: Duration::from_secs(at),
        };
        check(&[], running(true, 80));
        check(&[("/status/conditions/0/status", json!("False"))], running(false, 80));
        check(&[("/status/conditions", json!([]))], running(false, 70));
        check(&[("/status/phase", json!("Pending"))], PodPhase::Pending);
        check(&[("/status/phase", json!("Failed"))], PodPhase::Failed);
        check(&[("/status/containerStatuses/0/state", json!({ "waiting": {} }))], PodPhase::Pending);
        let deleted = json!({ "name": "demo-3", "deletionTimestamp": "1970-01-01T00:02:00Z" });
        check(&[("/metadata", deleted)], PodPhase::Draining);
    }

    #[test]
    fn a_container_that_somebody_injected_is_not_taken_for_the_pods_own() {
        let container = |name: &str, state: Value| json!({ "name": name, "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state });
        let seen = |theirs: Value, own: Value| {
            let status = json!({ "phase": "Running", "startTime": "1970-01-01T00:01:00Z",
                "containerStatuses": [container("cloud-sql-proxy", theirs), container("dataplane", own)] });
            let pod = json!({ "metadata": { "name": "demo-3" }, "status": status });
            PodSeen::read(&serde_json::from_value(pod).unwrap()).unwrap()
        };
        let runs = |second: u32| json!({ "running": { "startedAt": format!("1970-01-01T00:01:{second}Z") } });
        let waits = || json!({ "waiting": { "reason": "CrashLoopBackOff" } });
        let PodPhase::Running { started_at, .. } = seen(runs(10), runs(30)).phase else { panic!("it runs") };
        assert_eq!(started_at, Duration::from_secs(90));
        let down = seen(runs(10), waits());
        assert!(down.phase == PodPhase::Pending && down.crashes());
        let theirs = seen(waits(), runs(30));
        assert!(theirs.phase != PodPhase::Pending && !theirs.crashes());
    }

    #[test]
    fn a_pod_has_run_if_a_process_of_it_was_started() {
        let check = |phase: &str, container: Value, expected: bool| {
            let mut status =
                json!({ "name": "dataplane", "image": "", "imageID": "", "ready": false, "restartCount": 0 });
            status.as_object_mut().unwrap().extend(container.as_object().unwrap().clone());
            let pod = json!({ "metadata": { "name": "demo-3" },
                "status": { "phase": phase, "containerStatuses": [status] } });
            let seen = PodSeen::read(&serde_json::from_value(pod).unwrap()).unwrap();
            assert_eq!(seen.has_run, expected, "{phase} {container}");
        };
        let waiting = json!({ "waiting": { "reason": "ContainerCreating" } });
        let ended = json!({ "terminated": { "exitCode": 1 } });
        check("Pending", json!({ "state": waiting }), false);
        check("Pending", json!({ "state": waiting, "restartCount": 1 }), true);
        check("Pending", json!({ "state": waiting, "lastState": ended }), true);
        check("Pending", json!({ "state": ended }), true);
        check("Running", json!({ "state": waiting }), true);
        check("Failed", json!({}), true);
        let unscheduled = serde_json::from_value(json!({ "metadata": { "name": "demo-3" } })).unwrap();
        assert!(!PodSeen::read(&unscheduled).unwrap().has_run);
    }

    #[test]
    fn a_reader_is_told_of_changes_only() {
        let directory = PodDirectory::new();
        let mut changes = directory.changes();
        let key = ObjectKey::new("ns", "demo");
        directory.set(&key, None);
        directory.set(&key, Some(Vec::new()));
        directory.set(&key, Some(Vec::new()));
        directory.set(&key, None);
        assert_eq!((changes.try_recv(), changes.try_recv()), (Ok(key.clone()), Ok(key)));
        assert!(changes.try_recv().is_err());
    }
}
