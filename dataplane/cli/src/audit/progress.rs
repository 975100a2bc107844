//! The progress of an audit, on standard error: a line that is rewritten on a terminal, else a line now and then.
//!
//! Never fails: an audit is worth more than its progress line.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use certeus_ledger::audit::Progress;

const TERMINAL_INTERVAL: Duration = Duration::from_millis(250);
const LOG_INTERVAL: Duration = Duration::from_secs(10);
const BAR_CELLS: u64 = 24;

/// The progress line.
pub(super) struct Bar {
    terminal: bool,
    start: Instant,
    /// What was done before this start: no part of the rate.
    before: u64,
}

impl Bar {
    pub(super) fn new(start: Instant, progress: Progress) -> Self {
        Self { terminal: io::stderr().is_terminal(), start, before: done(progress) }
    }

    pub(super) fn every(&self) -> Duration {
        if self.terminal { TERMINAL_INTERVAL } else { LOG_INTERVAL }
    }

    pub(super) fn show(&self, progress: Progress) {
        let line = line(progress, self.before, self.start.elapsed(), self.terminal);
        write(&if self.terminal { format!("\r\x1b[K{line}") } else { format!("{line}\n") });
    }

    pub(super) fn say(&self, text: &str) {
        write(&format!("{text}\n"));
    }

    /// Leaves the line as it is.
    pub(super) fn close(&self) {
        if self.terminal {
            write("\n");
        }
    }
}

fn write(text: &str) {
    // Nobody reads it any more.
    let _unseen = io::stderr().write_all(text.as_bytes());
}

/// Events whose rows and whose entries are done, as if each were half of the work.
fn done(progress: Progress) -> u64 {
    let rows = progress.rows;
    let archived =
        if progress.reads_archive { rows.archived_rehashed + rows.archived_erased } else { rows.archived };
    let rows = rows.rehashed + rows.erased + archived;
    u64::midpoint(rows.min(progress.through), progress.tree_size.min(progress.through))
}

fn line(progress: Progress, before: u64, elapsed: Duration, bar: bool) -> String {
    let (through, done) = (progress.through, done(progress));
    let percent = if through == 0 { 100 } else { u128::from(done) * 100 / u128::from(through) };
    let mut text = String::new();
    if bar {
        let cells = done.saturating_mul(BAR_CELLS).checked_div(through).unwrap_or(BAR_CELLS);
        for cell in 0..BAR_CELLS {
            text.push(if cell < cells { '█' } else { '░' });
        }
        text.push(' ');
    }
    let rate = (done.saturating_sub(before)) as f64 / elapsed.as_secs_f64().max(0.001);
    // Writing to a string cannot fail.
    let _infallible = write!(text, "{percent}%, {done} of {through} events, {rate:.0} events/s");
    if rate >= 1.0 && done < through {
        let left = Duration::from_secs_f64(((through - done) as f64 / rate).min(1e9));
        let _infallible = write!(text, ", {} left", span(left));
    }
    if progress.problems > 0 {
        let _infallible = write!(text, ", {} FINDINGS", progress.problems);
    }
    text
}

/// As in `2h05m`, `5m09s` or `7s`.
pub(super) fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds}s"),
        (0, minutes, seconds) => format!("{minutes}m{seconds:02}s"),
        (hours, minutes, _) => format!("{hours}h{minutes:02}m"),
    }
}

#[cfg(test)]
mod tests {
    use certeus_ledger::audit::RowCounts;

    use super::*;

    #[test]
    fn the_line_says_how_far_how_fast_and_how_long() {
        let rows = RowCounts { rehashed: 600_000, ..RowCounts::default() };
        let progress =
            Progress { through: 1_000_000, rows, reads_archive: true, tree_size: 400_000, problems: 0 };
        let text = line(progress, 300_000, Duration::from_secs(2), false);
        assert_eq!(text, "50%, 500000 of 1000000 events, 100000 events/s, 5s left");
        let text = line(Progress { problems: 2, ..progress }, 0, Duration::from_secs(1), true);
        assert!(text.starts_with("████████████░░░░░░░░░░░░ 50%"), "{text}");
        assert!(text.ends_with("2 FINDINGS"), "{text}");
        // Archived events are done when they were read, if they are.
        let archived = RowCounts { archived: 400_000, archived_rehashed: 100_000, ..rows };
        for (reads_archive, wanted) in [(true, "55%, 550000 of"), (false, "70%, 700000 of")] {
            let progress = Progress { rows: archived, reads_archive, ..progress };
            let text = line(progress, 0, Duration::from_secs(1), false);
            assert!(text.starts_with(wanted), "{text}");
        }
        let empty = Progress { through: 0, rows: RowCounts::default(), tree_size: 0, ..progress };
        assert_eq!(line(empty, 0, Duration::ZERO, false), "100%, 0 of 0 events, 0 events/s");
        assert_eq!(span(Duration::from_secs(7509)), "2h05m");
    }
}
