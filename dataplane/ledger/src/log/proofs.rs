//! What the log gives away: tiles, entries and proofs.
//!
//! Every proof is verified here before it leaves, against the signed root: what is altered in the database gives an error,
//! never a proof that does not hold.

use std::time::Duration;

use certeus_tlog::Hash;
use certeus_tlog::checkpoint::Checkpoint;
use certeus_tlog::leaf_hash;
use certeus_tlog::note::SignedNote;
use certeus_tlog::proof::{self, verify_consistency, verify_inclusion};
use certeus_tlog::tile::{BundleId, TileId, TileSet};
use certeus_tlog::tlog_proof::TlogProof;
use certeus_tlog::tree::root_of;
use uuid::Uuid;

use super::{Latest, LogError, Reader};
use crate::envelope::{ENTRY_BYTES, ENTRY_DOMAIN};
use crate::ledger::Ledger;
use crate::store::{Content, PAGE_BYTES_MAX, ReadError, StoredEvent};

/// First byte of `extra` when salt and envelope head follow.
pub(crate) const EXTRA_INTACT: u8 = 1;
/// First byte of `extra` when the log entry follows, of which payload and salt are destroyed.
pub(crate) const EXTRA_ERASED: u8 = 2;

/// An event with what proves that it is in the log.
#[derive(Debug)]
pub struct EventProof {
    /// The event.
    pub event: StoredEvent,
    /// The proof against the newest checkpoint. Its `extra` is what makes the log entry of the payload: the byte 1, the
    /// salt (32 bytes), and the envelope's head, which is everything before the payload. Of an erased event it is the byte 2
    /// and the log entry (32 bytes).
    pub proof: TlogProof,
}

/// A page of a case's events.
#[derive(Debug)]
pub struct CaseProofs {
    /// The events in index order; without a proof those that no checkpoint covers yet.
    pub events: Vec<(StoredEvent, Option<TlogProof>)>,
    /// Where the next page begins; `None` at the end.
    pub next_index: Option<u64>,
}

impl Ledger {
    fn tile_reader(&self) -> Reader<'_> {
        Reader { ledger: self.name(), cache: &self.shared().log.cache, pool: &self.shared().pool }
    }

    /// A tile of the newest checkpoint's tree, or of an earlier one.
    ///
    /// # Errors
    /// When the tree does not have it, the database is away and it is not in memory, or was altered.
    pub async fn log_tile(&self, tile: TileId) -> Result<Vec<u8>, LogError> {
        let size = self.checkpoint()?.signed.checkpoint.size();
        covers(tile, size)?;
        let hashes = self.tile_reader().tile(tile, size).await?;
        Ok(hashes.iter().flat_map(|hash| hash.0).collect())
    }

    /// A bundle of log entries, each with its length before it (C2SP `tlog-tiles`).
    ///
    /// # Errors
    /// As for [`Self::log_tile`].
    pub async fn log_entries(&self, bundle: BundleId) -> Result<Vec<u8>, LogError> {
        let size = self.checkpoint()?.signed.checkpoint.size();
        let tile = TileId::new(0, bundle.index(), bundle.width())
            .map_err(|_| LogError::Beyond { what: bundle.to_string(), size })?;
        covers(tile, size)?;
        let reader = self.tile_reader();
        let read = reader.entries(&[(bundle.first_entry(), bundle.width())]).await?;
        let entries = read.into_iter().next().unwrap_or_default();
        if entries.len() != usize::from(bundle.width()) * ENTRY_BYTES {
            return Err(LogError::Missing(tile));
        }
        if tile.is_full() {
            let hashes: Vec<Hash> = entries.chunks(ENTRY_BYTES).map(leaf_hash).collect();
            reader.check_above(tile, root_of(&hashes), size).await?;
        }
        let length = u16::try_from(ENTRY_BYTES).unwrap_or(u16::MAX).to_be_bytes();
        Ok(entries.chunks(ENTRY_BYTES).flat_map(|entry| length.iter().chain(entry)).copied().collect())
    }

    /// The proof that the tree of one size begins with that of another, both up to the newest checkpoint's.
    ///
    /// # Errors
    /// When a size is beyond the newest checkpoint, or the tiles cannot be read.
    pub async fn log_consistency(&self, from: u64, to: u64) -> Result<Vec<Hash>, LogError> {
        let latest = self.checkpoint()?.signed.checkpoint.clone();
        let size = latest.size();
        if from > to || to > size {
            return Err(LogError::Beyond { what: format!("the sizes {from} to {to}"), size });
        }
        let (old_root, new_root) = (self.root_at(from).await?, self.root_at(to).await?);
        let proof = self.prove(from, to).await?;
        verify_consistency(from, to, &old_root, &new_root, &proof).map_err(|_| LogError::Unproven)?;
        // The roots were computed from the same tiles: that those are the signed ones shows only this.
        let proof_to_latest = self.prove(to, size).await?;
        verify_consistency(to, size, &new_root, &latest.root(), &proof_to_latest)
            .map_err(|_| LogError::Unproven)?;
        Ok(proof)
    }

    /// A consistency proof from what is stored, not verified.
    pub(crate) async fn prove(&self, from: u64, to: u64) -> Result<Vec<Hash>, LogError> {
        let beyond = || LogError::Beyond { what: format!("the sizes {from} to {to}"), size: to };
        let tiles = proof::consistency_tiles(from, to).map_err(|_| beyond())?;
        let set = self.tile_set(&tiles).await?;
        proof::consistency(from, to, |level, index| set.subtree_root(level, index))
            .map_err(|_| LogError::Unproven)
    }

    /// The partial tiles of the tree of a size: its right edge.
    pub(crate) async fn edge(&self, size: u64) -> Result<Vec<(TileId, Vec<Hash>)>, LogError> {
        let tiles: Vec<TileId> = certeus_tlog::tile::partial_tiles(size).collect();
        let found = self.tile_reader().tiles(&tiles).await?;
        Ok(found.into_iter().map(|(tile, hashes)| (tile, hashes.to_vec())).collect())
    }

    async fn root_at(&self, size: u64) -> Result<Hash, LogError> {
        let tiles: Vec<TileId> = certeus_tlog::tile::partial_tiles(size).collect();
        let set = self.tile_set(&tiles).await?;
        proof::root(size, |level, index| set.subtree_root(level, index)).map_err(|_| LogError::Unproven)
    }

    async fn tile_set(&self, tiles: &[TileId]) -> Result<TileSet, LogError> {
        let mut set = TileSet::new();
        for (tile, hashes) in self.tile_reader().tiles(tiles).await? {
            set.insert_hashes(tile, hashes.to_vec()).map_err(|_| LogError::Missing(tile))?;
        }
        Ok(set)
    }

    /// An event with its proof against the newest checkpoint. With `wait`, one that covers the event is asked for and
    /// waited for.
    ///
    /// # Errors
    /// When no checkpoint covers the event, or event or tiles cannot be read or were altered.
    pub async fn event_proof(
        &self,
        id: Uuid,
        wait: Option<Duration>,
    ) -> Result<Option<EventProof>, LogError> {
        self.checkpoint()?;
        let mut hashed = Vec::new();
        let Some(event) = self.event_in(id, &mut hashed).await? else { return Ok(None) };
        let index = event.index;
        let mut latest = self.checkpoint()?;
        if latest.signed.checkpoint.size() <= index {
            let size = latest.signed.checkpoint.size();
            let Some(timeout) = wait else { return Err(LogError::NotSealed { index, size }) };
            latest = self.sealed(index + 1, timeout).await?;
        }
        let proof = self.proof_of(&event, &hashed, &latest).await?;
        Ok(Some(EventProof { event, proof }))
    }

    /// The events of a case from an index on, each with its proof against the newest checkpoint if that covers it, and where
    /// the next page begins.
    ///
    /// # Errors
    /// When an event or a tile cannot be read or was altered.
    pub async fn case_proofs(
        &self,
        case_id: &str,
        first_index: u64,
        limit: usize,
    ) -> Result<CaseProofs, LogError> {
        let latest = match self.checkpoint() {
            Ok(latest) => Some(latest),
            Err(LogError::Off | LogError::NoCheckpoint) => None,
            Err(error) => return Err(error),
        };
        let page = self.case_events(case_id, first_index, limit).await?;
        let (mut events, mut bytes) = (Vec::new(), 0);
        for found in page.events {
            if bytes >= PAGE_BYTES_MAX {
                return Ok(CaseProofs { events, next_index: Some(found.index) });
            }
            let mut hashed = Vec::new();
            let event = self.event_in(found.id, &mut hashed).await?;
            let event = event.filter(|event| event.index == found.index);
            // The case's list is written in the event's own transaction.
            let event = event.ok_or(ReadError::Impossible(found.id))?;
            let covers = |latest: &&Latest| latest.signed.checkpoint.size() > event.index;
            let proof = match latest.as_ref().filter(covers) {
                Some(latest) => Some(self.proof_of(&event, &hashed, latest).await?),
                None => None,
            };
            bytes += event.payload().map_or(0, <[u8]>::len);
            events.push((event, proof));
        }
        Ok(CaseProofs { events, next_index: page.next_index })
    }

    /// `hashed` is what was hashed of the event before its payload.
    async fn proof_of(
        &self,
        event: &StoredEvent,
        hashed: &[u8],
        latest: &Latest,
    ) -> Result<TlogProof, LogError> {
        let extra = extra(event, hashed);
        self.entry_proof(event.index, &event.entry, extra, latest).await
    }

    /// The verified proof that the log has an entry at an index.
    pub(crate) async fn entry_proof(
        &self,
        index: u64,
        entry: &[u8; ENTRY_BYTES],
        extra: Vec<u8>,
        latest: &Latest,
    ) -> Result<TlogProof, LogError> {
        let checkpoint: &Checkpoint = &latest.signed.checkpoint;
        let size = checkpoint.size();
        let tiles = proof::inclusion_tiles(index, size).map_err(|_| LogError::NotSealed { index, size })?;
        let set = self.tile_set(&tiles).await?;
        let hashes = proof::inclusion(index, size, |level, index| set.subtree_root(level, index))
            .map_err(|_| LogError::Unproven)?;
        verify_inclusion(index, size, &leaf_hash(entry), &hashes, &checkpoint.root()).map_err(|_| {
            // It may be these that are wrong, and the database may be right by now.
            self.shared().log.cache.clear();
            LogError::Unproven
        })?;
        let checkpoint = SignedNote::parse(latest.signed.note.as_bytes()).map_err(|_| LogError::Unproven)?;
        Ok(TlogProof { extra, index, hashes, checkpoint })
    }
}

/// What a proof says beside the proof itself; `hashed` is what was hashed of the event before its payload.
pub(crate) fn extra(event: &StoredEvent, hashed: &[u8]) -> Vec<u8> {
    match &event.content {
        // What was hashed begins with the domain, which is known.
        Content::Intact { .. } => {
            [&[EXTRA_INTACT], hashed.get(ENTRY_DOMAIN.len()..).unwrap_or_default()].concat()
        }
        Content::Erased(_) => [&[EXTRA_ERASED], &event.entry[..]].concat(),
    }
}

/// Whether a tree of this size has all of a tile.
fn covers(tile: TileId, size: u64) -> Result<(), LogError> {
    let has = TileId::in_tree(tile.level(), tile.index(), size).map_or(0, TileId::width);
    if tile.width() <= has { Ok(()) } else { Err(LogError::Beyond { what: tile.to_string(), size }) }
}
