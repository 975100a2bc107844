//! One watch of one kind: a list, then what changes, for as long as the process lives.
//!
//! A watch that fails begins anew by itself, with pauses; its failures show in health and metrics. Promises: what a new list
//! lacks is reported as gone.

use std::collections::HashSet;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use super::clock;
use super::pods::ObjectKey;
use super::telemetry::{Health, Metrics, Source};

/// Objects of one page of a list: a hundred pods are a few hundred kilobytes.
const PAGE_OBJECTS: u32 = 100;
/// A watch ends and begins anew after this many seconds, so that a dead connection is noticed.
const WATCH_SECONDS: u32 = 240;
/// While a watch fails, it shows as failing at least this often.
const PROGRESS: Duration = Duration::from_secs(5);

/// Where a watch tells what it sees.
pub(crate) struct Outlet<C> {
    pub(crate) changes: mpsc::Sender<C>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) health: Arc<Health>,
    /// Which of the watched namespaces.
    pub(crate) place: usize,
    /// What says that the first list is complete, with the place, where somebody waits for it.
    pub(crate) synced: Option<fn(usize) -> C>,
}

impl<C> Clone for Outlet<C> {
    fn clone(&self) -> Self {
        let Self { changes, metrics, health, place, synced } = self;
        let (changes, metrics, health) = (changes.clone(), Arc::clone(metrics), Arc::clone(health));
        Self { changes, metrics, health, place: *place, synced: *synced }
    }
}

/// How much depends on a watch.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// Without it the operator is blind.
    Required,
    /// Without it something is noticed later: at the next look at the cluster.
    Helpful,
}

/// Watches until nobody takes changes any more.
pub(crate) async fn follow<K, V, C>(
    name: &'static str,
    need: Need,
    api: Api<K>,
    config: watcher::Config,
    read: impl Fn(K) -> Option<V>,
    change: impl Fn(ObjectKey, Option<V>) -> C,
    outlet: Outlet<C>,
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let Outlet { changes, metrics, health, place, synced: mut first_list } = outlet;
    let page = config.page_size.unwrap_or(PAGE_OBJECTS).min(PAGE_OBJECTS);
    let config = config.page_size(page).timeout(WATCH_SECONDS);
    let (events, errors) =
        (metrics.watch_events.with_label_values(&[name]), metrics.watch_errors.with_label_values(&[name]));
    let last = metrics.watch_last_event.with_label_values(&[name]);
    let source = (need == Need::Required).then_some(Source::Watch(name, place));
    // What was there, so that what a new list lacks is known to be gone.
    let mut known: HashSet<ObjectKey> = HashSet::new();
    let mut listed: HashSet<ObjectKey> = HashSet::new();
    let (mut failing, mut told) = (false, Duration::ZERO);
    let mut stream = std::pin::pin!(watcher(api, config).default_backoff());
    // The stream never ends by itself.
    while let Some(event) = stream.next().await {
        let now = clock::now();
        let event = match event {
            Ok(event) => {
                events.inc();
                last.set(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
                if failing || now.saturating_sub(told) > PROGRESS {
                    if let Some(source) = source {
                        health.progress(source, now);
                    }
                    (failing, told) = (false, now);
                }
                event
            }
            Err(error) => {
                errors.inc();
                let text = crate::errors::chain(&error);
                // Watches end in the ordinary course of things; a list that cannot be had is trouble.
                if !failing {
                    tracing::warn!(watch = name, error = text, "a watch failed; it begins anew");
                }
                failing = true;
                if let Some(source) = source {
                    health.failure(source, now, text);
                }
                continue;
            }
        };
        let mut out = Vec::new();
        match event {
            watcher::Event::Init => listed.clear(),
            watcher::Event::InitApply(object) => {
                if let Some(key) = key(&object) {
                    listed.insert(key.clone());
                    out.push(change(key, read(object)));
                }
            }
            watcher::Event::InitDone => {
                let gone = known.difference(&listed).cloned();
                out.extend(gone.map(|key| change(key, None)));
                known = std::mem::take(&mut listed);
                out.extend(first_list.take().map(|first_list| first_list(place)));
            }
            watcher::Event::Apply(object) => {
                if let Some(key) = key(&object) {
                    known.insert(key.clone());
                    out.push(change(key, read(object)));
                }
            }
            watcher::Event::Delete(object) => {
                if let Some(key) = key(&object) {
                    known.remove(&key);
                    out.push(change(key, None));
                }
            }
        }
        for change in out {
            // The controller reads until it ends, and then nobody wants to know.
            if changes.send(change).await.is_err() {
                return;
            }
        }
    }
}

fn key<K: Resource>(object: &K) -> Option<ObjectKey> {
    let meta = object.meta();
    Some(ObjectKey::new(meta.namespace.as_deref()?, meta.name.as_deref()?))
}
