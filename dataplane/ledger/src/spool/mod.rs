//! The spool.
mod directory;
mod log;
mod record;
mod segment;
#[cfg(test)]
mod simulated;
