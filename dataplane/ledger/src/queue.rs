//! The admission queue: requests wait here between being accepted and being committed.
//!
//! Owns the bounds (events and bytes) and the rule by which a batch leaves. Never blocks a caller: past the bound the
//! answer is [`Refusal::Full`] at once. Promises: requests leave in the order in which they came, but for those of a
//! producer that a writer has in hand, which wait until it is done, so that two writers never reorder them; a request is
//! never split; what is admitted is handed to a writer exactly once, also after [`Queue::close`].
//!
//! The lock guards `State`, is held for a push or a take, and never over an await.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::commit::{CommitError, Receipt};
use crate::id::BATCH_EVENTS_MAX;
use crate::request::{Identity, ProducerSequence};
use crate::submission::Submission;

/// Where batching begins to pay: below it a waiting batch is left to grow while another is being committed.
///
/// A commit costs about a flush (some 200 us) and 150 us of statement whatever its size, so a second writer that takes
/// a handful of events only queues behind the head row's lock with them.
const PARALLEL_EVENTS_MIN: usize = 500;

/// Bounds and batching of one ledger's queue.
#[derive(Debug, Clone, Copy)]
pub struct QueueConfig {
    /// Waiting events, at most.
    pub queue_events_max: usize,
    /// Waiting bytes, at most.
    pub queue_bytes_max: usize,
    /// A batch takes no further request once it holds this many events.
    pub batch_events: usize,
    /// A batch takes no further request once it holds this many bytes.
    pub batch_bytes: usize,
    /// Longest time that a request waits for its batch to fill while a writer is idle.
    pub batch_timeout: Duration,
}

/// Why a request was not admitted. Nothing of it will be committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The bound is reached; try again later.
    #[error("the queue is full")]
    Full,
    /// The request alone is beyond the bound; trying again is useless.
    #[error("the request is larger than the whole queue")]
    TooLarge,
    /// The ledger is shutting down; try another pod.
    #[error("the ledger is draining")]
    Closed,
}

/// An admitted request.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) submission: Submission,
    pub(crate) admitted: Instant,
    pub(crate) reply: oneshot::Sender<Outcome>,
}

/// What becomes of an admitted request.
pub(crate) type Outcome = Result<Receipt, Failed>;

/// A request that was not acknowledged, given back so that its caller may try elsewhere.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) error: CommitError,
    pub(crate) submission: Submission,
}

impl Pending {
    /// The producer's numbers, for a request that has them.
    pub(crate) fn producer(&self) -> Option<&ProducerSequence> {
        match self.submission.identity() {
            Some((Identity::Producer(producer), _)) => Some(producer),
            Some((Identity::Key(_), _)) | None => None,
        }
    }

    /// Answers the request. A client that went away does not matter: what was stored stays stored.
    pub(crate) fn answer(self, outcome: Result<Receipt, CommitError>) {
        let Self { submission, reply, .. } = self;
        let _client_gone = reply.send(outcome.map_err(|error| Failed { error, submission }));
    }
}

/// What is in the queue and in the writers' hands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Depth {
    /// Events waiting.
    pub events: usize,
    /// Bytes waiting.
    pub bytes: usize,
    /// Events being committed.
    pub in_flight_events: usize,
    /// Age of the request that has waited longest.
    pub oldest_age: Duration,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Pending>,
    /// The producers in writers' hands, each with its requests that had their turn meanwhile. These count as waiting.
    in_hand: HashMap<Box<str>, Vec<Pending>>,
    events: usize,
    bytes: usize,
    in_flight_events: usize,
    busy_writers: usize,
    closed: bool,
}

/// What a writer does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Take,
    WaitUntil(Instant),
    Wait,
    End,
}

/// The queue of one ledger.
#[derive(Debug)]
pub(crate) struct Queue {
    config: QueueConfig,
    state: Mutex<State>,
    changed: Notify,
}

/// Requests that are committed together; releases its writer's place when dropped.
#[derive(Debug)]
pub(crate) struct Taken<'a> {
    queue: &'a Queue,
    events: usize,
    producers: HashSet<Box<str>>,
    pub(crate) requests: Vec<Pending>,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut state = self.queue.lock();
        for producer in &self.producers {
            // To the front: it was their turn already.
            for pending in state.in_hand.remove(producer).into_iter().flatten().rev() {
                state.waiting.push_front(pending);
            }
        }
        state.in_flight_events -= self.events;
        state.busy_writers -= 1;
        drop(state);
        self.queue.changed.notify_waiters();
    }
}

impl Queue {
    pub(crate) fn new(config: QueueConfig) -> Self {
        Self { config, state: Mutex::default(), changed: Notify::new() }
    }

    /// Refuses a request that would not fit into an empty queue, or into a batch.
    pub(crate) fn check_size(&self, submission: &Submission) -> Result<(), Refusal> {
        let QueueConfig { queue_events_max, queue_bytes_max, .. } = self.config;
        let fits = submission.len() <= queue_events_max.min(BATCH_EVENTS_MAX)
            && submission.bytes() <= queue_bytes_max;
        if fits { Ok(()) } else { Err(Refusal::TooLarge) }
    }

    /// Admits a request or refuses it; the receiver gets its outcome.
    pub(crate) fn push(
        &self,
        submission: Submission,
        now: Instant,
    ) -> Result<oneshot::Receiver<Outcome>, Refusal> {
        let QueueConfig { queue_events_max, queue_bytes_max, .. } = self.config;
        self.check_size(&submission)?;
        let (events, bytes) = (submission.len(), submission.bytes());
        let (reply, outcome) = oneshot::channel();
        let mut state = self.lock();
        if state.closed {
            return Err(Refusal::Closed);
        }
        if state.events + events > queue_events_max || state.bytes + bytes > queue_bytes_max {
            return Err(Refusal::Full);
        }
        state.events += events;
        state.bytes += bytes;
        state.waiting.push_back(Pending { submission, admitted: now, reply });
        drop(state);
        self.changed.notify_one();
        Ok(outcome)
    }

    /// The next batch, as soon as it should leave; `None` once the queue is closed and empty.
    pub(crate) async fn take(&self) -> Option<Taken<'_>> {
        loop {
            // Registered before looking, so that no change after the look is missed.
            let changed = self.changed.notified();
            let next = {
                let mut state = self.lock();
                let next = next(&state, &self.config, Instant::now());
                if next == Next::Take
                    && let Some(taken) = self.take_batch(&mut state)
                {
                    return Some(taken);
                }
                next
            };
            match next {
                Next::End => return None,
                Next::Take | Next::Wait => changed.await,
                // Either way the state is looked at again.
                Next::WaitUntil(at) => drop(tokio::time::timeout_at(at, changed).await),
            }
        }
    }

    /// Takes what leaves now; `None` when all of it is of producers that other writers have in hand.
    fn take_batch(&self, state: &mut State) -> Option<Taken<'_>> {
        let (mut events, mut bytes) = (0, 0);
        let (mut requests, mut producers) = (Vec::new(), HashSet::<Box<str>>::new());
        while let Some(next) = state.waiting.pop_front() {
            let full = events >= self.config.batch_events || bytes >= self.config.batch_bytes;
            if !requests.is_empty() && (full || events + next.submission.len() > BATCH_EVENTS_MAX) {
                state.waiting.push_front(next);
                break;
            }
            if let Some(producer) = next.producer().map(ProducerSequence::id) {
                let ours = producers.contains(producer);
                match state.in_hand.get_mut(producer) {
                    Some(parked) if !ours => {
                        parked.push(next);
                        continue;
                    }
                    Some(_) => {}
                    None => {
                        state.in_hand.insert(producer.into(), Vec::new());
                        producers.insert(producer.into());
                    }
                }
            }
            events += next.submission.len();
            bytes += next.submission.bytes();
            requests.push(next);
        }
        if requests.is_empty() {
            return None;
        }
        state.events -= events;
        state.bytes -= bytes;
        state.in_flight_events += events;
        state.busy_writers += 1;
        if !state.waiting.is_empty() {
            self.changed.notify_one();
        }
        Some(Taken { queue: self, events, producers, requests })
    }

    /// Admits nothing from now on; what is waiting still goes out, at once.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_waiters();
    }

    pub(crate) fn depth(&self, now: Instant) -> Depth {
        let state = self.lock();
        let oldest = state.waiting.front().map(|pending| pending.admitted);
        Depth {
            events: state.events,
            bytes: state.bytes,
            in_flight_events: state.in_flight_events,
            oldest_age: oldest.map_or(Duration::ZERO, |admitted| now.saturating_duration_since(admitted)),
        }
    }

    pub(crate) fn config(&self) -> &QueueConfig {
        &self.config
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that can panic runs under the lock with the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When the next batch leaves: at once if no commit is under way, else when it is worth a parallel one, else when
/// the one under way ends or the oldest request has waited long enough.
fn next(state: &State, config: &QueueConfig, now: Instant) -> Next {
    let Some(oldest) = state.waiting.front() else {
        return if state.closed { Next::End } else { Next::Wait };
    };
    let worth_it =
        state.events >= PARALLEL_EVENTS_MIN.min(config.batch_events) || state.bytes >= config.batch_bytes;
    let due = oldest.admitted + config.batch_timeout;
    if state.busy_writers == 0 || worth_it || state.closed || now >= due {
        Next::Take
    } else {
        Next::WaitUntil(due)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::submission::{Format, Limits, OnBadEvent};

    const CONFIG: QueueConfig = QueueConfig {
        queue_events_max: 1000,
        queue_bytes_max: 100_000,
        batch_events: 600,
        batch_bytes: 50_000,
        batch_timeout: Duration::from_millis(100),
    };

    fn submission(events: usize) -> Submission {
        let line = "{\"type\":\"a\",\"timestamp\":1}\n";
        let limits = Limits { request_events_max: 10_000, event_bytes_max: 1000, encrypted_fields: None };
        let body = Bytes::from(line.repeat(events));
        Submission::parse(body, Format::Ndjson, &limits, OnBadEvent::RefuseAll).unwrap().submission.unwrap()
    }

    fn sizes(taken: &Taken<'_>) -> Vec<usize> {
        taken.requests.iter().map(|pending| pending.submission.len()).collect()
    }

    /// Whether a batch would leave without waiting.
    async fn leaves_at_once(queue: &Queue) -> bool {
        tokio::time::timeout(Duration::ZERO, queue.take()).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_ledger_commits_a_single_event_at_once() {
        let queue = Queue::new(CONFIG);
        let _outcome = queue.push(submission(1), Instant::now()).unwrap();
        let start = Instant::now();
        assert_eq!(sizes(&queue.take().await.unwrap()), [1]);
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn while_one_commit_is_under_way_small_requests_gather() {
        let queue = Queue::new(CONFIG);
        let _first = queue.push(submission(1), Instant::now()).unwrap();
        let first = queue.take().await.unwrap();
        let _second = queue.push(submission(2), Instant::now()).unwrap();
        assert!(!leaves_at_once(&queue).await);
        let _third = queue.push(submission(3), Instant::now()).unwrap();
        drop(first);
        assert_eq!(sizes(&queue.take().await.unwrap()), [2, 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_linger_bounds_the_wait_for_company() {
        let queue = Queue::new(CONFIG);
        let _first = queue.push(submission(1), Instant::now()).unwrap();
        let _busy = queue.take().await.unwrap();
        let start = Instant::now();
        let _second = queue.push(submission(1), start).unwrap();
        assert_eq!(sizes(&queue.take().await.unwrap()), [1]);
        assert!(start.elapsed() >= CONFIG.batch_timeout);
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_batch_is_committed_beside_another() {
        let queue = Queue::new(CONFIG);
        let _first = queue.push(submission(1), Instant::now()).unwrap();
        let _busy = queue.take().await.unwrap();
        let _second = queue.push(submission(PARALLEL_EVENTS_MIN), Instant::now()).unwrap();
        assert!(leaves_at_once(&queue).await);
    }

    #[tokio::test(start_paused = true)]
    async fn requests_stay_whole_and_in_order() {
        let queue = Queue::new(CONFIG);
        let _outcomes: Vec<_> =
            [400, 300, 299].map(|events| queue.push(submission(events), Instant::now()).unwrap()).into();
        assert_eq!(sizes(&queue.take().await.unwrap()), [400, 300]);
        assert_eq!(sizes(&queue.take().await.unwrap()), [299]);
    }

    #[tokio::test(start_paused = true)]
    async fn bounds_hold_by_events_and_by_bytes_and_are_freed_by_taking() {
        let queue = Queue::new(CONFIG);
        let now = Instant::now();
        assert_eq!(queue.push(submission(1001), now).unwrap_err(), Refusal::TooLarge);
        let _a = queue.push(submission(999), now).unwrap();
        assert_eq!(queue.push(submission(2), now).unwrap_err(), Refusal::Full);
        let _b = queue.push(submission(1), now).unwrap();
        let taken = queue.take().await.unwrap();
        let depth = queue.depth(now);
        assert_eq!((depth.events, depth.in_flight_events), (1, 999));
        let _c = queue.push(submission(999), now).unwrap();
        drop(taken);
        assert_eq!(queue.depth(now).in_flight_events, 0);

        let narrow = Queue::new(QueueConfig { queue_bytes_max: submission(10).bytes(), ..CONFIG });
        let _d = narrow.push(submission(9), now).unwrap();
        assert_eq!(narrow.push(submission(2), now).unwrap_err(), Refusal::Full);
        assert_eq!(narrow.push(submission(11), now).unwrap_err(), Refusal::TooLarge);
    }

    fn numbered(producer: &str, first: u64, events: usize) -> Submission {
        let producer = ProducerSequence::new(producer, 0, first).unwrap();
        submission(events).identified(Identity::Producer(producer), b"").unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn requests_of_a_producer_in_hand_wait_in_order_and_let_others_pass() {
        let queue = Queue::new(CONFIG);
        let now = Instant::now();
        let mut outcomes = vec![queue.push(numbered("p", 0, 1), now).unwrap()];
        outcomes.push(queue.push(numbered("p", 1, 2), now).unwrap());
        let first = queue.take().await.unwrap();
        assert_eq!(sizes(&first), [1, 2]);
        for later in [numbered("p", 3, 3), numbered("q", 0, 600), numbered("p", 6, 5)] {
            outcomes.push(queue.push(later, now).unwrap());
        }
        let second = queue.take().await.unwrap();
        assert_eq!(sizes(&second), [600]);
        outcomes.push(queue.push(submission(600), now).unwrap());
        let third = queue.take().await.unwrap();
        assert_eq!(sizes(&third), [600]);
        // They still count, and nothing else is there to be taken.
        assert_eq!(queue.depth(now).events, 8);
        assert!(!leaves_at_once(&queue).await);
        outcomes.push(queue.push(submission(7), now).unwrap());
        queue.close();
        drop((first, third));
        assert_eq!(sizes(&queue.take().await.unwrap()), [3, 5, 7]);
        drop(second);
        assert!(queue.take().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn closing_lets_out_what_waits_and_then_ends() {
        let queue = Queue::new(CONFIG);
        let _first = queue.push(submission(1), Instant::now()).unwrap();
        let busy = queue.take().await.unwrap();
        let _second = queue.push(submission(1), Instant::now()).unwrap();
        queue.close();
        assert_eq!(queue.push(submission(1), Instant::now()).unwrap_err(), Refusal::Closed);
        assert_eq!(sizes(&queue.take().await.unwrap()), [1]);
        assert!(queue.take().await.is_none());
        drop(busy);
    }
}
