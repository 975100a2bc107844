//! The phases of a pod's life, and the order in which it drains.
//!
//! Owns the phase. Draining never loses a request that the pod has begun to read: it first sends clients elsewhere, then stops
//! taking events, then waits for what it admitted. Who asked a pod to drain may change its mind: a pod that only sends clients
//! elsewhere serves on, and one that has closed its ledger ends when it has drained, to be started anew.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use certeus_ledger::{Ledger, Tasks};
use tokio::sync::{Notify, watch};

/// While lame, the pod serves on but asks each client to reconnect, which takes it to another pod.
const LAME_DUCK: Duration = Duration::from_secs(3);
/// So long new connections come to an address that is balanced by readiness after the pod is no longer ready: two readiness
/// probes, 2 s apart, have to fail, and every node has to hear of it.
const ROUTED: Duration = Duration::from_secs(8);
/// Connections get this long to end after the last reply.
const LAST_CONNECTIONS: Duration = Duration::from_secs(2);

/// Where a pod stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Takes events.
    Serving,
    /// Still takes events, but is not ready and asks clients to reconnect.
    LameDuck,
    /// Takes no events; commits what it admitted.
    Flushing,
    /// Nothing is waiting or in flight. What the spool holds, if the database is away, stays on its volume.
    Drained,
}

/// What becomes of a drain that is no longer wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cancelled {
    /// The pod serves, as if nothing had been.
    Serving,
    /// The ledger is closed: the process ends once it has drained, and whoever runs it starts it anew.
    Restarting,
    /// The process was told to end: it drains on.
    Ending,
}

/// The pod's phase and its API connections.
#[derive(Debug)]
pub(crate) struct Lifecycle {
    phase: watch::Sender<Phase>,
    /// Clients come to an address of the pod's own, for as long as somebody sends them there.
    own_address: bool,
    /// The process was told to end.
    ending: AtomicBool,
    /// The drain was cancelled too late.
    restarting: watch::Sender<bool>,
    connections: AtomicUsize,
    /// Told when the last connection ends.
    idle: Notify,
}

/// Counts one API connection while it lives.
#[derive(Debug)]
pub(crate) struct ConnectionGuard(Arc<Lifecycle>);

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        if self.0.connections.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}

impl Lifecycle {
    /// A pod that serves.
    #[must_use]
    pub(crate) fn new(own_address: bool) -> Arc<Self> {
        Arc::new(Self {
            phase: watch::Sender::new(Phase::Serving),
            own_address,
            ending: AtomicBool::new(false),
            restarting: watch::Sender::new(false),
            connections: AtomicUsize::new(0),
            idle: Notify::new(),
        })
    }

    /// The phase now.
    #[must_use]
    pub(crate) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Waits until the pod is in this phase or past it.
    pub(crate) async fn reached(&self, phase: Phase) {
        // The sender lives in `self`, so this waits for the phase and nothing else.
        let _phase = self.phase.subscribe().wait_for(|now| *now >= phase).await.map(|now| *now);
    }

    /// Waits while clients are only asked to go elsewhere. Returns what came then.
    pub(crate) async fn left_lame_duck(&self) -> Phase {
        let mut phase = self.phase.subscribe();
        // As above.
        phase.wait_for(|now| *now != Phase::LameDuck).await.map_or(Phase::Drained, |now| *now)
    }

    /// Whether a drain was cancelled too late for the process to serve again.
    #[must_use]
    pub(crate) fn is_restarting(&self) -> bool {
        *self.restarting.borrow()
    }

    /// Waits until a drain is cancelled too late for the process to serve again.
    pub(crate) async fn restart_asked(&self) {
        // As above.
        let _asked = self.restarting.subscribe().wait_for(|asked| *asked).await.map(|asked| *asked);
    }

    /// Open API connections.
    #[must_use]
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Acquire)
    }

    /// Counts a new API connection.
    #[must_use]
    pub(crate) fn connected(self: &Arc<Self>) -> ConnectionGuard {
        self.connections.fetch_add(1, Ordering::AcqRel);
        ConnectionGuard(Arc::clone(self))
    }

    /// Begins to drain; a second call changes nothing.
    pub(crate) fn begin_drain(&self) {
        let began = self.phase.send_if_modified(|phase| {
            let serving = *phase == Phase::Serving;
            if serving {
                *phase = Phase::LameDuck;
            }
            serving
        });
        if began {
            tracing::info!("draining: clients are asked to reconnect");
        }
    }

    /// Begins to drain for good: the process ends after it.
    pub(crate) fn end(&self) {
        // Before the phase changes: `cancel_drain` looks at it under the phase's lock.
        self.ending.store(true, Ordering::Release);
        self.begin_drain();
    }

    /// Takes back [`begin_drain`](Self::begin_drain).
    pub(crate) fn cancel_drain(&self) -> Cancelled {
        let mut cancelled = Cancelled::Serving;
        let changed = self.phase.send_if_modified(|phase| {
            cancelled = match *phase {
                Phase::Serving | Phase::LameDuck if !self.ending.load(Ordering::Acquire) => {
                    Cancelled::Serving
                }
                _ if self.ending.load(Ordering::Acquire) => Cancelled::Ending,
                _ => Cancelled::Restarting,
            };
            let back = cancelled == Cancelled::Serving && *phase == Phase::LameDuck;
            if back {
                *phase = Phase::Serving;
            }
            back
        });
        if changed {
            tracing::info!("the drain was cancelled: the pod serves on");
        }
        if cancelled == Cancelled::Restarting && !self.restarting.send_replace(true) {
            tracing::info!("the drain was cancelled too late: the pod ends once it has drained");
        }
        cancelled
    }

    /// Waits until draining begins, then carries it out.
    pub(crate) async fn drain(&self, ledger: &Ledger, tasks: Tasks) {
        let mut finished = std::pin::pin!(tasks.finished());
        loop {
            tokio::select! {
                // Only the end of the process may end the ledger's tasks before it drains: a panic in them gets here.
                () = &mut finished => return,
                () = self.reached(Phase::LameDuck) => {}
            }
            tokio::select! {
                () = self.sent_elsewhere() => {}
                _cancelled = self.left_lame_duck() => {}
            }
            let flushing = self.phase.send_if_modified(|phase| {
                let lame = *phase == Phase::LameDuck;
                if lame {
                    *phase = Phase::Flushing;
                }
                lame
            });
            if flushing {
                break;
            }
        }
        ledger.close();
        finished.await;
        self.no_connections(LAST_CONNECTIONS).await;
        self.phase.send_replace(Phase::Drained);
        let spooled = ledger.spool_status().map_or(0, |spool| spool.records);
        tracing::info!(spooled, "drained: everything admitted is committed, spooled or answered");
    }

    /// Waits until clients had the time to go elsewhere.
    async fn sent_elsewhere(&self) {
        // Whoever ends the process has seen to it that nobody is sent here any more.
        let is_routed = self.own_address && !self.ending.load(Ordering::Acquire);
        let routed = if is_routed { ROUTED } else { Duration::ZERO };
        tokio::join!(tokio::time::sleep(routed), self.no_connections(LAME_DUCK));
    }

    /// Waits until no API connection is left, or the time is over.
    async fn no_connections(&self, limit: Duration) {
        let none = async {
            loop {
                let idle = self.idle.notified();
                if self.connections() == 0 {
                    return;
                }
                idle.await;
            }
        };
        // Either way draining goes on.
        drop(tokio::time::timeout(limit, none).await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_is_taken_back_until_the_ledger_closes() {
        let lifecycle = Lifecycle::new(true);
        assert_eq!(lifecycle.cancel_drain(), Cancelled::Serving, "there is none");
        lifecycle.begin_drain();
        assert_eq!((lifecycle.cancel_drain(), lifecycle.phase()), (Cancelled::Serving, Phase::Serving));
        for closed in [Phase::Flushing, Phase::Drained] {
            lifecycle.phase.send_replace(closed);
            assert_eq!((lifecycle.cancel_drain(), lifecycle.phase()), (Cancelled::Restarting, closed));
            assert!(lifecycle.is_restarting());
        }
    }

    #[test]
    fn a_process_that_ends_drains_whatever_is_said() {
        let lifecycle = Lifecycle::new(true);
        lifecycle.end();
        assert_eq!((lifecycle.cancel_drain(), lifecycle.phase()), (Cancelled::Ending, Phase::LameDuck));
        lifecycle.phase.send_replace(Phase::Drained);
        assert_eq!(lifecycle.cancel_drain(), Cancelled::Ending);
        assert!(!lifecycle.is_restarting());
    }
}
