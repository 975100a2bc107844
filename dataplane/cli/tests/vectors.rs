//! Makes the test vectors of `docs/log-format.md` from fixed seeds and compares them with what is published in
//! `docs/vectors`. `UPDATE_GOLDEN=1` writes them anew.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::{Path, PathBuf};

use certeus_ledger::envelope::{BatchSecret, ContentType, Envelope, EnvelopeHead, ProducerPlace};
use certeus_ledger::timestamp::Timestamp;
use certeus_tlog::checkpoint::Checkpoint;
use certeus_tlog::note::{Algorithm, SignedNote, SignerKey, VerifierKey};
use certeus_tlog::proof;
use certeus_tlog::tile::{BundleId, TileId, TileSet};
use certeus_tlog::tlog_proof::TlogProof;
use certeus_tlog::tree::Frontier;
use certeus_tlog::{Hash, leaf_hash};
use serde_json::{Value, json};
use uuid::Uuid;

const ORIGIN: &str = "certeus.example/vectors";
const SIZE: u64 = 300;
/// Seconds since the Unix epoch, in the timed signature.
const SIGNED_AT: u64 = 1_769_860_800;
const KEY_ID: [u8; 56] = [0xAB; 56];

struct Vector {
    index: u64,
    envelope: Envelope<'static>,
    salt: [u8; 32],
    entry: [u8; 32],
}

/// Three events that show every field, then events that only count.
fn vector(index: u64) -> Vector {
    let payload = match index {
        0 => r#"{"type":"payment.made","timestamp":"2026-01-31T12:00:00.25Z","amount": 12.50}"#.to_owned(),
        1 => r#"{"type":"order.placed","timestamp":1769860801,"producer":"shop"}"#.to_owned(),
        2 => r#"{"type":"card.charged","timestamp":1769860802,"card":"certeus:enc:v1:AAAA"}"#.to_owned(),
        n => format!(r#"{{"type":"count","timestamp":{},"n":{n}}}"#, SIGNED_AT + n),
    };
    let (kind, micros) = match index {
        0 => ("payment.made", 1_769_860_800_250_000),
        1 => ("order.placed", 1_769_860_801_000_000),
        2 => ("card.charged", 1_769_860_802_000_000),
        n => ("count", (1_769_860_800 + i64::try_from(n).unwrap()) * 1_000_000),
    };
    let head = EnvelopeHead {
        ledger: "default",
        id: Uuid::from_u128(0x019c_1126_6400_7abc_8def_0123_4560_0000 + u128::from(index)),
        kind,
        time: Timestamp::from_micros(micros).unwrap(),
        producer: (index == 1).then_some(ProducerPlace { id: "till-7", epoch: 3, sequence: 41 }),
        content_type: ContentType::Json,
        key_id: if index == 2 { &KEY_ID } else { &[] },
    };
    let envelope = Envelope { head, payload: payload.leak().as_bytes() };
    let secret = BatchSecret(std::array::from_fn(|i| u8::try_from(i).unwrap()));
    let salt = secret.salt(u32::try_from(index).unwrap());
    Vector { index, entry: envelope.entry(&salt, &mut Vec::new()), envelope, salt }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The log of the vectors with all its tiles.
struct Log {
    vectors: Vec<Vector>,
    tiles: TileSet,
    files: Vec<(TileId, Vec<Hash>)>,
    roots: Vec<Hash>,
}

impl Log {
    fn new() -> Self {
        let vectors: Vec<Vector> = (0..SIZE).map(vector).collect();
        let mut frontier = Frontier::new();
        let mut files = Vec::new();
        let mut roots = vec![frontier.root()];
        for vector in &vectors {
            frontier.append(leaf_hash(&vector.entry), |tile, hashes| files.push((tile, hashes.to_vec())));
            roots.push(frontier.root());
        }
        files.extend(frontier.partial_tiles().map(|(tile, hashes)| (tile, hashes.to_vec())));
        let mut tiles = TileSet::new();
        for (tile, hashes) in &files {
            tiles.insert_hashes(*tile, hashes.clone()).unwrap();
        }
        Self { vectors, tiles, files, roots }
    }

    fn root(&self, size: u64) -> Hash {
        self.roots[usize::try_from(size).unwrap()]
    }

    fn inclusion(&self, index: u64, size: u64) -> Vec<Hash> {
        proof::inclusion(index, size, |level, index| self.tiles.subtree_root(level, index)).unwrap()
    }

    fn consistency(&self, from: u64, to: u64) -> Vec<Hash> {
        proof::consistency(from, to, |level, index| self.tiles.subtree_root(level, index)).unwrap()
    }

    fn checkpoint(&self, size: u64, signers: &[SignerKey]) -> SignedNote {
        let checkpoint = Checkpoint::new(ORIGIN, size, self.root(size)).unwrap();
        SignedNote::sign(checkpoint.to_text(), signers, SIGNED_AT).unwrap()
    }
}

fn texts(hashes: &[Hash]) -> Vec<String> {
    hashes.iter().map(Hash::to_string).collect()
}

fn describe(log: &Log, keys: &[SignerKey]) -> Value {
    let event = |vector: &Vector| {
        let Vector { index, envelope, salt, entry } = vector;
        json!({
            "index": index,
            "id": envelope.head.id,
            "type": envelope.head.kind,
            "time_us": envelope.head.time.micros(),
            "producer": envelope.head.producer.map(|place| json!({
                "id": place.id, "epoch": place.epoch, "sequence": place.sequence,
            })),
            "key_id": hex(envelope.head.key_id),
            "payload": std::str::from_utf8(envelope.payload).unwrap(),
            "envelope": hex(&envelope.to_bytes()),
            "salt": hex(salt),
            "entry": hex(entry),
            "leaf": leaf_hash(entry).to_string(),
        })
    };
    let sizes = (0..=9).chain([255, 256, 257, SIZE]);
    let inclusion =
        [(0, 1), (0, 8), (5, 7), (6, 7), (0, 256), (255, 257), (256, 257), (123, SIZE), (299, SIZE)];
    let consistency =
        [(1, 1), (1, 2), (3, 7), (4, 8), (6, 8), (255, 256), (256, 257), (100, SIZE), (257, SIZE)];
    json!({
        "origin": ORIGIN,
        "signer_keys": keys.iter().map(|key| key.to_secret_text().to_string()).collect::<Vec<_>>(),
        "verifier_keys": keys.iter().map(|key| key.verifier().to_string()).collect::<Vec<_>>(),
        "batch_secret": hex(&std::array::from_fn::<u8, 32, _>(|i| u8::try_from(i).unwrap())),
        "events": log.vectors.iter().take(4).map(event).collect::<Vec<_>>(),
        "roots": sizes.map(|size| json!({"size": size, "root": log.root(size).to_string()})).collect::<Vec<_>>(),
        "inclusion": inclusion.map(|(index, size)| json!({
            "index": index, "size": size, "hashes": texts(&log.inclusion(index, size)),
        })),
        "consistency": consistency.map(|(from, to)| json!({
            "from": from, "to": to, "hashes": texts(&log.consistency(from, to)),
        })),
    })
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/vectors")
}

/// Compares a published file with what it must be, or writes it.
fn check(path: &str, expected: &[u8]) {
    let path = folder().join(path);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, expected).unwrap();
    }
    let published = fs::read(&path).unwrap_or_default();
    assert!(published == expected, "{} differs: run with UPDATE_GOLDEN=1 and read the diff", path.display());
}

#[test]
fn the_published_vectors_are_what_the_code_makes() {
    let log = Log::new();
    let ed25519 = SignerKey::from_seed(ORIGIN, Algorithm::Ed25519, [7; 32]).unwrap();
    let ml_dsa = SignerKey::from_seed(ORIGIN, Algorithm::MlDsa44, [8; 32]).unwrap();
    let verifiers = [ed25519.verifier().clone(), ml_dsa.verifier().clone()];
    let keys = [ed25519, ml_dsa];
    check("vectors.json", (serde_json::to_string_pretty(&describe(&log, &keys)).unwrap() + "\n").as_bytes());

    // A log as a web server would have it.
    let [ed25519, _] = &keys;
    let only = std::slice::from_ref(ed25519);
    check("log/keys", format!("{}\n", ed25519.verifier()).as_bytes());
    check("log/checkpoint", log.checkpoint(SIZE, only).to_string().as_bytes());
    check("checkpoint-8", log.checkpoint(8, only).to_string().as_bytes());
    for (tile, hashes) in &log.files {
        check(&format!("log/{}", tile.path()), &hashes.iter().flat_map(|hash| hash.0).collect::<Vec<_>>());
    }
    for (bundle, entries) in (0..).zip(log.vectors.chunks(256)) {
        let id = BundleId::new(bundle, u16::try_from(entries.len()).unwrap()).unwrap();
        let bytes: Vec<u8> =
            entries.iter().flat_map(|vector| [&[0, 32], &vector.entry[..]].concat()).collect();
        check(&format!("log/{}", id.path()), &bytes);
    }
    for vector in &log.vectors[..3] {
        let mut head = Vec::new();
        vector.envelope.head.write(vector.envelope.payload.len(), &mut head);
        assert_eq!(Envelope::read_head(&head).unwrap().0, vector.envelope.head);
        let proof = TlogProof {
            extra: [&[1], &vector.salt[..], &head].concat(),
            index: vector.index,
            hashes: log.inclusion(vector.index, SIZE),
            checkpoint: log.checkpoint(SIZE, only),
        };
        check(&format!("event-{}.json", vector.index), vector.envelope.payload);
        check(&format!("event-{}.tlog-proof", vector.index), proof.to_string().as_bytes());
    }
    check_two_signatures(&log, &keys, &verifiers);
}

/// ML-DSA-44 signatures are not the same twice: this file is verified instead of compared.
fn check_two_signatures(log: &Log, keys: &[SignerKey], verifiers: &[VerifierKey]) {
    let path = folder().join("checkpoint-300-two-signatures");
    if std::env::var_os("UPDATE_GOLDEN").is_some() && !path.exists() {
        fs::write(&path, log.checkpoint(SIZE, keys).to_string()).unwrap();
    }
    let note = SignedNote::parse(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(note.text(), log.checkpoint(SIZE, keys).text());
    let verified = note.verify(verifiers).unwrap();
    assert_eq!(verified.len(), 2);
}
