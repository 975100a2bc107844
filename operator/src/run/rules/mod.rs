//! Reconciles AlertRules: validates them, brings them to the pods of their cluster, and reports.
//! Stub.

use std::sync::Arc;

use kube::Client;
use tokio::sync::watch;

use super::Scope;
use super::pod_http::PodHttp;
use super::pods::PodDirectory;
use super::telemetry::Metrics;

/// What the controller of AlertRules works with.
pub(crate) struct Context {
    /// Repeats what may be repeated, and refuses writes once the lease is lost.
    pub(crate) client: Client,
    pub(crate) scope: Scope,
    pub(crate) http: PodHttp,
    /// The clusters and their pods, with address and key.
    pub(crate) pods: PodDirectory,
    pub(crate) metrics: Arc<Metrics>,
    /// Becomes true when the process is to end.
    pub(crate) stop: watch::Receiver<bool>,
}

/// Runs until `stop`. An end before that ends the process.
pub(crate) async fn run(mut context: Context) {
    // A sender that is gone means the same as a stop.
    let _stopped = context.stop.wait_for(|stop| *stop).await;
}
