//! Proofs: that an event is in the log, and that the log only grew.

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::App;
use super::decrypt;
use super::events::{EventReply, SEAL_WAIT, bad_query, event_id};
use super::log::stale;
use crate::body;
use crate::problem::{Code, Error, Problem};

/// How to treat an event that no checkpoint covers yet.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(crate) struct ProofQuery {
    /// Wait for a checkpoint that covers the event, for up to 10 s.
    wait: bool,
}

/// The proof that an event is in the log, against the newest checkpoint (C2SP `tlog-proof`).
///
/// Its line `extra` holds what makes the log entry of the event's bytes: the byte 1, the salt (32 bytes), and the head of the
/// envelope. The entry is SHA-256 over `certeus/entry/v1`, a zero byte, salt, head, and the event as received.
#[utoipa::path(
    get,
    path = "/v1/ledger/events/{id}/proof",
    params(("id" = Uuid, Path, description = "The event's id"), ProofQuery),
    responses(
        (status = 200, description = "A proof file", content_type = "text/plain", body = String),
        (status = 400, description = "Not a UUID", body = Problem),
        (status = 404, description = "No such event", body = Problem),
        (status = 409, description = "The event is committed, and in no checkpoint yet", body = Problem),
        (status = 500, description = "What is stored is not what was signed", body = Problem),
        (status = 501, description = "The log is not signed here", body = Problem),
        (status = 503, description = "The database is not available", body = Problem),
    )
)]
pub(crate) async fn of_event(
    State(app): State<App>,
    Path(id): Path<String>,
    query: Result<Query<ProofQuery>, QueryRejection>,
) -> Result<Response, Error> {
    let Query(ProofQuery { wait }) = query.map_err(bad_query)?;
    let id = event_id(&id)?;
    let found = app.ledger.event_proof(id, wait.then_some(SEAL_WAIT)).await?;
    let Some(found) = found else {
        return Err(Error::new(Code::NotFound, format!("there is no event {id}")));
    };
    let mut headers = HeaderMap::from_iter(stale(&app));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    let name = format!("attachment; filename=\"{id}.tlog-proof\"");
    headers.extend(HeaderValue::from_str(&name).map(|name| (header::CONTENT_DISPOSITION, name)));
    Ok((headers, found.proof.to_string()).into_response())
}

/// Events on a page of a case.
const CASE_EVENTS_MAX: usize = 500;
const CASE_EVENTS_DEFAULT: usize = 100;

/// Which events of a case.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(crate) struct CaseQuery {
    /// `next_cursor` of the page before.
    cursor: Option<String>,
    /// Events on a page, 1 to 500; 100 unless given.
    limit: Option<usize>,
}

/// An event of a case.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CaseEvent<'a> {
    /// The event.
    #[serde(flatten)]
    event: EventReply<'a>,
    /// Its proof file against the newest checkpoint; null while no checkpoint covers it.
    proof: Option<String>,
}

/// One page of a case's events.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CaseReply<'a> {
    /// The case.
    case_id: &'a str,
    /// The events in index order.
    events: Vec<CaseEvent<'a>>,
    /// Where the next page begins; null at the end.
    next_cursor: Option<String>,
}

/// The events whose member `case_id` is this text, in index order, each with its proof.
///
/// Encrypted fields are shown as they are stored, since that is what the proofs are about.
#[utoipa::path(
    get,
    path = "/v1/ledger/{case_id}",
    params(("case_id" = String, Path, description = "The case"), CaseQuery),
    responses(
        (status = 200, description = "A page of events", body = CaseReply),
        (status = 400, description = "A parameter is not valid", body = Problem),
        (status = 404, description = "No event of that case", body = Problem),
        (status = 500, description = "What is stored is not what was signed", body = Problem),
        (status = 503, description = "The database is not available", body = Problem),
    )
)]
pub(crate) async fn of_case(
    State(app): State<App>,
    Path(case_id): Path<String>,
    query: Result<Query<CaseQuery>, QueryRejection>,
) -> Result<Response, Error> {
    let Query(CaseQuery { cursor, limit }) = query.map_err(bad_query)?;
    let limit = limit.unwrap_or(CASE_EVENTS_DEFAULT);
    if !(1..=CASE_EVENTS_MAX).contains(&limit) {
        let detail = format!("`limit` is {limit}, and must be 1 to {CASE_EVENTS_MAX}");
        return Err(Error::new(Code::InvalidRequest, detail));
    }
    let bad_cursor = |_| Error::new(Code::InvalidRequest, "`cursor` is not one that a page before gave");
    let first = cursor.as_deref().map_or(Ok(0), |cursor| cursor.parse().map_err(bad_cursor))?;
    let page = app.ledger.case_proofs(&case_id, first, limit).await?;
    if page.events.is_empty() && first == 0 {
        return Err(Error::new(Code::NotFound, format!("there is no event of a case {case_id:?}")));
    }
    let (events, proofs): (Vec<_>, Vec<_>) = page.events.into_iter().unzip();
    // As stored: what is decrypted is not what was hashed.
    let seen = decrypt::see(&app.ledger, events, false)?;
    let events = seen.iter().zip(&proofs).map(|(event, proof)| {
        let event = EventReply::new(event)?;
        Ok(CaseEvent { event, proof: proof.as_ref().map(ToString::to_string) })
    });
    let events = events.collect::<Result<_, Error>>()?;
    let next_cursor = page.next_index.map(|index| index.to_string());
    let reply = CaseReply { case_id: &case_id, events, next_cursor };
    let mut response =
        body::reply(serde_json::to_vec(&reply).unwrap_or_default(), &app.budget)?.into_response();
    response.headers_mut().extend(stale(&app));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

/// Two sizes of the log.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ConsistencyQuery {
    /// The earlier size, 1 or more.
    #[param(required = false)]
    from: u64,
    /// The later size; that of the newest checkpoint unless given.
    to: Option<u64>,
}

/// The proof that the log of one size continues that of another (RFC 6962, section 2.1.2): one hash a line, in Base64.
///
/// Nothing when both sizes are the same.
#[utoipa::path(
    get,
    path = "/v1/ledger/log/consistency",
    params(ConsistencyQuery),
    responses(
        (status = 200, description = "The hashes", content_type = "text/plain", body = String),
        (status = 400, description = "A size is missing, zero, or less than the one before", body = Problem),
        (status = 404, description = "The newest checkpoint does not cover that many events", body = Problem),
        (status = 409, description = "Nothing was signed yet", body = Problem),
        (status = 500, description = "What is stored is not what was signed", body = Problem),
        (status = 501, description = "The log is not signed here", body = Problem),
        (status = 503, description = "The database is not available", body = Problem),
    )
)]
pub(crate) async fn consistency(
    State(app): State<App>,
    query: Result<Query<ConsistencyQuery>, QueryRejection>,
) -> Result<Response, Error> {
    let Query(ConsistencyQuery { from, to }) = query.map_err(bad_query)?;
    let to = match to {
        Some(to) => to,
        None => app.ledger.checkpoint()?.signed.checkpoint.size(),
    };
    let invalid = |detail: String| Error::new(Code::InvalidRequest, detail);
    if from == 0 {
        return Err(invalid(
            "`from` is 0: every log continues the empty one, so there is no proof".to_owned(),
        ));
    }
    if from > to {
        return Err(invalid(format!("`from` is {from} and `to` is {to}: a log only grows")));
    }
    let proof = app.ledger.log_consistency(from, to).await?;
    let text: String = proof.iter().map(|hash| format!("{hash}\n")).collect();
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}
