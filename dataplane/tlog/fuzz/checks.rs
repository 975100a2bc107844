//! What must hold for every input of each parser and verifier: no panic, and what is accepted is written back as it was.
//!
//! The fuzz targets and `tests/seeds.rs` run the same functions, the latter on the seeds and on mutations of them. To fuzz, in
//! `dataplane/tlog`: `cargo +nightly fuzz run -s none note fuzz/corpus/note fuzz/seeds/note -- -max_total_time=60`.

use certeus_tlog::checkpoint::Checkpoint;
use certeus_tlog::note::{Algorithm, Signature, SignedNote, SignerKey, VerifierKey};
use certeus_tlog::proof::{self, PROOF_HASHES_MAX};
use certeus_tlog::tile::{BundleId, TileId, TileSet, partial_tiles};
use certeus_tlog::tlog_proof::TlogProof;
use certeus_tlog::tree::Frontier;
use certeus_tlog::{Hash, SIZE_MAX, leaf_hash};

const LOG: &str = "log.example/certeus";

type Check = fn(&[u8]);

/// Name and check of each target.
pub(crate) const TARGETS: [(&str, Check); 7] = [
    ("note", note),
    ("checkpoint", checkpoint),
    ("tlog_proof", tlog_proof),
    ("tile_path", tile_path),
    ("key", key),
    ("cosignature", cosignature),
    ("proof", proofs),
];

/// Runs one target's check.
pub(crate) fn run(target: &str, input: &[u8]) {
    let check = TARGETS.iter().find(|(name, _)| *name == target).map(|(_, check)| check);
    check.expect("a target of this list")(input);
}

/// The keys of `vectors/cosigned.vkeys`, one per algorithm.
fn keys() -> Vec<VerifierKey> {
    include_str!("../vectors/cosigned.vkeys").lines().map(|line| line.parse().expect("a key")).collect()
}

fn note(input: &[u8]) {
    let Ok(note) = SignedNote::parse(input) else { return };
    assert_eq!(note.to_string().as_bytes(), input);
    assert!(note.text().ends_with('\n') && !note.signatures().is_empty());
    // Whatever verifies is in the name of the key that verified it.
    for verified in note.verify(&keys()).unwrap_or_default() {
        let line = |signature: &Signature| {
            signature.name() == verified.key.name() && signature.key_id() == verified.key.id()
        };
        assert!(note.signatures().iter().any(line));
        assert_eq!(verified.time.is_some(), verified.key.algorithm().is_timed());
    }
}

fn checkpoint(input: &[u8]) {
    let _ = Checkpoint::open(input, LOG, &keys());
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Ok(checkpoint) = Checkpoint::from_text(text) else { return };
    assert_eq!(checkpoint.to_text(), text);
    assert!(checkpoint.size() <= SIZE_MAX && !checkpoint.origin().is_empty());
}

fn tlog_proof(input: &[u8]) {
    let Ok(proof) = TlogProof::parse(input) else { return };
    assert_eq!(proof.to_string().as_bytes(), input);
    assert!(proof.hashes.len() <= PROOF_HASHES_MAX);
    let _ = proof.verify(&leaf_hash(b"3"), LOG, &keys());
}

fn tile_path(input: &[u8]) {
    let Ok(path) = std::str::from_utf8(input) else { return };
    if let Ok(tile) = TileId::from_path(path) {
        assert_eq!(tile.path(), path);
        assert_eq!(TileId::new(tile.level(), tile.index(), tile.width()), Ok(tile));
        assert_eq!(tile.is_full(), !path.contains(".p/"));
        assert!(tile.hashes(input).is_err() || input.len() == tile.byte_len());
    }
    if let Ok(bundle) = BundleId::from_path(path) {
        assert_eq!(bundle.path(), path);
        assert!(bundle.first_entry() < SIZE_MAX);
    }
}

fn key(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(key) = VerifierKey::parse(text) {
        assert_eq!(key.to_string(), text);
        assert_eq!(VerifierKey::new(key.name(), key.algorithm(), key.public_key()), Ok(key.clone()));
        assert!(key.verify("text\n", &[0; 64]).is_err());
    }
    if let Ok(key) = SignerKey::parse(text) {
        assert_eq!(key.to_secret_text().as_str(), text);
    }
}

/// A signature line, and the same bytes as a signature.
fn cosignature(input: &[u8]) {
    const TEXT: &str = "log.example/certeus\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n";
    if let Some(signature) = std::str::from_utf8(input).ok().and_then(Signature::parse_line) {
        assert_eq!(signature.to_string().as_bytes(), input);
        check_signature(TEXT, signature.bytes());
        let with_line = [TEXT, "\n", &signature.to_string(), "\n"].concat();
        assert!(SignedNote::parse(with_line.as_bytes()).is_ok());
    }
    check_signature(TEXT, input);
}

fn check_signature(text: &str, bytes: &[u8]) {
    for key in keys() {
        match key.verify(text, bytes) {
            Ok(Some(time)) => assert_eq!(time.to_be_bytes(), bytes[..8]),
            Ok(None) => assert_eq!(key.algorithm(), Algorithm::Ed25519),
            Err(_) => {}
        }
    }
}

/// Two numbers, two hashes, and the hashes of a proof.
fn proofs(input: &[u8]) {
    let Some((a, rest)) = input.split_first_chunk().map(|(a, rest)| (u64::from_be_bytes(*a), rest)) else {
        return;
    };
    let Some((b, rest)) = rest.split_first_chunk().map(|(b, rest)| (u64::from_be_bytes(*b), rest)) else {
        return;
    };
    let mut hashes: Vec<_> = rest.as_chunks().0.iter().copied().map(Hash).collect();
    hashes.resize(hashes.len().max(2), Hash([0; 32]));
    let (first, second, proof) = (hashes[0], hashes[1], &hashes[2..]);

    if proof::verify_inclusion(a, b, &first, proof, &second).is_ok() {
        assert!(a < b && proof.len() < PROOF_HASHES_MAX);
    }
    if proof::verify_consistency(a, b, &first, &second, proof).is_ok() {
        assert!(a <= b && proof.len() <= PROOF_HASHES_MAX);
    }

    // What is built from any numbers has the length that is verified, and needs only tiles that exist.
    let read = |level, index| TileId::of_subtree(level, index, b).map(|_| first).ok_or((level, index));
    match proof::inclusion(a, b, read) {
        Ok(path) => {
            let verified = proof::verify_inclusion(a, b, &first, &path, &second);
            assert!(!matches!(
                verified,
                Err(proof::VerifyError::Length { .. } | proof::VerifyError::Range(_))
            ));
        }
        Err(error) => assert!(matches!(error, proof::BuildError::Range(_)), "{error:?}"),
    }
    match proof::consistency(a, b, read) {
        Ok(path) => {
            let verified = proof::verify_consistency(a, b, &first, &second, &path);
            assert!(!matches!(
                verified,
                Err(proof::VerifyError::Length { .. } | proof::VerifyError::Range(_))
            ));
        }
        Err(error) => assert!(matches!(error, proof::BuildError::Range(_)), "{error:?}"),
    }
    let mut tiles = TileSet::new();
    for tile in proof::inclusion_tiles(a, b).into_iter().flatten().chain(partial_tiles(b)) {
        assert_eq!(TileId::in_tree(tile.level(), tile.index(), b), Some(tile));
        let _ = tiles.insert(tile, rest);
    }
    let _ = tiles.subtree_root(input[0], b);
    let _ = Frontier::resume(b, |tile| tiles.hashes(tile).ok_or(tile)).map(|frontier| frontier.root());
}
