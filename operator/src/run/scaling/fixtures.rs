//! What the tests of scaling begin with.

use std::sync::Arc;
use std::time::Duration;

use certeus_autoscale::{Decision, PodPhase, State};
use certeus_operator::decide::{self, Scrapes};
use certeus_operator::manifest::{Object, parse};
use certeus_operator::validate::{Cluster, validate};

use crate::run::pods::PodSeen;

/// Pods have been up for an hour by then, so that none counts as starting.
pub(super) const START: Duration = Duration::from_secs(10_000);

/// A cluster whose spec has these lines, beside its database.
pub(super) fn cluster(spec: &str) -> Cluster {
    let text = format!(
        "apiVersion: certeus.io/v1alpha1\nkind: LedgerCluster\nmetadata: {{ name: demo }}\nspec:\n  \
         database: {{ secretRef: {{ name: db, key: url }} }}\n  resources: {{ requests: {{ cpu: 1 }} }}\n  {spec}\n"
    );
    match parse(std::path::Path::new("test.yaml"), &text).unwrap().remove(0).object {
        Object::LedgerCluster(cluster) => validate(&cluster).unwrap(),
        other => panic!("{other:?}"),
    }
}

pub(super) fn shared_cluster(spec: &str) -> Arc<Cluster> {
    Arc::new(cluster(spec))
}

/// A pod that has been ready since long ago.
pub(super) fn pod(ordinal: u32) -> PodSeen {
    let long_ago = START - Duration::from_secs(3600);
    PodSeen {
        name: format!("demo-{ordinal}"),
        uid: format!("uid-{ordinal}"),
        ordinal,
        ip: Some([127, 0, 0, 1].into()),
        phase: PodPhase::Running { ready: true, started_at: long_ago, ready_changed_at: long_ago },
        gone_by: None,
        has_run: true,
        trouble: None,
        revision: None,
        key: None,
    }
}

/// What a pod's `/metrics` page says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Page {
    pub(super) uptime_seconds: f64,
    pub(super) cpu_seconds: f64,
    /// Each takes a millisecond.
    pub(super) commits: u32,
    /// Of 1000.
    pub(super) queue: f64,
    pub(super) spool: u64,
    pub(super) draining: bool,
}

impl Page {
    pub(super) fn text(self) -> String {
        let Self { uptime_seconds, cpu_seconds, commits, queue, spool, draining } = self;
        let commit_seconds = f64::from(commits) / 1000.0;
        let draining = u8::from(draining);
        format!(
            "certeus_process_start_time_seconds 100\ncerteus_process_uptime_seconds {uptime_seconds}\n\
             certeus_process_cpu_seconds_total {cpu_seconds}\n\
             certeus_ledger_queue_events {queue}\ncerteus_ledger_queue_events_max 1000\n\
             certeus_ledger_queue_bytes 0\ncerteus_ledger_queue_bytes_max 1000\n\
             certeus_ledger_queue_oldest_age_seconds 0\ncerteus_ledger_commit_duration_seconds_sum {commit_seconds}\n\
             certeus_ledger_commit_duration_seconds_count {commits}\ncerteus_ledger_database_up 1\n\
             certeus_draining {draining}\ncerteus_ledger_spool_records {spool}\n"
        )
    }
}

/// What the engine says of pods that all use this share of their CPU.
pub(super) fn decision(cluster: &Cluster, replicas: u32, cpu: f64) -> Decision {
    let mut scrapes = Scrapes::default();
    let mut pods = Vec::new();
    for ordinal in 0..replicas {
        for second in [0.0, 1.0] {
            let page = Page {
                uptime_seconds: second,
                cpu_seconds: cpu * second,
                commits: 0,
                queue: 0.0,
                spool: 0,
                draining: false,
            };
            scrapes.record(ordinal, Ok(decide::parse(START + Duration::from_secs_f64(second), &page.text())));
        }
        let PodSeen { name, phase, .. } = pod(ordinal);
        pods.push(scrapes.scrape(ordinal, name, phase));
    }
    let observation = decide::observe(cluster, START + Duration::from_secs(1), replicas, &pods);
    let outcome = decide::decide(cluster, &mut State::new(START, replicas), &observation);
    outcome.decision.unwrap()
}
