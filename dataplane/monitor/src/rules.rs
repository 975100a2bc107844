//! Rules as they are delivered to a pod: one set of groups per object of the cluster, replaced as a whole.
//!
//! Owns the form ([`Document`]), its bounds, and the [`Store`] that keeps it across restarts. Knows the shape of rules and not what
//! they mean: expressions and templates are texts here. Promises: what [`Store::put`] accepted is in the folder, and so there
//! after a crash; an older generation never replaces a newer one of the same object; what cannot be read back hurts only itself.

mod document;
mod file;
mod store;
#[cfg(test)]
mod tests;

pub use document::{Document, Group, Invalid, Key, Period, Rule, SecretKey, Target};
pub use store::{Error, SETS_MAX, Store, Stored, TOTAL_BYTES_MAX};

/// Bytes of one document, as JSON.
pub const DOCUMENT_BYTES_MAX: usize = 1 << 20;
