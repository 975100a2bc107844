//! The log's own connection: the lock, the head, entries, publications and notifications.
//!
//! Owns the SQL of sealing. The lock is the session's: when PostgreSQL ends the session, because the process was stopped
//! for longer than [`LEASE`] or its machine is gone, another sealer takes over, and the epoch keeps this one from writing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use certeus_tlog::Hash;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Error, Row, Statement};

use super::core::{Claim, Entries, Publication, StoredHead};
use crate::envelope::ENTRY_BYTES;
use crate::log::{Signed, SigningKeys};
use crate::postgres::{Database, Listener};

/// Entries read at once: 2 MiB.
pub(super) const READ_EVENTS: u64 = 1 << 16;
/// PostgreSQL ends a session that says nothing for this long. A live one speaks at least every second.
const LEASE: &str = "10s";
/// Checkpoints kept as history in full; of older ones the first of each hour stays.
const HISTORY_MAX: i64 = 1000;

/// A checkpoint was published.
pub(super) const PUBLISHED: &str = "certeus_log";
/// A checkpoint is asked for.
pub(super) const ASKED: &str = "certeus_seal";

const HEAD: &str = "SELECT h.next_index, l.tree_size, l.root, l.checkpoint, l.refused, l.epoch, \
     extract(epoch FROM clock_timestamp() - l.signed_at)::float8 \
     FROM certeus.heads h LEFT JOIN certeus.log_heads l USING (ledger) WHERE h.ledger = $1";

/// `$2` first index, `$3` index after the last.
const READ: &str = "SELECT greatest(first_index, $2), \
     substring(entries FROM (32 * greatest($2 - first_index, 0))::integer + 1 \
     FOR (32 * least(event_count, $3 - greatest(first_index, $2)))::integer) \
     FROM certeus.batches WHERE ledger = $1 AND first_index >= \
     (SELECT coalesce(max(first_index), 0) FROM certeus.batches WHERE ledger = $1 AND first_index <= $2) \
     AND first_index < $3 AND first_index + event_count > $2 ORDER BY first_index";

/// What is not known yet fences whoever seals without knowing it. `$2` sizes, `$3` roots, `$4` notes, `$5` why nothing may be
/// signed, `$6` whether that replaces the reason of another pod.
const WITNESS: &str = "WITH news AS (INSERT INTO certeus.log_witnesses (ledger, tree_size, root, note) \
     SELECT $1, w.tree_size, w.root, w.note FROM unnest($2::bigint[], $3::bytea[], $4::text[]) \
     AS w (tree_size, root, note) ON CONFLICT DO NOTHING RETURNING tree_size), \
     raise AS (SELECT count(*) > 0 AS yes FROM news), \
     told AS (UPDATE certeus.log_heads SET epoch = epoch + raise.yes::integer, \
     refused = CASE WHEN $6 THEN $5 ELSE coalesce(refused, $5) END FROM raise \
     WHERE ledger = $1 AND (raise.yes OR refused IS NULL AND $5::text IS NOT NULL OR $6 AND refused IS DISTINCT FROM $5) \
     RETURNING ledger) \
     SELECT pg_notify('certeus_log', ledger) FROM told";

/// One statement, so one transaction: head with fencing, tiles, history, notification. The claim that raised the epoch has compared
/// with all witnesses; later ones have raised it again. No row: another sealer took over.
/// `$2` epoch, `$3` old size, `$4` size, `$5` root, `$6` note, `$7`, `$8`, `$9` tiles.
const STORE: &str = "WITH head AS (UPDATE certeus.log_heads SET tree_size = $4, root = $5, checkpoint = $6, \
     signed_at = clock_timestamp(), refused = NULL WHERE ledger = $1 AND epoch = $2 AND tree_size = $3 RETURNING signed_at), \
     tiles AS (INSERT INTO certeus.log_tiles (ledger, level, tile_index, hashes) \
     SELECT $1, t.level, t.tile_index, t.hashes FROM head, unnest($7::smallint[], $8::bigint[], $9::bytea[]) \
     AS t (level, tile_index, hashes) \
     ON CONFLICT (ledger, level, tile_index) DO UPDATE SET hashes = excluded.hashes), \
     confirmed AS (DELETE FROM certeus.log_witnesses w USING head WHERE w.ledger = $1), \
     history AS (INSERT INTO certeus.checkpoints (ledger, tree_size, root, note, signed_at) \
     SELECT $1, $4, $5, $6, signed_at FROM head \
     ON CONFLICT (ledger, tree_size) DO UPDATE SET note = excluded.note), \
     old AS (SELECT tree_size, signed_at FROM certeus.checkpoints WHERE ledger = $1 \
     ORDER BY tree_size DESC OFFSET $10 LIMIT 10), \
     thinned AS (DELETE FROM certeus.checkpoints c USING old, head WHERE c.ledger = $1 AND c.tree_size = old.tree_size \
     AND (SELECT p.signed_at FROM certeus.checkpoints p WHERE p.ledger = $1 AND p.tree_size < old.tree_size \
     ORDER BY p.tree_size DESC LIMIT 1) >= date_trunc('hour', old.signed_at)) \
     SELECT pg_notify('certeus_log', $1) FROM head";

/// What the database says of the log.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) committed: u64,
    pub(super) stored: Option<StoredHead>,
    pub(super) signed_at: Instant,
    pub(super) refused: Option<String>,
    pub(super) epoch: i64,
}

/// What a pod says besides the checkpoints that it knows.
#[derive(Debug, Clone, Copy)]
pub(super) enum Refused<'a> {
    /// Nothing: they may still be reached.
    Unsaid,
    /// A reason, unless somebody gave one already.
    ByFollower(&'a str),
    /// The reason.
    BySealer(&'a str),
}

/// An open connection, listening.
pub(super) struct Session {
    ledger: String,
    listener: Listener,
    queries: Arc<Statements>,
}

struct Statements {
    head: Statement,
    read: Statement,
    store: Statement,
}

fn index(value: i64) -> u64 {
    // Check constraints keep indexes and sizes at 0 or above.
    u64::try_from(value).unwrap_or(0)
}

impl Head {
    fn of(row: &Row) -> Self {
        let (root, note): (Option<&[u8]>, Option<String>) = (row.get(2), row.get(3));
        let stored = root.and_then(|root| root.try_into().ok()).zip(note);
        let age = row.get::<_, Option<f64>>(6).unwrap_or_default();
        let age = Duration::try_from_secs_f64(age.max(0.0)).unwrap_or_default();
        Self {
            committed: index(row.get(0)),
            stored: stored.map(|(root, note)| StoredHead {
                size: row.get::<_, Option<i64>>(1).map_or(0, index),
                root: Hash(root),
                note,
            }),
            signed_at: Instant::now().checked_sub(age).unwrap_or_else(Instant::now),
            refused: row.get(4),
            epoch: row.get::<_, Option<i64>>(5).unwrap_or(0),
        }
    }
}

impl Session {
    /// Connects, and publishes the public keys. Fails until the schema is there.
    pub(super) async fn open(database: &Database, ledger: &str, keys: &SigningKeys) -> Result<Self, Error> {
        let listener = database.connect_listening().await?;
        let client = &listener.client;
        let settings = format!(
            "SET idle_session_timeout = '{LEASE}'; SET idle_in_transaction_session_timeout = '{LEASE}'; \
             LISTEN {PUBLISHED}; LISTEN {ASKED}"
        );
        client.batch_execute(&settings).await?;
        let vkeys: Vec<String> = keys.verifiers().iter().map(ToString::to_string).collect();
        let publish = "INSERT INTO certeus.log_keys (ledger, vkey) SELECT $1, unnest($2::text[]) ON CONFLICT DO NOTHING";
        client.execute(publish, &[&ledger, &vkeys]).await?;
        let (head, read, store) =
            tokio::try_join!(client.prepare(HEAD), client.prepare(READ), client.prepare(STORE))?;
        let queries = Arc::new(Statements { head, read, store });
        Ok(Self { ledger: ledger.to_owned(), listener, queries })
    }

    /// The log's head; `None` while the ledger has none.
    pub(super) async fn head(&self) -> Result<Option<Head>, Error> {
        let row = self.listener.client.query_opt(&self.queries.head, &[&self.ledger]).await?;
        Ok(row.as_ref().map(Head::of))
    }

    /// Takes the ledger's lock if nobody has it.
    pub(super) async fn try_lock(&self) -> Result<bool, Error> {
        let sql = "SELECT pg_try_advisory_lock(hashtextextended('certeus/sealer/' || $1, 0))";
        Ok(self.listener.client.query_one(sql, &[&self.ledger]).await?.get(0))
    }

    pub(super) async fn unlock(&self) -> Result<(), Error> {
        let sql = "SELECT pg_advisory_unlock(hashtextextended('certeus/sealer/' || $1, 0))";
        self.listener.client.query_one(sql, &[&self.ledger]).await.map(drop)
    }

    /// Raises the epoch: from here on no earlier sealer can write. The tree's edge is still to be read.
    pub(super) async fn claim(&self) -> Result<Option<Claim>, Error> {
        let raise = "UPDATE certeus.log_heads SET epoch = epoch + 1 WHERE ledger = $1 RETURNING epoch";
        let witnesses = "SELECT note FROM certeus.log_witnesses WHERE ledger = $1";
        self.create_head().await?;
        let Some(raised) = self.listener.client.query_opt(raise, &[&self.ledger]).await? else {
            return Ok(None);
        };
        // After the epoch: whoever adds one from here on raises it again, and this claim keeps the one that is its own.
        let witnesses = self.listener.client.query(witnesses, &[&self.ledger]).await?;
        Ok(self.head().await?.map(|head| Claim {
            epoch: raised.get(0),
            head: head.stored,
            edge: Vec::new(),
            committed: head.committed,
            witnesses: witnesses.iter().map(|row| row.get(0)).collect(),
            was_refused: head.refused.is_some(),
        }))
    }

    async fn create_head(&self) -> Result<(), Error> {
        let sql = "INSERT INTO certeus.log_heads (ledger) SELECT ledger FROM certeus.heads WHERE ledger = $1 \
             ON CONFLICT DO NOTHING";
        self.listener.client.execute(sql, &[&self.ledger]).await.map(drop)
    }

    /// Entries from an index on, at most [`READ_EVENTS`].
    pub(super) fn read(&self, from: u64) -> impl Future<Output = Result<Entries, Error>> + Send + use<> {
        let (ledger, queries) = (self.ledger.clone(), Arc::clone(&self.queries));
        let client = Arc::clone(&self.listener.client);
        async move {
            let after = from + READ_EVENTS;
            let (first, end) = (from.cast_signed(), after.cast_signed());
            let head: [&(dyn ToSql + Sync); 1] = [&ledger];
            let range: [&(dyn ToSql + Sync); 3] = [&ledger, &first, &end];
            // In this order on the server: batches below the head that was read are there.
            let (head, rows) = tokio::try_join!(
                biased;
                client.query_opt(&queries.head, &head),
                client.query(&queries.read, &range)
            )?;
            let stretches: Vec<(u64, Vec<u8>)> =
                rows.iter().map(|row| (index(row.get(0)), row.get(1))).collect();
            let end = stretches.last().map_or(0, |(first, bytes)| first + (bytes.len() / ENTRY_BYTES) as u64);
            let head = head.as_ref().map(Head::of);
            let committed = head.as_ref().map_or(0, |head| head.committed);
            Ok(Entries {
                stretches,
                // Batches that were committed between the two queries are there as well.
                committed: committed.max(end),
                more: end == after,
                seen: head.map(|head| (head.epoch, head.stored)),
            })
        }
    }

    /// Stores a publication; `false` when another sealer has taken over.
    pub(super) async fn store(&self, publication: &Publication) -> Result<bool, Error> {
        let Publication { epoch, old_size, signed, tiles } = publication;
        let size = signed.checkpoint.size().cast_signed();
        let root = signed.checkpoint.root();
        let levels: Vec<i16> = tiles.iter().map(|(tile, _)| i16::from(tile.level())).collect();
        let indexes: Vec<i64> = tiles.iter().map(|(tile, _)| tile.index().cast_signed()).collect();
        let hashes: Vec<Vec<u8>> =
            tiles.iter().map(|(_, hashes)| hashes.iter().flat_map(|hash| hash.0).collect()).collect();
        let rows = self
            .listener
            .client
            .query(
                &self.queries.store,
                &[
                    &self.ledger,
                    epoch,
                    &old_size.cast_signed(),
                    &size,
                    &&root.as_bytes()[..],
                    &signed.note,
                    &levels,
                    &indexes,
                    &hashes,
                    &HISTORY_MAX,
                ],
            )
            .await?;
        Ok(!rows.is_empty())
    }

    /// Tells all pods of checkpoints that the database should have and does not, and why nothing may be signed.
    pub(super) async fn witness(&self, known: &[Signed], refused: Refused<'_>) -> Result<(), Error> {
        let sizes: Vec<i64> = known.iter().map(|known| known.checkpoint.size().cast_signed()).collect();
        let roots: Vec<Vec<u8>> =
            known.iter().map(|known| known.checkpoint.root().as_bytes().to_vec()).collect();
        let notes: Vec<&str> = known.iter().map(|known| &known.note[..]).collect();
        let (reason, replaces) = match refused {
            Refused::Unsaid => (None, false),
            Refused::ByFollower(reason) => (Some(reason), false),
            Refused::BySealer(reason) => (Some(reason), true),
        };
        self.create_head().await?;
        let parameters: [&(dyn ToSql + Sync); 6] = [&self.ledger, &sizes, &roots, &notes, &reason, &replaces];
        self.listener.client.query(WITNESS, &parameters).await.map(drop)
    }

    /// Asks whoever seals for a checkpoint.
    pub(super) async fn ask(&self) -> Result<(), Error> {
        let sql = "SELECT pg_notify('certeus_seal', $1)";
        self.listener.client.query_one(sql, &[&self.ledger]).await.map(drop)
    }

    /// Waits for a notification about this ledger; gives its channel, and `None` when the connection has ended.
    pub(super) async fn notified(&mut self) -> Option<String> {
        loop {
            let notification = self.listener.notifications.recv().await?;
            if notification.payload() == self.ledger {
                return Some(notification.channel().to_owned());
            }
        }
    }
}
