//! Reads the suspects again, once all of them are known.
//!
//! Owns where a suspect's content is found: in the database, or else in the archive. Never judges, and never drops one.

use uuid::Uuid;

use super::AuditError;
use super::archive::{Archives, Finder};
use super::finding::Kind;
use super::source::Source;
use super::suspect::{Added, Altered, CONTENTS_MAX, Content, Displaced, Evidence, Missing, Suspects};
use crate::id::BatchId;

/// The suspects with what is needed to judge them.
pub(super) async fn evidence(
    source: &Source,
    archives: &Archives,
    ledger: &str,
    suspects: &Suspects,
) -> Result<Evidence, AuditError> {
    let Suspects { altered, missing, added, more: _ } = suspects;
    let archived_days = source.archived_days(ledger).await?;
    let is_archived = |id: Uuid| archived_days.contains(&BatchId::of(id).day().suffix());
    let mut contents = Contents { source, archived: Finder::new(archives, source, ledger), read: 0 };
    let mut evidence = Evidence::default();
    for (index, id) in altered {
        let Some(place) = source.place(*index, *id).await? else {
            let (kind, count) = (Kind::EventAltered, 1);
            evidence.displaced.push(Displaced { kind, index: *index, id: *id, count });
            continue;
        };
        let content = contents.of(*id, is_archived(*id)).await?;
        evidence.altered.push(Altered { place, content });
    }
    for (index, id, count) in missing {
        let Some(place) = source.place(*index, *id).await? else {
            let (kind, count) = (Kind::EventMissing, *count);
            evidence.displaced.push(Displaced { kind, index: *index, id: *id, count });
            continue;
        };
        evidence.missing.push(Missing { place, count: *count, archived: is_archived(*id) });
    }
    for (id, count) in added {
        let content = contents.of(*id, is_archived(*id)).await?;
        evidence.added.push(Added { id: *id, count: *count, content });
    }
    Ok(evidence)
}

/// Reads what suspects hold, as many as are judged by it.
struct Contents<'a> {
    source: &'a Source,
    archived: Finder<'a>,
    read: usize,
}

impl Contents<'_> {
    async fn of(&mut self, id: Uuid, archived: bool) -> Result<Option<Content>, AuditError> {
        self.read += 1;
        if self.read > CONTENTS_MAX {
            return Ok(None);
        }
        match self.source.content(id).await? {
            None if archived => Ok(self.archived.find(id).await?.map(Content::of_archived)),
            content => Ok(content),
        }
    }
}
