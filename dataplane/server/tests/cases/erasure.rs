//! Erasing events over HTTP.

use serde_json::json;

use crate::support::{JSON, Pod, Reply, Settings, postgres, request};

fn erase(pod: &Pod, id: &str, body: &str) -> Reply {
    pod.post(&format!("/v1/ledger/events/{id}/erasure"), &[JSON], body.as_bytes())
}

#[test]
fn an_erased_event_is_gone_with_a_reason_and_leaves_its_place() {
    let pg = postgres();
    let pod = Pod::start(&pg.url(), &Settings::default()).ready();
    let body = r#"[{"type":"a","timestamp":1,"name":"Ann"},{"type":"b","timestamp":2}]"#;
    let first = pod.append(body).json()["first_id"].as_str().unwrap().to_owned();

    let reply = erase(&pod, &first, r#"{"reason":"asked for"}"#);
    assert_eq!(reply.status, 200, "{reply:?}");
    let record = reply.json();
    assert_eq!((&record["event_id"], &record["index"]), (&json!(first), &json!(0)));
    assert_eq!((&record["reason"], &record["audit_index"]), (&json!("asked for"), &json!(2)));
    assert_eq!(erase(&pod, &first, r#"{"reason":"again"}"#).json(), record);

    let gone = pod.get(&format!("/v1/ledger/events/{first}"));
    assert_eq!(gone.problem(), (410, "erased".to_owned()));
    assert_eq!(gone.json()["erasure"], record);
    let audit_id = record["audit_event_id"].as_str().unwrap();
    let audit = pod.get(&format!("/v1/ledger/events/{audit_id}")).json();
    assert_eq!((&audit["type"], &audit["event"]["event_id"]), (&json!("certeus.erasure"), &json!(first)));

    let list = pod.get("/v1/ledger/events").json();
    let events = list["events"].as_array().unwrap();
    assert_eq!(events.len(), 3);
    assert_eq!((&events[0]["event"], &events[0]["erased_at"]), (&json!(null), &record["erased_at"]));
    assert_eq!((&events[1]["event"]["type"], events[1].get("erased_at")), (&json!("b"), None));
    let lines =
        request(pod.api, "GET", "/v1/ledger/events?limit=2", &[("accept", "application/x-ndjson")], b"");
    assert_eq!(lines.text(), "{\"type\":\"b\",\"timestamp\":2}\n");
}

#[test]
fn bad_requests_for_erasure_change_nothing() {
    let pg = postgres();
    let pod = Pod::start(&pg.url(), &Settings::default()).ready();
    let id = pod.append(r#"{"type":"a","timestamp":1}"#).json()["first_id"].as_str().unwrap().to_owned();
    let long = format!(r#"{{"reason":"{}"}}"#, "x".repeat(1025));
    let huge = format!(r#"{{"reason":"{}"}}"#, "x".repeat(10_000));
    let good = r#"{"reason":"r"}"#;
    for (id, body, status, code, words) in [
        ("nonsense", good, 400, "invalid-request", "is not an event id"),
        ("01a1fd17-1ba3-7cee-9ce1-ecb65f900000", good, 404, "not-found", "there is no event"),
        (&id[..], "", 400, "invalid-request", "the body is not valid"),
        (&id, "[]", 400, "invalid-request", "the body is not valid"),
        (&id, "{}", 400, "invalid-request", "missing field `reason`"),
        (&id, r#"{"reason":7}"#, 400, "invalid-request", "invalid type"),
        (&id, r#"{"reason":"r","cause":"c"}"#, 400, "invalid-request", "unknown field `cause`"),
        (&id, r#"{"reason":""}"#, 400, "invalid-request", "1 to 1024 bytes"),
        (&id, r#"{"reason":" "}"#, 400, "invalid-request", "not only white space"),
        (&id, r#"{"reason":"\u0000"}"#, 400, "invalid-request", "without control characters"),
        (&id, &long, 400, "invalid-request", "1 to 1024 bytes"),
        (&id, &huge, 413, "too-large", ""),
    ] {
        let reply = erase(&pod, id, body);
        assert_eq!(reply.problem(), (status, code.to_owned()), "{id} {body}: {reply:?}");
        assert!(reply.json()["detail"].as_str().unwrap().contains(words), "{reply:?}");
    }
    let path = format!("/v1/ledger/events/{id}/erasure");
    assert_eq!(pod.post(&path, &[], good.as_bytes()).problem(), (415, "unsupported-media-type".to_owned()));
    assert_eq!(pod.get(&path).problem(), (405, "method-not-allowed".to_owned()));
    // The types of the ledger's own events are not for clients, and neither are they erased.
    let forged = pod.append(r#"{"type":"certeus.erasure","timestamp":1}"#);
    assert_eq!(forged.problem(), (400, "invalid-event".to_owned()));
    assert_eq!(pod.get("/v1/ledger/events").json()["events"].as_array().unwrap().len(), 1);
    let record = erase(&pod, &id, good).json();
    let audit = erase(&pod, record["audit_event_id"].as_str().unwrap(), good);
    assert_eq!(audit.problem(), (409, "not-erasable".to_owned()));
}
