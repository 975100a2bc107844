//! Proof bundles as their makers and readers meet them: over HTTP, verified with nothing but the public key.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(dead_code, reason = "shared with the other tests")]

mod support;

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use certeus_tlog::note::{Algorithm, SignedNote, SignerKey, VerifierKey};
use certeus_tlog::tlog_proof::TlogProof;
use certeus_tlog::{Hash, leaf_hash};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use support::{JSON, NDJSON, Pod, Reply, Settings, postgres};

const ORIGIN: &str = "log.example/default";
const BUNDLE: &str = "/v1/pco/bundle";
const PUBLISH: &str = "/v1/proofgate/publish";
const NOBODY: &str = "01a1fd17-1ba3-7cee-9ce1-ecb65f900000";

fn signer(seed: u8) -> SignerKey {
    SignerKey::from_seed(ORIGIN, Algorithm::Ed25519, [seed; 32]).unwrap()
}

fn secret(seed: u8) -> String {
    signer(seed).to_secret_text().to_string()
}

fn settings<'a>(env: &'a [(&'a str, &'a str)]) -> Settings<'a> {
    Settings { yaml: "log: {checkpointInterval: 100ms}", env }
}

fn event(n: usize) -> String {
    format!("{{\"type\":\"t\",\"timestamp\":1769860800, \"n\":{n}}}")
}

/// Appends events; gives their ids.
fn append(pod: &Pod, count: usize) -> Vec<String> {
    let lines: String = (0..count).map(|n| event(n) + "\n").collect();
    let reply = pod.post("/v1/ledger/events?ids=true", &[NDJSON], lines.as_bytes());
    assert_eq!(reply.status, 201, "{reply:?}");
    reply.json()["ids"].as_array().unwrap().iter().map(|id| id.as_str().unwrap().to_owned()).collect()
}

fn post(pod: &Pod, path: &str, body: &Value) -> Reply {
    pod.post(path, &[JSON], body.to_string().as_bytes())
}

/// Makes a bundle; gives its name and the JWS.
fn make(pod: &Pod, body: &Value) -> (String, String) {
    let reply = post(pod, BUNDLE, body);
    assert_eq!(reply.status, 201, "{reply:?}");
    let text = |name: &str| reply.json()[name].as_str().unwrap().to_owned();
    (text("rid"), text("bundle"))
}

fn publish(pod: &Pod, jws: &str) -> Reply {
    post(pod, PUBLISH, &json!({"bundle": jws}))
}

fn claims(ids: &[String]) -> Value {
    json!({"claims": {"paid": {"amount": 12.5, "evidence": ids}}, "entries": ids})
}

/// Verifies a bundle with nothing but the public key; gives its payload.
fn verify(jws: &str, key: &VerifierKey) -> Value {
    let (input, signature) = jws.rsplit_once('.').unwrap();
    let (header, payload) = input.split_once('.').unwrap();
    let decode = |text: &str| BASE64_URL_SAFE_NO_PAD.decode(text).unwrap();
    let header: Value = serde_json::from_slice(&decode(header)).unwrap();
    assert_eq!(
        header,
        json!({"alg": "EdDSA", "kid": format!("{:08x}", key.id()), "typ": "certeus-bundle+jws"})
    );
    key.verify_jws(input, &decode(signature).try_into().unwrap()).unwrap();
    let payload: Value = serde_json::from_slice(&decode(payload)).unwrap();
    let checkpoint = SignedNote::parse(payload["checkpoint"].as_str().unwrap().as_bytes()).unwrap();
    for entry in payload["entries"].as_array().unwrap() {
        let extra = BASE64_STANDARD.decode(entry["extra"].as_str().unwrap()).unwrap();
        let leaf = match entry["event"].as_str() {
            Some(event) => {
                assert_eq!(extra[0], 1);
                let whole = [&b"certeus/entry/v1\0"[..], &extra[1..], &decode(event)].concat();
                leaf_hash(&Sha256::digest(whole))
            }
            None => {
                assert_eq!(extra[0], 2);
                leaf_hash(&extra[1..])
            }
        };
        let hashes = entry["hashes"].as_array().unwrap().iter();
        let hashes: Vec<Hash> = hashes.map(|hash| hash.as_str().unwrap().parse().unwrap()).collect();
        let proof = TlogProof {
            extra,
            index: entry["index"].as_u64().unwrap(),
            hashes,
            checkpoint: checkpoint.clone(),
        };
        let proof = TlogProof::parse(proof.to_string().as_bytes()).unwrap();
        proof.verify(&leaf, ORIGIN, std::slice::from_ref(key)).unwrap();
    }
    payload
}

#[test]
fn a_bundle_is_published_once_and_anybody_can_verify_it() {
    let pg = postgres();
    let (signing, key) = (secret(1), "0123456789abcdef");
    let env = [
        ("CERTEUS_SIGNING_KEY", &*signing),
        ("CERTEUS_API_KEY", key),
        ("PUBLIC_BASE_URL", "https://proofs.example/x/"),
    ];
    let guarded = Pod::start(&pg.url(), &settings(&env)).ready();
    let open = Pod::start(&pg.url(), &settings(&env[..1])).ready();
    let ids = append(&open, 300);
    let some = [ids[299].clone(), ids[0].clone(), ids[7].clone()];
    // No checkpoint covers these yet, perhaps: it is waited for.
    let (rid, jws) = make(&open, &claims(&some));
    let payload = verify(&jws, signer(1).verifier());
    assert_eq!(
        (&payload["v"], &payload["iss"], &payload["ledger"]),
        (&json!(1), &json!(ORIGIN), &json!("default"))
    );
    assert_eq!((&payload["rid"], &payload["claims"]), (&json!(rid), &claims(&some)["claims"]));
    for (position, n) in [299, 0, 7].into_iter().enumerate() {
        let found = BASE64_URL_SAFE_NO_PAD.decode(payload["entries"][position]["event"].as_str().unwrap());
        assert_eq!(found.unwrap(), event(n).as_bytes());
    }

    // Published on both pods at once, in both forms.
    let bearer = format!("Bearer {key}");
    let public = format!("/v1/pco/public/{rid}");
    assert_eq!(guarded.get(&public).problem(), (404, "not-found".to_owned()));
    assert_eq!(guarded.post(PUBLISH, &[JSON], b"{}").problem(), (401, "unauthorized".to_owned()));
    let jose = ("content-type", "application/jose");
    let replies: Vec<Reply> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..4)
            .map(|n| {
                let (open, guarded, jws, bearer) = (&open, &guarded, &jws, &bearer);
                scope.spawn(move || match n % 2 {
                    0 => publish(open, jws),
                    _ => guarded.post(PUBLISH, &[jose, ("authorization", bearer)], jws.as_bytes()),
                })
            })
            .collect();
        running.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let again = publish(&open, &jws);
    assert_eq!(again.status, 200);
    let first = again.json();
    let statuses: Vec<u16> = replies.iter().map(|reply| reply.status).collect();
    assert_eq!(statuses.iter().filter(|status| **status == 201).count(), 1, "{replies:?}");
    assert!(statuses.iter().all(|status| matches!(status, 200 | 201)), "{replies:?}");
    for (n, reply) in replies.iter().enumerate() {
        let found = reply.json();
        let host = if n % 2 == 0 { "" } else { "https://proofs.example/x" };
        assert_eq!(found["url"], format!("{host}{public}"));
        for name in ["rid", "event_id", "event_index"] {
            assert_eq!(found[name], first[name], "{name}");
        }
    }

    // Recorded once, and the record is found by the bundle's name, with its proof.
    let page = open.get("/v1/ledger/events?type=certeus.bundle").json();
    assert_eq!(page["events"].as_array().unwrap().len(), 1);
    let record = &page["events"][0];
    assert_eq!((&record["id"], &record["index"]), (&first["event_id"], &json!(300)));
    let sha256: String = Sha256::digest(&jws).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!((&record["event"]["sha256"], &record["event"]["entries"]), (&json!(sha256), &json!(3)));
    assert_eq!(open.get(&format!("/v1/ledger/{rid}")).json()["events"][0]["id"], first["event_id"]);

    // Read by anybody.
    let reply = guarded.get(&public);
    assert_eq!((reply.status, reply.text()), (200, &*jws));
    assert_eq!(reply.header("content-type"), Some("application/jose"));
    assert_eq!(reply.header("cache-control"), Some("public, max-age=60"));
    let reply = support::request(guarded.api, "GET", &public, &[("accept", "application/json")], b"");
    assert_eq!(reply.header("content-type"), Some("application/json"));
    assert_eq!((&reply.json()["payload"], &reply.json()["header"]["alg"]), (&payload, &json!("EdDSA")));
    assert_eq!(guarded.get("/v1/pco/public/x").problem(), (400, "invalid-request".to_owned()));
    assert_eq!(guarded.get(&format!("/v1/pco/public/{NOBODY}")).problem(), (404, "not-found".to_owned()));
}

#[test]
fn a_record_without_its_publication_is_found_again() {
    let pg = postgres();
    let signing = secret(1);
    let pod = Pod::start(&pg.url(), &settings(&[("CERTEUS_SIGNING_KEY", &signing)])).ready();
    let ids = append(&pod, 3);
    let (_, jws) = make(&pod, &claims(&ids));
    let first = publish(&pod, &jws).json();
    // As if the pod had died in between, and the request was forgotten since.
    execute(&pg.url(), "DELETE FROM certeus.bundles; DELETE FROM certeus.requests");
    let again = publish(&pod, &jws);
    assert_eq!((again.status, again.json()), (201, first));
    // A name that another bundle has: only a thief of the key can make such a bundle.
    execute(&pg.url(), "UPDATE certeus.bundles SET sha256 = sha256('x')");
    assert_eq!(publish(&pod, &jws).problem(), (409, "rid-reused".to_owned()));
}

#[test]
fn what_is_wrong_is_refused_precisely() {
    let pg = postgres();
    let signing = secret(1);
    let env = [("CERTEUS_SIGNING_KEY", &*signing)];
    let pod = Pod::start(&pg.url(), &settings(&env)).ready();
    let ids = append(&pod, 3);
    let refused = |path: &str, body: &Value, status: u16, code: &str, detail: &str| {
        let reply = post(&pod, path, body);
        assert_eq!(reply.problem(), (status, code.to_owned()), "{reply:?}");
        let found = reply.json()["detail"].as_str().unwrap().to_owned();
        assert!(found.contains(detail), "{found}");
    };
    let entries = |entries: Value| json!({"claims": {}, "entries": entries});
    let bad = "invalid-request";
    refused(BUNDLE, &json!({"claims": {}}), 400, bad, "missing field `entries`");
    refused(BUNDLE, &json!({"claims": {}, "entries": [], "x": 1}), 400, bad, "unknown field `x`");
    refused(BUNDLE, &json!({"claims": [], "entries": []}), 400, bad, "`claims` must be a JSON object");
    refused(BUNDLE, &entries(json!([ids[0], "x"])), 400, bad, "entry 1: \"x\" is not an event id");
    refused(BUNDLE, &entries(json!([ids[0], ids[1], ids[0]])), 400, bad, "entry 2 repeats event");
    refused(BUNDLE, &entries(json!([ids[0], NOBODY])), 404, "not-found", "entry 1: there is no event");
    let many: Vec<_> = (0..1001).map(|_| NOBODY).collect();
    refused(BUNDLE, &entries(json!(many)), 413, "too-large", "1001 entries are too many");
    assert_eq!(pod.post(BUNDLE, &[NDJSON], b"{}").problem(), (415, "unsupported-media-type".to_owned()));
    assert_eq!(pod.post(PUBLISH, &[NDJSON], b"{}").problem(), (415, "unsupported-media-type".to_owned()));
    refused(PUBLISH, &json!({"bundle": 1}), 400, bad, "invalid type");

    let (rid, jws) = make(&pod, &claims(&ids));
    let bundle = |jws: &str| json!({"bundle": jws});
    let invalid = "invalid-bundle";
    let [header, payload, signature] = jws.split('.').collect::<Vec<_>>()[..] else { panic!("{jws}") };
    let encode = |text: &str| BASE64_URL_SAFE_NO_PAD.encode(text);
    let decoded = String::from_utf8(BASE64_URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap();
    let replayed = encode(&decoded.replace(&rid, NOBODY));
    refused(
        PUBLISH,
        &bundle(&format!("{header}.{replayed}.{signature}")),
        400,
        invalid,
        "the signature does not",
    );
    refused(PUBLISH, &bundle(&format!("{header}.{payload}")), 400, invalid, "three parts");
    let none = encode(r#"{"alg":"none"}"#);
    refused(PUBLISH, &bundle(&format!("{none}.{payload}.")), 400, invalid, "`alg` is \"none\"");
    assert_eq!(
        pod.post(PUBLISH, &[("content-type", "application/jose")], b"\xff").problem(),
        (400, invalid.to_owned())
    );
    // Signed by us, and of another history: whoever can do this has our key.
    let other = signer(1);
    let note = |origin: &str, size: u64| {
        let checkpoint = certeus_tlog::checkpoint::Checkpoint::new(origin, size, Hash([7; 32])).unwrap();
        SignedNote::sign(checkpoint.to_string(), [&other], 0).unwrap().to_string()
    };
    let forge = |payload: &Value| {
        let input = format!("{header}.{}", encode(&payload.to_string()));
        let signature = BASE64_URL_SAFE_NO_PAD.encode(other.sign_jws(&input).unwrap());
        bundle(&format!("{input}.{signature}"))
    };
    let mut forged: Value = serde_json::from_str(&decoded).unwrap();
    forged["entries"] = json!([]);
    forged["checkpoint"] = json!(note(ORIGIN, 2));
    refused(PUBLISH, &forge(&forged), 422, "not-proven", "not of the history of the newest one");
    forged["checkpoint"] = json!(note("b.example", 2));
    refused(PUBLISH, &forge(&forged), 400, invalid, "the checkpoint is of the log \"b.example\"");
    forged = serde_json::from_str(&decoded).unwrap();
    forged["entries"][1]["index"] = json!(0);
    refused(PUBLISH, &forge(&forged), 422, "not-proven", "entry 1, event");
    // Nothing of all this left a trace.
    assert_eq!(pod.get("/v1/ledger/events?type=certeus.bundle").json()["events"], json!([]));

    // What is published can be read where nothing is signed.
    assert_eq!(publish(&pod, &jws).status, 201);
    let unsigned = Pod::start(&pg.url(), &Settings::default()).ready();
    assert_eq!(post(&unsigned, BUNDLE, &claims(&ids)).problem(), (501, "sealing-off".to_owned()));
    assert_eq!(publish(&unsigned, &jws).problem(), (501, "sealing-off".to_owned()));
    assert_eq!(unsigned.get(&format!("/v1/pco/public/{rid}")).text(), jws);
}

#[test]
fn strict_mode_refuses_what_is_not_proven() {
    let pg = postgres();
    let signing = secret(1);
    let env = [("CERTEUS_SIGNING_KEY", &*signing), ("STRICT_PROOF_ONLY", "1")];
    let strict = Pod::start(&pg.url(), &settings(&env)).ready();
    let lax = Pod::start(&pg.url(), &settings(&env[..1])).ready();
    let ids = append(&strict, 3);
    assert_eq!(
        post(&lax, &format!("/v1/ledger/events/{}/erasure", ids[2]), &json!({"reason": "r"})).status,
        200
    );
    for (claims, entries, expected) in [
        (json!({}), json!([]), "there are no entries"),
        (json!({"a": 1}), json!([ids[0]]), "claim \"a\" has no evidence"),
        (json!({"a": {"evidence": []}}), json!([ids[0]]), "claim \"a\" has no evidence"),
        (json!({"a": {"evidence": [ids[1]]}}), json!([ids[0]]), "claim \"a\" names event"),
        (json!({"a": {"evidence": [ids[0]]}}), json!([ids[0], ids[2]]), "was erased"),
    ] {
        let body = json!({"claims": claims, "entries": entries});
        let reply = post(&strict, BUNDLE, &body);
        assert_eq!(reply.problem(), (422, "not-proven".to_owned()), "{body}");
        assert!(reply.json()["detail"].as_str().unwrap().contains(expected), "{reply:?}");
        let (_, jws) = make(&lax, &body);
        verify(&jws, signer(1).verifier());
        assert_eq!(publish(&strict, &jws).problem(), (422, "not-proven".to_owned()), "{body}");
        assert_eq!(publish(&lax, &jws).status, 201, "{body}");
    }
    let (_, jws) = make(&strict, &claims(&ids[..2]));
    assert_eq!(publish(&strict, &jws).status, 201);
}

#[test]
fn an_erasure_withdraws_the_bundles_that_show_the_event() {
    let pg = postgres();
    let signing = secret(1);
    let pod = Pod::start(&pg.url(), &settings(&[("CERTEUS_SIGNING_KEY", &signing)])).ready();
    let ids = append(&pod, 3);
    let bundle = |ids: &[String]| make(&pod, &claims(ids));
    let (rid, shows) = bundle(&ids[..2]);
    let (other, shows_not) = bundle(&ids[2..]);
    let (_, late) = bundle(&ids[..1]);
    assert_eq!((publish(&pod, &shows).status, publish(&pod, &shows_not).status), (201, 201));
    let erasure = post(&pod, &format!("/v1/ledger/events/{}/erasure", ids[0]), &json!({"reason": "r"}));
    assert_eq!(erasure.status, 200);
    let gone = (410, "erased".to_owned());
    assert_eq!(pod.get(&format!("/v1/pco/public/{rid}")).problem(), gone);
    assert_eq!(publish(&pod, &shows).problem(), gone);
    assert_eq!(publish(&pod, &late).problem(), gone);
    assert_eq!(pod.get(&format!("/v1/pco/public/{other}")).text(), shows_not);
    // The place of what was erased can still be proven.
    let (rid, without) = bundle(&ids);
    let payload = verify(&without, signer(1).verifier());
    assert!(payload["entries"][0]["event"].is_null() && payload["entries"][1]["event"].is_string());
    assert_eq!(publish(&pod, &without).status, 201);
    assert_eq!(pod.get(&format!("/v1/pco/public/{rid}")).text(), without);
}

#[test]
fn whichever_comes_first_a_bundle_never_shows_what_was_erased() {
    let pg = postgres();
    let signing = secret(1);
    let pod = Pod::start(&pg.url(), &settings(&[("CERTEUS_SIGNING_KEY", &signing)])).ready();
    for id in append(&pod, 8) {
        let (rid, jws) = make(&pod, &claims(std::slice::from_ref(&id)));
        let (published, erased) = std::thread::scope(|scope| {
            let published = scope.spawn(|| publish(&pod, &jws));
            let path = format!("/v1/ledger/events/{id}/erasure");
            let erased = post(&pod, &path, &json!({"reason": "r"}));
            (published.join().unwrap(), erased)
        });
        assert_eq!(erased.status, 200, "{erased:?}");
        assert!(matches!(published.status, 201 | 410), "{published:?}");
        let shown = pod.get(&format!("/v1/pco/public/{rid}"));
        assert_eq!(shown.status, if published.status == 201 { 410 } else { 404 }, "{shown:?}");
    }
}

#[test]
fn bundles_of_a_retired_key_can_still_be_published() {
    let pg = postgres();
    let (old, new) = (secret(1), secret(2));
    let start = |keys: &str| Pod::start(&pg.url(), &settings(&[("CERTEUS_SIGNING_KEY", keys)])).ready();
    let stop = |pod: Pod| {
        pod.terminate();
        assert_eq!(pod.wait(), Some(0));
    };
    let pod = start(&old);
    let ids = append(&pod, 3);
    let (rid, jws) = make(&pod, &claims(&ids));
    stop(pod);
    let pod = start(&format!("{old}\n{new}"));
    assert_eq!(
        pod.post("/v1/ledger/events?ack=sealed", &[JSON], event(1).as_bytes()).json()["ack"],
        "sealed"
    );
    stop(pod);
    let pod = start(&new);
    assert_eq!(publish(&pod, &jws).status, 201);
    assert_eq!(pod.get(&format!("/v1/pco/public/{rid}")).text(), jws);
    let (_, jws) = make(&pod, &claims(&ids));
    verify(&jws, signer(2).verifier());
    // A key that was never the log's.
    let stranger = signer(3);
    let input = jws.rsplit_once('.').unwrap().0;
    let signature = BASE64_URL_SAFE_NO_PAD.encode(stranger.sign_jws(input).unwrap());
    assert_eq!(publish(&pod, &format!("{input}.{signature}")).problem(), (400, "invalid-bundle".to_owned()));
}

fn execute(url: &str, sql: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.unwrap();
        let driver = tokio::spawn(connection);
        client.batch_execute(sql).await.unwrap();
        driver.abort();
    });
}
