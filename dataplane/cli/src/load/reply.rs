//! What a reply of the ledger means for the events that were sent. Pure.
//!
//! Only 201 with a receipt counts as acknowledged; 202 promises one for later. 429 and 503 say that nothing was committed, so the same events may
//! be sent again, except a 503 of type `outcome-unknown`. Other 5xx replies may come from anything between us and the
//! ledger, so their outcome is unknown too. Everything else is a mistake that repeating cannot heal.

use std::time::Duration;

use serde::Deserialize;

/// The longest wait that a server may ask for; a wrong clock or date somewhere must not stall the run.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(5);
const RETRY_AFTER_DEFAULT: Duration = Duration::from_secs(1);

/// The ledger's word that events are committed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Receipt {
    pub(crate) first_index: u64,
    pub(crate) count: u64,
    pub(crate) first_id: String,
}

/// What became of the events of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    Acknowledged(Receipt),
    /// Not committed; may be sent again after the wait.
    Refused {
        status: u16,
        retry_after: Duration,
    },
    /// On the server's disk, to be committed when its database is back; no place in the ledger yet.
    Spooled,
    /// Perhaps committed; must not be sent again without an idempotency key.
    Unknown {
        status: u16,
    },
    /// Never to be committed as they are, or not by this server; the text says why.
    Rejected(String),
}

/// The part of `application/problem+json` that is read here.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Problem {
    r#type: String,
    title: String,
    detail: String,
}

/// `body` is `None` when the reply broke off.
pub(crate) fn interpret(status: u16, retry_after: Option<&str>, body: Option<&[u8]>, sent: usize) -> Reply {
    let problem = || body.and_then(|body| serde_json::from_slice::<Problem>(body).ok());
    let refused = || Reply::Refused { status, retry_after: wait(retry_after) };
    match status {
        201 => match body.map(serde_json::from_slice::<Receipt>) {
            Some(Ok(receipt)) if receipt.count == sent as u64 => Reply::Acknowledged(receipt),
            Some(Ok(receipt)) => {
                Reply::Rejected(format!("the server acknowledged {} of {sent} events", receipt.count))
            }
            Some(Err(error)) => Reply::Rejected(format!("the server sent a receipt that is none: {error}")),
            None => Reply::Unknown { status },
        },
        202 => Reply::Spooled,
        429 => refused(),
        503 => match problem() {
            Some(problem) if problem.r#type.ends_with("outcome-unknown") => Reply::Unknown { status },
            Some(_) => refused(),
            // Without its type a 503 is anybody's, or broke off before it could say that the outcome is unknown.
            None => Reply::Unknown { status },
        },
        500..=599 => Reply::Unknown { status },
        _ => {
            let problem = problem().unwrap_or_default();
            let text = [problem.title, problem.detail].into_iter().filter(|text| !text.is_empty());
            let text = text.collect::<Vec<_>>().join(": ");
            let text = if text.is_empty() { "no reason given".to_owned() } else { text };
            Reply::Rejected(format!("the server answered {status}: {text}"))
        }
    }
}

fn wait(retry_after: Option<&str>) -> Duration {
    let seconds = retry_after.and_then(|text| text.trim().parse().ok());
    seconds.map_or(RETRY_AFTER_DEFAULT, Duration::from_secs).min(RETRY_AFTER_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECEIPT: &[u8] =
        br#"{"ledger":"default","ack":"committed","first_index":12,"count":3,"first_id":"0190-x"}"#;
    const OVERLOADED: &[u8] =
        br#"{"type":"https://certeus.io/problems/overloaded","title":"Full","status":503}"#;
    const UNKNOWN: &[u8] = br#"{"type":"https://certeus.io/problems/outcome-unknown","status":503}"#;

    fn refused(status: u16, seconds: u64) -> Reply {
        Reply::Refused { status, retry_after: Duration::from_secs(seconds) }
    }

    #[test]
    fn only_a_matching_receipt_acknowledges() {
        let receipt = Receipt { first_index: 12, count: 3, first_id: "0190-x".into() };
        assert_eq!(interpret(201, None, Some(RECEIPT), 3), Reply::Acknowledged(receipt));
        assert_eq!(
            interpret(201, None, Some(RECEIPT), 4),
            Reply::Rejected("the server acknowledged 3 of 4 events".into())
        );
        assert!(matches!(interpret(201, None, Some(b"hello"), 3), Reply::Rejected(_)));
        assert_eq!(interpret(201, None, None, 3), Reply::Unknown { status: 201 });
        assert!(matches!(interpret(200, None, Some(RECEIPT), 3), Reply::Rejected(_)));
        assert_eq!(interpret(202, None, Some(b"{}"), 3), Reply::Spooled);
    }

    #[test]
    fn refusals_carry_a_bounded_wait() {
        assert_eq!(interpret(429, Some("2"), None, 1), refused(429, 2));
        assert_eq!(interpret(503, Some("0"), Some(OVERLOADED), 1), refused(503, 0));
        assert_eq!(interpret(429, Some("86400"), None, 1), refused(429, 5));
        assert_eq!(interpret(429, Some("tomorrow"), None, 1), refused(429, 1));
        assert_eq!(interpret(429, None, None, 1), refused(429, 1));
    }

    #[test]
    fn what_may_have_been_committed_is_unknown() {
        assert_eq!(interpret(503, Some("1"), Some(UNKNOWN), 1), Reply::Unknown { status: 503 });
        assert_eq!(interpret(503, Some("1"), None, 1), Reply::Unknown { status: 503 });
        assert_eq!(interpret(503, Some("1"), Some(b"<html>"), 1), Reply::Unknown { status: 503 });
        assert_eq!(interpret(502, None, Some(b""), 1), Reply::Unknown { status: 502 });
    }

    #[test]
    fn a_mistake_is_told_in_the_servers_words() {
        let problem =
            br#"{"type":"x","title":"Invalid event","status":400,"detail":"event 3 has no 'type'"}"#;
        let expected = "the server answered 400: Invalid event: event 3 has no 'type'";
        assert_eq!(interpret(400, None, Some(problem), 1), Reply::Rejected(expected.into()));
        let expected = "the server answered 404: no reason given";
        assert_eq!(interpret(404, None, Some(b"not found"), 1), Reply::Rejected(expected.into()));
    }
}
