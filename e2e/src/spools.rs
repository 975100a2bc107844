//! The pods' spools: where they are, and the end of what was in them.
//!
//! That end is good when it is in the database, and every request that was promised gets its receipt.
//! Receipts are fetched by sending the requests again. This must come after the spools are empty, and each reply must say
//! that it is a repeat: otherwise the repeat itself would store what was lost.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::http::{self, Client, Exchange, Request};
use crate::journal::{Entry, Journal, Name, Outcome, Sequence, Ticket};
use crate::recorder::{body, headers, key_header};
use crate::wait_for;

const REPLAY_TIMEOUT: Duration = Duration::from_secs(120);
/// For the receipts of all requests of one world.
const FETCH_TIMEOUT: Duration = Duration::from_secs(120);
const REPLY_TIMEOUT: Duration = Duration::from_secs(30);
const CLIENTS: usize = 8;

/// What spools the pods have.
#[derive(Debug, Clone)]
pub struct SpoolSetup {
    /// The folder below which each pod has its own.
    pub parent: PathBuf,
    /// `spool.maxBytes`.
    pub bytes_max: &'static str,
}

impl SpoolSetup {
    /// A pod's folder in a part of the run.
    #[must_use]
    pub fn folder(&self, part: &str, pod: usize) -> PathBuf {
        self.parent.join(format!("{part}-pod-{pod}"))
    }

    /// What a pod's configuration says about it.
    #[must_use]
    pub fn config(&self, part: &str, pod: usize) -> String {
        let Self { bytes_max, .. } = self;
        let path = self.folder(part, pod);
        format!("\nspool: {{path: {}, maxBytes: {bytes_max}, persistent: true}}\n", path.display())
    }
}

/// Waits until the spools of all pods are empty, then fetches the receipt of every request that a spool promised.
///
/// # Errors
/// When a spool does not become empty, or a pod answers nothing. Wrong answers go into the journal.
pub fn fetch(journal: &Journal, apis: &[SocketAddr]) -> Result<()> {
    wait_for("the replay of all spools", REPLAY_TIMEOUT, || {
        Ok(apis
            .iter()
            .all(|api| spool(*api).is_ok_and(|(condition, records)| condition == "open" && records == 0)))
    })?;
    let mut promised = journal.without_receipt();
    // A producer that has begun a new life is told so, whatever it asks about an earlier one: whether that is stored is for
    // the checker alone.
    let lives = lives(&journal.entries());
    promised.retain(|(_, entry)| match &entry.name {
        Name::Sequence(sequence) => lives.get(&sequence.producer) == Some(&sequence.epoch),
        Name::None | Name::Key(_) => true,
    });
    let share = promised.len().div_ceil(CLIENTS).max(1);
    thread::scope(|scope| {
        let clients: Vec<_> = promised
            .chunks(share)
            .zip(apis.iter().cycle())
            .map(|(share, api)| scope.spawn(|| fetch_some(journal, *api, share)))
            .collect();
        for client in clients {
            match client.join() {
                Ok(outcome) => outcome?,
                Err(_panicked) => bail!("a client panicked"),
            }
        }
        Ok(())
    })
}

/// The newest life of each producer.
fn lives(entries: &[Entry]) -> HashMap<String, u32> {
    let mut lives = HashMap::new();
    for entry in entries {
        if let Name::Sequence(Sequence { producer, epoch, .. }) = &entry.name {
            let newest = lives.entry(producer.clone()).or_insert(*epoch);
            *newest = (*newest).max(*epoch);
        }
    }
    lives
}

fn fetch_some(journal: &Journal, api: SocketAddr, promised: &[(Ticket, Entry)]) -> Result<()> {
    let mut client = Client::new(REPLY_TIMEOUT);
    let deadline = Instant::now() + FETCH_TIMEOUT;
    for (ticket, entry) in promised {
        let (body, mut headers) = (body(entry), headers(entry));
        if let (Name::None, Outcome::Spooled { key, .. }) = (&entry.name, &entry.outcome) {
            headers.push(key_header(key.as_deref().context("a promise without a key to ask with")?));
        }
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, &value[..])).collect();
        let path = "/v1/ledger/events";
        let request = Request { method: "POST", path, headers: &headers, body: body.as_bytes() };
        let reply = loop {
            ensure!(
                Instant::now() < deadline,
                "fetching receipts took longer than {} s",
                FETCH_TIMEOUT.as_secs()
            );
            match client.send(api, &request) {
                // Nothing of the kind should happen any more, and nothing is wrong with it.
                Exchange::Reply(reply) if matches!(reply.status, 429 | 503) => {}
                Exchange::Reply(reply) => break reply,
                Exchange::NotSent | Exchange::Lost => {}
            }
            thread::sleep(Duration::from_millis(50));
        };
        let is_repeat = reply.header("idempotency-replayed") == Some("true");
        match serde_json::from_slice(&reply.body) {
            Ok(receipt) if reply.status == 201 && is_repeat => journal.acknowledged(*ticket, receipt),
            _ => journal.surprise(format!(
                "{entry:?} was spooled, and once the spools were empty the same request got {} (a repeat: {is_repeat}): {}",
                reply.status,
                String::from_utf8_lossy(&reply.body)
            )),
        }
    }
    Ok(())
}

/// A pod's spool: its condition, and how many requests are in it.
fn spool(api: SocketAddr) -> Result<(String, u64)> {
    let health = http::request(api, "GET", "/v1/ledger/health")?.json();
    let condition = health["spool"]["condition"].as_str().context("the pod has no spool")?;
    Ok((condition.to_owned(), health["spool"]["records"].as_u64().context("no number of records")?))
}

/// Sees that no pod found its spool damaged, and removes the folders.
///
/// # Errors
/// When one did, or left requests behind.
pub fn check_folders(folders: &[PathBuf]) -> Result<()> {
    for folder in folders {
        for entry in std::fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
            let path = entry?.path();
            let ending = path.extension().unwrap_or_default();
            // A `.rejected` one may be a producer's that gave it up: whether anything promised is missing was checked.
            ensure!(ending != "corrupt" && ending != "spool", "a spool ended with {}", path.display());
        }
        std::fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    Ok(())
}
