//! The hashes of RFC 6962, section 2.1: SHA-256 with one byte in front that keeps leaves and nodes apart.
//!
//! Owns the type [`Hash`] and its text form. The two hot inputs have a fixed size: a leaf of a 32-byte entry is one SHA-256
//! block, a node is two. They go to the compression function as padded blocks, which spares the buffering of a streaming hash
//! (measured by `examples/append.rs`).

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::block_api::compress256;
use sha2::{Digest, Sha256};

/// Length of a [`Hash`].
pub const HASH_BYTES: usize = 32;

const LEAF_PREFIX: u8 = 0;
const NODE_PREFIX: u8 = 1;
const BLOCK_BYTES: usize = 64;

/// SHA-256's initial state (FIPS 180-4, section 5.3.3).
const INITIAL_STATE: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

/// A SHA-256 hash: of a leaf, of a subtree, or a tree's root. Its text form is Base64 with padding (44 characters).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hash(pub [u8; HASH_BYTES]);

/// The text is not the Base64 form of 32 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a hash: 32 bytes in Base64 with padding are 44 characters")]
pub struct HashTextError;

impl Hash {
    /// From the Base64 form, and from no other spelling of the same bytes.
    ///
    /// # Errors
    /// When the text is anything else.
    pub fn from_base64(text: &str) -> Result<Self, HashTextError> {
        const TEXT_BYTES: usize = HASH_BYTES.div_ceil(3) * 4;
        // The decoder wants room for what the length of the text allows: one byte more than a hash.
        let mut bytes = [0; TEXT_BYTES / 4 * 3];
        if text.len() != TEXT_BYTES || STANDARD.decode_slice(text, &mut bytes) != Ok(HASH_BYTES) {
            return Err(HashTextError);
        }
        let (hash, _) = bytes.split_first_chunk().ok_or(HashTextError)?;
        Ok(Self(*hash))
    }

    /// The 32 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; HASH_BYTES] {
        &self.0
    }
}

impl From<[u8; HASH_BYTES]> for Hash {
    fn from(bytes: [u8; HASH_BYTES]) -> Self {
        Self(bytes)
    }
}

impl std::str::FromStr for Hash {
    type Err = HashTextError;

    fn from_str(text: &str) -> Result<Self, HashTextError> {
        Self::from_base64(text)
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", base64::display::Base64Display::new(&self.0, &STANDARD))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The hash of a leaf: SHA-256(0x00 ‖ entry).
#[must_use]
#[inline]
pub fn leaf_hash(entry: &[u8]) -> Hash {
    match <&[u8; HASH_BYTES]>::try_from(entry) {
        Ok(entry) => commitment_leaf_hash(entry),
        Err(_) => Hash(Sha256::new().chain_update([LEAF_PREFIX]).chain_update(entry).finalize().into()),
    }
}

/// The hash of a node: SHA-256(0x01 ‖ left ‖ right).
#[must_use]
#[inline]
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    const LENGTH: usize = 1 + 2 * HASH_BYTES;
    let mut blocks = [[0; BLOCK_BYTES]; 2];
    let bytes = blocks.as_flattened_mut();
    bytes[0] = NODE_PREFIX;
    bytes[1..=HASH_BYTES].copy_from_slice(&left.0);
    bytes[1 + HASH_BYTES..LENGTH].copy_from_slice(&right.0);
    pad(bytes, LENGTH);
    digest(&blocks)
}

/// The root of the empty tree: SHA-256 of nothing.
#[must_use]
pub fn empty_root() -> Hash {
    Hash(Sha256::digest([]).into())
}

/// The leaf hash of a 32-byte entry, which is one block: 1 + 32 bytes, and at least 9 of padding.
#[inline]
fn commitment_leaf_hash(entry: &[u8; HASH_BYTES]) -> Hash {
    const LENGTH: usize = 1 + HASH_BYTES;
    let mut block = [0; BLOCK_BYTES];
    block[0] = LEAF_PREFIX;
    block[1..LENGTH].copy_from_slice(entry);
    pad(&mut block, LENGTH);
    digest(&[block])
}

/// Ends a message of `length` bytes as FIPS 180-4, section 5.1.1 says; what lies between is zero already.
#[inline]
fn pad(blocks: &mut [u8], length: usize) {
    blocks[length] = 0x80;
    let end = blocks.len();
    blocks[end - 8..].copy_from_slice(&(length as u64 * 8).to_be_bytes());
}

#[inline]
fn digest(blocks: &[[u8; BLOCK_BYTES]]) -> Hash {
    let mut state = INITIAL_STATE;
    compress256(&mut state, blocks);
    let mut hash = [0; HASH_BYTES];
    for (bytes, word) in hash.chunks_exact_mut(4).zip(state) {
        bytes.copy_from_slice(&word.to_be_bytes());
    }
    Hash(hash)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_empty_tree_and_the_empty_leaf() {
        // SHA-256 of nothing and of one zero byte, as RFC 6962's first test vectors have them.
        assert_eq!(empty_root().to_string(), "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=");
        assert_eq!(leaf_hash(b"").to_string(), "bjQLnP+zepicpUTmu3gKLHiQHT+zNzh2hRGjBhevoB0=");
    }

    #[test]
    fn only_the_canonical_text_is_a_hash() {
        let text = empty_root().to_string();
        assert_eq!(Hash::from_base64(&text), Ok(empty_root()));
        let unpadded = text.trim_end_matches('=');
        let other_trailing_bits = format!("{}V=", &text[..42]);
        for bad in [
            "",
            unpadded,
            &format!("{text}\n"),
            &other_trailing_bits,
            &text.replace('/', "_"),
            &"A".repeat(44),
        ] {
            assert_eq!(Hash::from_base64(bad), Err(HashTextError), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn the_fixed_sizes_hash_like_any_other(left: [u8; 32], right: [u8; 32]) {
            let plain = |parts: &[&[u8]]| Hash(Sha256::digest(parts.concat()).into());
            prop_assert_eq!(leaf_hash(&left), plain(&[&[0], &left]));
            prop_assert_eq!(leaf_hash(&left[..31]), plain(&[&[0], &left[..31]]));
            prop_assert_eq!(node_hash(&Hash(left), &Hash(right)), plain(&[&[1], &left, &right]));
        }
    }
}
