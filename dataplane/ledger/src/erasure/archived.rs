//! Erases an event from its archived file: the file is written again without it.
//!
//! Owns the replacement of a file. Promises: the new file is read back before the record is changed, and the record changes
//! in the erasure's own transaction. The old file is deleted afterwards; one that cannot be deleted now stands in
//! `certeus.archive_leftovers` until it can.

use certeus_archive::{Archive, FileWriter, Written};
use rand::RngExt;
use tokio_postgres::{Client, Transaction};
use uuid::Uuid;

use super::EraseError;
use crate::id::BatchId;
use crate::ledger::Ledger;
use crate::postgres::describe;
use crate::retention::{self, RetentionError, file_name};
use crate::store::ReadError;

/// Puts a file without the event's payload in the place of the one that has it.
pub(super) async fn replace_file(
    ledger: &Ledger,
    transaction: &Transaction<'_>,
    id: Uuid,
) -> Result<(), EraseError> {
    let Some(store) = &ledger.shared().archive else { return Err(ReadError::NotInArchive(id).into()) };
    let sql = "SELECT name, first_id, first_index, events, erased FROM certeus.archives \
               WHERE ledger = $1 AND first_id <= $2 ORDER BY first_id DESC LIMIT 1";
    let row = transaction.query_one(sql, &[&ledger.name(), &id]).await?;
    let (old, first_id): (String, Uuid) = (row.get(0), row.get(1));
    let (events, erased): (i64, i64) = (row.get(3), row.get(4));
    let first_index = u64::try_from(row.get::<_, i64>(2)).map_err(|_| ReadError::Impossible(id))?;
    let name = file_name(ledger.name(), BatchId::of(id).day(), first_index, rand::rng().random());
    // Beside the transaction, so that the note is there before the file.
    retention::note_file(&**notes(ledger).await?, &name).await?;
    let written = match write_without(&store.archive, ledger.name(), &old, &name, id).await {
        // A file that lost rows since it was read back must not pass them on as none.
        Ok(written) if i64::try_from(written.rows).ok() != Some(events) => {
            Err(EraseError::Archive(certeus_archive::Error::Malformed("it has lost rows")))
        }
        outcome => outcome,
    };
    let written = match written {
        Ok(written) => written,
        Err(error) => {
            retention::give_up_file(&**notes(ledger).await?, &name).await;
            return Err(error);
        }
    };
    let replaced =
        retention::replace_file(transaction, ledger.name(), first_id, &old, &written, erased + 1).await;
    replaced.map_err(|error| match error {
        RetentionError::Database(error) => error.into(),
        // Another pod has replaced the file meanwhile, for another event of it.
        _ => EraseError::Busy,
    })
}

/// A connection for notes of files.
async fn notes(ledger: &Ledger) -> Result<deadpool_postgres::Client, EraseError> {
    Ok(ledger.shared().pool.get().await.map_err(ReadError::Pool)?)
}

/// Copies a file but for one event's content, and reads the copy back.
async fn write_without(
    archive: &Archive,
    ledger: &str,
    old: &str,
    name: &str,
    id: Uuid,
) -> Result<Written, EraseError> {
    let mut writer = archive.create(ledger, name).await.map_err(EraseError::Archive)?;
    if let Err(error) = copy(archive, old, id, &mut writer).await {
        // What it was is not worth more than the reason.
        let _parts_stay_at_worst = writer.abort().await;
        return Err(EraseError::Archive(error));
    }
    let written = writer.finish().await.map_err(EraseError::Archive)?;
    archive.verify(&written).await.map_err(EraseError::Archive)?;
    Ok(written)
}

async fn copy(
    archive: &Archive,
    old: &str,
    id: Uuid,
    writer: &mut FileWriter,
) -> Result<(), certeus_archive::Error> {
    let file = archive.open_file(old).await?;
    for group in 0..file.groups() {
        for mut row in file.rows(group).await? {
            if row.id == id {
                row.content = None;
            }
            writer.push(row).await?;
        }
    }
    Ok(())
}

/// Deletes what was replaced, if the store lets us; else the retention does it later.
pub(super) async fn delete_replaced(ledger: &Ledger, client: &mut Client) {
    let Some(store) = &ledger.shared().archive else { return };
    if let Err(error) = retention::delete_leftovers(client, &store.archive).await {
        tracing::warn!(reason = describe(&error), "a file with an erased event cannot be deleted yet");
    }
}
