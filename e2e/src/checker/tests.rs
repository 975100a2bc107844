//! The checker is worth what it finds: each way of losing, doubling, changing or moving events must be seen.

use super::*;
use crate::journal::Receipt;
use crate::snapshot::Row;

const BATCH: u128 = 0x019c_1126_6400_7abc_8def_0123_4560_0000;

fn batch(first_index: i64, id: u128, numbers: &[u64]) -> (Batch, Vec<Row>) {
    let secret = vec![7; 32];
    let rows: Vec<Row> = (0..)
        .zip(numbers)
        .map(|(position, number)| {
            let event = Event(*number);
            Row {
                id: id + position,
                time: event.time(),
                kind: event.kind().to_owned(),
                payload: event.json().into_bytes(),
            }
        })
        .collect();
    let entries = (0..).zip(&rows).flat_map(|(position, row)| entry(row, &secret, position)).collect();
    let batch = Batch {
        first_index,
        event_count: i32::try_from(numbers.len()).unwrap(),
        id,
        min_time: rows.iter().map(|row| row.time).min().unwrap(),
        max_time: rows.iter().map(|row| row.time).max().unwrap(),
        secret: Some(secret),
        salts: None,
        producers: None,
        entries,
    };
    (batch, rows)
}

fn entry(row: &Row, secret: &[u8], position: u32) -> [u8; 32] {
    let Row { id, time, kind, payload } = row;
    let envelope = Envelope { ledger: "default", id: *id, kind, time: *time, sequence: None, payload };
    envelope.entry(&crate::envelope::salt(secret, position))
}

fn acknowledged(first_number: u64, count: u64, first_index: u64, first_id: u128, times: [u64; 2]) -> Entry {
    let hex = format!("{first_id:032x}");
    let first_id = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-");
    let receipt = Receipt { ack: "committed".to_owned(), first_index, count, first_id };
    Entry {
        name: Name::None,
        first_number,
        count,
        sent_at: times[0],
        outcome: Outcome::Acknowledged { receipt, at: times[1] },
    }
}

/// Two batches: events 0 to 2 of one request and 3 of another; then 4 and 5, of which no answer came. 6 was refused.
fn sound() -> (Snapshot, Vec<Entry>) {
    let (first, mut rows) = batch(0, BATCH, &[0, 1, 2, 3]);
    let (second, more) = batch(4, BATCH + (1 << 20), &[4, 5]);
    rows.extend(more);
    let snapshot =
        Snapshot { ledger: "default".to_owned(), next_index: 6, batches: vec![first, second], rows };
    let entries = vec![
        acknowledged(0, 3, 0, BATCH, [1, 10]),
        acknowledged(3, 1, 3, BATCH + 3, [2, 9]),
        Entry { name: Name::None, first_number: 4, count: 2, sent_at: 20, outcome: Outcome::Unknown },
        Entry { name: Name::None, first_number: 6, count: 1, sent_at: 21, outcome: Outcome::NotStored },
    ];
    (snapshot, entries)
}

/// What the checker says after a change of the sound case.
fn after(change: impl FnOnce(&mut Snapshot, &mut Vec<Entry>)) -> Vec<Rule> {
    let (mut snapshot, mut entries) = sound();
    change(&mut snapshot, &mut entries);
    check(&snapshot, &entries).rules()
}

#[test]
fn what_is_sound_passes() {
    assert_eq!(after(|_, _| {}), []);
    // Of a request without an answer, nothing need be there.
    assert_eq!(
        after(|snapshot, _| {
            snapshot.rows.truncate(4);
            snapshot.batches.truncate(1);
            snapshot.next_index = 4;
        }),
        []
    );
}

#[test]
fn what_a_spool_promised_must_be_there_wherever_it_is() {
    let spooled = || Outcome::Spooled { key: None, at: 30 };
    assert_eq!(after(|_, entries| entries[2].outcome = spooled()), []);
    assert_eq!(after(|_, entries| entries[3].outcome = spooled()), [Rule::Acknowledged]);
}

#[test]
fn lost_and_invented_events_are_found() {
    let found = after(|snapshot, _| {
        snapshot.rows.remove(1);
    });
    assert_eq!(found, [Rule::Complete, Rule::Acknowledged]);
    // A whole batch with its head, as an old backup would have it.
    let found = after(|snapshot, _| {
        snapshot.rows.drain(..4);
        snapshot.batches.remove(0);
    });
    assert_eq!(found, [Rule::Gapless, Rule::Acknowledged]);
    let found = after(|snapshot, entries| {
        entries.remove(2);
        entries.remove(2);
        snapshot.next_index = 6;
    });
    assert_eq!(found, [Rule::Bytes], "events that nobody sent");
    let found = after(|snapshot, _| snapshot.next_index = 7);
    assert_eq!(found, [Rule::Gapless]);
    let found = after(|snapshot, _| {
        snapshot.batches.remove(1);
        snapshot.next_index = 4;
    });
    assert_eq!(found, [Rule::Complete], "events without a batch");
}

#[test]
fn changed_events_are_found() {
    let found = after(|snapshot, _| *snapshot.rows[2].payload.last_mut().unwrap() ^= 1);
    assert_eq!(found, [Rule::Entry, Rule::Bytes, Rule::Acknowledged]);
    let found = after(|snapshot, _| snapshot.rows[0].time += 1);
    assert!(found.contains(&Rule::Entry) && found.contains(&Rule::Bytes), "{found:?}");
    let found = after(|snapshot, _| snapshot.batches[0].entries[40] ^= 1);
    assert_eq!(found, [Rule::Entry]);
    let found = after(|snapshot, _| snapshot.batches[1].min_time -= 1);
    assert_eq!(found, [Rule::Times]);
    // Event and entry changed together: no hash in the database can show it, but the clients remember.
    let found = after(|snapshot, _| {
        let (batch, rows) = batch(0, BATCH, &[0, 1, 7, 3]);
        snapshot.rows.splice(..4, rows);
        snapshot.batches[0] = batch;
    });
    assert_eq!(found, [Rule::Bytes, Rule::Acknowledged]);
}

#[test]
fn doubled_moved_and_torn_requests_are_found() {
    let stored_again = |snapshot: &mut Snapshot, numbers: &[u64]| {
        let (batch, rows) = batch(6, BATCH + (2 << 20), numbers);
        snapshot.next_index += i64::from(batch.event_count);
        snapshot.batches.push(batch);
        snapshot.rows.extend(rows);
    };
    assert!(after(|snapshot, _| stored_again(snapshot, &[4, 5])).contains(&Rule::Once));
    assert_eq!(after(|snapshot, _| stored_again(snapshot, &[6])), [Rule::Refused]);
    let found = after(|snapshot, _| {
        let (batch, rows) = batch(4, BATCH + (1 << 20), &[5, 4]);
        snapshot.rows.splice(4.., rows);
        snapshot.batches[1] = batch;
    });
    assert_eq!(found, [Rule::Whole]);
    let found = after(|snapshot, _| {
        let (batch, rows) = batch(4, BATCH + (1 << 20), &[4]);
        snapshot.rows.splice(4.., rows);
        snapshot.batches[1] = batch;
        snapshot.next_index = 5;
    });
    assert_eq!(found, [Rule::Whole]);
    let found = after(|_, entries| entries[1] = acknowledged(3, 1, 2, BATCH + 3, [2, 9]));
    assert_eq!(found, [Rule::Acknowledged]);
}

#[test]
fn what_was_sent_later_must_stand_behind() {
    let found = after(|_, entries| entries[1] = acknowledged(3, 1, 3, BATCH + 3, [2, 25]));
    assert_eq!(found, [], "sent before the other's acknowledgement");
    // Event 0 was sent after event 3 had been acknowledged, and stands before it.
    let found = after(|_, entries| {
        entries[0] = acknowledged(0, 3, 0, BATCH, [12, 20]);
        entries[1] = acknowledged(3, 1, 3, BATCH + 3, [2, 9]);
    });
    assert_eq!(found, [Rule::Order]);
}

/// The same, with the request of events 4 and 5 from a producer.
fn from_producer(change: impl FnOnce(&mut Snapshot, &mut Vec<Entry>)) -> Vec<Rule> {
    after(|snapshot, entries| {
        let sequence = Sequence { producer: "p".to_owned(), epoch: 3, number: 40 };
        entries[2].name = Name::Sequence(sequence);
        let run: [&[u8]; 6] = [&[0; 4], &[0, 0, 0, 2], &[0, 0, 0, 3], &[0, 0, 0, 0, 0, 0, 0, 40], &[1], b"p"];
        let batch = &mut snapshot.batches[1];
        batch.producers = Some(run.concat());
        batch.entries.clear();
        for (position, row) in (0..).zip(&snapshot.rows[4..]) {
            let Row { id, time, kind, payload } = row;
            let sequence = Some(("p", 3, 40 + u64::from(position)));
            let envelope = Envelope { ledger: "default", id: *id, kind, time: *time, sequence, payload };
            batch.entries.extend(envelope.entry(&batch.salt(position).unwrap()));
        }
        change(snapshot, entries);
    })
}

#[test]
fn a_producers_sequence_is_part_of_its_events() {
    assert_eq!(from_producer(|_, _| {}), []);
    let other = from_producer(|snapshot, _| snapshot.batches[1].producers.as_mut().unwrap()[19] += 1);
    assert_eq!(other, [Rule::Entry, Rule::Producer]);
    let torn = from_producer(|snapshot, _| snapshot.batches[1].producers.as_mut().unwrap().truncate(5));
    assert_eq!(torn, [Rule::Entry, Rule::Producer]);
    let unasked = from_producer(|_, entries| entries[2].name = Name::None);
    assert_eq!(unasked, [Rule::Producer]);
    // A request of an older life, stored after one of a newer.
    let fenced = from_producer(|snapshot, entries| {
        entries[1].name = Name::Sequence(Sequence { producer: "p".to_owned(), epoch: 4, number: 0 });
        let run: [&[u8]; 6] = [&[0, 0, 0, 3], &[0, 0, 0, 1], &[0, 0, 0, 4], &[0; 8], &[1], b"p"];
        snapshot.batches[0].producers = Some(run.concat());
    });
    assert_eq!(fenced, [Rule::Entry, Rule::Producer]);
}

#[test]
fn salts_that_outlive_their_secret_serve_as_well() {
    let found = after(|snapshot, _| {
        let batch = &mut snapshot.batches[0];
        batch.salts = Some((0..4).flat_map(|position| batch.salt(position).unwrap()).collect());
        batch.secret = None;
    });
    assert_eq!(found, []);
}
