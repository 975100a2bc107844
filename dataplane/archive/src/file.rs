//! Files in the store: written piece by piece, read back in full, read one row group at a time.
//!
//! Owns uploads and range reads. Never holds a whole file. A file exists in the store only once [`FileWriter::finish`] has
//! returned, and is to be trusted only once [`Archive::verify`] has.

use std::sync::Arc;

use futures_util::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, WriteMultipart};
use parquet::file::metadata::{FooterTail, ParquetMetaData, ParquetMetaDataReader};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::Error;
use crate::format::{self, Encoder, GROUP_BYTES_MAX, GROUP_ROWS_MAX, Part};
use crate::location::Archive;
use crate::row::Row;

/// Rows of a file: some hundred megabytes in one object, which can be rewritten in well under a minute.
pub const FILE_ROWS_MAX: u64 = 1_000_000;
/// Bytes of rows after which a file ends.
pub const FILE_BYTES_MAX: u64 = 512 << 20;
/// Bytes of one part of an upload; S3 takes 10,000 parts.
const PART_BYTES: usize = 8 << 20;
/// Parts under way at a time.
const PARTS_AT_ONCE: usize = 2;
/// What a first read at the end of a file takes in: the footer of a full file has about 100 KiB.
const FOOTER_GUESS_BYTES: u64 = 128 << 10;
/// A longer footer was not written by this software.
const FOOTER_BYTES_MAX: usize = 16 << 20;

/// A file that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Its name in the archive.
    pub name: String,
    /// SHA-256 of its bytes.
    pub sha256: [u8; 32],
    /// Its length.
    pub bytes: u64,
    /// Its rows.
    pub rows: u64,
}

/// Writes a file.
pub struct FileWriter {
    name: String,
    upload: WriteMultipart,
    /// `None` while it works elsewhere, and for good if that ended badly.
    encoder: Option<Encoder>,
    hasher: Sha256,
    written_bytes: u64,
    rows: Vec<Row>,
    group_bytes: usize,
    total_rows: u64,
    total_bytes: u64,
}

impl Archive {
    /// Begins a file. Nothing is to be seen of it in the store until it is finished.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn create(&self, ledger: &str, name: &str) -> Result<FileWriter, Error> {
        let upload = self.store.put_multipart(&self.path(name)).await?;
        Ok(FileWriter {
            name: name.to_owned(),
            upload: WriteMultipart::new_with_chunk_size(upload, PART_BYTES),
            encoder: Some(Encoder::new(ledger)?),
            hasher: Sha256::new(),
            written_bytes: 0,
            rows: Vec::new(),
            group_bytes: 0,
            total_rows: 0,
            total_bytes: 0,
        })
    }

    /// Reads a file back in full and compares: its digest, the number and order of its rows, and each row with its log entry.
    ///
    /// # Errors
    /// When anything differs, or the store fails.
    pub async fn verify(&self, written: &Written) -> Result<(), Error> {
        if self.digest(&written.name).await? != (written.sha256, written.bytes) {
            return Err(Error::Digest);
        }
        let file = self.open_file(&written.name).await?;
        let (mut rows, mut last) = (0, None);
        for group in 0..file.groups() {
            for row in file.rows(group).await? {
                if last.is_some_and(|last| last >= row.id) {
                    return Err(Error::Malformed("its rows are not in the order of their ids"));
                }
                if !row.matches_entry() {
                    return Err(Error::Altered(row.id));
                }
                last = Some(row.id);
                rows += 1;
            }
        }
        if rows == written.rows { Ok(()) } else { Err(Error::Malformed("it has another number of rows")) }
    }

    /// Reads a file in full; gives SHA-256 and number of its bytes.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn digest(&self, name: &str) -> Result<([u8; 32], u64), Error> {
        let mut stream = self.store.get(&self.path(name)).await?.into_stream();
        let (mut hasher, mut bytes) = (Sha256::new(), 0);
        while let Some(piece) = stream.try_next().await? {
            hasher.update(&piece);
            bytes += piece.len() as u64;
        }
        Ok((hasher.finalize().into(), bytes))
    }

    /// Whether there is a file of this name.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn has(&self, name: &str) -> Result<bool, Error> {
        match self.store.head(&self.path(name)).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Opens a file by reading its end.
    ///
    /// # Errors
    /// When the store fails, or the file is not of this format.
    pub async fn open_file(&self, name: &str) -> Result<File, Error> {
        let path = self.path(name);
        let length = self.store.head(&path).await?.size;
        let start = length.saturating_sub(FOOTER_GUESS_BYTES);
        let mut end = self.store.get_range(&path, start..length).await?;
        let tail = end.last_chunk::<8>().ok_or(Error::Malformed("it is too short"))?;
        let footer = FooterTail::try_new(tail)?.metadata_length();
        let needed = footer.saturating_add(8);
        if footer > FOOTER_BYTES_MAX || needed as u64 > length {
            return Err(Error::Malformed("its footer is too long"));
        }
        if needed > end.len() {
            end = self.store.get_range(&path, length - needed as u64..length).await?;
        }
        let footer = end.slice(end.len() - needed..end.len() - 8);
        let metadata = blocking(move || Ok(ParquetMetaDataReader::decode_metadata(&footer)?)).await?;
        format::check(&metadata)?;
        Ok(File { store: Arc::clone(&self.store), path, metadata: Arc::new(metadata) })
    }
}

impl FileWriter {
    /// Appends a row; ids must ascend.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn push(&mut self, row: Row) -> Result<(), Error> {
        let bytes = row.bytes();
        self.group_bytes += bytes;
        self.total_bytes += bytes as u64;
        self.total_rows += 1;
        self.rows.push(row);
        if self.rows.len() >= GROUP_ROWS_MAX || self.group_bytes >= GROUP_BYTES_MAX {
            self.end_group().await?;
        }
        Ok(())
    }

    /// Whether another file is to take what follows.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.total_rows >= FILE_ROWS_MAX || self.total_bytes >= FILE_BYTES_MAX
    }

    async fn end_group(&mut self) -> Result<(), Error> {
        if self.rows.is_empty() {
            return Ok(());
        }
        self.group_bytes = 0;
        let rows = std::mem::take(&mut self.rows);
        let mut encoder = self.encoder.take().ok_or(Error::Undecodable)?;
        let (encoder, piece) = blocking(move || {
            encoder.group(&rows)?;
            let piece = encoder.take()?;
            Ok((encoder, piece))
        })
        .await?;
        self.encoder = Some(encoder);
        self.send(piece).await
    }

    async fn send(&mut self, piece: Vec<u8>) -> Result<(), Error> {
        self.hasher.update(&piece);
        self.written_bytes += piece.len() as u64;
        self.upload.wait_for_capacity(PARTS_AT_ONCE).await?;
        self.upload.put(piece.into());
        Ok(())
    }

    /// Ends the file. It is in the store when this returns.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn finish(mut self) -> Result<Written, Error> {
        self.end_group().await?;
        let Self { name, mut upload, encoder, mut hasher, mut written_bytes, total_rows, .. } = self;
        let rest = encoder.ok_or(Error::Undecodable)?.finish()?;
        hasher.update(&rest);
        written_bytes += rest.len() as u64;
        upload.put(rest.into());
        upload.finish().await?;
        Ok(Written { name, sha256: hasher.finalize().into(), bytes: written_bytes, rows: total_rows })
    }

    /// Gives up the file and what was uploaded of it.
    ///
    /// # Errors
    /// When the store fails; it then keeps the parts until it clears them away by itself.
    pub async fn abort(self) -> Result<(), Error> {
        Ok(self.upload.abort().await?)
    }
}

/// An open file.
#[derive(Debug)]
pub struct File {
    store: Arc<dyn ObjectStore>,
    path: Path,
    metadata: Arc<ParquetMetaData>,
}

impl File {
    /// Number of row groups.
    #[must_use]
    pub fn groups(&self) -> usize {
        self.metadata.num_row_groups()
    }

    /// The rows of a group.
    ///
    /// # Errors
    /// When the store fails, or the file is damaged.
    pub async fn rows(&self, group: usize) -> Result<Vec<Row>, Error> {
        let range = format::range(self.metadata.row_group(group))?;
        let start = range.start;
        let bytes = self.store.get_range(&self.path, range).await?;
        let metadata = Arc::clone(&self.metadata);
        blocking(move || format::decode(&metadata, group, Part { start, bytes })).await
    }

    /// The row group that an id is in, if it is in the file at all.
    #[must_use]
    pub fn group_of(&self, id: Uuid) -> Option<usize> {
        format::group_of(&self.metadata, id)
    }

    /// The row of an id, checked against its log entry.
    ///
    /// # Errors
    /// When the store fails, or the file is damaged.
    pub async fn find(&self, id: Uuid) -> Result<Option<Row>, Error> {
        let Some(group) = self.group_of(id) else { return Ok(None) };
        let row = self.rows(group).await?.into_iter().find(|row| row.id == id);
        match row {
            Some(row) if !row.matches_entry() => Err(Error::Altered(id)),
            found => Ok(found),
        }
    }
}

/// Compresses and decodes where it holds up nobody. A library that stumbles over damaged bytes ends the task, not the process.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(Error::Undecodable))
}

#[cfg(test)]
mod tests;
