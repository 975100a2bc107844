//! Error replies: every one is `application/problem+json` (RFC 9457) with a stable `type`.
//!
//! Owns the codes and their HTTP status. Domain errors are turned into problems here and nowhere else; what a client reads
//! names its own mistake, and internal causes go to the log.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use certeus_ledger::field::DecryptError;
use certeus_ledger::request::IdentityError;
use certeus_ledger::submission::{self, EventError, Refused};
use certeus_ledger::{
    AppendError, Class, CommitError, EraseError, Erasure, LogError, PublicationError, ReadError, Refusal,
    SpoolError, bundle,
};
use certeus_monitor::rules::Error as RulesError;
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::erasure::ErasureReply;

/// Every problem's `type` begins with this; the code follows.
const TYPE_BASE: &str = "https://certeus.io/problems/";

/// What can go wrong, as a client tells it apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    /// The body or a parameter is wrong.
    InvalidRequest,
    /// One event of the request is wrong.
    InvalidEvent,
    /// Another content type or encoding is needed.
    UnsupportedMediaType,
    /// The request or an event is larger than allowed.
    TooLarge,
    /// The body did not arrive in time.
    RequestTimeout,
    /// The key is missing or wrong.
    Unauthorized,
    /// Not from this machine, or not with this key.
    Forbidden,
    /// There is no such thing.
    NotFound,
    /// The path does not take this method.
    MethodNotAllowed,
    /// The event's payload was erased.
    Erased,
    /// The event may not be erased.
    NotErasable,
    /// The event is in an archive that this pod cannot read.
    Archived,
    /// The idempotency key belongs to another request.
    IdempotencyKeyReused,
    /// The sequence numbers belong to another request.
    SequenceReused,
    /// Events of the producer are missing before these.
    SequenceGap,
    /// Only some of the producer's events are stored already.
    SequenceOverlap,
    /// The producer has a newer epoch.
    ProducerFenced,
    /// The queue is full.
    Overloaded,
    /// The database is away; nothing was stored.
    Unavailable,
    /// The database was not compared with the signed log yet; nothing was stored.
    LogUnchecked,
    /// The database does not have what the log was signed for; nothing was stored.
    LogRefused,
    /// The log is not signed here.
    SealingOff,
    /// No checkpoint covers it yet.
    NotSealed,
    /// The pod is shutting down; nothing was stored.
    Draining,
    /// The events may or may not be stored.
    OutcomeUnknown,
    /// Stored bytes are not what was committed to.
    Corrupt,
    /// Not a bundle of this log, or altered.
    InvalidBundle,
    /// Something that must be proven is not.
    NotProven,
    /// The bundle's name belongs to another one.
    RidReused,
    /// Not rules, or not of the form they must have.
    InvalidRules,
    /// A newer generation of the rules is loaded.
    StaleGeneration,
    /// There is no room for further rules.
    RulesFull,
    /// The pod's volume does not take the rules.
    RulesNotWritten,
    /// A defect.
    Internal,
}

impl Code {
    fn name(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid-request",
            Self::InvalidEvent => "invalid-event",
            Self::UnsupportedMediaType => "unsupported-media-type",
            Self::TooLarge => "too-large",
            Self::RequestTimeout => "request-timeout",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not-found",
            Self::MethodNotAllowed => "method-not-allowed",
            Self::Erased => "erased",
            Self::NotErasable => "not-erasable",
            Self::Archived => "archived",
            Self::IdempotencyKeyReused => "idempotency-key-reused",
            Self::SequenceReused => "sequence-reused",
            Self::SequenceGap => "sequence-gap",
            Self::SequenceOverlap => "sequence-overlap",
            Self::ProducerFenced => "producer-fenced",
            Self::Overloaded => "overloaded",
            Self::Unavailable => "unavailable",
            Self::LogUnchecked => "log-unchecked",
            Self::LogRefused => "log-refused",
            Self::SealingOff => "sealing-off",
            Self::NotSealed => "not-sealed",
            Self::Draining => "draining",
            Self::OutcomeUnknown => "outcome-unknown",
            Self::Corrupt => "corrupt",
            Self::InvalidBundle => "invalid-bundle",
            Self::NotProven => "not-proven",
            Self::RidReused => "rid-reused",
            Self::InvalidRules => "invalid-rules",
            Self::StaleGeneration => "stale-generation",
            Self::RulesFull => "rules-full",
            Self::RulesNotWritten => "rules-not-written",
            Self::Internal => "internal",
        }
    }

    fn status(self) -> StatusCode {
        match self {
            Self::InvalidRequest | Self::InvalidEvent | Self::InvalidBundle | Self::InvalidRules => {
                StatusCode::BAD_REQUEST
            }
            Self::NotProven => StatusCode::UNPROCESSABLE_ENTITY,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Forbidden | Self::ProducerFenced => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Erased | Self::Archived => StatusCode::GONE,
            Self::NotErasable => StatusCode::CONFLICT,
            Self::IdempotencyKeyReused | Self::SequenceReused | Self::SequenceGap | Self::SequenceOverlap => {
                StatusCode::CONFLICT
            }
            Self::StaleGeneration => StatusCode::CONFLICT,
            Self::Overloaded | Self::RulesFull => StatusCode::TOO_MANY_REQUESTS,
            Self::Unavailable
            | Self::Draining
            | Self::OutcomeUnknown
            | Self::LogUnchecked
            | Self::LogRefused
            | Self::RulesNotWritten => StatusCode::SERVICE_UNAVAILABLE,
            Self::SealingOff => StatusCode::NOT_IMPLEMENTED,
            Self::NotSealed | Self::RidReused => StatusCode::CONFLICT,
            Self::Corrupt | Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::InvalidRequest => "The request cannot be understood",
            Self::InvalidEvent => "An event of the request is not valid",
            Self::UnsupportedMediaType => "The content type or encoding is not supported",
            Self::TooLarge => "The request or an event in it is too large",
            Self::RequestTimeout => "The request body did not arrive in time",
            Self::Unauthorized => "A valid API key is required",
            Self::Forbidden => "Not allowed",
            Self::NotFound => "Not found",
            Self::MethodNotAllowed => "The method is not allowed here",
            Self::Erased => "The event's payload was erased",
            Self::NotErasable => "The event may not be erased",
            Self::Archived => "The event was archived",
            Self::IdempotencyKeyReused => {
                "The idempotency key belongs to another request; nothing was stored"
            }
            Self::SequenceReused => "The sequence numbers belong to another request; nothing was stored",
            Self::SequenceGap => "Events of the producer are missing before these; nothing was stored",
            Self::SequenceOverlap => "Some of the events are stored already; nothing more was stored",
            Self::ProducerFenced => "The producer has a newer epoch; nothing was stored",
            Self::Overloaded => "Too much is waiting already; nothing was stored",
            Self::Unavailable => "The database is not available; nothing was stored",
            Self::LogUnchecked => "The database was not compared with the signed log yet; nothing was stored",
            Self::LogRefused => "The database does not match the signed log; nothing was stored",
            Self::SealingOff => "The log is not signed here",
            Self::NotSealed => "Not in a signed checkpoint yet",
            Self::Draining => "This pod is shutting down; nothing was stored",
            Self::OutcomeUnknown => "The outcome is unknown; it may have been done",
            Self::Corrupt => "Stored data does not match the log",
            Self::InvalidBundle => "Not a bundle of this log, or an altered one",
            Self::NotProven => "Something that must be proven is not",
            Self::RidReused => "The bundle's name belongs to another bundle",
            Self::InvalidRules => "The rules do not have the form they must have",
            Self::StaleGeneration => "A newer generation of these rules is loaded; nothing was changed",
            Self::RulesFull => "There is no room for further rules; nothing was changed",
            Self::RulesNotWritten => "The pod's volume does not take the rules; nothing was changed",
            Self::Internal => "Internal error",
        }
    }

    /// Seconds after which trying again makes sense.
    fn retry_after(self) -> Option<&'static str> {
        match self {
            Self::Overloaded
            | Self::Unavailable
            | Self::LogUnchecked
            | Self::Draining
            | Self::OutcomeUnknown
            | Self::NotSealed => Some("1"),
            // A human has to look first.
            Self::LogRefused | Self::RulesFull | Self::RulesNotWritten => Some("30"),
            Self::InvalidRequest
            | Self::InvalidEvent
            | Self::UnsupportedMediaType
            | Self::TooLarge
            | Self::RequestTimeout
            | Self::Unauthorized
            | Self::Forbidden
            | Self::NotFound
            | Self::MethodNotAllowed
            | Self::Erased
            | Self::NotErasable
            | Self::Archived
            | Self::IdempotencyKeyReused
            | Self::SequenceReused
            | Self::SequenceGap
            | Self::SequenceOverlap
            | Self::ProducerFenced
            | Self::SealingOff
            | Self::Corrupt
            | Self::InvalidBundle
            | Self::NotProven
            | Self::RidReused
            | Self::InvalidRules
            | Self::StaleGeneration
            | Self::Internal => None,
        }
    }
}

/// The body of an error reply.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Problem {
    /// Stable URI of the kind of problem.
    #[serde(rename = "type")]
    kind: String,
    /// The kind in words.
    title: &'static str,
    /// The HTTP status.
    status: u16,
    /// This very case in words.
    detail: String,
    /// The events that were refused, at most 100 of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    refused: Vec<RefusedEvent>,
    /// The record of the event's erasure.
    #[serde(skip_serializing_if = "Option::is_none")]
    erasure: Option<Box<ErasureReply>>,
}

/// An event that was refused.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RefusedEvent {
    /// Position among the events of the request, from 0.
    position: usize,
    /// Byte offset in the uncompressed body.
    offset: usize,
    /// Why.
    reason: String,
}

/// How many refused events a reply lists.
const REFUSED_LISTED_MAX: usize = 100;

/// The first refused events, for a reply.
pub(crate) fn refused_events(refused: &[Refused]) -> Vec<RefusedEvent> {
    let listed = refused.iter().take(REFUSED_LISTED_MAX);
    listed
        .map(|one| RefusedEvent { position: one.position, offset: one.offset, reason: one.error.to_string() })
        .collect()
}

/// An error reply.
#[derive(Debug)]
pub(crate) struct Error {
    code: Code,
    detail: String,
    refused: Vec<RefusedEvent>,
    erasure: Option<Box<ErasureReply>>,
}

impl Error {
    /// A problem of this kind, with words for this case.
    pub(crate) fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), refused: Vec::new(), erasure: None }
    }

    /// Every event of a request was refused.
    pub(crate) fn all_refused(refused: &[Refused]) -> Self {
        let detail = format!("each of the {} events was refused", refused.len());
        Self { refused: refused_events(refused), ..Self::new(Code::InvalidEvent, detail) }
    }

    /// An event whose payload was erased.
    pub(crate) fn erased(erasure: &Erasure) -> Self {
        let detail = format!("event {} was erased at {}", erasure.event_id, erasure.erased_at);
        Self { erasure: Some(Box::new(erasure.into())), ..Self::new(Code::Erased, detail) }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let Self { code, detail, refused, erasure } = self;
        let status = code.status();
        let kind = format!("{TYPE_BASE}{}", code.name());
        let problem =
            Problem { kind, title: code.title(), status: status.as_u16(), detail, refused, erasure };
        // Nothing in a problem can fail to serialise.
        let body = serde_json::to_vec(&problem).unwrap_or_default();
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = code.retry_after() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static(seconds));
        }
        if code == Code::Unauthorized {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<submission::Error> for Error {
    fn from(error: submission::Error) -> Self {
        let detail = error.to_string();
        match error {
            submission::Error::TooManyEvents(_) => Self::new(Code::TooLarge, detail),
            submission::Error::Event(refused) => {
                let code = match refused.error {
                    EventError::TooLarge { .. } | EventError::TooLargeEncrypted { .. } => Code::TooLarge,
                    _ => Code::InvalidEvent,
                };
                Self { refused: refused_events(&[refused]), ..Self::new(code, detail) }
            }
            submission::Error::NotUtf8(_) | submission::Error::Empty | submission::Error::Syntax(_) => {
                Self::new(Code::InvalidRequest, detail)
            }
        }
    }
}

impl From<IdentityError> for Error {
    fn from(error: IdentityError) -> Self {
        Self::new(Code::InvalidRequest, error.to_string())
    }
}

impl From<AppendError> for Error {
    fn from(error: AppendError) -> Self {
        let code = match error {
            AppendError::Refused(Refusal::Full) => Code::Overloaded,
            AppendError::Refused(Refusal::TooLarge) => Code::TooLarge,
            AppendError::Refused(Refusal::Closed) => Code::Draining,
            AppendError::Unavailable | AppendError::Commit(CommitError::Unavailable) => Code::Unavailable,
            AppendError::LogUnchecked => Code::LogUnchecked,
            AppendError::LogRefused => Code::LogRefused,
            AppendError::Commit(CommitError::OutcomeUnknown) | AppendError::Spool(SpoolError::Unknown) => {
                Code::OutcomeUnknown
            }
            AppendError::Spool(SpoolError::Full) => Code::Overloaded,
            AppendError::Spool(SpoolError::Closed) => Code::Unavailable,
            AppendError::Commit(CommitError::KeyReused) => Code::IdempotencyKeyReused,
            AppendError::Commit(CommitError::SequenceReused) => Code::SequenceReused,
            AppendError::Commit(CommitError::SequenceGap { .. }) => Code::SequenceGap,
            AppendError::Commit(CommitError::SequenceOverlap { .. }) => Code::SequenceOverlap,
            AppendError::Commit(CommitError::ProducerFenced { .. }) => Code::ProducerFenced,
            // The handler answers duplicates itself, as they are no error to a client.
            AppendError::Commit(CommitError::Rejected | CommitError::Duplicate) => Code::Internal,
        };
        Self::new(code, error.to_string())
    }
}

impl From<DecryptError> for Error {
    fn from(error: DecryptError) -> Self {
        tracing::error!(reason = %error, "stored data does not match its key");
        Self::new(Code::Corrupt, error.to_string())
    }
}

impl From<LogError> for Error {
    fn from(error: LogError) -> Self {
        let code = match error {
            LogError::Event(error) => return error.into(),
            LogError::Off => Code::SealingOff,
            LogError::NoCheckpoint | LogError::NotSealed { .. } => Code::NotSealed,
            LogError::Beyond { .. } => Code::NotFound,
            LogError::Missing(_) | LogError::Altered(_) | LogError::Unproven => {
                tracing::error!(reason = %error, "stored data does not match the log");
                Code::Corrupt
            }
            LogError::Pool(_) | LogError::Query(_) => {
                let source = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(reason = %error, source, "a read of the log failed");
                return Self::new(Code::Unavailable, "the database is not available");
            }
        };
        Self::new(code, error.to_string())
    }
}

impl From<ReadError> for Error {
    fn from(error: ReadError) -> Self {
        if let ReadError::Archived { .. } = error {
            return Self::new(Code::Archived, error.to_string());
        }
        let class = error.class();
        match class {
            Class::Corrupt => {
                let source = std::error::Error::source(&error).map(ToString::to_string);
                tracing::error!(reason = %error, source, "stored data does not match the log");
                Self::new(Code::Corrupt, error.to_string())
            }
            Class::Invalid | Class::Overloaded | Class::Unavailable | Class::OutcomeUnknown | Class::Bug => {
                let source = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(reason = %error, source, "a read failed");
                let archive = matches!(error, ReadError::Archive(_) | ReadError::ArchiveSlow);
                let away = if archive { "the archive" } else { "the database" };
                Self::new(Code::Unavailable, format!("{away} is not available"))
            }
        }
    }
}

impl From<EraseError> for Error {
    fn from(error: EraseError) -> Self {
        let detail = error.to_string();
        match error {
            EraseError::Reason => Self::new(Code::InvalidRequest, detail),
            EraseError::NotFound(_) => Self::new(Code::NotFound, detail),
            EraseError::Audit(_) => Self::new(Code::NotErasable, detail),
            EraseError::Busy => Self::new(Code::Overloaded, detail),
            EraseError::Read(error) => error.into(),
            EraseError::Append(error) => error.into(),
            EraseError::Archive(source) => {
                let source = source.to_string();
                tracing::error!(reason = detail, source, "an erasure failed");
                Self::new(Code::OutcomeUnknown, detail)
            }
            EraseError::Malformed => {
                tracing::error!(reason = detail, "an erasure failed");
                Self::new(Code::Internal, detail)
            }
            EraseError::Unfinished(source) => {
                let source = source.map(|error| error.to_string());
                tracing::warn!(reason = detail, source, "an erasure failed");
                Self::new(Code::OutcomeUnknown, detail)
            }
        }
    }
}

impl From<RulesError> for Error {
    fn from(error: RulesError) -> Self {
        let code = match &error {
            RulesError::Stale { .. } => Code::StaleGeneration,
            RulesError::TooMany | RulesError::TooLarge => Code::RulesFull,
            RulesError::Write(source) => {
                tracing::error!(reason = %error, source = %source, "rules were not changed");
                Code::RulesNotWritten
            }
        };
        Self::new(code, error.to_string())
    }
}

impl From<bundle::Error> for Error {
    fn from(error: bundle::Error) -> Self {
        use bundle::Error as E;
        let code = match &error {
            E::TooLarge { .. } | E::TooManyEntries(_) => Code::TooLarge,
            E::Claims(_) | E::Repeated { .. } => Code::InvalidRequest,
            E::Entry { .. } | E::NotProven(_) => Code::NotProven,
            E::Sign(_) => Code::Internal,
            E::Parts
            | E::Base64(_)
            | E::Header(_)
            | E::Algorithm(_)
            | E::Type { .. }
            | E::UnknownKey(_)
            | E::Signature
            | E::Payload(_)
            | E::Version(_)
            | E::Field(_)
            | E::Foreign { .. }
            | E::Note(_)
            | E::Checkpoint(_) => Code::InvalidBundle,
        };
        if code == Code::Internal {
            tracing::error!(reason = %error, "a bundle could not be signed");
        }
        Self::new(code, error.to_string())
    }
}

impl From<PublicationError> for Error {
    fn from(error: PublicationError) -> Self {
        let detail = error.to_string();
        match error {
            PublicationError::Bundle(error) => error.into(),
            PublicationError::Unknown { .. } => Self::new(Code::NotFound, detail),
            PublicationError::Erased { .. } | PublicationError::Withdrawn(_) => {
                Self::new(Code::Erased, detail)
            }
            PublicationError::Forked { .. } => Self::new(Code::NotProven, detail),
            PublicationError::RidReused(_) => Self::new(Code::RidReused, detail),
            PublicationError::Busy => Self::new(Code::Overloaded, detail),
            PublicationError::Log(error) => error.into(),
            PublicationError::Append(error) => error.into(),
            PublicationError::Malformed => {
                tracing::error!(reason = detail, "a publication failed");
                Self::new(Code::Internal, detail)
            }
            PublicationError::Unfinished(source) => {
                let source = source.map(|error| error.to_string());
                tracing::warn!(reason = detail, source, "a publication failed");
                Self::new(Code::OutcomeUnknown, detail)
            }
        }
    }
}
