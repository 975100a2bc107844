//! A ledger cluster in miniature: pods that take time to start, work off queues at a fixed rate and share one database.
//! Everything random comes from a seed, so a run can be repeated exactly.

use std::collections::HashMap;
use std::time::Duration;

use certeus_autoscale::{
    CpuSample, DownstreamSample, MissingReason, Observation, PodObservation, PodPhase, QueueSample,
};

/// The plant moves in steps this long.
pub(crate) const TICK: Duration = Duration::from_millis(100);
const TICK_SECONDS: f64 = 0.1;
/// Events one pod commits per second with all of its CPU.
pub(crate) const POD_EVENTS_PER_SECOND: f64 = 10_000.0;
/// The product's default queue bounds.
const QUEUE_EVENTS_MAX: f64 = 100_000.0;
const QUEUE_BYTES_MAX: f64 = 67_108_864.0;
const EVENT_BYTES: f64 = 300.0;
/// From creation to running, and the least and most from running to ready.
const PENDING: Duration = Duration::from_secs(1);
const STARTING_SECONDS: (f64, f64) = (3.0, 7.0);
/// How far one pod's share of the load may be off the mean.
const IMBALANCE: f64 = 0.1;
/// Batches a pod commits per second, and how long one takes when the database keeps up and when it does not.
const COMMITS_PER_SECOND: f64 = 20.0;
const COMMIT_SECONDS: (f64, f64) = (0.005, 1.0);

/// What comes from outside at one moment.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    /// Events per second that clients send.
    pub(crate) events_per_second: f64,
    /// Events per second that the database can commit for all pods together.
    pub(crate) database_events_per_second: f64,
}

/// The cluster.
pub(crate) struct Plant {
    seed: u64,
    ticks: u32,
    created: u64,
    pods: Vec<Pod>,
    /// The replica count asked for.
    pub(crate) replicas: u32,
    /// Events refused because a queue was full.
    pub(crate) rejected: f64,
    /// Events that clients sent.
    pub(crate) sent: f64,
    /// The time all pods together existed, in seconds.
    pub(crate) pod_seconds: f64,
}

struct Pod {
    name: String,
    ordinal: u64,
    running_at: Duration,
    ready_at: Duration,
    draining: bool,
    queue: f64,
    cpu_seconds: f64,
    commits: f64,
    commit_seconds: f64,
}

impl Plant {
    /// A cluster of `replicas` pods that have long been ready.
    pub(crate) fn new(seed: u64, replicas: u32) -> Self {
        let mut plant = Plant {
            seed,
            ticks: 0,
            created: 0,
            pods: vec![],
            replicas: 0,
            rejected: 0.0,
            sent: 0.0,
            pod_seconds: 0.0,
        };
        plant.scale(replicas);
        for pod in &mut plant.pods {
            (pod.running_at, pod.ready_at) = (Duration::ZERO, Duration::ZERO);
        }
        plant
    }

    /// The moment the plant is at.
    pub(crate) fn now(&self) -> Duration {
        TICK * self.ticks
    }

    /// Creates pods, or drains the newest.
    pub(crate) fn scale(&mut self, replicas: u32) {
        let now = self.now();
        self.replicas = replicas;
        let mut staying = 0;
        for pod in self.pods.iter_mut().filter(|pod| !pod.draining) {
            staying += 1;
            pod.draining = staying > replicas;
        }
        for _ in staying..replicas {
            let (least, most) = STARTING_SECONDS;
            let starting = least + (most - least) * (noise(self.seed, self.created) + 1.0) / 2.0;
            self.pods.push(Pod {
                name: format!("ledger-{}", self.created),
                ordinal: self.created,
                running_at: now + PENDING,
                ready_at: now + PENDING + Duration::from_secs_f64(starting),
                draining: false,
                queue: 0.0,
                cpu_seconds: 0.0,
                commits: 0.0,
                commit_seconds: 0.0,
            });
            self.created += 1;
        }
    }

    /// Moves on by one [`TICK`].
    pub(crate) fn step(&mut self, load: Load) {
        let now = self.now();
        let tick = u64::from(self.ticks);
        self.ticks += 1;
        let serving = self.pods.iter().filter(|pod| pod.serves(now)).count().max(1) as f64;
        let share = load.events_per_second * TICK_SECONDS / serving;
        self.sent += load.events_per_second * TICK_SECONDS;
        for pod in self.pods.iter_mut().filter(|pod| pod.serves(now)) {
            let arrived = share * (1.0 + IMBALANCE * noise(self.seed ^ pod.ordinal, tick / 10));
            self.rejected += (pod.queue + arrived - QUEUE_EVENTS_MAX).max(0.0);
            pod.queue = (pod.queue + arrived).min(QUEUE_EVENTS_MAX);
        }

        let most = POD_EVENTS_PER_SECOND * TICK_SECONDS;
        let wanted: f64 = self.pods.iter().map(|pod| pod.queue.min(most)).sum();
        let granted = (load.database_events_per_second * TICK_SECONDS / wanted.max(1.0)).min(1.0);
        let (fast, slow) = COMMIT_SECONDS;
        for pod in self.pods.iter_mut().filter(|pod| pod.running_at <= now) {
            let done = pod.queue.min(most) * granted;
            pod.queue -= done;
            // Starting is work too, and none of it is load.
            pod.cpu_seconds += if pod.ready_at <= now { done / POD_EVENTS_PER_SECOND } else { TICK_SECONDS };
            let commits = if done > 0.0 { COMMITS_PER_SECOND * TICK_SECONDS } else { 0.0 };
            pod.commits += commits;
            pod.commit_seconds += commits * if granted < 1.0 { slow } else { fast };
        }
        self.pod_seconds += self.pods.len() as f64 * TICK_SECONDS;
        self.pods.retain(|pod| !(pod.draining && pod.queue < 1.0));
    }

    /// How long an event would wait now that arrives at the pod with the longest queue, in seconds.
    pub(crate) fn wait_seconds(&self) -> f64 {
        self.pods.iter().map(|pod| pod.queue / POD_EVENTS_PER_SECOND).fold(0.0, f64::max)
    }
}

impl Pod {
    fn serves(&self, now: Duration) -> bool {
        self.ready_at <= now && !self.draining
    }

    fn phase(&self, now: Duration) -> PodPhase {
        if self.draining {
            PodPhase::Draining
        } else if now < self.running_at {
            PodPhase::Pending
        } else {
            let ready = self.ready_at <= now;
            let ready_changed_at = if ready { self.ready_at } else { self.running_at };
            PodPhase::Running { ready, started_at: self.running_at, ready_changed_at }
        }
    }
}

/// Reads the counters of all pods now and then, and turns two readings into rates, as a scraper must.
#[derive(Default)]
pub(crate) struct Scraper {
    at: Duration,
    counters: HashMap<String, (f64, f64, f64)>,
}

impl Scraper {
    /// Reads every pod. What a pod did since the last reading becomes its CPU and commit samples.
    pub(crate) fn scrape(&mut self, plant: &Plant) -> Observation {
        let now = plant.now();
        let since = self.at;
        let seconds = (now - since).as_secs_f64();
        let previous = std::mem::take(&mut self.counters);
        self.at = now;
        let pods = plant.pods.iter().map(|pod| {
            let read = (pod.cpu_seconds, pod.commits, pod.commit_seconds);
            let running = pod.running_at <= now;
            if running {
                self.counters.insert(pod.name.clone(), read);
            }
            let missing = if running { MissingReason::TooFewScrapes } else { MissingReason::Unreachable };
            let before = previous.get(&pod.name).ok_or(missing);
            PodObservation {
                name: pod.name.clone(),
                phase: pod.phase(now),
                cpu: before.map(|(cpu, ..)| CpuSample { utilization: (read.0 - cpu) / seconds, since }),
                queue: if running { Ok(queue_sample(pod.queue)) } else { Err(missing) },
                downstream: before.map(|(_, commits, commit_seconds)| DownstreamSample {
                    commits: read.1 - commits,
                    commit_seconds: read.2 - commit_seconds,
                }),
            }
        });
        Observation { now, replicas: plant.replicas, pods: pods.collect() }
    }
}

/// The queue of a pod in which `events` wait.
pub(crate) fn queue_sample(events: f64) -> QueueSample {
    QueueSample {
        events,
        events_max: QUEUE_EVENTS_MAX,
        bytes: events * EVENT_BYTES,
        bytes_max: QUEUE_BYTES_MAX,
        oldest_age_seconds: events / POD_EVENTS_PER_SECOND,
    }
}

/// The `index`-th number of the sequence `seed`, evenly spread over -1 to 1 (SplitMix64).
pub(crate) fn noise(seed: u64, index: u64) -> f64 {
    let mut z = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
}
