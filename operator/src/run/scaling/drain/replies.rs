//! What the answers of pods that drain change. Pure.

use std::time::Duration;

use super::{
    Ask, Drain, DrainEnd, DrainState, Drains, NoReply, PodDrain, PodState, Reply, Request, SILENT_MAX,
};

impl Drains {
    /// Takes note of an answer. One that is no longer waited for changes nothing.
    pub(in crate::run::scaling) fn replied(&mut self, now: Duration, request: Request, reply: Reply) {
        let Request { ordinal, ask } = request;
        let is_stopping = self.stopping_since.is_some();
        let Some(drain) = self.drains.get_mut(&ordinal).filter(|drain| drain.under_way) else { return };
        drain.under_way = false;
        let ended = match (ask, drain.state, reply) {
            (Ask::Cancel, _, Ok(PodDrain { state: PodState::Serving, .. })) if drain.serve_first => {
                drain.serve_first = false;
                drain.asked = false;
                drain.enter(DrainState::Spooled, now);
                None
            }
            (Ask::Cancel, _, Ok(PodDrain { state: PodState::Serving, .. })) => {
                self.drains.remove(&ordinal);
                Some(DrainEnd::Cancelled)
            }
            // Being stopped already.
            (Ask::Cancel, _, Err(NoReply::Status(409))) => {
                self.drains.remove(&ordinal);
                None
            }
            (Ask::Cancel, _, Ok(_) | Err(_)) => {
                drain.back_off(now);
                None
            }
            // Its answer came after the decision to take the drain back.
            (Ask::Drain | Ask::Look, DrainState::Cancelling, _) => None,
            (Ask::Drain | Ask::Look, _, Ok(PodDrain { state: PodState::Drained, spool_records })) => {
                match spool_records {
                    Some(0) => {
                        self.parked.forget(ordinal);
                        drain.drained(now, DrainState::Drained)
                    }
                    Some(_) | None if is_stopping => {
                        self.parked.park(ordinal, spool_records);
                        drain.drained(now, DrainState::Parked)
                    }
                    Some(_) | None => {
                        drain.serve_first = true;
                        drain.retry_at = now;
                        drain.enter(DrainState::Spooled, now);
                        None
                    }
                }
            }
            (Ask::Drain | Ask::Look, _, Ok(PodDrain { state, .. })) => drain.drains_on(now, ask, state),
            (Ask::Drain | Ask::Look, _, Err(reason)) => drain.no_reply(now, ask, reason),
        };
        self.ended.extend(ended);
    }
}

impl Drain {
    /// `state`: what that makes of it.
    fn drained(&mut self, now: Duration, state: DrainState) -> Option<DrainEnd> {
        let is_news = self.state != state;
        self.failures = 0;
        self.enter(state, now);
        is_news.then_some(DrainEnd::Drained)
    }

    fn drains_on(&mut self, now: Duration, ask: Ask, said: PodState) -> Option<DrainEnd> {
        match (said, self.state) {
            (PodState::Draining, DrainState::Stuck) => self.back_off(now),
            // It had its time.
            (_, DrainState::Parked) => {}
            // Started anew meanwhile.
            (PodState::Serving, _) if ask == Ask::Look => self.enter(DrainState::Unknown, now),
            (PodState::Serving, _) => return Some(self.refuse(None, now)),
            (PodState::Draining | PodState::Drained | PodState::Restarting, _) => {
                self.enter(DrainState::Draining, now);
            }
        }
        None
    }

    fn no_reply(&mut self, now: Duration, ask: Ask, reason: NoReply) -> Option<DrainEnd> {
        if ask == Ask::Look {
            self.failures = self.failures.saturating_add(1);
            if self.state == DrainState::Drained && self.failures >= SILENT_MAX {
                self.enter(DrainState::Unknown, now);
            }
            return None;
        }
        let status = match reason {
            NoReply::Silent => None,
            NoReply::Status(status) => Some(status),
        };
        Some(self.refuse(status, now))
    }
}
