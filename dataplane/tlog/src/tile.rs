//! Tiles: how C2SP `tlog-tiles` cuts a tree into immutable pieces of up to 256 hashes, and what they are called.
//!
//! Owns tile names and the arithmetic of which tile holds what. A tile of level `l` holds roots of full subtrees of 256^l leaves;
//! a tile that is not full is named with its width, and the name tells its content apart from that of any other width. Names are
//! accepted in the one spelling the specification gives them.

use std::collections::BTreeMap;
use std::fmt;

use crate::hash::{HASH_BYTES, Hash};
use crate::tree::subtree_root;

/// Binary tree levels in one tile.
pub(crate) const TILE_HEIGHT: u8 = 8;
/// Hashes in a full tile.
pub const TILE_WIDTH: u16 = 1 << TILE_HEIGHT;
/// A tree of at most 2^63 - 1 leaves has tiles of levels 0 to 7.
pub const TILE_LEVELS: u8 = 8;
/// Longest tile path: `tile/7/` or `tile/entries/`, the index in at most 7 groups, and `.p/255`.
const PATH_BYTES_MAX: usize = 64;

/// Names a tile of hashes: `tile/<level>/<index>`, with `.p/<width>` when it is not full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TileId {
    level: u8,
    index: u64,
    width: u16,
}

/// Names a bundle of log entries: `tile/entries/<index>`, with `.p/<width>` when it is not full. It holds the entries whose leaf
/// hashes the tile of level 0 with the same index and width holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BundleId {
    index: u64,
    width: u16,
}

/// Why there is no such tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TileError {
    /// Levels go from 0 to 7.
    #[error("tile level {0} is above 7")]
    Level(u8),
    /// Widths go from 1 to 256.
    #[error("tile width {0} is not between 1 and 256")]
    Width(u16),
    /// The tile would lie beyond the largest tree.
    #[error("tile {index} of level {level} lies beyond the largest tree")]
    Index {
        /// Level of the tile.
        level: u8,
        /// Index of the tile in its level.
        index: u64,
    },
    /// The path is not spelled as tlog-tiles says.
    #[error("not a tile path")]
    Path,
    /// The bytes of a tile are not `width` hashes.
    #[error("tile {tile} has {got} bytes")]
    Length {
        /// The tile.
        tile: TileId,
        /// Number of bytes given for it.
        got: usize,
    },
}

impl TileId {
    /// The tile `index` of a level, with `width` hashes.
    ///
    /// # Errors
    /// When no tree of at most [`crate::SIZE_MAX`] leaves has such a tile.
    pub fn new(level: u8, index: u64, width: u16) -> Result<Self, TileError> {
        if level >= TILE_LEVELS {
            return Err(TileError::Level(level));
        }
        if !(1..=TILE_WIDTH).contains(&width) {
            return Err(TileError::Width(width));
        }
        let hashes =
            index.checked_mul(u64::from(TILE_WIDTH)).and_then(|first| first.checked_add(width.into()));
        if hashes.is_none_or(|hashes| hashes > hashes_at(level, crate::SIZE_MAX)) {
            return Err(TileError::Index { level, index });
        }
        Ok(Self { level, index, width })
    }

    /// The full tile `index` of a level, which the caller knows to exist.
    pub(crate) fn full(level: u8, index: u64) -> Self {
        Self { level, index, width: TILE_WIDTH }
    }

    /// The tile from which the root of the full subtree `index` of 2^`level` leaves follows, as wide as it is in a tree of `size`
    /// leaves; none if that tree does not have the whole subtree.
    #[must_use]
    pub fn of_subtree(level: u8, index: u64, size: u64) -> Option<Self> {
        let end = index.checked_add(1)?;
        if level >= 64 || size > crate::SIZE_MAX || end > size >> level {
            return None;
        }
        let tile_level = level / TILE_HEIGHT;
        Self::in_tree(tile_level, (index << (level % TILE_HEIGHT)) >> TILE_HEIGHT, size)
    }

    /// The tile `index` of a level, as wide as it is in a tree of `size` leaves; none if that tree has nothing in it.
    #[must_use]
    pub fn in_tree(level: u8, index: u64, size: u64) -> Option<Self> {
        if level >= TILE_LEVELS || size > crate::SIZE_MAX {
            return None;
        }
        let first = index.checked_mul(u64::from(TILE_WIDTH))?;
        let width = hashes_at(level, size).checked_sub(first)?.min(TILE_WIDTH.into());
        let width = u16::try_from(width).ok().filter(|width| *width > 0)?;
        Some(Self { level, index, width })
    }

    /// The level: each hash is the root of 256^level leaves.
    #[must_use]
    pub fn level(self) -> u8 {
        self.level
    }

    /// The place in the level, from 0.
    #[must_use]
    pub fn index(self) -> u64 {
        self.index
    }

    /// Number of hashes, 1 to 256.
    #[must_use]
    pub fn width(self) -> u16 {
        self.width
    }

    /// Whether the tile has all its 256 hashes, and so never changes again.
    #[must_use]
    pub fn is_full(self) -> bool {
        self.width == TILE_WIDTH
    }

    /// Length of the tile's bytes: 32 for each hash.
    #[must_use]
    pub fn byte_len(self) -> usize {
        usize::from(self.width) * HASH_BYTES
    }

    /// The path below the log's prefix, as in `tile/0/x001/x234/067.p/5`.
    #[must_use]
    pub fn path(self) -> String {
        self.to_string()
    }

    /// From a path, which must be spelled exactly as [`Self::path`] spells it.
    ///
    /// # Errors
    /// When it is not, or there can be no such tile.
    pub fn from_path(path: &str) -> Result<Self, TileError> {
        let (level, place) =
            path.strip_prefix("tile/").and_then(|rest| rest.split_once('/')).ok_or(TileError::Path)?;
        let (index, width) = parse_place(path, place)?;
        let tile = Self::new(crate::text::parse_decimal(level).ok_or(TileError::Path)?, index, width)?;
        exact(tile, path)
    }

    /// The tile's hashes from its bytes.
    ///
    /// # Errors
    /// When there are not exactly [`Self::byte_len`] bytes.
    pub fn hashes(self, bytes: &[u8]) -> Result<Vec<Hash>, TileError> {
        let (hashes, rest) = bytes.as_chunks();
        if hashes.len() != usize::from(self.width) || !rest.is_empty() {
            return Err(TileError::Length { tile: self, got: bytes.len() });
        }
        Ok(hashes.iter().copied().map(Hash).collect())
    }
}

impl fmt::Display for TileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tile/{}/", self.level)?;
        fmt_place(f, self.index, self.width)
    }
}

impl BundleId {
    /// The bundle `index` with `width` entries.
    ///
    /// # Errors
    /// When no tree of at most [`crate::SIZE_MAX`] leaves has such a bundle.
    pub fn new(index: u64, width: u16) -> Result<Self, TileError> {
        TileId::new(0, index, width).map(|tile| Self { index: tile.index, width: tile.width })
    }

    /// The place among the bundles, from 0.
    #[must_use]
    pub fn index(self) -> u64 {
        self.index
    }

    /// Number of entries, 1 to 256.
    #[must_use]
    pub fn width(self) -> u16 {
        self.width
    }

    /// The index in the log of the bundle's first entry.
    #[must_use]
    pub fn first_entry(self) -> u64 {
        self.index * u64::from(TILE_WIDTH)
    }

    /// The path below the log's prefix, as in `tile/entries/x001/067`.
    #[must_use]
    pub fn path(self) -> String {
        self.to_string()
    }

    /// From a path, which must be spelled exactly as [`Self::path`] spells it.
    ///
    /// # Errors
    /// When it is not, or there can be no such bundle.
    pub fn from_path(path: &str) -> Result<Self, TileError> {
        let place = path.strip_prefix("tile/entries/").ok_or(TileError::Path)?;
        let (index, width) = parse_place(path, place)?;
        exact(Self::new(index, width)?, path)
    }
}

impl fmt::Display for BundleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("tile/entries/")?;
        fmt_place(f, self.index, self.width)
    }
}

/// All tiles that a tree of `new_size` leaves has and one of `old_size` leaves had not, level by level; with `old_size` 0, all
/// tiles of the tree. Partial tiles are those of `new_size` only.
///
/// Lazy, as a large tree has many. Yields nothing when the tree did not grow or is larger than [`crate::SIZE_MAX`].
pub fn new_tiles(old_size: u64, new_size: u64) -> impl Iterator<Item = TileId> {
    (0..TILE_LEVELS).flat_map(move |level| {
        let width = u64::from(TILE_WIDTH);
        let (old, new) = (hashes_at(level, old_size), hashes_at(level, new_size));
        // The tile that the first new hash goes into, up to the tile after the last one.
        let end = if new > old { new.div_ceil(width) } else { 0 };
        (old / width..end).filter_map(move |index| TileId::in_tree(level, index, new_size))
    })
}

/// The partial tiles of a tree of `size` leaves, lowest level first: its right edge, from which [`crate::tree::Frontier::resume`]
/// goes on. At most one for each level; none for a level whose last tile is full.
pub fn partial_tiles(size: u64) -> impl Iterator<Item = TileId> {
    (0..TILE_LEVELS)
        .filter_map(move |level| TileId::in_tree(level, hashes_at(level, size) / u64::from(TILE_WIDTH), size))
}

/// Tiles at hand, from which proofs are built without IO: fetch what [`crate::proof::inclusion_tiles`] names, insert it, and
/// give [`Self::subtree_root`] to [`crate::proof::inclusion`].
///
/// Holds what it is given and checks none of it: a proof made from wrong tiles does not verify.
#[derive(Debug, Clone, Default)]
pub struct TileSet {
    /// By level and index: the widest seen, which serves for all narrower ones.
    tiles: BTreeMap<(u8, u64), Vec<Hash>>,
}

/// A tile that is needed is not in the [`TileSet`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("hashes {first} to {last} of level {level} are in no tile at hand")]
pub struct MissingTile {
    /// Level of the tile.
    pub level: u8,
    /// The first hash needed, counted in its level.
    pub first: u64,
    /// The last hash needed.
    pub last: u64,
}

impl TileSet {
    /// Without any tile.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a tile's bytes. A wider tile of the same place takes the place of a narrower one.
    ///
    /// # Errors
    /// When there are not exactly as many bytes as the tile has.
    pub fn insert(&mut self, tile: TileId, bytes: &[u8]) -> Result<(), TileError> {
        self.insert_hashes(tile, tile.hashes(bytes)?)
    }

    /// Adds a tile's hashes, like [`Self::insert`].
    ///
    /// # Errors
    /// When there are not exactly as many hashes as the tile has.
    pub fn insert_hashes(&mut self, tile: TileId, hashes: Vec<Hash>) -> Result<(), TileError> {
        if hashes.len() != usize::from(tile.width) {
            return Err(TileError::Length { tile, got: hashes.len() * HASH_BYTES });
        }
        let known = self.tiles.entry((tile.level, tile.index)).or_default();
        if known.len() < hashes.len() {
            *known = hashes;
        }
        Ok(())
    }

    /// The hashes of `tile`, if a tile at least as wide is there.
    #[must_use]
    pub fn hashes(&self, tile: TileId) -> Option<&[Hash]> {
        self.tiles.get(&(tile.level, tile.index))?.get(..usize::from(tile.width))
    }

    /// The root of the full subtree `index` of 2^`level` leaves.
    ///
    /// # Errors
    /// When the tile it follows from is not there, or not wide enough.
    pub fn subtree_root(&self, level: u8, index: u64) -> Result<Hash, MissingTile> {
        let tile_level = level / TILE_HEIGHT;
        let count = 1u64 << (level % TILE_HEIGHT);
        let first = index.saturating_mul(count);
        let place = usize::from(u8::try_from(first % u64::from(TILE_WIDTH)).unwrap_or_default());
        self.tiles
            .get(&(tile_level, first >> TILE_HEIGHT))
            .and_then(|tile| tile.get(place..place + (1 << (level % TILE_HEIGHT))))
            .map(subtree_root)
            .ok_or(MissingTile { level: tile_level, first, last: first.saturating_add(count - 1) })
    }
}

/// How many hashes of a tile level a tree of `size` leaves has.
fn hashes_at(level: u8, size: u64) -> u64 {
    size >> (level * TILE_HEIGHT)
}

fn fmt_place(f: &mut fmt::Formatter<'_>, index: u64, width: u16) -> fmt::Result {
    let mut divisor = 1_000_u64.pow(index.checked_ilog(1_000).unwrap_or_default());
    while divisor > 1 {
        write!(f, "x{:03}/", index / divisor % 1_000)?;
        divisor /= 1_000;
    }
    write!(f, "{:03}", index % 1_000)?;
    if width < TILE_WIDTH { write!(f, ".p/{width}") } else { Ok(()) }
}

/// Index and width. Liberal in spelling: callers compare with what the parsed name is written like.
fn parse_place(path: &str, place: &str) -> Result<(u64, u16), TileError> {
    if path.len() > PATH_BYTES_MAX {
        return Err(TileError::Path);
    }
    let (index, width) = match place.split_once(".p/") {
        Some((index, width)) => (index, crate::text::parse_decimal(width).ok_or(TileError::Path)?),
        None => (place, TILE_WIDTH),
    };
    let index = index.split('/').try_fold(0u64, |index, group| {
        let digits = group.strip_prefix('x').unwrap_or(group);
        let group: u64 = if digits.len() == 3 { digits.parse().ok()? } else { return None };
        index.checked_mul(1_000)?.checked_add(group)
    });
    Ok((index.ok_or(TileError::Path)?, width))
}

fn exact<T: fmt::Display>(name: T, path: &str) -> Result<T, TileError> {
    if name.to_string() == path { Ok(name) } else { Err(TileError::Path) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_are_those_of_the_specification() {
        for (level, index, width, path) in [
            (0, 0, 256, "tile/0/000"),
            (0, 1_234_067, 256, "tile/0/x001/x234/067"),
            (0, 1_234_067, 5, "tile/0/x001/x234/067.p/5"),
            (1, 999, 255, "tile/1/999.p/255"),
            (2, 1_000, 1, "tile/2/x001/000.p/1"),
        ] {
            let tile = TileId::new(level, index, width).unwrap();
            assert_eq!(tile.path(), path);
            assert_eq!(TileId::from_path(path), Ok(tile));
        }
        let bundle = BundleId::new(1_067, 9).unwrap();
        assert_eq!(bundle.path(), "tile/entries/x001/067.p/9");
        assert_eq!(BundleId::from_path("tile/entries/x001/067.p/9"), Ok(bundle));
    }

    #[test]
    fn no_other_spelling_is_a_path() {
        for path in [
            "",
            "tile",
            "tile/",
            "tile/0",
            "tile/0/",
            "/tile/0/000",
            "tile/0/0",
            "tile/0/00",
            "tile/0/0000",
            "tile/00/000",
            "tile/+0/000",
            "tile/0/x000",
            "tile/0/x000/001",
            "tile/0/001/000",
            "tile/0/x001/x000",
            "tile/0/001x",
            "tile/0/+01",
            "tile/0/000/",
            "tile/0/000.p",
            "tile/0/000.p/",
            "tile/0/000.p/01",
            "tile/0/000.p/256",
            "tile/0/000.p/1.p/1",
            "tile/0/000.p/99999",
            "tile/entries/000",
            "tile/data/000",
            "tile/0/ 00",
            "tile/0/٠٠٠",
            "tile/256/000",
        ] {
            assert_eq!(TileId::from_path(path), Err(TileError::Path), "{path}");
        }
        assert_eq!(TileId::from_path("tile/0/000.p/0"), Err(TileError::Width(0)));
        assert_eq!(TileId::from_path("tile/0/000.p/257"), Err(TileError::Width(257)));
        assert_eq!(BundleId::from_path("tile/0/000"), Err(TileError::Path));
    }

    #[test]
    fn tiles_beyond_the_largest_tree_do_not_exist() {
        assert_eq!(TileId::new(8, 0, 1), Err(TileError::Level(8)));
        assert_eq!(TileId::new(7, 0, 127).map(TileId::width), Ok(127));
        assert_eq!(TileId::new(7, 0, 128), Err(TileError::Index { level: 7, index: 0 }));
        assert_eq!(TileId::new(0, u64::MAX, 256), Err(TileError::Index { level: 0, index: u64::MAX }));
        assert_eq!(TileId::from_path("tile/63/000"), Err(TileError::Level(63)));
    }

    #[test]
    fn a_tree_of_70000_has_the_tiles_the_specification_counts() {
        let tiles: Vec<_> = new_tiles(0, 70_000).collect();
        let full = |level| tiles.iter().filter(|tile| tile.level() == level && tile.is_full()).count();
        assert_eq!((full(0), full(1), full(2)), (273, 1, 0));
        let partial: Vec<_> = partial_tiles(70_000).map(|tile| (tile.level(), tile.width())).collect();
        assert_eq!(partial, [(0, 112), (1, 17), (2, 1)]);
        assert_eq!(tiles.len(), 273 + 1 + 3);
        let of_256: Vec<_> = new_tiles(0, 256).map(TileId::path).collect();
        assert_eq!(of_256, ["tile/0/000", "tile/1/000.p/1"]);
    }

    proptest! {
        #[test]
        fn every_tile_is_read_back_from_its_path(level in 0u8..8, index: u64, width in 1u16..=256) {
            if let Ok(tile) = TileId::new(level, index.checked_shr(u32::from(level) * 8 + 9).unwrap_or(0), width) {
                prop_assert_eq!(TileId::from_path(&tile.path()), Ok(tile));
            }
        }

        #[test]
        fn new_tiles_are_those_the_smaller_tree_had_not(old in 0u64..70_000, grown in 0u64..2_000) {
            let before: std::collections::BTreeSet<_> = new_tiles(0, old).collect();
            let expected: Vec<_> = new_tiles(0, old + grown).filter(|tile| !before.contains(tile)).collect();
            prop_assert_eq!(new_tiles(old, old + grown).collect::<Vec<_>>(), expected);
        }
    }
}
