//! What a running local instance tells about itself, through a file in its state folder.

use std::net::SocketAddr;
use std::path::PathBuf;

use certeus_crds::{AlertRule, LedgerCluster};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::{Deserialize, Serialize};

use super::plan::{Phase, Pod};
use super::pod::Handle;

/// The whole state; `certeus-operator status -o json` prints it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Snapshot {
    /// With the status that Kubernetes would show.
    pub(crate) ledger_cluster: LedgerCluster,
    pub(crate) alert_rules: Vec<AlertRule>,
    pub(crate) pods: Vec<PodStatus>,
    pub(crate) api_address: SocketAddr,
    /// Holds the connection URL with the password; readable by the owner only.
    pub(crate) database_url_file: PathBuf,
    pub(crate) manifests: PathBuf,
    /// Why the manifests as they are now are not what runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) manifests_error: Option<String>,
    pub(crate) operator_pid: Option<i32>,
    pub(crate) postgres_pid: Option<i32>,
}

/// One pod.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodStatus {
    pub(crate) name: String,
    pub(crate) ready: bool,
    pub(crate) phase: PodPhase,
    pub(crate) restarts: u32,
    pub(crate) log: PathBuf,
    /// `None` while it waits for its next start.
    #[serde(flatten)]
    pub(crate) process: Option<PodProcess>,
}

impl PodStatus {
    pub(crate) fn new(pod: &Pod, handle: Option<&Handle>, log: PathBuf, name: String) -> Self {
        let process = handle.map(|handle| PodProcess {
            pid: handle.process.pid,
            admin_address: handle.admin.address,
            start_time: Time(handle.started),
        });
        let phase = match pod.phase {
            Phase::Running { .. } => PodPhase::Running,
            Phase::Draining { .. } => PodPhase::Draining,
            Phase::Terminating { .. } | Phase::Killed => PodPhase::Terminating,
            Phase::BackOff { .. } => PodPhase::CrashLoopBackOff,
        };
        Self { name, ready: pod.is_ready(), phase, restarts: pod.restarts, log, process }
    }
}

/// The running process of a pod.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodProcess {
    pub(crate) pid: i32,
    pub(crate) admin_address: SocketAddr,
    pub(crate) start_time: Time,
}

/// Where a pod is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum PodPhase {
    Running,
    Draining,
    Terminating,
    CrashLoopBackOff,
}
