//! The loop that turns what is seen into reconciles: everything that can wake it is in [`Controller::run`].
//!
//! Owns what is known of the world, the queue, and the record of each cluster; a reconcile borrows its cluster's record and gives
//! it back, so there are no locks. Reconciles run as tasks, at most [`RECONCILES_MAX`] at a time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use certeus_operator::build::service_monitor_resource;
use futures_util::FutureExt;
use rand::RngExt;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;

use super::Scope;
use super::clock;
use super::error::{Class, Error};
use super::lists::{Listing, Lists};
use super::phases::{Context, Record, reconcile, secret_names};
use super::pods::ObjectKey;
use super::queue::{Queue, Wake};
use super::telemetry::{Health, Source};
use super::watch::{self as watches, Change};
use super::world::{Effect, World};

/// Each is a few requests in turn, and the API server deals with these many writers without queueing.
const RECONCILES_MAX: usize = 8;
/// Changes on their way from the watches; behind it they wait.
const CHANGES_MAX: usize = 1024;
/// An edit is often followed by another one, and pods should be replaced once for both.
const EDIT_DELAY: Duration = Duration::from_millis(300);
/// Secrets are often written one after the other.
const SECRET_DELAY: Duration = Duration::from_secs(2);
/// Many pods change at once.
const AROUND_DELAY: Duration = Duration::from_millis(50);
/// A cluster is looked at this often though nothing happened, and its Secrets are read again.
const RESYNC: Duration = Duration::from_secs(600);
const HEARTBEAT: Duration = Duration::from_secs(5);
/// On the way out, for reconciles that run.
const FINISH_TIMEOUT: Duration = Duration::from_secs(5);

/// Clusters whose scalers have something new, from any task.
#[derive(Default)]
struct Woken {
    /// Guards the set alone, never held while waiting. No larger than there are clusters.
    keys: Mutex<BTreeSet<ObjectKey>>,
    notify: Notify,
}

impl Woken {
    fn wake(&self, key: &ObjectKey) {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone());
        self.notify.notify_one();
    }

    fn take(&self) -> BTreeSet<ObjectKey> {
        std::mem::take(&mut *self.keys.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The result of one reconcile, with the record that it had borrowed.
struct Finished {
    key: ObjectKey,
    record: Box<Record>,
    result: Result<(), Error>,
    took: Duration,
}

pub(crate) struct Controller {
    context: Arc<Context>,
    scope: Scope,
    health: Arc<Health>,
    world: World,
    queue: Queue<ObjectKey>,
    /// Without those that a reconcile has borrowed.
    records: HashMap<ObjectKey, Box<Record>>,
    /// Borrowed records that are out of date: of clusters that are gone, or were made anew.
    stale: BTreeSet<ObjectKey>,
    /// Borrowed records whose Secrets changed meanwhile, and when to read them again.
    secrets_changed: BTreeMap<ObjectKey, Duration>,
    referred: BTreeMap<ObjectKey, BTreeSet<String>>,
    woken: Arc<Woken>,
    running: JoinSet<Finished>,
}

impl Controller {
    pub(crate) fn new(context: Arc<Context>, scope: Scope, health: Arc<Health>) -> Self {
        Self {
            context,
            scope,
            health,
            world: World::default(),
            queue: Queue::new(),
            records: HashMap::new(),
            stale: BTreeSet::new(),
            secrets_changed: BTreeMap::new(),
            referred: BTreeMap::new(),
            woken: Arc::default(),
            running: JoinSet::new(),
        }
    }

    /// Runs until `stop`. Reconciles, and being ready, begin once all first lists are there or refused.
    pub(crate) async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let (sender, mut changes) = mpsc::channel(CHANGES_MAX);
        let Context { client, metrics, .. } = &*self.context;
        let watches::Watches { tasks: mut watching, required } =
            watches::start(client, &self.scope, &sender, metrics, &self.health);
        let mut lists = Lists::new(&self.scope, required);
        let mut monitors = JoinSet::new();
        let mut discovery = JoinSet::new();
        discovery.spawn(super::discovery::watch_kind(
            client.clone(),
            service_monitor_resource(),
            sender.clone(),
            Change::ServiceMonitors,
        ));
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        loop {
            let begun = lists.have_begun();
            if begun {
                self.hand_out(&lists);
            }
            let due = self.queue.next_due().filter(|_| begun && self.running.len() < RECONCILES_MAX);
            let wait = due.map(|due| due.saturating_sub(clock::now()));
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => break,
                Some(finished) = self.running.join_next_with_id() => match finished {
                    Ok((_, finished)) => self.finished(finished),
                    // Panics are caught within the task.
                    Err(error) => tracing::error!(%error, "a reconcile was lost"),
                },
                Some(change) = changes.recv() => match change {
                    Change::List(listing) => self.listed(&mut lists, listing),
                    Change::ServiceMonitors(known) => {
                        if known && monitors.is_empty() {
                            let Context { client, metrics, .. } = &*self.context;
                            monitors = watches::start_service_monitors(client, &self.scope, &sender, metrics, &self.health);
                        } else if !known {
                            // They would be refused from now on. Dropped, they end.
                            monitors = JoinSet::new();
                        }
                        self.change(Change::ServiceMonitors(known));
                    }
                    change => self.change(change),
                },
                // They never end by themselves. Blind, the operator must not go on.
                Some(_) = watching.join_next() => {
                    tracing::error!("a watch ended");
                    break;
                }
                () = self.woken.notify.notified() => {
                    for key in self.woken.take() {
                        self.queue.wake(&key, Wake::Urgent, clock::now());
                    }
                }
                () = tokio::time::sleep(wait.unwrap_or(HEARTBEAT)) => {}
                _ = heartbeat.tick() => self.beat(),
            }
        }
        self.health.forget(Source::Controller);
        let finish = async { while self.running.join_next().await.is_some() {} };
        if tokio::time::timeout(FINISH_TIMEOUT, finish).await.is_err() {
            tracing::warn!("reconciles were cut off; the next operator goes on with them");
        }
    }

    /// Takes note of a list that is complete, or refused.
    fn listed(&mut self, lists: &mut Lists, listing: Listing) {
        if !lists.note(listing) || !lists.have_begun() {
            return;
        }
        let nowhere = || "no watched namespace can be read; the log and the lines below say why".to_owned();
        self.health.wait_for((!lists.is_any_known()).then(nowhere));
        // Those of the namespace were passed over until now.
        if listing.complete {
            let now = clock::now();
            for key in self.world.keys().filter(|key| lists.is_known(&key.namespace)) {
                self.queue.wake(key, Wake::Seen, now);
            }
        }
    }

    fn beat(&self) {
        let now = clock::now();
        self.health.progress(Source::Controller, now);
        let metrics = &self.context.metrics;
        metrics.queue_objects.set(i64::try_from(self.queue.depth(now)).unwrap_or(i64::MAX));
        metrics.clusters.set(i64::try_from(self.world.clusters()).unwrap_or(i64::MAX));
    }

    fn change(&mut self, change: Change) {
        let now = clock::now();
        for (key, effect) in self.world.apply(change) {
            match effect {
                Effect::Appeared => {
                    self.forget(&key);
                    self.queue.wake(&key, Wake::Changed, now);
                }
                Effect::Changed => self.queue.wake(&key, Wake::Changed, now + EDIT_DELAY),
                Effect::Around => self.queue.wake(&key, Wake::Seen, now + AROUND_DELAY),
                Effect::Secret => {
                    let due = now + SECRET_DELAY;
                    match self.records.get_mut(&key) {
                        Some(record) => record.secrets_changed(due),
                        None => {
                            self.secrets_changed.entry(key.clone()).or_insert(due);
                        }
                    }
                    // What was missing may be there now.
                    self.queue.wake(&key, Wake::Changed, due);
                }
                Effect::Gone => {
                    self.forget(&key);
                    self.referred.remove(&key);
                    self.context.pods.set(&key, None);
                    // A reconcile that runs is not to be joined by one of a cluster made anew.
                    if !self.queue.is_running(&key) {
                        self.queue.forget(&key);
                    }
                }
            }
        }
    }

    /// Nothing that is remembered of this cluster counts any more.
    fn forget(&mut self, key: &ObjectKey) {
        if self.records.remove(key).is_none() && self.queue.is_running(key) {
            self.stale.insert(key.clone());
        }
    }

    fn hand_out(&mut self, lists: &Lists) {
        let now = clock::now();
        while self.running.len() < RECONCILES_MAX
            && let Some(key) = self.queue.next(now)
        {
            if !lists.is_known(&key.namespace) {
                // What was never listed would be taken for absent. It is woken once its namespace is known.
                self.queue.forget(&key);
                continue;
            }
            let Some(snapshot) = self.world.snapshot(&key) else {
                // Something around a cluster that does not exist, or not any more.
                self.queue.forget(&key);
                continue;
            };
            if let Ok(cluster) = &snapshot.cluster.cluster {
                // Before they are read: what changes from then on is told.
                let secrets = secret_names(cluster);
                if self.referred.get(&key) != Some(&secrets) {
                    self.world.refer(&key, &secrets);
                    self.referred.insert(key.clone(), secrets);
                }
            }
            let mut record = self.records.remove(&key).unwrap_or_default();
            let context = Arc::clone(&self.context);
            let wake: Arc<dyn Fn() + Send + Sync> = {
                let (woken, key) = (Arc::clone(&self.woken), key.clone());
                Arc::new(move || woken.wake(&key))
            };
            self.running.spawn(async move {
                let started = clock::now();
                let run = reconcile(&context, &key, &mut record, snapshot, wake);
                let result = std::panic::AssertUnwindSafe(run).catch_unwind().await;
                let took = clock::now().saturating_sub(started);
                match result {
                    Ok(result) => Finished { key, record, result, took },
                    // Half a record is worse than none.
                    Err(_panic) => {
                        Finished { key, record: Box::default(), result: Err(Error::Panicked), took }
                    }
                }
            });
        }
    }

    fn finished(&mut self, finished: Finished) {
        let Finished { key, mut record, result, took } = finished;
        let metrics = &self.context.metrics;
        metrics.reconcile_seconds.observe(took.as_secs_f64());
        let label = result.as_ref().err().map_or("ok", |error| error.class().label());
        let (due, mut secrets_due) = (record.due(), None);
        metrics.reconciles.with_label_values(&[label]).inc();
        if !self.stale.remove(&key) {
            if let Some(due) = self.secrets_changed.remove(&key) {
                record.secrets_changed(due);
            }
            secrets_due = record.secrets_due();
            self.records.insert(key.clone(), record);
        }
        let (now, random) = (clock::now(), rand::rng().random::<f64>());
        match result {
            Ok(()) => self.queue.succeeded(&key, Some(now + RESYNC.mul_f64(0.9 + random / 5.0))),
            Err(error) => {
                let class = error.class();
                match class {
                    Class::Fatal => tracing::error!(
                        cluster.namespace = %key.namespace, cluster.name = %key.name, error.class = class.label(),
                        error.reason = error.reason(), error = error.message(), "reconcile failed"
                    ),
                    Class::Conflict => tracing::debug!(
                        cluster.namespace = %key.namespace, cluster.name = %key.name, error.class = class.label(),
                        error.reason = error.reason(), error = error.message(), "reconcile failed"
                    ),
                    Class::Invalid | Class::Transient | Class::Forbidden | Class::Missing => tracing::warn!(
                        cluster.namespace = %key.namespace, cluster.name = %key.name, error.class = class.label(),
                        error.reason = error.reason(), error = error.message(), "reconcile failed"
                    ),
                }
                self.queue.failed(&key, now, |failures| class.retry(failures, random));
            }
        }
        // This reconcile took the wake for it and was too early. One that came after it and did not read them had its reasons, which pass with
        // a wake of their own.
        if let Some(due) = secrets_due.filter(|due| *due > now.saturating_sub(took)) {
            self.queue.wake(&key, Wake::Urgent, due);
        }
        if let Some(due) = due {
            self.queue.wake(&key, Wake::Seen, due);
        }
        if !self.world.has(&key) {
            // It went meanwhile, and this reconcile may have told of its pods after that.
            self.queue.forget(&key);
            self.context.pods.set(&key, None);
        }
    }
}

#[cfg(test)]
mod tests;
