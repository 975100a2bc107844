//! Drains the pods that are to go, before the StatefulSet removes them: a pure state machine per pod over wish, time and
//! what the pods answer.
//!
//! Owns who is asked what and when. Never reads a clock, never talks to a pod: the driver carries out the [`Request`]s and
//! hands back the replies. Promises: no pod is released that may hold something; a pod that does not drain hinders neither
//! growth nor other pods; at most one request per pod is under way; a drain that is no longer wanted is taken back. A cluster that
//! is stopped is another matter: its pods go soon in any case, and what they hold is noted (`parked.rs`).
//! Read next: `volumes.rs`, `parked.rs`, `core.rs`.

mod replies;
mod stop;
mod words;

use std::collections::BTreeMap;
use std::time::Duration;

use certeus_autoscale::PodPhase;
use certeus_operator::decide::Scrapes;

use super::parked::Parked;
use super::volumes::Volumes;
use crate::run::pods::PodSeen;
pub(crate) use words::DrainState;
pub(super) use words::{Ask, DrainEnd, NoReply, PodDrain, PodState, Reply, Request};

/// A full queue and a slow database take a pod this long at most; past it the drain counts as stuck. The pod goes on with it; of a
/// cluster that is stopped it goes.
pub(super) const DRAIN_TIMEOUT: Duration = Duration::from_secs(60);
/// First wait after a refusal; doubles with each further one.
const BACK_OFF_MIN: Duration = Duration::from_secs(5);
const BACK_OFF_MAX: Duration = Duration::from_secs(60);
/// A pod that drains unasked gets this long to end, as somebody may just be stopping it. Then it is taken back into service.
const STRAY_AFTER: Duration = Duration::from_secs(30);
/// A drained pod that gives no sign this often in a row is no longer taken for drained.
const SILENT_MAX: u32 = 3;
/// A pod whose node lives is gone within seconds of the end of its grace period. Past it nobody ends it any more.
const LEAVE_SLACK: Duration = Duration::from_secs(30);

/// One pod's drain.
#[derive(Clone, Debug)]
struct Drain {
    /// Whose drain this is: a pod that was replaced begins anew.
    uid: String,
    state: DrainState,
    since: Duration,
    /// The pod may have been asked to drain.
    asked: bool,
    /// It drained with requests in its spool, and has to serve again before anything else.
    serve_first: bool,
    under_way: bool,
    /// Refusals or silence in a row.
    failures: u32,
    retry_at: Duration,
}

impl Drain {
    fn new(uid: &str, state: DrainState, now: Duration) -> Self {
        let uid = uid.to_owned();
        Self {
            uid,
            state,
            since: now,
            asked: false,
            serve_first: false,
            under_way: false,
            failures: 0,
            retry_at: now,
        }
    }

    fn enter(&mut self, state: DrainState, now: Duration) {
        if self.state != state {
            self.state = state;
            self.since = now;
        }
    }

    fn back_off(&mut self, now: Duration) {
        let wait = BACK_OFF_MIN.saturating_mul(1 << self.failures.min(16)).min(BACK_OFF_MAX);
        self.failures = self.failures.saturating_add(1);
        self.retry_at = now.saturating_add(wait);
    }

    fn refuse(&mut self, status: Option<u16>, now: Duration) -> DrainEnd {
        self.back_off(now);
        self.enter(DrainState::Refused(status), now);
        DrainEnd::Refused
    }
}

/// What one step sees.
#[derive(Clone, Copy, Debug)]
pub(super) struct View<'a> {
    pub(super) pods: &'a [PodSeen],
    pub(super) scrapes: &'a Scrapes,
    /// Pods from this ordinal on are to go.
    pub(super) target: u32,
    /// Pods from this ordinal on the StatefulSet removes by itself.
    pub(super) replicas: u32,
    /// Change nothing: no pod is asked to drain, and none that drains by itself to serve again.
    pub(super) frozen: bool,
    /// All pods are to go for now, and come back on the same volumes.
    pub(super) stop: bool,
}

/// The drains of one cluster, by ordinal.
#[derive(Debug, Default)]
pub(super) struct Drains {
    drains: BTreeMap<u32, Drain>,
    volumes: Volumes,
    /// Volumes on which requests wait since a stop.
    pub(super) parked: Parked,
    /// Since when the cluster is being stopped.
    stopping_since: Option<Duration>,
    /// Pods that drain though nobody here asked them to, and since when.
    strays: BTreeMap<u32, Duration>,
    ended: Vec<DrainEnd>,
}

impl Drains {
    /// Steps towards what is wanted. Calling it again before a reply asks for nothing more.
    pub(super) fn step(&mut self, now: Duration, view: View<'_>) -> Vec<Request> {
        let View { pods, scrapes, target, replicas, frozen, stop } = view;
        self.volumes.observe(now, pods, scrapes, replicas);
        self.stopping_since = stop.then(|| self.stopping_since.unwrap_or(now));
        if !stop {
            self.parked.forget_emptied(scrapes);
        }
        let victims = if frozen { replicas..replicas } else { target..replicas };
        let mut requests = Vec::new();
        // Those that the StatefulSet removes are its own concern.
        self.drains.retain(|ordinal, _| *ordinal < replicas);
        for ordinal in victims.clone().rev() {
            let pod = pods.iter().find(|pod| pod.ordinal == ordinal);
            let ask = match self.stopping_since {
                Some(since) => self.step_stop(now, since, ordinal, pod),
                None => self.step_victim(now, ordinal, pod, scrapes),
            };
            requests.extend(ask.map(|ask| Request { ordinal, ask }));
        }
        if !frozen {
            self.find_strays(now, view);
        }
        let unwanted: Vec<u32> =
            self.drains.keys().copied().filter(|ordinal| !victims.contains(ordinal)).collect();
        for ordinal in unwanted {
            let pod = pods.iter().find(|pod| pod.ordinal == ordinal);
            requests
                .extend(self.step_unwanted(now, ordinal, pod, scrapes).map(|ask| Request { ordinal, ask }));
        }
        requests
    }

    fn step_victim(
        &mut self,
        now: Duration,
        ordinal: u32,
        pod: Option<&PodSeen>,
        scrapes: &Scrapes,
    ) -> Option<Ask> {
        let spooled = self.volumes.is_spooled(ordinal);
        let uid = pod.map_or("", |pod| pod.uid.as_str());
        let drain = drain_of(&mut self.drains, now, ordinal, uid);
        let phase = match pod {
            None => PodPhase::Failed,
            // What crashes runs for a moment now and then, and says nothing.
            Some(pod) if pod.crashes() && scrapes.latest(ordinal).is_err() => PodPhase::Pending,
            Some(pod) => pod.phase,
        };
        match phase {
            // Without a process there is nothing to ask. The volume is kept, but what is on it would wait unseen.
            PodPhase::Pending | PodPhase::Failed => {
                drain.asked = false;
                let empty = self.volumes.is_empty(ordinal);
                drain.enter(if empty { DrainState::Absent } else { DrainState::Down }, now);
                return None;
            }
            PodPhase::Draining => {
                let gone_by = pod.and_then(|pod| pod.gone_by);
                let hangs = gone_by.is_some_and(|gone_by| now.saturating_sub(gone_by) >= LEAVE_SLACK);
                if drain.state != DrainState::Drained {
                    drain.enter(if hangs { DrainState::Hanging } else { DrainState::Leaving }, now);
                }
                return None;
            }
            PodPhase::Running { .. } => drain.uid = uid.to_owned(),
        }
        if drain.under_way {
            return None;
        }
        match drain.state {
            // The stop is over, and fewer pods are wanted than there were.
            DrainState::Parked => {
                drain.serve_first = drain.asked;
                drain.retry_at = now;
                drain.enter(DrainState::Unknown, now);
            }
            // It is to go after all, and answers count again.
            DrainState::Cancelling => drain.enter(DrainState::Unknown, now),
            _ => {}
        }
        let ask = match drain.state {
            _ if drain.serve_first => (now >= drain.retry_at).then_some(Ask::Cancel),
            DrainState::Draining if now.saturating_sub(drain.since) >= DRAIN_TIMEOUT => {
                drain.enter(DrainState::Stuck, now);
                drain.back_off(now);
                self.ended.push(DrainEnd::Stuck);
                None
            }
            DrainState::Draining | DrainState::Drained => Some(Ask::Look),
            DrainState::Stuck | DrainState::Refused(_) => (now >= drain.retry_at).then_some(Ask::Drain),
            DrainState::Unknown
            | DrainState::Spooled
            | DrainState::Cancelling
            | DrainState::Leaving
            | DrainState::Hanging
            | DrainState::Absent
            | DrainState::Parked
            | DrainState::Down => match scrapes.latest(ordinal) {
                Err(_) => {
                    drain.enter(DrainState::Unknown, now);
                    None
                }
                Ok(sample) if spooled => {
                    drain.enter(DrainState::Spooled, now);
                    // Asked by an operator before this one, it would wait for ever.
                    drain.serve_first = sample.draining == Ok(1.0);
                    drain.asked |= drain.serve_first;
                    (drain.serve_first && now >= drain.retry_at).then_some(Ask::Cancel)
                }
                // Its spool cannot be read. Drained it could not be told from one that is empty.
                Ok(sample) if sample.spool_records.is_err() => {
                    drain.enter(DrainState::Unknown, now);
                    None
                }
                Ok(_) => (now >= drain.retry_at).then_some(Ask::Drain),
            },
        };
        drain.under_way = ask.is_some();
        drain.asked |= ask == Some(Ask::Drain);
        ask
    }

    /// Pods that drain and should not: an operator before this one asked them, or somebody by hand.
    fn find_strays(&mut self, now: Duration, view: View<'_>) {
        let View { pods, scrapes, target, .. } = view;
        let strays = pods.iter().filter(|pod| {
            let running = matches!(pod.phase, PodPhase::Running { .. });
            let drains = scrapes.latest(pod.ordinal).is_ok_and(|sample| sample.draining == Ok(1.0));
            pod.ordinal < target && running && drains && !self.drains.contains_key(&pod.ordinal)
        });
        self.strays =
            strays.map(|pod| (pod.ordinal, self.strays.get(&pod.ordinal).copied().unwrap_or(now))).collect();
        for pod in pods {
            let Some(since) = self.strays.get(&pod.ordinal) else { continue };
            if now.saturating_sub(*since) >= STRAY_AFTER {
                let drain = Drain { asked: true, ..Drain::new(&pod.uid, DrainState::Cancelling, now) };
                self.drains.insert(pod.ordinal, drain);
            }
        }
    }

    fn step_unwanted(
        &mut self,
        now: Duration,
        ordinal: u32,
        pod: Option<&PodSeen>,
        scrapes: &Scrapes,
    ) -> Option<Ask> {
        let drain = self.drains.get_mut(&ordinal)?;
        let same = |pod: &&PodSeen| matches!(pod.phase, PodPhase::Running { .. }) && pod.uid == drain.uid;
        // Only a process that was asked to drain has to be told that it need not.
        if !drain.asked || pod.filter(same).is_none() {
            self.drains.remove(&ordinal);
            return None;
        }
        if drain.state != DrainState::Cancelling {
            drain.enter(DrainState::Cancelling, now);
            drain.failures = 0;
            drain.retry_at = now;
        }
        // A scrape from before the answer says nothing.
        let serves = scrapes.latest(ordinal).is_ok_and(|sample| {
            sample.draining == Ok(0.0) && sample.at > drain.since + Duration::from_secs(1)
        });
        if serves && !drain.under_way {
            self.drains.remove(&ordinal);
            self.ended.push(DrainEnd::Cancelled);
            return None;
        }
        let ask = (!drain.under_way && now >= drain.retry_at).then_some(Ask::Cancel);
        drain.under_way |= ask.is_some();
        ask
    }

    /// How many pods may stay when those from `target` on are to go: of `replicas`, the highest ordinals that are released go.
    pub(super) fn released(&self, target: u32, replicas: u32, stop: bool) -> u32 {
        let is_released = |ordinal: &u32| {
            self.drains.get(ordinal).is_some_and(|drain| match drain.state {
                DrainState::Parked => stop && self.parked.is_noted(*ordinal),
                state => state.is_released(),
            })
        };
        let gone = (target..replicas).rev().take_while(is_released).count();
        replicas.saturating_sub(u32::try_from(gone).unwrap_or(u32::MAX))
    }

    /// All drains, by ordinal.
    pub(super) fn seen(&self) -> impl Iterator<Item = (u32, DrainState, Duration)> {
        self.drains.iter().map(|(ordinal, drain)| (*ordinal, drain.state, drain.since))
    }

    /// What ended since the last call.
    pub(super) fn take_ended(&mut self) -> Vec<DrainEnd> {
        std::mem::take(&mut self.ended)
    }
}

/// The drain of the pod with this identity; of one that was replaced a new one.
fn drain_of<'a>(
    drains: &'a mut BTreeMap<u32, Drain>,
    now: Duration,
    ordinal: u32,
    uid: &str,
) -> &'a mut Drain {
    let is_other = |drain: &mut Drain| !uid.is_empty() && !drain.uid.is_empty() && drain.uid != uid;
    if drains.get_mut(&ordinal).is_some_and(is_other) {
        drains.remove(&ordinal);
    }
    drains.entry(ordinal).or_insert_with(|| Drain::new(uid, DrainState::Unknown, now))
}
