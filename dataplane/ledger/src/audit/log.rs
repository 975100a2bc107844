//! Reads the batches in the order of their indexes into the tree, with the tiles and checkpoints it is compared with.
//!
//! Owns when a stored checkpoint is believed: when one of the auditor's keys signed what its row says.

use std::collections::BTreeMap;

use certeus_tlog::checkpoint::{Checkpoint, OpenError};
use certeus_tlog::note::{Signature, SignedNote, VerifyError};

use super::AuditError;
use super::finding::{Finding, Findings, Kind};
use super::run::Options;
use super::sequence;
use super::source::{Source, StoredCheckpoint};
use super::tree::{LEVELS, Queue, Signed, TreeAudit};
use crate::id::BATCH_EVENTS_MAX;

/// Indexes that one reading of batches covers.
const CHUNK_EVENTS: u64 = 524_288;

/// Stored checkpoints by keys that were not given: their names, how many, and the sizes of the first and the last.
pub(super) type UnknownKeys = Vec<(String, u64, u64, u64)>;

/// A stretch of the tree that was read.
pub(super) struct TreePart {
    pub(super) tree: TreeAudit,
    pub(super) next_batch: u64,
    pub(super) findings: Findings,
    pub(super) unknown_keys: UnknownKeys,
}

/// Reads the next stretch of batches into the tree.
pub(super) async fn read_tree(
    source: &Source,
    options: &Options,
    mut tree: TreeAudit,
    signed: Vec<Signed>,
    next_batch: u64,
    through: u64,
) -> Result<TreePart, AuditError> {
    let ledger = &options.ledger;
    let mut findings = Findings::default();
    let mut unknown_keys = Vec::new();
    let size = tree.size;
    let first = source.next_batch(ledger, next_batch).await?.filter(|first| *first < through);
    // A long gap is filled one stretch at a time.
    let (from, to) = match first {
        Some(first) if first < size + CHUNK_EVENTS => (next_batch, size + CHUNK_EVENTS),
        _ => (next_batch, next_batch),
    };
    let end = through.min(size + CHUNK_EVENTS + BATCH_EVENTS_MAX as u64);
    let mut tiles = BTreeMap::new();
    for level in 1..LEVELS {
        source.tiles(ledger, level, tree.tile_range(level, end), &mut tiles).await?;
    }
    tree.supply(tiles);
    // A checkpoint of exactly the present size was compared when the tree reached it; at 0 it was not.
    let mut due = signed;
    due.retain(|one| one.size > size || size == 0);
    let after = size;
    for stored in source.checkpoints(ledger, after, end).await? {
        due.extend(open(&stored, "the stored checkpoint", options, &mut findings, &mut unknown_keys));
    }
    due.sort_by_key(|one| (one.size, one.root));
    due.dedup_by_key(|one| (one.size, one.root));
    let mut queue = Queue::new(due, size);
    if size == 0 {
        tree.advance(0, &[], &mut queue);
    }
    let mut next = to.max(next_batch);
    source
        .sequence(ledger, (from, to.min(through)), |row| {
            let expected = tree.size;
            let admitted = sequence::admit(&mut tree, expected, row);
            tree.advance(admitted.unknown, admitted.entries, &mut queue);
            next = next.max(row.first_index + 1);
        })
        .await?;
    if from == to {
        let until = first.unwrap_or(through).min(size + CHUNK_EVENTS);
        sequence::missing(&mut tree, size, until);
        tree.advance(until - size, &[], &mut queue);
        next = next_batch.max(until);
    }
    Ok(TreePart { tree, next_batch: next, findings, unknown_keys })
}

/// The checkpoints that the auditor brings must be right themselves.
pub(super) fn brought(options: &Options) -> Result<Vec<Signed>, AuditError> {
    let open = |(name, note): &(String, Vec<u8>)| {
        let (checkpoint, _) = Checkpoint::open(note, &options.origin, &options.keys)
            .map_err(|source| AuditError::Checkpoint { name: name.clone(), source })?;
        let source = format!("the checkpoint {name}");
        Ok(Signed { size: checkpoint.size(), root: checkpoint.root(), source })
    };
    options.checkpoints.iter().map(open).collect()
}

/// A stored checkpoint, if one of the keys signed what it says.
pub(super) fn open(
    stored: &StoredCheckpoint,
    what: &str,
    options: &Options,
    findings: &mut Findings,
    unknown_keys: &mut UnknownKeys,
) -> Option<Signed> {
    let StoredCheckpoint { size, root, note } = stored;
    let mut invalid = |detail: String| {
        let detail = format!("{what} of size {size} {detail}");
        findings.push(Finding::about(Kind::CheckpointInvalid, None, detail));
    };
    match Checkpoint::open(note.as_bytes(), &options.origin, &options.keys) {
        Ok((checkpoint, _)) if checkpoint.size() == *size && checkpoint.root().as_bytes()[..] == root[..] => {
            Some(Signed { size: *size, root: checkpoint.root(), source: what.to_owned() })
        }
        Ok((checkpoint, _)) => {
            let (size, root) = (checkpoint.size(), checkpoint.root());
            invalid(format!("is stored under another size or root than was signed: {size}, {root}"));
            Some(Signed { size, root, source: what.to_owned() })
        }
        Err(OpenError::Signature(VerifyError::NoKnownKey)) => {
            let signers = SignedNote::parse(note.as_bytes()).map_or_else(
                |_| String::new(),
                |note| {
                    let name = |one: &Signature| format!("{}+{:08x}", one.name(), one.key_id());
                    note.signatures().iter().map(name).collect::<Vec<_>>().join(", ")
                },
            );
            merge(unknown_keys, vec![(signers, 1, *size, *size)]);
            None
        }
        Err(error) => {
            invalid(format!("is forged or damaged: {error}"));
            None
        }
    }
}

pub(super) fn merge(known: &mut UnknownKeys, new: UnknownKeys) {
    for (keys, count, first, last) in new {
        match known.iter_mut().find(|one| one.0 == keys) {
            Some(one) => (one.1, one.2, one.3) = (one.1 + count, one.2.min(first), one.3.max(last)),
            None => known.push((keys, count, first, last)),
        }
    }
}
