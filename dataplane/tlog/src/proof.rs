//! Inclusion and consistency proofs (RFC 6962, section 2.1; verification as in RFC 9162, sections 2.1.3.2 and 2.1.4.2).
//!
//! Owns which hashes make a proof, and what a proof must satisfy. Building reads stored hashes through a function of the caller;
//! which tiles that takes is known beforehand, so that they can be fetched first and the proof built without IO from a
//! [`crate::tile::TileSet`]. Verifying never allocates and never panics, whatever it is given.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::hash::{Hash, empty_root, node_hash};
use crate::tile::TileId;

/// A proof has at most this many hashes: one per level, and one more for consistency.
pub const PROOF_HASHES_MAX: usize = 65;

/// Why there is no such proof, whatever its hashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// An index counts from 0.
    #[error("index {index} is not in a tree of {size} leaves")]
    Index {
        /// Index asked for.
        index: u64,
        /// Size of the tree.
        size: u64,
    },
    /// A tree only grows.
    #[error("a tree of {new} leaves cannot follow one of {old}")]
    Shrunk {
        /// Size of the earlier tree.
        old: u64,
        /// Size of the later tree.
        new: u64,
    },
    /// No tree that is built here is that large.
    #[error("tree size {0} is above 2^63 - 1")]
    Size(u64),
}

/// Why a proof could not be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BuildError<E> {
    /// There is no such proof.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// A stored hash could not be read.
    #[error("cannot read a stored hash")]
    Read(#[source] E),
}

/// Why a proof does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// There is no such proof.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// Index and sizes alone say how many hashes a proof has.
    #[error("the proof has {got} hashes, and must have {want}")]
    Length {
        /// Hashes there are.
        got: usize,
        /// Hashes there must be.
        want: usize,
    },
    /// The proof leads to another root than the tree's: leaf, index, size, proof or root is not as it was.
    #[error("the proof does not lead to the root")]
    Root,
    /// The proof leads to another root than that of the earlier tree.
    #[error("the proof does not lead to the earlier root")]
    OldRoot,
}

/// The proof that the tree of `size` leaves has a certain leaf at `index`, leaf's sibling first.
///
/// `read(level, index)` returns the root of the full subtree `index` of 2^`level` leaves.
///
/// # Errors
/// When the index is not in the tree, or with what `read` returned.
pub fn inclusion<E>(
    index: u64,
    size: u64,
    read: impl FnMut(u8, u64) -> Result<Hash, E>,
) -> Result<Vec<Hash>, BuildError<E>> {
    build(&inclusion_ranges(index, size)?, read)
}

/// The tiles that [`inclusion`] reads from, each as wide as it is in the tree of `size` leaves.
///
/// # Errors
/// When the index is not in the tree.
pub fn inclusion_tiles(index: u64, size: u64) -> Result<Vec<TileId>, RangeError> {
    Ok(tiles(&inclusion_ranges(index, size)?, size))
}

/// The proof that the tree of `new_size` leaves begins with the tree of `old_size` leaves. Empty if `old_size` is 0 or both are
/// the same. For `read` see [`inclusion`].
///
/// # Errors
/// When the earlier tree is the larger, or with what `read` returned.
pub fn consistency<E>(
    old_size: u64,
    new_size: u64,
    read: impl FnMut(u8, u64) -> Result<Hash, E>,
) -> Result<Vec<Hash>, BuildError<E>> {
    build(&consistency_ranges(old_size, new_size)?, read)
}

/// The tiles that [`consistency`] reads from, each as wide as it is in the tree of `new_size` leaves.
///
/// # Errors
/// When the earlier tree is the larger.
pub fn consistency_tiles(old_size: u64, new_size: u64) -> Result<Vec<TileId>, RangeError> {
    Ok(tiles(&consistency_ranges(old_size, new_size)?, new_size))
}

/// The tree's root, from stored hashes; for `read` see [`inclusion`]. Reads from the tiles of [`crate::tile::partial_tiles`].
///
/// # Errors
/// When `size` is above [`crate::SIZE_MAX`], or with what `read` returned.
pub fn root<E>(size: u64, read: impl FnMut(u8, u64) -> Result<Hash, E>) -> Result<Hash, BuildError<E>> {
    let whole = 0..buildable(size)?;
    let hashes = if size == 0 { Vec::new() } else { build(std::slice::from_ref(&whole), read)? };
    Ok(hashes.first().copied().unwrap_or_else(empty_root))
}

/// Checks that the tree with `root` and `size` leaves has the leaf with `leaf_hash` at `index`.
///
/// # Errors
/// When it is not proven, with the reason.
pub fn verify_inclusion(
    index: u64,
    size: u64,
    leaf_hash: &Hash,
    proof: &[Hash],
    root: &Hash,
) -> Result<(), VerifyError> {
    if index >= size {
        return Err(RangeError::Index { index, size }.into());
    }
    let (inner, border) = path_shape(index, size);
    expect_length(proof, inner + border)?;
    let (inner_path, border_path) = proof.split_at(inner);
    let subtree = climb(*leaf_hash, index, inner_path);
    let computed = border_path.iter().fold(subtree, |right, left| node_hash(left, &right));
    if computed == *root { Ok(()) } else { Err(VerifyError::Root) }
}

/// Checks that the tree with `new_root` and `new_size` leaves begins with the tree with `old_root` and `old_size` leaves. Every
/// tree begins with the empty one.
///
/// # Errors
/// When it is not proven, with the reason.
pub fn verify_consistency(
    old_size: u64,
    new_size: u64,
    old_root: &Hash,
    new_root: &Hash,
    proof: &[Hash],
) -> Result<(), VerifyError> {
    if old_size > new_size {
        return Err(RangeError::Shrunk { old: old_size, new: new_size }.into());
    }
    if old_size == 0 {
        expect_length(proof, 0)?;
        if *old_root != empty_root() {
            return Err(VerifyError::OldRoot);
        }
        return if new_size > 0 || new_root == old_root { Ok(()) } else { Err(VerifyError::Root) };
    }
    if old_size == new_size {
        expect_length(proof, 0)?;
        return if new_root == old_root { Ok(()) } else { Err(VerifyError::Root) };
    }
    // The path starts at the largest full subtree that ends the old tree. If that is the whole old tree, its root is known;
    // else the proof begins with it.
    let start_level = old_size.trailing_zeros();
    let (inner, border) = path_shape(old_size - 1, new_size);
    let inner = inner - start_level as usize;
    let (start, path) = if old_size.is_power_of_two() {
        expect_length(proof, inner + border)?;
        (*old_root, proof)
    } else {
        expect_length(proof, 1 + inner + border)?;
        proof.split_first().map(|(first, rest)| (*first, rest)).ok_or(VerifyError::OldRoot)?
    };
    let (inner_path, border_path) = path.split_at(inner);
    let position = (old_size - 1) >> start_level;
    let left_of_old =
        (0u32..).zip(inner_path).filter(|(level, _)| bit(position, *level)).map(|(_, hash)| hash);
    let old = left_of_old.chain(border_path).fold(start, |right, left| node_hash(left, &right));
    if old != *old_root {
        return Err(VerifyError::OldRoot);
    }
    let subtree = climb(start, position, inner_path);
    let new = border_path.iter().fold(subtree, |right, left| node_hash(left, &right));
    if new == *new_root { Ok(()) } else { Err(VerifyError::Root) }
}

/// The number of hashes in the path of leaf `index < size`: below the level where the leaf's way and the tree's right edge part
/// a sibling may be on either side, and there is one for each level; above, siblings are to the left, and only where there are any.
fn path_shape(index: u64, size: u64) -> (usize, usize) {
    let inner = u64::BITS - (index ^ (size - 1)).leading_zeros();
    let border = index.checked_shr(inner).unwrap_or(0).count_ones();
    (inner as usize, border as usize)
}

/// The root of the subtree reached from `start`, the subtree at `position` of its level, by one sibling per level.
fn climb(start: Hash, position: u64, siblings: &[Hash]) -> Hash {
    (0u32..).zip(siblings).fold(start, |hash, (level, sibling)| {
        if bit(position, level) { node_hash(sibling, &hash) } else { node_hash(&hash, sibling) }
    })
}

fn bit(number: u64, place: u32) -> bool {
    number.checked_shr(place).is_some_and(|shifted| shifted & 1 == 1)
}

fn expect_length(proof: &[Hash], want: usize) -> Result<(), VerifyError> {
    if proof.len() == want { Ok(()) } else { Err(VerifyError::Length { got: proof.len(), want }) }
}

fn buildable(size: u64) -> Result<u64, RangeError> {
    if size > crate::SIZE_MAX { Err(RangeError::Size(size)) } else { Ok(size) }
}

/// The leaves below each hash of the proof, in proof order: PATH(m, D[n]) of RFC 6962, section 2.1.1.
fn inclusion_ranges(index: u64, size: u64) -> Result<Vec<Range<u64>>, RangeError> {
    if index >= buildable(size)? {
        return Err(RangeError::Index { index, size });
    }
    let mut ranges = Vec::new();
    let mut tree = 0..size;
    while tree.end - tree.start > 1 {
        let split = split(&tree);
        ranges.push(descend(&mut tree, split, index < split));
    }
    ranges.reverse();
    Ok(ranges)
}

/// The leaves below each hash of the proof, in proof order: PROOF(m, D[n]) of RFC 6962, section 2.1.2.
fn consistency_ranges(old_size: u64, new_size: u64) -> Result<Vec<Range<u64>>, RangeError> {
    if old_size > buildable(new_size)? {
        return Err(RangeError::Shrunk { old: old_size, new: new_size });
    }
    let mut ranges = Vec::new();
    if old_size == 0 || old_size == new_size {
        return Ok(ranges);
    }
    let mut tree = 0..new_size;
    // Down to the largest full subtree that ends the old tree.
    while tree.end != old_size {
        let split = split(&tree);
        ranges.push(descend(&mut tree, split, old_size <= split));
    }
    // The verifier knows that subtree's root if it is the whole old tree.
    if tree.start > 0 {
        ranges.push(tree);
    }
    ranges.reverse();
    Ok(ranges)
}

/// Goes down to one side of `split`, and returns the other.
fn descend(tree: &mut Range<u64>, split: u64, to_left: bool) -> Range<u64> {
    if to_left {
        split..std::mem::replace(&mut tree.end, split)
    } else {
        std::mem::replace(&mut tree.start, split)..split
    }
}

/// Where a tree of two or more leaves parts: after the largest power of two of leaves below its number.
fn split(tree: &Range<u64>) -> u64 {
    let last = tree.end - tree.start - 1;
    tree.start + (1 << last.ilog2())
}

/// The full subtrees that make up a range, as level and index, largest and leftmost first. The range starts at a multiple of
/// the power of two not below its length, as those of proofs do.
fn full_subtrees(range: &Range<u64>) -> impl Iterator<Item = (u8, u64)> + use<> {
    let Range { mut start, end } = *range;
    std::iter::from_fn(move || {
        let level = (end - start).checked_ilog2()?;
        let index = start >> level;
        start += 1 << level;
        Some((u8::try_from(level).unwrap_or(u8::MAX), index))
    })
}

fn build<E>(
    ranges: &[Range<u64>],
    mut read: impl FnMut(u8, u64) -> Result<Hash, E>,
) -> Result<Vec<Hash>, BuildError<E>> {
    let mut proof = Vec::with_capacity(ranges.len());
    for range in ranges {
        let roots = full_subtrees(range)
            .map(|(level, index)| read(level, index))
            .collect::<Result<Vec<_>, E>>()
            .map_err(BuildError::Read)?;
        let root = roots.into_iter().rev().reduce(|right, left| node_hash(&left, &right));
        // No range is empty.
        proof.extend(root);
    }
    Ok(proof)
}

fn tiles(ranges: &[Range<u64>], size: u64) -> Vec<TileId> {
    let tiles: BTreeSet<_> = ranges
        .iter()
        .flat_map(full_subtrees)
        .filter_map(|(level, index)| TileId::of_subtree(level, index, size))
        .collect();
    tiles.into_iter().collect()
}

#[cfg(test)]
mod tests;
