//! Erasing an event: `/v1/ledger/events/{id}/erasure`.

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use certeus_ledger::{Erasure, REASON_BYTES_MAX, Reason};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::App;
use super::events::{self, json};
use crate::body;
use crate::problem::{Code, Error, Problem};

/// Bytes of a request's body: the reason with every byte of it escaped, and room to spare.
const BODY_BYTES_MAX: usize = 8 * REASON_BYTES_MAX;

/// Why an event is erased.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"reason": "request of the data subject, ticket 4711"}))]
pub(crate) struct ErasureRequest {
    /// For the record, which is kept for ever: 1 to 1024 bytes without control characters. No personal data.
    #[schema(min_length = 1, max_length = 1024)]
    reason: String,
}

/// The record of an erasure.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ErasureReply {
    /// The event that was erased.
    event_id: Uuid,
    /// Its index in the ledger, which it keeps.
    index: u64,
    /// Why.
    reason: String,
    /// When.
    erased_at: String,
    /// The event of the ledger, of type `certeus.erasure`, that records it.
    audit_event_id: Uuid,
    /// Its index.
    audit_index: u64,
}

impl From<&Erasure> for ErasureReply {
    fn from(erasure: &Erasure) -> Self {
        let Erasure { event_id, index, reason, erased_at, audit_event_id, audit_index } = erasure;
        Self {
            event_id: *event_id,
            index: *index,
            reason: reason.clone(),
            erased_at: erased_at.to_string(),
            audit_event_id: *audit_event_id,
            audit_index: *audit_index,
        }
    }
}

/// Erases an event's payload for good.
///
/// An event of type `certeus.erasure` with the reason is committed first; then the payload is removed, with the salt that
/// could confirm a guess of it. The event's id, time, type, index, log entry and proofs stay. A repeat gives the first reply.
/// The file that holds an archived event is written again without it, which may take a minute.
#[utoipa::path(
    post,
    path = "/v1/ledger/events/{id}/erasure",
    params(("id" = Uuid, Path, description = "The event's id")),
    request_body = ErasureRequest,
    responses(
        (status = 200, description = "The event is erased", body = ErasureReply),
        (status = 400, description = "Not a UUID, or the body is not valid", body = Problem),
        (status = 401, description = "The API key is missing or wrong", body = Problem),
        (status = 404, description = "No such event", body = Problem),
        (status = 409, description = "The event may not be erased: it records an erasure itself", body = Problem),
        (status = 410, description = "The event was archived where this pod cannot reach it", body = Problem),
        (status = 413, description = "The body is too large", body = Problem),
        (status = 415, description = "Another content type is needed", body = Problem),
        (status = 429, description = "Other erasures are under way", body = Problem),
        (status = 500, description = "The stored bytes were altered, and are not erased", body = Problem),
        (status = 503, description = "Nothing was erased, or, with the type outcome-unknown, perhaps: repeat it", body = Problem),
    )
)]
pub(crate) async fn erase(
    State(app): State<App>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Error> {
    let id = events::event_id(&id)?;
    events::require_json(&headers)?;
    let received = body::receive(&headers, body, BODY_BYTES_MAX, &app.budget).await?;
    let ErasureRequest { reason } = serde_json::from_slice(&received.bytes)
        .map_err(|error| Error::new(Code::InvalidRequest, format!("the body is not valid: {error}")))?;
    let erasure = app.ledger.erase(id, Reason::new(reason)?).await?;
    Ok(json(&ErasureReply::from(&erasure)).into_response())
}
