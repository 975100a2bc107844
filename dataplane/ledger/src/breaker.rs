//! The circuit breaker between the ledger and its database: decides whether requests may go there, and when to look.
//!
//! Owns that decision and nothing else. Pure: outcomes and times come in as values. Promises: one failure among
//! successes never opens it; once open it lets nothing through until a probe wrote to the database; a database that
//! takes probes but no commits is tried less and less often, so that readiness does not flap.
//!
//! ```text
//!            FAILURES_MAX attempts in a row fail          a probe wrote, and the hold is over
//!   Closed ───────────────────────────────────▶ Open ───────────────────────────────────────▶ HalfOpen
//!     ▲                                          ▲ a commit or probe fails                       │
//!     │                                          └───────────────────────────────────────────────┤
//!     └──────────── a commit succeeds, or PROBES_MIN probes in a row for as long as the hold ────┘
//! ```
//!
//! A commit that succeeds closes it from any state: there is no better evidence. Probes alone must go on succeeding for as
//! long as it was held open, which grows from opening to opening: meanwhile the trials show what probes cannot.

use std::time::Duration;

use tokio::time::Instant;

/// Commit attempts that fail in a row, over all writers, before the database counts as away. A writer makes as many in
/// some 140 ms. A single one may be a connection that a proxy closed or a lock that was not had in time.
const FAILURES_MAX: u32 = 3;
/// A probe that fails counts for so many: two in a row are enough, one may be a machine that is short of breath.
const PROBE_FAILURES: u32 = 2;
/// Failures are forgotten after this long without another, so that rare ones never add up.
const FORGET: Duration = Duration::from_secs(10);
/// Between two looks at the database.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// The first look after opening, and the shortest time that the breaker stays open.
const HOLD_MIN: Duration = Duration::from_millis(200);
/// The longest time that it stays open although probes succeed.
const HOLD_MAX: Duration = Duration::from_secs(5);
/// Probes that must succeed in a row, at least, when no commit does.
const PROBES_MIN: u32 = 2;
/// Requests that may go to the database while it is being tried.
const TRIALS_MAX: u32 = 16;

/// The state as metrics, health and logs name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BreakerState {
    /// Requests go to the database.
    Closed,
    /// The database looks usable again, and a few requests try it.
    HalfOpen,
    /// Nothing goes to the database but probes.
    Open,
}

impl BreakerState {
    /// All states, for metrics that show each from the start.
    pub const ALL: [Self; 3] = [Self::Closed, Self::HalfOpen, Self::Open];

    /// The name used in metric labels and replies.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
        }
    }
}

/// What a probe has to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Probe {
    /// That the database answers and is no standby. Enough while commits are believed to work, and costs it nothing: an
    /// idle ledger must not write WAL for ever.
    Answers,
    /// That it flushes a transaction.
    Writes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// With this many failures in a row, of which the last was then.
    Closed { failures: u32, last: Instant },
    /// With the time from which probes alone may close it.
    HalfOpen { probes: u32, trials: u32, settles: Instant },
    /// With the time before which it stays open.
    Open { until: Instant },
}

/// The breaker of one ledger.
#[derive(Debug)]
pub(crate) struct Breaker {
    state: State,
    /// How long it was held open the last time.
    held: Duration,
    /// How long it stays open the next time. Grows from opening to opening, until a commit succeeds.
    hold: Duration,
    /// When the database was last heard of, or is to be looked at for the first time.
    last_look: Instant,
    opened_at: Instant,
}

impl Breaker {
    /// Open, as the database has not been seen yet.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            state: State::Open { until: now },
            held: Duration::ZERO,
            hold: HOLD_MIN,
            last_look: now,
            opened_at: now,
        }
    }

    /// The state.
    pub(crate) fn state(&self) -> BreakerState {
        match self.state {
            State::Closed { .. } => BreakerState::Closed,
            State::HalfOpen { .. } => BreakerState::HalfOpen,
            State::Open { .. } => BreakerState::Open,
        }
    }

    /// Whether a request may go to the database. While half open this uses up a trial.
    pub(crate) fn admit(&mut self) -> bool {
        match &mut self.state {
            State::Closed { .. } => true,
            State::HalfOpen { trials, .. } if *trials < TRIALS_MAX => {
                *trials += 1;
                true
            }
            State::HalfOpen { .. } | State::Open { .. } => false,
        }
    }

    /// A commit succeeded.
    pub(crate) fn committed(&mut self, now: Instant) {
        self.hold = HOLD_MIN;
        self.last_look = now;
        self.state = State::Closed { failures: 0, last: now };
    }

    /// An attempt to commit failed for a reason that lies with the database.
    pub(crate) fn failed(&mut self, now: Instant) {
        self.count(1, now);
    }

    fn count(&mut self, weight: u32, now: Instant) {
        match &mut self.state {
            State::Closed { failures, last } => {
                *failures += weight;
                *last = now;
                if *failures >= FAILURES_MAX {
                    self.open(now);
                }
            }
            State::HalfOpen { .. } => self.open(now),
            // Attempts that began before it opened say nothing new.
            State::Open { .. } => {}
        }
    }

    fn open(&mut self, now: Instant) {
        self.state = State::Open { until: now + self.hold };
        self.held = self.hold;
        self.hold = (self.hold * 2).min(HOLD_MAX);
        self.last_look = now;
        self.opened_at = now;
    }

    /// When to look at the database, and for what.
    pub(crate) fn next_probe(&self) -> (Instant, Probe) {
        match self.state {
            State::Closed { failures: 0, .. } => (self.last_look + PROBE_INTERVAL, Probe::Answers),
            State::Closed { .. } => (self.last_look + HOLD_MIN, Probe::Answers),
            State::HalfOpen { .. } => (self.last_look + HOLD_MIN, Probe::Writes),
            State::Open { until } => {
                // Soon at first: most of what opens a breaker is over in a moment.
                let waited = self.last_look.saturating_duration_since(self.opened_at);
                let interval = waited.clamp(HOLD_MIN, PROBE_INTERVAL);
                (until.max(self.last_look + interval), Probe::Writes)
            }
        }
    }

    /// A probe showed what it had to.
    pub(crate) fn probed(&mut self, probe: Probe, now: Instant) {
        self.last_look = now;
        match (&mut self.state, probe) {
            // That it answers takes nothing back of commits that failed, until they are long past.
            (State::Closed { failures, last }, _) => {
                if now.saturating_duration_since(*last) >= FORGET {
                    *failures = 0;
                }
            }
            (_, Probe::Answers) => {}
            (State::HalfOpen { probes, settles, .. }, Probe::Writes) => {
                *probes += 1;
                if *probes >= PROBES_MIN && now >= *settles {
                    self.state = State::Closed { failures: 0, last: now };
                }
            }
            (State::Open { until }, Probe::Writes) => {
                if now >= *until {
                    self.state = State::HalfOpen { probes: 1, trials: 0, settles: now + self.held };
                }
            }
        }
    }

    /// A probe failed.
    pub(crate) fn probe_failed(&mut self, now: Instant) {
        self.count(PROBE_FAILURES, now);
        self.last_look = now;
    }
}

#[cfg(test)]
mod tests;
