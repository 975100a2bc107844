//! The pure parts under random tampering: what was tampered with is named, and nothing else is.

use std::collections::{BTreeMap, HashSet};

use certeus_tlog::tree::Frontier;
use certeus_tlog::{Hash, leaf_hash};
use proptest::prelude::*;
use uuid::Uuid;

use super::explain::{Case, explain};
use super::finding::Kind;
use super::rows::{BatchRow, EventRow, Events, More, RowAudit, Salts, entry_of};
use super::suspect::{Added, Altered, Content, Evidence, Missing, Place};
use super::tree::{BLOCK, Queue, Signed, TreeAudit};
use crate::envelope::{BatchSecret, ProducerPlace};
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
                .map(|(_, id, count)| Missing { place: self.place(*id), count: *count })
                .collect(),
            added: suspects
                .added
                .iter()
                .map(|(id, count)| Added { id: *id, count: *count, content: content(*id) })
                .collect(),
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
