//! Runs the fuzz targets' checks without a fuzzer: on every seed of `fuzz/seeds`, and on mutations of them, the same ones in
//! each run.
#![expect(clippy::unwrap_used, reason = "a test's helpers may panic like the test")]

#[path = "../fuzz/checks.rs"]
mod checks;

use std::fs;
use std::path::Path;

const MUTATIONS_PER_TARGET: usize = 4_000;

/// What parsers compare with, so that mutations reach beyond the first comparison.
const TOKENS: [&[u8]; 16] = [
    b"\n",
    b"\n\n",
    b" ",
    b"+",
    b"=",
    b"/",
    b"0",
    b"18446744073709551615",
    b".p/",
    b"x001/",
    b"\xE2\x80\x94 ",
    b"extra ",
    b"index ",
    b"\0",
    &[0xFF; 8],
    &[0x80, 0, 0, 0, 0, 0, 0, 0],
];

/// SplitMix64: enough to choose mutations, and the same everywhere.
struct Choices(u64);

impl Choices {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        usize::try_from((z ^ (z >> 31)) % bound.max(1) as u64).unwrap()
    }

    fn mutate(&mut self, input: &mut Vec<u8>, other: &[u8]) {
        let at = self.below(input.len() + 1);
        let length = (1 + self.below(8)).min(input.len() - at);
        match self.below(7) {
            0 if at < input.len() => input[at] ^= 1 << self.below(8),
            1 if at < input.len() => input[at] = u8::try_from(self.below(256)).unwrap(),
            2 => drop(input.drain(at..at + length)),
            3 => {
                let token = TOKENS[self.below(TOKENS.len())];
                drop(input.splice(at..at, token.iter().copied()));
            }
            4 => {
                let token = TOKENS[self.below(TOKENS.len())];
                let end = (at + token.len()).min(input.len());
                drop(input.splice(at..end, token.iter().copied()));
            }
            5 => input.truncate(at),
            _ => {
                let from = self.below(other.len() + 1);
                drop(input.splice(at.., other[from..].iter().copied()));
            }
        }
    }
}

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let mut paths: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    // The order of a folder is no order, and mutations depend on it.
    paths.sort();
    assert!(!paths.is_empty(), "no seeds in {}", folder.display());
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

#[test]
fn every_seed_and_its_mutations_hold() {
    for (target, _) in checks::TARGETS {
        let seeds = seeds(target);
        seeds.iter().for_each(|seed| checks::run(target, seed));
        let mut choices = Choices(0);
        for _ in 0..MUTATIONS_PER_TARGET {
            let mut input = seeds[choices.below(seeds.len())].clone();
            let other = &seeds[choices.below(seeds.len())];
            for _ in 0..=choices.below(3) {
                choices.mutate(&mut input, other);
            }
            // A failure shows the input, to be kept as a seed.
            if std::panic::catch_unwind(|| checks::run(target, &input)).is_err() {
                panic!("{target} fails for {:?}", String::from_utf8_lossy(&input));
            }
        }
    }
}
