//! How fast a tree grows, on one core: `cargo run --release -p certeus-tlog --example append`.
#![expect(clippy::disallowed_methods, reason = "a measurement reads the clock; the library does not")]

use std::hint::black_box;
use std::time::Instant;

use certeus_tlog::tree::Frontier;
use certeus_tlog::{Hash, leaf_hash, node_hash};
use sha2::{Digest, Sha256};

const COUNT: u32 = 2_000_000;

fn main() {
    let entry = |i: u32| {
        let mut entry = [0x5A; 32];
        entry[..4].copy_from_slice(&i.to_be_bytes());
        entry
    };
    let other = Hash([0xA5; 32]);
    let streaming = |parts: &[&[u8]]| {
        let mut hasher = Sha256::new();
        parts.iter().for_each(|part| hasher.update(part));
        Hash(hasher.finalize().into())
    };
    // Each twice, so that a machine that is busy with other things shows.
    for _ in 0..2 {
        measure("leaf, streaming", |i| streaming(&[&[0], &entry(i)]));
        measure("leaf", |i| leaf_hash(&entry(i)));
        measure("node, streaming", |i| streaming(&[&[1], &entry(i), &other.0]));
        measure("node", |i| node_hash(&Hash(entry(i)), &other));
        let mut frontier = Frontier::new();
        measure("append", |i| {
            frontier.append(leaf_hash(&entry(i)), |_, hashes| {
                black_box(hashes);
            });
            other
        });
        measure("root", |_| frontier.root());
    }
}

fn measure(what: &str, mut step: impl FnMut(u32) -> Hash) {
    let start = Instant::now();
    (0..COUNT).for_each(|i| {
        black_box(step(black_box(i)));
    });
    let nanos = start.elapsed().as_nanos() / u128::from(COUNT);
    println!("{what:16} {nanos:5} ns");
}
