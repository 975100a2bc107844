//! Whether the operator does its work. Watches, lease and controller report here; the server asks.
//! Liveness follows progress: a watch that has failed for long, or a controller that stopped turning, ends the process. A watch that
//! the API server refuses does not: a new process would be refused, too. It is told beside being ready.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A watch that has failed for this long without any success is taken for stuck. API servers are upgraded within a minute or
/// two, and a restart of the operator would not help meanwhile.
const WATCH_FAILING_MAX: Duration = Duration::from_secs(180);
/// A watch that fails says so again within this time: pauses end at 60 s, and a request is given up after 25 s. One that works again may
/// have nothing to tell.
const FAILURE_GAP_MAX: Duration = Duration::from_secs(120);
const _: () = assert!(FAILURE_GAP_MAX.as_secs() < WATCH_FAILING_MAX.as_secs());
/// The controller and the lease report at least every few seconds.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// What the operator depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Source {
    /// A watch, by its name in metrics and by which of the watched namespaces it looks at: that of one must not hide that
    /// another fails.
    Watch(&'static str, usize),
    /// The loop that hands out reconciles.
    Controller,
    /// Acquiring or renewing the lease.
    Lease,
}

#[derive(Debug)]
struct Progress {
    last: Duration,
    failing_since: Option<Duration>,
    failure: String,
    /// It has no right to what it is there for.
    refused: bool,
}

impl Progress {
    fn at(now: Duration) -> Self {
        Self { last: now, failing_since: None, failure: String::new(), refused: false }
    }
}

#[derive(Debug, Default)]
struct State {
    sources: BTreeMap<Source, Progress>,
    /// What is waited for before the operator can do anything; `None` once it can.
    waiting: Option<String>,
}

/// Shared by whoever reports and the server that tells.
#[derive(Debug)]
pub(crate) struct Health {
    /// Guards a few entries; never held while waiting.
    state: Mutex<State>,
}

impl Health {
    pub(crate) fn new() -> Self {
        let state = State { waiting: Some("starting".to_owned()), ..State::default() };
        Self { state: Mutex::new(state) }
    }

    /// `source` did what it is there for.
    pub(crate) fn progress(&self, source: Source, now: Duration) {
        self.lock().sources.insert(source, Progress::at(now));
    }

    /// `source` tried and failed.
    pub(crate) fn failure(&self, source: Source, now: Duration, failure: String) {
        let mut state = self.lock();
        let progress = state.sources.entry(source).or_insert_with(|| Progress::at(now));
        let went_on = now.saturating_sub(progress.last) <= FAILURE_GAP_MAX;
        let failing_since = Some(progress.failing_since.filter(|_| went_on).unwrap_or(now));
        *progress = Progress { failing_since, failure, ..Progress::at(now) };
    }

    /// `source` may not do what it is there for.
    pub(crate) fn refused(&self, source: Source, now: Duration, why: String) {
        self.lock().sources.insert(source, Progress { failure: why, refused: true, ..Progress::at(now) });
    }

    /// What is refused, in words.
    pub(crate) fn refusals(&self) -> Vec<String> {
        let state = self.lock();
        state
            .sources
            .values()
            .filter(|progress| progress.refused)
            .map(|progress| progress.failure.clone())
            .collect()
    }

    /// `source` has ended on purpose.
    pub(crate) fn forget(&self, source: Source) {
        self.lock().sources.remove(&source);
    }

    /// Not ready, and why; `None` means ready.
    pub(crate) fn wait_for(&self, what: Option<String>) {
        self.lock().waiting = what;
    }

    /// Whether the process should live on.
    pub(crate) fn live(&self, now: Duration) -> Result<(), String> {
        let state = self.lock();
        for (source, progress) in &state.sources {
            if let Source::Watch(name, _) = source {
                // A quiet watch is a healthy one: an idle cluster has no events.
                if let Some(since) = progress.failing_since
                    && now.saturating_sub(since) > WATCH_FAILING_MAX
                    && now.saturating_sub(progress.last) <= FAILURE_GAP_MAX
                {
                    let seconds = now.saturating_sub(since).as_secs();
                    return Err(format!(
                        "the watch of {name} has failed for {seconds} s: {}",
                        progress.failure
                    ));
                }
            } else if now.saturating_sub(progress.last) > SILENCE_MAX {
                return Err(format!("{source:?} has made no progress for {} s", SILENCE_MAX.as_secs()));
            }
        }
        Ok(())
    }

    /// Whether it does its work, or stands by to.
    pub(crate) fn ready(&self, now: Duration) -> Result<(), String> {
        self.live(now)?;
        self.lock().waiting.clone().map_or(Ok(()), Err)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_watch_may_be_silent_but_not_fail_for_long() {
        let health = Health::new();
        let pods = Source::Watch("pods", 0);
        health.progress(pods, at(0));
        assert_eq!(health.live(at(100_000)), Ok(()));
        health.failure(pods, at(100_000), "reset".to_owned());
        health.failure(pods, at(100_060), "reset".to_owned());
        health.failure(pods, at(100_170), "refused".to_owned());
        health.progress(Source::Watch("pods", 1), at(100_170));
        assert_eq!(health.live(at(100_180)), Ok(()));
        let told = health.live(at(100_181)).unwrap_err();
        assert_eq!(told, "the watch of pods has failed for 181 s: refused");
        health.progress(pods, at(100_182));
        assert_eq!(health.live(at(100_182)), Ok(()));
    }

    /// A watch that is taken up again says nothing until something changes.
    #[test]
    fn a_watch_that_failed_once_and_fell_silent_works_again() {
        let health = Health::new();
        let pods = Source::Watch("pods", 0);
        health.failure(pods, at(1000), "reset".to_owned());
        assert_eq!(health.live(at(1400)), Ok(()));
        health.failure(pods, at(1400), "reset".to_owned());
        assert_eq!(health.live(at(1500)), Ok(()), "it has not failed since the first time");
    }

    #[test]
    fn what_is_refused_ends_no_process_and_is_told() {
        let health = Health::new();
        health.wait_for(None);
        let pods = Source::Watch("pods", 1);
        health.failure(pods, at(900), "reset".to_owned());
        for second in [1000, 1050, 1100, 1200] {
            health.refused(pods, at(second), "forbidden".to_owned());
        }
        assert_eq!((health.live(at(1201)), health.ready(at(1201))), (Ok(()), Ok(())));
        assert_eq!(health.refusals(), ["forbidden"]);
        health.progress(pods, at(1300));
        assert_eq!(health.refusals(), [""; 0]);
    }

    #[test]
    fn a_controller_that_stands_still_is_dead() {
        let health = Health::new();
        health.wait_for(None);
        health.progress(Source::Controller, at(10));
        assert_eq!(health.ready(at(70)), Ok(()));
        assert!(health.live(at(71)).is_err() && health.ready(at(71)).is_err());
        health.forget(Source::Controller);
        assert_eq!(health.live(at(71)), Ok(()));
    }

    #[test]
    fn what_is_waited_for_is_told() {
        let health = Health::new();
        assert_eq!(health.ready(at(0)), Err("starting".to_owned()));
        assert_eq!(health.live(at(0)), Ok(()));
    }
}
