//! What was seen of a cluster at one moment. Samples arrive as they were scraped, as floating point numbers, because only
//! so can "not a number" stay an error: turned into an integer on the way here it would have become zero.

use std::time::Duration;

use thiserror::Error;

/// Everything one decision looks at. All instants are durations since one epoch of the caller's choice, such as the
/// start of its own process; they need only share that epoch and not run backwards.
#[derive(Clone, Debug, PartialEq)]
pub struct Observation {
    /// The moment of this observation.
    pub now: Duration,
    /// The replica count in the workload's own spec: what was last asked for, not what is running.
    pub replicas: u32,
    /// The pods that exist, in any order.
    pub pods: Vec<PodObservation>,
}

/// One pod and its samples.
#[derive(Clone, Debug, PartialEq)]
pub struct PodObservation {
    /// The pod's name, for the report.
    pub name: String,
    /// Where the pod is in its life.
    pub phase: PodPhase,
    /// CPU in use.
    pub cpu: Result<CpuSample, MissingReason>,
    /// The admission queue.
    pub queue: Result<QueueSample, MissingReason>,
    /// What the pod sees of the database.
    pub downstream: Result<DownstreamSample, MissingReason>,
}

/// Where a pod is in its life, as far as scaling cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodPhase {
    /// Created, not running yet.
    Pending,
    /// Running, ready for traffic or not.
    Running {
        /// Whether it is ready now.
        ready: bool,
        /// When it started; a restart counts as a new start.
        started_at: Duration,
        /// When `ready` last changed; the start, if it never did.
        ready_changed_at: Duration,
    },
    /// Leaving: asked to drain or being deleted. Its load will move to the others; it is not counted.
    Draining,
    /// Ended with an error and not restarted. Not counted.
    Failed,
}

/// CPU in use by one pod.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CpuSample {
    /// CPU in use as a fraction of what the pod requests; 1.0 is all of it, and more is possible.
    pub utilization: f64,
    /// When the interval began over which this was measured. While a pod is young, work done before it was ready
    /// (start-up) is not taken for load.
    pub since: Duration,
}

/// The admission queue of one pod.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QueueSample {
    /// Events waiting.
    pub events: f64,
    /// Most events that may wait.
    pub events_max: f64,
    /// Bytes waiting.
    pub bytes: f64,
    /// Most bytes that may wait.
    pub bytes_max: f64,
    /// How long the oldest waiting event has waited, in seconds; 0 when none waits.
    pub oldest_age_seconds: f64,
}

/// What one pod saw of the database between two scrapes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DownstreamSample {
    /// Batches committed in the interval.
    pub commits: f64,
    /// Time those commits took together, in seconds.
    pub commit_seconds: f64,
}

/// Why there is no usable sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Error)]
pub enum MissingReason {
    /// The pod did not answer the scrape.
    #[error("pod did not answer")]
    Unreachable,
    /// The pod answered without this metric, or with text that is not a number.
    #[error("metric not reported")]
    NotReported,
    /// A rate needs two scrapes of the same process, and there is only one yet.
    #[error("too few scrapes yet")]
    TooFewScrapes,
    /// The latest sample is too old to act on.
    #[error("last sample is too old")]
    Stale,
    /// The value was NaN.
    #[error("value is not a number")]
    NotANumber,
    /// The value was infinite.
    #[error("value is infinite")]
    Infinite,
    /// The value was below zero.
    #[error("value is negative")]
    Negative,
    /// A fraction of nothing: the queue reports a bound of zero.
    #[error("queue bound is zero")]
    ZeroCapacity,
}
