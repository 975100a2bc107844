use std::collections::BTreeMap;
use std::convert::Infallible;

use proptest::prelude::*;

use super::*;
use crate::leaf_hash;
use crate::tile::{TileSet, new_tiles};

fn leaf(index: u64) -> Hash {
    leaf_hash(&index.to_be_bytes())
}

/// Appends up to `size`, keeping all tiles that get full.
fn grow(frontier: &mut Frontier, size: u64, tiles: &mut BTreeMap<TileId, Vec<Hash>>) {
    for index in frontier.size()..size {
        frontier.append(leaf(index), |tile, hashes| {
            assert!(tiles.insert(tile, hashes.to_vec()).is_none(), "{tile} completed twice");
        });
    }
}

fn all_tiles(frontier: &Frontier, full: &BTreeMap<TileId, Vec<Hash>>) -> BTreeMap<TileId, Vec<Hash>> {
    let mut tiles = full.clone();
    tiles.extend(frontier.partial_tiles().map(|(tile, hashes)| (tile, hashes.to_vec())));
    tiles
}

#[test]
fn each_tile_is_handed_out_once_and_holds_what_its_name_says() {
    let size = 66_304;
    let mut frontier = Frontier::new();
    let mut full = BTreeMap::new();
    grow(&mut frontier, size, &mut full);
    let tiles = all_tiles(&frontier, &full);
    assert_eq!(tiles.keys().copied().collect::<Vec<_>>(), new_tiles(0, size).collect::<Vec<_>>());
    let leaves: Vec<_> = (0..size).map(leaf).collect();
    for (tile, hashes) in tiles {
        let leaves_each = 256usize.pow(tile.level().into());
        let first = usize::try_from(tile.index()).unwrap() * 256 * leaves_each;
        for (place, hash) in hashes.iter().enumerate() {
            let start = first + place * leaves_each;
            assert_eq!(*hash, root_of(&leaves[start..start + leaves_each]), "{tile} at {place}");
        }
    }
    assert_eq!(frontier.root(), root_of(&leaves));
}

#[test]
fn what_does_not_fit_the_size_is_refused() {
    let resume = |size, hashes: usize| {
        Frontier::resume(size, |_| Ok::<_, Infallible>(vec![leaf(0); hashes])).map(|frontier| frontier.size())
    };
    let short = ResumeError::Short { tile: TileId::new(0, 0, 3).unwrap(), got: 2 };
    assert_eq!(resume(3, 2), Err(short));
    assert_eq!(resume(3, 256), Ok(3));
    assert_eq!(resume(0, 0), Ok(0));
    assert_eq!(resume(SIZE_MAX, 256), Ok(SIZE_MAX));
    assert_eq!(resume(SIZE_MAX + 1, 256), Err(ResumeError::Size(SIZE_MAX + 1)));
    let unread = Frontier::resume(3, |_| Err::<Vec<Hash>, _>("away"));
    assert_eq!(unread.map(|frontier| frontier.size()), Err(ResumeError::Read("away")));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn resuming_from_tiles_is_like_never_having_stopped(
        stop in prop_oneof![0u64..1_200, 65_000u64..66_500],
        more in 0u64..800,
    ) {
        let mut straight = Frontier::new();
        let mut full = BTreeMap::new();
        grow(&mut straight, stop, &mut full);

        let mut stored = TileSet::new();
        for (tile, hashes) in all_tiles(&straight, &full) {
            stored.insert_hashes(tile, hashes).unwrap();
        }
        let mut resumed = Frontier::resume(stop, |tile| stored.hashes(tile).ok_or(tile)).unwrap();
        prop_assert_eq!(resumed.root(), straight.root());

        let (mut straight_full, mut resumed_full) = (BTreeMap::new(), BTreeMap::new());
        grow(&mut straight, stop + more, &mut straight_full);
        grow(&mut resumed, stop + more, &mut resumed_full);
        prop_assert_eq!(resumed.root(), straight.root());
        prop_assert_eq!(all_tiles(&resumed, &resumed_full), all_tiles(&straight, &straight_full));

        // The full tile that came later serves an older size as well.
        for (tile, hashes) in straight_full {
            stored.insert_hashes(tile, hashes).unwrap();
        }
        let again = Frontier::resume(stop, |tile| stored.hashes(tile).ok_or(tile)).unwrap();
        prop_assert_eq!(again.size(), stop);
        prop_assert_eq!(again.root(), Frontier::resume(stop, |tile| stored.hashes(tile).ok_or(tile)).unwrap().root());
    }
}
