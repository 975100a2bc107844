//! The scaling of one cluster without its waiting and talking: what was observed and scraped comes in as values, what to
//! advise and whom to ask goes out.
//!
//! Owns the engine's history, what was asked for last, the drains and the published advice. Never reads a clock.
//! Promises: with no StatefulSet, no pods or no samples nothing shrinks; a new one of these begins with the count it finds;
//! an unchanged world gives equal advice. Read next: `drain.rs`, `publish.rs`.

use std::sync::Arc;
use std::time::Duration;

use certeus_autoscale::{Decision, MissingReason, State, Verdict};
use certeus_operator::decide::{self, MetricsSample, PodScrape, Scrapes};
use certeus_operator::validate::Cluster;

use super::drain::{DrainEnd, Drains, Reply, Request, View};
use super::publish::Publisher;
use super::{Advice, DrainSeen, LastChange, parked};
use crate::run::pods::PodSeen;

/// What a reconcile saw.
#[derive(Clone, Debug)]
pub(super) struct World {
    pub(super) cluster: Arc<Cluster>,
    /// The StatefulSet's `spec.replicas`; `None` if there is none.
    pub(super) replicas: Option<u32>,
    pub(super) pods: Vec<PodSeen>,
    /// Another autoscaler writes to the StatefulSet.
    pub(super) held: bool,
    /// What the status says of volumes on which requests wait since a stop.
    pub(super) parked: parked::Volumes,
}

/// What is done with a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// It is carried out.
    Act,
    /// No pods, volumes kept.
    Stop,
    /// It is shown; the count stays.
    Show,
    /// Another autoscaler writes the count: whatever it says is right.
    Follow,
    /// Nothing changes at all, and no drain goes on.
    Freeze,
}

impl Mode {
    fn of(world: &World) -> Self {
        let cluster = &world.cluster;
        match () {
            () if cluster.paused => Self::Freeze,
            () if cluster.dry_run => Self::Show,
            () if cluster.stopped => Self::Stop,
            () if world.held => Self::Follow,
            () => Self::Act,
        }
    }
}

/// The engine and the count it last asked for. The StatefulSet follows behind, as pods are drained first.
#[derive(Debug)]
struct Engine {
    state: State,
    asked: u32,
}

impl Engine {
    fn ask(&mut self, now: Duration, replicas: u32) {
        self.state.record_scale(now, self.asked, replicas);
        self.asked = replicas;
    }
}

/// What one round led to, for the metrics.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// The decision, if the engine was asked.
    pub(super) decision: Option<Decision>,
    /// How long after the first sample past a threshold more pods were asked for; once per surge.
    pub(super) reaction: Option<Duration>,
    pub(super) drains: Vec<DrainEnd>,
    /// There is something new to advise.
    pub(super) is_news: bool,
}

/// The scaling of one cluster.
#[derive(Debug, Default)]
pub(super) struct Core {
    world: Option<World>,
    engine: Option<Engine>,
    scrapes: Scrapes,
    drains: Drains,
    publisher: Publisher,
    last_change: Option<LastChange>,
    surge: Option<Surge>,
    /// When the last round was.
    now: Duration,
}

/// Load past a threshold.
#[derive(Clone, Copy, Debug)]
struct Surge {
    since: Duration,
    answered: bool,
}

impl Core {
    /// Takes note of what a reconcile saw, and says at once what follows from it.
    pub(super) fn observe(&mut self, now: Duration, world: World) {
        let replaced = |pod: &&PodSeen| {
            let old = self.world.iter().flat_map(|world| &world.pods).find(|old| old.ordinal == pod.ordinal);
            old.is_some_and(|old| old.uid != pod.uid)
        };
        let replaced: Vec<u32> = world.pods.iter().filter(replaced).map(|pod| pod.ordinal).collect();
        self.scrapes.retain(|ordinal| {
            !replaced.contains(&ordinal) && world.pods.iter().any(|pod| pod.ordinal == ordinal)
        });
        let (noted, runs) = (world.parked.clone(), Mode::of(&world) == Mode::Act);
        self.drains.parked.observe(now, noted, world.replicas, runs);
        self.world = Some(world);
        // The engine counts moments in which measuring fails: between two rounds there is none.
        let (candidate, _decision) = self.evaluate(if self.now.is_zero() { now } else { self.now });
        self.publisher.observe(now, candidate);
    }

    /// The pods to scrape.
    pub(super) fn pods(&self) -> &[PodSeen] {
        self.world.as_ref().map_or(&[], |world| &world.pods)
    }

    /// Takes note of a scrape of the pod that has this identity.
    pub(super) fn scraped(&mut self, uid: &str, scrape: Result<MetricsSample, MissingReason>) {
        if let Some(ordinal) = self.pods().iter().find(|pod| pod.uid == uid).map(|pod| pod.ordinal) {
            self.scrapes.record(ordinal, scrape);
        }
    }

    /// Takes note of a pod's answer about its drain.
    pub(super) fn drain_replied(&mut self, now: Duration, request: Request, reply: Reply) {
        self.drains.replied(now, request, reply);
    }

    /// One round: decides, steps the drains, and publishes what is new. Returns whom to ask what.
    pub(super) fn round(&mut self, now: Duration) -> (Vec<Request>, Report) {
        self.now = self.now.max(now);
        let Some(world) = &self.world else { return Default::default() };
        let mode = Mode::of(world);
        let (mut candidate, decision) = self.evaluate(self.now);
        let mut requests = Vec::new();
        if let (Some(world), Some(engine)) = (&self.world, &self.engine)
            && let Some(replicas) = world.replicas
        {
            let view = View {
                pods: &world.pods,
                scrapes: &self.scrapes,
                target: self.target(engine.asked, mode),
                replicas,
                frozen: mode == Mode::Freeze,
                stop: mode == Mode::Stop,
            };
            requests = self.drains.step(now, view);
            candidate = self.advise(&candidate);
        }
        let report = Report {
            reaction: self.reaction(decision.as_ref()),
            decision,
            drains: self.drains.take_ended(),
            is_news: self.publisher.round(now, candidate),
        };
        (requests, report)
    }

    /// What was published last.
    pub(super) fn advice(&self) -> Advice {
        self.publisher.advice()
    }

    /// The pods with their latest scrapes, told or not.
    #[cfg(test)]
    pub(super) fn current(&self) -> Advice {
        let pods = self.pods().iter();
        let scrapes = pods.map(|pod| self.scrapes.scrape(pod.ordinal, pod.name.clone(), pod.phase));
        Advice { scrapes: scrapes.collect(), ..self.advice() }
    }

    /// Asks the engine, and carries its answer as far as the mode allows.
    fn evaluate(&mut self, now: Duration) -> (Advice, Option<Decision>) {
        let Some(world) = &self.world else { return (Advice::default(), None) };
        let (cluster, mode) = (&world.cluster, Mode::of(world));
        let scrapes: Vec<PodScrape> = world
            .pods
            .iter()
            .map(|pod| self.scrapes.scrape(pod.ordinal, pod.name.clone(), pod.phase))
            .collect();
        let Some(present) = world.replicas else {
            // Not created yet; or it is lost, and is made again as large as it was.
            let asked = self.engine.as_ref().map(|engine| engine.asked);
            let wanted = match mode {
                Mode::Stop => 0,
                Mode::Act | Mode::Show | Mode::Follow | Mode::Freeze => {
                    asked.unwrap_or_else(|| cluster.scaling.min())
                }
            };
            // Pods that it left behind go in order, like all others.
            let left = world.pods.iter().map(|pod| pod.ordinal + 1).max().unwrap_or(0);
            let replicas = self.target(wanted, mode).max(left);
            let parked = self.drains.parked.volumes().clone();
            let advice = Advice { replicas, desired: replicas, scrapes, parked, ..Advice::default() };
            return (advice, None);
        };
        let engine =
            self.engine.get_or_insert_with(|| Engine { state: State::new(now, present), asked: present });
        if matches!(mode, Mode::Show | Mode::Follow | Mode::Freeze) && engine.asked != present {
            engine.ask(now, present);
        }
        let observation = decide::observe(cluster, now, engine.asked, &scrapes);
        let outcome = decide::decide(cluster, &mut engine.state, &observation);
        if matches!(mode, Mode::Act | Mode::Stop) && outcome.desired != engine.asked {
            engine.ask(now, outcome.desired);
            if let Some(decision) = &outcome.decision {
                self.last_change = Some(LastChange { at: now, decision: decision.clone() });
            }
        }
        let decision = outcome.decision.clone();
        let candidate = Advice {
            desired: if mode == Mode::Follow { present } else { outcome.desired },
            outcome: Some(outcome),
            scrapes,
            last_change: self.last_change.clone(),
            ..Advice::default()
        };
        (self.advise(&candidate), decision)
    }

    /// So many pods are to stay where `asked` are asked for: what a stop left on volumes needs its pods until it is in the database.
    fn target(&self, asked: u32, mode: Mode) -> u32 {
        match mode {
            Mode::Act => asked.max(self.drains.parked.pods()),
            Mode::Stop | Mode::Show | Mode::Follow | Mode::Freeze => asked,
        }
    }

    /// Adds to `candidate` what the drains allow.
    fn advise(&self, candidate: &Advice) -> Advice {
        let (Some(world), Some(engine)) = (&self.world, &self.engine) else { return candidate.clone() };
        let Some(present) = world.replicas else { return candidate.clone() };
        let mode = Mode::of(world);
        let target = self.target(engine.asked, mode);
        let replicas = if target >= present {
            target
        } else {
            self.drains.released(target, present, mode == Mode::Stop)
        };
        let name = |ordinal: u32| {
            let pod = world.pods.iter().find(|pod| pod.ordinal == ordinal);
            pod.map_or_else(|| format!("{}-{ordinal}", world.cluster.name), |pod| pod.name.clone())
        };
        let draining = self.drains.seen().map(|(ordinal, state, since)| DrainSeen {
            message: state.message(),
            pod: name(ordinal),
            state,
            since,
        });
        let parked = self.drains.parked.volumes().clone();
        Advice { replicas, draining: draining.collect(), parked, ..candidate.clone() }
    }

    /// How long the answer to a surge took, on the round that gives it.
    fn reaction(&mut self, decision: Option<&Decision>) -> Option<Duration> {
        let decision = decision?;
        let above = |report: &certeus_autoscale::TriggerReport| {
            report.outcome.as_ref().is_ok_and(|measured| measured.verdict == Verdict::Above)
        };
        if !decision.triggers.iter().any(above) {
            self.surge = None;
            return None;
        }
        let pods = self.world.iter().flat_map(|world| &world.pods);
        let newest = pods.filter_map(|pod| Some(self.scrapes.latest(pod.ordinal).ok()?.at)).max();
        let surge = self.surge.get_or_insert(Surge { since: newest.unwrap_or(self.now), answered: false });
        if decision.desired <= decision.current || std::mem::replace(&mut surge.answered, true) {
            return None;
        }
        Some(self.now.saturating_sub(surge.since))
    }
}

#[cfg(test)]
mod tests;
