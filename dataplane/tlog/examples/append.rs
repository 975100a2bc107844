//! How much processor time growing a tree takes, on Linux: `cargo run --release -p certeus-tlog --example append`.

use std::fs;
use std::hint::black_box;

use certeus_tlog::tree::Frontier;
use certeus_tlog::{Hash, leaf_hash, node_hash};
use sha2::{Digest, Sha256};

const COUNT: u32 = 2_000_000;

fn main() -> Result<(), std::io::Error> {
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
    // Each twice: the first time also warms up.
    for _ in 0..2 {
        measure("leaf, streaming", |i| streaming(&[&[0], &entry(i)]))?;
        measure("leaf", |i| leaf_hash(&entry(i)))?;
        measure("node, streaming", |i| streaming(&[&[1], &entry(i), &other.0]))?;
        measure("node", |i| node_hash(&Hash(entry(i)), &other))?;
        let mut frontier = Frontier::new();
        measure("append", |i| {
            frontier.append(leaf_hash(&entry(i)), |_, hashes| {
                black_box(hashes);
            });
            other
        })?;
        measure("root", |_| frontier.root())?;
    }
    Ok(())
}

fn measure(what: &str, mut step: impl FnMut(u32) -> Hash) -> Result<(), std::io::Error> {
    let start = processor_nanos()?;
    (0..COUNT).for_each(|i| {
        black_box(step(black_box(i)));
    });
    let nanos = (processor_nanos()? - start) / u64::from(COUNT);
    println!("{what:16} {nanos:5} ns");
    Ok(())
}

/// Time this process was running, so that what else the machine does is not measured.
fn processor_nanos() -> Result<u64, std::io::Error> {
    let statistics = fs::read_to_string("/proc/self/schedstat")?;
    let nanos = statistics.split(' ').next().and_then(|nanos| nanos.parse().ok());
    nanos.ok_or(std::io::ErrorKind::InvalidData.into())
}
