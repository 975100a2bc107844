//! A kubelet whose containers are processes: it runs the pods of one namespace on this machine, without images or root.
//!
//! Registers a node and keeps its lease, binds pending pods to it, gives each pod an address of its own in 127.0.0.0/8, and does
//! for its container what a kubelet does: volumes, environment, probes, restarts with back-off, preStop, grace period, status. What a
//! pod says that a process cannot have keeps the pod from starting and stands in its status. Containers
//! are not isolated: limits and security contexts mean nothing. Paths of mounts are rewritten (see `template.rs`), names of
//! Services lead to their pods (`service.rs`), and `postgres.sh` stands for PostgreSQL's image.
//! Read next: `pod.rs`.

mod exec;
mod pod;
mod probe;
mod service;
mod template;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::StreamExt;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::watcher::{Config as WatchConfig, Event};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::control_plane::ControlPlane;
use super::front::Front;
use super::guard::Process;
use super::runtime;
use super::space::Space;

/// What PostgreSQL's image does when it is run.
const POSTGRES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/cluster/kubelet/postgres.sh");
/// Where a pod of ours serves its API.
pub const API_PORT: u16 = 8000;
/// Where a pod of ours serves metrics, health and drain.
pub const ADMIN_PORT: u16 = 9090;
/// Where a process serves these behind a front.
const HIDDEN_ADMIN_PORT: u16 = 19090;
const HEARTBEAT: Duration = Duration::from_secs(5);

/// What is to become of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Run,
    /// It was deleted, with this grace period.
    Terminate(Duration),
    /// The object is gone already.
    Gone,
}

/// What the kubelet knows of a pod beside the object.
#[derive(Debug)]
struct Slot {
    uid: String,
    address: Ipv4Addr,
    fate: watch::Sender<Fate>,
    process: Arc<Mutex<Option<Process>>>,
    front: Option<Arc<Front>>,
    task: AbortHandle,
}

struct Shared {
    plane: &'static ControlPlane,
    client: Client,
    namespace: String,
    node: String,
    dir: PathBuf,
    /// Programs by the first word of a container's command, or by the name of its image.
    programs: BTreeMap<String, PathBuf>,
    /// Whether a front stands before the admin port of each pod.
    fronted: bool,
    slots: Mutex<BTreeMap<String, Slot>>,
    /// Those that containers name, by name.
    services: tokio::sync::Mutex<BTreeMap<String, service::Reachable>>,
    next_address: AtomicU32,
}

/// A running kubelet. Its pods' processes end with it.
pub struct Kubelet {
    shared: Arc<Shared>,
    tasks: [AbortHandle; 2],
}

impl Kubelet {
    /// Runs the pods of a namespace. `programs` names programs by the first word of a container's command or by its image's name.
    /// With `fronted`, [`Self::front`] can break what a pod's admin port answers.
    ///
    /// # Errors
    /// When the node cannot be registered.
    pub fn start(space: &Space, programs: &[(&str, PathBuf)], fronted: bool) -> Result<Self> {
        let mut programs: BTreeMap<String, PathBuf> =
            programs.iter().map(|(name, path)| ((*name).to_owned(), path.clone())).collect();
        programs.insert("postgres".to_owned(), POSTGRES.into());
        let shared = Arc::new(Shared {
            plane: space.plane(),
            client: space.client().clone(),
            namespace: space.name().to_owned(),
            node: format!("node-{}", space.name()),
            dir: space.dir().to_owned(),
            programs,
            fronted,
            slots: Mutex::default(),
            services: tokio::sync::Mutex::default(),
            next_address: AtomicU32::new(first_address()),
        });
        runtime().block_on(shared.register())?;
        let heart = runtime().spawn(beat(Arc::clone(&shared)));
        let watching = runtime().spawn(watch_pods(Arc::clone(&shared)));
        Ok(Self { shared, tasks: [heart.abort_handle(), watching.abort_handle()] })
    }

    /// Where a pod serves its API.
    #[must_use]
    pub fn api_of(&self, pod: &str) -> Option<SocketAddr> {
        Some((self.address_of(pod)?, API_PORT).into())
    }

    /// Where a pod serves metrics, health and drain.
    #[must_use]
    pub fn admin_of(&self, pod: &str) -> Option<SocketAddr> {
        Some((self.address_of(pod)?, ADMIN_PORT).into())
    }

    fn address_of(&self, pod: &str) -> Option<IpAddr> {
        self.shared.slots().get(pod).map(|slot| slot.address.into())
    }

    /// The pods that it has, by name.
    #[must_use]
    pub fn pods(&self) -> Vec<String> {
        self.shared.slots().keys().cloned().collect()
    }

    /// `kill -9` of a pod's process; the pod is restarted as one that crashed.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn kill(&self, pod: &str) -> Result<()> {
        self.signal(pod, Signal::KILL)
    }

    /// SIGSTOP: it does nothing, and its connections stay.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn freeze(&self, pod: &str) -> Result<()> {
        self.signal(pod, Signal::STOP)
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn thaw(&self, pod: &str) -> Result<()> {
        self.signal(pod, Signal::CONT)
    }

    /// As if the pod's node were gone for good: its process ends, nobody says so, and nobody ends the object.
    ///
    /// # Errors
    /// When there is no such pod.
    pub fn lose(&self, pod: &str) -> Result<()> {
        let (task, process) = {
            let slots = self.shared.slots();
            let slot = slots.get(pod).with_context(|| format!("there is no pod {pod}"))?;
            (slot.task.clone(), Arc::clone(&slot.process))
        };
        abort(&[&task]);
        drop(lock(&process).take());
        Ok(())
    }

    fn signal(&self, pod: &str, signal: Signal) -> Result<()> {
        let slots = self.shared.slots();
        let slot = slots.get(pod).with_context(|| format!("there is no pod {pod}"))?;
        let process = lock(&slot.process);
        process.as_ref().with_context(|| format!("pod {pod} has no process"))?.signal(signal);
        Ok(())
    }

    /// The front before a pod's admin port.
    #[must_use]
    pub fn front(&self, pod: &str) -> Option<Arc<Front>> {
        self.shared.slots().get(pod)?.front.clone()
    }
}

impl std::fmt::Debug for Kubelet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kubelet").field("node", &self.shared.node).finish_non_exhaustive()
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        let slots = std::mem::take(&mut *self.shared.slots());
        abort(&slots.values().map(|slot| &slot.task).chain(&self.tasks).collect::<Vec<_>>());
        for slot in slots.values() {
            drop(lock(&slot.process).take());
        }
        runtime().block_on(self.shared.services.lock()).clear();
        // Controllers then do not take the node for one that has failed.
        let nodes: Api<Node> = Api::all(self.shared.client.clone());
        let gone = runtime().block_on(nodes.delete(&self.shared.node, &DeleteParams::default()));
        if let Err(error) = gone {
            eprintln!("cannot remove {}: {error}", self.shared.node);
        }
    }
}

impl Shared {
    fn slots(&self) -> MutexGuard<'_, BTreeMap<String, Slot>> {
        lock(&self.slots)
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    async fn register(&self) -> Result<()> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let others = nodes.list(&kube::api::ListParams::default()).await?;
        let foreign = others.iter().find(|node| !node.name_any().starts_with("node-"));
        ensure!(foreign.is_none(), "the cluster has nodes of its own, which would run the pods of the tests");
        let node = serde_json::from_value(json!({
            "metadata": { "name": self.node, "labels": { "kubernetes.io/hostname": self.node, "kubernetes.io/os": "linux" } },
        }))?;
        nodes.create(&PostParams::default(), &node).await.context("cannot register a node")?;
        self.renew().await?;
        let room = json!({ "cpu": "64", "memory": "256Gi", "pods": "1000" });
        let now = now();
        let status = json!({ "status": {
            "capacity": room, "allocatable": room,
            "addresses": [{ "type": "InternalIP", "address": "127.0.0.1" }],
            "conditions": [{
                "type": "Ready", "status": "True", "reason": "KubeletReady", "message": "processes can run",
                "lastHeartbeatTime": now, "lastTransitionTime": now,
            }],
        } });
        nodes.patch_status(&self.node, &PatchParams::default(), &Patch::Merge(&status)).await?;
        Ok(())
    }

    async fn renew(&self) -> kube::Result<()> {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), "kube-node-lease");
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": { "name": self.node },
            "spec": { "holderIdentity": self.node, "leaseDurationSeconds": 40, "renewTime": now() },
        });
        leases.patch(&self.node, &PatchParams::apply("certeus-e2e").force(), &Patch::Apply(&lease)).await?;
        Ok(())
    }

    /// Acts on what a pod is now.
    async fn see(self: &Arc<Self>, pod: Pod) {
        let name = pod.name_any();
        match pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) {
            None if pod.metadata.deletion_timestamp.is_none() => self.bind(&pod).await,
            Some(node) if node == self.node => self.admit(&name, &pod),
            _ => {}
        }
    }

    async fn bind(&self, pod: &Pod) {
        let spec = pod.spec.as_ref();
        let gated = spec.and_then(|spec| spec.scheduling_gates.as_ref());
        // The only node there is has nothing that anybody could ask for.
        let affinity = spec.and_then(|spec| spec.affinity.as_ref()?.node_affinity.as_ref());
        let picky =
            affinity.and_then(|wanted| wanted.required_during_scheduling_ignored_during_execution.as_ref());
        if gated.is_some_and(|gates| !gates.is_empty()) || picky.is_some() {
            return;
        }
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding",
            "metadata": { "name": pod.name_any(), "uid": pod.uid() },
            "target": { "apiVersion": "v1", "kind": "Node", "name": self.node },
        });
        let bound: kube::Result<Value> = self
            .pods()
            .create_subresource("binding", &pod.name_any(), &PostParams::default(), &binding)
            .await;
        if let Err(error) = bound {
            // It was bound or deleted in between; if not, the next event of it comes.
            eprintln!("{}: cannot bind {}: {error}", self.node, pod.name_any());
        }
    }

    fn admit(self: &Arc<Self>, name: &str, pod: &Pod) {
        let uid = pod.uid().unwrap_or_default();
        let mut slots = self.slots();
        if slots.get(name).is_some_and(|slot| slot.uid != uid) {
            // Its successor has the same name, so the object of this one is gone.
            remove(&mut slots, name);
        }
        let ended = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        if !slots.contains_key(name) {
            if matches!(ended, Some("Succeeded" | "Failed")) && pod.metadata.deletion_timestamp.is_none() {
                return;
            }
            let (fate, receiver) = watch::channel(Fate::Run);
            let process = Arc::new(Mutex::new(None));
            let address = self.take_address();
            let front = self.fronted.then(|| self.open_front(address)).flatten().map(Arc::new);
            let work = pod::run(
                Arc::clone(self),
                pod.clone(),
                address,
                front.is_some(),
                Arc::clone(&process),
                receiver,
            );
            let task = tokio::spawn(work).abort_handle();
            slots.insert(name.to_owned(), Slot { uid, address, fate, process, front, task });
        }
        let Some(slot) = slots.get(name) else { return };
        if pod.metadata.deletion_timestamp.is_some() {
            let seconds = pod.metadata.deletion_grace_period_seconds.unwrap_or(0);
            let grace = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
            slot.fate.send_if_modified(|fate| {
                let shorter =
                    !matches!(*fate, Fate::Terminate(before) if before <= grace) && *fate != Fate::Gone;
                if shorter {
                    *fate = Fate::Terminate(grace);
                }
                shorter
            });
        }
    }

    fn open_front(&self, address: Ipv4Addr) -> Option<Front> {
        let upstream = format!("http://{address}:{HIDDEN_ADMIN_PORT}").parse().ok()?;
        let opened = Front::start((address, ADMIN_PORT).into(), kube::Config::new(upstream));
        opened.inspect_err(|error| eprintln!("{}: no front: {error:#}", self.node)).ok()
    }

    fn forget(&self, name: &str, uid: &str) {
        let mut slots = self.slots();
        if slots.get(name).is_some_and(|slot| slot.uid == uid) {
            remove(&mut slots, name);
        }
    }

    /// An address on which nobody of this machine serves what pods serve.
    fn take_address(&self) -> Ipv4Addr {
        loop {
            let number = self.next_address.fetch_add(1, Ordering::Relaxed);
            // 127.16.0.1 to 127.239.255.254, without the first and the last address of each small net.
            let [_, _, high, low] = number.to_be_bytes();
            let [_, second, ..] = number.to_be_bytes();
            let address = Ipv4Addr::new(127, 16 + second % 224, high, low);
            if low == 0 || low == 255 {
                continue;
            }
            let free = |port| TcpListener::bind((address, port)).is_ok();
            if free(API_PORT) && free(ADMIN_PORT) {
                return address;
            }
        }
    }
}

/// Ends tasks. What one is about to start, it has noted when it ends.
fn abort(tasks: &[&AbortHandle]) {
    tasks.iter().for_each(|task| task.abort());
    let deadline = Instant::now() + Duration::from_secs(5);
    while !tasks.iter().all(|task| task.is_finished()) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn remove(slots: &mut BTreeMap<String, Slot>, name: &str) {
    if let Some(slot) = slots.remove(name) {
        // Its task kills the process. A receiver that is gone has done so.
        slot.fate.send_replace(Fate::Gone);
    }
}

/// Kubelets of different processes, and of one process, begin far from each other.
fn first_address() -> u32 {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let process = std::process::id().wrapping_mul(2_654_435_761) >> 8;
    (process & 0x00FF_FC00) + COUNT.fetch_add(1, Ordering::Relaxed) * 0x100 + 1
}

async fn beat(shared: Arc<Shared>) {
    loop {
        if let Err(error) = shared.renew().await {
            eprintln!("{}: cannot renew the lease: {error}", shared.node);
        }
        tokio::time::sleep(HEARTBEAT).await;
    }
}

async fn watch_pods(shared: Arc<Shared>) {
    let mut events = Box::pin(watcher(shared.pods(), WatchConfig::default()).default_backoff());
    let mut listed = BTreeSet::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(pod)) => {
                listed.insert(pod.uid().unwrap_or_default());
                shared.see(pod).await;
            }
            Ok(Event::InitDone) => {
                let mut slots = shared.slots();
                let gone: Vec<String> = slots
                    .iter()
                    .filter(|(_, slot)| !listed.contains(&slot.uid))
                    .map(|(name, _)| name.clone())
                    .collect();
                for name in gone {
                    remove(&mut slots, &name);
                }
            }
            Ok(Event::Apply(pod)) => shared.see(pod).await,
            Ok(Event::Delete(pod)) => shared.forget(&pod.name_any(), &pod.uid().unwrap_or_default()),
            Err(error) => eprintln!("{}: cannot watch pods: {error}", shared.node),
        }
    }
}

/// Now, as Kubernetes writes it.
fn now() -> String {
    let now = jiff::Timestamp::now();
    format!("{now:.6}")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
