//! Archived events over HTTP, and the pod's own task that archives them.

use std::time::{Duration, Instant};

use certeus_ledger::envelope::{BatchSecret, ContentType, Envelope, EnvelopeHead};
use certeus_ledger::id::{BatchId, Day};
use certeus_ledger::timestamp::Timestamp;
use serde_json::json;
use uuid::Uuid;

use crate::support::{JSON, Pod, Settings, postgres};
use crate::{connect, runtime};

const PAYLOAD: &str = r#"{"type":"a","timestamp":1}"#;

/// Makes the only event look as if it had been committed five days ago; gives its new id.
async fn age(url: &str, id: Uuid) -> Uuid {
    let client = connect(url).await;
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_millis();
    let then = u64::try_from(now).unwrap() - 5 * 86_400_000;
    let (day, aged) = (Day::of_unix_ms(then), BatchId::new(then, id.as_u128()).uuid());
    let partition = format!(
        "CREATE TABLE certeus.events_{} PARTITION OF certeus.events FOR VALUES FROM ('{}') TO ('{}')",
        day.suffix(),
        day.first_id(),
        day.next().first_id()
    );
    client.batch_execute(&partition).await.unwrap();
    let head = EnvelopeHead {
        ledger: "default",
        id: aged,
        kind: "a",
        time: Timestamp::from_micros(1_000_000).unwrap(),
        producer: None,
        content_type: ContentType::Json,
        key_id: &[],
    };
    let envelope = Envelope { head, payload: PAYLOAD.as_bytes() };
    let secret: Vec<u8> = client.query_one("SELECT secret FROM certeus.batches", &[]).await.unwrap().get(0);
    let salt = BatchSecret(secret.try_into().unwrap()).salt(0);
    let entry = &envelope.entry(&salt, &mut Vec::new())[..];
    client.execute("UPDATE certeus.events SET id = $1", &[&aged]).await.unwrap();
    client.execute("UPDATE certeus.batches SET batch_id = $1, entries = $2", &[&aged, &entry]).await.unwrap();
    aged
}

#[test]
fn a_pod_moves_old_events_to_its_archive_and_reads_them_from_there() {
    let pg = postgres();
    let dir = tempfile::tempdir().unwrap();
    let plain = Pod::start(&pg.url(), &Settings::default()).ready();
    let id = plain.append(PAYLOAD).json()["first_id"].as_str().unwrap().parse().unwrap();
    let path = format!("/v1/ledger/events/{}", runtime().block_on(age(&pg.url(), id)));
    let before = plain.get(&path);
    assert_eq!((before.status, before.header("certeus-archived")), (200, None), "{before:?}");

    let yaml = format!("retention: {{events: 2d, archive: 'file://{}'}}", dir.path().display());
    let pod = Pod::start(&pg.url(), &Settings { yaml: &yaml, ..Settings::default() }).ready();
    let started = Instant::now();
    let archived = loop {
        let reply = pod.get(&path);
        if reply.header("certeus-archived").is_some() {
            break reply;
        }
        assert!(started.elapsed() < Duration::from_secs(30), "the event is not archived: {reply:?}");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!((archived.status, archived.json()), (200, before.json()));
    let list = pod.get("/v1/ledger/events").json();
    assert_eq!(list, json!({"events": [], "next_cursor": null, "archived_before": 1}));

    // Who has no access to the archive is told where it is.
    let elsewhere = plain.get(&path);
    assert_eq!(elsewhere.problem(), (410, "archived".to_owned()));
    assert!(elsewhere.text().contains(dir.path().to_str().unwrap()), "{elsewhere:?}");

    let erasure = format!("{path}/erasure");
    assert_eq!(plain.post(&erasure, &[JSON], br#"{"reason":"r"}"#).problem().0, 410);
    assert_eq!(pod.post(&erasure, &[JSON], br#"{"reason":"r"}"#).status, 200);
    assert_eq!(pod.get(&path).problem(), (410, "erased".to_owned()));
}
