//! When each request of an open-loop run is due. Pure: knows rates and durations, reads no clock.
//!
//! The rate rises in a straight line from zero to the target during the ramp-up and then stays, so the number of
//! requests due by time `t` is `r t^2 / 2u` in a ramp of length `u`, and `r (t - u/2)` after it; `due` is the inverse.

use std::time::Duration;

/// The due times of requests 0, 1, 2, ... counted from the start of the run.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Schedule {
    requests_per_second: f64,
    ramp_up_s: f64,
}

impl Schedule {
    /// `requests_per_second` must be above zero.
    pub(crate) fn new(requests_per_second: f64, ramp_up: Duration) -> Self {
        assert!(requests_per_second > 0.0, "a schedule needs a rate above zero");
        Self { requests_per_second, ramp_up_s: ramp_up.as_secs_f64() }
    }

    /// When a request is due. A time too far off to express is `Duration::MAX`.
    pub(crate) fn due(&self, request: u64) -> Duration {
        let request = request as f64;
        let in_ramp = self.requests_per_second * self.ramp_up_s / 2.0;
        let seconds = if request < in_ramp {
            (2.0 * request * self.ramp_up_s / self.requests_per_second).sqrt()
        } else {
            request / self.requests_per_second + self.ramp_up_s / 2.0
        };
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }

    /// The rate at a moment, in requests per second.
    pub(crate) fn rate_at(&self, elapsed: Duration) -> f64 {
        let elapsed = elapsed.as_secs_f64();
        if elapsed < self.ramp_up_s {
            self.requests_per_second * elapsed / self.ramp_up_s
        } else {
            self.requests_per_second
        }
    }

    /// How many requests are due before `end`.
    pub(crate) fn due_before(&self, end: Duration) -> u64 {
        let seconds = end.as_secs_f64();
        let ramp = seconds.min(self.ramp_up_s);
        let in_ramp = if self.ramp_up_s > 0.0 {
            self.requests_per_second * ramp * ramp / self.ramp_up_s / 2.0
        } else {
            0.0
        };
        let estimate = in_ramp + self.requests_per_second * (seconds - ramp);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "saturates, never negative"
        )]
        let mut count = estimate as u64;
        // Rounding puts the estimate one off at most; `due` is what the run goes by.
        while count > 0 && self.due(count - 1) >= end {
            count -= 1;
        }
        while self.due(count) < end {
            count += 1;
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_constant_rate_is_evenly_spaced() {
        let schedule = Schedule::new(4.0, Duration::ZERO);
        let due: Vec<_> = (0..4).map(|k| schedule.due(k).as_millis()).collect();
        assert_eq!(due, [0, 250, 500, 750]);
        assert_eq!(schedule.due_before(Duration::from_secs(1)), 4);
        assert_eq!(schedule.due_before(Duration::ZERO), 0);
    }

    #[test]
    fn a_ramp_sends_half_of_what_the_full_rate_would() {
        let schedule = Schedule::new(100.0, Duration::from_secs(10));
        assert_eq!(schedule.due_before(Duration::from_secs(10)), 500);
        assert_eq!(schedule.due_before(Duration::from_secs(12)), 700);
        // A quarter of the ramp's requests come in its first half.
        assert_eq!(schedule.due(125), Duration::from_secs(5));
        assert!((schedule.rate_at(Duration::from_secs(5)) - 50.0).abs() < 1e-9);
        assert!((schedule.rate_at(Duration::from_secs(11)) - 100.0).abs() < 1e-9);
    }

    proptest! {
        #[test]
        fn due_times_never_go_back_and_agree_with_the_count(
            rate in 0.01_f64..1e6, ramp_ms in 0_u64..60_000, end_ms in 0_u64..120_000, request in 0_u64..10_000_000
        ) {
            let schedule = Schedule::new(rate, Duration::from_millis(ramp_ms));
            prop_assert!(schedule.due(request) <= schedule.due(request + 1));
            let end = Duration::from_millis(end_ms);
            let count = schedule.due_before(end);
            prop_assert!(schedule.due(count) >= end);
            prop_assert!(count == 0 || schedule.due(count - 1) < end);
        }
    }
}
