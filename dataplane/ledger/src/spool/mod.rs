//! The spool: keeps requests on the pod's own volume while the database is away.
//!
//! Owns the thread on which all file operations run, and what is known about the spool elsewhere. Promises: what
//! [`Spool::append`] confirmed is replayed once the database is back, also after a crash of the pod or of its machine;
//! requests that arrive while a sync runs share the next one. Limits: [`SpoolConfig::bytes_max`], [`COMMANDS_MAX`].
//!
//! Read next: `log.rs` (what survives what), `replay.rs` (the way back), `docs/formats/spool.md`.

mod directory;
mod log;
mod record;
mod replay;
mod segment;
#[cfg(test)]
mod simulated;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use tokio::sync::{oneshot, watch};

use crate::error::Class;
use crate::postgres::describe;
use crate::submission::Submission;
use crate::writer::unix_ms;
use directory::Folder;
use log::{AppendError, Contents, Entry, Finding, Limits, Log, NewRecord, Position};
pub(crate) use replay::run as replay;

/// Commands that may wait for the spool's thread.
const COMMANDS_MAX: usize = 1024;
/// One sync covers at most about this many bytes of records.
const GROUP_BYTES: u64 = 8 << 20;
/// A segment is closed at this size, so that space comes back while a long spool is replayed.
const SEGMENT_BYTES: u64 = 16 << 20;
/// This much of the file system stays free, for what must still work when it is nearly full.
const RESERVE_BYTES: u64 = 16 << 20;
/// How long to wait before a folder that cannot be opened, or a file that cannot be cut back, is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Where a spool lies and how large it may become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpoolConfig {
    /// The folder, on a volume that outlives the pod.
    pub path: PathBuf,
    /// Bytes of all its files.
    pub bytes_max: u64,
}

impl SpoolConfig {
    fn limits(&self) -> Limits {
        Limits {
            bytes_max: self.bytes_max,
            segment_bytes: SEGMENT_BYTES.min(self.bytes_max / 4),
            reserve_bytes: RESERVE_BYTES.min(self.bytes_max / 4),
        }
    }
}

/// Why a request is not in the spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SpoolError {
    /// The bound is reached, or the volume is full.
    #[error("the database is away and the spool is full")]
    Full,
    /// The spool cannot be used now.
    #[error("the database is away and the spool cannot be written")]
    Closed,
    /// The volume failed while the request was written.
    #[error(
        "the database is away, and writing to the spool failed half-way; the events may or may not be stored"
    )]
    Unknown,
}

impl SpoolError {
    /// What the caller does next.
    #[must_use]
    pub fn class(self) -> Class {
        match self {
            Self::Full => Class::Overloaded,
            Self::Closed => Class::Unavailable,
            Self::Unknown => Class::OutcomeUnknown,
        }
    }
}

/// Whether the spool takes requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SpoolCondition {
    /// It is being read, or cannot be opened for a reason.
    Opening(Option<Arc<str>>),
    /// It takes requests.
    Open,
    /// A write failed, and the file could not be brought back into a known state yet.
    Failed(Arc<str>),
}

/// What is known about the spool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpoolStatus {
    /// Whether it takes requests.
    pub condition: SpoolCondition,
    /// Bytes of its files, also of those that were set aside.
    pub bytes: u64,
    /// Bytes that its files may have.
    pub bytes_max: u64,
    /// Requests to be replayed.
    pub records: u64,
    /// When the oldest of them was admitted, in milliseconds since the Unix epoch.
    pub oldest_ms: Option<u64>,
    /// Files that were set aside: damaged segments, and requests that the database refused for good.
    pub set_aside: u64,
}

impl SpoolStatus {
    /// Whether it takes another request now.
    #[must_use]
    pub fn takes_requests(&self) -> bool {
        self.condition == SpoolCondition::Open && self.bytes < self.bytes_max
    }

    /// Requests to be replayed; `None` before the spool was read, when nobody knows.
    #[must_use]
    pub fn known_records(&self) -> Option<u64> {
        (!matches!(self.condition, SpoolCondition::Opening(_))).then_some(self.records)
    }

    /// How long the oldest request has waited. A clock that was set back makes it young, nothing worse.
    #[must_use]
    pub fn oldest_age(&self) -> Duration {
        Duration::from_millis(self.oldest_ms.map_or(0, |oldest| unix_ms().saturating_sub(oldest)))
    }

    /// Whether there is nothing that must come before a producer's next request. Not before the spool was read.
    fn is_empty(&self) -> bool {
        self.known_records() == Some(0)
    }
}

/// A request to the spool's thread.
enum Command {
    Append(NewRecord, oneshot::Sender<Result<(), SpoolError>>),
    /// The next records, up to about this many bytes.
    Read(usize, oneshot::Sender<Option<Vec<Entry>>>),
    /// So many records up to here are done.
    Advance(Position, u64, oneshot::Sender<bool>),
    /// Set the record aside.
    Reject(Entry, oneshot::Sender<Option<String>>),
}

/// A handle to the spool's thread, which ends when the handle is dropped.
#[derive(Debug)]
pub(crate) struct Spool {
    commands: SyncSender<Command>,
    status: watch::Receiver<SpoolStatus>,
    path: PathBuf,
}

impl Spool {
    /// Starts the thread. The folder is opened by it, as often as it takes.
    pub(crate) fn start(config: SpoolConfig) -> std::io::Result<Self> {
        let (commands, received) = sync_channel(COMMANDS_MAX);
        let (sender, status) = watch::channel(SpoolStatus {
            condition: SpoolCondition::Opening(None),
            bytes: 0,
            bytes_max: config.bytes_max,
            records: 0,
            oldest_ms: None,
            set_aside: 0,
        });
        let path = config.path.clone();
        let worker = Worker { config, log: None, status: sender };
        std::thread::Builder::new().name("spool".to_owned()).spawn(move || worker.run(&received))?;
        Ok(Self { commands, status, path })
    }

    /// Makes a request durable. It must have an identity.
    pub(crate) async fn append(&self, admitted_ms: u64, submission: &Submission) -> Result<(), SpoolError> {
        let record = NewRecord { admitted_ms, bytes: record::encode(admitted_ms, submission) };
        self.append_record(record).await
    }

    async fn append_record(&self, record: NewRecord) -> Result<(), SpoolError> {
        let (reply, outcome) = oneshot::channel();
        self.commands.try_send(Command::Append(record, reply)).map_err(|refused| match refused {
            TrySendError::Full(_) => SpoolError::Full,
            TrySendError::Disconnected(_) => SpoolError::Closed,
        })?;
        outcome.await.unwrap_or(Err(SpoolError::Unknown))
    }

    /// What is known about it now.
    pub(crate) fn status(&self) -> SpoolStatus {
        self.status.borrow().clone()
    }

    /// Whether a producer's next request may go past the spool.
    pub(crate) fn is_empty(&self) -> bool {
        self.status.borrow().is_empty()
    }

    /// Sends one of the replayer's commands; `None` when the thread did not do it.
    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (reply, outcome) = oneshot::channel();
        // Appends may fill the channel for a moment: the replayer tries again.
        self.commands.try_send(command(reply)).ok()?;
        outcome.await.ok()
    }
}

/// What runs on the thread.
struct Worker {
    config: SpoolConfig,
    log: Option<Log<Folder>>,
    status: watch::Sender<SpoolStatus>,
}

impl Worker {
    fn run(mut self, commands: &Receiver<Command>) {
        loop {
            self.bring_up();
            match commands.recv_timeout(RETRY) {
                Ok(first) => self.serve(first, commands),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Opens the folder, or brings it back into a known state, when that is needed.
    fn bring_up(&mut self) {
        let outcome = match &mut self.log {
            None => Folder::open(&self.config.path)
                .and_then(|folder| Log::recover(folder, self.config.limits()))
                .map(|(log, findings)| {
                    findings.iter().for_each(report);
                    let Contents { records, bytes, .. } = log.contents();
                    tracing::info!(records, bytes, "the spool is open");
                    self.log = Some(log);
                }),
            Some(log) if log.in_doubt() => log.reopen(),
            Some(_) => return,
        };
        match outcome {
            Ok(()) => self.publish(SpoolCondition::Open),
            Err(error) => {
                let reason: Arc<str> = describe(&error).into();
                let condition = match self.log {
                    None => SpoolCondition::Opening(Some(Arc::clone(&reason))),
                    Some(_) => SpoolCondition::Failed(Arc::clone(&reason)),
                };
                if self.status.borrow().condition != condition {
                    tracing::error!(reason = &*reason, "the spool cannot be used");
                }
                self.publish(condition);
            }
        }
    }

    /// Carries out a command and those that came meanwhile, with as few syncs as possible.
    fn serve(&mut self, first: Command, commands: &Receiver<Command>) {
        let mut group = Vec::new();
        let mut group_bytes = 0;
        let mut room = None;
        for command in std::iter::once(first).chain(commands.try_iter().take(COMMANDS_MAX)) {
            match command {
                Command::Append(record, reply) => {
                    let bytes = record.framed_bytes();
                    let left = match room {
                        Some(left) => left,
                        None => self.room(),
                    };
                    if bytes > left {
                        room = Some(left);
                        // Nobody waits for it any more if this fails.
                        let refusal = if self.can_append() { SpoolError::Full } else { SpoolError::Closed };
                        let _gone = reply.send(Err(refusal));
                        continue;
                    }
                    room = Some(left - bytes);
                    group_bytes += bytes;
                    group.push((record, reply));
                    if group_bytes >= GROUP_BYTES {
                        self.append(std::mem::take(&mut group));
                        (group_bytes, room) = (0, None);
                    }
                }
                other => {
                    self.append(std::mem::take(&mut group));
                    (group_bytes, room) = (0, None);
                    self.replay(other);
                }
            }
        }
        self.append(group);
    }

    fn can_append(&self) -> bool {
        self.log.as_ref().is_some_and(|log| !log.in_doubt())
    }

    fn room(&mut self) -> u64 {
        let Some(log) = self.log.as_mut().filter(|log| !log.in_doubt()) else { return 0 };
        log.room().unwrap_or_else(|error| {
            tracing::warn!(reason = describe(&error), "the spool takes nothing now");
            0
        })
    }

    fn append(&mut self, group: Vec<(NewRecord, oneshot::Sender<Result<(), SpoolError>>)>) {
        let Some(log) = self.log.as_mut().filter(|_| !group.is_empty()) else { return };
        let (records, replies): (Vec<_>, Vec<_>) = group.into_iter().unzip();
        let outcome = match log.append(&records) {
            Ok(()) => Ok(()),
            Err(error) => {
                tracing::error!(
                    reason = describe(&error),
                    requests = records.len(),
                    "an append to the spool failed"
                );
                Err(match error {
                    AppendError::NotStored(_) => SpoolError::Closed,
                    AppendError::Unknown(_) => SpoolError::Unknown,
                })
            }
        };
        let condition = if log.in_doubt() {
            SpoolCondition::Failed("a write failed".into())
        } else {
            SpoolCondition::Open
        };
        // Before the replies: whoever reads one finds the spool not empty.
        self.publish(condition);
        for reply in replies {
            let _gone = reply.send(outcome);
        }
    }

    /// Carries out a command of the replayer, which waits for each.
    fn replay(&mut self, command: Command) {
        let Some(log) = self.log.as_mut() else { return };
        let failed = |error: directory::Error| {
            tracing::error!(reason = describe(&error), "replaying the spool met an error");
        };
        match command {
            Command::Append(..) => unreachable!("appends go the other way"),
            Command::Read(bytes_max, reply) => {
                let read = log.read(bytes_max).map_err(failed).ok();
                let entries = read.map(|(entries, finding)| {
                    finding.iter().for_each(report);
                    entries
                });
                self.publish_contents();
                let _gone = reply.send(entries);
            }
            Command::Advance(position, records, reply) => {
                let done = log.advance(position, records).map_err(failed).is_ok();
                self.publish_contents();
                let _gone = reply.send(done);
            }
            Command::Reject(entry, reply) => {
                let file = log.reject(&entry).map_err(failed).ok();
                self.publish_contents();
                let _gone = reply.send(file);
            }
        }
    }

    fn publish_contents(&self) {
        let condition = self.status.borrow().condition.clone();
        self.publish(condition);
    }

    fn publish(&self, condition: SpoolCondition) {
        let Contents { bytes, records, oldest_ms, set_aside } =
            self.log.as_ref().map(Log::contents).unwrap_or_default();
        let next =
            SpoolStatus { condition, bytes, bytes_max: self.config.bytes_max, records, oldest_ms, set_aside };
        self.status.send_if_modified(|now| {
            let changed = *now != next;
            *now = next;
            changed
        });
    }
}

fn report(finding: &Finding) {
    match finding {
        Finding::TornTail { file, bytes } => {
            tracing::warn!(
                file,
                bytes,
                "the spool ended in a torn write, which nobody was told of; it was cut off"
            );
        }
        Finding::Damaged { file, offset, set_aside_as } => tracing::error!(
            file,
            offset,
            set_aside_as,
            "acknowledged requests in the spool cannot be read; those before them are replayed"
        ),
        Finding::Missing { file, count } => {
            tracing::error!(
                file,
                count,
                "segments of the spool are missing, and with them acknowledged requests"
            );
        }
    }
}
