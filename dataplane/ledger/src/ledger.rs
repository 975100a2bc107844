//! The ledger as its users see it: append, read, watch its state, drain.
//!
//! Owns the tasks behind it (writers, health, replay) and the way of a request through them. Promises: an admitted request
//! is committed or answered with an error, whether or not its caller still waits; nothing goes to the database while the
//! circuit breaker is open; a producer's requests never overtake those of its that are in the spool.

use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::Pool;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use crate::breaker::BreakerState;
use crate::commit::{CommitError, Receipt};
use crate::error::Class;
use crate::field::{Decryptor, Encryption, Fields};
use crate::health::{self, Availability, Health};
use crate::log::{self, Log, LogConfig};
use crate::metrics::{LogMetrics, Metrics, Summary};
use crate::postgres::Database;
use crate::publication;
use crate::queue::{Depth, Queue, QueueConfig, Refusal};
use crate::request::{IdempotencyKey, Identity};
use crate::retention;
use crate::sealer;
use crate::spool::{self, Spool, SpoolConfig, SpoolError, SpoolStatus};
use crate::store::{ArchiveLocation, ArchiveStore};
use crate::submission::Submission;
use crate::writer::{self, unix_ms};

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
    /// Members of events that are stored encrypted, and the keys; `None` to store everything as received.
    pub encryption: Option<Arc<Encryption>>,
    /// What signs the log; `None`: nothing is signed. Signing takes one more connection.
    pub log: Option<LogConfig>,
    /// Where old events go; `None` keeps all of them in the database.
    pub archive: Option<ArchiveConfig>,
    /// Where requests are kept while the database is away; without it they are refused then.
    pub spool: Option<SpoolConfig>,
}

/// Where old events go, and when.
#[derive(Debug, Clone)]
pub struct ArchiveConfig {
    /// A folder or a bucket.
    pub location: ArchiveLocation,
    /// How long events stay in the database after the end of their day. `None`: no more are archived, those that were
    /// are read.
    pub keep: Option<Duration>,
}

/// How a request was acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Acknowledged {
    /// It is flushed in the database.
    Committed(Receipt),
    /// It is flushed in the pod's spool, and will be committed once the database is back.
    Spooled {
        /// Number of events.
        count: usize,
        /// Under which the same request, sent again, gets its receipt then. `None` for a producer's, which has its numbers.
        key: Option<IdempotencyKey>,
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
    /// The database was not compared with the signed log yet.
    #[error("the database was not compared with the signed log yet: nothing is committed before that")]
    LogUnchecked,
    /// The database does not have what the log was signed for.
    #[error("the database does not match the signed log: nothing is taken until that is put right")]
    LogRefused,
    /// Admitted, but not committed.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// The database is away, and the request did not get into the spool.
    #[error(transparent)]
    Spool(#[from] SpoolError),
}

impl AppendError {
    /// What the caller does next.
    #[must_use]
    pub fn class(self) -> Class {
        match self {
            Self::Refused(Refusal::Full) => Class::Overloaded,
            Self::Refused(Refusal::TooLarge) => Class::Invalid,
            Self::Refused(Refusal::Closed) | Self::Unavailable | Self::LogUnchecked => Class::Unavailable,
            Self::LogRefused => Class::Corrupt,
            Self::Commit(error) => error.class(),
            Self::Spool(error) => error.class(),
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
    /// The archive cannot be opened.
    #[error("cannot open the archive")]
    Archive(#[from] certeus_archive::LocationError),
    /// The spool's thread cannot be started.
    #[error("cannot start the spool's thread")]
    Spool(#[source] std::io::Error),
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
    /// Turns for making and publishing bundles.
    pub(crate) bundling: Semaphore,
    pub(crate) health: Health,
    pub(crate) encryption: Option<Arc<Encryption>>,
    pub(crate) log: Log,
    pub(crate) archive: Option<ArchiveStore>,
    pub(crate) spool: Option<Arc<Spool>>,
    closing: watch::Sender<bool>,
}

impl Shared {
    /// Whether a receipt must not be given, as the database has lost signed events; the log then refuses all further ones.
    /// `sealed` is what was signed before the request was sent.
    pub(crate) fn contradicts(&self, receipt: &Receipt, sealed: u64) -> bool {
        if receipt.first_index < sealed && !receipt.replayed {
            // Stored, but where other events were signed.
            self.log.refuse(&log::Refusal::Behind { committed: receipt.first_index, signed: sealed });
        }
        self.log.refuses()
    }

    /// Whether a request had better go to the spool than wait for the database.
    pub(crate) fn prefers_spool(&self) -> bool {
        self.spool.is_some() && self.health.state() == BreakerState::Open
    }

    /// Whether there is a spool that takes another request now.
    pub(crate) fn spool_takes_requests(&self) -> bool {
        self.spool.as_ref().is_some_and(|spool| spool.status().takes_requests())
    }

    /// Whether commits are believed to go through.
    pub(crate) fn is_available(&self) -> bool {
        self.health.state() != BreakerState::Open
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
        let Config { name, database, writers, read_connections, queue, encryption, log, archive, spool } =
            config;
        let keep = archive.as_ref().and_then(|archive| archive.keep);
        let shared = Arc::new(Shared {
            name,
            pool: database.pool(read_connections)?,
            database,
            metrics: Metrics::register(registry, &queue)?,
            queue: Queue::new(queue),
            erasing: Semaphore::new(1),
            bundling: Semaphore::new(publication::TURNS),
            health: Health::new(Instant::now()),
            encryption,
            archive: archive.map(|archive| ArchiveStore::open(&archive.location)).transpose()?,
            log: Log::new(log, LogMetrics::register(registry)?),
            spool: spool.map(Spool::start).transpose().map_err(StartError::Spool)?.map(Arc::new),
            closing: watch::Sender::new(false),
        });
        let mut tasks = JoinSet::new();
        let ledger = Self { shared };
        tasks.spawn(supervise(ledger.clone(), writers, keep));
        Ok((ledger, Tasks(tasks)))
    }

    /// Commits a request's events and returns when they are durable, without recourse to the spool.
    ///
    /// Dropping the future does not undo anything: once admitted, the events are committed.
    ///
    /// # Errors
    /// When the request is refused, or its commit failed or is in doubt.
    pub async fn append(&self, submission: Submission) -> Result<Receipt, AppendError> {
        if self.shared.log.refuses() {
            return Err(AppendError::LogRefused);
        }
        if !self.shared.health.admit() {
            return Err(match self.availability() {
                Availability::Comparing => AppendError::LogUnchecked,
                Availability::Starting { .. }
                | Availability::Available
                | Availability::Unavailable { .. } => AppendError::Unavailable,
            });
        }
        self.commit(submission).await.map_err(|(error, _)| error)
    }

    /// Makes a request's events durable: in the database, or while that is away in the spool. `options` is whatever changes
    /// the request's outcome beside its body, as in [`Submission::identified`].
    ///
    /// # Errors
    /// As [`Self::append`]; with a spool also when that is full or failed.
    pub async fn submit(&self, submission: Submission, options: &[u8]) -> Result<Acknowledged, AppendError> {
        if self.shared.log.refuses() {
            return Err(AppendError::LogRefused);
        }
        let Some(spool) = &self.shared.spool else {
            return self.append(submission).await.map(Acknowledged::Committed);
        };
        // What the queue would refuse for its size must not lie in the spool, where it could never be committed.
        self.shared
            .queue
            .check_size(&submission)
            .inspect_err(|refusal| self.shared.metrics.refused(*refusal))?;
        let is_producers = matches!(submission.identity(), Some((Identity::Producer(_), _)));
        // A producer's requests stay in order: behind those in the spool there is only the spool.
        let behind = is_producers && !spool.is_empty();
        if behind || !self.shared.health.admit() {
            return if behind || self.shared.health.is_away() {
                self.spool(spool, submission, options).await
            } else {
                Err(AppendError::Unavailable)
            };
        }
        match self.commit(submission).await {
            Ok(receipt) => Ok(Acknowledged::Committed(receipt)),
            Err((error, submission)) => match (error, submission) {
                // Nothing is stored.
                (AppendError::Commit(CommitError::Unavailable), Some(submission)) => {
                    self.spool(spool, submission, options).await
                }
                // Perhaps it is, and then its identity keeps the replay from storing it again.
                (AppendError::Commit(CommitError::OutcomeUnknown), Some(submission))
                    if submission.identity().is_some() =>
                {
                    let spooled = self.spool(spool, submission, options).await;
                    // That the spool did not take it makes nothing certain.
                    spooled.map_err(|_refused| CommitError::OutcomeUnknown.into())
                }
                (error, _) => Err(error),
            },
        }
    }

    async fn spool(
        &self,
        spool: &Spool,
        submission: Submission,
        options: &[u8],
    ) -> Result<Acknowledged, AppendError> {
        if *self.shared.closing.borrow() {
            self.shared.metrics.refused(Refusal::Closed);
            return Err(Refusal::Closed.into());
        }
        let submission = if submission.identity().is_some() {
            submission
        } else {
            submission
                .identified(Identity::Key(IdempotencyKey::from_bits(rand::random())), options)
                .expect("a key suits any events")
        };
        spool.append(unix_ms(), &submission).await?;
        self.shared.metrics.spool_appended.inc();
        let key = match submission.identity() {
            Some((Identity::Key(key), _)) => Some(key.clone()),
            Some((Identity::Producer(_), _)) | None => None,
        };
        Ok(Acknowledged::Spooled { count: submission.len(), key })
    }

    /// Commits a request; what fails is given back, unless it was never admitted.
    async fn commit(&self, submission: Submission) -> Result<Receipt, (AppendError, Option<Submission>)> {
        let sealed = self.shared.log.size();
        let admitted = Instant::now();
        let outcome = self.shared.queue.push(submission, admitted).map_err(|refusal| {
            self.shared.metrics.refused(refusal);
            (refusal.into(), None)
        })?;
        match outcome.await {
            Ok(Ok(receipt)) if self.shared.contradicts(&receipt, sealed) => {
                Err((CommitError::OutcomeUnknown.into(), None))
            }
            Ok(Ok(receipt)) => {
                self.shared.metrics.appended(admitted.elapsed());
                Ok(receipt)
            }
            Ok(Err(failed)) => Err((failed.error.into(), Some(failed.submission))),
            // A writer that ended without an answer may have committed.
            Err(_ended) => Err((CommitError::OutcomeUnknown.into(), None)),
        }
    }

    /// Whether commits do not go through and the spool takes the database's place.
    #[must_use]
    pub fn is_spooling(&self) -> bool {
        self.shared.health.is_away() && self.shared.spool_takes_requests()
    }

    /// What is known about the spool, if there is one; also brings its gauges up to date.
    #[must_use]
    pub fn spool_status(&self) -> Option<SpoolStatus> {
        let status = self.shared.spool.as_ref()?.status();
        self.shared.metrics.set_spool(&status, status.oldest_age());
        Some(status)
    }

    /// The state of the circuit breaker between the ledger and its database.
    #[must_use]
    pub fn breaker(&self) -> BreakerState {
        self.shared.health.state()
    }

    /// Whether commits go through.
    #[must_use]
    pub fn availability(&self) -> Availability {
        self.shared.health.subscribe().borrow().clone()
    }

    /// Changes of [`Self::availability`].
    #[must_use]
    pub fn watch_availability(&self) -> watch::Receiver<Availability> {
        self.shared.health.subscribe()
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
        self.shared.log.observe_age();
        depth
    }

    /// The queue's bounds.
    #[must_use]
    pub fn queue_config(&self) -> &QueueConfig {
        self.shared.queue.config()
    }

    /// The members of events that are encrypted before they are stored.
    #[must_use]
    pub fn encrypted_fields(&self) -> Option<&Fields> {
        let encryption = self.shared.encryption.as_deref()?;
        (!encryption.fields.is_empty()).then_some(&encryption.fields)
    }

    /// Decrypts events that were read, for callers who are allowed to. What proofs cover is the event as it was read.
    #[must_use]
    pub fn decryptor(&self) -> Decryptor<'_> {
        Decryptor::new(self.shared.encryption.as_deref().map(|encryption| &encryption.keyring), self.name())
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

    /// Admits nothing from now on. What was admitted is committed, what is in the spool too if the database is there; then
    /// [`Tasks::finished`] returns. What stays in the spool is replayed at the next start.
    pub fn close(&self) {
        self.shared.queue.close();
        self.shared.closing.send_replace(true);
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

/// Opens the ledger, then runs its writers until the queue is closed and empty.
async fn supervise(ledger: Ledger, writers: usize, keep: Option<Duration>) {
    let shared = Arc::clone(ledger.shared());
    let mut background = JoinSet::new();
    background.spawn(sealer::run(ledger));
    background.spawn(tick(Arc::clone(&shared)));
    background.spawn(health::watch(Arc::clone(&shared)));
    if let Some(keep) = keep {
        background.spawn(retention::run(Arc::clone(&shared), keep));
    }
    let mut running = JoinSet::new();
    let mut plain_writers = writers;
    if let Some(spool) = &shared.spool {
        // One window is replayed at a time, so there is never a second one to wait for.
        let (batches, replayed) = mpsc::channel(1);
        let closing = shared.closing.subscribe();
        running.spawn(spool::replay(Arc::clone(&shared), Arc::clone(spool), batches, closing));
        running.spawn(writer::run_with_replay(Arc::clone(&shared), replayed));
        plain_writers -= 1;
    }
    for _ in 0..plain_writers {
        running.spawn(writer::run(Arc::clone(&shared)));
    }
    loop {
        tokio::select! {
            ended = running.join_next() => match ended {
                Some(ended) => ended.expect("a writer or the replayer panicked"),
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
