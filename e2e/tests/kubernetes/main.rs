//! The custom resources, the operator and the pods on a real Kubernetes API: kube-apiserver, etcd and kube-controller-manager, with
//! pods that are processes (`certeus_e2e::cluster`). All tests of this file share one control plane; each has a namespace.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod access;
mod alert_rules;
mod conditions;
mod database;
mod deletion;
mod drains;
mod installed;
mod load;
mod ownership;
mod pods;
mod postgres;
mod prometheus_rules;
mod reconcile;
mod resources;
mod rollout;
mod rules;
mod scaling;
mod stopped;
mod upgrade;
mod waiting;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Tests that measure under load, or start many pods, do so one after the other: two cores are not more.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}
