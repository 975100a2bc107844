//! The operator's reasoning: what a manifest says, whether it can be done, which objects do it, and how many pods it takes.
//! Everything here is pure: no clock, no network, no files. Kubernetes and one machine run the same code.
//! Reading order: [`manifest`] reads objects from text, [`validate`] turns an object into checked values, [`build`] turns
//! those into Kubernetes objects, [`decide`] turns what was measured into a replica count and a status. [`rules`] does all of this for
//! `AlertRule`s.
#![deny(clippy::disallowed_methods)]

pub mod build;
pub mod decide;
pub mod manifest;
pub mod rules;
pub mod validate;

/// Name and version of this program. All that it says of its version comes from here, so that a test can make a program of
/// another version from it without compiling one.
pub static PRODUCT: &str = concat!("certeus-operator/", env!("CARGO_PKG_VERSION"));

/// A number with what is counted, such as `1 rule` and `2 rules`.
#[must_use]
pub fn counted(number: impl std::fmt::Display, noun: &str) -> String {
    let number = number.to_string();
    let ending = if number == "1" { "" } else { "s" };
    format!("{number} {noun}{ending}")
}

/// The version of this program, and of the data plane that is released with it.
#[must_use]
pub fn version() -> &'static str {
    PRODUCT.split_once('/').map_or(PRODUCT, |(_, version)| version)
}
