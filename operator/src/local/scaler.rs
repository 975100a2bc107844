//! Asks the operator's own reasoning how many pods there should be, with what this machine's pods report.
//!
//! Owns what outlives one round: the engine's history, each pod's last scrapes, the status so far. Reads no clock.

use std::time::{Duration, Instant};

use bytes::Bytes;
use certeus_autoscale::{MissingReason, PodPhase, State};
use certeus_crds::LedgerClusterStatus;
use certeus_operator::decide::{self, MetricsSample, Observed, PodScrape, Scrapes};
use jiff::Timestamp;

use super::cluster::Cluster;
use super::plan::{Fleet, Phase};
use crate::admin;

/// What a pod answered when it was asked for its metrics.
pub(crate) struct Scrape {
    pub(crate) ordinal: u32,
    /// When the answer came.
    pub(crate) at: Instant,
    pub(crate) page: Result<Bytes, admin::Error>,
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
    scrapes: Scrapes,
    status: LedgerClusterStatus,
}

impl Scaler {
    pub(crate) fn new(replicas: u32, epoch: Instant) -> Self {
        let state = State::new(Duration::ZERO, replicas);
        Self { epoch, state, scrapes: Scrapes::default(), status: LedgerClusterStatus::default() }
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
        for scrape in scrapes {
            self.scrapes.record(scrape.ordinal, self.sample(scrape));
        }
        self.scrapes.retain(|ordinal| fleet.pods().any(|(existing, _)| existing == ordinal));
        let pods: Vec<PodScrape> = fleet
            .pods()
            .map(|(ordinal, pod)| {
                self.scrapes.scrape(ordinal, cluster.template.pod_name(ordinal), self.phase(pod.phase))
            })
            .collect();

        let checked = &cluster.checked;
        let observation = decide::observe(checked, self.since_epoch(now.instant), replicas, &pods);
        let outcome = decide::decide(checked, &mut self.state, &observation);
        let observed = Observed {
            pods: &pods,
            desired: outcome.desired,
            applied: replicas,
            decision: outcome.decision.as_ref(),
            draining: &[],
            surroundings: None,
            before: Some(&self.status),
            now: now.time,
        };
        self.status = decide::status(checked, &observed);
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

    fn sample(&self, scrape: &Scrape) -> Result<MetricsSample, MissingReason> {
        let Ok(page) = &scrape.page else { return Err(MissingReason::Unreachable) };
        Ok(decide::parse(self.since_epoch(scrape.at), &String::from_utf8_lossy(page)))
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
        fn decide(&mut self, pages: [Option<Result<Bytes, admin::Error>>; 2]) -> u32 {
            let instant = self.start + Duration::from_secs(3600);
            let scrapes: Vec<Scrape> = (0..)
                .zip(pages)
                .filter_map(|(ordinal, page)| Some(Scrape { ordinal, at: instant, page: page? }))
                .collect();
            let now = Now { instant, time: Timestamp::UNIX_EPOCH };
            self.scaler.decide(&self.cluster, 2, &self.fleet, &scrapes, now).replicas
        }
    }

    fn idle() -> Option<Result<Bytes, admin::Error>> {
        let page = "certeus_ledger_queue_events 0\ncerteus_ledger_queue_events_max 1000\n\
                    certeus_ledger_queue_bytes 0\ncerteus_ledger_queue_bytes_max 1000\n\
                    certeus_ledger_queue_oldest_age_seconds 0\n";
        Some(Ok(Bytes::from(page)))
    }

    #[test]
    fn idle_pods_are_removed_and_silent_ones_never_are() {
        assert_eq!(World::new().decide([idle(), idle()]), 1);
        assert_eq!(World::new().decide([idle(), Some(Err(admin::Error::Timeout(admin::TIMEOUT)))]), 2);
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
