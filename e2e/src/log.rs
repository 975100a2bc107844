//! The signed log as an outsider sees it: watches what pods show, and computes what they ought to show.
//!
//! The tree is computed here from RFC 6962, section 2.1, alone; signatures and the checkpoint's text are read with
//! `certeus-tlog`, whose vectors are those of others.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use certeus_tlog::checkpoint::Checkpoint;
use certeus_tlog::note::{Algorithm, SignerKey, VerifierKey};
use sha2::{Digest, Sha256};

use crate::http::{self, Exchange, Request};
use crate::recorder::Targets;

const ORIGIN: &str = "e2e.example/log";
const WATCH_EVERY: Duration = Duration::from_millis(100);
/// A frozen pod does not answer; the others are still to be looked at.
const REPLY_TIMEOUT: Duration = Duration::from_millis(500);

/// A key that signs the log of a run.
pub struct LogKey(SignerKey);

impl LogKey {
    /// The key of a seed.
    ///
    /// # Errors
    /// When there is none.
    pub fn new(seed: u64) -> Result<Self> {
        let mut bytes = [7; 32];
        bytes[..8].copy_from_slice(&seed.to_be_bytes());
        SignerKey::from_seed(ORIGIN, Algorithm::Ed25519, bytes).map(Self).context("cannot make a signing key")
    }

    /// As pods take it.
    #[must_use]
    pub fn secret(&self) -> String {
        self.0.to_secret_text().to_string()
    }

    /// Signs a checkpoint that nobody should have signed.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn forge(&self, size: u64, root: [u8; 32]) -> Result<String> {
        let checkpoint = Checkpoint::new(ORIGIN, size, certeus_tlog::Hash(root))?;
        let note = certeus_tlog::note::SignedNote::sign(checkpoint.to_text(), [&self.0], 0)?;
        Ok(note.to_string())
    }

    fn verifier(&self) -> VerifierKey {
        self.0.verifier().clone()
    }
}

impl std::fmt::Debug for LogKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("LogKey").finish_non_exhaustive()
    }
}

/// A checkpoint that a pod showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shown {
    /// Events that it covers.
    pub size: u64,
    /// Root of their tree.
    pub root: [u8; 32],
}

/// Everything that was shown so far.
#[derive(Debug, Default)]
struct Seen {
    shown: BTreeSet<Shown>,
    /// The newest of each pod: a pod never goes back.
    newest: HashMap<SocketAddr, u64>,
    surprises: Vec<String>,
}

/// Looks at every pod's checkpoint all the time.
#[derive(Debug)]
pub struct Watcher {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Starts to watch the pods at these addresses, which change with the pods.
    #[must_use]
    pub fn start(key: &LogKey, pods: &Targets) -> Self {
        let (seen, stop) = (Arc::new(Mutex::new(Seen::default())), Arc::new(AtomicBool::new(false)));
        let watch = Watch { key: key.verifier(), pods: pods.clone(), seen: Arc::clone(&seen) };
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                watch.look_at_all();
                std::thread::sleep(WATCH_EVERY);
            }
        });
        Self { seen, stop, thread: Some(thread) }
    }

    /// All checkpoints that were shown, and what must never be shown.
    #[must_use]
    pub fn seen(&self) -> (BTreeSet<Shown>, Vec<String>) {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        (seen.shown.clone(), seen.surprises.clone())
    }
}

impl Watcher {
    /// What the pod at this address covers, if it has shown anything.
    #[must_use]
    pub fn newest(&self, pod: SocketAddr) -> Option<u64> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.newest.get(&pod).copied()
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic in it has been printed.
            let _ended = thread.join();
        }
    }
}

struct Watch {
    key: VerifierKey,
    pods: Targets,
    seen: Arc<Mutex<Seen>>,
}

impl Watch {
    fn look_at_all(&self) {
        for pod in self.pods.all() {
            let request = Request { method: "GET", path: "/log/default/checkpoint", headers: &[], body: b"" };
            let Exchange::Reply(reply) = http::Client::new(REPLY_TIMEOUT).send(pod, &request) else {
                continue;
            };
            if reply.status != 200 {
                continue;
            }
            let opened = Checkpoint::open(&reply.body, ORIGIN, std::slice::from_ref(&self.key));
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            match opened {
                Ok((checkpoint, _)) => {
                    let shown = Shown { size: checkpoint.size(), root: *checkpoint.root().as_bytes() };
                    seen.shown.insert(shown);
                    let before = seen.newest.insert(pod, shown.size).unwrap_or(0);
                    if before > shown.size {
                        let text = format!("a pod shows {} events after it showed {before}", shown.size);
                        seen.surprises.push(text);
                    }
                }
                Err(error) => {
                    let text = String::from_utf8_lossy(&reply.body);
                    seen.surprises.push(format!("a pod shows a checkpoint with {error}: {text}"));
                }
            }
        }
    }
}

/// The roots of the trees over the first entries, for each of these sizes that there are enough entries for.
#[must_use]
pub fn roots<'a>(entries: impl Iterator<Item = &'a [u8]>, sizes: &BTreeSet<u64>) -> BTreeMap<u64, [u8; 32]> {
    let mut roots = BTreeMap::new();
    // Complete subtrees from left to right, each with its number of leaves.
    let mut subtrees: Vec<(u64, [u8; 32])> = Vec::new();
    if sizes.contains(&0) {
        roots.insert(0, Sha256::digest(b"").into());
    }
    for (size, entry) in (1..).zip(entries) {
        let mut last = (1, hash(&[&[0], entry]));
        while let Some((leaves, left)) = subtrees.pop_if(|(leaves, _)| *leaves == last.0) {
            last = (leaves * 2, hash(&[&[1], &left, &last.1]));
        }
        subtrees.push(last);
        if sizes.contains(&size) {
            let mut from_right = subtrees.iter().rev().map(|(_, hash)| *hash);
            let rightmost = from_right.next().unwrap_or_default();
            roots.insert(size, from_right.fold(rightmost, |right, left| hash(&[&[1], &left, &right])));
        }
    }
    roots
}

fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_are_those_of_the_other_implementation() {
        let entries: Vec<[u8; 32]> = (0..70).map(|number| [number; 32]).collect();
        let sizes = (0..=71).collect();
        let found = roots(entries.iter().map(|entry| &entry[..]), &sizes);
        let leaves: Vec<_> = entries.iter().map(|entry| certeus_tlog::leaf_hash(entry)).collect();
        assert_eq!(found.len(), 71, "nothing beyond the entries there are");
        for (size, root) in found {
            let expected = certeus_tlog::tree::root_of(&leaves[..usize::try_from(size).unwrap()]);
            assert_eq!(&root, expected.as_bytes(), "{size}");
        }
    }
}
