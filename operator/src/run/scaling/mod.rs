//! How many pods a cluster should have now: scrapes its pods, asks the engine, drains who is to go.
//!
//! Owns one task per cluster and its pace. Decides nothing: `core.rs` does. Never writes to the API server: the reconcile
//! does, with what [`Scaler::advice`] says. Promises: a failed scrape is a missing sample, never zero; no answer is waited for
//! longer than the round lasts; requests to pods are bounded over all clusters and spread evenly over time.

mod core;
mod drain;
mod metrics;
mod pace;
mod parked;
mod publish;
mod task;
mod volumes;

#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use certeus_autoscale::Decision;
use certeus_operator::decide::{Outcome, PodScrape};
use certeus_operator::validate::Cluster;
use tokio::task::AbortHandle;

use self::core::{Core, World};
use super::clock;
use super::pods::PodSeen;
use super::telemetry::Metrics;

use drain::DrainState;
pub(crate) use metrics::ScalingMetrics;
pub(crate) use parked::Volumes as ParkedVolumes;

/// A pod that is to go, or that comes back.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DrainSeen {
    pub(crate) pod: String,
    pub(crate) state: DrainState,
    /// Since when it is in this state, on the scale of [`clock`].
    pub(crate) since: Duration,
    /// What it waits for, or what went wrong; absent while all goes as it should.
    pub(crate) message: Option<String>,
}

/// The last decision that changed what is asked for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LastChange {
    /// When, on the scale of [`clock`].
    pub(crate) at: Duration,
    pub(crate) decision: Decision,
}

/// What to write now, and what the status shows. While nothing of note happens it stays equal, measured values included.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Advice {
    /// To write into the StatefulSet now, after drains.
    pub(crate) replicas: u32,
    /// What is aimed for, or would be, were the cluster not a dry run or held.
    pub(crate) desired: u32,
    /// The latest decision; absent before there is a StatefulSet.
    pub(crate) outcome: Option<Outcome>,
    pub(crate) draining: Vec<DrainSeen>,
    /// Volumes on which requests wait since a stop. They have to stand in the status before the pods go.
    pub(crate) parked: ParkedVolumes,
    pub(crate) scrapes: Vec<PodScrape>,
    /// Kept until the next one, so that a late reconcile misses none. A restarted operator knows of none.
    pub(crate) last_change: Option<LastChange>,
}

/// One per `LedgerCluster`; dropping it stops its task.
pub(crate) struct Scaler {
    shared: Arc<Shared>,
    task: AbortHandle,
}

/// What the reconciles and the task work on together.
struct Shared {
    /// Guards the whole state of the cluster's scaling; held for one synchronous step, never while waiting.
    core: Mutex<Core>,
    metrics: Arc<Metrics>,
    wake: Arc<dyn Fn() + Send + Sync>,
}

impl Shared {
    fn core(&self) -> MutexGuard<'_, Core> {
        // A panic within a step would be a defect; the next step starts from what was noted.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Scaler {
    /// `wake` is called (cheap, from any task) when the answer of `advice` changed, so that the cluster is reconciled at once.
    pub(crate) fn start(metrics: Arc<Metrics>, wake: Arc<dyn Fn() + Send + Sync>) -> Self {
        let shared = Arc::new(Shared { core: Mutex::default(), metrics, wake });
        let task = tokio::spawn(task::run(Arc::clone(&shared))).abort_handle();
        Self { shared, task }
    }

    /// Called by each reconcile with the validated cluster, the StatefulSet's present `spec.replicas` (`None`: no StatefulSet
    /// yet), the pods as the watch has them, whether another autoscaler writes to the StatefulSet: then ours holds still, as
    /// neither's change would last; and the volumes that the status names, on which requests wait since a stop.
    pub(crate) fn observe(
        &self,
        cluster: Arc<Cluster>,
        replicas: Option<u32>,
        pods: Vec<PodSeen>,
        held: bool,
        parked: ParkedVolumes,
    ) {
        let world = World { cluster, replicas, pods, held, parked };
        self.shared.core().observe(clock::now(), world);
    }

    /// What follows from the latest observation and the latest scrapes.
    pub(crate) fn advice(&self) -> Advice {
        self.shared.core().advice()
    }
}

impl Drop for Scaler {
    fn drop(&mut self) {
        self.task.abort();
    }
}
