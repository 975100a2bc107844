//! Which of several operators works: the one that holds a Lease (coordination.k8s.io/v1).
//!
//! [`Core`] decides with the time as an argument; [`Holder`] talks to the API server. Every claim and renewal replaces the Lease
//! at the version that was read, so of two that try at once one fails. Nobody's clock is compared with another's: a follower
//! counts from when it saw the Lease change last. A holder that could not renew for `RENEW_DEADLINE` ends the process, and its
//! [`Fence`] closes at that moment even if the process is too slow to end; others wait `DURATION`, which is longer.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client};
use rand::RngExt;
use tokio::sync::watch;

use super::client::Fence;
use super::clock;
use super::telemetry::{Health, Metrics, Source};
use crate::errors::{Reminder, chain};
use crate::names::Namespace;

/// The usual figures of Kubernetes' own controllers.
const DURATION: Duration = Duration::from_secs(15);
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(2);
/// One request; several fit into the deadline.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
const _: () = assert!(RENEW_DEADLINE.as_secs() + REQUEST_TIMEOUT.as_secs() <= DURATION.as_secs());

/// Why the lease ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the lease could not be renewed for {} s", RENEW_DEADLINE.as_secs())]
    NotRenewed,
    #[error("{holder:?} holds the lease now")]
    Taken { holder: String },
}

/// What a read Lease says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    /// Empty when it was released.
    holder: String,
    /// Changes with every renewal.
    version: String,
    duration: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// Nothing to do for this long.
    Wait(Duration),
    /// Read the Lease, then claim or renew it if [`Core::may_claim`].
    Try,
    /// The process must end.
    Lost,
}

/// What one candidate knows.
#[derive(Debug)]
struct Core {
    identity: String,
    /// The Lease as last seen, and when it was first seen so.
    seen: Option<(Seen, Duration)>,
    /// When the last claim or renewal that succeeded was *sent*; `None` while following.
    renewed: Option<Duration>,
    next_try: Duration,
}

impl Core {
    fn new(identity: String) -> Self {
        Self { identity, seen: None, renewed: None, next_try: Duration::ZERO }
    }

    fn step(&self, now: Duration) -> Step {
        match self.renewed {
            Some(renewed) if now >= renewed + RENEW_DEADLINE => Step::Lost,
            _ if now >= self.next_try => Step::Try,
            Some(renewed) => Step::Wait(self.next_try.min(renewed + RENEW_DEADLINE) - now),
            None => Step::Wait(self.next_try - now),
        }
    }

    /// A try begins. `jitter` from 0 to 1 keeps candidates from trying in step.
    fn tried(&mut self, now: Duration, jitter: f64) {
        let pause = if self.renewed.is_some() { RETRY } else { RETRY.mul_f64(1.0 + jitter * 0.2) };
        self.next_try = now + pause;
    }

    fn saw(&mut self, seen: Seen, now: Duration) {
        if self.seen.as_ref().is_none_or(|(before, _)| *before != seen) {
            self.seen = Some((seen, now));
        }
    }

    /// Whether the Lease as last seen may be replaced by ours.
    fn may_claim(&self, now: Duration) -> bool {
        let Some((seen, since)) = &self.seen else { return true };
        seen.holder.is_empty() || seen.holder == self.identity || now >= *since + seen.duration
    }

    /// The claim or renewal that was sent at `sent` succeeded. Returns until when others leave us alone.
    fn renewed(&mut self, sent: Duration) -> Duration {
        self.renewed = Some(sent);
        sent + RENEW_DEADLINE
    }

    fn is_held(&self) -> bool {
        self.renewed.is_some()
    }
}

/// Takes part in the election for one Lease.
pub(crate) struct Holder {
    leases: Api<Lease>,
    name: String,
    core: Core,
    fence: Arc<Fence>,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    /// The Lease as last read or written.
    lease: Option<Lease>,
    reminder: Reminder,
}

/// Which Lease, and as whom.
pub(crate) struct Place {
    pub(crate) namespace: Namespace,
    pub(crate) name: String,
    /// Unique among the candidates: a pod's name and a part that no earlier process of this name had.
    pub(crate) identity: String,
}

impl Holder {
    pub(crate) fn new(
        client: Client,
        place: Place,
        fence: Arc<Fence>,
        metrics: Arc<Metrics>,
        health: Arc<Health>,
    ) -> Self {
        let Place { namespace, name, identity } = place;
        let leases = Api::namespaced(client, namespace.as_str());
        let (core, reminder) = (Core::new(identity), Reminder::default());
        Self { leases, name, core, fence, metrics, health, lease: None, reminder }
    }

    /// Waits until the Lease is ours; false if `stop` came first.
    pub(crate) async fn acquire(&mut self, stop: &mut watch::Receiver<bool>) -> bool {
        let mut told = None;
        while !self.core.is_held() {
            if *stop.borrow() {
                return false;
            }
            let wait = match self.core.step(clock::now()) {
                Step::Try => {
                    self.attempt().await;
                    continue;
                }
                Step::Wait(wait) => wait,
                Step::Lost => Duration::ZERO,
            };
            let holder = self.core.seen.as_ref().map(|(seen, _)| seen.holder.clone());
            if !self.core.is_held() && holder.is_some() && holder != told {
                tracing::info!(lease.holder = holder.as_deref(), "standing by");
                told = holder;
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = stop.changed() => {}
            }
        }
        self.metrics.leader.set(1);
        tracing::info!(lease.identity = self.core.identity, "this process holds the lease");
        true
    }

    /// Renews until `stop` (then releases) or until the lease is lost.
    pub(crate) async fn hold(mut self, mut stop: watch::Receiver<bool>) -> Result<(), Error> {
        loop {
            if *stop.borrow() {
                self.release().await;
                return Ok(());
            }
            match self.core.step(clock::now()) {
                Step::Lost => break Err(Error::NotRenewed),
                Step::Try => {
                    self.attempt().await;
                    if let Some((seen, _)) = &self.core.seen
                        && seen.holder != self.core.identity
                    {
                        break Err(Error::Taken { holder: seen.holder.clone() });
                    }
                }
                Step::Wait(wait) => tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    _ = stop.changed() => {}
                },
            }
        }
        .inspect_err(|_| {
            self.fence.extend(Duration::ZERO);
            self.metrics.leader.set(0);
        })
    }

    /// One look at the Lease, and a claim or renewal if it may be had.
    async fn attempt(&mut self) {
        let now = clock::now();
        self.core.tried(now, rand::rng().random());
        let trouble = match tokio::time::timeout(REQUEST_TIMEOUT, self.exchange()).await {
            Ok(answer) => {
                // An error is progress, too: what it says shows in the log and ends the lease, not the process' health.
                self.health.progress(Source::Lease, clock::now());
                match answer {
                    Ok(()) => return self.reminder.clear(),
                    Err(error) => trouble(&error),
                }
            }
            Err(_elapsed) => format!("no answer from the API server within {} s", REQUEST_TIMEOUT.as_secs()),
        };
        if self.reminder.is_due(&trouble, clock::now()) {
            tracing::warn!(
                lease.name = self.name,
                error = trouble,
                "the lease cannot be had now; trying again"
            );
        }
    }

    async fn exchange(&mut self) -> Result<(), kube::Error> {
        // A renewal trusts what it wrote last; if somebody else wrote since, the version tells.
        if self.lease.is_none() || !self.core.is_held() {
            self.lease = self.leases.get_opt(&self.name).await?;
            if let Some(lease) = &self.lease {
                self.core.saw(seen(lease), clock::now());
            }
        }
        if !self.core.may_claim(clock::now()) {
            return Ok(());
        }
        let sent = clock::now();
        let next = claim(self.lease.as_ref(), &self.name, &self.core.identity, Timestamp::now());
        let written = match self.lease {
            Some(_) => self.leases.replace(&self.name, &PostParams::default(), &next).await,
            None => self.leases.create(&PostParams::default(), &next).await,
        };
        match written {
            Ok(lease) => {
                self.core.saw(seen(&lease), clock::now());
                self.fence.extend(self.core.renewed(sent));
                self.metrics.lease_renewal.set(Timestamp::now().as_duration().as_secs_f64());
                self.lease = Some(lease);
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.code == 409 => {
                // Somebody else was faster, or our own earlier try succeeded unseen. What stands there decides.
                self.lease = self.leases.get_opt(&self.name).await?;
                if let Some(lease) = &self.lease {
                    self.core.saw(seen(lease), clock::now());
                }
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Gives the Lease back, so that the next one need not wait until it expires.
    async fn release(&mut self) {
        // First, so that nothing is written any more once others may.
        self.fence.extend(Duration::ZERO);
        self.metrics.leader.set(0);
        let Some(mut lease) = self.lease.take() else { return };
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
        }
        let params = PostParams::default();
        let replaced = self.leases.replace(&self.name, &params, &lease);
        match tokio::time::timeout(REQUEST_TIMEOUT, replaced).await {
            Ok(Ok(_)) => tracing::info!("the lease is released"),
            Ok(Err(error)) => {
                tracing::warn!(error = chain(&error), "the lease could not be released; it expires");
            }
            Err(_elapsed) => tracing::warn!("the lease could not be released in time; it expires"),
        }
    }
}

/// Why the Lease cannot be had. Its name is fixed, so what the API server does not find is the namespace.
fn trouble(error: &kube::Error) -> String {
    let said = chain(error);
    let code = if let kube::Error::Api(status) = error { status.code } else { 0 };
    match code {
        401 => format!("the credentials are refused: {said}"),
        404 => format!("{said}; create the namespace, or name another with --lease-namespace"),
        _ => said,
    }
}

fn seen(lease: &Lease) -> Seen {
    let spec = lease.spec.as_ref();
    let seconds =
        spec.and_then(|spec| spec.lease_duration_seconds).and_then(|seconds| u64::try_from(seconds).ok());
    Seen {
        holder: spec.and_then(|spec| spec.holder_identity.clone()).unwrap_or_default(),
        version: lease.metadata.resource_version.clone().unwrap_or_default(),
        duration: seconds.map_or(DURATION, Duration::from_secs),
    }
}

/// The Lease with `identity` as its holder, at the version of `before`.
fn claim(before: Option<&Lease>, name: &str, identity: &str, now: Timestamp) -> Lease {
    let old = before.and_then(|lease| lease.spec.clone()).unwrap_or_default();
    let continued = old.holder_identity.as_deref() == Some(identity);
    let transitions = old.lease_transitions.unwrap_or_default();
    let metadata = before.map_or_else(
        || ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
        |lease| lease.metadata.clone(),
    );
    Lease {
        metadata,
        spec: Some(LeaseSpec {
            holder_identity: Some(identity.to_owned()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: if continued { old.acquire_time } else { Some(MicroTime(now)) },
            renew_time: Some(MicroTime(now)),
            lease_transitions: Some(if continued || before.is_none() {
                transitions
            } else {
                transitions + 1
            }),
            ..old
        }),
    }
}

#[cfg(test)]
mod tests;
