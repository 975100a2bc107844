//! The monitoring side of a pod. So far: [`rules`], alerting and recording rules in the form in which they are delivered and stored.
//! Nothing evaluates them yet. Must not know HTTP, the ledger, or who delivers.

pub mod rules;
