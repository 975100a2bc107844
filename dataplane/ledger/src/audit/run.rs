//! Runs an audit: who reads what next, what goes into the saved state, and the report at the end.
//!
//! Two readings go on side by side, and a third follows. The rows of `certeus.events` are read in the order of their ids,
//! together with the batches of those ids, by several connections at a time: each event is hashed, and each row must be one that
//! a batch tells of. The batches are read in the order of their indexes, by one connection: their entries become the tree again.
//! Both end at the index where the ledger stood when the audit began, so that it ends although events go on coming. When all
//! rows were read, the archived files are, each with the batches of its ids, several at a time. Only then: a day may go to the
//! archive while its rows are read, and what was there no more is in a file now.
//!
//! Promises: results are taken over in order, so a saved state is one that an uninterrupted audit passes through as well.

use std::collections::BTreeMap;
use std::sync::Arc;

use certeus_tlog::note::VerifierKey;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::archive::{self, ArchiveFrom, Archives, FileJob};
use super::evidence::evidence;
use super::explain::{Case, explain};
use super::finding::{Finding, Findings, Kind};
use super::log::{self, TreePart};
use super::plan::Plan;
use super::source::{RowJob, RowsDone, Source, Standing};
use super::state::{FilePlace, Saved, StateError, Subject};
use super::suspect::Suspects;
use super::tree::{BLOCK, Signed, TreeAudit};
use super::{AuditError, Progress, Report};
use crate::Database;

/// Blocks of altered entries that are looked into.
const EXPLAINED_BLOCKS_MAX: usize = 64;

/// What to audit.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the ledger is.
    pub database: Database,
    /// Its name.
    pub ledger: String,
    /// The log's name.
    pub origin: String,
    /// The log's public keys.
    pub keys: Vec<VerifierKey>,
    /// Checkpoints that the auditor brings, with what to call them.
    pub checkpoints: Vec<(String, Vec<u8>)>,
    /// Connections that read events, or archived files, at the same time.
    pub jobs: usize,
    /// Where archived files are read.
    pub archive: ArchiveFrom,
}

/// An audit under way.
pub struct Audit {
    options: Arc<Options>,
    archives: Arc<Archives>,
    /// What was taken over so far; its tree stays behind while the next part of it is being read.
    saved: Saved,
    running: JoinSet<Result<Done, AuditError>>,
    /// Idle connections.
    sources: Vec<Source>,
    plan: Plan,
    /// Number of the next job to be begun, and of the next to be taken over.
    begun: u64,
    taken: u64,
    /// Jobs that ended before an earlier one.
    early: BTreeMap<u64, (Then, Box<RowsDone>)>,
    tree_runs: bool,
}

/// Where the audit goes on after a job.
enum Then {
    Rows(Option<Uuid>),
    Files(FilePlace),
}

enum Job {
    Rows(RowJob),
    File(FileJob),
}

enum Done {
    Rows { number: u64, then: Then, done: Box<RowsDone>, source: Source },
    Tree { part: Box<TreePart>, source: Source },
}

impl Audit {
    /// Begins an audit, or goes on with one that was saved.
    ///
    /// # Errors
    /// When the database is away or is not a ledger's, a checkpoint is not to be believed, or the saved audit is of something else.
    pub async fn start(options: Options, saved: Option<&[u8]>) -> Result<Self, AuditError> {
        let source = Source::open(&options.database).await?;
        check_schema(&source).await?;
        if !is_ledger_name(&options.ledger) {
            return Err(AuditError::NoLedger(options.ledger));
        }
        let standing = source.standing(&options.ledger).await?;
        let standing = standing.ok_or_else(|| AuditError::NoLedger(options.ledger.clone()))?;
        let brought = log::brought(&options)?;
        let subject = subject(&options, &brought);
        let saved = match saved {
            Some(bytes) => resume(Saved::from_json(bytes)?, &subject)?,
            None => begin(subject, &options, brought, &standing),
        };
        let archives = Arc::new(Archives::new(options.archive.clone()));
        archives.reach(&source, &options.ledger).await?;
        let plan = Plan::new(saved.next_id, saved.next_file);
        Ok(Self {
            options: Arc::new(options),
            archives,
            saved,
            running: JoinSet::new(),
            sources: vec![source],
            plan,
            begun: 0,
            taken: 0,
            early: BTreeMap::new(),
            tree_runs: false,
        })
    }

    /// Does some of the work; `false` when all of it is done. May be dropped while it waits: what was not taken over is done again.
    ///
    /// # Errors
    /// When the database fails. The audit can be saved nevertheless.
    pub async fn step(&mut self) -> Result<bool, AuditError> {
        self.spawn().await?;
        let Some(done) = self.running.join_next().await else { return Ok(false) };
        match done.map_err(|_panic| AuditError::Bug)?? {
            Done::Rows { number, then, done, source } => {
                self.sources.push(source);
                self.early.insert(number, (then, done));
                while let Some((then, done)) = self.early.remove(&self.taken) {
                    self.taken += 1;
                    match then {
                        Then::Rows(next_id) => self.saved.next_id = next_id,
                        Then::Files(next_file) => self.saved.next_file = next_file,
                    }
                    let RowsDone { counts, suspects, findings } = *done;
                    self.saved.counts += counts;
                    self.saved.suspects.append(suspects);
                    self.saved.findings.append(findings);
                }
            }
            Done::Tree { part, source } => {
                self.sources.push(source);
                self.tree_runs = false;
                let TreePart { tree, next_batch, findings, unknown_keys } = *part;
                self.saved.tree = tree;
                self.saved.next_batch = next_batch;
                self.saved.findings.append(findings);
                log::merge(&mut self.saved.unknown_keys, unknown_keys);
            }
        }
        Ok(true)
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        Progress {
            through: self.saved.through,
            rows: self.saved.counts,
            reads_archive: self.archives.are_read(),
            tree_size: self.saved.tree.size,
            problems: self.saved.findings.count()
                + self.saved.tree.findings.count()
                + self.saved.suspects.count()
                + self.saved.tree.altered.len() as u64,
        }
    }

    /// What is needed to go on later.
    #[must_use]
    pub fn save(&self) -> Vec<u8> {
        self.saved.to_json()
    }

    /// Begins what there is to do and a connection for.
    async fn spawn(&mut self) -> Result<(), AuditError> {
        if !self.tree_runs && self.saved.tree.size < self.saved.through {
            let source = self.source().await?;
            let (tree, options) = (self.saved.tree.clone(), Arc::clone(&self.options));
            let (signed, next_batch, through) =
                (self.saved.signed.clone(), self.saved.next_batch, self.saved.through);
            self.running.spawn(async move {
                let part = log::read_tree(&source, &options, tree, signed, next_batch, through).await?;
                Ok(Done::Tree { part: Box::new(part), source })
            });
            self.tree_runs = true;
        }
        // A slow job must not let the others run ahead for ever.
        let ahead_max = 4 * self.options.jobs as u64;
        loop {
            let row_jobs = self.running.len() - usize::from(self.tree_runs);
            if row_jobs >= self.options.jobs || self.begun - self.taken >= ahead_max {
                return Ok(());
            }
            // Nothing waits between taking a piece and beginning its job: dropping this future must not lose one.
            let source = self.source().await?;
            let Some((job, then)) = self.next_job(&source).await? else {
                self.sources.push(source);
                return Ok(());
            };
            let number = self.begun;
            self.begun += 1;
            self.running.spawn(async move {
                let done = match &job {
                    Job::Rows(job) => source.audit_rows(job).await?,
                    Job::File(job) => archive::audit_file(&source, job).await?,
                };
                Ok(Done::Rows { number, then, done: Box::new(done), source })
            });
        }
    }

    /// What is to be done next; `None` when there is nothing, or nothing yet.
    async fn next_job(&mut self, source: &Source) -> Result<Option<(Job, Then)>, AuditError> {
        let (ledger, through) = (&self.options.ledger, self.saved.through);
        if let Some(range) = self.plan.next_range(source).await? {
            let archives = Arc::clone(&self.archives);
            let job = RowJob { ledger: ledger.clone(), range, through, archives };
            return Ok(Some((Job::Rows(job), Then::Rows(range.to))));
        }
        if self.saved.next_id.is_some() || !self.archives.are_read() {
            return Ok(None);
        }
        let Some(stretch) = self.plan.next_stretch(source, ledger).await? else { return Ok(None) };
        let then = Then::Files(stretch.then);
        let archives = Arc::clone(&self.archives);
        Ok(Some((Job::File(FileJob { ledger: ledger.clone(), stretch, through, archives }), then)))
    }

    async fn source(&mut self) -> Result<Source, AuditError> {
        match self.sources.pop() {
            Some(source) => Ok(source),
            None => Source::open(&self.options.database).await,
        }
    }

    /// Judges what was found, once everything was read.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn finish(mut self) -> Result<Report, AuditError> {
        let source = self.source().await?;
        let ledger = &self.options.ledger;
        let Saved { through, signed, counts, suspects, mut tree, unknown_keys, mut findings, .. } =
            self.saved.clone();
        tree.finish();
        for one in signed.iter().filter(|one| one.size > through) {
            let detail = format!(
                "{} is of {} events, and the database holds {through}: it was cut off or restored from an old copy",
                one.source, one.size
            );
            findings.push(Finding::range(Kind::DatabaseBehind, through, one.size - 1, detail));
        }
        for (keys, count, first, last) in &unknown_keys {
            let detail = format!(
                "{count} stored checkpoints of sizes {first} to {last} are signed by none of the keys given, but by {keys}"
            );
            findings.push(Finding::about(Kind::CheckpointInvalid, None, detail));
        }
        let evidence = evidence(&source, &self.archives, ledger, &suspects).await?;
        let computed = evidence.computed_entries(ledger);
        let mut batches = Vec::new();
        for block in tree.altered.iter().take(EXPLAINED_BLOCKS_MAX) {
            batches.extend(source.spans(ledger, block.first, block.first + BLOCK).await?);
        }
        batches.dedup();
        let case = Case { blocks: &tree.altered, computed: &computed, batches: &batches, gaps: &tree.gaps };
        let (explained, rightful) = explain(&case);
        explained.into_iter().chain(evidence.judge(ledger, &rightful)).for_each(|one| findings.push(one));
        findings.append(std::mem::take(&mut tree.findings));
        let mut findings = Findings::restore(findings.kept().to_vec(), findings.count() + suspects.more);
        findings.sort();
        if self.archives.are_read() && counts.archived_unseen() > 0 && findings.count() == 0 {
            // Nothing is to be called clean that was not looked at.
            return Err(AuditError::Bug);
        }
        Ok(Report {
            ledger: ledger.clone(),
            origin: self.options.origin.clone(),
            events: through,
            rows: counts,
            confirmed: tree.confirmed,
            root: tree.root(),
            checkpoints: tree.checkpoints,
            findings,
        })
    }
}

/// Only a schema whose meaning is known can be audited.
async fn check_schema(source: &Source) -> Result<(), AuditError> {
    let found = source.schema_version().await?.ok_or(AuditError::NoSchema)?;
    let known = crate::schema::version();
    if found == known { Ok(()) } else { Err(AuditError::Schema { found, known }) }
}

/// What the schema allows as a name; it goes into statements that take no parameters.
fn is_ledger_name(name: &str) -> bool {
    let inner = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    (1..=63).contains(&name.len()) && inner && !name.starts_with('-') && !name.ends_with('-')
}

fn subject(options: &Options, brought: &[Signed]) -> Subject {
    let mut keys: Vec<String> = options.keys.iter().map(VerifierKey::to_string).collect();
    keys.sort_unstable();
    let mut checkpoints: Vec<(u64, String)> =
        brought.iter().map(|one| (one.size, one.root.to_string())).collect();
    checkpoints.sort_unstable();
    let (ledger, origin) = (options.ledger.clone(), options.origin.clone());
    Subject { ledger, origin, keys, checkpoints, archive: options.archive != ArchiveFrom::Skip }
}

fn resume(saved: Saved, subject: &Subject) -> Result<Saved, StateError> {
    let Subject { ledger, origin, keys, checkpoints, archive } = &saved.subject;
    for (same, what) in [
        (*ledger == subject.ledger, "ledger"),
        (*origin == subject.origin, "log"),
        (*keys == subject.keys, "keys"),
        (*checkpoints == subject.checkpoints, "checkpoints"),
        (*archive == subject.archive, "archived events, read or left out,"),
    ] {
        if !same {
            return Err(StateError::Other(what));
        }
    }
    Ok(saved)
}

fn begin(subject: Subject, options: &Options, mut signed: Vec<Signed>, standing: &Standing) -> Saved {
    let Standing { next_index, end, log_size, checkpoint } = standing;
    let mut findings = Findings::default();
    let mut unknown_keys = Vec::new();
    if next_index != end {
        let detail = format!(
            "the ledger's head says that {next_index} events were committed, and its batches hold {end}"
        );
        findings.push(Finding::about(Kind::HeadWrong, None, detail));
    }
    if let Some(newest) = checkpoint {
        signed.extend(log::open(newest, "the newest checkpoint", options, &mut findings, &mut unknown_keys));
    }
    let through = *(next_index.max(end));
    Saved {
        subject,
        through,
        signed,
        next_id: Some(Uuid::nil()),
        next_file: FilePlace::default(),
        counts: super::rows::RowCounts::default(),
        suspects: Suspects::default(),
        next_batch: 0,
        tree: TreeAudit { log_size: *log_size, ..TreeAudit::default() },
        unknown_keys,
        findings,
    }
}
