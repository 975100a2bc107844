//! Seals the log: every pod follows it, and one at a time extends and signs it.
//!
//! Owns the task that does either, over one connection of its own. `core` decides what the sealer does, `session` is its
//! SQL, `follow` compares what the database has with what the pod knows, and this carries out the commands. Promises: the pod
//! never shows a checkpoint that does not continue what it showed before; when log and database do not match it says so, and
//! takes no event.

mod core;
mod follow;
mod session;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use crate::error::Class;
use crate::ledger::Ledger;
use crate::log::{AnchorError, Latest, Log, LogConfig, LogError, Refusal, Swap};
use crate::postgres::describe;
use crate::writer::unix_ms;
use core::{Claim, Command, Core, Entries, Event, Now, Publication, Settings};
use session::{ASKED, READ_EVENTS, Refused, Session};

/// A follower looks at least this often, and so do those who wait for the lock.
const FOLLOW_INTERVAL: Duration = Duration::from_secs(1);
/// After a failure, or having stepped down.
const RETRY: Duration = Duration::from_millis(300);
/// From a claim to the first signature where pods have anchors of their own: each of them connects again and looks meanwhile.
const OBJECTION_WAIT: Duration = Duration::from_secs(5);
/// A sealer that refuses looks again after this long.
const REFUSED_RETRY: Duration = Duration::from_secs(3);
/// A database that takes longer than this for one step is as good as gone.
const STEP_MAX: Duration = Duration::from_secs(30);
/// Chunks above this are hashed where they hold up nothing else.
const HASH_INLINE_EVENTS: u64 = 2048;

/// Why the connection is given up.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("the query failed")]
    Sql(#[from] tokio_postgres::Error),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("cannot use the anchor")]
    Anchor(#[from] AnchorError),
    #[error("the connection ended")]
    Ended,
    #[error("the database does not answer")]
    Timeout,
}

impl Failed {
    fn is_of_database(&self) -> bool {
        match self {
            Self::Sql(_) | Self::Ended | Self::Timeout => true,
            Self::Log(error) => error.class() == Class::Unavailable,
            Self::Anchor(_) => false,
        }
    }
}

/// Follows or seals until the ledger ends. Without keys there is nothing to do.
pub(crate) async fn run(ledger: Ledger) {
    let Some(config) = ledger.shared().log.config().cloned() else { return std::future::pending().await };
    let mut told = String::new();
    loop {
        let Err(failed) = follow(&ledger, &config).await;
        let log = &ledger.shared().log;
        log.metrics.leader.set(0);
        match &failed {
            Failed::Anchor(error) => log.anchor_failed(error),
            Failed::Sql(_) | Failed::Log(_) | Failed::Ended | Failed::Timeout => log.still_unchecked(None),
        }
        let reason = describe(&failed);
        // Until the schema is there, and while the database is away, others say why.
        let told_elsewhere = failed.is_of_database() && !ledger.shared().is_available();
        if !told_elsewhere && reason != told {
            tracing::warn!(reason, "the log's connection is given up; trying again");
            told = reason;
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Bounds one step.
async fn bounded<T, E: Into<Failed>>(step: impl Future<Output = Result<T, E>>) -> Result<T, Failed> {
    match tokio::time::timeout(STEP_MAX, step).await {
        Ok(done) => done.map_err(Into::into),
        Err(_elapsed) => Err(Failed::Timeout),
    }
}

async fn follow(ledger: &Ledger, config: &LogConfig) -> Result<Infallible, Failed> {
    let shared = ledger.shared();
    let session = bounded(Session::open(&shared.database, ledger.name(), &config.keys)).await?;
    let mut pod = Pod { ledger, config, log: &shared.log, session, checked_anchor: None, behind: None };
    loop {
        pod.look().await?;
        if bounded(pod.session.try_lock()).await? {
            tracing::info!("this pod seals the log");
            pod.log.metrics.leader.set(1);
            let stepped_down = pod.seal().await;
            pod.log.metrics.leader.set(0);
            let reason = stepped_down?;
            tracing::warn!(reason, "this pod no longer seals the log");
            bounded(pod.session.unlock()).await?;
            tokio::time::sleep(RETRY).await;
        }
        if pod.woken(Instant::now() + FOLLOW_INTERVAL).await? == Woken::Wanted {
            bounded(pod.session.ask()).await?;
        }
    }
}

/// What ended a wait.
#[derive(Debug, PartialEq, Eq)]
enum Woken {
    Time,
    /// This pod wants a checkpoint.
    Wanted,
    /// Some pod wants one.
    Asked,
    Published,
}

struct Pod<'a> {
    ledger: &'a Ledger,
    config: &'a LogConfig,
    log: &'a Log,
    session: Session,
    /// What the anchor had when it was compared last.
    checked_anchor: Option<String>,
    /// An anchor ahead of the database's head, and since when it is seen so.
    behind: Option<(String, Instant)>,
}

impl Pod<'_> {
    async fn woken(&mut self, until: Instant) -> Result<Woken, Failed> {
        tokio::select! {
            biased;
            () = self.log.wanted.notified() => Ok(Woken::Wanted),
            channel = self.session.notified() => match channel.ok_or(Failed::Ended)?.as_str() {
                ASKED => Ok(Woken::Asked),
                _ => Ok(Woken::Published),
            },
            () = tokio::time::sleep_until(until.into()) => Ok(Woken::Time),
        }
    }

    /// Seals until something is in doubt; gives the reason for stepping down.
    async fn seal(&mut self) -> Result<&'static str, Failed> {
        let log = self.log;
        let settings = Settings {
            keys: Arc::clone(&self.config.keys),
            interval: self.config.checkpoint_interval,
            has_anchor: self.config.anchor.is_some(),
            objection_wait: if self.config.anchor_shared { Duration::ZERO } else { OBJECTION_WAIT },
        };
        let start = || {
            let shown = log.latest().map(|latest| latest.signed.checkpoint.clone());
            Core::start(Instant::now(), settings.clone(), shown)
        };
        let (mut core, mut command) = start();
        let mut ahead = ReadAhead::default();
        loop {
            let event = match command {
                Command::Claim => match self.claim().await? {
                    Ok(claim) => Event::Claimed(Box::new(claim)),
                    Err(refusal) => {
                        self.refuse(&refusal).await?;
                        (core, command) = start();
                        continue;
                    }
                },
                Command::ReadAnchor => match self.read_anchor().await {
                    Ok(text) => Event::Anchor(text),
                    Err(error) => return Ok(self.anchor_failed(&error)),
                },
                Command::Prove { from, to } => match bounded(self.ledger.prove(from, to)).await {
                    Ok(proof) => Event::Proof(proof),
                    // No proof at all proves as little as a wrong one.
                    Err(Failed::Log(error)) if error.class() == Class::Corrupt => Event::Proof(Vec::new()),
                    Err(failed) => return Err(failed),
                },
                Command::Read { from } => Event::Entries(bounded(ahead.read(&self.session, from)).await?),
                Command::SetAnchor { expected, new } => match self.set_anchor(expected, new).await {
                    Ok(swap) => Event::AnchorSet(swap == Swap::Done),
                    Err(error) => return Ok(self.anchor_failed(&error)),
                },
                Command::Store(publication) => Event::Stored(self.store(&publication).await?),
                Command::Announce(signed) => {
                    self.checked_anchor = Some(signed.note.clone());
                    self.log.show(Latest { signed, signed_at: Instant::now() });
                    self.log.metrics.checkpoints.inc();
                    self.log.agree();
                    Event::Announced
                }
                Command::Wait { until } => {
                    let woken = self.woken(until).await?;
                    Event::Woken { wanted: matches!(woken, Woken::Wanted | Woken::Asked) }
                }
                Command::Refuse(refusal) => {
                    self.refuse(&refusal).await?;
                    (core, command) = start();
                    continue;
                }
                Command::StepDown(reason) => return Ok(reason),
            };
            let entries = match &event {
                Event::Entries(entries) => Some((entries.events(), entries.committed)),
                _ => None,
            };
            let now = Now { at: Instant::now(), unix_seconds: unix_ms() / 1000 };
            command = match entries {
                // Hashing takes a while: the database answers the next read meanwhile.
                Some((HASH_INLINE_EVENTS.., _)) => tokio::task::block_in_place(|| core.step(now, event)),
                _ => core.step(now, event),
            };
            if let Some((_, committed)) = entries
                && !matches!(command, Command::Refuse(_))
                && core.agrees()
            {
                self.log.agree();
                self.log.observe(committed);
            }
        }
    }

    /// Takes over: from here on nobody else writes. Gives the log's state with the edge of its tree.
    async fn claim(&self) -> Result<Result<Claim, Refusal>, Failed> {
        let mut claim = bounded(self.session.claim()).await?.ok_or(Failed::Ended)?;
        self.log.metrics.epoch.set(claim.epoch);
        let size = claim.head.as_ref().map_or(0, |head| head.size);
        match bounded(self.ledger.edge(size)).await {
            Ok(edge) => claim.edge = edge,
            Err(Failed::Log(error)) if error.class() == Class::Corrupt => {
                return Ok(Err(Refusal::Tiles { size }));
            }
            Err(failed) => return Err(failed),
        }
        Ok(Ok(claim))
    }

    async fn read_anchor(&self) -> Result<Option<String>, AnchorError> {
        match &self.config.anchor {
            Some(anchor) => anchor.read().await,
            None => Ok(None),
        }
    }

    async fn set_anchor(&self, expected: Option<String>, new: String) -> Result<Swap, AnchorError> {
        match &self.config.anchor {
            Some(anchor) => anchor.compare_and_set(expected, new).await,
            None => Ok(Swap::Done),
        }
    }

    fn anchor_failed(&self, error: &AnchorError) -> &'static str {
        self.log.anchor_failed(error);
        tracing::error!(
            reason = describe(error),
            "cannot use the anchor: nothing is signed until that works"
        );
        "the anchor cannot be used"
    }

    async fn store(&self, publication: &Publication) -> Result<bool, Failed> {
        let timer = self.log.metrics.publish_duration.start_timer();
        let stored = bounded(self.session.store(publication)).await?;
        timer.observe_duration();
        Ok(stored)
    }

    /// Says why nothing is signed, and waits before the next look. What this pod knows goes into the database, so that no other pod,
    /// whose anchor may be older, signs instead.
    async fn refuse(&mut self, refusal: &Refusal) -> Result<(), Failed> {
        self.log.refuse(refusal);
        let known = if refusal.contradicts() {
            // Of an anchor that cannot be read nothing is known; that is no reason to say less.
            let anchored = self.read_anchor().await.ok().flatten();
            self.known(anchored.as_deref())
        } else {
            Vec::new()
        };
        let reason = describe(refusal);
        bounded(self.session.witness(&known, Refused::BySealer(&reason))).await?;
        let until = Instant::now() + REFUSED_RETRY;
        while Instant::now() < until {
            // Keeps the session alive, whatever is asked for.
            bounded(self.session.head()).await?;
            self.woken(until.min(Instant::now() + FOLLOW_INTERVAL)).await?;
        }
        Ok(())
    }
}

/// Reads the next chunk while the one before is hashed.
#[derive(Default)]
struct ReadAhead {
    next: Option<(u64, AbortOnDrop<Result<Entries, tokio_postgres::Error>>)>,
}

struct AbortOnDrop<T>(JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl ReadAhead {
    async fn read(&mut self, session: &Session, from: u64) -> Result<Entries, Failed> {
        let entries = match self.next.take() {
            Some((at, mut reading)) if at == from => {
                let entries = (&mut reading.0).await.map_err(|_| Failed::Ended)??;
                // A checkpoint may have been published since it was asked for.
                Entries { seen: None, ..entries }
            }
            Some(_) | None => session.read(from).await?,
        };
        if entries.more {
            let next = from + READ_EVENTS;
            self.next = Some((next, AbortOnDrop(tokio::spawn(session.read(next)))));
        }
        Ok(entries)
    }
}
