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

use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Whose turn it is: two cores are not more.
static TURN: RwLock<()> = RwLock::new(());

/// The turn of a test that brings load, or starts many pods.
fn alone() -> RwLockWriteGuard<'static, ()> {
    TURN.write().unwrap_or_else(PoisonError::into_inner)
}

/// The turn of one that waits most of its time, beside others like it.
fn beside() -> RwLockReadGuard<'static, ()> {
    TURN.read().unwrap_or_else(PoisonError::into_inner)
}

/// Taken before a turn by tests that define other people's kinds, or remove them: the whole control plane has these in common.
fn definitions() -> MutexGuard<'static, ()> {
    static DEFINITIONS: Mutex<()> = Mutex::new(());
    DEFINITIONS.lock().unwrap_or_else(PoisonError::into_inner)
}
