//! Checks that one checkpoint follows from another, with hashes from a file or from the log's tiles.
//!
//! What the log answers is not trusted: a proof made from wrong tiles does not verify.

use certeus_tlog::Hash;
use certeus_tlog::checkpoint::Checkpoint;
use certeus_tlog::hash::HashTextError;
use certeus_tlog::proof::{self, PROOF_HASHES_MAX};
use certeus_tlog::tile::{TILE_WIDTH, TileId, TileSet};
use hyper::StatusCode;
use serde::Deserialize;

use super::Error;
use super::trust::Refusal;
use crate::http::{self, Site};
use crate::input;
use crate::load::Endpoint;

/// Why a file is not a consistency proof.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ParseError {
    #[error("it is not UTF-8")]
    NotText,
    #[error("line {line} is not a hash")]
    Line { line: usize, source: HashTextError },
    #[error("it is not a consistency proof of the ledger's API")]
    Json(#[source] serde_json::Error),
    #[error("hash {number} is not a hash")]
    Hash { number: usize, source: HashTextError },
    #[error("it has more than {PROOF_HASHES_MAX} hashes")]
    TooMany,
}

/// What the API answers; its other members say nothing that the checkpoints do not.
#[derive(Deserialize)]
struct Reply {
    hashes: Vec<String>,
}

/// The hashes in a file: the API's JSON, or one hash in Base64 a line.
pub(super) fn parse(bytes: &[u8]) -> Result<Vec<Hash>, ParseError> {
    let text = std::str::from_utf8(bytes).map_err(|_| ParseError::NotText)?;
    let hashes: Vec<Hash> = if text.trim_start().starts_with('{') {
        let reply: Reply = serde_json::from_str(text).map_err(ParseError::Json)?;
        let hash = |(number, text): (usize, &String)| {
            Hash::from_base64(text).map_err(|source| ParseError::Hash { number, source })
        };
        (1..).zip(&reply.hashes).map(hash).collect::<Result<_, _>>()?
    } else {
        let hash = |(line, text): (usize, &str)| {
            Hash::from_base64(text).map_err(|source| ParseError::Line { line, source })
        };
        (1..).zip(text.lines()).map(hash).collect::<Result<_, _>>()?
    };
    if hashes.len() > PROOF_HASHES_MAX { Err(ParseError::TooMany) } else { Ok(hashes) }
}

/// Whether the two cannot be compared without hashes.
pub(super) fn needs_proof(old: &Checkpoint, new: &Checkpoint) -> bool {
    0 < old.size() && old.size() < new.size()
}

/// Checks the proof.
pub(super) fn check(old: &Checkpoint, new: &Checkpoint, hashes: &[Hash]) -> Result<(), Refusal> {
    if old.size() == new.size() && old.root() != new.root() {
        return Err(Refusal::Forked {
            size: old.size(),
            root: new.root().to_string(),
            seen: old.root().to_string(),
        });
    }
    proof::verify_consistency(old.size(), new.size(), &old.root(), &new.root(), hashes)
        .map_err(Refusal::Inconsistent)
}

/// Makes the proof from the log's tiles.
pub(super) fn from_log(log: &Endpoint, old: &Checkpoint, new: &Checkpoint) -> Result<Vec<Hash>, Error> {
    let (old, new) = (old.size(), new.size());
    if old > new {
        // There is no such proof; the check says so.
        return Ok(Vec::new());
    }
    let impossible = |error: proof::RangeError| Error::malformed("the checkpoint", error);
    let site = Site::new(log.clone()).map_err(input::Error::from)?;
    let mut tiles = TileSet::new();
    for tile in proof::consistency_tiles(old, new).map_err(impossible)? {
        let bytes = fetch(&site, tile).map_err(input::Error::from)?;
        tiles.insert(tile, &bytes).map_err(|error| Error::malformed(format!("{log}/{tile}"), error))?;
    }
    proof::consistency(old, new, |level, index| tiles.subtree_root(level, index))
        .map_err(|error| Error::malformed(format!("the log at {log}"), error))
}

/// A partial tile may be gone once it is full; then the full one has what is needed.
fn fetch(site: &Site, tile: TileId) -> Result<Vec<u8>, http::Error> {
    let partial = site.get(&format!("/{tile}"), None);
    let Err(http::Error::Status { status: StatusCode::NOT_FOUND | StatusCode::GONE, .. }) = &partial else {
        return partial;
    };
    let Some(full) = TileId::new(tile.level(), tile.index(), TILE_WIDTH).ok().filter(|full| *full != tile)
    else {
        return partial;
    };
    let mut bytes = site.get(&format!("/{full}"), None)?;
    bytes.truncate(tile.byte_len());
    Ok(bytes)
}
