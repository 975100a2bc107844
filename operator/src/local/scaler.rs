//! Asks the operator's own reasoning how many pods there should be, with what this machine's pods report.
//!
//! Owns what outlives one round: the engine's history, each pod's last scrape, the status so far. Reads no clock.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use certeus_autoscale::{MissingReason, PodPhase, State};
use certeus_crds::LedgerClusterStatus;
use certeus_operator::decide::{self, MetricsSample, Observed, PodScrape};
use jiff::Timestamp;

use super::cluster::Cluster;
use super::http;
use super::plan::{Fleet, Phase};

/// What a pod answered when it was asked for its metrics.
pub(crate) struct Scrape {
    pub(crate) ordinal: u32,
    /// When the answer came.
    pub(crate) at: Instant,
    pub(crate) page: Result<Bytes, http::Error>,
}

/// The moment of a decision.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now {
    pub(crate) instant: Instant,
    pub(crate) time: Timestamp,
}

/// How many pods there should be, and why.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Decided {
    pub(crate) replicas: u32,
    pub(crate) message: String,
}

/// The scaling of one cluster.
pub(crate) struct Scaler {
    /// Where the engine's clock begins.
    epoch: Instant,
    state: State,
    /// Each pod's last good scrape.
    samples: BTreeMap<u32, MetricsSample>,
    status: LedgerClusterStatus,
}

impl Scaler {
    pub(crate) fn new(replicas: u32, epoch: Instant) -> Self {
        let state = State::new(Duration::ZERO, replicas);
        Self { epoch, state, samples: BTreeMap::new(), status: LedgerClusterStatus::default() }
    }

    /// Decides with the answers of one round. `replicas` is what was last asked for.
    pub(crate) fn decide(
        &mut self,
        cluster: &Cluster,
        replicas: u32,
        fleet: &Fleet,
        scrapes: &[Scrape],
        now: Now,
    ) -> Decided {
        let pods: Vec<PodScrape> = fleet
            .pods()
            .map(|(ordinal, pod)| PodScrape {
                name: cluster.template.pod_name(ordinal),
                phase: self.phase(pod.phase),
                latest: self.sample(scrapes.iter().find(|scrape| scrape.ordinal == ordinal)),
                previous: self.samples.get(&ordinal).cloned(),
            })
            .collect();
        for ((ordinal, _), pod) in fleet.pods().zip(&pods) {
            if let Ok(sample) = &pod.latest {
                self.samples.insert(ordinal, sample.clone());
            }
        }
        self.samples.retain(|ordinal, _| fleet.pods().any(|(existing, _)| existing == *ordinal));

        let checked = &cluster.checked;
        let observation = decide::observe(checked, self.since_epoch(now.instant), replicas, &pods);
        let outcome = decide::decide(checked, &mut self.state, &observation);
        let observed = Observed {
            pods: &pods,
            observation: &observation,
            outcome: &outcome,
            before: Some(&self.status),
            now: now.time,
        };
        self.status = decide::status(checked, observed);
        let wanted = outcome.replicas(checked, replicas);
        let fixed = || format!("scale from {replicas} to {wanted}: so the manifest says");
        let message = outcome.decision.map_or_else(fixed, |decision| decision.to_string());
        Decided { replicas: wanted, message }
    }

    /// Takes note that the number of pods was changed.
    pub(crate) fn scaled(&mut self, from: u32, to: u32, now: Instant) {
        self.state.record_scale(self.since_epoch(now), from, to);
    }

    /// The status after the last decision.
    pub(crate) fn status(&self) -> &LedgerClusterStatus {
        &self.status
    }

    fn since_epoch(&self, instant: Instant) -> Duration {
        instant.saturating_duration_since(self.epoch)
    }

    /// A pod that was not asked yet, or did not answer, is unknown; never idle.
    fn sample(&self, scrape: Option<&Scrape>) -> Result<MetricsSample, MissingReason> {
        let Scrape { at, page, .. } = scrape.ok_or(MissingReason::Unreachable)?;
        let Ok(page) = page else { return Err(MissingReason::Unreachable) };
        Ok(decide::parse(self.since_epoch(*at), &String::from_utf8_lossy(page)))
    }

    fn phase(&self, phase: Phase) -> PodPhase {
        match phase {
            Phase::Running { ready, started_at, ready_changed_at } => PodPhase::Running {
                ready,
                started_at: self.since_epoch(started_at),
                ready_changed_at: self.since_epoch(ready_changed_at),
            },
            Phase::Draining { .. } | Phase::Terminating { .. } | Phase::Killed => PodPhase::Draining,
            // It will run again.
            Phase::BackOff { .. } => PodPhase::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::{Desired, Event};
    use super::*;

    /// Two ready pods of a cluster that may shrink at once.
    struct World {
        cluster: Cluster,
        fleet: Fleet,
        scaler: Scaler,
        start: Instant,
    }

    impl World {
        fn new() -> Self {
            let text = "apiVersion: certeus.io/v1alpha1\nkind: LedgerCluster\nmetadata: { name: demo }\nspec:\n  \
                        database: { embedded: true }\n  autoscaling: { min: 1, cooldown: 0s, cpu: { enabled: false } }\n";
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("cluster.yaml"), text).unwrap();
            let start = Instant::now();
            let mut fleet = Fleet::default();
            fleet.reconcile(Desired { replicas: 2, revision: 1, drain_timeout: Duration::ZERO }, start);
            fleet.observe(0, Event::Ready(true), start);
            fleet.observe(1, Event::Ready(true), start);
            let cluster = Cluster::load(folder.path()).ok().unwrap();
            Self { cluster, fleet, scaler: Scaler::new(2, start), start }
        }

        /// The decision an hour later, with these pages of the pods.
        fn decide(&mut self, pages: [Option<Result<Bytes, http::Error>>; 2]) -> u32 {
            let instant = self.start + Duration::from_secs(3600);
            let scrapes: Vec<Scrape> = (0..)
                .zip(pages)
                .filter_map(|(ordinal, page)| Some(Scrape { ordinal, at: instant, page: page? }))
                .collect();
            let now = Now { instant, time: Timestamp::UNIX_EPOCH };
            self.scaler.decide(&self.cluster, 2, &self.fleet, &scrapes, now).replicas
        }
    }

    fn idle() -> Option<Result<Bytes, http::Error>> {
        let page = "certeus_ledger_queue_events 0\ncerteus_ledger_queue_events_max 1000\n\
                    certeus_ledger_queue_bytes 0\ncerteus_ledger_queue_bytes_max 1000\n\
                    certeus_ledger_queue_oldest_age_seconds 0\n";
        Some(Ok(Bytes::from(page)))
    }

    #[test]
    fn idle_pods_are_removed_and_silent_ones_never_are() {
        assert_eq!(World::new().decide([idle(), idle()]), 1);
        assert_eq!(World::new().decide([idle(), Some(Err(http::Error::Timeout))]), 2);
        assert_eq!(World::new().decide([idle(), None]), 2, "not asked yet");
        assert_eq!(World::new().decide([idle(), Some(Ok(Bytes::new()))]), 2, "an empty page");
    }

    #[test]
    fn a_pod_that_leaves_does_not_count() {
        let mut world = World::new();
        world.fleet.reconcile(
            Desired { replicas: 1, revision: 1, drain_timeout: Duration::from_secs(30) },
            world.start,
        );
        world.decide([idle(), None]);
        assert_eq!(world.scaler.status().ready_replicas, 1);
    }
}
