//! What can go wrong in a reconcile, and what class of trouble it is. The class alone decides when the object is looked at again,
//! the metric's label, and whether somebody is told; the variant gives the condition's reason.

use std::time::Duration;

use certeus_crds::FieldError;
use certeus_operator::decide::{ConditionReason, Problem, ProblemReason};

use super::client::{Fenced, NoReply};

/// First pause after a failure that passes by itself; doubles up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// For what somebody has to put right elsewhere. Where a watch shows that they did, it is looked at then.
const ELSEWHERE: Duration = Duration::from_secs(120);

const ORPHAN: &str = "undo the change, or run `kubectl delete statefulset --cascade=orphan` on it: the pods go on, and the \
                      operator makes it anew; volumes that exist stay as they are";

/// Why a reconcile did not get to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The object asks for something that cannot be.
    #[error("{}", list(.0))]
    Invalid(Vec<FieldError>),
    /// The API server takes no such change of an object that exists.
    #[error("{kind} {name} cannot be changed as the specification asks ({message}); {advice}")]
    Immutable { kind: String, name: String, message: String, advice: &'static str },
    /// The API server takes no such object.
    #[error("the API server refuses {kind} {name}: {message}")]
    Refused { kind: String, name: String, message: String },
    /// An object of that name belongs to somebody else.
    #[error("{kind} {name} exists and is not this LedgerCluster's; rename one of them, or delete it")]
    NameTaken { kind: String, name: String },
    #[error("Secret {name} does not exist")]
    SecretMissing { name: String },
    #[error("Secret {name} has no key {key:?}")]
    SecretKeyMissing { name: String, key: String },
    #[error("the Secret {name} holds no signing key that can be used")]
    SigningKeyUnusable { name: String },
    #[error("key {key:?} of Secret {name} cannot be used by the pods: it must hold {needed}")]
    SecretUnusable { name: String, key: String, needed: &'static str },
    /// It changed after what was decided on was seen.
    #[error("{kind} {name} was changed meanwhile; it is looked at again")]
    Overtaken { kind: String, name: String },
    /// Any other call to the API server.
    #[error("cannot {action}")]
    Api {
        action: String,
        #[source]
        source: kube::Error,
    },
    #[error("the reconcile took longer than {} s", .0.as_secs())]
    Timeout(Duration),
    #[error("cannot write the object {kind} {name} as JSON")]
    Json {
        kind: String,
        name: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("no random numbers for a new signing key")]
    Random,
    #[error("the reconcile ended in a bug")]
    Panicked,
}

/// What kind of trouble, as far as anybody acts on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// The user must change the object.
    Invalid,
    /// Somebody else wrote at the same time.
    Conflict,
    /// Passes by itself.
    Transient,
    /// The operator lacks a permission.
    Forbidden,
    /// Something that the object refers to is not there.
    Missing,
    /// A bug of the operator's.
    Fatal,
}

impl Class {
    /// The metric's label.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Conflict => "conflict",
            Self::Transient => "transient",
            Self::Forbidden => "forbidden",
            Self::Missing => "missing",
            Self::Fatal => "fatal",
        }
    }

    /// When to look again after so many failures in a row; `None` once something changed. `random` is from 0 to 1.
    pub(crate) fn retry(self, failures: u32, random: f64) -> Option<Duration> {
        let pause = match self {
            Self::Invalid => return None,
            Self::Conflict | Self::Transient => {
                BACKOFF_MAX.min(BACKOFF_MIN * (1 << failures.saturating_sub(1).min(16)))
            }
            Self::Forbidden | Self::Missing | Self::Fatal => ELSEWHERE,
        };
        Some(pause.mul_f64(0.5 + random / 2.0))
    }

    /// Whether the user should hear of it in a Kubernetes Event at once. What passes by itself shows in the condition.
    pub(crate) const fn is_news(self) -> bool {
        match self {
            Self::Invalid | Self::Forbidden | Self::Missing | Self::Fatal => true,
            Self::Conflict | Self::Transient => false,
        }
    }
}

impl Error {
    pub(crate) fn api(action: impl Into<String>, source: kube::Error) -> Self {
        Self::Api { action: action.into(), source }
    }

    /// What a refused write of an object means.
    pub(crate) fn write(kind: &str, name: &str, source: kube::Error) -> Self {
        let (kind, name) = (kind.to_owned(), name.to_owned());
        match source {
            kube::Error::Api(status) if matches!(status.code, 400 | 422) => {
                let message = status.message;
                if message.contains("updates to statefulset spec") {
                    return Self::Immutable {
                        kind,
                        message: "Kubernetes fixes the volumes of a StatefulSet when it is created"
                            .to_owned(),
                        advice: ORPHAN,
                        name,
                    };
                }
                if message.contains("field is immutable") {
                    return Self::Immutable {
                        kind,
                        name,
                        message,
                        advice: "undo the change, or delete that object: the operator makes it anew",
                    };
                }
                Self::Refused { kind, name, message }
            }
            source => Self::Api { action: format!("apply {kind} {name}"), source },
        }
    }

    pub(crate) fn overtaken(kind: &str, name: &str) -> Self {
        Self::Overtaken { kind: kind.to_owned(), name: name.to_owned() }
    }

    /// An object that exists differs from what is wanted in fields that nobody can change.
    pub(crate) fn fixed(kind: &str, name: &str, fields: &[String]) -> Self {
        let message = format!("{} cannot be changed once it exists", fields.join(", "));
        Self::Immutable { kind: kind.to_owned(), name: name.to_owned(), message, advice: ORPHAN }
    }

    /// Decides what happens next.
    pub(crate) fn class(&self) -> Class {
        match self {
            Self::Invalid(_) | Self::Immutable { .. } | Self::Refused { .. } => Class::Invalid,
            Self::NameTaken { .. }
            | Self::SecretMissing { .. }
            | Self::SecretKeyMissing { .. }
            | Self::SecretUnusable { .. }
            | Self::SigningKeyUnusable { .. } => Class::Missing,
            Self::Overtaken { .. } => Class::Conflict,
            Self::Api { source, .. } => api_class(source),
            Self::Timeout(_) => Class::Transient,
            Self::Json { .. } | Self::Random | Self::Panicked => Class::Fatal,
        }
    }

    /// The reason in conditions, Events and logs: the same word everywhere.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Invalid(_) => ConditionReason::Invalid.as_str(),
            other => other.problem_reason().as_str(),
        }
    }

    /// As the status shows it.
    pub(crate) fn problem(&self) -> Problem {
        Problem { reason: self.problem_reason(), message: self.message() }
    }

    fn problem_reason(&self) -> ProblemReason {
        match self {
            // What is invalid is reported as such before anything is tried.
            Self::Invalid(_) | Self::Refused { .. } => ProblemReason::ApplyRefused,
            Self::Immutable { .. } => ProblemReason::ImmutableField,
            Self::NameTaken { .. } => ProblemReason::NameTaken,
            Self::SecretMissing { .. } | Self::SecretKeyMissing { .. } => ProblemReason::SecretMissing,
            Self::SigningKeyUnusable { .. } | Self::SecretUnusable { .. } => ProblemReason::SecretInvalid,
            Self::Api { source, .. } => match api_class(source) {
                Class::Forbidden => ProblemReason::Forbidden,
                Class::Missing => ProblemReason::ApplyRefused,
                Class::Invalid | Class::Conflict | Class::Transient | Class::Fatal => {
                    ProblemReason::ApiUnavailable
                }
            },
            Self::Overtaken { .. } | Self::Timeout(_) => ProblemReason::ApiUnavailable,
            Self::Json { .. } | Self::Random | Self::Panicked => ProblemReason::OperatorBug,
        }
    }

    /// The whole story in one line.
    pub(crate) fn message(&self) -> String {
        crate::errors::chain(self)
    }
}

fn api_class(error: &kube::Error) -> Class {
    match error {
        kube::Error::Api(status) => match status.code {
            401 | 403 => Class::Forbidden,
            404 => Class::Missing,
            409 => Class::Conflict,
            // 408, 429, 5xx, and what proxies in between may invent.
            _ => Class::Transient,
        },
        // The process is about to end.
        kube::Error::Service(error) if error.is::<Fenced>() || error.is::<NoReply>() => Class::Transient,
        kube::Error::BuildRequest(_) => Class::Fatal,
        _ => Class::Transient,
    }
}

fn list(errors: &[FieldError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    #[track_caller]
    fn check(code: u16, message: &str, class: Class, reason: &str) {
        let status = Status { code, message: message.to_owned(), ..Status::success() };
        let error = Error::write("StatefulSet", "demo", kube::Error::Api(status.boxed()));
        assert_eq!((error.class(), error.reason()), (class, reason), "{}", error.message());
        assert!(error.message().contains("StatefulSet demo"), "{}", error.message());
    }

    #[test]
    fn the_servers_answer_gives_the_class() {
        check(403, "is forbidden", Class::Forbidden, "Forbidden");
        check(404, "namespaces \"x\" not found", Class::Missing, "ApplyRefused");
        check(409, "conflict", Class::Conflict, "ApiUnavailable");
        check(429, "slow down", Class::Transient, "ApiUnavailable");
        check(500, "etcd", Class::Transient, "ApiUnavailable");
        check(422, "spec.x: Invalid value", Class::Invalid, "ApplyRefused");
        check(
            422,
            "spec: Forbidden: updates to statefulset spec for fields other than 'replicas'",
            Class::Invalid,
            "ImmutableField",
        );
    }

    #[test]
    fn pauses_grow_to_a_minute_and_an_invalid_object_waits_for_its_user() {
        assert_eq!(Class::Invalid.retry(1, 0.5), None);
        assert_eq!(Class::Transient.retry(1, 1.0), Some(BACKOFF_MIN));
        assert_eq!(Class::Transient.retry(3, 1.0), Some(BACKOFF_MIN * 4));
        for failures in [20, u32::MAX] {
            assert_eq!(Class::Conflict.retry(failures, 1.0), Some(BACKOFF_MAX));
        }
        assert_eq!(Class::Forbidden.retry(1, 0.0), Some(ELSEWHERE / 2));
    }
}
