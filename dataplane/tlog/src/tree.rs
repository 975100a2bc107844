//! Growing a Merkle tree (RFC 6962, section 2.1): leaf hashes go in, completed tiles and roots come out.
//!
//! Owns [`Frontier`], the right edge of a tree, which is all that is needed to append. Never stores a tile: it hands each one out
//! once, when it is full, and shows the partial ones on request. An append hashes each leaf's share of nodes, one node per leaf
//! on average, and allocates nothing.

use crate::SIZE_MAX;
use crate::hash::{Hash, empty_root, node_hash};
use crate::tile::{TILE_HEIGHT, TILE_LEVELS, TILE_WIDTH, TileId, partial_tiles};

/// The right edge of a growing tree: roots of the full subtrees it is made of, and the hashes of the tiles not yet full.
#[derive(Debug, Clone)]
pub struct Frontier {
    size: u64,
    /// At `l` the root of the full subtree of 2^l leaves; meaningful where bit `l` of `size` is set.
    subtrees: [Hash; 64],
    /// For each tile level the hashes of its last tile, while that is not full.
    open: [Vec<Hash>; TILE_LEVELS as usize],
}

/// Why a frontier cannot go on from stored tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ResumeError<E> {
    /// No tree is that large.
    #[error("tree size {0} is above 2^63 - 1")]
    Size(u64),
    /// A tile has fewer hashes than the size asks for.
    #[error("{tile} has only {got} hashes")]
    Short {
        /// The tile as the tree size has it.
        tile: TileId,
        /// Number of hashes there are.
        got: usize,
    },
    /// A tile could not be read.
    #[error("cannot read a tile")]
    Read(#[source] E),
}

impl Default for Frontier {
    fn default() -> Self {
        Self::new()
    }
}

impl Frontier {
    /// Of the empty tree.
    #[must_use]
    pub fn new() -> Self {
        Self { size: 0, subtrees: [Hash([0; 32]); 64], open: Default::default() }
    }

    /// Of the tree of `size` leaves, from its partial tiles, which [`partial_tiles`] names beforehand. `read` may return more
    /// hashes than the tile's width, such as those of the full tile that has taken its place; what is beyond is not used.
    ///
    /// Trusts the tiles. Whoever does not compares [`Self::root`] with the root of a checkpoint.
    ///
    /// # Errors
    /// When a tile cannot be read or is too short, or `size` is above [`SIZE_MAX`].
    pub fn resume<E, T: AsRef<[Hash]>>(
        size: u64,
        mut read: impl FnMut(TileId) -> Result<T, E>,
    ) -> Result<Self, ResumeError<E>> {
        if size > SIZE_MAX {
            return Err(ResumeError::Size(size));
        }
        let mut frontier = Self { size, ..Self::new() };
        for tile in partial_tiles(size) {
            let hashes = read(tile).map_err(ResumeError::Read)?;
            let got = hashes.as_ref().len();
            let mut rest =
                hashes.as_ref().get(..tile.width().into()).ok_or(ResumeError::Short { tile, got })?;
            let level = usize::from(tile.level());
            frontier.open[level] = rest.to_vec();
            // A width of 0b101 is a subtree of four hashes and one of one.
            for bit in (0..usize::from(TILE_HEIGHT)).rev() {
                if tile.width() >> bit & 1 == 1 {
                    let (subtree, after) = rest.split_at(1 << bit);
                    frontier.subtrees[level * usize::from(TILE_HEIGHT) + bit] = subtree_root(subtree);
                    rest = after;
                }
            }
        }
        Ok(frontier)
    }

    /// Appends a leaf. Calls `completed` for each tile that this leaf makes full: of level 0 after every 256th leaf, of level 1
    /// after every 65,536th, and so on, lowest first.
    #[inline]
    pub fn append(&mut self, leaf: Hash, mut completed: impl FnMut(TileId, &[Hash])) {
        let mut hash = leaf;
        let mut level = 0u8;
        self.push(0, hash);
        while self.size >> level & 1 == 1 {
            hash = node_hash(&self.subtrees[usize::from(level)], &hash);
            level += 1;
            if level.is_multiple_of(TILE_HEIGHT) {
                let above = level / TILE_HEIGHT;
                let full = &mut self.open[usize::from(above - 1)];
                // `size` does not count this leaf yet, so that the tile is the one it falls into.
                completed(TileId::full(above - 1, self.size >> level), full);
                full.clear();
                self.push(above, hash);
            }
        }
        self.subtrees[usize::from(level)] = hash;
        self.size += 1;
    }

    /// Number of leaves.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The root of the tree as it is now: at most 63 hashes.
    #[must_use]
    pub fn root(&self) -> Hash {
        let mut full = (0..64).filter(|level| self.size >> level & 1 == 1).map(|level| &self.subtrees[level]);
        let Some(smallest) = full.next() else { return empty_root() };
        full.fold(*smallest, |right, left| node_hash(left, &right))
    }

    /// The partial tiles with their hashes, lowest level first: those of [`partial_tiles`].
    pub fn partial_tiles(&self) -> impl Iterator<Item = (TileId, &[Hash])> {
        partial_tiles(self.size).map(|tile| (tile, self.open[usize::from(tile.level())].as_slice()))
    }

    #[inline]
    fn push(&mut self, tile_level: u8, hash: Hash) {
        let open = &mut self.open[usize::from(tile_level)];
        if open.capacity() == 0 {
            open.reserve_exact(TILE_WIDTH.into());
        }
        open.push(hash);
    }
}

/// The root over leaf hashes, MTH in RFC 6962's words; for a tile's hashes, the hash that goes into the level above.
#[must_use]
pub fn root_of(hashes: &[Hash]) -> Hash {
    match hashes {
        [] => empty_root(),
        [leaf] => *leaf,
        _ => {
            let split = hashes.len().next_power_of_two() / 2;
            let (left, right) = hashes.split_at(split);
            node_hash(&root_of(left), &root_of(right))
        }
    }
}

/// The root over a power of two of hashes.
pub(crate) fn subtree_root(hashes: &[Hash]) -> Hash {
    debug_assert!(hashes.len().is_power_of_two());
    root_of(hashes)
}

#[cfg(test)]
mod tests;
