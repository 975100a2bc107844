//! Faults against real pods and a real PostgreSQL, and a checker of what survives them.
//!
//! A scenario starts a [`world::World`] (PostgreSQL, pods, a faulty network between all of them), lets clients send events
//! that are known by their numbers, breaks things in the order that a seed gives, and at the end compares what the
//! clients were promised with what is in the database. Owns every process, socket and mount that it makes, and
//! nothing else on the machine. The parts that judge ([`checker`], [`envelope`]) share no code with the ledger.
//! `anyhow` throughout: nobody tells the errors apart, they only have to say what was being done.
//! Read next: `scenario.rs`, `world.rs`, `checker.rs`.

pub mod checker;
pub mod clock;
pub mod cluster;
pub mod dice;
pub mod disk;
pub mod envelope;
pub mod event;
pub mod http;
pub mod interrupt;
pub mod journal;
pub mod log;
pub mod pod;
pub mod postgres;
pub mod programs;
pub mod proxy;
pub mod recorder;
pub mod run;
pub mod scenario;
pub mod snapshot;
pub mod spools;
pub mod volume;
pub mod world;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

/// Waits until something is so.
pub(crate) fn wait_for(what: &str, limit: Duration, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + limit;
    while !is_so()? {
        interrupt::check()?;
        ensure!(Instant::now() < deadline, "{what} took longer than {} s", limit.as_secs());
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Whether a process runs; one that ended and was not reaped yet does not.
pub(crate) fn alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}
