//! Tiles and entries of the log, from the database and from memory.
//!
//! Owns the queries and a bounded cache. Level 0 is computed from the entries in `certeus.batches`; what is above is stored.
//! What is read is not trusted: whoever uses it compares with a signed root; [`Reader::tile`] compares with the level above.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use certeus_tlog::tile::TileId;
use certeus_tlog::tree::root_of;
use certeus_tlog::{Hash, leaf_hash};
use deadpool_postgres::{Client, Pool};

use super::LogError;
use crate::envelope::ENTRY_BYTES;

/// Tiles kept in memory: at most twice this many, of 8 KiB each.
const CACHE_TILES: usize = 1024;
/// Leaves below a tile of level 0.
const TILE_EVENTS: u64 = 256;

/// `$2` levels, `$3` indexes.
const TILES: &str = "SELECT w.ord, t.hashes FROM unnest($2::smallint[], $3::bigint[]) WITH ORDINALITY AS w (level, tile_index, ord) \
     JOIN certeus.log_tiles t ON t.ledger = $1 AND t.level = w.level AND t.tile_index = w.tile_index";

/// `$2` first indexes, `$3` indexes after the last. Gives each batch's part of each range.
const ENTRIES: &str = "SELECT w.ord, b.first_index, b.part \
     FROM unnest($2::bigint[], $3::bigint[]) WITH ORDINALITY AS w (first, after, ord) \
     CROSS JOIN LATERAL (SELECT greatest(first_index, w.first) AS first_index, \
     substring(entries FROM (32 * greatest(w.first - first_index, 0))::integer + 1 \
     FOR (32 * least(event_count, w.after - greatest(first_index, w.first)))::integer) AS part \
     FROM certeus.batches WHERE ledger = $1 AND first_index >= \
     (SELECT coalesce(max(first_index), 0) FROM certeus.batches WHERE ledger = $1 AND first_index <= w.first) \
     AND first_index < w.after AND first_index + event_count > w.first) b ORDER BY w.ord, b.first_index";

/// A tile's content, which for a given id never changes.
type Hashes = Arc<[Hash]>;

/// Tiles in memory. Two generations: what is asked for moves into the young one; when that is full, the old one is dropped.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    generations: Mutex<[HashMap<TileId, Hashes>; 2]>,
}

impl Cache {
    fn get(&self, tile: TileId) -> Option<Hashes> {
        let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        let [young, old] = &mut *generations;
        if let Some(found) = young.get(&tile) {
            return Some(Arc::clone(found));
        }
        let found = old.remove(&tile)?;
        young.insert(tile, Arc::clone(&found));
        Some(found)
    }

    pub(crate) fn clear(&self) {
        *self.generations.lock().unwrap_or_else(PoisonError::into_inner) = Default::default();
    }

    fn put(&self, tile: TileId, hashes: Hashes) {
        let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        if generations[0].len() >= CACHE_TILES {
            generations[1] = std::mem::take(&mut generations[0]);
        }
        generations[0].insert(tile, hashes);
    }
}

/// Where tiles come from: memory, then the database.
pub(crate) struct Reader<'a> {
    pub(crate) ledger: &'a str,
    pub(crate) cache: &'a Cache,
    pub(crate) pool: &'a Pool,
}

impl Reader<'_> {
    /// The hashes of several tiles, each as wide as its id says: at most one query for level 0 and one for the others.
    pub(crate) async fn tiles(&self, wanted: &[TileId]) -> Result<Vec<(TileId, Hashes)>, LogError> {
        let mut found = Vec::with_capacity(wanted.len());
        let (mut leaves, mut nodes) = (Vec::new(), Vec::new());
        for tile in wanted {
            match self.cache.get(*tile) {
                Some(hashes) => found.push((*tile, hashes)),
                None if tile.level() == 0 => leaves.push(*tile),
                None => nodes.push(*tile),
            }
        }
        if leaves.is_empty() && nodes.is_empty() {
            return Ok(found);
        }
        let client = self.pool.get().await?;
        // Sent together on one connection: the wait is that of one.
        let (leaves, nodes) = tokio::try_join!(self.leaves(&client, &leaves), self.stored(&client, &nodes))?;
        for (tile, hashes) in leaves.into_iter().chain(nodes) {
            self.cache.put(tile, Arc::clone(&hashes));
            found.push((tile, hashes));
        }
        Ok(found)
    }

    /// Tiles of level 0.
    async fn leaves(&self, client: &Client, wanted: &[TileId]) -> Result<Vec<(TileId, Hashes)>, LogError> {
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let ranges: Vec<(u64, u16)> =
            wanted.iter().map(|tile| (tile.index() * TILE_EVENTS, tile.width())).collect();
        let entries = self.read_entries(client, &ranges).await?;
        let tiles = wanted.iter().zip(entries).map(|(tile, bytes)| {
            let hashes: Hashes = bytes.chunks(ENTRY_BYTES).map(leaf_hash).collect();
            if hashes.len() == usize::from(tile.width()) {
                Ok((*tile, hashes))
            } else {
                Err(LogError::Missing(*tile))
            }
        });
        tiles.collect()
    }

    /// Tiles above level 0, cut to their widths.
    async fn stored(&self, client: &Client, wanted: &[TileId]) -> Result<Vec<(TileId, Hashes)>, LogError> {
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let levels: Vec<i16> = wanted.iter().map(|tile| i16::from(tile.level())).collect();
        let indexes: Vec<i64> = wanted.iter().map(|tile| tile.index().cast_signed()).collect();
        let statement = client.prepare_cached(TILES).await?;
        let rows = client.query(&statement, &[&self.ledger, &levels, &indexes]).await?;
        let mut tiles = vec![None; wanted.len()];
        for row in rows {
            let ord = usize::try_from(row.get::<_, i64>(0) - 1).unwrap_or(usize::MAX);
            let (Some(tile), Some(place)) = (wanted.get(ord), tiles.get_mut(ord)) else { continue };
            let bytes = row.get::<_, &[u8]>(1).get(..tile.byte_len());
            *place = bytes.and_then(|bytes| tile.hashes(bytes).ok()).map(Hashes::from);
        }
        let tiles = wanted.iter().zip(tiles);
        tiles.map(|(tile, hashes)| Ok((*tile, hashes.ok_or(LogError::Missing(*tile))?))).collect()
    }

    /// The entries of ranges, given by first index and number; fewer where the database has fewer.
    pub(crate) async fn entries(&self, wanted: &[(u64, u16)]) -> Result<Vec<Vec<u8>>, LogError> {
        self.read_entries(&self.pool.get().await?, wanted).await
    }

    async fn read_entries(&self, client: &Client, wanted: &[(u64, u16)]) -> Result<Vec<Vec<u8>>, LogError> {
        let first: Vec<i64> = wanted.iter().map(|(first, _)| first.cast_signed()).collect();
        let after: Vec<i64> =
            wanted.iter().map(|(first, count)| (first + u64::from(*count)).cast_signed()).collect();
        let statement = client.prepare_cached(ENTRIES).await?;
        let rows = client.query(&statement, &[&self.ledger, &first, &after]).await?;
        let mut found = vec![Vec::new(); wanted.len()];
        for row in rows {
            let ord = usize::try_from(row.get::<_, i64>(0) - 1).unwrap_or(usize::MAX);
            let (Some(entries), Some((first, _))) = (found.get_mut(ord), wanted.get(ord)) else { continue };
            // After a gap nothing belongs here any more.
            let next = first + (entries.len() / ENTRY_BYTES) as u64;
            if u64::try_from(row.get::<_, i64>(1)) == Ok(next) {
                entries.extend_from_slice(row.get::<_, &[u8]>(2));
            }
        }
        Ok(found)
    }

    /// One tile, compared with the level above as a tree of `size` leaves has that.
    pub(crate) async fn tile(&self, tile: TileId, size: u64) -> Result<Hashes, LogError> {
        let found = self.tiles(&[tile]).await?;
        let (_, hashes) = found.into_iter().next().ok_or(LogError::Missing(tile))?;
        self.check_above(tile, root_of(&hashes), size).await?;
        Ok(hashes)
    }

    /// Compares the root of a full tile with its hash in the level above.
    pub(crate) async fn check_above(&self, tile: TileId, root: Hash, size: u64) -> Result<(), LogError> {
        let above = TileId::in_tree(tile.level() + 1, tile.index() / TILE_EVENTS, size);
        let Some(above) = above.filter(|_| tile.is_full()) else { return Ok(()) };
        let found = self.tiles(&[above]).await?;
        let place = usize::try_from(tile.index() % TILE_EVENTS).unwrap_or(usize::MAX);
        if found.first().and_then(|(_, hashes)| hashes.get(place)) == Some(&root) {
            return Ok(());
        }
        // The database may be put right meanwhile: nothing of this may stay in memory.
        self.cache.clear();
        Err(LogError::Altered(tile))
    }
}
