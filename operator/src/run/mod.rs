//! `certeus-operator run`: reconciles LedgerCluster and AlertRule against a Kubernetes API server.

mod client;
mod clock;
mod error;
mod lease;
mod pod_http;
mod pods;
mod queue;
mod rules;
mod scaling;
mod telemetry;

/// Where the operator looks for objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// In all namespaces; needs cluster roles.
    All,
    /// In these, which are not empty; needs roles in each.
    Namespaces(Vec<String>),
}
