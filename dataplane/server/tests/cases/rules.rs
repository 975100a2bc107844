//! Rules on the admin port: delivered, listed, kept, refused.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::support::{JSON, Pod, Reply, Settings, postgres, request};

fn rules(uid: &str, generation: i64) -> Value {
    json!({
        "uid": uid, "generation": generation,
        "groups": [{ "name": "g", "interval": "30s", "rules": [
            { "record": "a:b", "expr": "sum(a)", "labels": { "team": "x" } },
            { "alert": "Down", "expr": "up == 0", "for": "1m", "keep_firing_for": "90s",
                "labels": { "severity": "page" }, "annotations": { "summary": "{{ $labels.instance }}" } }
        ] }],
        "notify": [{ "name": "team", "url_secret_ref": { "name": "hooks", "key": "url" }, "send_resolved": true }]
    })
}

fn put(to: SocketAddr, name: &str, body: &Value) -> Reply {
    request(to, "PUT", &format!("/rules/ns/{name}"), &[JSON], body.to_string().as_bytes())
}

fn delete(to: SocketAddr, name: &str) -> Reply {
    request(to, "DELETE", &format!("/rules/ns/{name}"), &[], b"")
}

fn loaded(to: SocketAddr) -> Value {
    let reply = request(to, "GET", "/rules", &[], b"");
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.json()["rules"].clone()
}

fn entry(name: &str, uid: &str, generation: i64) -> Value {
    json!({ "namespace": "ns", "name": name, "uid": uid, "generation": generation })
}

#[test]
fn rules_are_taken_listed_and_kept_over_a_kill() {
    let pg = postgres();
    let volume = tempfile::tempdir().unwrap();
    let yaml = format!("spool: {{ path: {:?}, persistent: true }}", volume.path().join("spool"));
    let settings = Settings { yaml: &yaml, env: &[] };
    let pod = Pod::start(&pg.url(), &settings);
    assert_eq!(loaded(pod.admin), json!([]));
    let reply = put(pod.admin, "b", &rules("u-b", 7));
    assert_eq!((reply.status, reply.json()), (200, entry("b", "u-b", 7)));
    assert_eq!(put(pod.admin, "a", &rules("u-a", 1)).status, 200);
    assert_eq!(put(pod.admin, "a", &rules("u-a", 1)).status, 200, "the same again");
    assert_eq!(put(pod.admin, "c", &rules("u-c", 1)).status, 200);
    assert_eq!(delete(pod.admin, "c").status, 204);
    assert_eq!(delete(pod.admin, "c").problem(), (404, "not-found".to_owned()));
    let before = json!([entry("a", "u-a", 1), entry("b", "u-b", 7)]);
    assert_eq!(loaded(pod.admin), before);
    // Killed, not drained.
    drop(pod);
    let pod = Pod::start(&pg.url(), &settings);
    assert_eq!(loaded(pod.admin), before);

    let stale = put(pod.admin, "b", &rules("u-b", 6));
    assert_eq!(stale.problem(), (409, "stale-generation".to_owned()));
    assert_eq!(put(pod.admin, "b", &rules("another", 1)).status, 200, "another object of the same name");
    assert_eq!(loaded(pod.admin), json!([entry("a", "u-a", 1), entry("b", "another", 1)]));
    let metrics = request(pod.admin, "GET", "/metrics", &[], b"");
    assert!(metrics.text().contains("\ncerteus_rules_objects 2\n"), "{}", metrics.text());

    // What cannot be kept is not taken; what was taken stays.
    let folder = volume.path().join("spool/rules");
    std::fs::remove_dir_all(&folder).unwrap();
    let reply = put(pod.admin, "d", &rules("u-d", 1));
    assert_eq!(reply.problem(), (503, "rules-not-written".to_owned()));
    assert!(!reply.text().contains(volume.path().to_str().unwrap()), "{reply:?}");
    assert_eq!(loaded(pod.admin).as_array().unwrap().len(), 2);
}

#[test]
fn the_list_for_people_invents_nothing() {
    let pg = postgres();
    let pod = Pod::start(&pg.url(), &Settings::default());
    assert_eq!(pod.get("/api/v1/rules").json(), json!({ "status": "success", "data": { "groups": [] } }));
    put(pod.admin, "a", &rules("u", 1));
    let expected = json!({ "status": "success", "data": { "groups": [{
        "name": "g", "file": "ns/a", "interval": 30.0, "rules": [
            { "type": "recording", "name": "a:b", "query": "sum(a)", "labels": { "team": "x" }, "health": "unknown" },
            { "type": "alerting", "name": "Down", "query": "up == 0", "labels": { "severity": "page" }, "health": "unknown",
                "state": "unknown", "duration": 60.0, "keepFiringFor": 90.0,
                "annotations": { "summary": "{{ $labels.instance }}" } }
        ]
    }] } });
    assert_eq!(pod.get("/api/v1/rules").json(), expected);
    assert_eq!(pod.get("/api/v1/rules?type=alert").problem(), (400, "invalid-request".to_owned()));
    // Rules are delivered on the admin port only.
    assert_eq!(put(pod.api, "a", &rules("u", 2)).problem().0, 404);
    assert_eq!(request(pod.api, "GET", "/rules", &[], b"").problem().0, 404);
}

#[test]
fn a_list_that_does_not_fit_into_the_memory_for_replies_is_refused() {
    let pg = postgres();
    // Twice as much for requests and replies.
    let pod = Pod::start(&pg.url(), &Settings { yaml: "ledger: { queueBytes: 1Mi }", env: &[] });
    let mut long = rules("u", 1);
    long["groups"][0]["rules"][1]["annotations"]["summary"] = json!("x".repeat(700_000));
    for name in ["a", "b", "c", "d"] {
        assert_eq!(put(pod.admin, name, &long).status, 200);
    }
    assert_eq!(pod.get("/api/v1/rules").problem(), (429, "overloaded".to_owned()));
    assert_eq!(delete(pod.admin, "a").status, 204);
    assert_eq!(delete(pod.admin, "b").status, 204);
    let groups = pod.get("/api/v1/rules").json()["data"]["groups"].as_array().unwrap().len();
    assert_eq!(groups, 2);
}

#[test]
fn what_are_no_rules_is_refused_and_nothing_is_kept() {
    let pg = postgres();
    let key = ("CERTEUS_API_KEY", "0123456789abcdef");
    let pod = Pod::start(&pg.url(), &Settings { yaml: "", env: &[key] });
    let with = |name: &str, body: &[u8]| {
        let headers = [JSON, ("authorization", "Bearer 0123456789abcdef")];
        request(pod.admin, "PUT", &format!("/rules/{name}"), &headers, body)
    };
    let mut long = rules("u", 1);
    long["groups"][0]["rules"][1]["annotations"]["summary"] = json!("x".repeat(1 << 20));
    let mut unknown = rules("u", 1);
    unknown["groups"][0]["limit"] = json!(1);
    let (long, unknown, valid) = (long.to_string(), unknown.to_string(), rules("u", 1).to_string());
    let cases: [(&str, &[u8], u16, &str, &str); 7] = [
        ("ns/a", b"", 400, "invalid-rules", "EOF"),
        ("ns/a", b"{}", 400, "invalid-rules", "missing field `uid`"),
        ("ns/a", &valid.as_bytes()[..valid.len() - 1], 400, "invalid-rules", "EOF"),
        ("ns/a", unknown.as_bytes(), 400, "invalid-rules", "groups[0].limit: unknown field"),
        ("ns/A", valid.as_bytes(), 400, "invalid-rules", "name: must be"),
        ("ns/..%2f..", valid.as_bytes(), 400, "invalid-rules", "name: must be"),
        ("ns/a", long.as_bytes(), 413, "too-large", "1048576"),
    ];
    for (name, body, status, code, words) in cases {
        let reply = with(name, body);
        assert_eq!(reply.problem(), (status, code.to_owned()), "{reply:?}");
        assert!(reply.text().contains(words), "{reply:?}");
    }
    assert_eq!(put(pod.admin, "a", &rules("u", 1)).problem(), (401, "unauthorized".to_owned()));
    assert_eq!(delete(pod.admin, "a").problem().0, 401);
    let list = request(pod.admin, "GET", "/rules", &[("x-api-key", key.1)], b"");
    assert_eq!(list.json(), json!({ "rules": [] }));
    let wrong = request(pod.admin, "POST", "/rules/ns/a", &[("x-api-key", key.1)], b"");
    assert_eq!(wrong.problem(), (405, "method-not-allowed".to_owned()));
}
