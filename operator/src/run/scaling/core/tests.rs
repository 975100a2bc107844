//! A simulated cluster: pods that queue, spool, drain and restart, a StatefulSet that follows the advice, and a clock that
//! moves in steps. The core under test is the one that ships.

mod drains;
mod stops;

use std::collections::BTreeMap;

use certeus_autoscale::{PodPhase, Reason};
use proptest::prelude::*;

use super::super::DrainState;
use super::super::drain::{Ask, NoReply, PodDrain, PodState, Request};
use super::super::fixtures::{Page, START, pod, shared_cluster};
use super::*;
use crate::run::trouble::{Kind, Trouble};

const SECOND: Duration = Duration::from_secs(1);

/// How a pod answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    Healthy,
    /// Answers no scrape.
    Silent,
    /// Its metrics are no numbers.
    NotANumber,
    /// Begins to drain and never ends.
    Stuck,
    /// Does not agree to drain.
    Refusing,
    /// Cannot read its spool.
    Unread,
}

#[derive(Clone, Debug)]
struct SimPod {
    manner: Manner,
    uid: String,
    cpu_seconds: f64,
    spool: u64,
    state: PodState,
    /// Ends its drain or its restart.
    until: Duration,
    /// Its process runs.
    ready: bool,
    has_run: bool,
    /// It ends again and again.
    crashes: bool,
}

/// A cluster and its operator.
struct Sim {
    now: Duration,
    core: Core,
    cluster: Arc<Cluster>,
    replicas: Option<u32>,
    pods: BTreeMap<u32, SimPod>,
    born: u32,
    /// CPU in use by all pods together, in cores; one pod has one.
    load: f64,
    /// The database replays spools.
    database: bool,
    held: bool,
    /// A pod that is being deleted and does not end, and when it should have.
    leaving: Option<(u32, Duration)>,
    /// Ordinals in the order they were asked to drain.
    drained: Vec<u32>,
    removed_with_spool: usize,
    /// What waits on volumes of pods that are gone.
    volumes: BTreeMap<u32, u64>,
    /// What the status says of that.
    noted: parked::Volumes,
    /// No status can be written.
    status_fails: bool,
    /// How often a reconcile was asked for.
    wakes: u32,
}

impl Sim {
    fn new(spec: &str, replicas: u32, load: f64) -> Self {
        let mut sim = Self {
            now: START,
            core: Core::default(),
            cluster: shared_cluster(spec),
            replicas: Some(replicas),
            pods: BTreeMap::new(),
            born: 0,
            load,
            database: true,
            held: false,
            leaving: None,
            drained: Vec::new(),
            removed_with_spool: 0,
            volumes: BTreeMap::new(),
            noted: parked::Volumes::new(),
            status_fails: false,
            wakes: 0,
        };
        sim.follow(replicas);
        sim.reconcile();
        sim
    }

    fn configure(&mut self, spec: &str) {
        self.cluster = shared_cluster(spec);
        self.reconcile();
    }

    /// A new operator process.
    fn restart(&mut self) {
        self.core = Core::default();
        self.reconcile();
    }

    /// From now on the pod answers so, if there is one.
    fn behave(&mut self, ordinal: u32, manner: Manner) {
        if let Some(pod) = self.pods.get_mut(&ordinal) {
            pod.manner = manner;
        }
    }

    /// Requests wait in the pod's spool, if it still takes any.
    fn spool(&mut self, ordinal: u32) {
        if let Some(pod) = self.pods.get_mut(&ordinal).filter(|pod| pod.state == PodState::Serving) {
            pod.spool = 3;
        }
    }

    /// The database is there, and all pods are well.
    fn mend(&mut self) {
        self.database = true;
        for pod in self.pods.values_mut() {
            pod.manner = Manner::Healthy;
        }
    }

    /// The StatefulSet controller.
    fn follow(&mut self, replicas: u32) {
        for ordinal in 0..replicas {
            let (born, volumes) = (&mut self.born, &mut self.volumes);
            self.pods.entry(ordinal).or_insert_with(|| {
                *born += 1;
                let uid = format!("uid-{ordinal}-{born}");
                SimPod {
                    manner: Manner::Healthy,
                    uid,
                    cpu_seconds: 0.0,
                    spool: volumes.remove(&ordinal).unwrap_or(0),
                    state: PodState::Serving,
                    until: START,
                    ready: true,
                    has_run: true,
                    crashes: false,
                }
            });
        }
        let surplus = self.pods.split_off(&replicas);
        let left = surplus.iter().filter(|(_, pod)| pod.spool > 0);
        let left: Vec<(u32, u64)> = left.map(|(ordinal, pod)| (*ordinal, pod.spool)).collect();
        self.removed_with_spool += left.len();
        self.volumes.extend(left);
        self.replicas = Some(replicas);
    }

    fn seen(&self) -> Vec<PodSeen> {
        let seen = |(ordinal, sim): (&u32, &SimPod)| {
            let mut seen = pod(*ordinal);
            seen.uid.clone_from(&sim.uid);
            seen.has_run = sim.has_run;
            if !sim.ready {
                seen.phase = PodPhase::Pending;
            }
            if sim.crashes {
                seen.trouble = Some(Box::new(Trouble::new(
                    Kind::Crash { exit_code: Some(1) },
                    "",
                    Duration::ZERO,
                    Duration::ZERO,
                )));
            }
            if let Some((_, gone_by)) = self.leaving.filter(|(leaving, _)| leaving == ordinal) {
                (seen.phase, seen.gone_by) = (PodPhase::Draining, Some(gone_by));
            }
            seen
        };
        self.pods.iter().map(seen).collect()
    }

    /// Reconciles until the advice is followed.
    fn reconcile(&mut self) {
        loop {
            let world = World {
                cluster: Arc::clone(&self.cluster),
                replicas: self.replicas,
                pods: self.seen(),
                held: self.held,
                parked: self.noted.clone(),
            };
            self.core.observe(self.now, world);
            let Advice { replicas: advised, parked, .. } = self.core.advice();
            let written = !self.status_fails && self.noted != parked;
            if self.replicas == Some(advised) && !written {
                return;
            }
            self.follow(advised);
            // After the workload, and what is written wakes a reconcile.
            if written {
                self.noted = parked;
            }
        }
    }

    fn serving(&self) -> f64 {
        let serves = |pod: &&SimPod| pod.state == PodState::Serving && pod.ready;
        (self.pods.values().filter(serves).count() as f64).max(1.0)
    }

    /// The world goes on for a second, then the operator has its turn.
    fn tick(&mut self) {
        self.now += SECOND;
        let share = (self.load / self.serving()).min(1.0);
        for pod in self.pods.values_mut().filter(|pod| pod.ready) {
            if pod.state == PodState::Serving {
                pod.cpu_seconds += share;
                pod.spool = if self.database { 0 } else { pod.spool };
            }
            match pod.state {
                PodState::Draining if pod.until <= self.now && pod.manner != Manner::Stuck => {
                    pod.state = PodState::Drained;
                }
                PodState::Restarting if pod.until <= self.now => {
                    pod.state = PodState::Serving;
                }
                PodState::Serving | PodState::Draining | PodState::Drained | PodState::Restarting => {}
            }
        }
        self.turn();
    }

    fn turn(&mut self) {
        for pod in self.pods.values().filter(|pod| pod.ready) {
            let page = Page {
                uptime_seconds: self.now.as_secs_f64(),
                cpu_seconds: pod.cpu_seconds,
                commits: 0,
                queue: if pod.manner == Manner::NotANumber { f64::NAN } else { 0.0 },
                spool: pod.spool,
                draining: pod.state != PodState::Serving,
            };
            let mut page = page.text();
            if pod.manner == Manner::Unread {
                page = page.replace("spool_records 0", "spool_records NaN");
            }
            let scrape = match pod.manner {
                Manner::Silent => Err(MissingReason::Unreachable),
                _ => Ok(decide::parse(self.now, &page)),
            };
            self.core.scraped(&pod.uid, scrape);
        }
        let (requests, report) = self.core.round(self.now);
        self.wakes += u32::from(report.is_news);
        for request in requests {
            let reply = self.ask(request);
            self.core.drain_replied(self.now, request, reply);
        }
        if report.is_news {
            self.reconcile();
        }
    }

    fn ask(&mut self, request: Request) -> Reply {
        let (now, database) = (self.now, self.database);
        let pod = self.pods.get_mut(&request.ordinal).ok_or(NoReply::Silent)?;
        match (request.ask, pod.manner) {
            (_, Manner::Silent) => return Err(NoReply::Silent),
            (Ask::Drain, Manner::Refusing) => return Err(NoReply::Status(503)),
            (Ask::Drain, _) if pod.state == PodState::Serving => {
                self.drained.push(request.ordinal);
                pod.state = PodState::Draining;
                pod.until = now + SECOND * 3;
                // The database went away while it drained.
                pod.spool += u64::from(!database);
            }
            (Ask::Cancel, _) => match pod.state {
                PodState::Draining if pod.until > now => pod.state = PodState::Serving,
                PodState::Draining | PodState::Drained => {
                    pod.state = PodState::Restarting;
                    pod.until = now + SECOND * 4;
                }
                PodState::Serving | PodState::Restarting => {}
            },
            (Ask::Drain | Ask::Look, _) => {}
        }
        Ok(PodDrain { state: pod.state, spool_records: Some(pod.spool) })
    }

    fn run(&mut self, seconds: u32) {
        for _ in 0..seconds {
            self.tick();
        }
    }

    fn count(&self) -> u32 {
        self.replicas.unwrap()
    }

    fn drains(&self) -> Vec<(String, DrainState)> {
        self.core.advice().draining.into_iter().map(|drain| (drain.pod, drain.state)).collect()
    }
}

const QUICK: &str = "autoscaling: { min: 2, max: 10, cooldown: 10s }";

#[test]
fn a_load_step_is_answered_within_two_turns() {
    let mut sim = Sim::new(QUICK, 2, 1.0);
    sim.run(30);
    assert_eq!(sim.count(), 2);
    sim.load = 6.0;
    let begun = sim.now;
    while sim.count() == 2 {
        sim.tick();
    }
    // A turn may come up to a second after the step, and sees of it what is in its interval.
    assert!(sim.now - begun <= SECOND * 2);
    let change = sim.core.advice().last_change.unwrap();
    assert_eq!((change.decision.current, change.decision.reason()), (2, Reason::ScaleUp));
}

#[test]
fn a_step_that_is_measured_late_is_answered_in_under_three_seconds() {
    // Of every moment within the interval at which the step can come; a scrape and its answer take 250 ms at most.
    for tenth in 0..10 {
        let mut sim = Sim::new(QUICK, 2, 1.0);
        sim.run(30);
        let part = f64::from(tenth) / 10.0;
        sim.load = 1.0 + 3.0 * (1.0 - part);
        sim.tick();
        let mut waited = 1.0 - part;
        sim.load = 4.0;
        while sim.count() == 2 {
            sim.tick();
            waited += 1.0;
        }
        assert!(waited + 0.25 < 3.0, "{waited} s after a step at {part}");
    }
}

#[test]
fn what_is_not_measured_is_not_removed() {
    for manner in [Manner::Silent, Manner::NotANumber] {
        let mut sim = Sim::new(QUICK, 4, 0.1);
        for pod in sim.pods.values_mut() {
            pod.manner = manner;
        }
        sim.run(600);
        assert_eq!(sim.count(), 4, "{manner:?}");
        sim.restart();
        sim.run(600);
        assert_eq!(sim.count(), 4, "{manner:?} after a restart");
    }
    // One of them alone counts as a full pod: 0.1 + 1.0 cores need two.
    let mut sim = Sim::new("autoscaling: { min: 1, cooldown: 10s, queueDepth: { enabled: false } }", 4, 0.1);
    sim.pods.get_mut(&0).unwrap().manner = Manner::Silent;
    sim.run(600);
    assert_eq!(sim.count(), 2);
}

#[test]
fn a_restart_begins_a_full_cooldown_and_keeps_what_is_there() {
    let mut sim = Sim::new("autoscaling: { min: 2, max: 10 }", 6, 0.1);
    for _ in 0..3 {
        sim.run(290);
        assert_eq!(sim.count(), 6);
        sim.restart();
    }
    sim.run(310);
    assert_eq!(sim.count(), 2);
}

#[test]
fn a_restart_amid_drains_returns_pods_that_are_needed_again() {
    let mut sim = Sim::new(QUICK, 4, 1.0);
    sim.pods.get_mut(&3).unwrap().manner = Manner::Stuck;
    sim.run(30);
    assert_eq!((sim.count(), sim.drains().len()), (4, 2));
    sim.load = 2.5;
    sim.restart();
    sim.pods.get_mut(&3).unwrap().manner = Manner::Healthy;
    sim.run(60);
    assert!(sim.count() >= 4);
    assert!(sim.pods.values().all(|pod| pod.state == PodState::Serving), "{:?}", sim.pods);
}

#[test]
fn paused_changes_nothing_and_ends_drains() {
    let mut sim = Sim::new(QUICK, 3, 0.1);
    sim.pods.get_mut(&2).unwrap().manner = Manner::Stuck;
    sim.run(20);
    assert_eq!(sim.drains().len(), 1);
    sim.configure("paused: true\n  autoscaling: { min: 2, max: 10, cooldown: 10s }");
    sim.pods.get_mut(&2).unwrap().manner = Manner::Healthy;
    sim.load = 9.0;
    sim.run(60);
    assert_eq!((sim.count(), sim.drains()), (3, vec![]));
    sim.configure(QUICK);
    sim.run(3);
    assert!(sim.count() > 3);
}

#[test]
fn stopped_drains_everything_and_comes_back() {
    let mut sim = Sim::new(QUICK, 4, 1.0);
    sim.configure("stopped: true\n  autoscaling: { min: 2, max: 10, cooldown: 10s }");
    assert_eq!(sim.count(), 4, "not before they have drained");
    sim.run(10);
    assert_eq!((sim.count(), sim.drained.as_slice()), (0, &[3, 2, 1, 0][..]));
    sim.run(10);
    sim.configure(QUICK);
    assert_eq!(sim.count(), 2);
    // What was never created is not created to be stopped.
    let mut core = Core::default();
    let cluster = shared_cluster("stopped: true");
    core.observe(
        START,
        World { cluster, replicas: None, pods: Vec::new(), held: false, parked: parked::Volumes::new() },
    );
    assert_eq!(core.advice().replicas, 0);
}

#[test]
fn what_pods_say_of_their_database_is_told_when_it_is_first_known_and_then_not_again() {
    let mut sim = Sim::new("autoscaling: { enabled: false }\n  replicas: 2", 2, 0.1);
    sim.run(2);
    let pods = sim.core.advice().scrapes;
    assert!(pods.iter().any(|pod| pod.latest.as_ref().is_ok_and(|sample| sample.database_up == Ok(1.0))));
    let told = sim.wakes;
    sim.run(120);
    assert_eq!(sim.wakes, told);
}

#[test]
fn a_dry_run_decides_and_does_nothing() {
    let spec = "dryRun: true\n  autoscaling: { min: 2, max: 10, cooldown: 10s }";
    for (load, desired) in [(4.0, 6), (0.1, 2)] {
        let mut sim = Sim::new(spec, 4, load);
        sim.run(60);
        let advice = sim.core.advice();
        assert_eq!((sim.count(), advice.replicas, advice.desired), (4, 4, desired));
        assert_eq!((sim.drained.len(), advice.last_change), (0, None));
        assert!(advice.outcome.unwrap().decision.is_some());
    }
}

#[test]
fn another_owner_of_the_stateful_set_makes_us_hold() {
    let mut sim = Sim::new(QUICK, 4, 4.0);
    sim.held = true;
    sim.reconcile();
    sim.run(60);
    assert_eq!((sim.count(), sim.core.advice().last_change), (4, None));
    // What they write stands, and is what is wanted.
    sim.follow(3);
    sim.reconcile();
    sim.run(30);
    assert_eq!((sim.count(), sim.core.advice().desired), (3, 3));
    sim.held = false;
    sim.reconcile();
    sim.run(3);
    assert!(sim.count() > 3);
}

#[test]
fn a_fixed_size_is_followed_in_both_directions() {
    let mut sim = Sim::new("autoscaling: { enabled: false }\n  replicas: 3", 3, 2.9);
    sim.run(5);
    sim.configure("autoscaling: { enabled: false }\n  replicas: 5");
    assert_eq!(sim.count(), 5, "at once");
    sim.configure("autoscaling: { enabled: false }\n  replicas: 1");
    assert_eq!(sim.count(), 5);
    sim.run(10);
    assert_eq!((sim.count(), sim.drained.as_slice()), (1, &[4, 3, 2, 1][..]));
}

#[test]
fn somebody_elses_change_is_put_right_and_a_lost_workload_comes_back_as_large() {
    let mut sim = Sim::new(QUICK, 5, 3.0);
    sim.run(5);
    sim.follow(3);
    sim.reconcile();
    assert_eq!(sim.count(), 5, "growth needs no drain");
    sim.follow(8);
    sim.reconcile();
    assert_eq!(sim.count(), 8, "not before they have drained");
    sim.run(10);
    assert_eq!(sim.count(), 5);
    sim.pods.clear();
    sim.replicas = None;
    sim.reconcile();
    assert_eq!(sim.count(), 5);
}

#[test]
fn a_cluster_at_rest_is_left_in_peace() {
    let mut sim = Sim::new(QUICK, 2, 0.01);
    sim.run(60);
    let before = (sim.wakes, sim.core.advice());
    for second in 0..600 {
        sim.load = 0.01 + f64::from(second % 5) * 0.01;
        sim.tick();
    }
    assert_eq!((sim.wakes, sim.core.advice()), before);
}

#[test]
fn a_noisy_load_is_not_told_every_second() {
    let mut sim = Sim::new("autoscaling: { min: 3, max: 3 }", 3, 1.5);
    sim.run(60);
    let before = sim.wakes;
    for second in 0..600 {
        sim.load = 1.2 + f64::from((second * 7) % 10) * 0.08;
        sim.tick();
    }
    assert!(sim.wakes - before <= 600 / 10, "{}", sim.wakes - before);
}

/// What may happen to a cluster.
#[derive(Clone, Debug)]
enum Event {
    Load(f64),
    Manner(u32, Manner),
    Database(bool),
    Spool(u32),
    Crash(u32),
    Restart,
    Wait(u32),
}

fn event() -> impl Strategy<Value = Event> {
    let manner = prop_oneof![
        2 => Just(Manner::Healthy), 1 => Just(Manner::Silent), 1 => Just(Manner::NotANumber),
        1 => Just(Manner::Stuck), 1 => Just(Manner::Refusing),
    ];
    prop_oneof![
        2 => (0.0..8.0).prop_map(Event::Load),
        2 => (0..10_u32, manner).prop_map(|(ordinal, manner)| Event::Manner(ordinal, manner)),
        1 => any::<bool>().prop_map(Event::Database),
        1 => (0..10_u32).prop_map(Event::Spool),
        1 => (0..10_u32).prop_map(Event::Crash),
        1 => Just(Event::Restart),
        4 => (1..40_u32).prop_map(Event::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn whatever_happens_no_pod_goes_undrained_and_all_serve_in_the_end(events in prop::collection::vec(event(), 1..40)) {
        let mut sim = Sim::new(QUICK, 5, 2.0);
        for event in events {
            match event {
                Event::Load(load) => sim.load = load,
                Event::Manner(ordinal, manner) => sim.behave(ordinal, manner),
                Event::Database(up) => sim.database = up,
                Event::Spool(ordinal) => sim.spool(ordinal),
                // Its container is started again, and what it held in memory is gone; its volume is not.
                Event::Crash(ordinal) => {
                    if let Some(pod) = sim.pods.get_mut(&ordinal) {
                        (pod.state, pod.cpu_seconds) = (PodState::Serving, 0.0);
                    }
                }
                Event::Restart => sim.restart(),
                Event::Wait(seconds) => {
                    for _ in 0..seconds {
                        let before: Vec<(u32, PodState)> =
                            sim.pods.iter().map(|(ordinal, pod)| (*ordinal, pod.state)).collect();
                        sim.tick();
                        for (ordinal, state) in before {
                            let gone = !sim.pods.contains_key(&ordinal);
                            prop_assert!(!gone || state != PodState::Serving, "pod {ordinal} went undrained");
                        }
                        prop_assert!((2..=10).contains(&sim.count()));
                    }
                }
            }
        }
        sim.mend();
        sim.load = 2.0;
        sim.run(400);
        prop_assert!((3..=6).contains(&sim.count()), "{} {:?} {:?} {:?}", sim.count(), sim.drains(), sim.pods, sim.core.advice().outcome);
        prop_assert!(sim.pods.values().all(|pod| pod.state == PodState::Serving), "{:?}", sim.pods);
        prop_assert_eq!(sim.drains(), vec![]);
        sim.load = 9.5;
        sim.run(120);
        prop_assert_eq!(sim.count(), 10);
    }
}
