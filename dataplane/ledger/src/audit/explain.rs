//! Finds out what happened in blocks whose entries are not those of the signed log, by trying what would restore them.
//!
//! Pure. A block's true hash is known, its true leaves are not. If putting back the hash of a stored row, or putting two batches
//! back into each other's place, gives the true hash, then that is what was altered, with the certainty of SHA-256.

use std::collections::{BTreeMap, HashMap, HashSet};

use certeus_tlog::tree::root_of;
use certeus_tlog::{Hash, leaf_hash};
use uuid::Uuid;

use super::finding::{Finding, Kind};
use super::tree::{BLOCK, Block};

/// Pairs of batches that are tried: each takes some 50 us.
const PAIRS_MAX: usize = 20_000;

/// Suspects in a block of which all choices are tried: 2^8 roots take some 5 ms.
const SUBSETS_OF_MAX: usize = 8;

/// A batch that overlaps an altered block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) first: u64,
    pub(crate) count: u32,
    pub(crate) id: Uuid,
}

/// What is known when the audit is through.
pub(crate) struct Case<'a> {
    /// Blocks whose entries are not those of the signed log.
    pub(crate) blocks: &'a [Block],
    /// Entries that stored rows hash to where they differ from the batch's, by index.
    pub(crate) computed: &'a HashMap<u64, [u8; 32]>,
    /// Batches that overlap the blocks.
    pub(crate) batches: &'a [Span],
    /// Indexes of which there are no entries, which are reported already.
    pub(crate) gaps: &'a [(u64, u64)],
}

/// Findings about batches and blocks, and the events whose entry was altered while their row was not.
pub(crate) fn explain(case: &Case<'_>) -> (Vec<Finding>, HashSet<u64>) {
    let mut findings = Vec::new();
    let mut rightful = HashSet::new();
    let mut left: BTreeMap<u64, &Block> = BTreeMap::new();
    for block in case.blocks {
        match restored_by_rows(block, case.computed) {
            Some(indexes) => rightful.extend(indexes),
            None => drop(left.insert(block.first, block)),
        }
    }
    swapped_batches(case.batches, &mut left, &mut findings);
    findings.extend(runs(left.into_values(), case.gaps));
    (findings, rightful)
}

/// The indexes of a block whose entries, put back as the stored rows have them, restore it: each may be one where the row was
/// altered instead, so some or all of them are tried.
fn restored_by_rows(block: &Block, computed: &HashMap<u64, [u8; 32]>) -> Option<Vec<u64>> {
    let places = (block.first..).zip(0..block.leaves.len());
    let candidates: Vec<(u64, usize, Hash)> =
        places.filter_map(|(index, at)| Some((index, at, leaf_hash(computed.get(&index)?)))).collect();
    let number = candidates.len();
    let mut choices: Vec<Vec<usize>> = if number <= SUBSETS_OF_MAX {
        (1..1_usize << number).map(|mask| (0..number).filter(|bit| mask >> bit & 1 == 1).collect()).collect()
    } else {
        (0..number).map(|one| vec![one]).chain([(0..number).collect()]).collect()
    };
    choices.sort_by_key(Vec::len);
    choices.into_iter().find_map(|choice| {
        let mut leaves = block.leaves.clone();
        for one in &choice {
            let (_, at, leaf) = candidates[*one];
            leaves[at] = leaf;
        }
        (root_of(&leaves) == block.stored).then(|| choice.iter().map(|one| candidates[*one].0).collect())
    })
}

/// Tries whether two batches of the same length have changed places, or two neighbours of any length.
fn swapped_batches(batches: &[Span], left: &mut BTreeMap<u64, &Block>, findings: &mut Vec<Finding>) {
    let neighbours = batches.windows(2).map(|pair| (pair[0], pair[1]));
    let neighbours = neighbours.filter(|(a, b)| a.first + u64::from(a.count) == b.first);
    let equal = batches
        .iter()
        .enumerate()
        .flat_map(|(at, a)| batches[at + 1..].iter().filter(|b| a.count == b.count).map(|b| (*a, *b)));
    for (a, b) in neighbours.chain(equal).take(PAIRS_MAX) {
        if left.is_empty() {
            return;
        }
        let Some(restored) = swap_restores(a, b, left) else { continue };
        for first in restored {
            left.remove(&first);
        }
        let detail = format!(
            "this batch has changed places with batch {} (events {} to {})",
            b.id,
            b.first,
            b.first + u64::from(b.count) - 1
        );
        findings.push(Finding {
            id: Some(a.id),
            ..Finding::range(Kind::BatchesSwapped, a.first, a.first + u64::from(a.count) - 1, detail)
        });
    }
}

/// The blocks that are restored by putting `b`'s leaves before `a`'s, if all that this touches are.
fn swap_restores(a: Span, b: Span, left: &BTreeMap<u64, &Block>) -> Option<Vec<u64>> {
    let leaf = |index: u64| -> Option<Hash> {
        let block = left.get(&(index / BLOCK * BLOCK))?;
        block.leaves.get(usize::try_from(index % BLOCK).ok()?).copied()
    };
    let range = |span: Span| span.first..span.first + u64::from(span.count);
    let mut changed: BTreeMap<u64, Hash> = BTreeMap::new();
    if range(a).end == b.first {
        let order = range(b).chain(range(a));
        for (to, from) in (a.first..).zip(order) {
            changed.insert(to, leaf(from)?);
        }
    } else {
        for (at_a, at_b) in range(a).zip(range(b)) {
            changed.insert(at_a, leaf(at_b)?);
            changed.insert(at_b, leaf(at_a)?);
        }
    }
    let mut touched: Vec<u64> = changed.keys().map(|index| index / BLOCK * BLOCK).collect();
    touched.dedup();
    for first in &touched {
        let block = left.get(first)?;
        let restored: Vec<Hash> = (block.first..)
            .zip(&block.leaves)
            .map(|(index, leaf)| changed.get(&index).copied().unwrap_or(*leaf))
            .collect();
        if root_of(&restored) != block.stored {
            return None;
        }
    }
    Some(touched)
}

/// Blocks of which no more can be said, those that follow each other together.
fn runs<'a>(blocks: impl Iterator<Item = &'a Block>, gaps: &[(u64, u64)]) -> Vec<Finding> {
    let mut found: Vec<(u64, u64)> = Vec::new();
    for block in blocks {
        let end = block.first + BLOCK;
        // What is missing as a whole is reported as missing.
        if gaps.iter().any(|(from, to)| *from < end && block.first < *to) {
            continue;
        }
        match found.last_mut() {
            Some((_, last)) if *last == block.good_to => *last = block.bad_to,
            _ => found.push((block.good_to, block.bad_to)),
        }
    }
    let finding = |(first, end): (u64, u64)| {
        let detail = if end - first > BLOCK {
            "their log entries are not those that were signed: altered, or moved by a removal or an insertion before them"
        } else {
            "at least one of their log entries is not what was signed; the stored rows match the altered entries"
        };
        Finding::range(Kind::EntriesAltered, first, end - 1, detail)
    };
    found.into_iter().map(finding).collect()
}
