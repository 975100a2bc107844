//! Reads events of archived days from the archive.
//!
//! Owns the bounds of such reads: [`READS_AT_ONCE`], each of one footer and one row group. Trusts nothing of the file: an
//! event is checked with the salt and the entry that PostgreSQL keeps, as any other is.

use std::time::Duration;

use certeus_archive::{Archive, Location, LocationError};
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::{Commitment, ReadError, StoredEvent, Unchecked, time};
use crate::envelope::ENTRY_BYTES;
use crate::erasure;
use crate::id::{self, BatchId};
use crate::ledger::Ledger;
use crate::provenance::Runs;
use crate::timestamp::Timestamp;

/// Archived events being read at a time; each takes up to three times a row group's 8 MiB.
const READS_AT_ONCE: usize = 4;
/// After this long a read has failed, also one that waits for its turn.
const READ_MAX: Duration = Duration::from_secs(10);

/// The archive of this ledger.
#[derive(Debug)]
pub(crate) struct ArchiveStore {
    pub(crate) archive: Archive,
    /// As configured, for records and messages.
    pub(crate) location: String,
    reads: Semaphore,
}

impl ArchiveStore {
    pub(crate) fn open(location: &Location) -> Result<Self, LocationError> {
        let archive = Archive::open(location)?;
        Ok(Self { archive, location: location.to_string(), reads: Semaphore::new(READS_AT_ONCE) })
    }
}

impl Ledger {
    /// The event of an id, if its day was archived and dropped. `hashed` receives what was hashed before the payload.
    pub(super) async fn archived(
        &self,
        id: Uuid,
        hashed: &mut Vec<u8>,
    ) -> Result<Option<StoredEvent>, ReadError> {
        const SQL: &str = "SELECT a.name, a.location, b.first_index, b.committed_at, b.secret, \
             substring(b.salts FROM $4 FOR 32), substring(b.entries FROM $4 FOR 32), b.producers, b.key_id \
             FROM certeus.batches b \
             JOIN LATERAL (SELECT * FROM certeus.archives WHERE ledger = $3 AND first_id <= $1 \
             ORDER BY first_id DESC LIMIT 1) a ON a.last_id >= $1 \
             WHERE b.batch_id = $2 AND b.ledger = $3 AND certeus.position_of($1) < b.event_count";
        let position = id::position(id);
        let impossible = || ReadError::Impossible(id);
        let entry_start = i32::try_from(position * ENTRY_BYTES + 1).map_err(|_| impossible())?;
        let client = self.shared().pool.get().await.map_err(ReadError::Pool)?;
        let statement = client.prepare_cached(SQL).await?;
        let batch = BatchId::of(id).uuid();
        let row = client.query_opt(&statement, &[&id, &batch, &self.name(), &entry_start]).await?;
        let Some(row) = row else {
            const LOST: &str = "SELECT FROM certeus.batches b WHERE b.batch_id = $1 AND b.ledger = $2 \
                 AND certeus.position_of($3) < b.event_count";
            let statement = client.prepare_cached(LOST).await?;
            // Its batch tells of it, and it is neither here nor there: somebody took it out.
            let told = client.query_opt(&statement, &[&batch, &self.name(), &id]).await?;
            return if told.is_some() { Err(ReadError::Removed(id)) } else { Ok(None) };
        };
        let producers = Runs::read(row.get(7)).map_err(|_malformed| impossible())?;
        let commitment = Commitment::new(row.get(4), row.get(5), row.get(6), &producers, row.get(8), id);
        let commitment = commitment.ok_or_else(impossible)?;
        let erasure = match commitment.salt {
            None => erasure::of(&**client, &[id]).await?.remove(&id),
            Some(_) => None,
        };
        // A read from the archive takes long enough to give the connection back.
        drop(client);
        let (name, location): (String, String) = (row.get(0), row.get(1));
        let Some(store) = &self.shared().archive else { return Err(ReadError::Archived { id, location }) };
        let reading = async {
            let _turn = store.reads.acquire().await;
            store.archive.open_file(&name).await?.find(id).await
        };
        let found = tokio::time::timeout(READ_MAX, reading).await.map_err(|_| ReadError::ArchiveSlow)?;
        let found = found.map_err(ReadError::Archive)?.ok_or(ReadError::NotInArchive(id))?;
        let first_index: i64 = row.get(2);
        let event = Unchecked {
            id,
            index: u64::try_from(first_index).map_err(|_| impossible())? + position as u64,
            kind: found.kind,
            time: Timestamp::from_micros(found.time_micros).map_err(|_| impossible())?,
            received_at: time(&row, 3, id)?,
            payload: found.content.map(|content| content.payload.into()).unwrap_or_default(),
        };
        let mut event = event.check(self.name(), &commitment, erasure, hashed)?;
        event.archived = true;
        Ok(Some(event))
    }
}
