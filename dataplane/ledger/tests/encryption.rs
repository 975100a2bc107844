//! Field encryption against a real PostgreSQL: what is stored, what is read, and what a repeated commit sends.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use certeus_ledger::envelope::Envelope;
use certeus_ledger::field::{Decrypted, Encryption, Fields, Keyring};
use certeus_ledger::request::{IdempotencyKey, Identity};
use certeus_ledger::submission::{Format, Limits, OnBadEvent, Submission};
use certeus_ledger::{
    AppendError, Class, CommitError, Config, Content, Filter, Ledger, LogConfig, Reason, StoredEvent,
};
use certeus_localpg::{LocalPg, Options};
use certeus_tlog::leaf_hash;
use certeus_tlog::note::{Algorithm, SignerKey};
use support::{close, id_after, sql, start};
use tokio_postgres::Client;
use uuid::Uuid;

const ONE: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
const TWO: &str = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";

/// A ledger with these keys; without any, one that knows nothing of encryption.
fn config(url: &str, keys: &str, fields: &[&str]) -> Config {
    let encryption = (!keys.is_empty()).then(|| {
        Arc::new(Encryption { fields: Fields::new(fields).unwrap(), keyring: Keyring::parse(keys).unwrap() })
    });
    Config { encryption, ..support::config(url) }
}

fn payload(n: usize) -> String {
    format!(
        r#"{{"type":"paid","timestamp":{}, "card":{{"number":"4111-{n}-HIDDEN"}},"n":{n}}}"#,
        1_769_860_800 + n
    )
}

fn request(ledger: &Ledger, from: usize, count: usize) -> Submission {
    let body: Vec<String> = (from..from + count).map(payload).collect();
    let limits = Limits {
        request_events_max: 100_000,
        event_bytes_max: 1 << 20,
        encrypted_fields: ledger.encrypted_fields(),
    };
    let parsed =
        Submission::parse(Bytes::from(body.join("\n")), Format::Ndjson, &limits, OnBadEvent::RefuseAll);
    parsed.unwrap().submission.unwrap()
}

fn identified(submission: Submission, key: &str) -> Submission {
    submission.identified(Identity::Key(IdempotencyKey::new(key).unwrap()), &[]).unwrap()
}

async fn read(ledger: &Ledger, first_id: Uuid, position: usize) -> StoredEvent {
    ledger.event(id_after(first_id, position as u128)).await.unwrap().unwrap()
}

fn decrypt(ledger: &Ledger, event: &StoredEvent) -> Decrypted {
    ledger.decryptor().decrypt(event.id, &event.key_id.unwrap(), event.payload().unwrap()).unwrap()
}

/// How many of the events in the database show what is to be hidden.
async fn showing(client: &Client) -> i64 {
    let search = "SELECT count(*) FROM certeus.events WHERE position('HIDDEN'::bytea IN payload) > 0";
    client.query_one(search, &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_hidden_is_stored_and_all_of_it_is_read_back() {
    let pg = LocalPg::start(&Options::default()).unwrap();
    let (ledger, tasks) = start(config(&pg.url(), ONE, &["/card/number"])).await;
    // One statement, one statement with a claim, a COPY, a COPY with a claim.
    let mut next = 0;
    for (count, key) in [(3, None), (2, Some("a")), (1200, None), (700, Some("b"))] {
        let mut submission = request(&ledger, next, count);
        if let Some(key) = key {
            submission =
                submission.identified(Identity::Key(IdempotencyKey::new(key).unwrap()), &[]).unwrap();
        }
        let receipt = ledger.append(submission).await.unwrap();
        for position in [0, count / 2, count - 1] {
            let event = read(&ledger, receipt.first_id, position).await;
            assert!(!String::from_utf8_lossy(event.payload().unwrap()).contains("HIDDEN"));
            assert!(
                String::from_utf8_lossy(event.payload().unwrap())
                    .contains(r#", "card":{"number":"certeus:enc:v1:"#)
            );
            assert_eq!(decrypt(&ledger, &event), Decrypted::Payload(payload(next + position).into_bytes()));
        }
        next += count;
    }
    let page = ledger.events(&Filter { limit: 5000, ..Filter::default() }).await.unwrap();
    let mut decryptor = ledger.decryptor();
    for (n, event) in page.events.iter().enumerate() {
        let opened = decryptor.decrypt(event.id, &event.key_id.unwrap(), event.payload().unwrap());
        assert_eq!(opened, Ok(Decrypted::Payload(payload(n).into_bytes())));
    }
    assert_eq!(page.events.len(), next);
    let client = sql(&pg.url()).await;
    assert_eq!(showing(&client).await, 0);
    let keys = "SELECT count(*), count(DISTINCT key_id), min(octet_length(key_id)) FROM certeus.batches";
    let row = client.query_one(keys, &[]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1), row.get::<_, i32>(2)), (4, 4, 56));
    close(&ledger, tasks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_and_members_change_and_what_is_stored_stays_readable() {
    let pg = LocalPg::start(&Options::default()).unwrap();
    let mut stored = Vec::new();
    let stages: [(&str, &[&str]); 4] = [
        ("", &[]),
        (ONE, &["/card/number"]),
        (&format!("{TWO},{ONE}"), &["/card"]),
        (&format!("{TWO},{ONE}"), &[]),
    ];
    for (n, (keys, fields)) in stages.into_iter().enumerate() {
        let (ledger, tasks) = start(config(&pg.url(), keys, fields)).await;
        stored.push(ledger.append(request(&ledger, n, 1)).await.unwrap().first_id);
        // All that this stage has keys for.
        for (earlier, id) in stored.iter().enumerate() {
            let event = read(&ledger, *id, 0).await;
            match event.key_id {
                None => {
                    assert!(earlier == 0 || earlier == 3);
                    assert_eq!(event.payload().unwrap(), payload(earlier).as_bytes());
                }
                Some(_) => {
                    assert_eq!(decrypt(&ledger, &event), Decrypted::Payload(payload(earlier).into_bytes()));
                }
            }
        }
        close(&ledger, tasks).await;
    }
    assert_eq!(showing(&sql(&pg.url()).await).await, 2);
    // The old key is gone: the field stays as stored, and the reader learns which key it needs.
    let (ledger, tasks) = start(config(&pg.url(), TWO, &[])).await;
    let old = read(&ledger, stored[1], 0).await;
    assert_eq!(
        decrypt(&ledger, &old),
        Decrypted::MissingKey(Keyring::parse(ONE).unwrap().ids().next().unwrap())
    );
    let new = read(&ledger, stored[2], 0).await;
    assert_eq!(decrypt(&ledger, &new), Decrypted::Payload(payload(2).into_bytes()));
    close(&ledger, tasks).await;
}

/// The first attempt is ended by the server after it has seen a row, as in a shutdown, so that its outcome is in doubt. A
/// sequence keeps what it saw: its state does not roll back.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_is_repeated_in_doubt_sends_the_same_ciphertext() {
    for count in [2, 900] {
        let pg = LocalPg::start(&Options::default()).unwrap();
        let (ledger, tasks) = start(config(&pg.url(), ONE, &["/card/number"])).await;
        let client = sql(&pg.url()).await;
        let watch = "CREATE SEQUENCE certeus.attempts; CREATE SEQUENCE certeus.seen MINVALUE 0; \
             CREATE FUNCTION certeus.digest(payload bytea) RETURNS bigint LANGUAGE sql \
             RETURN hashtextextended(encode(payload, 'hex'), 0) & 9223372036854775807; \
             CREATE FUNCTION certeus.watch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             IF nextval('certeus.attempts') = 1 THEN PERFORM setval('certeus.seen', certeus.digest(NEW.payload)); \
             RAISE EXCEPTION 'terminating' USING ERRCODE = '57P01'; END IF; RETURN NEW; END $$; \
             CREATE TRIGGER watch BEFORE INSERT ON certeus.events FOR EACH ROW EXECUTE FUNCTION certeus.watch()";
        client.batch_execute(watch).await.unwrap();
        let receipt = ledger.append(request(&ledger, 0, count)).await.unwrap();
        let same = "SELECT certeus.digest(payload) = (SELECT last_value FROM certeus.seen), \
                    (SELECT last_value FROM certeus.attempts) \
                    FROM certeus.events WHERE id = $1";
        let row = client.query_one(same, &[&receipt.first_id]).await.unwrap();
        assert!(row.get::<_, bool>(0), "the repeat sent other bytes");
        assert_eq!(row.get::<_, i64>(1), 1 + i64::try_from(count).unwrap());
        let event = read(&ledger, receipt.first_id, 0).await;
        assert_eq!(decrypt(&ledger, &event), Decrypted::Payload(payload(0).into_bytes()));
        close(&ledger, tasks).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_altered_key_id_is_noticed() {
    let pg = LocalPg::start(&Options::default()).unwrap();
    let (ledger, tasks) = start(config(&pg.url(), ONE, &["/card/number"])).await;
    let receipt = ledger.append(request(&ledger, 0, 1)).await.unwrap();
    let client = sql(&pg.url()).await;
    let last_byte = "set_byte(key_id, 55, get_byte(key_id, 55) # 1)";
    for altered in [last_byte, "NULL"] {
        client.execute(&format!("UPDATE certeus.batches SET key_id = {altered}"), &[]).await.unwrap();
        // The log entry covers it.
        assert_eq!(ledger.event(receipt.first_id).await.unwrap_err().class(), Class::Corrupt);
        let page = ledger.events(&Filter { limit: 1, ..Filter::default() }).await;
        assert_eq!(page.unwrap_err().class(), Class::Corrupt);
    }
    close(&ledger, tasks).await;
}

/// What the ledger writes itself it must be able to read without a key, whatever members are configured.
#[tokio::test(flavor = "multi_thread")]
async fn an_erasure_is_on_record_in_plain_text() {
    let pg = LocalPg::start(&Options::default()).unwrap();
    let (ledger, tasks) = start(config(&pg.url(), ONE, &["/card", "/reason", "/event_id", "/n"])).await;
    let first = ledger.append(request(&ledger, 0, 2)).await.unwrap().first_id;
    ledger.append(support::request(0, 1)).await.unwrap();
    let erasure = ledger.erase(first, Reason::new("ticket 1".to_owned()).unwrap()).await.unwrap();
    let audit = read(&ledger, erasure.audit_event_id, 0).await;
    assert!(String::from_utf8_lossy(audit.payload().unwrap()).contains("ticket 1"));
    assert_eq!(read(&ledger, first, 0).await.content, Content::Erased(erasure));
    let other = read(&ledger, first, 1).await;
    assert_eq!(decrypt(&ledger, &other), Decrypted::Payload(payload(1).into_bytes()));
    close(&ledger, tasks).await;
}

/// A plain digest of a request would let whoever reads the database test guesses of what is encrypted.
#[tokio::test(flavor = "multi_thread")]
async fn digests_of_requests_are_keyed_and_recognised_after_a_rotation() {
    let pg = LocalPg::start(&Options::default()).unwrap();
    let both = format!("{TWO},{ONE}");
    let mut first_ids = Vec::new();
    // The same body under one key each, at first without encryption.
    for (keys, name) in [("", "plain"), (ONE, "one"), (&both, "two")] {
        let (ledger, tasks) = start(config(&pg.url(), keys, &["/card"])).await;
        let receipt = ledger.append(identified(request(&ledger, 0, 1), name)).await.unwrap();
        assert!(!receipt.replayed);
        first_ids.push(receipt.first_id);
        for (earlier, id) in ["plain", "one", "two"].into_iter().zip(&first_ids) {
            let again = ledger.append(identified(request(&ledger, 0, 1), earlier)).await.unwrap();
            assert_eq!((again.replayed, again.first_id), (true, *id), "{earlier} with {name}");
            let other = ledger.append(identified(request(&ledger, 1, 1), earlier)).await;
            assert_eq!(other, Err(AppendError::Commit(CommitError::KeyReused)), "{earlier} with {name}");
        }
        close(&ledger, tasks).await;
    }
    let digests = "SELECT count(DISTINCT body) FROM certeus.requests";
    assert_eq!(sql(&pg.url()).await.query_one(digests, &[]).await.unwrap().get::<_, i64>(0), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proof_covers_the_stored_bytes_and_names_the_key() {
    let wait = Duration::from_secs(60);
    let pg = LocalPg::start(&Options::default()).unwrap();
    let signer = SignerKey::from_seed("log.example/default", Algorithm::Ed25519, [1; 32]).unwrap();
    let log = LogConfig {
        keys: Arc::new(signer.to_secret_text().parse().unwrap()),
        anchor: None,
        anchor_shared: true,
        checkpoint_interval: Duration::from_millis(100),
    };
    let (ledger, tasks) = start(Config { log: Some(log), ..config(&pg.url(), ONE, &["/card/number"]) }).await;
    let first = ledger.append(request(&ledger, 0, 2)).await.unwrap().first_id;
    // A sealer that has only just begun may answer that it cannot prove yet.
    let started = Instant::now();
    let found = loop {
        match ledger.event_proof(id_after(first, 1), Some(wait)).await {
            Ok(found) => break found.unwrap(),
            Err(error) => assert!(started.elapsed() < wait, "{error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let stored = found.event.payload().unwrap();
    assert!(!String::from_utf8_lossy(stored).contains("HIDDEN"));
    let (salt, head) = found.proof.extra[1..].split_first_chunk::<32>().unwrap();
    let (head, payload_len) = Envelope::read_head(head).unwrap();
    assert_eq!((head.key_id, payload_len), (&found.event.key_id.unwrap().to_bytes()[..], stored.len()));
    let verify = |payload: &[u8]| {
        let entry = Envelope { head, payload }.entry(salt, &mut Vec::new());
        found.proof.verify(&leaf_hash(&entry), "log.example/default", &[signer.verifier().clone()]).is_ok()
    };
    assert!(verify(stored));
    assert!(!verify(payload(1).as_bytes()), "what is decrypted is not what is proven");
    close(&ledger, tasks).await;
}
