//! Erasure against a real PostgreSQL: what is erased is gone, what is not is untouched, and both are on record.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use certeus_ledger::envelope::{BatchSecret, ContentType, Envelope, EnvelopeHead};
use certeus_ledger::{Class, Content, EraseError, Filter, Reason};
use certeus_localpg::{LocalPg, Options};
use support::{close, config, id_after, request, sql, start, submission};
use uuid::Uuid;

fn reason(text: &str) -> Reason {
    Reason::new(text.to_owned()).unwrap()
}

fn everything() -> Filter {
    Filter { limit: 10_000, ..Filter::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erased_event_keeps_its_entry_and_loses_payload_and_salt() {
    let pg = LocalPg::start(&Options::default()).unwrap();
    let (ledger, tasks) = start(config(&pg.url())).await;
    let first = ledger.append(request(0, 4)).await.unwrap().first_id;
    let (erased, other) = (id_after(first, 1), id_after(first, 2));
    let (before, untouched) = (ledger.event(erased).await.unwrap(), ledger.event(other).await.unwrap());
    let before = before.unwrap();
    let client = sql(&pg.url()).await;
    let secret: Vec<u8> = client.query_one("SELECT secret FROM certeus.batches", &[]).await.unwrap().get(0);

    let erasure = ledger.erase(erased, reason("ticket \"1\"")).await.unwrap();
    assert_eq!((erasure.event_id, erasure.index, &erasure.reason[..]), (erased, 1, "ticket \"1\""));
    // A repeat gives the first answer and writes nothing, whatever its reason.
    assert_eq!(ledger.erase(erased, reason("another")).await.unwrap(), erasure);
    assert_eq!(ledger.append(request(4, 1)).await.unwrap().first_index, 5);

    let after = ledger.event(erased).await.unwrap().unwrap();
    assert_eq!(after.content, Content::Erased(erasure.clone()));
    assert_eq!(
        (after.index, &after.kind, after.time, after.entry),
        (1, &before.kind, before.time, before.entry)
    );
    assert_eq!(ledger.event(other).await.unwrap(), untouched);
    // The last of the batch is read through the salts that were written down.
    assert!(ledger.event(id_after(first, 3)).await.unwrap().unwrap().payload().is_some());
    let audit = ledger.event(erasure.audit_event_id).await.unwrap().unwrap();
    assert_eq!((audit.index, &audit.kind[..]), (4, "certeus.erasure"));
    let text = std::str::from_utf8(audit.payload().unwrap()).unwrap();
    let expected = format!(r#""event_id":"{erased}","index":1,"reason":"ticket \"1\""}}"#);
    assert!(text.ends_with(&expected), "{text}");

    let listed = ledger.events(&everything()).await.unwrap().events;
    assert_eq!(listed.len(), 6);
    assert_eq!(listed[1], after);

    // Nothing that is left can confirm a guess of the payload.
    let row = client.query_one("SELECT secret, salts FROM certeus.batches WHERE first_index = 0", &[]);
    let row = row.await.unwrap();
    let salts: Vec<u8> = row.get(1);
    assert_eq!(row.get::<_, Option<Vec<u8>>>(0), None);
    let old = BatchSecret(secret.try_into().unwrap());
    for position in [0, 2, 3] {
        assert_eq!(salts[position * 32..][..32], old.salt(u32::try_from(position).unwrap()));
    }
    assert_eq!(salts[32..64], [0; 32]);
    let payload = before.payload().unwrap();
    let head = EnvelopeHead {
        ledger: "default",
        id: erased,
        kind: &before.kind,
        time: before.time,
        producer: None,
        content_type: ContentType::Json,
        key_id: &[],
    };
    let guess = Envelope { head, payload };
    let salts = salts.chunks(32).map(|salt| <[u8; 32]>::try_from(salt).unwrap());
    assert!(salts.into_iter().all(|salt| guess.entry(&salt, &mut Vec::new()) != before.entry));
    // A second one in the same batch.
    ledger.erase(other, reason("x")).await.unwrap();
    assert!(ledger.event(first).await.unwrap().unwrap().payload().is_some());
    assert_eq!(ledger.events(&everything()).await.unwrap().events.len(), 7);
    close(&ledger, tasks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erased_event_leaves_its_case() {
    let pg = LocalPg::start(&Options::default()).unwrap();
    let (ledger, tasks) = start(config(&pg.url())).await;
    let line = "{\"type\":\"a\",\"timestamp\":5,\"case_id\":\"Jane \\u0044oe\"}\n";
    let first = ledger.append(submission(line.repeat(2))).await.unwrap().first_id;
    assert_eq!(ledger.case_events("Jane Doe", 0, 10).await.unwrap().events.len(), 2);
    ledger.erase(first, reason("asked for")).await.unwrap();
    let left = ledger.case_events("Jane Doe", 0, 10).await.unwrap().events;
    assert_eq!(left.iter().map(|event| event.index).collect::<Vec<_>>(), [1]);
    close(&ledger, tasks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_requests_at_once_erase_once() {
    let pg = LocalPg::start(&Options::default()).unwrap();
    let (ledger, tasks) = start(config(&pg.url())).await;
    // Another pod, so that the database has to keep them apart.
    let (second, second_tasks) = start(config(&pg.url())).await;
    let first = ledger.append(request(0, 2)).await.unwrap().first_id;
    let mut requests = tokio::task::JoinSet::new();
    for n in 0..8 {
        let ledger = if n % 2 == 0 { ledger.clone() } else { second.clone() };
        requests.spawn(async move { ledger.erase(first, reason(&format!("request {n}"))).await.unwrap() });
    }
    let answers = requests.join_all().await;
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    // Two events and one audit event.
    assert_eq!(ledger.events(&everything()).await.unwrap().events.len(), 3);
    close(&ledger, tasks).await;
    close(&second, second_tasks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_not_be_erased_is_not() {
    let pg = LocalPg::start(&Options::default()).unwrap();
    let (ledger, tasks) = start(config(&pg.url())).await;
    let first = ledger.append(request(0, 3)).await.unwrap().first_id;
    let erasure = ledger.erase(first, reason("x")).await.unwrap();
    let audit = ledger.erase(erasure.audit_event_id, reason("x")).await.unwrap_err();
    assert!(matches!(audit, EraseError::Audit(_)), "{audit}");
    let unknown = ledger.erase(Uuid::nil(), reason("x")).await.unwrap_err();
    assert!(matches!(unknown, EraseError::NotFound(_)), "{unknown}");
    // Altered bytes are evidence.
    let client = sql(&pg.url()).await;
    let altered = id_after(first, 1);
    client.execute("UPDATE certeus.events SET type = 'other' WHERE id = $1", &[&altered]).await.unwrap();
    assert_eq!(ledger.erase(altered, reason("x")).await.unwrap_err().class(), Class::Corrupt);
    // Three events and one audit event: the refused left no trace.
    let events: i64 = client.query_one("SELECT count(*) FROM certeus.events", &[]).await.unwrap().get(0);
    assert_eq!(events, 4);
    close(&ledger, tasks).await;
}

/// Who can write to the database can destroy a payload, but not pass it off as an erasure.
#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_that_the_ledger_does_not_record_is_noticed() {
    let pg = LocalPg::start(&Options::default()).unwrap();
    let (ledger, tasks) = start(config(&pg.url())).await;
    let first = ledger.append(request(0, 3)).await.unwrap().first_id;
    let (erased, deleted) = (first, id_after(first, 1));
    let erasure = ledger.erase(erased, reason("a good reason")).await.unwrap();
    let client = sql(&pg.url()).await;

    // The payload is gone and the salt is not.
    client.execute("UPDATE certeus.events SET payload = '' WHERE id = $1", &[&deleted]).await.unwrap();
    assert_eq!(ledger.event(deleted).await.unwrap_err().class(), Class::Corrupt);
    // Neither is there a salt.
    let zero = "UPDATE certeus.batches SET salts = overlay(salts PLACING decode(repeat('00', 32), 'hex') FROM 33) \
                WHERE first_index = 0";
    assert_eq!(client.execute(zero, &[]).await.unwrap(), 1);
    assert_eq!(ledger.event(deleted).await.unwrap_err().class(), Class::Corrupt);
    // A forged record points to an audit event of another one.
    let forge = "INSERT INTO certeus.erasures SELECT $1, ledger, 1, reason, erased_at, audit_event_id, audit_index \
                 FROM certeus.erasures";
    assert_eq!(client.execute(forge, &[&deleted]).await.unwrap(), 1);
    assert_eq!(ledger.event(deleted).await.unwrap_err().class(), Class::Corrupt);
    // The true one cannot be given another reason.
    assert_eq!(ledger.event(erased).await.unwrap().unwrap().content, Content::Erased(erasure));
    client.execute("UPDATE certeus.erasures SET reason = 'none'", &[]).await.unwrap();
    assert_eq!(ledger.event(erased).await.unwrap_err().class(), Class::Corrupt);
    close(&ledger, tasks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_ends_before_an_altered_event_and_the_next_one_names_it() {
    let pg = LocalPg::start(&Options::default()).unwrap();
    let (ledger, tasks) = start(config(&pg.url())).await;
    let first = ledger.append(request(0, 3)).await.unwrap().first_id;
    let second = ledger.append(request(3, 700)).await.unwrap().first_id;
    let client = sql(&pg.url()).await;
    let altered = id_after(second, 97);
    let alter = "UPDATE certeus.events SET event_time = event_time + interval '1 us' WHERE id = $1";
    assert_eq!(client.execute(alter, &[&altered]).await.unwrap(), 1);
    let page = ledger.events(&everything()).await.unwrap();
    assert_eq!((page.events.len(), page.next_index), (100, Some(100)));
    let error = ledger.events(&Filter { first_index: 100, ..everything() }).await.unwrap_err();
    assert!(error.to_string().contains(&altered.to_string()), "{error}");
    let rest = ledger.events(&Filter { first_index: 101, ..everything() }).await.unwrap();
    assert_eq!((rest.events.len(), rest.next_index), (602, None));
    // Filters leave gaps within a batch.
    let some = Filter { kind: Some("t1".to_owned()), first_index: 101, ..everything() };
    assert_eq!(ledger.events(&some).await.unwrap().events.len(), 200);
    assert!(ledger.event(first).await.unwrap().is_some());
    close(&ledger, tasks).await;
}
