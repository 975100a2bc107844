//! What the operator shows of itself: metrics, health, logs.
//! Labels come from closed enums: nothing that a user names becomes a label.

mod health;
mod listen;
mod log;
mod server;

pub(crate) use health::{Health, Source};
pub(crate) use listen::listen;
pub(crate) use log::{Error as LogError, LogFilter, LogLevel};
pub(crate) use server::serve;

use prometheus::core::Collector;
use prometheus::{
    Encoder, Gauge, Histogram, HistogramOpts, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use super::scaling::ScalingMetrics;

/// Reconciles of an unchanged world take well under a millisecond; a first one writes a dozen objects.
const RECONCILE_BUCKETS: [f64; 11] = [0.0005, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0];

/// All metrics of the operator.
pub(crate) struct Metrics {
    registry: Registry,
    /// Duration of reconciles of LedgerClusters.
    pub(crate) reconcile_seconds: Histogram,
    /// By `result`: `ok` or the class of the error.
    pub(crate) reconciles: IntCounterVec,
    /// Writes to the API server, by `kind` and `verb`.
    pub(crate) writes: IntCounterVec,
    /// Requests to the API server that were sent again, by `reason`.
    pub(crate) retries: IntCounterVec,
    /// Objects that somebody else changed or deleted and that were put right, by `kind`.
    pub(crate) drift_repairs: IntCounterVec,
    /// Objects that are no longer wanted, by `kind`.
    pub(crate) orphans_removed: IntCounterVec,
    /// Objects that wait for a reconcile.
    pub(crate) queue_objects: IntGauge,
    /// LedgerClusters that exist.
    pub(crate) clusters: IntGauge,
    /// By `watch`.
    pub(crate) watch_events: IntCounterVec,
    /// By `watch`.
    pub(crate) watch_errors: IntCounterVec,
    /// Watched namespaces in which the API server refuses a watch, by `watch`.
    pub(crate) watch_refused: IntGaugeVec,
    /// Unix time of the last event, by `watch`.
    pub(crate) watch_last_event: IntGaugeVec,
    /// 1 while this process holds the lease.
    pub(crate) leader: IntGauge,
    /// Unix time of the last successful renewal.
    pub(crate) lease_renewal: Gauge,
    /// Changes of the number of pods that were written, by `direction` (`up`, `down`).
    pub(crate) scale_writes: IntCounterVec,
    /// Kubernetes Events that could not be published.
    pub(crate) events_lost: prometheus::IntCounter,
    pub(crate) scaling: ScalingMetrics,
}

impl Metrics {
    /// Registers everything once, at the start.
    pub(crate) fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new_custom(Some("certeus_operator".to_owned()), None)?;
        let counters = |name: &str, help: &str, labels: &[&str]| {
            registered(&registry, IntCounterVec::new(Opts::new(name, help), labels)?)
        };
        let gauge = |name: &str, help: &str| registered(&registry, IntGauge::new(name, help)?);
        let buckets =
            HistogramOpts::new("reconcile_duration_seconds", "Duration of reconciles of LedgerClusters.")
                .buckets(RECONCILE_BUCKETS.to_vec());
        Ok(Self {
            reconcile_seconds: registered(&registry, Histogram::with_opts(buckets)?)?,
            reconciles: counters(
                "reconciles_total",
                "Reconciles by result: ok or the class of the error.",
                &["result"],
            )?,
            writes: counters("writes_total", "Writes to the API server.", &["kind", "verb"])?,
            retries: counters(
                "request_retries_total",
                "Requests to the API server that were sent again.",
                &["reason"],
            )?,
            drift_repairs: counters(
                "drift_repairs_total",
                "Owned objects that somebody else changed or deleted, and that were put right.",
                &["kind"],
            )?,
            orphans_removed: counters(
                "orphans_removed_total",
                "Owned objects removed as no longer wanted.",
                &["kind"],
            )?,
            queue_objects: gauge("queue_objects", "LedgerClusters that wait for a reconcile.")?,
            clusters: gauge("ledger_clusters", "LedgerClusters that exist.")?,
            watch_events: counters("watch_events_total", "Events received by watches.", &["watch"])?,
            watch_errors: counters("watch_errors_total", "Failures of watches.", &["watch"])?,
            watch_refused: registered(
                &registry,
                IntGaugeVec::new(
                    Opts::new(
                        "watch_refused_namespaces",
                        "Watched namespaces in which the API server refuses a watch.",
                    ),
                    &["watch"],
                )?,
            )?,
            watch_last_event: registered(
                &registry,
                IntGaugeVec::new(
                    Opts::new("watch_last_event_timestamp_seconds", "Time of a watch's last event."),
                    &["watch"],
                )?,
            )?,
            leader: gauge("leader", "1 while this process holds the lease.")?,
            lease_renewal: registered(
                &registry,
                Gauge::new("lease_renewal_timestamp_seconds", "Time of the last renewal of the lease.")?,
            )?,
            scale_writes: counters(
                "scale_writes_total",
                "Changes of a cluster's number of pods.",
                &["direction"],
            )?,
            events_lost: registered(
                &registry,
                prometheus::IntCounter::new(
                    "events_lost_total",
                    "Kubernetes Events that could not be published.",
                )?,
            )?,
            scaling: ScalingMetrics::new(&registry)?,
            registry,
        })
    }

    /// For a component's own metrics. Their names get the prefix `certeus_operator_`.
    pub(crate) fn register<C: Collector + Clone + 'static>(
        &self,
        collector: C,
    ) -> Result<C, prometheus::Error> {
        registered(&self.registry, collector)
    }

    /// All of it, in Prometheus' text format.
    pub(crate) fn text(&self) -> Result<Vec<u8>, prometheus::Error> {
        let mut page = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut page)?;
        Ok(page)
    }
}

fn registered<C: Collector + Clone + 'static>(
    registry: &Registry,
    collector: C,
) -> Result<C, prometheus::Error> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_has_a_name_of_its_own_and_the_operators_prefix() {
        let metrics = Metrics::new().unwrap();
        metrics.reconciles.with_label_values(&["ok"]).inc();
        let page = String::from_utf8(metrics.text().unwrap()).unwrap();
        let samples: Vec<&str> = page.lines().filter(|line| !line.starts_with('#')).collect();
        assert!(samples.iter().all(|sample| sample.starts_with("certeus_operator_")), "{page}");
        assert!(samples.contains(&"certeus_operator_reconciles_total{result=\"ok\"} 1"), "{page}");
    }
}
