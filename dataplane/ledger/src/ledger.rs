//! The ledger as its users see it: append, read, watch its state, drain.
//!
//! Owns the tasks behind it (writers, health check, partitions) and the answer to "can it take events now". Promises:
//! an admitted request is committed or answered with an error, whether or not its caller still waits; nothing is
//! admitted while the database is known to be away.

use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::Pool;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use crate::commit::{CommitError, Receipt};
use crate::error::Class;
use crate::id::Day;
use crate::metrics::{Metrics, Summary};
use crate::postgres::{Connection, Database, describe};
use crate::queue::{Depth, Queue, QueueConfig, Refusal};
use crate::schema::{self, SchemaError};
use crate::submission::Submission;
use crate::writer::{self, unix_ms};

const HEALTH_INTERVAL: Duration = Duration::from_secs(1);
const HEALTH_TIMEOUT: Duration = Duration::from_secs(3);
/// Tomorrow's partition is made at the latest this long before midnight.
const PARTITION_INTERVAL: Duration = Duration::from_secs(3600);
const OPEN_RETRY: Duration = Duration::from_millis(500);

/// What a ledger needs to start.
#[derive(Debug, Clone)]
pub struct Config {
    /// Name of the ledger: lower-case letters, digits and dashes.
    pub name: String,
    /// Where it is stored.
    pub database: Database,
    /// Commits under way at the same time, each with a connection of its own.
    pub writers: usize,
    /// Connections for reads. Beside them and the writers' there is one for the health check.
    pub read_connections: usize,
    /// Bounds of the queue.
    pub queue: QueueConfig,
}

/// Whether the ledger can take events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Availability {
    /// The database has not been reached yet.
    Starting {
        /// Why not, once that is known.
        reason: Option<Arc<str>>,
    },
    /// Commits go through.
    Available,
    /// The database is away.
    Unavailable {
        /// What it said last.
        reason: Arc<str>,
    },
}

/// Why a request was not acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// Not admitted.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The database is known to be away.
    #[error("the database is not available")]
    Unavailable,
    /// Admitted, but not committed.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

impl AppendError {
    /// What the caller does next.
    #[must_use]
    pub fn class(self) -> Class {
        match self {
            Self::Refused(Refusal::Full) => Class::Overloaded,
            Self::Refused(Refusal::TooLarge) => Class::Invalid,
            Self::Refused(Refusal::Closed) | Self::Unavailable => Class::Unavailable,
            Self::Commit(error) => error.class(),
        }
    }
}

/// Why a ledger could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A metric of the same name is registered already.
    #[error("cannot register the ledger's metrics")]
    Metrics(#[from] prometheus::Error),
    /// The pool's settings are inconsistent.
    #[error("cannot set up the connection pool")]
    Pool(#[from] deadpool_postgres::BuildError),
}

/// What the ledger's tasks share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) name: String,
    pub(crate) database: Database,
    pub(crate) pool: Pool,
    pub(crate) queue: Queue,
    pub(crate) metrics: Metrics,
    /// One erasure at a time: each holds a connection beside the pool's.
    pub(crate) erasing: Semaphore,
    availability: watch::Sender<Availability>,
}

impl Shared {
    pub(crate) fn is_available(&self) -> bool {
        *self.availability.borrow() == Availability::Available
    }

    pub(crate) fn set_available(&self) {
        let changed = self.availability.send_if_modified(|now| {
            let changed = *now != Availability::Available;
            *now = Availability::Available;
            // Under the same lock, so that the gauge never contradicts the state.
            self.metrics.set_database_up(true);
            changed
        });
        if changed {
            tracing::info!("the database is available");
        }
    }

    pub(crate) fn set_unavailable(&self, reason: &str) {
        let mut was_available = false;
        self.availability.send_modify(|now| {
            was_available = *now == Availability::Available;
            *now = Availability::Unavailable { reason: reason.into() };
            self.metrics.set_database_up(false);
        });
        if was_available {
            tracing::warn!(reason, "the database is not available: events are refused until it is back");
        }
    }
}

/// A handle to a running ledger; cheap to clone.
#[derive(Debug, Clone)]
pub struct Ledger {
    shared: Arc<Shared>,
}

/// The ledger's tasks; awaited by its owner.
#[derive(Debug)]
pub struct Tasks(JoinSet<()>);

impl Tasks {
    /// Waits until the ledger has drained after [`Ledger::close`].
    ///
    /// # Panics
    /// When one of the tasks panicked: the state is then unknown and the process must end.
    pub async fn finished(mut self) {
        while let Some(ended) = self.0.join_next().await {
            ended.expect("a task of the ledger panicked");
        }
    }
}

impl Ledger {
    /// Starts the ledger's tasks. The database may still be absent: the ledger opens when it comes.
    ///
    /// # Errors
    /// When metrics or the pool cannot be set up.
    pub fn start(config: Config, registry: &prometheus::Registry) -> Result<(Self, Tasks), StartError> {
        let Config { name, database, writers, read_connections, queue } = config;
        let shared = Arc::new(Shared {
            name,
            pool: database.pool(read_connections)?,
            database,
            metrics: Metrics::register(registry, &queue)?,
            queue: Queue::new(queue),
            erasing: Semaphore::new(1),
            availability: watch::Sender::new(Availability::Starting { reason: None }),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(supervise(Arc::clone(&shared), writers));
        Ok((Self { shared }, Tasks(tasks)))
    }

    /// Commits a request's events and returns when they are durable.
    ///
    /// Dropping the future does not undo anything: once admitted, the events are committed.
    ///
    /// # Errors
    /// When the request is refused, or its commit failed or is in doubt.
    pub async fn append(&self, submission: Submission) -> Result<Receipt, AppendError> {
        if !self.shared.is_available() {
            return Err(AppendError::Unavailable);
        }
        let admitted = Instant::now();
        let outcome = self.shared.queue.push(submission, admitted).inspect_err(|refusal| {
            self.shared.metrics.refused(*refusal);
        })?;
        // A writer that ended without an answer may have committed.
        let receipt = outcome.await.unwrap_or(Err(CommitError::OutcomeUnknown))?;
        self.shared.metrics.appended(admitted.elapsed());
        Ok(receipt)
    }

    /// Whether events can be taken now.
    #[must_use]
    pub fn availability(&self) -> Availability {
        self.shared.availability.borrow().clone()
    }

    /// Changes of [`Self::availability`].
    #[must_use]
    pub fn watch_availability(&self) -> watch::Receiver<Availability> {
        self.shared.availability.subscribe()
    }

    /// The ledger's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// What waits and what is being committed; also brings the gauges up to date.
    #[must_use]
    pub fn depth(&self) -> Depth {
        let depth = self.shared.queue.depth(Instant::now());
        self.shared.metrics.set_depth(depth);
        depth
    }

    /// The queue's bounds.
    #[must_use]
    pub fn queue_config(&self) -> &QueueConfig {
        self.shared.queue.config()
    }

    /// Recent rates and latencies.
    #[must_use]
    pub fn summary(&self) -> Summary {
        self.shared.metrics.summary()
    }

    /// Size of the pool for reads, and how many of its connections are free.
    #[must_use]
    pub fn pool_status(&self) -> deadpool_postgres::Status {
        self.shared.pool.status()
    }

    /// Admits nothing from now on. What was admitted is committed, then [`Tasks::finished`] returns.
    pub fn close(&self) {
        self.shared.queue.close();
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }
}

/// Opens the ledger, then runs its writers until the queue is closed and empty.
async fn supervise(shared: Arc<Shared>, writers: usize) {
    let mut background = JoinSet::new();
    background.spawn(tick(Arc::clone(&shared)));
    background.spawn(watch_health(Arc::clone(&shared)));
    let mut running = JoinSet::new();
    for _ in 0..writers {
        running.spawn(writer::run(Arc::clone(&shared)));
    }
    loop {
        tokio::select! {
            ended = running.join_next() => match ended {
                Some(ended) => ended.expect("a writer panicked"),
                None => break,
            },
            ended = background.join_next() => panic!("a background task of the ledger ended: {ended:?}"),
        }
    }
    background.shutdown().await;
}

async fn tick(shared: Arc<Shared>) {
    let mut second = tokio::time::interval(Duration::from_secs(1));
    second.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        second.tick().await;
        shared.metrics.tick();
    }
}

/// Opens the database, makes partitions ahead of time, and finds out when the database goes and comes back.
async fn watch_health(shared: Arc<Shared>) {
    while let Err(error) = open(&shared).await {
        let reason = describe(&error);
        tracing::warn!(reason, "cannot open the ledger yet");
        shared.availability.send_replace(Availability::Starting { reason: Some(reason.into()) });
        tokio::time::sleep(OPEN_RETRY).await;
    }
    shared.set_available();
    let mut connection = None;
    let mut partitions_made = Instant::now();
    let mut interval = tokio::time::interval(HEALTH_INTERVAL);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        match tokio::time::timeout(HEALTH_TIMEOUT, probe(&shared, &mut connection)).await {
            Ok(Ok(())) => shared.set_available(),
            Ok(Err(error)) => {
                connection = None;
                shared.set_unavailable(&error);
            }
            Err(_elapsed) => {
                connection = None;
                shared.set_unavailable("the database does not answer");
            }
        }
        if partitions_made.elapsed() >= PARTITION_INTERVAL && shared.is_available() {
            match make_partitions(&shared).await {
                Ok(()) => partitions_made = Instant::now(),
                Err(error) => {
                    tracing::warn!(reason = describe(&error), "cannot make tomorrow's partition yet");
                }
            }
        }
    }
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
    let old = |source| SchemaError::Sql { action: "drop old requests", source };
    schema::drop_old_requests(&mut client).await.map_err(old)
}

/// Asks whether the database would take a commit: a standby answers reads and still cannot. On a connection of its own,
/// since slow reads may hold all of the pool's while commits go through.
async fn probe(shared: &Shared, connection: &mut Option<Connection>) -> Result<(), String> {
    let open = match connection.take() {
        Some(open) => open,
        None => shared.database.connect().await.map_err(|error| describe(&error))?,
    };
    let row =
        open.client.query_one("SELECT pg_is_in_recovery()", &[]).await.map_err(|error| describe(&error))?;
    *connection = Some(open);
    if row.get(0) { Err("the database is a standby and takes no writes".to_owned()) } else { Ok(()) }
}
