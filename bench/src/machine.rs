//! What the figures were measured on.

use std::fs;
use std::num::NonZero;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::postgres::Postgres;

/// The machine and its software.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) memory_mb: u64,
    pub(crate) kernel: String,
    pub(crate) postgresql: String,
}

impl Machine {
    pub(crate) fn of_this(postgres: &Postgres) -> Result<Self> {
        let cpu_info = read("/proc/cpuinfo")?;
        let memory_info = read("/proc/meminfo")?;
        let memory_kib: u64 = field(&memory_info, "MemTotal")
            .and_then(|value| value.strip_suffix("kB")?.trim().parse().ok())
            .context("/proc/meminfo has no MemTotal")?;
        Ok(Self {
            // Not every architecture names its model.
            cpu: field(&cpu_info, "model name").unwrap_or(std::env::consts::ARCH).to_owned(),
            cores: std::thread::available_parallelism().map_or(1, NonZero::get),
            memory_mb: memory_kib * 1024 / 1_000_000,
            kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            postgresql: postgres.version()?,
        })
    }
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {path}"))
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim())
    })
}
