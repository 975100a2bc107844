//! One watch of one kind: a list, then what changes, for as long as the process lives.
//!
//! A watch that fails begins anew by itself, with pauses; its failures show in health and metrics. One that the API server
//! refuses, as a right is missing or the namespace is gone, is no failure of this process: it is told, and tried again with a new list.
//! Promises: what a new list lacks is reported as gone; what was refused is reported as such until a list is complete.

use std::collections::HashSet;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource};
use rand::RngExt;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use super::clock;
use super::lists::Listing;
use super::pods::ObjectKey;
use super::telemetry::{Health, Metrics, Source};

/// Objects of one page of a list: a hundred pods are a few hundred kilobytes.
const PAGE_OBJECTS: u32 = 100;
/// A watch ends and begins anew after this many seconds, so that a dead connection is noticed.
const WATCH_SECONDS: u32 = 240;
/// While a watch fails, it shows as failing at least this often.
const PROGRESS: Duration = Duration::from_secs(5);
/// First pause after a refusal; doubles with each further one. Rights are often put right within minutes.
const REFUSED_MIN: Duration = Duration::from_secs(1);
const REFUSED_MAX: Duration = Duration::from_secs(60);

/// Where a watch tells what it sees.
pub(crate) struct Outlet<C> {
    pub(crate) changes: mpsc::Sender<C>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) health: Arc<Health>,
    /// Which of the watched namespaces.
    pub(crate) place: usize,
    /// Its name, for people.
    pub(crate) namespace: Arc<str>,
    /// What says how the watch's list fares.
    pub(crate) listing: fn(Listing) -> C,
}

impl<C> Outlet<C> {
    /// For one of the watched namespaces; `None` are all of them.
    pub(crate) fn new(
        changes: &mpsc::Sender<C>,
        metrics: &Arc<Metrics>,
        health: &Arc<Health>,
        (place, namespace): (usize, Option<&str>),
        listing: fn(Listing) -> C,
    ) -> Self {
        let (changes, metrics, health) = (changes.clone(), Arc::clone(metrics), Arc::clone(health));
        Self { changes, metrics, health, place, namespace: namespace.unwrap_or("all").into(), listing }
    }
}

impl<C> Clone for Outlet<C> {
    fn clone(&self) -> Self {
        let Self { changes, metrics, health, place, namespace, listing } = self;
        let (changes, metrics, health) = (changes.clone(), Arc::clone(metrics), Arc::clone(health));
        Self { changes, metrics, health, place: *place, namespace: Arc::clone(namespace), listing: *listing }
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

/// Watches until nobody takes changes any more, or its task is aborted.
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
    let page = config.page_size.unwrap_or(PAGE_OBJECTS).min(PAGE_OBJECTS);
    let config = config.page_size(page).timeout(WATCH_SECONDS);
    let mut report = Report::new(name, need, &outlet);
    // What was there, so that what a new list lacks is known to be gone.
    let mut known: HashSet<ObjectKey> = HashSet::new();
    let mut listed: HashSet<ObjectKey> = HashSet::new();
    loop {
        let mut stream = std::pin::pin!(watcher(api.clone(), config.clone()).default_backoff());
        let refusal = loop {
            let event = match stream.next().await {
                Some(Ok(event)) => event,
                Some(Err(error)) if is_refusal(&error) => break error,
                Some(Err(error)) => {
                    report.failed(&error);
                    continue;
                }
                // It never ends by itself.
                None => return,
            };
            let mut out = Vec::new();
            match event {
                // Said before anything was asked.
                watcher::Event::Init => {
                    listed.clear();
                    continue;
                }
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
                    out.extend(report.listed().map(outlet.listing));
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
            report.seen();
            for change in out {
                // The controller reads until it ends, and then nobody wants to know.
                if outlet.changes.send(change).await.is_err() {
                    return;
                }
            }
        };
        let (listing, pause) = report.refused(&refusal);
        if let Some(listing) = listing
            && outlet.changes.send((outlet.listing)(listing)).await.is_err()
        {
            return;
        }
        tokio::time::sleep(pause).await;
    }
}

/// Whether the API server lets nobody with our rights have this: asking again helps only once somebody has changed that.
fn is_refusal(error: &watcher::Error) -> bool {
    use watcher::Error::{InitialListFailed, NoResourceVersion, WatchError, WatchFailed, WatchStartFailed};
    let code = match error {
        InitialListFailed(kube::Error::Api(status))
        | WatchStartFailed(kube::Error::Api(status))
        | WatchFailed(kube::Error::Api(status))
        | WatchError(status) => status.code,
        InitialListFailed(_) | WatchStartFailed(_) | WatchFailed(_) | NoResourceVersion => return false,
    };
    matches!(code, 403 | 404)
}

/// How a watch fares, as health, metrics and log tell it.
struct Report<'a, C> {
    name: &'static str,
    outlet: &'a Outlet<C>,
    /// Of a required watch.
    source: Option<Source>,
    /// Its list is complete; `None` until that was told, or that it is refused.
    complete: Option<bool>,
    refusals: u32,
    failing: bool,
    told: Duration,
}

impl<'a, C> Report<'a, C> {
    fn new(name: &'static str, need: Need, outlet: &'a Outlet<C>) -> Self {
        let source = (need == Need::Required).then_some(Source::Watch(name, outlet.place));
        Self { name, outlet, source, complete: None, refusals: 0, failing: false, told: Duration::ZERO }
    }

    fn seen(&mut self) {
        let now = clock::now();
        let metrics = &self.outlet.metrics;
        metrics.watch_events.with_label_values(&[self.name]).inc();
        let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        metrics.watch_last_event.with_label_values(&[self.name]).set(seconds);
        if self.failing || now.saturating_sub(self.told) > PROGRESS {
            if let Some(source) = self.source {
                self.outlet.health.progress(source, now);
            }
            (self.failing, self.told) = (false, now);
        }
    }

    /// A list is complete. What to say of it, if that is news.
    fn listed(&mut self) -> Option<Listing> {
        self.refusals = 0;
        let before = self.complete.replace(true);
        if before == Some(false) {
            self.outlet.metrics.watch_refused.with_label_values(&[self.name]).dec();
            tracing::info!(
                watch = self.name,
                namespace = &*self.outlet.namespace,
                "a watch is allowed again"
            );
            self.failing = true;
        }
        self.news(before, true)
    }

    fn failed(&mut self, error: &watcher::Error) {
        self.outlet.metrics.watch_errors.with_label_values(&[self.name]).inc();
        let text = crate::errors::chain(error);
        // Watches end in the ordinary course of things; a list that cannot be had is trouble.
        if !self.failing {
            tracing::warn!(watch = self.name, error = text, "a watch failed; it begins anew");
        }
        self.failing = true;
        if let Some(source) = self.source {
            self.outlet.health.failure(source, clock::now(), text);
        }
    }

    /// What to say of a refusal, if that is news, and how long to leave the API server alone.
    fn refused(&mut self, error: &watcher::Error) -> (Option<Listing>, Duration) {
        self.outlet.metrics.watch_errors.with_label_values(&[self.name]).inc();
        let namespace = &*self.outlet.namespace;
        let text = crate::errors::chain(error);
        let before = self.complete.replace(false);
        if before != Some(false) {
            self.outlet.metrics.watch_refused.with_label_values(&[self.name]).inc();
            let left_alone = self.source.is_some();
            tracing::warn!(watch = self.name, namespace, left_alone, error = text, "a watch is refused");
        }
        if let Some(source) = self.source {
            let text = format!("the watch of {} in namespace {namespace} is refused: {text}", self.name);
            self.outlet.health.refused(source, clock::now(), text);
        }
        let pause = REFUSED_MIN.saturating_mul(1 << self.refusals.min(16)).min(REFUSED_MAX);
        self.refusals = self.refusals.saturating_add(1);
        (self.news(before, false), pause.mul_f64(0.5 + rand::rng().random::<f64>() / 2.0))
    }

    fn news(&self, before: Option<bool>, complete: bool) -> Option<Listing> {
        let listing = Listing { watch: self.name, place: self.outlet.place, complete };
        (before != Some(complete)).then_some(listing)
    }
}

impl<C> Drop for Report<'_, C> {
    /// A watch that is given up, as its kind is gone, is not refused any more.
    fn drop(&mut self) {
        if self.complete == Some(false) {
            self.outlet.metrics.watch_refused.with_label_values(&[self.name]).dec();
        }
    }
}

fn key<K: Resource>(object: &K) -> Option<ObjectKey> {
    let meta = object.meta();
    Some(ObjectKey::new(meta.namespace.as_deref()?, meta.name.as_deref()?))
}

#[cfg(test)]
mod tests;
