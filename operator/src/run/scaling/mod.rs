//! How many pods a cluster should have now: scrapes its pods, asks the engine, drains who is to go.
//! Stub: the smallest size the specification allows.

use std::sync::{Arc, Mutex, PoisonError};

use certeus_operator::decide::{Outcome, PodScrape};
use certeus_operator::validate::Cluster;

use super::pod_http::PodHttp;
use super::pods::PodSeen;
use super::telemetry::Metrics;

/// A pod that is asked to drain.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DrainSeen {
    pub(crate) pod: String,
    /// One sentence for the status.
    pub(crate) message: String,
}

/// What to write now, and what the status shows.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Advice {
    /// To write into the StatefulSet now, after drains.
    pub(crate) replicas: u32,
    pub(crate) desired: u32,
    pub(crate) outcome: Option<Outcome>,
    pub(crate) draining: Vec<DrainSeen>,
    pub(crate) scrapes: Vec<PodScrape>,
}

/// One per `LedgerCluster`; dropping it stops its task.
pub(crate) struct Scaler {
    replicas: Mutex<u32>,
}

impl Scaler {
    /// `wake` is called (cheap, from any task) when the answer of `advice` changed, so that the cluster is reconciled at once.
    pub(crate) fn start(_http: PodHttp, _metrics: Arc<Metrics>, _wake: Arc<dyn Fn() + Send + Sync>) -> Self {
        Self { replicas: Mutex::new(1) }
    }

    /// Called by each reconcile with the validated cluster, the StatefulSet's present `spec.replicas` (`None`: no StatefulSet
    /// yet) and the pods as the watch has them.
    pub(crate) fn observe(&self, cluster: Arc<Cluster>, _replicas: Option<u32>, _pods: Vec<PodSeen>) {
        *self.replicas.lock().unwrap_or_else(PoisonError::into_inner) = cluster.scaling.min();
    }

    pub(crate) fn advice(&self) -> Advice {
        let replicas = *self.replicas.lock().unwrap_or_else(PoisonError::into_inner);
        Advice { replicas, desired: replicas, outcome: None, draining: Vec::new(), scrapes: Vec::new() }
    }
}
