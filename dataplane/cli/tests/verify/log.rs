//! A small log of known events, signed with known keys, to verify and to tamper with.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;

use certeus_ledger::envelope::{BatchSecret, ContentType, Envelope, EnvelopeHead, ProducerPlace};
use certeus_ledger::timestamp::Timestamp;
use certeus_tlog::checkpoint::Checkpoint;
use certeus_tlog::note::{Algorithm, SignedNote, SignerKey};
use certeus_tlog::tile::{TileId, TileSet, new_tiles};
use certeus_tlog::tlog_proof::TlogProof;
use certeus_tlog::tree::Frontier;
use certeus_tlog::{Hash, leaf_hash, proof};
use uuid::Uuid;

pub(crate) const ORIGIN: &str = "log.example/default";
/// More than one tile has room for.
pub(crate) const SIZE: u64 = 300;
/// When timed signatures of the tests are made.
pub(crate) const TIME: u64 = 1_795_000_000;

pub(crate) fn key(name: &str, algorithm: Algorithm, seed: u8) -> SignerKey {
    SignerKey::from_seed(name, algorithm, [seed; 32]).unwrap()
}

pub(crate) fn log_key() -> SignerKey {
    key(ORIGIN, Algorithm::Ed25519, 1)
}

pub(crate) fn payload(index: u64) -> Vec<u8> {
    format!(r#"{{"type":"payment.made","timestamp":1769860800,"n":{index}}}"#).into_bytes()
}

/// The envelope's head, salt and entry of an event.
fn parts(index: u64) -> (Vec<u8>, [u8; 32], [u8; 32]) {
    let payload = payload(index);
    let head = EnvelopeHead {
        ledger: "default",
        id: Uuid::from_u128(0x019c_1126_6400_7abc_8def_0123_4560_0000 + u128::from(index)),
        kind: "payment.made",
        time: Timestamp::from_micros(1_769_860_800_000_000).unwrap(),
        producer: (index % 2 == 1).then_some(ProducerPlace { id: "till-7", epoch: 3, sequence: index }),
        content_type: ContentType::Json,
        key_id: &[],
    };
    let salt = BatchSecret([9; 32]).salt(u32::try_from(index).unwrap());
    let mut bytes = Vec::new();
    head.write(payload.len(), &mut bytes);
    let entry = Envelope { head, payload: &payload }.entry(&salt, &mut Vec::new());
    (bytes, salt, entry)
}

/// The log's tiles at a size, and its root.
pub(crate) fn tree(size: u64) -> (TileSet, Hash) {
    let (mut frontier, mut tiles) = (Frontier::new(), TileSet::new());
    for index in 0..size {
        frontier.append(leaf_hash(&parts(index).2), |tile, hashes| {
            tiles.insert_hashes(tile, hashes.to_vec()).unwrap();
        });
    }
    for (tile, hashes) in frontier.partial_tiles() {
        tiles.insert_hashes(tile, hashes.to_vec()).unwrap();
    }
    (tiles, frontier.root())
}

pub(crate) fn checkpoint(size: u64, signers: &[&SignerKey]) -> SignedNote {
    let text = Checkpoint::new(ORIGIN, size, tree(size).1).unwrap().to_text();
    SignedNote::sign(text, signers.iter().copied(), TIME).unwrap()
}

pub(crate) fn event_proof(index: u64, size: u64, checkpoint: SignedNote) -> TlogProof {
    let (head, salt, _) = parts(index);
    let (tiles, _) = tree(size);
    let hashes = proof::inclusion(index, size, |level, index| tiles.subtree_root(level, index)).unwrap();
    TlogProof { extra: [&[1], &salt[..], &head].concat(), index, hashes, checkpoint }
}

pub(crate) fn consistency(old: u64, new: u64) -> String {
    let (tiles, _) = tree(new);
    let hashes = proof::consistency(old, new, |level, index| tiles.subtree_root(level, index)).unwrap();
    hashes.iter().fold(String::new(), |mut text, hash| {
        writeln!(text, "{hash}").unwrap();
        text
    })
}

/// Serves the log's tiles below `/log/default`, for as long as the test runs. As a log may, it forgets partial tiles
/// once they are full.
pub(crate) fn serve_tiles(size: u64) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/log/default", listener.local_addr().unwrap());
    let (tiles, _) = tree(size);
    let full: Vec<TileId> = new_tiles(0, size).filter(|tile| tile.is_full()).collect();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            let mut request = String::new();
            stream.read_line(&mut request).unwrap();
            let path = request.split(' ').nth(1).unwrap().strip_prefix("/log/default/").unwrap_or_default();
            let tile = TileId::from_path(path).ok().filter(|tile| {
                tile.is_full()
                    || !full.iter().any(|full| (full.level(), full.index()) == (tile.level(), tile.index()))
            });
            let body: Option<Vec<u8>> = tile
                .and_then(|tile| tiles.hashes(tile))
                .map(|hashes| hashes.iter().flat_map(|hash| hash.0).collect());
            let (status, body) = body.map_or(("404 Not Found", Vec::new()), |body| ("200 OK", body));
            let head =
                format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            let mut line = String::new();
            while stream.read_line(&mut line).unwrap_or(0) > 2 {
                line.clear();
            }
            let _client_gone = stream.get_mut().write_all(&[head.as_bytes(), &body].concat());
        }
    });
    url
}
