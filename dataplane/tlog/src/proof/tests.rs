use std::convert::Infallible;

use proptest::prelude::*;

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

#[test]
fn proofs_of_all_sizes_to_300_hold() {
    let log = Log::new(300);
    let mut levels = vec![log.leaves.clone()];
    while let Some(below) = levels.last().filter(|below| below.len() > 1) {
        levels.push(below.as_chunks().0.iter().map(|[left, right]| node_hash(left, right)).collect());
    }
    let read =
        |level: u8, index| Ok::<_, Infallible>(levels[usize::from(level)][usize::try_from(index).unwrap()]);
    for size in 71..=300u64 {
        let at = |size: u64| log.roots[usize::try_from(size).unwrap()];
        assert_eq!(at(size), rfc::mth(&log.leaves[..usize::try_from(size).unwrap()]));
        for old in 1..=size {
            let leaf = log.leaves[usize::try_from(old - 1).unwrap()];
            let proof = inclusion(old - 1, size, read).unwrap();
            verify_inclusion(old - 1, size, &leaf, &proof, &at(size)).unwrap();
            let proof = consistency(old, size, read).unwrap();
            verify_consistency(old, size, &at(old), &at(size), &proof).unwrap();
        }
    }
}

/// A tree of any size in which all leaves are alike but one, so that a subtree's root costs one hash per level.
struct SparseTree {
    size: u64,
    odd_one: u64,
    odd_leaf: Hash,
}

impl SparseTree {
    fn subtree(&self, level: u8, index: u64) -> Hash {
        assert!(
            level < 63 && (index + 1) << level <= self.size,
            "subtree {index} of level {level} is not in the tree"
        );
        let mut odd = self.odd_leaf;
        let mut plain = leaf_hash(b"plain");
        for below in 0..level {
            odd = if self.odd_one >> below & 1 == 1 {
                node_hash(&plain, &odd)
            } else {
                node_hash(&odd, &plain)
            };
            plain = node_hash(&plain, &plain);
        }
        if self.odd_one >> level == index { odd } else { plain }
    }

    fn read(&self) -> impl Fn(u8, u64) -> Result<Hash, Infallible> {
        |level, index| Ok(self.subtree(level, index))
    }

    /// The root of its first `size` leaves.
    fn root(&self, size: u64) -> Hash {
        root(size, self.read()).unwrap()
    }
}

/// Sizes of all magnitudes, with those around powers of two.
fn sizes() -> impl Strategy<Value = u64> {
    prop_oneof![
        1u64..=2_000,
        (0u32..63, 1u64..=crate::SIZE_MAX).prop_map(|(shift, size)| (size >> shift).max(1)),
        (1u32..63, -3i64..=3).prop_map(|(power, off)| (1u64 << power).saturating_add_signed(off).max(1)),
        Just(crate::SIZE_MAX),
    ]
}

proptest! {
    #[test]
    fn large_inclusion_proofs_hold_and_bind_everything(
        size in sizes(), index: u64, other_size in sizes(), other_index in sizes(), place: usize, flip in 1u8..,
    ) {
        let index = index % size;
        let tree = SparseTree { size, odd_one: index, odd_leaf: leaf_hash(b"odd") };
        let proof = inclusion(index, size, tree.read()).unwrap();
        let (leaf, root) = (tree.odd_leaf, tree.root(size));
        prop_assert_eq!(verify_inclusion(index, size, &leaf, &proof, &root), Ok(()));

        let other_index = other_index - 1;
        if other_index != index {
            prop_assert!(verify_inclusion(other_index, size, &leaf, &proof, &root).is_err());
        }
        let altered = flip_byte(&[vec![leaf, root], proof.clone()].concat(), place, flip);
        prop_assert!(verify_inclusion(index, size, &altered[0], &altered[2..], &altered[1]).is_err());
        prop_assert!(verify_inclusion(index, size, &leaf, &[proof.as_slice(), &[root]].concat(), &root).is_err());
        if let [_, shorter @ ..] = proof.as_slice() {
            prop_assert!(verify_inclusion(index, size, &leaf, shorter, &root).is_err());
        }
        // A size is not bound by the root alone: where another size gives a path of the same shape, a proof of one is a proof
        // of the other. Checkpoints sign both.
        if path_shape(index, size) != path_shape(index, other_size) || index >= other_size {
            prop_assert!(verify_inclusion(index, other_size, &leaf, &proof, &root).is_err());
        }
        let _ = verify_inclusion(index, u64::MAX, &leaf, &proof, &root);
    }

    #[test]
    fn large_consistency_proofs_hold_and_bind_everything(
        old in sizes(), grown in sizes(), odd_one in sizes(), place: usize, flip in 1u8..,
    ) {
        let new = old.saturating_add(grown).min(crate::SIZE_MAX);
        let tree = SparseTree { size: new, odd_one: odd_one % old, odd_leaf: leaf_hash(b"odd") };
        let proof = consistency(old, new, tree.read()).unwrap();
        let (old_root, new_root) = (tree.root(old), tree.root(new));
        prop_assert_eq!(verify_consistency(old, new, &old_root, &new_root, &proof), Ok(()));

        let altered = flip_byte(&[vec![old_root, new_root], proof.clone()].concat(), place, flip);
        prop_assert!(verify_consistency(old, new, &altered[0], &altered[1], &altered[2..]).is_err());
        prop_assert!(
            verify_consistency(old, new, &old_root, &new_root, &[proof.as_slice(), &[new_root]].concat()).is_err()
        );
        if let [_, shorter @ ..] = proof.as_slice() {
            prop_assert!(verify_consistency(old, new, &old_root, &new_root, shorter).is_err());
        }
        // An altered leaf of the old part makes another tree, which no proof connects with the old root.
        let forked = SparseTree { odd_leaf: leaf_hash(b"forked"), ..tree };
        let fork_proof = consistency(old, new, forked.read()).unwrap();
        let fork_root = forked.root(new);
        prop_assert!(verify_consistency(old, new, &old_root, &fork_root, &fork_proof).is_err());
        prop_assert!(verify_consistency(old, new, &old_root, &fork_root, &proof).is_err());
        let _ = verify_consistency(old, u64::MAX, &old_root, &new_root, &proof);
    }

    #[test]
    fn proofs_of_random_trees_are_those_of_the_rfc(size in 71usize..1_500, at: prop::sample::Index) {
        let leaves = leaves(size);
        let (index, old) = (at.index(size), at.index(size) + 1);
        let read = |level: u8, index: u64| {
            let index = usize::try_from(index).unwrap();
            Ok::<_, Infallible>(rfc::mth(&leaves[index << level..(index + 1) << level]))
        };
        prop_assert_eq!(inclusion(index as u64, size as u64, read), Ok(rfc::path(index, &leaves)));
        prop_assert_eq!(consistency(old as u64, size as u64, read), Ok(rfc::proof(old, &leaves)));
        prop_assert_eq!(root(size as u64, read), Ok(rfc::mth(&leaves)));
    }

    #[test]
    fn no_input_makes_a_verifier_panic(
        a: u64, b: u64, shift in 0u32..64, proof in prop::collection::vec(any::<[u8; 32]>().prop_map(Hash), 0..70),
    ) {
        let hash = leaf_hash(b"");
        for (small, large) in [(a, b), (a >> shift, b), (a >> shift, b >> shift), (a, u64::MAX), (u64::MAX, u64::MAX)] {
            // A tree of one leaf has that leaf as its root.
            let lone = (small, large) == (0, 1) && proof.is_empty();
            prop_assert!(lone || verify_inclusion(small, large, &hash, &proof, &hash).is_err());
            let same = small == large && proof.is_empty();
            prop_assert!(same || verify_consistency(small, large, &hash, &hash, &proof).is_err());
        }
    }
}

/// One byte of one hash altered.
fn flip_byte(hashes: &[Hash], place: usize, flip: u8) -> Vec<Hash> {
    let mut hashes = hashes.to_vec();
    let place = place % (hashes.len() * 32);
    hashes[place / 32].0[place % 32] ^= flip;
    hashes
}
