use std::convert::Infallible;

use super::*;
use crate::hash::leaf_hash;
use crate::tile::{TileSet, partial_tiles};
use crate::tree::Frontier;

/// RFC 6962, section 2.1, word for word: the model that everything else is compared with.
mod rfc {
    use crate::hash::{Hash, empty_root, node_hash};

    fn split(n: usize) -> usize {
        let mut k = 1;
        while k * 2 < n {
            k *= 2;
        }
        k
    }

    pub(super) fn mth(d: &[Hash]) -> Hash {
        match d.len() {
            0 => empty_root(),
            1 => d[0],
            n => node_hash(&mth(&d[..split(n)]), &mth(&d[split(n)..])),
        }
    }

    pub(super) fn path(m: usize, d: &[Hash]) -> Vec<Hash> {
        let n = d.len();
        if n == 1 {
            return Vec::new();
        }
        let k = split(n);
        let (mut path, other) =
            if m < k { (path(m, &d[..k]), mth(&d[k..])) } else { (path(m - k, &d[k..]), mth(&d[..k])) };
        path.push(other);
        path
    }

    pub(super) fn proof(m: usize, d: &[Hash]) -> Vec<Hash> {
        subproof(m, d, true)
    }

    fn subproof(m: usize, d: &[Hash], known: bool) -> Vec<Hash> {
        let n = d.len();
        if m == n {
            return if known { Vec::new() } else { vec![mth(d)] };
        }
        let k = split(n);
        let (mut proof, other) = if m <= k {
            (subproof(m, &d[..k], known), mth(&d[k..]))
        } else {
            (subproof(m - k, &d[k..], false), mth(&d[..k]))
        };
        proof.push(other);
        proof
    }
}

fn leaves(count: usize) -> Vec<Hash> {
    (0..count).map(|i| leaf_hash(&i.to_be_bytes())).collect()
}

/// The leaves of the test tree that the certificate-transparency project publishes, and its roots at all sizes.
const KNOWN_LEAVES: [&[u8]; 8] = [
    b"",
    b"\x00",
    b"\x10",
    b"\x20\x21",
    b"\x30\x31",
    b"\x40\x41\x42\x43",
    b"\x50\x51\x52\x53\x54\x55\x56\x57",
    b"\x60\x61\x62\x63\x64\x65\x66\x67\x68\x69\x6a\x6b\x6c\x6d\x6e\x6f",
];
const KNOWN_ROOTS: [&str; 8] = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
];

fn hex(hash: Hash) -> String {
    hash.0.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_published_test_tree() {
    let mut frontier = Frontier::new();
    let mut hashes = Vec::new();
    for (leaf, root) in KNOWN_LEAVES.into_iter().zip(KNOWN_ROOTS) {
        hashes.push(leaf_hash(leaf));
        frontier.append(leaf_hash(leaf), |_, _| {});
        assert_eq!(hex(frontier.root()), root);
        assert_eq!(hex(rfc::mth(&hashes)), root);
    }
    let read = |level: u8, index: u64| {
        let index = usize::try_from(index).unwrap();
        Ok::<_, Infallible>(rfc::mth(&hashes[index << level..(index + 1) << level]))
    };
    let inclusion =
        |index, size| inclusion(index, size, read).unwrap().into_iter().map(hex).collect::<Vec<_>>();
    let consistency =
        |old, new| consistency(old, new, read).unwrap().into_iter().map(hex).collect::<Vec<_>>();
    assert!(inclusion(0, 1).is_empty());
    assert_eq!(
        inclusion(5, 8),
        [
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ]
    );
    assert_eq!(inclusion(2, 3), ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"]);
    assert!(consistency(1, 1).is_empty());
    assert_eq!(
        consistency(6, 8),
        [
            "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ]
    );
}

/// A tree kept as a log keeps it: tiles, and nothing else; with what the model says of it.
struct Log {
    leaves: Vec<Hash>,
    roots: Vec<Hash>,
    tiles: TileSet,
}

/// The model hashes whole trees for every answer; larger proofs are compared by what they prove.
const MODEL_SIZE_MAX: usize = 520;

impl Log {
    fn new(size: usize) -> Self {
        let leaves = leaves(size);
        let mut roots = vec![empty_root()];
        let mut tiles = TileSet::new();
        let mut frontier = Frontier::new();
        for leaf in &leaves {
            frontier.append(*leaf, |tile, hashes| tiles.insert_hashes(tile, hashes.to_vec()).unwrap());
            roots.push(frontier.root());
        }
        for (tile, hashes) in frontier.partial_tiles() {
            tiles.insert_hashes(tile, hashes.to_vec()).unwrap();
        }
        assert_eq!(roots[size], rfc::mth(&leaves));
        Self { leaves, roots, tiles }
    }

    /// Only the tiles named, so that a test fails when one more would be needed.
    fn only(&self, names: &[TileId]) -> TileSet {
        let mut tiles = TileSet::new();
        for tile in names {
            tiles.insert_hashes(*tile, self.tiles.hashes(*tile).unwrap().to_vec()).unwrap();
        }
        tiles
    }

    fn check_inclusion(&self, index: usize, size: usize) {
        let (i, n) = (index as u64, size as u64);
        let tiles = self.only(&inclusion_tiles(i, n).unwrap());
        let proof = inclusion(i, n, |level, index| tiles.subtree_root(level, index)).unwrap();
        if size <= MODEL_SIZE_MAX {
            assert_eq!(proof, rfc::path(index, &self.leaves[..size]), "inclusion of {index} in {size}");
        }
        verify_inclusion(i, n, &self.leaves[index], &proof, &self.roots[size]).unwrap();
    }

    fn check_consistency(&self, old: usize, new: usize) {
        let (m, n) = (old as u64, new as u64);
        let tiles = self.only(&consistency_tiles(m, n).unwrap());
        let proof = consistency(m, n, |level, index| tiles.subtree_root(level, index)).unwrap();
        if (1..=MODEL_SIZE_MAX).contains(&old) && new <= MODEL_SIZE_MAX {
            assert_eq!(proof, rfc::proof(old, &self.leaves[..new]), "consistency of {old} and {new}");
        }
        verify_consistency(m, n, &self.roots[old], &self.roots[new], &proof).unwrap();
    }
}

#[test]
fn all_proofs_of_small_trees_are_those_of_the_rfc() {
    let log = Log::new(70);
    for size in 0..=70 {
        assert_eq!(log.roots[size], rfc::mth(&log.leaves[..size]));
        for index in 0..size {
            log.check_inclusion(index, size);
        }
        for old in 0..=size {
            log.check_consistency(old, size);
        }
    }
}

#[test]
fn proofs_around_tile_borders_hold() {
    let log = Log::new(65_800);
    let borders = [1, 255, 256, 257, 511, 512, 513, 65_535, 65_536, 65_537, 65_792, 65_793, 65_800];
    for size in borders {
        for other in borders.into_iter().filter(|other| *other <= size) {
            log.check_inclusion(other - 1, size);
            log.check_consistency(other, size);
        }
        let tiles = log.only(&partial_tiles(size as u64).collect::<Vec<_>>());
        let root = root(size as u64, |level, index| tiles.subtree_root(level, index));
        assert_eq!(root.unwrap(), log.roots[size]);
    }
}

#[test]
fn what_cannot_be_proven_is_named() {
    let hash = empty_root();
    let read = |_, _| Ok::<_, Infallible>(hash);
    let beyond = RangeError::Index { index: 5, size: 5 };
    let shrunk = RangeError::Shrunk { old: 6, new: 5 };
    assert_eq!(inclusion(5, 5, read), Err(beyond.into()));
    assert_eq!(inclusion(0, u64::MAX, read), Err(RangeError::Size(u64::MAX).into()));
    assert_eq!(consistency(6, 5, read), Err(shrunk.into()));
    assert_eq!(inclusion(0, 2, |_, _| Err("away")), Err(BuildError::Read("away")));
    assert_eq!(root(0, read), Ok(hash));

    assert_eq!(verify_inclusion(5, 5, &hash, &[], &hash), Err(beyond.into()));
    assert_eq!(
        verify_inclusion(0, 0, &hash, &[], &hash),
        Err(RangeError::Index { index: 0, size: 0 }.into())
    );
    assert_eq!(verify_inclusion(0, 2, &hash, &[], &hash), Err(VerifyError::Length { got: 0, want: 1 }));
    assert_eq!(verify_inclusion(0, 1, &hash, &[hash], &hash), Err(VerifyError::Length { got: 1, want: 0 }));
    assert_eq!(verify_inclusion(0, 2, &hash, &[hash], &hash), Err(VerifyError::Root));
    assert_eq!(verify_consistency(6, 5, &hash, &hash, &[]), Err(shrunk.into()));
    assert_eq!(verify_consistency(0, 5, &leaf_hash(b""), &hash, &[]), Err(VerifyError::OldRoot));
    assert_eq!(verify_consistency(0, 5, &hash, &hash, &[hash]), Err(VerifyError::Length { got: 1, want: 0 }));
    assert_eq!(verify_consistency(0, 0, &hash, &leaf_hash(b""), &[]), Err(VerifyError::Root));
    assert_eq!(verify_consistency(5, 5, &hash, &leaf_hash(b""), &[]), Err(VerifyError::Root));
    assert_eq!(verify_consistency(3, 5, &hash, &hash, &[]), Err(VerifyError::Length { got: 0, want: 4 }));
    assert_eq!(verify_consistency(3, 5, &hash, &hash, &[hash; 4]), Err(VerifyError::OldRoot));
}
