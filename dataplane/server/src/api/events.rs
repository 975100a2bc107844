//! Events in and out: `/v1/ledger/events`.

use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use certeus_ledger::request::IdempotencyKey;
use certeus_ledger::submission::{Format, Limits, OnBadEvent, Refused, Submission};
use certeus_ledger::timestamp::Timestamp;
use certeus_ledger::{
    Acknowledged, AppendError, CommitError, Content, Filter, LogError, LogState, PAGE_EVENTS_MAX, Receipt,
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::App;
use super::decrypt::{self, DecryptQuery, Seen};
use super::identity::{IdentityHeaders, identity_of};
use crate::auth::Access;
use crate::body;
use crate::problem::{Code, Error, Problem, RefusedEvent, refused_events};

/// Bytes of one event.
const EVENT_BYTES_MAX: usize = 1 << 20;
/// Bodies above this are parsed where they do not hold up other requests.
const PARSE_INLINE_BYTES_MAX: usize = 1 << 20;
/// Events on a page unless asked otherwise.
const PAGE_EVENTS_DEFAULT: usize = 100;

/// How to treat a request.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(crate) struct AppendQuery {
    /// Accept the valid events of a request although others are not, and list the refused.
    partial: bool,
    /// Return the id of every event, not only the first.
    ids: bool,
    /// What to wait for.
    ack: Ack,
}

/// What a reply to an append stands for.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Ack {
    /// Flushed to disk by PostgreSQL.
    #[default]
    Committed,
    /// And covered by a signed checkpoint.
    Sealed,
}

/// How long a reply waits for a checkpoint.
pub(super) const SEAL_WAIT: Duration = Duration::from_secs(10);

/// A JSON body: one event or several.
#[derive(ToSchema)]
#[schema(example = json!({"type": "payment.made", "timestamp": "2026-01-31T12:00:00Z", "amount": 12.5}))]
#[serde(untagged)]
#[expect(dead_code, reason = "describes the body, which is never parsed into a tree")]
enum Events {
    /// One event.
    One(Event),
    /// Several events, committed together.
    Several(Vec<Event>),
}

/// An event: these two members, and any others.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes the body, which is never parsed into a tree")]
struct Event {
    /// What happened.
    #[schema(min_length = 1, max_length = 256)]
    r#type: String,
    /// When: RFC 3339, or Unix time in s, ms, us or ns.
    timestamp: Timestamps,
    /// Anything else.
    #[serde(flatten)]
    more: std::collections::HashMap<String, serde_json::Value>,
}

/// An event's time.
#[derive(ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "describes the body, which is never parsed into a tree")]
enum Timestamps {
    /// RFC 3339.
    Text(String),
    /// Unix time.
    Number(f64),
}

/// What was committed.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Acknowledgement<'a> {
    /// The ledger.
    ledger: &'a str,
    /// What was reached: `sealed` was asked for and still may be `committed`, when no checkpoint came within 10 s.
    ack: Ack,
    /// Index of the first event; the others follow without a gap.
    first_index: u64,
    /// Number of events committed.
    count: usize,
    /// Id of the first event; the others' ids count up by one.
    first_id: Uuid,
    /// The ids of all events, when asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    ids: Option<Vec<Uuid>>,
    /// Refused events, at most 100 of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    refused: Vec<RefusedEvent>,
    /// How many events were refused.
    #[serde(skip_serializing_if = "is_zero")]
    refused_count: usize,
}

/// What is in the pod's spool and not in the database yet.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Spooled<'a> {
    /// The ledger.
    ledger: &'a str,
    /// `spooled`: flushed to the pod's own volume while the database is away.
    ack: &'static str,
    /// Number of events.
    count: usize,
    /// The same request, sent again with this key in `Idempotency-Key`, gets its places once they are known. Absent for a
    /// producer's request, which is known by its numbers.
    #[serde(skip_serializing_if = "Option::is_none")]
    idempotency_key: Option<&'a str>,
    /// Refused events, at most 100 of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    refused: Vec<RefusedEvent>,
    /// How many events were refused.
    #[serde(skip_serializing_if = "is_zero")]
    refused_count: usize,
}

/// Events that a producer had sent before, so long ago that their places are not remembered.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Duplicate<'a> {
    /// The ledger.
    ledger: &'a str,
    /// `committed`: stored before, and nothing was stored now.
    ack: Ack,
    /// Always true.
    duplicate: bool,
    /// Number of events in the request.
    count: usize,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants a reference")]
fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// Appends events and replies when they are durable.
///
/// A JSON object, an array of objects, or NDJSON (`application/x-ndjson`), plain or with `Content-Encoding` gzip or zstd.
/// Each event needs a `type` (text) and a `timestamp` (RFC 3339, or Unix time in s, ms, us or ns). All events of a request are
/// committed together or not at all. 429 and 503 mean that nothing was stored, except for the problem `outcome-unknown`.
///
/// A request with an `Idempotency-Key`, or with the three `Producer` headers, is stored once however often it is sent: after
/// a timeout or `outcome-unknown`, send it again unchanged. The same gets the receipt of a request that was answered 202. Events of one text member `case_id` form a case.
#[utoipa::path(
    post,
    path = "/v1/ledger/events",
    params(AppendQuery, IdentityHeaders),
    request_body(description = "Events; also with Content-Encoding gzip or zstd", content(
        (inline(Events) = "application/json"),
        (String = "application/x-ndjson"),
    )),
    responses(
        (status = 200, description = "The producer's events were committed long ago; their places are not remembered", body = Duplicate),
        (status = 201, description = "The events are committed", body = Acknowledgement, headers(
            ("Idempotency-Replayed" = String, description = "`true` when an earlier sending of this request had stored them"),
        )),
        (status = 202, description = "The database is away: the events are durable in the pod's spool and will be committed when it is back", body = Spooled),
        (status = 400, description = "Nothing was stored: the request or an event is not valid", body = Problem),
        (status = 401, description = "Nothing was stored: the API key is missing or wrong", body = Problem),
        (status = 403, description = "Nothing was stored: the producer has a newer epoch", body = Problem),
        (status = 408, description = "Nothing was stored: the body took too long", body = Problem),
        (status = 409, description = "Nothing was stored: the key or sequence numbers belong to another request, or do not follow", body = Problem),
        (status = 413, description = "Nothing was stored: too large", body = Problem),
        (status = 415, description = "Nothing was stored: another content type is needed", body = Problem),
        (status = 429, description = "Nothing was stored: slow down", body = Problem),
        (status = 501, description = "Nothing was stored: ack=sealed, and the log is not signed here", body = Problem),
        (status = 503, description = "Nothing was stored, unless the type is outcome-unknown", body = Problem),
    )
)]
pub(crate) async fn append(
    State(app): State<App>,
    query: Result<Query<AppendQuery>, QueryRejection>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Error> {
    let Query(AppendQuery { partial, ids, ack }) = query.map_err(bad_query)?;
    if ack == Ack::Sealed && app.ledger.log_state() == LogState::Off {
        return Err(LogError::Off.into());
    }
    let format = format_of(&headers)?;
    let identity = identity_of(&headers)?;
    let received = body::receive(&headers, body, app.body_bytes_max, &app.budget).await?;
    let on_bad = if partial { OnBadEvent::RefuseOne } else { OnBadEvent::RefuseAll };
    let limits = Limits {
        request_events_max: app.ledger.queue_config().queue_events_max,
        event_bytes_max: EVENT_BYTES_MAX,
        encrypted_fields: app.ledger.encrypted_fields(),
    };
    let parse = |bytes: Bytes| -> Result<(Submission, Vec<Refused>), Error> {
        let parsed = Submission::parse(bytes, format, &limits, on_bad)?;
        let Some(submission) = parsed.submission else { return Err(Error::all_refused(&parsed.refused)) };
        let submission = match identity {
            Some(identity) => submission.identified(identity, &options(format, partial, ids))?,
            None => submission,
        };
        Ok((submission, parsed.refused))
    };
    let (submission, refused) = if received.bytes.len() > PARSE_INLINE_BYTES_MAX {
        tokio::task::block_in_place(|| parse(received.bytes))
    } else {
        parse(received.bytes)
    }?;
    let count = submission.len();
    let appended = app.ledger.submit(submission, &options(format, partial, ids)).await;
    drop(received.held);
    match appended {
        Ok(Acknowledged::Committed(receipt)) => {
            let ack = match ack {
                Ack::Sealed => {
                    let end_index = receipt.first_index + receipt.count as u64;
                    app.ledger.sealed(end_index, SEAL_WAIT).await.map_or(Ack::Committed, |_| Ack::Sealed)
                }
                Ack::Committed => Ack::Committed,
            };
            Ok(acknowledge(app.ledger.name(), &receipt, ack, &refused, ids))
        }
        Ok(Acknowledged::Spooled { count, key }) => {
            let spooled = Spooled {
                ledger: app.ledger.name(),
                ack: "spooled",
                count,
                idempotency_key: key.as_ref().map(IdempotencyKey::as_str),
                refused: refused_events(&refused),
                refused_count: refused.len(),
            };
            Ok((StatusCode::ACCEPTED, json(&spooled)).into_response())
        }
        Err(AppendError::Commit(CommitError::Duplicate)) => {
            let duplicate =
                Duplicate { ledger: app.ledger.name(), ack: Ack::Committed, duplicate: true, count };
            Ok(replayed((StatusCode::OK, json(&duplicate)).into_response()))
        }
        Err(error) => Err(error.into()),
    }
}

/// Whatever of a request changes its outcome beside the body. Digests of it are stored: never change what is there.
fn options(format: Format, partial: bool, ids: bool) -> [u8; 3] {
    let format = match format {
        Format::Json => 1,
        Format::Ndjson => 2,
    };
    [format, partial.into(), ids.into()]
}

/// The reply to a request whose events are committed. Of the same request it is the same bytes, whenever it is asked for.
fn acknowledge(ledger: &str, receipt: &Receipt, ack: Ack, refused: &[Refused], ids: bool) -> Response {
    let all_ids = || {
        let first = receipt.first_id.as_u128();
        (first..).take(receipt.count).map(Uuid::from_u128).collect()
    };
    let acknowledgement = Acknowledgement {
        ledger,
        ack,
        first_index: receipt.first_index,
        count: receipt.count,
        first_id: receipt.first_id,
        ids: ids.then(all_ids),
        refused: refused_events(refused),
        refused_count: refused.len(),
    };
    let response = (StatusCode::CREATED, json(&acknowledgement)).into_response();
    if receipt.replayed { replayed(response) } else { response }
}

/// Says that the request had been committed before.
fn replayed(mut response: Response) -> Response {
    response.headers_mut().insert("idempotency-replayed", HeaderValue::from_static("true"));
    response
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
pub(super) fn bad_query(rejection: QueryRejection) -> Error {
    Error::new(Code::InvalidRequest, rejection.body_text())
}

/// A JSON body; the types serialised here cannot fail to.
pub(super) fn json<T: Serialize>(value: &T) -> impl IntoResponse + use<T> {
    let body = serde_json::to_vec(value).unwrap_or_default();
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], body)
}

/// The content type as written, and without its parameters in lower case.
pub(super) fn content_type(headers: &HeaderMap) -> (&str, String) {
    let written = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    (written, written.split(';').next().unwrap_or_default().trim().to_ascii_lowercase())
}

fn format_of(headers: &HeaderMap) -> Result<Format, Error> {
    let (written, essence) = content_type(headers);
    match essence.as_str() {
        "application/json" => Ok(Format::Json),
        "application/x-ndjson" | "application/ndjson" | "application/jsonl" => Ok(Format::Ndjson),
        _ => Err(Error::new(
            Code::UnsupportedMediaType,
            format!("Content-Type is {written:?}; send application/json or application/x-ndjson"),
        )),
    }
}

/// Refuses a body that does not say it is JSON.
pub(super) fn require_json(headers: &HeaderMap) -> Result<(), Error> {
    let (written, essence) = content_type(headers);
    if essence == "application/json" {
        return Ok(());
    }
    let detail = format!("Content-Type is {written:?}; send application/json");
    Err(Error::new(Code::UnsupportedMediaType, detail))
}

/// An event.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct EventReply<'a> {
    /// Its id.
    id: Uuid,
    /// Its index in the ledger.
    index: u64,
    /// Its `type`.
    #[serde(rename = "type")]
    kind: &'a str,
    /// Its `timestamp` in UTC.
    timestamp: String,
    /// When it was committed.
    received_at: String,
    /// Whether encrypted fields in `event` are shown decrypted. If so, its bytes are not those that proofs cover: ask with
    /// `decrypt=false` for them.
    decrypted: bool,
    /// Id of the key that fields in `event` are encrypted with, where the caller may see them and the pod has no such key.
    #[serde(skip_serializing_if = "Option::is_none")]
    missing_key_id: Option<String>,
    /// The event, byte for byte as received but for fields that are shown encrypted; null when it was erased.
    #[schema(value_type = Option<Object>)]
    event: Option<&'a RawValue>,
    /// When its payload was erased.
    #[serde(skip_serializing_if = "Option::is_none")]
    erased_at: Option<String>,
}

impl<'a> EventReply<'a> {
    pub(super) fn new(seen: &'a Seen) -> Result<Self, Error> {
        let stored = &seen.stored;
        let corrupt = || Error::new(Code::Corrupt, format!("event {} is not JSON any more", stored.id));
        let event = seen.payload().map(serde_json::from_slice).transpose().map_err(|_not_json| corrupt())?;
        let erased_at = match &stored.content {
            Content::Intact { .. } => None,
            Content::Erased(erasure) => Some(erasure.erased_at.to_string()),
        };
        Ok(Self {
            id: stored.id,
            index: stored.index,
            kind: &stored.kind,
            timestamp: stored.time.to_string(),
            received_at: stored.received_at.to_string(),
            decrypted: seen.decrypted.is_some(),
            missing_key_id: seen.missing_key.map(|id| id.to_string()),
            event,
            erased_at,
        })
    }
}

/// What asks for an event's stored bytes.
const BYTES: &str = "application/octet-stream";

/// Returns one event, checked against what was committed to.
///
/// What was committed to, and what proofs cover, is the event as stored: encrypted fields are strings there that begin with
/// `certeus:enc:v1:`. Callers with the second API key get such fields decrypted, and `decrypted` says so; with
/// `decrypt=false` they get the stored bytes, too.
///
/// With `Accept: application/octet-stream` the reply is the event's stored bytes and nothing else, as `certeus verify` takes them.
#[utoipa::path(
    get,
    path = "/v1/ledger/events/{id}",
    params(("id" = Uuid, Path, description = "The event's id"), DecryptQuery),
    responses(
        (status = 200, description = "The event", headers(
            ("Certeus-Archived" = String, description = "`true` when it was read from the archive"),
            ("Certeus-Decrypted" = String, description = "`true` when encrypted fields are shown decrypted"),
        ), content(
            (EventReply = "application/json"),
            (Vec<u8> = "application/octet-stream"),
        )),
        (status = 400, description = "Not a UUID, or a parameter is not valid", body = Problem),
        (status = 403, description = "`decrypt=true` with an API key that does not decrypt", body = Problem),
        (status = 404, description = "No such event", body = Problem),
        (status = 410, description = "The event's payload was erased; or the event was archived where this pod cannot read", body = Problem),
        (status = 500, description = "The stored bytes were altered", body = Problem),
        (status = 503, description = "The database is not available", body = Problem),
    )
)]
pub(crate) async fn get_one(
    State(app): State<App>,
    Extension(access): Extension<Access>,
    Path(id): Path<String>,
    query: Result<Query<DecryptQuery>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Error> {
    let Query(DecryptQuery { decrypt }) = query.map_err(bad_query)?;
    let wanted = decrypt::is_wanted(access, decrypt)?;
    let as_stored = headers.get(header::ACCEPT).is_some_and(|accept| accept.as_bytes() == BYTES.as_bytes());
    if as_stored && decrypt == Some(true) {
        let detail = format!("{BYTES} is the event as stored, which is never decrypted");
        return Err(Error::new(Code::InvalidRequest, detail));
    }
    let id = event_id(&id)?;
    let event = app.ledger.event(id).await?;
    let event = event.ok_or_else(|| Error::new(Code::NotFound, format!("there is no event {id}")))?;
    if let Content::Erased(erasure) = &event.content {
        return Err(Error::erased(erasure));
    }
    let archived = event.archived;
    if let (true, Content::Intact { payload, .. }) = (as_stored, &event.content) {
        let content_type = [(header::CONTENT_TYPE, HeaderValue::from_static(BYTES))];
        return Ok((content_type, payload.clone()).into_response());
    }
    let seen = decrypt::see(&app.ledger, vec![event], wanted)?;
    let mut response = json(&EventReply::new(&seen[0])?).into_response();
    if archived {
        response.headers_mut().insert("certeus-archived", HeaderValue::from_static("true"));
    }
    decrypt::describe(&seen, response.headers_mut());
    Ok(response)
}

/// The id in a path.
pub(super) fn event_id(text: &str) -> Result<Uuid, Error> {
    text.parse().map_err(|error: uuid::Error| {
        Error::new(Code::InvalidRequest, format!("{text:?} is not an event id: {error}"))
    })
}

/// Which events to list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListQuery {
    /// Only events of this type.
    #[serde(rename = "type")]
    kind: Option<String>,
    /// Event time at or after: RFC 3339 or Unix time.
    from: Option<String>,
    /// Event time before: RFC 3339 or Unix time.
    to: Option<String>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
    /// Events on a page, 1 to 10,000; 100 unless given.
    limit: Option<usize>,
    /// Whether encrypted fields are decrypted; unless given, for those who may see them. With `false` events are shown as
    /// they are stored, which is what proofs cover.
    decrypt: Option<bool>,
}

/// One page of events.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ListReply<'a> {
    /// The events in index order.
    events: Vec<EventReply<'a>>,
    /// Where the next page begins; null at the end. A page may be short, even empty, and still have a next one.
    next_cursor: Option<String>,
    /// There when the page was to begin before this index: events below it are in the archive, and not listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    archived_before: Option<u64>,
}

/// Lists events in index order, filtered by type and event time, each checked against what was committed to.
///
/// A page ends before an event whose stored bytes were altered; the page that would begin with it is an error.
///
/// With `Accept: application/x-ndjson` the reply is the events themselves, one per line as received, and the header
/// `Certeus-Next-Cursor` takes the place of `next_cursor`. Erased events are left out there, and have no `event` in JSON.
///
/// Callers with the second API key get encrypted fields decrypted; what proofs cover are events as stored, as
/// `decrypt=false` shows them.
#[utoipa::path(
    get,
    path = "/v1/ledger/events",
    params(ListQuery),
    responses(
        (status = 200, description = "A page of events", headers(
            ("Certeus-Next-Cursor" = String, description = "With NDJSON: where the next page begins"),
            ("Certeus-Decrypted" = String, description = "`true` when encrypted fields are shown decrypted"),
            ("Certeus-Missing-Key-Ids" = String, description = "Ids of keys that fields are encrypted with and the pod does not have"),
            ("Certeus-Archived-Before" = u64, description = "With NDJSON: events below this index are in the archive, and not listed"),
        ), content(
            (ListReply = "application/json"),
            (String = "application/x-ndjson"),
        )),
        (status = 400, description = "A parameter is not valid", body = Problem),
        (status = 403, description = "`decrypt=true` with an API key that does not decrypt", body = Problem),
        (status = 500, description = "The stored bytes of the page's first event were altered", body = Problem),
        (status = 503, description = "The database is not available", body = Problem),
    )
)]
pub(crate) async fn list(
    State(app): State<App>,
    Extension(access): Extension<Access>,
    query: Result<Query<ListQuery>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Error> {
    let Query(ListQuery { kind, from, to, cursor, limit, decrypt }) = query.map_err(bad_query)?;
    let wanted = decrypt::is_wanted(access, decrypt)?;
    let limit = limit.unwrap_or(PAGE_EVENTS_DEFAULT);
    if !(1..=PAGE_EVENTS_MAX).contains(&limit) {
        return Err(Error::new(
            Code::InvalidRequest,
            format!("`limit` is {limit}, and must be 1 to {PAGE_EVENTS_MAX}"),
        ));
    }
    let bad_cursor = || Error::new(Code::InvalidRequest, "`cursor` is not one that a page before gave");
    let filter = Filter {
        kind,
        from: time("from", from)?,
        to: time("to", to)?,
        first_index: cursor.map_or(Ok(0), |cursor| cursor.parse().map_err(|_not_a_number| bad_cursor()))?,
        limit,
    };
    let page = app.ledger.events(&filter).await?;
    let next_cursor = page.next_index.map(|index| index.to_string());
    let lines = headers
        .get(header::ACCEPT)
        .is_some_and(|accept| accept.as_bytes().starts_with(b"application/x-ndjson"));
    let seen = decrypt::see(&app.ledger, page.events, wanted)?;
    let mut response = if lines {
        ndjson(&app, &seen, next_cursor, page.archived_before)?
    } else {
        let events = seen.iter().map(EventReply::new).collect::<Result<_, Error>>()?;
        let reply =
            serde_json::to_vec(&ListReply { events, next_cursor, archived_before: page.archived_before })
                .unwrap_or_default();
        let mut response = body::reply(reply, &app.budget)?.into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    };
    decrypt::describe(&seen, response.headers_mut());
    Ok(response)
}

fn ndjson(
    app: &App,
    seen: &[Seen],
    next_cursor: Option<String>,
    archived_before: Option<u64>,
) -> Result<Response, Error> {
    let payloads = || seen.iter().filter_map(Seen::payload);
    let mut lines = Vec::with_capacity(payloads().map(|payload| payload.len() + 1).sum());
    for payload in payloads() {
        // A line feed in JSON can only be white space between tokens; as a space it keeps the event on its line.
        lines.extend(payload.iter().map(|byte| if *byte == b'\n' { b' ' } else { *byte }));
        lines.push(b'\n');
    }
    let mut response = body::reply(lines, &app.budget)?.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    if let Some(cursor) = next_cursor.and_then(|cursor| HeaderValue::from_str(&cursor).ok()) {
        headers.insert("certeus-next-cursor", cursor);
    }
    if let Some(index) = archived_before {
        headers.insert("certeus-archived-before", HeaderValue::from(index));
    }
    Ok(response)
}

fn time(name: &str, text: Option<String>) -> Result<Option<Timestamp>, Error> {
    let Some(text) = text else { return Ok(None) };
    let numeric = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let parsed = if numeric { Timestamp::from_number(&text) } else { Timestamp::from_rfc3339(&text) };
    parsed.map(Some).map_err(|error| Error::new(Code::InvalidRequest, format!("`{name}` {error}")))
}
