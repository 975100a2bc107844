//! What past evaluations leave behind: recommendations for the stabilisation windows, scale events for the rate
//! policies, failures in a row. Bounded whatever happens, and not worth keeping across a restart: a new state is seeded
//! with the present count and so starts a full scale-down window anew.

use std::collections::VecDeque;
use std::time::Duration;

use crate::policy::PERIOD_MAX;

/// Most scale events kept. With more within [`PERIOD_MAX`] the two oldest count as one at the later time, which can only
/// make rate policies stricter.
const SCALE_EVENTS_MAX: usize = 256;

/// The history of one cluster's scaling.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    now: Duration,
    failures: u32,
    /// Smallest recommendations for growth: counts strictly rise from front to back.
    up: VecDeque<Recommendation>,
    /// Largest recommendations for shrinking: counts strictly fall from front to back.
    down: VecDeque<Recommendation>,
    events: VecDeque<ScaleEvent>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Recommendation {
    at: Duration,
    replicas: u32,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct ScaleEvent {
    at: Duration,
    added: u32,
    removed: u32,
}

impl State {
    /// The history of a cluster first seen at `now` with `replicas`: it is taken to have been right so far.
    pub fn new(now: Duration, replicas: u32) -> Self {
        let seed = Recommendation { at: now, replicas };
        State {
            now,
            failures: 0,
            up: VecDeque::from([seed]),
            down: VecDeque::from([seed]),
            events: VecDeque::new(),
        }
    }

    /// Notes that the workload's replica count was changed, by whomever. Call it once per successful write.
    pub fn record_scale(&mut self, now: Duration, from: u32, to: u32) {
        self.now = self.now.max(now);
        while self.events.front().is_some_and(|event| event.at.saturating_add(PERIOD_MAX) <= self.now) {
            self.events.pop_front();
        }
        if from == to {
            return;
        }
        if self.events.len() == SCALE_EVENTS_MAX
            && let Some(oldest) = self.events.pop_front()
            && let Some(next) = self.events.front_mut()
        {
            next.added = next.added.saturating_add(oldest.added);
            next.removed = next.removed.saturating_add(oldest.removed);
        }
        self.events.push_back(ScaleEvent {
            at: self.now,
            added: to.saturating_sub(from),
            removed: from.saturating_sub(to),
        });
    }

    /// Moves to `now` and counts whether measuring failed, once per moment however often it is asked. Time that runs
    /// backwards stands still. Returns the failures in a row.
    pub(crate) fn advance(&mut self, now: Duration, failed: bool) -> u32 {
        if !failed {
            self.failures = 0;
        } else if now > self.now || self.failures == 0 {
            self.failures = self.failures.saturating_add(1);
        }
        self.now = self.now.max(now);
        self.failures
    }

    /// Notes a recommendation to stay or grow for `window`, and returns the smallest within it.
    pub(crate) fn recommend_up(&mut self, replicas: u32, window: Duration) -> u32 {
        expire(&mut self.up, self.now, window);
        while self.up.back().is_some_and(|last| last.replicas >= replicas) {
            self.up.pop_back();
        }
        self.up.push_back(Recommendation { at: self.now, replicas });
        self.up.front().map_or(replicas, |first| first.replicas)
    }

    /// Notes a recommendation to stay or shrink for `window`, and returns the largest within it.
    pub(crate) fn recommend_down(&mut self, replicas: u32, window: Duration) -> u32 {
        expire(&mut self.down, self.now, window);
        while self.down.back().is_some_and(|last| last.replicas <= replicas) {
            self.down.pop_back();
        }
        self.down.push_back(Recommendation { at: self.now, replicas });
        self.down.front().map_or(replicas, |first| first.replicas)
    }

    /// The replica count a `period` ago, given the `current` one and the changes noted since.
    pub(crate) fn replicas_at_start(&self, current: u32, period: Duration) -> u32 {
        let since = self.events.iter().filter(|event| event.at.saturating_add(period) > self.now);
        let (added, removed) = since.fold((0u32, 0u32), |(added, removed), event| {
            (added.saturating_add(event.added), removed.saturating_add(event.removed))
        });
        current.saturating_add(removed).saturating_sub(added)
    }
}

fn expire(recommendations: &mut VecDeque<Recommendation>, now: Duration, window: Duration) {
    while recommendations.front().is_some_and(|first| first.at.saturating_add(window) <= now) {
        recommendations.pop_front();
    }
}

#[cfg(test)]
mod tests;
