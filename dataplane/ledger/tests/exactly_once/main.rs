//! Exactly once against a real PostgreSQL: requests that are sent again, at the same time, to several pods, while connections die.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::{Duration, Instant};

use certeus_ledger::{Acknowledged, AppendError, CommitError, Ledger, Receipt};
use certeus_localpg::{LocalPg, Options};
use support::{close, connect, keyed, lines, number, numbered, request, sql, start, start_spooling, stored};
use tokio::task::JoinSet;
use uuid::Uuid;

const IN_TIME: Duration = Duration::from_secs(30);

/// What must be the same in every reply.
fn places(receipt: Receipt) -> (u64, usize, Uuid) {
    (receipt.first_index, receipt.count, receipt.first_id)
}

fn refused(error: CommitError) -> AppendError {
    AppendError::Commit(error)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_stores_once_and_belongs_to_one_request() {
    let pg = LocalPg::start(&Options::default()).unwrap();
    let pods = [start(&pg).await, start(&pg).await];
    let mut expected = 0;
    // On both sides of the limit between the two commit paths.
    for (key, size) in [("a", 1), ("b", 3), ("c", 700)] {
        let first = pods[0].0.append(keyed("x", size, key)).await.unwrap();
        assert!(!first.replayed && first.first_index == expected);
        expected += size as u64;
        for (ledger, _) in &pods {
            let again = ledger.append(keyed("x", size, key)).await.unwrap();
            assert!(again.replayed);
            assert_eq!(places(again), places(first));
            let other = ledger.append(keyed("y", size, key)).await.unwrap_err();
            assert_eq!(other, refused(CommitError::KeyReused));
        }
    }
    // The same body under another key, or without one, is another request.
    for another in [keyed("x", 1, "d"), request("x", 1), request("x", 1)] {
        assert_eq!(pods[1].0.append(another).await.unwrap().first_index, expected);
        expected += 1;
    }
    assert_eq!(stored(&sql(&pg).await).await, i64::try_from(expected).unwrap());
    for pod in pods {
        close(pod).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_is_dropped_too_early_is_made_again() {
    let pg = LocalPg::start(&Options::default()).unwrap();
    let pod = start(&pg).await;
    let client = sql(&pg).await;
    for (key, size) in [("a", 1), ("b", 700)] {
        // Twice, so that each writer has a session that knows the partition.
        for number in 0..4 {
            pod.0.append(keyed("x", size, &format!("{key}{number}"))).await.unwrap();
        }
        let partitions = "SELECT oid::regclass::text FROM pg_class WHERE relispartition AND relkind = 'r' \
             AND relname LIKE 'requests_%'";
        for row in client.query(partitions, &[]).await.unwrap() {
            client.batch_execute(&format!("DROP TABLE {}", row.get::<_, &str>(0))).await.unwrap();
        }
        pod.0.append(keyed("x", size, key)).await.unwrap();
    }
    close(pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_request_at_the_same_time_on_two_pods_gets_one_receipt() {
    let pg = LocalPg::start(&Options::default()).unwrap();
    let pods = [start(&pg).await, start(&pg).await];
    let mut appends = JoinSet::new();
    for n in 0..120_usize {
        for (ledger, _) in [&pods[0], &pods[1], &pods[n % 2]] {
            let ledger = ledger.clone();
            // Others must not suffer from what is sent twice.
            let size = if n % 20 == 0 { 600 } else { 1 + n % 3 };
            appends.spawn(async move {
                ledger.append(request("anonymous", 1)).await.unwrap();
                let sent = keyed(&n.to_string(), size, &format!("key-{n}"));
                (n, ledger.append(sent).await.unwrap())
            });
        }
    }
    let mut receipts: Vec<(usize, Receipt)> = appends.join_all().await;
    receipts.sort_by_key(|(n, receipt)| (*n, receipt.replayed));
    let mut expected = 360;
    for replies in receipts.chunks(3) {
        assert!(
            replies.iter().all(|(n, receipt)| (*n, places(*receipt)) == (replies[0].0, places(replies[0].1)))
        );
        assert_eq!(
            replies.iter().map(|(_, receipt)| receipt.replayed).collect::<Vec<_>>(),
            [false, true, true]
        );
        expected += replies[0].1.count;
    }
    assert_eq!(stored(&sql(&pg).await).await, i64::try_from(expected).unwrap());
    for pod in pods {
        close(pod).await;
    }
}

/// Waits until so many events wait in a ledger's queue.
async fn until_queued(ledger: &Ledger, events: usize) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while ledger.depth().events < events {
        assert!(tokio::time::Instant::now() < deadline, "{:?}", ledger.depth());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn twice_in_one_batch_counts_once_and_hurts_no_other() {
    let pg = LocalPg::start(&Options::default()).unwrap();
    let (ledger, tasks) = start(&pg).await;
    let blocker = sql(&pg).await;
    // Two batches wait for the head, so that what comes after them gathers in one.
    blocker.batch_execute("BEGIN; SELECT * FROM certeus.heads FOR UPDATE").await.unwrap();
    let mut busy = JoinSet::new();
    for _ in 0..2 {
        let ledger = ledger.clone();
        busy.spawn(async move { ledger.append(request("busy", 600)).await });
    }
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while ledger.depth().in_flight_events < 1200 {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let mut appends = JoinSet::new();
    let requests = [
        keyed("x", 1, "k"),
        request("anonymous", 1),
        keyed("x", 1, "k"),
        keyed("y", 1, "k"),
        numbered("p", 0, 0, 2),
        numbered("p", 0, 2, 1),
        numbered("p", 0, 0, 2),
        numbered("p", 0, 5, 1),
    ];
    for (at, request) in requests.into_iter().enumerate() {
        let waiting = ledger.depth().events + request.len();
        let for_task = ledger.clone();
        appends.spawn(async move { (at, for_task.append(request).await) });
        until_queued(&ledger, waiting).await;
    }
    blocker.batch_execute("COMMIT").await.unwrap();
    assert!(busy.join_all().await.iter().all(Result::is_ok));
    let mut replies = appends.join_all().await;
    replies.sort_by_key(|(at, _)| *at);
    let replies: Vec<_> = replies.into_iter().map(|(_, reply)| reply).collect();
    let (first, repeat) = (replies[0].unwrap(), replies[2].unwrap());
    assert!(!first.replayed && repeat.replayed);
    assert_eq!(places(first), places(repeat));
    assert_eq!(replies[1].unwrap().first_index, first.first_index + 1);
    assert_eq!(replies[3], Err(refused(CommitError::KeyReused)));
    assert_eq!(replies[5].unwrap().first_index, replies[4].unwrap().first_index + 2);
    assert_eq!(places(replies[6].unwrap()), places(replies[4].unwrap()));
    assert_eq!(replies[7], Err(refused(CommitError::SequenceGap { expected: 3 })));
    assert_eq!(stored(&sql(&pg).await).await, 1200 + 5);
    close((ledger, tasks)).await;
}

/// Backends are killed at random moments, also in COMMIT. Clients send again until they have a receipt, on either pod.
#[tokio::test(flavor = "multi_thread")]
async fn repeats_through_killed_connections_store_each_request_once() {
    let pg = LocalPg::start(&Options::default()).unwrap();
    let pods = [start(&pg).await, start(&pg).await];
    let client = sql(&pg).await;
    let mut workers = JoinSet::new();
    for worker in 0..8_usize {
        let ledgers = [pods[0].0.clone(), pods[1].0.clone()];
        workers.spawn(async move {
            let (mut events, mut next) = (0, 0);
            for n in 0..40 {
                let size = if n % 3 == 0 { 600 } else { 5 };
                let sent = || match worker % 2 {
                    0 => keyed("x", size, &format!("{worker}-{n}")),
                    _ => numbered(&format!("p{worker}"), 0, next, size),
                };
                let mut tries = n;
                loop {
                    match ledgers[tries % 2].append(sent()).await {
                        Ok(receipt) => {
                            assert_eq!(receipt.count, size);
                            break;
                        }
                        Err(AppendError::Unavailable) => tokio::time::sleep(Duration::from_millis(5)).await,
                        Err(AppendError::Commit(CommitError::Unavailable | CommitError::OutcomeUnknown)) => {}
                        Err(error) => panic!("{error}"),
                    }
                    tries += 1;
                }
                // Sent once more, as by a client that lost the reply.
                if let Ok(receipt) = ledgers[(tries + 1) % 2].append(sent()).await {
                    assert!(receipt.replayed);
                }
                events += size;
                next += size as u64;
            }
            events
        });
    }
    let kill = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                WHERE application_name = 'certeus-dataplane' AND state <> 'idle'";
    let (mut killed, mut events) = (0, 0);
    while !workers.is_empty() {
        if killed < 150 {
            killed += number(&client, kill).await;
        }
        // A pause, unless a worker ends in it.
        if let Ok(Some(ended)) = tokio::time::timeout(Duration::from_millis(15), workers.join_next()).await {
            events += ended.unwrap();
        }
    }
    assert!(killed > 0, "no connection was killed in mid-commit");
    assert_eq!(stored(&client).await, i64::try_from(events).unwrap());
    for pod in pods {
        close(pod).await;
    }
}

/// The database goes away while commits wait for the head's row: they were sent, and nobody knows what became of them.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_doubt_is_spooled_at_once_if_its_replay_is_known_again() {
    let pg = LocalPg::start(&Options::default()).unwrap();
    let spool = tempfile::tempdir().unwrap();
    let pod = start_spooling(&pg, spool.path()).await;
    // A database that lets nobody in: from another one, since this one would not let us in, either.
    let (admin, mut holder) = (connect(&pg.database_url("template1")).await, sql(&pg).await);
    pod.0.append(request("first", 1)).await.unwrap();
    let head = holder.transaction().await.unwrap();
    head.batch_execute("SELECT FROM certeus.heads FOR UPDATE").await.unwrap();
    // One for each writer, by way of each of the two commit paths.
    let sent = [keyed("x", 3, "k"), numbered("p", 0, 0, 600)].map(|request| {
        let ledger = pod.0.clone();
        tokio::spawn(async move { ledger.submit(request, b"").await })
    });
    let waiting = "SELECT count(*) FROM pg_stat_activity \
                   WHERE application_name = 'certeus-dataplane' AND wait_event_type = 'Lock'";
    let both_wait = async { while number(&admin, waiting).await < 2 {} };
    tokio::time::timeout(IN_TIME, both_wait).await.expect("two commits wait");
    let began = Instant::now();
    admin.batch_execute("ALTER DATABASE postgres ALLOW_CONNECTIONS false").await.unwrap();
    let kill = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'certeus-dataplane'";
    assert!(number(&admin, kill).await >= 2);
    for sent in sent {
        let acknowledged = sent.await.unwrap().unwrap();
        assert!(matches!(acknowledged, Acknowledged::Spooled { .. }), "{acknowledged:?}");
    }
    // A commit in doubt is given five seconds at least.
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());

    admin.batch_execute("ALTER DATABASE postgres ALLOW_CONNECTIONS true").await.unwrap();
    head.commit().await.unwrap();
    let replayed = async {
        while pod.0.spool_status().unwrap().known_records() != Some(0) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(IN_TIME, replayed).await.expect("the spool is replayed");
    assert!(pod.0.append(keyed("x", 3, "k")).await.unwrap().replayed);
    assert_eq!(stored(&holder).await, 1 + 3 + 600);
    close(pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_on_two_pods_stays_in_sequence() {
    let pg = LocalPg::start(&Options::default()).unwrap();
    let pods = [start(&pg).await, start(&pg).await];
    let mut next = 0;
    let mut first_id = None;
    for n in 0..60_usize {
        let size = if n % 10 == 0 { 600 } else { 1 + n % 4 };
        // Each request goes to both pods at once, together with the one after it, which may come too early.
        let (here, there) = (&pods[n % 2].0, &pods[(n + 1) % 2].0);
        let after = next + size as u64;
        let (one, two, early) = tokio::join!(
            here.append(numbered("p", 0, next, size)),
            there.append(numbered("p", 0, next, size)),
            there.append(numbered("p", 0, after + 1, 1)),
        );
        let (one, two) = (one.unwrap(), two.unwrap());
        assert_eq!(places(one), places(two));
        assert!(one.replayed != two.replayed);
        let AppendError::Commit(CommitError::SequenceGap { expected }) = early.unwrap_err() else {
            panic!("an event whose forerunner is missing was taken");
        };
        assert!(expected == next || expected == after);
        first_id.get_or_insert(one.first_id);
        next = after;
    }
    let (ledger, _) = &pods[0];
    let overlap = ledger.append(numbered("p", 0, next - 1, 2)).await.unwrap_err();
    assert_eq!(overlap, refused(CommitError::SequenceOverlap { expected: next }));

    // A newer life begins with 0 and fences the older one, on every pod.
    let late = ledger.append(numbered("p", 1, 3, 1)).await.unwrap_err();
    assert_eq!(late, refused(CommitError::SequenceGap { expected: 0 }));
    assert!(pods[1].0.append(numbered("p", 1, 0, 3)).await.is_ok());
    for first in [next, 0] {
        let fenced = ledger.append(numbered("p", 0, first, 1)).await.unwrap_err();
        assert_eq!(fenced, refused(CommitError::ProducerFenced { epoch: 1 }));
    }
    // What is not remembered any more is still known to be stored.
    let client = sql(&pg).await;
    client.batch_execute("TRUNCATE certeus.requests").await.unwrap();
    let duplicate = ledger.append(numbered("p", 1, 0, 3)).await.unwrap_err();
    assert_eq!(duplicate, refused(CommitError::Duplicate));
    assert_eq!(stored(&client).await, i64::try_from(next + 3).unwrap());
    // The envelope holds producer and sequence: reading rebuilds and checks it.
    let first = first_id.unwrap();
    assert!(ledger.event(first).await.unwrap().is_some());
    let alter = "UPDATE certeus.batches SET producers = set_byte(producers, 19, 1) WHERE batch_id = $1";
    assert_eq!(client.execute(alter, &[&first]).await.unwrap(), 1);
    assert!(ledger.event(first).await.is_err(), "an altered sequence number went unnoticed");
    for pod in pods {
        close(pod).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_events_of_a_case_are_listed_in_log_order() {
    let pg = LocalPg::start(&Options::default()).unwrap();
    let pods = [start(&pg).await, start(&pg).await];
    let event = |case: &str, n: usize| {
        format!("{{\"type\":\"a\",\"timestamp\":{},{case}\"n\":{n}}}\n", 1_769_860_800 + n)
    };
    let mut expected = Vec::new();
    for n in 0..20_usize {
        let size = if n % 7 == 6 { 600 } else { 3 };
        let case = |at: usize| match at % 3 {
            0 => "\"case_id\":\"left\",",
            1 => "",
            _ => "\"case_id\":\"right\",",
        };
        let body = (0..size).map(|at| event(case(at), at)).collect();
        let receipt = pods[n % 2].0.append(lines(body)).await.unwrap();
        let id = |at: usize| Uuid::from_u128(receipt.first_id.as_u128() + at as u128);
        expected.extend((0..size).step_by(3).map(|at| (receipt.first_index + at as u64, id(at))));
    }
    let (ledger, _) = &pods[0];
    let (mut found, mut next) = (Vec::new(), Some(0));
    while let Some(first_index) = next {
        let page = ledger.case_events("left", first_index, 100).await.unwrap();
        assert!(page.events.len() <= 100);
        found.extend(page.events.iter().map(|event| (event.index, event.id)));
        next = page.next_index;
    }
    assert_eq!(found, expected);
    let all = ledger.case_events("left", expected[3].0, 10_000).await.unwrap();
    assert_eq!((all.events.len(), all.next_index), (expected.len() - 3, None));
    for case in ["lef", "left ", ""] {
        assert!(ledger.case_events(case, 0, 10).await.unwrap().events.is_empty());
    }
    let client = sql(&pg).await;
    let plan: Vec<String> = client
        .query("EXPLAIN SELECT index, id FROM certeus.cases WHERE ledger = 'default' AND case_id = 'left' AND index >= 100 ORDER BY index LIMIT 10", &[])
        .await
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert!(!plan.iter().any(|line| line.contains("Sort")), "{plan:?}");
    for pod in pods {
        close(pod).await;
    }
}
