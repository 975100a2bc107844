//! The ledger's own figures: Prometheus metrics, and the recent latencies and rates behind `/v1/ledger/metrics`.
//!
//! Owns names, units and windows. Labels come from closed enums only.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram as Hdr;
use prometheus::core::Collector;
use prometheus::{
    Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

use crate::breaker::BreakerState;
use crate::error::Class;
use crate::queue::{Depth, QueueConfig, Refusal};
use crate::spool::SpoolStatus;

/// Latencies are kept for two windows of this length: the current one and the one before.
const WINDOW_TICKS: u32 = 30;

/// One counter per error class.
#[derive(Debug)]
pub(crate) struct ByClass(Vec<IntCounter>);

impl ByClass {
    fn new(counters: &IntCounterVec) -> Self {
        Self(Class::ALL.iter().map(|class| counters.with_label_values(&[class.name()])).collect())
    }

    pub(crate) fn get(&self, class: Class) -> &IntCounter {
        let index = Class::ALL.iter().position(|known| *known == class);
        &self.0[index.expect("every class is listed in Class::ALL")]
    }
}

/// Everything the ledger counts.
#[derive(Debug)]
pub(crate) struct Metrics {
    queue_events: IntGauge,
    queue_bytes: IntGauge,
    in_flight_events: IntGauge,
    queue_oldest_age: Gauge,
    database_up: IntGauge,
    breaker_state: [(BreakerState, IntGauge); 3],
    breaker_transitions: [(BreakerState, IntCounter); 3],
    events_committed: IntCounter,
    batches_committed: IntCounter,
    commit_duration: Histogram,
    append_duration: Histogram,
    batch_events: Histogram,
    refused: [IntCounter; 3],
    pub(crate) commit_failures: ByClass,
    pub(crate) requests_repeated: IntCounter,
    pub(crate) archived_events: IntCounter,
    pub(crate) retention_failures: ByClass,
    spool_bytes: IntGauge,
    /// Not a number before the spool was read: whoever takes zero for empty would let its volume go.
    spool_records: Gauge,
    spool_oldest_age: Gauge,
    pub(crate) spool_appended: IntCounter,
    pub(crate) spool_replayed: IntCounter,
    pub(crate) spool_rejected: IntCounter,
    recent: Mutex<Recent>,
}

/// Recent rates and latencies.
#[derive(Debug)]
struct Recent {
    current: Hdr<u64>,
    previous: Hdr<u64>,
    ticks: u32,
    events_at_last_tick: u64,
    events_per_second: u64,
    peak_events_per_second: u64,
}

/// The summary behind `GET /v1/ledger/metrics`. Latencies are from admission to acknowledgement, over the last 30 to 60 s.
#[derive(Debug, Clone, Copy)]
pub struct Summary {
    /// Events committed since start.
    pub events_processed: u64,
    /// Batches committed since start.
    pub batches_processed: u64,
    /// Mean time of a commit since start.
    pub avg_batch_time: Duration,
    /// Events committed in the last full second.
    pub events_per_second: u64,
    /// The most events committed in one second since start.
    pub peak_events_per_second: u64,
    /// Median latency.
    pub p50_latency: Duration,
    /// 95th percentile.
    pub p95_latency: Duration,
    /// 99th percentile.
    pub p99_latency: Duration,
}

fn new_hdr() -> Hdr<u64> {
    // Microseconds up to a minute, which is beyond every deadline.
    Hdr::new_with_bounds(1, 60_000_000, 2).expect("constant bounds are valid")
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn gauge_value(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Registers a metric and gives it back.
fn registered<M: Collector + Clone + 'static>(
    registry: &Registry,
    metric: M,
) -> Result<M, prometheus::Error> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

impl Metrics {
    pub(crate) fn register(registry: &Registry, config: &QueueConfig) -> Result<Self, prometheus::Error> {
        let gauge = |name: &str, help: &str| registered(registry, IntGauge::new(name, help)?);
        let counter = |name: &str, help: &str| registered(registry, IntCounter::new(name, help)?);
        let histogram = |name: &str, help: &str, buckets: Vec<f64>| {
            registered(registry, Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets))?)
        };
        let labelled = |name: &str, help: &str, label: &str| {
            registered(registry, IntCounterVec::new(Opts::new(name, help), &[label])?)
        };
        // 0.25 ms to 8 s.
        let seconds = prometheus::exponential_buckets(0.000_25, 2.0, 16)?;
        gauge("certeus_ledger_queue_events_max", "Events that may wait.")?
            .set(gauge_value(config.queue_events_max));
        gauge("certeus_ledger_queue_bytes_max", "Bytes that may wait.")?
            .set(gauge_value(config.queue_bytes_max));
        let queue_oldest_age = registered(
            registry,
            Gauge::new(
                "certeus_ledger_queue_oldest_age_seconds",
                "Age of the request that has waited longest for its commit to begin.",
            )?,
        )?;
        let spool_records =
            registered(registry, Gauge::new("certeus_ledger_spool_records", "Requests in the spool.")?)?;
        let spool_oldest_age = registered(
            registry,
            Gauge::new("certeus_ledger_spool_oldest_age_seconds", "Age of the oldest request in the spool.")?,
        )?;
        let refused = labelled(
            "certeus_ledger_requests_refused_total",
            "Requests that were not admitted, by reason.",
            "reason",
        )?;
        let breaker_state = registered(
            registry,
            IntGaugeVec::new(
                Opts::new(
                    "certeus_ledger_breaker_state",
                    "The circuit breaker's state: 1 for the one that it is in.",
                ),
                &["state"],
            )?,
        )?;
        let breaker_transitions = labelled(
            "certeus_ledger_breaker_transitions_total",
            "Changes of the circuit breaker's state, by the new one.",
            "state",
        )?;
        let failures = labelled(
            "certeus_ledger_commit_failures_total",
            "Batches that were not acknowledged, by class.",
            "class",
        )?;
        let retention_failures = labelled(
            "certeus_ledger_retention_failures_total",
            "Days that could not be archived, and runs of the retention that failed, by class.",
            "class",
        )?;
        Ok(Self {
            archived_events: counter(
                "certeus_ledger_archived_events_total",
                "Events written to the archive and read back.",
            )?,
            retention_failures: ByClass::new(&retention_failures),
            queue_events: gauge("certeus_ledger_queue_events", "Events waiting to be committed.")?,
            queue_bytes: gauge("certeus_ledger_queue_bytes", "Bytes waiting to be committed.")?,
            in_flight_events: gauge("certeus_ledger_in_flight_events", "Events being committed.")?,
            queue_oldest_age,
            database_up: gauge(
                "certeus_ledger_database_up",
                "Whether the database takes commits (1) or not (0).",
            )?,
            breaker_state: BreakerState::ALL
                .map(|state| (state, breaker_state.with_label_values(&[state.name()])))
                .map(|(state, gauge)| {
                    gauge.set(i64::from(state == BreakerState::Open));
                    (state, gauge)
                }),
            breaker_transitions: BreakerState::ALL
                .map(|state| (state, breaker_transitions.with_label_values(&[state.name()]))),
            events_committed: counter("certeus_ledger_events_committed_total", "Events committed.")?,
            batches_committed: counter("certeus_ledger_batches_committed_total", "Batches committed.")?,
            commit_duration: histogram(
                "certeus_ledger_commit_duration_seconds",
                "Time from taking a batch to its confirmed commit.",
                seconds.clone(),
            )?,
            append_duration: histogram(
                "certeus_ledger_append_duration_seconds",
                "Time from a request's admission to its acknowledgement.",
                seconds,
            )?,
            batch_events: histogram(
                "certeus_ledger_batch_events",
                "Events in a batch.",
                prometheus::exponential_buckets(1.0, 4.0, 10)?,
            )?,
            refused: [Refusal::Full, Refusal::TooLarge, Refusal::Closed]
                .map(|reason| refused.with_label_values(&[refusal_name(reason)])),
            commit_failures: ByClass::new(&failures),
            requests_repeated: counter(
                "certeus_ledger_requests_repeated_total",
                "Requests that were stored before and were not stored again.",
            )?,
            spool_bytes: gauge("certeus_ledger_spool_bytes", "Bytes of the spool's files.")?,
            spool_records,
            spool_oldest_age,
            spool_appended: counter(
                "certeus_ledger_spool_appended_total",
                "Requests acknowledged as spooled.",
            )?,
            spool_replayed: counter(
                "certeus_ledger_spool_replayed_total",
                "Spooled requests that are in the database.",
            )?,
            spool_rejected: counter(
                "certeus_ledger_spool_rejected_total",
                "Spooled requests that the database refused for good, and that were set aside.",
            )?,
            recent: Mutex::new(Recent {
                current: new_hdr(),
                previous: new_hdr(),
                ticks: 0,
                events_at_last_tick: 0,
                events_per_second: 0,
                peak_events_per_second: 0,
            }),
        })
    }

    pub(crate) fn committed(&self, events: usize, duration: Duration) {
        self.events_committed.inc_by(events as u64);
        self.batches_committed.inc();
        self.commit_duration.observe(duration.as_secs_f64());
        #[expect(clippy::cast_precision_loss, reason = "a batch has at most 2^20 events")]
        self.batch_events.observe(events as f64);
    }

    pub(crate) fn appended(&self, duration: Duration) {
        self.append_duration.observe(duration.as_secs_f64());
        self.recent().current.saturating_record(micros(duration));
    }

    pub(crate) fn refused(&self, reason: Refusal) {
        let [full, too_large, closed] = &self.refused;
        match reason {
            Refusal::Full => full.inc(),
            Refusal::TooLarge => too_large.inc(),
            Refusal::Closed => closed.inc(),
        }
    }

    pub(crate) fn set_depth(&self, depth: Depth) {
        self.queue_events.set(gauge_value(depth.events));
        self.queue_bytes.set(gauge_value(depth.bytes));
        self.in_flight_events.set(gauge_value(depth.in_flight_events));
        self.queue_oldest_age.set(depth.oldest_age.as_secs_f64());
    }

    /// Shows what is in the spool.
    pub(crate) fn set_spool(&self, status: &SpoolStatus, oldest_age: Duration) {
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.spool_bytes.set(gauge(status.bytes));
        // Exact up to 2^53.
        #[expect(clippy::cast_precision_loss, reason = "more requests than that fit on no volume")]
        self.spool_records.set(status.known_records().map_or(f64::NAN, |records| records as f64));
        self.spool_oldest_age.set(oldest_age.as_secs_f64());
    }

    /// Shows whether the database takes commits, or would if there were any.
    pub(crate) fn set_database_up(&self, up: bool) {
        self.database_up.set(i64::from(up));
    }

    /// Shows the breaker's state after something happened.
    pub(crate) fn set_breaker(&self, before: BreakerState, after: BreakerState) {
        self.set_database_up(after == BreakerState::Closed);
        for (state, gauge) in &self.breaker_state {
            gauge.set(i64::from(*state == after));
        }
        for (state, transitions) in &self.breaker_transitions {
            if before != after && *state == after {
                transitions.inc();
            }
        }
    }

    /// Called once a second.
    pub(crate) fn tick(&self) {
        let total = self.events_committed.get();
        let mut recent = self.recent();
        recent.events_per_second = total - recent.events_at_last_tick;
        recent.events_at_last_tick = total;
        recent.peak_events_per_second = recent.peak_events_per_second.max(recent.events_per_second);
        recent.ticks += 1;
        if recent.ticks >= WINDOW_TICKS {
            recent.ticks = 0;
            recent.previous = std::mem::replace(&mut recent.current, new_hdr());
        }
    }

    pub(crate) fn summary(&self) -> Summary {
        let recent = self.recent();
        let mut latencies = recent.current.clone();
        latencies += &recent.previous;
        let quantile = |q| Duration::from_micros(latencies.value_at_quantile(q));
        let batches = self.batches_committed.get();
        #[expect(clippy::cast_precision_loss, reason = "a mean needs no more digits")]
        let mean = self.commit_duration.get_sample_sum().max(0.0) / batches.max(1) as f64;
        Summary {
            events_processed: self.events_committed.get(),
            batches_processed: batches,
            avg_batch_time: Duration::from_secs_f64(mean),
            events_per_second: recent.events_per_second,
            peak_events_per_second: recent.peak_events_per_second,
            p50_latency: quantile(0.50),
            p95_latency: quantile(0.95),
            p99_latency: quantile(0.99),
        }
    }

    fn recent(&self) -> std::sync::MutexGuard<'_, Recent> {
        // Counts stay usable whatever happened to another holder.
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the signed log shows of itself.
#[derive(Debug)]
pub(crate) struct LogMetrics {
    pub(crate) tree_size: IntGauge,
    pub(crate) unsealed: IntGauge,
    pub(crate) checkpoint_age: Gauge,
    pub(crate) leader: IntGauge,
    pub(crate) epoch: IntGauge,
    pub(crate) checked: IntGauge,
    pub(crate) refused: IntGauge,
    pub(crate) refusals: IntCounter,
    pub(crate) publish_duration: Histogram,
    pub(crate) checkpoints: IntCounter,
    pub(crate) anchor_failures: IntCounter,
}

impl LogMetrics {
    pub(crate) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let gauge = |name: &str, help: &str| registered(registry, IntGauge::new(name, help)?);
        let counter = |name: &str, help: &str| registered(registry, IntCounter::new(name, help)?);
        let checkpoint_age = registered(
            registry,
            Gauge::new(
                "certeus_ledger_log_checkpoint_age_seconds",
                "Age of the newest checkpoint; it grows while no event comes.",
            )?,
        )?;
        // 1 ms to 16 s.
        let seconds = prometheus::exponential_buckets(0.001, 2.0, 15)?;
        let publish_duration = registered(
            registry,
            Histogram::with_opts(
                HistogramOpts::new(
                    "certeus_ledger_log_publish_duration_seconds",
                    "Time from signing a checkpoint to its being stored.",
                )
                .buckets(seconds),
            )?,
        )?;
        Ok(Self {
            tree_size: gauge("certeus_ledger_log_tree_size", "Events that the newest checkpoint covers.")?,
            unsealed: gauge("certeus_ledger_log_unsealed_events", "Events that no checkpoint covers yet.")?,
            checkpoint_age,
            leader: gauge("certeus_ledger_log_leader", "Whether this pod seals the log (1) or follows (0).")?,
            epoch: gauge("certeus_ledger_log_epoch", "Epoch of the sealer, raised whenever one takes over.")?,
            checked: gauge(
                "certeus_ledger_log_checked",
                "Whether the database was compared with the signed log since the start (1), or commits wait for that (0).",
            )?,
            refused: gauge(
                "certeus_ledger_log_refused",
                "Whether nothing is signed because database and log do not match (1) or not (0).",
            )?,
            refusals: counter("certeus_ledger_log_refusals_total", "Times that signing was refused.")?,
            publish_duration,
            anchor_failures: counter(
                "certeus_ledger_log_anchor_failures_total",
                "Times that the anchor could not be read or set.",
            )?,
            checkpoints: counter(
                "certeus_ledger_log_checkpoints_total",
                "Checkpoints published by this pod.",
            )?,
        })
    }
}

fn refusal_name(reason: Refusal) -> &'static str {
    match reason {
        Refusal::Full => "full",
        Refusal::TooLarge => "too_large",
        Refusal::Closed => "closed",
    }
}
