//! Health: is it alive, should it get traffic, and what is wrong. Open to all, so it tells no secrets and no addresses.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use certeus_ledger::{Availability, BreakerState, LogState, SpoolCondition};
use serde::Serialize;
use utoipa::ToSchema;

use super::App;
use super::log::STALE_AFTER;
use crate::lifecycle::Phase;

/// The pod's state in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    /// Takes events.
    Healthy,
    /// Commits do not go through; takes events into its spool.
    Spooling,
    /// The database has not been reached, or not been compared with the signed log yet.
    Starting,
    /// The database is away.
    Unavailable,
    /// The database does not match the signed log.
    Refused,
    /// Shutting down.
    Draining,
}

/// The reply of the short health routes.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct HealthReply {
    /// The pod's state.
    status: Status,
}

/// A part of the pod and its state.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct Component {
    /// Its name.
    name: &'static str,
    /// Whether it works.
    healthy: bool,
    /// What there is to say.
    message: String,
}

/// The reply of `/health/detailed`.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DetailedReply {
    /// The pod's state.
    status: Status,
    /// The version of the software.
    version: &'static str,
    /// Seconds since start.
    uptime_seconds: u64,
    /// Each part.
    components: Vec<Component>,
}

/// The reply of `/health/system`.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SystemReply {
    /// Cores that the process may use.
    cores: usize,
    /// Cores used lately.
    cpu_utilization: f64,
    /// CPU time used since start.
    cpu_seconds: Option<f64>,
    /// Resident memory in MiB.
    memory_usage_mb: Option<f64>,
    /// Open API connections.
    connections: usize,
    /// Seconds since start.
    uptime_seconds: u64,
}

pub(super) fn status(app: &App) -> Status {
    if app.lifecycle.phase() != Phase::Serving {
        return Status::Draining;
    }
    match app.ledger.availability() {
        Availability::Available if matches!(app.ledger.log_state(), LogState::Refused { .. }) => {
            Status::Refused
        }
        Availability::Available => Status::Healthy,
        _ if app.ledger.is_spooling() => Status::Spooling,
        Availability::Starting { .. } | Availability::Comparing => Status::Starting,
        Availability::Unavailable { .. } => Status::Unavailable,
    }
}

fn code(status: Status) -> StatusCode {
    match status {
        Status::Healthy | Status::Spooling => StatusCode::OK,
        Status::Starting | Status::Unavailable | Status::Refused | Status::Draining => {
            StatusCode::SERVICE_UNAVAILABLE
        }
    }
}

/// The pod's state; 503 unless it takes events.
#[utoipa::path(get, path = "/health", responses(
    (status = 200, description = "Takes events", body = HealthReply),
    (status = 503, description = "Does not take events now", body = HealthReply),
))]
pub(crate) async fn overview(State(app): State<App>) -> (StatusCode, Json<HealthReply>) {
    let status = status(&app);
    (code(status), Json(HealthReply { status }))
}

/// Whether the process works at all. Stays 200 while the database is away: a restart would not help.
#[utoipa::path(get, path = "/health/live", responses((status = 200, description = "The process works", body = HealthReply)))]
pub(crate) async fn live(State(app): State<App>) -> Json<HealthReply> {
    Json(HealthReply { status: status(&app) })
}

/// Whether the pod should get traffic.
#[utoipa::path(get, path = "/health/ready", responses(
    (status = 200, description = "Send traffic", body = HealthReply),
    (status = 503, description = "Send traffic elsewhere", body = HealthReply),
))]
pub(crate) async fn ready(state: State<App>) -> (StatusCode, Json<HealthReply>) {
    overview(state).await
}

/// The state of each part.
#[utoipa::path(get, path = "/health/detailed", responses(
    (status = 200, description = "Takes events", body = DetailedReply),
    (status = 503, description = "Does not take events now", body = DetailedReply),
))]
pub(crate) async fn detailed(State(app): State<App>) -> (StatusCode, Json<DetailedReply>) {
    let status = status(&app);
    let depth = app.ledger.depth();
    let bounds = app.ledger.queue_config();
    let available = app.ledger.availability();
    let database = match &available {
        Availability::Available => "takes commits",
        Availability::Starting { .. } => "has not been reached yet",
        Availability::Comparing => "answers; takes commits once it was compared with the signed log",
        Availability::Unavailable { .. } => "is not available; see the pod's log or /v1/ledger/diagnostics",
    };
    let mut components = vec![
        Component { name: "database", healthy: available.database_is_up(), message: database.to_owned() },
        Component {
            name: "queue",
            healthy: depth.events < bounds.queue_events_max && depth.bytes < bounds.queue_bytes_max,
            message: format!("{} of {} events wait", depth.events, bounds.queue_events_max),
        },
        Component {
            name: "circuit_breaker",
            healthy: app.ledger.breaker() == BreakerState::Closed,
            message: app.ledger.breaker().name().to_owned(),
        },
    ];
    components.push(log_component(&app));
    if let Some(spool) = app.ledger.spool_status() {
        let set_aside = match spool.set_aside {
            0 => String::new(),
            files => format!("; {files} files were set aside and need a look"),
        };
        components.push(Component {
            name: "spool",
            healthy: spool.takes_requests() && spool.set_aside == 0,
            message: format!(
                "{}: {} requests wait, {} of {} bytes are used{set_aside}",
                condition_name(&spool.condition),
                spool.records,
                spool.bytes,
                spool.bytes_max
            ),
        });
    }
    let uptime_seconds = app.process.uptime().as_secs();
    (
        code(status),
        Json(DetailedReply { status, version: env!("CARGO_PKG_VERSION"), uptime_seconds, components }),
    )
}

/// The signed log. Its reason is told at `/v1/ledger/health`: here it would be open to all.
fn log_component(app: &App) -> Component {
    let (healthy, message) = match app.ledger.log_state() {
        LogState::Off => (true, "is not signed: no signing key is configured".to_owned()),
        LogState::Unchecked { anchor_failure: None } => {
            (false, "was not compared with the database yet".to_owned())
        }
        LogState::Unchecked { anchor_failure: Some(_) } => {
            let message = "the anchor cannot be used: until it was read, nothing is committed; \
                           see the pod's log or /v1/ledger/health";
            (false, message.to_owned())
        }
        LogState::Refused { .. } => {
            let message = "does not match the database: nothing is signed, and no event is taken; \
                           see the pod's log or /v1/ledger/health";
            (false, message.to_owned())
        }
        LogState::Agreed => {
            let said = app.ledger.checkpoint().map_or_else(
                |error| error.to_string(),
                |latest| format!("is signed up to {} events", latest.signed.checkpoint.size()),
            );
            match app.ledger.checkpoint_confirmed().filter(|age| *age > STALE_AFTER) {
                Some(age) => {
                    let message = "the database or the anchor could not be asked for";
                    (false, format!("{said}; {message} {} s", age.as_secs()))
                }
                None => (true, said),
            }
        }
    };
    Component { name: "log", healthy, message }
}

/// The condition in a word; the reason is in the log and, for callers with a key, in `/v1/ledger/health`.
pub(super) fn condition_name(condition: &SpoolCondition) -> &'static str {
    match condition {
        SpoolCondition::Opening(_) => "opening",
        SpoolCondition::Open => "open",
        SpoolCondition::Failed(_) => "failed",
    }
}

/// What the process uses of the machine.
#[utoipa::path(get, path = "/health/system", responses((status = 200, description = "Use of the machine", body = SystemReply)))]
pub(crate) async fn system(State(app): State<App>) -> Json<SystemReply> {
    let usage = app.process.update();
    Json(SystemReply {
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        cpu_utilization: app.process.cpu_share(),
        cpu_seconds: usage.map(|usage| usage.cpu.as_secs_f64()),
        memory_usage_mb: usage.map(|usage| mebibytes(usage.resident_bytes)),
        connections: app.lifecycle.connections(),
        uptime_seconds: app.process.uptime().as_secs(),
    })
}

#[expect(clippy::cast_precision_loss, reason = "memory sizes are far below 2^52 bytes")]
pub(super) fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
