//! The rules that a pod has: in memory, and in a folder if there is one.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus::{IntCounter, IntGauge, Registry};

use super::document::{Document, Key};
use super::file::{Folder, Found};

/// Documents that a pod keeps.
pub const SETS_MAX: usize = 4096;
/// Bytes that all documents together may have, as JSON.
pub const TOTAL_BYTES_MAX: usize = 64 << 20;

/// Why rules were not taken or not removed; nothing changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The pod has a newer generation of the same object.
    #[error("generation {have} of these rules is loaded already, which is newer than {given}")]
    Stale {
        /// What the pod has.
        have: i64,
        /// What it was given.
        given: i64,
    },
    /// There are too many documents.
    #[error("rules of {SETS_MAX} objects are loaded already")]
    TooMany,
    /// They are too large together.
    #[error("all rules together may have {TOTAL_BYTES_MAX} bytes")]
    TooLarge,
    /// The folder does not take them.
    #[error("the rules cannot be written to the pod's volume")]
    Write(#[source] io::Error),
}

/// A document and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Whose rules they are.
    pub key: Key,
    /// The rules.
    pub document: Arc<Document>,
}

/// The rules that a pod has. Calls that change something wait for the disk.
#[derive(Debug)]
pub struct Store {
    folder: Option<Folder>,
    /// Held while the disk is written, so that files change in the order of the memory. Taken before `state`.
    writer: Mutex<()>,
    /// Held for moments only.
    state: Mutex<State>,
    metrics: Metrics,
}

#[derive(Debug, Default)]
struct State {
    documents: BTreeMap<Key, Entry>,
    /// Of all documents.
    bytes: usize,
}

#[derive(Debug, Clone)]
struct Entry {
    document: Arc<Document>,
    bytes: usize,
}

#[derive(Debug)]
struct Metrics {
    sets: IntGauge,
    bytes: IntGauge,
    unusable: IntCounter,
    write_failures: IntCounter,
}

impl Metrics {
    fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let gauge = |name, help| {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone())).map(|()| gauge)
        };
        let counter = |name, help| {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone())).map(|()| counter)
        };
        Ok(Self {
            sets: gauge("certeus_rules_objects", "Objects whose rules are loaded.")?,
            bytes: gauge("certeus_rules_bytes", "Bytes of all loaded rules as JSON.")?,
            unusable: counter(
                "certeus_rules_unusable_files_total",
                "Files of rules that could not be read back.",
            )?,
            write_failures: counter(
                "certeus_rules_write_failures_total",
                "Rules that could not be written or removed.",
            )?,
        })
    }
}

impl Store {
    /// A store that keeps its rules in `folder`, if there is one, and begins with what is there. A folder that cannot be read is
    /// like an empty one; what cannot be read back is logged, counted and set aside.
    ///
    /// # Errors
    /// When the metrics are registered already.
    pub fn open(folder: Option<PathBuf>, registry: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = Metrics::register(registry)?;
        let folder = folder.map(Folder::new);
        let found = folder.as_ref().map_or_else(|| Ok(Found::default()), Folder::read).unwrap_or_else(|error| {
            metrics.unusable.inc();
            tracing::error!(reason = %error, "the folder of rules cannot be read; beginning without rules");
            Found::default()
        });
        for (path, reason) in &found.unusable {
            metrics.unusable.inc();
            tracing::error!(file = %path.display(), reason, "rules cannot be read back; beginning without them");
        }
        let mut state = State::default();
        for (key, document) in found.documents {
            let bytes = size(&document);
            // Bounds hold for whatever is found: a folder is no way around them.
            if state.refuses(&key, bytes).is_none() {
                state.insert(key, Entry { document: Arc::new(document), bytes });
            } else {
                metrics.unusable.inc();
                tracing::error!(rules = %key, "there are more rules in the folder than are taken; beginning without these");
            }
        }
        let store = Self { folder, writer: Mutex::default(), state: Mutex::new(state), metrics };
        store.show();
        Ok(store)
    }

    /// Takes the rules of an object in place of those it had. Whether this changed anything.
    ///
    /// # Errors
    /// When they are older than what is there, when there is no room, or when they cannot be written.
    pub fn put(&self, key: &Key, document: Document) -> Result<bool, Error> {
        let _writing = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = size(&document);
        {
            let state = self.state();
            if let Some(Entry { document: old, .. }) = state.documents.get(key) {
                if old.uid == document.uid && old.generation > document.generation {
                    return Err(Error::Stale { have: old.generation, given: document.generation });
                }
                if **old == document {
                    return Ok(false);
                }
            }
            if let Some(error) = state.refuses(key, bytes) {
                return Err(error);
            }
        }
        self.on_disk(|folder| folder.write(key, &document))?;
        self.state().insert(key.clone(), Entry { document: Arc::new(document), bytes });
        self.show();
        Ok(true)
    }

    /// Removes the rules of an object. Whether there were any.
    ///
    /// # Errors
    /// When they cannot be removed from the folder.
    pub fn delete(&self, key: &Key) -> Result<bool, Error> {
        let _writing = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.state().documents.contains_key(key) {
            return Ok(false);
        }
        self.on_disk(|folder| folder.remove(key))?;
        let mut state = self.state();
        if let Some(entry) = state.documents.remove(key) {
            state.bytes -= entry.bytes;
        }
        drop(state);
        self.show();
        Ok(true)
    }

    /// Everything that is loaded, in order of the keys.
    #[must_use]
    pub fn list(&self) -> Vec<Stored> {
        let stored =
            |(key, entry): (&Key, &Entry)| Stored { key: key.clone(), document: Arc::clone(&entry.document) };
        self.state().documents.iter().map(stored).collect()
    }

    fn on_disk(&self, change: impl FnOnce(&Folder) -> io::Result<()>) -> Result<(), Error> {
        self.folder.as_ref().map_or(Ok(()), change).map_err(|error| {
            self.metrics.write_failures.inc();
            Error::Write(error)
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(&self) {
        let state = self.state();
        let gauge = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        self.metrics.sets.set(gauge(state.documents.len()));
        self.metrics.bytes.set(gauge(state.bytes));
    }
}

impl State {
    /// Why there is no room for so many bytes under this key, or nothing.
    fn refuses(&self, key: &Key, bytes: usize) -> Option<Error> {
        let old = self.documents.get(key);
        if old.is_none() && self.documents.len() >= SETS_MAX {
            return Some(Error::TooMany);
        }
        let others = self.bytes - old.map_or(0, |old| old.bytes);
        (others + bytes > TOTAL_BYTES_MAX).then_some(Error::TooLarge)
    }

    fn insert(&mut self, key: Key, entry: Entry) {
        self.bytes += entry.bytes;
        if let Some(old) = self.documents.insert(key, entry) {
            self.bytes -= old.bytes;
        }
    }
}

/// Bytes of a document as JSON.
fn size(document: &Document) -> usize {
    // Maps with texts as keys and numbers: nothing that JSON could not say.
    serde_json::to_vec(document).map_or(usize::MAX / 2, |json| json.len())
}
