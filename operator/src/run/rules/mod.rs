//! Reconciles AlertRules, and PrometheusRules that are given to a cluster: validates them, brings them to its pods, and reports.
//!
//! One round looks at all rules of one cluster: one question to each pod, then only what differs. Rounds come when a rule or a pod
//! changed, and every few seconds, so that a pod that forgot its rules, or has some that nobody wants, is put right. One task owns
//! all that is known; rounds run beside it on copies. An object with a mistake, or that cannot be written, holds up no other;
//! what is kept of all of them is bounded (`room.rs`).
//! PrometheusRules are somebody else's: they are never written, and their definition may be absent, or come later.
//! Read next: `round.rs`, `pod.rs`, `report.rs`, then the library's `rules`.

mod pod;
mod report;
mod room;
mod round;
mod seen;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use certeus_operator::rules::prometheus_rule_resource;
use kube::Client;
use kube::runtime::events::{Recorder, Reporter};
use rand::RngExt;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::{Id, JoinError, JoinSet};

use super::Scope;
use super::clock;
use super::discovery;
use super::error::Class;
use super::lists::Lists;
use super::pods::{ObjectKey, PodDirectory};
use super::queue::{Queue, Wake};
use super::telemetry::{Health, Metrics};
use room::Room;
use round::{Again, Memory, Round, Tools, round};
use seen::{Change, Origin, RuleSeen, Watching};

/// What comes in this time is one round: an apply of many objects, the echo of what a round wrote.
const GATHER: Duration = Duration::from_millis(200);
/// Between two looks at the pods of a cluster with rules: a pod that lost them has them again after this.
const RECHECK: Duration = Duration::from_secs(5);
/// Between two looks at a cluster without rules, or at rules without a cluster: only left-overs could be there. A new pod and a new
/// cluster are looked at at once.
const RECHECK_RARELY: Duration = Duration::from_secs(60);
/// What is in doubt is looked at again after this.
const SOON: Duration = Duration::from_secs(1);
/// Rules that found no room are read again this long after there was some, when more may have been given back.
const ROOM_AGAIN: Duration = Duration::from_secs(10);
/// Rounds at the same time. Each waits for its pods most of the time.
const ROUNDS_MAX: usize = 16;
/// Events of the watches that wait to be taken in.
const CHANGES_MAX: usize = 256;

/// What the controller of AlertRules works with.
pub(crate) struct Context {
    /// Repeats what may be repeated, and refuses writes once the lease is lost.
    pub(crate) client: Client,
    pub(crate) scope: Scope,
    /// The clusters and their pods, with address and key.
    pub(crate) pods: PodDirectory,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) health: Arc<Health>,
    /// Becomes true when the process is to end.
    pub(crate) stop: watch::Receiver<bool>,
}

/// Runs until `stop`. An end before that ends the process.
pub(crate) async fn run(context: Context) {
    let Context { client, scope, pods, metrics, health, mut stop } = context;
    let reporter = Reporter { controller: "certeus.io/operator".to_owned(), instance: None };
    let recorder = Recorder::new(client.clone(), reporter);
    let tools = match Tools::new(client.clone(), recorder, Arc::clone(&metrics)) {
        Ok(tools) => Arc::new(tools),
        Err(error) => {
            tracing::error!(reason = %error, "the metrics of AlertRules cannot be registered");
            return;
        }
    };
    let mut pod_changes = pods.changes();
    let (sender, mut changes) = mpsc::channel(CHANGES_MAX);
    let mut keeper = Keeper::new(tools, pods, scope.clone());
    let mut watches = JoinSet::new();
    let watching = Watching { client: client.clone(), scope, changes: sender.clone(), metrics, health };
    watching.start(Origin::AlertRule, &mut watches);
    let mut imports = JoinSet::new();
    let kind = prometheus_rule_resource();
    watches.spawn(discovery::watch_kind(client.clone(), kind, sender.clone(), Change::Imports));
    keeper.wake_all(clock::now());
    let mut readings = JoinSet::new();
    loop {
        keeper.start(clock::now());
        let due = keeper.next_due().map(|due| due.saturating_sub(clock::now()));
        let room = keeper.room_again.filter(|_| readings.is_empty());
        let room = room.map(|again| again.saturating_sub(clock::now()));
        tokio::select! {
            // A sender that is gone means the same as a stop.
            _stopped = stop.wait_for(|stop| *stop) => return,
            // The watches live as long as their set, and the sender beside them as long as this function.
            Some(change) = changes.recv() => {
                match change {
                    Change::Imports(true) if imports.is_empty() => {
                        watching.start(Origin::PrometheusRule, &mut imports);
                    }
                    // They would be refused from now on. Dropped, they end.
                    Change::Imports(false) => imports = JoinSet::new(),
                    _ => {}
                }
                keeper.take(change, clock::now());
            }
            changed = pod_changes.recv() => match changed {
                Ok(cluster) => keeper.wake(&cluster, Wake::Changed, clock::now()),
                Err(broadcast::error::RecvError::Lagged(_)) => keeper.wake_all(clock::now()),
                // Nobody changes pods any more: the process ends.
                Err(broadcast::error::RecvError::Closed) => return,
            },
            Some(ended) = keeper.rounds.join_next_with_id() => keeper.finished(ended, clock::now()),
            // Only a bug ends a watch.
            Some(_ended) = watches.join_next() => return,
            Some(_ended) = imports.join_next() => return,
            () = tokio::time::sleep(due.unwrap_or(RECHECK)), if due.is_some() => {}
            () = tokio::time::sleep(room.unwrap_or(ROOM_AGAIN)), if room.is_some() => {
                let keys = keeper.take_unkept();
                readings.spawn(seen::read_again(client.clone(), keys, sender.clone()));
            }
            Some(read) = readings.join_next() => {
                if !read.is_ok_and(|complete| complete) {
                    keeper.gave_back(clock::now());
                }
            }
        }
    }
}

/// All that is known, and which rounds are due.
struct Keeper {
    tools: Arc<Tools>,
    pods: PodDirectory,
    rules: HashMap<ObjectKey, Arc<RuleSeen>>,
    room: Room,
    /// Rules that there was no room for.
    unkept: BTreeSet<ObjectKey>,
    /// When to try these again: something was given back.
    room_again: Option<Duration>,
    /// The rules of each cluster, by their own names.
    clusters: HashMap<ObjectKey, BTreeSet<ObjectKey>>,
    /// What each cluster's rounds remember; absent while one runs.
    memories: HashMap<ObjectKey, Memory>,
    queue: Queue<ObjectKey>,
    rounds: JoinSet<(Memory, Again)>,
    running: HashMap<Id, ObjectKey>,
    /// No round may run before the AlertRules of its namespace are known: the others would be removed from pods.
    lists: Lists,
    scope: Scope,
    imports: Imports,
}

/// What is known of PrometheusRules. Until all of a namespace are known, pods keep those that they have; AlertRules do not wait for
/// what may never come.
enum Imports {
    /// Whether there is such a kind was not answered yet.
    Undecided,
    /// There are none.
    Absent,
    /// The kind is there, and its watches tell what there is of it.
    Watched(Lists),
}

impl Keeper {
    fn new(tools: Arc<Tools>, pods: PodDirectory, scope: Scope) -> Self {
        Self {
            tools,
            pods,
            rules: HashMap::new(),
            room: Room::default(),
            unkept: BTreeSet::new(),
            room_again: None,
            clusters: HashMap::new(),
            memories: HashMap::new(),
            queue: Queue::new(),
            rounds: JoinSet::new(),
            running: HashMap::new(),
            lists: Lists::new(&scope, BTreeSet::from([seen::WATCH])),
            scope,
            imports: Imports::Undecided,
        }
    }

    fn wake(&mut self, cluster: &ObjectKey, wake: Wake, now: Duration) {
        self.queue.wake(cluster, wake, now + GATHER);
    }

    fn wake_all(&mut self, now: Duration) {
        let known: BTreeSet<ObjectKey> =
            self.pods.clusters().into_keys().chain(self.clusters.keys().cloned()).collect();
        for cluster in &known {
            self.wake(cluster, Wake::Seen, now);
        }
    }

    fn take(&mut self, change: Change, now: Duration) {
        match change {
            Change::List(listing) => {
                self.lists.note(listing);
                if let Imports::Watched(lists) = &mut self.imports {
                    lists.note(listing);
                }
                self.wake_all(now);
            }
            Change::Imports(is_known) => match (&self.imports, is_known) {
                (Imports::Undecided | Imports::Absent, true) => {
                    let required = BTreeSet::from([seen::IMPORTS_WATCH]);
                    self.imports = Imports::Watched(Lists::new(&self.scope, required));
                }
                (Imports::Undecided | Imports::Watched(_), false) => {
                    self.imports = Imports::Absent;
                    // They went with their definition, whether or not the watches could still tell.
                    let is_imported = |rule: &RuleSeen| rule.origin == Origin::PrometheusRule;
                    let gone = self.rules.iter().filter(|(_, rule)| is_imported(rule));
                    for key in gone.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
                        self.gone(&key, now);
                    }
                    self.wake_all(now);
                }
                (Imports::Absent, false) | (Imports::Watched(_), true) => {}
            },
            Change::Gone(key) => self.gone(&key, now),
            Change::Again(key, object) => {
                // Gone, changed, or kept meanwhile: what the watch shows, or will show, is looked at by itself.
                let version = object.metadata.resource_version.clone().unwrap_or_default();
                let waits = |seen: &&Arc<RuleSeen>| seen.lacks_room && seen.resource_version == version;
                if self.rules.get(&key).filter(waits).is_some() {
                    self.take(Change::Rule(key, object), now);
                }
            }
            Change::Rule(key, object) => {
                let before = self.rules.get(&key).cloned();
                let seen = RuleSeen::read(&key, *object, before.as_deref());
                let seen = self.kept(&key, seen, before.as_deref(), now);
                self.tools.objects(&seen).inc();
                if let Some(before) = before {
                    self.tools.objects(&before).dec();
                    if before.cluster != seen.cluster {
                        // The pods of the cluster it was for must forget it.
                        self.leave(&before.cluster, &key, now);
                    }
                }
                self.clusters.entry(seen.cluster.clone()).or_default().insert(key.clone());
                self.wake(&seen.cluster, Wake::Changed, now);
                self.rules.insert(key, seen);
            }
        }
    }

    /// Whether all PrometheusRules of a namespace are known.
    fn knows_imports(&self, namespace: &str) -> bool {
        match &self.imports {
            Imports::Undecided => false,
            Imports::Absent => true,
            Imports::Watched(lists) => lists.is_known(namespace),
        }
    }

    /// What is kept of an object in place of what was before.
    fn kept(
        &mut self,
        key: &ObjectKey,
        mut seen: RuleSeen,
        before: Option<&RuleSeen>,
        now: Duration,
    ) -> Arc<RuleSeen> {
        if let Some(before) = before {
            self.room.give_back(&before.cluster, before.body_bytes());
        }
        if self.room.take(&seen.cluster, seen.body_bytes()) {
            self.unkept.remove(key);
        } else {
            seen.drop_body();
            self.unkept.insert(key.clone());
        }
        let is_less =
            |before: &RuleSeen| before.cluster != seen.cluster || before.body_bytes() > seen.body_bytes();
        if before.is_some_and(is_less) {
            self.gave_back(now);
        }
        Arc::new(seen)
    }

    /// There is more room than before, for whatever found none.
    fn gave_back(&mut self, now: Duration) {
        if !self.unkept.is_empty() {
            self.room_again.get_or_insert(now + ROOM_AGAIN);
        }
    }

    /// The rules that found no room, to be read again.
    fn take_unkept(&mut self) -> Vec<ObjectKey> {
        self.room_again = None;
        self.unkept.iter().cloned().collect()
    }

    /// An object does not exist any more.
    fn gone(&mut self, key: &ObjectKey, now: Duration) {
        if let Some(old) = self.rules.remove(key) {
            self.tools.objects(&old).dec();
            self.unkept.remove(key);
            self.room.give_back(&old.cluster, old.body_bytes());
            self.gave_back(now);
            self.leave(&old.cluster, key, now);
        }
    }

    fn leave(&mut self, cluster: &ObjectKey, rule: &ObjectKey, now: Duration) {
        if let Some(rules) = self.clusters.get_mut(cluster) {
            rules.remove(rule);
            if rules.is_empty() {
                self.clusters.remove(cluster);
            }
        }
        self.wake(cluster, Wake::Changed, now);
    }

    /// When [`Self::start`] has something to do; `None` while it waits for something else.
    fn next_due(&self) -> Option<Duration> {
        if !self.lists.have_begun() || self.running.len() >= ROUNDS_MAX {
            None
        } else {
            self.queue.next_due()
        }
    }

    /// Starts what is due.
    fn start(&mut self, now: Duration) {
        while self.next_due().is_some() {
            let Some(cluster) = self.queue.next(now) else { return };
            if !self.lists.is_known(&cluster.namespace) {
                // All are woken when a list is complete.
                self.queue.forget(&cluster);
                continue;
            }
            let pods = self.pods.pods(&cluster);
            let with_imports = self.knows_imports(&cluster.namespace);
            let names = self.clusters.get(&cluster).into_iter().flatten();
            let rules: BTreeMap<ObjectKey, Arc<RuleSeen>> = names
                .filter_map(|name| Some((name.clone(), Arc::clone(self.rules.get(name)?))))
                .filter(|(_, rule)| with_imports || rule.origin == Origin::AlertRule)
                .collect();
            let memory = self.memories.remove(&cluster).unwrap_or_default();
            if pods.is_none() && rules.is_empty() {
                self.queue.forget(&cluster);
                continue;
            }
            let work = Round { cluster: cluster.clone(), rules, with_imports, pods, memory };
            let tools = Arc::clone(&self.tools);
            let task = self.rounds.spawn(async move { round(&tools, work).await });
            self.running.insert(task.id(), cluster);
        }
    }

    fn finished(&mut self, ended: Result<(Id, (Memory, Again)), JoinError>, now: Duration) {
        match ended {
            Ok((id, (memory, again))) => {
                let Some(cluster) = self.running.remove(&id) else { return };
                let pause = match again {
                    Again::Soon => SOON,
                    Again::Recheck => RECHECK,
                    Again::Rarely => RECHECK_RARELY,
                };
                self.queue.succeeded(&cluster, Some(now + pause));
                self.memories.insert(cluster, memory);
            }
            Err(error) => {
                let Some(cluster) = self.running.remove(&error.id()) else { return };
                tracing::error!(cluster = %cluster, "a round over the rules of a cluster ended in a bug");
                let random = rand::rng().random();
                self.queue.failed(&cluster, now, |failures| Class::Fatal.retry(failures, random));
            }
        }
    }
}
