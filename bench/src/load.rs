//! Runs `certeus load` and reads its result.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::child;

/// The load generator and where it sends to.
pub(crate) struct Load {
    program: PathBuf,
    url: String,
}

/// The part of a result file that is used here.
#[derive(Debug, Deserialize)]
pub(crate) struct LoadResult {
    pub(crate) acknowledged: Count,
    pub(crate) events_per_s: f64,
    pub(crate) latency_ms: Option<Percentiles>,
    pub(crate) cpu_s: f64,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Count {
    pub(crate) events: u64,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub(crate) struct Percentiles {
    pub(crate) p50: f64,
    pub(crate) p95: f64,
    pub(crate) p99: f64,
}

impl Load {
    pub(crate) fn new(program: &Path, url: String) -> Self {
        Self { program: program.to_owned(), url }
    }

    /// Every event must be acknowledged: a rate that cost events is no rate.
    pub(crate) fn run(&self, arguments: &[&str], result: &Path) -> Result<LoadResult> {
        let mut command = Command::new(&self.program);
        command.arg("load").args(["--url", &self.url, "--output"]).arg(result).args(arguments);
        let status = child::run(command.stdout(Stdio::null()))?.status;
        ensure!(status.success(), "'certeus load {}' ended with {status}", arguments.join(" "));
        let json = fs::read(result).with_context(|| format!("cannot read {}", result.display()))?;
        serde_json::from_slice(&json).with_context(|| format!("cannot understand {}", result.display()))
    }
}
