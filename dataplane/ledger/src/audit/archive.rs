//! Audits archived files against the batches of their ids.
//!
//! Owns from where files are read, and what is found out about a file as a whole; its events are audited as live ones are, by
//! [`RowAudit`]. Trusts nothing: not the files, nor what the database has on record about them. A store that cannot be asked is an
//! error, and so is one that has none of the files: neither says anything about the ledger. Memory is that of about two row
//! groups and the entries of [`JOB_EVENTS`](super::plan::JOB_EVENTS) events for each file that is read at the time.
//!
//! An erasure replaces a file while it may be read here. It changes the file's record in the same transaction as the salts, so
//! a file counts as audited only if its record is the same before and after; else it is audited again.

mod rows;

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use certeus_archive::{Archive, Error, File, Location, Row};
use uuid::Uuid;

use super::AuditError;
use super::finding::{Finding, Findings, Kind};
use super::plan::{PLAN_BATCHES, Stretch, part_end};
use super::records::{Claim, Erasures, RecordedFile};
use super::rows::RowAudit;
use super::source::{BEGIN, IdRange, RowsDone, Source};
use crate::erasure;
use crate::id::BatchId;
use crate::postgres::describe;
use rows::FileRows;

/// Files of a location that are asked for before it is said to have none: the newest.
const PROBED_MAX: i64 = 64;
/// How often a file that was replaced meanwhile is audited again. Each time takes an erasure of one of its events.
const ATTEMPTS_MAX: usize = 16;

/// Where archived files are read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ArchiveFrom {
    /// Where they were written to, as is recorded.
    #[default]
    Recorded,
    /// At another place, which has them under the same names.
    At(Location),
    /// Nowhere: archived events are not audited but for their log entries.
    Skip,
}

/// The archives in use.
pub(super) struct Archives {
    from: ArchiveFrom,
    open: Mutex<HashMap<String, Archive>>,
}

/// A stretch of an archived day to be audited.
pub(super) struct FileJob {
    pub(super) ledger: String,
    pub(super) stretch: Stretch,
    /// Events at or above this index are not looked at.
    pub(super) through: u64,
    pub(super) archives: Arc<Archives>,
}

impl Archives {
    pub(super) fn new(from: ArchiveFrom) -> Self {
        Self { from, open: Mutex::default() }
    }

    pub(super) fn are_read(&self) -> bool {
        self.from != ArchiveFrom::Skip
    }

    /// The archive that has what was written to a location, and what to call it.
    fn of(&self, recorded: &str) -> Result<(Archive, String), AuditError> {
        let location = match &self.from {
            ArchiveFrom::At(location) => location.to_string(),
            ArchiveFrom::Recorded | ArchiveFrom::Skip => recorded.to_owned(),
        };
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(archive) = open.get(&location) {
            return Ok((archive.clone(), location));
        }
        let opened = location.parse().and_then(|parsed| Archive::open_present(&parsed));
        let archive =
            opened.map_err(|source| AuditError::ArchiveLocation { location: location.clone(), source })?;
        open.insert(location.clone(), archive.clone());
        Ok((archive, location))
    }

    /// Makes sure that the archives can be read, and that they are the ledger's: what is not there must not be taken for
    /// removed when it is a folder that is not mounted, or a bucket of that name elsewhere.
    pub(super) async fn reach(&self, source: &Source, ledger: &str) -> Result<(), AuditError> {
        if !self.are_read() {
            return Ok(());
        }
        for recorded in source.archive_locations(ledger).await? {
            let (archive, location) = self.of(&recorded)?;
            let names = source.newest_files(ledger, &recorded, PROBED_MAX).await?;
            let mut present = false;
            for name in &names {
                present = archive.has(name).await.map_err(|error| failed(&location, error))?;
                if present {
                    break;
                }
            }
            if !present {
                return Err(AuditError::ArchiveEmpty { location, files: names.len() });
            }
        }
        Ok(())
    }

    /// Checks that archived events of the ledger say why others were erased; when files are not read they are believed.
    pub(super) async fn check(
        &self,
        source: &Source,
        ledger: &str,
        claims: &[Claim],
        findings: &mut Findings,
    ) -> Result<(), AuditError> {
        if !self.are_read() {
            return Ok(());
        }
        let mut finder = Finder::new(self, source, ledger);
        for Claim { event, reason, audit_event } in claims {
            let audit = finder.find(*audit_event).await?;
            let says = audit.as_ref().is_some_and(|row| {
                let content = row.content.as_ref();
                content.is_some_and(|content| erasure::says(&row.kind, &content.payload, *event, reason))
            });
            if !says {
                let index = source.index_of(ledger, *event).await?;
                let detail = format!(
                    "its erasure is recorded as told by the archived event {audit_event}, which does not say so"
                );
                findings.push(Finding {
                    indexes: index.map(|index| (index, index)),
                    ..Finding::about(Kind::EventEmptied, Some(*event), detail)
                });
            }
        }
        Ok(())
    }
}

fn failed(location: &str, source: Error) -> AuditError {
    AuditError::Archive { location: location.to_owned(), source }
}

/// Finds single rows; keeps the row group of the last one, as those that are asked for often lie together.
pub(super) struct Finder<'a> {
    archives: &'a Archives,
    source: &'a Source,
    ledger: &'a str,
    read: Option<Group>,
}

struct Group {
    name: String,
    file: File,
    group: usize,
    rows: Vec<Row>,
}

impl<'a> Finder<'a> {
    pub(super) fn new(archives: &'a Archives, source: &'a Source, ledger: &'a str) -> Self {
        Self { archives, source, ledger, read: None }
    }

    /// The row of an event, not checked; `None` when it cannot be had.
    ///
    /// # Errors
    /// When the archive cannot be asked.
    pub(super) async fn find(&mut self, id: Uuid) -> Result<Option<Row>, AuditError> {
        if !self.archives.are_read() {
            return Ok(None);
        }
        for _ in 0..ATTEMPTS_MAX {
            let Some(record) = self.source.file_with(self.ledger, id).await? else { return Ok(None) };
            let (archive, location) = self.archives.of(&record.location)?;
            match self.find_in(&archive, &record.name, id).await {
                Err(error) if error.is_unavailable() => return Err(failed(&location, error)),
                // It may have been replaced since its name was read.
                Err(error) if error.is_missing() => {
                    if self.source.file_with(self.ledger, id).await? == Some(record) {
                        return Ok(None);
                    }
                }
                found => return Ok(found.ok().flatten()),
            }
        }
        Ok(None)
    }

    async fn find_in(&mut self, archive: &Archive, name: &str, id: Uuid) -> Result<Option<Row>, Error> {
        let kept = self.read.take().filter(|read| read.name == name);
        let kept = match kept {
            Some(read) if read.file.group_of(id) == Some(read.group) => read,
            other => {
                let file = match other {
                    Some(read) => read.file,
                    None => archive.open_file(name).await?,
                };
                let Some(group) = file.group_of(id) else { return Ok(None) };
                let rows = file.rows(group).await?;
                Group { name: name.to_owned(), file, group, rows }
            }
        };
        let row = kept.rows.iter().find(|row| row.id == id).cloned();
        self.read = Some(kept);
        Ok(row)
    }
}

/// Audits a stretch of ids with the file that has them.
pub(super) async fn audit_file(source: &Source, job: &FileJob) -> Result<RowsDone, AuditError> {
    for _ in 0..ATTEMPTS_MAX {
        let record = recorded(source, job).await?;
        let mut reading = Reading { source, job, done: RowsDone::default() };
        reading.run(record.as_ref()).await?;
        if recorded(source, job).await? == record {
            return Ok(RowsDone { counts: reading.done.counts.of_archive(), ..reading.done });
        }
    }
    Err(AuditError::ArchiveChanges(job.stretch.file.unwrap_or_default()))
}

async fn recorded(source: &Source, job: &FileJob) -> Result<Option<RecordedFile>, AuditError> {
    match job.stretch.file {
        Some(first_id) => source.recorded_file(&job.ledger, first_id).await,
        None => Ok(None),
    }
}

/// One attempt at a stretch.
struct Reading<'a> {
    source: &'a Source,
    job: &'a FileJob,
    done: RowsDone,
}

impl Reading<'_> {
    async fn run(&mut self, record: Option<&RecordedFile>) -> Result<(), AuditError> {
        let ids = self.job.stretch.ids.clone();
        let Some(record) = record else { return self.audit(ids, None).await };
        let Some(mut rows) = self.open(record).await? else {
            // The finding about it stands for all that it should have.
            let first = record.extent.first_id.as_u128().clamp(ids.start, ids.end);
            return self.audit(ids.start..first, None).await;
        };
        let (start, end) = (ids.start, ids.end);
        while let Some(row) = rows.next_below(start).await? {
            rows.misplace(&row, "it is not among the events that its record begins with");
        }
        self.audit(start..end, Some(&mut rows)).await?;
        while let Some(row) = rows.next_below(u128::MAX).await? {
            rows.misplace(&row, "it is not among the events that its record ends with");
        }
        rows.finish(record, self.source, &self.job.ledger, &mut self.done.findings).await
    }

    /// Opens a file and compares it with its record; `None` when there is none to be read.
    async fn open(&mut self, record: &RecordedFile) -> Result<Option<FileRows>, AuditError> {
        let RecordedFile { location, name, sha256, bytes, extent: _ } = record;
        let (archive, location) = self.job.archives.of(location)?;
        let (found, length) = match archive.digest(name).await {
            Ok(digest) => digest,
            Err(error) if error.is_missing() => {
                self.find(Kind::ArchiveMissing, record, &format!("is not at {location}"));
                return Ok(None);
            }
            Err(error) => return Err(failed(&location, error)),
        };
        let same = found[..] == sha256[..] && i64::try_from(length).ok() == Some(*bytes);
        if !same {
            let other = self.source.file_with_digest(&self.job.ledger, &found, name).await?;
            if let Some(other) = other {
                self.find(
                    Kind::ArchiveAltered,
                    record,
                    &format!("has the bytes that are recorded for {other}"),
                );
                return Ok(None);
            }
            let detail = format!(
                "has other bytes than were recorded: {length} with SHA-256 {}, recorded are {bytes} with {}",
                hex(&found),
                hex(sha256)
            );
            self.find(Kind::ArchiveAltered, record, &detail);
        }
        match archive.open_file(name).await {
            Ok(file) => Ok(Some(FileRows::new(location, name.clone(), file))),
            Err(error) if error.is_unavailable() => Err(failed(&location, error)),
            Err(error) => {
                if same {
                    self.find(Kind::ArchiveAltered, record, &format!("cannot be read: {}", describe(&error)));
                }
                Ok(None)
            }
        }
    }

    fn find(&mut self, kind: Kind, record: &RecordedFile, detail: &str) {
        self.done.findings.push(rows::about_file(kind, record, detail));
    }

    /// Audits the events of a range of ids against the rows of a file, or finds all of them missing.
    async fn audit(
        &mut self,
        mut ids: Range<u128>,
        mut rows: Option<&mut FileRows>,
    ) -> Result<(), AuditError> {
        let FileJob { ledger, through, archives, stretch: _ } = self.job;
        let none = HashSet::new();
        while ids.start < ids.end {
            let first_batch = BatchId::of(Uuid::from_u128(ids.start)).uuid();
            let batches = self.source.batch_ids(first_batch, PLAN_BATCHES).await?;
            let more = i64::try_from(batches.len()).is_ok_and(|count| count == PLAN_BATCHES);
            let part = ids.start..part_end(&ids, &batches, more);
            let range = IdRange { from: Uuid::from_u128(part.start), to: Some(Uuid::from_u128(part.end)) };
            let findings = &mut self.done.findings;
            // One state of the database: the day of an audit event may be dropped meanwhile, and it is either here or there.
            self.source.client().batch_execute(BEGIN).await?;
            let archived_days = self.source.archived_days(ledger).await?;
            // Of no day that rows are not expected: here they are.
            let batches = self.source.batches(ledger, &range, *through, &none, findings).await?;
            let Erasures { events, claims } = self.source.erasures(ledger, &range, &archived_days).await?;
            self.source.client().batch_execute("COMMIT").await?;
            let mut audit = RowAudit::within(part.clone(), ledger, &batches, events);
            if let Some(rows) = rows.as_deref_mut() {
                while let Some(row) = rows.next_below(part.end).await? {
                    audit.archived_row(&row)?.into_iter().for_each(|finding| findings.push(finding));
                }
            }
            let (counts, suspects) = audit.finish();
            self.done.counts += counts;
            self.done.suspects.append(suspects);
            archives.check(self.source, ledger, &claims, findings).await?;
            ids.start = part.end;
        }
        Ok(())
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}
