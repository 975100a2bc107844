//! The events of a case, in log order.
//!
//! Owns the read of `certeus.cases`, which the commit fills. Never writes. Limits: a page holds at most
//! [`PAGE_EVENTS_MAX`] events.

use uuid::Uuid;

use crate::ledger::Ledger;
use crate::store::{PAGE_EVENTS_MAX, ReadError};

/// An event of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CaseEvent {
    /// Its index in the ledger.
    pub index: u64,
    /// Its id.
    pub id: Uuid,
}

/// A page of a case's events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CasePage {
    /// The events in index order.
    pub events: Vec<CaseEvent>,
    /// Where the next page begins; `None` at the end.
    pub next_index: Option<u64>,
}

impl Ledger {
    /// The events of a case from `first_index` on, at most `limit` of them. Nothing is known of a case but its events: one
    /// without any is empty.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn case_events(
        &self,
        case_id: &str,
        first_index: u64,
        limit: usize,
    ) -> Result<CasePage, ReadError> {
        const SQL: &str = "SELECT index, id FROM certeus.cases \
             WHERE ledger = $1 AND case_id = $2 AND index >= $3 ORDER BY index LIMIT $4";
        let limit = limit.clamp(1, PAGE_EVENTS_MAX);
        let Ok(first) = i64::try_from(first_index) else {
            return Ok(CasePage { events: Vec::new(), next_index: None });
        };
        // One more, whose index is where the next page begins.
        let rows_max = i64::try_from(limit + 1).unwrap_or(i64::MAX);
        let client = self.shared().pool.get().await.map_err(ReadError::Pool)?;
        let statement = client.prepare_cached(SQL).await?;
        let rows = client.query(&statement, &[&self.name(), &case_id, &first, &rows_max]).await?;
        let mut events = Vec::with_capacity(rows.len());
        for row in rows {
            let id: Uuid = row.get(1);
            let index = u64::try_from(row.get::<_, i64>(0)).map_err(|_| ReadError::Impossible(id))?;
            events.push(CaseEvent { index, id });
        }
        let next_index = (events.len() > limit).then(|| events.pop().map(|event| event.index)).flatten();
        Ok(CasePage { events, next_index })
    }
}
