//! The pod's own use of the machine: CPU, memory, start time.
//!
//! Owns reading `/proc/self`. What cannot be read is reported as such: a counter that stands still would look like an idle pod.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use prometheus::{Counter, Gauge, IntGauge, Registry};

/// One reading.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    /// CPU time used since start.
    pub(crate) cpu: Duration,
    /// Resident memory in bytes.
    pub(crate) resident_bytes: u64,
}

/// Reads the process's use of CPU and memory.
#[must_use]
pub(crate) fn usage() -> Option<Usage> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The command name, in parentheses, may hold anything; fields are counted after it (proc(5): 14 is utime).
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    let pages: u64 = fields.get(21)?.parse().ok()?;
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    Some(Usage {
        cpu: Duration::from_nanos(ticks * (1_000_000_000 / per_second)),
        resident_bytes: pages * rustix::param::page_size() as u64,
    })
}

/// What the readings before have given.
#[derive(Debug)]
struct Last {
    /// CPU time that the counter holds.
    counted: Duration,
    /// When the share was last renewed, and the CPU time then.
    since: Instant,
    cpu: Duration,
    share: f64,
}

/// The process metrics, and the CPU share since the reading before.
#[derive(Debug)]
pub(crate) struct Process {
    cpu_seconds: Counter,
    /// When that was read. Whoever computes a rate from two pages need not guess how long each of them was under way.
    uptime_seconds: Gauge,
    resident: IntGauge,
    started: Instant,
    last: Mutex<Last>,
}

impl Process {
    /// Registers the metrics.
    ///
    /// # Errors
    /// When a name is taken.
    pub(crate) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let cpu_seconds =
            Counter::new("certeus_process_cpu_seconds_total", "CPU time used by this process.")?;
        let uptime_seconds = Gauge::new(
            "certeus_process_uptime_seconds",
            "Time since the start of this process, at which its use of CPU and memory was read.",
        )?;
        let resident =
            IntGauge::new("certeus_process_resident_memory_bytes", "Resident memory of this process.")?;
        let start =
            Gauge::new("certeus_process_start_time_seconds", "Start of this process since the Unix epoch.")?;
        registry.register(Box::new(cpu_seconds.clone()))?;
        registry.register(Box::new(uptime_seconds.clone()))?;
        registry.register(Box::new(resident.clone()))?;
        registry.register(Box::new(start.clone()))?;
        start.set(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64());
        let now = Instant::now();
        Ok(Self {
            cpu_seconds,
            uptime_seconds,
            resident,
            started: now,
            last: Mutex::new(Last { counted: Duration::ZERO, since: now, cpu: Duration::ZERO, share: 0.0 }),
        })
    }

    /// Brings the metrics up to date; `None` when the operating system does not tell.
    pub(crate) fn update(&self) -> Option<Usage> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let usage = usage()?;
        self.uptime_seconds.set(self.uptime().as_secs_f64());
        self.cpu_seconds.inc_by(usage.cpu.saturating_sub(last.counted).as_secs_f64());
        last.counted = last.counted.max(usage.cpu);
        self.resident.set(i64::try_from(usage.resident_bytes).unwrap_or(i64::MAX));
        // The clock ticks every 10 ms: over less than a second the share would be mostly rounding.
        let elapsed = last.since.elapsed();
        if elapsed >= Duration::from_secs(1) {
            last.share = usage.cpu.saturating_sub(last.cpu).as_secs_f64() / elapsed.as_secs_f64();
            last.since = Instant::now();
            last.cpu = usage.cpu;
        }
        Some(usage)
    }

    /// Cores used on average, over the last second or more between updates.
    pub(crate) fn cpu_share(&self) -> f64 {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).share
    }

    /// Time since start.
    #[must_use]
    pub(crate) fn uptime(&self) -> Duration {
        self.started.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readings_move_with_use() {
        let before = usage().unwrap();
        assert!(before.resident_bytes > 100_000);
        let mut sum = 0_u64;
        while usage().unwrap().cpu <= before.cpu {
            sum = (0..1_000_000_u64).fold(sum, |sum, n| std::hint::black_box(sum.wrapping_add(n * n)));
        }
        let registry = Registry::new();
        let process = Process::register(&registry).unwrap();
        let counted = process.update().unwrap().cpu.as_secs_f64();
        process.update();
        let families = registry.gather();
        let cpu =
            families.iter().find(|family| family.name() == "certeus_process_cpu_seconds_total").unwrap();
        assert!(cpu.get_metric()[0].get_counter().get_value() >= counted);
    }
}
