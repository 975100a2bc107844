//! Whether the database takes commits: what writers and probes report goes in, who may go there comes out.
//!
//! Owns the circuit breaker, and the task that opens the database, probes it and makes partitions ahead of time. Never
//! admits or commits anything itself. Promises: readiness, metrics and log follow the breaker and so agree.
//!
//! The lock guards the breaker, is held for one decision, and never over an await.

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_postgres::Error;
use tokio_postgres::error::SqlState;

use crate::breaker::{Breaker, BreakerState, Probe};
use crate::id::Day;
use crate::ledger::Shared;
use crate::metrics::Metrics;
use crate::postgres::{Connection, describe};
use crate::schema::{self, SchemaError};
use crate::writer::unix_ms;

const PROBE_TIMEOUT: Duration = Duration::from_secs(3);
/// Tomorrow's partition is made at the latest this long before midnight.
const PARTITION_INTERVAL: Duration = Duration::from_secs(3600);
const OPEN_RETRY: Duration = Duration::from_millis(500);
/// Between two looks at the database while commits wait for the log.
const COMPARING_INTERVAL: Duration = Duration::from_secs(1);

/// Whether commits go through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Availability {
    /// The database has not been reached yet.
    Starting {
        /// Why not, once that is known.
        reason: Option<Arc<str>>,
    },
    /// The database is there. Commits wait until it was compared with the signed log: what is behind that must take none.
    Comparing,
    /// Commits go through.
    Available,
    /// The database is away.
    Unavailable {
        /// What it said last.
        reason: Arc<str>,
    },
}

impl Availability {
    /// Whether the database would take commits, as far as is known.
    #[must_use]
    pub fn database_is_up(&self) -> bool {
        matches!(self, Self::Comparing | Self::Available)
    }
}

/// The breaker, and who watches it.
#[derive(Debug)]
pub(crate) struct Health {
    breaker: Mutex<Breaker>,
    availability: watch::Sender<Availability>,
    /// Told when the next probe may be due earlier than it was.
    changed: Notify,
}

impl Health {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            breaker: Mutex::new(Breaker::new(now)),
            availability: watch::Sender::new(Availability::Starting { reason: None }),
            changed: Notify::new(),
        }
    }

    /// Whether a request may go to the database now. Asked once per request.
    pub(crate) fn admit(&self) -> bool {
        self.lock().admit()
    }

    /// Whether commits are known not to go through. Before the first attempt to open it is over, nobody knows.
    pub(crate) fn is_away(&self) -> bool {
        match &*self.availability.borrow() {
            Availability::Available | Availability::Starting { reason: None } => false,
            Availability::Starting { reason: Some(_) }
            | Availability::Comparing
            | Availability::Unavailable { .. } => true,
        }
    }

    /// The breaker's state.
    pub(crate) fn state(&self) -> BreakerState {
        self.lock().state()
    }

    /// Changes of what is known about the database.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Availability> {
        self.availability.subscribe()
    }

    /// A commit succeeded.
    pub(crate) fn committed(&self, metrics: &Metrics) {
        self.update(metrics, None, |breaker, now| breaker.committed(now));
    }

    /// An attempt at a commit failed for a reason that lies with the database.
    pub(crate) fn failed(&self, metrics: &Metrics, reason: &str) {
        self.update(metrics, Some(reason), |breaker, now| breaker.failed(now));
    }

    fn probed(&self, metrics: &Metrics, probe: Probe) {
        self.update(metrics, None, |breaker, now| breaker.probed(probe, now));
    }

    fn probe_failed(&self, metrics: &Metrics, reason: &str) {
        self.update(metrics, Some(reason), |breaker, now| breaker.probe_failed(now));
    }

    /// Changes the breaker, and everything that shows its state with it.
    fn update(&self, metrics: &Metrics, reason: Option<&str>, change: impl FnOnce(&mut Breaker, Instant)) {
        let mut breaker = self.lock();
        let before = breaker.state();
        change(&mut breaker, Instant::now());
        let after = breaker.state();
        let shown = self.availability.borrow().clone();
        let next = match (after, shown, reason) {
            (BreakerState::Closed, ..) => Availability::Available,
            // Not reached yet is not the same as lost.
            (_, starting @ (Availability::Starting { .. } | Availability::Comparing), _) => starting,
            (_, Availability::Unavailable { .. } | Availability::Available, Some(reason)) => {
                Availability::Unavailable { reason: reason.into() }
            }
            (_, unavailable @ Availability::Unavailable { .. }, None) => unavailable,
            (_, Availability::Available, None) => unreachable!("only a failure opens the breaker"),
        };
        self.availability.send_if_modified(|now| {
            let changed = *now != next;
            *now = next;
            changed
        });
        // Under the lock, so that neither the gauge nor the log contradicts the order of events.
        metrics.set_breaker(before, after);
        match (before, after) {
            (BreakerState::Closed | BreakerState::HalfOpen, BreakerState::Open) => {
                tracing::warn!(reason, "the circuit breaker is open: the database does not take commits");
            }
            (BreakerState::Open | BreakerState::HalfOpen, BreakerState::Closed) => {
                tracing::info!("the circuit breaker is closed: the database takes commits");
            }
            (BreakerState::Open, BreakerState::HalfOpen) => {
                tracing::info!("the circuit breaker is half open: the database wrote a probe");
            }
            _ => {}
        }
        drop(breaker);
        if before != after {
            self.changed.notify_one();
        }
    }

    fn cannot_open(&self, reason: &str) {
        self.availability.send_replace(Availability::Starting { reason: Some(reason.into()) });
    }

    /// The database is open, and commits wait for the log.
    fn compares(&self, metrics: &Metrics, looked: Result<(), String>) {
        metrics.set_database_up(looked.is_ok());
        self.availability.send_replace(match looked {
            Ok(()) => Availability::Comparing,
            Err(reason) => Availability::Unavailable { reason: reason.into() },
        });
    }

    fn lock(&self) -> MutexGuard<'_, Breaker> {
        // A breaker is one plain value: there is no half-changed state to fear.
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens the database, makes partitions ahead of time, and finds out when the database goes and comes back.
pub(crate) async fn watch(shared: Arc<Shared>) {
    let Shared { health, metrics, .. } = &*shared;
    while let Err(error) = open(&shared).await {
        let reason = describe(&error);
        tracing::warn!(reason, "cannot open the ledger yet");
        health.cannot_open(&reason);
        tokio::time::sleep(OPEN_RETRY).await;
    }
    let mut connection = None;
    log_checked(&shared, &mut connection).await;
    // Whoever could migrate the schema can commit.
    health.committed(metrics);
    let mut partitions_made = Instant::now();
    loop {
        let changed = health.changed.notified();
        let (due, probe) = health.lock().next_probe();
        tokio::select! {
            () = tokio::time::sleep_until(due) => {}
            // The breaker may want another look by now.
            () = changed => continue,
        }
        match look(&shared, &mut connection, probe).await {
            Ok(()) => health.probed(metrics, probe),
            Err(reason) => health.probe_failed(metrics, &reason),
        }
        if partitions_made.elapsed() >= PARTITION_INTERVAL && health.state() == BreakerState::Closed {
            match make_partitions(&shared).await {
                Ok(()) => partitions_made = Instant::now(),
                Err(error) => {
                    tracing::warn!(reason = describe(&error), "cannot make tomorrow's partition yet");
                }
            }
        }
    }
}

/// Waits until the log was compared with the database: events must not be added to one that is behind it. The anchor may keep
/// this waiting for long, and the database may go meanwhile.
async fn log_checked(shared: &Shared, connection: &mut Option<Connection>) {
    let Shared { health, metrics, log, .. } = shared;
    let mut checked = pin!(log.checked());
    health.compares(metrics, Ok(()));
    loop {
        let looked = async {
            tokio::time::sleep(COMPARING_INTERVAL).await;
            look(shared, connection, Probe::Answers).await
        };
        tokio::select! {
            () = &mut checked => break,
            looked = looked => health.compares(metrics, looked),
        }
    }
    log.metrics.checked.set(1);
}

async fn open(shared: &Shared) -> Result<(), SchemaError> {
    let mut client = shared.pool.get().await?;
    schema::migrate(&mut client, &shared.name).await?;
    drop(client);
    make_partitions(shared).await
}

/// Makes today's and tomorrow's, and drops those of requests that are old.
async fn make_partitions(shared: &Shared) -> Result<(), SchemaError> {
    let mut client = shared.pool.get().await?;
    let today = Day::of_unix_ms(unix_ms());
    for day in [today, today.next()] {
        let partition = |source| SchemaError::Sql { action: "make a partition", source };
        schema::ensure_partition(&mut client, day).await.map_err(partition)?;
        schema::ensure_request_partitions(&mut client, day).await.map_err(partition)?;
    }
    if let Err(error) = schema::drop_old_requests(&mut client).await {
        // They only take room. Somebody reads them, perhaps a backup, and there is another try.
        tracing::warn!(reason = describe(&error), "cannot drop old requests yet");
    }
    Ok(())
}

/// Probes the database on a connection of its own, since slow reads may hold all of the pool's while commits go through.
/// A connection that was idle may have been closed by anything in between; a new one tells.
async fn look(shared: &Shared, connection: &mut Option<Connection>, probe: Probe) -> Result<(), String> {
    let asked = async {
        if let Some(open) = connection.take()
            && let Ok(()) = ask(&open, probe).await
        {
            *connection = Some(open);
            return Ok(());
        }
        let open = shared.database.connect().await.map_err(|error| describe(&error))?;
        ask(&open, probe).await?;
        *connection = Some(open);
        Ok(())
    };
    match tokio::time::timeout(PROBE_TIMEOUT, asked).await {
        Ok(outcome) => outcome,
        Err(_elapsed) => Err("the database does not answer".to_owned()),
    }
}

/// A standby and a server that was set read-only answer reads, and still cannot commit.
const READ_ONLY: &str = "SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean";
/// A transaction that writes some 60 bytes of WAL and is flushed like every commit, and touches no table: nothing to
/// bloat, nothing to migrate, and no privilege that is not everybody's.
const WRITE: &str = "SELECT pg_logical_emit_message(true, 'certeus', 'probe')";

async fn ask(connection: &Connection, probe: Probe) -> Result<(), String> {
    let row = connection.client.query_one(READ_ONLY, &[]).await.map_err(|error| describe(&error))?;
    if row.get(0) {
        return Err("the database is a standby or read-only and takes no writes".to_owned());
    }
    match probe {
        Probe::Answers => Ok(()),
        Probe::Writes => match connection.client.execute(WRITE, &[]).await {
            Ok(_row) => Ok(()),
            // Whoever took the function away must not keep the ledger from the database: then requests are the probe.
            Err(error) if is_forbidden(&error) => Ok(()),
            Err(error) => Err(describe(&error)),
        },
    }
}

fn is_forbidden(error: &Error) -> bool {
    matches!(error.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE | &SqlState::UNDEFINED_FUNCTION))
}
