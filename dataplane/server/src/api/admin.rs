//! The admin port: Prometheus metrics and draining.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use prometheus::{Encoder, TextEncoder};
use serde::Serialize;

use super::App;
use crate::lifecycle::{Cancelled, Phase};
use crate::problem::{Code, Error};

/// Where draining stands.
#[derive(Debug, Serialize)]
pub(crate) struct DrainReply {
    state: &'static str,
    queue_events: usize,
    in_flight_events: usize,
    connections: usize,
    /// Requests that stay on the pod's volume, as the database was away when it drained; null while nobody knows.
    spool_records: Option<u64>,
}

fn reply(app: &App) -> Json<DrainReply> {
    let depth = app.ledger.depth();
    let state = match app.lifecycle.phase() {
        _ if app.lifecycle.is_restarting() => "restarting",
        Phase::Serving => "serving",
        Phase::LameDuck | Phase::Flushing => "draining",
        Phase::Drained => "drained",
    };
    Json(DrainReply {
        state,
        queue_events: depth.events,
        in_flight_events: depth.in_flight_events,
        connections: app.lifecycle.connections(),
        spool_records: app.ledger.spool_status().map_or(Some(0), |spool| spool.known_records()),
    })
}

/// Begins to drain; the process stays until SIGTERM.
pub(crate) async fn drain(State(app): State<App>) -> (StatusCode, Json<DrainReply>) {
    app.lifecycle.begin_drain();
    (StatusCode::ACCEPTED, reply(&app))
}

/// Takes the drain back. 200: the pod serves. 202: it is too late for that; the process ends once it has drained, and is
/// then started anew. 409: the process was told to end, and goes on to drain.
pub(crate) async fn cancel_drain(State(app): State<App>) -> (StatusCode, Json<DrainReply>) {
    let status = match app.lifecycle.cancel_drain() {
        Cancelled::Serving => StatusCode::OK,
        Cancelled::Restarting => StatusCode::ACCEPTED,
        Cancelled::Ending => StatusCode::CONFLICT,
    };
    (status, reply(&app))
}

/// Where draining stands.
pub(crate) async fn drain_state(State(app): State<App>) -> Json<DrainReply> {
    reply(&app)
}

/// All metrics in Prometheus' text format.
pub(crate) async fn metrics(State(app): State<App>) -> Result<impl IntoResponse, Error> {
    let _gauges_are_now_current = (app.ledger.depth(), app.ledger.spool_status());
    let unknown = || Error::new(Code::Internal, "the process's use of CPU and memory cannot be read");
    app.process.update().ok_or_else(unknown)?;
    app.draining.set(i64::from(app.lifecycle.phase() != Phase::Serving));
    let encoder = TextEncoder::new();
    let mut text = Vec::new();
    encoder
        .encode(&app.registry.gather(), &mut text)
        .map_err(|error| Error::new(Code::Internal, format!("cannot write the metrics: {error}")))?;
    Ok(([(header::CONTENT_TYPE, encoder.format_type().to_owned())], text))
}
