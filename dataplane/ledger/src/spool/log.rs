//! The spool's logic over a folder: append, recover, read back in order, delete what is done.
//!
//! Owns the segments and the place up to which records were replayed. Knows nothing of clocks, threads or the database.
//! Promises: what [`Log::append`] confirmed is read back after any crash, in order, until [`Log::advance`] has passed
//! it; nothing is read that was not appended so; a file that failed once takes no further record. Limits: [`Limits`].
//!
//! One append, and where it may stop:
//! 1. a new segment's file is created, or the records go behind those of the last one: after a crash this is a torn
//!    tail, or a file without a record, and recovery cuts it off.
//! 2. file, then for a new one the folder, are synced: after a crash the records are there or not; nobody was told.
//! 3. the caller is told. From here on they are there.
//!
//! When 1 or 2 fails, what the file holds is unknown: the page cache may show bytes that will never reach the disk. The
//! segment is cut back to what was confirmed before, on a new handle; only if that succeeds is "not stored" true.

use std::collections::VecDeque;

use bytes::Bytes;

use super::directory::{Directory, Error};
use super::record::{RECORD_BYTES_MAX, admitted_ms};
use super::segment::{
    FRAME_HEAD_BYTES, Found, HEADER_BYTES, Header, Scan, Sequence, frame_at, put_frame, scan, to_usize,
};

/// Bounds of a spool.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Bytes of all its files.
    pub(crate) bytes_max: u64,
    /// A segment takes no further record once it has this many bytes.
    pub(crate) segment_bytes: u64,
    /// Bytes of the file system that stay free, so that what is not an append still works when it is nearly full.
    pub(crate) reserve_bytes: u64,
}

/// A record to append.
#[derive(Debug)]
pub(crate) struct NewRecord {
    /// When its request was admitted.
    pub(crate) admitted_ms: u64,
    /// The record's bytes.
    pub(crate) bytes: Vec<u8>,
}

impl NewRecord {
    /// Bytes that it takes in a segment.
    pub(crate) fn framed_bytes(&self) -> u64 {
        (FRAME_HEAD_BYTES + self.bytes.len()) as u64
    }
}

/// Why records were not appended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AppendError {
    /// They are not there and never will be.
    #[error("the spool cannot store the records")]
    NotStored(#[source] Error),
    /// They may come back at the next start.
    #[error("the spool cannot tell whether the records are stored")]
    Unknown(#[source] Error),
}

/// Where a record stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    /// Its segment.
    pub(crate) sequence: Sequence,
    /// Offset of its frame.
    pub(crate) offset: u64,
    /// Offset of the next frame.
    pub(crate) end: u64,
}

/// A record read back.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// Where it stands.
    pub(crate) position: Position,
    /// The record's bytes.
    pub(crate) record: Bytes,
}

/// What a scan found that somebody should know of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Finding {
    /// The last segment ended in bytes that were never acknowledged; they were cut off.
    TornTail {
        /// The segment's file.
        file: String,
        /// Bytes cut off.
        bytes: u64,
    },
    /// Acknowledged records cannot be read any more. Those before them are replayed, then the file is set aside.
    Damaged {
        /// The segment's file.
        file: String,
        /// Where the first unreadable record stands.
        offset: u64,
        /// The name that the file gets.
        set_aside_as: String,
    },
    /// Segments are missing between two that are there.
    Missing {
        /// The first that is missing.
        file: String,
        /// How many.
        count: u64,
    },
}

#[derive(Debug)]
struct Segment {
    sequence: Sequence,
    /// End of the last record that can be read.
    end: u64,
    /// End of the last record that was acknowledged; beyond `end` only when damaged.
    acknowledged: u64,
    /// Records between the replayed ones and `end`.
    records: u64,
    /// When the oldest of these was admitted.
    oldest_ms: u64,
    /// It holds acknowledged records that cannot be read, and is set aside in the end.
    damaged: bool,
}

/// What is in a spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Contents {
    /// Bytes of all files, also of those set aside.
    pub(crate) bytes: u64,
    /// Records to be replayed.
    pub(crate) records: u64,
    /// When the oldest of these was admitted.
    pub(crate) oldest_ms: Option<u64>,
    /// Files set aside because they are damaged or hold a rejected record.
    pub(crate) set_aside: u64,
}

/// A spool.
#[derive(Debug)]
pub(crate) struct Log<D: Directory> {
    directory: D,
    limits: Limits,
    /// Oldest first. Every one holds or held acknowledged records.
    segments: VecDeque<Segment>,
    /// The last segment's file, while it takes records.
    open: Option<D::File>,
    /// A file in which an append failed, and that was not cut back yet.
    suspect: Option<Sequence>,
    /// Where the first segment is replayed up to.
    replayed: u64,
    next_sequence: u64,
    /// Files that were set aside, and their bytes.
    set_aside: (u64, u64),
}

impl<D: Directory> Log<D> {
    /// Opens a spool and finds what is in it.
    pub(crate) fn recover(mut directory: D, limits: Limits) -> Result<(Self, Vec<Finding>), Error> {
        let (mut sequences, mut next_sequence, mut set_aside) = (Vec::new(), 1, (0, 0));
        for (name, bytes) in directory.list()? {
            let Some(Sequence(number)) = Sequence::of_any(&name) else { continue };
            next_sequence = next_sequence.max(number.saturating_add(1));
            if let Some(sequence) = Sequence::of_segment(&name) {
                sequences.push((sequence, bytes));
            } else {
                set_aside = (set_aside.0 + 1, set_aside.1 + bytes);
            }
        }
        sequences.sort_unstable();
        let (mut segments, mut findings) = (VecDeque::new(), Vec::new());
        // From the last to the first, as each header tells how much of the segment before it counts.
        let mut next: Option<(Sequence, Option<Header>)> = None;
        for (sequence, bytes) in sequences.into_iter().rev() {
            let acknowledged = match next {
                Some((Sequence(after), header)) if after == sequence.0 + 1 => {
                    header.map(|header| header.previous_bytes).filter(|bytes| *bytes > 0)
                }
                Some((Sequence(after), _)) => {
                    let file = Sequence(sequence.0 + 1).file_name();
                    findings.push(Finding::Missing { file, count: after - sequence.0 - 1 });
                    None
                }
                None => None,
            };
            let (header, segment) = recover_segment(
                &mut directory,
                sequence,
                bytes,
                acknowledged,
                next.is_none(),
                &mut findings,
            )?;
            // A last segment that was never finished leaves no trace.
            if let Some(segment) = segment {
                segments.push_front(segment);
                next = Some((sequence, header));
            }
        }
        findings.reverse();
        // The number of a file that held nothing is taken again, so that there is no gap.
        next_sequence = segments.back().map_or(next_sequence, |last: &Segment| last.sequence.0 + 1);
        let replayed = HEADER_BYTES as u64;
        Ok((
            Self {
                directory,
                limits,
                segments,
                open: None,
                suspect: None,
                replayed,
                next_sequence,
                set_aside,
            },
            findings,
        ))
    }

    /// What is in the spool.
    pub(crate) fn contents(&self) -> Contents {
        Contents {
            bytes: self.bytes(),
            records: self.segments.iter().map(|segment| segment.records).sum(),
            oldest_ms: self.segments.iter().find(|segment| segment.records > 0).map(|one| one.oldest_ms),
            set_aside: self.set_aside.0,
        }
    }

    fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.acknowledged).sum::<u64>() + self.set_aside.1
    }

    /// Bytes that appended records may take now, frames included.
    pub(crate) fn room(&mut self) -> Result<u64, Error> {
        let within_bound = self.limits.bytes_max.saturating_sub(self.bytes());
        let free = self.directory.free_bytes()?.saturating_sub(self.limits.reserve_bytes);
        Ok(within_bound.min(free).saturating_sub(HEADER_BYTES as u64))
    }

    /// Makes records durable, all of them or none.
    pub(crate) fn append(&mut self, records: &[NewRecord]) -> Result<(), AppendError> {
        assert!(!records.is_empty(), "an append of no record");
        // As long as one file is in doubt, nothing may follow it.
        self.reopen().map_err(AppendError::NotStored)?;
        let (sequence, durable) = match self.segments.back() {
            Some(last) if self.open.is_some() && last.end < self.limits.segment_bytes => {
                (last.sequence, last.end)
            }
            _ => (Sequence(self.next_sequence), 0),
        };
        let new = durable == 0;
        let mut bytes = Vec::new();
        if new {
            let previous_bytes = self.segments.back().map_or(0, |last| last.acknowledged);
            bytes.extend_from_slice(&Header { sequence, previous_bytes }.encode());
        }
        for record in records {
            put_frame(&mut bytes, durable, sequence, durable, &record.bytes);
        }
        if let Err(error) = self.write(sequence, new, &bytes) {
            // The handle is never used again.
            self.open = None;
            self.suspect = Some(sequence);
            return Err(match self.reopen() {
                Ok(()) => AppendError::NotStored(error),
                Err(_cannot_be_cut_back) => AppendError::Unknown(error),
            });
        }
        if new {
            self.next_sequence += 1;
            self.segments.push_back(Segment {
                sequence,
                end: 0,
                acknowledged: 0,
                records: 0,
                oldest_ms: records[0].admitted_ms,
                damaged: false,
            });
        }
        if let Some(last) = self.segments.back_mut() {
            if last.records == 0 {
                last.oldest_ms = records[0].admitted_ms;
            }
            last.end = durable + bytes.len() as u64;
            last.acknowledged = last.end;
            last.records += records.len() as u64;
        }
        Ok(())
    }

    fn write(&mut self, sequence: Sequence, new: bool, bytes: &[u8]) -> Result<(), Error> {
        if new {
            self.open = None;
            self.open = Some(self.directory.create(&sequence.file_name())?);
        }
        let file = self.open.as_mut().expect("the last segment is open, or was just created");
        self.directory.write(file, bytes)?;
        self.directory.sync(file)?;
        if new { self.directory.sync_names() } else { Ok(()) }
    }

    /// Whether a failed append left a file in doubt, so that nothing can be appended before [`Self::reopen`].
    pub(crate) fn in_doubt(&self) -> bool {
        self.suspect.is_some()
    }

    /// Cuts a file in which an append failed back to its acknowledged records, and reads these again.
    pub(crate) fn reopen(&mut self) -> Result<(), Error> {
        let Some(sequence) = self.suspect else { return Ok(()) };
        let name = sequence.file_name();
        match self.segments.back_mut().filter(|last| last.sequence == sequence) {
            Some(last) => {
                self.directory.truncate(&name, last.acknowledged)?;
                let bytes = self.directory.read(&name, 0, to_usize(last.acknowledged))?;
                let found = scan(&bytes, sequence, Some(last.acknowledged));
                // Replay finds a record that has become unreadable by itself, when it comes to it.
                last.damaged |= found.damaged;
            }
            None => {
                self.directory.remove(&name)?;
                self.directory.sync_names()?;
            }
        }
        self.suspect = None;
        Ok(())
    }

    /// The next records to replay, oldest first: at least one if there is any, and not many more than `bytes_max`.
    pub(crate) fn read(&mut self, bytes_max: usize) -> Result<(Vec<Entry>, Option<Finding>), Error> {
        self.discard_replayed()?;
        let Some(first) = self.segments.front() else { return Ok((Vec::new(), None)) };
        let (sequence, name) = (first.sequence, first.sequence.file_name());
        let base = self.replayed;
        let available = to_usize(first.end - base);
        let mut wanted = available.min(bytes_max.max(FRAME_HEAD_BYTES));
        let entries = loop {
            let bytes = Bytes::from(self.directory.read(&name, base, wanted)?);
            let (entries, at, next) = entries_in(&bytes, base, sequence);
            match next {
                _ if at == wanted => break entries,
                // The window ends within this frame, which is for the next time unless it is the first.
                Found::Needs(count) if bytes.len() == wanted && at + count <= available => {
                    if !entries.is_empty() {
                        break entries;
                    }
                    wanted = count;
                }
                Found::Frame(_) | Found::Needs(_) | Found::Nothing => {
                    let finding = self.damaged_at(base + at as u64, entries.len() as u64);
                    return Ok((entries, Some(finding)));
                }
            }
        };
        if let (Some(first), Some(entry)) = (self.segments.front_mut(), entries.first()) {
            first.oldest_ms = admitted_ms(&entry.record);
        }
        Ok((entries, None))
    }

    /// The first segment cannot be read from here on, with this many records before.
    fn damaged_at(&mut self, offset: u64, records: u64) -> Finding {
        if self.segments.len() == 1 {
            self.open = None;
        }
        let first = self.segments.front_mut().expect("the segment that was just read");
        first.end = offset;
        first.damaged = true;
        first.records = records;
        Finding::Damaged {
            file: first.sequence.file_name(),
            offset,
            set_aside_as: first.sequence.corrupt_name(),
        }
    }

    /// Everything up to here is committed, or set aside by [`Self::reject`].
    pub(crate) fn advance(&mut self, done: Position, records: u64) -> Result<(), Error> {
        let first = self.segments.front_mut().filter(|first| first.sequence == done.sequence);
        let first = first.expect("only the first segment is replayed");
        assert!(
            self.replayed <= done.end && done.end <= first.end,
            "replay went from {} to {} of {}",
            self.replayed,
            done.end,
            first.end
        );
        self.replayed = done.end;
        first.records = first.records.saturating_sub(records);
        self.discard_replayed()
    }

    /// Deletes segments of which everything is done. One that fails is tried again at the next call.
    fn discard_replayed(&mut self) -> Result<(), Error> {
        while let Some(first) = self.segments.front()
            && self.replayed >= first.end
        {
            if self.suspect == Some(first.sequence) {
                self.reopen()?;
                continue;
            }
            let name = first.sequence.file_name();
            if self.segments.len() == 1 {
                self.open = None;
            }
            if first.damaged {
                self.directory.rename(&name, &first.sequence.corrupt_name())?;
            } else {
                self.directory.remove(&name)?;
            }
            // Before the next one goes: a gap would look like a loss.
            self.directory.sync_names()?;
            if first.damaged {
                self.set_aside = (self.set_aside.0 + 1, self.set_aside.1 + first.acknowledged);
            }
            self.segments.pop_front();
            self.replayed = HEADER_BYTES as u64;
        }
        Ok(())
    }

    /// Keeps a record that the database refused for good, in a file of its own. Gives the file's name.
    pub(crate) fn reject(&mut self, entry: &Entry) -> Result<String, Error> {
        let Position { sequence, offset, .. } = entry.position;
        let name = sequence.rejected_name(offset);
        let mut bytes = Header { sequence, previous_bytes: 0 }.encode().to_vec();
        put_frame(&mut bytes, 0, sequence, 0, &entry.record);
        // From an earlier run that was stopped before the record was done.
        self.directory.remove(&name)?;
        let mut file = self.directory.create(&name)?;
        self.directory.write(&mut file, &bytes)?;
        self.directory.sync(&mut file)?;
        self.directory.sync_names()?;
        self.set_aside = (self.set_aside.0 + 1, self.set_aside.1 + bytes.len() as u64);
        Ok(name)
    }
}

/// The records at the beginning of some bytes of a segment, where they end, and what stands there.
fn entries_in(bytes: &Bytes, base: u64, sequence: Sequence) -> (Vec<Entry>, usize, Found) {
    let (mut entries, mut at) = (Vec::new(), 0);
    loop {
        let next = frame_at(bytes, at, base, sequence);
        let Found::Frame(record) = next else { return (entries, at, next) };
        let position = Position { sequence, offset: base + at as u64, end: base + record.end as u64 };
        at = record.end;
        entries.push(Entry { position, record: bytes.slice(record) });
    }
}

/// Scans one segment's file; no segment when it never held an acknowledged record.
fn recover_segment<D: Directory>(
    directory: &mut D,
    sequence: Sequence,
    bytes: u64,
    acknowledged: Option<u64>,
    is_last: bool,
    findings: &mut Vec<Finding>,
) -> Result<(Option<Header>, Option<Segment>), Error> {
    let name = sequence.file_name();
    let contents = directory.read(&name, 0, to_usize(bytes))?;
    let Scan { header, records, valid_bytes, damaged } = scan(&contents, sequence, acknowledged);
    // Only the last segment may have been cut off in the middle of a write.
    let damaged = damaged || (!is_last && acknowledged.is_none() && valid_bytes < contents.len() as u64);
    if is_last && !damaged && records.is_empty() {
        directory.remove(&name)?;
        directory.sync_names()?;
        findings.push(Finding::TornTail { file: name, bytes });
        return Ok((None, None));
    }
    if damaged {
        let set_aside_as = sequence.corrupt_name();
        findings.push(Finding::Damaged { file: name, offset: valid_bytes, set_aside_as });
    } else if is_last && valid_bytes < bytes {
        directory.truncate(&name, valid_bytes)?;
        findings.push(Finding::TornTail { file: name, bytes: bytes - valid_bytes });
    }
    let oldest_ms = records.first().map_or(0, |record| admitted_ms(&contents[record.clone()]));
    let segment = Segment {
        sequence,
        end: valid_bytes,
        acknowledged: if damaged { acknowledged.unwrap_or(bytes) } else { valid_bytes },
        records: records.len() as u64,
        oldest_ms,
        damaged,
    };
    Ok((header, Some(segment)))
}

// A record and its frame fit a file that is read whole.
const _: () = assert!(RECORD_BYTES_MAX + FRAME_HEAD_BYTES + HEADER_BYTES < u32::MAX as usize);

#[cfg(test)]
mod tests;
