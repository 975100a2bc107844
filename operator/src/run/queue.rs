//! Which objects wait for a reconcile, and until when. Pure: the time is an argument.
//!
//! Promises: an object is handed out to one reconcile at a time; a wake-up during it is not lost; many wake-ups before it are
//! one. A failed object pauses, and only a change of its own specification or a new size cuts that short, so that one which
//! fails, and is watched while it does, cannot spin. Never more than one entry for an object, so it is bounded by the objects there are.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::time::Duration;

/// Why an object should be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wake {
    /// Its specification changed: whatever was wrong may be right now.
    Changed,
    /// It is to be scaled: that does not wait until whatever else is wrong may be tried again.
    Urgent,
    /// Something around it changed, or its time has come.
    Seen,
}

#[derive(Debug, Default)]
struct Entry {
    /// When it is to be handed out; `None` while nothing is to be done.
    due: Option<Duration>,
    /// It failed, and no [`Wake::Seen`] comes before this.
    paused_until: Duration,
    /// Failures in a row.
    failures: u32,
    /// What came while it was running is not to wait out a pause.
    prompt: bool,
    running: bool,
}

/// Keys by the time at which they are due.
#[derive(Debug)]
pub(crate) struct Queue<K> {
    entries: HashMap<K, Entry>,
    /// What may be handed out: entries with a due time that are not running.
    due: BTreeSet<(Duration, K)>,
}

impl<K: Clone + Eq + Ord + Hash> Queue<K> {
    pub(crate) fn new() -> Self {
        Self { entries: HashMap::new(), due: BTreeSet::new() }
    }

    /// `key` is to be looked at by `at` at the latest. An earlier time that is set already stays.
    pub(crate) fn wake(&mut self, key: &K, wake: Wake, at: Duration) {
        let entry = self.entries.entry(key.clone()).or_default();
        let at = match wake {
            Wake::Changed => {
                entry.paused_until = Duration::ZERO;
                entry.failures = 0;
                at
            }
            Wake::Urgent => at,
            Wake::Seen => at.max(entry.paused_until),
        };
        entry.prompt |= entry.running && wake != Wake::Seen;
        if entry.due.is_some_and(|due| due <= at) {
            return;
        }
        let before = entry.due.replace(at);
        if !entry.running {
            if let Some(before) = before {
                self.due.remove(&(before, key.clone()));
            }
            self.due.insert((at, key.clone()));
        }
    }

    /// The object that has waited longest, if one is due.
    pub(crate) fn next(&mut self, now: Duration) -> Option<K> {
        if self.due.first()?.0 > now {
            return None;
        }
        let (_, key) = self.due.pop_first()?;
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.due = None;
            entry.running = true;
        }
        Some(key)
    }

    /// When [`Self::next`] will have something.
    pub(crate) fn next_due(&self) -> Option<Duration> {
        self.due.first().map(|(due, _)| *due)
    }

    /// A reconcile succeeded; `again`: to be looked at then in any case.
    pub(crate) fn succeeded(&mut self, key: &K, again: Option<Duration>) {
        self.finished(key, |entry| {
            entry.failures = 0;
            entry.paused_until = Duration::ZERO;
            entry.prompt = false;
        });
        if let Some(at) = again {
            self.wake(key, Wake::Seen, at);
        }
    }

    /// A reconcile failed, and `pause` says for how long to leave the object alone after so many failures in a row; `None`
    /// means until its specification changes.
    pub(crate) fn failed(&mut self, key: &K, now: Duration, pause: impl FnOnce(u32) -> Option<Duration>) {
        let mut again = None;
        self.finished(key, |entry| {
            entry.failures = entry.failures.saturating_add(1);
            again = pause(entry.failures).map(|pause| now + pause);
            // What was seen during the reconcile counts, but not at once. Without a pause there is nothing to wait out.
            entry.paused_until = again.unwrap_or_default();
            let prompt = std::mem::take(&mut entry.prompt);
            if let (Some(due), Some(again), false) = (&mut entry.due, again, prompt) {
                *due = (*due).max(again);
            }
        });
        if let Some(at) = again {
            self.wake(key, Wake::Seen, at);
        }
    }

    fn finished(&mut self, key: &K, note: impl FnOnce(&mut Entry)) {
        // Forgotten during its reconcile.
        let Some(entry) = self.entries.get_mut(key) else { return };
        entry.running = false;
        note(entry);
        if let Some(due) = entry.due {
            self.due.insert((due, key.clone()));
        }
    }

    /// The object is gone.
    pub(crate) fn forget(&mut self, key: &K) {
        if let Some(Entry { due: Some(due), .. }) = self.entries.remove(key) {
            self.due.remove(&(due, key.clone()));
        }
    }

    pub(crate) fn is_running(&self, key: &K) -> bool {
        self.entries.get(key).is_some_and(|entry| entry.running)
    }

    /// Objects that are due and not being looked at.
    pub(crate) fn depth(&self, now: Duration) -> usize {
        self.due.iter().take_while(|(due, _)| *due <= now).count()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn wakes_before_a_reconcile_are_one_and_one_during_it_is_kept() {
        let mut queue = Queue::new();
        queue.wake(&1, Wake::Seen, at(5));
        queue.wake(&1, Wake::Seen, at(3));
        queue.wake(&1, Wake::Changed, at(9));
        assert_eq!((queue.next(at(2)), queue.next(at(3)), queue.next(at(99))), (None, Some(1), None));
        queue.wake(&1, Wake::Seen, at(4));
        assert_eq!(queue.next(at(99)), None, "one at a time");
        queue.succeeded(&1, None);
        assert_eq!((queue.next(at(4)), queue.next(at(4))), (Some(1), None));
        queue.succeeded(&1, Some(at(60)));
        assert_eq!(queue.next_due(), Some(at(60)));
    }

    #[test]
    fn only_a_change_cuts_a_pause_short() {
        let mut queue = Queue::new();
        queue.wake(&1, Wake::Changed, at(0));
        queue.next(at(0));
        queue.wake(&1, Wake::Seen, at(1));
        queue.failed(&1, at(2), |failures| Some(at(10) * failures));
        queue.wake(&1, Wake::Seen, at(3));
        assert_eq!(queue.next_due(), Some(at(12)));
        queue.next(at(12));
        queue.failed(&1, at(12), |failures| Some(at(10) * failures));
        assert_eq!(queue.next_due(), Some(at(32)));
        queue.wake(&1, Wake::Changed, at(13));
        assert_eq!(queue.next(at(13)), Some(1));
        queue.failed(&1, at(13), |failures| Some(at(10) * failures));
        assert_eq!(queue.next_due(), Some(at(23)), "failures count from the change on");
    }

    /// A surge does not wait until a ConfigMap of somebody else is gone.
    #[test]
    fn a_new_size_waits_out_no_pause_nor_does_what_the_user_changed_meanwhile() {
        let mut queue = Queue::new();
        queue.wake(&"a", Wake::Seen, at(0));
        assert_eq!(queue.next(at(0)), Some("a"));
        queue.failed(&"a", at(1), |_| Some(at(60)));
        queue.wake(&"a", Wake::Urgent, at(2));
        assert_eq!(queue.next(at(2)), Some("a"));
        queue.wake(&"a", Wake::Changed, at(3));
        queue.failed(&"a", at(4), |failures| (failures == 2).then_some(at(60)));
        assert_eq!(queue.next(at(4)), Some("a"));
        queue.wake(&"a", Wake::Seen, at(5));
        queue.failed(&"a", at(6), |_| Some(at(60)));
        assert_eq!((queue.next(at(65)), queue.next(at(66))), (None, Some("a")));
    }

    #[test]
    fn a_failure_without_a_pause_waits_for_a_change_or_an_event() {
        let mut queue = Queue::new();
        queue.wake(&1, Wake::Changed, at(0));
        queue.next(at(0));
        queue.failed(&1, at(0), |_| None);
        assert_eq!(queue.next_due(), None);
        queue.wake(&1, Wake::Seen, at(5));
        assert_eq!(queue.next_due(), Some(at(5)));
    }

    #[test]
    fn what_is_gone_is_not_handed_out() {
        let mut queue = Queue::new();
        queue.wake(&1, Wake::Changed, at(0));
        queue.wake(&2, Wake::Changed, at(0));
        queue.next(at(0));
        queue.forget(&1);
        queue.forget(&2);
        queue.succeeded(&1, Some(at(1)));
        // Known again only if somebody asks for it.
        queue.forget(&1);
        assert_eq!((queue.next(at(99)), queue.depth(at(99))), (None, 0));
    }

    proptest! {
        /// Whatever happens in whatever order, no object runs twice at a time, and no wake-up is lost.
        #[test]
        fn every_wake_is_followed_by_a_reconcile(steps in prop::collection::vec((0..4_u8, 0..3_u8, 0..5_u64), 1..200)) {
            let mut queue = Queue::new();
            let mut running = Vec::new();
            let mut owed = std::collections::BTreeSet::new();
            let mut now = at(0);
            for (action, key, seconds) in steps {
                match action {
                    0 => {
                        queue.wake(&key, if seconds == 0 { Wake::Changed } else { Wake::Seen }, now + at(seconds));
                        owed.insert(key);
                    }
                    1 => if let Some(key) = queue.next(now) {
                        prop_assert!(!running.contains(&key));
                        running.push(key);
                        owed.remove(&key);
                    },
                    2 => if let Some(key) = running.pop() { queue.succeeded(&key, None) },
                    _ => if let Some(key) = running.pop() { queue.failed(&key, now, |_| Some(at(seconds))); owed.insert(key); },
                }
                now += at(1);
            }
            for key in running { queue.succeeded(&key, None); }
            while let Some(key) = queue.next(now + at(1000)) { owed.remove(&key); queue.succeeded(&key, None); }
            prop_assert!(owed.is_empty(), "{owed:?}");
        }
    }
}
