//! The pure parts under random tampering: what was tampered with is named, and nothing else is.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;
use certeus_archive::{Content as ArchivedContent, Row as ArchivedRow};
use certeus_tlog::tree::Frontier;
use certeus_tlog::{Hash, leaf_hash};
use proptest::prelude::*;
use uuid::Uuid;

use super::explain::{Case, explain};
use super::finding::Kind;
use super::rows::{BatchRow, EventRow, Events, More, RowAudit, RowCounts, Salts, entry_of};
use super::suspect::{Added, Altered, Content, Evidence, Missing, Place, Suspects};
use super::tree::{BLOCK, Queue, Signed, TreeAudit};
use crate::commit::from_postgres_micros;
use crate::envelope::{BatchSecret, ContentType, EnvelopeHead, ProducerPlace};
use crate::id::{self, BatchId};
use crate::provenance;
use crate::request::ProducerSequence;

const LEDGER: &str = "default";

/// An event's row in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    id: Uuid,
    micros: i64,
    kind: String,
    payload: Vec<u8>,
}

impl Row {
    fn as_event(&self) -> EventRow<'_> {
        let Self { id, micros, kind, payload } = self;
        EventRow { id: *id, postgres_micros: *micros, kind: kind.as_bytes(), payload }
    }
}

/// Batches of the given sizes and their rows; every second batch came with a producer's numbers.
struct Model {
    batches: Vec<BatchRow>,
    rows: Vec<Row>,
}

impl Model {
    fn new(sizes: &[u32]) -> Self {
        let (mut batches, mut rows, mut first_index) = (Vec::new(), Vec::new(), 0);
        for (number, count) in (0_u64..).zip(sizes) {
            let batch = BatchId::new(1_769_860_800_000 + number, u128::from(number) << 20);
            let secret = BatchSecret([u8::try_from(number).unwrap(); 32]);
            let mut producers = Vec::new();
            let has_producer = number % 2 == 1;
            if has_producer {
                let sequence = ProducerSequence::new("till", 1, 0).unwrap();
                provenance::write(&mut producers, 0, usize::try_from(*count).unwrap(), &sequence);
            }
            let key_id = (number % 3 == 2).then(|| vec![7; 56]);
            let mut entries = Vec::new();
            for position in 0..*count {
                let n = first_index + u64::from(position);
                let row = Row {
                    id: batch.event(usize::try_from(position).unwrap()),
                    micros: i64::try_from(n).unwrap() * 1_000_000,
                    kind: format!("t{}", n % 3),
                    payload: format!(r#"{{"type":"t{}","timestamp":{},"n":{n}}}"#, n % 3, 946_684_800 + n)
                        .into_bytes(),
                };
                let producer = has_producer.then(|| ProducerPlace {
                    id: "till",
                    epoch: 1,
                    sequence: u64::from(position),
                });
                let more = More { producer, key_id: key_id.as_deref().unwrap_or_default() };
                let salt = secret.salt(position);
                entries.extend(entry_of(LEDGER, &row.as_event(), &more, &salt, &mut Vec::new()).unwrap());
                rows.push(row);
            }
            let producers = has_producer.then_some(producers);
            let events = Events::Stored { salts: Salts::Secret(secret), entries, producers, key_id };
            batches.push(BatchRow { first_index, event_count: *count, id: batch, events });
            first_index += u64::from(*count);
        }
        Self { batches, rows }
    }

    fn index_of(&self, id: Uuid) -> u64 {
        let batch = self.batches.iter().find(|batch| batch.id == BatchId::of(id)).unwrap();
        batch.first_index + id::position(id) as u64
    }

    fn entry_mut(&mut self, index: usize) -> &mut [u8] {
        let batch = self
            .batches
            .iter_mut()
            .find(|batch| {
                (batch.first_index..batch.first_index + u64::from(batch.event_count))
                    .contains(&(index as u64))
            })
            .unwrap();
        let at = (index - usize::try_from(batch.first_index).unwrap()) * 32;
        let Events::Stored { entries, .. } = &mut batch.events else { panic!("all are stored") };
        &mut entries[at..at + 32]
    }

    fn place(&self, id: Uuid) -> Place {
        let batch = self.batches.iter().find(|batch| batch.id == BatchId::of(id)).unwrap();
        let position = u32::try_from(id::position(id)).unwrap();
        let Events::Stored { salts, entries, producers, key_id } = &batch.events else { panic!("stored") };
        let Salts::Secret(secret) = salts else { panic!("none was erased") };
        let at = id::position(id) * 32;
        let producer = producers.as_ref().map(|_| ("till".to_owned(), 1, u64::from(position)));
        Place {
            index: self.index_of(id),
            id,
            salt: secret.salt(position),
            entry: entries[at..at + 32].try_into().unwrap(),
            producer,
            key_id: key_id.clone(),
        }
    }

    /// Kinds and indexes that the audit of rows comes to.
    fn audit(&mut self) -> Vec<(Kind, Option<u64>)> {
        self.rows.sort_by_key(|row| row.id);
        let mut audit = RowAudit::new(LEDGER, &self.batches, HashSet::new());
        for row in &self.rows {
            audit.row(&row.as_event()).unwrap();
        }
        let (counts, suspects) = audit.finish();
        assert_eq!(
            counts.rehashed + suspects.added.iter().map(|(_, count)| u64::from(*count)).sum::<u64>(),
            self.rows.len() as u64
        );
        let content = |id: Uuid| {
            let row = self.rows.iter().find(|row| row.id == id)?;
            Some(Content::new(row.micros, row.kind.clone().into_bytes(), row.payload.clone()))
        };
        let evidence = Evidence {
            altered: suspects
                .altered
                .iter()
                .map(|(_, id)| Altered { place: self.place(*id), content: content(*id) })
                .collect(),
            missing: suspects
                .missing
                .iter()
                .map(|(_, id, count)| Missing { place: self.place(*id), count: *count, archived: false })
                .collect(),
            added: suspects
                .added
                .iter()
                .map(|(id, count)| Added { id: *id, count: *count, content: content(*id) })
                .collect(),
            displaced: Vec::new(),
        };
        let mut found: Vec<_> = evidence
            .judge(LEDGER, &HashSet::new())
            .into_iter()
            .map(|finding| (finding.kind, finding.indexes.map(|(first, _)| first)))
            .collect();
        found.sort_unstable();
        found
    }
}

impl Model {
    /// The rows as an archived file has them.
    fn archived(&mut self) -> Vec<ArchivedRow> {
        self.rows.sort_by_key(|row| row.id);
        let archive = |row: &Row| {
            let Place { index, id, salt, entry, producer, key_id } = self.place(row.id);
            let time = from_postgres_micros(row.micros).unwrap();
            let head = EnvelopeHead {
                ledger: LEDGER,
                id,
                kind: &row.kind,
                time,
                producer: producer.as_ref().map(|(id, epoch, sequence)| ProducerPlace {
                    id,
                    epoch: *epoch,
                    sequence: *sequence,
                }),
                content_type: ContentType::Json,
                key_id: key_id.as_deref().unwrap_or_default(),
            };
            let mut bytes = Vec::new();
            head.write(row.payload.len(), &mut bytes);
            ArchivedRow {
                index,
                id,
                time_micros: time.micros(),
                committed_micros: 0,
                kind: row.kind.clone(),
                entry,
                content: Some(ArchivedContent { payload: row.payload.clone().into(), head: bytes, salt }),
            }
        };
        self.rows.iter().map(archive).collect()
    }
}

/// What an audit of archived rows comes to, cut into stretches at some ids: findings, altered events, missing ones, added ones.
fn audit_archived(
    model: &Model,
    rows: &[ArchivedRow],
    cuts: &[u128],
) -> (RowCounts, Vec<(Kind, u64)>, Vec<u64>, u64, u64) {
    let ends = || cuts.iter().copied();
    let (mut counts, mut findings, mut suspects) = (RowCounts::default(), Vec::new(), Suspects::default());
    for (start, end) in [0].into_iter().chain(ends()).zip(ends().chain([u128::MAX])) {
        let mut audit = RowAudit::within(start..end, LEDGER, &model.batches, HashSet::new());
        for row in rows.iter().filter(|row| (start..end).contains(&row.id.as_u128())) {
            let finding = audit.archived_row(row).unwrap();
            findings.extend(finding.map(|finding| (finding.kind, finding.indexes.unwrap().0)));
        }
        let (done, found) = audit.finish();
        counts += done.of_archive();
        suspects.append(found);
    }
    let altered = suspects.altered.iter().map(|(index, _)| *index).collect();
    let missing = suspects.missing.iter().map(|(_, _, count)| u64::from(*count)).sum();
    (counts, findings, altered, missing, suspects.added.len() as u64)
}

#[derive(Debug, Clone)]
enum Tampering {
    Payload,
    Type,
    Time,
    Empty,
    Remove,
    Entry,
    Move,
}

fn tampering() -> impl Strategy<Value = Tampering> {
    use Tampering::*;
    prop_oneof![Just(Payload), Just(Type), Just(Time), Just(Empty), Just(Remove), Just(Entry), Just(Move)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn rows_that_nobody_touched_are_clean(sizes in proptest::collection::vec(1_u32..40, 1..6)) {
        prop_assert_eq!(Model::new(&sizes).audit(), vec![]);
    }

    /// Each of several tamperings, at events that do not follow each other, is found at its own event.
    #[test]
    fn what_was_done_to_which_event_is_named(
        sizes in proptest::collection::vec(1_u32..40, 1..6),
        what in proptest::collection::btree_map(0_usize..200, tampering(), 0..6),
    ) {
        let mut model = Model::new(&sizes);
        let mut wanted = Vec::new();
        let (mut removed, mut last) = (Vec::new(), None);
        for (at, tampering) in what {
            if at >= model.rows.len() || last.is_some_and(|last| at <= last + 1) {
                continue;
            }
            last = Some(at);
            let index = Some(at as u64);
            let row = &mut model.rows[at];
            match tampering {
                Tampering::Payload => { row.payload.push(b' '); wanted.push((Kind::EventAltered, index)); }
                Tampering::Type => { row.kind.push('x'); wanted.push((Kind::EventAltered, index)); }
                Tampering::Time => { row.micros += 1; wanted.push((Kind::EventAltered, index)); }
                Tampering::Empty => { row.payload.clear(); wanted.push((Kind::EventEmptied, index)); }
                Tampering::Remove => { removed.push(row.id); wanted.push((Kind::EventMissing, index)); }
                Tampering::Entry => { model.entry_mut(at)[3] ^= 1; wanted.push((Kind::EventAltered, index)); }
                Tampering::Move => {
                    row.id = Uuid::from_u128(row.id.as_u128() | 0xF_F000);
                    wanted.push((Kind::EventMoved, index));
                }
            }
        }
        model.rows.retain(|row| !removed.contains(&row.id));
        wanted.sort_unstable();
        prop_assert_eq!(model.audit(), wanted);
    }

    /// Wherever files begin and end, and whatever is done to one row of them.
    #[test]
    fn archived_rows_are_audited_as_live_ones_are_and_more_of_them(
        sizes in proptest::collection::vec(1_u32..40, 1..6),
        cuts in proptest::collection::btree_set(0_usize..200, 0..6),
        at: usize,
        tampering in 0..10,
    ) {
        let mut model = Model::new(&sizes);
        let mut rows = model.archived();
        let count = rows.len() as u64;
        let cuts: Vec<u128> = cuts.into_iter().filter_map(|cut| Some(rows.get(cut)?.id.as_u128())).collect();
        let at = at % rows.len();
        let index = rows[at].index;
        let row = &mut rows[at];
        let mut wanted = (count, vec![], vec![], 0, 0);
        let content = row.content.as_mut().unwrap();
        match tampering {
            0 => {}
            1 => { content.payload = Bytes::from_static(b"{}"); wanted.2.push(index); }
            2 => { row.kind.push('x'); wanted.2.push(index); }
            3 => { row.time_micros += 1; wanted.2.push(index); }
            4 => { row.content = None; wanted.2.push(index); }
            5 => { content.salt[3] ^= 1; wanted.1.push((Kind::EventAltered, index)); }
            6 => { content.head[9] ^= 1; wanted.1.push((Kind::EventAltered, index)); }
            7 => { row.entry[31] ^= 1; wanted.1.push((Kind::EventAltered, index)); }
            8 => { row.index += 1; wanted.1.push((Kind::EventAltered, index)); }
            _ => { rows.remove(at); wanted.0 -= 1; wanted.3 = 1; }
        }
        let (counts, findings, altered, missing, added) = audit_archived(&model, &rows, &cuts);
        prop_assert_eq!((counts.archived_rehashed, findings, altered, missing, added), wanted);
        prop_assert_eq!((counts.rehashed, counts.erased, counts.archived_erased), (0, 0, 0));
    }

    #[test]
    fn events_in_each_others_place_are_named_as_such(
        sizes in proptest::collection::vec(1_u32..40, 2..6), a: usize, b: usize, entries: bool
    ) {
        let mut model = Model::new(&sizes);
        let count = model.rows.len();
        let (a, b) = ((a % count).min(b % count), (a % count).max(b % count));
        if entries {
            let (at_a, at_b) = (model.entry_mut(a).to_vec(), model.entry_mut(b).to_vec());
            model.entry_mut(a).copy_from_slice(&at_b);
            model.entry_mut(b).copy_from_slice(&at_a);
        } else {
            let (id_a, id_b) = (model.rows[a].id, model.rows[b].id);
            (model.rows[a].id, model.rows[b].id) = (id_b, id_a);
        }
        let wanted = if a == b { vec![] } else { vec![(Kind::EventsSwapped, Some(a as u64))] };
        prop_assert_eq!(model.audit(), wanted);
    }

    /// An altered entry is found within its block, and between the checkpoints around it, wherever reading stops in between.
    #[test]
    fn an_altered_entry_is_found_to_the_block_and_the_checkpoints(
        size in 1_u64..1500,
        sizes in proptest::collection::btree_set(1_u64..1500, 0..8),
        altered in proptest::option::of(0_u64..1500),
        cuts in proptest::collection::btree_set(0_u64..1500, 0..6),
    ) {
        let sizes: Vec<u64> = sizes.into_iter().filter(|one| *one <= size).collect();
        let altered = altered.filter(|index| *index < size);
        let honest: Vec<[u8; 32]> = (0..size).map(|n| *leaf_hash(&n.to_be_bytes()).as_bytes()).collect();
        let (mut signed, mut frontier) = (Vec::new(), Frontier::new());
        let sealed = sizes.last().copied().unwrap_or(0);
        let mut blocks = Vec::new();
        for (count, entry) in (1..).zip(&honest) {
            frontier.append(leaf_hash(entry), |tile, hashes| if tile.level() == 0 && count <= sealed {
                blocks.push(certeus_tlog::tree::root_of(hashes));
            });
            if sizes.contains(&count) {
                signed.push(Signed { size: count, root: frontier.root(), source: "a checkpoint".to_owned() });
            }
        }
        let mut entries = honest;
        if let Some(index) = altered {
            entries[usize::try_from(index).unwrap()][0] ^= 1;
        }
        let mut tree = TreeAudit { log_size: sealed, ..TreeAudit::default() };
        tree.supply(BTreeMap::from([((1, 0), blocks)]));
        let mut queue = Queue::new(signed, 0);
        let mut from = 0;
        for to in cuts.into_iter().filter(|cut| *cut < size).chain([size]) {
            let bytes = entries[usize::try_from(from).unwrap()..usize::try_from(to).unwrap()].as_flattened();
            tree.advance(0, bytes, &mut queue);
            from = to;
        }
        tree.finish();
        let blocks = tree.altered.clone();
        let case = Case { blocks: &blocks, computed: &Default::default(), batches: &[], gaps: &[] };
        let mut found = explain(&case).0;
        found.extend(tree.findings.kept().iter().cloned());
        let Some(index) = altered.filter(|index| *index < sealed) else {
            prop_assert_eq!(found, vec![], "nothing that was signed was altered");
            prop_assert_eq!(tree.confirmed, sealed);
            return Ok(());
        };
        prop_assert_eq!(found.len(), 1, "{:?}", found);
        let (first, last) = found[0].indexes.unwrap();
        prop_assert!((first..=last).contains(&index), "{index} {:?}", found);
        let before = sizes.iter().copied().filter(|one| *one <= index).max().unwrap_or(0);
        let after = sizes.iter().copied().find(|one| *one > index).unwrap();
        prop_assert!(first >= before && last < after.max(index / BLOCK * BLOCK + BLOCK), "{:?}", found);
        // Once a later checkpoint and a whole block allow it, what follows is confirmed again.
        let block_end = index / BLOCK * BLOCK + BLOCK;
        if sealed >= block_end {
            prop_assert_eq!(found[0].kind, Kind::EntriesAltered);
            prop_assert_eq!(tree.confirmed, sealed);
        } else {
            prop_assert_eq!(found[0].kind, Kind::CheckpointMismatch);
        }
    }

    #[test]
    fn two_batches_in_each_others_place_are_named(swap in 0_usize..6) {
        let counts = [100_u32, 60, 60, 80, 150, 60, 2];
        let entries: Vec<Vec<[u8; 32]>> = (0_u32..).zip(counts).map(|(batch, count)| {
            (0..count).map(|n| *leaf_hash(&[batch.to_be_bytes(), n.to_be_bytes()].concat()).as_bytes()).collect()
        }).collect();
        let honest: Vec<[u8; 32]> = entries.iter().flatten().copied().collect();
        let blocks: Vec<Hash> = honest.chunks_exact(256)
            .map(|block| certeus_tlog::tree::root_of(&block.iter().map(|e| leaf_hash(e)).collect::<Vec<_>>()))
            .collect();
        let mut order: Vec<usize> = (0..counts.len()).collect();
        order.swap(swap, swap + 1);
        let (mut spans, mut first) = (Vec::new(), 0);
        let mut stored = Vec::new();
        for batch in &order {
            spans.push(super::explain::Span { first, count: counts[*batch], id: Uuid::from_u128(*batch as u128) });
            first += u64::from(counts[*batch]);
            stored.extend(entries[*batch].iter().copied());
        }
        let mut frontier = Frontier::new();
        honest.iter().for_each(|entry| frontier.append(leaf_hash(entry), |_, _| {}));
        let signed = Signed { size: 512, root: frontier.root(), source: "a checkpoint".to_owned() };
        let mut tree = TreeAudit { log_size: 512, ..TreeAudit::default() };
        tree.supply(BTreeMap::from([((1, 0), blocks)]));
        tree.advance(0, stored.as_flattened(), &mut Queue::new(vec![signed], 0));
        let case = Case { blocks: &tree.altered, computed: &Default::default(), batches: &spans, gaps: &[] };
        let (found, _) = explain(&case);
        prop_assert_eq!(found.len(), 1, "{:?}", found);
        prop_assert_eq!(found[0].kind, Kind::BatchesSwapped);
        prop_assert_eq!(found[0].indexes.unwrap().0, spans[swap].first);
    }
}

#[test]
fn an_erased_archived_event_is_on_record_and_has_no_content_left() {
    let mut model = Model::new(&[4]);
    let rows = model.archived();
    let (kept, mut erased) = (rows[1].clone(), rows[1].clone());
    erased.content = None;
    let Events::Stored { salts, .. } = &mut model.batches[0].events else { panic!("all are stored") };
    let Salts::Secret(secret) = salts else { panic!("none was erased") };
    let mut each: Vec<u8> = (0..4).flat_map(|position| secret.salt(position)).collect();
    each[32..64].fill(0);
    *salts = Salts::Each(each);
    let ids = rows[1].id.as_u128()..rows[2].id.as_u128();
    let audit = |row: &ArchivedRow, on_record: bool| {
        let records = on_record.then_some(row.id).into_iter().collect();
        let mut audit = RowAudit::within(ids.clone(), LEDGER, &model.batches, records);
        let finding = audit.archived_row(row).unwrap().map(|finding| finding.detail);
        let (counts, suspects) = audit.finish();
        (counts.erased, suspects.altered.len(), finding)
    };
    assert_eq!(audit(&erased, true), (1, 0, None));
    assert_eq!(audit(&erased, false), (0, 1, None));
    let (counted, suspected, finding) = audit(&kept, true);
    assert_eq!((counted, suspected), (0, 0));
    assert!(finding.unwrap().contains("still has its content"));
    let mut emptied = kept;
    emptied.content.as_mut().unwrap().payload = Bytes::new();
    assert!(audit(&emptied, true).2.is_some(), "salt and head are content as well");
    assert!(audit(&ArchivedRow { index: 7, ..erased }, true).2.is_some());
}

#[test]
fn a_file_may_have_events_that_came_later_and_none_of_another_ledger() {
    let mut model = Model::new(&[3]);
    let rows = model.archived();
    model.batches[0].events = Events::Skipped;
    let mut audit = RowAudit::new(LEDGER, &model.batches, HashSet::new());
    assert_eq!(audit.archived_row(&rows[0]).unwrap(), None);
    let mut audit = RowAudit::new("other", &model.batches, HashSet::new());
    let finding = audit.archived_row(&rows[0]).unwrap().unwrap();
    assert_eq!((finding.kind, finding.id), (Kind::EventMisplaced, Some(rows[0].id)));
}
