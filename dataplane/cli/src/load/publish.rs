//! Publishes the result of a run: as an event, with the proof that it is in the log.
//!
//! Owns the three requests. Each does the same however often it is sent, so a ledger that is busy after the run is asked again.

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::options::Endpoint;
use super::report::Report;
use crate::http::{self, Post, Site};

/// Bytes of the longest result; one that a run makes is far below.
const RESULT_BYTES_MAX: usize = 256 << 10;

/// Why the result was not published.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Http(#[from] http::Error),
    #[error("the result has {0} bytes, and at most {RESULT_BYTES_MAX} are taken")]
    TooLarge(usize),
    #[error("the result is not JSON")]
    Result(#[source] serde_json::Error),
    #[error("the ledger's reply to {path} has no text `{name}`")]
    Reply { path: &'static str, name: &'static str },
}

/// Publishes a result; gives the address where anybody can read it.
pub(super) fn publish(ledger: Endpoint, report: &Report) -> Result<String, Error> {
    const EVENTS: &str = "/v1/ledger/events?ack=sealed";
    const BUNDLE: &str = "/v1/pco/bundle";
    const PUBLISH: &str = "/v1/proofgate/publish";
    let result = serde_json::to_value(report).map_err(Error::Result)?;
    let event = json!({
        "type": "load.result",
        "timestamp": format!("{:.3}", Timestamp::now()),
        "run_id": result["settings"]["run-id"],
        "result": result,
    });
    let event = event.to_string();
    if event.len() > RESULT_BYTES_MAX {
        return Err(Error::TooLarge(event.len()));
    }
    let site = Site::new(ledger)?;
    // A run that is continued under the same name has another result.
    let key = format!("load.result-{:032x}", rand::random::<u128>());
    let post = |path: &'static str, body: String, key: Option<&str>| {
        let reply = site.post(&Post { path, body: Bytes::from(body), idempotency_key: key })?;
        Ok::<_, Error>(move |name: &'static str| text(&reply, name).ok_or(Error::Reply { path, name }))
    };
    let id = post(EVENTS, event, Some(&key))?("first_id")?;
    let claims = json!({"load": {"result": result, "evidence": [id]}});
    let bundle = post(BUNDLE, json!({"claims": claims, "entries": [id]}).to_string(), None)?("bundle")?;
    let url = post(PUBLISH, json!({"bundle": bundle}).to_string(), None)?("url")?;
    // Without an address of its own the ledger gives a path.
    Ok(if url.starts_with('/') { site.url(&url) } else { url })
}

/// A text of a reply.
fn text(reply: &[u8], name: &str) -> Option<String> {
    let reply: Value = serde_json::from_slice(reply).ok()?;
    Some(reply.get(name)?.as_str()?.to_owned())
}
