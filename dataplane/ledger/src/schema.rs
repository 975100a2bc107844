//! The database schema: migrations, partitions, and the checks that make the database fit for a ledger.
//!
//! Owns the order of migrations and the naming of partitions. Several pods may call all of this at once: each step
//! takes an advisory lock and finds done what another did. Never drops anything but remembered requests that are too old;
//! `retention` drops days of events.

use tokio_postgres::{Client, Error, Transaction};

use crate::id::Day;
use crate::postgres::REQUESTS_PREFIX;
use crate::request::Period;

/// Migrations in order; the version of each is its place, from 1. Never edit one that was released.
const MIGRATIONS: &[&str] = &[
    include_str!("../migrations/0001_ledger.sql"),
    include_str!("../migrations/0002_log.sql"),
    include_str!("../migrations/0003_requests.sql"),
    include_str!("../migrations/0004_erasure.sql"),
    include_str!("../migrations/0005_encryption.sql"),
    include_str!("../migrations/0007_archive.sql"),
    include_str!("../migrations/0006_bundles.sql"),
    include_str!("../migrations/0008_witnesses.sql"),
];

/// Key of the advisory lock under which the schema changes: "certeus" in ASCII.
const LOCK: i64 = 0x63_65_72_74_65_75_73;

/// Why the database cannot hold a ledger.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SchemaError {
    /// A statement failed.
    #[error("cannot {action}")]
    Sql {
        /// What was being done.
        action: &'static str,
        /// The database's answer.
        #[source]
        source: Error,
    },
    /// No connection could be had.
    #[error("cannot connect to the database")]
    Connect(#[from] deadpool_postgres::PoolError),
    /// The schema was made by a newer version of this software.
    #[error(
        "the database schema has version {found}, and this version knows up to {known}: upgrade this software"
    )]
    TooNew {
        /// Version in the database.
        found: i32,
        /// Newest version known here.
        known: usize,
    },
    /// The server loses acknowledged commits on a crash.
    #[error("the PostgreSQL server runs with fsync = off, so nothing it acknowledges is durable: turn it on")]
    NoFsync,
}

fn sql(action: &'static str) -> impl Fn(Error) -> SchemaError {
    move |source| SchemaError::Sql { action, source }
}

/// The version that this software knows.
pub(crate) fn version() -> i32 {
    i32::try_from(MIGRATIONS.len()).unwrap_or(i32::MAX)
}

/// Brings the schema up to date and makes sure that the ledger has a head.
pub(crate) async fn migrate(client: &mut Client, ledger: &str) -> Result<(), SchemaError> {
    let fsync: String = client.query_one("SHOW fsync", &[]).await.map_err(sql("read a setting"))?.get(0);
    if fsync != "on" {
        return Err(SchemaError::NoFsync);
    }
    let transaction = client.transaction().await.map_err(sql("begin a transaction"))?;
    transaction
        .execute("SELECT pg_advisory_xact_lock($1)", &[&LOCK])
        .await
        .map_err(sql("lock the schema"))?;
    let exists = "SELECT to_regclass('certeus.migrations') IS NOT NULL";
    if !transaction.query_one(exists, &[]).await.map_err(sql("look for the schema"))?.get::<_, bool>(0) {
        let create = "CREATE SCHEMA IF NOT EXISTS certeus; CREATE TABLE certeus.migrations \
             (version integer PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())";
        let action = "create the schema (the role needs the CREATE privilege on the database)";
        transaction.batch_execute(create).await.map_err(sql(action))?;
    }
    let found: i32 = transaction
        .query_one("SELECT coalesce(max(version), 0) FROM certeus.migrations", &[])
        .await
        .map_err(sql("read the schema's version"))?
        .get(0);
    let applied = usize::try_from(found).unwrap_or(0);
    if applied > MIGRATIONS.len() {
        return Err(SchemaError::TooNew { found, known: MIGRATIONS.len() });
    }
    for (version, migration) in (1_i32..).zip(MIGRATIONS).skip(applied) {
        transaction.batch_execute(migration).await.map_err(sql("migrate the schema"))?;
        transaction
            .execute("INSERT INTO certeus.migrations (version) VALUES ($1)", &[&version])
            .await
            .map_err(sql("record a migration"))?;
        tracing::info!(version, "schema migrated");
    }
    transaction
        .execute("INSERT INTO certeus.heads (ledger) VALUES ($1) ON CONFLICT DO NOTHING", &[&ledger])
        .await
        .map_err(sql("create the ledger's head"))?;
    transaction.commit().await.map_err(sql("commit a migration"))
}

/// Name of the partition that holds a day's events.
pub(crate) fn partition(day: Day) -> String {
    format!("certeus.events_{}", day.suffix())
}

/// Makes sure that a day's partition exists.
pub(crate) async fn ensure_partition(client: &mut Client, day: Day) -> Result<(), Error> {
    let bounds = format!("FROM ('{}') TO ('{}')", day.first_id(), day.next().first_id());
    ensure(client, &partition(day), "certeus.events", &bounds).await
}

/// Makes sure that the partitions exist which the requests of a day are entered into.
pub(crate) async fn ensure_request_partitions(client: &mut Client, day: Day) -> Result<(), Error> {
    for period in Period::of_request(day) {
        let bounds = format!("IN ({})", period.number());
        let table = format!("certeus.{}", request_partition(period));
        ensure(client, &table, "certeus.requests", &bounds).await?;
    }
    Ok(())
}

/// Name, without the schema, of the partition that remembers a period's requests: by its first day, so that names sort by time.
fn request_partition(period: Period) -> String {
    format!("{REQUESTS_PREFIX}{}", period.first_day().suffix())
}

/// Creates a partition unless it exists.
async fn ensure(client: &mut Client, table: &str, parent: &str, bounds: &str) -> Result<(), Error> {
    let exists = client.query_one("SELECT to_regclass($1) IS NOT NULL", &[&table]).await?;
    if exists.get(0) {
        return Ok(());
    }
    let transaction = change_partitions(client).await?;
    let create = format!("CREATE TABLE IF NOT EXISTS {table} PARTITION OF {parent} FOR VALUES {bounds}");
    transaction.batch_execute(&create).await?;
    transaction.commit().await?;
    tracing::info!(partition = table, "partition created");
    Ok(())
}

/// Begins to create or drop partitions, which locks their parent. While a long read holds that up, everybody else waits behind
/// us, with requests commits, too: it must not be for long.
async fn change_partitions(client: &mut Client) -> Result<Transaction<'_>, Error> {
    let transaction = client.transaction().await?;
    transaction.batch_execute("SET LOCAL lock_timeout = '5s'").await?;
    transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&LOCK]).await?;
    transaction.batch_execute("SET LOCAL lock_timeout = '1s'").await?;
    Ok(transaction)
}

/// Drops the partitions of requests that need not be remembered any more, by the database's clock.
pub(crate) async fn drop_old_requests(client: &mut Client) -> Result<(), Error> {
    const TODAY: &str = "SELECT ((now() AT TIME ZONE 'UTC')::date - date '1970-01-01')::bigint";
    const OLD: &str = "SELECT relname FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid \
         WHERE inhparent = 'certeus.requests'::regclass AND relname < $1 ORDER BY relname";
    let today: i64 = client.query_one(TODAY, &[]).await?.get(0);
    let oldest = Period::oldest_needed(Day::of_number(u32::try_from(today).unwrap_or(0)));
    let old = client.query(OLD, &[&request_partition(oldest)]).await?;
    for row in old {
        let table = format!("certeus.{}", row.get::<_, &str>(0));
        let transaction = change_partitions(client).await?;
        transaction.batch_execute(&format!("DROP TABLE IF EXISTS {table}")).await?;
        transaction.commit().await?;
        tracing::info!(partition = table, "partition of old requests dropped");
    }
    Ok(())
}
