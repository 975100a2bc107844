//! A transparency log's arithmetic and formats: the Merkle tree of RFC 6962 and its proofs, and C2SP's tiles, signed notes,
//! checkpoints, cosignatures and proof files (<https://c2sp.org>).
//!
//! Never does IO, reads a clock or stores anything; randomness (a new key's seed) and time come in as values. Promises: what it
//! parses it formats back to the same bytes; no input makes it panic or allocate beyond a few times the input's size; a proof
//! or a signature is accepted only if it holds. Errors have no class of their own: the same bad note is a caller's fault when
//! it came with a request, and corruption when it came from the log's own store.
//!
//! Read in this order: [`hash`], [`tile`], [`tree`] (growing a log), [`proof`], [`note`], [`checkpoint`], [`cosignature`],
//! [`tlog_proof`].
#![deny(clippy::disallowed_methods)]

pub mod checkpoint;
pub mod cosignature;
pub mod hash;
pub mod note;
pub mod proof;
pub mod tile;
pub mod tlog_proof;
pub mod tree;

mod text;

pub use hash::{Hash, empty_root, leaf_hash, node_hash};

/// A tree has at most this many leaves, so that a size also fits the signed 64-bit integers of PostgreSQL and of Go's tools.
pub const SIZE_MAX: u64 = i64::MAX as u64;
