//! Hands out the requests of a run to its workers, each at its time.
//!
//! Closed loop: a worker gets the next request whenever it asks. Open loop: a thread of its own releases requests when
//! they are due, as tokio's timers are only good to a millisecond, and this must measure less. What is due and not yet
//! taken waits as a number, so a server that does not keep up costs no memory and no request is forgotten.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use super::options::WORKERS_MAX;
use super::schedule::Schedule;

/// One request that is to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket {
    /// 0, 1, 2, ...
    pub(crate) number: u64,
    /// `None` in a closed loop.
    pub(crate) due: Option<Instant>,
}

/// Where workers get their tickets.
#[derive(Debug)]
pub(crate) struct Pacer {
    pace: Pace,
    /// Tickets handed out; may pass `total` when workers ask at the end.
    taken: AtomicU64,
    total: u64,
}

#[derive(Debug)]
enum Pace {
    AsTaken { until: Option<Instant> },
    Scheduled { schedule: Schedule, start: Instant, due: Semaphore, released: AtomicU64 },
}

impl Pacer {
    /// Closed loop of `total` requests at most, until a moment at most.
    pub(crate) fn as_taken(total: u64, until: Option<Instant>) -> Self {
        Self { pace: Pace::AsTaken { until }, taken: AtomicU64::new(0), total }
    }

    /// Open loop of `total` requests at most, which are those due within `duration` when one is given.
    pub(crate) fn scheduled(
        schedule: Schedule,
        start: Instant,
        total: u64,
        duration: Option<Duration>,
    ) -> Self {
        let total = duration.map_or(total, |duration| total.min(schedule.due_before(duration)));
        let pace = Pace::Scheduled { schedule, start, due: Semaphore::new(0), released: AtomicU64::new(0) };
        Self { pace, taken: AtomicU64::new(0), total }
    }

    /// The next request, once it is due. `None` when there are no more. Dropping the future loses no request.
    pub(crate) async fn next(&self) -> Option<Ticket> {
        let schedule = match &self.pace {
            Pace::AsTaken { until } => {
                if until.is_some_and(|until| Instant::now() >= until) {
                    return None;
                }
                None
            }
            Pace::Scheduled { schedule, start, due, .. } => {
                due.acquire().await.ok()?.forget();
                Some((schedule, *start))
            }
        };
        let number = self.taken.fetch_add(1, Ordering::Relaxed);
        (number < self.total)
            .then(|| Ticket { number, due: schedule.map(|(schedule, start)| start + schedule.due(number)) })
    }

    /// The numbers of the requests that are due and nobody has taken.
    pub(crate) fn backlog(&self) -> Range<u64> {
        let taken = self.taken.load(Ordering::Relaxed);
        match &self.pace {
            Pace::AsTaken { .. } => taken..taken,
            Pace::Scheduled { released, .. } => taken..released.load(Ordering::Relaxed),
        }
    }

    /// The rate to be held at a moment, in requests per second; `None` in a closed loop.
    pub(crate) fn rate_at(&self, elapsed: Duration) -> Option<f64> {
        match &self.pace {
            Pace::AsTaken { .. } => None,
            Pace::Scheduled { schedule, .. } => Some(schedule.rate_at(elapsed)),
        }
    }

    /// Releases each request when it is due; to be run on a thread of its own. Returns when all are released, or when
    /// the sender of `stop` is dropped.
    pub(crate) fn release(&self, stop: &Receiver<()>) {
        let Pace::Scheduled { schedule, start, due, released: released_total } = &self.pace else { return };
        sleep_precisely();
        let mut released = 0;
        while released < self.total {
            let elapsed = start.elapsed();
            let before = released;
            while released < self.total && schedule.due(released) <= elapsed {
                released += 1;
            }
            released_total.store(released, Ordering::Relaxed);
            due.add_permits(usize::try_from(released - before).unwrap_or(Semaphore::MAX_PERMITS));
            let wait = schedule.due(released).saturating_sub(start.elapsed());
            if released < self.total && stop.recv_timeout(wait) != Err(RecvTimeoutError::Timeout) {
                return;
            }
        }
        // One more for every worker, which finds that there is nothing left.
        due.add_permits(WORKERS_MAX);
    }
}

/// Lets this thread's timers fire when they are due: by default Linux delays them by 50 us to save wake-ups.
fn sleep_precisely() {
    #[cfg(target_os = "linux")]
    if rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1)).is_err() {
        // Less precise, and the schedule lag in the result says by how much.
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    async fn numbers(pacer: &Pacer) -> Vec<u64> {
        let mut numbers = Vec::new();
        while let Some(ticket) = pacer.next().await {
            numbers.push(ticket.number);
        }
        numbers
    }

    #[tokio::test]
    async fn a_closed_loop_ends_with_its_total_or_its_time() {
        assert_eq!(numbers(&Pacer::as_taken(3, None)).await, [0, 1, 2]);
        assert!(numbers(&Pacer::as_taken(3, Some(Instant::now()))).await.is_empty());
    }

    #[tokio::test]
    async fn an_open_loop_releases_what_is_due_in_its_time_and_then_ends() {
        let start = Instant::now();
        let schedule = Schedule::new(1000.0, Duration::ZERO);
        let pacer = Pacer::scheduled(schedule, start, u64::MAX, Some(Duration::from_millis(20)));
        let (_stop, stopped) = mpsc::channel();
        pacer.release(&stopped);
        assert!(start.elapsed() >= Duration::from_millis(19), "the last request is due after 19 ms");
        assert_eq!(pacer.backlog(), 0..20);
        assert_eq!(pacer.next().await.unwrap().due, Some(start));
        assert_eq!(pacer.backlog(), 1..20);
        assert_eq!(numbers(&pacer).await.len(), 19);
        assert!(pacer.backlog().is_empty());
    }

    #[test]
    fn an_open_loop_stops_at_once_when_told() {
        let pacer = Pacer::scheduled(Schedule::new(0.001, Duration::ZERO), Instant::now(), u64::MAX, None);
        let (stop, stopped) = mpsc::channel();
        drop(stop);
        // Would otherwise take a thousand seconds.
        pacer.release(&stopped);
        assert_eq!(pacer.backlog(), 0..1);
    }
}
