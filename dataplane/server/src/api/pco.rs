//! Proof bundles: made at `/v1/pco/bundle`, published at `/v1/proofgate/publish`, read by anybody at `/v1/pco/public/{rid}`.

use std::borrow::Cow;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use certeus_ledger::bundle::{self, BUNDLE_BYTES_MAX, Claims, PAYLOAD_BYTES_MAX};
use certeus_ledger::{LogError, LogState, Published};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;
use uuid::Uuid;

use super::App;
use super::events::{content_type, json, require_json};
use crate::body;
use crate::problem::{Code, Error, Problem};

/// What stands around claims, or around a bundle, in a request.
const FRAME_BYTES_MAX: usize = 128 << 10;
const PUBLIC_PATH: &str = "/v1/pco/public/";
const JOSE: &str = "application/jose";

/// What to put into a bundle.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "claims": {"paid": {"amount": 12.5, "evidence": ["01a1fd17-1ba3-7cee-9ce1-ecb65f900000"]}},
    "entries": ["01a1fd17-1ba3-7cee-9ce1-ecb65f900000"],
}))]
pub(crate) struct BundleRequest<'a> {
    /// An object with each member once, kept as it is written. In strict mode each member is an object with a member
    /// `evidence`: a list of ids, not empty, each among the entries.
    #[serde(borrow)]
    #[schema(value_type = Object)]
    claims: &'a RawValue,
    /// Ids of the events, each once, at most 1,000; they are proven in this order.
    #[schema(value_type = Vec<Uuid>)]
    entries: Vec<Cow<'a, str>>,
}

/// A bundle.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct BundleReply {
    /// Its name.
    rid: Uuid,
    /// The JWS in compact serialisation. Its format is in docs/formats/bundle.md.
    bundle: String,
}

/// Makes a bundle: claims, the events they rest on, and proofs of those against one signed checkpoint, signed as a JWS.
///
/// Waits up to 10 s for a checkpoint that covers every event. Nothing is stored.
#[utoipa::path(
    post,
    path = "/v1/pco/bundle",
    request_body = BundleRequest<'_>,
    responses(
        (status = 201, description = "The bundle", body = BundleReply),
        (status = 400, description = "The body is not valid", body = Problem),
        (status = 401, description = "The API key is missing or wrong", body = Problem),
        (status = 404, description = "There is no such event", body = Problem),
        (status = 409, description = "No checkpoint covers every event yet", body = Problem),
        (status = 413, description = "The body, the number of entries or the bundle is too large", body = Problem),
        (status = 415, description = "Another content type is needed", body = Problem),
        (status = 422, description = "In strict mode: something is not proven", body = Problem),
        (status = 429, description = "Other bundles are being made or published", body = Problem),
        (status = 500, description = "What is stored is not what was signed", body = Problem),
        (status = 501, description = "The log is not signed here", body = Problem),
        (status = 503, description = "The database is not available", body = Problem),
    )
)]
pub(crate) async fn bundle(
    State(app): State<App>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Error> {
    require_signed(&app)?;
    require_json(&headers)?;
    let max = app.body_bytes_max.min(PAYLOAD_BYTES_MAX + FRAME_BYTES_MAX);
    let received = body::receive(&headers, body, max, &app.budget).await?;
    let BundleRequest { claims, entries } = serde_json::from_slice(&received.bytes).map_err(not_valid)?;
    let ids = entries.iter().enumerate().map(|(position, id)| entry_id(position, id));
    let ids = ids.collect::<Result<Vec<Uuid>, Error>>()?;
    let claims = Claims::new(claims).map_err(bundle::Error::from)?;
    drop(received);
    let (rid, bundle) = app.ledger.bundle(claims, &ids, app.proofs.strict).await?;
    let reply = serde_json::to_vec(&BundleReply { rid, bundle }).unwrap_or_default();
    let kind = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    Ok((StatusCode::CREATED, kind, body::reply(reply, &app.budget)?).into_response())
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
fn not_valid(error: serde_json::Error) -> Error {
    Error::new(Code::InvalidRequest, format!("the body is not valid: {error}"))
}

fn entry_id(position: usize, text: &str) -> Result<Uuid, Error> {
    text.parse().map_err(|error: uuid::Error| {
        Error::new(Code::InvalidRequest, format!("entry {position}: {text:?} is not an event id: {error}"))
    })
}

fn require_signed(app: &App) -> Result<(), Error> {
    if app.ledger.log_state() == LogState::Off { Err(LogError::Off.into()) } else { Ok(()) }
}

/// A bundle to publish.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PublishRequest<'a> {
    /// The JWS in compact serialisation.
    #[serde(borrow)]
    #[schema(value_type = String)]
    bundle: Cow<'a, str>,
}

/// Where a bundle was published.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PublishReply {
    /// The bundle's name.
    rid: Uuid,
    /// Where anybody can read it: with `PUBLIC_BASE_URL` in front, else a path on this server.
    url: String,
    /// The event of type `certeus.bundle` that records it.
    event_id: Uuid,
    /// Its index.
    event_index: u64,
}

/// Publishes a bundle that this log has signed, after everything in it was verified again.
///
/// That is the signature, the checkpoint's, every proof, and that the checkpoint is of the history of the newest one. An event of
/// type `certeus.bundle` records it, whose `case_id` is the bundle's name. However often and wherever it is published, it is
/// recorded once, and a repeat gets the same reply.
#[utoipa::path(
    post,
    path = "/v1/proofgate/publish",
    request_body(description = "A bundle", content(
        (PublishRequest<'_> = "application/json"),
        (String = "application/jose"),
    )),
    responses(
        (status = 200, description = "It was published before", body = PublishReply),
        (status = 201, description = "It is recorded and published", body = PublishReply),
        (status = 400, description = "The body is not valid, or not a bundle of this log, or an altered one", body = Problem),
        (status = 401, description = "The API key is missing or wrong", body = Problem),
        (status = 409, description = "Another bundle has this name, or the newest checkpoint is older than the bundle's", body = Problem),
        (status = 410, description = "An event that it shows was erased", body = Problem),
        (status = 413, description = "The body is too large", body = Problem),
        (status = 415, description = "Another content type is needed", body = Problem),
        (status = 422, description = "It does not prove what it should; in strict mode: something in it is not proven", body = Problem),
        (status = 429, description = "Other bundles are being made or published", body = Problem),
        (status = 500, description = "What is stored is not what was signed", body = Problem),
        (status = 501, description = "The log is not signed here", body = Problem),
        (status = 503, description = "It was not published, or, with the type outcome-unknown, perhaps: repeat it", body = Problem),
    )
)]
pub(crate) async fn publish(
    State(app): State<App>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Error> {
    require_signed(&app)?;
    let jose = content_type(&headers).1 == JOSE;
    if !jose {
        require_json(&headers)?;
    }
    let max = app.body_bytes_max.min(BUNDLE_BYTES_MAX + FRAME_BYTES_MAX);
    let received = body::receive(&headers, body, max, &app.budget).await?;
    let jws = if jose {
        let not_text = |_| Error::new(Code::InvalidBundle, "the bundle is not text");
        std::str::from_utf8(&received.bytes).map_err(not_text)?.to_owned()
    } else {
        let PublishRequest { bundle } = serde_json::from_slice(&received.bytes).map_err(not_valid)?;
        bundle.into_owned()
    };
    let published = app.ledger.publish(jws, app.proofs.strict).await?;
    drop(received);
    let Published { rid, event_id, event_index, repeated } = published;
    let url = format!("{}{PUBLIC_PATH}{rid}", app.proofs.public_base_url);
    let status = if repeated { StatusCode::OK } else { StatusCode::CREATED };
    Ok((status, json(&PublishReply { rid, url, event_id, event_index })).into_response())
}

/// A published bundle, for anybody.
///
/// The JWS itself, or with `Accept: application/json` its header and payload decoded, for people to read: only the JWS proves anything.
#[utoipa::path(
    get,
    path = "/v1/pco/public/{rid}",
    params(("rid" = Uuid, Path, description = "The bundle's name")),
    responses(
        (status = 200, description = "The bundle", content(
            (String = "application/jose"),
            (Object = "application/json"),
        )),
        (status = 400, description = "Not a UUID", body = Problem),
        (status = 404, description = "No such bundle was published", body = Problem),
        (status = 410, description = "It was withdrawn: an event that it shows was erased", body = Problem),
        (status = 503, description = "The database is not available", body = Problem),
    )
)]
pub(crate) async fn published(
    State(app): State<App>,
    Path(rid): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Error> {
    let rid: Uuid = rid.parse().map_err(|error: uuid::Error| {
        Error::new(Code::InvalidRequest, format!("{rid:?} is not the name of a bundle: {error}"))
    })?;
    let jws = app.ledger.published(rid).await?;
    let jws = jws.ok_or_else(|| Error::new(Code::NotFound, format!("no bundle {rid} was published")))?;
    let (kind, bytes) = if wants_json(&headers) {
        ("application/json", bundle::decoded(&jws)?.into_bytes())
    } else {
        (JOSE, jws.into_bytes())
    };
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
        // An erasure withdraws it, and then no cache of ours may go on showing it for long.
        (header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=60")),
        (header::VARY, HeaderValue::from_static("accept")),
        // A claim may be anything: no browser shall take it for a page.
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ];
    Ok((headers, body::reply(bytes, &app.public_budget)?).into_response())
}

/// Whether JSON is named, and the JWS is not.
fn wants_json(headers: &HeaderMap) -> bool {
    let named = |kind: &str| {
        headers.get_all(header::ACCEPT).iter().any(|value| {
            let ranges = value.to_str().unwrap_or_default().split(',');
            ranges
                .map(|range| range.split(';').next().unwrap_or_default().trim())
                .any(|range| range.eq_ignore_ascii_case(kind))
        })
    };
    named("application/json") && !named(JOSE)
}
