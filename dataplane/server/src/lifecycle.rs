//! The phases of a pod's life, and the order in which it drains.
//!
//! Owns the phase. Draining never loses a request that the pod has begun to read: it first sends clients elsewhere, then stops
//! taking events, then waits for what it admitted.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use certeus_ledger::{Ledger, Tasks};
use tokio::sync::{Notify, watch};

/// While lame, the pod serves on but asks each client to reconnect, which takes it to another pod.
const LAME_DUCK: Duration = Duration::from_secs(3);
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

/// The pod's phase and its API connections.
#[derive(Debug)]
pub(crate) struct Lifecycle {
    phase: watch::Sender<Phase>,
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
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            phase: watch::Sender::new(Phase::Serving),
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

    /// Waits until draining begins, then carries it out.
    pub(crate) async fn drain(&self, ledger: &Ledger, tasks: Tasks) {
        let mut finished = std::pin::pin!(tasks.finished());
        tokio::select! {
            // Only the end of the process may end the ledger's tasks before it drains: a panic in them gets here.
            () = &mut finished => return,
            () = self.reached(Phase::LameDuck) => {}
        }
        self.no_connections(LAME_DUCK).await;
        self.phase.send_replace(Phase::Flushing);
        ledger.close();
        finished.await;
        self.no_connections(LAST_CONNECTIONS).await;
        self.phase.send_replace(Phase::Drained);
        let spooled = ledger.spool_status().map_or(0, |spool| spool.records);
        tracing::info!(spooled, "drained: everything admitted is committed, spooled or answered");
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
