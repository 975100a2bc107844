//! Names a process so that it can be found again by a later run, and never mistakes another one for it.
//!
//! A process id alone may have been given to a stranger since; together with the start time that the kernel keeps,
//! it is unique until the next boot.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A process of this boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ProcessId {
    pub(crate) pid: i32,
    /// Clock ticks since boot (`/proc/PID/stat`, field 22).
    start_time: u64,
}

impl ProcessId {
    /// The process that has this id now; `None` when there is none, or it has ended and waits to be reaped.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let pid = i32::try_from(pid).ok()?;
        let start_time = start_time(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?;
        Some(Self { pid, start_time })
    }

    /// This process.
    pub(crate) fn current() -> Option<Self> {
        Self::of(std::process::id())
    }

    pub(crate) fn is_alive(self) -> bool {
        u32::try_from(self.pid).ok().and_then(Self::of) == Some(self)
    }

    /// Sends the signal if the process is still the same one.
    pub(crate) fn signal(self, signal: Signal) {
        if self.is_alive()
            && let Some(pid) = Pid::from_raw(self.pid)
        {
            // It may end between the check and here; then there is nothing left to signal.
            let _gone = kill_process(pid, signal);
        }
    }

    /// Whether the process ended within the time. Blocks.
    pub(crate) fn wait(self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        while self.is_alive() {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        true
    }
}

/// Tells this boot from others.
pub(crate) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

/// Field 22 of a `/proc/PID/stat` line, unless the process is a zombie.
fn start_time(stat: &str) -> Option<u64> {
    // Field 2 is the program's name in parentheses, which may itself hold spaces and parentheses.
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_start_time_is_found_behind_a_hostile_name() {
        let stat = "7 (a) R 1 (b) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1 2";
        assert_eq!(start_time(stat), Some(987_654));
        assert_eq!(start_time("7 (a) Z 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1 2"), None);
    }

    #[test]
    fn a_recycled_process_id_is_not_signalled() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = ProcessId::of(child.id()).unwrap();
        let stranger = ProcessId { start_time: process.start_time + 1, ..process };
        stranger.signal(Signal::KILL);
        assert!(!stranger.is_alive());
        assert!(process.is_alive());
        process.signal(Signal::KILL);
        assert!(process.wait(Duration::from_secs(10)), "a zombie counts as ended");
        child.wait().unwrap();
    }
}
