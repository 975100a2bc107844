//! One reconcile of one LedgerCluster in five phases: validate, which was done when the watch read it, dereference, build, apply,
//! status. Only dereference and the last two talk to the API server, and none does while nothing changed.
//!
//! Promises: nothing is written for a cluster that is paused, in a dry run or being deleted, but its status; the workload comes
//! after everything it needs; an error of one object does not keep the others from being put right.

mod apply;
mod compare;
mod database;
mod dereference;
mod events;
#[cfg(test)]
mod fake_api;
mod secret_values;
mod status;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use certeus_crds::LedgerClusterStatus;
use certeus_operator::build::{self, Inputs};
use certeus_operator::validate::{Cluster, Scaling};
use kube::Client;
use kube::runtime::events::Recorder;

use super::clock;
use super::error::Error;
use super::owned::OwnedKey;
use super::pods::{ObjectKey, PodDirectory, PodSeen};
use super::scaling::Scaler;
use super::telemetry::Metrics;
use super::world::Snapshot;
use crate::admin::ApiKey;

pub(crate) use dereference::secret_names;

/// For one reconcile. A first one writes a dozen objects.
const RECONCILE_TIMEOUT: Duration = Duration::from_secs(60);

/// What all reconciles share.
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) recorder: Recorder,
    pub(crate) pods: PodDirectory,
    pub(crate) metrics: Arc<Metrics>,
}

#[cfg(test)]
impl Context {
    pub(crate) fn on(client: Client) -> Self {
        Self {
            recorder: Recorder::new(client.clone(), "test".into()),
            client,
            pods: PodDirectory::new(),
            metrics: Arc::new(Metrics::new().unwrap()),
        }
    }
}

/// What is remembered of a cluster from one reconcile to the next. All of it may be lost: then the API server is asked.
#[derive(Default)]
pub(crate) struct Record {
    /// The specification as it was last found valid.
    valid: Option<Arc<Cluster>>,
    scaler: Option<Scaler>,
    applied: BTreeMap<OwnedKey, apply::Applied>,
    secrets: Option<dereference::Secrets>,
    /// One of the Secrets changed, and all are read again then, or once the specification changes.
    secrets_due: Option<Duration>,
    /// As last read; stays while it cannot be read.
    api_key: Option<ApiKey>,
    /// Public halves of the signing keys as last read, none if there is no key that can sign; `None` before that is known.
    verifier_keys: Option<Vec<String>>,
    written: Option<status::Written>,
    told: events::Told,
    /// The cluster is to be looked at then, though nothing may have happened.
    due: Option<Duration>,
}

impl Record {
    /// A Secret that the cluster refers to changed. Whatever else wakes the cluster before `due`, it goes on with what was read, as
    /// others may be changed with it, and pods are to be replaced once for all.
    pub(crate) fn secrets_changed(&mut self, due: Duration) {
        self.secrets_due = Some(self.secrets_due.map_or(due, |before| before.min(due)));
    }

    #[cfg(test)]
    fn forget_secrets(&mut self) {
        self.secrets_changed(Duration::ZERO);
    }

    /// When its Secrets are to be read again as one changed.
    pub(crate) fn secrets_due(&self) -> Option<Duration> {
        self.secrets_due
    }

    /// When the cluster is to be looked at in any case.
    pub(crate) fn due(&self) -> Option<Duration> {
        self.due
    }
}

/// Brings a cluster nearer to what its specification says. `wake` is how its scaler asks for the next reconcile.
pub(crate) async fn reconcile(
    context: &Context,
    key: &ObjectKey,
    record: &mut Record,
    snapshot: Snapshot,
    wake: Arc<dyn Fn() + Send + Sync>,
) -> Result<(), Error> {
    // On the heap: it is moved into a task, and is large.
    let phases = Box::pin(run(context, key, record, snapshot, wake));
    tokio::time::timeout(RECONCILE_TIMEOUT, phases).await.unwrap_or(Err(Error::Timeout(RECONCILE_TIMEOUT)))
}

async fn run(
    context: &Context,
    key: &ObjectKey,
    record: &mut Record,
    mut snapshot: Snapshot,
    wake: Arc<dyn Fn() + Send + Sync>,
) -> Result<(), Error> {
    record.due = status::due(&snapshot.pods, clock::now());
    if snapshot.cluster.deleted {
        // What it owns goes with it; the API server sees to that. Generated Secrets stay.
        context.pods.set(key, None);
        record.scaler = None;
        return Ok(());
    }
    status::forget(&mut record.written, &snapshot);
    let cluster = match &snapshot.cluster.cluster {
        Ok(cluster) => Arc::clone(cluster),
        Err(errors) => {
            let error = Error::Invalid(errors.clone());
            let status = status::invalid(record.written.as_ref(), &snapshot, &error);
            if let Err(failed) = go_on(context, key, record, &snapshot).await {
                tracing::warn!(cluster.name = %key.name, error = failed.message(), "cannot scale");
            }
            return finish(context, key, record, &snapshot, status, Err(error)).await;
        }
    };
    record.valid = Some(Arc::clone(&cluster));
    let name = build::workload_name(&cluster);
    if snapshot.workload(name).is_none()
        && let Some(seen) = dereference::workload(context, &cluster, &snapshot.cluster.uid).await?
    {
        snapshot.owned.insert(("StatefulSet", name.to_owned()), seen);
    }
    let secrets = dereference::secrets(context, &cluster, record, &snapshot).await;
    let (secrets, unread) = match secrets {
        Ok(secrets) => (Some(secrets), None),
        Err(error) => (None, Some(error)),
    };
    let pods = pods_with_key(record, &snapshot);
    context.pods.set(key, Some(pods.clone()));

    let workload = snapshot.workload(name);
    let replicas = workload.map(|workload| workload.replicas);
    let scaler = record.scaler.get_or_insert_with(|| Scaler::start(Arc::clone(&context.metrics), wake));
    let parked = status::parked(record.written.as_ref(), &snapshot);
    scaler.observe(Arc::clone(&cluster), replicas, pods.clone(), snapshot.autoscaler.is_some(), parked);
    let advice = scaler.advice();

    let inputs = Inputs {
        replicas: advice.replicas,
        secrets_hash: secrets.as_ref().and_then(|secrets| secrets.hash.clone()),
        service_monitors: snapshot.service_monitors,
        image: workload.and_then(|workload| workload.image.clone()),
    };
    let objects = build::build(&cluster, &inputs);
    let mut plan = apply::Plan::new(key, &snapshot, objects.all());
    // Pods cannot start without their Secrets.
    plan.workload = unread.is_none();
    // An autoscaler leaves a workload without pods alone, so a stop is no fight.
    plan.held = snapshot.autoscaler.is_some() && !cluster.stopped;
    let mut done = apply::Done::default();
    if cluster.paused {
        // Nothing is changed, and nothing is compared.
    } else if cluster.dry_run {
        done.pending = apply::pending(context, record, &plan).await?;
        // What the triggers would do is told with their values.
        if let (Some(present), Scaling::Fixed(wanted)) = (replicas, &cluster.scaling)
            && present != wanted.get()
        {
            done.pending.insert(0, format!("scale from {present} to {wanted} pods"));
        }
    } else if let (Some(present), true) = (replicas, unread.is_some()) {
        // Pods that have their Secrets keep running; whatever would replace them, or take away what they need, waits.
        done.errors.extend(scale_alone(context, &cluster, present, advice.replicas).await.err());
    } else {
        done = apply::apply(context, record, &plan).await;
        if let (Some(before), true) = (replicas, done.workload) {
            count_scale(&context.metrics, before, inputs.replicas);
        }
    }
    let errors: Vec<Error> = unread.into_iter().chain(std::mem::take(&mut done.errors)).collect();
    let seen = status::Seen {
        cluster: &cluster,
        pods: &pods,
        advice: &advice,
        workload,
        pending: &done.pending,
        verifier_keys: record.verifier_keys.as_deref(),
        errors: &errors,
    };
    let status = status::status(record.written.as_ref(), &snapshot, &seen);
    let outcome = errors.into_iter().next().map_or(Ok(()), Err);
    finish(context, key, record, &snapshot, status, outcome).await
}

/// While the specification cannot be carried out, what ran before goes on, scaled as the one says that was valid last.
async fn go_on(
    context: &Context,
    key: &ObjectKey,
    record: &Record,
    snapshot: &Snapshot,
) -> Result<(), Error> {
    let pods = pods_with_key(record, snapshot);
    context.pods.set(key, Some(pods.clone()));
    let (Some(cluster), Some(scaler)) = (&record.valid, &record.scaler) else { return Ok(()) };
    let name = build::workload_name(cluster);
    let Some(present) = snapshot.workload(name).map(|workload| workload.replicas) else { return Ok(()) };
    if cluster.uid.as_ref() != Some(&snapshot.cluster.uid) {
        return Ok(());
    }
    let parked = status::parked(record.written.as_ref(), snapshot);
    scaler.observe(Arc::clone(cluster), Some(present), pods, snapshot.autoscaler.is_some(), parked);
    if cluster.paused || cluster.dry_run {
        return Ok(());
    }
    scale_alone(context, cluster, present, scaler.advice().replicas).await
}

/// Changes the number of pods, if it is to be another, and nothing else.
async fn scale_alone(context: &Context, cluster: &Cluster, present: u32, wanted: u32) -> Result<(), Error> {
    if present != wanted {
        apply::scale(context, &cluster.namespace, build::workload_name(cluster), present, wanted).await?;
        count_scale(&context.metrics, present, wanted);
    }
    Ok(())
}

fn pods_with_key(record: &Record, snapshot: &Snapshot) -> Vec<PodSeen> {
    snapshot.pods.iter().map(|pod| PodSeen { key: record.api_key.clone(), ..pod.clone() }).collect()
}

fn count_scale(metrics: &Metrics, before: u32, after: u32) {
    match after.cmp(&before) {
        std::cmp::Ordering::Greater => metrics.scale_writes.with_label_values(&["up"]).inc(),
        std::cmp::Ordering::Less => metrics.scale_writes.with_label_values(&["down"]).inc(),
        std::cmp::Ordering::Equal => {}
    }
}

/// Status and Events. What went wrong before is what is returned, unless the status itself cannot be written.
async fn finish(
    context: &Context,
    key: &ObjectKey,
    record: &mut Record,
    snapshot: &Snapshot,
    status: LedgerClusterStatus,
    outcome: Result<(), Error>,
) -> Result<(), Error> {
    let before = status::before(record.written.as_ref(), snapshot);
    let news = events::News { before, status: &status, error: outcome.as_ref().err() };
    events::publish(context, key, &mut record.told, snapshot, &news).await;
    let written = status::write(context, key, &mut record.written, snapshot, status).await;
    outcome.and(written)
}

#[cfg(test)]
mod tests;
