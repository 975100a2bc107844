//! The signed log of the ledger, as this pod knows it.
//!
//! Owns the newest checkpoint, which every pod verifies for itself before it shows it; whether the log and the database
//! agree; and the words for what is wrong when they do not. `sealer` makes checkpoints, `tiles` and `proofs` read, `anchor`
//! keeps the newest one outside of the database, `keys` signs. Promises: what is shown is signed by our keys, was stored
//! before it was shown, and continues what this pod showed before.

mod anchor;
mod keys;
mod proofs;
mod tiles;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use certeus_tlog::note::VerifierKey;
use certeus_tlog::tile::TileId;
use tokio::sync::{Notify, watch};

pub(crate) use anchor::Swap;
pub use anchor::{Anchor, AnchorError, ObjectAnchor};
pub use keys::{KeyError, Signed, SigningKeys};
pub use proofs::{CaseProofs, EventProof};
pub(crate) use proofs::{EXTRA_ERASED, EXTRA_INTACT, extra};
pub(crate) use tiles::{Cache, Reader};

use crate::error::Class;
use crate::ledger::Ledger;
use crate::metrics::LogMetrics;
use crate::store::ReadError;

/// A writer that connects waits no longer for the anchor: it would count its attempt as one that the database did not answer.
const KNOWN_WAIT: Duration = Duration::from_secs(2);

/// What the log needs to be signed.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// The keys; their name is the log's origin.
    pub keys: Arc<SigningKeys>,
    /// Where the newest checkpoint is kept outside of the database.
    pub anchor: Option<Anchor>,
    /// All pods have the same anchor, so that none of them knows of a checkpoint that the others do not.
    pub anchor_shared: bool,
    /// Longest time between growing and being signed, as long as the sealer keeps up.
    pub checkpoint_interval: Duration,
}

/// Why no checkpoint is signed, and no event is taken: a human has to look.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// The database has less than was signed.
    #[error(
        "the database ends after {committed} events, and the log was signed up to {signed}: the database is older than \
         the log, as after a restore from an old backup"
    )]
    Behind {
        /// Events in the database.
        committed: u64,
        /// Events signed.
        signed: u64,
    },
    /// The database has something else than was signed.
    #[error("the first {size} events in the database are not those that the log was signed for")]
    Forked {
        /// Size of the signed tree that is not found.
        size: u64,
    },
    /// Batches do not follow one another.
    #[error("the log entry of event {missing} is missing in the database")]
    Gap {
        /// The index.
        missing: u64,
    },
    /// The head row is not what was signed.
    #[error("the newest checkpoint in the database cannot be trusted")]
    Head(#[source] KeyError),
    /// The anchor is not ours.
    #[error("the checkpoint in the anchor cannot be trusted")]
    Anchor(#[source] KeyError),
    /// What another pod says it knows is not ours.
    #[error("the checkpoint that another pod knows cannot be trusted")]
    Witness(#[source] KeyError),
    /// The stored tiles have another root than was signed.
    #[error("the stored tiles and entries do not lead to the root that was signed for {size} events")]
    Tiles {
        /// Size of the signed tree.
        size: u64,
    },
    /// The stored tiles and entries prove nothing.
    #[error("the stored tiles and entries do not prove that the newest checkpoint continues the one before")]
    Unproven,
    /// The keys cannot sign.
    #[error("cannot sign a checkpoint")]
    Sign(#[source] KeyError),
    /// The pod that has the lock says so.
    #[error("the sealer refuses to sign: {0}")]
    Told(String),
}

impl Refusal {
    /// Whether the database contradicts what was signed before, so that everybody has to know what that was.
    pub(crate) fn contradicts(&self) -> bool {
        match self {
            Self::Behind { .. } | Self::Forked { .. } | Self::Unproven => true,
            Self::Gap { .. }
            | Self::Head(_)
            | Self::Anchor(_)
            | Self::Witness(_)
            | Self::Tiles { .. }
            | Self::Sign(_)
            | Self::Told(_) => false,
        }
    }
}

/// Whether the log is signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogState {
    /// No signing key is configured.
    Off,
    /// Not yet compared with the database.
    Unchecked {
        /// Why the anchor could not be used, when that is what keeps it.
        anchor_failure: Option<Arc<str>>,
    },
    /// Database and log agree.
    Agreed,
    /// They do not: nothing is signed, and no event is taken.
    Refused {
        /// Why.
        reason: Arc<str>,
    },
}

/// The newest checkpoint.
#[derive(Debug, Clone)]
pub struct Latest {
    /// The checkpoint.
    pub signed: Arc<Signed>,
    /// When it was signed, by this machine's clock.
    pub signed_at: Instant,
}

/// Why something of the log cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// No signing key is configured.
    #[error("the log is not signed: no signing key is configured")]
    Off,
    /// Nothing was signed yet.
    #[error("there is no checkpoint yet")]
    NoCheckpoint,
    /// The event is committed, and no checkpoint covers it yet.
    #[error("event {index} is not in a checkpoint yet; the newest covers {size} events")]
    NotSealed {
        /// The event's index.
        index: u64,
        /// Size of the newest checkpoint.
        size: u64,
    },
    /// The newest checkpoint has no such tile or size.
    #[error("the newest checkpoint covers {size} events, and not {what}")]
    Beyond {
        /// What was asked for.
        what: String,
        /// Size of the newest checkpoint.
        size: u64,
    },
    /// A tile that must be there is not.
    #[error("{0} is missing in the database")]
    Missing(TileId),
    /// What is stored is not what was signed.
    #[error("{0} is not what was signed: entries or tiles in the database were altered")]
    Altered(TileId),
    /// A proof does not lead to the signed root.
    #[error("the stored tiles and entries do not lead to the signed root: they were altered")]
    Unproven,
    /// The event could not be read.
    #[error(transparent)]
    Event(#[from] ReadError),
    /// No connection could be had.
    #[error("no database connection")]
    Pool(#[from] deadpool_postgres::PoolError),
    /// The query failed.
    #[error("the query failed")]
    Query(#[from] tokio_postgres::Error),
}

impl LogError {
    /// What the caller does next.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Off | Self::Beyond { .. } => Class::Invalid,
            Self::NoCheckpoint | Self::NotSealed { .. } | Self::Pool(_) | Self::Query(_) => {
                Class::Unavailable
            }
            Self::Missing(_) | Self::Altered(_) | Self::Unproven => Class::Corrupt,
            Self::Event(error) => error.class(),
        }
    }
}

/// The log as the ledger's tasks share it.
#[derive(Debug)]
pub(crate) struct Log {
    config: Option<LogConfig>,
    latest: watch::Sender<Option<Latest>>,
    state: watch::Sender<LogState>,
    /// When the database last confirmed the newest checkpoint.
    confirmed: Mutex<Option<Instant>>,
    /// Told when a checkpoint is asked for.
    pub(crate) wanted: Notify,
    pub(crate) cache: Cache,
    pub(crate) metrics: LogMetrics,
}

impl Log {
    pub(crate) fn new(config: Option<LogConfig>, metrics: LogMetrics) -> Self {
        let state =
            if config.is_some() { LogState::Unchecked { anchor_failure: None } } else { LogState::Off };
        Self {
            config,
            latest: watch::Sender::new(None),
            state: watch::Sender::new(state),
            confirmed: Mutex::new(None),
            wanted: Notify::new(),
            cache: Cache::default(),
            metrics,
        }
    }

    pub(crate) fn config(&self) -> Option<&LogConfig> {
        self.config.as_ref()
    }

    pub(crate) fn state(&self) -> LogState {
        self.state.borrow().clone()
    }

    /// Whether no event may be taken.
    pub(crate) fn refuses(&self) -> bool {
        matches!(*self.state.borrow(), LogState::Refused { .. })
    }

    /// Events that the newest checkpoint covers.
    pub(crate) fn size(&self) -> u64 {
        self.latest.borrow().as_ref().map_or(0, |latest| latest.signed.checkpoint.size())
    }

    /// Events that a database which holds this log has at least: what the newest checkpoint covers that is known here or in the
    /// anchor. An anchor that cannot be read, or trusted, is the sealer's to report.
    pub(crate) async fn known_size(&self) -> u64 {
        let Some(LogConfig { keys, anchor: Some(anchor), .. }) = &self.config else { return self.size() };
        let read = tokio::time::timeout(KNOWN_WAIT, anchor.read()).await;
        let anchored = read.ok().and_then(|read| read.ok().flatten());
        let anchored = anchored.and_then(|text| keys.verify(&text).ok()).map_or(0, |found| found.size());
        anchored.max(self.size())
    }

    /// Waits until the log was compared with the database, if it is signed.
    pub(crate) async fn checked(&self) {
        // The sender lives in `self`, so this waits for the state and nothing else.
        let checked = |state: &LogState| !matches!(state, LogState::Unchecked { .. });
        let _state = self.state.subscribe().wait_for(checked).await.map(drop);
    }

    /// The anchor could not be read or set.
    pub(crate) fn anchor_failed(&self, error: &AnchorError) {
        self.metrics.anchor_failures.inc();
        self.still_unchecked(Some(crate::postgres::describe(error).into()));
    }

    /// Another attempt to compare the log with the database failed. Does nothing once one succeeded.
    pub(crate) fn still_unchecked(&self, failure: Option<Arc<str>>) {
        self.state.send_if_modified(|state| {
            let LogState::Unchecked { anchor_failure } = state else { return false };
            let changed = *anchor_failure != failure;
            if changed && let Some(reason) = &failure {
                tracing::error!(
                    reason = &**reason,
                    "cannot use the anchor: nothing is committed until it was read"
                );
            }
            *anchor_failure = failure;
            changed
        });
    }

    /// Log and database agree.
    pub(crate) fn agree(&self) {
        let changed = self.state.send_if_modified(|state| {
            let changed = *state != LogState::Agreed;
            *state = LogState::Agreed;
            changed
        });
        self.metrics.refused.set(0);
        *self.confirmed.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        if changed {
            tracing::info!("the database agrees with the signed log");
        }
    }

    /// They do not.
    pub(crate) fn refuse(&self, refusal: &Refusal) {
        let reason: Arc<str> = crate::postgres::describe(refusal).into();
        let changed = self.state.send_if_modified(|state| {
            let refused = LogState::Refused { reason: Arc::clone(&reason) };
            let changed = *state != refused;
            *state = refused;
            changed
        });
        self.metrics.refused.set(1);
        // Whatever is put right in the database, nothing of what was wrong is shown after it.
        self.cache.clear();
        if changed {
            self.metrics.refusals.inc();
            tracing::error!(
                reason = &*reason,
                "the database does not match the signed log: nothing is signed and no event is taken"
            );
        }
    }

    /// Shows a verified checkpoint that is stored, unless a larger one is shown already.
    pub(crate) fn show(&self, latest: Latest) {
        self.latest.send_if_modified(|shown| {
            let newer = shown.as_ref().is_none_or(|shown| {
                shown.signed.checkpoint.size() <= latest.signed.checkpoint.size()
                    && shown.signed != latest.signed
            });
            if newer {
                *shown = Some(latest);
            }
            newer
        });
    }

    pub(crate) fn latest(&self) -> Option<Latest> {
        self.latest.borrow().clone()
    }

    /// Brings the gauges up to date.
    pub(crate) fn observe(&self, committed: u64) {
        let size = self.size();
        self.metrics.tree_size.set(size.cast_signed());
        self.metrics.unsealed.set(committed.saturating_sub(size).cast_signed());
    }

    /// How old the newest checkpoint is.
    pub(crate) fn observe_age(&self) {
        if let Some(latest) = &*self.latest.borrow() {
            self.metrics.checkpoint_age.set(latest.signed_at.elapsed().as_secs_f64());
        }
    }
}

/// The ledger's log.
impl Ledger {
    /// Whether the log is signed, and if not, why.
    #[must_use]
    pub fn log_state(&self) -> LogState {
        self.shared().log.state()
    }

    /// The keys that sign; `None` when the log is not signed.
    #[must_use]
    pub fn signing_keys(&self) -> Option<&SigningKeys> {
        self.shared().log.config().map(|config| &*config.keys)
    }

    /// The public keys: those that sign, then those that did, as far as the database can be asked. `None` when the log is
    /// not signed.
    pub async fn log_keys(&self) -> Option<Vec<VerifierKey>> {
        let own = self.signing_keys()?;
        if self.shared().is_available() {
            match self.keys_of_all_time().await {
                Ok(keys) => return Some(keys),
                Err(error) => {
                    tracing::warn!(reason = crate::postgres::describe(&error), "cannot read retired keys");
                }
            }
        }
        Some(own.verifiers().to_vec())
    }

    /// The public keys: those that sign, then those that did.
    pub(crate) async fn keys_of_all_time(&self) -> Result<Vec<VerifierKey>, LogError> {
        let own = self.signing_keys().ok_or(LogError::Off)?;
        let mut keys = own.verifiers().to_vec();
        // Keys of another name have signed another log.
        let retired = |key: &VerifierKey| key.name() == own.origin() && !own.verifiers().contains(key);
        keys.extend(self.known_keys().await?.into_iter().filter(retired));
        Ok(keys)
    }

    async fn known_keys(&self) -> Result<Vec<VerifierKey>, LogError> {
        const SQL: &str =
            "SELECT vkey FROM certeus.log_keys WHERE ledger = $1 ORDER BY first_used DESC LIMIT 100";
        let client = self.shared().pool.get().await?;
        let statement = client.prepare_cached(SQL).await?;
        let rows = client.query(&statement, &[&self.name()]).await?;
        Ok(rows.iter().filter_map(|row| row.get::<_, &str>(0).parse().ok()).collect())
    }

    /// The newest checkpoint that this pod knows.
    ///
    /// # Errors
    /// When there is none.
    pub fn checkpoint(&self) -> Result<Latest, LogError> {
        let log = &self.shared().log;
        log.config().ok_or(LogError::Off)?;
        log.latest().ok_or(LogError::NoCheckpoint)
    }

    /// How long ago the database last confirmed that checkpoint; `None` when it never did.
    #[must_use]
    pub fn checkpoint_confirmed(&self) -> Option<Duration> {
        let confirmed = *self.shared().log.confirmed.lock().unwrap_or_else(PoisonError::into_inner);
        confirmed.map(|at| at.elapsed())
    }

    /// Asks for a checkpoint that covers the events below an index, and waits for it.
    ///
    /// # Errors
    /// When the log is not signed, or no such checkpoint comes in time.
    pub async fn sealed(&self, end_index: u64, timeout: Duration) -> Result<Latest, LogError> {
        let log = &self.shared().log;
        log.config().ok_or(LogError::Off)?;
        let mut shown = log.latest.subscribe();
        let covers = |latest: &Option<Latest>| {
            latest.as_ref().is_some_and(|latest| latest.signed.checkpoint.size() >= end_index)
        };
        if !covers(&shown.borrow()) {
            log.wanted.notify_one();
        }
        // The sender lives as long as the ledger.
        match tokio::time::timeout(timeout, shown.wait_for(covers)).await {
            Ok(Ok(latest)) => latest.clone().ok_or(LogError::NoCheckpoint),
            Ok(Err(_)) | Err(_) => {
                Err(LogError::NotSealed { index: end_index.saturating_sub(1), size: log.size() })
            }
        }
    }
}
