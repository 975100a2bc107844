//! The pods of a cluster that is being stopped: they go, whatever they hold, as their database may be gone. Pure.

use std::time::Duration;

use certeus_autoscale::PodPhase;

use super::{Ask, DRAIN_TIMEOUT, DrainEnd, DrainState, Drains, drain_of};
use crate::run::pods::PodSeen;

impl Drains {
    /// A pod of a cluster that is being stopped. It is asked to drain whatever is in its spool, so that it takes nothing more, commits what it
    /// can and says what is left. One that does not get there goes all the same: all that it has acknowledged is on its volume.
    pub(super) fn step_stop(
        &mut self,
        now: Duration,
        since: Duration,
        ordinal: u32,
        pod: Option<&PodSeen>,
    ) -> Option<Ask> {
        let overdue = now.saturating_sub(since) >= DRAIN_TIMEOUT;
        let uid = pod.map_or("", |pod| pod.uid.as_str());
        let drain = drain_of(&mut self.drains, now, ordinal, uid);
        drain.serve_first = false;
        match pod.map_or(PodPhase::Failed, |pod| pod.phase) {
            PodPhase::Pending | PodPhase::Failed if self.volumes.is_empty(ordinal) => {
                drain.asked = false;
                drain.enter(DrainState::Absent, now);
            }
            PodPhase::Pending | PodPhase::Failed => {
                drain.asked = false;
                drain.enter(DrainState::Parked, now);
            }
            PodPhase::Draining => match drain.state {
                DrainState::Drained | DrainState::Parked => {}
                _ if overdue => drain.enter(DrainState::Parked, now),
                _ => drain.enter(DrainState::Leaving, now),
            },
            PodPhase::Running { .. } => drain.uid = uid.to_owned(),
        }
        let runs = pod.is_some_and(|pod| matches!(pod.phase, PodPhase::Running { .. }));
        let ask = match drain.state {
            _ if !runs || drain.under_way => None,
            DrainState::Drained | DrainState::Parked => Some(Ask::Look),
            _ if overdue => {
                drain.enter(DrainState::Parked, now);
                self.ended.push(DrainEnd::Stuck);
                None
            }
            DrainState::Draining => Some(Ask::Look),
            state => {
                if state == DrainState::Cancelling {
                    drain.enter(DrainState::Unknown, now);
                }
                (now >= drain.retry_at).then_some(Ask::Drain)
            }
        };
        drain.under_way |= ask.is_some();
        drain.asked |= ask == Some(Ask::Drain);
        if drain.state == DrainState::Parked {
            self.parked.park(ordinal, None);
        }
        ask
    }
}
