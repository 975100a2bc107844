//! Stand-ins for pods: each listens on an address of its own and is shown as ready, and none has a process.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use axum::Router;
use axum::extract::State;
use axum::routing::get;
use certeus_e2e::cluster::kubelet::ADMIN_PORT;
use certeus_e2e::cluster::space::Space;
use futures_util::{StreamExt, pin_mut};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use serde_json::json;
use tokio::net::TcpListener;

/// Lines beside those that count: a real page has some hundreds, of histograms.
const FILLER_LINES: usize = 250;
/// Status writes that are under way at a time.
const WRITES_MAX: usize = 16;

/// All stand-ins of a namespace.
pub(crate) struct Pods {
    shared: Arc<Shared>,
}

struct Shared {
    api: Api<Pod>,
    filler: String,
    pods: Mutex<HashMap<String, Arc<StandIn>>>,
    next_address: AtomicU32,
}

struct StandIn {
    shared: Arc<Shared>,
    loaded: AtomicBool,
    commits: AtomicU64,
}

impl Pods {
    /// Gives every pod of the namespace an address where it answers, from now on.
    pub(crate) fn start(space: &Space) -> Self {
        let line = |index: usize| {
            format!(
                "certeus_filler_{}_seconds_bucket{{le=\"{}\"}} {}\n",
                index / 12,
                index % 12,
                index * 7919
            )
        };
        let shared = Arc::new(Shared {
            api: space.api(),
            filler: (0..FILLER_LINES).map(line).collect(),
            pods: Mutex::default(),
            next_address: AtomicU32::new(std::process::id() << 12),
        });
        let watching = Arc::clone(&shared);
        space.block(async move { drop(tokio::spawn(watch(watching))) });
        Self { shared }
    }

    /// Waits until so many are shown as ready.
    pub(crate) fn wait_for(&self, count: usize, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        while self.shared.pods().len() < count {
            let there = self.shared.pods().len();
            ensure!(Instant::now() < deadline, "{there} of {count} pods came in {} s", limit.as_secs());
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Fills or empties the queues of a cluster's pods.
    pub(crate) fn load(&self, cluster: &str, loaded: bool) {
        for (name, pod) in self.shared.pods().iter() {
            if name.rsplit_once('-').is_some_and(|(owner, _)| owner == cluster) {
                pod.loaded.store(loaded, Ordering::Relaxed);
            }
        }
    }
}

impl Shared {
    fn pods(&self) -> MutexGuard<'_, HashMap<String, Arc<StandIn>>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn watch(shared: Arc<Shared>) {
    let pods = watcher(shared.api.clone(), watcher::Config::default()).default_backoff().applied_objects();
    let lives = pods.map(|pod| {
        let shared = Arc::clone(&shared);
        async move {
            let Ok(pod) = pod else { return };
            let name = pod.name_any();
            if shared.pods().contains_key(&name) || pod.metadata.deletion_timestamp.is_some() {
                return;
            }
            if let Err(error) = bring_to_life(&shared, &name).await {
                eprintln!("pod {name}: {error:#}");
            }
        }
    });
    let lives = lives.buffer_unordered(WRITES_MAX);
    pin_mut!(lives);
    while lives.next().await.is_some() {}
}

async fn bring_to_life(shared: &Arc<Shared>, name: &str) -> Result<()> {
    let (listener, address) = listen(shared).await.context("no free address")?;
    let pod = Arc::new(StandIn {
        shared: Arc::clone(shared),
        loaded: AtomicBool::new(false),
        commits: AtomicU64::new(0),
    });
    let router = Router::new().route("/metrics", get(page)).with_state(Arc::clone(&pod));
    tokio::spawn(async move { axum::serve(listener, router).await });
    let now = Timestamp::now();
    let status = json!({ "status": {
        "phase": "Running", "podIP": address, "startTime": now,
        "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": now }],
        "containerStatuses": [{
            "name": "dataplane", "image": "certeus/dataplane:bench", "imageID": "", "ready": true, "restartCount": 0,
            "started": true, "state": { "running": { "startedAt": now } },
        }],
    } });
    shared.api.patch_status(name, &PatchParams::default(), &Patch::Merge(&status)).await?;
    shared.pods().insert(name.to_owned(), pod);
    Ok(())
}

async fn listen(shared: &Shared) -> Option<(TcpListener, Ipv4Addr)> {
    for _ in 0..10_000 {
        let [_, a, b, c] = shared.next_address.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        let address = Ipv4Addr::new(127, 64 | (a & 63), b, c.clamp(1, 254));
        if let Ok(listener) = TcpListener::bind(SocketAddr::from((address, ADMIN_PORT))).await {
            return Some((listener, address));
        }
    }
    None
}

/// A page of a pod that commits in a millisecond and uses half of its core, whose queue is empty or nearly full.
async fn page(State(pod): State<Arc<StandIn>>) -> String {
    let commits = pod.commits.fetch_add(100, Ordering::Relaxed) + 100;
    let queue = if pod.loaded.load(Ordering::Relaxed) { 90_000 } else { 20_000 };
    let uptime = Timestamp::now().as_millisecond() as f64 / 1000.0;
    let cpu = uptime / 2.0;
    let seconds = commits as f64 / 1000.0;
    format!(
        "certeus_process_start_time_seconds 100\ncerteus_process_uptime_seconds {uptime}\n\
         certeus_process_cpu_seconds_total {cpu}\n\
         certeus_ledger_queue_events {queue}\ncerteus_ledger_queue_events_max 100000\n\
         certeus_ledger_queue_bytes 0\ncerteus_ledger_queue_bytes_max 67108864\n\
         certeus_ledger_queue_oldest_age_seconds 0\ncerteus_ledger_commit_duration_seconds_sum {seconds}\n\
         certeus_ledger_commit_duration_seconds_count {commits}\ncerteus_ledger_database_up 1\n\
         certeus_draining 0\ncerteus_ledger_spool_records 0\n{}",
        pod.shared.filler
    )
}
