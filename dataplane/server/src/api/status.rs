//! The ledger's figures for people and dashboards: `/v1/ledger/metrics`, `/v1/ledger/health`, `/v1/ledger/diagnostics`.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use certeus_ledger::{Availability, LogState, SpoolCondition, SpoolStatus};
use serde::Serialize;
use utoipa::ToSchema;

use super::App;
use super::health::{Status, condition_name, mebibytes, status};

/// The reply of `/v1/ledger/metrics`. Latencies run from admission to acknowledgement, over the last 30 to 60 s.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct MetricsReply {
    /// Events committed since start.
    events_processed: u64,
    /// Batches committed since start.
    batches_processed: u64,
    /// Mean commit time in seconds since start.
    avg_batch_time: f64,
    /// Events committed in the last second.
    events_per_second: u64,
    /// The most events committed in one second.
    peak_events_per_second: u64,
    /// Median latency.
    p50_latency_ms: f64,
    /// 95th percentile.
    p95_latency_ms: f64,
    /// 99th percentile.
    p99_latency_ms: f64,
    /// Connections of this pod to PostgreSQL at most, writers' included.
    pool_size: usize,
    /// Connections for reads that could be used at once.
    pool_free_connections: usize,
    /// Events waiting.
    queue_size: usize,
    /// Events being committed.
    in_flight: usize,
    /// Resident memory in MiB.
    memory_usage_mb: Option<f64>,
    /// Cores used lately.
    cpu_utilization: f64,
}

/// The reply of `/v1/ledger/health`.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct LedgerHealthReply {
    /// The ledger's name.
    ledger: String,
    /// Its state.
    status: Status,
    /// What the database said last, when it is away; why it does not match the signed log, or is not compared with it.
    reason: Option<String>,
    /// The circuit breaker: `closed` (requests go to the database), `half_open` (a few try it), or `open` (none do).
    breaker: &'static str,
    /// Events that the newest signed checkpoint covers; null without one.
    sealed: Option<u64>,
    /// What waits in the pod's spool, if it has one. Reads do not see it before it is committed.
    spool: Option<SpoolReply>,
}

/// The spool.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SpoolReply {
    /// `open` (takes requests), `opening`, or `failed`.
    condition: &'static str,
    /// Why it does not take requests.
    reason: Option<String>,
    /// Requests waiting for the database.
    records: u64,
    /// Bytes of its files.
    bytes: u64,
    /// Bytes that they may have.
    bytes_max: u64,
    /// Age of the oldest request.
    oldest_age_seconds: f64,
    /// Files set aside: damaged ones, and requests that the database refused for good.
    set_aside: u64,
}

impl SpoolReply {
    fn new(status: &SpoolStatus) -> Self {
        let reason = match &status.condition {
            SpoolCondition::Open => None,
            SpoolCondition::Opening(reason) => reason.as_ref().map(ToString::to_string),
            SpoolCondition::Failed(reason) => Some(reason.to_string()),
        };
        Self {
            condition: condition_name(&status.condition),
            reason,
            records: status.records,
            bytes: status.bytes,
            bytes_max: status.bytes_max,
            oldest_age_seconds: status.oldest_age().as_secs_f64(),
            set_aside: status.set_aside,
        }
    }
}

/// The reply of `/v1/ledger/diagnostics`.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DiagnosticsReply {
    /// The connection pool.
    pool_health: PoolHealth,
    /// Events waiting.
    queue_size: usize,
    /// Events that may wait.
    queue_size_max: usize,
    /// Bytes waiting.
    queue_bytes: usize,
    /// Bytes that may wait.
    queue_bytes_max: usize,
    /// Age of the request that has waited longest.
    oldest_wait_ms: f64,
    /// What holds the ledger up, in words; empty when nothing does.
    cpu_bottlenecks: Vec<String>,
}

/// The connection pool for reads; each writer has one more connection of its own.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PoolHealth {
    /// Whether the database takes commits.
    healthy: bool,
    /// Open connections.
    size: usize,
    /// Connections at most.
    max_size: usize,
    /// Free connections.
    available: usize,
    /// Reads waiting for a connection.
    waiting: usize,
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// Throughput, latency and use of resources.
#[utoipa::path(get, path = "/v1/ledger/metrics", responses((status = 200, description = "Figures", body = MetricsReply)))]
pub(crate) async fn metrics(State(app): State<App>) -> Json<MetricsReply> {
    let summary = app.ledger.summary();
    let pool = app.ledger.pool_status();
    let depth = app.ledger.depth();
    let usage = app.process.update();
    Json(MetricsReply {
        events_processed: summary.events_processed,
        batches_processed: summary.batches_processed,
        avg_batch_time: summary.avg_batch_time.as_secs_f64(),
        events_per_second: summary.events_per_second,
        peak_events_per_second: summary.peak_events_per_second,
        p50_latency_ms: millis(summary.p50_latency),
        p95_latency_ms: millis(summary.p95_latency),
        p99_latency_ms: millis(summary.p99_latency),
        pool_size: app.pool_size,
        pool_free_connections: pool.max_size - (pool.size - pool.available.min(pool.size)),
        queue_size: depth.events,
        in_flight: depth.in_flight_events,
        memory_usage_mb: usage.map(|usage| mebibytes(usage.resident_bytes)),
        cpu_utilization: app.process.cpu_share(),
    })
}

/// Whether the ledger takes events, and if not, why.
#[utoipa::path(get, path = "/v1/ledger/health", responses((status = 200, description = "State", body = LedgerHealthReply)))]
pub(crate) async fn ledger_health(State(app): State<App>) -> Json<LedgerHealthReply> {
    let reason = match app.ledger.availability() {
        Availability::Available => match app.ledger.log_state() {
            LogState::Refused { reason } => Some(reason.to_string()),
            LogState::Off | LogState::Unchecked { .. } | LogState::Agreed => None,
        },
        Availability::Comparing => Some(match app.ledger.log_state() {
            LogState::Unchecked { anchor_failure: Some(reason) } => {
                format!("cannot use the anchor: {reason}")
            }
            _ => "the database is being compared with the signed log".to_owned(),
        }),
        Availability::Starting { reason } => reason.map(|reason| reason.to_string()),
        Availability::Unavailable { reason } => Some(reason.to_string()),
    };
    let sealed = app.ledger.checkpoint().ok().map(|latest| latest.signed.checkpoint.size());
    Json(LedgerHealthReply {
        ledger: app.ledger.name().to_owned(),
        status: status(&app),
        reason,
        sealed,
        breaker: app.ledger.breaker().name(),
        spool: app.ledger.spool_status().as_ref().map(SpoolReply::new),
    })
}

/// What to look at when the ledger is slow.
#[utoipa::path(get, path = "/v1/ledger/diagnostics", responses((status = 200, description = "Diagnostics", body = DiagnosticsReply)))]
pub(crate) async fn diagnostics(State(app): State<App>) -> Json<DiagnosticsReply> {
    let _cpu_share_is_now_current = app.process.update();
    let depth = app.ledger.depth();
    let pool = app.ledger.pool_status();
    let bounds = app.ledger.queue_config();
    Json(DiagnosticsReply {
        pool_health: PoolHealth {
            healthy: app.ledger.availability().database_is_up(),
            size: pool.size,
            max_size: pool.max_size,
            available: pool.available,
            waiting: pool.waiting,
        },
        queue_size: depth.events,
        queue_size_max: bounds.queue_events_max,
        queue_bytes: depth.bytes,
        queue_bytes_max: bounds.queue_bytes_max,
        oldest_wait_ms: millis(depth.oldest_age),
        cpu_bottlenecks: bottlenecks(&app, depth.events),
    })
}

/// Names what holds the ledger up: this process's CPU, or the database while this process has CPU to spare.
fn bottlenecks(app: &App, waiting: usize) -> Vec<String> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let share = app.process.cpu_share();
    #[expect(clippy::cast_precision_loss, reason = "core counts are small")]
    let utilization = share / cores as f64;
    let full = waiting * 2 > app.ledger.queue_config().queue_events_max;
    let mut found = Vec::new();
    if utilization > 0.9 {
        found.push(format!("this process uses {share:.1} of {cores} cores"));
    } else if full {
        found.push(
            "events wait although this process has CPU to spare: the database commits too slowly".to_owned(),
        );
    }
    found
}
