//! A saved audit: what has been checked, so that it can go on later.
//!
//! Owns the file's format. Holds names, hashes and counts only, no salt and no payload. Whoever can change the file can hide a
//! finding: it must be kept where the auditor keeps the report.

use certeus_tlog::Hash;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::finding::{Finding, Findings, Kind};
use super::log::UnknownKeys;
use super::rows::RowCounts;
use super::suspect::Suspects;
use super::tree::{Block, Edge, Signed, TreeAudit};

/// Of this format.
const VERSION: u32 = 2;

/// Why a saved audit cannot be gone on with.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Not a saved audit.
    #[error("it is not a saved audit")]
    Format(#[from] serde_json::Error),
    /// Of another version.
    #[error(
        "it was saved by another version of this program (format {0}); finish it there, or begin with another file"
    )]
    Version(u32),
    /// A hash or name in it is malformed.
    #[error("it is damaged")]
    Damaged,
    /// Of another ledger, log, set of keys or checkpoints.
    #[error("it is of another audit: its {0} differ; use another file for this one")]
    Other(&'static str),
}

/// What an audit is about; a saved one goes on only for the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Subject {
    pub(crate) ledger: String,
    pub(crate) origin: String,
    /// The keys' text forms, sorted.
    pub(crate) keys: Vec<String>,
    /// Size and root of each checkpoint that the auditor brought.
    pub(crate) checkpoints: Vec<(u64, String)>,
    /// Whether archived files are read, from wherever.
    pub(crate) archive: bool,
}

/// Where the audit of archived files goes on: behind an id, and behind the file whose record begins with another.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FilePlace {
    /// The first id that was not audited.
    pub(crate) from: Uuid,
    /// The first id of the last file of that day that was audited; nil before the first.
    pub(crate) after: Uuid,
}

/// Everything that an audit knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Saved {
    pub(crate) subject: Subject,
    /// Size of the ledger when the audit began: where it ends.
    pub(crate) through: u64,
    /// Checkpoints to compare with besides the stored ones.
    pub(crate) signed: Vec<Signed>,
    /// Where the audit of rows goes on; `None` when it is through.
    pub(crate) next_id: Option<Uuid>,
    /// Where the audit of archived files goes on, which begins when that of rows is through.
    pub(crate) next_file: FilePlace,
    pub(crate) counts: RowCounts,
    pub(crate) suspects: Suspects,
    /// Where the audit of batches goes on: the least first index not seen.
    pub(crate) next_batch: u64,
    pub(crate) tree: TreeAudit,
    pub(super) unknown_keys: UnknownKeys,
    pub(crate) findings: Findings,
}

#[derive(Serialize, Deserialize)]
struct File {
    version: u32,
    subject: Subject,
    through: u64,
    signed: Vec<(u64, String, String)>,
    next_id: Option<Uuid>,
    next_file: FilePlace,
    counts: [u64; 7],
    altered: Vec<(u64, Uuid)>,
    missing: Vec<(u64, Uuid, u32)>,
    added: Vec<(Uuid, u32)>,
    more: u64,
    next_batch: u64,
    tree: TreeFile,
    unknown_keys: UnknownKeys,
    findings: FindingsFile,
}

#[derive(Serialize, Deserialize)]
struct TreeFile {
    size: u64,
    log_size: u64,
    leaves: Vec<String>,
    rebuilt: Vec<Vec<String>>,
    recorded: Option<Vec<Vec<String>>>,
    pending: Vec<BlockFile>,
    altered: Vec<BlockFile>,
    confirmed: u64,
    lost: Option<(u64, String, String)>,
    checkpoints: u64,
    gaps: Vec<(u64, u64)>,
    missing_tiles: Vec<Option<u64>>,
    findings: FindingsFile,
}

#[derive(Serialize, Deserialize)]
struct BlockFile {
    first: u64,
    good_to: u64,
    bad_to: u64,
    stored: String,
    leaves: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct FindingsFile {
    count: u64,
    kept: Vec<FindingFile>,
}

#[derive(Serialize, Deserialize)]
struct FindingFile {
    kind: String,
    indexes: Option<(u64, u64)>,
    id: Option<Uuid>,
    detail: String,
}

impl Saved {
    /// As the content of a file.
    pub(crate) fn to_json(&self) -> Vec<u8> {
        let Self {
            subject,
            through,
            signed,
            next_id,
            next_file,
            counts,
            suspects,
            next_batch,
            tree,
            unknown_keys,
            findings,
        } = self;
        let RowCounts {
            rehashed,
            payload_bytes,
            erased,
            archived,
            archived_rehashed,
            archived_payload_bytes,
            archived_erased,
        } = *counts;
        let Suspects { altered, missing, added, more } = suspects.clone();
        let signed = signed.iter().map(signed_text).collect();
        let file = File {
            version: VERSION,
            subject: subject.clone(),
            through: *through,
            signed,
            next_id: *next_id,
            next_file: *next_file,
            counts: [
                rehashed,
                payload_bytes,
                erased,
                archived,
                archived_rehashed,
                archived_payload_bytes,
                archived_erased,
            ],
            altered,
            missing,
            added,
            more,
            next_batch: *next_batch,
            tree: TreeFile::of(tree),
            unknown_keys: unknown_keys.clone(),
            findings: FindingsFile::of(findings),
        };
        // Strings, numbers and lists: nothing in it can fail to be written.
        serde_json::to_vec(&file).unwrap_or_default()
    }

    /// From the content of a file.
    pub(crate) fn from_json(bytes: &[u8]) -> Result<Self, StateError> {
        let version: VersionOnly = serde_json::from_slice(bytes)?;
        if version.version != VERSION {
            return Err(StateError::Version(version.version));
        }
        let file: File = serde_json::from_slice(bytes)?;
        let [
            rehashed,
            payload_bytes,
            erased,
            archived,
            archived_rehashed,
            archived_payload_bytes,
            archived_erased,
        ] = file.counts;
        let signed = file.signed.into_iter().map(signed);
        Ok(Self {
            subject: file.subject,
            through: file.through,
            signed: signed.collect::<Result<_, StateError>>()?,
            next_id: file.next_id,
            next_file: file.next_file,
            counts: RowCounts {
                rehashed,
                payload_bytes,
                erased,
                archived,
                archived_rehashed,
                archived_payload_bytes,
                archived_erased,
            },
            suspects: Suspects {
                altered: file.altered,
                missing: file.missing,
                added: file.added,
                more: file.more,
            },
            next_batch: file.next_batch,
            tree: file.tree.read()?,
            unknown_keys: file.unknown_keys,
            findings: file.findings.read()?,
        })
    }
}

#[derive(Deserialize)]
struct VersionOnly {
    version: u32,
}

impl TreeFile {
    fn of(tree: &TreeAudit) -> Self {
        let edge = |edge: &Edge| edge.open.iter().map(|open| texts(open)).collect();
        Self {
            size: tree.size,
            log_size: tree.log_size,
            leaves: texts(&tree.leaves),
            rebuilt: edge(&tree.rebuilt),
            recorded: tree.recorded.as_ref().map(edge),
            pending: tree.pending.iter().map(BlockFile::of).collect(),
            altered: tree.altered.iter().map(BlockFile::of).collect(),
            confirmed: tree.confirmed,
            lost: tree.lost.as_ref().map(signed_text),
            checkpoints: tree.checkpoints,
            gaps: tree.gaps.clone(),
            missing_tiles: tree.missing_tiles.to_vec(),
            findings: FindingsFile::of(&tree.findings),
        }
    }

    fn read(self) -> Result<TreeAudit, StateError> {
        let edge = |open: Vec<Vec<String>>| -> Result<Edge, StateError> {
            let open: Vec<Vec<Hash>> = open.iter().map(|open| hashes(open)).collect::<Result<_, _>>()?;
            Ok(Edge { open: open.try_into().map_err(|_| StateError::Damaged)? })
        };
        Ok(TreeAudit {
            size: self.size,
            log_size: self.log_size,
            leaves: hashes(&self.leaves)?,
            rebuilt: edge(self.rebuilt)?,
            recorded: self.recorded.map(edge).transpose()?,
            pending: self.pending.into_iter().map(BlockFile::read).collect::<Result<_, _>>()?,
            altered: self.altered.into_iter().map(BlockFile::read).collect::<Result<_, _>>()?,
            confirmed: self.confirmed,
            lost: self.lost.map(signed).transpose()?,
            checkpoints: self.checkpoints,
            gaps: self.gaps,
            missing_tiles: self.missing_tiles.try_into().map_err(|_| StateError::Damaged)?,
            findings: self.findings.read()?,
            ..TreeAudit::default()
        })
    }
}

impl BlockFile {
    fn of(block: &Block) -> Self {
        let Block { first, good_to, bad_to, stored, leaves } = block;
        Self {
            first: *first,
            good_to: *good_to,
            bad_to: *bad_to,
            stored: stored.to_string(),
            leaves: texts(leaves),
        }
    }

    fn read(self) -> Result<Block, StateError> {
        let Self { first, good_to, bad_to, stored, leaves } = self;
        Ok(Block { first, good_to, bad_to, stored: hash(&stored)?, leaves: hashes(&leaves)? })
    }
}

impl FindingsFile {
    fn of(findings: &Findings) -> Self {
        let finding = |one: &Finding| {
            let Finding { kind, indexes, id, detail } = one.clone();
            FindingFile { kind: kind.name().to_owned(), indexes, id, detail }
        };
        Self { count: findings.count(), kept: findings.kept().iter().map(finding).collect() }
    }

    fn read(self) -> Result<Findings, StateError> {
        let finding = |FindingFile { kind, indexes, id, detail }| {
            Ok(Finding { kind: Kind::from_name(&kind).ok_or(StateError::Damaged)?, indexes, id, detail })
        };
        let kept = self.kept.into_iter().map(finding).collect::<Result<_, StateError>>()?;
        Ok(Findings::restore(kept, self.count))
    }
}

fn signed_text(one: &Signed) -> (u64, String, String) {
    (one.size, one.root.to_string(), one.source.clone())
}

fn signed((size, root, source): (u64, String, String)) -> Result<Signed, StateError> {
    Ok(Signed { size, root: hash(&root)?, source })
}

fn hash(text: &str) -> Result<Hash, StateError> {
    Hash::from_base64(text).map_err(|_| StateError::Damaged)
}

fn hashes(texts: &[String]) -> Result<Vec<Hash>, StateError> {
    texts.iter().map(|text| hash(text)).collect()
}

fn texts(hashes: &[Hash]) -> Vec<String> {
    hashes.iter().map(Hash::to_string).collect()
}
