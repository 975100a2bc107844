//! Rebuilds the log's tree from the entries of the batches, and compares it with the stored tiles and signed checkpoints.
//!
//! Pure. Where a stored tile differs from the entries, two trees go on side by side: the rebuilt one, and the recorded one,
//! which takes the tile's word. The next signed checkpoint says which of them is the log. So altered entries are found to the
//! block of 256, and what follows them is still checked; without that, one altered entry would spoil every later root.

use std::collections::{BTreeMap, VecDeque};

use certeus_tlog::tile::{TILE_LEVELS, TILE_WIDTH};
use certeus_tlog::tree::root_of;
use certeus_tlog::{Hash, empty_root, leaf_hash};

use super::finding::{Finding, Findings, Kind};
use crate::envelope::ENTRY_BYTES;

/// Leaves of a block: what one hash of a level-1 tile stands for.
pub(crate) const BLOCK: u64 = TILE_WIDTH as u64;
/// Levels of tiles; level 0 is not stored.
pub(crate) const LEVELS: usize = TILE_LEVELS as usize;
/// Differing blocks whose leaves are kept, 8 KiB each.
const BLOCKS_MAX: usize = 1024;

/// The right edge of a tree above its blocks: per tile level the hashes of the last tile, while it is not full.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Edge {
    /// Level 0 is not used: its hashes are the leaves of the present block.
    pub(crate) open: [Vec<Hash>; LEVELS],
}

impl Edge {
    /// Adds a block's root; `completed(level, index, hash)` is told of each hash that this completes above level 1.
    fn push(&mut self, block: Hash, index: u64, mut completed: impl FnMut(usize, u64, Hash)) {
        let (mut hash, mut index) = (block, index);
        for level in 1..LEVELS {
            let open = &mut self.open[level];
            open.push(hash);
            if open.len() < usize::from(TILE_WIDTH) {
                return;
            }
            hash = root_of(open);
            open.clear();
            index /= BLOCK;
            completed(level + 1, index, hash);
        }
    }

    /// The root of the tree that ends with these leaves of a block.
    fn root(&self, leaves: &[Hash]) -> Hash {
        let mut right = (!leaves.is_empty()).then(|| root_of(leaves));
        let mut row = Vec::new();
        for open in self.open.iter().skip(1) {
            row.clear();
            row.extend_from_slice(open);
            row.extend(right);
            // A smaller subtree may stand at the right end: RFC 6962 splits at the same places either way.
            right = if row.is_empty() { None } else { Some(root_of(&row)) };
        }
        right.unwrap_or_else(empty_root)
    }
}

/// A block whose entries and whose stored hash differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Block {
    /// Index of its first leaf.
    pub(crate) first: u64,
    /// Leaves before this one were confirmed by a checkpoint.
    pub(crate) good_to: u64,
    /// What differs stands before this one: the block's end, or the size of a checkpoint within that did not agree.
    pub(crate) bad_to: u64,
    /// What the stored tile says.
    pub(crate) stored: Hash,
    /// The leaves as the entries have them; empty when too many blocks differ.
    pub(crate) leaves: Vec<Hash>,
}

/// A signed checkpoint that the tree is compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Signed {
    pub(crate) size: u64,
    pub(crate) root: Hash,
    /// Where it comes from, as in "the stored checkpoint".
    pub(crate) source: String,
}

/// Checkpoints still to come, smallest first.
#[derive(Debug, Default)]
pub(crate) struct Queue(VecDeque<Signed>);

impl Queue {
    /// Of checkpoints in any order; those below `size` were had before.
    pub(crate) fn new(mut signed: Vec<Signed>, size: u64) -> Self {
        signed.retain(|one| one.size >= size);
        signed.sort_by_key(|one| one.size);
        Self(signed.into())
    }

    fn next_size(&self) -> Option<u64> {
        self.0.front().map(|next| next.size)
    }

    fn pop_at(&mut self, size: u64) -> Option<Signed> {
        self.0.pop_front_if(|next| next.size <= size)
    }
}

/// The tree being rebuilt.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct TreeAudit {
    pub(crate) size: u64,
    /// Size of the log as its head has it: tiles must be there up to it.
    pub(crate) log_size: u64,
    /// Leaves of the block that is not full yet.
    pub(crate) leaves: Vec<Hash>,
    pub(crate) rebuilt: Edge,
    /// As the stored tiles have it, since they differ.
    pub(crate) recorded: Option<Edge>,
    /// Blocks that differ, on which no checkpoint has judged yet.
    pub(crate) pending: Vec<Block>,
    /// Blocks whose entries are not those of the signed log.
    pub(crate) altered: Vec<Block>,
    /// The largest size that a signed checkpoint confirmed.
    pub(crate) confirmed: u64,
    /// The first checkpoint that agreed with neither tree, since when none has agreed.
    pub(crate) lost: Option<Signed>,
    /// Checkpoints compared.
    pub(crate) checkpoints: u64,
    /// Indexes without entries, which are reported by themselves: first, and one after the last.
    pub(crate) gaps: Vec<(u64, u64)>,
    pub(crate) findings: Findings,
    /// Per level the last tile that was reported as missing.
    pub(crate) missing_tiles: [Option<u64>; LEVELS],
    /// Stored tiles near the present size.
    pub(crate) tiles: BTreeMap<(usize, u64), Vec<Hash>>,
}

impl TreeAudit {
    /// Takes the stored tiles of a stretch, by level and index, in place of those before; what is not stored is left out.
    pub(crate) fn supply(&mut self, tiles: BTreeMap<(usize, u64), Vec<Hash>>) {
        self.tiles = tiles;
    }

    /// The tile indexes of a level that the leaves from the present size up to `end` reach.
    pub(crate) fn tile_range(&self, level: usize, end: u64) -> (u64, u64) {
        let tile = |size: u64| size.checked_shr(8 * (u32::try_from(level).unwrap_or(8) + 1)).unwrap_or(0);
        (tile(self.size), tile(end))
    }

    /// Adds entries.
    pub(crate) fn append(&mut self, entries: &[u8]) {
        for entry in entries.chunks_exact(ENTRY_BYTES) {
            self.push_leaf(leaf_hash(entry));
        }
    }

    /// Adds leaves of which nothing is known, then entries, and compares with each of `signed` as its size is passed.
    pub(crate) fn advance(&mut self, mut unknown: u64, mut entries: &[u8], signed: &mut Queue) {
        loop {
            while let Some(next) = signed.pop_at(self.size) {
                self.judge(&next);
            }
            let room = signed.next_size().map_or(u64::MAX, |size| size - self.size);
            if unknown > 0 {
                let count = unknown.min(room);
                self.append_unknown(count);
                unknown -= count;
            } else if entries.is_empty() {
                return;
            } else {
                let bytes = usize::try_from(room).unwrap_or(usize::MAX).saturating_mul(ENTRY_BYTES);
                let (now, later) = entries.split_at(bytes.min(entries.len()));
                self.append(now);
                entries = later;
            }
        }
    }

    /// Adds `count` leaves of which nothing is known.
    pub(crate) fn append_unknown(&mut self, count: u64) {
        match self.gaps.last_mut() {
            Some((_, end)) if *end == self.size => *end += count,
            _ => self.gaps.push((self.size, self.size + count)),
        }
        (0..count).for_each(|_| self.push_leaf(Hash([0; 32])));
    }

    fn push_leaf(&mut self, leaf: Hash) {
        self.leaves.push(leaf);
        self.size += 1;
        if self.leaves.len() == usize::from(TILE_WIDTH) {
            self.finish_block();
        }
    }

    fn finish_block(&mut self) {
        let index = self.size / BLOCK - 1;
        let hash = root_of(&self.leaves);
        let stored = self.stored(1, index);
        self.note_missing(1, index, stored);
        if let Some(stored) = stored.filter(|stored| *stored != hash) {
            let leaves = if self.pending.len() < BLOCKS_MAX { self.leaves.clone() } else { Vec::new() };
            let first = index * BLOCK;
            let good_to = self.confirmed.max(first);
            self.pending.push(Block { first, good_to, bad_to: first + BLOCK, stored, leaves });
            self.recorded.get_or_insert_with(|| self.rebuilt.clone());
        }
        let mut rebuilt_above = Vec::new();
        self.rebuilt.push(hash, index, |level, index, hash| rebuilt_above.push((level, index, hash)));
        let mut recorded_above = Vec::new();
        if let Some(recorded) = &mut self.recorded {
            let word = stored.unwrap_or(hash);
            recorded.push(word, index, |_, _, hash| recorded_above.push(hash));
        }
        for (place, (level, index, hash)) in rebuilt_above.into_iter().enumerate() {
            let stored = self.stored(level, index);
            self.note_missing(level, index, stored);
            let Some(stored) = stored else { continue };
            if stored != hash && recorded_above.get(place) != Some(&stored) {
                let detail = format!(
                    "hash {} of tile {} of level {level} does not follow from the level below",
                    index % BLOCK,
                    index / BLOCK
                );
                let span = 1_u64 << (8 * level);
                self.findings.push(Finding::range(
                    Kind::TileAltered,
                    index * span,
                    index * span + span - 1,
                    detail,
                ));
            }
        }
        self.leaves.clear();
    }

    /// A tile must be there as far as the log was sealed. One that is not is reported once.
    fn note_missing(&mut self, level: usize, index: u64, stored: Option<Hash>) {
        let tile = (level, index / BLOCK);
        let span = 1_u64.checked_shl(8 * u32::try_from(level).unwrap_or(8)).unwrap_or(u64::MAX);
        let sealed = (index + 1).saturating_mul(span) <= self.log_size;
        if stored.is_none() && sealed && self.missing_tiles[level] != Some(tile.1) {
            self.missing_tiles[level] = Some(tile.1);
            let detail =
                format!("tile {} of level {level} is not stored, or not as wide as the log is long", tile.1);
            self.findings.push(Finding::about(Kind::TileMissing, None, detail));
        }
    }

    /// The stored hash `index` of a level.
    fn stored(&self, level: usize, index: u64) -> Option<Hash> {
        let place = usize::try_from(index % BLOCK).ok()?;
        self.tiles.get(&(level, index / BLOCK))?.get(place).copied()
    }

    /// Compares with a signed checkpoint of the present size.
    pub(crate) fn judge(&mut self, signed: &Signed) {
        debug_assert_eq!(signed.size, self.size);
        self.checkpoints += 1;
        if self.root() == signed.root {
            for block in std::mem::take(&mut self.pending) {
                let detail = "the hash of these events in a stored tile of level 1 was altered; the events are as signed";
                self.findings.push(Finding::range(
                    Kind::TileAltered,
                    block.first,
                    block.first + BLOCK - 1,
                    detail,
                ));
            }
            self.recorded = None;
            self.report_lost();
        } else if self.recorded.as_ref().is_some_and(|edge| edge.root(&self.leaves) == signed.root) {
            self.accept_recorded();
        } else {
            self.lost.get_or_insert_with(|| signed.clone());
            return;
        }
        self.confirmed = self.size;
    }

    /// The stored tiles have the signed log, so the entries of the pending blocks were altered.
    fn accept_recorded(&mut self) {
        if let Some(lost) = self.lost.take() {
            // The checkpoint that did not agree says no more than that what is altered stands before its size.
            let explains = |block: &Block| block.good_to < lost.size;
            match self.pending.iter_mut().find(|block| explains(block)) {
                Some(block) => block.bad_to = block.bad_to.min(lost.size),
                None => self.report_mismatch(&lost),
            }
        }
        self.altered.append(&mut self.pending);
        if let Some(recorded) = self.recorded.take() {
            self.rebuilt = recorded;
        }
    }

    fn report_lost(&mut self) {
        if let Some(lost) = self.lost.take() {
            self.report_mismatch(&lost);
        }
    }

    fn report_mismatch(&mut self, lost: &Signed) {
        let first = self.confirmed;
        let detail =
            format!("their log entries do not give the root of {} of size {}", lost.source, lost.size);
        let last = lost.size.saturating_sub(1).max(first);
        self.findings.push(Finding::range(Kind::CheckpointMismatch, first, last, detail));
    }

    /// The root as it is now.
    pub(crate) fn root(&self) -> Hash {
        self.rebuilt.root(&self.leaves)
    }

    /// To be called at the end: what no checkpoint has judged is reported as it is.
    pub(crate) fn finish(&mut self) {
        self.report_lost();
        for block in std::mem::take(&mut self.pending) {
            let detail = "their log entries and the stored tile of level 1 differ, and no checkpoint says which is right";
            self.findings.push(Finding::range(
                Kind::EntriesAltered,
                block.good_to,
                block.first + BLOCK - 1,
                detail,
            ));
        }
    }
}
