//! Processor time and memory of processes, from `/proc`.

use std::fs;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Often enough to see the queue of a pod fill and empty.
const SAMPLE_EVERY: Duration = Duration::from_millis(50);

/// Processor seconds by part.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CpuTime {
    pub(crate) server: f64,
    pub(crate) postgresql: f64,
}

/// Processor seconds that a process has used, user and system.
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
    Ok(seconds(Stat::read(pid)?.own_ticks))
}

/// The same with its children: those that live, and those that have ended and were waited for.
pub(crate) fn cpu_seconds_with_children(pid: u32) -> Result<f64> {
    let parent = Stat::read(pid)?;
    let mut ticks = parent.own_ticks + parent.ended_children_ticks;
    for entry in fs::read_dir("/proc").context("cannot read /proc")? {
        let name = entry.context("cannot read /proc")?.file_name();
        let Some(child) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        // A process may end between the listing and here; it then is in its parent's account next time.
        let Ok(stat) = Stat::read(child) else { continue };
        if stat.parent == pid {
            ticks += stat.own_ticks;
        }
    }
    Ok(seconds(ticks))
}

fn seconds(ticks: u64) -> f64 {
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}

/// Fields of `/proc/PID/stat`; see proc(5).
#[derive(Debug, PartialEq)]
struct Stat {
    parent: u32,
    own_ticks: u64,
    ended_children_ticks: u64,
}

impl Stat {
    fn read(pid: u32) -> Result<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).context("a process is gone")?;
        Self::parse(&text).with_context(|| format!("cannot understand /proc/{pid}/stat"))
    }

    fn parse(text: &str) -> Option<Self> {
        // The command's name, the second field, may hold spaces and parentheses: count from its end.
        let fields: Vec<&str> = text.rsplit_once(") ")?.1.split(' ').collect();
        let number = |field: usize| fields.get(field - 3)?.trim().parse::<u64>().ok();
        Some(Self {
            parent: u32::try_from(number(4)?).ok()?,
            own_ticks: number(14)? + number(15)?,
            ended_children_ticks: number(16)? + number(17)?,
        })
    }
}

/// Watches the resident memory of a process.
pub(crate) struct Sampler {
    stop: Sender<()>,
    thread: JoinHandle<Result<f64>>,
}

impl Sampler {
    pub(crate) fn start(pid: u32) -> Self {
        let (stop, stopped) = channel();
        Self { stop, thread: thread::spawn(move || sample(pid, &stopped)) }
    }

    /// The most that was seen, in megabytes (10^6 bytes).
    pub(crate) fn stop(self) -> Result<f64> {
        drop(self.stop);
        let Ok(most) = self.thread.join() else { bail!("the memory sampler ended unexpectedly") };
        most
    }
}

fn sample(pid: u32, stopped: &Receiver<()>) -> Result<f64> {
    let mut most = 0_u64;
    loop {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).context("the pod is gone")?;
        most = most.max(resident_kib(&status).context("the pod's memory is not known")?);
        if stopped.recv_timeout(SAMPLE_EVERY) != Err(RecvTimeoutError::Timeout) {
            return Ok(most as f64 * 1024.0 / 1e6);
        }
    }
}

fn resident_kib(status: &str) -> Option<u64> {
    status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.strip_suffix("kB")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_name_may_look_like_fields() {
        let text = "71 (a) S 9 (b) S 42 71 71 0 -1 4194560 1 2 3 4 500 60 7000 800 20 0 1 0 99 1 1\n";
        let expected = Stat { parent: 42, own_ticks: 560, ended_children_ticks: 7800 };
        assert_eq!(Stat::parse(text), Some(expected));
        assert_eq!(Stat::parse("71 (a) S 42"), None);
    }

    #[test]
    fn resident_memory_is_read_in_kib() {
        assert_eq!(resident_kib("VmHWM:\t  900 kB\nVmRSS:\t   812 kB\n"), Some(812));
        assert_eq!(resident_kib("State:\tZ (zombie)\n"), None);
    }

    #[test]
    fn time_of_ended_children_is_counted() {
        let own = std::process::id();
        let before = cpu_seconds_with_children(own).unwrap();
        let count = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done";
        assert!(std::process::Command::new("sh").args(["-c", count]).status().unwrap().success());
        assert!(cpu_seconds_with_children(own).unwrap() > before);
    }
}
