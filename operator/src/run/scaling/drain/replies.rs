//! What the answers of pods that drain change. Pure.

use std::time::Duration;

use super::{Ask, DrainEnd, DrainState, Drains, NoReply, PodDrain, PodState, Reply, Request, SILENT_MAX};

impl Drains {
    /// Takes note of an answer. One that is no longer waited for changes nothing.
    pub(in crate::run::scaling) fn replied(&mut self, now: Duration, request: Request, reply: Reply) {
        let Request { ordinal, ask } = request;
        let Some(drain) = self.drains.get_mut(&ordinal).filter(|drain| drain.under_way) else { return };
        drain.under_way = false;
        match (ask, drain.state) {
            (Ask::Cancel, _) => self.serves_again(now, ordinal, reply),
            // Its answer came after the decision to take the drain back.
            (Ask::Drain | Ask::Look, DrainState::Cancelling) => {}
            (Ask::Drain | Ask::Look, _) => match reply {
                Ok(PodDrain { state: PodState::Drained, spool_records }) => {
                    self.drained(now, ordinal, spool_records);
                }
                Ok(PodDrain { state, .. }) => self.drains_on(now, request, state),
                Err(reason) => self.no_reply(now, request, reason),
            },
        }
    }

    fn serves_again(&mut self, now: Duration, ordinal: u32, reply: Reply) {
        let Some(drain) = self.drains.get_mut(&ordinal) else { return };
        match reply {
            Ok(PodDrain { state: PodState::Serving, .. }) if drain.serve_first => {
                drain.serve_first = false;
                drain.asked = false;
                drain.enter(DrainState::Spooled, now);
            }
            Ok(PodDrain { state: PodState::Serving, .. }) => {
                self.drains.remove(&ordinal);
                self.ended.push(DrainEnd::Cancelled);
            }
            // Being stopped already.
            Err(NoReply::Status(409)) => {
                self.drains.remove(&ordinal);
            }
            Ok(_) | Err(_) => drain.back_off(now),
        }
    }

    fn drained(&mut self, now: Duration, ordinal: u32, spool_records: Option<u64>) {
        let Some(drain) = self.drains.get_mut(&ordinal) else { return };
        let next = match spool_records {
            Some(0) => DrainState::Drained,
            Some(_) | None if self.stopping_since.is_some() => DrainState::Parked,
            Some(_) | None => {
                drain.serve_first = true;
                drain.retry_at = now;
                drain.enter(DrainState::Spooled, now);
                return;
            }
        };
        drain.failures = 0;
        if drain.state != next {
            self.ended.push(DrainEnd::Drained);
        }
        drain.enter(next, now);
        match next {
            DrainState::Parked => self.parked.park(ordinal, spool_records),
            _ => self.parked.forget(ordinal),
        }
    }

    fn drains_on(&mut self, now: Duration, request: Request, said: PodState) {
        let Some(drain) = self.drains.get_mut(&request.ordinal) else { return };
        match (said, drain.state) {
            (PodState::Draining, DrainState::Stuck) => drain.back_off(now),
            // It had its time.
            (_, DrainState::Parked) => {}
            // Started anew meanwhile.
            (PodState::Serving, _) if request.ask == Ask::Look => drain.enter(DrainState::Unknown, now),
            (PodState::Serving, _) => {
                drain.refuse(None, now);
                self.ended.push(DrainEnd::Refused);
            }
            _ => drain.enter(DrainState::Draining, now),
        }
    }

    fn no_reply(&mut self, now: Duration, request: Request, reason: NoReply) {
        let Some(drain) = self.drains.get_mut(&request.ordinal) else { return };
        if request.ask == Ask::Look {
            drain.failures = drain.failures.saturating_add(1);
            if drain.state == DrainState::Drained && drain.failures >= SILENT_MAX {
                drain.enter(DrainState::Unknown, now);
            }
            return;
        }
        let status = match reason {
            NoReply::Silent => None,
            NoReply::Status(status) => Some(status),
        };
        drain.refuse(status, now);
        self.ended.push(DrainEnd::Refused);
    }
}
